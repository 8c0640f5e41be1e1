# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A plan: what is to be done for a wish. The empty one, of most runs, is made here. No I/O.

A host compiles what it imports in every run: the planner is only imported when something is not so yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..common.size import MIB, format_size
from .machine import ACTIVE, EMPTY, LOADED, READY, Instance, Machine, environment_reasons
from .options import device_changes, differences
from .versions import UPSTREAM
from .views import describe_instance, describe_pool
from .wish import AllBut, InstanceWish, PoolWish, Wish, wish_reasons

if TYPE_CHECKING:
    from ..devices.record import Record
    from .steps import Step

# States that surely are what is wished.
_SATISFIED = {
    "present": (EMPTY, READY, LOADED, ACTIVE),
    "loaded": (LOADED, ACTIVE),
    "started": (ACTIVE,),
    "stopped": (LOADED,),
}


@dataclass(frozen=True)
class Plan:
    steps: tuple[Step, ...] = ()
    before: Mapping[str, Any] = field(default_factory=dict)  # pool, and instances by name
    after: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return bool(self.steps)


def nothing_to_do(wish: Wish, machine: Machine, early: Iterable[str] = ()) -> Plan | None:
    """The plan without a step, if the machine surely is what is wished; None: the planner has to look."""
    if [*early, *wish_reasons(wish), *environment_reasons(machine)] or not _is_so(wish, machine):
        return None
    view = views(wish, machine)
    held = {one.name: machine.instances[one.name].cpus for one in wish.instances if one.state != "absent"}
    return Plan((), view, view, tuple(shared_cores(machine, held, machine.pool.cpus)))


def _is_so(wish: Wish, machine: Machine) -> bool:
    current = machine.instances
    declared = {one.name for one in wish.instances}
    return (
        bool(machine.pool)
        and (wish.pool is None or _pool_is_so(wish.pool, wish.host_cpus, machine))
        and not (wish.prune and {*current, *machine.devices} - declared)
        and all(
            one.name not in current and one.name not in machine.devices
            if one.state == "absent"
            else one.name in current and _instance_is_so(one, current[one.name], machine)
            for one in wish.instances
        )
    )


def _pool_is_so(wish: PoolWish, host_cpus: int, machine: Machine) -> bool:
    pool, physical = machine.pool, machine.topology.physical
    left = machine.host_cpus(pool.cpus)
    if isinstance(wish.cpus, AllBut):
        cpus = left == wish.cpus.count
    elif isinstance(wish.cpus, int):
        cpus = len(pool.cpus) == wish.cpus
    else:
        cpus = wish.cpus is None or {physical.get(cpu) for cpu in wish.cpus} == set(pool.cpus)
    memory = pool.memory if isinstance(wish.memory, Mapping) else pool.size
    return (
        not wish.absent
        and cpus
        and (wish.cpus is None or left >= host_cpus)
        and wish.memory in (None, memory)
        and (wish.devices is None or set(wish.devices) == set(pool.devices))
    )


def _instance_is_so(wish: InstanceWish, have: Instance, machine: Machine) -> bool:
    physical = machine.topology.physical
    cpus = set(have.cpus)
    return (
        have.status in _SATISFIED[wish.state]
        and (wish.cpus is None or {physical.get(cpu) for cpu in wish.cpus} == cpus)
        and wish.cpu_count in (None, len(cpus))
        and not wish.cpu_policy
        and cpus <= set(machine.pool.cpus)
        and wish.memory in (None, have.memory)
        and not differences(wish, have, "anew")
        and not differences(wish, have, "load")
        and (wish.devices is None or same_devices(wish.devices, machine.devices.get(wish.name)))
        and not device_changes(wish, have, machine)
        and not instance_reasons(wish, have.memory, machine)
    )


def instance_reasons(wish: InstanceWish, memory: int, machine: Machine) -> list[str]:
    """What speaks against an instance with so many bytes, whatever there is of it."""
    reasons = []
    if wish.restart != "always" and not machine.interface.tells_exit:
        reasons.append(
            f"restart: {wish.restart} for instance {wish.name} needs a kernel that tells how an instance"
            f" ended, and {machine.release} ({machine.interface.name}) does not: leave restart out"
        )
    if machine.interface == UPSTREAM and wish.kernel and wish.kernel.device_trees is False:
        reasons.append(
            f"kernel {wish.kernel.path} for instance {wish.name} was built without CONFIG_OF, but"
            f" {machine.release} ({machine.interface.name}) describes the resources of a spawned kernel in"
            " a device tree: build it with CONFIG_OF=y (multikernel-linux.config of role"
            " mkops.multikernel.kernel)"
        )
    if wish.devices:
        reasons += device_reasons(wish.devices, machine)
    files = [image for image in (wish.kernel, wish.initrd) if image]
    needed = sum(image.size for image in files)
    if memory and needed >= memory:
        reasons.append(
            f"memory: {' and '.join(image.path for image in files)} alone"
            f" {'takes' if len(files) == 1 else 'take'} {needed // MIB} MiB, which does not fit into"
            f" {format_size(memory)}: give instance {wish.name} more"
        )
    return reasons


def same_devices(wished: Record, known: Record | None) -> bool:
    return wished == known if known else not wished


def device_reasons(record: Record, machine: Machine) -> list[str]:
    if machine.virtio:
        return []
    return [
        f"devices of instance {record.name} need a kernel that offers virtio devices, and"
        f" {machine.release} ({machine.interface.name}) does not: leave network, disks and shares out,"
        " or boot a newer kernel of this collection's series"
    ]


def views(wish: Wish, machine: Machine) -> dict[str, Any]:
    """The pool, and the instances that a wish is about, as they are."""
    wanted = [one.name for one in wish.instances if one.state != "absent"]
    declared = {one.name for one in wish.instances}
    names = [name for name in {**machine.instances, **machine.devices} if wish.prune or name in declared]
    return {
        "pool": describe_pool(machine),
        "instances": {
            name: describe_instance(machine, machine.instances.get(name))
            for name in dict.fromkeys([*names, *wanted])
        },
    }


def shared_cores(machine: Machine, held: Mapping[str, Iterable[int]], pool: Iterable[int]) -> list[str]:
    """Warnings of cores that several kernels share, by APIC ids; the host has what the pool has not."""
    pool = set(pool)
    core = machine.topology.core
    users: dict[Any, set[str]] = {}
    for name, cpus in held.items():
        for apic in cpus:
            if apic in core:
                users.setdefault(core[apic], set()).add(name)
    for cpu in machine.topology.online:
        apic = machine.topology.physical[cpu]
        if apic in core and apic not in pool:
            users.setdefault(core[apic], set()).add("the host")
    shared = sorted({", ".join(sorted(names)) for names in users.values() if len(names) > 1})
    return [f"a core has threads of {names}: they slow each other down and share caches" for names in shared]
