# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write blobs as kerf makes them, one file each: seeds.py DIRECTORY

kerf is to be found on PYTHONPATH. The numbers are those of the machine in fuzz.c.
"""

import sys
from pathlib import Path

import libfdt
from kerf.dtc.extractor import InstanceExtractor
from kerf.dtc.overlay import OverlayGenerator
from kerf.models import (
    CPUAllocation,
    DeviceInfo,
    GlobalDeviceTree,
    HardwareInventory,
    Instance,
    InstanceResources,
    MemoryAllocation,
    PoolMemoryRegion,
)
from kerf.pool_diff import PoolDiff

MIB = 1 << 20
DEVICE = DeviceInfo("pci_0000_09_00_0", "pci-network", "pci", pci_id="0000:09:00.0", vendor_id=1, device_id=2)


def tree(cpus=(), requested=None, devices=(), instances=()):
    hardware = HardwareInventory(
        CPUAllocation(16, [0], list(cpus)),
        MemoryAllocation(0, 0, requested=requested or {}),
        devices={device.name: device for device in devices},
    )
    return GlobalDeviceTree(hardware, {instance.name: instance for instance in instances}, {})


def instance(name, cpus, memory, ident=None, devices=(), **more):
    return Instance(name, ident, InstanceResources(list(cpus), 0, memory, list(devices), **more))


def virtio(overlay):
    """The overlay with virtio devices, which released kerf does not know."""
    fdt = libfdt.Fdt(overlay)
    fdt.resize(len(overlay) + 1024)
    node = fdt.path_offset("/fragment@0/__overlay__/instance-create/resources")
    node = fdt.add_subnode(node, "virtio")
    for name, ident, queues in (("blk@1", 2, 1), ("net@0", 1, 2)):
        device = fdt.add_subnode(node, name)
        fdt.setprop_u32(device, "queue-size", 64)
        fdt.setprop_u32(device, "queues", queues)
        fdt.setprop_u32(device, "device-id", ident)
    fdt.pack()
    return bytes(fdt.as_bytearray()[: fdt.totalsize()])


def seeds():
    baseline = InstanceExtractor().generate_global_dtb
    yield "baseline", baseline(tree([12, 14], {-1: 256 * MIB}))
    yield "baseline-nodes", baseline(tree([2, 12, 14], {0: 256 * MIB, 1: 512 * MIB}))
    yield "baseline-devices", baseline(tree([2], {0: 256 * MIB}, [DEVICE]))
    yield "baseline-instances", baseline(tree([2], {0: 256 * MIB}, [], [instance("web", [2], MIB, 1)]))

    make = OverlayGenerator()

    def change(before, after):
        return make.generate_overlay(tree(instances=before), tree(instances=after, devices=[DEVICE]))

    new = instance("new", [10], 64 * MIB)
    yield "create", change([], [new])
    yield (
        "create-all",
        change(
            [],
            [
                instance(
                    "new",
                    [10],
                    64 * MIB,
                    7,
                    numa_nodes=[0, 1],
                    cpu_affinity="compact",
                    memory_policy="bind",
                    uring=True,
                    uring_sq_entries=256,
                    uring_cq_entries=256,
                    uring_shim_pages=64,
                )
            ],
        ),
    )
    yield "create-device", change([], [instance("new", [10], 64 * MIB, devices=[DEVICE.name])])
    yield "create-virtio", virtio(bytes(change([], [new])))
    yield "create-two", change([], [new, instance("other", [10], 64 * MIB)])
    yield "replace", change([instance("db", [8], 256 * MIB)], [instance("new", [8, 10], 64 * MIB)])
    yield "remove", make.generate_removal_overlay("db")

    def update(name, before, after, regions=(), base=None):
        return make.generate_update_overlay(
            name, instance(name, *before), instance(name, *after), {}, list(regions), base
        )

    yield "nothing", update("web", ([4, 6], 256 * MIB), ([4, 6], 256 * MIB))
    yield "cpu-remove", update("web", ([4, 6], 256 * MIB), ([4], 256 * MIB))
    yield "cpu-both", update("web", ([4, 6], 256 * MIB), ([4, 10], 256 * MIB))
    yield "grow", update("web", ([4, 6], 256 * MIB), ([4, 6, 10], 384 * MIB), base=0x58000000)
    yield (
        "shrink",
        update(
            "web",
            ([4, 6], 256 * MIB),
            ([4, 6], 128 * MIB),
            [(0x40000000, 128 * MIB), (0x50000000, 128 * MIB)],
        ),
    )

    pool = make.generate_pool_overlay
    yield "pool-grow", pool(PoolDiff([12, 14], memory_to_pool=[(0, 64 * MIB), (-1, MIB)]))
    yield (
        "pool-shrink",
        pool(PoolDiff(cpus_to_host=[10], memory_to_host=[PoolMemoryRegion(1 << 32, 1 << 30, 0)])),
    )
    yield (
        "pool-all",
        pool(PoolDiff([12], [10], ["0000:09:00.0"], [], memory_to_pool=[(1, 64 * MIB)], memory_to_host=[])),
    )


def main():
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, blob in seeds():
        (directory / name).write_bytes(bytes(blob))


if __name__ == "__main__":
    main()
