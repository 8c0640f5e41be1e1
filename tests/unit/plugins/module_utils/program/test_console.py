# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import pty
import sys
import termios

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.program import console
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import MIB, POOL_BASE, FakeInstance


class FakeConsole:
    """What is read from it was written to a pipe; what is typed is kept."""

    typed = b""
    said = (b"",)

    def __init__(self, _paths, _instance_id):
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        self._left = list(self.said)
        type(self).typed = b""

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        os.close(self._read)
        os.close(self._write)

    def fileno(self):
        if self._left:
            os.write(self._write, self._left.pop(0))
        return self._read

    def read(self, _timeout):
        try:
            return os.read(self._read, 65536)
        except BlockingIOError:
            return b""

    def write(self, data):
        type(self).typed += data

    def history(self):
        return b"".join(self.said).decode("utf-8", "replace")


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(console, "Console", FakeConsole)
    monkeypatch.setattr(console, "_LOOK", 0.05)
    FakeConsole.said = (b"one\r\n\x1b[2J", b"\xe2\x82", b"\xac\xff\x9b \xe2\x80\xaetwo\r\n")
    return FakeConsole


@pytest.fixture
def host(make_host):
    return make_host(
        pool_cpus=[4, 6],
        chunks=[(POOL_BASE, 512 * MIB, 0)],
        instances={
            "red": FakeInstance(1, [4], POOL_BASE, 128 * MIB, "loaded", exit_reason="panic: oh"),
            "new": FakeInstance(2, [6], POOL_BASE + 128 * MIB, 128 * MIB, "ready"),
        },
    )


HARMLESS = "one\n^[[2J€\\xff\\x9b \\u202etwo\n"


@pytest.mark.parametrize("words", [[], ["--read-only"]])
def test_what_is_said_is_harmless_until_it_ends(mkops, device, words):
    said = mkops("console", "red", *words)
    assert (said.rc, said.out) == (0, HARMLESS)
    assert said.err == "instance red is loaded (panic: oh)\n"


def test_raw(mkops, device, monkeypatch):
    shown = []
    monkeypatch.setattr(console, "_write", shown.append)
    assert mkops("console", "red", "--raw").rc == 0
    assert b"".join(shown) == b"".join(device.said)


def test_what_was_retained_alone(mkops, device):
    said = mkops("console", "red", "--no-follow")
    assert said.out.startswith("one\n^[[2J€")
    assert "\x1b" not in said.out


@pytest.mark.parametrize(
    ("name", "word"),
    [("green", "there is no instance green"), ("new", "is ready, and has printed nothing")],
)
def test_refused(mkops, device, name, word):
    said = mkops("console", name)
    assert (said.rc, word in said.err) == (3, True)


def test_keys_go_to_the_instance_until_the_one_to_leave(device):
    main, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    shown = []
    os.set_blocking(main, True)
    with console._keys(terminal), FakeConsole(None, 1) as one:
        os.write(main, b"ls\r\x03\x1dmore")
        console.converse(one, terminal, shown.append, lambda: True)
    assert FakeConsole.typed == b"ls\r\x03"
    assert b"".join(shown) == b"".join(device.said)
    assert termios.tcgetattr(terminal) == before
    os.close(main)
    os.close(terminal)


def test_a_pipe_is_not_typed(mkops, device, monkeypatch):
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115
    assert mkops("console", "red").rc == 0
    assert FakeConsole.typed == b""
