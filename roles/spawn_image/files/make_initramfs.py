#!/usr/bin/env python3
# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Make the initramfs of a spawned kernel: a static busybox and the scripts beside this file.

The same inputs give the same bytes. A file that already has them is left alone.
"""

from __future__ import annotations

import argparse
import gzip
import os
import stat
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ELF_INTERPRETER = 3


def entry(number: int, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    """One member of a cpio archive in the kernel's newc format, owned by root and without a time."""
    path = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (number, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def archive(busybox: bytes) -> bytes:
    directory, program = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755
    members = [
        *((name, directory) for name in ("bin", "dev", "proc", "root", "sbin", "sys", "tmp")),
        ("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)),
        ("bin/busybox", program, busybox),
        ("bin/mkops-facts", program, (HERE / "mkops-facts").read_bytes()),
        ("sbin/poweroff", program, (HERE / "poweroff").read_bytes()),
        ("init", program, (HERE / "init").read_bytes()),
        ("TRAILER!!!", 0),
    ]
    return b"".join(entry(number, *member) for number, member in enumerate(members, start=1))


def is_static(program: bytes) -> bool:
    """A static ELF names no interpreter among its program headers."""
    if program[:5] != b"\x7fELF\x02":
        return False
    offset = int.from_bytes(program[32:40], "little")
    size = int.from_bytes(program[54:56], "little")
    count = int.from_bytes(program[56:58], "little")
    headers = range(offset, offset + size * count, size)
    return ELF_INTERPRETER not in (int.from_bytes(program[at : at + 4], "little") for at in headers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busybox", type=Path, required=True, help="static busybox for x86-64")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    try:
        busybox = options.busybox.read_bytes()
    except OSError as error:
        sys.exit(f"{options.busybox}: {error.strerror}: install busybox-static")
    if not is_static(busybox):
        sys.exit(f"{options.busybox} is not a static 64-bit ELF program: install busybox-static")
    image = gzip.compress(archive(busybox), mtime=0)
    if options.output.is_file() and options.output.read_bytes() == image:
        return
    options.output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = options.output.with_suffix(f".{os.getpid()}")
    unfinished.write_bytes(image)
    unfinished.replace(options.output)


if __name__ == "__main__":
    main()
