# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who may reach whom: one table of nftables for all instances of a host. No I/O.

The table is of ours alone and replaced as a whole. It only drops; what it lets pass, tables of the host may
still drop. Devices in mode bridge are not in it: what a bridge passes on, it does not see.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

from .declare import DHCP
from .record import Link, Record

TABLE = "inet mkops"


def ruleset(records: Mapping[str, Record]) -> str:
    """What nft -f takes: the table is replaced in one transaction, and gone when nothing needs it."""
    links = {
        name: [link for link in record.links if link.mode != "bridge"]
        for name, record in sorted(records.items())
    }
    every = [link for some in links.values() for link in some]
    lines = [f"add table {TABLE}", f"delete table {TABLE}"]
    if every:
        lines += [f"table {TABLE} {{", *_sets(every), *_chains(every, links), "}"]
    return "\n".join(lines) + "\n"


def _set(name: str, links: Iterable[Link]) -> list[str]:
    names = ", ".join(f'"{link.tap}"' for link in links)
    elements = [f"\t\telements = {{ {names} }}"] if names else []
    return [f"\tset {name} {{", "\t\ttype ifname", *elements, "\t}"]


def _sets(links: list[Link]) -> list[str]:
    return [
        *_set("spawns", links),
        *_set("routed", [link for link in links if link.mode == "routed"]),
        *_set("isolated", [link for link in links if link.mode == "isolated"]),
        # Reached from outside without a forward: those that are not hidden behind the host.
        *_set("open", [link for link in links if link.mode == "routed" and not link.nat]),
    ]


def _chains(links: list[Link], by_name: Mapping[str, list[Link]]) -> list[str]:
    return [
        *_chain("source", "filter", "prerouting", "raw", [rule for link in links for rule in _sources(link)]),
        *_chain("input", "filter", "input", "filter", _INPUT),
        *_chain("forward", "filter", "forward", "filter", _forward(links, by_name)),
        *_chain("lead", "nat", "prerouting", "dstnat", [rule for link in links for rule in _leads(link)]),
        *_chain("lead_local", "nat", "output", "-100", [rule for link in links for rule in _leads(link)]),
        *_chain("hide", "nat", "postrouting", "srcnat", [rule for link in links for rule in _hides(link)]),
    ]


def _chain(name: str, kind: str, hook: str, priority: str, rules: Iterable[str]) -> list[str]:
    head = f"\t\ttype {kind} hook {hook} priority {priority}; policy accept;"
    return [f"\tchain {name} {{", head, *(f"\t\t{rule}" for rule in rules), "\t}"]


def _by_version(addresses: Iterable[str]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {4: [], 6: []}
    for one in addresses:
        if one != DHCP:
            address: Any = ipaddress.ip_interface(one)
            found[address.version].append(str(address.ip))
    return found


def _sources(link: Link) -> list[str]:
    """A spawn speaks for itself alone. Without an address of its own, IPv6 needs the link's and none."""
    mine = _by_version(link.addresses)
    four, six = mine[4], [*mine[6], "fe80::/10", "::"]
    tap = f'iifname "{link.tap}"'
    no_four = f"{tap} meta nfproto ipv4 drop"
    return [
        f"{tap} ip saddr != {{ {', '.join(four)} }} drop" if four else no_four,
        f"{tap} ip6 saddr != {{ {', '.join(six)} }} drop",
    ]


_INPUT = [
    # Neighbours have to find each other, or nothing works at all.
    "iifname @isolated icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept",
    "iifname @isolated ct state established,related accept",
    "iifname @isolated drop",
]


def _forward(links: list[Link], by_name: Mapping[str, list[Link]]) -> list[str]:
    rules = ["iifname != @spawns oifname != @spawns accept", "ct state established,related accept"]
    rules.append("ct state invalid drop")
    for link in links:
        reached = [f'"{other.tap}"' for name in link.reach for other in by_name.get(name, ())]
        if reached:
            rules.append(f'iifname "{link.tap}" oifname {{ {", ".join(reached)} }} accept')
    return [
        *rules,
        "iifname @spawns oifname @spawns drop",
        "iifname @routed accept",
        "iifname @spawns drop",
        "ct status dnat accept",
        "oifname @open accept",
        "drop",
    ]


def _leads(link: Link) -> list[str]:
    mine = _by_version(link.addresses)
    rules = []
    for one in link.forwards:
        for version, word in ((4, "ip"), (6, "ip6")):
            if mine[version]:
                to = mine[version][0] if version == 4 else f"[{mine[version][0]}]"
                loopback = "127.0.0.0/8" if version == 4 else "::1"
                rules.append(
                    f"{word} daddr != {loopback} fib daddr type local {one.protocol} dport {one.port}"
                    f" dnat {word} to {to}:{one.to}"
                )
    return rules


def _hides(link: Link) -> list[str]:
    if not link.nat:
        return []
    mine = _by_version(link.addresses)
    return [
        f"{word} saddr {{ {', '.join(mine[version])} }} oifname != @spawns masquerade"
        for version, word in ((4, "ip"), (6, "ip6"))
        if mine[version]
    ]
