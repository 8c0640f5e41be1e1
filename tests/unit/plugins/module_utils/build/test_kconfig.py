# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.build import kconfig
from ansible_collections.mkops.multikernel.plugins.module_utils.build.patches import own_fragments
from ansible_collections.mkops.multikernel.plugins.module_utils.common.dotconfig import enabled, parse_config
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Refused

FRAGMENTS = Path(__file__).parents[5] / "roles/kernel/files/config"
SERIES = sorted(path.parent for path in (FRAGMENTS.parent / "series").glob("*/source.json"))

FRAGMENT = """\
# A comment.
CONFIG_SMP=y
CONFIG_NR_CPUS=64

# CONFIG_MODULES is not set
CONFIG_LOCALVERSION=""
CONFIG_PHYSICAL_START=0x1000000
CONFIG_DEBUG=n
"""


def options(text: str, name: str = "x.config") -> dict[str, kconfig.Option]:
    return kconfig.merge([kconfig.parse_fragment(text, name)])


def test_fragment_values_and_places():
    assert {symbol: (o.value, o.where) for symbol, o in options(FRAGMENT).items()} == {
        "SMP": ("y", "x.config:2"),
        "NR_CPUS": ("64", "x.config:3"),
        "MODULES": ("n", "x.config:5"),
        "LOCALVERSION": ('""', "x.config:6"),
        "PHYSICAL_START": ("0x1000000", "x.config:7"),
        "DEBUG": ("n", "x.config:8"),
    }


def test_option_reads_as_in_a_config():
    found = options(FRAGMENT)
    assert str(found["SMP"]) == "CONFIG_SMP=y"
    assert str(found["DEBUG"]) == "# CONFIG_DEBUG is not set"


@pytest.mark.parametrize(
    "line",
    [
        "SMP=y",
        "CONFIG_SMP",
        "CONFIG_SMP = y",
        "CONFIG_SMP=yes",
        'CONFIG_NAME="open',
        "# CONFIG_SMP is not  set",
        "#CONFIG_SMP is not set",
        "# CONFIG_SMP is not set.",
    ],
)
def test_bad_line_is_named(line):
    with pytest.raises(Refused, match=r"bad\.config:2: "):
        kconfig.parse_fragment(f"CONFIG_OK=y\n{line}\n", "bad.config")


@pytest.mark.parametrize("line", ['CONFIG_A="a\u2028b\x0cc\x85d"', "CONFIG_A=y", "# CONFIG_A is not set"])
@pytest.mark.parametrize("text", ["{}\n", "\ufeff{}\r\n", "\ufeff# first\r\n  {}\t\r\n", "{}"])
def test_lines_of_any_editor(line, text):
    (option,) = options(text.format(line)).values()
    assert str(option) == line
    config = parse_config(text.format(line).replace("  ", "").replace("\t", ""))
    assert config == ({} if option.value == "n" else {"A": option.value})


@pytest.mark.parametrize(
    "line", ["CONFIG_Ä=y", "CONFIG_A=\u0661", "<<<<<<< HEAD", "CONFIG_A='x'", "CONFIG_A=Y"]
)
def test_what_kconfig_has_no_word_for(line):
    with pytest.raises(Refused, match=r"f:1: .* is not an option"):
        kconfig.parse_fragment(f"{line}\n", "f")


def test_all_bad_lines_at_once():
    with pytest.raises(Refused) as caught:
        kconfig.parse_fragment("A=y\nCONFIG_B=y\nC\nCONFIG_B=n\n", "f")
    first, second, third = caught.value.reasons
    assert first.startswith("f:1:")
    assert second.startswith("f:3:")
    assert third == "f:4: # CONFIG_B is not set contradicts CONFIG_B=y (f:2); keep one of them"


def test_same_line_twice_is_harmless():
    assert len(options("CONFIG_A=y\nCONFIG_A=y\n")) == 1


def test_later_fragment_wins():
    merged = kconfig.merge(
        [
            kconfig.parse_fragment("CONFIG_HZ=100\nCONFIG_A=y", "a"),
            kconfig.parse_fragment("CONFIG_HZ=250", "b"),
        ]
    )
    assert (merged["HZ"].value, merged["HZ"].where) == ("250", "b:1")
    assert merged["A"].where == "a:2"


def test_config_without_what_is_not_set():
    text = '# Linux/x86 6.12.107\nCONFIG_A=y\nCONFIG_M=m\n# CONFIG_B is not set\nCONFIG_S="x"\nCONFIG_C=n\n'
    assert parse_config(text) == {"A": "y", "M": "m", "S": '"x"'}


@pytest.mark.parametrize(
    ("want", "config", "got"),
    [
        ("CONFIG_A=y", "CONFIG_A=y", None),
        ("CONFIG_A=y", "CONFIG_A=m", "m"),
        ("CONFIG_A=y", "# CONFIG_A is not set", "n"),
        ("CONFIG_A=y", "", "n"),
        ("# CONFIG_A is not set", "", None),
        ("# CONFIG_A is not set", "# CONFIG_A is not set", None),
        ("# CONFIG_A is not set", "CONFIG_A=y", "y"),
        ("CONFIG_A=n", "CONFIG_A=y", "y"),
        ("CONFIG_N=64", "CONFIG_N=8", "8"),
        ('CONFIG_S=""', 'CONFIG_S=""', None),
    ],
)
def test_lost(want, config, got):
    lost = kconfig.lost(options(want), parse_config(config))
    assert [value for _option, value in lost] == ([] if got is None else [got])


def test_every_lost_option_is_reported():
    lost = kconfig.lost(options("CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=y"), {"B": "y"})
    assert [option.symbol for option, _value in lost] == ["A", "C"]


def test_enabled_counts_built_in_and_modules():
    assert enabled({"A": "y", "B": "m", "N": "64", "S": '"y"'}) == 2


@pytest.mark.parametrize("path", sorted(FRAGMENTS.glob("*.config")), ids=lambda path: path.name)
def test_shipped_fragments_are_well_formed(path):
    assert kconfig.parse_fragment(path.read_text(), path.name)


@pytest.mark.parametrize("series", SERIES, ids=lambda path: path.name)
def test_what_a_kernel_calls_otherwise_belongs_to_a_fragment(series):
    """And is not in that one, which holds for all of them."""
    own = own_fragments(series)
    assert own
    for path in own:
        options_of_all = options((FRAGMENTS / path.name).read_text())
        assert not set(options(path.read_text())) & set(options_of_all)


def test_multikernel_fragment_has_the_interface():
    wanted = options((FRAGMENTS / "multikernel.config").read_text())
    for symbol in ("MULTIKERNEL", "MKTTY", "KEXEC_FILE", "HOTPLUG_CPU", "RELOCATABLE", "BLK_DEV_INITRD"):
        assert wanted[symbol].value == "y"


def test_profiles_do_not_contradict_multikernel():
    profile = options((FRAGMENTS / "lab.config").read_text())
    for symbol, option in options((FRAGMENTS / "multikernel.config").read_text()).items():
        assert profile.get(symbol, option).value == option.value
