# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a spawned kernel that was started is up: what it says, or whether it answers."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

from .console import Awaited, Console, ConsoleError
from .kernelfs import KernelFs
from .machine import ACTIVE
from .wish import Manner, compile_pattern

ALIVE = 2000  # milliseconds; a spawned kernel gives a sign of life every second

# Of kerf-init and of the kernel's vsock transport for spawned kernels
_AGENT_PORT = 1023
_RESERVED_PORTS = range(1023, 511, -1)
_SET_TRANSPORT, _MULTIKERNEL = 9, 1
_TAIL = 2000  # characters of a console by which a place in it is found again


@contextlib.contextmanager
def _vsock() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as channel:
        channel.setsockopt(socket.AF_VSOCK, _SET_TRANSPORT, _MULTIKERNEL)
        yield channel


def agent_reasons() -> list[str]:
    """Why no agent can be waited for on this host."""
    try:
        with _vsock():
            return []
    except OSError as error:
        return [
            "wait: agent needs a kernel that reaches its instances by vsock (CONFIG_MULTIKERNEL_VSOCKETS),"
            f" and this one does not ({error.strerror}): wait for console output (wait_for) instead"
        ]


def agent_answers(instance_id: int, patience: float) -> bool:
    """Whether kerf-init accepts a connection; it only does from a reserved port."""
    try:
        with _vsock() as channel:
            channel.settimeout(patience)
            for port in _RESERVED_PORTS:
                with contextlib.suppress(OSError):
                    channel.bind((socket.VMADDR_CID_ANY, port))
                    break
            channel.connect((instance_id, _AGENT_PORT))
            return True
    except OSError:
        return False


def place_after(said: str) -> dict[str, Any]:
    """Where a console is when it has said so much, for since()."""
    return {"length": len(said), "tail": said[-_TAIL:]}


def since(place: Mapping[str, Any], said: str) -> str:
    """What of it came after that place. A console only keeps its latest output."""
    length, tail = place.get("length"), place.get("tail")
    if not isinstance(length, int) or not isinstance(tail, str) or not tail:
        return said
    if said[:length].endswith(tail) and len(said) >= length:
        return said[length:]
    _before, found, after = said.rpartition(tail)
    return after if found else said


class Watch:
    """One instance, from just before its start or when it is waited for again, until it is up."""

    def __init__(
        self,
        kernel: KernelFs,
        name: str,
        instance_id: int,
        manner: Manner,
        stack: contextlib.ExitStack,
        again: Mapping[str, Any] | None = None,
    ):
        self.name = name
        self.output = ""
        self.place: dict[str, Any] = {}
        self._kernel = kernel
        self._id = instance_id
        self._manner = manner
        self._deadline = 0.0
        self._awaited: Awaited | None = None
        self._console: Console | None = None
        self._epoch: int | None = None
        if manner.wait_for is not None:
            # Before the start, because some kernels drop what nobody reads.
            self._console = stack.enter_context(Console(kernel.paths, instance_id))
            said = self._console.history()
            self.place = dict(again) if again is not None else place_after(said)
            self.output = since(self.place, said) if again is not None else ""

    def begin(self) -> None:
        """It was started: the time runs."""
        timeout = self._manner.timeout
        self._deadline = time.monotonic() + timeout
        self._epoch = self._kernel.epoch(self.name)
        if self._console is not None and self._manner.wait_for is not None:
            pattern = compile_pattern(self._manner.wait_for)
            self._awaited = Awaited(self._console, pattern, timeout, self.output)

    def is_up(self, patience: float) -> bool:
        """Look once. ConsoleError when it will not come up any more."""
        living = self._kernel.status(self.name) == ACTIVE
        if self._awaited is not None:
            try:
                text = self._awaited.look(patience, living)
            except ConsoleError as error:
                raise ConsoleError(f"{error}{self._ending(living)}", error.output) from None
            if text is None:
                return False
            self.output = text
            self._awaited = None
        wait = self._manner.wait
        if wait == "none":
            return True
        if wait == "agent" and agent_answers(self._id, patience):
            return True
        if wait == "heartbeat":
            age = self._kernel.heartbeat_age(self.name)
            if age is not None and age < ALIVE:
                return True
        if not living:
            raise ConsoleError(
                f"the instance stopped before there was a sign of its {wait}{self._ending(living)}",
                self._last(),
            )
        if time.monotonic() > self._deadline:
            raise ConsoleError(
                f"there was no sign of its {wait} within {self._manner.timeout:g} s{self._ending(living)}",
                self._last(),
            )
        if wait != "agent":
            time.sleep(min(patience, 0.1))
        return False

    def _ending(self, living: bool) -> str:
        """How it ended, or that somebody else has meddled: while one waits, others may change the host."""
        if self._kernel.status(self.name) is None:
            return "; another run has removed it in the meantime"
        if self._kernel.epoch(self.name) != self._epoch:
            return "; another run has restarted it in the meantime"
        reason = self._kernel.exit_reason(self.name)
        return f" ({reason})" if reason and not living else ""

    def _last(self) -> str:
        """What it said, for those who look for a reason."""
        if self._console is not None:
            return self.output + self._console.history()
        with contextlib.suppress(ConsoleError), Console(self._kernel.paths, self._id) as console:
            return console.history()
        return ""
