# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Start, stop and trial of lab hosts, with a QEMU that only waits."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[3] / "roles/lab/files/lab_vm.py"
SPEC = importlib.util.spec_from_file_location("lab_vm", PROGRAM)

# Keeps its arguments visible in /proc, as a QEMU in the background does. What it says on the console, and
# whether it ends by itself, comes from the environment.
FAKE_QEMU = """#!/bin/sh
[ -z "$FAKE_DIES" ] || { echo "$FAKE_DIES" >&2; exit 1; }
if [ -z "$FAKE_IN_BACKGROUND" ]; then
    for argument; do
        case $argument in
        file:*) echo "$FAKE_CONSOLE" >"${argument#file:}" ;;
        */qemu.pid) pidfile=$argument ;;
        -daemonize) daemonize=yes ;;
        esac
    done
    if [ -n "$daemonize" ]; then
        FAKE_IN_BACKGROUND=yes "$0" "$@" >/dev/null 2>&1 &
        echo $! >"$pidfile"
        exit 0
    fi
fi
while :; do sleep 0.05; done
"""
FAKE_QEMU_IMG = '#!/bin/sh\nfor last; do :; done\necho disk >"$last"\n'


@pytest.fixture
def lab_vm(tmp_path, monkeypatch):
    module = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(module)
    monkeypatch.setattr(module, "TRIAL_SECONDS", 1)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"qemu-system-x86_64": FAKE_QEMU, "qemu-img": FAKE_QEMU_IMG}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return module


@pytest.fixture
def spec(tmp_path, lab_vm):
    yield {
        "directory": str(tmp_path / "lab" / "one"),
        "image": "/images/base.raw",
        "cpus": 4,
        "memory_mib": 512,
        "accelerator": "tcg",
        "internet": False,
        "uefi": {},
        "disks": [],
        "qemu_arguments": [],
    }
    lab_vm.stop(tmp_path / "lab" / "one", delete=True)


def arguments(pid):
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def runs(pid):
    """A process that ended, but was not yet waited for, has no arguments."""
    return Path(f"/proc/{pid}").exists() and arguments(pid) != [""]


def test_start_is_idempotent(lab_vm, spec):
    first = lab_vm.start(spec)
    assert first["changed"]
    assert lab_vm.start(spec) == {**first, "changed": False}


def test_start_command_line(lab_vm, spec):
    argv = arguments(lab_vm.start(spec)["pid"])
    port = json.loads(Path(spec["directory"], "host.json").read_text())["port"]
    assert argv[argv.index("-cpu") + 1] == "max,-cx16,-erms,-fsrm"
    assert argv[argv.index("-smp") + 1] == "4"
    assert f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22" in argv
    assert "-no-reboot" not in argv


def test_variables_and_more_disks_are_the_hosts_own(lab_vm, spec, tmp_path):
    template = tmp_path / "VARS"
    template.write_text("new")
    directory = Path(spec["directory"])
    spec = {**spec, "uefi": {"code": "/CODE", "variables": str(template)}, "disks": ["1M"]}
    argv = arguments(lab_vm.start(spec)["pid"])
    assert "file=/CODE,if=pflash,unit=0,format=raw,readonly=on" in argv
    assert f"file={directory}/variables.fd,if=pflash,unit=1,format=raw,readonly=off" in argv
    assert f"file={directory}/disk-1.raw,if=virtio,format=raw,cache=unsafe" in argv
    assert (directory / "disk-1.raw").stat().st_size == 1 << 20
    (directory / "variables.fd").write_text("used")
    lab_vm.stop(directory)
    lab_vm.start(spec)
    assert (directory / "variables.fd").read_text() == "used"
    lab_vm.stop(directory, delete=True)
    assert {path.name for path in directory.iterdir()} == {"console.log", "console.log.1"}


def test_start_makes_a_changed_host_anew(lab_vm, spec):
    first = lab_vm.start(spec)
    disk = Path(spec["directory"], "disk.qcow2")
    disk.write_text("used")
    second = lab_vm.start({**spec, "image": "/images/other.raw"})
    assert second["changed"]
    assert disk.read_text() == "disk\n"
    assert not runs(first["pid"])


def test_start_again_keeps_disk_port_and_old_console(lab_vm, spec):
    first = lab_vm.start(spec)
    directory = Path(spec["directory"])
    (directory / "disk.qcow2").write_text("used")
    (directory / "console.log").write_text("first boot")
    lab_vm.stop(directory)
    second = lab_vm.start(spec)
    assert second["changed"]
    assert second["port"] == first["port"]
    assert (directory / "disk.qcow2").read_text() == "used"
    assert (directory / "console.log.1").read_text() == "first boot"


def test_start_takes_another_port_when_its_own_is_taken(lab_vm, spec):
    port = lab_vm.start(spec)["port"]
    lab_vm.stop(Path(spec["directory"]))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        assert lab_vm.start(spec)["port"] != port


def test_start_tells_why_qemu_ended(lab_vm, spec, monkeypatch):
    monkeypatch.setenv("FAKE_DIES", "no such machine")
    with pytest.raises(lab_vm.LabError, match=r"qemu-system-x86_64 failed \(rc 1\): no such machine"):
        lab_vm.start(spec)


def test_stop_leaves_nothing_but_console_logs(lab_vm, spec):
    pid = lab_vm.start(spec)["pid"]
    directory = Path(spec["directory"])
    assert lab_vm.stop(directory, delete=True) == {"changed": True}
    assert not runs(pid)
    assert [path.name for path in directory.iterdir()] == ["console.log"]
    assert lab_vm.stop(directory, delete=True) == {"changed": False}


def test_stop_spares_a_process_that_only_has_the_pid(lab_vm, spec):
    directory = Path(spec["directory"])
    directory.mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (directory / "qemu.pid").write_text(str(stranger.pid))
        lab_vm.stop(directory)
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.parametrize(
    "environment, accelerator, reason",
    [
        ({"FAKE_CONSOLE": "lab-ready"}, "kvm", "a guest was up with KVM in 0 s"),
        ({"FAKE_CONSOLE": "Linux version"}, "tcg", "a guest was not up with KVM in 1 s"),
        ({"FAKE_DIES": "MSR"}, "tcg", "QEMU with KVM ended by itself (rc 1): MSR"),
    ],
)
def test_trial(lab_vm, tmp_path, monkeypatch, environment, accelerator, reason):
    monkeypatch.setattr(lab_vm.os, "access", lambda path, mode: True)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = lab_vm.trial("/images/base.raw", tmp_path)
    assert (result["accelerator"], result["reason"]) == (accelerator, reason)


def test_trial_without_the_device_starts_nothing(lab_vm, tmp_path, monkeypatch):
    monkeypatch.setattr(lab_vm.os, "access", lambda path, mode: False)
    monkeypatch.setattr(lab_vm, "try_kvm", lambda image: pytest.fail("it was tried"))
    assert lab_vm.trial("/images/base.raw", tmp_path)["accelerator"] == "tcg"


def test_trial_holds_for_one_boot_of_this_machine(lab_vm, tmp_path, monkeypatch):
    tried = []
    verdict = {"accelerator": "tcg", "reason": "because"}
    monkeypatch.setattr(lab_vm.os, "access", lambda path, mode: True)
    monkeypatch.setattr(lab_vm, "try_kvm", lambda image: tried.append(image) or verdict)
    lab_vm.trial("/images/base.raw", tmp_path)
    lab_vm.trial("/images/base.raw", tmp_path)
    assert len(tried) == 1
    known = json.loads((tmp_path / "accelerator.json").read_text())
    (tmp_path / "accelerator.json").write_text(
        json.dumps({**known, "key": ["another boot", known["key"][1]]})
    )
    lab_vm.trial("/images/base.raw", tmp_path)
    assert len(tried) == 2
