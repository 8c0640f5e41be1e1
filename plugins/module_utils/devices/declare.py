# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Devices of an instance as somebody declares them, and what is wrong with each by itself. No I/O.

Addresses are text as ipaddress writes it; sizes are bytes.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

from ..common.size import parse_size
from ..common.text import shown
from .choices import MTU

DHCP = "dhcp"
SMALLEST_MTU, LARGEST_MTU = 1280, 9000  # IPv6 needs the smallest one
SECTOR = 512  # bytes
LONGEST_TAG = 36  # bytes of a virtiofs tag
MOST = 16  # devices of an instance, by the kernel's table

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_LINK = re.compile(r"[A-Za-z0-9._-]{1,15}")
_HOST_NAME = re.compile(
    r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)
_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_TAG = re.compile(r"[A-Za-z0-9._-]+")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")

Address = Union[ipaddress.IPv4Interface, ipaddress.IPv6Interface]
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]


@dataclass(frozen=True)
class Forward:
    """A port of the host that leads to one of the spawn."""

    port: int
    to: int
    protocol: str = "tcp"


@dataclass(frozen=True)
class Interface:
    """A network device. What is allotted, or made of names, is not in it yet."""

    mode: str
    bridge: str | None = None
    mac: str | None = None
    mtu: int = MTU
    addresses: tuple[str, ...] = ()  # with the length of their prefix, or dhcp
    prefixes: tuple[str, ...] = ()  # of which one address each is allotted
    gateways: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    hostname: str | None = None
    device: str | None = None  # in the spawn
    host_entry: str | None = None  # a name in the host's /etc/hosts
    nat: bool = False
    forwards: tuple[Forward, ...] = ()
    reach: tuple[str, ...] = ()  # names of other instances


@dataclass(frozen=True)
class Disk:
    """A file or block device of the host."""

    path: str
    format: str = "raw"
    size: int | None = None  # it is made with, if it is not there
    base: str | None = None  # below an overlay, never written
    base_format: str = "raw"
    read_only: bool = False
    discard: bool = False
    cache: str = "writeback"


@dataclass(frozen=True)
class Share:
    """A directory of the host, by virtiofs."""

    path: str
    tag: str
    read_only: bool = False
    user: str | None = None  # that reads and writes it; None: to whom it belongs


@dataclass(frozen=True)
class Devices:
    """What is said of one instance; None of what is not said."""

    network: tuple[Interface, ...] | None = None
    disks: tuple[Disk, ...] | None = None
    shares: tuple[Share, ...] | None = None

    def __bool__(self) -> bool:
        return any(part is not None for part in (self.network, self.disks, self.shares))


# Words


def parse_mac(text: str) -> str:
    mac = text.strip().lower().replace("-", ":")
    if not _MAC.fullmatch(mac):
        raise ValueError(f"{shown(text)} is not a MAC address such as 02:00:5e:10:00:01")
    if int(mac[:2], 16) & 1:
        raise ValueError(f"{shown(text)} is the address of a group: its first byte has to be even")
    if mac == "00:00:00:00:00:00":
        raise ValueError("00:00:00:00:00:00 is no address of a device: leave mac out to have one made")
    return mac


def parse_mtu(size: int) -> int:
    if not SMALLEST_MTU <= size <= LARGEST_MTU:
        raise ValueError(f"{size} is out of range: choose {SMALLEST_MTU} to {LARGEST_MTU}")
    return size


def parse_link(text: str) -> str:
    if not _LINK.fullmatch(text) or text in (".", ".."):
        raise ValueError(f"{shown(text)} is not the name of a network device")
    return text


def parse_host_name(text: str) -> str:
    if not _HOST_NAME.fullmatch(text) or len(text) > 253:
        raise ValueError(f"{shown(text)} is not a host name")
    return text


def parse_addresses(values: Sequence[str]) -> tuple[str, ...]:
    """Addresses with the length of their prefix, or C(dhcp)."""
    reasons, found = [], []
    for value in values:
        text = value.strip()
        if text == DHCP:
            found.append(text)
            continue
        try:
            address = ipaddress.ip_interface(text)
            if "/" not in text:
                raise ValueError
        except ValueError:
            reasons.append(
                f"{shown(value)} is not an address with its prefix, such as 10.77.0.2/24 or fd77::2/64"
            )
            continue
        if why := _unusable(address):
            reasons.append(f"{text} {why}")
        found.append(str(address))
    reasons += _twice(found)
    if reasons:
        raise ValueError(*reasons)
    return tuple(found)


def _unusable(address: Address) -> str:
    net = address.network
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        return "is no address that a device can have"
    if net.prefixlen >= net.max_prefixlen - 1:
        return ""
    if address.ip == net.network_address:
        return f"is the network itself: choose another address of {net}"
    if net.version == 4 and address.ip == net.broadcast_address:
        return f"is the broadcast address of {net}: choose another"
    return ""


def parse_prefixes(values: Sequence[str]) -> tuple[str, ...]:
    reasons, found = [], []
    for value in values:
        try:
            net = ipaddress.ip_network(value.strip())
        except ValueError:
            reasons.append(f"{shown(value)} is not a network such as 10.77.0.0/24 or fd77::/64")
            continue
        if net.prefixlen > net.max_prefixlen - 2:
            reasons.append(f"{net} is too small to allot addresses from: give at least four addresses")
        if net.is_multicast or net.is_loopback:
            reasons.append(f"{net} has no addresses that a device can have")
        found.append(str(net))
    reasons += _twice(found)
    if reasons:
        raise ValueError(*reasons)
    return tuple(found)


def parse_ips(values: Sequence[str]) -> tuple[str, ...]:
    """Addresses without a prefix."""
    reasons, found = [], []
    for value in values:
        try:
            found.append(str(ipaddress.ip_address(value.strip())))
        except ValueError:
            reasons.append(f"{shown(value)} is not an IPv4 or IPv6 address")
    reasons += _twice(found)
    if reasons:
        raise ValueError(*reasons)
    return tuple(found)


def parse_names(values: Sequence[str]) -> tuple[str, ...]:
    reasons = [
        f"{shown(value)} is not the name of an instance" for value in values if not _INSTANCE.fullmatch(value)
    ]
    if reasons := reasons + _twice(values):
        raise ValueError(*reasons)
    return tuple(sorted(values))


def _twice(values: Sequence[Any]) -> list[str]:
    return [f"{value} is there twice" for value in dict.fromkeys(values) if values.count(value) > 1]


def parse_port(number: int) -> int:
    if not 1 <= number <= 65535:
        raise ValueError(f"{number} is not a port: choose 1 to 65535")
    return number


def parse_tag(text: str) -> str:
    if not _TAG.fullmatch(text) or len(text.encode()) > LONGEST_TAG:
        raise ValueError(
            f"{shown(text)} cannot be a tag: use letters, digits, '.', '_' and '-', at most {LONGEST_TAG}"
        )
    return text


def parse_user(text: str) -> str:
    if not _USER.fullmatch(text):
        raise ValueError(f"{shown(text)} is not the name of a user")
    if text == "root":
        raise ValueError("nothing is served as root: name another user")
    return text


def parse_absolute(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(f"{shown(path)} is not an absolute path")
    if any(char in path for char in "\n\0"):
        raise ValueError(f"{shown(path)} has a line break in it")
    return path


def parse_disk_size(value: object) -> int:
    size = parse_size(value)
    if size <= 0 or size % SECTOR:
        raise ValueError(f"{shown(value)} is not a size of a disk: give a multiple of {SECTOR} bytes")
    return size


# Devices


def parse_interface(values: Mapping[str, Any]) -> Interface:
    """One network device of its options; ValueError(*reasons)."""
    reasons: list[str] = []
    mode = values["mode"]
    addresses: tuple[str, ...] = values.get("addresses") or ()
    prefixes: tuple[str, ...] = values.get("prefixes") or ()
    gateways: tuple[str, ...] = values.get("gateway") or ()
    if mode == "bridge":
        if not values.get("bridge"):
            reasons.append("bridge is missing: name a bridge of the host, or choose mode routed")
        reasons += [
            f"{name} is for mode routed: a bridge passes everything on, and the host has no part in it"
            for name in ("nat", "forwards", "reach")
            if values.get(name)
        ]
    else:
        if values.get("bridge"):
            reasons.append(f"bridge is for mode bridge, and mode is {mode}: leave bridge out")
        if DHCP in addresses:
            reasons.append(f"addresses: dhcp needs mode bridge: in mode {mode} nobody answers it")
        reasons += [
            f"addresses: {one} has no room for the host's end: give a network of at least two addresses"
            for one in addresses
            if one != DHCP and ipaddress.ip_interface(one).network.num_addresses < 2
        ]
        if not addresses and not prefixes:
            reasons.append(f"addresses and prefixes are missing: mode {mode} needs one of them")
    if mode == "isolated":
        reasons += [
            f"{name} is for mode routed: nothing is forwarded for an isolated device"
            for name in ("nat", "forwards")
            if values.get(name)
        ]
    reasons += [
        f"{name} belongs to a network without mode: give addresses with their prefix instead"
        for name in ("address", "netmask")
        if values.get(name)
    ]
    reasons += _gateway_reasons(gateways, addresses, prefixes, mode)
    forwards: tuple[Forward, ...] = values.get("forwards") or ()
    ports = [(one.protocol, one.port) for one in forwards]
    reasons += [f"forwards: port {port}/{kind} is there twice" for kind, port in _doubles(ports)]
    if values.get("host_entry") and DHCP in addresses:
        reasons.append("host_entry needs an address that is known, and addresses has dhcp")
    if values.get("host_entry") and not (addresses or prefixes):
        reasons.append("host_entry needs an address: give addresses or prefixes")
    if reasons:
        raise ValueError(*reasons)
    return Interface(
        mode=mode,
        bridge=values.get("bridge"),
        mac=values.get("mac"),
        mtu=values.get("mtu") or MTU,
        addresses=addresses,
        prefixes=prefixes,
        gateways=gateways,
        dns=values.get("dns") or (),
        hostname=values.get("hostname"),
        device=values.get("device"),
        host_entry=values.get("host_entry"),
        nat=bool(values.get("nat")),
        forwards=forwards,
        reach=values.get("reach") or (),
    )


def _doubles(values: Sequence[Any]) -> list[Any]:
    return [value for value in dict.fromkeys(values) if values.count(value) > 1]


def _gateway_reasons(
    gateways: Sequence[str], addresses: Sequence[str], prefixes: Sequence[str], mode: str
) -> list[str]:
    reasons = []
    nets: list[Network] = [ipaddress.ip_interface(one).network for one in addresses if one != DHCP]
    nets += [ipaddress.ip_network(one) for one in prefixes] if mode == "bridge" else []
    own = {str(ipaddress.ip_interface(one).ip) for one in addresses if one != DHCP}
    versions = [ipaddress.ip_address(one).version for one in gateways]
    reasons += [f"gateway: there are several for IPv{version}" for version in _doubles(versions)]
    for gateway in gateways:
        if gateway in own:
            reasons.append(f"gateway {gateway} is an address of the spawned kernel itself")
        elif not any(ipaddress.ip_address(gateway) in net for net in nets):
            reasons.append(
                f"gateway {gateway} is in none of the networks of the addresses"
                + (": in this mode the host is the gateway, leave it out" if mode != "bridge" else "")
            )
    return reasons


def parse_disk(values: Mapping[str, Any]) -> Disk:
    """One disk of its options; ValueError(*reasons)."""
    reasons = []
    read_only, base = bool(values["read_only"]), values.get("base")
    if base and values["format"] != "qcow2":
        reasons.append("base needs format qcow2: only such a file can have another one below it")
    if base and base == values.get("path"):
        reasons.append("base is the disk itself")
    if values.get("base_format") and not base:
        reasons.append("base_format says what base is, and there is no base")
    if read_only and values.get("size"):
        reasons.append(
            "size makes a disk that is not there, and a new one that is read only is empty for ever"
        )
    if read_only and values["discard"]:
        reasons.append("discard frees what is deleted, and nothing is deleted on a disk that is read only")
    if reasons:
        raise ValueError(*reasons)
    return Disk(
        path=values["path"],
        format=values["format"],
        size=values.get("size"),
        base=base,
        base_format=values.get("base_format") or "raw",
        read_only=read_only,
        discard=bool(values["discard"]),
        cache=values["cache"],
    )


def parse_share(values: Mapping[str, Any]) -> Share:
    return Share(values["path"], values["tag"], bool(values["read_only"]), values.get("user"))


def list_reasons(devices: Devices) -> list[str]:
    """What devices of one instance have against each other."""
    reasons = []
    network, disks, shares = devices.network or (), devices.disks or (), devices.shares or ()
    total = len(network) + len(disks) + len(shares)
    if total > MOST:
        reasons.append(f"{total} devices are too many: an instance can have {MOST}")
    reasons += [
        f"network: mac {mac} is there twice" for mac in _doubles([one.mac for one in network if one.mac])
    ]
    written = [one.path for one in disks if not one.read_only]
    reasons += [f"disks: {path} is there twice" for path in _doubles(written)]
    bases = {one.base for one in disks if one.base}
    reasons += [
        f"disks: {path} is the base of another disk, and cannot be written as well: set read_only"
        for path in dict.fromkeys(written)
        if path in bases
    ]
    reasons += [f"shares: tag {tag} is there twice" for tag in _doubles([one.tag for one in shares])]
    return reasons
