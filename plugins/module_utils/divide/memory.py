# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the pool's memory becomes step by step, by the rules of kerf and the kernel. No I/O.

Where the kernel puts new memory is its own business: addresses here are its usual choice. Everything that
depends on them is read again after each step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..common.size import MIB, PAGE_SIZE, format_size
from .machine import Chunk, Machine

_ALIGNMENT = 2 * MIB
_NEW_CHUNKS = 1 << 52  # above all that exists on a real machine


class Memory:
    """Chunks of the pool, and the regions that instances have of them, oldest first."""

    def __init__(self, machine: Machine):
        self._granule = machine.granule
        self._interface = machine.interface
        self.chunks = list(machine.pool.chunks)
        end = max([chunk.end for chunk in self.chunks], default=0)
        # Chunks are apart, so that nothing is taken for one piece that is none.
        self._next_chunk = max(_NEW_CHUNKS, (end // self._granule + 2) * self._granule)
        self.regions: dict[str, list[tuple[int, int]]] = {name: [] for name in machine.instances}
        self._others: list[tuple[int, int]] = []
        owners = {f"mk-instance-{one.id}-{one.name}-region-": one.name for one in machine.instances.values()}
        numbered: dict[str, list[tuple[int, int, int]]] = {name: [] for name in machine.instances}
        for region in machine.pool.regions:
            prefix = region.name.rstrip("0123456789")
            number = region.name[len(prefix) :]
            if prefix in owners and number:
                numbered[owners[prefix]].append((int(number), region.base, region.size))
            else:
                self._others.append((region.base, region.size))
        for name, regions in numbered.items():
            self.regions[name] = [(base, size) for _number, base, size in sorted(regions)]
        self._gaps: list[list[int]] | None = None  # begin, end, node; None when they are to be counted anew

    @property
    def nodes(self) -> dict[int, int]:
        """Bytes per NUMA node."""
        nodes: dict[int, int] = {}
        for chunk in self.chunks:
            nodes[chunk.node] = nodes.get(chunk.node, 0) + chunk.size
        return nodes

    def of(self, name: str) -> int:
        return sum(size for _base, size in self.regions.get(name, ()))

    def node_of(self, name: str) -> int | None:
        """Where all that an instance has is, when the pool has memory on other nodes, too."""
        bases = [base for base, _size in self.regions.get(name, ())]
        nodes = {chunk.node for chunk in self.chunks for base in bases if chunk.holds(base)}
        return nodes.pop() if len(nodes) == 1 and len(self.nodes) > 1 else None

    def free(self, node: int | None = None) -> int:
        return sum(end - begin for begin, end, where in self._free_gaps() if node in (None, where))

    def _used(self) -> Iterable[tuple[int, int]]:
        yield from self._others
        for regions in self.regions.values():
            yield from regions

    def _free_gaps(self) -> list[list[int]]:
        if self._gaps is None:
            self._gaps = []
            used = sorted(self._used())
            for chunk in sorted(self.chunks, key=lambda chunk: chunk.base):
                begin = chunk.base
                for base, size in used:
                    if chunk.holds(base):
                        if base > begin:
                            self._gaps.append([begin, base, chunk.node])
                        begin = max(begin, base + size)
                if chunk.end > begin:
                    self._gaps.append([begin, chunk.end, chunk.node])
        return self._gaps

    def _cut(self, gap: list[int], begin: int, size: int) -> tuple[int, int]:
        gaps = self._free_gaps()
        place = gaps.index(gap)
        rest = [[gap[0], begin, gap[2]], [begin + size, gap[1], gap[2]]]
        gaps[place : place + 1] = [part for part in rest if part[1] > part[0]]
        return begin, size

    # Instances

    def create(self, name: str, size: int, node: int | None = None) -> bool:
        """As kernels do: the first gap that is large enough, and where they can, several pieces."""
        found: list[tuple[int, int]] = []
        left, wanted = size, size
        alignment = PAGE_SIZE if self._interface.halves else _ALIGNMENT
        while left:
            gaps = [
                (gap, begin, gap[1] - begin)
                for gap in self._free_gaps()
                if node in (None, gap[2])
                for begin in [-(-gap[0] // alignment) * alignment]
                if gap[1] > begin
            ]
            fitting = next((one for one in gaps if one[2] >= wanted), None)
            if fitting is None and self._interface.halves and wanted > PAGE_SIZE:
                wanted = wanted // 2 // PAGE_SIZE * PAGE_SIZE
                continue
            if fitting is None and self._interface.scatters:
                fitting = max(gaps, key=lambda one: one[2], default=None)
            if fitting is None:
                self._gaps = None
                return False
            gap, begin, room = fitting
            found.append(self._cut(gap, begin, min(room, wanted)))
            left -= found[-1][1]
            wanted = left
        self.regions[name] = found
        return True

    def fits(self, size: int, node: int) -> bool:
        """Whether a new instance could have it there."""
        rooms = [end - begin for begin, end, where in self._free_gaps() if where == node]
        return size <= (sum(rooms) if self._interface.scatters else max(rooms, default=0))

    def release(self, name: str) -> None:
        self.regions[name] = []
        self._gaps = None

    def resize(self, name: str, size: int) -> str | None:
        """In place, as kerf does. Returns why that cannot be, without naming the instance."""
        have = self.of(name)
        if size >= have:
            return self._grow(name, size - have)
        return self._shrink(name, have - size)

    def _grow(self, name: str, more: int) -> str | None:
        if more % self._granule:
            return (
                f"memory is added in steps of {format_size(self._granule)},"
                f" and {format_size(more)} more is not a multiple of that"
            )
        best = None
        for gap in self._free_gaps():
            begin = (gap[1] - more) // self._granule * self._granule
            if begin >= gap[0] and (best is None or begin > best[1]):
                best = (gap, begin)
        if best is None:
            return f"no chunk of the pool has {format_size(more)} free in one piece"
        self.regions[name].append(self._cut(best[0], best[1], more))
        return None

    def _shrink(self, name: str, less: int) -> str | None:
        regions = self.regions[name]
        rest, keep = less, len(regions)
        while rest > 0 and keep > 1:
            keep -= 1
            rest -= regions[keep][1]
        if rest:
            sizes = ", ".join(format_size(size) for _base, size in reversed(regions))
            return (
                "memory can leave it only in the pieces in which it was added, the newest first and never the"
                f" oldest, and it has {sizes or 'no piece that is known'}"
            )
        del regions[keep:]
        self._gaps = None
        return None

    # Pool

    def is_idle(self, chunk: Chunk) -> bool:
        return not any(chunk.holds(base) for base, _size in self._used())

    def pool_changes(
        self, wanted: Mapping[int, int]
    ) -> tuple[list[Chunk], list[tuple[int, int]], list[tuple[int, int]]]:
        """Chunks that leave, bytes that come and bytes that are stuck, each by node, as kerf does it.

        Whole idle chunks go, the largest first that is not too much.
        """
        leaving, coming, stuck = [], [], []
        for node, have in sorted(self.nodes.items()):
            rest = have - wanted.get(node, 0)
            for chunk in sorted(self.chunks, key=lambda chunk: -chunk.size):
                if rest > 0 and chunk.node == node and chunk.size <= rest and self.is_idle(chunk):
                    leaving.append(chunk)
                    rest -= chunk.size
            if rest > 0:
                stuck.append((node, rest))
        for node, want in sorted(wanted.items()):
            if want > self.nodes.get(node, 0):
                coming.append((node, want - self.nodes.get(node, 0)))
        return leaving, coming, stuck

    def resize_pool(self, wanted: Mapping[int, int]) -> list[tuple[int, int]]:
        """To so many bytes per node. Returns what cannot go: node and bytes."""
        leaving, coming, stuck = self.pool_changes(wanted)
        self.chunks = [chunk for chunk in self.chunks if chunk not in leaving]
        for node, size in coming:
            self.chunks.append(Chunk(self._next_chunk, size, node))
            self._next_chunk += (size // self._granule + 2) * self._granule
        self._gaps = None
        return stuck

    def pieces(self, node: int) -> str:
        """The chunks of a node, for people."""
        return ", ".join(
            f"{format_size(chunk.size)}{'' if self.is_idle(chunk) else ' (in use)'}"
            for chunk in self.chunks
            if chunk.node == node
        )
