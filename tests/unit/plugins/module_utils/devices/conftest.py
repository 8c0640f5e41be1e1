# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A spawned kernel's side of virtio: memory with rings, and a kernel that tells of them."""

from __future__ import annotations

import os
import select
import struct
import time
from dataclasses import dataclass, field

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.devices.channel import (
    EVENT_INSTANCE,
    LIVE,
    NEEDS_RESET,
    RESETTING,
    Device,
    Gone,
    Info,
    Memory,
    Queue,
    eventfd,
)

SIZE = 16 << 20
ENTRIES = 64
NEXT, WRITE = 1, 2  # of a descriptor


class Driver:
    """Rings in a memfd, with as much of a driver as one request at a time needs."""

    def __init__(self):
        self.fd = os.memfd_create("spawn", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, SIZE)
        self._taken = {}

    def memory(self):
        return Memory(os.dup(self.fd), SIZE)

    def queue(self, place):
        at = (place + 1) << 16
        return Queue(at, at + 0x4000, at + 0x8000, ENTRIES)

    def write(self, place, data):
        os.pwrite(self.fd, data, place)

    def read(self, place, length):
        return os.pread(self.fd, length, place)

    def clear(self):
        self.write(0, bytes(1 << 20))

    def submit(self, place, *buffers):
        """Buffers: place in memory, length, whether the device writes."""
        queue = self.queue(place)
        for number, (at, length, written) in enumerate(buffers):
            last = number == len(buffers) - 1
            flags = (WRITE if written else 0) | (0 if last else NEXT)
            self.write(queue.desc + 16 * number, struct.pack("<QIHH", at, length, flags, number + 1))
        index = struct.unpack("<H", self.read(queue.avail + 2, 2))[0]
        self.write(queue.avail + 4 + index % ENTRIES * 2, struct.pack("<H", 0))
        self.write(queue.avail + 2, struct.pack("<H", (index + 1) % 65536))

    def used(self, place):
        return struct.unpack("<H", self.read(self.queue(place).used + 2, 2))[0]

    def wait(self, place, count, patience=10.0):
        deadline = time.monotonic() + patience
        while self.used(place) != count:
            assert time.monotonic() < deadline, f"{self.used(place)} of {count} requests are done"
            time.sleep(0.01)

    def disk(self, kind, sector, data=b"", length=0, place=0):
        """A request of virtio-blk, without waiting for it. The answer: see answer()."""
        self.write(0x800000, struct.pack("<IIQ", kind, 0, sector))
        self.write(0x810000, data)
        self.write(0x820000, b"\xff")
        buffers = [(0x800000, 16, False)]
        if data or length:
            buffers.append((0x810000, length or len(data), not data))
        self.submit(place, *buffers, (0x820000, 1, True))

    def answer(self, length=0):
        """Status, and what was read."""
        return self.read(0x820000, 1)[0], self.read(0x810000, length)


@dataclass
class FakeChannel:
    """What /dev/mkvirtio/ID says and hears, with the same rules."""

    driver: Driver
    kinds: list[int]
    queues: list[int]
    active: bool = False
    offered: dict[int, int] = field(default_factory=dict)
    configs: dict[int, bytes] = field(default_factory=dict)
    flags: dict[int, int] = field(default_factory=dict)
    features: dict[int, int] = field(default_factory=dict)
    activations: dict[int, int] = field(default_factory=dict)
    kicks: dict[tuple[int, int], int] = field(default_factory=dict)
    calls: dict[tuple[int, int], int] = field(default_factory=dict)
    acknowledged: list[int] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)
    gone: bool = False
    unused: set[tuple[int, int]] = field(default_factory=set)

    def __post_init__(self):
        self._events = EVENT_INSTANCE | (1 << len(self.kinds)) - 1
        self._fd, self._other = os.pipe()
        os.write(self._other, b"x")

    def fileno(self):
        return self._fd

    def close(self):
        os.close(self._fd)
        if self._other is not None:
            os.close(self._other)

    def hang_up(self):
        os.close(self._other)
        self._other = None

    def happen(self, events):
        if not self._events:
            os.write(self._other, b"x")
        self._events |= events

    def events(self):
        found, self._events = self._events, 0
        os.read(self._fd, 64)
        return found

    def info(self):
        return Info(1, len(self.kinds), self.active, 1, SIZE, "red")

    def device(self, index):
        return Device(
            index, self.kinds[index], self.queues[index], ENTRIES, self.offered.get(index, 0),
            self.features.get(index, 0), 0, self.flags.get(index, 0), self.activations.get(index, 0), "x",
        )  # fmt: skip

    def set_features(self, index, features):
        if self.flags.get(index, 0) & LIVE:
            raise OSError(16, "busy")
        self.offered[index] = features

    def config(self, index):
        return self.configs.get(index, bytes(256))

    def set_config(self, index, data):
        self.configs[index] = data.ljust(256, b"\0")

    def queue(self, index, place):
        if not self.flags.get(index, 0) & LIVE:
            raise Gone
        if (index, place) in self.unused:
            return Queue(0, 0, 0, 0)
        return self.driver.queue(index * 2 + place)

    def set_kick(self, index, place, fd):
        self.kicks[index, place] = os.dup(fd)
        os.write(self.kicks[index, place], struct.pack("=Q", 1))

    def set_call(self, index, place, fd):
        self.calls[index, place] = os.dup(fd)

    def acknowledge_reset(self, index):
        self.flags[index] &= ~RESETTING
        self.acknowledged.append(index)

    def resume(self, index):
        self.flags[index] &= ~NEEDS_RESET
        self.resumed.append(index)

    def memory(self):
        if not self.active:
            raise Gone
        return os.dup(self.driver.fd)

    # What the spawn does

    def start(self):
        self.active = True
        self.happen(EVENT_INSTANCE)

    def stop(self):
        self.active = False
        self.flags.clear()
        self.happen(EVENT_INSTANCE)

    def ready(self, index, features=None, flags=0):
        self.features[index] = self.offered[index] if features is None else features
        self.flags[index] = LIVE | flags
        self.activations[index] = self.activations.get(index, 0) + 1
        self.happen(1 << index)

    def reset(self, index):
        self.flags[index] = RESETTING
        self.happen(1 << index)

    def kick(self, index, place=0):
        os.write(self.kicks[index, place], struct.pack("=Q", 1))

    def called(self, index, place=0, patience=10.0):
        """Whether the backend has called since the last time."""
        fd = self.calls[index, place]
        ready, _none, _none = select.select([fd], [], [], patience)
        if ready:
            os.read(fd, 8)
        return bool(ready)


@pytest.fixture
def driver():
    made = Driver()
    yield made
    os.close(made.fd)


@pytest.fixture
def wake():
    """A descriptor at which nothing happens."""
    fd = eventfd()
    yield fd
    os.close(fd)
