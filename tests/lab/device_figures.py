# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What devices of a spawned kernel cost, beside the same without one. On the host, as root.

device_figures.py NAME TIMES [MEBIBYTES]

NAME has a network, a second disk that holds nothing, a share that it may write, fio and python3; the host
has fio. Everything is measured TIMES times in one run, by turns; medians, and CPU time of both kernels for
what was moved: the spawned kernel's is its own, the rest is the host's. TCP stands beside a veth pair into a
namespace of the host, and beside vsock, which kerf exec uses; the disk beside the same file on the host, and
beside the share. What is written goes through the host's page cache and is flushed; what is read is in no
cache before. Needs agent.py of the collection in /root.
"""

import contextlib
import functools
import ipaddress
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from devices import Died, inside, record, said

ROUNDS = 500
PORT = 7000
SET_TRANSPORT, MULTIKERNEL = 9, 1  # of the kernel's vsock
BLOCKS = {"sequential": ("1M", 1), "random": ("4k", 8)}  # size of a block, and the part that is moved
PEER = r"""
import os, socket, sys, threading
def serve(peer):
    with peer:
        if peer.family == socket.AF_INET:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        kind, size = peer.recv(1), int.from_bytes(peer.recv(8, socket.MSG_WAITALL), "little")
        buffer = bytearray(1 << 18)
        if kind == b"e":
            for _round in range(size):
                peer.sendall(peer.recv(1))
        elif kind == b"i":
            while size:
                size -= peer.recv_into(buffer, min(size, len(buffer)))
            peer.sendall(b"k")
        else:
            while size:
                size -= peer.send(memoryview(buffer)[:min(size, len(buffer))])
            peer.recv(1)
def listen(one, address):
    one.bind(address)
    one.listen(4)
    while True:
        threading.Thread(target=serve, args=(one.accept()[0],)).start()
tcp = socket.socket()
tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if len(sys.argv) > 2:
    vsock = socket.socket(socket.AF_VSOCK)
    address = socket.VMADDR_CID_ANY, int(sys.argv[1])
    threading.Thread(target=listen, args=(vsock, address), daemon=True).start()
listen(tcp, ("", int(sys.argv[1])))
"""


def connected(to):
    """to: an address, or the number of an instance for vsock."""
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError):
            if isinstance(to, int):
                one = socket.socket(socket.AF_VSOCK)
                one.setsockopt(socket.AF_VSOCK, SET_TRANSPORT, MULTIKERNEL)
                one.settimeout(120)
                one.connect((to, PORT))
            else:
                one = socket.create_connection((to, PORT), timeout=120)
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return one
        if time.monotonic() > deadline:
            sys.exit(f"nobody answers at {to}")
        time.sleep(0.5)


def round_trip(to):
    """Microseconds of one, of many."""
    with connected(to) as one:
        one.sendall(b"e" + ROUNDS.to_bytes(8, "little"))
        begun = time.perf_counter()
        for _round in range(ROUNDS):
            one.sendall(b"x")
            one.recv(1)
        return (time.perf_counter() - begun) / ROUNDS * 1e6


def stream(to, kind, size):
    """Seconds for so many bytes, to the peer (i) or from it (o), until the receiver has them."""
    buffer = bytearray(1 << 18)
    with connected(to) as one:
        begun = time.perf_counter()
        one.sendall(kind + size.to_bytes(8, "little"))
        left = size
        while left:
            if kind == b"i":
                left -= one.send(memoryview(buffer)[: min(left, len(buffer))])
            else:
                left -= one.recv_into(buffer, min(left, len(buffer)))
        if kind == b"i":
            one.recv(1)
        took = time.perf_counter() - begun
        if kind == b"o":
            one.sendall(b"k")
        return took


def moved(to, kind, size):
    """MB/s."""
    return size / 1e6 / stream(to, kind, size)


def busy(text):
    """Seconds of all CPUs: user, nice, system, interrupts."""
    words = text.split("\n", 1)[0].split()[1:]
    return (sum(int(words[place]) for place in (0, 1, 2, 5, 6))) / 100


def fio(rw, path, size, block, direct):
    """The command: to be run on either side."""
    words = (
        *("fio", "--name=one", f"--filename={path}", f"--rw={rw}", f"--bs={block}", f"--size={size}"),
        *(
            "--ioengine=psync",
            f"--direct={direct}",
            "--end_fsync=1",
            "--fallocate=none",
            "--output-format=json",
        ),
    )
    return " ".join(words)


def rate(output):
    """MB/s, of what fio says."""
    job = json.loads(output[output.index("{") :])["jobs"][0]
    return max(job[way]["bw_bytes"] for way in ("read", "write")) / 1e6


def main():
    name, times = sys.argv[1], int(sys.argv[2])
    size = (int(sys.argv[3]) if len(sys.argv) > 3 else 64) << 20
    mine = record(name)
    address = next(
        str(one.ip) for one in map(ipaddress.ip_interface, mine["links"][0]["addresses"]) if one.version == 4
    )
    inside(name, f"cat >/tmp/peer.py <<'END'\n{PEER}END\n")
    inside(name, f"setsid python3 /tmp/peer.py {PORT} vsock >/dev/null 2>&1 </dev/null &")
    number_of = int(Path(f"/sys/fs/multikernel/instances/{name}/id").read_text())
    share = next(one for one in mine["shares"] if not one.get("read_only"))
    inside(name, f"mkdir -p /tmp/share; mount -t virtiofs {share['tag']} /tmp/share", rc=None)
    disk = mine["disks"][1]["path"]

    said("ip", "netns", "delete", "figures", rc=None)
    said("ip", "netns", "add", "figures")
    said("ip", "link", "add", "figures", "type", "veth", "peer", "eth0", "netns", "figures")
    said("ip", "address", "add", "198.51.100.1/24", "dev", "figures")
    said("ip", "link", "set", "figures", "up", "mtu", str(mine["links"][0]["mtu"]))
    said("ip", "-n", "figures", "address", "add", "198.51.100.2/24", "dev", "eth0")
    said("ip", "-n", "figures", "link", "set", "eth0", "up", "mtu", str(mine["links"][0]["mtu"]))
    peer = subprocess.Popen(["ip", "netns", "exec", "figures", "/usr/bin/python3", "-c", PEER, str(PORT)])

    found = {}
    spent = {}

    def measure(what, call):
        before = busy(Path("/proc/stat").read_text()), busy(inside(name, "head -1 /proc/stat"))
        value = call()
        after = busy(Path("/proc/stat").read_text()), busy(inside(name, "head -1 /proc/stat"))
        found.setdefault(what, []).append(value)
        spent.setdefault(what, []).append([two - one for one, two in zip(before, after, strict=True)])

    # Its blocks are there before anything is measured.
    said(*fio("write", disk, size, "1M", 0).split())
    peers = {"veth": "198.51.100.2", "spawn": address, "vsock": number_of}
    places = {
        "file on the host": (disk, 0, lambda command: rate(said(*command.split()))),
        "disk of the spawn": ("/dev/vdb", 1, lambda command: rate(inside(name, command, seconds=1200))),
        "share in the spawn": (
            *("/tmp/share/figures", 0),
            lambda command: rate(inside(name, command, seconds=1200)),
        ),
    }
    try:
        for number in range(times):
            for what, to in peers.items():
                measure(f"round trip, {what}, us", functools.partial(round_trip, to))
                for way, kind in (("to", b"i"), ("from", b"o")):
                    measure(f"{way} {what}, MB/s", functools.partial(moved, to, kind, size))
            for (order, (block, part)), way in itertools.product(BLOCKS.items(), ("write", "read")):
                rw = way if order == "sequential" else f"rand{way}"
                for what, (path, direct, call) in places.items():
                    command = fio(rw, path, size // part, block, direct)
                    os.sync()
                    Path("/proc/sys/vm/drop_caches").write_text("3")
                    measure(f"{order} {way}, {what}, MB/s", functools.partial(call, command))
            print(f"run {number + 1} of {times}", flush=True)
    finally:
        peer.kill()
        peer.wait()
        said("ip", "netns", "delete", "figures", rc=None)
        with contextlib.suppress(Died):
            inside(name, "rm -f /tmp/share/figures; umount /tmp/share; pkill -f peer.py", rc=None)
    print(f"medians of {times}, {size >> 20} MiB each")
    for what, values in found.items():
        line = f"{what}: {statistics.median(values):.1f} (from {min(values):.1f} to {max(values):.1f})"
        if "MB/s" in what:
            gibibytes = size / (8 if "random" in what else 1) / (1 << 30)
            host, spawn = (
                statistics.median(one[place] for one in spent[what]) / gibibytes for place in (0, 1)
            )
            line += f"; CPU seconds for a GiB: host {host:.1f}, spawn {spawn:.1f}"
        print(line)
    medians = {what: statistics.median(values) for what, values in found.items()}
    for what, beside in (
        ("round trip, spawn, us", "round trip, veth, us"),
        ("to spawn, MB/s", "to veth, MB/s"),
        ("from spawn, MB/s", "from veth, MB/s"),
        ("sequential write, disk of the spawn, MB/s", "sequential write, file on the host, MB/s"),
        ("sequential read, disk of the spawn, MB/s", "sequential read, file on the host, MB/s"),
    ):
        print(f"{what}, beside {beside}: {medians[what] / medians[beside]:.2f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
