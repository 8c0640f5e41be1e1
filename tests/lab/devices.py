# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What spawned kernels have of their devices, seen from both sides. On their host, as root.

devices.py network NAME...          addresses, MTU, names; the largest packets, both ways
devices.py reach '{"A>B": true}'    who opens connections to whom: names of instances, host, outside
devices.py disks NAME               what is written here is read there, and the other way round
devices.py shares NAME BYTES        files of a directory, both ways, with their hashes
devices.py transfer NAME BYTES      as much by TCP, both ways, with its hashes; sent from a share
devices.py restarts NAME TIMES      the same addresses each time
devices.py backends NAME            what serves it is killed, and comes back
devices.py panic NAME SIBLING       it crashes while it works; the sibling goes on

Needs agent.py of the collection beside this program, or in /root.
"""

import contextlib
import hashlib
import ipaddress
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

RECORDS = Path("/var/lib/mkops/devices")
AGENT = (
    "import sys; sys.path.insert(0, '/root'); import agent;"
    " agent.main({!r}, {!r}, {!r}, {{}}, 60, {}, 1 << 24)"
)
MARK = "lab-devices"
LONGEST = 180  # seconds for anything
OUTSIDE, OUTSIDE_HOST = "192.0.2.2", "192.0.2.1"
OUTSIDE_6, OUTSIDE_HOST_6 = "2001:db8::2", "2001:db8::1"


class Died(Exception):
    """An instance does not answer as it should."""


def said(*argv, rc=0):
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if rc is not None and done.returncode != rc:
        sys.exit(f"{' '.join(argv)}: rc {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def inside(name, command, rc=0, seconds=LONGEST):
    """What a command prints in an instance; rc None: whatever becomes of it."""
    text = AGENT.format(MARK, name, command.encode(), seconds)
    done = subprocess.run(
        ["/usr/bin/python3", "-c", text],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    ended = re.search(rf"^{MARK} (\S+) (-?\d+) ?(.*)$", done.stderr, re.M)
    if not ended or ended[1] != "exited":
        raise Died(f"{name}: {command}: {done.stderr.strip()}")
    if rc is not None and int(ended[2]) != rc:
        sys.exit(f"{name}: {command}: rc {ended[2]}: {done.stdout}{done.stderr}")
    return done.stdout if rc is not None else int(ended[2])


def record(name):
    return json.loads((RECORDS / f"{name}.json").read_text())


def addresses(name):
    """Of its first device, by version."""
    found = [ipaddress.ip_interface(one) for one in record(name)["links"][0]["addresses"]]
    return {one.version: str(one.ip) for one in found}


def instances():
    return {one["name"]: one for one in json.loads(said("mkops", "status", "--json"))["instances"]}


def until(what, condition, longest=LONGEST):
    begun = time.monotonic()
    while not (found := condition()):
        if time.monotonic() - begun > longest:
            sys.exit(f"{what}: not within {longest} s")
        time.sleep(0.3)
    return found


# Networks


def check_network(name):
    """As the record says, on both sides."""
    link = record(name)["links"][0]
    device = link.get("device", "eth0")
    seen = inside(
        name,
        f"hostname; cd /sys/class/net/{device}; cat address mtu; ip address show {device}",
    )
    wanted = [link["hostname"], link["mac"], str(link["mtu"])]
    if seen.splitlines()[:3] != wanted:
        sys.exit(f"{name} has {seen.splitlines()[:3]} instead of {wanted}")
    for one in link["addresses"]:
        if f" {one} " not in seen:
            sys.exit(f"{name} does not have {one}: {seen}")
    host = json.loads(said("ip", "-j", "address", "show", "dev", link["tap"]))[0]
    if host["address"] != link["host_mac"] or host["mtu"] != link["mtu"] or "LOWER_UP" not in host["flags"]:
        sys.exit(f"the host's end of {name} is {host}")
    return link


def pinged(name, link):
    """The largest packets in one piece, and a flood of small ones, both ways."""
    for version, mine in addresses(name).items():
        theirs = next(
            str(one.ip)
            for one in map(ipaddress.ip_interface, link["host_addresses"])
            if one.version == version
        )
        most = link["mtu"] - (28 if version == 4 else 48)
        ping = "ping" if version == 4 else "ping6"
        said("ping", "-c", "3", "-i", "0.2", "-W", "5", "-M", "do", "-s", str(most), mine)
        # A Debian may have no ping; the answers to those of the host were as large.
        inside(name, f"! command -v {ping} >/dev/null || {ping} -c 3 -s {most} {theirs}")
        told = said("ping", "-q", "-c", "200", "-i", "0.002", "-W", "5", mine)
        if " 0% packet loss" not in told:
            sys.exit(f"{name} loses packets: {told}")
        print(f"{name}: IPv{version}: {told.strip().splitlines()[-1]}", flush=True)
        if record(name)["links"][0].get("host_entry"):
            entry = record(name)["links"][0]["host_entry"]
            if mine not in said("getent", f"ahostsv{version}", entry):
                sys.exit(f"{entry} is not {mine}")


def network(*names):
    for name in names:
        pinged(name, check_network(name))


SERVE = """
import socket, sys, threading
def serve(family, port):
    with socket.socket(family) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(("", port))
        one.listen(16)
        while True:
            peer, where = one.accept()
            with peer:
                peer.settimeout(5)
                try:
                    peer.recv(4096)
                    text = where[0].encode()
                    peer.sendall(b"HTTP/1.0 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (len(text), text))
                except OSError:
                    pass
threads = [threading.Thread(target=serve, args=(one, 80)) for one in (socket.AF_INET, socket.AF_INET6)]
[one.start() for one in threads]
"""
FETCH = """
import http.client, sys
try:
    one = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=3)
    one.request("GET", "/")
    print(one.getresponse().read().decode())
except OSError as error:
    sys.exit(str(error))
"""


@contextlib.contextmanager
def outside():
    """A machine beyond the host: a namespace at the other end of a wire."""
    said("ip", "netns", "add", "outside")
    served = []
    try:
        said("ip", "link", "add", "beyond", "type", "veth", "peer", "eth0", "netns", "outside")
        for words in (
            ("address", "add", f"{OUTSIDE_HOST}/24", "dev", "beyond"),
            ("address", "add", f"{OUTSIDE_HOST_6}/64", "dev", "beyond", "nodad"),
            ("link", "set", "beyond", "up"),
        ):
            said("ip", *words)
        for words in (
            ("address", "add", f"{OUTSIDE}/24", "dev", "eth0"),
            ("address", "add", f"{OUTSIDE_6}/64", "dev", "eth0", "nodad"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
            ("route", "add", "default", "via", OUTSIDE_HOST),
            ("-6", "route", "add", "default", "via", OUTSIDE_HOST_6),
        ):
            said("ip", "-n", "outside", *words)
        for prefix in ((), ("ip", "netns", "exec", "outside")):
            served.append(subprocess.Popen([*prefix, "/usr/bin/python3", "-c", SERVE]))
        yield
    finally:
        for one in served:
            one.kill()
            one.wait()
        said("ip", "netns", "delete", "outside", rc=None)


def opens(one, other, version, port=80):
    """The answer over a new connection, None without one. Most servers tell the client's address."""
    if other == "outside":
        to = OUTSIDE if version == 4 else OUTSIDE_6
    elif other == "host" and one == "outside":
        to = OUTSIDE_HOST if version == 4 else OUTSIDE_HOST_6
    elif other == "host":
        to = next(
            str(end.ip)
            for end in map(ipaddress.ip_interface, record(one)["links"][0]["host_addresses"])
            if end.version == version
        )
    else:
        to = addresses(other)[version]
    if one in ("host", "outside"):
        prefix = ("ip", "netns", "exec", "outside") if one == "outside" else ()
        done = subprocess.run(
            [*prefix, "/usr/bin/python3", "-c", FETCH, to, str(port)],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip() if not done.returncode else None
    # wget of a static busybox needs libraries that are not there.
    told = inside(one, f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {to} {port} 2>/dev/null; true")
    return told.splitlines()[-1].strip() if told.startswith("HTTP/") else None


def reach(wishes):
    """What is declared holds, and nothing else."""
    wishes = json.loads(wishes)
    names = sorted(
        {one.partition(":")[0] for pair in wishes for one in pair.split(">")} - {"host", "outside"}
    )
    for name in names:
        # A server that is there already stays.
        inside(
            name,
            f"mkdir -p /tmp/www; echo {name} >/tmp/www/index.html; pidof httpd || httpd -h /tmp/www",
            rc=None,
        )
    wrong = []
    with outside():
        until("the host's server", lambda: opens("host", "outside", 4))
        for pair, wanted in wishes.items():
            one, other = pair.split(">")
            port = 80
            if ":" in other:
                other, _colon, number = other.partition(":")
                port = int(number)
            for version in (4, 6):
                answer = opens(one, other, version, port)
                print(f"IPv{version} {pair}: {answer}", flush=True)
                text = {
                    "hidden": OUTSIDE_HOST if version == 4 else OUTSIDE_HOST_6,
                    "itself": addresses(one)[version] if wanted == "itself" else None,
                }.get(wanted, wanted)
                if (answer is not None) != bool(wanted) or (isinstance(wanted, str) and answer != text):
                    wrong.append(f"IPv{version} {pair}: {answer}, wanted: {text}")
    if wrong:
        sys.exit("\n".join(wrong) + "\n" + said("nft", "list", "table", "inet", "mkops", rc=None))


# Disks and shares


def disks(name):
    for place, disk in enumerate(record(name)["disks"]):
        device = f"/dev/vd{'abcdefgh'[place]}"
        path = Path(disk["path"])
        if disk.get("read_only"):
            inside(name, f"test $(cat /sys/block/{device[5:]}/ro) = 1")
            if inside(name, f"dd if=/dev/zero of={device} bs=512 count=1 conv=notrunc,fsync", rc=None) == 0:
                sys.exit(f"{name} can write to {path}")
            print(f"{device} of {name}: read only", flush=True)
            continue
        sectors = int(inside(name, f"cat /sys/block/{device[5:]}/size"))
        if sectors * 512 != disk["size"]:
            sys.exit(f"{device} of {name} has {sectors} sectors, wanted {disk['size']} bytes")
        # By the device itself: all of a piece, then one block in the middle.
        inside(name, f"dd if=/dev/urandom of={device} bs=1M count=16 conv=notrunc,fsync")
        inside(name, f"dd if=/dev/urandom of={device} bs=4k count=1 seek=1234 conv=notrunc,fsync")
        theirs = inside(
            name, f"echo 3 >/proc/sys/vm/drop_caches; head -c 16777216 {device} | sha256sum"
        ).split()[0]
        ours = hashlib.sha256(host_bytes(path, disk, 16 << 20)).hexdigest()
        if theirs != ours:
            sys.exit(f"{device} of {name} is {theirs} there and {ours} here")
        if disk.get("discard"):
            before = path.stat().st_blocks
            inside(name, f"blkdiscard -o 0 -l 16777216 {device}")
            after = path.stat().st_blocks
            if before - after < 32000:
                sys.exit(f"{path}: {before} blocks before discard, and {after} after it")
            print(f"{device} of {name}: {before} blocks, after discard {after}", flush=True)
        # mke2fs of busybox writes ext2, which the driver of ext4 takes.
        inside(name, f"mke2fs -F {device} >/dev/null && mkdir -p /mnt && mount -t ext4 {device} /mnt")
        inside(name, "dd if=/dev/urandom of=/mnt/file bs=1M count=8 conv=fsync 2>/dev/null")
        theirs = inside(name, "sha256sum </mnt/file; umount /mnt").split()[0]
        inside(name, f"echo 3 >/proc/sys/vm/drop_caches; mount -t ext4 {device} /mnt")
        again = inside(name, "sha256sum </mnt/file; umount /mnt").split()[0]
        image = path
        if disk.get("format") == "qcow2":
            image = Path("/var/tmp/as-raw.img")
            said("qemu-img", "convert", "-U", "-O", "raw", str(path), str(image))
        subprocess.run(
            ["debugfs", "-R", "dump /file /var/tmp/file", str(image)], capture_output=True, check=True
        )
        ours = hashlib.sha256(Path("/var/tmp/file").read_bytes()).hexdigest()
        if not theirs == again == ours:
            sys.exit(f"a file on {device} of {name} is {theirs}, then {again}, and on the host {ours}")
        print(f"{device} of {name}: the same on both sides", flush=True)


def host_bytes(path, disk, count):
    if disk.get("format") != "qcow2":
        with path.open("rb") as file:
            return file.read(count)
    out = "/var/tmp/bytes.img"
    said(
        "qemu-img",
        "dd",
        "-U",
        "-f",
        "qcow2",
        "-O",
        "raw",
        f"if={path}",
        f"of={out}",
        "bs=1M",
        f"count={count >> 20}",
    )
    return Path(out).read_bytes()


def mount(name, tag):
    inside(name, f"mkdir -p /{tag}; grep -q ' /{tag} ' /proc/mounts || mount -t virtiofs {tag} /{tag}")


def shares(name, size):
    for share in record(name)["shares"]:
        tag, path = share["tag"], Path(share["path"])
        mount(name, tag)
        if share.get("read_only"):
            if inside(name, f"cat /{tag}/index.html") != (path / "index.html").read_text():
                sys.exit(f"{name} reads something else in {path}")
            if inside(name, f"echo x >/{tag}/written", rc=None) == 0 or (path / "written").exists():
                sys.exit(f"{name} writes to {path}")
            print(f"share {tag} of {name}: read only", flush=True)
            continue
        owner = path.stat().st_uid
        begun = time.monotonic()
        theirs = inside(
            name, f"head -c {size} /dev/urandom >/{tag}/made && sync && sha256sum </{tag}/made", seconds=1200
        ).split()[0]
        wrote = time.monotonic() - begun
        with (path / "made").open("rb") as file:
            ours = hashlib.file_digest(file, "sha256").hexdigest()
        if theirs != ours or (path / "made").stat().st_uid != owner:
            sys.exit(
                f"{path}/made is {theirs} there, and {ours} here, of user {(path / 'made').stat().st_uid}"
            )
        with (path / "given").open("wb") as file:
            for _piece in range(int(size) >> 20):
                file.write(os.urandom(1 << 20))
        with (path / "given").open("rb") as file:
            ours = hashlib.file_digest(file, "sha256").hexdigest()
        begun = time.monotonic()
        theirs = inside(name, f"sha256sum </{tag}/given", seconds=1200).split()[0]
        read = time.monotonic() - begun
        if theirs != ours:
            sys.exit(f"{path}/given is {theirs} there, and {ours} here")
        # Names, directories, links, and what is taken away.
        inside(
            name,
            f"cd /{tag} && mkdir -p a/b && echo one >a/b/one && ln -s one a/b/link && mv a/b a/c"
            " && cat a/c/link && rm -r a made given && cd /",
        )
        if sorted(os.listdir(path)):
            sys.exit(f"{path} has {os.listdir(path)}")
        print(
            f"share {tag} of {name}: {size} bytes written in {wrote:.1f} s, read in {read:.1f} s", flush=True
        )


def transfer(name, size):
    size = int(size)
    link = record(name)["links"][0]
    host = str(ipaddress.ip_interface(link["host_addresses"][0]).ip)
    share = next(one for one in record(name)["shares"] if not one.get("read_only"))
    mount(name, share["tag"])
    found = {}

    def serve(one):
        """What is sent first is random; what comes over the next connection is hashed."""
        piece = os.urandom(1 << 20)
        digest, left = hashlib.sha256(), size
        with one.accept()[0] as peer:
            begun = time.monotonic()
            while left:
                part = piece[: min(left, len(piece))]
                peer.sendall(part)
                digest.update(part)
                left -= len(part)
            peer.shutdown(socket.SHUT_WR)
            peer.recv(1)
            found["sent"] = digest.hexdigest(), time.monotonic() - begun
        digest = hashlib.sha256()
        with one.accept()[0] as peer:
            begun = time.monotonic()
            while part := peer.recv(1 << 20):
                digest.update(part)
            found["came"] = digest.hexdigest(), time.monotonic() - begun

    with socket.create_server((host, 7001)) as one:
        thread = threading.Thread(target=serve, args=(one,), daemon=True)
        thread.start()
        there = inside(name, f"nc {host} 7001 </dev/null | sha256sum", seconds=3600).split()[0]
        file = f"/{share['tag']}/sent"
        inside(name, f"head -c {size} /dev/urandom >{file}", seconds=3600)
        stored = inside(name, f"sha256sum <{file}", seconds=3600).split()[0]
        inside(name, f"nc {host} 7001 <{file} >/dev/null", seconds=3600)
        thread.join(60)
    path = Path(share["path"]) / "sent"
    with path.open("rb") as ours:
        here = hashlib.file_digest(ours, "sha256").hexdigest()
    path.unlink()
    if found["sent"][0] != there or not here == stored == found["came"][0]:
        sys.exit(f"sent {found['sent']}, arrived {there}; stored {stored}, {here} here, came {found['came']}")
    print(
        f"{name}: {size} bytes by TCP in {found['sent'][1]:.1f} s,"
        f" and in {found['came'][1]:.1f} s back, from a share",
        flush=True,
    )


# Ends


def run_of(name):
    one = instances()[name]
    return one["state"], one["epoch"]


def answers(name):
    """Whether it can be pinged."""
    return (
        subprocess.run(
            ["ping", "-c", "1", "-W", "2", addresses(name)[4]], capture_output=True, check=False
        ).returncode
        == 0
    )


def ready(name):
    with contextlib.suppress(Died):
        return inside(name, "true", rc=None, seconds=30) == 0
    return False


def restarts(name, times):
    before = record(name)
    boots = {inside(name, "cat /proc/sys/kernel/random/boot_id")}
    took = []
    for number in range(1, int(times) + 1):
        begun = time.monotonic()
        said("systemctl", "restart", f"mkops@{name}.service")
        until(f"{name} answers", lambda: answers(name))
        took.append(time.monotonic() - begun)
        check_network(name)
        if record(name) != before:
            sys.exit(f"restart {number}: {record(name)}, and it was {before}")
        boots.add(inside(name, "cat /proc/sys/kernel/random/boot_id"))
        if number % 10 == 0:
            print(f"{number} restarts, {sorted(took)[len(took) // 2]:.1f} s each", flush=True)
    if len(boots) != int(times) + 1:
        sys.exit(f"{len(boots)} boots for {times} restarts")


def units_of(name):
    """What serves its disks and shares."""
    told = said("systemctl", "list-units", "--plain", "--no-legend", "--type=service", f"mkops-{name}-*")
    return [line.split()[0] for line in told.splitlines()]


def main_pid(unit):
    return int(said("systemctl", "show", "--value", "--property=MainPID", unit))


def backends(name):
    """Each of them is killed, then the one that holds them together; the instance goes on."""
    run = run_of(name)
    units = units_of(name)
    print(f"{name}: {', '.join(units)}", flush=True)
    for unit in units:
        before = main_pid(unit)
        said("systemctl", "kill", "--signal=KILL", unit)
        until(f"{unit} is back", lambda unit=unit, before=before: main_pid(unit) not in (0, before))
        place = int(re.search(r"-(\d+)\.service", unit)[1])
        if "-disk-" in unit:
            device = f"/dev/vd{'abcdefgh'[place]}"
            inside(name, f"echo 3 >/proc/sys/vm/drop_caches; head -c 1048576 {device} | sha256sum")
        else:
            tag = record(name)["shares"][place]["tag"]
            # What was mounted is not there any more.
            inside(name, f"umount -l /{tag} 2>/dev/null; mount -t virtiofs {tag} /{tag} && ls /{tag}")
        print(f"{unit}: killed, and back", flush=True)
    unit = f"mkops-devices@{name}.service"
    before = main_pid(unit)
    said("systemctl", "kill", "--signal=KILL", "--kill-whom=main", unit)
    until(f"{unit} is back", lambda: main_pid(unit) not in (0, before))
    until(f"{name} answers", lambda: answers(name))
    print(f"{unit}: killed, and back", flush=True)
    check_network(name)
    disks(name)
    for share in record(name).get("shares", ()):
        tag = share["tag"]
        inside(name, f"umount -l /{tag} 2>/dev/null; mount -t virtiofs {tag} /{tag} && ls /{tag}")
    if run_of(name) != run:
        sys.exit(f"{name} was {run}, and is {run_of(name)}")


def panic(name, sibling):
    """In the middle of transfers by all its devices."""
    mine, theirs, boot = record(name), run_of(sibling), Path("/proc/sys/kernel/random/boot_id").read_text()
    epoch = run_of(name)[1]
    load = "while true; do dd if=/dev/zero of=/dev/vda bs=1M count=16 conv=notrunc,fsync; done"
    inside(name, f"({load}) >/dev/null 2>&1 & ping -s 1000 {addresses(name)[4]} >/dev/null 2>&1 &", rc=None)
    time.sleep(2)
    with contextlib.suppress(Died):
        inside(name, "echo c >/proc/sysrq-trigger", rc=None, seconds=20)
    until(f"{name} is started again", lambda: run_of(name)[0] == "active" and run_of(name)[1] > epoch)
    until(f"{name} answers", lambda: ready(name))
    check_network(name)
    disks(name)
    if record(name) != mine or run_of(sibling) != theirs:
        sys.exit(f"{record(name)}, {run_of(sibling)}; it was {mine}, {theirs}")
    if Path("/proc/sys/kernel/random/boot_id").read_text() != boot:
        sys.exit("the host has started anew")


def main():
    words = sys.argv[2:]
    call = {
        one.__name__: one for one in (network, reach, disks, shares, transfer, restarts, backends, panic)
    }[sys.argv[1]]
    call(*words)


if __name__ == "__main__":
    main()
