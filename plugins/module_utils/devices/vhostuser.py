# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The vhost-user protocol, as the side that owns the device: it says where rings and memory are.

Source: docs/interop/vhost-user.rst of QEMU. Requests and their payloads are little endian on all machines
that this runs on. No descriptor of a ring passes through here.
"""

from __future__ import annotations

import array
import contextlib
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path

from ..common.errors import Failure
from . import virtio
from .channel import Memory
from .tap import Ring

_VERSION, _REPLY, _NEED_REPLY = 0x1, 0x4, 0x8
_GET_FEATURES, _SET_FEATURES, _SET_OWNER, _SET_MEM_TABLE = 1, 2, 3, 5
_SET_VRING_NUM, _SET_VRING_ADDR, _SET_VRING_BASE, _GET_VRING_BASE = 8, 9, 10, 11
_SET_VRING_KICK, _SET_VRING_CALL, _SET_VRING_ERR = 12, 13, 14
_GET_PROTOCOL_FEATURES, _SET_PROTOCOL_FEATURES, _SET_VRING_ENABLE = 15, 16, 18
_GET_CONFIG = 24

PROTOCOL_FEATURES = 1 << 30  # a feature of virtio, for this protocol alone
REPLY_ACK, CONFIG = 1 << 3, 1 << 9
_USER = 0x100000000000  # where the memory is in the addresses of this side; any number does
_LONGEST = 4096  # bytes of a payload
TIMEOUT = 20.0  # seconds for an answer
_STOP_TIMEOUT = 2.0


class VhostUser:
    """A connection to a backend. Raises Failure for what it does not answer, or refuses."""

    def __init__(self, path: Path, what: str, patience: float = 15.0):
        """what: the backend in messages. patience: seconds for it to come up."""
        self.what = what
        self.features = self.protocol = 0
        self._socket = connect(path, what, patience)
        try:
            self._negotiate()
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def _negotiate(self) -> None:
        features = self._ask_u64(_GET_FEATURES)
        if not features & virtio.VERSION_1:
            raise Failure(f"{self.what} does not offer virtio 1")
        if features & PROTOCOL_FEATURES:
            self.protocol = self._ask_u64(_GET_PROTOCOL_FEATURES) & (REPLY_ACK | CONFIG)
            self._send(_SET_PROTOCOL_FEATURES, struct.pack("<Q", self.protocol))
        self._send(_SET_OWNER)
        self._features = features
        self.features = features & ~PROTOCOL_FEATURES

    def config(self, length: int) -> bytes:
        """The device's configuration."""
        if not self.protocol & CONFIG:
            raise Failure(f"{self.what} does not tell the configuration of its device")
        answer = self._ask(_GET_CONFIG, struct.pack("<3I", 0, length, 0) + bytes(length))
        if len(answer) < 12 + length:
            raise Failure(f"{self.what} does not tell the configuration of its device")
        return answer[12 : 12 + length]

    def start(self, features: int, memory: Memory, rings: Sequence[Ring]) -> None:
        """Let the rings be served."""
        self._send(_SET_FEATURES, struct.pack("<Q", features | self._features & PROTOCOL_FEATURES))
        region = struct.pack("<IIQQQQ", 1, 0, 0, memory.size, _USER, 0)
        self._order(_SET_MEM_TABLE, region, memory.fd)
        for ring in rings:
            place, queue = ring.place, ring.queue
            self._send(_SET_VRING_NUM, struct.pack("<II", place, queue.size))
            self._send(_SET_VRING_BASE, struct.pack("<II", place, ring.base))
            addresses = (_USER + queue.desc, _USER + queue.used, _USER + queue.avail)
            self._send(_SET_VRING_ADDR, struct.pack("<IIQQQQ", place, 0, *addresses, 0))
            self._send(_SET_VRING_CALL, struct.pack("<Q", place), ring.call)
            if ring.error >= 0:
                self._send(_SET_VRING_ERR, struct.pack("<Q", place), ring.error)
            self._send(_SET_VRING_KICK, struct.pack("<Q", place), ring.kick)
            if self._features & PROTOCOL_FEATURES:
                self._order(_SET_VRING_ENABLE, struct.pack("<II", place, 1))

    def stop(self, place: int) -> int:
        """End the service of a ring; returns the first entry that was not taken from it."""
        # A driver that resets its device waits for this, and no longer than five seconds.
        self._socket.settimeout(_STOP_TIMEOUT)
        answer = self._ask(_GET_VRING_BASE, struct.pack("<II", place, 0))
        if len(answer) != 8:
            raise Failure(f"{self.what} does not tell where it has stopped")
        return int(struct.unpack("<II", answer)[1])

    # Messages

    def _send(self, request: int, payload: bytes = b"", fd: int | None = None, flags: int = 0) -> None:
        head = struct.pack("<3I", request, _VERSION | flags, len(payload))
        rights = (
            [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]).tobytes())]
        )
        try:
            sent = self._socket.sendmsg([head + payload], rights)
            if sent < len(head) + len(payload):
                self._socket.sendall((head + payload)[sent:])
        except OSError as error:
            raise self._lost(error) from error

    def _lost(self, error: OSError) -> Failure:
        late = isinstance(error, socket.timeout)
        return Failure(f"{self.what} does not answer{'' if late else f': {error.strerror or error}'}")

    def _ask(self, request: int, payload: bytes = b"") -> bytes:
        self._send(request, payload)
        return self._answer(request)

    def _ask_u64(self, request: int) -> int:
        answer = self._ask(request)
        if len(answer) != 8:
            raise Failure(f"{self.what} gave an answer of {len(answer)} bytes to request {request}")
        return int(struct.unpack("<Q", answer)[0])

    def _order(self, request: int, payload: bytes, fd: int | None = None) -> None:
        """Something that can be refused, where the backend is able to tell."""
        acked = bool(self.protocol & REPLY_ACK)
        self._send(request, payload, fd, _NEED_REPLY if acked else 0)
        if acked and any(self._answer(request)):
            raise Failure(f"{self.what} refuses request {request}")

    def _answer(self, request: int) -> bytes:
        number, flags, size = struct.unpack("<3I", self._receive(12))
        if number != request or not flags & _REPLY or size > _LONGEST:
            raise Failure(f"{self.what} answers request {request} with something else")
        return self._receive(size)

    def _receive(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            try:
                more = self._socket.recv(size - len(found))
            except OSError as error:
                raise self._lost(error) from error
            if not more:
                raise Failure(f"{self.what} has closed the connection")
            found += more
        return found


def connect(path: Path, what: str, patience: float) -> socket.socket:
    deadline = time.monotonic() + patience
    while True:
        with contextlib.ExitStack() as stack:
            found = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            found.settimeout(TIMEOUT)
            try:
                found.connect(str(path))
            except OSError as error:
                if time.monotonic() > deadline:
                    raise Failure(f"{what} did not come up within {patience:g} s: {error.strerror}") from None
            else:
                stack.pop_all()
                return found
        time.sleep(0.05)
