# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is kept of a crash, for how long, and what keeps nothing from going on."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.common.command import Done
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import evidence
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.console import ConsoleError
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import KernelFs, Paths
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.wish import Service
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import MIB, POOL_BASE, FakeInstance

PLAIN = Service()
WHOLE = Service(crash_memory=True)


class Console:
    """What it said last."""

    said = "one\r\n\x1b[2JKernel panic - not syncing: oh\r\n"

    def __init__(self, _paths, instance_id):
        if self.said is None:
            raise ConsoleError("there is no /dev/mktty")
        assert instance_id == 1

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        pass

    def history(self):
        return self.said


@pytest.fixture
def host(make_host, monkeypatch):
    host = make_host(
        pool_cpus=[4, 6],
        chunks=[(POOL_BASE, 512 * MIB, 0)],
        instances={
            "red": FakeInstance(
                1, [4], POOL_BASE, 128 * MIB, "loaded", "quiet", exit_reason="panic: oh", epoch=3
            ),
        },
    )
    monkeypatch.setattr(evidence, "Console", Console)
    monkeypatch.setattr(evidence.shutil, "which", lambda _name: None)
    return host


@pytest.fixture
def kernel(host):
    return KernelFs(Paths(str(host.root)))


@pytest.fixture
def core(host):
    """The file that a kernel may have."""

    def core(data):
        host.write("/sys/fs/multikernel/instances/red/vmcore", data)

    return core


@pytest.fixture
def directory(host):
    return host.root / "var/lib/mkops/crashes/red"


@pytest.fixture
def clock(monkeypatch):
    """A second passes at each look."""
    seconds = iter(range(1_800_000_000, 1_900_000_000))
    gmtime = time.gmtime
    monkeypatch.setattr(evidence.time, "gmtime", lambda: gmtime(next(seconds)))


def again(host, epoch):
    host.instances["red"].epoch = epoch
    host.sync()


def test_all_that_there_is(host, kernel, directory, monkeypatch):
    for text, level in [
        ("multikernel: Multikernel instance 1 is now active", 6),
        ("of a run before", 3),
        ("multikernel: Multikernel instance 1 is now active", 6),
        ("multikernel: Multikernel instance 12 is now active", 6),
        ("something else", 6),
        ("a disk is about to die\x1b", 3),
        ("multikernel: Instance 1 (red) halted, CPUs parking in pool (panic: oh)", 6),
    ]:
        host.log(text, level)
    monkeypatch.setenv("SERVICE_RESULT", "exit-code")
    told = evidence.keep(kernel, "red", "panic: oh", PLAIN, {"instances": [{"name": "red"}]})
    (made,) = directory.iterdir()
    assert told == [f"evidence of it is in {made}"]
    assert evidence._NAME.fullmatch(made.name)
    assert made.name.endswith("-3")
    assert (made / "console").read_text() == "one\n^[[2JKernel panic - not syncing: oh\n"
    assert [line.partition("] ")[2] for line in (made / "kernel.log").read_text().splitlines()] == [
        "multikernel: Multikernel instance 1 is now active",
        "a disk is about to die^[",
        "multikernel: Instance 1 (red) halted, CPUs parking in pool (panic: oh)",
    ]
    assert "spawn_epoch 3\n" in (made / "stats").read_text()
    meta = json.loads((made / "meta.json").read_text())
    assert meta.pop("time").startswith("20")
    assert meta == {
        "name": "red",
        "id": 1,
        "epoch": 3,
        "reason": "panic: oh",
        "exit_reason": "panic: oh",
        "boot_id": kernel.boot_id,
        "host_kernel": "6.12.107-mkops",
        "kernel": {},
        "initrd": {},
        "cmdline": "quiet",
        "layout": {"instances": [{"name": "red"}]},
        "unit": {"SERVICE_RESULT": "exit-code"},
        "memory": None,
    }
    assert {oct(path.stat().st_mode & 0o777) for path in (directory, made)} == {"0o700"}
    assert {oct(path.stat().st_mode & 0o777) for path in made.iterdir()} == {"0o600"}
    # Once.
    assert evidence.keep(kernel, "red", "panic: oh", PLAIN, {}) == []
    assert [one["path"] for one in evidence.crash_facts(kernel.paths, "red")] == [str(made)]
    assert evidence.crash_facts(kernel.paths, "blue") == []


@pytest.mark.parametrize(
    ("status", "reason", "crash"),
    [
        ("loaded", "panic: oh", True),
        ("loaded", "lost", True),
        ("loaded", "clean: power off", False),
        ("loaded", "forced", False),
        ("loaded", "none", False),
        ("active", "panic: oh", False),
    ],
)
def test_what_is_a_crash(host, kernel, status, reason, crash):
    host.instances["red"].status, host.instances["red"].exit_reason = status, reason
    host.sync()
    assert evidence.crashed(kernel, "red") == (reason if crash else None)


def test_one_that_is_gone_has_none(kernel):
    assert evidence.crashed(kernel, "blue") is None
    assert evidence.keep(kernel, "blue", "panic", PLAIN, {}) == []


def test_without_a_console(kernel, directory, monkeypatch):
    monkeypatch.setattr(Console, "said", None)
    evidence.keep(kernel, "red", "x", PLAIN, {})
    (made,) = directory.iterdir()
    assert (made / "console").read_text() == "[there is no /dev/mktty]\n"


# Memory


def test_memory_is_kept_with_holes(kernel, directory, core):
    data = bytes(3 << 20) + b"x" * 5000 + bytes(2 << 20)
    core(data)
    assert len(evidence.keep(kernel, "red", "x", WHOLE, {})) == 1
    (made,) = directory.iterdir()
    assert (made / "vmcore").read_bytes() == data
    assert (made / "vmcore").stat().st_mode & 0o777 == 0o600
    memory = json.loads((made / "meta.json").read_text())["memory"]
    assert memory == {"kept": True, "size": len(data), "format": "elf"}


def test_a_kernel_that_does_not_give_it(kernel, directory):
    told = evidence.keep(kernel, "red", "x", WHOLE, {})
    assert told[1] == "its memory is not kept: the host's kernel does not give it"
    (made,) = directory.iterdir()
    memory = json.loads((made / "meta.json").read_text())["memory"]
    assert memory == {"kept": False, "reason": told[1]}


@pytest.mark.parametrize(("rc", "format_"), [(0, "kdump"), (1, "elf")])
def test_makedumpfile_where_it_is(kernel, directory, core, monkeypatch, rc, format_):
    core(b"x" * 5000)

    def run(argv, timeout):
        assert (argv[:4], timeout) == (["/usr/bin/makedumpfile", "-c", "-d", "31"], evidence._DUMP_TIME)
        Path(argv[-1]).write_bytes(b"small")
        return Done(tuple(argv), rc)

    monkeypatch.setattr(evidence.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(evidence, "run", run)
    evidence.keep(kernel, "red", "x", WHOLE, {})
    (made,) = directory.iterdir()
    assert json.loads((made / "meta.json").read_text())["memory"]["format"] == format_
    assert (made / "vmcore").read_bytes() == (b"small" if rc == 0 else b"x" * 5000)


def test_memory_that_is_too_large(kernel, directory, core):
    core(b"x" * (3 << 20))
    told = evidence.keep(kernel, "red", "x", Service(crash_memory=True, crash_size=2 << 20), {})
    reason = "its memory is not kept: it is more than 2 MiB, which is what may be used for it"
    assert told[1] == reason
    (made,) = directory.iterdir()
    assert sorted(path.name for path in made.iterdir()) == ["console", "kernel.log", "meta.json", "stats"]
    assert json.loads((made / "meta.json").read_text())["memory"] == {"kept": False, "reason": reason}


def test_older_evidence_makes_room(host, kernel, directory, core, monkeypatch, clock):
    core(b"x" * (1 << 20))
    for epoch in (1, 2, 3):
        again(host, epoch)
        evidence.keep(kernel, "red", "x", WHOLE, {})
    monkeypatch.setattr(
        evidence, "_free", lambda _path: (3 - len(evidence._kept(directory))) << 20
    )  # only without all of the others
    again(host, 4)
    assert len(evidence.keep(kernel, "red", "x", WHOLE, {})) == 1
    assert [path.name[-2:] for path in evidence._kept(directory)] == ["-2", "-3", "-4"]


# How much, and for how long


def test_so_many_are_kept(host, kernel, directory, clock):
    for epoch in range(1, 7):
        again(host, epoch)
        told = evidence.keep(kernel, "red", "x", Service(crash_keep=3), {})
    assert [path.name[-2:] for path in evidence._kept(directory)] == ["-4", "-5", "-6"]
    assert told[1].endswith("-3 is removed")


def test_so_many_bytes_are_kept(host, kernel, directory, core, clock):
    core(b"x" * (1 << 20))
    service = Service(crash_memory=True, crash_size=(5 << 20) // 2)
    for epoch in range(1, 5):
        again(host, epoch)
        evidence.keep(kernel, "red", "x", service, {})
    assert [path.name[-2:] for path in evidence._kept(directory)] == ["-3", "-4"]
    again(host, 5)
    evidence.keep(kernel, "red", "x", Service(crash_size=1), {})
    assert [path.name[-2:] for path in evidence._kept(directory)] == ["-5"]  # the newest in any case


def test_what_somebody_else_keeps_there_stays(kernel, directory):
    directory.mkdir(parents=True)
    (directory / "notes").write_text("mine")
    (directory / ".interrupted").mkdir()
    (directory / ".interrupted/console").touch()
    evidence.keep(kernel, "red", "x", Service(crash_keep=1), {})
    assert len(list(directory.iterdir())) == 2
    assert (directory / "notes").read_text() == "mine"


# What is in the way


def test_a_disk_that_is_full(kernel, directory, monkeypatch):
    def full(path, *_args, **_how):
        if path.name == "stats":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, *_args, **_how)

    write = evidence.write_file
    monkeypatch.setattr(evidence, "write_file", full)
    assert evidence.keep(kernel, "red", "x", PLAIN, {}) == [
        f"no evidence of it could be kept in {directory} (No space left on device)"
    ]
    assert list(directory.iterdir()) == []


def test_a_disk_that_is_full_of_its_memory_only(kernel, directory, core, monkeypatch):
    core(b"x" * (1 << 20))

    def full(_source, target, _limit):
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(evidence, "_copy", full)
    told = evidence.keep(kernel, "red", "x", WHOLE, {})
    assert told[1] == "its memory is not kept: No space left on device"
    (made,) = directory.iterdir()
    assert not (made / "vmcore").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_a_real_disk_that_is_full(host, kernel, directory, core, monkeypatch):
    """A tmpfs of 1 MiB, in a namespace of its own."""
    directory.parent.mkdir(parents=True)
    core(os.urandom(3 << 20))
    monkeypatch.setattr(evidence, "SPARE", 0)
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException):
            code = 2
            assert ctypes.CDLL(None).unshare(0x20000) == 0  # CLONE_NEWNS
            subprocess.run(["mount", "--make-rprivate", "/"], check=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", directory.parent], check=True)
            code = 3
            told = evidence.keep(kernel, "red", "x", WHOLE, {})
            found = {path.name for path in next(directory.iterdir()).iterdir()}
            code = 0 if "not kept" in told[1] and "meta.json" in found and "vmcore" not in found else 4
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 2:
        pytest.skip("no namespaces here")
    assert code == 0


def test_a_file_in_place_of_the_directory(kernel, directory):
    directory.parent.mkdir(parents=True)
    directory.touch()
    (told,) = evidence.keep(kernel, "red", "x", PLAIN, {})
    assert told.startswith(f"no evidence of it could be kept in {directory}")
    assert evidence._kept(directory) == []


def test_what_is_gone_meanwhile_has_no_size(tmp_path, monkeypatch):
    def gone(_path, _pattern):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "rglob", gone)
    assert evidence._size(tmp_path) == 0


def test_evidence_that_is_damaged_is_not_told(kernel, directory, clock):
    evidence.keep(kernel, "red", "x", PLAIN, {})
    (made,) = directory.iterdir()
    (made / "meta.json").write_text("{")
    assert evidence.crash_facts(kernel.paths, "red") == []
    shutil.rmtree(made)
