# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import shlex

import pytest

from ansible_collections.mkops.multikernel.plugins.plugin_utils.guests import (
    NoInstances,
    address_of,
    groups_of,
    is_host_name,
    jump,
    profile_of,
    variables_of,
)


@pytest.mark.parametrize(
    ("cmdline", "address"),
    [
        ("quiet ip=10.80.0.2::10.80.0.1:255.255.255.0:web:eth0:off", "10.80.0.2"),
        ("ip=[fd00::7]:::64::eth0:off", "fd00::7"),
        ("ip=::::web:eth0:dhcp", None),
        ("ip=dhcp", None),
        ("ip=$(reboot)", None),
        ("zip=10.0.0.1 quiet", None),
        ("", None),
    ],
)
def test_addresses(cmdline, address):
    assert address_of(cmdline) == address


@pytest.mark.parametrize(
    ("kernel", "profile"),
    [
        ({"path": "/var/lib/mkops/kernels/vmlinux-realtime"}, "realtime"),
        ({"path": "/boot/vmlinux-6.12.1-amd64"}, None),
        ({"path": "/boot/vmlinux"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_profiles(kernel, profile):
    assert profile_of({"kernel": kernel}) == profile


def test_variables_of_a_host_that_tells_little():
    (found,) = variables_of("big", {"instances": [{"name": "web", "labels": ["x"]}]})
    assert found["mkops_labels"] == {} and found["mkops_boot_id"] is None and found["mkops_name"] == "web"
    assert groups_of(found, ("name", "host", "state", "profile", "label", "boot_id"), "x_") == [
        "x_instances", "x_web", "x_host_big",
    ]  # fmt: skip


@pytest.mark.parametrize("facts", [None, [], {}, {"instances": {}}, {"instances": [1]}, {"instances": [{}]}])
def test_what_is_no_answer(facts):
    with pytest.raises(NoInstances):
        variables_of("big", facts)


@pytest.mark.parametrize(
    ("name", "good"),
    [("a", True), ("a.b-c_9", True), ("-a", False), ("", False), ("a\n", False), (None, False)],
)
def test_names(name, good):
    assert is_host_name(name) == good


def test_jumps():
    assert jump("big", {}) == "-o ProxyJump=big"
    assert jump("big", {"ansible_host": "192.0.2.1", "ansible_user": "a"}) == "-o ProxyJump=a@192.0.2.1"
    assert jump("big", {"ansible_host": "fd00::1", "ansible_port": 22}) == "-o ProxyJump='[fd00::1]:22'"
    assert jump("big", {"ansible_host": "$(x)"}) == "-o ProxyJump='$(x)'"


def test_a_jump_with_a_key_and_options():
    """ProxyJump takes neither, so it is a command. ssh gives it to a shell."""
    said = jump(
        "big",
        {
            "ansible_host": "192.0.2.1", "ansible_user": "admin", "ansible_port": 2222,
            "ansible_ssh_private_key_file": "/keys/my key", "ansible_ssh_common_args": "-o ProxyJump=gate",
        },
    )  # fmt: skip
    option, value = shlex.split(said)
    assert option == "-o"
    assert shlex.split(value.removeprefix("ProxyCommand=")) == [
        "ssh", "-o", "ProxyJump=gate", "-W", "[%h]:%p", "-i", "/keys/my key", "-p", "2222", "-l", "admin",
        "192.0.2.1",
    ]  # fmt: skip
