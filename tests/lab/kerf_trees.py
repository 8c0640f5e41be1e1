# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Compares the trees of tests/unit/kerf_trees.py, and the sizes in divide/overlay.py, with those of kerf.

Needs kerf 0.4 beside libfdt, and this collection in PYTHONPATH (below ansible_collections/mkops/multikernel):

    pip install --no-deps kerf-multikernel==0.4.0 && pip install click pylibfdt pyudev pyyaml cryptography
    PYTHONPATH=.ansible/collections python tests/lab/kerf_trees.py

Every step of 1 to 512 CPUs is made, with memory and without: both come to the same bytes, or fail alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import libfdt
from kerf.dtc.extractor import InstanceExtractor
from kerf.dtc.overlay import OverlayGenerator
from kerf.models import (
    CPUAllocation,
    GlobalDeviceTree,
    HardwareInventory,
    Instance,
    InstanceResources,
    MemoryAllocation,
)
from kerf.pool_diff import PoolDiff, PoolMemoryRegion

from ansible_collections.mkops.multikernel.plugins.module_utils.divide import overlay
from ansible_collections.mkops.multikernel.tests.unit import kerf_trees

CHUNK = 1 << 30


def made(make, *arguments, **other) -> bytes | None:
    """None where there is no room for the end."""
    try:
        return bytes(make(*arguments, **other))
    except libfdt.FdtException:
        return None


@dataclass
class Comparison:
    trees: int = 0
    holes: list[str] = field(default_factory=list)

    def add(self, what: str, kerfs: bytes | None, ours: bytes | None, size: int) -> None:
        assert kerfs == ours, f"{what}: kerf makes another tree"
        assert (kerfs is not None) == overlay.is_possible(size, None), f"{what}: {size} foretold"
        if kerfs is None:
            self.holes.append(what)
        else:
            length = size + overlay._WORD - overlay._PACKED
            assert length == len(kerfs), f"{what}: {len(kerfs)} bytes, {length} foretold"
        self.trees += 1


def resources(cpus, memory=CHUNK, nodes=None):
    return InstanceResources(
        cpus=list(cpus),
        memory_base=0,
        memory_bytes=memory,
        devices=[],
        numa_nodes=nodes,
        cpu_affinity="compact",
    )


def compare(first: int, stride: int) -> Comparison:
    generator, found = OverlayGenerator(), Comparison()
    inventory = HardwareInventory(cpus=None, memory=None, devices={})
    for count in range(513):
        cpus = range(first, first + stride * count, stride)
        for chunks in range(4):
            if not count and not chunks:
                continue
            nodes = [(node, CHUNK) for node in range(chunks)]
            regions = [(CHUNK * place, CHUNK) for place in range(chunks)]
            what = f"{count} CPUs from APIC {first} by {stride}, {chunks} chunks"
            coming = [
                overlay.Item("memory-add", f"memory@{place}", (("size", 8), ("numa-node-id", 4)))
                for place in range(chunks)
            ]
            leaving = [
                overlay.Item("memory-remove", f"memory@{place}", (("reg", 16),)) for place in range(chunks)
            ]
            items = coming + overlay.cpu_items("cpu-add", cpus)
            found.add(
                f"to the pool: {what}",
                made(
                    generator.generate_pool_overlay, PoolDiff(cpus_to_pool=list(cpus), memory_to_pool=nodes)
                ),
                made(kerf_trees.pool, cpus, (), nodes, ()),
                overlay.Overlay("/resources", items).size(0, len(items)),
            )
            items = leaving + overlay.cpu_items("cpu-remove", cpus)
            back = [PoolMemoryRegion(base=base, size=size, node=0) for base, size in regions]
            found.add(
                f"to the host: {what}",
                made(generator.generate_pool_overlay, PoolDiff(cpus_to_host=list(cpus), memory_to_host=back)),
                made(kerf_trees.pool, (), cpus, (), regions),
                overlay.Overlay("/resources", items).size(0, len(items)),
            )
            if count and chunks:
                tree = GlobalDeviceTree(
                    hardware=HardwareInventory(
                        cpus=CPUAllocation(total=1, host_reserved=[], available=list(cpus)),
                        memory=MemoryAllocation(total_bytes=1, host_reserved_bytes=0, requested=dict(nodes)),
                        devices={},
                    ),
                    instances={},
                    device_references={},
                )
                found.add(
                    f"the first pool: {what}",
                    made(InstanceExtractor().generate_global_dtb, tree),
                    made(kerf_trees.baseline, cpus, dict(nodes)),
                    overlay.baseline_size(count, chunks),
                )
        for name in ("a", "name", "database-01", "n" * 63):
            what = f"{count} CPUs from APIC {first} by {stride}, {name}"
            if not count:
                continue
            for number, node in ((None, None), (5, None), (None, 1), (5, 1)):
                wanted = GlobalDeviceTree(hardware=inventory, instances={}, device_references={})
                wanted.instances[name] = Instance(
                    name=name, id=number, resources=resources(cpus, nodes=None if node is None else [node])
                )
                nothing = GlobalDeviceTree(hardware=inventory, instances={}, device_references={})
                found.add(
                    f"create, id {number}, node {node}: {what}",
                    made(generator.generate_overlay, nothing, wanted),
                    made(kerf_trees.create, name, cpus, CHUNK, number, node),
                    overlay.create_size(name, count, number is not None, node is not None),
                )
            for gone in (0, 1, 7):
                have = [*cpus, *range(9000, 9000 + gone)]
                items = overlay.cpu_items("cpu-remove", have[count:]) + overlay.cpu_items("cpu-add", cpus)
                old = Instance(name=name, id=1, resources=resources([1, *have[count:]]))
                new = Instance(name=name, id=1, resources=resources([1, *cpus]))
                if 1 in cpus:
                    continue
                found.add(
                    f"update, {gone} go: {what}",
                    made(generator.generate_update_overlay, name, old, new),
                    made(kerf_trees.update, name, have[count:], cpus),
                    overlay.Overlay(f"/instances/{name}", items).size(0, len(items)),
                )
            regions = [(CHUNK * place, CHUNK) for place in range(count + 1)]
            taken = list(reversed(regions))[:count]
            old = Instance(name=name, id=1, resources=resources([1], CHUNK * (count + 1)))
            new = Instance(name=name, id=1, resources=resources([1], CHUNK))
            items = [
                overlay.Item("memory-remove", f"memory@{place}", (("reg", 16),)) for place in range(count)
            ]
            found.add(
                f"{count} regions leave {name}",
                made(generator.generate_update_overlay, name, old, new, None, regions),
                made(kerf_trees.update, name, (), (), taken),
                overlay.Overlay(f"/instances/{name}", items).size(0, len(items)),
            )
    return found


def main() -> None:
    for first, stride in ((2, 1), (2, 2), (128, 1), (1000, 3)):
        found = compare(first, stride)
        holes = len(found.holes)
        print(f"APIC ids from {first} by {stride}: {found.trees} trees alike, {holes} not to be made, as:")
        print("".join(f"  {what}\n" for what in found.holes[:: max(len(found.holes) // 6, 1)]), end="")


if __name__ == "__main__":
    main()
