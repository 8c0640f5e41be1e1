# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""mkops boot: what the units of systemd do with the layout that a host keeps. It is in stages.

reserve: early, while memory is in large pieces, the pool, and CPUs and memory of all instances, in one plan,
so that none takes what another one names. start: later, the unit of each instance that is to run, and the
others are loaded. adopt: when the layout was changed, the units of those that run and are declared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..common.command import must, run
from ..common.files import text_of
from ..common.lock import host_lock
from ..divide.converge import converge
from ..divide.declared import declared, declared_units, flattened
from ..divide.handover import take_over
from ..divide.kernelfs import KernelFs, Paths
from ..divide.machine import ACTIVE, Machine
from ..divide.request import layout_request
from ..divide.units import unit_of
from .change import kerf_of
from .output import complain, say

STAGES = ("reserve", "start", "adopt")
_RESERVED = ("cpus", "cpu_count", "cpu_policy", "memory", "id")
_HOST = ("pool", "headroom", "host_cpus")


def boot(paths: Paths, stage: str, kerf: str | None) -> None:
    """Take one of the stages. Raises Refused with all reasons when the layout is none any more."""
    for name in take_over(KernelFs(paths)):
        say(f"{name}: it was taken over from the last kernel")
    if not declared(paths):
        say(f"nothing is declared in {text_of(paths.layout)}")
        return
    # All of it: what somebody else changes meanwhile is not what was read before.
    with host_lock(paths.lock):
        _boot(paths, stage, kerf)


def _boot(paths: Paths, stage: str, kerf: str | None) -> None:
    layout = declared(paths)
    machine = KernelFs(paths).read()
    flat = flattened(layout, machine, text_of(paths.layout))
    instances = {name: one for name, one in flat.get("instances", {}).items() if one.get("state") != "absent"}
    path = kerf_of(layout, kerf)
    started = [name for name, one in instances.items() if one.get("state") == "started"]
    # The last kernel's, after a live update: they are what they are.
    running = [name for name, one in machine.instances.items() if one.status == ACTIVE]
    if stage == "reserve":
        reserved = {name: _only(one, _RESERVED) for name, one in instances.items() if name not in running}
        _make({**_only(flat, _HOST), "instances": reserved}, paths, path)
        _set_units(paths, flat, machine)
    elif stage == "adopt":
        _set_units(paths, flat, machine)
        _start_units([name for name in started if name in running])
    else:
        _start_units(started)
        others = {name: one for name, one in instances.items() if name not in (*started, *running)}
        _make({"instances": others}, paths, path)


def _only(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def _make(layout: Mapping[str, Any], paths: Paths, kerf: str) -> None:
    if not (layout["instances"] or "pool" in layout):
        return
    result = converge(
        paths,
        kerf,
        False,
        lambda machine, images: layout_request(layout, machine, images),
        locked=True,
        suppose=False,
    )
    for warning in result.warnings:
        complain(f"warning: {warning}")
    for step in result.steps:
        say(step)


def _set_units(paths: Paths, layout: Mapping[str, Any], machine: Machine) -> None:
    """As tasks do it; somebody may have edited the file."""
    units = declared_units(paths, layout, machine)
    units.write()
    for step in units.steps:
        say(step)


def _start_units(names: list[str]) -> None:
    """Nobody waits for them here: each has its own time, and its own result."""
    if names:
        units = [unit_of(name) for name in names]
        # Those that were given up as well: this is no try of theirs.
        states = run(["systemctl", "is-failed", *units], timeout=60).stdout.split()
        if failed := [unit for unit, state in zip(units, states) if state == "failed"]:
            must(["systemctl", "reset-failed", *failed], "have systemd start units again", timeout=60)
        must(["systemctl", "start", "--no-block", *units], "start the units of instances", timeout=60)
        say(f"started: {', '.join(units)}")
