# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from unittest import mock

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.common.command import Done, run
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure
from ansible_collections.mkops.multikernel.plugins.module_utils.common.lock import host_lock
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import kerf as _kerf
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kerf import (
    Attempt,
    Kerf,
    wait_until,
    words_of,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import KernelFs, Paths
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.options import INSTANCE
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.steps import Step
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.wish import Image, InstanceWish


class Script:
    """Answers calls in order and remembers them."""

    def __init__(self, *answers):
        self.answer = mock.Mock(side_effect=itertools.chain(answers, itertools.repeat(Done((), 0))))
        self.calls = []

    def __call__(self, argv, timeout, inherit, kill):
        assert (inherit, kill) == (True, False)
        self.calls.append((argv, timeout))
        return self.answer()


@pytest.fixture
def paths(tmp_path):
    return Paths(str(tmp_path))


@pytest.fixture
def make_kerf(paths, monkeypatch):
    def make(*answers):
        script = Script(*answers)
        monkeypatch.setattr(_kerf, "run", script)
        kerf = Kerf("/k/kerf", KernelFs(paths))
        kerf.asked = script.calls
        return kerf

    return make


KERNEL, INITRD = Image("/k", 1, "k1"), Image("/i", 1, "i1")


def step(action, cpus=(), memory=0, name="web", **other):
    return Step(action, name, cpus=frozenset(cpus), memory=memory, **other)


def pool(cpus, memory, devices=()):
    return step("set_pool", cpus, name="", nodes=memory, devices=devices)


@pytest.mark.parametrize(
    ("what", "wish", "words"),
    [
        # Always all three: what is left out of init goes back to the host.
        (pool([6, 4], {0: 4096, 1: 8192}), None, "init --cpus=4,6 --memory=4096@0,8192@1 --devices=none"),
        (pool([4], {0: 4096}, ("0:5", "0:6")), None, "init --cpus=4 --memory=4096@0 --devices=0:5,0:6"),
        (pool([], {}), None, "init --cpus=none --memory=none --devices=none"),
        (step("create", [4, 6], 4096), None, "create web --cpus=4,6 --memory=4096"),
        (step("create", [4], 4096), {"id": 7}, "create web --cpus=4 --memory=4096 --id=7"),
        (step("create", [4], 4096, node=1), {}, "create web --cpus=4 --memory=4096 --numa-nodes=1"),
        # One resource per call: should it fail half-way, the other is as it was.
        (step("set_cpus", [4, 6], 4096), {}, "update web --cpus=4,6"),
        (step("set_memory", [4, 6], 4096), {}, "update web --memory=4096"),
        (step("load"), {"kernel": KERNEL}, "load web --kernel=/k"),
        (
            step("load"),
            {"kernel": KERNEL, "initrd": INITRD, "cmdline": "quiet"},
            "load web --kernel=/k --initrd=/i --cmdline=quiet",
        ),
        (step("start"), {}, "start web"),
        (step("kill"), {}, "kill web"),
        (step("unload"), {}, "unload web"),
        (step("delete"), None, "delete web"),
    ],
)
def test_words(what, wish, words):
    assert words_of(what, None if wish is None else InstanceWish("web", **wish)) == tuple(words.split(" "))


def test_words_of_force():
    assert words_of(step("kill"), force=True) == ("kill", "web", "--force")
    assert words_of(step("delete"), force=True) == ("delete", "web")


def test_a_command_line_stays_one_argument(make_kerf):
    wish = InstanceWish("web", kernel=KERNEL, cmdline='a="b c" $(reboot)')
    words = words_of(step("load"), wish)
    assert words[-1] == '--cmdline=a="b c" $(reboot)'
    kerf = make_kerf()
    kerf.call(words)
    assert kerf.asked == [(["/k/kerf", *words], 120)]
    assert kerf.line(words) == """/k/kerf load web --kernel=/k '--cmdline=a="b c" $(reboot)'"""


def test_time_outs_are_longer_than_the_kernels(make_kerf):
    kerf = make_kerf()
    kerf.call(("start", "web"))
    kerf.call(("kill", "web"), 45)
    assert [timeout for _argv, timeout in kerf.asked] == [120, 45]
    assert INSTANCE.spec()["stop_timeout"]["default"] > 30


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (Done((), 0, "kerf, version 0.4.0\n"), None),
        (Done((), 0, "kerf, version 0.4.7\n"), None),
        (
            Done((), 0, "kerf, version 0.3.0\n"),
            "kerf 0.3.0 at /k/kerf cannot be used (only 0.4 is supported, and it starts",
        ),
        (
            Done((), 0, "kerf, version 0.5.0\n"),
            "kerf 0.5.0 at /k/kerf cannot be used (only 0.4 is supported, and it passes",
        ),
        (Done((), 0, "kerf, version 1.0.0\n"), "only 0.4 is supported"),
        (Done((), 0, ""), "failed"),
        (Done((), 1, "", "No module named click"), "No module named click"),
        (FileNotFoundError(2, "No such file or directory"), "No such file or directory"),
    ],
)
def test_version(make_kerf, answer, word):
    reasons = make_kerf(answer).reasons()
    assert len(reasons) == (word is not None)
    assert all(word in reason and "role mkops.multikernel.host" in reason for reason in reasons)


def test_the_version_is_taken_from_the_notes_of_its_environment(make_kerf, tmp_path):
    tool = tmp_path / "bin" / "kerf"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    kerf = make_kerf(Done((), 0, "kerf, version 0.4.0\n"))
    kerf.path = str(tool)
    packages = tmp_path / "lib/python3.13/site-packages"
    (packages / "kerf_multikernel-0.5.0.dist-info").mkdir(parents=True)
    assert "kerf 0.5.0 at" in kerf.reasons()[0]
    assert kerf.asked == []
    # Of two notes, one is wrong.
    (packages / "kerf_multikernel-0.4.0.dist-info").mkdir()
    assert kerf.reasons() == []
    assert len(kerf.asked) == 1


def test_what_a_killed_run_has_started_keeps_the_host_locked(paths, tmp_path):
    """The lock goes with the kerf that is called while it is held."""
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from ansible_collections.mkops.multikernel.plugins.module_utils.common.command import run\n"
        "from ansible_collections.mkops.multikernel.plugins.module_utils.common.lock import host_lock\n"
        "with host_lock(Path(sys.argv[1])):\n"
        "    run(['sh', '-c', sys.argv[2]], 30, inherit=True, kill=False)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    ended = tmp_path / "ended"
    killed = subprocess.run(
        [sys.executable, "-c", code, str(paths.lock), f"(sleep 1; touch {ended}) >/dev/null 2>&1 &"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert killed.returncode == -9
    assert not ended.exists()
    with host_lock(paths.lock, 10):
        assert ended.exists()


BUSY = Done((), 1, "", "Error: Could not acquire lock after 10 attempts. ...")


def test_a_stale_lock_is_removed(make_kerf, paths):
    lock = paths.kerf_locks[0]
    lock.parent.mkdir(parents=True)
    lock.touch()
    kerf = make_kerf(BUSY, Done((), 0))
    assert kerf.call(("delete", "web")).rc == 0
    assert not lock.exists()
    assert len(kerf.asked) == 2


@pytest.mark.parametrize(
    "cmdline", [b"kerf\0create\0", b"/usr/bin/python3\0/opt/mkops/kerf/bin/kerf\0create\0"]
)
def test_the_lock_of_a_running_kerf_stays(make_kerf, paths, cmdline):
    lock = paths.kerf_locks[0]
    lock.parent.mkdir(parents=True)
    lock.touch()
    process = paths.at("/proc/77/cmdline")
    process.parent.mkdir(parents=True)
    process.write_bytes(cmdline)
    kerf = make_kerf(BUSY)
    assert kerf.call(("delete", "web")).rc == 1
    assert lock.exists()
    assert len(kerf.asked) == 1


def test_no_second_try_for_other_errors(make_kerf, paths):
    lock = paths.kerf_locks[0]
    lock.parent.mkdir(parents=True)
    lock.touch()
    kerf = make_kerf(Done((), 1, "", "Error: Instance 'web' does not exist"))
    assert kerf.call(("delete", "web")).rc == 1
    assert lock.exists()


def test_kerf_is_found_in_the_path(monkeypatch, tmp_path, paths):
    tool = tmp_path / "bin" / "kerf"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent))
    monkeypatch.setattr(_kerf, "DEFAULT_KERF", str(tmp_path / "not there"))
    assert Kerf.find(str(tmp_path / "not there"), KernelFs(paths)).path == str(tool)
    assert Kerf.find("/elsewhere/kerf", KernelFs(paths)).path == "/elsewhere/kerf"
    monkeypatch.setattr(_kerf, "DEFAULT_KERF", str(tool))
    assert Kerf.find(str(tool), KernelFs(paths)).path == str(tool)


def test_run_argv():
    code = (
        "import os, sys\n"
        "print(os.environ['LC_ALL'], sys.stdin.read() == '')\n"
        "print('✓', file=sys.stderr)\n"
        "sys.exit(3)\n"
    )
    done = run([sys.executable, "-c", code], 30)
    assert (done.rc, done.stdout, done.stderr) == (3, "C.UTF-8 True\n", "✓\n")
    assert done.cmd.startswith(sys.executable)


def test_run_argv_gives_up_gently():
    began = time.monotonic()
    done = run(["sleep", "60"], 0.2, kill=False)
    assert done.rc is None
    assert "no answer within 0.2 s" in done.stderr
    assert time.monotonic() - began < 4


def test_host_lock_excludes_other_processes(paths):
    code = (
        "import fcntl, sys\n"
        "handle = open(sys.argv[1], 'w')\n"
        "fcntl.flock(handle, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    paths.lock.parent.mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(paths.lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Failure, match="held by another run"), host_lock(paths.lock, 0.3):
            pytest.fail("two runs at once")
        holder.stdin.close()
        holder.wait()
    with host_lock(paths.lock, 0.3):
        pass


def test_a_failure_tells_all_that_is_known(host):
    kernel = KernelFs(Paths(str(host.root)))
    host.log("long before")
    host.write("/sys/fs/multikernel/overlays/tx_2/status", "failed\n")
    with Attempt(kernel) as attempt:
        host.write("/sys/fs/multikernel/overlays/tx_3/status", "failed\n")
        host.log("multikernel: not enough memory")
        error = attempt.failure("no effect", Done(("kerf", "create"), 1, "out", "Error: tx 3\nhint"))
    assert str(error) == "no effect; kerf: Error: tx 3; kernel: multikernel: not enough memory"
    assert error.details == {
        "cmd": ["kerf", "create"],
        "rc": 1,
        "stdout": "out",
        "stderr": "Error: tx 3\nhint",
        "transactions": {"tx_3": "failed"},
        "kernel_log": ["multikernel: not enough memory"],
    }


@pytest.mark.parametrize(
    ("before", "after", "reason", "lines"),
    [
        # What the kernel says of reading it is no reason, however much there is of it.
        (
            [(3, "Failed to apply overlay transaction 5: -12")],
            [(6, "Generated instance DTB for 'a' (ID 1): 301 bytes")] * 40,
            "Failed to apply overlay transaction 5: -12",
            1,
        ),
        # Nor is what went wrong when it was read.
        ([(4, "CPU 3 is not parked")], [(3, "Failed to generate DTB")], "CPU 3 is not parked", 2),
        ([], [(3, "late")], "late", 1),
        # Warnings and worse, whoever says them; and mere information of known content.
        (
            [(6, "Instance 1 (a) halted, CPUs parking in pool")],
            [],
            "Instance 1 (a) halted, CPUs parking in pool",
            1,
        ),
        ([(6, "Multikernel pool: removed 65536 MiB")], [], "Multikernel pool: removed 65536 MiB", 1),
        ([(8 * 3 + 4, "a daemon's warning")], [], "a daemon's warning", 1),
        ([(8 * 3 + 6, "a daemon's chat"), (5, "a notice"), (7, "debugging")], [], None, 0),
        ([(6, "pool: added CPU 2")], [], None, 0),
    ],
)
def test_the_reason_is_what_the_kernel_said_at_once(host, before, after, reason, lines):
    with Attempt(KernelFs(Paths(str(host.root)))) as attempt:
        for level, text in before:
            host.log(text, level)
        attempt.listen()
        for level, text in after:
            host.log(text, level)
        error = attempt.failure("no effect", Done(("x",), 1))
    assert str(error) == ("no effect" if reason is None else f"no effect; kernel: {reason}")
    assert len(error.details["kernel_log"]) == lines


def test_what_follows_a_line_is_not_one(host):
    with Attempt(KernelFs(Paths(str(host.root)))) as attempt:
        host.log("multikernel: not enough memory\n SUBSYSTEM=a;b\nodd;line")
        assert attempt.details(None)["kernel_log"] == ["multikernel: not enough memory"]


def test_a_traceback_ends_with_the_error(host):
    with Attempt(KernelFs(Paths(str(host.root)))) as attempt:
        error = attempt.failure(
            "no effect", Done(("x",), 1, "", "Traceback (most recent):\n  File x\nOops: why\n")
        )
    assert str(error) == "no effect; kerf: Oops: why"


def test_a_kernel_log_is_not_needed(host):
    os.unlink(host.root / "dev/kmsg")
    with Attempt(KernelFs(Paths(str(host.root)))) as attempt:
        assert attempt.failure("no effect", Done(("x",), 1)).details["kernel_log"] == []


def test_wait_until():
    answers = iter([False, False, True])
    assert wait_until(lambda: next(answers), 5, 0)
    assert not wait_until(lambda: False, 0.05, 0.01)


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """A kerf as pip installs it, which tells each import and each call."""
    (tmp_path / "kerf_of_a_test.py").write_text(
        "import os, sys\n"
        "def note(text):\n"
        "    with open(os.environ['NOTES'], 'a') as file:\n"
        "        print(text, file=file)\n"
        "note('imported')\n"
        "def main():\n"
        "    note(' '.join(sys.argv[1:]))\n"
        "    if 'gone' in sys.argv:\n"
        "        os.kill(os.getppid(), 9)\n"
        "    return 3 if 'bad' in sys.argv else 0\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    script = tmp_path / "kerf"
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom kerf_of_a_test import main\nsys.exit(main())\n")
    script.chmod(0o755)
    return script


def test_kerf_is_imported_once_for_all_steps(paths, tool, tmp_path):
    kerf = Kerf(str(tool), KernelFs(paths))
    with kerf.imported():
        assert [kerf.call((word,)).rc for word in ("one", "bad", "two")] == [0, 3, 0]
    assert (tmp_path / "notes").read_text().split() == ["imported", "one", "bad", "two"]
    assert kerf.commands == [f"{tool} one", f"{tool} bad", f"{tool} two"]
    assert kerf.call(("after",)).rc == 0
    assert (tmp_path / "notes").read_text().split()[4:] == ["imported", "after"]


def test_a_kerf_of_another_kind_is_run_as_it_is(paths, tmp_path):
    script = tmp_path / "kerf"
    script.write_text("#!/bin/sh\necho said $1\n")
    script.chmod(0o755)
    kerf = Kerf(str(script), KernelFs(paths))
    with kerf.imported():
        assert kerf.call(("one",)).stdout == "said one\n"


def test_a_call_whose_answer_is_lost_is_not_made_again(paths, tool, tmp_path):
    kerf = Kerf(str(tool), KernelFs(paths))
    with kerf.imported():
        lost = kerf.call(("gone",))
        assert (lost.rc, "has ended unexpectedly" in lost.stderr) == (None, True)
        assert kerf.call(("next",)).rc == 0
    assert (tmp_path / "notes").read_text().split() == ["imported", "gone", "imported", "next"]


def test_messages_that_were_overwritten_are_no_end(host, monkeypatch):
    real, overwritten = os.read, iter([True])

    def read(descriptor, size):
        if next(overwritten, False):
            raise BrokenPipeError(32, "Broken pipe")
        return real(descriptor, size)

    with Attempt(KernelFs(Paths(str(host.root)))) as attempt:
        host.log("multikernel: not enough memory")
        monkeypatch.setattr(_kerf.os, "read", read)
        assert attempt.details(None)["kernel_log"] == ["multikernel: not enough memory"]


def test_a_log_that_cannot_be_read_is_none(host, monkeypatch):
    def read(_descriptor, _size):
        raise OSError(5, "Input/output error")

    with Attempt(KernelFs(Paths(str(host.root)))) as attempt:
        host.log("multikernel: not enough memory")
        monkeypatch.setattr(_kerf.os, "read", read)
        assert attempt.details(None)["kernel_log"] == []
        assert str(attempt.failure("no effect", Done(("x",), 1))) == "no effect"
