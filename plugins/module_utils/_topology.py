# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""CPU numbering: users and Linux count logical CPUs, the multikernel interface takes physical (APIC) ids."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_MADT_HEADER = 44
_LOCAL_APIC, _LOCAL_X2APIC = 0, 9
_ENABLED = 1


@dataclass(frozen=True)
class Topology:
    """Every CPU that has a known number, whether the host runs on it or the pool holds it."""

    online: tuple[int, ...] = ()
    present: tuple[int, ...] = ()
    physical: Mapping[int, int] = field(default_factory=dict)  # logical number -> APIC id
    node: Mapping[int, int] = field(default_factory=dict)  # logical number -> NUMA node, online CPUs only
    boot_cpu: int = 0

    @property
    def logical(self) -> dict[int, int]:
        return {apic: cpu for cpu, apic in self.physical.items()}

    def to_logical(self, apic_ids: Iterable[int]) -> list[int | None]:
        numbers = self.logical
        return [numbers.get(apic) for apic in apic_ids]


def parse_cpuinfo(text: str) -> dict[int, int]:
    """Logical number to APIC id of the CPUs in /proc/cpuinfo, which are those online."""
    physical = {}
    cpu = None
    for line in text.splitlines():
        key, _colon, value = (part.strip() for part in line.partition(":"))
        if key == "processor":
            cpu = int(value)
        elif key == "apicid" and cpu is not None:
            physical[cpu] = int(value)
    return physical


def parse_madt(table: bytes) -> list[int]:
    """APIC ids of the usable CPUs in the order of the ACPI MADT."""
    ids = []
    offset = _MADT_HEADER
    while offset + 2 <= len(table):
        kind, length = table[offset], table[offset + 1]
        if length < 2 or offset + length > len(table):
            break
        if kind == _LOCAL_APIC and length >= 8:
            apic, flags = table[offset + 3], struct.unpack_from("<I", table, offset + 4)[0]
        elif kind == _LOCAL_X2APIC and length >= 16:
            apic, flags = struct.unpack_from("<II", table, offset + 4)
        else:
            apic, flags = 0, 0
        if flags & _ENABLED:
            ids.append(apic)
        offset += length
    return ids


def number_by_madt(madt: list[int], online: Mapping[int, int]) -> dict[int, int]:
    """Logical numbers as Linux gives them: the boot CPU first, then the order of the MADT.

    Empty when that does not agree with what the online CPUs say, because then it is no proof for the others.
    """
    boot = online.get(0)
    if boot not in madt:
        return {}
    order = [boot] + [apic for apic in madt if apic != boot]
    numbers = dict(enumerate(order))
    return numbers if all(numbers.get(cpu) == apic for cpu, apic in online.items()) else {}


def number_cpus(
    online: Mapping[int, int], pool: Iterable[int], pool_logical: Iterable[int], madt: list[int]
) -> dict[int, int]:
    """Logical number to APIC id of the online CPUs and of those in the pool, gone from /proc/cpuinfo."""
    pool, pool_logical = list(pool), list(pool_logical)
    if len(pool) == len(pool_logical):
        pooled = dict(zip(pool_logical, pool, strict=True))
    else:
        pooled = {cpu: apic for cpu, apic in number_by_madt(madt, online).items() if apic in pool}
    return {**pooled, **online}
