# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What of a console comes into the journal: once, harmless, and not too much of it."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.mkops.multikernel.plugins.module_utils.divide.console import ConsoleError
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import Paths
from ansible_collections.mkops.multikernel.plugins.module_utils.program import record
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import MIB, POOL_BASE, FakeInstance


class Ring:
    """A console as the kernel keeps it: the last 64 KiB, for readers with positions of their own."""

    _said = b""  # ever; None: it was removed
    opened = 0
    readers: ClassVar[set] = set()

    def __init__(self, _paths, instance_id):
        if instance_id != 1 or Ring._said is None:
            raise ConsoleError("there is no such console")
        self._at = 0
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[0], False)
        Ring.opened += 1
        Ring.readers.add(self._pipe[1])
        os.write(self._pipe[1], b"x")

    @classmethod
    def say(cls, data):
        """None: it is removed."""
        cls._said = None if data is None else (cls._said or b"") + data
        for reader in [*cls.readers]:
            os.write(reader, b"x")

    def fileno(self):
        return self._pipe[0]

    def read(self, _timeout):
        with contextlib.suppress(BlockingIOError):
            os.read(self._pipe[0], 4096)
        if Ring._said is None:
            raise ConsoleError("it was removed")
        self._at = max(self._at, len(Ring._said) - record.RING)
        data = Ring._said[self._at : self._at + 4096]
        self._at += len(data)
        return data

    def __exit__(self, *_error):
        Ring.readers.discard(self._pipe[1])
        for end in self._pipe:
            os.close(end)


class Sink:
    """A journal's socket."""

    def __init__(self, path):
        self._path = path
        self.open()

    def open(self):
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._channel.bind(self._path)
        self._channel.setblocking(False)

    def close(self, remove=False):
        self._channel.close()
        os.unlink(self._path)
        if not remove:
            Path(self._path).touch()  # nobody answers there

    @property
    def messages(self):
        found = []
        while True:
            try:
                data = self._channel.recv(1 << 20)
            except BlockingIOError:
                return found
            fields = dict(line.split(b"=", 1) for line in data.removesuffix(b"\n").split(b"\n"))
            assert (fields[b"PRIORITY"], fields[b"SYSLOG_IDENTIFIER"]) == (b"6", b"red")
            found.append(fields[b"MESSAGE"].decode())

    def until(self, count):
        """So many messages, or all that come in some time."""
        found = []
        end = time.monotonic() + 20
        while len(found) < count and time.monotonic() < end:
            found += self.messages
            time.sleep(0.01)
        return found


@pytest.fixture
def sink(monkeypatch):
    with tempfile.TemporaryDirectory() as directory:  # a short path, as sockets need it
        at = Paths.at
        address = f"{directory}/socket"
        monkeypatch.setattr(
            Paths, "at", lambda self, path: Path(address) if path == record.JOURNAL else at(self, path)
        )
        sink = Sink(address)
        yield sink
        sink._channel.close()


@pytest.fixture
def ring(monkeypatch):
    Ring._said, Ring.opened = b"", 0
    monkeypatch.setattr(record, "Console", Ring)
    monkeypatch.setattr(record, "_PAUSE", 0.05)
    monkeypatch.setattr(record, "_INCOMPLETE", 0.2)
    monkeypatch.setattr(record, "_PATIENCE", 5)
    return Ring


@pytest.fixture
def host(make_host):
    host = make_host(
        pool_cpus=[4],
        chunks=[(POOL_BASE, 512 * MIB, 0)],
        instances={"red": FakeInstance(1, [4], POOL_BASE, 128 * MIB, "active")},
    )
    (host.root / "dev/mktty").touch()
    return host


@pytest.fixture
def paths(host):
    return Paths(str(host.root))


def test_all_of_it_from_the_first_byte(paths, sink, ring):
    ring.say(b"first\r\n\x1b[2Jsec")
    with record.Recorder(paths, "red"):
        assert sink.until(1) == ["first"]
        ring.say(b"ond \xe2\x82")
        ring.say(b"\xac\xff\n\nspawn# ")
        assert sink.until(3) == ["^[[2Jsecond €\\xff", "", "spawn# "]  # which is no whole line
        ring.say(b"halt")
    assert sink.messages == ["halt"]


def test_who_goes_on_repeats_nothing(paths, sink, ring):
    ring.say(b"one\ntw")
    with record.Recorder(paths, "red"):
        assert sink.until(1) == ["one"]
    assert sink.messages == ["tw"]
    ring.say(b"o\n")
    with record.Recorder(paths, "red"):
        assert sink.until(1) == ["o"]
    ring.say(b"three\n")
    record.record_rest(paths, "red")
    record.record_rest(paths, "red")
    assert sink.messages == ["three"]


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(
        st.tuples(st.integers(0, 3000), st.sampled_from(["line {}", "{}", "x" * 300 + "{}"])), max_size=8
    )
)
def test_a_place_is_found_again(pieces, tmp_path_factory):
    """However much was said in between, as long as the kernel keeps it."""
    paths = Paths(str(tmp_path_factory.mktemp("root")))
    said = b""
    number = 0
    for lines, form in pieces:
        new = b""
        for _line in range(lines):
            number += 1
            new += form.format(number).encode() + b"\n"
        new = new[: record.RING - record._TAIL]
        said += new
        place = record.Place(paths, "red", "boot", 1)
        assert place.skip(said[-record.RING :]) == new
        if new:
            place.advance(new)


def test_what_the_kernel_does_not_keep_any_more(tmp_path):
    paths = Paths(str(tmp_path))
    record.Place(paths, "red", "boot", 1).advance(b"gone\n" * 1000)
    said = b"new\n" * 20000
    assert record.Place(paths, "red", "boot", 1).skip(said[-record.RING :]) == said[-record.RING :]
    for boot, number in (("another", 1), ("boot", 2)):
        assert record.Place(paths, "red", boot, number).skip(b"gone\n" * 1000) == b"gone\n" * 1000
    assert record.Place(paths, "red", "boot", 1).skip(b"gone\n" * 1000) == b""


def test_a_place_that_cannot_be_noted(tmp_path):
    (tmp_path / "run").write_text("")
    record.Place(Paths(str(tmp_path)), "red", "boot", 1).advance(b"x")


def test_too_much_loses_no_last_words(paths, sink, ring, monkeypatch):
    """A flood, and a panic at its end."""
    monkeypatch.setattr(record, "LINES", 20)
    monkeypatch.setattr(record, "KEPT", 5)
    with record.Recorder(paths, "red"):
        for number in range(3000):
            ring.say(b"flood %d\n" % number)
        assert sink.until(20) == [f"flood {number}" for number in range(20)]
        ring.say(b"Kernel panic\nRebooting\n")
    assert sink.messages == [
        "[2977 lines are left out: it writes too much]",
        *("flood 2997", "flood 2998", "flood 2999", "Kernel panic", "Rebooting"),
    ]


def test_a_flood_that_the_kernel_does_not_keep(paths, sink, ring, monkeypatch):
    monkeypatch.setattr(record, "LINES", 5)
    monkeypatch.setattr(record, "KEPT", 1)
    with record.Recorder(paths, "red"):
        ring.say(b"a\n" * 5)
        assert sink.until(5) == ["a"] * 5
        ring.say(b"flood of text\n" * 20000 + b"panic\n")
    assert sink.messages == ["[4681 or more lines are left out: it writes too much]", "panic"]


def test_a_flood_whose_beginning_was_little():
    limit = record.Limit(0)
    assert len([*limit.take(["flood"] * (record.LINES - 100), 0)]) == record.LINES - 100
    assert len([*limit.take(["flood"] * 4000, 1, lost=True)]) == 100
    assert next(limit.rest()) == f"[{3900 - record.KEPT} or more lines are left out: it writes too much]"


def test_after_a_flood_it_goes_on(paths, sink, ring, monkeypatch):
    monkeypatch.setattr(record, "LINES", 3)
    monkeypatch.setattr(record, "KEPT", 2)
    monkeypatch.setattr(record, "WINDOW", 1.0)
    with record.Recorder(paths, "red"):
        ring.say(b"".join(b"%d\n" % number for number in range(9)))
        assert sink.until(6) == ["0", "1", "2", "[4 lines are left out: it writes too much]", "7", "8"]
        ring.say(b"calm\n")
        assert sink.until(1) == ["calm"]


def test_a_line_without_an_end(paths, sink, ring):
    ring.say(b"x" * 5000)
    with record.Recorder(paths, "red"):
        assert [len(line) for line in sink.until(3)] == [2048, 2048, 904]


def test_a_journal_that_is_restarted_loses_nothing(paths, sink, ring, monkeypatch):
    monkeypatch.setattr(record, "_PATIENCE", 0.5)
    with record.Recorder(paths, "red"):
        ring.say(b"one\n")
        assert sink.until(1) == ["one"]
        sink.close()
        ring.say(b"two\nthree\n")
        time.sleep(0.5)
        os.unlink(sink._path)
        sink.open()
        assert sink.until(2) == ["two", "three"]


def test_without_a_journal(paths, sink, ring, capsys):
    sink.close(remove=True)
    ring.say(b"one\x1b\n")
    record.record_rest(paths, "red")
    assert capsys.readouterr().out == "one^[\n"
    sink.open()


def test_a_console_that_comes_later_and_goes(host, paths, sink, ring):
    host.instances["red"].status = "ready"
    host.sync()
    with record.Recorder(paths, "red"):
        time.sleep(0.2)
        assert ring.opened == 0
        ring.say(b"one\n")
        host.instances["red"].status = "active"
        host.sync()
        assert sink.until(1) == ["one"]
        ring.say(None)
        time.sleep(0.5)
        ring.say(b"another one\n")
        assert sink.until(1) == ["another one"]
        ring.say(None)
        time.sleep(0.2)


@pytest.mark.parametrize("why", ["absent", "upstream"])
def test_what_has_no_console_to_record(make_host, sink, ring, why):
    host = make_host(
        series="upstream",
        pool_cpus=[4],
        chunks=[(POOL_BASE, 512 * MIB, 0)],
        instances={"red": FakeInstance(1, [4], POOL_BASE, 128 * MIB, "active")} if why == "upstream" else {},
    )
    record.record_rest(Paths(str(host.root)), "red")
    for there in (False, True):
        if there:
            (host.root / "dev/mktty").touch()
        with record.Recorder(Paths(str(host.root)), "red") as recorder:
            time.sleep(0.1)
            assert recorder._thread.is_alive() == there
    assert ring.opened == 0
