# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How large the device trees are that kerf writes for a step, and where a step has to be split. No I/O.

kerf's generator makes room by the kibibyte, but not for the word that ends a tree: it fails at those sizes
that leave none for it. And some kernels take no more than one page of an overlay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

_ROOM = 1024  # bytes by which the generator's buffer grows
_WORD = 4  # what ends a tree
_BEFORE = 64  # header, and the end of an empty list of reserved memory
_PACKED = 8  # bytes that the header loses in the end
_SMALLEST = 36  # bytes of an item: a CPU
_OVERLAY, _BASELINE = "linux,multikernel-overlay", "linux,multikernel-host"


def _aligned(size: int) -> int:
    return -(-size // 4) * 4


def _node(name: str) -> int:
    """Its begin and its end."""
    return 4 + _aligned(len(name.encode()) + 1) + 4


def _property(size: int) -> int:
    return 12 + _aligned(size)


def _strings(names: Iterable[str]) -> int:
    """Names of properties, each of which is kept once."""
    return sum(len(name) + 1 for name in set(names))


def _text(value: str) -> int:
    return _property(len(value.encode()) + 1)


def is_possible(size: int, limit: int | None) -> bool:
    """Whether kerf can make a tree of so many bytes, its end not counted, and the kernel takes it."""
    return -size % _ROOM >= _WORD and (limit is None or size + _WORD - _PACKED <= limit)


@dataclass(frozen=True)
class Item:
    """One thing that an overlay does."""

    operation: str
    node: str
    properties: tuple[tuple[str, int], ...]  # name and bytes

    @property
    def size(self) -> int:
        return _node(self.node) + sum(_property(size) for _name, size in self.properties)


def cpu_items(operation: str, cpus: Iterable[int]) -> list[Item]:
    return [Item(operation, f"cpu@{apic}", (("reg", 8),)) for apic in sorted(cpus)]


class Overlay:
    """What kerf would write for some of the items; those of one operation follow each other."""

    def __init__(self, target: str, items: Sequence[Item]):
        self._items = items
        self._ends = list(accumulate((item.size for item in items), initial=0))
        self._fixed = _BEFORE + _node("") + _text(_OVERLAY) + _node("fragment@0") + _text(target)
        self._fixed += _node("__overlay__")
        self._kinds: list[tuple[int, int, str, set[str]]] = []  # begin, end, operation, names
        for place, item in enumerate(items):
            if not self._kinds or self._kinds[-1][2] != item.operation:
                self._kinds.append((place, place, item.operation, set()))
            begin, _end, operation, names = self._kinds[-1]
            names.update(name for name, _size in item.properties)
            self._kinds[-1] = begin, place + 1, operation, names

    def size(self, begin: int, end: int) -> int:
        kinds = [kind for kind in self._kinds if kind[0] < end and begin < kind[1]]
        names = {"compatible", "target-path"}.union(*(kind[3] for kind in kinds))
        operations = sum(_node(operation) for _begin, _end, operation, _names in kinds)
        return self._fixed + operations + _strings(names) + self._ends[end] - self._ends[begin]


def create_size(name: str, cpus: int, numbered: bool, placed: bool) -> int:
    """Of the overlay that makes an instance, with or without an id and a NUMA node."""
    names = ["compatible", "target-path", "instance-name", "cpus", "memory-bytes", "cpu-affinity"]
    size = _BEFORE + _node("") + _text(_OVERLAY) + _node("fragment@0") + _text("/instances")
    size += _node("__overlay__") + _node("instance-create") + _text(name) + _node("resources")
    size += _property(8 * cpus) + _property(8) + _text("compact")
    if numbered:
        names.append("id")
        size += _property(4)
    if placed:
        names.append("numa-nodes")
        size += _property(4)
    return size + _strings(names)


def baseline_size(cpus: int, nodes: int) -> int:
    """Of the tree that makes a pool."""
    names = ["compatible", "cpus", "size", "numa-node-id"]
    size = _BEFORE + _node("") + _text(_BASELINE) + _node("resources") + _property(8 * cpus)
    size += sum(_node(f"memory@{place}") + _property(8) + _property(4) for place in range(nodes))
    return size + _strings(names)


def split(count: int, fits: Callable[[int, int], bool], limit: int | None = None) -> list[int]:
    """Ends of runs of items, each as long as it can be, so that all of them fit.

    All items in one when there is no way: kerf then says what it does not like.
    """
    runs: list[tuple[int, int]] = []
    dead: set[int] = set()  # places from which there is no way
    most = count if limit is None else limit // _SMALLEST  # nobody has to try more
    begin, end = 0, min(count, most)
    while True:
        while end > begin and (end in dead or not fits(begin, end)):
            end -= 1
        if end > begin:
            runs.append((begin, end))
            if end == count:
                return [stop for _start, stop in runs]
            begin, end = end, min(count, end + most)
        elif runs:
            dead.add(begin)
            begin, end = runs.pop()
        else:
            return [count]


def cpu_steps(
    name: str, have: frozenset[int], wanted: frozenset[int], limit: int | None
) -> list[frozenset[int]]:
    """The CPUs of an instance after each of the steps that bring it from one set to the other."""
    items = cpu_items("cpu-remove", have - wanted) + cpu_items("cpu-add", wanted - have)
    overlay = Overlay(f"/instances/{name}", items)
    gone, new = sorted(have - wanted), sorted(wanted - have)
    ends = split(len(items), lambda begin, end: is_possible(overlay.size(begin, end), limit), limit)
    return [have - frozenset(gone[:end]) | frozenset(new[: max(end - len(gone), 0)]) for end in ends]


def memory_steps(name: str, leaving: Sequence[int], have: int, limit: int | None) -> list[int]:
    """The bytes of an instance after each of the steps in which regions of these sizes leave it."""
    items = [Item("memory-remove", f"memory@{place}", (("reg", 16),)) for place in range(len(leaving))]
    overlay = Overlay(f"/instances/{name}", items)

    def fits(begin: int, end: int) -> bool:
        # The nodes of a step are numbered from 0, which only can be shorter.
        return is_possible(overlay.size(0, end - begin), limit)

    return [have - sum(leaving[:end]) for end in split(len(items), fits, limit)]


def create_cpus(name: str, cpus: int, numbered: bool, placed: bool, limit: int | None) -> int:
    """With how many of its CPUs an instance can be made at once; the others are added then."""
    counts = range(cpus, 0, -1)
    possible = (n for n in counts if is_possible(create_size(name, n, numbered, placed), limit))
    return next(possible, cpus)


@dataclass(frozen=True)
class PoolChange:
    """CPUs and memory that a pool has, the CPUs that it is to have, chunks that leave, growth of nodes."""

    cpus: frozenset[int]
    memory: Mapping[int, int]  # bytes by node
    wanted: frozenset[int]
    leaving: Sequence[tuple[int, int]]  # node and bytes, in kerf's order
    coming: Sequence[tuple[int, int]]

    def steps(self, limit: int | None) -> list[tuple[frozenset[int], dict[int, int]]]:
        """CPUs and bytes by node after each of the steps; a pool has both or nothing of both."""
        gone, new = sorted(self.cpus - self.wanted), sorted(self.wanted - self.cpus)
        live = bool(self.cpus or self.memory)
        items = cpu_items("cpu-remove", gone)
        items += [
            Item("memory-remove", f"memory@{place}", (("reg", 16),)) for place in range(len(self.leaving))
        ]
        items += [
            Item("memory-add", f"memory@{place}", (("size", 8), ("numa-node-id", 4)))
            for place in range(len(self.coming))
        ]
        items += cpu_items("cpu-add", new)
        overlay = Overlay("/resources", items)

        def after(end: int) -> tuple[frozenset[int], dict[int, int]]:
            memory = dict(self.memory)
            moved = end - len(gone)
            for node, size in self.leaving[: max(moved, 0)]:
                memory[node] -= size
            for node, size in self.coming[: max(moved - len(self.leaving), 0)]:
                memory[node] = memory.get(node, 0) + size
            added = new[: max(moved - len(self.leaving) - len(self.coming), 0)]
            cpus = self.cpus - frozenset(gone[:end]) | frozenset(added)
            return cpus, {node: size for node, size in memory.items() if size}

        def fits(begin: int, end: int) -> bool:
            if begin == 0 and not live:
                cpus, memory = after(end)
                size = baseline_size(len(cpus), len(memory))
                return bool(cpus and memory) and is_possible(size, None)
            if not is_possible(overlay.size(begin, end), limit):
                return False
            return end == len(items) or bool(after(end)[0])

        return [after(end) for end in split(len(items), fits, limit if live else None)]
