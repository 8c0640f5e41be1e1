# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What spawned kernels make of the words of a command line, with real devices in namespaces."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.devices.declare import Devices, Interface
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.record import Allotment

FILES = Path(__file__).resolve().parents[3] / "roles/spawn_image/files"
SCRIPT = """\
set -e
mount --bind {cmdline} /proc/cmdline
mount -t tmpfs none /sys
mkdir -p /sys/class/net/eth0 /sys/class/net/lo
echo {mac} >/sys/class/net/eth0/address
echo 00:00:00:00:00:00 >/sys/class/net/lo/address
mount -t tmpfs none /etc
ip link add eth0 type bridge
# As the kernel does, and a former start.
ip address add 10.77.0.3/31 dev eth0
ip link set eth0 up
ip route add default via 10.77.0.2
echo nameserver fd00::1 >/etc/resolv.conf
{shell} {files}/debian/usr/sbin/mkops-network
ip -j address show dev {device}
ip -j route show default
ip -j -6 route show default
cat /etc/resolv.conf
hostname
"""


@pytest.mark.parametrize("shell", ["sh", "busybox sh"])
def test_all_that_is_said_comes_to_pass(tmp_path, shell):
    if not shutil.which(shell.split()[0]):
        pytest.fail("busybox is missing: tools/bootstrap build lab")
    record, reasons = Allotment("machine", {}).settle(
        "red",
        Devices(
            (
                Interface(
                    "routed", mtu=9000, prefixes=("10.77.0.0/24", "fd77::/64"), dns=("10.0.0.1", "fd00::1"),
                    hostname="red", device="wan",
                ),
                Interface("bridge", "br0"),
            )
        ),
    )  # fmt: skip
    assert reasons == []
    cmdline = tmp_path / "cmdline"
    cmdline.write_text(f"quiet {' '.join(record.words)} console=mktty0\n")
    script = SCRIPT.format(cmdline=cmdline, mac=record.links[0].mac, shell=shell, files=FILES, device="wan")
    done = subprocess.run(
        ["unshare", "--map-root-user", "--net", "--mount", "--uts", "sh", "-c", script],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done
    said = done.stdout.splitlines()
    assert said[0] == f"mkops-network: no device has the address {record.links[1].mac}"
    (device,) = json.loads(said[1])
    assert device["mtu"] == 9000
    found = {f"{one['local']}/{one['prefixlen']}" for one in device["addr_info"] if one["scope"] == "global"}
    assert found == {"10.77.0.3/31", "fd77::3/127"}
    assert json.loads(said[2])[0]["gateway"] == "10.77.0.2"
    assert json.loads(said[3])[0]["gateway"] == "fd77::2"
    assert said[4:] == ["nameserver fd00::1", "nameserver 10.0.0.1", "red"]
    assert not done.stderr
    assert not any(one.get("tentative") for one in device["addr_info"] if one["scope"] == "global")
