# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host's end of networks, in a network of this process's own: real taps, addresses, bridges and rules."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import struct
import subprocess
from pathlib import Path

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure
from ansible_collections.mkops.multikernel.plugins.module_utils.devices import hostnet, tap, virtio
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.channel import Queue
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.declare import Devices, Interface
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.hostnet import HostNetwork
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.record import Allotment
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.serve import Net
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.tap import Ring, Tap, VhostNet

_NEW_NETWORK = 0x40000000
TUNGETSNDBUF = 0x800454D3
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def network():
    """Where this process can do what it likes."""
    with open("/proc/thread-self/ns/net") as before:
        assert _libc.unshare(_NEW_NETWORK) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert _libc.setns(before.fileno(), _NEW_NETWORK) == 0


@pytest.fixture
def root(tmp_path, network):
    """A host's files, of which the kernel's are real ones of this network."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hosts").write_text("127.0.0.1\tlocalhost\n")
    (tmp_path / "proc").symlink_to("/proc")
    (tmp_path / "sys/class/net").mkdir(parents=True)
    return tmp_path


def ip(*words):
    return json.loads(subprocess.run(["ip", "-j", *words], check=True, capture_output=True).stdout or "[]")


def addresses(name):
    (found,) = ip("address", "show", "dev", name)
    return {f"{one['local']}/{one['prefixlen']}" for one in found["addr_info"] if one["scope"] != "link"}


def records(**network):
    allotment = Allotment("machine", {})
    for name, links in network.items():
        assert allotment.settle(name, Devices(links))[1] == []
    return allotment.records


def test_a_tap_and_its_addresses(root):
    host = HostNetwork(str(root))
    every = records(
        red=(Interface("routed", prefixes=("10.77.0.0/24", "fd77::/64"), mtu=9000, host_entry="red"),)
    )
    (link,) = every["red"].links
    device = Tap(link.tap)
    (limit,) = struct.unpack("i", fcntl.ioctl(device.fd, TUNGETSNDBUF, bytes(4)))
    assert 0 < limit < 2**31 - 1  # INT_MAX: none
    host.apply(every)
    host.set_up("red", link)
    (found,) = ip("link", "show", "dev", link.tap)
    assert (found["mtu"], found["address"], found["ifalias"]) == (9000, link.host_mac, "mkops red")
    assert "NO-CARRIER" in found["flags"]
    assert addresses(link.tap) == {"10.77.0.2/31", "fd77::2/127"}
    assert Path("/proc/thread-self/net/if_inet6").read_text().count(link.tap)
    assert (root / "etc/hosts").read_text().endswith("10.77.0.3\tred\t# mkops\nfd77::3\tred\t# mkops\n")
    rules = subprocess.run(
        ["nft", "list", "ruleset"], check=True, capture_output=True, encoding="utf-8"
    ).stdout
    assert "table inet mkops" in rules
    device.set_carrier(True)
    (found,) = ip("link", "show", "dev", link.tap)
    assert "NO-CARRIER" not in found["flags"]

    # Another address in place of the first: what is not declared any more goes.
    other = records(red=(Interface("routed", addresses=("10.9.0.2/24",)),))
    host.set_up("red", other["red"].links[0])
    assert addresses(link.tap) == {"10.9.0.1/24"}
    # It stays when the process lets go of it, and can be taken up again.
    device.close()
    assert "NO-CARRIER" in ip("link", "show", "dev", link.tap)[0]["flags"]
    again = Tap(link.tap)
    with pytest.raises(OSError, match="busy"):
        Tap(link.tap)
    again.close()

    # Nobody declares it any more.
    (root / "sys/class/net" / link.tap).mkdir()
    (root / "sys/class/net" / link.tap / "ifalias").write_text("mkops red\n")
    (root / "sys/class/net/mk-other-0").mkdir()
    (root / "sys/class/net/mk-other-0/ifalias").write_text("of somebody else\n")
    host.apply({})
    assert link.tap not in [one["ifname"] for one in ip("link", "show")]
    assert subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True).stdout == b""
    assert (root / "etc/hosts").read_text() == "127.0.0.1\tlocalhost\n"


def test_a_port_of_a_bridge(root):
    subprocess.run(["ip", "link", "add", "br0", "type", "bridge"], check=True)
    every = records(red=(Interface("bridge", "br0", addresses=("10.0.0.2/24",)),))
    (link,) = every["red"].links
    device = Tap(link.tap)
    host = HostNetwork(str(root))
    host.set_up("red", link)
    (found,) = ip("link", "show", "dev", link.tap)
    assert found["master"] == "br0" and addresses(link.tap) == set()
    (root / "sys/class/net" / link.tap).mkdir()
    (root / "sys/class/net" / link.tap / "master").touch()
    host.set_up("red", records(red=(Interface("isolated", addresses=("10.0.0.2/24",)),))["red"].links[0])
    assert "master" not in ip("link", "show", "dev", link.tap)[0]
    with pytest.raises(Failure, match=r"cannot set up mk-red-0 of instance red: ip .*nowhere"):
        host.set_up("red", records(red=(Interface("bridge", "nowhere"),))["red"].links[0])
    device.close()


def test_the_host_forwards_what_has_to_be(tmp_path):
    """Real settings of this process's network are not used: some are the machine's."""
    for path, value in {
        "ipv4/ip_forward": "0",
        "ipv6/conf/all/forwarding": "0",
        "ipv6/conf/eth0/accept_ra": "1",
        "ipv6/conf/eth1/accept_ra": "0",
    }.items():
        (tmp_path / "proc/sys/net" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc/sys/net" / path).write_text(f"{value}\n")

    def read(path):
        return (tmp_path / "proc/sys/net" / path).read_text().strip()

    host = HostNetwork(str(tmp_path))
    host._forward([*records(a=(Interface("isolated", addresses=("10.0.0.2/24",)),))["a"].links])
    assert read("ipv4/ip_forward") == "0"
    host._forward([*records(a=(Interface("routed", addresses=("10.0.0.2/24",)),))["a"].links])
    assert (read("ipv4/ip_forward"), read("ipv6/conf/all/forwarding")) == ("1", "0")
    host._forward([*records(a=(Interface("routed", addresses=("fd00::2/64",)),))["a"].links])
    assert read("ipv6/conf/all/forwarding") == "1"
    # The host goes on listening to its own router.
    assert (read("ipv6/conf/eth0/accept_ra"), read("ipv6/conf/eth1/accept_ra")) == ("2", "0")
    with pytest.raises(Failure, match="cannot be set to 1"):
        HostNetwork(str(tmp_path / "none"))._write("/proc/x", "1")


def test_who_else_manages_networks_is_told(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(hostnet, "run", lambda argv, _timeout: told.append(argv))
    host = HostNetwork(str(tmp_path))
    host.claim()
    assert told == []
    for manager in ("run/systemd/netif", "run/NetworkManager"):
        (tmp_path / manager).mkdir(parents=True)
    host.claim()
    host.claim()
    assert told == [["networkctl", "reload"], ["nmcli", "general", "reload"]]
    assert "Unmanaged=yes" in (tmp_path / "run/systemd/network/10-mkops.network").read_text()


def test_a_host_without_networks_needs_no_nft(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "etc").mkdir()
    HostNetwork(str(tmp_path)).apply({})
    assert not (tmp_path / "etc/hosts").exists()
    every = records(red=(Interface("isolated", addresses=("10.0.0.2/24",), host_entry="red"),))
    with pytest.raises(Failure, match="nft is not installed"):
        HostNetwork(str(tmp_path)).apply(every)
    with pytest.raises(Failure, match="etc/hosts cannot be written"):
        HostNetwork(str(tmp_path / "none"))._name(every)


# vhost_net, whose module is not on every machine that runs this: what it is told


@pytest.fixture
def vhost(tmp_path, monkeypatch):
    told = []
    path = tmp_path / "vhost-net"
    path.touch()

    def ioctl(_fd, number, argument=0, _mutable=True):
        told.append((number, argument if isinstance(argument, int) else bytes(argument)))
        if number in refused:
            raise OSError(22, "Invalid argument")
        return struct.pack("Q", (1 << 64) - 1)

    refused = set()
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return path, told, refused


class FakeTap:
    fd = 55

    def __init__(self):
        self.said = []

    def set_offload(self, features):
        self.said.append(f"offload {features:x}")

    def set_carrier(self, on):
        self.said.append(f"carrier {on}")

    def close(self):
        self.said.append("close")


def test_what_vhost_net_is_told(vhost, driver):
    path, told, refused = vhost
    memory, device = driver.memory(), FakeTap()
    queue = Queue(0x1000, 0x2000, 0x3000, 256)
    rings = [Ring(0, queue, 5, 10, 11, 12), Ring(1, queue, 6, 20, 21, 22)]
    made = VhostNet(str(path))
    features = virtio.NET_FEATURES | 1 << 27
    assert made.start(device, features, memory, rings)
    base = memory.address
    head = [
        (0xAF01, 0),
        (0x8008AF00, bytes(8)),
        # Nothing that the tap does, and not the bit that has another meaning here.
        (0x4008AF00, struct.pack("Q", 1 << 32 | 1 << 28 | 1 << 29 | 1 << 15)),
        (0x4008AF03, struct.pack("II4Q", 1, 0, 0, memory.size, base, 0)),
        (0x4008AF10, struct.pack("II", 0, 256)),
        (0x4008AF12, struct.pack("II", 0, 5)),
        (0x4028AF11, struct.pack("II4Q", 0, 0, base + 0x1000, base + 0x3000, base + 0x2000, 0)),
        (0x4008AF20, struct.pack("Ii", 0, 10)),
        (0x4008AF21, struct.pack("Ii", 0, 11)),
        (0x4008AF22, struct.pack("Ii", 0, 12)),
    ]
    assert told[: len(head)] == head
    assert told[-2:] == [(0x4008AF30, struct.pack("Ii", place, 55)) for place in (0, 1)]
    assert device.said == [f"offload {features:x}", "carrier True"]
    refused.add(0x4008AF30)
    assert not made.start(device, features, memory, rings)
    assert device.said[-1].startswith("offload")
    made.close()
    refused.add(0xAF01)
    with pytest.raises(OSError, match="Invalid"):
        VhostNet(str(path))
    memory.close()


@pytest.mark.parametrize(
    ("features", "flags"), [(0, 0), (2, 1), (2 | 1 << 7, 3), (2 | 3 << 7, 7), (1 << 7, 0)]
)
def test_what_the_spawn_takes_in_pieces(monkeypatch, features, flags):
    told = []
    monkeypatch.setattr(fcntl, "ioctl", lambda _fd, number, argument: told.append((number, argument)))
    device = Tap.__new__(Tap)
    device.fd = 5
    device.set_offload(features)
    assert told == [(0x400454D0, flags)]


def test_a_network_device_as_a_backend(monkeypatch, driver, vhost):
    path, _told, _refused = vhost
    monkeypatch.setattr(tap.VhostNet.__init__, "__defaults__", (str(path),))
    made, said = [], []
    monkeypatch.setattr(
        "ansible_collections.mkops.multikernel.plugins.module_utils.devices.serve.Tap",
        lambda name: made.append(name) or FakeTap(),
    )
    (link,) = records(red=(Interface("bridge", "br0"),))["red"].links
    net = Net(link, said.append)
    assert (net.connected, net.watched()) == (False, None)
    net.stop(())
    net.connect()
    net.connect()
    assert (made, said, net.connected) == ([link.tap], [link, link], True)
    assert net.config() == virtio.net_config(link.mac, 1500)
    memory = driver.memory()
    assert net.start(virtio.NET_FEATURES, memory, [])
    device = net._tap
    net.lose()
    net.close()
    net.close()
    assert device.said[-3:] == ["carrier False", "carrier False", "close"]
    memory.close()
