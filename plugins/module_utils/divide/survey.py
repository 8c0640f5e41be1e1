# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""All that is told of a host, by the module info and by the host's program alike."""

from __future__ import annotations

from typing import Any

from .declared import boot_facts
from .evidence import crash_facts
from .facts import machine_facts
from .flags import pairs
from .kernelfs import Paths
from .machine import Machine
from .units import unit_facts


def survey(paths: Paths, machine: Machine) -> dict[str, Any]:
    """kernel, host, pool, topology, instances and at_boot, as the module info documents them."""
    facts = machine_facts(machine)
    facts["kernel"]["pairs"] = pairs(machine)
    facts["at_boot"] = boot_facts(paths, machine)
    units = unit_facts(paths, [*machine.instances])
    for one in facts["instances"]:
        one["unit"] = units.get(one["name"])
        one["crashes"] = crash_facts(paths, one["name"])
    return facts
