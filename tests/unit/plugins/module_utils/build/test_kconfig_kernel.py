# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.build import kconfig

TEXT = """\
menu "Things"
\tdepends on NET

config PREEMPT_RT
\tbool "Fully preemptible kernel"
\tdepends on EXPERT && ARCH_SUPPORTS_RT # for now
\tselect PREEMPTION
\thelp
\t  Say Y

\t  depends on nothing
\t  config NOT_ONE

config HIDDEN
\tbool

if KVM || (A && \\
\tB)
config INNER
\ttristate "Inner" if EXPERT
endif
endmenu
config SIZE
\tint "Size"
\tdepends on BITS >= 32 && NAME = "x" && !COMPILE
"""


def test_definitions():
    found = {item.symbol: (item.conditions, item.prompt) for item in kconfig.definitions(TEXT)}
    assert found == {
        "PREEMPT_RT": (["NET", "EXPERT && ARCH_SUPPORTS_RT"], True),
        "HIDDEN": (["NET"], False),
        "INNER": (["NET", "KVM || (A &&  \tB)", "EXPERT"], True),
        "SIZE": (['BITS >= 32 && NAME = "x" && !COMPILE'], True),
    }


@pytest.mark.parametrize(
    ("expression", "fulfilled"),
    [
        ("Y", True),
        ("M", True),
        ("NONE", False),
        ("!Y", False),
        ("!M", True),
        ("Y && (NONE || M)", True),
        ("Y && NONE || M", True),
        ("!(Y && NONE)", True),
        ("N64 >= 32 && N64 < 65", True),
        ("N64 = 64 && N64 != 32", True),
        ("Y = y && NONE = n", True),
        ('TEXT = "x"', True),
        ("TEXT > 3", False),
    ],
)
def test_holds(expression, fulfilled):
    config = {"Y": "y", "M": "m", "N64": "64", "TEXT": '"x"'}
    assert kconfig.holds(expression, config) is fulfilled


@pytest.mark.parametrize("expression", ["", "A &&", "(A", "A B", "$(success,x -y) && A", "&& A"])
def test_what_is_no_condition(expression):
    with pytest.raises(ValueError):
        kconfig.holds(expression, {})


@pytest.mark.parametrize(
    ("symbol", "config", "why"),
    [
        ("PREEMPT_RT", {"NET": "y", "ARCH_SUPPORTS_RT": "y"}, "it depends on EXPERT"),
        ("PREEMPT_RT", {}, "it depends on NET and EXPERT and ARCH_SUPPORTS_RT"),
        ("HIDDEN", {"NET": "y"}, "it cannot be set directly, only other options select it"),
        ("INNER", {"NET": "y", "EXPERT": "y", "A": "y"}, "it depends on KVM || (A &&  \tB)"),
        ("INNER", {"NET": "y", "EXPERT": "y", "KVM": "m"}, ""),
        ("NOT_ONE", {}, ""),
    ],
)
def test_why_unset(symbol, config, why):
    assert kconfig.why_unset(symbol, [TEXT], config) == why


def test_ends_and_conditions_that_belong_to_nothing():
    text = 'endmenu\ndepends on NET\nif A\nendif\nconfig B\n\tbool "b"\n\tdepends on C\n'
    (found,) = kconfig.definitions(text)
    assert (found.symbol, found.conditions) == ("B", ["C"])


@pytest.mark.parametrize(
    ("condition", "missing"),
    [
        ("A && (B || C) && D", ["(B || C)", "D"]),
        ("A || B", []),
        ("B || C", ["B || C"]),
        ("!A", ["!A"]),
        # What cannot be read is not claimed to be missing.
        ("$(cc-option,-x) && B", ["B"]),
        ("(A", []),
        ("= B", []),
        ("B C", []),
        ("A &&", []),
    ],
)
def test_conditions_that_do_not_hold(condition, missing):
    assert kconfig.unmet(kconfig.Definition("X", [condition]), {"A": "y"}) == missing
