# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The console of an instance in the journal: all of it, unless it writes too much, and its last words then.

The kernel keeps the last 64 KiB of a console for each reader. What was recorded is noted below /run, so that
whoever goes on repeats nothing. What a spawned kernel writes is hostile: its control characters are spelt
out, its lines are cut, and no more of them are taken than a journal can bear.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..common.files import read_record, write_file
from ..common.text import harmless
from ..divide.console import Console, ConsoleError
from ..divide.kernelfs import KernelFs, Paths
from ..divide.machine import ACTIVE, LOADED

JOURNAL = "/run/systemd/journal/socket"  # systemd's native protocol: JOURNAL_NATIVE_PROTOCOL
RING = 64 << 10  # bytes that the kernel keeps of a console
_FULL = RING - 4096  # it is full, but for what a reader has missed by a moment
LINES, WINDOW = 1000, 10.0  # lines in so many seconds; what is more, is left out
KEPT = 200  # of those that are left out, the last ones, which may say why it ended
_LONGEST = 2048  # bytes of a line
_TAIL = 2000  # bytes by which a place is found again
_PAUSE = 1.0  # seconds between two looks at a console that writes too much, or is not there yet
_INCOMPLETE = 2.0  # seconds after which the beginning of a line is taken for one
_PATIENCE = 5.0  # seconds that a journal may take


class Limit:
    """Lets so many lines through, counts the others and keeps their last ones."""

    def __init__(self, now: float):
        self._began = now
        self._passed = 0
        self._left_out = 0
        self._lost = False
        self._kept: deque[str] = deque(maxlen=KEPT)

    @property
    def exceeded(self) -> bool:
        return self._passed >= LINES

    def take(self, lines: list[str], now: float, lost: bool = False) -> Iterator[str]:
        """Those to be written. lost: beside these, there may have been others that nobody has seen."""
        if now - self._began >= WINDOW:
            yield from self.rest()
            self._began, self._passed = now, 0
        for line in lines:
            if not self.exceeded:
                self._passed += 1
                yield line
            else:
                self._left_out += 1
                self._kept.append(line)
        # Also when these are the ones that were too many.
        self._lost = self._lost or (lost and self.exceeded)

    def rest(self) -> Iterator[str]:
        """How many were left out, and the last of them."""
        count = self._left_out - len(self._kept)
        if count or self._lost:
            yield f"[{count}{' or more' if self._lost else ''} lines are left out: it writes too much]"
        yield from self._kept
        self._left_out, self._lost = 0, False
        self._kept.clear()


class Place:
    """How much of a console was recorded, in a file that is gone with the boot."""

    def __init__(self, paths: Paths, name: str, boot_id: str, instance_id: int):
        self._path = paths.consoles / f"{name}.json"
        self._which = {"boot_id": boot_id, "id": instance_id}
        self._length = 0
        self._tail = b""

    def skip(self, said: bytes) -> bytes:
        """What of all that is kept of a console was not recorded yet."""
        found = read_record(self._path, length=int, tail=str) or {}
        if {key: found.get(key) for key in self._which} != self._which or not found["tail"]:
            return said
        length, tail = found["length"], found["tail"].encode("latin-1", "replace")
        self._length, self._tail = length, tail
        if len(said) >= length and said[:length].endswith(tail):
            return said[length:]
        if len(said) >= _FULL and len(tail) == _TAIL:  # the kernel has dropped its beginning
            _before, there, after = said.rpartition(tail)
            if there:
                return after
        self._length, self._tail = 0, b""  # it is another one, or all of that is gone
        return said

    def advance(self, data: bytes) -> None:
        """So much more was recorded."""
        self._length += len(data)
        self._tail = (self._tail + data)[-_TAIL:]
        with contextlib.suppress(OSError):  # then some of it is recorded again
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            noted = {**self._which, "length": self._length, "tail": self._tail.decode("latin-1")}
            write_file(self._path, json.dumps(noted), mode=0o600, sync=False)


class Journal:
    """Where lines go: the journal, or standard output where there is none."""

    def __init__(self, paths: Paths, name: str):
        self._fields = f"PRIORITY=6\nSYSLOG_IDENTIFIER={name}\n".encode()
        self._address: Path = paths.at(JOURNAL)
        self._channel: socket.socket | None = None

    def write(self, line: str) -> bool:
        """Whether it was taken."""
        text = harmless(line).replace("\n", " ").encode("utf-8", "replace")
        if not self._address.exists():
            sys.stdout.write(f"{text.decode()}\n")
            sys.stdout.flush()
            return True
        for _try in range(2):
            try:
                if self._channel is None:
                    self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                    self._channel.settimeout(_PATIENCE)
                    self._channel.connect(os.fspath(self._address))
                self._channel.sendall(self._fields + b"MESSAGE=" + text + b"\n")
                return True
            except OSError:  # it was restarted, or is too busy
                self.close()
        return False

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


class _Reader:
    """One console, from where it was recorded up to."""

    def __init__(self, paths: Paths, name: str, kernel: KernelFs, instance_id: int):
        self.console = Console(paths, instance_id)
        self._place = Place(paths, name, kernel.boot_id, instance_id)
        self._journal = Journal(paths, name)
        self._limit = Limit(time.monotonic())
        self._pending = b""  # read, and not yet whole lines
        self._unsent: deque[str] = deque()  # lines that the journal did not take yet,
        self._part = b""  # and what they are of the console
        self._since = time.monotonic()
        self._first = True

    @property
    def busy(self) -> bool:
        """Nothing is gained by reading at once."""
        return self._limit.exceeded or bool(self._unsent)

    @property
    def pause(self) -> float | None:
        """Seconds after which there may be something to do although nothing comes; None: not before."""
        return _PAUSE if self.busy else _INCOMPLETE if self._pending else None

    def read(self, ended: bool) -> None:
        """Record what there is. ended: there will be no more."""
        if not self._sent():
            return  # it is tried again, and the kernel keeps what comes meanwhile
        data = b""
        while len(data) <= RING and (more := self.console.read(0)):
            data += more
        if self._first:
            data, self._first = self._place.skip(data), False
        if data:
            self._since = time.monotonic()
        self._pending += data
        lost = len(data) >= _FULL
        whole = self._pending.rfind(b"\n") + 1
        if ended or time.monotonic() - self._since >= _INCOMPLETE or len(self._pending) - whole > _LONGEST:
            whole = len(self._pending)
        self._part, self._pending = self._pending[:whole], self._pending[whole:]
        self._unsent += self._limit.take([*_lines(self._part)], time.monotonic(), lost)
        if ended:
            self._unsent += self._limit.rest()
        self._sent()

    def _sent(self) -> bool:
        """Whether all has been taken."""
        while self._unsent:
            if not self._journal.write(self._unsent[0]):
                return False
            self._unsent.popleft()
        if self._part:
            self._place.advance(self._part)
            self._part = b""
        return True

    def close(self) -> None:
        self.console.__exit__()
        self._journal.close()


def _lines(data: bytes) -> Iterator[str]:
    """As text, without ends; too long ones in pieces. What is left of a line counts as one."""
    for line in data.replace(b"\r", b"").removesuffix(b"\n").split(b"\n") if data else ():
        for begin in range(0, len(line) or 1, _LONGEST):
            yield line[begin : begin + _LONGEST].decode("utf-8", "backslashreplace")


def _reader(paths: Paths, name: str) -> _Reader | None:
    """None where there is no such console yet, or the kernel does not keep what nobody reads."""
    kernel = KernelFs(paths)
    instance_id = kernel.id(name)
    if not instance_id or kernel.status(name) not in (LOADED, ACTIVE):
        return None
    if not kernel.tells(name):
        return None  # it has one reader, and that is whoever asks for it
    try:
        return _Reader(paths, name, kernel, instance_id)
    except ConsoleError:
        return None


class Recorder:
    """Records a console as long as it is entered, in a thread: who waits for an instance need not care."""

    def __init__(self, paths: Paths, name: str):
        self._paths = paths
        self._name = name
        self._wake, self._woken = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._woken)
        self._thread.join(2 * _PATIENCE)
        if not self._thread.is_alive():
            os.close(self._wake)

    def _run(self) -> None:
        # They are for the thread that waits for them.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        while self._paths.console.exists():  # or this kernel has no consoles
            reader = _reader(self._paths, self._name)
            if reader is None:
                if self._ends(_PAUSE):
                    return
                continue
            with contextlib.closing(reader), contextlib.suppress(ConsoleError):
                while True:
                    reader.read(False)
                    if self._ends(reader.pause, None if reader.busy else reader):
                        reader.read(True)
                        return
            # It was removed.
            if self._ends(_PAUSE):
                return

    def _ends(self, seconds: float | None, reader: _Reader | None = None) -> bool:
        """Wait for the end, for that time, or for something to record."""
        watched: list[Any] = [self._wake, *([reader.console] if reader else [])]
        return self._wake in select.select(watched, [], [], seconds)[0]


def record_rest(paths: Paths, name: str) -> None:
    """What was not recorded yet, when nobody does any more."""
    reader = _reader(paths, name)
    if reader is not None:
        with contextlib.closing(reader), contextlib.suppress(ConsoleError):
            reader.read(True)
