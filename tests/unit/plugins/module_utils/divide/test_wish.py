# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import warnings

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.divide.wish import (
    AllBut,
    InstanceWish,
    compile_pattern,
    label_words,
    labels_of,
    network_word,
    parse_devices,
    parse_pool_cpus,
)


@pytest.mark.parametrize(
    ("value", "cpus"),
    [("2-3", (2, 3)), ([2, 5], (2, 5)), (4, (4,)), ("all but 2", AllBut(2)), (" all  but 16 ", AllBut(16))],
)
def test_pool_cpus(value, cpus):
    assert parse_pool_cpus(value) == cpus


@pytest.mark.parametrize("value", ["all but", "all but x", "all", "all but -1", []])
def test_not_pool_cpus(value):
    with pytest.raises(ValueError, match=r"is neither|no CPU is named"):
        parse_pool_cpus(value)


@pytest.mark.parametrize(
    ("network", "word"),
    [
        ({"address": "10.0.0.2"}, "ip=10.0.0.2:::255.255.255.0:::off"),
        (
            {"address": "10.0.0.2", "netmask": "255.0.0.0", "gateway": "10.0.0.1", "device": "eth0"},
            "ip=10.0.0.2::10.0.0.1:255.0.0.0::eth0:off",
        ),
        # The device is after five colons, not after seven as kerf puts it.
        ({"address": "dhcp", "device": "eth0"}, "ip=:::::eth0:dhcp"),
        ({"address": "dhcp", "hostname": "web", "gateway": None}, "ip=::::web::dhcp"),
    ],
)
def test_network(network, word):
    assert network_word(network) == word


@pytest.mark.parametrize(
    ("network", "count"),
    [
        ({}, 1),
        ({"address": "10.0.0.256"}, 1),
        ({"address": "web", "gateway": "x", "netmask": "24", "hostname": "a b", "device": "eth 0"}, 5),
        ({"address": "dhcp", "netmask": "255.0.0.0", "gateway": "10.0.0.1"}, 2),
    ],
)
def test_every_mistake_of_a_network_is_named(network, count):
    with pytest.raises(ValueError) as error:
        network_word(network)
    assert len(error.value.args) == count


def test_labels_are_words_of_the_command_line():
    words = label_words({"tier": 1, "role": "db"})
    assert words == "label.role=db label.tier=1"
    assert labels_of(f"quiet {words} a=b") == {"role": "db", "tier": "1"}
    assert labels_of(None) == {}


def test_devices():
    assert parse_devices(["0000:3b:00.0"]) == ("0000:3b:00.0",)
    with pytest.raises(ValueError, match="PCI address"):
        parse_devices(["3b:00.0"])
    with pytest.raises(ValueError, match="listed twice"):
        parse_devices(["0000:3b:00.0", "0000:3b:00.0"])


def test_a_pattern_that_python_may_take_in_another_way_one_day_is_no_noise():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compile_pattern("[[a]").search("[")
    with pytest.raises(ValueError, match=r"'\[' is not a regular expression: unterminated character set"):
        compile_pattern("[")


@pytest.mark.parametrize(
    ("cmdline", "full"),
    [
        ("", "console=mktty0"),
        ("quiet", "quiet console=mktty0"),
        ("console=ttynull quiet", "console=ttynull quiet"),
        ("noconsole=1", "noconsole=1 console=mktty0"),
    ],
)
def test_kerf_adds_a_console(cmdline, full):
    assert InstanceWish("web", cmdline=cmdline).full_cmdline == full
