# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mkops.multikernel.plugins.module_utils.divide.topology import (
    OnlineCpu,
    Topology,
    caches,
    cores,
    group_shift,
    number_by_madt,
    number_cpus,
    parse_cpuinfo,
    parse_madt,
    parse_srat,
    sockets,
)


def madt(*entries):
    return bytes(44) + b"".join(entries)


def local_apic(apic, flags=1):
    return struct.pack("<BBBBI", 0, 8, 7, apic, flags)


def local_x2apic(apic, flags=1):
    return struct.pack("<BBHIII", 9, 16, 0, apic, flags, 7)


IO_APIC = struct.pack("<BBBBII", 1, 12, 0, 0, 0xFEC00000, 0)


def test_cpuinfo():
    text = (
        "processor\t: 0\napicid\t\t: 0\ninitial apicid\t: 0\n\n"
        "processor\t: 7\nphysical id\t: 1\ncore id\t\t: 9\napicid\t\t: 19\n\n"
    )
    assert parse_cpuinfo(text) == {0: OnlineCpu(0), 7: OnlineCpu(19, 1, 9)}


def test_cpuinfo_without_apic_ids():
    assert parse_cpuinfo("processor\t: 0\nBogoMIPS\t: 50\n") == {}


def test_madt_takes_usable_cpus_in_order():
    table = madt(local_apic(4), IO_APIC, local_apic(6, flags=0), local_x2apic(300), local_apic(0))
    assert parse_madt(table) == [4, 300, 0]


@pytest.mark.parametrize(
    ("entries", "ids"),
    [
        # The same CPUs as local APICs and as x2APICs
        ([*map(local_apic, (0, 2, 4, 6)), *map(local_x2apic, (0, 2, 4, 6))], [0, 2, 4, 6]),
        ([*map(local_x2apic, (6, 4, 2, 0)), *map(local_apic, (0, 2, 4, 6))], [0, 2, 4, 6]),
        ([local_apic(0), local_x2apic(0), local_apic(2), local_x2apic(2), local_x2apic(256)], [0, 2, 256]),
        # Twice in one form, or as an entry for nothing
        (map(local_x2apic, (0, 2, 2, 4)), [0, 2, 4]),
        (map(local_apic, (0, 2, 0, 4, 255)), [0, 2, 4]),
        ([local_apic(0, flags=0), local_apic(255), *map(local_x2apic, (0, 2))], [0, 2]),
        (map(local_x2apic, (0, 0xFFFFFFFF, 256)), [0, 256]),
        ([local_apic(0), *map(local_x2apic, (254, 255, 0xFFFFFFFF))], [0, 255]),
    ],
)
def test_a_cpu_that_the_madt_lists_twice_counts_once(entries, ids):
    found = parse_madt(madt(*entries))
    assert found == ids
    assert number_by_madt(found, {0: 0}) == dict(enumerate(ids))
    assert number_cpus({0: 0}, pool=ids[-1:], pool_logical=[], madt=found) == {0: 0, len(ids) - 1: ids[-1]}


@given(st.binary(max_size=200))
def test_madt_of_any_bytes_ends(data):
    parse_madt(madt(data))


def test_numbers_begin_with_the_boot_cpu():
    assert number_by_madt([4, 0, 2], {0: 0, 1: 4}) == {0: 0, 1: 4, 2: 2}


@pytest.mark.parametrize("online", [{}, {0: 9}, {0: 0, 1: 2}])
def test_numbers_that_disagree_with_the_online_cpus_are_not_used(online):
    assert number_by_madt([0, 4, 2], online) == {}


def test_the_kernel_tells_the_logical_numbers():
    assert number_cpus({0: 0, 1: 2}, pool=[6, 4], pool_logical=[3, 2], madt=[]) == {0: 0, 1: 2, 3: 6, 2: 4}


def test_the_madt_stands_in():
    assert number_cpus({0: 0, 1: 2}, [4, 6], [], madt=[0, 2, 4, 6]) == {0: 0, 1: 2, 2: 4, 3: 6}


def test_nothing_is_guessed():
    topology = Topology(physical=number_cpus({0: 0, 1: 2}, [4, 6], [], madt=[]))
    assert topology.to_logical([2, 4]) == [1, None]


def srat_entries():
    apic = struct.pack("<BBBBIBBBBI", 0, 16, 3, 4, 1, 0, 1, 0, 0, 0)
    x2apic = struct.pack("<BBHIIII", 2, 24, 0, 7, 300, 1, 0) + bytes(4)
    off = struct.pack("<BBBBIBBBBI", 0, 16, 9, 8, 0, 0, 0, 0, 0, 0)
    return apic + x2apic + off


def test_srat():
    assert parse_srat(bytes(48) + srat_entries()) == {4: 3 | 1 << 8, 300: 7}


@given(st.binary(max_size=200))
def test_srat_of_any_bytes_ends(data):
    parse_srat(bytes(48) + data)


@pytest.mark.parametrize(
    ("groups", "shift"),
    [
        ({}, None),
        ({0: "a"}, None),
        ({0: "a", 1: "a"}, None),
        ({0: "a", 1: "b"}, 0),
        ({0: "a", 1: "a", 2: "b", 3: "b"}, 1),
        ({0: "a", 16: "b"}, 4),
        ({0: "a", 3: "a", 16: "b", 24: "c"}, 3),
    ],
)
def test_group_shift(groups, shift):
    assert group_shift(groups) == shift


def online(*cpus):
    return {number: OnlineCpu(apic, 0, core) for number, (apic, core) in enumerate(cpus)}


@pytest.mark.parametrize(
    ("cpus", "threads", "same"),
    [
        (online((0, 0), (1, 0), (2, 1), (3, 1)), True, [(4, 5)]),
        (online((0, 0), (2, 1)), True, [(4, 5), (6, 7)]),
        (online((0, 0)), True, [(4, 5)]),
        (online((0, 0), (1, 1)), True, []),
        (online((0, 0), (1, 1)), False, []),
    ],
)
def test_cores_of_others_follow_from_those_online(cpus, threads, same):
    core = cores(cpus, range(4, 8), threads)
    pairs = [(one, other) for one in range(4, 8) for other in range(one + 1, 8) if core[one] == core[other]]
    assert all(pair in pairs for pair in same)
    assert bool(pairs) == bool(same)


def test_caches():
    assert caches({0: "0-1", 1: "0-1"}, [8, 9], None) == {0: "0-1", 1: "0-1"}
    assert caches({0: "0-1", 1: "0-1"}, [8, 9], 3) == {0: 0, 1: 0, 8: 1, 9: 1}
    assert caches({0: "0", 8: "8"}, [9, 16], None) == {0: 0, 8: 1, 9: 1, 16: 2}
    assert caches({}, [4], None) == {}


def in_sockets(*cpus):
    return {number: OnlineCpu(apic, package) for number, (apic, package) in enumerate(cpus)}


@pytest.mark.parametrize(
    ("cpus", "node", "found"),
    [
        # The bits of ids tell, whatever the nodes are.
        (in_sockets((0, 0), (1, 0), (8, 1)), {}, {0: 0, 1: 0, 8: 1, 2: 0, 9: 1}),
        # All that is online is in one package: the others on its node are there, too.
        (in_sockets((0, 0), (1, 0)), {0: 0, 1: 0, 2: 0, 9: 1}, {0: 0, 1: 0, 2: 0}),
        (in_sockets((0, 3)), {}, {0: 3}),
    ],
)
def test_sockets_of_others_follow_from_those_online(cpus, node, found):
    assert sockets(cpus, [2, 9], node) == found
