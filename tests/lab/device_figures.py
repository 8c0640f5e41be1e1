# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What devices of a spawned kernel cost, beside the same without one. On the host, as root.

device_figures.py NAME TIMES [MEBIBYTES]

NAME has a network, a second disk that holds nothing, a share that it may write, and python3. Everything is
measured TIMES times in one run, by turns; medians, and CPU time of both kernels for what was moved. The
spawned kernel's CPU is its own, the rest is the host's. Needs agent.py of the collection in /root.
"""

import contextlib
import ipaddress
import json
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from devices import Died, inside, record, said

ROUNDS = 500
PORT = 7000
PEER = r"""
import os, socket, sys, threading
def serve(peer):
    with peer:
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
with socket.socket() as one:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(("", int(sys.argv[1])))
    one.listen(4)
    while True:
        threading.Thread(target=serve, args=(one.accept()[0],)).start()
"""


def connected(to):
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError):
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


def busy(text):
    """Seconds of all CPUs: user, nice, system, interrupts."""
    words = text.split("\n", 1)[0].split()[1:]
    return (sum(int(words[place]) for place in (0, 1, 2, 5, 6))) / 100


# Prints the seconds that it took, on either side.
MOVE = (
    "import os,sys,time\n"
    "what,path,size,direct=sys.argv[1],sys.argv[2],int(sys.argv[3]),int(sys.argv[4])\n"
    "import mmap\n"
    "buffer=mmap.mmap(-1,1<<20)\n"
    "buffer.write(os.urandom(1<<20))\n"
    "flags=(os.O_RDONLY if what=='read' else os.O_WRONLY|os.O_CREAT)|(os.O_DIRECT if direct else 0)\n"
    "fd=os.open(path,flags)\n"
    "begun=time.perf_counter()\n"
    "done=0\n"
    "while done<size:\n"
    "    done+=os.readv(fd,[buffer]) if what=='read' else os.write(fd,buffer)\n"
    "if what!='read': os.fsync(fd)\n"
    "print(time.perf_counter()-begun)\n"
)


def here(*words):
    return float(said("/usr/bin/python3", "-c", MOVE, *map(str, words)))


def there(name, *words):
    return float(inside(name, f"python3 /tmp/move.py {' '.join(map(str, words))}", seconds=1200))


def main():
    name, times = sys.argv[1], int(sys.argv[2])
    size = (int(sys.argv[3]) if len(sys.argv) > 3 else 64) << 20
    mine = record(name)
    address = next(
        str(one.ip) for one in map(ipaddress.ip_interface, mine["links"][0]["addresses"]) if one.version == 4
    )
    inside(name, f"cat >/tmp/peer.py <<'END'\n{PEER}END\ncat >/tmp/move.py <<'END'\n{MOVE}END\n")
    inside(name, f"setsid python3 /tmp/peer.py {PORT} >/dev/null 2>&1 </dev/null &")
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

    megabytes = size / 1e6
    try:
        for number in range(times):
            measure("round trip, veth, us", lambda: round_trip("198.51.100.2"))
            measure("round trip, spawn, us", lambda: round_trip(address))
            measure("TCP to veth, MB/s", lambda: megabytes / stream("198.51.100.2", b"i", size))
            measure("TCP to spawn, MB/s", lambda: megabytes / stream(address, b"i", size))
            measure("TCP from veth, MB/s", lambda: megabytes / stream("198.51.100.2", b"o", size))
            measure("TCP from spawn, MB/s", lambda: megabytes / stream(address, b"o", size))
            measure("file written by the host, MB/s", lambda: megabytes / here("write", disk, size, 0))
            measure(
                "disk written by the spawn, MB/s",
                lambda: megabytes / there(name, "write", "/dev/vdb", size, 1),
            )
            measure("file read by the host, MB/s", lambda: megabytes / here("read", disk, size, 0))
            measure(
                "disk read by the spawn, MB/s", lambda: megabytes / there(name, "read", "/dev/vdb", size, 1)
            )
            measure("share written by the spawn, MB/s",
                    lambda: megabytes / there(name, "write", "/tmp/share/figures", size, 0))  # fmt: skip
            inside(name, "echo 3 >/proc/sys/vm/drop_caches")
            measure("share read by the spawn, MB/s",
                    lambda: megabytes / there(name, "read", "/tmp/share/figures", size, 0))  # fmt: skip
            print(f"run {number + 1} of {times}", flush=True)
    finally:
        peer.kill()
        peer.wait()
        said("ip", "netns", "delete", "figures", rc=None)
        with contextlib.suppress(Died):
            inside(name, "rm -f /tmp/share/figures; umount /tmp/share; pkill -f peer.py", rc=None)
    gibibytes = size / (1 << 30)
    print(f"medians of {times}, {size >> 20} MiB each")
    for what, values in found.items():
        line = f"{what}: {statistics.median(values):.1f} (from {min(values):.1f} to {max(values):.1f})"
        if "MB/s" in what:
            host, spawn = (
                statistics.median(one[place] for one in spent[what]) / gibibytes for place in (0, 1)
            )
            line += f"; CPU seconds for a GiB: host {host:.1f}, spawn {spawn:.1f}"
        print(line)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
