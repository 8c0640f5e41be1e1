# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mkops.multikernel.plugins.module_utils.common.cpuset import format_cpus, parse_cpus


@pytest.mark.parametrize(
    ("value", "cpus"),
    [
        ("2", [2]),
        (2, [2]),
        ("2-3", [2, 3]),
        (" 5, 2 - 3 ", [2, 3, 5]),
        ([2, 3], [2, 3]),
        (["2-3", 5], [2, 3, 5]),
        (["7,2"], [2, 7]),
        ([], []),
    ],
)
def test_parse(value, cpus):
    assert parse_cpus(value) == cpus


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", ["''"]),
        ("2,", ["''"]),
        ("two", ["'two'"]),
        ("-1", ["'-1'"]),
        ("0x2", ["'0x2'"]),
        ("2.5", ["'2.5'"]),
        (True, ["true is neither"]),
        (None, ["nothing is neither"]),
        ({"a": 1}, ["a dictionary is neither"]),
        ([1, [2]], ["a list is neither"]),
        (2.0, ["'2.0'"]),
        ("٣", ["'٣'"]),
        ("0-9," * 3 + "0-99", [f"CPU {cpu} is" for cpu in range(8)] + ["2 more CPUs are listed twice"]),
        ("0-9999," * 5000 + "1", [*(["is listed twice"] * 8), "9992 more CPUs are listed twice"]),
        ("99999", ["'99999'"]),
        ("7-4", ["backwards"]),
        ("2,2", ["CPU 2 is listed twice"]),
        ("2-4,3-5", ["CPU 3 is listed twice", "CPU 4 is listed twice"]),
        ([2, "two", "9-8", 2], ["'two'", "backwards", "CPU 2 is listed twice"]),
    ],
)
def test_every_mistake_is_named(value, words):
    with pytest.raises(ValueError) as error:
        parse_cpus(value)
    assert len(error.value.args) == len(words)
    assert all(word in reason for word, reason in zip(words, error.value.args, strict=True))


@pytest.mark.parametrize(
    ("cpus", "text"),
    [([], ""), ([3], "3"), ([2, 3], "2-3"), ([5, 2, 3], "2-3,5"), ([0, 2, 4, 5, 6], "0,2,4-6")],
)
def test_format(cpus, text):
    assert format_cpus(cpus) == text


@given(st.sets(st.integers(0, 9999), min_size=1))
def test_round_trip(cpus):
    assert parse_cpus(format_cpus(cpus)) == sorted(cpus)
