# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The part of mkops run that waits: how an instance ends, and whether it shows signs of life.

What is to come of it, systemd decides: an exit code says how it ended, and whoever gives no sign of life is
told to systemd as the watchdog has it. What then happens to the kernel, is in ended.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..common.errors import Failure, Refused
from ..common.lock import host_lock
from ..divide.declared import declared
from ..divide.image import NoImages
from ..divide.kernelfs import KernelFs, Paths
from ..divide.kernellog import Halts
from ..divide.machine import ACTIVE
from ..divide.request import layout_request
from ..divide.units import AGAIN, BADLY, LOST, STOPPED
from .output import notify, say

_LOOK = 60.0  # seconds between two looks where the kernel tells when something changes
_QUARTERS = 4  # looks in the time of a watchdog
_LATE = 1.0  # seconds by which the kernel's log may come after the state
_BEGUN = 1000  # milliseconds; a heartbeat that is older than its kernel by less is the start itself
_CLEAN = 0


@dataclass(frozen=True)
class Patience:
    """For how long an instance may give no sign of life, in seconds; None: for ever."""

    silence: float | None = None
    beginning: float = 0  # until the first one

    def left(self, stats: Mapping[str, int]) -> float | None:
        """Seconds of it; None where the kernel does not tell, or there is no end."""
        age, since = stats.get("heartbeat_age_ms"), stats.get("state_since_ms")
        if self.silence is None or age is None:
            return None
        limit = self.silence
        if since is not None and age > time.clock_gettime(time.CLOCK_BOOTTIME) * 1000 - since - _BEGUN:
            limit = max(limit, self.beginning)
        return limit - age / 1000


def patience(paths: Paths, kernel: KernelFs, name: str) -> Patience:
    """As it is declared."""
    with contextlib.suppress(Refused):
        request = layout_request(declared(paths), kernel.read(), NoImages())
        service = request.services.get(name)
        silence = None if service is None else service.watchdog
        return Patience(silence, request.manner_of(name).timeout)
    return Patience()


class Watcher:
    """One instance that runs, until it does not any more."""

    def __init__(self, paths: Paths, name: str, halts: Halts, service: bool):
        self._paths = paths
        self._kernel = KernelFs(paths)
        self._name = name
        self._service = service
        self._halts = halts
        self._patience = Patience()
        self._told: float | None = None
        self._layout: Any = ()  # what the layout was when it was read

    def follow(self) -> int:
        """Until it has ended; returns the exit code."""
        kernel, name = self._kernel, self._name
        while True:
            state = kernel.status(name)
            if state == ACTIVE:
                kernel.await_status(name, ACTIVE, self._look() if self._service else _LOOK)
                continue
            # A run that starts it anew holds the lock from its stop to its start.
            with contextlib.suppress(Failure), host_lock(self._paths.lock, restarting=True):
                state = kernel.status(name)
            if state == ACTIVE:
                say(f"{name}: another run has started it anew")
                continue
            if state is None:
                say(f"{name}: it was removed")
                return STOPPED if self._service else _CLEAN
            reason = kernel.exit_reason(name)
            code = self._code((reason or "").partition(": "))
            stopped = ", somebody has stopped it" if code in (STOPPED, LOST) and reason != "forced" else ""
            say(f"{name}: it is {state} ({reason or 'this kernel does not say why'}{stopped})")
            if self._service:
                return code
            return BADLY if code in (BADLY, LOST) else _CLEAN

    def _code(self, reason: tuple[str, str, str]) -> int:
        word, _colon, how = reason
        if word == "forced":
            return STOPPED
        if word == "lost":  # that is what the kernel calls one that was stopped by force
            return LOST
        halted = self._was_halted()
        if word == "clean":
            return STOPPED if halted else AGAIN if how == "restart" else _CLEAN
        if not word and halted:
            return STOPPED
        return LOST if halted else BADLY

    def _was_halted(self) -> bool:
        end = time.monotonic() + _LATE
        while not self._halts.seen():
            if time.monotonic() > end:
                return False
            time.sleep(_LATE / 10)
        return True

    def _look(self) -> float:
        """Tell systemd whether it shows signs of life; returns for how many seconds that is good."""
        self._read_layout()
        silence = self._patience.silence
        if silence is None:
            return _LOOK
        left = self._patience.left(self._kernel.stats(self._name))
        if left is not None and left <= 0:
            say(f"{self._name}: it has given no sign of life for {silence:g} s")
            notify("WATCHDOG=trigger")
            return silence  # by then systemd has ended this process, even an old one
        notify("WATCHDOG=1")
        return max(min(silence / _QUARTERS, silence if left is None else left), 0.1)

    def _read_layout(self) -> None:
        """Again, when it has changed: what is declared holds from then on."""
        try:
            file = os.stat(self._paths.layout)
            layout: Any = (file.st_ino, file.st_mtime_ns, file.st_size)
        except OSError:
            layout = None
        if layout == self._layout:
            return
        first, self._layout = self._layout == (), layout
        before, found = self._patience, patience(self._paths, self._kernel, self._name)
        told = os.environ.get("WATCHDOG_USEC", "")
        if first and found.silence is None and told.isdecimal() and int(told):
            self._told = int(told) / 1e6  # somebody has told systemd alone
        self._patience = found if found.silence is not None else replace(found, silence=self._told)
        if not first and self._patience.silence != before.silence:
            notify(f"WATCHDOG_USEC={int((self._patience.silence or 0) * 1e6)}")
