# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mkops.multikernel.plugins.module_utils.common.size import (
    PAGE_SIZE,
    about,
    format_size,
    parse_memory,
    parse_size,
)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (4096, 4096),
        ("4096", 4096),
        ("12B", 12),
        ("1k", 1024),
        ("512M", 512 * 1024**2),
        ("512 MB", 512 * 1024**2),
        ("1GiB", 1024**3),
        ("1.5g", 3 * 1024**3 // 2),
        ("2T", 2 * 1024**4),
        ("0", 0),
    ],
)
def test_parse(value, size):
    assert parse_size(value) == size


@pytest.mark.parametrize(
    "value", ["", "M", "12X", "-1", "-4096", "0x1000", "1,5G", "1e9", "inf", "512MM", True, None]
)
def test_not_a_size(value):
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(value)


def test_not_whole_bytes():
    with pytest.raises(ValueError, match="whole number of bytes"):
        parse_size("0.3K")


@pytest.mark.parametrize(
    ("value", "reason"),
    [("0", "no memory at all"), ("5000", "4096 and 8192"), ("513", "page size 4096"), ("1.5K", "0 and 4096")],
)
def test_memory_is_whole_pages(value, reason):
    with pytest.raises(ValueError, match=reason):
        parse_memory(value)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (5, "5 B"),
        (4096, "4 KiB"),
        (256 * 1024**2, "256 MiB"),
        (3 * 1024**3 // 2, "1.5 GiB"),
        (1024**3 + 4096, "1048580 KiB"),
    ],
)
def test_format(size, text):
    assert format_size(size) == text


@given(st.integers(1, 2**44).map(lambda pages: pages * PAGE_SIZE))
def test_round_trip(size):
    assert parse_memory(format_size(size)) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [(5 << 40, "5 TiB"), ((1 << 31) - 1, "1.9 GiB"), (3 << 20, "3 MiB"), (4096, "4 KiB"), (0, "0 B")],
)
def test_about(size, text):
    assert about(size) == text
