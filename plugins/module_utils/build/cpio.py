# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the kernel unpacks at its start: cpio archives in the newc format, and boot configuration behind them.

Sources: Documentation/driver-api/early-userspace/buffer-format.rst and
Documentation/admin-guide/bootconfig.rst of
the kernel. Imports nothing of the collection: the role spawn_image runs it from its file as well.
"""

from __future__ import annotations

import stat
import struct

TRAILER = "TRAILER!!!"


def member(
    number: int,
    name: str,
    mode: int,
    data: bytes = b"",
    device: tuple[int, int] = (0, 0),
    owner: tuple[int, int] = (0, 0),
    mtime: int = 0,
    links: int = 0,
) -> bytes:
    """One member; number: of its inode. links: 0 for what is usual, 2 for a directory and 1 for all else.

    Members with the same number and two links or more are the same file, whose data comes with the first.
    """
    head = header(number, name, mode, len(data), device, owner, mtime, links)
    return head + data + padding(len(data))


def header(
    number: int,
    name: str,
    mode: int,
    size: int,
    device: tuple[int, int] = (0, 0),
    owner: tuple[int, int] = (0, 0),
    mtime: int = 0,
    links: int = 0,
) -> bytes:
    """What is in front of a member's data."""
    path = name.encode("utf-8", "surrogateescape") + b"\0"
    count = links or (2 if stat.S_ISDIR(mode) else 1)
    fields = (number, mode, *owner, count, mtime, size, 0, 0, *device, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return head + padding(len(head))


def padding(length: int) -> bytes:
    """What fills it up to a multiple of four."""
    return bytes(-length % 4)


def boot_configuration(length: int, text: str) -> bytes:
    """What goes behind an image of this length, so that the kernel finds the text at its end."""
    data = text.encode() + b"\0"
    data += bytes(-(length + len(data)) % 4)
    return data + struct.pack("<II", len(data), sum(data)) + b"#BOOTCONFIG\n"
