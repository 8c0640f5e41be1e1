# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Numbers of the virtio specification (1.2), as far as they are needed here. No I/O."""

from __future__ import annotations

import struct

NET, BLK, FS = 1, 2, 26  # device types

VERSION_1, INDIRECT, EVENT_IDX = 1 << 32, 1 << 28, 1 << 29
RING = VERSION_1 | INDIRECT | EVENT_IDX

# Of a network device.
CSUM, GUEST_CSUM, MTU, MAC, MRG_RXBUF, STATUS = (1 << bit for bit in (0, 1, 3, 5, 15, 16))
GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6 = (1 << bit for bit in (7, 8, 11, 12))
NET_FEATURES = (
    RING
    | CSUM
    | GUEST_CSUM
    | MTU
    | MAC
    | MRG_RXBUF
    | STATUS
    | GUEST_TSO4
    | GUEST_TSO6
    | HOST_TSO4
    | HOST_TSO6
)
NET_HEADER = 12  # bytes in front of each packet
LINK_UP = 1

# Of a disk: sizes, topology, discard, flush, read only. Not that the driver may choose how the cache works:
# nobody hears of what it writes into the configuration.
BLK_FEATURES = RING | sum(1 << bit for bit in (1, 2, 4, 5, 6, 9, 10, 13, 14))


def net_config(mac: str, mtu: int, up: bool = True) -> bytes:
    """mac, status, number of pairs of queues, mtu."""
    return bytes.fromhex(mac.replace(":", "")) + struct.pack("<3H", LINK_UP if up else 0, 1, mtu)


def fs_config(tag: str) -> bytes:
    """Tag, and the number of queues for requests, beside the one for those that come first."""
    return tag.encode().ljust(36, b"\0") + struct.pack("<I", 1)
