# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One life of an instance by kerf as it is released: every command, each effect seen in the kernel's own
files and, where it shows there, inside the spawned kernel.

kerf_acceptance.py KERNEL INITRD [KERF]     on a host without a pool, as root; it needs 6 CPUs and 4 GiB
"""

import errno
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MULTIKERNEL = Path("/sys/fs/multikernel")
NAME = "web"
INSTANCE = MULTIKERNEL / "instances" / NAME
MIB = 1 << 20
POOL_MEMORY, MEMORY, MORE_MEMORY = 2048 * MIB, 512 * MIB, 768 * MIB
UUID = rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
FACTS = re.compile(rb'mkops-facts \{"boot_id": "(' + UUID + rb')"')
DETACH = b"\x1d."
SO_VM_SOCKETS_TRANSPORT, VSOCK_TRANSPORT_MULTIKERNEL = 9, 1
# What a spawned kernel keeps of its memory for itself, at most: image, page structures, shared memory.
OVERHEAD = 96 * MIB

KERNEL, INITRD = sys.argv[1:3]
KERF = sys.argv[3] if len(sys.argv) > 3 else "/opt/mkops/kerf/bin/kerf"
ENVIRONMENT = {**os.environ, "LC_ALL": "C.UTF-8"}


# --- steps ------------------------------------------------------------------------------------------


def check(what, holds):
    print(f"{'ok  ' if holds else 'FAIL'}  {what}", flush=True)
    if not holds:
        sys.exit(f"{what}: not so")


def run(*words, stdin=b""):
    return subprocess.run(
        [KERF, *words], input=stdin, capture_output=True, check=False, timeout=120, env=ENVIRONMENT
    )


def kerf(*words, rc=0, stdin=b""):
    started = time.monotonic()
    result = run(*words, stdin=stdin)
    if result.returncode != rc:
        print(result.stdout.decode(), result.stderr.decode(), sep="")
    check(
        f"kerf {' '.join(words)}: rc {result.returncode}, {time.monotonic() - started:.1f} s",
        result.returncode == rc,
    )
    return result


def inside(*command):
    """What a command prints in the spawned kernel."""
    return kerf("exec", NAME, "--", *command).stdout.decode().strip()


# --- the kernel's own files -------------------------------------------------------------------------


def status():
    return (INSTANCE / "status").read_text().strip() if INSTANCE.exists() else "absent"


def becomes(wanted):
    deadline = time.monotonic() + 10
    while status() != wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    check(f"{NAME} is {status()}, wanted {wanted}", status() == wanted)


def tree(path):
    """The properties of a device tree blob: {(node, ..., property): bytes}."""
    blob = path.read_bytes()
    (structure, strings) = struct.unpack(">8xII", blob[:16])
    found, nodes, at = {}, [], structure
    while True:
        (token,) = struct.unpack_from(">I", blob, at)
        at += 4
        if token == 1:
            end = blob.index(b"\0", at)
            nodes.append(blob[at:end].decode())
            at = (end + 4) & ~3
        elif token == 2:
            nodes.pop()
        elif token == 3:
            size, name = struct.unpack_from(">II", blob, at)
            at += 8
            name = blob[strings + name : blob.index(b"\0", strings + name)].decode()
            found[(*nodes[1:], name)] = blob[at : at + size]
            at = (at + size + 3) & ~3
        elif token == 9:
            return found


def numbers(value):
    return list(struct.unpack(f">{len(value) // 8}Q", value))


def pool_tree():
    """APIC ids of the pool, those that are free, and the chunks {start: size}."""
    found = tree(MULTIKERNEL / "device_tree")
    chunks = dict(
        numbers(value)
        for (*node, name), value in found.items()
        if name == "reg" and node[:1] == ["resources"] and node[1].startswith("memory@")
    )
    return (
        numbers(found["resources", "cpus"]),
        numbers(found.get(("resources", "cpus-available"), b"")),
        chunks,
    )


def instance_tree():
    """APIC ids and bytes of the instance."""
    found = tree(INSTANCE / "device_tree")
    return numbers(found["resources", "cpus"]), numbers(found["resources", "memory-bytes"])[0]


def ranges(word):
    """What /proc/iomem has under names with this word, in its order: (start, size)."""
    found = []
    for line in Path("/proc/iomem").read_text().splitlines():
        span, _colon, name = line.strip().partition(" : ")
        if word in name:
            first, last = (int(part, 16) for part in span.split("-"))
            found.append((first, last - first + 1))
    return found


def regions():
    """The instance's regions, oldest first."""
    number = int((INSTANCE / "id").read_text())
    return [found for region in range(8) for found in ranges(f"mk-instance-{number}-{NAME}-region-{region}")]


def images():
    """The ids in /proc/kimage that are of multikernel."""
    return re.findall(r"^\s*(\d+)\s+multikernel\s", Path("/proc/kimage").read_text(), re.M)


def transactions():
    """Their states by number."""
    return {
        int(path.parent.name.removeprefix("tx_")): path.read_text().strip()
        for path in (MULTIKERNEL / "overlays").glob("tx_*/status")
    }


def host_cpus():
    text = Path("/proc/cpuinfo").read_text()
    return [int(number) for number in re.findall(r"^apicid\s*: (\d+)$", text, re.M)]


def host_memory():
    return int(re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(), re.M)[1]) << 10


# --- consoles ---------------------------------------------------------------------------------------


def read_until(fd, pattern, seconds):
    text = b""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if select.select([fd], [], [], 0.5)[0]:
            text += os.read(fd, 65536)
        if found := pattern.search(text):
            return found
    print(text.decode(errors="replace"))
    return None


def start():
    """Start the instance and wait until its userland says that it is up; its boot id."""
    terminal = os.open("/dev/mktty", os.O_RDWR)
    try:
        os.write(terminal, (INSTANCE / "id").read_bytes())
        while select.select([terminal], [], [], 0)[0]:  # what former runs have said
            os.read(terminal, 65536)
        kerf("start", NAME)
        becomes("active")
        started = time.monotonic()
        found = read_until(terminal, FACTS, 120)
    finally:
        os.close(terminal)
    check(f"its userland is up after {time.monotonic() - started:.1f} s", found)
    return found[1].decode()


def console():
    """kerf console on a terminal: type a line, read the answer, detach."""
    child, terminal = pty.fork()
    if child == 0:
        os.execve(KERF, [KERF, "console", NAME], ENVIRONMENT)
    check("kerf console attaches", read_until(terminal, re.compile(rb"to detach"), 60))
    time.sleep(1)
    os.write(terminal, b"\necho $((6 * 7)) $(cat /proc/sys/kernel/random/boot_id)\n")
    found = read_until(terminal, re.compile(rb"\b42 (" + UUID + rb")"), 60)
    check("the spawned kernel answers on kerf console", found)
    os.write(terminal, DETACH)
    check("kerf console detaches", read_until(terminal, re.compile(rb"Disconnected"), 20))
    _pid, code = os.waitpid(child, 0)
    check(f"kerf console {NAME}: rc {os.waitstatus_to_exitcode(code)}", code == 0)
    os.close(terminal)
    return found[1].decode()


# --- the parts of the run ---------------------------------------------------------------------------


def pool(cpus):
    done = transactions()
    request = (f"--cpus={','.join(map(str, cpus))}", "--memory=2GB")
    said = kerf("init", *request).stdout
    check("it says that the baseline was applied", b"Baseline applied" in said)
    check("the CPUs left the host", set(host_cpus()).isdisjoint(cpus))
    found, free, chunks = pool_tree()
    check("the pool has them, all free", found == free == cpus)
    check("the pool has its memory", sum(chunks.values()) == POOL_MEMORY)
    check("/proc/iomem has the same chunks", ranges("Multikernel Memory Pool") == sorted(chunks.items()))

    blob = (MULTIKERNEL / "device_tree").read_bytes()
    said = kerf("init", *request).stdout
    check("the second time there is nothing to do", b"already matches" in said)
    check("and nothing changed", (MULTIKERNEL / "device_tree").read_bytes() == blob)
    check("nor was a transaction made", transactions() == done)
    return blob


def create(cpus, pool_cpus):
    done = transactions()
    said = kerf("create", NAME, f"--cpus={cpus[0]},{cpus[1]}", "--memory=512MB").stdout
    becomes("ready")
    number = int(re.search(rb"\(transaction (\d+)\)", said)[1])
    check("it says which transaction that was", set(transactions()) - set(done) == {number})
    check("the kernel says that it was applied", transactions()[number] == "applied")
    check("the instance has its CPUs and memory", instance_tree() == (cpus, MEMORY))
    check("/proc/iomem has its region", [size for _start, size in regions()] == [MEMORY])
    check("the other CPUs are free", pool_tree()[:2] == (pool_cpus, [c for c in pool_cpus if c not in cpus]))


def load():
    number = (INSTANCE / "id").read_text().strip()
    kerf("load", NAME, f"--kernel={KERNEL}", f"--initrd={INITRD}")
    becomes("loaded")
    check("/proc/kimage has the image", images() == [number])


def look(boot_id):
    shown = kerf("show", NAME).stdout
    check("kerf show tells name and state", NAME.encode() in shown and b"active" in shown.lower())
    with tempfile.TemporaryDirectory() as scratch:
        for what, origin in ((), MULTIKERNEL), ((NAME,), INSTANCE):
            kerf("dump", *what, "-o", f"{scratch}/{NAME}.dtb")
            dumped = Path(scratch, f"{NAME}.dtb").read_bytes()
            check("kerf dump gives what the kernel shows", dumped == (origin / "device_tree").read_bytes())
    check("kerf console reaches this very kernel", console() == boot_id)
    check("it still runs", status() == "active")


def commands(boot_id):
    kerf("exec", NAME, "--", "true")
    kerf("exec", NAME, "--", "false", rc=1)
    kerf("exec", NAME, "--", "sh", "-c", "exit 42", rc=42)
    kerf("exec", NAME, "--", "sh", "-c", "kill -9 $$", rc=128 + signal.SIGKILL)
    kerf("exec", NAME, "--", "/no/such/program", rc=127)
    check("kerf exec reaches this very kernel", inside("cat", "/proc/sys/kernel/random/boot_id") == boot_id)
    result = kerf("exec", NAME, "--", "sh", "-c", "echo to stdout; echo to stderr >&2")
    check("stdout and stderr are apart", (result.stdout, result.stderr) == (b"to stdout\n", b"to stderr\n"))
    result = kerf("exec", "-e", "WHAT=a b", "-w", "/proc", NAME, "--", "sh", "-c", "echo $WHAT; pwd")
    check("environment and directory arrive", result.stdout == b"a b\n/proc\n")
    result = kerf("exec", "-u", "1234:5678", NAME, "--", "sh", "-c", "id -u; id -g")
    check("so does the user", result.stdout == b"1234\n5678\n")
    data = os.urandom(4 * MIB)
    check(
        "4 MiB through stdin and stdout are unharmed",
        kerf("exec", "-i", NAME, "cat", stdin=data).stdout == data,
    )

    together = [
        subprocess.Popen(
            [KERF, "exec", NAME, "--", "sh", "-c", f"head -c 200000 /dev/zero; exit {number}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=ENVIRONMENT,
        )
        for number in range(8)
    ]  # fmt: skip
    ended = [(len(process.communicate(timeout=120)[0]), process.returncode) for process in together]
    check("eight at once have their own output and code", ended == [(200000, number) for number in range(8)])


def refusal(number, port):
    """How the transport that kerf exec uses refuses a connection."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as one:
        one.setsockopt(socket.AF_VSOCK, SO_VM_SOCKETS_TRANSPORT, VSOCK_TRANSPORT_MULTIKERNEL)
        try:
            one.connect((number, port))
        except OSError as error:
            return error.errno
    return 0


def sockets():
    number = int((INSTANCE / "id").read_text())
    # At once: a time-out would be ETIMEDOUT.
    check("a port where nobody listens resets", refusal(number, 9) == errno.ECONNRESET)
    check("an instance that is none is no device", refusal(511, 1023) == errno.ENODEV)


def cpus_inside(count):
    check(f"nproc in it says {count}", inside("nproc") == str(count))
    online = inside("cat", "/sys/devices/system/cpu/online")
    check(f"{count} CPUs are online in it: {online}", online == ("0" if count == 1 else f"0-{count - 1}"))


def memory_inside():
    return int(re.search(r"^MemTotal:\s*(\d+)", inside("cat", "/proc/meminfo"), re.M)[1]) << 10


def resize(cpus, boot_id):
    free = pool_tree()[1]
    cpus_inside(2)
    kerf("update", NAME, f"--cpus={cpus[0]}")
    check("the instance has one CPU", instance_tree() == (cpus[:1], MEMORY))
    check("the other one is free", pool_tree()[1] == sorted([*free, cpus[1]]))
    cpus_inside(1)
    kerf("update", NAME, f"--cpus={cpus[0]},{cpus[1]}")
    check("the instance has both CPUs again", instance_tree() == (cpus, MEMORY))
    check("the other one is not free", pool_tree()[1] == free)
    cpus_inside(2)

    before, first = memory_inside(), regions()
    check(f"it sees its memory: {before // MIB} MiB", MEMORY - OVERHEAD <= before < MEMORY)
    kerf("update", NAME, "--memory=768MB")
    check("the instance has more memory", instance_tree() == (cpus, MORE_MEMORY))
    found = regions()
    check("as a second region", found[:1] == first and [size for _start, size in found[1:]] == [256 * MIB])
    start, size = found[1]
    chunks = pool_tree()[2].items()
    top = max((base + length) // (128 * MIB) * (128 * MIB) for base, length in chunks)
    check(f"at the top of the chunk: {start:#x}", start + size == top)
    after = memory_inside()
    check(f"it sees {(after - before) // MIB} MiB more", 240 * MIB <= after - before <= 256 * MIB)
    fill = "mount -t tmpfs -o size=90% tmpfs /mnt && dd if=/dev/zero of=/mnt/x bs=1M count=550; umount /mnt"
    used = kerf("exec", NAME, "--", "sh", "-c", f"mkdir /mnt; {fill}")
    check("it can use that", b"550+0 records out" in used.stderr)
    kerf("update", NAME, "--memory=512MB")
    check("the instance has its first memory", instance_tree() == (cpus, MEMORY) and regions() == first)
    check("and sees no other", memory_inside() == before)
    check("it is active all the time", status() == "active")
    check("in the same boot", inside("cat", "/proc/sys/kernel/random/boot_id") == boot_id)


def stop_and_start_again(boot_id):
    kerf("kill", NAME)
    becomes("loaded")
    check("it shut down by itself", (INSTANCE / "exit_reason").read_text().startswith("clean: "))
    result = run("exec", NAME, "--", "true")
    check("kerf exec says that it does not run", result.returncode == 1 and b"not active" in result.stderr)
    second = start()
    check("it was booted afresh", second != boot_id)
    kerf("exec", NAME, "--", "true")

    # Whoever is connected learns it when a spawned kernel is gone.
    waiting = subprocess.Popen(
        [KERF, "exec", NAME, "--", "sh", "-c", "echo waits; sleep 1000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    check("a command runs in it", waiting.stdout.readline() == b"waits\n")
    kerf("kill", NAME, "--force")
    stopped = time.monotonic()
    becomes("loaded")
    check("it was stopped by force", (INSTANCE / "exit_reason").read_text() == "forced\n")
    _stdout, stderr = waiting.communicate(timeout=30)
    check(
        f"the command's kerf has ended after {time.monotonic() - stopped:.1f} s",
        waiting.returncode == 1 and b"lost" in stderr and time.monotonic() - stopped < 5,
    )

    check("and it is booted again", start() not in (boot_id, second))
    cpus_inside(2)
    kerf("kill", NAME)
    becomes("loaded")


def main():
    before = host_cpus(), host_memory(), ranges("Multikernel")
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text()
    taint = Path("/proc/sys/kernel/tainted").read_text()
    earlier = transactions()
    check("the host has no pool yet", before[2] == [])
    check("it has CPUs to give", len(before[0]) >= 6)
    pool_cpus = before[0][-4:]
    cpus = pool_cpus[:2]

    blob = pool(pool_cpus)
    create(cpus, pool_cpus)
    load()
    spawn_id = start()
    check("the spawned kernel has a boot id of its own", spawn_id != boot_id.strip())
    commands(spawn_id)
    sockets()
    look(spawn_id)
    resize(cpus, spawn_id)
    stop_and_start_again(spawn_id)

    kerf("unload", NAME)
    becomes("ready")
    check("/proc/kimage has no image", images() == [])
    kerf("delete", NAME)
    becomes("absent")
    check("the pool is as it was", (MULTIKERNEL / "device_tree").read_bytes() == blob)
    check("all its memory is free", ranges("mk-instance-") == [])

    kerf("init", "--cpus=none", "--memory=none")
    check(
        "the host has all CPUs and memory again",
        (host_cpus(), host_memory(), ranges("Multikernel")) == before,
    )
    ours = {number: state for number, state in transactions().items() if number not in earlier}
    check(f"all transactions were applied: {len(ours)}", set(ours.values()) == {"applied"})
    check("the host is the same boot", Path("/proc/sys/kernel/random/boot_id").read_text() == boot_id)
    check("its kernel has not complained", Path("/proc/sys/kernel/tainted").read_text() == taint)


if __name__ == "__main__":
    main()
