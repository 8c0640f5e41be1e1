# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mkops.multikernel.plugins.module_utils.boot import systemd_boot
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure

ENTRY = {
    "title": "Debian",
    "version": "6.12.9",
    "linux": "/t0ken/6.12.9/linux",
    "options": "root=/dev/vda1 ro",
}


@pytest.mark.parametrize(
    ("line", "end"),
    [
        ("{} {}", "\n"),
        ("{}\t{}", "\n"),
        ("\t {} \t {} \t", "\n"),
        ("{} {}", "\r\n"),
        ("{}\t\t{}", "\r"),
        ("\n\n# comment\n   #\tcomment\n{} {}", "\n"),
        ('{} "{}"', "\n"),
    ],
)
@pytest.mark.parametrize("start", ["", "\ufeff", "\n\n", "title the last one counts\n", "key\n", "\x0b x\n"])
def test_keys_and_values(start, line, end):
    text = start + end.join(line.format(key, value) for key, value in ENTRY.items())
    entry = systemd_boot.parse_entry("t0ken-6.12.9.conf", text)
    assert {key: entry.value(key) for key in ENTRY} == ENTRY
    assert (entry.release, entry.ordinary) == ("6.12.9", True)


def test_only_spaces_and_tabs_part_a_key_from_its_value():
    text = "title a\u2028b\x0cc\u00a0d\noptions\u00a0x y\n"
    assert list(systemd_boot.parse_lines(text)) == [
        ("title", "a\u2028b\x0cc\u00a0d"),
        ("options\u00a0x", "y"),
    ]


def test_what_comes_behind_a_nul_is_not_read():
    assert list(systemd_boot.parse_lines("title a\nversion b\0\nlinux c\n")) == [
        ("title", "a"),
        ("version", "b"),
    ]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["ro", "quiet"], "ro quiet a b"),
        (["ro -- x", "y"], "ro a b -- x y"),
        (["ro", "--", "x --"], "ro a b -- x --"),
        (["-- x"], "a b -- x"),
        (['c="d -- e" --f'], 'c="d -- e" --f a b'),
        (['c="d -- e'], 'c="d -- e a b'),
        ([], "a b"),
    ],
)
def test_words_for_the_kernel_stand_before_those_for_init(options, line):
    text = "version 6.1\nlinux /6.1/linux\n" + "".join(f"options {value}\n" for value in options)
    entry = systemd_boot.parse_entry("x.conf", text)
    trial = systemd_boot.parse_entry("y.conf", systemd_boot.trial_entry(entry, ["a", "b"]))
    assert trial.value("options") == line


def test_a_command_line_that_the_kernel_would_cut_off():
    entry = systemd_boot.parse_entry("x.conf", f"version 6.1\nlinux /6.1/linux\noptions {'a' * 2040}\n")
    systemd_boot.trial_entry(entry, ["panic"])
    with pytest.raises(Failure, match="would have 2048 characters"):
        systemd_boot.trial_entry(entry, ["panic=1"])


@given(st.binary(max_size=200), st.text(max_size=20))
def test_any_bytes(data, name):
    entry = systemd_boot.parse_entry(f"{name}.conf", data.decode("utf-8", "surrogateescape"))
    text = systemd_boot.trial_entry(entry, ["panic=10"])
    text.encode("utf-8", "surrogateescape")
    again = systemd_boot.parse_entry(systemd_boot.TRIAL_FILE, text)
    assert again.value("linux") == entry.value("linux")
    assert again.value("options").split()[-1] == "panic=10"


@pytest.mark.parametrize(
    ("name", "ident"),
    [
        ("t-6.1.conf", "t-6.1.conf"),
        ("t-6.1+3.conf", "t-6.1.conf"),
        ("t-6.1+2-1.conf", "t-6.1.conf"),
        ("t-6.1+0-3.conf", "t-6.1.conf"),
        ("t-6.1+deb13.conf", "t-6.1+deb13.conf"),
        ("t-6.1+deb13+3-0.conf", "t-6.1+deb13.conf"),
        ("T+1.CONF", "T.CONF"),
    ],
)
def test_counters(name, ident):
    assert systemd_boot.parse_entry(name, "").ident == ident


@pytest.mark.parametrize(
    ("text", "variables", "waits"),
    [
        ("timeout menu-force", (), True),
        ("default x\r\n\ttimeout\t menu-force \r\n", (), True),
        ("timeout menu-force\ntimeout 3\n", (), False),
        ("# timeout menu-force\n", (), False),
        ("timeout menu-hidden\n", (), False),
        ("", ("", "menu-force"), True),
        ("timeout menu-force", ("", "5"), False),
        ("timeout 5", ("menu-force", "5"), True),
    ],
)
def test_a_menu_that_waits(text, variables, waits):
    assert systemd_boot.waits_for_key(text, *variables) is waits


def test_words_of_our_own_in_any_form():
    text = "title T\r\n# mkops cmdline:\tisolcpus=1  \r\n"
    assert systemd_boot.parse_entry("x.conf", text).cmdline == "isolcpus=1"
