# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A tap of the host, and vhost_net behind it. No packet passes through this process.

Source: include/uapi/linux/{if_tun,vhost}.h.
"""

from __future__ import annotations

import array
import fcntl
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from . import virtio
from .channel import Memory, Queue

_TUNSETIFF, _TUNSETPERSIST, _TUNSETOFFLOAD = 0x400454CA, 0x400454CB, 0x400454D0
_TUNSETVNETHDRSZ, _TUNSETCARRIER, _TUNSETSNDBUF = 0x400454D8, 0x400454E2, 0x400454D4
_SEND_BUFFER = 1 << 20  # bytes
_TAP, _NO_PI, _VNET_HDR = 0x2, 0x1000, 0x4000
_F_CSUM, _F_TSO4, _F_TSO6 = 1, 2, 4

_GET_FEATURES, _SET_FEATURES, _SET_OWNER, _SET_MEM_TABLE = 0x8008AF00, 0x4008AF00, 0xAF01, 0x4008AF03
_SET_VRING_NUM, _SET_VRING_ADDR, _SET_VRING_BASE = 0x4008AF10, 0x4028AF11, 0x4008AF12
_SET_VRING_KICK, _SET_VRING_CALL, _SET_VRING_ERR = 0x4008AF20, 0x4008AF21, 0x4008AF22
_NET_SET_BACKEND = 0x4008AF30


@dataclass(frozen=True)
class Ring:
    """A queue that a backend is to serve."""

    place: int
    queue: Queue
    base: int  # the first entry that is not served yet
    kick: int  # eventfds
    call: int
    error: int = -1


class Tap:
    """The host's end of a network device. It stays when this process ends, so that what is set up stays."""

    def __init__(self, name: str):
        """Made if it is not there. Raises OSError, EBUSY when another process has it."""
        self.name = name
        self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            flags = _TAP | _NO_PI | _VNET_HDR
            fcntl.ioctl(self.fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
            fcntl.ioctl(self.fd, _TUNSETVNETHDRSZ, struct.pack("i", virtio.NET_HEADER))
            # Without a limit vhost_net sends in batches, and retries for ever what it cannot read.
            fcntl.ioctl(self.fd, _TUNSETSNDBUF, struct.pack("i", _SEND_BUFFER))
            fcntl.ioctl(self.fd, _TUNSETPERSIST, 1)
        except BaseException:
            os.close(self.fd)
            raise
        self.set_carrier(False)

    def set_carrier(self, on: bool) -> None:
        fcntl.ioctl(self.fd, _TUNSETCARRIER, struct.pack("i", on))

    def set_offload(self, features: int) -> None:
        """What the spawn takes without checksums, and in pieces larger than a packet."""
        flags = 0
        if features & virtio.GUEST_CSUM:
            flags = _F_CSUM
            flags |= _F_TSO4 if features & virtio.GUEST_TSO4 else 0
            flags |= _F_TSO6 if features & virtio.GUEST_TSO6 else 0
        fcntl.ioctl(self.fd, _TUNSETOFFLOAD, flags)

    def close(self) -> None:
        self.set_carrier(False)
        os.close(self.fd)


class VhostNet:
    """The kernel's own backend of a network device: one worker thread, in this process's control group."""

    def __init__(self, path: str = "/dev/vhost-net"):
        """Raises OSError."""
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(self._fd, _SET_OWNER, 0)
        except BaseException:
            os.close(self._fd)
            raise

    def start(self, tap: Tap, features: int, memory: Memory, rings: Sequence[Ring]) -> bool:
        """Let the rings be served. False: a ring is such that the kernel does not take it."""
        (known,) = struct.unpack("Q", fcntl.ioctl(self._fd, _GET_FEATURES, bytes(8)))
        # Its bit 27 means that it makes headers itself; here the tap does.
        wanted = features & known & (virtio.RING | virtio.MRG_RXBUF)
        fcntl.ioctl(self._fd, _SET_FEATURES, struct.pack("Q", wanted))
        # One region for ever: the mapping itself follows what the instance owns.
        region = struct.pack("QQQQ", 0, memory.size, memory.address, 0)
        fcntl.ioctl(self._fd, _SET_MEM_TABLE, array.array("B", struct.pack("II", 1, 0) + region))
        tap.set_offload(features)
        for ring in rings:
            self._start(ring, memory)
        try:
            for ring in rings:
                fcntl.ioctl(self._fd, _NET_SET_BACKEND, struct.pack("Ii", ring.place, tap.fd))
        except OSError:
            return False
        tap.set_carrier(True)
        return True

    def _start(self, ring: Ring, memory: Memory) -> None:
        place, queue, base = ring.place, ring.queue, memory.address
        fcntl.ioctl(self._fd, _SET_VRING_NUM, struct.pack("II", place, queue.size))
        fcntl.ioctl(self._fd, _SET_VRING_BASE, struct.pack("II", place, ring.base))
        addresses = (base + queue.desc, base + queue.used, base + queue.avail)
        fcntl.ioctl(self._fd, _SET_VRING_ADDR, struct.pack("IIQQQQ", place, 0, *addresses, 0))
        for number, fd in (
            (_SET_VRING_KICK, ring.kick),
            (_SET_VRING_CALL, ring.call),
            (_SET_VRING_ERR, ring.error),
        ):
            fcntl.ioctl(self._fd, number, struct.pack("Ii", place, fd))

    def close(self) -> None:
        """It touches no memory any more when this returns."""
        os.close(self._fd)
