# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host's end of networks: addresses, bridges, the table of nftables, /etc/hosts.

All of it follows from the records of all instances, so that whoever comes last leaves it as it has to be.
Whatever else sets up networks on the host is told to leave these devices alone.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..common.command import must, run
from ..common.errors import Failure
from ..common.files import below, read_text, text_of, write_file
from .declare import DHCP
from .firewall import ruleset
from .hosts import hosts_text
from .record import Link, Record

ALIAS = "mkops "  # and the name of the instance: marks a device as ours
_TIMEOUT = 30.0  # seconds
_NETWORKD = "[Match]\nName=mk-*\nKind=tun\n\n[Link]\nUnmanaged=yes\n"
_MANAGER = "[keyfile]\nunmanaged-devices+=interface-name:mk-*\n"


def check_ruleset(records: Mapping[str, Record]) -> None:
    """Have nft read what would be set. Raises Failure with what it says."""
    must(["nft", "-c", "-f", "-"], "check the rules for instances", timeout=_TIMEOUT, stdin=ruleset(records))


class HostNetwork:
    """Of a host whose root directory is root."""

    def __init__(self, root: str = "/"):
        self._root = root

    def _at(self, path: str) -> Path:
        return below(self._root, path)

    def apply(self, records: Mapping[str, Record]) -> None:
        """Rules first: nothing is connected before what it must not reach is closed to it."""
        every = [link for record in records.values() for link in record.links]
        if every or self._has_table():
            check_ruleset(records)
            must(["nft", "-f", "-"], "set the rules for instances", timeout=_TIMEOUT, stdin=ruleset(records))
        self._forward(every)
        self._remove_stale({link.tap for link in every})
        self._name(records)

    def _has_table(self) -> bool:
        try:
            return run(["nft", "list", "table", "inet", "mkops"], _TIMEOUT).rc == 0
        except OSError:
            return False

    def claim(self) -> None:
        """Before the first device is made."""
        for manager, path, text, reload in (
            (
                "/run/systemd/netif",
                "/run/systemd/network/10-mkops.network",
                _NETWORKD,
                ["networkctl", "reload"],
            ),
            (
                "/run/NetworkManager",
                "/run/NetworkManager/conf.d/90-mkops.conf",
                _MANAGER,
                ["nmcli", "general", "reload"],
            ),
        ):
            target = self._at(path)
            if not self._at(manager).is_dir() or (target.is_file() and read_text(target) == text):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            write_file(target, text, sync=False)
            with contextlib.suppress(OSError):
                run(reload, _TIMEOUT)

    def set_up(self, name: str, link: Link) -> None:
        """A tap that is there becomes what a record says. Raises Failure."""
        purpose = f"set up {link.tap} of instance {name}"
        self._ip(purpose, "link", "set", "dev", link.tap, "alias", f"{ALIAS}{name}")
        self._ip(purpose, "link", "set", "dev", link.tap, "address", link.host_mac, "mtu", str(link.mtu))
        conf = f"/proc/sys/net/ipv6/conf/{link.tap}"
        if self._at(conf).is_dir():
            self._write(f"{conf}/accept_ra", "0")
            self._write(f"{conf}/disable_ipv6", "1" if link.mode == "bridge" else "0")
        if link.bridge:
            self._ip(purpose, "link", "set", "dev", link.tap, "master", link.bridge)
        elif self._at(f"/sys/class/net/{link.tap}/master").exists():
            self._ip(purpose, "link", "set", "dev", link.tap, "nomaster")
        self._ip(purpose, "link", "set", "dev", link.tap, "up")
        self._set_addresses(purpose, link)

    def _set_addresses(self, purpose: str, link: Link) -> None:
        done = self._ip(purpose, "-j", "address", "show", "dev", link.tap)
        have = {
            f"{one['local']}/{one['prefixlen']}"
            for device in json.loads(done or "[]")
            for one in device.get("addr_info", ())
            if one.get("scope") != "link"
        }
        wanted = [one for one in link.host_addresses if one != DHCP]
        for address in sorted(have - {*wanted}):
            self._ip(purpose, "address", "del", address, "dev", link.tap)
        for address in wanted:
            if address not in have:
                # Nobody else can have it on a wire with two ends.
                more = ["nodad"] if ":" in address else []
                self._ip(purpose, "address", "add", address, "dev", link.tap, *more)

    def _ip(self, purpose: str, *words: str) -> str:
        return must(["ip", *words], purpose, timeout=_TIMEOUT).stdout

    def _forward(self, links: list[Link]) -> None:
        """The host passes packets on as soon as an instance wants to go further than to it."""
        routed = [link for link in links if link.mode == "routed" or link.reach]
        versions = {":" in address for link in routed for address in link.addresses if address != DHCP}
        if False in versions:
            self._write("/proc/sys/net/ipv4/ip_forward", "1")
        if True in versions and self._read("/proc/sys/net/ipv6/conf/all/forwarding") != "1":
            # A router listens to no other one unless it is told to: the host must not lose its own way out.
            for path in sorted(self._at("/proc/sys/net/ipv6/conf").glob("*/accept_ra")):
                if path.read_text().strip() == "1":
                    path.write_text("2")
            self._write("/proc/sys/net/ipv6/conf/all/forwarding", "1")

    def _read(self, path: str) -> str:
        try:
            return self._at(path).read_text().strip()
        except OSError:
            return ""

    def _write(self, path: str, value: str) -> None:
        if self._read(path) == value:
            return
        try:
            self._at(path).write_text(value)
        except OSError as error:
            raise Failure(f"{path} cannot be set to {value}: {error.strerror}") from error

    def _ours(self) -> Iterator[str]:
        for path in sorted(self._at("/sys/class/net").glob("mk-*/ifalias")):
            with contextlib.suppress(OSError):
                if path.read_text().startswith(ALIAS):
                    yield path.parent.name

    def _remove_stale(self, taps: set[str]) -> None:
        for name in self._ours():
            if name not in taps:
                run(["ip", "link", "del", "dev", name], _TIMEOUT)  # somebody may have been faster

    def _name(self, records: Mapping[str, Record]) -> None:
        path = self._at("/etc/hosts")
        try:
            old = read_text(path)
        except FileNotFoundError:
            old = ""
        new = hosts_text(old, records)
        if new != old:
            try:
                write_file(path, new)
            except OSError as error:
                raise Failure(f"{text_of(path)} cannot be written: {error.strerror}") from error
