# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The trees that a step needs are made here by libfdt, as kerf makes them.

That takes long, so that not all are: MKOPS_EXAMPLES=1000 makes all of them.
"""

from __future__ import annotations

import itertools
import os

import libfdt
import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.divide import overlay
from ansible_collections.mkops.multikernel.tests.unit import kerf_trees

PAGE = 4096
GIB = 1024**3
turns = itertools.count()
EVERY = 1 if int(os.environ.get("MKOPS_EXAMPLES", "0")) >= 1000 else 16
LIMITS = pytest.mark.parametrize("limit", [None, PAGE])
pytestmark = pytest.mark.untraced


def makeable(tree, *arguments):
    """The length of what kerf would write; None when it cannot."""
    try:
        return len(tree(*arguments))
    except libfdt.FdtException:
        return None


def taken(limit, tree, *arguments):
    """Whether a step can be taken; a part of them is looked at."""
    if next(turns) % EVERY:
        return
    length = makeable(tree, *arguments)
    assert length is not None, "kerf cannot make it"
    assert limit is None or length <= limit, "the kernel cuts it"


def take_pool(change, limit):
    """Walk through the steps of a pool; how many there are."""
    cpus, memory = change.cpus, {node: size for node, size in change.memory.items() if size}
    leaving, coming = list(change.leaving), list(change.coming)
    steps = change.steps(limit)
    for new_cpus, new_memory in steps:
        assert bool(new_cpus) == bool(new_memory)
        gone, come = [], []
        for node in {*memory, *new_memory}:
            rest = memory.get(node, 0) - new_memory.get(node, 0)
            if rest < 0:
                come.append((node, -rest))
            while rest > 0:
                index = next(place for place, chunk in enumerate(leaving) if chunk[0] == node)
                gone.append((0, leaving.pop(index)[1]))
                rest -= gone[-1][1]
            assert rest <= 0
        assert sorted(come) == sorted(coming[: len(come)])
        del coming[: len(come)]
        if not cpus and not memory:
            taken(None, kerf_trees.baseline, sorted(new_cpus), new_memory)
        else:
            taken(limit, kerf_trees.pool, new_cpus - cpus, cpus - new_cpus, come, gone)
        cpus, memory = new_cpus, new_memory
    assert cpus == change.wanted
    assert not leaving
    assert not coming
    return len(steps)


@LIMITS
@pytest.mark.parametrize("stride", [1, 2] if EVERY == 1 else [2])
def test_pools_of_all_sizes(limit, stride):
    """Made, enlarged, made smaller and given back: 2 to 512 CPUs, none to three chunks."""
    several = 0
    for count in range(2, 513):
        cpus = frozenset(range(stride, stride * (count + 1), stride))
        one, chunks = frozenset({4000}), count % 4
        sizes = [(node, GIB) for node in range(chunks)]
        some = [(5, GIB)]
        have = dict([*sizes, *some])
        several += take_pool(overlay.PoolChange(frozenset(), {}, cpus, (), some + sizes), limit) > 1
        several += take_pool(overlay.PoolChange(one, dict(some), cpus | one, (), sizes), limit) > 1
        several += take_pool(overlay.PoolChange(cpus | one, have, one, sizes, ()), limit) > 1
        several += take_pool(overlay.PoolChange(cpus | one, have, cpus, sizes, [(6, GIB)]), limit) > 1
        several += take_pool(overlay.PoolChange(cpus, have, frozenset(), some + sizes, ()), limit) > 1
    assert several > (1000 if limit else 4)


@LIMITS
@pytest.mark.parametrize("name", ["a", "name", "database-01", "n" * 63] if EVERY == 1 else ["database-01"])
def test_instances_of_all_sizes(limit, name):
    several = 0
    for count in range(1, 513):
        cpus = list(range(1, count + 1))
        for number, node in ((None, None), (7, None), (7, 1)):
            first = overlay.create_cpus(name, count, number is not None, node is not None, limit)
            assert 1 <= first <= count
            taken(limit, kerf_trees.create, name, cpus[:first], GIB, number, node)
            several += first < count
        for have, wanted in (({4000}, {4000, *cpus}), ({4000, *cpus}, {4000}), ({4000, *cpus}, {4000, 4001})):
            steps = overlay.cpu_steps(name, frozenset(have), frozenset(wanted), limit)
            before = frozenset(have)
            for after in steps:
                assert after
                taken(limit, kerf_trees.update, name, before - after, after - before)
                before = after
            assert before == wanted
            several += len(steps) > 1
        sizes = overlay.memory_steps(name, [GIB] * count, (count + 1) * GIB, limit)
        before = (count + 1) * GIB
        for after in sizes:
            taken(limit, kerf_trees.update, name, (), (), [(0, GIB)] * ((before - after) // GIB))
            before = after
        assert before == GIB
        several += len(sizes) > 1
    assert several > (500 if limit else 4)


@pytest.mark.parametrize(
    ("tree", "size"),
    [
        # The isolated sizes that kerf 0.4 cannot make
        ((kerf_trees.pool, range(2, 20), (), [(0, GIB), (1, GIB)], ()), None),
        ((kerf_trees.pool, range(2, 50), (), [(0, GIB)], ()), None),
        ((kerf_trees.pool, (), range(2, 79), (), [(0, GIB)]), None),
        ((kerf_trees.pool, range(2, 51), (), [(0, GIB)], ()), 2077),
    ],
)
def test_what_kerf_cannot_make(tree, size):
    assert makeable(*tree) == size


def test_runs_are_as_long_as_they_can_be():
    assert overlay.split(10, lambda begin, end: end - begin <= 4) == [4, 8, 10]
    # The longest first run leads nowhere here.
    assert overlay.split(5, lambda begin, end: (begin, end) in {(0, 4), (0, 3), (3, 5)}) == [3, 5]
    # What cannot be had in any way is tried as it is, so that kerf says why.
    assert overlay.split(5, lambda begin, end: (begin, end) == (0, 3)) == [5]
    assert overlay.split(0, lambda _begin, _end: False) == [0]
    assert overlay.create_cpus("n" * 5000, 2, False, False, PAGE) == 2
