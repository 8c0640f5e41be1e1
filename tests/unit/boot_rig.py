# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A run of kernel_boot as the user has it: the real action, the real module in this process; the host is
simulated."""

from __future__ import annotations

import json
from types import SimpleNamespace

from ansible.errors import AnsibleConnectionFailure, AnsibleFileNotFound
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.mkops.multikernel.plugins.action import kernel_boot as action
from ansible_collections.mkops.multikernel.plugins.modules import kernel_boot as module
from ansible_collections.mkops.multikernel.tests.unit.fake_boot import NEW


class Ended(Exception):
    """A module has said its last word."""

    def __init__(self, result):
        super().__init__()
        self.result = result


class Clock:
    """Nobody waits; time is what was slept."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 0.01
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def time(self):
        return 1_700_000_000


class Killed(BaseException):
    """As by SIGKILL: nothing in the code under test catches it."""


class Rig:
    """A controller and its host. cut is called with each call of the host, before and after it."""

    def __init__(self, host, monkeypatch, files):
        self.host, self.files = host, files
        self.calls, self.sent, self.said = [], [], []
        self.cut = lambda _what: None
        self.replies = {}  # phase: a result in place of the real one, or what is raised
        self.judged = False
        self.module_dies_alone = False
        self.transport = "ssh"
        self.monkeypatch = monkeypatch

    def _take_over(self):
        """From another one, maybe."""
        monkeypatch, clock = self.monkeypatch, Clock()
        for part in (action, module):
            monkeypatch.setattr(part, "time", clock)
        monkeypatch.setattr(module, "BootHost", lambda: self.host)
        monkeypatch.setattr(action.ActionBase, "run", lambda *_args: {})
        monkeypatch.setattr(action.display, "display", self.said.append)
        monkeypatch.setattr(AnsibleModule, "exit_json", lambda _module, **result: self._exit(result))
        monkeypatch.setattr(
            AnsibleModule,
            "fail_json",
            lambda _module, msg, **result: self._exit(result | {"msg": msg, "failed": True}),
        )
        monkeypatch.setattr(AnsibleModule, "warn", lambda _module, text, **_more: self.warnings.append(text))
        monkeypatch.setattr(action, "secrets", SimpleNamespace(token_hex=self._token))

    def _token(self, size):
        """One that this host and those it is a copy of have not had; the same in every run."""
        self.host.trials += 1
        return f"{self.host.trials:0{2 * size}x}"

    def _exit(self, result):
        raise Ended(result | ({"warnings": self.warnings} if self.warnings else {}))

    def run(self, check_mode=False, **args):
        """The result of a task."""
        self._take_over()
        args = {"release": NEW, "packages": ["k.deb"], "reboot_ok": True} | args
        args.setdefault("health", {"timeout": 0})
        plugin = object.__new__(action.ActionModule)
        plugin._task = SimpleNamespace(
            args={name: value for name, value in args.items() if value is not None},
            check_mode=check_mode,
            delegate_to=None,
        )
        plugin._connection = SimpleNamespace(
            transport=self.transport,
            reset=lambda: None,
            get_option=lambda _name: "",
            set_option=lambda *_option: None,
            _shell=SimpleNamespace(tmpdir="/remote", join_path=lambda *parts: "/".join(parts)),
        )
        plugin._execute_module = self._execute
        plugin._low_level_execute_command = self._command
        plugin._find_needle = self._find
        plugin._transfer_file = lambda path, target: self.sent.append((path, target))
        plugin._fixup_perms2 = lambda _paths: None
        return plugin.run(task_vars={"inventory_hostname": "h1"})

    def _find(self, _kind, name):
        if not (self.files / name).exists():
            raise AnsibleFileNotFound(file_name=name)
        return str(self.files / name)

    def _execute(self, module_name, module_args, task_vars):
        assert module_name == action.MODULE
        name = module_args["phase"]
        self.calls.append(name)
        self.cut(f"before {name}")
        reply = self.replies.get(name)
        if isinstance(reply, BaseException):
            raise reply
        if reply is None:
            reply = self._module(module_args)
        if name == "judge" and not reply.get("failed"):
            self.judged = not reply["reasons"]
        self.cut(f"after {name}")
        return json.loads(json.dumps(reply))

    def _module(self, args):
        self.warnings = []
        # as sent: what is in the packages is told by their names here
        args = args | {"packages": [f"/tmp/{args['release']}.deb"]} if args.get("packages") else args
        try:
            with patch_module_args({**args, "_ansible_check_mode": False}):
                module.main()
        except Ended as ended:
            return ended.result
        except Killed:
            if not self.module_dies_alone:
                raise
            self.host.cut.dead = False
            return {"failed": True, "msg": "MODULE FAILURE: it was killed"}

    def _command(self, _command):
        self.cut("before probe")
        text = self.host.probe()
        self.cut("after probe")
        if not text:
            raise AnsibleConnectionFailure("no route")
        return {"rc": 0, "stdout": text}
