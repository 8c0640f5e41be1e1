# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The device trees that kerf 0.4 writes, made by the same libfdt; tests/lab/kerf_trees.py compares them.

A tree whose end finds no room raises libfdt.FdtException, as kerf's does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

import libfdt


class _Tree:
    def __init__(self, compatible: str):
        self.fdt = libfdt.FdtSw()
        self.fdt.finish_reservemap()
        self.fdt.begin_node("")
        self.fdt.property_string("compatible", compatible)
        self.depth = 1

    def begin(self, *names: str) -> None:
        for name in names:
            self.fdt.begin_node(name)
        self.depth += len(names)

    def end(self) -> None:
        self.fdt.end_node()
        self.depth -= 1

    def finish(self) -> bytes:
        while self.depth:
            self.end()
        tree = self.fdt.as_fdt()
        tree.pack()
        return bytes(tree.as_bytearray())


def _cpus(tree: _Tree, operation: str, cpus: Iterable[int]) -> None:
    cpus = sorted(cpus)
    if cpus:
        tree.begin(operation)
        for apic in cpus:
            tree.begin(f"cpu@{apic}")
            tree.fdt.property("reg", struct.pack(">Q", apic))
            tree.end()
        tree.end()


def _regions(tree: _Tree, operation: str, regions: Sequence[tuple[int, int]]) -> None:
    if regions:
        tree.begin(operation)
        for place, region in enumerate(regions):
            tree.begin(f"memory@{place}")
            tree.fdt.property("reg", struct.pack(">QQ", *region))
            tree.end()
        tree.end()


def _sizes(tree: _Tree, sizes: Iterable[tuple[int, int]]) -> None:
    for place, (node, size) in enumerate(sizes):
        tree.begin(f"memory@{place}")
        tree.fdt.property_u64("size", size)
        tree.fdt.property_u32("numa-node-id", node)
        tree.end()


def _overlay(target: str) -> _Tree:
    tree = _Tree("linux,multikernel-overlay")
    tree.begin("fragment@0")
    tree.fdt.property_string("target-path", target)
    tree.begin("__overlay__")
    return tree


def baseline(cpus: Sequence[int], memory: Mapping[int, int]) -> bytes:
    tree = _Tree("linux,multikernel-host")
    tree.begin("resources")
    tree.fdt.property("cpus", struct.pack(f">{len(cpus)}Q", *cpus))
    _sizes(tree, memory.items())
    return tree.finish()


def pool(
    to_pool: Iterable[int],
    to_host: Iterable[int],
    memory_to_pool: Sequence[tuple[int, int]],
    memory_to_host: Sequence[tuple[int, int]],
) -> bytes:
    """Memory to the pool is node and size, memory to the host base and size."""
    tree = _overlay("/resources")
    _regions(tree, "memory-remove", memory_to_host)
    if memory_to_pool:
        tree.begin("memory-add")
        _sizes(tree, memory_to_pool)
        tree.end()
    _cpus(tree, "cpu-remove", to_host)
    _cpus(tree, "cpu-add", to_pool)
    return tree.finish()


def update(
    name: str,
    cpus_gone: Iterable[int] = (),
    cpus_new: Iterable[int] = (),
    memory_gone: Sequence[tuple[int, int]] = (),
    memory_new: Sequence[tuple[int, int]] = (),
) -> bytes:
    tree = _overlay(f"/instances/{name}")
    _regions(tree, "memory-remove", memory_gone)
    _regions(tree, "memory-add", memory_new)
    _cpus(tree, "cpu-remove", cpus_gone)
    _cpus(tree, "cpu-add", cpus_new)
    return tree.finish()


def create(
    name: str, cpus: Sequence[int], memory: int, number: int | None = None, node: int | None = None
) -> bytes:
    tree = _overlay("/instances")
    tree.begin("instance-create")
    tree.fdt.property_string("instance-name", name)
    if number is not None:
        tree.fdt.property_u32("id", number)
    tree.begin("resources")
    tree.fdt.property("cpus", struct.pack(f">{len(cpus)}Q", *cpus))
    tree.fdt.property_u64("memory-bytes", memory)
    if node is not None:
        tree.fdt.property("numa-nodes", struct.pack(">I", node))
    tree.fdt.property_string("cpu-affinity", "compact")
    return tree.finish()


def delete(name: str) -> bytes:
    tree = _overlay("/instances")
    tree.begin("instance-remove")
    tree.fdt.property_string("instance-name", name)
    return tree.finish()
