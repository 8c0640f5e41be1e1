# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""CPUs: users and Linux count logical ones, the multikernel interface takes physical (APIC) ids.

What a CPU shares with others is read where it is online. A pooled one has left most of the files that tell,
but APIC ids are made of bit fields: thread, core, cache, package. What the online CPUs show of these holds
for the others, too.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

_MADT_HEADER = 44
_LOCAL_APIC, _LOCAL_X2APIC = 0, 9
_NO_LOCAL_APIC = 0xFF  # the id of an entry that stands for none; larger ones are x2APICs
_NO_CPU = ((_LOCAL_APIC, _NO_LOCAL_APIC), (_LOCAL_X2APIC, 0xFFFFFFFF))
_SRAT_HEADER = 48
_SRAT_APIC, _SRAT_X2APIC = 0, 2
_ENABLED = 1


@dataclass(frozen=True)
class Topology:
    """Every CPU that has a known number, whether the host runs on it or the pool holds it."""

    online: tuple[int, ...] = ()  # logical
    present: tuple[int, ...] = ()  # logical
    physical: Mapping[int, int] = field(default_factory=dict)  # logical number -> APIC id
    node: Mapping[int, int] = field(default_factory=dict)  # APIC id -> NUMA node, where it is known
    core: Mapping[int, Hashable] = field(default_factory=dict)  # APIC id -> what its threads have alike
    cache: Mapping[int, Hashable] = field(default_factory=dict)  # APIC id -> what users of its L3 have alike
    socket: Mapping[int, int] = field(default_factory=dict)  # APIC id -> physical package, where it is known
    boot_cpu: int = 0

    @cached_property
    def logical(self) -> dict[int, int]:
        """APIC id -> logical number."""
        return {apic: cpu for cpu, apic in self.physical.items()}

    def to_logical(self, apic_ids: Iterable[int]) -> list[int | None]:
        numbers = self.logical
        return [numbers.get(apic) for apic in apic_ids]


@dataclass(frozen=True)
class OnlineCpu:
    """A CPU in /proc/cpuinfo."""

    apic: int
    package: int = 0
    core: int | None = None


def parse_cpuinfo(text: str) -> dict[int, OnlineCpu]:
    """By logical number, the CPUs in /proc/cpuinfo, which are those online."""
    found = {}
    for block in text.split("\n\n"):
        fields = {}
        for line in block.splitlines():
            key, _colon, value = line.partition(":")
            fields[key.rstrip()] = value.strip()
        if "processor" in fields and "apicid" in fields:
            found[int(fields["processor"])] = OnlineCpu(
                int(fields["apicid"]),
                int(fields.get("physical id", 0)),
                int(fields["core id"]) if "core id" in fields else None,
            )
    return found


def parse_madt(table: bytes) -> list[int]:
    """APIC ids of the usable CPUs in the order of the ACPI MADT, each once.

    Some firmwares list a CPU twice. As in Linux, beside local APICs an x2APIC counts only where its id does
    not fit there.
    """
    found = []
    for kind, entry in _acpi_entries(table, _MADT_HEADER):
        if kind == _LOCAL_APIC and len(entry) >= 8:
            apic, flags = entry[3], struct.unpack_from("<I", entry, 4)[0]
        elif kind == _LOCAL_X2APIC and len(entry) >= 16:
            apic, flags = struct.unpack_from("<II", entry, 4)
        else:
            continue
        if flags & _ENABLED and (kind, apic) not in _NO_CPU:
            found.append((kind, apic))
    mixed = any(kind == _LOCAL_APIC for kind, _apic in found)
    counts = [apic for kind, apic in found if kind == _LOCAL_APIC or not mixed or apic >= _NO_LOCAL_APIC]
    return list(dict.fromkeys(counts))


def parse_srat(table: bytes) -> dict[int, int]:
    """APIC id to proximity domain, which Linux numbers as NUMA nodes in the order of their numbers."""
    domains = {}
    for kind, entry in _acpi_entries(table, _SRAT_HEADER):
        if kind == _SRAT_APIC and len(entry) >= 16:
            apic, flags = entry[3], struct.unpack_from("<I", entry, 4)[0]
            domain = entry[2] | entry[9] << 8 | entry[10] << 16 | entry[11] << 24
        elif kind == _SRAT_X2APIC and len(entry) >= 24:
            domain, apic, flags = struct.unpack_from("<III", entry, 4)
        else:
            continue
        if flags & _ENABLED:
            domains[apic] = domain
    return domains


def _acpi_entries(table: bytes, offset: int) -> Iterable[tuple[int, bytes]]:
    while offset + 2 <= len(table):
        kind, length = table[offset], table[offset + 1]
        if length < 2 or offset + length > len(table):
            break
        yield kind, table[offset : offset + length]
        offset += length


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
        pooled = dict(zip(pool_logical, pool))
    else:
        pooled = {cpu: apic for cpu, apic in number_by_madt(madt, online).items() if apic in pool}
    return {**pooled, **online}


def _gaps(groups: Mapping[int, Hashable], alike: bool) -> list[int]:
    """In which bits neighbouring ids differ, for those in one group or for those in two."""
    order = sorted(groups)
    pairs = zip(order, order[1:])
    return [one ^ other for one, other in pairs if (groups[one] == groups[other]) == alike]


def group_shift(groups: Mapping[int, Hashable]) -> int | None:
    """How many low bits of an APIC id differ inside a group, as far as these CPUs show it.

    None when they all are in one group, because then it is open how much more that has.
    """
    borders = _gaps(groups, alike=False)
    return min(borders).bit_length() - 1 if borders else None


def cores(online: Mapping[int, OnlineCpu], pool: Iterable[int], threads: bool) -> dict[int, Hashable]:
    """APIC id to core. I(threads) tells whether cores can have several threads at all."""
    groups = {cpu.apic: (cpu.package, cpu.core) for cpu in online.values() if cpu.core is not None}
    shift = 0
    if threads:
        # When one thread of each core is all that is online: x86 has two where it has several.
        shift = max(_gaps(groups, alike=True), default=1).bit_length()
        border = group_shift(groups)
        shift = shift if border is None else min(shift, border)
    return {apic: apic >> shift for apic in [*groups, *pool]}


def sockets(online: Mapping[int, OnlineCpu], pool: Iterable[int], node: Mapping[int, int]) -> dict[int, int]:
    """APIC id to physical package; of a CPU in the pool by the bits of its id, else by its NUMA node."""
    found = {cpu.apic: cpu.package for cpu in online.values()}
    shift = group_shift(found)
    by_bits = {} if shift is None else {apic >> shift: package for apic, package in found.items()}
    by_node = {node[apic]: package for apic, package in found.items() if apic in node}
    for apic in pool:
        package = by_bits.get(apic >> (shift or 0), by_node.get(node.get(apic, -1)))
        if package is not None:
            found.setdefault(apic, package)
    return found


def caches(online: Mapping[int, Hashable], pool: Iterable[int], shift: int | None) -> dict[int, Hashable]:
    """APIC id to last-level cache. I(online) are those of the online CPUs, I(shift) what CPUID says."""
    if shift is None:
        shift = group_shift(online)
    if shift is None:
        return dict(online)
    return {apic: apic >> shift for apic in [*online, *pool]}
