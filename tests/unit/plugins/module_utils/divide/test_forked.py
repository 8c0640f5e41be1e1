# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A tool that is imported once behaves as one that is started for every call."""

from __future__ import annotations

import os
import sys
import time

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.common import command
from ansible_collections.mkops.multikernel.plugins.module_utils.common.lock import locked
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import forked
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.forked import Forked

TOOL = r"""
import os, sys, time
with open(os.environ["IMPORTS"], "a") as file:
    file.write("imported\n")
print("said while it was imported")
state = []

def main():
    state.append(1)
    word = sys.argv[1]
    print(word, len(state), sys.argv[2:], repr(sys.stdin.read()))
    print("complaint", file=sys.stderr)
    if word == "text":
        sys.exit("a reason")
    if word == "crash":
        raise ValueError("no such thing")
    if word == "sleep":
        time.sleep(60)
    if word == "bytes":
        os.write(1, b"\xff")
    if word == "gone":
        os.kill(os.getppid(), 9)
        time.sleep(1)
    if word == "locks":
        os.fstat(int(sys.argv[2]))
    return int(sys.argv[2]) if word == "rc" else None
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    (tmp_path / "tool_of_a_test.py").write_text(TOOL)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("IMPORTS", str(tmp_path / "imports"))
    path = tmp_path / "tool"
    path.write_text(
        f"#!{sys.executable}\nimport sys\nfrom tool_of_a_test import main\nif __name__ == '__main__':\n"
        "    sys.exit(main())\n"
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    "words",
    [("plain", "a b", "é"), ("rc", "0"), ("rc", "3"), ("rc", "256"), ("text",), ("bytes",)],
)
def test_a_call_is_the_same_as_from_a_shell(script, words):
    shell = command.run([script, *words])
    with Forked(script) as tool:
        done = tool.run(words, 30)
    assert (done.argv, done.rc, done.stderr) == (shell.argv, shell.rc, shell.stderr)
    # What it says at its import is no answer to a call.
    assert f"said while it was imported\n{done.stdout}" == shell.stdout


def test_a_traceback_is_told(script):
    with Forked(script) as tool:
        done = tool.run(["crash"], 30)
    assert done.rc == 1
    assert done.stderr.endswith("ValueError: no such thing\n")


def test_it_is_imported_once_and_no_call_knows_of_another(script, tmp_path):
    with Forked(script) as tool:
        said = [tool.run([word], 30).stdout for word in ("one", "two", "three")]
    assert [line.split()[1] for line in said] == ["1", "1", "1"]
    assert (tmp_path / "imports").read_text() == "imported\n"


def test_one_that_takes_too_long_is_stopped_and_the_next_one_runs(script):
    with Forked(script) as tool:
        began = time.monotonic()
        late = tool.run(["sleep"], 0.5)
        assert time.monotonic() - began < 20
        assert late.rc is None
        assert "no answer within 0.5 s" in late.stderr
        assert "complaint" in late.stderr
        assert tool.run(["rc", "4"], 30).rc == 4


def test_one_that_does_not_want_to_end(script, monkeypatch):
    monkeypatch.setattr(forked, "GRACE", 0.3)
    monkeypatch.setattr(forked.os, "kill", lambda *_args: None)
    tool = Forked(script)
    assert tool.run(["sleep"], 0.3).rc is None
    assert not tool.alive


def test_when_it_goes_away(script):
    with Forked(script) as tool, pytest.raises(OSError, match="has ended unexpectedly"):
        tool.run(["gone"], 30)
    with pytest.raises(OSError, match="has ended unexpectedly"):
        tool.run(["plain"], 30)


def test_calls_hold_the_locks_of_this_process(script, tmp_path):
    with locked(tmp_path / "lock", inherit=True) as descriptor, Forked(script) as tool:
        assert tool.run(["locks", str(descriptor)], 30).rc == 0
    with locked(tmp_path / "lock") as descriptor, Forked(script) as tool:
        assert tool.run(["locks", str(descriptor)], 30).rc == 1


@pytest.mark.parametrize(
    "text",
    [
        "#!/bin/sh\nexec true\n",
        "#!/usr/bin/env python3\nfrom tool_of_a_test import main\n",
        "#!/usr/bin/python3\nimport nothing\n",
        "#!/usr/bin/python3\nfrom no_such_module import main\n",
        "#!/nowhere/python3\nfrom tool_of_a_test import main\n",
        "",
    ],
)
def test_what_is_no_entry_point_is_left_to_the_shell(tmp_path, text):
    (tmp_path / "tool").write_text(text)
    with pytest.raises(OSError, match=r"not an entry point|cannot be imported|No such file"):
        Forked(tmp_path / "tool")


def test_nothing_is_left_running(script):
    with Forked(script) as tool:
        pid = tool._process.pid
        assert tool.alive
    assert not tool.alive
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
