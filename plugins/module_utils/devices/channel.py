# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""/dev/mkvirtio/ID: the host's end of an instance's virtio devices, as the kernel of this collection has it.

Source: include/uapi/linux/mkvirtio.h of the series. Offsets in queues are places in the file of the memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIRECTORY = "/dev/mkvirtio"
CLASS = "/sys/class/mkvirtio"  # is there where the kernel can do it
LIVE, RESETTING, NEEDS_RESET = 1, 2, 4  # flags of a device
EVENT_INSTANCE = 1 << 31  # it was started or stopped
CONFIG_SIZE = 256

_INFO = "=4IQ64s"
_DEVICE = "=4IQQIIQ16s"
_FEATURES = "=2IQ"
_CONFIG = f"=4I{CONFIG_SIZE}s"
_QUEUE = "=2I3Q2I"
_EVENTFD = "=2IiI"
_NONE, _WRITE, _READ = 0, 1, 2


def _number(direction: int, command: int, layout: str = "") -> int:
    size = struct.calcsize(layout) if layout else 0
    return direction << 30 | size << 16 | 0xBC << 8 | command


_GET_INFO = _number(_READ, 0x00, _INFO)
_GET_EVENTS = _number(_READ, 0x01, "=I")
_GET_DEVICE = _number(_READ | _WRITE, 0x02, _DEVICE)
_SET_FEATURES = _number(_WRITE, 0x03, _FEATURES)
_GET_CONFIG = _number(_READ | _WRITE, 0x04, _CONFIG)
_SET_CONFIG = _number(_WRITE, 0x05, _CONFIG)
_GET_QUEUE = _number(_READ | _WRITE, 0x06, _QUEUE)
_SET_KICK = _number(_WRITE, 0x07, _EVENTFD)
_SET_CALL = _number(_WRITE, 0x08, _EVENTFD)
_ACK_RESET = _number(_WRITE, 0x09, "=I")
_RESUME = _number(_WRITE, 0x0A, "=I")
_GET_MEMORY = _number(_NONE, 0x0B)


@dataclass(frozen=True)
class Info:
    """The instance."""

    id: int
    devices: int
    active: bool
    epoch: int
    memory_size: int  # bytes of the file of its memory
    name: str


@dataclass(frozen=True)
class Device:
    """One device as it is now."""

    index: int
    kind: int  # of virtio
    queues: int
    queue_size: int
    features: int
    driver_features: int
    status: int
    flags: int
    activation: int
    name: str


@dataclass(frozen=True)
class Queue:
    """A queue of a live device; size 0: the driver does not use it."""

    desc: int
    avail: int
    used: int
    size: int


class Gone(Exception):
    """The run of the instance has ended, or the driver has let go of the device."""


class Channel:
    """The device file of one instance. Only one process can have it open."""

    def __init__(self, path: Path):
        """Raises OSError: EBUSY when it is served already, ENODEV when there is no such instance."""
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)

    def _call(self, number: int, layout: str, *values: Any) -> tuple[Any, ...]:
        buffer = bytearray(struct.pack(layout, *values))
        with _gone():
            fcntl.ioctl(self._fd, number, buffer, True)
        return struct.unpack(layout, buffer)

    def info(self) -> Info:
        number, devices, active, epoch, size, name = self._call(_GET_INFO, _INFO, 0, 0, 0, 0, 0, b"")
        return Info(number, devices, bool(active), epoch, size, _text(name))

    def events(self) -> int:
        """What has changed since the last time: bits of devices, EVENT_INSTANCE."""
        (events,) = self._call(_GET_EVENTS, "=I", 0)
        return int(events)

    def device(self, index: int) -> Device:
        found = self._call(_GET_DEVICE, _DEVICE, index, 0, 0, 0, 0, 0, 0, 0, 0, b"")
        return Device(*found[:9], *[_text(found[9])])

    def set_features(self, index: int, features: int) -> None:
        self._call(_SET_FEATURES, _FEATURES, index, 0, features)

    def config(self, index: int, length: int = CONFIG_SIZE) -> bytes:
        data = self._call(_GET_CONFIG, _CONFIG, index, 0, length, 0, b"")[4]
        return bytes(data[:length])

    def set_config(self, index: int, data: bytes, offset: int = 0) -> None:
        self._call(_SET_CONFIG, _CONFIG, index, offset, len(data), 0, data)

    def queue(self, index: int, queue: int) -> Queue:
        _index, _queue, desc, avail, used, size, _zero = self._call(
            _GET_QUEUE, _QUEUE, index, queue, 0, 0, 0, 0, 0
        )
        return Queue(desc, avail, used, size)

    def set_kick(self, index: int, queue: int, fd: int) -> None:
        """What the spawn's kicks signal. It is signalled once at once, for those that came before."""
        self._call(_SET_KICK, _EVENTFD, index, queue, fd, 0)

    def set_call(self, index: int, queue: int, fd: int) -> None:
        """What interrupts the spawn when it is signalled."""
        self._call(_SET_CALL, _EVENTFD, index, queue, fd, 0)

    def acknowledge_reset(self, index: int) -> None:
        self._call(_ACK_RESET, "=I", index)

    def resume(self, index: int) -> None:
        """A new server goes on where the last one has ended."""
        self._call(_RESUME, "=I", index)

    def memory(self) -> int:
        """A descriptor of the instance's memory, which maps nothing any more when this run has ended."""
        with _gone():
            return fcntl.ioctl(self._fd, _GET_MEMORY)


@contextlib.contextmanager
def _gone() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV):
            raise Gone from None
        raise


def _text(value: bytes) -> str:
    return value.split(b"\0")[0].decode(errors="replace")


class Memory:
    """A shared mapping of a whole file, by its address: the module mmap does not tell it."""

    def __init__(self, fd: int, size: int):
        """Takes the descriptor over. Raises OSError."""
        self.fd, self.size = fd, size
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        found = _libc.mmap(None, size, protection, mmap.MAP_SHARED | _NORESERVE, fd, 0)
        if found == ctypes.c_void_p(-1).value:
            number = ctypes.get_errno()
            os.close(fd)
            raise OSError(number, os.strerror(number))
        self.address: int = found

    def close(self) -> None:
        _libc.munmap(self.address, self.size)
        os.close(self.fd)

    def u16(self, place: int) -> int:
        """A number in it. Only by a system call: what is revoked would kill this process otherwise."""
        return int(struct.unpack("<H", self.read(place, 2))[0])

    def read(self, place: int, length: int) -> bytes:
        """Raises Gone when it is not there any more."""
        if not 0 <= place <= self.size - length:
            raise Gone
        reader, writer = os.pipe()
        try:
            wrote = _libc.write(writer, self.address + place, length)
            if wrote != length:
                raise Gone
            return os.read(reader, length)
        finally:
            os.close(reader)
            os.close(writer)


def eventfd() -> int:
    """A new one that does not block. Python 3.9 has none."""
    fd: int = _libc.eventfd(0, os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd


_NORESERVE = 0x4000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
]  # fmt: skip
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
_libc.write.restype = ctypes.c_ssize_t
