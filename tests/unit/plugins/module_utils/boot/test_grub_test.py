# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Conditions, which GRUB itself evaluates, too."""

from __future__ import annotations

import random
import re

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.boot import grub_script
from ansible_collections.mkops.multikernel.plugins.module_utils.boot.grub_test import BOTH, NO, YES, outcome
from ansible_collections.mkops.multikernel.tests.unit import grub_emu

FILES = {"$prefix/grub.cfg": (True, "x"), "$prefix/empty": (True, ""), "$prefix/none": (False, "")}
ANY = "\0any"
WORDS = [
    *("a", "b", "", "0", "1", "=", "==", "!=", "<", "-eq", "-nt5", "-a", "-o", "-n", "-z", "!", "(", ")"),
    *("-a", "-o", "=", "!", "(", ")", "-e", "-f", "-s", "-d", "]", "-x", *FILES),
]


def seen(words):
    return outcome(words, ANY, lambda name: FILES.get(name, (None, "")))


def test_conditions_as_grub_has_them(tmp_path):
    """Any words in any order: what is told is what GRUB does, or that it may be either."""
    chance = random.Random(14)
    wishes = [[chance.choice(WORDS) for _word in range(chance.randrange(9))] for _wish in range(1500)]
    (tmp_path / "empty").touch()

    def written(words):
        return " ".join(word if word in FILES else grub_script.quote(word) for word in words)

    lines = [
        f"if test {written(words)}; then echo @{place}:1; else echo @{place}:0; fi\n"
        for place, words in enumerate(wishes)
    ]
    (tmp_path / "grub.cfg").write_text("".join([*lines, "reboot\n"]))
    said = dict(re.findall(r"@(\d+):([01])", grub_emu.start(tmp_path).output))
    told = [seen(words) for words in wishes]
    wrong = [words for place, words in enumerate(wishes) if (said[str(place)] == "1") not in told[place]]
    assert wrong == []
    assert sum(one != BOTH for one in told) > 900


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([ANY], BOTH),
        ([ANY, "=", "a"], BOTH),
        (["-n", ANY], BOTH),
        (["a", ANY, "b"], BOTH),
        (["a", "=", "a", "-o", ANY], BOTH),
        (["a", "=", "b", "-a", ANY, "=", "a"], NO),
        (["a", "=", "a", "-o", ANY, "=", "a"], YES),
        (["!", ANY, "=", "a", "-o", "b"], YES),
        (["-f", ANY], BOTH),
        (["("] * 100, BOTH),
    ],
)
def test_words_that_are_not_known(words, value):
    assert seen(words) == value
