# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import pty
import threading
import tty

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.divide.console import (
    Console,
    ConsoleError,
    last_lines,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import Paths
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.wish import compile_pattern


@pytest.fixture
def make_mktty(tmp_path):
    """A /dev/mktty that answers each line that is written to it."""
    ends = []

    def make(**answers):
        device, other = pty.openpty()
        tty.setraw(other)
        ends.extend((device, other))
        path = tmp_path / "dev" / "mktty"
        path.parent.mkdir()
        path.symlink_to(os.ttyname(other))
        seen = []

        def serve():
            line = b""
            while True:
                try:
                    line += os.read(device, 1)
                except OSError:
                    return
                if line.endswith(b"\n"):
                    word = line.decode().strip()
                    seen.append(word)
                    os.write(device, answers.get(f"to_{word}", "").encode())
                    line = b""

        threading.Thread(target=serve, daemon=True).start()
        return Paths(str(tmp_path)), seen

    yield make
    for end in ends:
        os.close(end)


def test_history_then_fresh_output(make_mktty):
    paths, seen = make_mktty(to_7="old line\r\nready\r\n", to_hello="hello\r\nworld 42\r\n")
    with Console(paths, 7) as console:
        assert console.history() == "old line\r\nready\r\n"
        console.send("hello")
        assert console.expect(compile_pattern(r"^world (\d+)$"), 5) == "hello\nworld 42\n"
    assert seen == ["7", "hello"]


def test_silence(make_mktty):
    paths, _seen = make_mktty(to_1="only this")
    with Console(paths, 1) as console, pytest.raises(ConsoleError, match="did not appear") as error:
        console.expect(compile_pattern("more"), 0.5)
    assert error.value.output == "only this"


def test_the_last_words_of_an_instance_that_stops_are_taken(make_mktty):
    paths, _seen = make_mktty(to_1="Kernel panic\n")
    with Console(paths, 1) as console, pytest.raises(ConsoleError, match="stopped before 'login'") as error:
        console.expect(compile_pattern("login"), 30, alive=lambda: False)
    assert error.value.output == "Kernel panic\n"


def test_no_console(tmp_path):
    with pytest.raises(ConsoleError, match=r"cannot be opened .No such file or directory.: .* CONFIG_MKTTY"):
        Console(Paths(str(tmp_path)), 1)


@pytest.mark.parametrize(
    ("text", "count", "lines"),
    [("a\r\nb\r\nc", 2, ["b", "c"]), ("a\nb\n", 5, ["a", "b"]), ("a", 0, []), ("", 3, [])],
)
def test_last_lines(text, count, lines):
    assert last_lines(text, count) == lines
