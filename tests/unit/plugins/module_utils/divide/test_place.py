# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.divide.place import Board, choose_pool
from ansible_collections.mkops.multikernel.tests.unit.plugins.module_utils.divide import (
    test_layout_properties,
)

# Two nodes of two caches of two cores of two threads; APIC ids 0-15 in this order.
TOPOLOGY = test_layout_properties.build(2, 2, 2, 2, interleaved=False).topology
EVERY = range(16)


def board(free=range(2, 16)):
    return Board(TOPOLOGY, free, EVERY)


def choose(count, *policy, free=range(2, 16), prefer=()):
    chosen = board(free).choose(count, frozenset(policy), prefer)
    return chosen and tuple(sorted(chosen))


@pytest.mark.parametrize(
    ("count", "free", "cpus"),
    [
        (2, range(2, 16), (2, 3)),  # where it fits best: a cache with just so many left
        (1, range(2, 16), (2,)),
        (4, range(2, 16), (4, 5, 6, 7)),  # one cache that has them
        (1, [3, 4, 5], (3,)),
        (2, [3, 4, 5], (4, 5)),  # a core of its own before a thread of a shared one
        (1, [5, 6, 7], (6,)),
        (8, range(2, 16), (8, 9, 10, 11, 12, 13, 14, 15)),
        (14, range(2, 16), tuple(range(2, 16))),
        (15, range(2, 16), None),
    ],
)
def test_packed(count, free, cpus):
    assert choose(count, free=free) == cpus


@pytest.mark.parametrize(
    ("count", "policy", "cpus"),
    [
        (2, ["cores"], (2, 3)),
        (3, ["cores"], None),
        (8, ["node"], (8, 9, 10, 11, 12, 13, 14, 15)),
        (9, ["node"], None),
        (6, ["node"], (2, 3, 4, 5, 6, 7)),
        (4, ["cache"], (4, 5, 6, 7)),
        (1, ["cache"], (4,)),
        (12, ["cache"], tuple(range(4, 16))),
        (13, ["cache"], None),
        (4, ["spread"], (2, 4, 8, 12)),
        (2, ["spread", "cores"], (2, 3)),
        (4, ["spread", "cores"], (2, 3, 8, 9)),
        (4, ["spread", "node"], (2, 3, 4, 6)),
        (8, ["node", "cores", "cache"], (8, 9, 10, 11, 12, 13, 14, 15)),
        (6, ["node", "cache"], (8, 9, 12, 13, 14, 15)),
    ],
)
def test_policies(count, policy, cpus):
    assert choose(count, *policy) == cpus


def test_whole_cores_need_both_threads():
    assert choose(2, "cores", free=[2, 4, 6, 8]) is None
    assert choose(2, "cores", free=[2, 4, 8, 9]) == (8, 9)


@pytest.mark.parametrize(
    ("count", "prefer", "cpus"),
    [
        (2, [12], (12, 13)),
        (1, [9, 8], (9,)),  # the first one stays
        (2, [9, 4, 8], (8, 9)),  # then what is near to it
        (3, [15, 4], (4, 5, 15)),
        (2, [99], (2, 3)),
    ],
)
def test_what_is_there_is_kept(count, prefer, cpus):
    assert choose(count, prefer=prefer) == cpus


def test_what_is_taken_is_gone():
    free = board()
    free.take([4, 5])
    assert free.choose(2, frozenset({"cores", "cache"})) == (8, 9)
    free.give([4, 5])
    assert sorted(free.choose(4, frozenset({"cache"}))) == [4, 5, 6, 7]
    free.take_exclusively([4])
    assert 7 not in free.free


@pytest.mark.parametrize(
    ("cpus", "policy", "suits"),
    [
        ((4, 5), "cores", True),
        ((4, 6), "cores", False),
        ((4, 6), "node", True),
        ((4, 8), "node", False),
        ((4,), "cache", True),
        ((2,), "cache", False),  # the host has 0 and 1
        ((1,), "node", False),  # not free
        ((4, 8), "spread", True),
    ],
)
def test_suits(cpus, policy, suits):
    assert board().suits(cpus, frozenset({policy})) is suits


@pytest.mark.parametrize(
    ("count", "current", "pinned", "used", "pool"),
    [
        (2, [], [], [], (14, 15)),
        (3, [14, 15], [], [], (13, 14, 15)),
        (4, [14, 15], [3], [], (2, 3, 14, 15)),
        (1, [12, 13], [], [12], (12,)),
        (15, [], [], [], tuple(range(1, 16))),
        (16, [], [], [], None),
        (1, [], [3, 4], [], None),
    ],
)
def test_pools(count, current, pinned, used, pool):
    assert choose_pool(TOPOLOGY, count, current, pinned, used) == pool
