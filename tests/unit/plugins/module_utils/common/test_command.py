# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.common import command
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure


def test_what_a_program_says():
    done = command.run(["sh", "-c", "echo $LC_ALL; cat; echo bad >&2; exit 3"])
    assert (done.rc, done.stdout, done.stderr) == (3, "C.UTF-8\n", "bad\n")
    assert done.cmd == "sh -c 'echo $LC_ALL; cat; echo bad >&2; exit 3'"
    assert done.details()["rc"] == 3


def test_input_environment_and_place(tmp_path):
    done = command.run(["/bin/sh", "-c", "cat; pwd; env"], cwd=tmp_path, env={"A": "b"}, stdin="in\n")
    lines = done.stdout.splitlines()
    assert lines[:2] == ["in", str(tmp_path)]
    assert "A=b" in lines
    assert not any(line.startswith("HOME=") for line in lines)


def test_bytes_that_are_no_text():
    assert command.run(["printf", r"\377"]).stdout == "\ufffd"


def test_one_that_takes_too_long_is_stopped(monkeypatch):
    monkeypatch.setattr(command, "GRACE", 0.3)  # what it started lives on, and keeps its output open
    began = time.monotonic()
    done = command.run(["sh", "-c", "echo begun; sleep 20"], timeout=0.3)
    assert done.rc is None
    assert "no answer within 0.3 s" in done.stderr
    assert time.monotonic() - began < 15


def test_one_that_does_not_want_to_end(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "GRACE", 0.3)
    pid_file = tmp_path / "pid"
    stubborn = ["sh", "-c", f"trap '' TERM; echo $$ >{pid_file}; while :; do sleep 0.1; done"]
    assert command.run(stubborn, timeout=1).rc is None
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    assert command.run(stubborn, timeout=1, kill=False).rc is None
    os.kill(int(pid_file.read_text()), signal.SIGKILL)  # it was left running, as it should


def test_an_interrupted_run_leaves_no_program(monkeypatch, tmp_path):
    def interrupt(_self, *_args, **_kwargs):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(command.subprocess.Popen, "communicate", interrupt)
    script = f"trap 'touch {tmp_path}/ended; exit' TERM; touch {tmp_path}/begun; while :; do sleep 0.1; done"
    with pytest.raises(KeyboardInterrupt):
        command.run(["sh", "-c", script])
    assert (tmp_path / "ended").exists() or not (tmp_path / "begun").exists()


@pytest.mark.parametrize("inherit", [True, False])
def test_who_inherits_locks(tmp_path, inherit):
    with (tmp_path / "lock").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        done = command.run(["readlink", f"/proc/self/fd/{file.fileno()}"], inherit=inherit)
    assert (done.rc == 0) is inherit


def test_must():
    assert command.must(["echo", "yes"], "say so").stdout == "yes\n"
    assert command.must(["false"], "fail", ok=(0, 1)).rc == 1
    with pytest.raises(
        Failure, match=r"^cannot count: sh ended with status 2: two \| three \| four$"
    ) as caught:
        command.must(["sh", "-c", "echo one; printf 'one\ntwo\nthree\nfour\n' >&2; exit 2"], "count")
    assert caught.value.details["rc"] == 2
    with pytest.raises(Failure, match=r"ended with status 1: out$"):
        command.must(["sh", "-c", "echo out; exit 1"], "x")
    with pytest.raises(Failure, match=r"ended with status 1: OUT$"):
        command.must(["sh", "-c", "echo out; exit 1"], "x", causes=lambda text: [text.strip().upper()])


def test_one_that_is_not_there_or_cannot_be_run(tmp_path):
    with pytest.raises(Failure, match="cannot look: nosuchtool is not installed on this host; install it"):
        command.must(["nosuchtool"], "look")
    (tmp_path / "tool").touch()
    with pytest.raises(Failure, match="cannot be run: Permission denied"):
        command.must([tmp_path / "tool"], "look")
    with pytest.raises(Failure, match="cannot wait: sleep did not finish within 0 s"):
        command.must(["sleep", "9"], "wait", timeout=0.1)


def test_this_python_is_found():
    assert command.run([sys.executable, "-c", "print(1)"]).stdout == "1\n"
