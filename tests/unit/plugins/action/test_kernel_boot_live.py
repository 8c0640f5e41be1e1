# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The action with the real module on a simulated host that boots its next kernel under running instances."""

from __future__ import annotations

import errno
import json
import os

import pytest
from ansible.errors import AnsibleConnectionFailure

from ansible_collections.mkops.multikernel.plugins.module_utils.boot import loaders
from ansible_collections.mkops.multikernel.plugins.module_utils.boot.trial import State
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import agent, witness
from ansible_collections.mkops.multikernel.tests.unit.boot_rig import Rig
from ansible_collections.mkops.multikernel.tests.unit.fake_boot import (
    INSTANCES,
    NEW,
    OLD,
    Simulated,
    SimulatedSystemdBoot,
    bzimage,
    mark,
)

KEEP = {"method": "live", "instances": "keep"}
BOOT_ID = "{}aaaaaaa-0000-0000-0000-000000000000"


@pytest.fixture(params=[Simulated, SimulatedSystemdBoot])
def rig(tmp_path, monkeypatch, request):
    """A host of either boot loader, with two instances that run and one that is loaded."""
    (tmp_path / "k.deb").write_text("deb")
    rig = Rig(request.param(tmp_path / "host"), monkeypatch, tmp_path)
    rig.host.become_live()
    for number, (name, status) in enumerate([("red", "active"), ("blue", "active"), ("spare", "loaded")], 1):
        rig.host.instance(name, status, number)
    return rig


def default(rig):
    boot = loaders.look(rig.host)
    return boot.releases.get(boot.default, "")


def state(rig):
    return rig.host.state(loaders.look(rig.host))[0]


def commands(rig, name):
    return [argv for argv in rig.host.commands if argv[0] == name]


@pytest.fixture
def agents(rig, monkeypatch):
    """Agents answer from files: boot id and clock of a name."""

    def call(name, _command, _environment, _patience, _seconds, _limit, _stdin, stdout, _stderr):
        told = rig.host.at(f"/sim/agent-{name}")
        if not told.exists():
            return agent.AGENTLESS, 0, ""
        os.write(stdout, told.read_bytes())
        return agent.EXITED, 0, ""

    def tell(name, boot_id=None, uptime=100.0):
        if boot_id is None:
            rig.host.at(f"/sim/agent-{name}").unlink()
        else:
            rig.host.file(f"/sim/agent-{name}", f"{BOOT_ID.format(boot_id)}\n{uptime:.2f} 1.00\n")

    monkeypatch.setattr(witness.agent, "call", call)
    return tell


def test_instances_run_on_and_belong_to_the_new_kernel(rig, agents):
    agents("red", 1)
    result = rig.run(**KEEP)
    assert rig.calls == ["plan", "install", "trial", "judge", "promote"]
    assert (result["outcome"], result["running"], result["previous"]) == ("promoted", NEW, OLD)
    assert f"boot {NEW} by kexec, on trial, while these instances run on: blue, red" in result["steps"]
    assert f"kernel_boot [h1]: boots {NEW} by kexec, keeps running: blue, red" in rig.said
    assert [one["name"] for one in result["instances"]] == ["blue", "red"]
    assert [one["boot_id"] for one in result["instances"]] == [None, BOOT_ID.format(1)]
    assert all(isinstance(one["gap_ms"], int) for one in result["instances"])
    assert "the images of spare, which are loaded and do not run" in result["warnings"][0]
    assert rig.host.running_instances() == ["blue", "red"]
    assert (default(rig), state(rig), rig.host.left_of_a_trial()) == (NEW, State.IDLE, [])
    # Nothing but the default was asked of the boot loader.
    assert not any("next_entry" in word for argv in commands(rig, "grub-editenv") for word in argv[3:4])
    again = rig.run(**KEEP)
    assert (again["outcome"], again["changed"]) == ("unchanged", False)
    assert rig.host.boot() == NEW


def test_what_kexec_is_told(rig):
    rig.host.file(f"/boot/initrd.img-{NEW}", "initrd")
    rig.run(**KEEP, cmdline="isolcpus=1")
    (load,) = commands(rig, "kexec")
    image, initrd = (str(rig.host.at(f"/boot/{name}-{NEW}")) for name in ("vmlinuz", "initrd.img"))
    assert [*load[:4], load[5]] == ["kexec", "-s", "-l", image, f"--initrd={initrd}"]
    name, _equals, line = load[4].partition("=")
    assert name == "--command-line"
    words = line.split()
    assert words[:2] == ["root=/dev/vda1", "ro"]
    assert {"isolcpus=1", "panic=10", "oops=panic"} < set(words)
    assert "rootwait" not in words
    assert words[-1].startswith("mkops.trial=")
    assert commands(rig, "systemd-run")[0][-2:] == ["systemctl", "kexec"]


def test_check_mode_says_which_run_on(rig):
    before = rig.host.files()
    result = rig.run(check_mode=True, **KEEP)
    assert (result["outcome"], rig.calls, rig.host.files()) == ("planned", ["plan"], before)
    assert "instance: blue active\ninstance: red active\n" in result["diff"]["after"]


def test_without_instances_it_is_a_kexec(rig):
    for name in ("red", "blue", "spare"):
        rig.host.file(f"{INSTANCES}/{name}/status", "ready\n")
    result = rig.run(method="live")
    assert (result["outcome"], result["instances"]) == ("promoted", [])
    assert f"boot {NEW} by kexec, on trial" in result["steps"]


def refused(rig, **args):
    """All reasons; nothing was changed."""
    before = rig.host.files()
    result = rig.run(**args)
    assert (result["outcome"], result["changed"], rig.calls) == ("refused", False, ["plan"]), result
    assert rig.host.files() == before
    rig.calls.clear()
    return result["reasons"]


def test_what_is_asked_for_has_to_go_together(rig):
    assert "instances: keep needs method: live" in refused(rig, instances="keep")[0]
    (reason,) = refused(rig, method="live")
    assert "have them stopped (instances: stop) or kept (instances: keep)" in reason
    (reason,) = refused(rig, **KEEP, reboot_ok=False)
    assert "is given up by a restart, which ends all instances; allow that (reboot_ok: true)" in reason


def test_all_that_speaks_against_it_is_said_at_once(rig):
    rig.host.why_not = "instance red has a request under way"
    rig.host.file("/proc/sys/kernel/kexec_load_disabled", "1\n")
    rig.host.file("/sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
    rig.host.at("/usr/sbin/kexec").unlink()
    rig.host._show_live()
    rig.host.image = bzimage()
    rig.host.add(NEW)
    text = "; ".join(refused(rig, **KEEP, packages=None))
    for word in (
        "instance red has a request under way",
        "install kexec-tools",
        "kexec_load_disabled is 1",
        "locked down (integrity)",
        "has no mark that it takes instances over",
    ):
        assert word in text


@pytest.mark.parametrize("settings", ["", "LOAD_KEXEC=false\n", "LOAD_KEXEC=true\n"])
def test_init_scripts_of_kexec_tools(rig, settings):
    """They would jump while services still stop; and at any restart, if they are told to."""
    rig.host.file("/etc/default/kexec", settings)
    for name in ("kexec", "kexec-load"):
        rig.host.file(f"/etc/init.d/{name}", "#!/bin/sh\n")
    (reason,) = refused(rig, **KEEP)
    assert "init scripts of kexec-tools (kexec, kexec-load) would boot what is loaded" in reason
    if "true" in settings:
        (reason,) = refused(rig, instances="stop")
        assert "take restarts over" in reason
    for name in ("kexec", "kexec-load"):
        unit = rig.host.at(f"/etc/systemd/system/{name}.service")
        unit.parent.mkdir(parents=True, exist_ok=True)
        unit.symlink_to("/dev/null")
    assert rig.run(**KEEP)["outcome"] == "promoted"


def test_a_setting_of_kexec_tools_that_counts(rig):
    """The last one of all files."""
    for name in ("kexec", "kexec-load"):
        rig.host.file(f"/etc/init.d/{name}", "#!/bin/sh\n")
        rig.host.file(f"{INSTANCES}/red/status", "ready\n")
    rig.host.file("/etc/default/kexec", "LOAD_KEXEC=true\n")
    rig.host.file("/etc/default/kexec.d/off", "LOAD_KEXEC='false'\n")
    assert rig.host.look(NEW).live.takes_reboots is False
    rig.host.at("/etc/default/kexec.d/off").unlink()
    assert rig.host.look(NEW).live.takes_reboots is True


def test_a_kernel_that_knows_no_live_update(rig):
    rig.host.at("/sys/fs/multikernel/live_update").unlink()
    assert f"the running kernel {OLD} cannot hand its instances over" in refused(rig, **KEEP)[0]


def test_handovers_that_do_not_go_together(rig):
    rig.host.image = bzimage(mark(2, 3))
    rig.host.add(NEW)
    (reason,) = refused(rig, **KEEP, packages=None)
    assert "takes over handovers of version 2 to 3, and the running kernel makes version 1" in reason


def test_page_tables_that_do_not_go_together(rig):
    rig.host.file("/proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu la57 smep\n")
    rig.host.add(NEW, config="CONFIG_EFIVAR_FS=y\n")
    rig.host.file(f"/boot/config-{OLD}", "CONFIG_X86_5LEVEL=y\n")
    (reason,) = refused(rig, **KEEP, packages=None)
    assert f"{OLD} has page tables of five levels and {NEW} would have four" in reason


def test_an_image_that_only_its_package_had(rig):
    """It is looked at as soon as it is there; then nothing but the installation was done."""
    rig.host.image = bzimage()
    result = rig.run(**KEEP)
    assert (result["failed"], result["outcome"]) == (True, "failed")
    assert "has no mark that it takes instances over" in result["msg"]
    assert rig.calls[-1] == "trial"
    assert (commands(rig, "kexec"), rig.host.left_of_a_trial()) == ([], [])
    assert rig.host.running_instances() == ["blue", "red"]


@pytest.mark.parametrize("number", [errno.ENOEXEC, errno.ESTALE, errno.EPERM])
def test_an_image_that_the_kernel_does_not_take(rig, number):
    rig.host.refuses = number
    result = rig.run(**KEEP)
    assert (result["failed"], result["outcome"]) == (True, "failed")
    assert f"cannot have {NEW} loaded with the handover of the instances" in result["msg"]
    check_taken_back(rig)


def check_taken_back(rig):
    assert (rig.host.left_of_a_trial(), state(rig), default(rig)) == ([], State.IDLE, OLD)
    assert not rig.host.kexec_loaded()
    assert rig.host.live_update().state == "off"
    assert rig.host.running_instances() == ["blue", "red"]
    assert rig.host.running() == OLD


def test_a_handover_that_is_not_of_now(rig, monkeypatch):
    """Somebody changes an instance while the kernel is loaded."""
    run = rig.host.run

    def change(argv, purpose, **more):
        done = run(argv, purpose, **more)
        if argv[:3] == ["kexec", "-s", "-l"]:
            rig.host.sim["live"] = "stale"
            rig.host._show_live()
        return done

    monkeypatch.setattr(rig.host, "run", change)
    result = rig.run(**KEEP)
    assert "would not hand the instances over (live_update is stale)" in result["msg"]
    check_taken_back(rig)


def test_the_kernel_refuses_it_when_the_host_is_down(rig):
    """systemd restarts the machine then: the instances are lost, and that is said."""
    rig.host.stale = True
    result = rig.run(**KEEP)
    assert (result["failed"], result["outcome"], result["running"]) == (True, "fell_back", OLD)
    assert result["lost"] == ["blue", "red"]
    assert "with it have ended the instances blue, red" in result["msg"]
    assert (rig.host.left_of_a_trial(), state(rig)) == ([], State.IDLE)


@pytest.mark.parametrize("bad", ["panic", "deaf", "sick"])
def test_a_kernel_that_is_not_healthy_takes_the_instances_with_it(rig, bad):
    rig.host.bad = bad
    result = rig.run(**KEEP)
    assert (result["failed"], result["outcome"], result["running"]) == (True, "fell_back", OLD)
    assert result["lost"] == ["blue", "red"]
    assert rig.host.running_instances() == []
    assert (default(rig), rig.host.left_of_a_trial()) == (OLD, [])
    assert rig.host.boot() == OLD


def gone(rig):
    rig.host.file(f"{INSTANCES}/red/status", "ready\n")


def anew(rig):
    rig.host.file(f"{INSTANCES}/red/epoch", "2\n")


def silent(rig):
    rig.host.file(f"{INSTANCES}/red/stats", "heartbeat_age_ms 2500\n")


def lost(rig):
    path = rig.host.at("/sys/fs/multikernel/live_update")
    path.write_text(path.read_text().replace("lost 0", "lost 1"))


def not_adopted(rig):
    path = rig.host.at("/sys/fs/multikernel/live_update")
    path.write_text(path.read_text().replace("generation 1", "generation 0"))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (gone, "instance red is ready, and was active"),
        (anew, "instance red was started anew"),
        (silent, "instance red has not given a sign of life for 2.5 s"),
        (lost, "the kernel has lost 1 of the instances"),
        (not_adopted, "the kernel does not say that it has taken instances over"),
    ],
)
def test_an_instance_that_is_not_what_it_was(rig, harm, reason):
    rig.cut = lambda what: harm(rig) if what == "before judge" else None
    result = rig.run(**KEEP)
    assert (result["outcome"], result["reasons"]) == ("fell_back", [reason])
    assert result["lost"] == ["blue", "red"]


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (2, f"instance red was booted anew: its boot id is {BOOT_ID.format(2)}"),
        (None, "the agent of instance red does not answer any more"),
    ],
)
def test_an_agent_that_answered_before(rig, agents, after, reason):
    agents("red", 1)
    rig.cut = lambda what: (
        agents("red", after) if what == "before judge" and rig.host.running() == NEW else None
    )
    result = rig.run(**KEEP)
    assert (result["outcome"], result["reasons"]) == ("fell_back", [reason])


def test_a_run_that_was_interrupted_is_taken_up(rig):
    def cut(what):
        if what == "before judge":
            raise KeyboardInterrupt

    rig.cut = cut
    with pytest.raises(KeyboardInterrupt):
        rig.run(**KEEP)
    rig.cut = lambda _what: None
    rig.calls.clear()
    # Whatever the next run asks for: the trial is what it was begun as.
    result = rig.run()
    assert (rig.calls, result["outcome"]) == (["plan", "install", "judge", "promote"], "promoted")
    assert [one["name"] for one in result["instances"]] == ["blue", "red"]


@pytest.mark.parametrize("step", ["trial", "judge", "promote"])
def test_an_answer_that_is_lost(rig, step):
    def cut(what):
        if what == f"after {step}":
            rig.cut = lambda _what: None
            raise AnsibleConnectionFailure("gone")

    rig.cut = cut
    result = rig.run(**KEEP)
    if step == "judge":
        assert (result["outcome"], result["lost"]) == ("fell_back", ["blue", "red"])
    else:
        assert (result["outcome"], rig.host.running_instances()) == ("promoted", ["blue", "red"])
    assert rig.host.left_of_a_trial() == []


def test_what_is_noted_of_instances_outlasts_the_boot(rig):
    """Which image an instance was loaded from, and how much of its console is in the journal."""
    note = {"boot_id": rig.host.boot_id(), "record": "abc", "files": {"/k": [1, 2, 3, 4]}}
    rig.host.file("/run/mkops/instances/red.json", json.dumps(note))
    place = {"boot_id": rig.host.boot_id(), "id": 1, "length": 7, "tail": "said"}
    rig.host.file("/run/mkops/consoles/red.json", json.dumps(place))
    rig.run(**KEEP)
    now = rig.host.boot_id()
    found = json.loads(rig.host.text("/run/mkops/instances/red.json"))
    assert found.pop("left") > 0
    assert found == {**note, "boot_id": now}
    assert json.loads(rig.host.text("/run/mkops/consoles/red.json")) == {**place, "boot_id": now}
    assert list(rig.host.at("/var/lib/mkops/handover").iterdir()) == []


def test_what_is_noted_is_nothing_to_another_boot(rig):
    """After a restart by the firmware an instance of that name is another one."""
    note = {"boot_id": rig.host.boot_id(), "record": "abc"}
    rig.host.file("/run/mkops/instances/red.json", json.dumps(note))
    rig.host.stale = True
    rig.run(**KEEP)
    rig.host.stale = False
    rig.host.instance("red")
    assert rig.run(**KEEP)["outcome"] == "promoted"
    found = json.loads(rig.host.text("/run/mkops/instances/red.json"))
    assert "record" not in found
