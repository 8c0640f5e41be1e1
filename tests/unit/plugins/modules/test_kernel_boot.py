# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module on a simulated host: a directory, and commands that do to it what the real ones would."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import stat
import subprocess
from types import SimpleNamespace

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.boot import access, packages, systemd_boot
from ansible_collections.mkops.multikernel.plugins.module_utils.boot import host as boot_host
from ansible_collections.mkops.multikernel.plugins.module_utils.boot import loaders as boot_loaders
from ansible_collections.mkops.multikernel.plugins.module_utils.boot import plan as host_part
from ansible_collections.mkops.multikernel.plugins.module_utils.boot import trial as states
from ansible_collections.mkops.multikernel.plugins.module_utils.boot.rollout import Rollout
from ansible_collections.mkops.multikernel.plugins.module_utils.common.command import Done
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure
from ansible_collections.mkops.multikernel.plugins.module_utils.common.lock import (
    host_lock,
    locked,
    withdraw_restart,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import Paths
from ansible_collections.mkops.multikernel.plugins.modules import kernel_boot
from ansible_collections.mkops.multikernel.tests.unit.boot_rig import Clock
from ansible_collections.mkops.multikernel.tests.unit.fake_boot import (
    ENTRY,
    HEAD,
    NEW,
    OLD,
    TAIL,
    Simulated,
    SimulatedSystemdBoot,
)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_boot, "time", Clock())
    return Simulated(tmp_path)


@pytest.fixture(params=[Simulated, SimulatedSystemdBoot])
def either(tmp_path, monkeypatch, request):
    """A host for each boot loader."""
    monkeypatch.setattr(kernel_boot, "time", Clock())
    return request.param(tmp_path)


def phase(machine, name, **params):
    defaults = {key: option.get("default") for key, option in kernel_boot.ARGUMENT_SPEC.items()}
    health = {key: option["default"] for key, option in kernel_boot.HEALTH.items()} | {"timeout": 0}
    wish = {"release": NEW, "packages": [f"/tmp/{NEW}.deb"], "reboot_ok": True}
    params = defaults | wish | params | {"health": health | params.get("health", {})}
    return kernel_boot.work(SimpleNamespace(params=params | {"phase": name}), machine)


def promoted(machine, **params):
    """A whole run of which all goes well."""
    if not phase(machine, "plan", **params)["changed"]:
        return None
    phase(machine, "install", **params)
    trial = phase(machine, "trial", **params)["trial"]
    machine.boot()
    assert phase(machine, "judge", trial=trial, **params)["reasons"] == []
    return phase(machine, "promote", trial=trial, **params)


def test_the_plan_changes_nothing_and_tells_what_the_run_does(machine):
    before = machine.files()
    planned = phase(machine, "plan", health={"multikernel": True})
    assert machine.files() == before
    assert planned["reasons"] == []
    assert planned["steps"] == [
        "let the boot loader remember its default",
        f"keep the running kernel as the default, gnulinux-{OLD}-advanced-u",
        f"install {NEW}",
        f"boot {NEW} once, on trial",
        "judge its health",
        f"make {NEW} the default",
    ]
    assert (
        planned["diff"]["before"]
        == f"running: {OLD}\ndefault: the first entry of the menu\nonce: -\nkernel: {OLD}\n"
    )
    assert planned["diff"]["after"] == promoted(machine, health={"multikernel": True})["after"]
    again = phase(machine, "plan")
    assert (again["changed"], again["steps"], again["reasons"]) == (False, [], [])
    assert again["diff"]["before"] == again["diff"]["after"]


def test_until_it_is_promoted_a_restart_brings_the_old_kernel(either):
    phase(either, "install")
    assert either.boot() == OLD
    phase(either, "trial")
    assert either.boot() == NEW
    assert either.boot() == OLD
    report = phase(either, "report")
    assert report["default"] == OLD
    assert not any("mkops-kernel-trial" in path for path in either.files())
    assert host_part.TRIAL_ID not in either.ours()


def test_the_trial_is_armed_by_units_for_this_boot_alone(machine):
    phase(machine, "install")
    trial = phase(machine, "trial", trial_timeout=300)["trial"]
    timer = machine.text("/etc/systemd/system/mkops-kernel-trial.timer")
    assert f"ConditionKernelCommandLine=mkops.trial={trial['token']}" in timer
    assert "OnBootSec=300\n" in timer
    for target in ("sysinit", "rescue", "emergency"):
        assert machine.at(f"/etc/systemd/system/{target}.target.wants/mkops-kernel-trial.timer").is_symlink()
    assert machine.commands[-1][:1] == ["systemd-run"]
    # an entry for once is not taken for an ordinary one
    assert NEW not in boot_loaders.look(machine).own
    assert boot_loaders.look(machine).entries[NEW] == f"gnulinux-{NEW}-advanced-u"
    machine.boot()
    cmdline = machine.text("/proc/cmdline").split()
    assert {"panic=10", "oops=panic", "softlockup_panic=1", "hung_task_panic=1"} < set(cmdline)


def test_without_a_timer_left_after_the_promotion(either):
    promoted(either)
    assert ["systemctl", "stop", "mkops-kernel-trial.timer"] in either.commands
    assert not any("mkops-kernel-trial" in path for path in either.files())
    assert either.boot() == NEW


def test_an_interrupted_run_is_taken_up_where_it_was(either):
    phase(either, "install")
    phase(either, "trial")
    either.boot()
    planned = phase(either, "plan")
    assert planned["todo"]["resume"]
    assert planned["steps"] == ["judge its health", f"make {NEW} the default"]
    other = phase(either, "plan", release=OLD, packages=None)
    assert other["reasons"][0].startswith(f"a trial of {NEW} is running")
    phase(either, "promote", trial=planned["todo"]["trial"])
    assert either.boot() == NEW


def test_a_trial_that_was_left_behind_is_forgotten(machine):
    phase(machine, "install")
    phase(machine, "trial")
    machine.run(["grub-editenv", "-", "unset", "next_entry"], "let somebody else unset it")
    machine.boot()
    planned = phase(machine, "plan", release=OLD, packages=None, state="installed")
    assert planned["steps"] == [f"forget the trial of {NEW} that was left behind"]
    phase(machine, "install", release=OLD, packages=None, state="installed")
    assert not phase(machine, "plan", release=OLD, packages=None, state="installed")["changed"]


def test_going_back_to_the_previous_kernel(either):
    promoted(either)
    assert either.record() == {"kernels": [NEW], "previous": OLD}
    promoted(either, release="previous", packages=None)
    assert either.boot() == OLD
    assert either.record()["previous"] == NEW


def test_there_is_no_previous_kernel_at_first(machine):
    assert "no kernel was promoted here before" in phase(machine, "plan", release="previous")["reasons"][0]


def test_a_command_line_of_its_own(either):
    promoted(either, cmdline="isolcpus=1")
    assert not phase(either, "plan", cmdline="isolcpus=1")["changed"]
    assert either.boot() == NEW
    assert "isolcpus=1" in either.text("/proc/cmdline").split()
    assert "panic=10" not in either.text("/proc/cmdline").split()
    # Another one, or none, needs another boot.
    for cmdline in ("isolcpus=0", ""):
        assert phase(either, "plan", cmdline=cmdline)["todo"]["boot"]
    promoted(either, cmdline="")
    assert either.boot() == NEW
    assert "isolcpus=1" not in either.text("/proc/cmdline").split()
    assert either.ours() == ""
    assert not phase(either, "plan")["changed"]


def test_old_kernels_go_but_never_those_that_are_needed(either):
    releases = [f"6.12.{number}-x" for number in (8, 9, 10, 11)]
    for release in releases:
        promoted(either, release=release, packages=[f"/tmp/{release}.deb"], keep=2)
    # 11 runs, 10 was good before it; the distribution's is not ours to remove.
    assert sorted(either.debs) == sorted([OLD, "6.12.10-x", "6.12.11-x"])
    assert either.record() == {"kernels": ["6.12.10-x", "6.12.11-x"], "previous": "6.12.10-x"}
    assert either.boot() == "6.12.11-x"


@pytest.mark.parametrize(
    ("change", "params", "reason"),
    [
        ({}, {"reboot_ok": False}, "allow it (reboot_ok: true)"),
        (
            {},
            {"packages": None},
            f"{NEW} is not installed and no packages are given; give them, or an installed one: {OLD}",
        ),
        ({}, {"cmdline": "a;b"}, "words that a boot menu cannot hold: a;b"),
        ({}, {"keep": 1}, "keep is 1"),
        ({}, {"cmdline": "quiet -- verbose"}, "cmdline has --, and the kernel ignores every word after that"),
        ({}, {"cmdline": "mkops.trial=x"}, "cmdline has mkops.trial=x, which is reserved for trials"),
        ({}, {"cmdline": "init=/bin/bash"}, "cmdline has init=/bin/bash, which makes the kernel wait"),
        (
            {},
            {"cmdline": "rd.break=pre-mount break"},
            "cmdline has rd.break=pre-mount, break, which makes the kernel wait",
        ),
        ({}, {"cmdline": "rdinit=/bin/sh"}, "cmdline has rdinit=/bin/sh, which makes the kernel wait"),
        ({}, {"cmdline": "x" * 1800}, "characters, of which a kernel takes 2047"),
        ({}, {"trial_timeout": 10**30}, "give 604800 or less"),
        ({}, {"stop_timeout": 604801}, "stop_timeout is 604801 s; give 604800 or less"),
        ({}, {"trial_timeout": 60, "health": {"timeout": 60}}, "no time to boot"),
        (
            {"/sys/fs/multikernel/instances/web/status": "active\n"},
            {},
            "instances are not stopped: web (active)",
        ),
        (
            {"/sys/fs/multikernel/instances/web/status": "loaded\n"},
            {},
            "instances are not stopped: web (loaded)",
        ),
        ({"/boot/grub/grub.cfg": ""}, {}, "neither GRUB with"),
        ({"/boot/grub/grub.cfg": "set timeout=-1\n"}, {}, "GRUB waits for a key"),
        ({"/boot/grub/grub.cfg": "x\n"}, {}, "does not boot an entry once and then forget it"),
        ({"/boot/grub/grub.cfg": "x\n"}, {}, "does not read custom.cfg"),
        ({"/boot/grub/grub.cfg": "x\n"}, {}, f"the running kernel {OLD} is not in the menu of GRUB"),
    ],
)
def test_refusals(machine, change, params, reason):
    for path, text in change.items():
        machine.file(path, text)
    before = machine.files()
    planned = phase(machine, "plan", **params)
    assert reason in "; ".join(planned["reasons"])
    with pytest.raises(Failure):
        phase(machine, "install", **params)
    assert machine.files() == before


@pytest.mark.parametrize(
    "release", ["", "..", "../x", "a b", "x\n", "\0", "ü", "-x", "it's", "a>b", "$x", "x" * 65]
)
def test_what_is_no_release(either, release):
    before = either.files()
    with pytest.raises(Failure, match="is not the name of a kernel"):
        phase(either, "plan", release=release)
    assert either.files() == before


@pytest.mark.parametrize(
    ("health", "reason"),
    [
        ({"units": ["ssh.service", ""]}, "health.units: '' is not the name of a unit"),
        ({"units": ["--failed"]}, "health.units: '--failed' is not"),
        ({"units": ["a b"]}, "health.units: 'a b' is not"),
        ({"checks": [["/bin/true"], []]}, "health.checks: a check is empty"),
        ({"checks": [[""]]}, "health.checks: a check is empty"),
    ],
)
def test_what_could_not_be_judged_is_told_before_the_restart(either, health, reason):
    with pytest.raises(Failure, match=re.escape(reason)):
        phase(either, "plan", health=health)


def test_no_systemd(machine):
    machine.at("/run/systemd/system").rmdir()
    assert "systemd is not running on this host" in phase(machine, "plan")["reasons"][0]


def test_instances_that_may_be_stopped_are_named(machine, monkeypatch):
    machine.file("/sys/fs/multikernel/instances/web/status", "active\n")
    machine.file("/sys/fs/multikernel/instances/db/status", "ready\n")
    planned = phase(machine, "plan", instances="stop")
    assert (planned["reasons"], planned["todo"]["stop"]) == ([], ["web"])
    phase(machine, "install", instances="stop")
    # Whoever does not stop them gets no restart, and the trial is off. This kernel shows too little for it.
    with pytest.raises(Failure, match="the kernel's files have unexpected content"):
        phase(machine, "trial", instances="stop")
    # Nor does one that is there after that.
    monkeypatch.setattr(kernel_boot, "converge", lambda *_args, **_more: None)
    with pytest.raises(Failure, match="instances are not stopped: web"):
        phase(machine, "trial", instances="stop")
    assert "next_entry" not in machine.environment
    assert machine.boot() == OLD


@pytest.mark.parametrize("fault", ["systemd-run", "grub-editenv"])
def test_a_failure_while_arming_leaves_the_old_kernel(machine, fault):
    phase(machine, "install")
    machine.fail_on = (fault,)
    with pytest.raises(Failure):
        phase(machine, "trial")
    machine.fail_on = ()
    assert machine.boot() == OLD


def test_a_package_of_another_kernel_is_not_installed(machine):
    with pytest.raises(Failure, match="is not among the packages"):
        phase(machine, "install", packages=["/tmp/6.0.0-other.deb"])
    assert machine.debs == {OLD}


def test_a_full_boot_is_noticed_before(machine, monkeypatch):
    monkeypatch.setattr(packages.shutil, "disk_usage", lambda _path: SimpleNamespace(free=1))
    with pytest.raises(Failure, match="make room"):
        phase(machine, "install")
    assert machine.debs == {OLD}


@pytest.mark.parametrize(
    ("free", "reason"),
    [
        ({"boot": 30, "lib": 100, "var": 100}, ""),  # it need not hold the modules
        ({"boot": 20, "lib": 100, "var": 100}, f"/boot: 20 MiB free, but linux-image-{NEW} needs 25 MiB"),
        (
            {"boot": 30, "lib": 10, "var": 100},
            f"/lib/modules: 10 MiB free, but linux-image-{NEW} needs 15 MiB",
        ),
        ({"boot": 30, "lib": 100, "var": 1}, "/var/lib/dpkg: 1 MiB free"),
        ({"": 40}, "/boot, /lib/modules, /var/lib/dpkg: 40 MiB free, but"),
        ({"": 50}, ""),
    ],
)
def test_room_by_file_system(machine, monkeypatch, free, reason):
    """The initramfs takes room in /boot as well: as much as the one of another kernel."""
    with machine.at(f"/boot/initrd.img-{OLD}").open("wb") as file:
        file.truncate(20 << 20)
    machine.at("/lib/modules").mkdir(parents=True)
    system = {machine.at(f"/{name}") if name else machine.at("/"): name for name in free}

    def system_of(path):
        return next(name for root, name in system.items() if path.is_relative_to(root))

    numbers = {name: number for number, name in enumerate(free)}
    with monkeypatch.context() as patched:
        patched.setattr(
            packages.shutil, "disk_usage", lambda path: SimpleNamespace(free=free[system_of(path)] << 20)
        )
        patched.setattr(packages, "_device", lambda path: numbers[system_of(path)])
        if not reason:
            packages.check(machine, NEW, ["/tmp/" + NEW + ".deb"])
            return
        with pytest.raises(Failure, match=re.escape(reason)):
            packages.check(machine, NEW, ["/tmp/" + NEW + ".deb"])


def test_the_image_for_spawns_is_placed_once(machine, tmp_path):
    image = tmp_path / "vmlinux"
    image.write_text("elf")
    digest = boot_host.sha256_file(image)
    params = {"image": str(image), "image_sha256": digest, "state": "installed"}
    assert f"place /boot/vmlinux-{NEW}" in phase(machine, "plan", **params)["steps"]
    phase(machine, "install", **params)
    assert machine.text(f"/boot/vmlinux-{NEW}") == "elf"
    assert not phase(machine, "plan", **params)["changed"]


def test_installed_only(either):
    phase(either, "install", state="installed", reboot_ok=False)
    assert either.boot() == OLD
    assert not phase(either, "plan", state="installed", reboot_ok=False)["changed"]


def test_unhealthy_kernels(either):
    phase(either, "install")
    trial = phase(either, "trial")["trial"]
    wrong = phase(either, "judge", trial=trial)["reasons"]
    assert wrong == [
        f"{OLD} is running, not {NEW}",
        "the host did not restart: its boot id is the same",
        "this boot is not the trial: its token is not on the command line",
    ]
    either.boot()
    either.failing = ["db.service"]
    health = {"units": ["ssh.service", "db.service"], "checks": [["/bin/false"]]}
    assert phase(either, "judge", trial=trial, health=health)["reasons"] == [
        "unit db.service is failed",
        "unit db.service failed, but not on the earlier kernel",
        "check /bin/false ended with status 1",
    ]


def test_checks_that_cannot_be_run_or_say_why(machine, monkeypatch):
    phase(machine, "install")
    trial = phase(machine, "trial")["trial"]
    machine.boot()
    real = machine.run

    def run(argv, purpose, ok=(0,), seconds=600):
        if argv[0] == "/gone":
            raise Failure(f"cannot {purpose}: there is no /gone on this host")
        if argv[0] == "/ill":
            return Done(tuple(argv), 3, "all\nout\n", "")
        return Done(tuple(argv), 0) if argv[0] == "/well" else real(argv, purpose, ok, seconds)

    monkeypatch.setattr(machine, "run", run)
    checks = [["/well"], ["/gone", "1"], ["/ill"]]
    assert phase(machine, "judge", trial=trial, health={"checks": checks})["reasons"] == [
        "check /gone 1 ended with status 127: cannot check: there is no /gone on this host",
        "check /ill ended with status 3: out",
    ]


def test_evidence_is_not_of_an_earlier_trial(machine):
    machine.file("/sys/fs/pstore/dmesg-0", "an older panic\n")
    os.utime(machine.at("/sys/fs/pstore/dmesg-0"), (1, 1))
    phase(machine, "install")
    phase(machine, "trial")
    machine.file("/sys/fs/pstore/dmesg-1", "Kernel panic\n")
    machine.boot()
    machine.boot()
    assert phase(machine, "report")["evidence"] == {"pstore": ["Kernel panic"]}


@pytest.mark.parametrize("late", [True, False])
def test_a_package_that_leaves_the_menu_as_it_was(either, monkeypatch, late):
    """Its scripts are not there, or say nothing: the menu is made here."""
    left_out = []
    real = type(either).menu

    def menu(machine):
        if machine.at(f"/boot/vmlinuz-{NEW}").exists() and not (late and left_out):
            left_out.append(machine)
        else:
            real(machine)

    monkeypatch.setattr(type(either), "menu", menu)
    if late:
        phase(either, "install", state="installed")
        assert NEW in boot_loaders.look(either).entries
    else:
        with pytest.raises(
            Failure, match=f"the boot menu has no entry for {NEW}; check that its files are in /boot"
        ):
            phase(either, "install", state="installed")
    assert either.boot() == OLD


def test_half_a_kernel_that_stays_in_the_menu_is_told(machine, monkeypatch):
    def break_off(*_arguments):
        machine.file(f"/boot/vmlinuz-{NEW}", "half")
        raise Failure("dpkg was killed")

    def gone(_machine):
        raise Failure("nothing starts this host")

    monkeypatch.setattr(packages, "install", break_off)
    monkeypatch.setattr(boot_loaders, "find", gone)
    rollout = Rollout(machine)
    with pytest.raises(Failure) as caught:
        rollout._install(NEW, ["/tmp/k.deb"], [])
    assert str(caught.value) == (
        f"dpkg was killed; {NEW} may still be in the boot menu (nothing starts this host); "
        f"the default is {OLD}"
    )
    assert not machine.at(f"/boot/vmlinuz-{NEW}").exists()
    assert machine.record()["kernels"] == []


@pytest.mark.parametrize("chosen", ["gnulinux-other", ""])
def test_a_trial_that_is_not_what_is_started_once(machine, monkeypatch, chosen):
    phase(machine, "install")
    look = boot_loaders.Grub.look
    monkeypatch.setattr(boot_loaders.Grub, "look", lambda grub: dataclasses.replace(look(grub), once=chosen))
    with pytest.raises(
        Failure, match=f"would start {chosen or 'its default'}, not the trial that was chosen"
    ):
        phase(machine, "trial")
    monkeypatch.undo()
    assert machine.boot() == OLD
    assert not any("mkops-kernel-trial" in path for path in machine.files())


def test_evidence_of_the_trial(machine):
    phase(machine, "install")
    phase(machine, "trial")
    machine.file(boot_host.EVIDENCE, "a\nb\n")
    machine.file("/sys/fs/pstore/dmesg-1", "Kernel panic\n")
    machine.boot()
    machine.boot()
    assert phase(machine, "report")["evidence"] == {"trial": ["a", "b"], "pstore": ["Kernel panic"]}


def test_a_damaged_record_is_named(machine):
    machine.file("/var/lib/mkops/kernel-boot/record.json", "{")
    with pytest.raises(Failure, match=r"record\.json is damaged"):
        phase(machine, "plan")


def test_what_cannot_bring_a_kernel_back_is_said(machine):
    machine.add(NEW, config="CONFIG_SOFTLOCKUP_DETECTOR=y\n# CONFIG_DETECT_HUNG_TASK is not set\n")
    run = kernel_boot.Run(
        SimpleNamespace(
            params={key: option.get("default") for key, option in kernel_boot.ARGUMENT_SPEC.items()}
            | {"release": NEW, "health": {"timeout": 10, "units": [], "checks": []}}
        ),
        machine,
    )
    warnings = " ".join(run.todo.warnings)
    assert "no CONFIG_DETECT_HUNG_TASK" in warnings
    assert "SOFTLOCKUP" not in warnings
    assert "no hardware watchdog" in warnings


def test_the_lock_is_exclusive(machine, monkeypatch):
    monkeypatch.setattr(kernel_boot, "host_lock", functools.partial(kernel_boot.host_lock, timeout=0))
    machine.lock.parent.mkdir(0o700)
    """The one that layout takes, too."""
    assert machine.lock == Paths(machine.root).lock
    with locked(machine.lock), pytest.raises(Failure, match="held by another run"):
        phase(machine, "install")


def test_documentation_and_arguments_agree():
    import yaml

    documented = yaml.safe_load(kernel_boot.DOCUMENTATION)["options"]
    assert set(documented) == set(kernel_boot.ARGUMENT_SPEC)
    for name, option in kernel_boot.ARGUMENT_SPEC.items():
        assert documented[name].get("default") == option.get("default"), name
        assert documented[name].get("choices") == option.get("choices"), name
    assert json.dumps(documented["health"]["suboptions"]["timeout"]["default"]) == "120"


@pytest.mark.parametrize("writable", [True, False])
def test_the_script_tells_on_the_console_what_it_cannot_keep(tmp_path, writable):
    console, kept = tmp_path / "console", tmp_path / ("kept" if writable else "gone/kept")
    script = states.EVIDENCE_SCRIPT.replace("/dev/console", str(console)).replace("/dev/kmsg", "/dev/null")
    # only the shell and what it reads: no systemd is needed, and none is asked
    subprocess.run(
        ["sh", "-s", str(kept)], input=script, text=True, check=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert (kept if writable else console).read_text().startswith("kernel ")
    assert console.exists() is not writable


# --- systemd-boot alone ---------------------------------------------------------------------------


@pytest.fixture
def uefi(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_boot, "time", Clock())
    return SimulatedSystemdBoot(tmp_path)


def test_the_plan_of_systemd_boot_changes_nothing(uefi):
    before = uefi.files()
    planned = phase(uefi, "plan")
    assert uefi.files() == before
    assert planned["reasons"] == []
    assert planned["steps"][0] == f"keep the running kernel as the default, t0ken-{OLD}.conf"
    assert planned["diff"]["after"] == promoted(uefi)["after"]
    assert uefi.variable("LoaderEntryDefault") == f"t0ken-{NEW}.conf"
    assert not phase(uefi, "plan")["changed"]


def test_the_trial_of_systemd_boot(uefi):
    phase(uefi, "install")
    phase(uefi, "trial")
    trial = uefi.text(f"{uefi.ENTRIES}/mkops-trial.conf")
    assert f"title Trial of {NEW}\n" in trial
    assert "options root=/dev/vda1 ro rootwait=60 panic=10 oops=panic" in trial
    assert f"linux /t0ken/{NEW}/linux\n" in trial
    assert uefi.variable("LoaderEntryOneShot") == "mkops-trial.conf"
    assert uefi.variable("LoaderEntryDefault") == f"t0ken-{OLD}.conf"


def test_a_failure_while_arming_systemd_boot(uefi):
    phase(uefi, "install")
    uefi.fail_on = ("systemd-run",)
    with pytest.raises(Failure):
        phase(uefi, "trial")
    assert uefi.variable("LoaderEntryOneShot") == ""
    assert uefi.ours() == ""
    assert uefi.boot() == OLD


def test_a_variable_that_does_not_take(uefi, monkeypatch):
    monkeypatch.setattr(uefi, "set", lambda _name, _text: None)
    with pytest.raises(Failure, match="the default of systemd-boot is not set after it was set to t0ken-"):
        phase(uefi, "install")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"/efi/loader/loader.conf": "timeout menu-force\n"}, "systemd-boot waits for a key"),
        (
            {f"{SimulatedSystemdBoot.ENTRIES}/t0ken-{OLD}.conf": "title Windows\nefi /x.efi\n"},
            f"the running kernel {OLD} is not in the menu of systemd-boot",
        ),
    ],
)
def test_refusals_of_systemd_boot(uefi, change, reason):
    for path, text in change.items():
        uefi.file(path, text)
    assert reason in "; ".join(phase(uefi, "plan")["reasons"])


def test_a_damaged_copy_on_the_boot_partition(uefi):
    phase(uefi, "install")
    uefi.file(f"/efi/t0ken/{NEW}/linux", "imag")
    (reason,) = phase(uefi, "plan")["reasons"]
    assert f"run kernel-install add {NEW}" in reason
    with pytest.raises(Failure, match="differs from /boot/vmlinuz-"):
        phase(uefi, "trial")


@pytest.mark.parametrize("release", [OLD, NEW])
def test_a_file_that_is_missing_on_the_boot_partition(uefi, release):
    """Of the kernel on trial, and of the one to go back to."""
    phase(uefi, "install")
    entry = f"{uefi.ENTRIES}/t0ken-{release}.conf"
    uefi.file(entry, uefi.text(entry) + f"initrd /t0ken/{release}/initrd.img\n")
    (reason,) = phase(uefi, "plan")["reasons"]
    assert reason.startswith(
        f"/t0ken/{release}/initrd.img of t0ken-{release}.conf is not on the boot partition;"
    )
    uefi.file(f"/efi/t0ken/{release}/initrd.img", "initrd")
    assert phase(uefi, "plan")["reasons"] == []


def test_efi_variables_that_are_read_only(uefi, monkeypatch):
    variables = uefi.at(access.EFI_VARIABLES)
    real = boot_loaders.os.access
    monkeypatch.setattr(boot_loaders.os, "access", lambda path, mode: path != variables and real(path, mode))
    before = uefi.files()
    assert phase(uefi, "plan")["reasons"] == [
        "/sys/firmware/efi/efivars cannot be written; mount efivarfs there read-write"
    ]
    with pytest.raises(Failure, match="cannot be written"):
        phase(uefi, "install")
    assert uefi.files() == before


@pytest.mark.parametrize("grub", [False, True])
def test_efi_variables_that_are_not_there(uefi, grub):
    """A grub.cfg from before must not be taken for what starts the host."""
    uefi.set("LoaderInfo", "")
    uefi.file("/efi/EFI/systemd/systemd-bootx64.efi", "MZ")
    if grub:
        uefi.file("/boot/grub/grub.cfg", HEAD.format(default="0") + ENTRY.format(OLD) + TAIL)
    before = uefi.files()
    (reason,) = phase(uefi, "plan")["reasons"]
    assert reason.startswith(
        "the EFI variables cannot be read, and /efi/EFI/systemd/systemd-bootx64.efi exists"
    )
    with pytest.raises(Failure, match="mount efivarfs on /sys/firmware/efi/efivars"):
        phase(uefi, "install")
    assert uefi.files() == before


def test_grub_by_uefi_needs_no_variables(machine):
    machine.file("/sys/firmware/efi/fw_vendor", "x")
    assert phase(machine, "plan")["reasons"] == []
    assert promoted(machine)["changed"]


@pytest.mark.parametrize(
    ("info", "loader"),
    [("GRUB 2.12-9", "GRUB"), ("systemd-boot 252.39-1~deb12u1", "systemd-boot"), ("", "GRUB")],
)
def test_what_has_started_the_host_counts_not_what_is_installed(uefi, info, loader):
    uefi.set("LoaderInfo", info)
    uefi.set("LoaderEntryDefault", "x.conf")  # so that there are variables, if none of the loader
    uefi.file("/efi/EFI/systemd/systemd-bootx64.efi", "MZ")
    uefi.file("/boot/grub/grub.cfg", HEAD.format(default="0") + ENTRY.format(OLD) + TAIL)
    assert type(boot_loaders.find(uefi)).__name__ == {"GRUB": "Grub", "systemd-boot": "SystemdBoot"}[loader]


def test_other_boot_loaders_are_named_and_refused(uefi):
    uefi.set("LoaderInfo", "rEFInd 0.14.2")
    uefi.file("/boot/grub/grub.cfg", HEAD.format(default="0") + ENTRY.format(OLD) + TAIL)
    assert phase(uefi, "plan")["reasons"] == [
        "rEFInd 0.14.2 starts this host; only GRUB and systemd-boot are supported"
    ]


@pytest.mark.parametrize(
    ("config", "cmdline", "reason"),
    [
        ("CONFIG_EFIVAR_FS=m\n", "", ""),
        (
            "CONFIG_X86=y\n",
            "",
            f"{NEW} has no CONFIG_EFIVAR_FS, so it could not be made the default of systemd-boot",
        ),
        ("CONFIG_EFIVAR_FS=y\nCONFIG_EFI_DISABLE_RUNTIME=y\n", "quiet", "no efi=runtime in cmdline"),
        ("CONFIG_EFIVAR_FS=y\nCONFIG_EFI_DISABLE_RUNTIME=y\n", "quiet efi=runtime", ""),
    ],
)
def test_a_kernel_that_could_never_be_promoted(either, config, cmdline, reason):
    either.add(NEW, config)
    reasons = phase(either, "plan", packages=[], cmdline=cmdline)["reasons"]
    if reason and isinstance(either, SimulatedSystemdBoot):
        assert len(reasons) == 1
        assert reason in reasons[0]
    else:
        assert reasons == []


def test_the_default_entry_disappears_before_the_restart(uefi):
    """set-default takes any name: what it says has to be there, too."""
    phase(uefi, "install")
    uefi.at(f"{uefi.ENTRIES}/t0ken-{OLD}.conf").unlink()
    with pytest.raises(Failure, match=f"the running kernel {OLD} is not in the menu of systemd-boot"):
        phase(uefi, "trial")
    assert uefi.variable("LoaderEntryOneShot") == ""


def test_the_entry_disappears_before_the_trial_is_armed(uefi):
    phase(uefi, "install")
    uefi.at(f"{uefi.ENTRIES}/t0ken-{NEW}.conf").unlink()
    with pytest.raises(Failure, match=f"systemd-boot no longer has an entry for {NEW}"):
        boot_loaders.find(uefi).arm(NEW, ["panic=10"])
    assert uefi.variable("LoaderEntryOneShot") == ""
    assert uefi.ours() == ""


def test_the_entry_disappears_before_the_promotion(uefi):
    phase(uefi, "install")
    trial = phase(uefi, "trial")["trial"]
    assert uefi.boot() == NEW
    uefi.at(f"{uefi.ENTRIES}/t0ken-{NEW}.conf").unlink()
    with pytest.raises(Failure, match=f"no longer has an entry for {NEW}"):
        phase(uefi, "promote", trial=trial)
    assert uefi.variable("LoaderEntryDefault") == f"t0ken-{OLD}.conf"
    assert uefi.boot() == OLD


def test_a_trial_that_cannot_be_unset_is_told(uefi, monkeypatch):
    phase(uefi, "install")
    phase(uefi, "trial")
    monkeypatch.setattr(uefi, "set", lambda _name, _text: None)
    withdraw_restart(uefi.lock)
    with pytest.raises(Failure, match=r"would still start mkops-trial\.conf once"):
        Rollout(uefi).tidy()


def test_another_system_on_the_same_boot_partition(uefi):
    """It has the same kernel, with a root of its own; its entry comes first by name, or last."""
    uefi.file("/etc/machine-id", "5e1f\n")
    for name in ("0ther", "z0ther"):
        uefi.file(
            f"{uefi.ENTRIES}/{name}-{OLD}.conf",
            f"title Other\nversion {OLD}\nmachine-id 07e4\noptions root=/dev/sdz\nlinux /{name}/linux\n",
        )
    assert boot_loaders.look(uefi).entries[OLD] == f"t0ken-{OLD}.conf"
    promoted(uefi)
    phase(uefi, "trial", release="previous", packages=[])
    assert "options root=/dev/vda1 ro rootwait=60" in uefi.ours()
    assert "/dev/sdz" not in uefi.ours()


def test_entries_from_before_the_machine_got_its_id_are_taken(uefi):
    uefi.file("/etc/machine-id", "5e1f\n")
    entry = f"{uefi.ENTRIES}/t0ken-{OLD}.conf"
    uefi.file(entry, uefi.text(entry) + "machine-id 07e4\n")
    assert boot_loaders.look(uefi).entries[OLD] == f"t0ken-{OLD}.conf"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        # As efivarfs showed it after bootctl set-default: attributes 7, then UTF-16 with its NUL.
        (b"\x07\x00\x00\x00" + "lab-6.12.conf".encode("utf-16-le") + b"\0\0", "lab-6.12.conf"),
        # volatile, as LoaderInfo: attributes 6
        (b"\x06\x00\x00\x00s\x00-\x00b\x00\x00\x00", "s-b"),
        (b"\x07\x00\x00\x00a\x00\x00\x00b\x00", "a"),
        (b"\x07\x00\x00\x00a\x00b\x00", "ab"),
        (b"\x07\x00\x00\x00\xe4\x00\x00\x00", "ä"),
        (b"\x07\x00\x00\x00\x00\x00", ""),
        (b"\x07\x00\x00\x00", ""),
        (b"", ""),
    ],
)
def test_bytes_of_a_variable(data, text):
    assert access.parse_variable(data) == text


def test_half_a_character_of_a_variable_is_no_name():
    assert access.parse_variable(b"\x07\x00\x00\x00a\x00b") != "ab"


def test_an_entry_with_a_counter_is_the_same_entry():
    text = "title Debian\nversion 6.12.9-new\nlinux /a/b/linux\n"
    entry = systemd_boot.parse_entry("t0ken-6.12.9-new+2-1.conf", text)
    assert (entry.ident, entry.release, entry.ordinary) == ("t0ken-6.12.9-new.conf", NEW, True)


def test_a_release_without_a_version_line():
    assert systemd_boot.parse_entry("x.conf", f"title x\nlinux /t0ken/{NEW}/linux\n").release == NEW


def test_words_of_our_own_are_found_again():
    entry = systemd_boot.parse_entry("a.conf", f"title T\nversion {NEW}\nlinux /l\noptions a\noptions b\n")
    name, text = systemd_boot.own_entry(entry, "isolcpus=1 x")
    again = systemd_boot.parse_entry(name, text)
    assert (again.ident, again.cmdline) == (f"mkops-kernel-{NEW}.conf", "isolcpus=1 x")
    assert again.value("options") == "a b isolcpus=1 x"
    assert not again.ordinary


@pytest.mark.parametrize(("on", "known"), [(b"\0", False), (b"\1", False), (b"\1", True)])
def test_secure_boot(either, monkeypatch, on, known):
    """Without a signature none would start it; whose it is counts where the loader could not go back."""
    either.add(NEW)
    variables = either.at(access.EFI_VARIABLES)
    variables.mkdir(parents=True, exist_ok=True)
    either.at(boot_host.SECURE_BOOT).write_bytes(b"\6\0\0\0" + on)
    either.at(boot_host.KEYS[0]).write_bytes(b"\6\0\0\0keys")
    seen = []
    monkeypatch.setattr(
        boot_host.secure_boot,
        "fault",
        lambda image, keys: seen.append((image, keys)) or ("" if known else "is not right"),
    )
    reasons = phase(either, "plan", packages=[])["reasons"]
    wrong = on == b"\1" and not known
    text = f"Secure Boot is on and the image of {NEW} is not right, or turn Secure Boot off"
    assert reasons == ([text] if wrong else [])
    keys = [b"keys"] if isinstance(either, SimulatedSystemdBoot) else None
    assert seen == ([] if on == b"\0" else [(b"image", keys)] * 2)


@pytest.mark.parametrize("release", [OLD, NEW])
@pytest.mark.parametrize("lost", [0, 1])
def test_an_image_that_is_cut_off(either, release, lost):
    """Whole: 4 sectors of setup, the boot sector, and 3 units of 16 bytes."""
    either.add(NEW)
    image = bytearray(5 * 512 + 3 * 16 - lost)
    image[0x1F4] = 3
    image[0x202:0x206] = b"HdrS"
    text = image.decode("ascii")
    either.file(f"/boot/vmlinuz-{release}", text)
    if isinstance(either, SimulatedSystemdBoot):
        either.file(f"/efi/t0ken/{release}/linux", text)
    reasons = phase(either, "plan", packages=[])["reasons"]
    text = f"/boot/vmlinuz-{release} is cut off: 1 of its 2608 bytes are missing; install it again"
    assert reasons == ([text] if lost else [])


# --- a run that fails or is cut off ---------------------------------------------------------------


def on_trial(host):
    """The new kernel runs on trial and was found healthy."""
    phase(host, "install")
    trial = phase(host, "trial")["trial"]
    host.boot()
    assert phase(host, "judge", trial=trial)["reasons"] == []
    return trial


def told(host):
    return host.state(boot_loaders.look(host))[0]


@pytest.mark.parametrize("step", ["stop", "default"])
def test_a_promotion_that_fails_before_it_is_one_is_undone(either, monkeypatch, tmp_path_factory, step):
    trial = on_trial(either)
    loader = type(boot_loaders.find(either))
    run, default = either.run, loader.default
    failed = []

    def fail(what):
        failed.append(what)
        raise Failure(f"cannot {what}")

    def fail_to_stop(argv, purpose, **more):
        if list(argv[:2]) == ["systemctl", "stop"] and not failed:
            fail(purpose)
        return run(argv, purpose, **more)

    def fail_late(self, entry):
        default(self, entry)
        if not failed:
            fail("read it again")

    if step == "stop":
        monkeypatch.setattr(either, "run", fail_to_stop)
    else:
        monkeypatch.setattr(loader, "default", fail_late)
    with pytest.raises(Failure, match="cannot"):
        phase(either, "promote", trial=trial)
    assert failed
    assert told(either) is states.State.ON_TRIAL
    assert either.sim.get("timer") == trial["token"]
    assert either.copy(tmp_path_factory.mktemp("copies") / "copy").boot() == OLD
    assert phase(either, "give_up", trial=trial)["promoted"] is False
    assert either.wait() == OLD


def test_a_promotion_that_cannot_be_undone_is_completed(either, monkeypatch):
    """Whoever gives it up is told so, and nothing restarts."""
    trial = on_trial(either)
    loader = type(boot_loaders.find(either))
    default = loader.default

    def fail(self, entry):
        if self.look().releases.get(entry) == NEW:
            default(self, entry)
        raise Failure("cannot read it again")

    monkeypatch.setattr(loader, "default", fail)
    with pytest.raises(Failure, match=f"cannot read it again; .*{OLD}.* could not be made the default again"):
        phase(either, "promote", trial=trial)
    assert told(either) is states.State.PROMOTED
    answer = phase(either, "give_up", trial=trial)
    assert (answer["promoted"], answer["previous"]) == (True, OLD)
    assert not either.sim.get("pending")
    assert either.left_of_a_trial() == []
    assert either.boot() == NEW


def test_what_cannot_be_removed_after_a_promotion_is_a_warning(either, monkeypatch):
    trial = on_trial(either)
    run = either.run

    def fail(argv, purpose, **more):
        if argv[-1] == "daemon-reload":
            raise Failure("cannot reload systemd")
        return run(argv, purpose, **more)

    monkeypatch.setattr(either, "run", fail)
    result = phase(either, "promote", trial=trial)
    assert result["promoted"]
    (warning,) = result["warnings"]
    assert f"{NEW} is the default, but the rest of its trial could not be removed: cannot" in warning
    monkeypatch.setattr(either, "run", run)
    planned = phase(either, "plan")
    assert planned["steps"] == [f"complete the promotion of {NEW}"]
    phase(either, "install")
    assert either.record() == {"kernels": [NEW], "previous": OLD}
    assert not phase(either, "plan")["changed"]


def test_a_kernel_whose_time_is_over_is_not_promoted(either, monkeypatch):
    trial = on_trial(either)
    run = either.run

    def going(argv, purpose, **more):
        if list(argv) == ["systemctl", "is-active", "mkops-kernel-trial.service"]:
            return Done(tuple(argv), 0, "activating\n", "")
        return run(argv, purpose, **more)

    monkeypatch.setattr(either, "run", going)
    with pytest.raises(Failure, match="the trial has run out of time"):
        phase(either, "promote", trial=trial)
    assert either.boot() == OLD


def test_another_default_before_the_trial_is_armed(machine, monkeypatch):
    """Somebody has changed it since it was set: there would be no way back, so it is set again."""
    phase(machine, "install")
    machine.run(["grub-editenv", "-", "set", "saved_entry=gnulinux-simple-xyz"], "be another tool")
    plan = kernel_boot.kernel_boot.plan
    monkeypatch.setattr(
        kernel_boot.kernel_boot,
        "plan",
        lambda wish, seen: dataclasses.replace(plan(wish, seen), pin="", refusals=()),
    )
    phase(machine, "trial")
    assert [machine.boot(), machine.wait()] == [NEW, OLD]


def test_a_default_that_cannot_be_set_again_is_no_way_back(machine, monkeypatch):
    phase(machine, "install")
    machine.run(["grub-editenv", "-", "set", "saved_entry=gnulinux-simple-xyz"], "be another tool")
    monkeypatch.setattr(Rollout, "_keep_default", lambda *_arguments: None)
    plan = kernel_boot.kernel_boot.plan
    monkeypatch.setattr(
        kernel_boot.kernel_boot,
        "plan",
        lambda wish, seen: dataclasses.replace(plan(wish, seen), pin="", refusals=()),
    )
    with pytest.raises(
        Failure, match=f"by default, not the running kernel {OLD}; the host was not restarted"
    ):
        phase(machine, "trial")
    assert machine.left_of_a_trial() == []
    assert not machine.sim.get("pending")


def test_arming_that_fails_and_cannot_be_undone_says_both(either, monkeypatch):
    phase(either, "install")
    either.fail_on = ("systemd-run", "systemctl")
    monkeypatch.setattr(type(either), "failed_units", lambda _host: ())
    with pytest.raises(
        Failure, match=f"cannot restart the host; the trial of {NEW} could not be taken back either:"
    ):
        phase(either, "trial")
    either.fail_on = ()
    assert either.boot() == OLD
    assert phase(either, "plan")["steps"][0] == f"forget the trial of {NEW} that was left behind"


@pytest.mark.parametrize("note", [None, "", "{", "[]", '{"token": ""}'])
def test_units_without_their_note_are_removed_by_the_next_run(either, note):
    phase(either, "install")
    phase(either, "trial")
    either.boot()
    either.boot()
    if note is None:
        either.at(boot_host.NOTE).unlink()
    else:
        either.file(boot_host.NOTE, note)
    planned = phase(either, "plan")
    assert planned["reasons"] == []
    assert planned["steps"][0] == "remove what is left of a trial whose note is missing or damaged"
    promoted(either)
    assert either.left_of_a_trial() == []


def test_units_without_their_note_while_the_trial_runs(either):
    """They know its token; the kernel that runs is the one that is tried."""
    phase(either, "install")
    phase(either, "trial")
    either.boot()
    either.at(boot_host.NOTE).unlink()
    other = phase(either, "plan", release=OLD, packages=None)
    assert other["reasons"][0].startswith(f"a trial of {NEW} is running")
    assert f"back on {OLD}" in other["reasons"][0]
    planned = phase(either, "plan")
    assert planned["todo"]["resume"]
    phase(either, "promote", trial=planned["todo"]["trial"])
    assert either.left_of_a_trial() == []
    assert either.boot() == NEW


def test_a_note_of_an_earlier_boot_is_no_trial(either):
    phase(either, "install")
    phase(either, "trial")
    either.boot()
    either.boot()
    assert told(either) is states.State.FELL_BACK
    other = phase(either, "plan", release=OLD, packages=None)
    assert other["reasons"] == []
    assert other["steps"] == [f"forget the trial of {NEW} that was left behind"]


@pytest.mark.parametrize("name", ["trial", "install", "promote", "give_up", "report"])
def test_while_the_host_restarts_nobody_changes_it(either, name):
    phase(either, "install")
    trial = phase(either, "trial")["trial"]
    assert f"the host is about to restart, to boot {NEW} once" in phase(either, "plan")["reasons"][0]
    with pytest.raises(Failure, match="the host is about to restart"):
        phase(either, name, trial=trial)
    with pytest.raises(Failure, match="the host is about to restart"), host_lock(Paths(either.root).lock):
        pytest.fail("layout has the lock")


def test_a_kernel_that_is_given_up_is_not_promoted_any_more(either):
    trial = on_trial(either)
    phase(either, "give_up", trial=trial)
    withdraw_restart(either.lock)
    reason = f"{NEW} was found unhealthy, and the host is about to go back to {OLD}"
    assert reason in phase(either, "plan")["reasons"][0]
    with pytest.raises(Failure, match=reason):
        phase(either, "promote", trial=trial)
    assert either.wait() == OLD


def test_a_trial_without_its_service_is_given_up_by_a_restart(either):
    trial = on_trial(either)
    either.at(boot_host.UNIT_FILES[1]).unlink()
    phase(either, "give_up", trial=trial)
    assert either.wait() == OLD


def test_a_trial_that_runs_must_be_the_one_that_is_promoted(either):
    either.add(NEW)
    either.started(NEW, "ro")
    with pytest.raises(Failure, match="no trial of a kernel is known here"):
        phase(either, "promote", trial={"token": "another"})


def test_there_is_nothing_to_try(either):
    promoted(either)
    with pytest.raises(Failure, match=f"there is nothing to try: {NEW} is running already"):
        phase(either, "trial")


def test_half_an_installation_is_taken_back(either, monkeypatch):
    """The package goes, and the kernel leaves the menu."""
    unpack = either._unpack

    def half(name):
        unpack(name)
        either.dpkg[name] = "half-configured 2"
        raise Failure("cannot install it: postinst")

    monkeypatch.setattr(either, "_unpack", half)
    with pytest.raises(Failure, match="postinst"):
        phase(either, "install")
    assert ["dpkg", "--purge", "--force-remove-reinstreq", f"linux-image-{NEW}"] in either.commands
    assert NEW not in boot_loaders.look(either).entries
    assert either.record()["kernels"] == []
    assert either.boot() == OLD


def test_half_a_kernel_leaves_the_menu_even_if_its_package_does_not(either, monkeypatch):
    unpack = either._unpack

    def half(name):
        unpack(name)
        either.dpkg[name] = "half-configured 2"
        raise Failure("cannot install it: postinst")

    def stay(_name):
        raise Failure("cannot remove it: prerm")

    monkeypatch.setattr(either, "_unpack", half)
    monkeypatch.setattr(either, "_purge", stay)
    with pytest.raises(Failure, match=f"postinst; cannot remove it: prerm; linux-image-{NEW} is half-conf"):
        phase(either, "install")
    assert NEW not in boot_loaders.look(either).entries
    assert either.boot() == OLD
    # It is known to be ours: the next run removes it, whatever kernel that asks for.
    monkeypatch.undo()
    planned = phase(either, "plan", release=OLD, packages=None)
    assert planned["steps"] == [f"remove {NEW}"]
    assert phase(either, "install", release=OLD, packages=None)["removed"] == [NEW]
    assert not phase(either, "plan", release=OLD, packages=None)["changed"]


def test_half_a_kernel_is_not_booted(either):
    either.add(NEW)
    either.dpkg[f"linux-image-{NEW}"] = "half-configured 1"
    (reason,) = phase(either, "plan", packages=None)["reasons"]
    assert reason.startswith(f"{NEW} is only half installed; give its packages, or run dpkg --configure")
    assert phase(either, "plan")["steps"][-4] == f"install {NEW}"
    either.dpkg[f"linux-image-{OLD}"] = "half-configured 1"
    (reason,) = phase(either, "plan")["reasons"]
    assert f"the running kernel {OLD}, which is the way back, is only half installed" in reason


def test_a_kernel_that_no_package_has_brought_is_not_overwritten(either):
    either.add(NEW)
    del either.dpkg[f"linux-image-{NEW}"]
    (reason,) = phase(either, "plan")["reasons"]
    assert reason.startswith(
        f"/boot/vmlinuz-{NEW} belongs to no package, so installing over it could not be undone"
    )


def test_somebody_else_changes_packages(either, monkeypatch):
    monkeypatch.setattr(packages, "holder", lambda _access: "/var/lib/dpkg/lock is held by process 7")
    before = either.files()
    assert phase(either, "install")["busy"] == "/var/lib/dpkg/lock is held by process 7"
    assert either.files() == before


def test_somebody_who_comes_in_between(either, monkeypatch):
    run = either.run

    def locked_out(argv, purpose, **more):
        if list(argv[:2]) == ["dpkg", "--install"]:
            text = "dpkg: error: dpkg frontend lock was locked by another process with pid 7"
            raise Failure(f"cannot {purpose}: dpkg ended with status 2: {text}", {"stderr": text})
        return run(argv, purpose, **more)

    monkeypatch.setattr(either, "run", locked_out)
    assert "was held by another process" in phase(either, "install")["busy"]
    assert either.record()["kernels"] == []
    monkeypatch.setattr(either, "run", run)
    promoted(either)


def test_the_running_kernel_is_never_removed(either):
    either.add(NEW)
    gone, left = Rollout(either).prune([OLD, NEW])
    assert gone == [NEW]
    assert left == [f"the old kernel {OLD} was not removed: it runs. The next run tries again"]


def test_an_image_that_cannot_be_placed(either, tmp_path):
    with pytest.raises(Failure, match=f"cannot place /boot/vmlinux-{NEW}: No such file"):
        phase(either, "install", image=str(tmp_path / "none"), image_sha256="1")


def test_an_image_of_the_host_that_is_not_there(either):
    with pytest.raises(Failure, match="image /none cannot be read"):
        phase(either, "plan", image="/none", remote_src=True)


def test_what_failed_kernels_had_to_tell_is_for_root_alone(either):
    either.file(f"{boot_host.STATE}/old", "x")
    either.at(boot_host.STATE).chmod(0o755)
    promoted(either)
    phase(either, "trial", release=OLD, packages=None)
    folder = either.at(boot_host.STATE)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in folder.iterdir()}
    assert {name: modes[name] for name in ("trial.json", "record.json", "evidence.sh")} == dict.fromkeys(
        ("trial.json", "record.json", "evidence.sh"), "0o600"
    )


def test_the_script_keeps_it_for_root_alone(tmp_path):
    script = states.EVIDENCE_SCRIPT.replace("/dev/kmsg", "/dev/null")
    kept = tmp_path / "evidence.log"
    subprocess.run(
        ["sh", "-s", str(kept)], input=script, text=True, check=True, env={"PATH": "/usr/bin:/bin"}, umask=0
    )
    assert oct(stat.S_IMODE(kept.stat().st_mode)) == "0o600"


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "7",
        '{"kernels": 7}',
        pytest.param("[" * 100_000, id="deep"),
        '{"kernels": [{}]}',
        '{"previous": 7}',
    ],
)
def test_a_record_that_is_none_is_named(machine, text):
    machine.file("/var/lib/mkops/kernel-boot/record.json", text)
    with pytest.raises(Failure, match=r"record\.json is damaged; remove it"):
        phase(machine, "plan")


def test_kernels_whose_names_have_other_digits(machine):
    machine.file("/boot/vmlinuz-6.1\N{SUPERSCRIPT TWO}", "")
    machine.file("/boot/vmlinuz-6.\N{ARABIC-INDIC DIGIT FOUR}", "")
    assert phase(machine, "plan")["reasons"] == []


def test_a_watchdog_is_used_if_there_is_one(machine):
    machine.file("/sys/class/watchdog/watchdog0/identity", "iTCO_wdt\n")
    planned = phase(machine, "plan")
    assert not any("watchdog" in warning for warning in planned["warnings"])
    phase(machine, "install")
    phase(machine, "trial")
    machine.boot()
    assert "systemd.watchdog_sec=60" in machine.text("/proc/cmdline").split()


def test_the_journal_of_the_failed_boot(machine, monkeypatch):
    phase(machine, "install")
    trial = phase(machine, "trial")["trial"]
    machine.boot()
    machine.boot()
    run = machine.run

    def journal(argv, purpose, **more):
        if argv[0] == "journalctl":
            return Done(tuple(argv), 0, f"Command line: mkops.trial={trial['token']}\nlast words\n", "")
        return run(argv, purpose, **more)

    monkeypatch.setattr(machine, "run", journal)
    assert phase(machine, "report")["evidence"]["journal"][-1] == "last words"


def test_old_kernels_that_cannot_be_looked_for_are_no_reason_to_go_back(either, monkeypatch):
    trial = on_trial(either)
    look, calls = type(either).look, []

    def fail(self, release):
        calls.append(release)
        if len(calls) > 1:
            raise OSError(5, "Input/output error", "/boot")
        return look(self, release)

    monkeypatch.setattr(type(either), "look", fail)
    result = phase(either, "promote", trial=trial)
    assert result["promoted"]
    assert "old kernels were not looked for" in result["warnings"][0]
