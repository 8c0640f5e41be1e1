# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils import _kerf
from ansible_collections.mkops.multikernel.plugins.module_utils._kerf import (
    Attempt,
    Kerf,
    KerfError,
    Outcome,
    host_lock,
    run_argv,
    wait_until,
)
from ansible_collections.mkops.multikernel.plugins.module_utils._kernelfs import KernelFs, Paths


class Script:
    """Answers calls in order and remembers them."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.calls = []

    def __call__(self, argv, timeout):
        self.calls.append((argv, timeout))
        answer = self.outcomes.pop(0) if self.outcomes else Outcome("", 0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def paths(tmp_path):
    return Paths(str(tmp_path))


@pytest.fixture
def make_kerf(paths):
    return lambda *outcomes: Kerf("/k/kerf", KernelFs(paths), Script(*outcomes))


@pytest.mark.parametrize(
    ("method", "arguments", "argv"),
    [
        ("init", [[4, 6], {0: 4096, 1: 8192}, []], "init --cpus=4,6 --memory=4096@0,8192@1 --devices=none"),
        ("init", [[4], {0: 4096, 1: 0}, ["0:5", "0:6"]], "init --cpus=4 --memory=4096@0 --devices=0:5,0:6"),
        ("init", [[], {}, []], "init --cpus=none --memory=none --devices=none"),
        ("create", ["web", [4, 6], 4096], "create web --cpus=4,6 --memory=4096"),
        ("create", ["web", [4], 4096, 7], "create web --cpus=4 --memory=4096 --id=7"),
        ("load", ["web", "/k", None, ""], "load web --kernel=/k"),
        ("load", ["web", "/k", "/i", "quiet"], "load web --kernel=/k --initrd=/i --cmdline=quiet"),
        ("start", ["web"], "start web"),
        ("kill", ["web", False], "kill web"),
        ("kill", ["web", True], "kill web --force"),
        ("unload", ["web"], "unload web"),
        ("delete", ["web"], "delete web"),
    ],
)
def test_calls(make_kerf, method, arguments, argv):
    kerf = make_kerf(Outcome("as run", 0))
    assert getattr(kerf, method)(*arguments).rc == 0
    assert [call for call, _timeout in kerf.run.calls] == [["/k/kerf", *argv.split(" ")]]
    assert kerf.commands == ["as run"]


def test_a_command_line_stays_one_argument(make_kerf):
    kerf = make_kerf()
    kerf.load("web", "/k", None, 'a="b c" $(reboot)')
    assert kerf.run.calls[0][0][-1] == '--cmdline=a="b c" $(reboot)'


def test_time_outs_are_longer_than_the_kernels(make_kerf):
    kerf = make_kerf()
    kerf.kill("web", False)
    kerf.kill("web", False, 45)
    kerf.start("web")
    assert [timeout for _argv, timeout in kerf.run.calls] == [60, 45, 120]


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (Outcome("", 0, "kerf, version 0.4.0\n"), None),
        (Outcome("", 0, "kerf, version 0.4.7\n"), None),
        (Outcome("", 0, "kerf, version 0.3.0\n"), "kerf 0.3.0 at /k/kerf is not supported"),
        (Outcome("", 0, "kerf, version 0.5.0\n"), "kerf 0.5.0 at /k/kerf is not supported"),
        (Outcome("", 0, ""), "failed"),
        (Outcome("", 1, "", "No module named click"), "No module named click"),
        (FileNotFoundError(2, "No such file or directory"), "No such file or directory"),
    ],
)
def test_version(make_kerf, answer, word):
    reasons = make_kerf(answer).reasons()
    assert len(reasons) == (word is not None)
    assert all(word in reason and "role mkops.multikernel.host" in reason for reason in reasons)


BUSY = Outcome("", 1, "", "Error: Could not acquire lock after 10 attempts. ...")


def test_a_stale_lock_is_removed(make_kerf, paths):
    lock = paths.kerf_locks[0]
    lock.parent.mkdir(parents=True)
    lock.touch()
    kerf = make_kerf(BUSY, Outcome("", 0))
    assert kerf.delete("web").rc == 0
    assert not lock.exists()
    assert len(kerf.run.calls) == 2


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
    assert kerf.delete("web").rc == 1
    assert lock.exists()
    assert len(kerf.run.calls) == 1


def test_no_second_try_for_other_errors(make_kerf, paths):
    lock = paths.kerf_locks[0]
    lock.parent.mkdir(parents=True)
    lock.touch()
    kerf = make_kerf(Outcome("", 1, "", "Error: Instance 'web' does not exist"))
    assert kerf.delete("web").rc == 1
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
    outcome = run_argv([sys.executable, "-c", code], 30)
    assert (outcome.rc, outcome.stdout, outcome.stderr) == (3, "C.UTF-8 True\n", "✓\n")
    assert outcome.cmd.startswith(sys.executable)


def test_run_argv_gives_up_gently():
    began = time.monotonic()
    outcome = run_argv(["sleep", "60"], 0.2)
    assert outcome.rc is None
    assert "no answer within 0.2 s" in outcome.stderr
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
        with pytest.raises(KerfError, match="held by another run"), host_lock(paths, 0.3):
            pytest.fail("two runs at once")
        holder.stdin.close()
        holder.wait()
    with host_lock(paths, 0.3):
        pass


def test_a_failure_tells_all_that_is_known(host):
    kernel = KernelFs(Paths(str(host.root)))
    host.log("long before")
    host.write("/sys/fs/multikernel/overlays/tx_2/status", "failed\n")
    with Attempt(kernel) as attempt:
        host.write("/sys/fs/multikernel/overlays/tx_3/status", "failed\n")
        host.log("multikernel: not enough memory")
        error = attempt.failure("no effect", Outcome("kerf create", 1, "out", "Error: tx 3\nhint"))
    assert str(error) == "no effect; kerf: Error: tx 3; kernel: multikernel: not enough memory"
    assert error.details == {
        "cmd": "kerf create",
        "rc": 1,
        "stdout": "out",
        "stderr": "Error: tx 3\nhint",
        "transactions": {"tx_3": "failed"},
        "kernel_log": ["multikernel: not enough memory"],
    }


def test_a_traceback_ends_with_the_error(host):
    with Attempt(KernelFs(Paths(str(host.root)))) as attempt:
        error = attempt.failure(
            "no effect", Outcome("x", 1, "", "Traceback (most recent):\n  File x\nOops: why\n")
        )
    assert str(error) == "no effect; kerf: Oops: why"


def test_a_kernel_log_is_not_needed(host):
    os.unlink(host.root / "dev/kmsg")
    with Attempt(KernelFs(Paths(str(host.root)))) as attempt:
        assert attempt.failure("no effect", Outcome("x", 1)).details["kernel_log"] == []


def test_wait_until():
    answers = iter([False, False, True])
    assert wait_until(lambda: next(answers), 5, 0)
    assert not wait_until(lambda: False, 0.05, 0.01)
