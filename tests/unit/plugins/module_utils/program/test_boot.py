# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the units do at boot, and what they are."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest
import yaml

from ansible_collections.mkops.multikernel.plugins.module_utils.common import lock as _lock
from ansible_collections.mkops.multikernel.plugins.module_utils.common.command import Done
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import units as _units
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.handover import hand_over
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import KernelFs, Paths
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.wish import name_reasons
from ansible_collections.mkops.multikernel.plugins.module_utils.program import boot, change, main

ROLE = Path(__file__).resolve().parents[5] / "roles/host"
UNITS = ROLE / "files/units"


@pytest.fixture
def started(monkeypatch):
    """The units that systemd was asked to start."""
    calls = []
    monkeypatch.setattr(boot, "must", lambda argv, _purpose, **_manner: calls.append(argv))
    monkeypatch.setattr(boot, "run", lambda argv, **_manner: Done((), 1, "inactive\n" * (len(argv) - 2)))
    return calls


def test_a_boot(host, mkops, declare, layout, started):
    layout["instances"]["red"] = {"cpu_count": 1}  # which may not take the CPU that blue names
    layout["instances"]["blue"]["cpus"] = 2
    layout["instances"]["gone"] = {"state": "absent"}
    declare()
    reserved = mkops("boot", "reserve")
    assert (reserved.rc, reserved.err) == (0, "")
    assert [call[0] for call in host.changes] == ["init", "create", "create"]
    assert {name: (one.cpus, one.status) for name, one in host.instances.items()} == {
        "red": ([6], "ready"),
        "blue": ([4], "ready"),
    }
    begun = mkops("boot", "start")
    assert (begun.rc, host.instances["blue"].status) == (0, "loaded")
    assert started == [["systemctl", "start", "--no-block", "mkops@red.service"]]
    assert [mkops("boot", "reserve").rc, mkops("boot", "adopt").rc] == [0, 0]
    assert len(started) == 1  # red does not run yet
    mkops("apply")
    assert mkops("boot", "adopt").rc == 0
    assert started[1:] == [["systemctl", "start", "--no-block", "mkops@red.service"]]


def test_a_boot_by_a_live_update(host, mkops, declare, layout, started):
    """What runs is the last kernel's: it is not made what is declared, and what is noted of it goes on."""
    declare()
    mkops("apply")
    mkops("apply", declare({**layout, "instances": {"blue": {"cpus": 3, "state": "started"}}}))
    declare()
    host.write("/sys/fs/multikernel/live_update", "state loaded\ngeneration 0\nadopted 0\nlost 0\n")
    # red has got more than is declared, and blue runs although it is declared as loaded
    host.kerf_update("red", [], memory=str(256 << 20))
    host.sync()
    kernel = KernelFs(Paths(str(host.root)))
    noted = kernel.notes.read("red")
    assert noted["record"]
    for name in ("red", "blue"):
        hand_over(kernel, name)
    shutil.rmtree(host.root / "run/mkops")
    host.write("/proc/sys/kernel/random/boot_id", "22222222-2222-3333-4444-555555555555\n")
    host.write("/sys/fs/multikernel/live_update", "state off\ngeneration 1\nadopted 2\nlost 0\n")
    before = host.snapshot()
    calls = len(host.changes)
    said = mkops("boot", "reserve")
    assert (said.rc, said.err) == (0, "")
    assert "red: it was taken over from the last kernel\n" in said.out
    assert mkops("boot", "start").rc == 0
    assert (host.snapshot(), host.changes[calls:]) == (before, [])
    assert started == [["systemctl", "start", "--no-block", "mkops@red.service"]]
    taken = kernel.notes.read("red")
    assert {key: taken[key] for key in noted if key != "boot_id"} == {
        key: noted[key] for key in noted if key != "boot_id"
    }
    # Its image is proved as before: nothing would be loaded again.
    assert kernel.read().instances["red"].kernel["path"] == layout["defaults"]["kernel"]


def test_one_that_was_given_up_is_watched_again_once_it_runs(
    host, mkops, declare, layout, started, monkeypatch
):
    layout["instances"]["blue"]["state"] = "started"
    declare()
    mkops("apply")
    monkeypatch.setattr(boot, "run", lambda _argv, **_manner: Done((), 0, "inactive\nfailed\n"))
    assert mkops("boot", "adopt").rc == 0
    assert started == [
        ["systemctl", "reset-failed", "mkops@blue.service"],
        ["systemctl", "start", "--no-block", "mkops@red.service", "mkops@blue.service"],
    ]


def test_what_was_edited_by_hand_is_told_systemd(host, mkops, declare, layout, started):
    """By tasks, at boot, when the file changes, and by mkops apply: all of them say the same."""
    settings = host.root / "etc/systemd/system/mkops@red.service.d/50-mkops.conf"
    layout["instances"]["red"]["watchdog"] = 9
    for number, words in enumerate([("boot", "reserve"), ("boot", "adopt"), ("apply",)]):
        layout["instances"]["red"]["watchdog"] += 1
        declare()
        assert mkops("apply", "--check").out.count("would set what systemd does with mkops@red") == 1
        assert not settings.exists() or f"WatchdogSec={9 + number}\n" in settings.read_text()
        said = mkops(*words)
        assert (said.rc, said.err) == (0, "")
        assert "set what systemd does with mkops@red.service: " in said.out
        assert f"WatchdogSec={10 + number}\n" in settings.read_text()
        assert "set what" not in mkops(*words).out
    assert "nothing to do" in mkops("apply").out
    del layout["instances"]["red"]["watchdog"]
    declare()
    assert "remove what systemd does with mkops@red.service: " in mkops("apply").out
    assert not settings.parent.exists()


def test_what_a_person_starts_is_watched(host, mkops, declare, monkeypatch):
    calls = []
    monkeypatch.setattr(_units, "run", lambda argv, **_manner: calls.append(argv) or Done((), 0))
    monkeypatch.setattr(_units, "must", lambda *_args, **_manner: None)
    declare()
    (host.root / "run/systemd/system").mkdir(parents=True)
    for words in (["--check"], [], []):
        assert mkops("apply", *words).rc == 0
    assert calls == [["systemctl", "start", "--no-block", "mkops-adopt.service"]]


@pytest.mark.parametrize("stage", boot.STAGES)
def test_nothing_is_declared(host, mkops, started, stage):
    said = mkops("boot", stage)
    assert (said.rc, said.out.startswith("nothing is declared in ")) == (0, True)
    assert (started, host.changes) == ([], [])


@pytest.mark.parametrize("stage", boot.STAGES)
def test_nonsense_is_told_with_all_reasons(host, mkops, declare, layout, started, stage):
    layout["instances"] = {"a": {"cpus": "x"}, "b": {"id": 9999}}
    declare()
    said = mkops("boot", stage)
    assert said.rc == 3
    assert "instance a: cpus" in said.err
    assert "instance b: id" in said.err
    assert (started, host.changes) == ([], [])


def test_an_image_that_is_gone_keeps_no_other_one_from_running(host, mkops, declare, layout, started):
    layout["instances"]["blue"]["kernel"] = "/gone"
    declare()
    assert mkops("boot", "reserve").rc == 0
    said = mkops("boot", "start")
    assert (said.rc, "/gone" in said.err) == (3, True)
    assert started == [["systemctl", "start", "--no-block", "mkops@red.service"]]


@pytest.mark.parametrize("words", [("boot", "reserve"), ("boot", "start"), ("apply",), ("run", "red")])
def test_what_somebody_else_declares_meanwhile_counts(
    host, mkops, declare, layout, started, monkeypatch, words
):
    """A task holds the lock, and gives it back with another layout than there was before."""
    declare({"pool": layout["pool"]})
    assert mkops("apply").rc == 0
    declare()
    waits = threading.Event()
    locked = _lock.locked

    def wait(*args, **how):
        waits.set()
        return locked(*args, **how)

    monkeypatch.setattr(KernelFs, "await_status", lambda *_how: host.instances.pop("red", 0) and host.sync())
    said = []
    with _lock.host_lock(host.root / "run/mkops/host.lock"):
        monkeypatch.setattr(_lock, "locked", wait)
        thread = threading.Thread(target=lambda: said.append(mkops(*words)))
        # What it says of signals is for the first thread alone.
        monkeypatch.setattr(signal, "signal", lambda *_how: None)
        thread.start()
        assert waits.wait(60)
        layout["instances"]["red"]["memory"] = "256M"
        layout["instances"]["blue"] = {"state": "absent"}
        declare()
    thread.join(60)
    assert [(one.rc, one.err) for one in said] == [(0, "")]
    created = {call[1]: call for call in host.changes if call[0] == "create"}
    assert created.keys() <= {"red"}
    assert ("red" in created) == (words[-1] != "start")
    assert all(f"--memory={256 << 20}" in call for call in created.values())


@pytest.mark.parametrize("how", ["stopped", "loaded", "absent"])
def test_a_start_that_somebody_withdraws_meanwhile(host, mkops, declare, layout, started, monkeypatch, how):
    """The boot has asked for it, and a task has got the lock first."""
    declare()
    assert mkops("apply").rc == 0
    host.instances["red"].status, host.instances["red"].exit_reason = "loaded", "clean: power off"
    host.sync()
    waits = threading.Event()
    real = change.converge

    def wait(*args, **how):
        waits.set()
        return real(*args, **how)

    monkeypatch.setattr(change, "converge", wait)
    monkeypatch.setattr(signal, "signal", lambda *_how: None)
    if how == "stopped":
        layout["instances"]["red"]["state"] = "stopped"
    elif how == "absent":
        del layout["instances"]["red"]
    else:
        layout["instances"]["red"]["state"] = how
    changes = [*host.changes]
    said = []
    with _lock.host_lock(host.root / "run/mkops/host.lock"):
        thread = threading.Thread(target=lambda: said.append(mkops("run", "--service", "red")))
        thread.start()
        assert waits.wait(60)
        declare()
        if how == "stopped":
            KernelFs(Paths(str(host.root))).notes.change("red", rest=1)
    thread.join(60)
    assert [(one.rc, one.err) for one in said] == [(5, "")]
    assert "red: " in said[0].out
    assert "meanwhile, so it is not started" in said[0].out
    assert (host.changes, host.instances["red"].status) == (changes, "loaded")
    # Nobody has withdrawn what somebody asks for after that.
    monkeypatch.setattr(KernelFs, "await_status", lambda *_how: host.instances.pop("red", 0) and host.sync())
    assert "red: start" in mkops("run", "--service", "red").out


def test_what_a_newer_program_has_declared(host, mkops, declare, layout, started):
    """The collection was replaced by an older one: nothing is guessed, and what runs goes on."""
    declare()
    assert mkops("apply").rc == 0
    changes = [*host.changes]
    layout["instances"]["red"]["colour"] = "crimson"
    declare()
    for words in (("boot", "reserve"), ("boot", "start"), ("boot", "adopt"), ("apply",)):
        said = mkops(*words)
        assert (said.rc, "colour" in said.err) == (3, True), words
    assert (started, host.changes, host.instances["red"].status) == ([], changes, "active")
    said = mkops("status")
    assert (said.rc, "colour" in said.out + said.err) == (0, True)
    assert mkops("stop", "red").rc == 0
    assert host.instances["red"].status == "loaded"


# run --service


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    """What a service tells systemd."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield channel


@pytest.mark.parametrize("restarts", [False, True])
def test_a_service_is_ready_and_ends_with_its_instance(host, mkops, declare, systemd, restarts):
    declare()
    mkops("apply")
    timer = threading.Timer(1.5, signal.raise_signal, [signal.SIGTERM])
    timer.start()
    if restarts:
        _lock.announce_restart(host.root / "run/mkops/host.lock")
        _lock.withdraw_restart(host.root / "run/mkops/host.lock")
        threading.Timer(1, _lock.announce_restart, [host.root / "run/mkops/host.lock"]).start()
    said = mkops("run", "--service", "red")
    assert (said.rc, said.out.splitlines()[-1]) == (0, "red: stopped")
    assert host.instances["red"].exit_reason == "clean: power off"
    assert systemd.recv(1000).decode() == "READY=1\nSTATUS=red is running"
    stopping = systemd.recv(1000).decode()
    assert stopping.startswith("STOPPING=1\nEXTEND_TIMEOUT_USEC=")
    assert int(stopping.rpartition("=")[2]) > (7 + 300) * 10**6


def test_one_that_does_not_become_ready_is_no_service(host, mkops, declare, layout, systemd, monkeypatch):
    monkeypatch.setattr(
        "ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs.KernelFs.heartbeat_age",
        lambda _kernel, _name: None,
    )
    layout["instances"]["red"].update(wait="heartbeat", timeout=1)
    declare()
    mkops("boot", "reserve")
    said = mkops("run", "--service", "red")
    assert said.rc == 1
    systemd.setblocking(False)
    with pytest.raises(BlockingIOError):
        systemd.recv(1000)


def test_stop_does_not_depend_on_what_is_declared(host, mkops, declare):
    declare()
    mkops("apply")
    declare("{")
    said = mkops("stop", "red")
    assert (said.rc, host.instances["red"].status) == (0, "loaded")
    assert said.err.startswith("warning:\n  ")


# The units


def test_the_role_installs_every_unit():
    listed = yaml.safe_load((ROLE / "vars/main.yml").read_text())
    assert sorted(path.name for path in UNITS.iterdir()) == listed["host_units"]
    for path in UNITS.iterdir():
        enabled = path.name in listed["host_units_enabled"]
        assert enabled == ("[Install]" in path.read_text()) or "@" in path.name


def test_the_units_call_commands_that_there_are():
    calls = re.findall(
        r"^Exec\w+=/usr/local/sbin/mkops (.*)$", "\n".join(map(Path.read_text, UNITS.iterdir())), re.M
    )
    assert len(calls) == 6
    for call in calls:
        main.parser("1").parse_args(call.replace("%i", "red").split())


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd")
def test_the_units_are_well_formed(tmp_path):
    for path in [*UNITS.iterdir(), ROLE / "files/sys-fs-multikernel.mount"]:
        text = path.read_text().replace("/usr/local/sbin/mkops", "/bin/true")
        (tmp_path / path.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *tmp_path.iterdir()],
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["a", "a-b", "A.b_c-9", "x" * 63])
def test_a_name_needs_no_escaping(name):
    assert name_reasons(name) == []
    assert re.fullmatch(r"[A-Za-z0-9:_.\\@-]{1,255}", boot.unit_of(name))
