# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import struct

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.boot.live import (
    Marker,
    Means,
    five_levels,
    live_reasons,
    marker,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.common.live import (
    LiveUpdate,
    parse_live_update,
)
from ansible_collections.mkops.multikernel.tests.unit.fake_boot import bzimage, mark

OTHER = struct.pack("<4sI", b"XXXX", 20) + b"\1" * 12


@pytest.mark.parametrize(
    "image",
    [
        bzimage(mark(2, 5)),
        bzimage(OTHER, mark(2, 5)),
        bzimage(mark(2, 5), OTHER),
        # A later one may say more.
        bzimage(struct.pack("<4sIIII", b"MKLU", 20, 2, 5, 99)),
        # The number of sectors that stands for four, and other numbers
        bzimage(mark(2, 5), sects=0),
        bzimage(mark(2, 5), sects=39),
        # The kernel's own part grows with its versions.
        bzimage(mark(2, 5), size=64),
    ],
)
def test_a_mark_is_found(image):
    assert marker(image) == Marker(2, 5)


def changed(offset, data):
    image = bzimage(mark())
    return image[:offset] + data + image[offset + len(data) :]


INFO = 5 * 512 + 64


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"\x7fELF" + b"\0" * 4096,
        bzimage(),
        bzimage(OTHER),
        bzimage(struct.pack("<4sI", b"MKLU", 8)),  # without versions
        bzimage(mark(0, 1)),
        bzimage(mark(3, 2)),
        bzimage(struct.pack("<4sI", b"XXXX", 0), mark()),  # a chunk of no size
        bzimage(struct.pack("<4sI", b"XXXX", 1 << 30), mark()),
        changed(0x202, b"HdrX"),
        changed(0x206, b"\x0e\x02"),  # before there was kernel_info
        changed(0x268, b"\xff\xff\xff\xff"),
        changed(INFO, b"LToX"),
        changed(INFO + 4, struct.pack("<I", 4)),
        changed(INFO + 8, struct.pack("<I", 8)),
        changed(INFO + 8, struct.pack("<I", 1 << 31)),
        bzimage(mark())[: INFO + 20],
    ],
)
def test_an_image_without_a_mark(image):
    assert marker(image) is None


def test_each_cut_of_an_image_is_read():
    image = bzimage(OTHER, mark())
    found = {marker(image[:length]) for length in range(0, len(image), 7)}
    assert found == {None, Marker(1, 1)}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("state off\ngeneration 0\nadopted 0\nlost 0\n", LiveUpdate("off")),
        ("state loaded\ngeneration 3\nadopted 2\nlost 1\n", LiveUpdate("loaded", 3, 2, 1)),
        (
            "state off\nreason instance red has a request under way\nnews 7\n",
            LiveUpdate("off", reason="instance red has a request under way"),
        ),
        ("state off\ngeneration many\n", LiveUpdate("off")),
        ("", None),
        ("generation 1\n", None),
    ],
)
def test_what_the_kernel_says(text, found):
    assert parse_live_update(text) == found
    assert found is None or found.possible == ("reason" not in text)


SIX, SEVEN = "6.12.117-mkops", "7.3.4-mkops"


@pytest.mark.parametrize(
    ("release", "options", "words", "flags", "running", "found"),
    [
        (SIX, {"X86_5LEVEL": "y"}, [], ["la57"], True, True),
        (SIX, {"X86_5LEVEL": "y"}, [], ["la57"], False, True),
        (SIX, {}, [], ["la57"], False, False),
        (SIX, {"X86_5LEVEL": "y"}, ["no5lvl"], ["la57"], False, False),
        (SIX, None, [], ["la57"], False, None),
        (SEVEN, {}, [], ["la57"], False, True),
        ("6.17.1", {}, [], ["la57"], False, None),
        # The running kernel shows what it uses; another one may find more.
        (SIX, {"X86_5LEVEL": "y"}, [], [], True, False),
        (SIX, {"X86_5LEVEL": "y"}, [], [], False, None),
    ],
)
def test_page_tables(release, options, words, flags, running, found):
    assert five_levels(release, options, words, flags, running) is found


def test_nothing_speaks_against_it():
    means = Means(LiveUpdate("off"), True, markers={"a": Marker(1, 2), "b": Marker(2, 3)})
    assert live_reasons(means, "a", "b", (True, None)) == []
    # One that is not installed yet is looked at later.
    assert live_reasons(means, "a", "c") == []


@pytest.mark.parametrize(
    ("own", "wanted", "word"), [((1, 3), (1, 2), "1 to 2"), ((1, 1), (2, 2), "of version 2,")]
)
def test_handovers_that_do_not_go_together(own, wanted, word):
    means = Means(LiveUpdate("off"), True, markers={"a": Marker(*own), "b": Marker(*wanted)})
    (reason,) = live_reasons(means, "a", "b")
    assert word in reason
