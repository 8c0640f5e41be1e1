# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Numbers and layouts as a C compiler has them from the series' header; and memory that goes away."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
import subprocess
from pathlib import Path

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.devices import channel as _channel
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.channel import (
    Channel,
    Device,
    Gone,
    Info,
    Memory,
    Queue,
)

CALLS = (
    "GET_INFO", "GET_EVENTS", "GET_DEVICE", "SET_FEATURES", "GET_CONFIG", "SET_CONFIG", "GET_QUEUE",
    "SET_KICK", "SET_CALL", "ACK_RESET", "RESUME", "GET_MEMORY",
)  # fmt: skip
# As the header of the series has them: include/uapi/linux/mkvirtio.h.
STRUCTS = {
    "GET_INFO": ("R", "__u32 a[4]; __u64 b; char c[64];"),
    "GET_EVENTS": ("R", "__u32 a;"),
    "GET_DEVICE": ("WR", "__u32 a[4]; __u64 b[2]; __u32 c[2]; __u64 d; char e[16];"),
    "SET_FEATURES": ("W", "__u32 a[2]; __u64 b;"),
    "GET_CONFIG": ("WR", "__u32 a[4]; __u8 b[256];"),
    "SET_CONFIG": ("W", "__u32 a[4]; __u8 b[256];"),
    "GET_QUEUE": ("WR", "__u32 a[2]; __u64 b[3]; __u32 c[2];"),
    "SET_KICK": ("W", "__u32 a[2]; __s32 b; __u32 c;"),
    "SET_CALL": ("W", "__u32 a[2]; __s32 b; __u32 c;"),
    "ACK_RESET": ("W", "__u32 a;"),
    "RESUME": ("W", "__u32 a;"),
}


def test_numbers_are_those_of_the_kernels_header(tmp_path):
    lines = ["#include <linux/types.h>", "#include <sys/ioctl.h>", "#include <stdio.h>", "int main(void) {"]
    for number, name in enumerate(CALLS):
        if name in STRUCTS:
            direction, members = STRUCTS[name]
            kind = {"R": "_IOR", "W": "_IOW", "WR": "_IOWR"}[direction]
            made = f"struct s{number}"
            lines.append(f'{made} {{ {members} }}; printf("%u\\n", {kind}(0xbc, {number}, {made}));')
        else:
            lines.append(f'printf("%u\\n", _IO(0xbc, {number}));')
    source = tmp_path / "a.c"
    source.write_text("\n".join([*lines, "}"]))
    subprocess.run(["gcc", "-o", tmp_path / "a", source], check=True)
    said = subprocess.run([tmp_path / "a"], check=True, capture_output=True, encoding="utf-8").stdout.split()
    assert said == [str(getattr(_channel, f"_{name}")) for name in CALLS]


@pytest.fixture
def device(tmp_path, monkeypatch):
    """A channel whose calls are answered here."""
    path = tmp_path / "1"
    path.touch()
    answers = {}

    def ioctl(_fd, number, argument=None, _mutable=True):
        answer = answers[number]
        if isinstance(answer, OSError):
            raise answer
        if argument is None:
            return answer
        if callable(answer):
            answer = answer(bytes(argument))
        argument[: len(answer)] = answer
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    channel = Channel(path)
    yield channel, answers
    channel.close()


def test_what_it_says(device):
    channel, answers = device
    answers[_channel._GET_INFO] = struct.pack("=4IQ64s", 5, 2, 1, 7, 1 << 40, b"red")
    assert channel.info() == Info(5, 2, True, 7, 1 << 40, "red")
    answers[_channel._GET_EVENTS] = struct.pack("=I", 0x80000003)
    assert channel.events() == 0x80000003
    answers[_channel._GET_DEVICE] = struct.pack("=4IQQIIQ16s", 1, 2, 3, 4, 5, 6, 7, 1, 9, b"net@0")
    assert channel.device(1) == Device(1, 2, 3, 4, 5, 6, 7, 1, 9, "net@0")
    answers[_channel._GET_QUEUE] = struct.pack("=2I3Q2I", 1, 0, 10, 20, 30, 256, 0)
    assert channel.queue(1, 0) == Queue(10, 20, 30, 256)
    answers[_channel._GET_CONFIG] = lambda asked: asked[:16] + b"abc".ljust(256, b"\0")
    assert channel.config(1, 4) == b"abc\0"
    answers[_channel._GET_MEMORY] = 99
    assert channel.memory() == 99
    assert channel.fileno() > 2


def test_what_it_is_told(device):
    channel, answers = device
    told = []
    for name in ("SET_FEATURES", "SET_CONFIG", "SET_KICK", "SET_CALL", "ACK_RESET", "RESUME"):
        answers[getattr(_channel, f"_{name}")] = lambda asked: told.append(asked) or asked
    channel.set_features(1, 1 << 32)
    channel.set_config(1, b"xy", 2)
    channel.set_kick(1, 0, 7)
    channel.set_call(1, 1, -1)
    channel.acknowledge_reset(3)
    channel.resume(4)
    assert told == [
        struct.pack("=2IQ", 1, 0, 1 << 32),
        struct.pack("=4I256s", 1, 2, 2, 0, b"xy"),
        struct.pack("=2IiI", 1, 0, 7, 0),
        struct.pack("=2IiI", 1, 1, -1, 0),
        struct.pack("=I", 3),
        struct.pack("=I", 4),
    ]


def test_an_instance_that_does_not_run(device):
    channel, answers = device
    answers[_channel._GET_MEMORY] = OSError(errno.ENXIO, "no")
    with pytest.raises(Gone):
        channel.memory()
    answers[_channel._GET_INFO] = OSError(errno.EINVAL, "no")
    with pytest.raises(OSError, match="no"):
        channel.info()


def test_memory_that_is_not_there_any_more():
    fd = os.memfd_create("m")
    os.ftruncate(fd, 4 * 4096)
    os.pwrite(fd, b"\x34\x12", 4096)
    memory = Memory(os.dup(fd), 4 * 4096)
    assert memory.u16(4096) == 0x1234
    for place in (-1, 4 * 4096 - 1):
        with pytest.raises(Gone):
            memory.u16(place)
    os.ftruncate(fd, 4096)  # as if the kernel had revoked it
    with pytest.raises(Gone):
        memory.u16(4096)
    memory.close()
    os.close(fd)
    with pytest.raises(OSError, match="Bad file"):
        Memory(_closed(), 4096)


def _closed():
    fd = os.open("/dev/null", os.O_RDONLY)
    os.close(fd)
    return fd


ALL_SERIES = sorted((Path(__file__).resolve().parents[5] / "roles/kernel/files/series").iterdir())


@pytest.mark.parametrize("series", ALL_SERIES, ids=lambda path: path.name)
def test_the_series_header_says_the_same(series):
    """Where the series has it, its own words count."""
    text = "".join(path.read_text(errors="replace") for path in sorted(series.glob("*.patch")))
    found = dict(re.findall(r"^\+#define MKVIRTIO_(\w+)\s+_IO[RW]*\(MKVIRTIO_IOC, (0x[0-9a-f]+)", text, re.M))
    assert found and all(int(found[name], 16) == number for number, name in enumerate(CALLS) if name in found)


def test_no_more_descriptors(monkeypatch):
    monkeypatch.setattr(_channel._libc, "eventfd", lambda _count, _flags: -1, raising=False)
    with pytest.raises(OSError, match="Errno"):
        _channel.eventfd()
