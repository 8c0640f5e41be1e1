# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import pty
import threading
import tty

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.divide import console as _console
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


def test_a_console_that_refuses_an_instance(tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "mktty").symlink_to("/dev/full")
    with pytest.raises(ConsoleError, match="mktty refuses instance id 7: No space left on device"):
        Console(Paths(str(tmp_path)), 7)


@pytest.fixture
def mute(tmp_path):
    """A console whose other end is in the hands of the test, and reads nothing by itself."""
    device, other = pty.openpty()
    tty.setraw(other)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "mktty").symlink_to(os.ttyname(other))
    with Console(Paths(str(tmp_path)), 1) as console:
        yield console, device
    os.close(other)


def test_an_instance_that_takes_no_input(mute):
    console, device = mute
    with pytest.raises(ConsoleError, match=r"accepted no input within 0\.3 s"):
        console.send("x" * 200_000, 0.3)
    os.close(device)


def test_a_console_that_is_hung_up(mute):
    console, device = mute
    os.close(device)
    with pytest.raises(ConsoleError, match="the console cannot be written to: Input/output error"):
        console.send("hello")
    assert console.read(1) == b""


@pytest.mark.parametrize(
    ("error", "said"), [(BlockingIOError(11, "again"), b""), (OSError(5, "broken"), None)]
)
def test_a_console_that_cannot_be_read(mute, monkeypatch, error, said):
    console, device = mute
    os.write(device, b"x")

    def read(_descriptor, _size):
        raise error

    monkeypatch.setattr(_console.os, "read", read)
    if said is None:
        with pytest.raises(ConsoleError, match="the console cannot be read: broken"):
            console.read(1)
    else:
        assert console.read(1) == said
    os.close(device)


def test_only_the_latest_output_of_a_talker_is_kept(monkeypatch):
    class Talker:
        said = iter([b"a" * 60, b"b" * 60, b"login: "])

        def read(self, _timeout):
            return next(self.said, b"")

    monkeypatch.setattr(_console, "_KEPT", 100)
    awaited = _console.Awaited(Talker(), compile_pattern("login"), 5)
    assert [awaited.look(0, True) for _turn in range(3)] == [None, None, "a" * 33 + "b" * 60 + "login: "]


@pytest.mark.parametrize(
    ("text", "count", "lines"),
    [("a\r\nb\r\nc", 2, ["b", "c"]), ("a\nb\n", 5, ["a", "b"]), ("a", 0, []), ("", 3, [])],
)
def test_last_lines(text, count, lines):
    assert last_lines(text, count) == lines


def test_a_console_whose_buffer_is_full_for_a_moment(mute, monkeypatch):
    console, device = mute
    real = os.write
    full = iter([True, True, False])

    def write(descriptor, data):
        if next(full, False):
            raise BlockingIOError(11, "again")
        return real(descriptor, data[:4])

    monkeypatch.setattr(_console.os, "write", write)
    console.send("hello")
    said = b""
    while not said.endswith(b"hello\n"):
        said += os.read(device, 99)
    assert said == b"1\nhello\n"  # it has said which instance it wants
    os.close(device)
