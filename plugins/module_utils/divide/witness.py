# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What running instances show before and after the host's kernel is replaced under them, and what that means.

An instance has a clock of its own, which goes on while hosts come and go: where its agent answers, that one
measures for how long no host had it. Elsewhere the host's wall clock does, which a new kernel may read from
the hardware to a second.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from . import agent
from .console import Console, ConsoleError
from .kernelfs import KernelFs
from .machine import ACTIVE
from .ready import ALIVE

_PATIENCE, _SECONDS, _LIMIT = 5.0, 10.0, 4096
_HISTORY = 1.0  # seconds, for those that never stop
_QUESTION = b"cat /proc/sys/kernel/random/boot_id /proc/uptime"
_ANSWER = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\n([0-9]+\.[0-9]+) ")

Seen = dict[str, Any]


def now() -> float:
    """Seconds since the host has booted."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def witness(kernel: KernelFs) -> dict[str, Seen]:
    """What each running instance shows, by name."""
    found = {}
    for path in sorted((kernel.paths.multikernel / "instances").glob("*/status")):
        name = path.parent.name
        if kernel.status(name) == ACTIVE:
            found[name] = _seen(kernel, name)
    return found


def _seen(kernel: KernelFs, name: str) -> Seen:
    stats = kernel.stats(name)
    seen: Seen = {
        "id": kernel.id(name),
        "epoch": kernel.epoch(name),
        "heartbeat": stats.get("heartbeat_age_ms"),
        "since": stats.get("state_since_ms"),
        "at": now(),
        "wall": time.time(),
        "said": _said(kernel, name),
        **_asked(name),
    }
    return {key: value for key, value in seen.items() if value is not None}


def _said(kernel: KernelFs, name: str) -> int | None:
    """How much its console tells a new reader; None where it has one reader, which takes it from others."""
    number = kernel.id(name)
    if number is None or not kernel.tells(name):
        return None
    try:
        with Console(kernel.paths, number) as console:
            return len(console.history(_HISTORY))
    except ConsoleError:
        return 0


def _asked(name: str) -> Seen:
    """Its boot id and its clock, and when it told; nothing where no agent answers."""
    output, write_output = os.pipe()
    nothing, no_input = os.pipe()
    os.close(no_input)
    errors = os.open(os.devnull, os.O_WRONLY)
    try:
        before = now()
        end, code, _text = agent.call(
            name, _QUESTION, {}, _PATIENCE, _SECONDS, _LIMIT, nothing, write_output, errors
        )
        between = (before + now()) / 2
    finally:
        for one in (nothing, write_output, errors):
            os.close(one)
    with os.fdopen(output, encoding="utf-8", errors="replace") as file:
        match = _ANSWER.match(file.read())
    if (end, code) != (agent.EXITED, 0) or match is None:
        return {}
    return {"boot_id": match[1], "uptime": float(match[2]), "asked": between}


def reasons(
    name: str, before: Mapping[str, Any], after: Mapping[str, Any] | None, status: str | None
) -> list[str]:
    """Why an instance has not come through it as it was. after: None when it does not run."""
    if after is None:
        return [f"instance {name} is {status or 'gone'}, and was {ACTIVE}"]
    no = []
    if after.get("id") != before.get("id"):
        no.append(f"instance {name} has the id {after.get('id')} instead of {before.get('id')}")
    if after.get("epoch") != before.get("epoch"):
        no.append(f"instance {name} was started anew")
    if "heartbeat" in before and after.get("heartbeat", ALIVE) >= ALIVE:
        age = f"for {after['heartbeat'] / 1000:.1f} s" if "heartbeat" in after else "any more"
        no.append(f"instance {name} has not given a sign of life {age}")
    if before.get("said") and not after.get("said"):
        no.append(f"the console of instance {name} cannot be read any more")
    if "boot_id" not in before:
        return no
    if "boot_id" not in after:
        no.append(f"the agent of instance {name} does not answer any more")
    elif before["boot_id"] != after["boot_id"]:
        no.append(f"instance {name} was booted anew: its boot id is {after['boot_id']}")
    return no


def gap(before: Mapping[str, Any], after: Mapping[str, Any], left: float) -> int | None:
    """Milliseconds from when the old host let go of an instance until the new one had it.

    left: when that was, in seconds since the old host had booted.
    """
    with contextlib.suppress(KeyError):
        since = after["since"] / 1000  # when its state changed, for the new host
        if "uptime" in before and "uptime" in after:
            begin = float(before["uptime"] + left - before["asked"])
            end = float(after["uptime"] - (after["asked"] - since))
        else:
            begin = float(before["wall"] + left - before["at"])
            end = float(after["wall"] - (after["at"] - since))
        return max(0, round((end - begin) * 1000))
    return None
