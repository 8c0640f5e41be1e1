# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsibleFileNotFound

from ansible_collections.mkops.multikernel.plugins.action import kernel_boot as action

IDS = [f"{number}aaaaaaa-0000-0000-0000-000000000000" for number in range(4)]
OLD, NEW = "6.1.0-old", "6.12.9-new"
TRIAL = {"token": "t0", "boot_id": IDS[0], "previous": OLD}
NOTHING = {"install": False, "image": False, "boot": False, "promote": False, "stop": [], "trial": {}}


def plan(reasons=(), changed=True, **todo):
    return {
        "changed": changed,
        "release": NEW,
        "running": OLD,
        "boot_id": IDS[0],
        "steps": [],
        "reasons": list(reasons),
        "todo": NOTHING | todo,
        "diff": {"before": "b", "after": "planned"},
    }


GOOD = {
    "plan": plan(install=True, boot=True, promote=True),
    "install": {},
    "trial": {"trial": TRIAL},
    "judge": {"reasons": []},
    "promote": {"after": "promoted", "running": NEW, "previous": OLD, "removed": []},
    "give_up": {},
    "report": {"default": OLD, "evidence": {}, "after": "as before"},
}
ON_TRIAL = f"{IDS[1]}\n{NEW}\nroot=/dev/vda1 mkops.trial=t0\n"
BACK = f"{IDS[2]}\n{OLD}\nroot=/dev/vda1\n"
STILL = f"{IDS[0]}\n{OLD}\nroot=/dev/vda1\n"


@pytest.fixture
def make(tmp_path, monkeypatch):
    """An action on a host whose phases end so, and which says this when it is asked who it is."""

    def make(answers=(), transport="ssh", check_mode=False, modules=None, **args):
        args.setdefault("packages", ["k.deb"])
        plugin = object.__new__(action.ActionModule)
        plugin._task = SimpleNamespace(args=args, check_mode=check_mode, delegate_to=None)
        plugin._connection = SimpleNamespace(
            transport=transport,
            reset=lambda: None,
            get_option=lambda _name: "",
            set_option=lambda *_option: None,
            _shell=SimpleNamespace(tmpdir="/remote", join_path=lambda *parts: "/".join(parts)),
        )
        plugin.calls, plugin.sent = [], []
        replies = GOOD | (modules or {})
        remaining = iter(answers)
        clock = itertools.count(step=10)

        def execute(module_name, module_args, task_vars):
            name = module_args["phase"] if module_name == action.MODULE else module_name
            plugin.calls.append(name)
            reply = replies.get(name, {})
            if isinstance(reply, Exception):
                raise reply
            return dict(reply)

        def command(_command):
            text = next(remaining, "")
            if not text:
                raise AnsibleConnectionFailure("no route")
            return {"rc": 0, "stdout": text}

        def find(_kind, name):
            if not (tmp_path / name).exists():
                raise AnsibleFileNotFound(file_name=name)
            return str(tmp_path / name)

        monkeypatch.setattr(action.ActionBase, "run", lambda *_args: {})
        monkeypatch.setattr(action.time, "sleep", lambda _seconds: None)
        monkeypatch.setattr(action.time, "monotonic", lambda: next(clock))
        monkeypatch.setattr(action.display, "display", lambda _text: None)
        monkeypatch.setattr(plugin, "_execute_module", execute)
        monkeypatch.setattr(plugin, "_low_level_execute_command", command)
        monkeypatch.setattr(plugin, "_find_needle", find)
        monkeypatch.setattr(plugin, "_transfer_file", lambda path, target: plugin.sent.append((path, target)))
        monkeypatch.setattr(plugin, "_fixup_perms2", lambda paths: None)
        return plugin

    (tmp_path / "k.deb").write_text("deb")
    (tmp_path / "vmlinux").write_text("elf")
    return make


def run(plugin):
    return plugin.run(task_vars={"inventory_hostname": "h1"})


def test_a_healthy_kernel_is_promoted(make, tmp_path):
    plugin = make(["", STILL, "", ON_TRIAL], packages=["k.deb"], image="vmlinux")
    result = run(plugin)
    assert plugin.calls == ["plan", "install", "trial", "judge", "promote"]
    assert plugin.sent == [(str(tmp_path / "k.deb"), "/remote/k.deb")]
    assert (result["outcome"], result["running"], result["previous"]) == ("promoted", NEW, OLD)
    assert result["diff"] == {"before": "b", "after": "promoted"}
    assert result["down_seconds"] > 0
    assert not result.get("failed")


def test_nothing_to_do(make):
    plugin = make(modules={"plan": plan(changed=False)})
    result = run(plugin)
    assert (plugin.calls, result["outcome"], result["changed"]) == (["plan"], "unchanged", False)


def test_check_mode_only_plans(make):
    plugin = make(check_mode=True, packages=["k.deb"])
    result = run(plugin)
    assert (plugin.calls, plugin.sent) == (["plan"], [])
    assert (result["outcome"], result["changed"]) == ("planned", True)


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_refusal_names_host_kernel_and_reasons(make, check_mode):
    plugin = make(check_mode=check_mode, modules={"plan": plan(["r1", "r2"])})
    result = run(plugin)
    assert plugin.calls == ["plan"]
    assert (result["failed"], result["changed"], result["outcome"]) == (True, False, "refused")
    assert result["msg"] == f"kernel {NEW} on h1: r1; r2. Nothing was changed"


def test_the_controller_does_not_restart_itself(make):
    plugin = make(transport="local")
    assert "cannot restart itself" in run(plugin)["msg"]
    assert plugin.calls == ["plan"]


def test_a_kernel_that_was_never_reached(make, tmp_path):
    console = tmp_path / "console.log"
    console.write_text("earlier\n")
    plugin = make(["", BACK], console_log=str(console))
    execute = plugin._execute_module

    def write(**call):
        if call["module_args"].get("phase") == "trial":
            console.write_text(
                f"earlier\r\nLinux version {NEW} (x)\r\n"
                "\x1b[0;1mKernel panic - not syncing: no root.\x1b[0m\r\n"
                f"Linux version {OLD} (x)\n"
            )
        return execute(**call)

    plugin._execute_module = write
    result = run(plugin)
    assert plugin.calls == ["plan", "install", "trial", "report"]
    assert (result["failed"], result["outcome"], result["running"]) == (True, "fell_back", OLD)
    assert result["reasons"] == ["it panicked: no root"]
    assert f"The host is back on {OLD}, which is still the default, after " in result["msg"]
    assert result["evidence"]["console"][1] == "Kernel panic - not syncing: no root."
    assert result["diff"]["after"] == "as before"


def test_an_unhealthy_kernel_is_given_up(make):
    plugin = make(
        ["", ON_TRIAL, ON_TRIAL, "", BACK], modules={"judge": {"reasons": ["check x ended with 1"]}}
    )
    result = run(plugin)
    assert plugin.calls == ["plan", "install", "trial", "judge", "give_up", "report"]
    assert (result["outcome"], result["reasons"]) == ("fell_back", ["check x ended with 1"])


@pytest.mark.parametrize(
    "modules",
    [
        {"judge": AnsibleConnectionFailure("gone")},
        {"promote": {"failed": True, "msg": "grubenv"}},
        {"judge": {"failed": True, "msg": "no python"}},
        {"judge": {"reasons": ["bad"]}, "give_up": AnsibleConnectionFailure("gone")},
    ],
)
def test_whatever_fails_after_the_restart_ends_on_the_old_kernel(make, modules):
    plugin = make(["", ON_TRIAL, "", BACK], modules=modules)
    result = run(plugin)
    assert plugin.calls[-2:] == ["give_up", "report"]
    assert (result["outcome"], result["running"]) == ("fell_back", OLD)


@pytest.mark.parametrize(
    ("answers", "state"), [([], "it does not answer"), ([STILL] * 999, "it answered, but never restarted")]
)
def test_a_host_that_does_not_come_back(make, answers, state):
    result = run(make(answers, timeout=100))
    assert (result["failed"], result["outcome"]) == (True, "lost")
    assert f"did not come back in 100 s: {state}" in result["msg"]


def test_instances_are_stopped_between_installation_and_trial(make):
    plugin = make(["", ON_TRIAL], modules={"plan": plan(boot=True, promote=True, stop=["web", "db"])})
    run(plugin)
    assert plugin.calls == ["plan", "install", action.INSTANCE, action.INSTANCE, "trial", "judge", "promote"]


@pytest.mark.parametrize("phase", ["install", action.INSTANCE, "trial"])
def test_a_failure_before_the_restart_ends_the_run(make, phase):
    modules = {
        "plan": plan(install=True, boot=True, stop=["web"]),
        phase: {"failed": True, "msg": "because"},
    }
    plugin = make(modules=modules)
    result = run(plugin)
    assert plugin.calls[-1] == phase
    assert (result["failed"], result["outcome"]) == (True, "failed")
    assert result["msg"].startswith("because. On h1 ")


def test_a_running_kernel_is_judged_before_it_becomes_the_default(make):
    modules = {"plan": plan(promote=True), "judge": {"reasons": ["bad"]}}
    plugin = make(modules=modules)
    result = run(plugin)
    assert plugin.calls == ["plan", "install", "judge"]
    assert (result["failed"], result["outcome"]) == (True, "failed")


def test_missing_files_are_named_at_once(make):
    with pytest.raises(AnsibleActionFail, match=r"no\.deb, none"):
        run(make(packages=["k.deb", "no.deb"], image="none"))


def test_nothing_is_sent_that_is_there(make):
    plugin = make(packages=["/there/k.deb"], remote_src=True, modules={"plan": plan(install=True)})
    run(plugin)
    assert plugin.sent == []


def test_what_the_module_sets_itself_is_refused(make):
    with pytest.raises(AnsibleActionFail, match="phase: set by the module itself"):
        run(make(phase="promote"))


@pytest.mark.parametrize(
    ("output", "seen"),
    [
        (ON_TRIAL, (IDS[1], NEW, "root=/dev/vda1 mkops.trial=t0")),
        ("banner\n" + BACK, (IDS[2], OLD, "root=/dev/vda1")),
        ("x\ny\nz\n", None),
        ("", None),
    ],
)
def test_parse_probe(output, seen):
    assert action.parse_probe(output) == seen


@pytest.mark.parametrize(
    ("evidence", "text"),
    [
        ({"pstore": ["<0>[ 1.0] Kernel panic - not syncing: VFS: x"]}, "it panicked: VFS: x"),
        (
            {"console": ["ALERT!  /dev/vda1 does not exist.  Dropping to a shell!"]},
            "its initramfs gave up: /dev/vda1 does not exist",
        ),
        ({"console": ["[ 9.1] mkops: the kernel on trial is given up"]}, "it ran but could not be reached"),
        ({"trial": ["a"]}, "it ran but could not be reached, and gave up when its time was over"),
        (
            {"console": ["error: premature end of file."]},
            "the boot loader could not start it: error: premature",
        ),
        ({"console": ["error: unable to determine partition UUID of boot device."]}, "it never came up"),
        ({}, "it never came up"),
    ],
)
def test_cause(evidence, text):
    assert action.cause(evidence).startswith(text)


def test_the_console_of_a_kernel_that_never_started_ends_before_the_next_one():
    text = f"Loading\nerror: cannot load image.\nLinux version {OLD} (x)\n" + "line\n" * 99
    assert action.console_part(text, NEW) == ["Loading", "error: cannot load image."]
