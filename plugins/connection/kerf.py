# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: kerf
short_description: Run tasks in a spawned kernel, through its host
version_added: 0.3.0
description:
  - Reaches an instance by way of its host and kerf's agent in it, as C(kerf exec) does. The instance needs
    neither a network nor a server for SSH. Modules need Python in it, M(ansible.builtin.raw) does not.
  - The host is reached by Ansible's own connection to it, with all that the host's variables say, such as
    C(ansible_user), C(ansible_port) and C(ansible_ssh_common_args). Where the controller is the host itself,
    that connection is P(ansible.builtin.local#connection).
  - Tasks are run as root in the instance. C(become) makes another user of that.
  - An instance that dies is noticed within seconds, and makes the task unreachable, with the kernel's reason.
author:
  - mkops contributors (@mkops)
options:
  instance:
    description: Name of the instance on its host.
    type: str
    default: inventory_hostname
    vars:
      - name: inventory_hostname
      - name: ansible_kerf_instance
  kerf_host:
    description:
      - The multikernel host, by its name in the inventory.
      - V(localhost) is the controller.
    type: str
    default: localhost
    vars:
      - name: ansible_kerf_host
  kerf_become:
    description:
      - Whether to become root on the host, by the host's C(ansible_become_method) and
        C(ansible_become_password).
      - When this is not set, root is become unless the login there is root's.
    type: bool
    vars:
      - name: ansible_kerf_become
  kerf_python:
    description:
      - Python on the host, 3.9 or newer.
      - When this is not set, it is the host's C(ansible_python_interpreter), if that is a path, or
        C(python3).
    type: str
    vars:
      - name: ansible_kerf_python
  kerf_timeout:
    description: Seconds in which the agent of an instance has to answer.
    type: int
    default: 10
    env:
      - name: ANSIBLE_KERF_TIMEOUT
    ini:
      - section: kerf_connection
        key: timeout
    vars:
      - name: ansible_kerf_timeout
  kerf_command_timeout:
    description:
      - Seconds that one command may take in an instance. It is stopped then, and the task fails.
      - V(0) is no limit.
    type: int
    default: 0
    env:
      - name: ANSIBLE_KERF_COMMAND_TIMEOUT
    ini:
      - section: kerf_connection
        key: command_timeout
    vars:
      - name: ansible_kerf_command_timeout
  kerf_output_limit:
    description:
      - Bytes that one command may print. It is stopped then, and the task fails. Files are fetched in pieces
        and have no limit.
    type: int
    default: 268435456
    env:
      - name: ANSIBLE_KERF_OUTPUT_LIMIT
    ini:
      - section: kerf_connection
        key: output_limit
    vars:
      - name: ansible_kerf_output_limit
  pipelining:
    description:
      - Whether modules are run without a file for them in the instance. This is much faster.
    type: bool
    default: true
    env:
      - name: ANSIBLE_PIPELINING
    ini:
      - section: defaults
        key: pipelining
      - section: connection
        key: pipelining
    vars:
      - name: ansible_pipelining
notes:
  - The instance needs kerf's agent and a shell, such as an image of the role C(mkops.multikernel.spawn_image)
    has.
  - What an instance says is untrusted.
seealso:
  - plugin: mkops.multikernel.instances
    plugin_type: inventory
"""

EXAMPLES = r"""
# inventory.yml
# multikernel:
#   hosts:
#     bigserver: {ansible_user: admin}
# guests:
#   hosts:
#     database:
#   vars:
#     ansible_connection: mkops.multikernel.kerf
#     ansible_kerf_host: bigserver
- name: Configure a spawned kernel
  hosts: database
  tasks:
    - name: Copy a file to it
      ansible.builtin.copy:
        content: "127.0.0.1 localhost\n"
        dest: /etc/hosts
        mode: "0644"
"""

import errno
import os
import re
import secrets
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ansible.errors import AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound
from ansible.module_utils.common.text.converters import to_bytes, to_text
from ansible.plugins.connection import ConnectionBase
from ansible.utils.display import Display

from ansible_collections.mkops.multikernel.plugins.module_utils.divide import agent
from ansible_collections.mkops.multikernel.plugins.plugin_utils.hosts import HostConnection, bounded

display = Display()

# Reads no byte too many from standard input: what follows is the command's. No quotes, for any login's shell.
BOOTSTRAP = "import io;i=io.BufferedReader(io.FileIO(0,closefd=False),1);exec(i.read(int(i.read(8))))"
NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]*"  # of what the kernel makes a directory
BLOCK = 65536
# Ansible's ssh gets slower with the square of what a command prints.
PUT = 256 * BLOCK
FETCH = 128 * BLOCK
LONGEST_COMMAND = 65000  # bytes, with the environment beside it in one message of the agent's
SOURCE = Path(agent.__file__)
REASONS = {
    agent.ROOTLESS: "kerf's agent only talks to the host's root: log in there as root, or set "
    "ansible_kerf_become",
    agent.UNMOUNTED: "the host has no /sys/fs/multikernel: it does not run a multikernel kernel, or role "
    "mkops.multikernel.host has not mounted it",
    agent.ABSENT: "there is no such instance on the host",
    agent.STOPPED: "it does not run: {text}",
    agent.TRANSPORTLESS: "the host's kernel cannot reach its agent by vsock: {text}",
    agent.AGENTLESS: "it runs, but kerf's agent in it does not: it is still booting, or its image has no "
    "agent (kerf-init)",
    agent.SILENT: "it runs, but kerf's agent in it has not answered for {number} s",
    agent.DIED: "it has died meanwhile: {text}",
    agent.LOST: "the connection to kerf's agent in it has ended: {text}",
    agent.CONFUSED: "kerf's agent in it says what it should not: {text}",
}


class Connection(ConnectionBase):
    """To one instance."""

    transport = "mkops.multikernel.kerf"
    has_pipelining = True
    has_tty = False
    default_user = "root"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._everyone: Mapping[str, Any] | None = None
        self._host: HostConnection | None = None

    # --- options ---

    def _resolve_option_variables(self, variables: Any, templar: Any) -> dict[str, Any]:
        """With the variables of all hosts: the way to the instance's host is in those."""
        own = super()._resolve_option_variables(variables, templar)
        return {**own, "hostvars": variables.get("hostvars")}

    def set_options(self, task_keys: Any = None, var_options: Any = None, direct: Any = None) -> None:
        var_options = dict(var_options or {})
        self._everyone = var_options.pop("hostvars", None)
        self._host = None
        super().set_options(task_keys=task_keys, var_options=var_options, direct=direct)

    @property
    def _name(self) -> str:
        return str(self.get_option("instance"))

    @property
    def _who(self) -> str:
        return f"instance '{bounded(self._name, 80)}' on host '{self.get_option('kerf_host')}'"

    # --- what Ansible calls ---

    def _connect(self) -> Connection:
        if self._host is None:
            name = str(self.get_option("kerf_host"))
            if self._everyone is None:
                variables: Mapping[str, Any] = {}
            elif name in self._everyone:
                variables = self._everyone[name]
            else:
                raise AnsibleError(f"{self._who}: the inventory has no such host (ansible_kerf_host)")
            if "ansible_kerf_host" in variables:
                raise AnsibleError(f"{self._who}: that host is an instance itself (ansible_kerf_host)")
            self._host = HostConnection(
                name,
                variables,
                become=self.get_option("kerf_become"),
                secrets={
                    "password": self._play_context.password,
                    "become_pass": self._play_context.become_pass,
                },
            )
            self._python = self.get_option("kerf_python") or variables.get("ansible_python_interpreter") or ""
            if not self.get_option("kerf_python") and not str(self._python).startswith("/"):
                self._python = "python3"  # "auto" and the like
        self._connected = True
        return self

    def exec_command(
        self, cmd: str, in_data: bytes | None = None, sudoable: bool = True
    ) -> tuple[int, bytes, bytes]:
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        self._connect()
        display.vvv(f"KERF EXEC {cmd}", host=self._name)
        return self._run(cmd, in_data or b"")

    def put_file(self, in_path: str, out_path: str) -> None:
        super().put_file(in_path, out_path)
        self._connect()
        display.vvv(f"KERF PUT {in_path} TO {out_path}", host=self._name)
        if not os.path.exists(to_bytes(in_path, errors="surrogate_or_strict")):
            raise AnsibleFileNotFound(f"file or module does not exist: {to_text(in_path)}")
        place = 0
        with open(to_bytes(in_path, errors="surrogate_or_strict"), "rb") as file:
            # A piece that Ansible's ssh sends twice goes to the same place. The first one empties the file.
            while (data := file.read(PUT)) or not place:
                kept = " conv=notrunc" if place else ""
                where = f"of={shlex.quote(out_path)} seek={place // BLOCK}{kept}"
                self._copy(where, data, out_path)
                place += len(data)
                if len(data) < PUT:
                    break

    def fetch_file(self, in_path: str, out_path: str) -> None:
        super().fetch_file(in_path, out_path)
        self._connect()
        display.vvv(f"KERF FETCH {in_path} TO {out_path}", host=self._name)
        source, count, place = shlex.quote(in_path), FETCH // BLOCK, 0
        data = self._copy(f"if={source} count={count} iflag=fullblock", b"", in_path)
        with open(to_bytes(out_path, errors="surrogate_or_strict"), "wb") as file:
            file.write(data)
            while len(data) == FETCH:
                place += count
                where = f"if={source} skip={place} count={count} iflag=fullblock"
                data = self._copy(where, b"", in_path)
                file.write(data)

    def reset(self) -> None:
        """What lasts from one call to the next is the connection to the host, which other instances share."""
        self.close()

    def close(self) -> None:
        self._host = None
        self._connected = False

    # --- calls ---

    def _copy(self, how: str, data: bytes, path: str) -> bytes:
        code, out, err = self._run(f"exec dd bs={BLOCK} {how}", data, limit=FETCH + BLOCK)
        if code:
            said = [line for line in err.splitlines() if not line[:1].isdigit()]
            raise AnsibleError(f"{self._who}: {bounded(path)} cannot be copied: {bounded(b' '.join(said))}")
        return out

    def _run(self, command: str, data: bytes, limit: int | None = None) -> tuple[int, bytes, bytes]:
        if not re.fullmatch(NAME, self._name):
            raise AnsibleError(
                f"'{bounded(self._name, 80)}' is not a name of an instance (ansible_kerf_instance)"
            )
        words = to_bytes(command, errors="surrogate_or_strict")
        if b"\0" in words:
            raise AnsibleError(f"{self._who}: a command cannot contain a NUL byte")
        if len(words) > LONGEST_COMMAND:
            raise AnsibleError(
                f"{self._who}: a command of {len(words)} bytes is too long for kerf's agent, which takes "
                f"{LONGEST_COMMAND}: pass it as a file, or on standard input"
            )
        mark = secrets.token_hex(16)
        arguments = (
            mark,
            self._name,
            words,
            {"MKOPS_HOST": str(self.get_option("kerf_host"))},
            self.get_option("kerf_timeout"),
            self.get_option("kerf_command_timeout"),
            limit or self.get_option("kerf_output_limit"),
        )
        text = SOURCE.read_bytes() + b"\nmain(*" + ascii(arguments).encode() + b")\n"
        call = f'{shlex.quote(str(self._python))} -I -S -c "{BOOTSTRAP}"'
        try:
            code, out, err = cast(HostConnection, self._host).run(call, b"%08d" % len(text) + text + data)
        except AnsibleConnectionFailure as error:
            raise AnsibleConnectionFailure(f"{self._who}: the host {error}") from None
        return self._end(mark.encode(), code, out, err)

    def _end(self, mark: bytes, code: int, out: bytes, err: bytes) -> tuple[int, bytes, bytes]:
        err, found, last = err.rpartition(mark)
        end, number, text = _parsed(last)
        if not found or not end:
            said = bounded((last if not found else err)[-2000:])
            if code in (126, 127):
                raise AnsibleConnectionFailure(
                    f"{self._who}: the host cannot run {self._python}, which has to be Python 3.9 or newer "
                    f"(ansible_kerf_python): {said}"
                )
            raise AnsibleConnectionFailure(
                f"{self._who}: what talks to the agent has ended early on the host, with code {code}: {said}"
            )
        if end == agent.EXITED:
            return number, out, err
        if end == agent.UNSTARTABLE:
            # As a shell would say it
            said = f"{self._who}: /bin/sh: {bounded(text)}\n"
            return 127 if number == errno.ENOENT else 126, out, err + to_bytes(said)
        if end == agent.FLOODED:
            raise AnsibleError(
                f"{self._who}: the command has printed more than {number} bytes (ansible_kerf_output_limit)"
            )
        if end == agent.TIRED:
            raise AnsibleError(
                f"{self._who}: the command was not done after {number} s (ansible_kerf_command_timeout)"
            )
        reason = REASONS[end].format(number=number, text=bounded(text))
        raise AnsibleConnectionFailure(f"{self._who}: {reason}")


def _parsed(line: bytes) -> tuple[str, int, str]:
    """The end, a number and a text, after the mark; an empty end when it is none of those."""
    words = line.decode("ascii", "replace").split("\n", 1)[0].strip().split(" ", 2)
    known = {agent.EXITED, agent.UNSTARTABLE, agent.FLOODED, agent.TIRED, *REASONS}
    if len(words) < 2 or words[0] not in known or not words[1].isdecimal():
        return "", 0, ""
    return words[0], int(words[1]), words[2] if len(words) > 2 else ""
