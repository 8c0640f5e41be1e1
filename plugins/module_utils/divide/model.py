# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What kernel and kerf make of a step, and what they refuse. No I/O.

The planner takes its own steps here before anybody takes them on a real machine, so that no instance is
stopped for a plan that cannot be carried out. Nothing but the steps counts: what the planner thinks of the
machine is not looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from ..common.size import PAGE_SIZE, format_size
from .machine import ABSENT, ACTIVE, EMPTY, FAILED, LOADED, READY, Instance, Machine, Region
from .memory import Memory
from .steps import Step
from .views import cpu_list, cpus_named
from .wish import FIRST_ID, LAST_ID, Image, InstanceWish

_FROM = {
    "load": (READY, EMPTY),
    "start": (LOADED,),
    "kill": (ACTIVE,),
    "unload": (LOADED,),
    "delete": (READY, EMPTY, FAILED),
}
_TO = {"load": LOADED, "start": ACTIVE, "kill": LOADED, "unload": READY}


class Impossible(Exception):
    """A step that would be refused, or that would not lead where it should; why."""


class Model:
    """A machine that steps are taken on."""

    def __init__(self, machine: Machine):
        self._machine = machine
        self._online = set(machine.topology.online)
        self.boot = machine.topology.physical.get(machine.topology.boot_cpu)
        self.pool = frozenset(machine.pool.cpus)
        self.memory = Memory(machine)
        self.instances = dict(machine.instances)
        self.lent = machine.lenders()
        self._names = {one.id: one.name for one in machine.instances.values()}
        # Without /proc/iomem nothing can be said about places, only about sums.
        self._places_known = bool(machine.pool.regions) or not machine.instances

    def take(self, step: Step, wish: InstanceWish | None = None) -> None:
        """Apply a step, or raise Impossible; then this is no model of anything any more."""
        if step.action == "set_pool":
            self._set_pool(step)
            return
        if step.action == "set_devices":
            return  # a file of the host
        have = self.instances.get(step.name)
        if step.action == "create":
            self._create(step, wish)
        elif have is None:
            raise Impossible("there is no such instance")
        elif step.action == "set_cpus":
            self._set_cpus(step, have)
        elif step.action == "set_memory":
            self._set_memory(step, have)
        else:
            self._move(step, have, wish)
        self._check(step)

    @property
    def machine(self) -> Machine:
        """As it would be read now."""
        old = self._machine
        topology = old.topology
        cpus = tuple(sorted(self.pool))
        online = tuple(sorted(cpu for cpu, apic in topology.physical.items() if apic not in self.pool))
        regions = [
            Region(base, size, f"mk-instance-{one.id}-{one.name}-region-{number}")
            for one in self.instances.values()
            for number, (base, size) in enumerate(self.memory.regions[one.name])
        ]
        owned = {f"mk-instance-{one.id}-{one.name}-region-" for one in old.instances.values()}
        regions += [one for one in old.pool.regions if one.name.rstrip("0123456789") not in owned]
        pool = replace(
            old.pool,
            cpus=cpus,
            free_cpus=tuple(apic for apic in cpus if apic not in self.lent),
            chunks=tuple(sorted(self.memory.chunks, key=lambda chunk: chunk.base)),
            regions=tuple(sorted(regions, key=lambda region: region.base)),
        )
        return replace(old, pool=pool, topology=replace(topology, online=online), instances=self.instances)

    def _cpus(self, apic_ids: frozenset[int]) -> str:
        return cpu_list(self._machine, sorted(apic_ids))

    def _named(self, apic_ids: Iterable[int], verbs: tuple[str, str] | None = None) -> str:
        return cpus_named(self._machine, sorted(apic_ids), verbs)

    def _check(self, step: Step) -> None:
        """A step says what has to be after it."""
        have = self.instances.get(step.name)
        is_there = have.status if have else ABSENT
        if is_there != step.status:
            raise Impossible(f"it would be {is_there or 'absent'} after that, not {step.status or 'absent'}")
        if have and (frozenset(have.cpus) != step.cpus or have.memory != step.memory):
            raise Impossible(
                f"it would have {self._named(have.cpus)} and {format_size(have.memory)},"
                f" not {self._named(step.cpus)} and {format_size(step.memory)}"
            )

    # The pool

    def _set_pool(self, step: Step) -> None:
        if self.boot in step.cpus:
            raise Impossible(
                f"CPU {self._cpus(frozenset((self.boot,)))} is the boot CPU and stays with the host"
            )
        if held := self.lent.keys() - step.cpus:
            apic = min(held)
            raise Impossible(
                f"CPU {self._cpus(frozenset((apic,)))} is lent to instance {self.lent[apic]} and cannot leave"
                " the pool: keep it in cpus, or remove the instance first (state: absent)"
            )
        unknown = [
            apic
            for apic in step.cpus - self.pool
            if self._machine.topology.logical.get(apic) not in self._online
            and apic not in self._machine.pool.cpus
        ]
        if unknown:
            is_not = self._named(unknown, ("is", "are"))
            raise Impossible(f"{is_not} not online: bring {_it(unknown)} online first")
        sizes = {node: size for node, size in step.nodes.items() if size}
        if not step.cpus and self.instances:
            raise Impossible(
                f"it still serves {', '.join(sorted(self.instances))}: remove the instances first"
            )
        if bool(step.cpus) != bool(sizes) and (not step.cpus or not self.pool):
            raise Impossible("a pool needs both CPUs and memory: give both, or state: absent")
        if stuck := self.memory.resize_pool(sizes):
            node, size = stuck[0]
            raise Impossible(
                f"NUMA node {node} cannot give back {format_size(size)}, because only whole idle chunks can"
                f" leave the pool (it has {self.memory.pieces(node)})"
            )
        self.pool = step.cpus

    # Instances

    def _take_cpus(self, cpus: frozenset[int]) -> None:
        if outside := cpus - self.pool:
            raise Impossible(
                f"{self._named(outside, ('is', 'are'))} not in the pool: add {_it(outside)} to cpus of the"
                " pool first"
            )
        if lent := cpus & self.lent.keys():
            apic = min(lent)
            raise Impossible(
                f"CPU {self._cpus(frozenset((apic,)))} is lent to instance {self.lent[apic]}:"
                " choose another, or take it from that instance in the same task"
            )

    def _create(self, step: Step, wish: InstanceWish | None) -> None:
        if step.name in self.instances:
            raise Impossible("an instance of that name exists already")
        if not step.cpus:
            raise Impossible("it would have no CPU: give cpus or cpu_count")
        self._take_cpus(step.cpus)
        number = wish.id if wish else None
        if number is None:
            number = next((one for one in range(FIRST_ID, LAST_ID + 1) if one not in self._names), None)
            if number is None:
                raise Impossible(f"all ids up to {LAST_ID} are taken: remove an instance first")
        elif number in self._names:
            raise Impossible(
                f"id {number} is taken by instance {self._names[number]}: choose another, or leave it out"
            )
        if step.memory <= 0 or step.memory % PAGE_SIZE:
            raise Impossible(f"{format_size(step.memory)} is not a whole number of pages: give another size")
        if not self._has_room(step.memory) or not self.memory.create(step.name, step.memory, step.node):
            where = f" on NUMA node {step.node}" if step.node is not None else ""
            raise Impossible(
                f"{format_size(step.memory)} of memory does not fit into what the pool has free{where}"
                f" ({format_size(self.memory.free(step.node))}): enlarge the pool, or ask for less"
            )
        cpus = tuple(sorted(step.cpus))
        made = Instance(
            step.name,
            number,
            READY,
            cpus,
            step.memory,
            cmdline=self._cmdline(""),
            boot_cpu=self._starts_on(cpus, cpus[0]),
        )
        self.instances[step.name] = made
        self._names[number] = step.name
        self.lent.update(dict.fromkeys(cpus, step.name))

    def _cmdline(self, text: str) -> str | None:
        return text if self._machine.tells_cmdline else None

    def _starts_on(self, cpus: tuple[int, ...], boot: int | None) -> int | None:
        """What can be read about that: some kernels only tell the CPUs."""
        if len(cpus) == 1:
            return cpus[0]
        return boot if self._machine.interface.tells_exit else None

    def _has_room(self, more: int) -> bool:
        """Sums hold even where no places are known."""
        if self._places_known:
            return True
        total = sum(self.memory.nodes.values())
        return sum(one.memory for one in self.instances.values()) + more <= total

    def _set_cpus(self, step: Step, have: Instance) -> None:
        if not self._machine.interface.resizes:
            raise Impossible("this kernel cannot change its CPUs: recreate it")
        kept = [apic for apic in have.cpus if apic in step.cpus]
        if not kept:
            raise Impossible("it cannot give up all of its CPUs at once: leave it one of them")
        if have.status == ACTIVE and have.boot_cpu is not None and have.boot_cpu not in step.cpus:
            raise Impossible(
                f"it was started on CPU {self._cpus(frozenset((have.boot_cpu,)))}, which it cannot give up"
                " while it runs: leave it that CPU, or stop it first (state: stopped)"
            )
        added = step.cpus - frozenset(have.cpus)
        self._take_cpus(added)
        for apic in have.cpus:
            del self.lent[apic]
        self.lent.update(dict.fromkeys(step.cpus, step.name))
        cpus = tuple(sorted(step.cpus))
        boot = have.boot_cpu if have.boot_cpu is None or have.boot_cpu in kept else min(kept)
        self.instances[step.name] = replace(have, cpus=cpus, boot_cpu=self._starts_on(cpus, boot))

    def _set_memory(self, step: Step, have: Instance) -> None:
        if not self._machine.interface.resizes:
            raise Impossible("this kernel cannot change its memory: recreate it")
        if not self._has_room(step.memory - have.memory):
            raise Impossible("the pool does not have that much memory free: enlarge it, or ask for less")
        if why := self.memory.resize(step.name, step.memory):
            raise Impossible(f"{why}: ask for another size, or recreate it")
        self.instances[step.name] = replace(have, memory=step.memory)

    def _move(self, step: Step, have: Instance, wish: InstanceWish | None) -> None:
        if have.status not in _FROM[step.action]:
            raise Impossible(f"it is {have.status}: bring it to {' or '.join(_FROM[step.action])} first")
        if step.action == "delete":
            self.memory.release(step.name)
            del self.instances[step.name]
            del self._names[have.id]
            for apic in have.cpus:
                del self.lent[apic]
            return
        changed: dict[str, Any] = {"status": _TO[step.action]}
        if step.action == "load":
            if wish is None or wish.kernel is None:
                raise Impossible("there is no kernel to load: give kernel")
            if self._machine.kexec_disabled:
                raise Impossible("kernel.kexec_load_disabled is 1: reboot, and keep it at 0")
            changed.update(
                kernel=_record(wish.kernel),
                initrd=_record(wish.initrd),
                cmdline=self._cmdline(wish.full_cmdline),
            )
        elif step.action == "unload":
            changed.update(kernel={}, initrd={}, cmdline=self._cmdline(""))
        self.instances[step.name] = replace(have, **changed)


def _it(cpus: Collection[int]) -> str:
    return "it" if len(cpus) == 1 else "them"


def _record(image: Image | None) -> Mapping[str, Any]:
    return {"path": image.path, "sha256": image.sha256} if image else {}


def refusal(steps: Iterable[Step], wishes: Mapping[str, InstanceWish], machine: Machine) -> str | None:
    """Why the first impossible step is impossible; None when all of them can be taken."""
    model = Model(machine)
    for step in steps:
        try:
            model.take(step, wishes.get(step.name))
        except Impossible as why:
            what = f"instance {step.name}: {step.action}" if step.name else "the pool"
            return f"{what} is not possible: {why}"
    return None
