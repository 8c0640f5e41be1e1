# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.divide.machine import (
    Chunk,
    Instance,
    Pool,
    Region,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.memory import Memory
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.versions import (
    FIRST_SERIES,
    FULL_SERIES,
    UPSTREAM,
)
from ansible_collections.mkops.multikernel.tests.unit.plugins.module_utils.divide.test_planner import BARE

MIB = 1024**2
GIB = 1024**3


def memory(chunks, regions=(), interface=FULL_SERIES):
    """Regions are those of instance a, with their numbers in /proc/iomem."""
    named = tuple(Region(base, size, f"mk-instance-1-a-region-{number}") for number, base, size in regions)
    instances = {"a": Instance("a", 1, "ready", (4,), sum(size for _n, _b, size in regions))}
    pool = Pool(cpus=(4,), chunks=tuple(Chunk(*chunk) for chunk in chunks), regions=named)
    return Memory(replace(BARE, pool=pool, instances=instances, interface=interface))


def test_regions_count_from_the_oldest():
    found = memory([(GIB, GIB, 0)], [(10, GIB, MIB), (2, GIB + 4 * MIB, 2 * MIB)])
    assert found.regions["a"] == [(GIB + 4 * MIB, 2 * MIB), (GIB, MIB)]
    assert found.of("a") == 3 * MIB
    assert found.free() == GIB - 3 * MIB


def test_other_users_of_the_pool_are_in_the_way():
    pool = Pool(chunks=(Chunk(GIB, GIB, 0),), regions=(Region(GIB, 16 * MIB, "daxfs"),))
    found = Memory(replace(BARE, pool=pool))
    assert found.free() == GIB - 16 * MIB
    assert not found.is_idle(found.chunks[0])


@pytest.mark.parametrize(
    ("interface", "size", "possible"),
    [
        (FULL_SERIES, 768, True),
        (UPSTREAM, 768, True),
        (FIRST_SERIES, 768, False),
        (FIRST_SERIES, 512, True),
        (FULL_SERIES, 1025, False),
        (UPSTREAM, 1025, False),
    ],
)
def test_only_some_kernels_make_one_memory_of_several_pieces(interface, size, possible):
    found = memory([(GIB, 512 * MIB, 0), (4 * GIB, 512 * MIB, 0)], interface=interface)
    assert found.create("new", size * MIB) is possible
    if possible:
        assert found.of("new") == size * MIB
    else:
        assert found.free() == GIB


@pytest.mark.parametrize(
    ("sizes", "size", "first"),
    [
        ([512, 256], 512, [512]),
        ([512, 256], 768, [384, 192, 96, 48, 24]),  # 384 fits nowhere a second time, and half of it does
        ([128, 128, 128], 384, [96, 72]),
        ([3, 2], 5, [2.5]),
    ],
)
def test_multikernel_linux_halves_what_is_wanted_until_it_fits(sizes, size, first):
    chunks = [((place + 1) * GIB, length * MIB, 0) for place, length in enumerate(sizes)]
    found = memory(chunks, interface=UPSTREAM)
    assert found.create("new", size * MIB)
    regions = found.regions["new"]
    assert found.of("new") == size * MIB
    assert found.free() == (sum(sizes) - size) * MIB
    assert all(base % 4096 == length % 4096 == 0 for base, length in regions)
    assert [length / MIB for _base, length in regions][: len(first)] == first


@pytest.mark.parametrize(
    ("interface", "size", "fits"),
    [(FULL_SERIES, 500, True), (UPSTREAM, 512, True), (FIRST_SERIES, 300, False), (FIRST_SERIES, 256, True)],
)
def test_what_fits_on_a_node(interface, size, fits):
    chunks = [(GIB, 256 * MIB, 1), (2 * GIB, 512 * MIB, 0), (4 * GIB, 256 * MIB, 1)]
    assert memory(chunks, interface=interface).fits(size * MIB, 1) is fits
    assert not memory(chunks, interface=interface).fits(MIB, 2)


def test_memory_of_a_node():
    found = memory([(GIB, 512 * MIB, 0), (4 * GIB, 512 * MIB, 1)])
    assert found.create("new", 256 * MIB, node=1)
    assert (found.free(0), found.free(1)) == (512 * MIB, 256 * MIB)
    assert not found.create("more", 512 * MIB, node=1)


def test_growing_takes_the_highest_place():
    found = memory([(GIB, GIB, 0)], [(0, GIB, 100 * MIB)])
    assert found.resize("a", 228 * MIB) is None
    assert found.regions["a"][1] == (GIB + 896 * MIB, 128 * MIB)


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (101, "added in steps of 128 MiB, and 1 MiB more"),
        (100 + 1024, "no chunk of the pool has 1 GiB free in one piece"),
        (99, "and it has 100 MiB"),
        (0, "and it has 100 MiB"),
    ],
)
def test_sizes_that_cannot_be_reached_in_place(size, reason):
    found = memory([(GIB, GIB, 0)], [(0, GIB, 100 * MIB)])
    assert reason in found.resize("a", size * MIB)
    assert found.of("a") == 100 * MIB


def test_shrinking_gives_the_newest_back():
    found = memory([(GIB, GIB, 0)], [(0, GIB, 128 * MIB), (1, GIB + 512 * MIB, 256 * MIB)])
    assert "newest first" in found.resize("a", 256 * MIB)
    assert found.resize("a", 128 * MIB) is None
    assert found.free() == GIB - 128 * MIB


def test_the_pool_gives_whole_idle_chunks_back():
    chunks = [(GIB, 512 * MIB, 0), (2 * GIB, 256 * MIB, 0), (3 * GIB, 128 * MIB, 0), (4 * GIB, GIB, 1)]
    found = memory(chunks, [(0, GIB, 100 * MIB)])
    assert found.resize_pool({0: 640 * MIB, 1: GIB}) == []
    assert [chunk.size // MIB for chunk in found.chunks] == [512, 128, 1024]
    assert found.resize_pool({0: 256 * MIB}) == [(0, 256 * MIB)]
    assert found.pieces(0) == "512 MiB (in use)"
    assert found.resize_pool({0: GIB, 2: GIB}) == []
    assert found.nodes == {0: GIB, 2: GIB}
