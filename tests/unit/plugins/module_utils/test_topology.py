# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mkops.multikernel.plugins.module_utils._topology import (
    Topology,
    number_by_madt,
    number_cpus,
    parse_cpuinfo,
    parse_madt,
)


def madt(*entries):
    return bytes(44) + b"".join(entries)


def local_apic(apic, flags=1):
    return struct.pack("<BBBBI", 0, 8, 7, apic, flags)


def local_x2apic(apic, flags=1):
    return struct.pack("<BBHIII", 9, 16, 0, apic, flags, 7)


IO_APIC = struct.pack("<BBBBII", 1, 12, 0, 0, 0xFEC00000, 0)


def test_cpuinfo():
    text = "processor\t: 0\napicid\t\t: 0\ninitial apicid\t: 0\n\nprocessor\t: 7\napicid\t\t: 19\n"
    assert parse_cpuinfo(text) == {0: 0, 7: 19}


def test_cpuinfo_without_apic_ids():
    assert parse_cpuinfo("processor\t: 0\nBogoMIPS\t: 50\n") == {}


def test_madt_takes_usable_cpus_in_order():
    table = madt(local_apic(4), IO_APIC, local_apic(6, flags=0), local_x2apic(300), local_apic(0))
    assert parse_madt(table) == [4, 300, 0]


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
