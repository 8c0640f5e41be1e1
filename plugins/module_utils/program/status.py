# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""mkops status: the host, its pool and its instances."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from typing import Any

from ..common.cpuset import format_known_cpus
from ..common.size import about, format_size
from ..common.text import counted, span
from ..divide.kernelfs import KernelFs, Paths
from ..divide.machine import ACTIVE, environment_reasons
from ..divide.ready import ALIVE
from ..divide.survey import survey
from ..divide.units import unit_of
from .output import complain, say, table

_HEAD = ("NAME", "STATE", "FOR", "CPUS", "MEMORY", "STARTS", "KERNEL", "ENDED LAST")
_UNKNOWN = "-"


def status(paths: Paths, as_json: bool) -> None:
    """Print it, for people or as the module info returns it."""
    machine = KernelFs(paths).read()
    facts = survey(paths, machine)
    if as_json:
        say(json.dumps(facts, indent=2, sort_keys=True))
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in lines(facts, width):
        say(line)
    for reason in facts["at_boot"]["reasons"]:
        complain(f"mkops status: at boot: {reason}")
    for reason in environment_reasons(machine):
        complain(f"mkops status: {reason}")


def lines(facts: dict[str, Any], width: int | None = None) -> list[str]:
    """What a person reads. width: columns of the terminal."""
    kernel, host, pool, instances = (facts[key] for key in ("kernel", "host", "pool", "instances"))
    available = f"{about(host['available_memory'])} of {about(host['memory'])} available"
    rows = [
        ["host", f"CPUs {_cpus(host['cpus'])}", available, f"{kernel['release']}, up {span(host['uptime'])}"]
    ]
    if pool["cpus"] or pool["memory"]:
        free = _cpus(pool["free_cpus"])
        rows.append(
            [
                "pool",
                f"CPUs {_cpus(pool['cpus'])}",
                f"{format_size(pool['free_memory'])} of {format_size(pool['memory'])} free",
                "all CPUs are lent" if free == _UNKNOWN else f"CPUs {free} free",
            ]
        )
    found = table(rows, width)
    if instances:
        found += ["", *table([_HEAD, *(_row(one, host["uptime"]) for one in instances)], width)]
    else:
        found += ["", "There are no instances."]
    silent = [
        f"{one['name']} has sent no heartbeat for {span(one['stats']['heartbeat_age_ms'] / 1000)}."
        for one in instances
        if one["state"] == ACTIVE and one["stats"].get("heartbeat_age_ms", 0) > ALIVE
    ]
    said = [*silent, *(line for one in instances for line in _service(one))]
    return [*found, *([""] if said else []), *said, *_at_boot(facts["at_boot"])]


def _service(one: dict[str, Any]) -> list[str]:
    """What systemd does with an instance, and what is kept of its crashes, where that is worth a line."""
    unit, crashes = one["unit"] or {}, one["crashes"]
    name, restarts = unit_of(one["name"]), unit.get("restarts")
    again = f" after {counted(restarts, 'restart')}" if restarts else ""
    lines = []
    if unit.get("state") == "failed":
        lines.append(f"{name} has failed{again} ({unit['result']}).")
    elif unit.get("sub_state") == "auto-restart":
        lines.append(f"{name} is about to be started again{again} ({unit['result']}).")
    elif restarts:
        lines.append(f"{name} was restarted {counted(restarts, 'time')}.")
    if crashes:
        count = counted(len(crashes), "crash", "crashes")
        lines.append(f"Evidence of {count} of {one['name']} is kept, the last in {crashes[-1]['path']}.")
    return lines


def _at_boot(facts: dict[str, Any]) -> list[str]:
    if not facts["layout"]:
        return []
    drift = facts["drift"]
    if facts["reasons"]:
        word = "cannot be as declared"
    else:
        word = "differs from that" if drift else "is as declared"
    declared = len(facts["layout"].get("instances", ()))
    said = f"{declared} instance{'' if declared == 1 else 's'} declared in {facts['path']}"
    return ["", f"At boot: {said}. The host {word}{':' if drift else '.'}", *(f"  {one}" for one in drift)]


def _cpus(cpus: Iterable[int | None]) -> str:
    return format_known_cpus(cpus) or _UNKNOWN


def _row(one: dict[str, Any], uptime: float) -> list[str]:
    since = one["stats"].get("state_since_ms")  # of the host's uptime
    ended = one["exit_reason"]
    return [
        one["name"],
        one["state"],
        _UNKNOWN if since is None else span(max(uptime - since / 1000, 0)),
        _cpus(one["cpus"]),
        format_size(one["memory"]),
        _UNKNOWN if one["epoch"] is None else str(one["epoch"]),
        str(one["kernel"].get("path", _UNKNOWN)).rpartition("/")[2],
        _UNKNOWN if ended in (None, "none") else ended,
    ]
