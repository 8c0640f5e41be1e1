# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The order of steps: each is applied to a picture of the machine, on which the next one stands. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..common.size import format_size
from ..devices.record import Record
from .machine import ABSENT, ACTIVE, EMPTY, FAILED, LOADED, READY, Instance, Machine
from .memory import Memory
from .options import device_changes, differences
from .overlay import PoolChange, cpu_steps, create_cpus, memory_steps
from .views import cpu_list, cpus_named, describe_instance, pool_view
from .wish import InstanceWish, Wish

LEVELS = {ABSENT: 0, FAILED: 1, EMPTY: 1, READY: 1, LOADED: 2, ACTIVE: 3}
_UP = {1: ("create", READY), 2: ("load", LOADED), 3: ("start", ACTIVE)}
_DOWN = {3: ("kill", LOADED), 2: ("unload", READY), 1: ("delete", ABSENT)}
_REACHED = dict((*_UP.values(), *_DOWN.values()))


def transition(
    status: str | None,
    wanted: str,
    image_given: bool = False,
    image_differs: bool = False,
    anew: bool = False,
    halted: bool = False,
) -> tuple[str, ...]:
    """Steps from a status to a wanted state: down as far as needed, then up.

    A running instance satisfies present and loaded. stopped means not running, and, if an image is given,
    loaded too. I(anew) is for what only a new instance can have, I(halted) for what a running one cannot do.
    """
    have = LEVELS[status]
    if wanted == "absent":
        floor = goal = 0
    else:
        goal = {
            "present": max(have, 1),
            "loaded": max(have, 2),
            "started": 3,
            "stopped": 2 if image_given else min(max(have, 1), 2),
        }[wanted]
        floor = min(have, goal)
        if image_differs and wanted != "present":
            floor = min(floor, 1)
        if halted:
            floor = min(floor, 2)
        if anew:
            floor = 0
    down = [_DOWN[level][0] for level in range(have, floor, -1)]
    return (*down, *(_UP[level][0] for level in range(floor + 1, goal + 1)))


def stays_ended(wish: InstanceWish, current: Instance) -> bool:
    """Whether its restart policy lets it rest: it ran, and ended by itself or by somebody's hand."""
    if wish.state != "started" or current.status != LOADED or wish.restart == "always" or not current.epoch:
        return False
    word = (current.exit_reason or "").partition(":")[0]
    return wish.restart == "no" or word in ("clean", "forced")


@dataclass(frozen=True)
class Step:
    """One call of kerf, and what the kernel has to show after it."""

    action: str  # set_pool, create, set_cpus, set_memory, load, start, kill, unload, delete
    name: str = ""  # of the instance; empty for the pool
    status: str | None = None  # of the instance afterwards
    cpus: frozenset[int] = frozenset()  # APIC ids afterwards
    memory: int = 0  # bytes of the instance afterwards
    node: int | None = None  # that the memory has to come from
    nodes: Mapping[int, int] = field(default_factory=dict)  # bytes of the pool afterwards, per node
    devices: tuple[str, ...] = ()
    record: Record | None = None  # devices of the instance afterwards
    text: str = ""  # for people


@dataclass(frozen=True)
class Targets:
    """What is to be, when it is known for every object."""

    wish: Wish
    machine: Machine
    declared: Mapping[str, InstanceWish]
    wanted: list[InstanceWish]  # those of them that are not to be absent
    gone: list[str]
    absent: list[str]  # that are not there, and of which devices may be recorded
    cpus: Mapping[str, tuple[int, ...]]  # APIC ids of each wanted instance
    pool_cpus: frozenset[int]
    pool_memory: Mapping[int, int]  # per node


class Anew(Exception):
    """An instance can have what is wished only if it is made anew; name and reason."""


class Building:
    """Steps in order, each applied to a picture of the machine: down and shrink, the pool, grow and up."""

    def __init__(self, targets: Targets, anew: Mapping[str, str]):
        self.targets = targets
        self.machine = machine = targets.machine
        self.anew = dict(anew)
        self.reasons: list[str] = []
        self.warnings: list[str] = []
        self.why: dict[str, str] = {}  # an instance is stopped although it is to run
        self.steps: list[Step] = []
        self.memory = Memory(machine)
        self.status: dict[str, str | None] = {name: one.status for name, one in machine.instances.items()}
        self.cpus: dict[str, frozenset[int]] = {
            name: frozenset(one.cpus) for name, one in machine.instances.items()
        }
        self.size: dict[str, int] = {name: one.memory for name, one in machine.instances.items()}
        self.pool = frozenset(machine.pool.cpus)
        self.reloaded: set[str] = set()
        self.records = dict(machine.devices)
        # Without /proc/iomem nothing can be said about places, only about sums.
        self.regions_known = bool(machine.pool.regions) or not machine.instances

    # The picture

    def view(self, name: str) -> dict[str, Any]:
        """As describe_instance() will show it."""
        status = self.status.get(name)
        if status is ABSENT:
            return {}
        machine = self.machine
        view: dict[str, Any] = {
            "name": name,
            "state": status,
            "cpus": cpu_list(machine, sorted(self.cpus[name])),
            "memory": format_size(self.size[name]),
        }
        if status in (LOADED, ACTIVE):
            if name in self.reloaded:
                wish = self.targets.declared[name]
                for key in ("kernel", "initrd"):
                    image = getattr(wish, key)
                    view[key] = {"path": image.path, "sha256": image.sha256 or None} if image else None
                view["cmdline"] = wish.full_cmdline if machine.tells_cmdline else None
            else:
                old = describe_instance(machine, machine.instances[name])
                view.update({key: old[key] for key in ("kernel", "initrd", "cmdline")})
        if devices := self.records.get(name):
            view["devices"] = devices.plain()
        return view

    def _lent(self) -> dict[int, str]:
        return {apic: name for name, cpus in self.cpus.items() for apic in cpus}

    def _add(
        self,
        action: str,
        name: str,
        text: str = "",
        node: int | None = None,
        record: Record | None = None,
    ) -> None:
        self.steps.append(
            Step(
                action,
                name,
                self.status[name],
                self.cpus.get(name, frozenset()),
                self.size.get(name, 0),
                node,
                record=record,
                text=f"{action} {name}{text and ': '}{text}",
            )
        )

    def _move(self, name: str, action: str) -> None:
        """A step up or down that changes nothing but the status."""
        self.status[name] = _REACHED[action]
        if action == "delete":
            self.memory.release(name)
            self.cpus.pop(name, None)
            self.size.pop(name, None)
        elif action == "load":
            self.reloaded.add(name)
        self._add(action, name, self.why.get(name, "") if action == "kill" else "")

    # The order

    def build(self) -> None:
        targets = self.targets
        up: dict[str, list[str]] = {}
        down: dict[str, list[str]] = {
            name: list(transition(self.status[name], "absent"))
            for name in targets.gone
            if self.status[name] in LEVELS
        }
        for one in targets.wanted:
            if self.status.get(one.name) in LEVELS:
                steps = self._course(one)
                down[one.name] = [step for step in steps if step in ("kill", "unload", "delete")]
                up[one.name] = [step for step in steps if step in ("create", "load", "start")]
        for name, moves in down.items():
            for step in moves:
                self._move(name, step)
        resized = [
            one for one in targets.wanted if self.status.get(one.name) is not ABSENT and one.name in up
        ]
        for one in resized:
            self._shrink(one)
        self._set_pool()
        for one in resized:
            if one.memory is not None and one.memory > self.size[one.name]:
                self._set_memory(one.name, one.memory)
        self._grow_cpus([one.name for one in resized])
        # The kernel gives those without an id the lowest one, which must not be another one's.
        for one in sorted(targets.wanted, key=lambda one: one.id is None):
            if "create" in up.get(one.name, ()):
                self._create(one)
        self._set_devices()
        for one in targets.wanted:
            for step in up.get(one.name, ()):
                if step != "create":
                    self._move(one.name, step)

    def _set_devices(self) -> None:
        """What is recorded of devices, before anything starts that has them."""
        targets = self.targets
        for name in sorted({*targets.absent, *targets.gone} & self.records.keys()):
            del self.records[name]
            self._record(name, None)
        for one in targets.wanted:
            if one.devices is not None and one.devices != self.records.get(one.name, Record(one.name)):
                if one.devices:
                    self.records[one.name] = one.devices
                else:
                    del self.records[one.name]
                self._record(one.name, one.devices or None)

    def _record(self, name: str, record: Record | None) -> None:
        self.status.setdefault(name, ABSENT)
        self._add("set_devices", name, ", ".join(record.summary) if record else "none", record=record)

    def _course(self, one: InstanceWish) -> tuple[str, ...]:
        """Steps of one instance, apart from a change of what it has."""
        machine = self.machine
        current = machine.instances.get(one.name)
        if current is None:
            steps = transition(ABSENT, one.state, one.kernel is not None)
            self._check_load(one, steps, None)
            return steps
        changes = differences(one, current, "load")
        if one.name not in self.anew and (why := self._needs_anew(one, current)):
            self.anew[one.name] = why
        anew = self.anew.get(one.name)
        halted = not anew and (self._boot_cpu_goes(one, current) or self._devices_differ(one, current))
        wanted = one.state
        if not (changes or anew) and stays_ended(one, current):
            wanted = "loaded"
            self.warnings.append(
                f"instance {one.name} has ended ({current.exit_reason}) and is not started again, because"
                f" restart is {one.restart}"
            )
        steps = transition(
            current.status, wanted, one.kernel is not None, bool(changes), bool(anew), bool(halted)
        )
        if "kill" in steps and "start" in steps:
            because = [*(changes if one.state != "present" else ()), *filter(None, [anew, halted])]
            self.why[one.name] = f"needs a restart, because {'; '.join(because)}"
            if not one.allow_restart:
                self.reasons.append(
                    f"instance {one.name} runs and would need a restart, because {'; '.join(because)}:"
                    " allow it (allow_restart: true), or stop it first (state: stopped)"
                )
        self._check_load(one, steps, anew)
        return steps

    def _check_load(self, one: InstanceWish, steps: tuple[str, ...], anew: str | None) -> None:
        reasons = self.reasons
        if "load" in steps or ("start" in steps and self.status.get(one.name) not in (LOADED, ACTIVE)):
            if self.machine.kexec_disabled:
                reasons.append(
                    "kernel.kexec_load_disabled is 1, so no kernel can be loaded until the next boot:"
                    " reboot, and keep it at 0"
                )
            if one.kernel is None:
                reasons.append(
                    f"instance {one.name} has to be recreated, because {anew}: that loses its kernel,"
                    " so give kernel to have it loaded again"
                    if anew
                    else f"instance {one.name} has no kernel loaded: state {one.state} needs one, give kernel"
                )

    def _needs_anew(self, one: InstanceWish, current: Instance) -> str | None:
        machine = self.machine
        if current.status == FAILED:
            return "the kernel says that it failed"
        for why in (*differences(one, current, "anew"), *device_changes(one, current, machine)):
            return why
        if machine.interface.resizes:
            return None
        target = self.targets.cpus.get(one.name, current.cpus)
        if set(target) != set(current.cpus):
            return (
                f"it has {cpus_named(machine, current.cpus)} instead of {cpus_named(machine, target)},"
                f" and {machine.release} cannot change that"
            )
        if one.memory is not None and one.memory != current.memory:
            return (
                f"it has {format_size(current.memory)} of memory instead of {format_size(one.memory)},"
                f" and {machine.release} cannot change that"
            )
        return None

    def _boot_cpu_goes(self, one: InstanceWish, current: Instance) -> str | None:
        target = self.targets.cpus.get(one.name, current.cpus)
        boot = current.boot_cpu
        if current.status == ACTIVE and boot is not None and boot not in target:
            cpu = cpu_list(self.machine, [boot])
            return f"it was started on CPU {cpu}, which it cannot give up while it runs"
        return None

    def _devices_differ(self, one: InstanceWish, current: Instance) -> str | None:
        had = self.machine.devices.get(one.name)
        if current.status != ACTIVE or one.devices is None or had is None or one.devices.seen == had.seen:
            return None
        return "its devices change in what it only sees when it starts"

    # What they have

    def _target(self, name: str) -> frozenset[int]:
        return frozenset(self.targets.cpus.get(name, self.cpus[name]))

    def _set_cpus(self, name: str, wanted: frozenset[int]) -> None:
        machine = self.machine
        for cpus in cpu_steps(name, self.cpus[name], wanted, machine.interface.longest_overlay):
            had, self.cpus[name] = self.cpus[name], cpus
            self._add(
                "set_cpus",
                name,
                f"CPUs {cpu_list(machine, sorted(cpus))} instead of {cpu_list(machine, sorted(had))}",
            )

    def _set_memory(self, name: str, wanted: int) -> None:
        have = self.size[name]
        regions = [size for _base, size in self.memory.regions[name]]
        if why := self.memory.resize(name, wanted):
            raise Anew(name, why)
        leaving = regions[: len(self.memory.regions[name]) - 1 : -1]  # newest first, none when it grows
        limit = self.machine.interface.longest_overlay
        sizes = memory_steps(name, leaving, have, limit) if leaving else [wanted]
        for size in sizes:
            had, self.size[name] = self.size[name], size
            self._add("set_memory", name, f"{format_size(size)} instead of {format_size(had)}")

    def _shrink(self, one: InstanceWish) -> None:
        have, target = self.cpus[one.name], self._target(one.name)
        if have - target and have & target:
            added = target - have
            at_hand = added <= self.pool - self._lent().keys()
            self._set_cpus(one.name, target if at_hand else have & target)
        if one.memory is not None and one.memory < self.size[one.name]:
            self._set_memory(one.name, one.memory)

    def _grow_cpus(self, names: list[str]) -> None:
        """In the order in which CPUs become free. One that gives up all it has first gets the new ones."""
        left = [name for name in names if self.cpus[name] != self._target(name)]
        while left:
            free = self.pool - self._lent().keys()
            ready = [name for name in left if self._target(name) - self.cpus[name] <= free]
            if not ready:
                raise Anew(left[0], "it has to swap all of its CPUs with other instances")
            name = ready[0]
            target = self._target(name)
            if not self.cpus[name] <= target:
                self._set_cpus(name, self.cpus[name] | target)
            self._set_cpus(name, target)
            left.remove(name)

    def _set_pool(self) -> None:
        targets, machine = self.targets, self.machine
        wish = targets.wish.pool
        if wish is None or (wish.absent and self.cpus):
            return
        pool = machine.pool
        cpus, memory = targets.pool_cpus, targets.pool_memory
        same = cpus == frozenset(pool.cpus) and sizes_of(memory) == sizes_of(pool.memory)
        if same and not (wish.absent and pool):
            return
        for apic, name in self._lent().items():
            if apic not in cpus and name in targets.declared:
                raise Anew(name, f"CPU {cpu_list(machine, [apic])} leaves the pool and it has no other CPU")
        before = self.memory.nodes
        leaving, coming, _stuck = self.memory.pool_changes(memory)
        change = PoolChange(
            frozenset(pool.cpus), pool.memory, cpus, [(one.node, one.size) for one in leaving], coming
        )
        for node, surplus in self.memory.resize_pool(memory):
            self.reasons.append(
                f"memory: NUMA node {node} cannot give back"
                f" {format_size(before[node] - memory.get(node, 0))}, because only whole idle chunks can"
                f" leave the pool (it has {self.memory.pieces(node)}) and {format_size(surplus)} too much"
                " would stay: choose a size that can be reached by dropping whole chunks"
            )
        self.pool = cpus
        if self.reasons:
            return
        for some_cpus, some_memory in change.steps(machine.interface.longest_overlay):
            view = pool_view(machine, sorted(some_cpus), some_memory)
            sizes = ", ".join(f"{size} on {node}" for node, size in view["memory"].items())
            self.steps.append(
                Step(
                    "set_pool",
                    cpus=some_cpus,
                    nodes=some_memory,
                    devices=() if wish.absent else pool.devices,
                    text=f"set_pool: CPUs {view['cpus'] or 'none'}, {sizes or 'no memory'}",
                )
            )

    def _create(self, one: InstanceWish) -> None:
        targets, machine = self.targets, self.machine
        current = machine.instances.get(one.name)
        memory = one.memory if one.memory is not None else current.memory if current else 0
        cpus = frozenset(targets.cpus.get(one.name, ()))
        node = self._node(cpus, memory)
        if self.memory.nodes and not self.memory.create(one.name, memory, node):
            free, total = self.memory.free(), sum(self.memory.nodes.values())
            if total < memory:
                why = f"the pool has only {format_size(total)}"
            elif free < memory:
                why = f"only {format_size(free)} of the pool's {format_size(total)} is free"
            else:
                why = f"the {format_size(free)} that is free in the pool is not in one piece"
            self.reasons.append(
                f"memory: instance {one.name} needs {format_size(memory)}, but {why}: ask for less, or"
                " enlarge the pool"
            )
        self.status[one.name] = READY
        self.size[one.name] = memory
        limit = machine.interface.longest_overlay
        count = create_cpus(one.name, len(cpus), one.id is not None, node is not None, limit)
        first = frozenset(sorted(cpus)[:count])
        self.cpus[one.name] = first
        record = one.devices if one.devices is not None else self.records.get(one.name)
        what = [
            f"CPUs {cpu_list(machine, sorted(first))}",
            format_size(memory),
            *(record.nodes if record else ()),
        ]
        self._add("create", one.name, ", ".join(what), node, record or None)
        if first != cpus:
            self._set_cpus(one.name, cpus)

    def _node(self, cpus: frozenset[int], memory: int) -> int | None:
        """The one nearest to the CPUs that has enough, if the pool has memory on several."""
        known = self.machine.topology.node
        nodes = {known.get(apic) for apic in cpus}
        node = nodes.pop() if len(nodes) == 1 else None
        if len(self.memory.nodes) < 2 or node is None:
            return None
        near = self.machine.nearest(node, self.memory.nodes)
        return next((one for one in near if self.memory.fits(memory, one)), None)


def anew(have: Instance, machine: Machine) -> list[Step]:
    """Delete an instance that is not loaded, and create it as it was."""
    cpus, limit = sorted(have.cpus), machine.interface.longest_overlay
    why = "it could not be loaded, and this kernel would not try again"
    steps = [Step("delete", have.name, ABSENT, text=f"delete {have.name}: {why}")]
    memory = Memory(machine)
    node = memory.node_of(have.name)
    count = create_cpus(have.name, len(cpus), True, node is not None, limit)
    first = frozenset(cpus[:count])
    sets = [first]
    if count < len(cpus):
        sets += cpu_steps(have.name, first, frozenset(cpus), limit)
    for place, some in enumerate(sets):
        action = "set_cpus" if place else "create"
        text = f"{action} {have.name}: CPUs {cpu_list(machine, sorted(some))}, {format_size(have.memory)}"
        steps.append(Step(action, have.name, READY, some, have.memory, None if place else node, text=text))
    return steps


def sizes_of(memory: Mapping[int, int]) -> dict[int, int]:
    return {node: size for node, size in memory.items() if size}
