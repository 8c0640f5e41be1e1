# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Commands on a multikernel host, as root, by the connection that Ansible has to it."""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from typing import Any

from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.common.text.converters import to_text
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import become_loader, connection_loader

from ansible_collections.mkops.multikernel.plugins.module_utils.common.text import harmless

_LONGEST = 500  # characters of what somebody else says in a message


def bounded(text: object, longest: int = _LONGEST) -> str:
    """What somebody else says, as one line for a message: spelt out, and not too long."""
    line = " ".join(harmless(to_text(text, errors="backslashreplace")[: 4 * longest]).split())
    return line if len(line) <= longest else f"{line[:longest]}..."


class HostConnection:
    """A connection of Ansible's to a host, with everything that the host's variables say about it.

    variables: of the host; each is templated when it is asked for. become: whether to become root there;
    None: unless the login is root's. secrets: passwords that were asked for at the command line (password,
    become_pass). timeout: seconds to connect, where it is another one than the plugin's.
    """

    def __init__(
        self,
        name: str,
        variables: Mapping[str, Any],
        become: bool | None = None,
        secrets: Mapping[str, str] | None = None,
        timeout: int | None = None,
    ) -> None:
        self.name = name
        self._variables = variables
        kind = self._value("ansible_connection") or _default("DEFAULT_TRANSPORT")
        context = PlayContext()
        context.remote_addr = self._value("ansible_host") or name
        context.connection = kind = "ssh" if kind in ("smart", "ansible.builtin.smart") else kind
        context.executable = self._value("ansible_shell_executable") or _default("DEFAULT_EXECUTABLE")
        context.shell = self._value("ansible_shell_type")
        secrets = {key: value for key, value in (secrets or {}).items() if value}
        context.password = secrets.get("password", "")
        context.become_pass = secrets.get("become_pass", "")
        self._connection = connection_loader.get(kind, context, os.devnull)
        if self._connection is None:
            raise AnsibleError(f"host {name}: there is no connection plugin '{kind}'")
        self._connection.set_options(
            task_keys=secrets,
            var_options=self._options("connection", self._connection._load_name),
            direct={} if timeout is None else {"timeout": timeout},
        )
        if self._connection.has_option("pipelining"):
            self._connection.set_option("pipelining", True)  # data and no terminal, beside a password as well
        shell = self._connection._shell
        shell.set_options(var_options=self._options("shell", shell._load_name))
        self._become = None
        if self._is_other_than_root() if become is None else become:
            self._become = self._root(secrets)
            self._connection.set_become_plugin(self._become)

    def run(self, command: str, data: bytes) -> tuple[int, bytes, bytes]:
        """Exit code, standard output and error of a command for the login's shell, given that data.

        There has to be some: without, Ansible's ssh would ask for a terminal.
        """
        shell = self._connection._shell
        if self._become is not None:
            command = self._become.build_become_command(command, shell)
        try:
            code, out, err = self._connection.exec_command(
                command, in_data=data, sudoable=self._become is not None
            )
        except AnsibleConnectionFailure as error:
            raise AnsibleConnectionFailure(f"cannot be reached: {bounded(error)}") from None
        if self._become is not None:
            out = self._become.strip_become_success(out)
        return code, out, err

    def _value(self, name: str) -> Any:
        return self._variables.get(name)

    def _options(self, kind: str, plugin: str) -> dict[str, Any]:
        """The variables that a plugin takes its options from."""
        names = C.config.get_plugin_vars(kind, plugin)
        return {name: self._variables[name] for name in names if name in self._variables}

    def _is_other_than_root(self) -> bool:
        if self._connection.transport == "local":
            return os.geteuid() != 0
        known = self._connection.has_option("remote_user")
        return ((known and self._connection.get_option("remote_user")) or getpass.getuser()) != "root"

    def _root(self, secrets: Mapping[str, str]) -> Any:
        method = self._value("ansible_become_method") or _default("DEFAULT_BECOME_METHOD")
        plugin = become_loader.get(method)
        if plugin is None:
            raise AnsibleError(f"host {self.name}: there is no become plugin '{method}'")
        plugin.set_options(task_keys=dict(secrets), var_options=self._options("become", plugin._load_name))
        # Whoever a play becomes on the host: kerf's agent talks to root.
        plugin.set_option("become_user", "root")
        return plugin


def _default(setting: str) -> str:
    return str(C.config.get_config_value(setting))
