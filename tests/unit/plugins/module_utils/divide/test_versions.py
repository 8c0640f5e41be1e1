# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.divide.versions import (
    FIRST_SERIES,
    FULL_SERIES,
    KERF,
    UPSTREAM,
    kerf_reason,
    probe_interface,
)

DOCS = Path(__file__).parents[5] / "docs/modules.md"


@pytest.mark.parametrize(
    ("implementation", "granule", "interface"),
    [
        ("", False, UPSTREAM),
        ("", True, UPSTREAM),
        ("mkops,multikernel-1", False, FIRST_SERIES),
        ("mkops,multikernel-1", True, FULL_SERIES),
        ("others,multikernel", True, UPSTREAM),
    ],
)
def test_interfaces(implementation, granule, interface):
    assert probe_interface(implementation, granule) is interface


@pytest.mark.parametrize(
    ("version", "word"),
    [
        ("0.4.0", None),
        ("0.4.12", None),
        ("0.3.0", "another command"),
        ("0.5.1", "it passes other flags"),
        ("0.6.0", "only 0.4 is supported"),
        ("4", "only 0.4 is supported"),
    ],
)
def test_kerf(version, word):
    reason = kerf_reason(version)
    assert (reason is None) if word is None else word in reason


def test_the_documented_table_is_this_one():
    rows = dict(re.findall(r"^\| kerf (\S+) \| (.*?) \|", DOCS.read_text(encoding="utf-8"), re.M))
    assert rows.keys() == KERF.keys()
    assert all(
        text.startswith("supported" if KERF[version] is None else "refused") for version, text in rows.items()
    )
