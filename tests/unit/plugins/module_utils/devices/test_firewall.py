# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The table as nft itself reads it, in a network of its own."""

from __future__ import annotations

import subprocess

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.devices.declare import (
    Devices,
    Forward,
    Interface,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.firewall import ruleset
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.record import Allotment

PREFIXES = ("10.77.0.0/24", "fd77::/64")
OPEN = Interface("routed", prefixes=PREFIXES)
HIDDEN = Interface(
    "routed",
    prefixes=PREFIXES,
    nat=True,
    forwards=(Forward(8080, 80), Forward(53, 5353, "udp")),
    reach=("b",),
)
ISOLATED = Interface("isolated", prefixes=PREFIXES[:1], reach=("a", "a.b"))


def records(**network):
    allotment = Allotment("machine", {})
    for name, links in network.items():
        assert allotment.settle(name.replace("_", "."), Devices(links))[1] == []
    return allotment.records


def nft(*texts):
    """What nft shows after it has taken the texts, one after the other."""
    program = (
        'for text; do printf %s "$text" | nft -c -f - && printf %s "$text" | nft -f - || exit; done;'
        " nft list ruleset"
    )
    return subprocess.run(
        ["unshare", "--map-root-user", "--net", "sh", "-c", program, "sh", *texts],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


@pytest.mark.parametrize(
    "network",
    [
        {"a": (OPEN,)},
        {"a": (HIDDEN,), "b": (ISOLATED,), "a_b": (OPEN, ISOLATED)},
        {"a": (Interface("routed", addresses=("fd01::2/64",), nat=True, forwards=(Forward(1, 2),)),)},
        {"a": (Interface("bridge", "br0"), ISOLATED)},
    ],
)
def test_nft_takes_it_and_it_goes_again(network):
    text = ruleset(records(**network))
    foreign = "table inet other {\n\tchain c {\n\t}\n}\n"
    done = nft(foreign, text, text)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("table inet mkops") == 1
    gone = nft(foreign, text, ruleset({}))
    assert (gone.returncode, gone.stderr) == (0, "")
    assert "mkops" not in gone.stdout and "table inet other" in gone.stdout


def test_nothing_is_said_of_bridges():
    assert ruleset(records(a=(Interface("bridge", "br0"),))) == ruleset({})


def test_who_may_reach_whom():
    text = ruleset(records(a=(HIDDEN,), b=(ISOLATED,)))
    assert 'iifname "mk-a-0" oifname { "mk-b-0" } accept' in text
    assert 'iifname "mk-b-0" oifname { "mk-a-0" } accept' in text
    assert 'iifname "mk-a-0" ip saddr != { 10.77.0.3 } drop' in text
    assert "dnat ip to 10.77.0.3:80" in text and "dnat ip6 to [fd77::3]:5353" in text
    assert "ip saddr { 10.77.0.3 } oifname != @spawns masquerade" in text
    # One that is hidden behind the host cannot be reached from outside but by its ports.
    assert "set open {\n\t\ttype ifname\n\t}" in text


def test_a_spawn_without_ipv4_speaks_none():
    text = ruleset(records(a=(Interface("isolated", addresses=("fd01::2/64",)),)))
    assert 'iifname "mk-a-0" meta nfproto ipv4 drop' in text


# Packets: each kernel is a network namespace, at a pair of devices in the place of a tap

WORLD = """\
set -e
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
ip link set lo up
{rules}
kernel() {{ # namespace, device of the host
    unshare --net sleep 60 >/dev/null 2>&1 & eval "$1=$!"
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        [ "$(readlink /proc/$!/ns/net)" = "$(readlink /proc/self/ns/net)" ] || break
        sleep 0.1
    done
    ip link add "$2" type veth peer name eth0 netns $!
    ip link set "$2" up
    nsenter -t $! -n sh -c 'ip link set lo up && ip link set eth0 up'
}}
inside() {{ eval "nsenter -t \\$$1 -n $2"; }}
{kernels}
kernel out out0
ip address add 192.0.2.1/24 dev out0
ip -6 address add 2001:db8::1/64 dev out0 nodad
inside out 'ip address add 192.0.2.2/24 dev eth0'
inside out 'ip -6 address add 2001:db8::2/64 dev eth0 nodad'
inside out 'ip route add {open4} via 192.0.2.1'
inside out 'ip -6 route add {open6} via 2001:db8::1'
inside c 'busybox nc -l -p 80 -e /bin/echo hello' &
sleep 0.5
{probes}
"""


def kernel(name, link):
    lines = [f"kernel {name} {link.tap}"]
    for mine, host in zip(link.addresses, link.host_addresses, strict=True):
        version, more = ("-6", "nodad") if ":" in mine else ("-4", "")
        lines += [
            f"ip {version} address add {host} dev {link.tap} {more}",
            f"inside {name} 'ip {version} address add {mine} dev eth0 {more}'",
            f"inside {name} 'ip {version} route add default via {host.partition('/')[0]}'",
        ]
    return lines


def test_packets_go_where_they_may(tmp_path):
    found = records(
        a=(Interface("routed", prefixes=PREFIXES, reach=("b",)),),
        b=(Interface("isolated", prefixes=PREFIXES),),
        c=(Interface("routed", prefixes=PREFIXES, nat=True, forwards=(Forward(8080, 80),)),),
    )
    links = {name: record.links[0] for name, record in found.items()}
    address = {name: [one.partition("/")[0] for one in link.addresses] for name, link in links.items()}
    address["host"] = ["192.0.2.1", "2001:db8::1"]
    address["out"] = ["192.0.2.2", "2001:db8::2"]
    may = (
        "a>host", "a>b", "c>host", "a>out", "c>out", "host>a", "host>b", "host>c", "host>out", "out>a",
        "out>host",
    )  # fmt: skip
    names = ["a", "b", "c", "host", "out"]
    probes, expected = [], []
    for one in names:
        for two in names:
            if one == two:
                continue
            for ip in address[two]:
                ping = f"busybox ping -c 1 -W 1 {ip} >/dev/null 2>&1"
                run = ping if one == "host" else f"inside {one} '{ping}'"
                probes.append(f"( {run} && echo '{one}>{two} {ip}' || true ) &")
                expected += [f"{one}>{two} {ip}"] if f"{one}>{two}" in may else []
    probes += [
        # A port of the host leads to c, and c itself cannot be reached.
        "inside out 'busybox nc -w 2 192.0.2.1 8080 </dev/null'",
        # Nobody speaks for somebody else.
        "inside a 'ip address add 198.51.100.7/32 dev eth0'",
        "ip route add 198.51.100.7 dev mk-a-0",
        "inside a 'busybox ping -c 1 -W 1 -I 198.51.100.7 192.0.2.1' >/dev/null 2>&1 && echo spoofed || true",
    ]
    (tmp_path / "rules").write_text(ruleset(found))
    script = WORLD.format(
        rules=f"nft -f {tmp_path}/rules",
        kernels="\n".join(line for name, link in links.items() for line in kernel(name, link)),
        open4=links["a"].addresses[0].replace("10.77.0.3", "10.77.0.2"),
        open6=links["a"].addresses[1].replace("fd77::3", "fd77::2"),
        probes="\n".join([*probes[:-4], "sleep 3", *probes[-4:]]),
    )
    done = subprocess.run(
        ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted([*expected, "hello"])
