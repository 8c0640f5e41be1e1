# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From a wish that is not so yet to exact steps, or to every reason why it cannot be. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..common.cpuset import format_cpus
from ..common.errors import Refused
from ..common.size import MIB, format_size
from ..common.text import counted
from .machine import ACTIVE, Instance, Machine, environment_reasons
from .model import refusal
from .place import Board, choose_pool
from .plan import Plan, instance_reasons, shared_cores, views
from .steps import LEVELS, Anew, Building, Targets
from .views import cpu_list, cpus_named, pool_view
from .wish import AllBut, InstanceWish, Wish, wish_reasons

_PORTION = 128 * MIB  # in which memory is proposed
_MAPPED_WITH_EASE = 64 << 30  # bytes; more than Multikernel Linux up to 7.0-mk2 can map beside the host


def make_plan(wish: Wish, machine: Machine, early: Iterable[str] = ()) -> Plan:
    """All steps, or Refused with all reasons. I(early) are reasons found before, such as unreadable files."""
    reasons = [*early, *wish_reasons(wish), *environment_reasons(machine)]
    if not (machine.supported and machine.mounted):
        raise Refused(*reasons)
    return Planner(wish, machine, reasons).plan()


class Planner:
    def __init__(self, wish: Wish, machine: Machine, reasons: list[str]):
        self.wish = wish
        self.machine = machine
        self.reasons = reasons
        self.warnings: list[str] = []
        self.misplaced: set[str] = set()  # instances that name CPUs which they cannot have
        self.declared = {one.name: one for one in wish.instances}
        current = machine.instances
        self.gone = [
            name
            for name in current
            if (self.declared[name].state == "absent" if name in self.declared else wish.prune)
        ]
        self.wanted = [one for one in wish.instances if one.state != "absent"]
        self.staying = [one for name, one in current.items() if name not in {*self.gone, *self.declared}]
        self.physical = machine.topology.physical
        self.boot = self.physical.get(machine.topology.boot_cpu)

    def plan(self) -> Plan:
        machine, pool = self.machine, self.machine.pool
        explicit = self._explicit_cpus()
        self.pool_cpus = self._pool_cpus(explicit)
        self.cpus = self._place(explicit)
        self.pool_memory = self._pool_memory()
        self._check_devices()
        self._check_states()
        for one in self.wanted:
            self._check_instance(one)
        if self.reasons:
            self._build_for_reasons()
            raise Refused(*dict.fromkeys(self.reasons))
        building = self._build()
        if not self.reasons and (why := refusal(building.steps, self.declared, machine)):
            self.reasons.append(why)
        if self.reasons:
            raise Refused(*dict.fromkeys(self.reasons))
        self._warn(building)
        before = views(self.wish, machine)
        after = {
            "pool": pool_view(machine, sorted(self.pool_cpus), building.memory.nodes)
            if self.pool_cpus or building.memory.nodes or pool.devices
            else {},
            "instances": {name: building.view(name) for name in before["instances"]},
        }
        return Plan(tuple(building.steps), before, after, tuple(self.warnings))

    # CPUs

    def _explicit_cpus(self) -> dict[str, tuple[int, ...]]:
        """APIC ids of the instances that name their CPUs, or have some and say nothing."""
        explicit = {}
        for one in self.wanted:
            current = self.machine.instances.get(one.name)
            if one.cpus is not None:
                explicit[one.name] = tuple(self.physical[cpu] for cpu in one.cpus if cpu in self.physical)
            elif one.cpu_count is None and current:
                explicit[one.name] = current.cpus
        return explicit

    def _pool_cpus(self, explicit: Mapping[str, tuple[int, ...]]) -> frozenset[int]:
        """The pool that is to be."""
        pool, wish = self.machine.pool, self.wish.pool
        if wish is None or (wish.cpus is None and pool and not wish.absent):
            return frozenset(pool.cpus)
        if wish.absent:
            left = [*(one.name for one in self.staying), *(one.name for one in self.wanted)]
            if left:
                self.reasons.append(
                    f"the pool still serves {', '.join(sorted(left))}:"
                    " remove the instances first (state: absent)"
                )
            return frozenset()
        if wish.cpus is None:
            if "cpus" not in wish.said:
                self.reasons.append("there is no pool yet: cpus must be given")
            return frozenset()
        if not isinstance(wish.cpus, tuple):
            return self._counted_pool(wish.cpus, explicit)
        self._check_pool_cpus(wish.cpus)
        cpus = frozenset(self.physical[cpu] for cpu in wish.cpus if cpu in self.physical)
        for one in self.staying:
            for apic in one.cpus:
                if apic not in cpus and apic in self.machine.topology.logical:
                    cpu = cpu_list(self.machine, [apic])
                    self.reasons.append(
                        f"CPU {cpu} is lent to instance {one.name} and cannot leave the pool:"
                        f" keep it in cpus, or remove {one.name} first"
                    )
        self._check_host(cpus)
        return cpus

    def _check_host(self, pool: frozenset[int]) -> None:
        left = self.machine.host_cpus(pool)
        if left < self.wish.host_cpus and self.boot not in pool:
            self.reasons.append(
                f"cpus: the host would keep only {counted(left, 'CPU')}, but host_cpus reserves"
                f" {self.wish.host_cpus}: give the pool fewer CPUs"
            )

    def _counted_pool(self, wanted: int | AllBut, explicit: Mapping[str, tuple[int, ...]]) -> frozenset[int]:
        machine = self.machine
        every = machine.host_cpus(())
        count = every - wanted.count if isinstance(wanted, AllBut) else wanted
        pinned = {apic for cpus in explicit.values() for apic in cpus}
        pinned |= {apic for one in self.staying for apic in one.cpus}
        pinned.discard(self.boot)
        used = {apic for one in machine.instances.values() for apic in one.cpus}
        what = f"all but {wanted.count}" if isinstance(wanted, AllBut) else counted(wanted, "CPU")
        if every - count < self.wish.host_cpus or count < 1:
            self.reasons.append(
                f"cpus: {what} cannot go to the pool: the machine has {counted(every, 'CPU')}, of which the"
                f" host keeps at least {self.wish.host_cpus} (host_cpus) and the pool needs at least one"
            )
            return frozenset({*machine.pool.cpus, *pinned})
        if count < len(pinned):
            self.reasons.append(
                f"cpus: {what} would be a pool of {count}, but instances have"
                f" {cpus_named(machine, sorted(pinned))}: give the pool more CPUs, or the instances fewer"
            )
            return frozenset({*machine.pool.cpus, *pinned})
        chosen = choose_pool(machine.topology, count, machine.pool.cpus, pinned, used)
        if chosen is None:
            self.reasons.append(
                f"cpus: {what} cannot go to the pool: the boot CPU stays with the host, so {every - 1} can"
            )
        return frozenset(chosen or {*machine.pool.cpus, *pinned})

    def _check_pool_cpus(self, cpus: tuple[int, ...]) -> None:
        topology, pool = self.machine.topology, self.machine.pool
        pooled = {cpu for cpu in self.machine.logical(pool.cpus) if cpu is not None}
        every = sorted({*topology.online, *topology.present, *pooled})
        for cpu in cpus:
            if cpu == topology.boot_cpu:
                self.reasons.append(
                    f"CPU {cpu} is the boot CPU and stays with the host: leave it out of cpus"
                )
            elif cpu not in every:
                self.reasons.append(f"CPU {cpu} does not exist: this machine has {format_cpus(every)}")
            elif cpu not in pooled and cpu not in topology.online:
                self.reasons.append(
                    f"CPU {cpu} is offline: bring it online first"
                    f" (echo 1 > /sys/devices/system/cpu/cpu{cpu}/online)"
                )
        unknown = [apic for apic in pool.cpus if apic not in topology.logical]
        if unknown:
            self.reasons.append(
                "this kernel does not tell which logical CPUs have the pool's APIC ids"
                f" {', '.join(map(str, unknown))}: leave cpus out, or empty the pool first (state: absent)"
            )

    def _place(self, explicit: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """APIC ids for every wanted instance."""
        machine = self.machine
        if not self.pool_cpus and self.wanted:
            if not machine.pool and self.wish.pool is None:
                self.reasons.append("there is no pool yet: create it first with mkops.multikernel.pool")
            return dict(explicit)
        holders = {apic: one.name for one in self.staying for apic in one.cpus}
        keeping = [one for one in self.wanted if one.name in explicit and one.cpus is None]
        holders.update({apic: one.name for one in keeping for apic in explicit[one.name]})
        taken = dict(holders)
        named = {apic for cpus in explicit.values() for apic in cpus}
        choice = cpu_list(machine, sorted(self.pool_cpus - holders.keys() - named))
        for one in self.wanted:
            if one.name in explicit:
                self._check_explicit(one, explicit[one.name], holders, choice)
                taken.update(dict.fromkeys(explicit[one.name], one.name))
            elif one.cpu_count is None and "cpus" not in one.said:
                self.reasons.append(
                    f"instance {one.name} does not exist yet: cpus or cpu_count must be given"
                )
        counted = [
            (one, one.cpu_count)
            for one in self.wanted
            if one.name not in explicit and one.cpu_count is not None
        ]
        if not counted:
            return dict(explicit)
        # Those first that are the hardest to please; then the largest.
        counted.sort(key=lambda pair: (-("cache" in pair[0].cpu_policy), -len(pair[0].cpu_policy), -pair[1]))
        every = {*self.pool_cpus, *machine.pool.cpus, *self.physical.values()}
        free = self.pool_cpus - taken.keys()
        current = machine.instances
        names = [one.name for one, _count in counted]
        have = {name: _cpus_of(current[name]) if name in current else () for name in names}
        running = {name for name in names if name in current and current[name].status == ACTIVE}
        # Everybody keeps what it has; or at least what it cannot give up while it runs; or nothing.
        first = {name: cpus[:1] for name, cpus in have.items() if name in running}
        kept: list[dict[str, tuple[int, ...]]] = [have, first, {}]
        failed: list[tuple[InstanceWish, int, Board]] = []
        for attempt in kept:
            board = Board(machine.topology, free, every)
            placed, failing = self._place_counted(counted, board, have, attempt)
            failed = failed or failing
            if not failing:
                failed = []
                break
        for one, count, board in failed:
            self.reasons.append(self._no_place(one, count, board))
        return {**explicit, **placed}

    def _place_counted(
        self,
        counted: list[tuple[InstanceWish, int]],
        board: Board,
        have: Mapping[str, tuple[int, ...]],
        kept: Mapping[str, tuple[int, ...]],
    ) -> tuple[dict[str, tuple[int, ...]], list[tuple[InstanceWish, int, Board]]]:
        """One after the other takes what it wants from the board, but nothing that another one keeps."""
        placed: dict[str, tuple[int, ...]] = {}
        failed = []

        def settle(one: InstanceWish, cpus: tuple[int, ...]) -> None:
            placed[one.name] = cpus
            (board.take_exclusively if "cache" in one.cpu_policy else board.take)(cpus)

        for one, count in counted:
            mine = have[one.name]
            if kept.get(one.name) == mine and len(mine) == count and board.suits(mine, one.cpu_policy):
                settle(one, mine)
        reserved = {
            one.name: [apic for apic in kept.get(one.name, ()) if apic in board.free]
            for one, _count in counted
            if one.name not in placed
        }
        for cpus in reserved.values():
            board.take(cpus)
        for one, count in counted:
            if one.name in placed:
                continue
            board.give(reserved[one.name])
            chosen = board.choose(count, one.cpu_policy, have[one.name])
            if chosen is None:
                failed.append((one, count, board))
            else:
                settle(one, chosen)
        return placed, failed

    def _no_place(self, one: InstanceWish, count: int, board: Board) -> str:
        free = len(board.free)
        numbers = cpu_list(self.machine, sorted(board.free))
        if free < count or not one.cpu_policy:
            left = f"only {free} ({numbers})" if free else "none"
            return (
                f"cpu_count: instance {one.name} needs {counted(count, 'CPU')}, but the pool has {left} free:"
                " ask for fewer, or enlarge the pool"
            )
        policy = ", ".join(sorted(one.cpu_policy))
        if "cores" in one.cpu_policy and count % board.threads:
            return (
                f"cpu_policy: {counted(count, 'CPU')} for instance {one.name} cannot be whole cores of"
                f" {board.threads} threads: ask for {-(-count // board.threads) * board.threads}"
            )
        return (
            f"cpu_policy: instance {one.name} cannot have {counted(count, 'CPU')} with policy {policy} from"
            f" those that are free ({numbers}): choose another policy, or enlarge the pool"
        )

    def _check_explicit(
        self, one: InstanceWish, cpus: tuple[int, ...], holders: Mapping[int, str], free: str
    ) -> None:
        topology, machine = self.machine.topology, self.machine
        before = len(self.reasons)
        for cpu in one.cpus or ():
            apic = self.physical.get(cpu)
            holder = one.name if apic is None else holders.get(apic, one.name)
            if holder != one.name:
                choice = f"choose one of {free}" if free else "all others are lent too"
                if holder in self.declared:
                    choice += f", or specify other CPUs for {holder}"
                self.reasons.append(f"CPU {cpu} is already lent to instance {holder}: {choice}")
            elif cpu == topology.boot_cpu:
                self.reasons.append(
                    f"CPU {cpu} is the boot CPU and stays with the host: choose one from the pool"
                    f" ({cpu_list(machine, sorted(self.pool_cpus))})"
                )
            elif apic is None and cpu not in topology.present:
                self.reasons.append(
                    f"CPU {cpu} does not exist: the pool has {cpu_list(machine, sorted(self.pool_cpus))}"
                )
            elif apic not in self.pool_cpus:
                self.reasons.append(
                    f"CPU {cpu} is not in the pool ({cpu_list(machine, sorted(self.pool_cpus))}):"
                    " add it with mkops.multikernel.pool first"
                )
        if one.cpus is None:
            leaving = [apic for apic in cpus if apic not in self.pool_cpus]
            if leaving:
                self.reasons.append(
                    f"{cpus_named(machine, leaving, ('is', 'are'))} lent to instance {one.name} and cannot"
                    f" leave the pool: keep {'it' if len(leaving) == 1 else 'them'} in cpus of the pool,"
                    f" or specify other CPUs for {one.name}"
                )
        if len(self.reasons) > before:
            self.misplaced.add(one.name)

    # Memory of the pool

    def _pool_memory(self) -> dict[int, int]:
        """Bytes per node that are to be."""
        wish, have = self.wish.pool, self.machine.pool.memory
        if wish is None:
            return have
        if wish.absent:
            return {}
        if wish.memory is None:
            if not self.machine.pool and "memory" not in wish.said:
                self.reasons.append("there is no pool yet: memory must be given")
            return have
        if isinstance(wish.memory, Mapping):
            memory = dict(wish.memory)
        else:
            growth = wish.memory - sum(have.values())
            if growth < 0 and len(have) > 1:
                held = ", ".join(f"{node}: {format_size(size)}" for node, size in sorted(have.items()))
                self.reasons.append(
                    f"memory: the pool holds memory on several NUMA nodes ({held}): specify the size"
                    " for each node, as a dictionary"
                )
                return have
            # As kerf does: memory goes where the pool's CPUs are, or beside what the pool has.
            nodes = self.machine.topology.node
            near = [nodes[apic] for apic in self.pool_cpus if apic in nodes]
            node = min(have) if have else min(near, default=min(self.machine.node_memory, default=0))
            memory = self._grown(have, node, growth)
        self._check_pool_memory(memory)
        return memory

    def _grown(self, have: Mapping[int, int], node: int, growth: int) -> dict[int, int]:
        """More or less memory on a node, or where it has not so much, on the nearest one that has."""
        if growth == 0:
            return dict(have)
        if growth < 0:
            return {**have, node: have[node] + growth}
        near = self.machine.nearest(node, {node, *self.machine.node_memory})
        found = next((one for one in near if self._available(one) >= growth), None)
        if found is None and (several := self._spread(have, near, growth)):
            written = ", ".join(f"{one}: {format_size(size)}" for one, size in sorted(several.items()))
            self.reasons.append(
                f"memory: no NUMA node has {format_size(growth)} available: take it from several nodes,"
                f" for example memory: {{{written}}}"
            )
            return dict(have)
        found = node if found is None else found
        return {**have, found: have.get(found, 0) + growth}

    def _spread(self, have: Mapping[int, int], near: list[int], growth: int) -> dict[int, int]:
        """How several nodes could give it, the nearest most; nothing when they cannot."""
        memory, left = dict(have), growth
        for node in near:
            more = min(left, self._available(node) // _PORTION * _PORTION)
            if more:
                memory[node] = memory.get(node, 0) + more
                left -= more
        return memory if not left and growth <= self._spare() else {}

    def _spare(self) -> int:
        """Bytes that the host can give."""
        return max(self.machine.memory_available - self.wish.headroom, 0)

    def _available(self, node: int) -> int:
        """Bytes that a node can give; a kernel without NUMA does not tell it by node."""
        return self.machine.node_memory.get(node, self.machine.memory_available)

    def _check_pool_memory(self, memory: Mapping[int, int]) -> None:
        machine = self.machine
        have = machine.pool.memory
        growth = {node: size - have.get(node, 0) for node, size in memory.items() if size > have.get(node, 0)}
        for node in sorted(memory):
            if node not in machine.node_memory and machine.node_memory:
                known = ", ".join(map(str, sorted(machine.node_memory)))
                self.reasons.append(f"memory: NUMA node {node} does not exist: this machine has {known}")
            elif growth.get(node, 0) > self._available(node):
                self.reasons.append(
                    f"memory: NUMA node {node} would have to give {format_size(growth[node])} more,"
                    f" but has only {_about(self._available(node))} available: ask for less"
                )
        if sum(growth.values()) > self._spare():
            self.reasons.append(
                f"memory: the pool would take {format_size(sum(growth.values()))} from the host, which has"
                f" {_about(machine.memory_available)} available and keeps {format_size(self.wish.headroom)}"
                f" of it (headroom): ask for at most {_about(self._spare())} more"
            )

    def _check_devices(self) -> None:
        wish = self.wish.pool
        if wish is None or wish.devices is None or set(wish.devices) == set(self.machine.pool.devices):
            return
        self.reasons.append(
            "devices: this collection gives no devices to the pool, because the kernels it was tested with"
            " do not lend them: leave devices out"
            if self.machine.interface.lends_devices
            else f"devices: the kernel {self.machine.release} ({self.machine.interface.name}) lends no"
            " devices: leave devices out"
        )

    # Instances

    def _check_states(self) -> None:
        for name in {*self.gone, *self.declared} & self.machine.instances.keys():
            status = self.machine.instances[name].status
            if status not in LEVELS:
                self.reasons.append(
                    f"instance {name} is in state '{status}', which this collection does not know:"
                    " look at it with kerf show, and remove it by hand"
                )

    def _check_instance(self, one: InstanceWish) -> None:
        machine = self.machine
        current = machine.instances.get(one.name)
        if current is None and one.memory is None and "memory" not in one.said:
            self.reasons.append(f"instance {one.name} does not exist yet: memory must be given")
        if one.id is not None:
            names = {*self.gone, one.name}
            holder = [other.name for other in self.staying if other.id == one.id]
            holder += [
                other.name
                for other in self.wanted
                if other.name not in names
                and other.id is None
                and other.name in machine.instances
                and machine.instances[other.name].id == one.id
            ]
            if holder:
                self.reasons.append(
                    f"id {one.id} is taken by instance {holder[0]}: choose another, or leave it out"
                )
        memory = one.memory or (current.memory if current else 0)
        self.reasons += instance_reasons(one, memory, machine)

    # Steps

    def _build(self) -> Building:
        """Try; what turns out to be possible only for a new instance is made anew in the next try."""
        targets = Targets(
            self.wish,
            self.machine,
            self.declared,
            self.wanted,
            self.gone,
            [
                name
                for name in self.machine.devices.keys() - self.machine.instances.keys()
                if (self.declared[name].state == "absent" if name in self.declared else self.wish.prune)
            ],
            self.cpus,
            self.pool_cpus,
            self.pool_memory,
        )
        anew: dict[str, str] = {}
        while True:
            building = Building(targets, anew)
            try:
                building.build()
            except Anew as found:
                name, why = found.args
                anew[name] = why
                continue
            self.reasons += building.reasons
            self.warnings += building.warnings
            return building

    def _build_for_reasons(self) -> None:
        """There are reasons already: more of them may be found, but what is odd is not to end this."""
        unplaced = [one.name for one in self.wanted if one.name not in self.cpus]
        broken = any(
            one.memory is None and one.name not in self.machine.instances for one in self.wanted
        ) or any(current.status not in LEVELS for current in self.machine.instances.values())
        if not unplaced and not broken:
            # Those that cannot have their CPUs keep what they have, and are in nobody's way.
            self.cpus = {name: cpus for name, cpus in self.cpus.items() if name not in self.misplaced}
            self._build()

    def _warn(self, building: Building) -> None:
        machine = self.machine
        self.warnings += shared_cores(machine, self.cpus, self.pool_cpus)
        if not machine.interface.halves or not building.steps:
            return  # what follows is about Multikernel Linux
        nodes = building.memory.nodes
        if sum(nodes.values()) and not building.memory.free() and building.regions_known:
            self.warnings.append(
                "the instances take all of the pool's memory, and this kernel needs a little of it for"
                " itself: give the pool a few more megabytes if creating an instance fails"
            )
        if sum(nodes.values()) > _MAPPED_WITH_EASE:
            self.warnings.append(
                f"the pool is larger than {format_size(_MAPPED_WITH_EASE)}, and Multikernel Linux up to"
                " 7.0-mk2 may fail to map it: if the host has its memory back at once, see the kernel log"
            )


def _cpus_of(instance: Instance) -> tuple[int, ...]:
    """The one that it cannot give up first; where the kernel does not tell, it is most often the lowest."""
    boot = instance.boot_cpu
    return tuple(sorted(instance.cpus, key=lambda apic: (apic != boot, apic)))


def _about(size: int) -> str:
    return f"{size // MIB} MiB"
