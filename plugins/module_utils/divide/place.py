# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which CPUs an instance gets when only their number and a policy are said. APIC ids throughout. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from .topology import Topology

Place = tuple[int, Hashable]  # NUMA node and last-level cache


class Board:
    """The free CPUs of the pool, by the place where they are. Choosing is quick because counts are kept."""

    def __init__(self, topology: Topology, free: Iterable[int], every: Iterable[int]):
        self._core = {apic: topology.core.get(apic, ("alone", apic)) for apic in every}
        self._cache = topology.cache
        self._place: dict[int, Place] = {}
        self.cores: dict[Hashable, set[int]] = {}  # all CPUs of a core, whoever has them
        self.caches: dict[Hashable, set[int]] = {}
        for apic, core in self._core.items():
            node = topology.node.get(apic, -1)
            self._place[apic] = (node, topology.cache.get(apic, ("of node", node)))
            self.cores.setdefault(core, set()).add(apic)
            if apic in topology.cache:
                self.caches.setdefault(topology.cache[apic], set()).add(apic)
        self.free: set[int] = set()
        self._at: dict[Place, dict[Hashable, list[int]]] = {}
        self._count: dict[Place, int] = {}
        self._whole: dict[Place, int] = {}  # of these, in cores that are free as a whole
        self.give(free)

    @property
    def threads(self) -> int:
        """Of the widest core."""
        return max(map(len, self.cores.values()), default=1)

    def give(self, cpus: Iterable[int]) -> None:
        for apic in cpus:
            place, core = self._place[apic], self._core[apic]
            mates = self._at.setdefault(place, {}).setdefault(core, [])
            mates.append(apic)
            self.free.add(apic)
            self._count[place] = self._count.get(place, 0) + 1
            if len(mates) == len(self.cores[core]):
                self._whole[place] = self._whole.get(place, 0) + len(mates)

    def take(self, cpus: Iterable[int]) -> None:
        for apic in cpus:
            if apic not in self.free:
                continue
            place, core = self._place[apic], self._core[apic]
            mates = self._at[place][core]
            if len(mates) == len(self.cores[core]):
                self._whole[place] -= len(mates)
            mates.remove(apic)
            if not mates:
                del self._at[place][core]
            self.free.discard(apic)
            self._count[place] -= 1

    def take_exclusively(self, cpus: Iterable[int]) -> None:
        """With everything that shares a cache with them."""
        for apic in tuple(cpus):
            self.take(self.caches.get(self._cache.get(apic), {apic}))
            self.take([apic])

    def suits(self, cpus: Sequence[int], policy: frozenset[str]) -> bool:
        """Whether free CPUs satisfy a policy. What the machine does not tell is believed."""
        mine = set(cpus)
        if not mine <= self.free:
            return False
        if "node" in policy and len({self._place[apic][0] for apic in mine}) > 1:
            return False
        if "cores" in policy and any(not self.cores[self._core[apic]] <= mine for apic in mine):
            return False
        return "cache" not in policy or all(
            self.caches[self._cache[apic]] <= self.free for apic in mine if apic in self._cache
        )

    def choose(
        self, count: int, policy: frozenset[str], prefer: Sequence[int] = ()
    ) -> tuple[int, ...] | None:
        """So many free CPUs, those of I(prefer) first; None when the policy cannot be had."""
        places = [place for place, number in self._count.items() if number]
        if "cache" in policy:
            places = [place for place in places if self.caches.get(place[1], {None}) <= self.free]
        prefer = self._together([apic for apic in prefer if apic in self.free])
        for region in self._regions(places, count, policy, prefer):
            chosen = self._choose_in(region, count, policy, prefer)
            if chosen is not None:
                return chosen
        return None

    def _together(self, cpus: list[int]) -> list[int]:
        """The first one, which a kernel cannot lose while it runs, then what is near to it."""
        if not cpus:
            return cpus
        first = cpus[0]
        return sorted(
            cpus,
            key=lambda apic: (
                apic != first,
                self._core[apic] != self._core[first],
                self._place[apic] != self._place[first],
                str(self._place[apic]),
                apic,
            ),
        )

    def _available(self, place: Place, policy: frozenset[str]) -> int:
        return (self._whole if "cores" in policy else self._count).get(place, 0)

    def _regions(
        self, places: list[Place], count: int, policy: frozenset[str], prefer: list[int]
    ) -> list[list[Place]]:
        """Where to look, best first: all places, or with the policy node one node after the other."""
        if "node" not in policy:
            return [places]
        nodes: dict[int, list[Place]] = {}
        for place in places:
            nodes.setdefault(place[0], []).append(place)

        def score(node: int) -> tuple[Any, ...]:
            room = sum(self._available(place, policy) for place in nodes[node])
            return -sum(self._place[apic][0] == node for apic in prefer), room, node

        return [nodes[node] for node in sorted(nodes, key=score)]

    def _choose_in(
        self, region: list[Place], count: int, policy: frozenset[str], prefer: list[int]
    ) -> tuple[int, ...] | None:
        room = {place: self._available(place, policy) for place in region}
        if sum(room.values()) < count:
            return None
        whole = "cores" in policy
        chosen: list[int] = []
        for apic in prefer:
            if apic in chosen or self._place[apic] not in room:
                continue
            unit = sorted(self.cores[self._core[apic]]) if whole else [apic]
            if self.free.issuperset(unit) and len(chosen) + len(unit) <= count:
                chosen += [apic, *(mate for mate in unit if mate != apic)]
        if "spread" in policy:
            self._spread(chosen, region, count, whole)
        else:
            self._pack(chosen, room, count, whole)
        return tuple(chosen) if len(chosen) == count else None

    def _units(self, place: Place, taken: set[int], whole: bool) -> list[list[int]]:
        """Free cores of a place: those begun already first, then those nobody else uses."""

        def score(core: Hashable) -> tuple[Any, ...]:
            others = len(self.cores[core]) - len(self._at[place][core])
            return not self.cores[core] & taken, others, str(type(core)), core

        units = []
        for core in sorted(self._at[place], key=score):
            mates = sorted(self._at[place][core])
            if whole and len(mates) < len(self.cores[core]):
                continue
            unit = [apic for apic in mates if apic not in taken]
            if unit and not (whole and len(unit) < len(mates)):
                units.append(unit)
        return units

    def _pack(self, chosen: list[int], room: dict[Place, int], count: int, whole: bool) -> None:
        """Into as few caches and nodes as possible, and where it fits best."""
        taken = set(chosen)
        room = dict(room)
        mine: dict[Place, int] = {}
        for apic in chosen:
            place = self._place[apic]
            room[place] -= 1
            mine[place] = mine.get(place, 0) + 1
        while len(chosen) < count and room:
            need = count - len(chosen)
            near = {place[0] for place in mine}
            fitting = [place for place in room if room[place] >= need]
            if fitting:
                place = min(
                    fitting,
                    key=lambda place: (place not in mine, place[0] not in near, room[place], str(place)),
                )
            else:
                place = max(
                    room, key=lambda place: (place in mine, place[0] in near, room[place], str(place))
                )
            for unit in self._units(place, taken, whole):
                rest = count - len(chosen)
                if whole and len(unit) > rest:
                    continue
                chosen += unit[:rest]
                taken.update(unit[:rest])
                if len(chosen) == count:
                    break
            mine[place] = mine.get(place, 0) + 1
            del room[place]

    def _spread(self, chosen: list[int], region: list[Place], count: int, whole: bool) -> None:
        """One core after the other, each from another node and cache than the one before."""
        taken = set(chosen)
        nodes: dict[int, deque[deque[list[int]]]] = {}
        for place in sorted(region, key=str):
            units = self._units(place, taken, whole)
            if not whole:  # one thread of every core first
                longest = max(map(len, units), default=0)
                units = [[unit[turn]] for turn in range(longest) for unit in units if turn < len(unit)]
            if units:
                nodes.setdefault(place[0], deque()).append(deque(units))
        used = {node: sum(self._place[apic][0] == node for apic in chosen) for node in nodes}
        ring = deque(nodes[node] for node in sorted(nodes, key=lambda node: (used[node], node)))
        while ring and len(chosen) < count:
            caches = ring.popleft()
            waiting = caches.popleft()
            unit = waiting.popleft()
            if len(unit) <= count - len(chosen):
                chosen += unit
            if waiting:
                caches.append(waiting)
            if caches:
                ring.append(caches)


def choose_pool(
    topology: Topology, count: int, current: Iterable[int], pinned: Iterable[int], used: Iterable[int]
) -> tuple[int, ...] | None:
    """APIC ids for a pool of so many CPUs; None when the machine has not so many to give.

    I(pinned) in any case, then what is there, whole cores, high numbers.
    """
    boot = topology.physical.get(topology.boot_cpu)
    current, pinned, used = set(current), set(pinned), set(used)
    candidates = {topology.physical[cpu] for cpu in topology.online if cpu in topology.physical} | current
    candidates = (candidates | pinned) - {boot}
    if count > len(candidates) or count < len(pinned):
        return None
    core = {apic: topology.core.get(apic, ("alone", apic)) for apic in candidates}
    inside = {core[apic] for apic in current | pinned}
    boot_core = topology.core.get(boot) if boot is not None else None

    def score(apic: int) -> tuple[Any, ...]:
        return (
            apic not in pinned,
            apic not in used,
            apic not in current,
            core[apic] not in inside,
            core[apic] == boot_core,
            -topology.node.get(apic, -1),
            -apic,
        )

    return tuple(sorted(sorted(candidates, key=score)[:count]))
