# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.devices.declare import (
    Devices,
    Disk,
    Forward,
    Interface,
    Share,
    list_reasons,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.options import INSTANCE

BRIDGED = {"mode": "bridge", "bridge": "br0"}
ROUTED = {"mode": "routed", "prefixes": ["10.77.0.0/24"]}


def read(option, value):
    given = INSTANCE.read({"name": "red", option: value})
    return given.values[option], given.reasons


def test_a_network_device_of_each_mode():
    found, reasons = read(
        "network",
        [
            {**BRIDGED, "mac": "02-00-5E-10-00-01", "mtu": 9000, "addresses": ["10.0.0.5/24", "fd00::5/64"],
             "gateway": ["10.0.0.1", "fd00::1"], "dns": "10.0.0.1, fd00::1", "hostname": "red.example"},
            {**ROUTED, "nat": True, "reach": ["blue", "a"], "host_entry": "red",
             "forwards": [{"port": 8080, "to": 80}, {"port": 53, "protocol": "udp"}]},
            {"mode": "isolated", "addresses": "10.9.0.2/30"},
            {**BRIDGED, "addresses": ["dhcp"]},
        ],
    )  # fmt: skip
    assert reasons == []
    assert found == (
        Interface(
            "bridge", "br0", "02:00:5e:10:00:01", 9000, ("10.0.0.5/24", "fd00::5/64"),
            gateways=("10.0.0.1", "fd00::1"), dns=("10.0.0.1", "fd00::1"), hostname="red.example",
        ),
        Interface(
            "routed", prefixes=("10.77.0.0/24",), nat=True, reach=("a", "blue"), host_entry="red",
            forwards=(Forward(8080, 80), Forward(53, 53, "udp")),
        ),
        Interface("isolated", addresses=("10.9.0.2/30",)),
        Interface("bridge", "br0", addresses=("dhcp",)),
    )  # fmt: skip


def test_one_is_no_list():
    assert read("network", BRIDGED) == ((Interface("bridge", "br0"),), [])


@pytest.mark.parametrize(
    ("values", "reasons"),
    [
        ("x", ["neither a dictionary"]),
        ([{}], ["mode is missing"]),
        ({"bridge": "br0"}, ["mode is missing: choose bridge"]),
        ({"mode": "bridge"}, ["bridge is missing"]),
        (
            {**BRIDGED, "nat": True, "reach": ["blue"], "forwards": [{"port": 1}]},
            ["nat is", "forwards is", "reach is"],
        ),
        ({**ROUTED, "bridge": "br0"}, ["bridge is for mode bridge"]),
        ({"mode": "routed"}, ["addresses and prefixes are missing"]),
        ({"mode": "routed", "addresses": ["dhcp"]}, ["dhcp needs mode bridge"]),
        ({"mode": "routed", "addresses": ["10.0.0.1/32"]}, ["no room for the host's end"]),
        ({**ROUTED, "mode": "isolated", "nat": True}, ["nothing is forwarded"]),
        ({**BRIDGED, "address": "10.0.0.2", "netmask": "255.0.0.0"}, ["address belongs", "netmask belongs"]),
        ({**BRIDGED, "mac": "01:00:00:00:00:00"}, ["address of a group"]),
        ({**BRIDGED, "mac": "00:00:00:00:00:00"}, ["no address of a device"]),
        ({**BRIDGED, "mac": "5"}, ["not a MAC address"]),
        ({**BRIDGED, "mtu": 9001}, ["out of range"]),
        ({**BRIDGED, "bridge": "br/0"}, ["not the name of a network device"]),
        ({**BRIDGED, "hostname": "-x"}, ["not a host name"]),
        (
            {**BRIDGED, "addresses": ["10.0.0.2", "10.0.0.0/24", "10.0.0.255/24", "127.0.0.1/8", "x"]},
            ["'10.0.0.2' is not", "the network itself", "broadcast", "no address that", "'x' is not"],
        ),
        ({**BRIDGED, "addresses": ["10.0.0.2/24", "10.0.0.2/24"]}, ["there twice"]),
        ({**ROUTED, "prefixes": ["10.0.0.1/24", "10.0.0.0/31", "224.0.0.0/4"]},
         ["not a network", "too small", "no addresses"]),
        ({**ROUTED, "prefixes": ["10.0.0.0/24", "10.0.0.0/24"]}, ["there twice"]),
        ({**BRIDGED, "dns": ["x"]}, ["not an IPv4 or IPv6 address"]),
        ({**BRIDGED, "dns": ["10.0.0.1", "10.0.0.1"]}, ["there twice"]),
        ({**ROUTED, "reach": ["../x"]}, ["not the name of an instance"]),
        ({**ROUTED, "forwards": [{"port": 0}, {"port": 5, "to": 70000}]}, ["number 1: port", "number 2: to"]),
        ({**ROUTED, "forwards": [{"port": 5}, {"port": 5}]}, ["port 5/tcp is there twice"]),
        (
            {**BRIDGED, "addresses": ["10.0.0.2/24"], "gateway": ["10.0.0.2", "10.1.0.1"]},
            ["several for IPv4", "of the spawned kernel itself", "in none of the networks"],
        ),
        ({**ROUTED, "gateway": "10.77.0.1"}, ["leave it out"]),
        ({**BRIDGED, "host_entry": "red"}, ["host_entry needs an address:"]),
        ({**BRIDGED, "host_entry": "red", "addresses": ["dhcp"]}, ["needs an address that is known"]),
        ([BRIDGED, {**BRIDGED, "mtu": 1}], ["number 2: mtu"]),
    ],
)  # fmt: skip
def test_what_a_network_device_cannot_be(values, reasons):
    _found, said = read("network", values)
    assert len(said) == len(reasons), said
    assert all(part in reason for part, reason in zip(reasons, said, strict=True)), said


def test_disks_and_shares():
    assert read("disks", [{"path": "/srv/a.img", "size": "1G", "discard": True}]) == (
        (Disk("/srv/a.img", size=1 << 30, discard=True),),
        [],
    )
    overlay = {"path": "/srv/b.qcow2", "format": "qcow2", "base": "/srv/debian.img", "cache": "writethrough"}
    assert read("disks", [overlay])[0] == (
        Disk("/srv/b.qcow2", "qcow2", base="/srv/debian.img", cache="writethrough"),
    )
    assert read("shares", [{"path": "/srv/www", "tag": "www", "read_only": True, "user": "www-data"}]) == (
        (Share("/srv/www", "www", True, "www-data"),),
        [],
    )


@pytest.mark.parametrize(
    ("option", "values", "reasons"),
    [
        ("disks", {"path": "a"}, ["'a' is not an absolute path"]),
        ("disks", {"path": "/a\nb"}, ["line break"]),
        ("disks", {}, ["path is missing"]),
        ("disks", {"path": "/a", "size": "100"}, ["multiple of 512"]),
        ("disks", {"path": "/a", "base": "/a"}, ["base needs format qcow2", "base is the disk itself"]),
        ("disks", {"path": "/a", "base_format": "raw"}, ["there is no base"]),
        (
            "disks",
            {"path": "/a", "read_only": True, "size": "1G", "discard": True},
            ["size makes", "discard frees"],
        ),
        ("disks", {"path": "/a", "cache": "none"}, ["not one of writeback"]),
        ("shares", {"path": "/a", "tag": "a b"}, ["cannot be a tag"]),
        ("shares", {"path": "/a", "tag": "x" * 37}, ["cannot be a tag"]),
        ("shares", {"path": "/a", "tag": "x", "user": "A"}, ["not the name of a user"]),
        ("shares", {"path": "/a", "tag": "x", "user": "root"}, ["nothing is served as root"]),
    ],
)
def test_what_disks_and_shares_cannot_be(option, values, reasons):
    _found, said = read(option, [values])
    assert len(said) == len(reasons), said
    assert all(part in reason for part, reason in zip(reasons, said, strict=True)), said


def test_what_devices_of_one_have_against_each_other():
    mac = "02:00:00:00:00:01"
    devices = Devices(
        network=(Interface("bridge", "br0", mac), Interface("bridge", "br0", mac)),
        disks=(Disk("/a"), Disk("/a"), Disk("/b", "qcow2", base="/a"), Disk("/c", read_only=True)),
        shares=(Share("/x", "t"), Share("/y", "t"), *(Share("/z", str(n)) for n in range(10))),
    )
    assert list_reasons(devices) == [
        "18 devices are too many: an instance can have 16",
        f"network: mac {mac} is there twice",
        "disks: /a is there twice",
        "disks: /a is the base of another disk, and cannot be written as well: set read_only",
        "shares: tag t is there twice",
    ]
    assert not Devices()
    assert Devices(disks=())
