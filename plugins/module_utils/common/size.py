# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sizes as users write them, to and from bytes. Every suffix is a power of 1024, as kerf and QEMU read it."""

from __future__ import annotations

import re
from decimal import Decimal

from .text import shown

PAGE_SIZE = 4096
MIB = 1024**2

_UNITS = "KMGTP"
_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([KMGTP]?)(?:I?B)?", re.IGNORECASE)


def parse_size(value: object) -> int:
    """Bytes of C(536870912), C("512M"), C("1GiB"), C("1.5g"); ValueError says what is wrong."""
    plain = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    match = _SIZE.fullmatch(str(value).strip()) if plain else None
    if not match:
        raise ValueError(
            f"{shown(value)} is not a size: write bytes, or a number with K, M, G or T such as 512M"
        )
    exponent = _UNITS.index(match[2].upper()) + 1 if match[2] else 0
    size = Decimal(match[1]) * 1024**exponent
    if size != int(size):
        raise ValueError(f"{shown(value)} is not a whole number of bytes")
    return int(size)


def parse_memory(value: object) -> int:
    """A size that memory can have: whole pages, more than none."""
    size = parse_size(value)
    if size == 0:
        raise ValueError(
            f"{shown(value)} is no memory at all: ask for at least one page of {PAGE_SIZE} bytes"
        )
    if size % PAGE_SIZE:
        below = size - size % PAGE_SIZE
        raise ValueError(
            f"{shown(value)} is {size} bytes, which is not a multiple of the page size {PAGE_SIZE}:"
            f" the nearest are {below} and {below + PAGE_SIZE}"
        )
    return size


def format_size(size: int) -> str:
    """The shortest exact form, in quarters of a unit at the finest."""
    for exponent in range(len(_UNITS), 0, -1):
        unit = 1024**exponent
        if size >= unit and size % (unit // 4) == 0:
            return f"{Decimal(size) / unit:f} {_UNITS[exponent - 1]}iB"
    return f"{size} B"


def about(size: int) -> str:
    """Rounded down to a tenth of its unit, where no exact size is of use."""
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB")):
        if size >= unit:
            return f"{size * 10 // unit / 10:g} {name}"
    return format_size(size)
