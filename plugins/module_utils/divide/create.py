# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The overlay that makes an instance with virtio devices, which kerf 0.4 cannot write. No I/O.

All else in it is as kerf has it. Source: the device nodes of Multikernel Linux (resources/virtio/KIND@I).
"""

from __future__ import annotations

import struct

from .fdt import Node, make_fdt
from .steps import Step

IDS = {"net": 1, "blk": 2, "console": 3, "fs": 26}  # of virtio
QUEUE_SIZE = 256


def _u32(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def _u64(*values: int) -> bytes:
    return struct.pack(f">{len(values)}Q", *values)


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


def create_overlay(step: Step, number: int | None) -> bytes:
    """The blob for a step that creates. number: the id of the instance; None: the kernel chooses."""
    resources = Node({"cpus": _u64(*sorted(step.cpus)), "memory-bytes": _u64(step.memory)})
    if step.node is not None:
        resources.properties["numa-nodes"] = _u32(step.node)
    resources.properties["cpu-affinity"] = _text("compact")
    if step.record:
        resources.children["virtio"] = Node(
            {},
            {
                node: Node(
                    {
                        "device-id": _u32(IDS[kind]),
                        "queues": _u32(queues),
                        "queue-size": _u32(QUEUE_SIZE),
                    }
                )
                for node, (kind, queues) in zip(step.record.nodes, step.record.kinds)
            },
        )
    create = Node({"instance-name": _text(step.name)}, {"resources": resources})
    if number is not None:
        create.properties["id"] = _u32(number)
    overlay = Node({}, {"instance-create": create})
    fragment = Node({"target-path": _text("/instances")}, {"__overlay__": overlay})
    return make_fdt(Node({"compatible": _text("linux,multikernel-overlay")}, {"fragment@0": fragment}))
