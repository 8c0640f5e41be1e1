# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A machine as earlier tasks of a play may leave it, for check mode, in which they have done nothing. No I/O.

What a task of its own decides is not supposed: a wish that names a pool has to be possible with that pool.
"""

from __future__ import annotations

from dataclasses import replace

from .machine import LOADED, READY, Chunk, Instance, Machine, Region
from .place import choose_pool
from .versions import Interface
from .wish import LAST_ID, InstanceWish, Wish

_ANY_MEMORY = 128 << 20  # bytes of an instance of which nobody says how large it is
_FAR = 1 << 45  # an address beyond all memory
_UNKNOWN = Interface("a kernel that is not booted yet", True, True, True, True)


def supposed(wish: Wish, machine: Machine) -> Machine:
    """The same machine with a kernel that can be divided, and with what the wish takes for granted."""
    if not (machine.supported and machine.mounted):
        interface = machine.interface if machine.mounted else _UNKNOWN
        machine = replace(machine, supported=True, mounted=True, interface=interface, virtio=True)
    wanted = [one for one in wish.instances if one.state != "absent"]
    if wish.pool is not None or not wanted:
        return machine
    machine = _without_those_in_the_way(wish, wanted, machine)
    machine = _with_cpus(wanted, machine)
    machine = _with_memory(wanted, machine)
    for one in wanted:
        if one.name not in machine.instances and _is_taken_for_granted(one):
            machine = _with_instance(one, machine)
    return machine


def _is_taken_for_granted(one: InstanceWish) -> bool:
    """Whether somebody who has to make it would have to say more."""
    loads = one.state in ("loaded", "started")
    return not {"cpus", "memory"} <= one.said or (loads and "kernel" not in one.said)


def _named(one: InstanceWish, machine: Machine) -> set[int]:
    """APIC ids of the CPUs that it names and that can be lent."""
    topology = machine.topology
    return {
        topology.physical[cpu]
        for cpu in one.cpus or ()
        if cpu in topology.physical and cpu != topology.boot_cpu
    }


def _without_those_in_the_way(wish: Wish, wanted: list[InstanceWish], machine: Machine) -> Machine:
    declared = {one.name for one in wish.instances}
    cpus = {apic for one in wanted for apic in _named(one, machine)}
    ids = {one.id for one in wanted}
    away = {
        name: one
        for name, one in machine.instances.items()
        if name not in declared and (cpus & set(one.cpus) or one.id in ids)
    }
    left = {name: one for name, one in machine.instances.items() if name not in away}
    pool = machine.pool
    prefixes = tuple(f"mk-instance-{one.id}-{name}-" for name, one in away.items())
    regions = tuple(region for region in pool.regions if not (prefixes and region.name.startswith(prefixes)))
    lent = {apic for one in left.values() for apic in one.cpus}
    free = tuple(apic for apic in pool.cpus if apic not in lent)
    return replace(machine, instances=left, pool=replace(pool, regions=regions, free_cpus=free))


def _with_cpus(wanted: list[InstanceWish], machine: Machine) -> Machine:
    pool, topology = machine.pool, machine.topology
    named = {apic for one in wanted for apic in _named(one, machine)}
    cpus = {*pool.cpus, *named}
    lent = {apic for one in machine.instances.values() for apic in one.cpus}
    short = -len(cpus - lent - named)
    for one in wanted:
        current = machine.instances.get(one.name)
        if one.cpus is None:
            count = one.cpu_count or (0 if current else 1)
            short += max(count - len(current.cpus if current else ()), 0)
    possible = {*cpus, *(topology.physical[cpu] for cpu in topology.online if cpu != topology.boot_cpu)}
    count = min(len(cpus) + max(short, 0 if cpus else 1), len(possible))
    cpus.update(choose_pool(topology, count, tuple(cpus), cpus, lent) or ())
    free = tuple(sorted(cpus - lent))
    return replace(machine, pool=replace(pool, cpus=tuple(sorted(cpus)), free_cpus=free))


def _with_memory(wanted: list[InstanceWish], machine: Machine) -> Machine:
    pool = machine.pool
    more = 0
    for one in wanted:
        current = machine.instances.get(one.name)
        have = current.memory if current else 0
        more += max((one.memory or (0 if current else _ANY_MEMORY)) - have, 0)
    if more <= pool.free_memory and len(wanted) == 1:
        return machine
    granules = min(-(-more // machine.granule), machine.memory_available // machine.granule)
    if not granules:
        return machine
    size = granules * machine.granule
    base = max([_FAR, *(chunk.end for chunk in pool.chunks)])
    base = -(-base // machine.granule) * machine.granule
    node = min(pool.memory, default=min(machine.node_memory, default=0))
    return replace(machine, pool=replace(pool, chunks=(*pool.chunks, Chunk(base, size, node))))


def _with_instance(one: InstanceWish, machine: Machine) -> Machine:
    pool = machine.pool
    cpus = tuple(sorted(_named(one, machine))) or pool.free_cpus[: one.cpu_count or 1]
    memory = one.memory or _ANY_MEMORY
    used = {other.id for other in machine.instances.values()}
    number = one.id or max({*range(1, LAST_ID + 1)} - used)
    begin = max(
        [chunk.base for chunk in pool.chunks[-1:]]
        + [region.end for region in pool.regions if pool.chunks and pool.chunks[-1].holds(region.base)],
        default=_FAR,
    )
    region = Region(begin, memory, f"mk-instance-{number}-{one.name}-region-0")
    made = Instance(
        one.name,
        number,
        LOADED if one.state in ("loaded", "started") and "kernel" not in one.said else READY,
        cpus,
        memory,
    )
    free = tuple(apic for apic in pool.free_cpus if apic not in cpus)
    return replace(
        machine,
        instances={**machine.instances, one.name: made},
        pool=replace(pool, regions=(*pool.regions, region), free_cpus=free),
    )
