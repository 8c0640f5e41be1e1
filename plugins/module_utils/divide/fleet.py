# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which host of a fleet gets which instance. Pure: what is free and what is wished go in, hosts come out.

What is there stays where it is. The others are placed one by one, those that need most first, so that the
same input gives the same answer whatever its order. It does not try all ways (that is bin packing): where it
finds none, there may be one if others were placed elsewhere.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..common.size import format_size, parse_size
from ..common.text import counted, shown

SPREAD, PACK = "spread", "pack"
POLICIES = (SPREAD, PACK)
_INSTANCE_KEYS = frozenset({"cpu_count", "memory", "requires", "apart", "one_node"})
_HOST_KEYS = frozenset({"cpus", "memory", "labels", "nodes", "instances"})


@dataclass
class Room:
    """Free CPUs and bytes, of a host or of a NUMA node."""

    cpus: int
    memory: int

    def holds(self, cpus: int, memory: int) -> bool:
        return cpus <= self.cpus and memory <= self.memory


@dataclass(frozen=True)
class Wanted:
    """An instance. requires: labels of its host. apart: a word that no two on a host may share."""

    name: str
    cpus: int
    memory: int
    requires: frozenset[tuple[str, str]] = frozenset()
    apart: str | None = None
    one_node: bool = False

    def __str__(self) -> str:
        return f"instance {self.name} ({counted(self.cpus, 'CPU')}, {format_size(self.memory)})"


@dataclass
class Host:
    """nodes: empty where a host does not tell. there: instances that it has, with their CPUs and bytes."""

    name: str
    free: Room
    labels: frozenset[tuple[str, str]] = frozenset()
    nodes: list[Room] = field(default_factory=list)
    there: dict[str, Room] = field(default_factory=dict)
    apart: set[str] = field(default_factory=set)

    def against(self, one: Wanted, more: Room) -> str | None:
        """Why an instance cannot be here, as a kind of reason. more: what it needs beyond what it has."""
        if not one.requires <= self.labels:
            return "lack its labels"
        if one.apart is not None and one.apart in self.apart:
            return f"have another one that is to be apart ({one.apart})"
        if more.cpus > self.free.cpus:
            return "have too few free CPUs"
        if more.memory > self.free.memory:
            return "have too little free memory"
        if not self._node_holds(one, more):
            return "have no NUMA node with enough of both"
        return None

    def _node_holds(self, one: Wanted, more: Room) -> bool:
        if not one.one_node or not self.nodes:
            return True
        return any(node.holds(more.cpus, more.memory) for node in self.nodes)

    def takes(self, one: Wanted, need: Room) -> bool:
        """Where its labels and free CPUs are known to do."""
        return one.memory <= self.free.memory and one.apart not in self.apart and self._node_holds(one, need)

    def take(self, one: Wanted, more: Room) -> None:
        self.free.cpus -= more.cpus
        self.free.memory -= more.memory
        if one.apart is not None:
            self.apart.add(one.apart)
        fitting = [node for node in self.nodes if node.holds(more.cpus, more.memory)]
        if fitting:
            # The fullest, so that large ones find a place later.
            node = min(fitting, key=lambda room: (room.cpus, room.memory))
            node.cpus -= more.cpus
            node.memory -= more.memory
            return
        for node in sorted(self.nodes, key=lambda room: (-room.cpus, -room.memory)):
            cpus, memory = min(node.cpus, more.cpus), min(node.memory, more.memory)
            node.cpus -= cpus
            node.memory -= memory
            more = Room(more.cpus - cpus, more.memory - memory)


class _Ranking:
    """Hosts that have some labels, in the order in which they are tried."""

    def __init__(self, hosts: Iterable[Host], policy: str) -> None:
        self._sign = -1 if policy == SPREAD else 1
        self._hosts = {host.name: host for host in hosts}
        self._order = sorted(self._key(host) for host in self._hosts.values())

    def _key(self, host: Host) -> tuple[int, int, str]:
        return self._sign * host.free.cpus, self._sign * host.free.memory, host.name

    def __contains__(self, host: Host) -> bool:
        return host.name in self._hosts

    def remove(self, host: Host) -> None:
        del self._order[bisect.bisect_left(self._order, self._key(host))]

    def insert(self, host: Host) -> None:
        bisect.insort(self._order, self._key(host))

    def first(self, one: Wanted) -> Host | None:
        """The first that can have it. Hosts with too few CPUs are at one end, and not looked at."""
        need = Room(one.cpus, one.memory)
        start = 0 if self._sign < 0 else bisect.bisect_left(self._order, (one.cpus, 0, ""))
        for at in range(start, len(self._order)):
            cpus, _memory, name = self._order[at]
            if self._sign < 0 and -cpus < one.cpus:
                return None
            host = self._hosts[name]
            if host.takes(one, need):
                return host
        return None


def place(hosts: Iterable[Host], instances: Iterable[Wanted], policy: str = SPREAD) -> dict[str, Any]:
    """placed: {instance: host}; moved: {instance: former host}; reasons: why others have none.

    Hosts are changed: they have what is free afterwards.
    """
    everywhere = {host.name: host for host in sorted(hosts, key=lambda host: host.name)}
    where = {name: host for host in everywhere.values() for name in host.there}
    placed: dict[str, str] = {}
    rest = sorted(instances, key=lambda one: (-one.cpus, -one.memory, not one.requires, one.name))
    # One that gives something up may let another one stay.
    before = -1
    while before != len(placed):
        before = len(placed)
        for one in rest:
            host = where.get(one.name)
            if host is None or one.name in placed:
                continue
            has = host.there[one.name]
            more = Room(one.cpus - has.cpus, one.memory - has.memory)
            if host.against(one, more) is None:
                host.take(one, more)
                placed[one.name] = host.name
    rest = [one for one in rest if one.name not in placed]
    moved = {one.name: where[one.name].name for one in rest if one.name in where}
    rankings: dict[frozenset[tuple[str, str]], _Ranking] = {}
    for one in rest:
        if one.requires not in rankings:
            fitting = [host for host in everywhere.values() if one.requires <= host.labels]
            rankings[one.requires] = _Ranking(fitting, policy)
    homeless = []
    for one in rest:
        host = rankings[one.requires].first(one)
        if host is None:
            homeless.append(one)
            continue
        concerned = [ranking for ranking in rankings.values() if host in ranking]
        for ranking in concerned:
            ranking.remove(host)
        host.take(one, Room(one.cpus, one.memory))
        for ranking in concerned:
            ranking.insert(host)
        placed[one.name] = host.name
    reasons = [_why_not(one, everywhere.values()) for one in homeless]
    return {
        "placed": dict(sorted(placed.items())),
        "moved": {name: host for name, host in sorted(moved.items()) if name in placed},
        "reasons": reasons,
    }


def _why_not(one: Wanted, hosts: Iterable[Host]) -> str:
    """All kinds of reasons, with the number of hosts for each."""
    counts: dict[str, int] = {}
    for host in hosts:
        kind = host.against(one, Room(one.cpus, one.memory)) or "were free before others were placed"
        counts[kind] = counts.get(kind, 0) + 1
    if not counts:
        return f"{one}: there are no hosts"
    total = sum(counts.values())
    said = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items(), key=lambda pair: -pair[1]))
    return f"{one} fits nowhere: of {counted(total, 'host')}, {said}"


# --- what users write -------------------------------------------------------------------------------


def read_instances(given: object) -> tuple[list[Wanted], list[str]]:
    """Wishes by name, and what is wrong with them."""
    found, reasons = [], []
    if not isinstance(given, Mapping):
        return [], ["instances: they have to be a dictionary by name"]
    for name, options in given.items():
        what = f"instance {name}"
        if not isinstance(options, Mapping):
            reasons.append(f"{what}: {shown(options)} is not a dictionary")
            continue
        unknown = sorted(set(map(str, options)) - _INSTANCE_KEYS)
        reasons += (f"{what}: there is no option {shown(key)}" for key in unknown)
        cpus = _count(options.get("cpu_count"), f"{what}: cpu_count", reasons, least=1)
        memory = _size(options.get("memory"), f"{what}: memory", reasons, least=1)
        requires = _labels(options.get("requires"), f"{what}: requires", reasons)
        apart = options.get("apart")
        one_node = options.get("one_node") or False
        if not isinstance(one_node, bool):
            reasons.append(f"{what}: one_node: {shown(one_node)} is not true or false")
        word = None if apart in (None, "") else str(apart)
        found.append(Wanted(str(name), cpus, memory, requires, word, one_node is True))
    return found, reasons


def read_hosts(given: object) -> tuple[list[Host], list[str]]:
    """Hosts by name, as module info returns them or in short, and what is wrong with them."""
    found: list[Host] = []
    reasons: list[str] = []
    if not isinstance(given, Mapping):
        return [], ["hosts: they have to be a dictionary by name"]
    for name, options in given.items():
        what = f"host {name}"
        if not isinstance(options, Mapping):
            reasons.append(f"{what}: {shown(options)} is not a dictionary")
            continue
        pool = options.get("pool")
        if isinstance(pool, Mapping):
            short = {"cpus": pool.get("free_cpus"), "memory": pool.get("free_memory")}
            options = {**{key: options[key] for key in _HOST_KEYS if key in options}, **short}
        else:
            unknown = sorted(set(map(str, options)) - _HOST_KEYS)
            reasons += (f"{what}: there is no option {shown(key)}" for key in unknown)
        host = Host(str(name), _room(options, what, reasons), _labels(options.get("labels"), what, reasons))
        nodes = options.get("nodes")
        if isinstance(nodes, Mapping):
            host.nodes = [_room(node, f"{what}: node {key}", reasons) for key, node in sorted(nodes.items())]
        elif nodes is not None:
            reasons.append(f"{what}: nodes: {shown(nodes)} is not a dictionary")
        for one in options.get("instances") or ():
            if not isinstance(one, Mapping) or "name" not in one:
                reasons.append(
                    f"{what}: instances: {shown(one)} is not an instance as module info returns it"
                )
                continue
            host.there[str(one["name"])] = _room(one, f"{what}: instance {one['name']}", reasons)
        found.append(host)
    return found, reasons


def _room(given: object, what: str, reasons: list[str]) -> Room:
    if not isinstance(given, Mapping):
        reasons.append(f"{what}: {shown(given)} is not a dictionary with cpus and memory")
        return Room(0, 0)
    cpus = given.get("cpus")
    number = len(cpus) if isinstance(cpus, (list, tuple)) else cpus
    return Room(
        _count(number, f"{what}: cpus", reasons), _size(given.get("memory"), f"{what}: memory", reasons)
    )


def _count(value: object, what: str, reasons: list[str], least: int = 0) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return value
    # Python takes other digits for numbers as well, and none of thousands of them.
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value) and int(value) >= least:
        return int(value)
    reasons.append(f"{what}: {shown(value)} is not a number of CPUs")
    return least


def _size(value: object, what: str, reasons: list[str], least: int = 0) -> int:
    try:
        if isinstance(value, (int, str)) and not isinstance(value, bool):
            size = parse_size(value)
            if size >= least:
                return size
    except ValueError:
        pass
    reasons.append(f"{what}: {shown(value)} is not a size")
    return least


def _labels(value: object, what: str, reasons: list[str]) -> frozenset[tuple[str, str]]:
    if value is None:
        return frozenset()
    if not isinstance(value, Mapping):
        reasons.append(f"{what}: {shown(value)} is not a dictionary of labels")
        return frozenset()
    return frozenset((str(key), str(one)) for key, one in value.items())
