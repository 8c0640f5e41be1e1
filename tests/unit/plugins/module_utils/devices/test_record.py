# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import ipaddress
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mkops.multikernel.plugins.module_utils.devices.declare import (
    Devices,
    Disk,
    Forward,
    Interface,
    Share,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.hosts import hosts_text
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.record import (
    Allotment,
    Record,
    host_mac_of,
    mac_of,
    read_record,
    tap_name,
    unknown_reach,
)

ROUTED = Interface("routed", prefixes=("10.77.0.0/24", "fd77::/64"))


def one(*network, disks=None, shares=None):
    return Devices(network or None, disks, shares)


@pytest.fixture
def allotment():
    return Allotment("machine", {})


def settle(allotment, name, said):
    record, reasons = allotment.settle(name, said)
    assert reasons == []
    return record


def test_addresses_are_pairs_of_a_prefix_and_stay(allotment):
    red = settle(allotment, "red", one(ROUTED))
    blue = settle(allotment, "blue", one(ROUTED))
    (link,), (other,) = red.links, blue.links
    assert (link.addresses, link.host_addresses) == (
        ("10.77.0.3/31", "fd77::3/127"),
        ("10.77.0.2/31", "fd77::2/127"),
    )
    assert link.gateways == ("10.77.0.2", "fd77::2")
    assert other.addresses == ("10.77.0.5/31", "fd77::5/127")
    # Whoever comes first later: each has what it had.
    again = Allotment("machine", allotment.records)
    again.forget("red")
    assert settle(again, "blue", one(ROUTED)) == blue
    assert settle(again, "green", one(ROUTED)).links[0].addresses == link.addresses
    # In another prefix, or another mode, nothing of it can stay.
    moved = Interface("routed", prefixes=("10.9.0.0/29",))
    assert settle(again, "blue", one(moved)).links[0].addresses == ("10.9.0.3/31",)


def test_a_bridge_has_single_addresses(allotment):
    said = Interface("bridge", "br0", prefixes=("10.0.0.0/29",), gateways=("10.0.0.1",))
    red = settle(allotment, "red", one(said))
    assert red.links[0].addresses == ("10.0.0.2/29",)
    assert red.links[0].host_addresses == ()
    for name, address in zip("abcd", range(3, 7), strict=True):
        assert settle(allotment, name, one(said)).links[0].addresses == (f"10.0.0.{address}/29",)
    _record, reasons = allotment.settle("e", one(said))
    assert reasons == ["network: no address of 10.0.0.0/29 is left for e: give a larger prefix, or addresses"]


@given(st.integers(2, 6), st.lists(st.sampled_from("abcdefgh"), max_size=30), st.booleans())
def test_no_address_is_ever_given_twice(size, names, routed):
    allotment = Allotment("machine", {})
    net = ipaddress.ip_network("10.1.0.0").supernet(size)
    said = Interface("routed" if routed else "bridge", None if routed else "br0", prefixes=(str(net),))
    for place, name in enumerate(names):
        if place % 5 == 4:
            allotment.forget(name)
        else:
            allotment.settle(name, one(said))
        every = [
            ipaddress.ip_interface(text).ip
            for record in allotment.records.values()
            for link in record.links
            for text in (*link.addresses, *link.host_addresses)
        ]
        assert len(every) == len({*every})
        assert not {net.network_address, net.broadcast_address} & {*every}


def test_the_host_is_what_the_gateway_says(allotment):
    said = Interface("routed", addresses=("10.0.0.1/24", "10.1.0.5/24"), gateways=("10.1.0.254",))
    assert settle(allotment, "red", one(said)).links[0].host_addresses == ("10.0.0.2/24", "10.1.0.254/24")


def test_names_and_macs():
    mac = mac_of("machine", "red", 0)
    assert mac.startswith("02:") and host_mac_of(mac) == f"fe{mac[2:]}"
    assert (
        len({mac, mac_of("other", "red", 0), mac_of("machine", "blue", 0), mac_of("machine", "red", 1)}) == 4
    )
    assert host_mac_of("fe:00:00:00:00:01") == "f6:00:00:00:00:01"
    assert len(tap_name("x" * 63, 15)) == 15


def test_what_instances_have_against_each_other(allotment):
    mac = "02:00:00:00:00:09"
    here = Interface(
        "routed", mac=mac, addresses=("10.0.0.2/24",), host_entry="db", forwards=(Forward(80, 80),)
    )
    there = Interface(
        "routed", mac=mac, addresses=("10.0.0.3/25",), host_entry="db", forwards=(Forward(80, 81),)
    )
    settle(allotment, "database-one", one(here))
    _record, reasons = allotment.settle("database-two", one(there))
    assert reasons == [
        "network: mk-database--0 would be the host's end of both database-two and database-one: the first 9"
        " characters of their names have to differ",
        "network: 10.0.0.0/25 of instance database-two overlaps 10.0.0.0/24 of instance database-one: a"
        " routed device needs a network of its own; prefixes allots them",
        f"network: mac {mac} of instance database-two is that of instance database-one as well",
        "network: host_entry db is declared for database-one and for database-two",
        "forwards: port 80/tcp of the host leads to instance database-one already",
    ]
    _record, reasons = allotment.settle("blue", one(Interface("bridge", "br0", addresses=("10.0.0.2/24",))))
    assert reasons == ["network: 10.0.0.2 of instance blue is an address of instance database-one as well"]
    twice = Interface("routed", addresses=("10.5.0.2/24",))
    _record, reasons = allotment.settle("green", one(twice, twice))
    assert reasons == ["network: 10.5.0.2 of instance green is an address of another device of it as well"]


def test_no_disk_is_written_where_somebody_else_looks(allotment):
    settle(
        allotment,
        "red",
        one(disks=(Disk("/a"), Disk("/b", "qcow2", base="/base"), Disk("/ro", read_only=True))),
    )
    said = (Disk("/a"), Disk("/base"), Disk("/c", "qcow2", base="/a"), Disk("/ro", read_only=True))
    _record, reasons = allotment.settle("blue", one(disks=said))
    assert reasons == [
        "disks: /a is the base of another disk, and cannot be written as well: set read_only",
        "disks: /a of instance blue is a disk of red as well, and one of them writes it",
        "disks: /base is the base of a disk of red: it must not be written",
        "disks: base /a is a disk that red writes",
    ]


def test_what_is_not_said_stays(allotment):
    settle(allotment, "red", one(ROUTED, disks=(Disk("/a"),)))
    again = Allotment("machine", allotment.records)
    record = settle(again, "red", one(shares=(Share("/s", "s"),)))
    assert (len(record.links), record.disks, record.shares) == (1, (Disk("/a"),), (Share("/s", "s"),))
    assert record.nodes == ("net@0", "blk@1", "fs@2")
    assert record.kinds == (("net", 2), ("blk", 1), ("fs", 2))
    assert settle(again, "red", Devices((), (), ())) == Record("red")
    assert not Record("red")


def test_a_record_comes_back_from_its_file(allotment):
    full = Interface(
        "routed", mac="02:00:00:00:00:01", mtu=9000, prefixes=("10.77.0.0/24",), dns=("10.0.0.1",),
        hostname="h", device="eth0", host_entry="e", nat=True, forwards=(Forward(1, 2, "udp"),), reach=("x",),
    )  # fmt: skip
    disks = (Disk("/a", "qcow2", 1 << 30, "/b", "raw", False, True, "unsafe"), Disk("/c", read_only=True))
    record = settle(allotment, "red", one(full, disks=disks, shares=(Share("/s", "t", True, "u"),)))
    assert read_record("red", json.loads(json.dumps(record.plain()))) == record
    assert record.summary == [
        "mk-red-0 (routed)", "disk /a", "disk /c (read only)", "share t of /s (read only)",
    ]  # fmt: skip
    for damaged in ({"links": [{}]}, {"disks": [{"x": 1}]}, {"shares": [5]}, {"links": [5]}):
        with pytest.raises(ValueError, match="the devices of red are not"):
            read_record("red", damaged)


@pytest.mark.parametrize(
    ("interface", "words"),
    [
        (
            Interface("bridge", "br0", "02:00:00:00:00:01", addresses=("fd00::2/64", "10.0.0.2/24"),
                      gateways=("fd00::1", "10.0.0.1"), dns=("10.0.0.1", "fd00::1"),
                      hostname="h", device="eth0"),
            [
                "ip=10.0.0.2::10.0.0.1:255.255.255.0:h:eth0:off:10.0.0.1",
                "mkops.net0=mac=02:00:00:00:00:01,addr=fd00::2/64,addr=10.0.0.2/24,gw=fd00::1,gw=10.0.0.1,"
                "dns=10.0.0.1,dns=fd00::1,mtu=1500,name=eth0,host=h",
            ],
        ),
        (
            Interface("bridge", "br0", "02:00:00:00:00:01", addresses=("dhcp",)),
            ["ip=::::::dhcp", "mkops.net0=mac=02:00:00:00:00:01,addr=dhcp,mtu=1500"],
        ),
        (Interface("bridge", "br0", "02:00:00:00:00:01"), ["mkops.net0=mac=02:00:00:00:00:01,mtu=1500"]),
    ],
)  # fmt: skip
def test_the_words_of_a_command_line(allotment, interface, words):
    assert settle(allotment, "red", one(interface)).words == words


def test_whom_nobody_can_reach(allotment):
    settle(allotment, "red", one(Interface("isolated", addresses=("10.0.0.2/24",), reach=("blue", "green"))))
    settle(allotment, "blue", one(Interface("isolated", addresses=("10.1.0.2/24",))))
    settle(allotment, "green", one(Interface("bridge", "br0")))
    (reason,) = unknown_reach(allotment.records, ["red"])
    assert "reach of instance red names green" in reason
    assert unknown_reach(allotment.records, ["blue"]) == []


def test_names_in_the_hosts_file(allotment):
    record = settle(allotment, "red", one(Interface("routed", addresses=("10.0.0.2/24",), host_entry="red")))
    old = "127.0.0.1\tlocalhost\n\n# mine\n"
    new = hosts_text(old, {"red": record})
    assert new == old + "10.0.0.2\tred\t# mkops\n"
    assert hosts_text(new, {"red": record}) == new
    assert hosts_text(new, {}) == old
    assert hosts_text("no end", {}) == "no end"
