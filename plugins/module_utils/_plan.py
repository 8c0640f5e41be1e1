# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From a wish and a reading of the machine to exact steps, or to every reason why it cannot be. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ._cpuset import format_cpus
from ._machine import Instance, Machine
from ._size import MIB, format_size

DEFAULT_CONSOLE = "console=mktty0"  # kerf adds it to a command line that names no console
FIRST_ID, LAST_ID = 1, 511
ABSENT, READY, LOADED, ACTIVE, FAILED, EMPTY = None, "ready", "loaded", "active", "failed", "empty"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Refused(Exception):
    """The wish cannot be granted; nothing was changed. Its arguments are all the reasons."""

    @property
    def reasons(self) -> tuple[str, ...]:
        return self.args


def compile_pattern(pattern: str) -> re.Pattern:
    """A regular expression whose ^ and $ match at lines; ValueError says what is wrong with it."""
    try:
        return re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise ValueError(f"'{pattern}' is not a regular expression: {error}") from error


def environment_reasons(machine: Machine) -> list[str]:
    """Why this host cannot be divided at all."""
    if not machine.supported:
        return [
            f"the running kernel {machine.release} has no multikernel support"
            " (no 'multikernel' in /proc/filesystems): boot a multikernel kernel,"
            " such as role mkops.multikernel.kernel builds"
        ]
    reasons = []
    if not machine.mounted:
        reasons.append(
            "/sys/fs/multikernel is not mounted: start sys-fs-multikernel.mount"
            " (role mkops.multikernel.host sets it up) or run 'mount -t multikernel none /sys/fs/multikernel'"
        )
    if not machine.privileged:
        reasons.append("only root may read and change the pool: use 'become: true'")
    return reasons


# Pool


@dataclass(frozen=True)
class PoolWish:
    """Logical CPUs; memory in total or per NUMA node; None keeps what there is. The headroom stays free."""

    cpus: tuple[int, ...] | None = None
    memory: int | Mapping[int, int] | None = None
    headroom: int = 0


@dataclass(frozen=True)
class PoolPlan:
    """The pool that is to be: APIC ids and bytes per node."""

    cpus: tuple[int, ...] = ()
    memory: Mapping[int, int] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    before: Mapping = field(default_factory=dict)
    after: Mapping = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        return self.before != self.after


def describe_pool(machine: Machine) -> dict:
    pool = machine.pool
    return _pool_view(machine, pool.cpus, pool.memory) if pool else {}


def _pool_view(machine: Machine, cpus, memory: Mapping[int, int]) -> dict:
    return {
        "cpus": cpu_list(machine, cpus),
        "memory": {f"node{node}": format_size(size) for node, size in sorted(memory.items())},
    }


def cpu_list(machine: Machine, apic_ids) -> str:
    """Logical numbers where they are known, the bare APIC id where not."""
    numbers = machine.logical(apic_ids)
    unknown = [f"APIC {apic}" for apic, cpu in zip(apic_ids, numbers, strict=True) if cpu is None]
    return ",".join(filter(None, [format_cpus(cpu for cpu in numbers if cpu is not None), *unknown]))


def plan_pool(wish: PoolWish, machine: Machine, early: tuple[str, ...] = ()) -> PoolPlan:
    """The pool as wished. I(early) are reasons already found, such as unparsable values."""
    reasons = environment_reasons(machine)
    if reasons:
        raise Refused(*early, *reasons)
    pool = machine.pool
    reasons = list(early)
    if not pool:
        reasons += [
            f"there is no pool yet: {what} must be given"
            for what in ("cpus", "memory")
            if getattr(wish, what) is None and not any(what in reason for reason in early)
        ]

    if wish.cpus is None:
        cpus = pool.cpus
    else:
        reasons += _pool_cpu_reasons(wish.cpus, machine)
        physical = machine.topology.physical
        cpus = tuple(sorted(physical[cpu] for cpu in wish.cpus if cpu in physical))

    memory, unclear = _memory_by_node(wish, machine)
    reasons += unclear or _pool_memory_reasons(memory, wish.headroom, machine)
    if reasons:
        raise Refused(*reasons)
    return PoolPlan(
        cpus=cpus,
        memory=memory,
        devices=pool.devices,
        before=describe_pool(machine),
        after=_pool_view(machine, cpus, memory),
    )


def plan_no_pool(machine: Machine) -> PoolPlan:
    """Everything back to the host."""
    reasons = environment_reasons(machine)
    if machine.instances:
        reasons.append(
            f"the pool still serves {', '.join(sorted(machine.instances))}:"
            " remove the instances first (state: absent)"
        )
    if reasons:
        raise Refused(*reasons)
    return PoolPlan(before=describe_pool(machine))


def _pool_cpu_reasons(cpus, machine: Machine) -> list[str]:
    topology, pool = machine.topology, machine.pool
    pooled = {cpu for cpu in machine.logical(pool.cpus) if cpu is not None}
    every = sorted({*topology.online, *topology.present, *pooled})
    reasons = []
    if not cpus:
        reasons.append("cpus is empty: a pool needs at least one CPU (state: absent gives everything back)")
    for cpu in cpus:
        if cpu == topology.boot_cpu:
            reasons.append(f"CPU {cpu} is the boot CPU and stays with the host: leave it out of cpus")
        elif cpu not in every:
            reasons.append(f"CPU {cpu} does not exist: this machine has {format_cpus(every)}")
        elif cpu not in pooled and cpu not in topology.online:
            reasons.append(
                f"CPU {cpu} is offline: bring it online first"
                f" (echo 1 > /sys/devices/system/cpu/cpu{cpu}/online)"
            )
    unknown = [apic for apic, cpu in zip(pool.cpus, machine.logical(pool.cpus), strict=True) if cpu is None]
    if unknown:
        reasons.append(
            f"the logical numbers of the pool's APIC ids {', '.join(map(str, unknown))} cannot be told"
            " on this kernel: leave cpus out, or empty the pool first (state: absent)"
        )
    lenders = machine.lenders()
    for apic, cpu in zip(pool.cpus, machine.logical(pool.cpus), strict=True):
        if cpu is not None and cpu not in cpus and apic in lenders:
            reasons.append(
                f"CPU {cpu} is lent to instance {lenders[apic]} and cannot leave the pool:"
                f" keep it in cpus, or remove {lenders[apic]} first"
            )
    return reasons


def _memory_by_node(wish: PoolWish, machine: Machine) -> tuple[dict[int, int], list[str]]:
    """The wished bytes per node, or why a bare total does not say enough."""
    have = machine.pool.memory
    if wish.memory is None:
        return have, []
    if isinstance(wish.memory, Mapping):
        return dict(wish.memory), []
    growth = wish.memory - sum(have.values())
    if growth == 0:
        return have, []
    if len(have) > 1 and growth < 0:
        held = ", ".join(f"{node}: {format_size(size)}" for node, size in sorted(have.items()))
        return have, [
            f"memory: the pool holds memory on several NUMA nodes ({held}): say which to shrink,"
            " as a dictionary of node and size"
        ]
    # As kerf does: memory goes where the pool's CPUs are, or beside what the pool has.
    near = [machine.topology.node[cpu] for cpu in wish.cpus or () if cpu in machine.topology.node]
    node = min(have) if have else min(near, default=min(machine.node_memory, default=0))
    return {**have, node: have.get(node, 0) + growth}, []


def _pool_memory_reasons(memory: Mapping[int, int], headroom: int, machine: Machine) -> list[str]:
    have = machine.pool.memory
    reasons = []
    growth = {node: size - have.get(node, 0) for node, size in memory.items() if size > have.get(node, 0)}
    for node in sorted(memory):
        if node not in machine.node_memory and machine.node_memory:
            known = ", ".join(map(str, sorted(machine.node_memory)))
            reasons.append(f"memory: NUMA node {node} does not exist: this machine has {known}")
        elif growth.get(node, 0) > machine.node_memory.get(node, machine.memory_available):
            reasons.append(
                f"memory: node {node} would have to give {format_size(growth[node])} more,"
                f" but only {_about(machine.node_memory[node])} of it are available"
            )
    possible = max(machine.memory_available - headroom, 0)
    if sum(growth.values()) > possible:
        reasons.append(
            f"memory: the pool would take {format_size(sum(growth.values()))} from the host, but of its"
            f" {_about(machine.memory_available)} available only {_about(possible)} can go, because"
            f" {format_size(headroom)} stay free (headroom): ask for less"
        )
    for node, size in sorted(have.items()):
        surplus = size - memory.get(node, 0)
        if surplus > 0:
            reasons += _shrink_reasons(node, surplus, machine)
    return reasons


def _shrink_reasons(node: int, surplus: int, machine: Machine) -> list[str]:
    """kerf gives back whole idle chunks, the largest first that is not too much."""
    pool = machine.pool
    rest = surplus
    for chunk in sorted(pool.chunks, key=lambda chunk: -chunk.size):
        if chunk.node == node and pool.is_idle(chunk) and chunk.size <= rest:
            rest -= chunk.size
    if not rest:
        return []
    chunks = ", ".join(
        f"{format_size(chunk.size)}{'' if pool.is_idle(chunk) else ' (in use)'}"
        for chunk in pool.chunks
        if chunk.node == node
    )
    return [
        f"memory: node {node} cannot give back {format_size(surplus)}, because only whole idle chunks"
        f" can leave the pool and it has {chunks}: choose a size that is reached by dropping such chunks"
    ]


def _about(size: int) -> str:
    return f"{size // MIB} MiB"


# Instance


@dataclass(frozen=True)
class Image:
    """A kernel or initramfs file on the host."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class InstanceWish:
    """One instance as its task describes it; None means not said."""

    name: str
    state: str
    cpus: tuple[int, ...] | None = None  # logical
    cpu_count: int | None = None
    memory: int | None = None
    id: int | None = None
    kernel: Image | None = None
    initrd: Image | None = None
    cmdline: str = ""
    allow_restart: bool = False

    @property
    def full_cmdline(self) -> str:
        """As kerf hands it over."""
        words = self.cmdline.split()
        if not any(word.startswith("console=") for word in words):
            return f"{self.cmdline} {DEFAULT_CONSOLE}".strip()
        return self.cmdline


@dataclass(frozen=True)
class InstancePlan:
    """Steps to take in order, and what create needs."""

    steps: tuple[str, ...] = ()
    cpus: tuple[int, ...] = ()  # APIC ids
    memory: int = 0
    before: Mapping = field(default_factory=dict)
    after: Mapping = field(default_factory=dict)


def name_reasons(name: str) -> list[str]:
    if _NAME.fullmatch(name):
        return []
    return [
        f"name '{name}' is not usable: begin with a letter or digit,"
        " go on with those, '.', '_' and '-', at most 63 in all"
    ]


def transition(status: str | None, wanted: str, image_given: bool, image_differs: bool) -> tuple[str, ...]:
    """Steps from a status to a wanted state. Nothing is stopped unasked, but for a new image.

    A running instance satisfies present and loaded. stopped means not running, and, if an image is given,
    loaded too.
    """
    if wanted == "absent":
        return {
            ABSENT: (),
            ACTIVE: ("kill", "unload", "delete"),
            LOADED: ("unload", "delete"),
        }.get(status, ("delete",))

    steps: list[str] = []
    if status is ABSENT:
        steps.append("create")
        status = READY
    if wanted == "present":
        return tuple(steps)

    was_active = status == ACTIVE
    if was_active and (wanted == "stopped" or image_differs):
        steps.append("kill")
        status = LOADED
    if status == LOADED and image_differs:
        steps.append("unload")
        status = READY
    if status in (READY, EMPTY) and image_given:
        steps.append("load")
        status = LOADED
    if status == LOADED and (wanted == "started" or (was_active and wanted == "loaded")):
        steps.append("start")
    return tuple(steps)


def plan_instance(wish: InstanceWish, machine: Machine, early: tuple[str, ...] = ()) -> InstancePlan:
    """The steps to the wished state. I(early) are reasons already found, such as unreadable files."""
    reasons = [*early, *environment_reasons(machine)]
    current = machine.instances.get(wish.name)
    if wish.state == "absent":
        if reasons:
            raise Refused(*reasons)
        steps = transition(current.status if current else ABSENT, "absent", False, False)
        return InstancePlan(steps, before=describe_instance(machine, current))
    if not (machine.supported and machine.mounted):
        raise Refused(*reasons)

    cpus: tuple[int, ...] = ()
    changes: list[str] = []
    if current:
        reasons += _fixed_reasons(wish, current, machine)
        changes = image_changes(wish, current)
        if current.status not in (EMPTY, READY, LOADED, ACTIVE):
            reasons.append(
                f"instance {wish.name} is in state '{current.status}', from which only its removal leads on:"
                " remove it (state: absent) and create it again"
            )
        elif current.status == ACTIVE and changes and wish.state != "stopped" and not wish.allow_restart:
            reasons.append(
                f"instance {wish.name} runs and would need a restart, because {'; '.join(changes)}:"
                " allow it (allow_restart: true), or stop it first (state: stopped)"
            )
    else:
        cpus, problems = _choose_cpus(wish, machine)
        reasons += problems + _new_instance_reasons(wish, machine)

    has_image = current is not None and current.status in (LOADED, ACTIVE)
    if wish.state in ("loaded", "started") and wish.kernel is None and not has_image and not early:
        reasons.append(f"instance {wish.name} has no kernel loaded: state {wish.state} needs kernel")
    reasons += _room_reasons(wish, wish.memory or (current.memory if current else 0))
    if reasons:
        raise Refused(*reasons)

    status = current.status if current else ABSENT
    steps = transition(status, wish.state, wish.kernel is not None, bool(changes))
    if "load" in steps and machine.kexec_disabled:
        raise Refused(
            "kernel.kexec_load_disabled is 1, so that no kernel can be loaded until the next boot:"
            " reboot, and keep it at 0"
        )
    memory = current.memory if current else wish.memory or 0
    plan = InstancePlan(steps, cpus, memory, before=describe_instance(machine, current))
    return InstancePlan(steps, cpus, memory, before=plan.before, after=_predict(plan, wish, machine))


def describe_instance(machine: Machine, instance: Instance | None) -> dict:
    """What a diff shows."""
    if instance is None:
        return {}
    view = {
        "name": instance.name,
        "state": instance.status,
        "cpus": cpu_list(machine, instance.cpus),
        "memory": format_size(instance.memory),
    }
    if instance.status in (LOADED, ACTIVE):
        view["kernel"] = _file_view(instance.kernel)
        view["initrd"] = _file_view(instance.initrd)
        view["cmdline"] = instance.cmdline
    return view


def _file_view(record: Mapping) -> dict | None:
    return {"path": record.get("path"), "sha256": record.get("sha256")} if record else None


def _predict(plan: InstancePlan, wish: InstanceWish, machine: Machine) -> dict:
    """The view after the steps."""
    view = dict(plan.before)
    results = {"create": READY, "unload": READY, "load": LOADED, "kill": LOADED, "start": ACTIVE}
    for step in plan.steps:
        view["state"] = results[step]
        if step == "create":
            view.update(name=wish.name, cpus=cpu_list(machine, plan.cpus), memory=format_size(plan.memory))
        elif step == "unload":
            for key in ("kernel", "initrd", "cmdline"):
                view.pop(key)
        elif step == "load":
            for key in ("kernel", "initrd"):
                image = getattr(wish, key)
                view[key] = {"path": image.path, "sha256": image.sha256} if image else None
            view["cmdline"] = wish.full_cmdline if machine.tells_cmdline else None
    return view


def image_changes(wish: InstanceWish, current: Instance) -> list[str]:
    """How the loaded image differs from the wished one. What is not proved the same counts as different."""
    if wish.kernel is None or current.status not in (LOADED, ACTIVE):
        return []
    changes = []
    pairs = ("kernel", wish.kernel, current.kernel), ("initrd", wish.initrd, current.initrd)
    for what, image, record in pairs:
        if image is None and record:
            changes.append(f"{what} {record.get('path')} is loaded and none is wanted")
        elif image and not record:
            changes.append(f"no record tells which {what} is loaded, wanted is {image.path}")
        elif image and image.sha256 != record.get("sha256"):
            changes.append(f"{what} {image.path} has changed since it was loaded")
    if current.cmdline is not None and current.cmdline.split() != wish.full_cmdline.split():
        changes.append(f"the command line is '{current.cmdline}', wanted is '{wish.full_cmdline}'")
    return changes


def _fixed_reasons(wish: InstanceWish, current: Instance, machine: Machine) -> list[str]:
    """CPUs, memory and id are given at creation and stay."""
    differences = []
    have = machine.logical(current.cpus)
    if wish.cpus is not None and sorted(wish.cpus) != sorted(cpu for cpu in have if cpu is not None):
        differences.append(f"CPUs {cpu_list(machine, current.cpus)}, wanted are {format_cpus(wish.cpus)}")
    if wish.cpu_count is not None and wish.cpu_count != len(current.cpus):
        differences.append(f"{len(current.cpus)} CPU(s), wanted are {wish.cpu_count}")
    if wish.memory is not None and wish.memory != current.memory:
        differences.append(f"{format_size(current.memory)} of memory, wanted are {format_size(wish.memory)}")
    if wish.id is not None and wish.id != current.id:
        differences.append(f"id {current.id}, wanted is {wish.id}")
    return [
        f"instance {wish.name} has {difference}: an existing instance cannot be changed in this,"
        " remove it (state: absent) and create it again"
        for difference in differences
    ]


def _choose_cpus(wish: InstanceWish, machine: Machine) -> tuple[tuple[int, ...], list[str]]:
    """APIC ids for a new instance."""
    pool, topology = machine.pool, machine.topology
    if not pool:
        return (), ["there is no pool yet: create it first with mkops.multikernel.pool"]
    free = sorted(pool.free_cpus, key=lambda apic: topology.logical.get(apic, apic))
    if wish.cpus is None:
        if wish.cpu_count is None:
            return (), [f"instance {wish.name} does not exist yet: cpus or cpu_count must be given"]
        if wish.cpu_count > len(free):
            return (), [
                f"cpu_count: {wish.cpu_count} wanted, but the pool has {len(free)} free"
                f" ({cpu_list(machine, free) or 'none'})"
            ]
        return tuple(free[: wish.cpu_count]), []

    reasons = [] if wish.cpus else ["cpus is empty: an instance needs at least one CPU"]
    lenders = machine.lenders()
    chosen = []
    for cpu in wish.cpus:
        apic = topology.physical.get(cpu)
        if apic in lenders:
            reasons.append(
                f"CPU {cpu} is already lent to instance {lenders[apic]}: choose one of"
                f" {cpu_list(machine, free) or 'none, all are lent'}"
            )
        elif cpu == topology.boot_cpu:
            reasons.append(
                f"CPU {cpu} is the boot CPU and stays with the host: choose one of the pool"
                f" ({cpu_list(machine, pool.cpus)})"
            )
        elif apic is None and cpu not in topology.present:
            reasons.append(f"CPU {cpu} does not exist: the pool has {cpu_list(machine, pool.cpus)}")
        elif apic not in pool.free_cpus:
            reasons.append(
                f"CPU {cpu} is not in the pool ({cpu_list(machine, pool.cpus)}):"
                " add it with mkops.multikernel.pool first"
            )
        else:
            chosen.append(apic)
    return tuple(chosen), reasons


def _new_instance_reasons(wish: InstanceWish, machine: Machine) -> list[str]:
    reasons = []
    if wish.memory is None:
        reasons.append(f"instance {wish.name} does not exist yet: memory must be given")
    elif machine.pool and wish.memory > machine.pool.free_memory:
        reasons.append(
            f"memory: {format_size(wish.memory)} wanted, but of the pool's {format_size(machine.pool.size)}"
            f" only {format_size(machine.pool.free_memory)} are free: ask for less or enlarge the pool"
        )
    if wish.id is not None:
        holder = [one.name for one in machine.instances.values() if one.id == wish.id]
        if not FIRST_ID <= wish.id <= LAST_ID:
            reasons.append(f"id {wish.id} is out of range: choose {FIRST_ID} to {LAST_ID}, or leave it out")
        elif holder:
            reasons.append(f"id {wish.id} is taken by instance {holder[0]}: choose another, or leave it out")
    return reasons


def _room_reasons(wish: InstanceWish, memory: int) -> list[str]:
    files = [image for image in (wish.kernel, wish.initrd) if image]
    needed = sum(image.size for image in files)
    if not memory or needed < memory:
        return []
    return [
        f"memory: {' and '.join(image.path for image in files)} alone take {_about(needed)},"
        f" which {format_size(memory)} cannot hold: give the instance more"
    ]
