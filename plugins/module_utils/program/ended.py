# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""mkops ended: what the unit of an instance does when its watcher has ended, in whatever way.

A watcher that was killed or got stuck says nothing about the kernel, so only what the kernel itself shows is
counted against it: docs/program.md has the table. It comes before systemd starts the instance again.
"""

from __future__ import annotations

import os
import time

from ..common.errors import Refused
from ..divide.declared import declared, services_of
from ..divide.kernelfs import KernelFs, Paths
from ..divide.machine import ACTIVE
from ..divide.ready import ALIVE
from ..divide.units import BADLY
from .change import force_stop, keep_evidence, kerf_of
from .leaving import is_left_running, leave
from .output import say
from .record import record_rest
from .watch import Patience, patience

_UNDECLARED = Patience(10)  # seconds; of a watchdog that somebody has told systemd alone
_LOOK = 0.5  # seconds
_FAILED = "1"  # exit code of a watcher: something has failed


def ended(paths: Paths, name: str, kerf: str | None) -> None:
    """Stop a kernel that is not alive, or that did not get ready and is to be started again.

    What it has said last, comes into the journal. One that the host's next kernel takes over is left to that.
    """
    os.environ.pop("NOTIFY_SOCKET", None)  # that is the watcher's
    kernel = KernelFs(paths)
    if kernel.status(name) == ACTIVE and is_left_running(paths):
        record_rest(paths, name)
        leave(paths, name)
        return
    why = _verdict(paths, kernel, name) if kernel.status(name) == ACTIVE else ""
    if why:
        say(f"{name}: {why}, so it is stopped by force")
        layout = {}
        try:
            layout = declared(paths)
        except Refused as refused:
            say(f"{name}: what is declared cannot be read: {'; '.join(refused.reasons)}")
        force_stop(paths, name, kerf_of(layout, kerf))
    if not why and _status() == str(BADLY) and kernel.exit_reason(name) is None:
        why = "this kernel does not say why it ended"
    keep_evidence(paths, name, why)
    record_rest(paths, name)


def _verdict(paths: Paths, kernel: KernelFs, name: str) -> str:
    """Why a running kernel is to be stopped; empty when it goes on."""
    result = os.environ.get("SERVICE_RESULT", "")
    limit = patience(paths, kernel, name)
    if limit.silence is None and result == "watchdog":
        limit = _UNDECLARED
    while True:
        stats = kernel.stats(name)
        left = limit.left(stats)
        if left is not None and left <= 0:
            return f"it has given no sign of life for {limit.silence:g} s"
        if left is None or result != "watchdog" or stats["heartbeat_age_ms"] < ALIVE:
            break
        # Its watcher has ended a moment too early to know.
        time.sleep(min(_LOOK, left))
    failed = result == "exit-code" and _status() == _FAILED
    if failed and _is_awaited(kernel, name) and _starts_again(paths, kernel, name):
        return "it did not get ready in time"
    return ""


def _status() -> str:
    """Of the watcher's exit."""
    return os.environ.get("EXIT_STATUS", "")


def _is_awaited(kernel: KernelFs, name: str) -> bool:
    instance = kernel.read().instances.get(name)
    if instance is None or not instance.awaited:
        return False
    return (instance.awaited.get("id"), instance.awaited.get("epoch")) == (instance.id, instance.epoch)


def _starts_again(paths: Paths, kernel: KernelFs, name: str) -> bool:
    try:
        service = services_of(declared(paths), kernel.read()).get(name)
    except Refused:
        return False
    return service is not None and service.restart != "no"
