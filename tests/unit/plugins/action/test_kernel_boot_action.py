# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action with the real module on a simulated host; what no host does by itself is put in its place."""

from __future__ import annotations

import json

import pytest
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure

from ansible_collections.mkops.multikernel.plugins.action import kernel_boot as action
from ansible_collections.mkops.multikernel.plugins.module_utils.boot import loaders
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Refused
from ansible_collections.mkops.multikernel.plugins.module_utils.common.lock import restart_announced
from ansible_collections.mkops.multikernel.plugins.modules import kernel_boot as module
from ansible_collections.mkops.multikernel.tests.unit.boot_rig import Rig
from ansible_collections.mkops.multikernel.tests.unit.fake_boot import (
    NEW,
    OLD,
    Simulated,
    SimulatedSystemdBoot,
)
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import MIB, POOL_BASE, FakeInstance

ID = "1aaaaaaa-0000-0000-0000-000000000000"
ON_TRIAL = f"{ID}\n{NEW}\nroot=/dev/vda1 mkops.trial=t0\n"
BACK = f"{ID}\n{OLD}\nroot=/dev/vda1\n"
RESTARTED = ["plan", "install", "trial"]


@pytest.fixture
def rig(tmp_path, monkeypatch):
    (tmp_path / "k.deb").write_text("deb")
    (tmp_path / "vmlinux").write_text("elf")
    return Rig(Simulated(tmp_path / "host"), monkeypatch, tmp_path)


@pytest.fixture(params=[Simulated, SimulatedSystemdBoot])
def either(tmp_path, monkeypatch, request):
    (tmp_path / "k.deb").write_text("deb")
    return Rig(request.param(tmp_path / "host"), monkeypatch, tmp_path)


def default(rig):
    boot = loaders.look(rig.host)
    return boot.releases.get(boot.default, "")


def check_back(rig, result):
    """As before the trial, whatever it was."""
    assert (result["failed"], result["outcome"], result["running"]) == (True, "fell_back", OLD)
    assert f"The host is back on {OLD}, which is still the default, after " in result["msg"]
    assert (rig.host.running(), default(rig)) == (OLD, OLD)
    assert rig.host.left_of_a_trial() == []
    assert rig.host.boot() == OLD


def test_a_healthy_kernel_is_promoted(either, tmp_path):
    result = either.run(packages=["k.deb"], image=None)
    assert either.calls == [*RESTARTED, "judge", "promote"]
    assert either.sent == [(str(tmp_path / "k.deb"), "/remote/k.deb")]
    assert (result["outcome"], result["running"], result["previous"]) == ("promoted", NEW, OLD)
    assert result["diff"]["after"].startswith(f"running: {NEW}\ndefault: {NEW}\nonce: -\n")
    assert result["down_seconds"] > 0
    assert not result.get("failed")
    assert either.host.boot() == NEW
    again = either.run()
    assert (again["outcome"], again["changed"]) == ("unchanged", False)


def test_the_image_is_sent_when_it_is_needed(rig, tmp_path):
    rig.replies["install"] = {"changed": True}
    rig.run(image="vmlinux", state="installed")
    assert [target for _path, target in rig.sent] == ["/remote/k.deb", "/remote/vmlinux"]


def test_check_mode_only_plans(rig):
    before = rig.host.files()
    result = rig.run(check_mode=True)
    assert (rig.calls, rig.sent) == (["plan"], [])
    assert (result["outcome"], result["changed"]) == ("planned", True)
    assert rig.host.files() == before


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_refusal_names_host_kernel_and_reasons(rig, check_mode):
    before = rig.host.files()
    result = rig.run(check_mode=check_mode, reboot_ok=False, keep=1)
    assert rig.calls == ["plan"]
    assert (result["failed"], result["changed"], result["outcome"]) == (True, False, "refused")
    assert result["msg"].startswith(f"kernel {NEW} on h1: keep is 1")
    assert result["msg"].endswith("or do without (state: installed). Nothing was changed")
    assert len(result["reasons"]) == 2
    assert rig.host.files() == before


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"timeout": -1}, "timeout is -1 s; give 1 or more"),
        ({"timeout": 0}, "timeout is 0 s; give 1 or more"),
        ({"stop_timeout": -5}, "stop_timeout is -5 s; give 1 or more"),
        ({"trial_timeout": 0}, "trial_timeout is 0 s; give 1 or more"),
        ({"health": {"timeout": -3}}, "health.timeout is -3 s; give 0 or more"),
    ],
)
def test_seconds_that_are_none_are_refused(rig, args, reason):
    result = rig.run(**args)
    assert (result["outcome"], result["reasons"]) == ("refused", [reason])


def test_all_of_them_are_said_at_once(rig):
    result = rig.run(timeout=-1, stop_timeout=0, trial_timeout=-1, health={"timeout": -1})
    assert len(result["reasons"]) == 4


def test_seconds_that_are_no_number_are_no_traceback(rig):
    rig.replies["plan"] = {"failed": True, "msg": "argument 'timeout' cannot be converted to an int"}
    assert rig.run(timeout="soon")["outcome"] == "failed"


def test_the_controller_does_not_restart_itself(rig):
    rig.transport = "local"
    assert "cannot restart itself" in rig.run()["msg"]
    assert rig.calls == ["plan"]


def test_a_kernel_that_was_never_reached(either, tmp_path):
    console = tmp_path / "console.log"
    console.write_text("earlier\n")
    either.host.bad = "panic"

    def write(what):
        if what == "after trial":
            console.write_text(
                f"earlier\r\nLinux version {NEW} (x)\r\n"
                "\x1b[0;1mKernel panic - not syncing: no root.\x1b[0m\r\n"
                f"Linux version {OLD} (x)\n"
            )

    either.cut = write
    result = either.run(console_log=str(console))
    assert either.calls == [*RESTARTED, "report"]
    assert result["reasons"] == ["it panicked: no root"]
    assert result["evidence"]["console"][1] == "Kernel panic - not syncing: no root."
    assert result["diff"]["after"].startswith(f"running: {OLD}\ndefault: {OLD}\nonce: -\n")
    check_back(either, result)


def test_a_kernel_without_network_is_given_up_by_its_timer(either):
    either.host.bad = "deaf"
    result = either.run()
    assert either.calls == [*RESTARTED, "report"]
    check_back(either, result)


def test_an_unhealthy_kernel_is_given_up(either):
    either.host.bad = "sick"
    result = either.run()
    assert either.calls == [*RESTARTED, "judge", "give_up", "report"]
    assert result["reasons"] == ["unit sick.service failed, but not on the earlier kernel"]
    check_back(either, result)
    # And it is the same the next time.
    check_back(either, either.run())


@pytest.mark.parametrize(
    "replies",
    [
        {"judge": AnsibleConnectionFailure("gone")},
        {"promote": {"failed": True, "msg": "grubenv"}},
        {"judge": {"failed": True, "msg": "no python"}},
        {"judge": {"reasons": ["bad"]}, "give_up": AnsibleConnectionFailure("gone")},
        {"judge": {"reasons": ["bad"]}, "give_up": {"failed": True, "msg": "no python"}},
    ],
)
def test_whatever_fails_after_the_restart_ends_on_the_old_kernel(either, replies):
    """If the host does not hear of it, its timer does it."""
    either.replies = replies
    result = either.run()
    assert "give_up" in either.calls
    assert either.calls[-1] == "report"
    check_back(either, result)


def test_what_came_of_the_trial_cannot_be_asked(either):
    either.host.bad = "panic"
    either.replies["report"] = AnsibleConnectionFailure("gone")
    result = either.run()
    assert (result["outcome"], result["running"]) == ("fell_back", OLD)
    assert "the rest of the trial was not removed, the next run does that" in result["msg"]
    either.replies.clear()
    either.host.bad = ""
    assert either.run()["outcome"] == "promoted"


def test_another_default_is_told(rig):
    rig.host.bad = "panic"
    rig.replies["report"] = {"default": "6.0.0-other", "evidence": {}, "after": "x"}
    assert "which is not the default" in rig.run()["msg"]


@pytest.mark.parametrize("step", ["trial", "judge", "promote", "give_up", "report"])
@pytest.mark.parametrize("bad", ["", "sick"])
def test_an_answer_that_is_lost(either, step, bad):
    """The host has done it, and the controller does not hear of it."""
    either.host.bad = bad

    def cut(what):
        if what == f"after {step}":
            either.cut = lambda _what: None
            raise AnsibleConnectionFailure("gone")

    either.cut = cut
    result = either.run()
    if bad or step == "judge":
        assert (result["outcome"], either.host.running()) == ("fell_back", OLD)
    else:
        assert (result["outcome"], either.host.running()) == ("promoted", NEW)
        assert either.host.boot() == NEW
    assert either.host.left_of_a_trial() == []


def test_a_kernel_is_given_up_again_if_the_host_did_not_hear_of_it(either):
    """Not only in the end, by its timer."""
    either.host.bad = "sick"

    def cut(what):
        if what == "before give_up" and either.calls.count("give_up") == 1:
            raise AnsibleConnectionFailure("gone")

    either.cut = cut
    result = either.run()
    assert either.calls == [*RESTARTED, "judge", "give_up", "give_up", "report"]
    check_back(either, result)


def test_a_trial_that_the_host_did_not_hear_of(either):
    def cut(what):
        if what == "before trial":
            either.cut = lambda _what: None
            raise AnsibleConnectionFailure("gone")

    either.cut = cut
    result = either.run()
    assert (result["failed"], result["outcome"]) == (True, "failed")
    assert "the connection was lost when its trial began. The trial was taken back" in result["msg"]
    assert either.host.boot() == OLD
    assert either.run()["outcome"] == "promoted"


def test_a_host_that_does_not_go_down(either):
    """The trial is taken back as soon as it can be told that the restart does not come."""
    either.host.stuck = True

    def cut(what):
        # five minutes later
        if what == "before report":
            (either.host.lock.parent / "restart").unlink()

    either.cut = cut
    result = either.run(timeout=100)
    assert (result["failed"], result["outcome"]) == (True, "failed")
    assert "the host did not restart in 100 s. The trial was taken back" in result["msg"]
    assert either.host.left_of_a_trial() == []


def test_a_host_that_does_not_come_back(rig, monkeypatch):
    monkeypatch.setattr(rig.host, "probe", lambda: "")
    result = rig.run(timeout=100)
    assert (result["failed"], result["outcome"]) == (True, "lost")
    assert "did not come back in 100 s: it does not answer" in result["msg"]


def test_a_host_that_goes_on_with_an_unhealthy_kernel(rig, monkeypatch):
    rig.host.bad = "sick"
    rig.cut = lambda what: setattr(rig.host, "stuck", what == "before give_up" or rig.host.stuck)
    result = rig.run(timeout=10)
    assert (result["failed"], result["outcome"]) == (True, "lost")
    assert f"it answers, but runs {NEW} without a restart" in result["msg"]
    assert result["reasons"][0].startswith("unit sick.service failed")


@pytest.fixture
def divided(make_host, tmp_path, monkeypatch):
    """A host that is divided, with two kernels of its own, and the instance web that runs."""
    (tmp_path / "k.deb").write_text("deb")
    kernel = make_host(pool_cpus=[4, 6], chunks=[(POOL_BASE, 512 * MIB, 0)])
    kernel.instances["web"] = FakeInstance(1, [4], POOL_BASE, 128 * MIB, status="active")
    kernel.sync()
    rig = Rig(Simulated(kernel.root), monkeypatch, tmp_path)
    rig.host.file("/proc/filesystems", "nodev\tmultikernel\n")
    rig.kernel = kernel
    return rig


def test_instances_are_stopped_in_one_go_with_the_restart(divided):
    held = []
    run = divided.host.run

    def look(argv, purpose, **more):
        if argv[0] == "systemd-run":
            held.append((sorted(divided.kernel.instances), restart_announced(divided.host.lock)))
        return run(argv, purpose, **more)

    divided.monkeypatch.setattr(divided.host, "run", look)
    result = divided.run(instances="stop")
    assert divided.calls == ["plan", "install", "trial", "judge", "promote"]
    assert "kernel_boot [h1]: stops instances before the restart: web" in divided.said
    assert held[0] == ([], True)
    assert result["outcome"] == "promoted"


def test_an_instance_that_does_not_stop(divided):
    """Nothing restarts, and nothing of a trial is left."""

    def refuse(*_args, **_more):
        raise Refused("kerf is not there")

    divided.monkeypatch.setattr(module, "converge", refuse)
    result = divided.run(instances="stop")
    assert (result["failed"], result["outcome"]) == (True, "failed")
    assert "instances cannot be stopped: kerf is not there. On h1 it was not booted" in result["msg"]
    assert divided.host.left_of_a_trial() == []
    assert "pending" not in divided.host.sim


def test_an_instance_that_somebody_starts_before_the_restart(rig):
    def cut(what):
        if what == "before trial":
            rig.host.file("/sys/fs/multikernel/instances/web/status", "active\n")

    rig.cut = cut
    result = rig.run()
    assert (result["failed"], result["outcome"]) == (True, "failed")
    assert "instances are not stopped: web" in result["msg"]
    assert rig.host.left_of_a_trial() == []


@pytest.mark.parametrize("phase", ["install", "trial"])
def test_a_failure_before_the_restart_ends_the_run(rig, phase):
    rig.host.file("/sys/fs/multikernel/instances/web/status", "active\n")
    rig.replies[phase] = {"failed": True, "msg": "because"}
    result = rig.run(instances="stop")
    assert rig.calls[-1] == phase
    assert (result["failed"], result["outcome"]) == (True, "failed")
    assert result["msg"].startswith("because. On h1 ")


def test_a_running_kernel_is_judged_before_it_becomes_the_default(rig):
    """Somebody has booted it by hand."""
    rig.host.add(NEW)
    rig.host.started(NEW, "root=/dev/vda1 ro")
    rig.host.failing = ["db.service"]
    health = {"timeout": 0, "units": ["db.service"]}
    result = rig.run(packages=None, health=health)
    assert rig.calls == ["plan", "install", "judge"]
    assert (result["failed"], result["outcome"]) == (True, "failed")
    assert "unit db.service is failed. It runs, but was not made the default" in result["msg"]
    rig.host.failing = []
    assert rig.run(packages=None, health=health)["outcome"] == "promoted"
    assert rig.host.boot() == NEW


def test_a_kernel_that_is_on_trial_is_judged_by_the_next_run(either):
    def cut(what):
        if what == "before judge":
            raise KeyboardInterrupt

    either.cut = cut
    with pytest.raises(KeyboardInterrupt):
        either.run()
    either.cut = lambda _what: None
    either.calls.clear()
    result = either.run()
    assert either.calls == ["plan", "install", "judge", "promote"]
    assert (result["outcome"], result["previous"]) == ("promoted", OLD)
    assert "down_seconds" not in result
    assert either.host.left_of_a_trial() == []


def test_a_package_manager_at_work_is_waited_for(rig):
    answers = iter([{"busy": "lock x is held by process 7"}] * 3)

    def cut(what):
        if what == "before install":
            reply = next(answers, None)
            rig.replies.pop("install", None)
            if reply:
                rig.replies["install"] = reply

    rig.cut = cut
    result = rig.run(state="installed")
    assert rig.calls == ["plan", *["install"] * 4]
    assert rig.said.count("kernel_boot [h1]: waits: lock x is held by process 7") == 1
    assert result["outcome"] == "installed"


def test_a_package_manager_that_never_ends(rig):
    rig.replies["install"] = {"busy": "/var/lib/dpkg/lock is held by process 7 (apt)"}
    result = rig.run()
    assert (result["failed"], result["outcome"], result["changed"]) == (True, "failed", False)
    assert "/var/lib/dpkg/lock is held by process 7 (apt)" in result["msg"]


def test_old_kernels_that_could_not_be_removed_are_a_warning_and_go_next_time(either):
    old = [f"6.12.{number}-x" for number in (1, 2, 3)]
    for release in old:
        either.host.add(release)
    either.host.file("/var/lib/mkops/kernel-boot/record.json", json.dumps({"kernels": old}))
    either.cut = lambda what: setattr(either.host, "fail_on", ("dpkg",) if what == "before promote" else ())
    result = either.run(keep=2)
    assert (result["outcome"], result["removed"]) == ("promoted", [])
    assert not result.get("failed")
    assert "the old kernel 6.12.1-x was not removed: " in " ".join(result["warnings"])
    assert either.host.boot() == NEW
    either.host.fail_on = ()
    planned = either.run(keep=2, check_mode=True)
    assert planned["steps"] == ["remove 6.12.2-x", "remove 6.12.1-x"]
    result = either.run(keep=2)
    assert (result["outcome"], result["changed"]) == ("tidied", True)
    assert result["removed"] == ["6.12.2-x", "6.12.1-x"]
    assert either.host.debs == {OLD, NEW, "6.12.3-x"}
    assert either.run(keep=2)["outcome"] == "unchanged"


def test_previous_is_the_kernel_that_it_was_when_the_run_began(either):
    either.run()
    result = either.run(release="previous", packages=None)
    assert (result["outcome"], result["running"], result["previous"]) == ("promoted", OLD, NEW)
    assert either.host.boot() == OLD


def test_missing_files_are_named_at_once(rig):
    with pytest.raises(AnsibleActionFail, match=r"no\.deb, none"):
        rig.run(packages=["k.deb", "no.deb"], image="none")


def test_packages_may_be_one_string(rig):
    assert rig.run(packages="k.deb", state="installed")["outcome"] == "installed"


def test_nothing_is_sent_that_is_there(rig):
    rig.run(packages=["/there/k.deb"], remote_src=True)
    assert rig.sent == []


def test_what_the_module_sets_itself_is_refused(rig):
    with pytest.raises(AnsibleActionFail, match="phase: set by the module itself"):
        rig.run(phase="promote")


@pytest.mark.parametrize(
    ("output", "seen"),
    [
        (ON_TRIAL, (ID, NEW, "root=/dev/vda1 mkops.trial=t0")),
        ("banner\n" + BACK, (ID, OLD, "root=/dev/vda1")),
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
