# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Devices of an instance with all that was made up for them: what a host keeps, and acts on. No I/O.

A record has names of links, both MAC addresses and allotted IP addresses. It is the memory of what was
allotted: as long as it is there, an instance keeps its addresses.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..common.files import sha256
from .declare import DHCP, Address, Devices, Disk, Forward, Interface, Network, Share, list_reasons

LONGEST_LINK = 15  # bytes of the name of a network device
_LONGEST_NAME = 9  # bytes of an instance's name that go into one, as with Multikernel Linux
FIRST_TRIED = 65536  # addresses of a prefix that are looked at
WORD = "mkops.net"  # of a command line: the configuration of a device, for the userland of the spawn


@dataclass(frozen=True)
class Link:
    """A network device with its two ends: a tap of the host, and a device of the spawn."""

    tap: str
    mode: str
    mac: str  # of the spawn's end
    host_mac: str
    mtu: int
    bridge: str | None = None
    addresses: tuple[str, ...] = ()  # of the spawn
    host_addresses: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()  # of the spawn
    dns: tuple[str, ...] = ()
    hostname: str | None = None
    device: str | None = None
    host_entry: str | None = None
    nat: bool = False
    forwards: tuple[Forward, ...] = ()
    reach: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()  # that addresses were allotted from


@dataclass(frozen=True)
class Record:
    """All devices of an instance."""

    name: str
    links: tuple[Link, ...] = ()
    disks: tuple[Disk, ...] = ()
    shares: tuple[Share, ...] = ()

    @property
    def kinds(self) -> tuple[tuple[str, int], ...]:
        """Kind and number of queues, in the order of the kernel's table."""
        return (
            (("net", 2),) * len(self.links)
            + (("blk", 1),) * len(self.disks)
            + (("fs", 2),) * len(self.shares)
        )

    def __bool__(self) -> bool:
        return bool(self.links or self.disks or self.shares)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Their names in the kernel's tree."""
        return tuple(f"{kind}@{place}" for place, (kind, _queues) in enumerate(self.kinds))

    @property
    def summary(self) -> list[str]:
        """For people."""
        return [
            *(f"{link.tap} ({link.mode}{f' {link.bridge}' if link.bridge else ''})" for link in self.links),
            *(f"disk {disk.path}{' (read only)' if disk.read_only else ''}" for disk in self.disks),
            *(
                f"share {share.tag} of {share.path}{' (read only)' if share.read_only else ''}"
                for share in self.shares
            ),
        ]

    @property
    def words(self) -> list[str]:
        """What a command line says of the network, to the kernel and to the userland."""
        kernel = next((word for link in self.links if (word := kernel_word(link))), None)
        own = [userland_word(place, link) for place, link in enumerate(self.links)]
        return [*([kernel] if kernel else []), *own]

    @property
    def seen(self) -> dict[str, Any]:
        """What the spawn finds out when it starts, and no later."""
        return {
            "links": [(link.mac, link.mtu) for link in self.links],
            "disks": [asdict(disk) for disk in self.disks],
            "shares": [asdict(share) for share in self.shares],
        }

    def plain(self) -> dict[str, Any]:
        """For a file."""
        return {
            key: [_sparse(one) for one in getattr(self, key)]
            for key in ("links", "disks", "shares")
            if getattr(self, key)
        }


def _sparse(one: Any) -> dict[str, Any]:
    return {key: value for key, value in asdict(one).items() if value not in (None, (), False)}


def read_record(name: str, plain: Mapping[str, Any]) -> Record:
    """The reverse of plain(); ValueError when it is none."""
    try:
        return Record(
            name,
            tuple(_read_link(one) for one in plain.get("links", ())),
            tuple(Disk(**one) for one in plain.get("disks", ())),
            tuple(Share(**one) for one in plain.get("shares", ())),
        )
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"the devices of {name} are not as this version writes them: {error}") from None


def _read_link(plain: Mapping[str, Any]) -> Link:
    tuples = {one.name for one in fields(Link) if str(one.type).startswith("tuple")}
    values: dict[str, Any] = {key: tuple(value) if key in tuples else value for key, value in plain.items()}
    values["forwards"] = tuple(Forward(**one) for one in plain.get("forwards", ()))
    return Link(**values)


# From what is said


def tap_name(name: str, place: int) -> str:
    """Of the host's end of a network device: C(mk-red-0)."""
    return f"mk-{name[:_LONGEST_NAME]}-{place}"


def mac_of(machine_id: str, name: str, place: int) -> str:
    """Of the spawn's end: the same as long as machine, name and place are."""
    digest = bytes.fromhex(sha256(f"{machine_id}\0{name}\0{place}"))
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def host_mac_of(mac: str) -> str:
    """Of the other end. It is higher than any other address, so that no bridge takes it for its own."""
    first = "fe" if not mac.startswith("fe") else "f6"
    return f"{first}{mac[2:]}"


class Allotment:
    """Records of a host as they become, one instance after the other."""

    def __init__(self, machine_id: str, records: Mapping[str, Record]):
        self._machine_id = machine_id
        self._old = dict(records)
        self.records = dict(records)

    def forget(self, name: str) -> None:
        self.records.pop(name, None)

    def settle(self, name: str, said: Devices) -> tuple[Record, list[str]]:
        """What an instance gets. What is not said stays as it is recorded."""
        old = self._old.get(name, Record(name))
        reasons = list_reasons(said)
        others = {other: record for other, record in self.records.items() if other != name}
        links = old.links if said.network is None else ()
        for place, interface in enumerate(said.network or ()):
            link = self._link(name, place, interface, old.links, (*_links(others), *links), reasons)
            reasons += [
                f"network: {link.tap} would be the host's end of both {name} and {other}: the first"
                f" {_LONGEST_NAME} characters of their names have to differ"
                for other, record in others.items()
                if any(link.tap == one.tap for one in record.links)
            ]
            reasons += _link_reasons(link, name, {**others, name: Record(name, links)})
            links = (*links, link)
        record = Record(
            name,
            links,
            old.disks if said.disks is None else said.disks,
            old.shares if said.shares is None else said.shares,
        )
        reasons += _disk_reasons(record, others)
        self.records[name] = record
        return record, reasons

    def _link(
        self,
        name: str,
        place: int,
        said: Interface,
        had: tuple[Link, ...],
        others: Iterable[Link],
        reasons: list[str],
    ) -> Link:
        routed = said.mode != "bridge"
        mac = said.mac or mac_of(self._machine_id, name, place)
        addresses = list(said.addresses)
        kept = had[place].addresses if len(had) > place and had[place].mode == said.mode else ()
        taken = {ip for link in others for ip in _ips(link)}
        taken |= {ipaddress.ip_interface(one).ip for one in addresses if one != DHCP}
        taken |= {ipaddress.ip_address(one) for one in said.gateways}
        for prefix in said.prefixes:
            found = _allot(ipaddress.ip_network(prefix), routed, taken, kept)
            if found is None:
                reasons.append(
                    f"network: no address of {prefix} is left for {name}: give a larger prefix, or addresses"
                )
            else:
                addresses.append(found)
                taken.add(ipaddress.ip_interface(found).ip)
        hosts = (
            [_other_end(ipaddress.ip_interface(one), said.gateways) for one in addresses] if routed else []
        )
        return Link(
            tap=tap_name(name, place),
            mode=said.mode,
            mac=mac,
            host_mac=host_mac_of(mac),
            mtu=said.mtu,
            bridge=said.bridge,
            addresses=tuple(addresses),
            host_addresses=tuple(hosts),
            # Even an isolated one has to answer those that may reach it.
            gateways=_one_each(hosts) if routed else said.gateways,
            dns=said.dns,
            hostname=said.hostname,
            device=said.device,
            host_entry=said.host_entry,
            nat=said.nat,
            forwards=said.forwards,
            reach=said.reach,
            prefixes=said.prefixes,
        )


def _links(records: Mapping[str, Record]) -> Iterator[Link]:
    for record in records.values():
        yield from record.links


def _ips(link: Link) -> set[Any]:
    return {ipaddress.ip_interface(one).ip for one in (*link.addresses, *link.host_addresses) if one != DHCP}


def _one_each(addresses: Iterable[str]) -> tuple[str, ...]:
    """The first of IPv4 and the first of IPv6, without their prefixes."""
    found: dict[int, str] = {}
    for one in addresses:
        address = ipaddress.ip_interface(one)
        found.setdefault(address.version, str(address.ip))
    return tuple(found.values())


def _allot(net: Network, pair: bool, taken: set[Any], kept: Iterable[str]) -> str | None:
    """An address of a network, the one it had if it can be. pair: with one beside it for the other end."""
    step, length = (2, net.max_prefixlen - 1) if pair else (1, net.prefixlen)

    def free(number: int) -> bool:
        first = int(net.network_address) + number
        ends = [type(net.network_address)(first + more) for more in range(step)]
        return not any(end in taken or end == net.network_address or end == last for end in ends)

    last = net.broadcast_address if net.version == 4 else None
    count = min(net.num_addresses, FIRST_TRIED)
    for one in kept:
        if one != DHCP:
            address = ipaddress.ip_interface(one)
            number = int(address.ip) - int(net.network_address)
            fits = address.network.prefixlen == length and address.ip in net
            if fits and number % step == step - 1 and free(number - step + 1):
                return one
    for number in range(step, count, step):
        if free(number):
            return f"{net.network_address + number + step - 1}/{length}"
    return None


def _other_end(address: Address, gateways: Iterable[str]) -> str:
    """What the host has in the network of a routed address."""
    net = address.network
    for one in map(ipaddress.ip_address, gateways):
        if one in net and one != address.ip:
            return f"{one}/{net.prefixlen}"
    first = net.network_address + (0 if net.prefixlen == net.max_prefixlen - 1 else 1)
    return f"{first if first != address.ip else first + 1}/{net.prefixlen}"


def _link_reasons(link: Link, name: str, records: Mapping[str, Record]) -> list[str]:
    """What speaks against one beside all others. Routed networks are told apart by their addresses."""
    reasons = []
    mine = [ipaddress.ip_interface(one) for one in link.addresses if one != DHCP]
    for other, record in records.items():
        for there in record.links:
            theirs = [ipaddress.ip_interface(one) for one in there.addresses if one != DHCP]
            whose = f"instance {other}" if other != name else "another device of it"
            for one in mine:
                for two in theirs:
                    if one.ip == two.ip:
                        reasons.append(
                            f"network: {one.ip} of instance {name} is an address of {whose} as well"
                        )
                    elif (
                        one.version == two.version
                        and "bridge" not in (link.mode, there.mode)
                        and one.network.overlaps(two.network)
                    ):
                        reasons.append(
                            f"network: {one.network} of instance {name} overlaps {two.network} of {whose}: a"
                            " routed device needs a network of its own; prefixes allots them"
                        )
            if link.mac == there.mac:
                reasons.append(f"network: mac {link.mac} of instance {name} is that of {whose} as well")
            if link.host_entry and link.host_entry == there.host_entry and other != name:
                reasons.append(
                    f"network: host_entry {link.host_entry} is declared for {other} and for {name}"
                )
            ports = {(one.protocol, one.port) for one in there.forwards}
            reasons += [
                f"forwards: port {one.port}/{one.protocol} of the host leads to {whose} already"
                for one in link.forwards
                if (one.protocol, one.port) in ports
            ]
    return reasons


def _disk_reasons(record: Record, others: Mapping[str, Record]) -> list[str]:
    """A file that one kernel writes must not be seen by another one: each has caches of its own."""
    reasons = []
    for other, there in others.items():
        theirs = {disk.path: disk for disk in there.disks}
        bases = {disk.base for disk in there.disks}
        for disk in record.disks:
            same = theirs.get(disk.path)
            if same and not (same.read_only and disk.read_only):
                reasons.append(
                    f"disks: {disk.path} of instance {record.name} is a disk of {other} as well, and one of"
                    " them writes it"
                )
            if disk.path in bases and not disk.read_only:
                reasons.append(f"disks: {disk.path} is the base of a disk of {other}: it must not be written")
            if disk.base in theirs and not theirs[disk.base].read_only:
                reasons.append(f"disks: base {disk.base} is a disk that {other} writes")
    return reasons


def unknown_reach(records: Mapping[str, Record], names: Collection[str]) -> list[str]:
    """Whom some instances may reach and who has no network device. names: those instances."""
    known = {name for name, record in records.items() if any(link.mode != "bridge" for link in record.links)}
    return [
        f"network: reach of instance {name} names {other}, which has no network device in mode routed or"
        " isolated"
        for name, record in records.items()
        for link in record.links
        for other in link.reach
        if name in names and other not in known
    ]


# To the spawn


def kernel_word(link: Link) -> str | None:
    """The kernel's C(ip=) for its first IPv4 address; None when it has none."""
    names = f"{link.hostname or ''}:{link.device or ''}"
    for one in link.addresses:
        if one == DHCP:
            return f"ip=::::{names}:dhcp"
        address = ipaddress.ip_interface(one)
        if address.version == 4:
            gateway = next((ip for ip in link.gateways if "." in ip), "")
            dns = "".join(f":{ip}" for ip in [ip for ip in link.dns if "." in ip][:2])
            return f"ip={address.ip}::{gateway}:{address.network.netmask}:{names}:off{dns}"
    return None


def userland_word(place: int, link: Link) -> str:
    """All of it, for the userland: C(mkops.net0=mac=...,addr=...,gw=...,dns=...,mtu=...,name=...)."""
    parts = [
        f"mac={link.mac}",
        *(f"addr={one}" for one in link.addresses),
        *(f"gw={one}" for one in link.gateways),
        *(f"dns={one}" for one in link.dns),
        f"mtu={link.mtu}",
        *([f"name={link.device}"] if link.device else []),
        *([f"host={link.hostname}"] if link.hostname else []),
    ]
    return f"{WORD}{place}={','.join(parts)}"
