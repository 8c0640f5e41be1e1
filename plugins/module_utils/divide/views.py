# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What people see of a reading in diffs and messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..common.cpuset import format_cpus
from ..common.size import format_size
from .machine import ACTIVE, LOADED, Instance, Machine


def cpu_list(machine: Machine, apic_ids: Iterable[int]) -> str:
    """Logical numbers where they are known, the bare APIC id where not."""
    apic_ids = list(apic_ids)
    numbers = machine.logical(apic_ids)
    unknown = [f"APIC {apic}" for apic, cpu in zip(apic_ids, numbers) if cpu is None]
    return ",".join(filter(None, [format_cpus(cpu for cpu in numbers if cpu is not None), *unknown]))


def cpus_named(machine: Machine, apic_ids: Iterable[int], verbs: tuple[str, str] | None = None) -> str:
    """C(CPU 3), C(CPUs 2-3), and with verbs such as C(is) and C(are) the one that fits."""
    apic_ids = list(apic_ids)
    several = len(apic_ids) != 1
    verb = f" {verbs[several]}" if verbs else ""
    return f"CPU{'s' if several else ''} {cpu_list(machine, apic_ids)}{verb}"


def describe_pool(machine: Machine) -> dict[str, Any]:
    pool = machine.pool
    return pool_view(machine, pool.cpus, pool.memory) if pool else {}


def pool_view(machine: Machine, cpus: Iterable[int], memory: Mapping[int, int]) -> dict[str, Any]:
    return {
        "cpus": cpu_list(machine, cpus),
        "memory": {f"node{node}": format_size(size) for node, size in sorted(memory.items()) if size},
    }


def describe_instance(machine: Machine, instance: Instance | None) -> dict[str, Any]:
    """What a diff shows."""
    if instance is None:
        return {}
    view: dict[str, Any] = {
        "name": instance.name,
        "state": instance.status,
        "cpus": cpu_list(machine, instance.cpus),
        "memory": format_size(instance.memory),
    }
    if instance.status in (LOADED, ACTIVE):
        view["kernel"] = _file_view(instance.kernel)
        view["initrd"] = _file_view(instance.initrd)
        view["cmdline"] = instance.cmdline
    if devices := machine.devices.get(instance.name):
        view["devices"] = devices.plain()
    return view


def _file_view(record: Mapping[str, Any]) -> dict[str, Any] | None:
    return {"path": record.get("path"), "sha256": record.get("sha256")} if record else None
