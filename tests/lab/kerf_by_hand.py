#!/usr/bin/python3
# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One life of an instance by kerf as it is released, each step checked in the kernel's own files.

kerf_by_hand.py KERNEL INITRD [KERF]     on a host without a pool, as root
"""

import os
import pty
import re
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MULTIKERNEL = Path("/sys/fs/multikernel")
NAME = "by-hand"
INSTANCE = MULTIKERNEL / "instances" / NAME
POOL_MEMORY, MEMORY = 512 << 20, 256 << 20
FACTS = re.compile(rb'mkops-facts \{"boot_id": "([0-9a-f-]{36})"')
DETACH = b"\x1d."

KERNEL, INITRD = sys.argv[1:3]
KERF = sys.argv[3] if len(sys.argv) > 3 else "/opt/mkops/kerf/bin/kerf"


def check(what, holds):
    print(f"{'ok  ' if holds else 'FAIL'}  {what}", flush=True)
    if not holds:
        sys.exit(f"{what}: not so")


def kerf(*words):
    result = subprocess.run(
        [KERF, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=120,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    if result.returncode:
        print(result.stdout.decode(), result.stderr.decode(), sep="")
    check(f"kerf {' '.join(words)}: rc {result.returncode}", result.returncode == 0)
    return result.stdout


def status():
    return (INSTANCE / "status").read_text().strip() if INSTANCE.exists() else "absent"


def becomes(wanted):
    deadline = time.monotonic() + 10
    while status() != wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    check(f"the kernel says {status()}, wanted {wanted}", status() == wanted)


def pool_memory():
    """Bytes of the pool's chunks, and of what instances have of them."""
    sizes = {"Multikernel Memory Pool": 0, f"-{NAME}-region-": 0}
    for line in Path("/proc/iomem").read_text().splitlines():
        span, _colon, name = line.strip().partition(" : ")
        first, last = (int(part, 16) for part in span.split("-"))
        for word in sizes:
            if word in name:
                sizes[word] += last - first + 1
    return tuple(sizes.values())


def online():
    return Path("/sys/devices/system/cpu/online").read_text().strip()


def apic_ids():
    return [
        int(number) for number in re.findall(r"^apicid\s*: (\d+)$", Path("/proc/cpuinfo").read_text(), re.M)
    ]


def read_until(fd, pattern, seconds):
    text = b""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if select.select([fd], [], [], 1)[0]:
            text += os.read(fd, 65536)
            if found := pattern.search(text):
                return found
    print(text.decode(errors="replace"))
    return None


def console():
    """kerf console on a terminal: type a line, read the answer, detach."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(KERF, [KERF, "console", NAME])
    check("kerf console attaches", read_until(terminal, re.compile(rb"to detach"), 60))
    time.sleep(1)
    os.write(terminal, b"\nmkops-facts\n")
    found = read_until(terminal, FACTS, 60)
    check("the spawned kernel answers on kerf console", found)
    os.write(terminal, DETACH)
    check("kerf console detaches", read_until(terminal, re.compile(rb"Disconnected"), 20))
    _pid, code = os.waitpid(child, 0)
    check(f"kerf console: rc {os.waitstatus_to_exitcode(code)}", code == 0)
    os.close(terminal)
    return found[1].decode()


def main():
    before = online(), pool_memory()
    check("the host has no pool yet", before[1] == (0, 0))
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text()
    pool, host = apic_ids()[-2:], apic_ids()[:-2]
    check("two CPUs can be given up", host)

    request = (f"--cpus={pool[0]},{pool[1]}", f"--memory={POOL_MEMORY}", "--devices=none")
    kerf("init", *request)
    check("both CPUs left the host", apic_ids() == host)
    check("the pool has its memory", pool_memory() == (POOL_MEMORY, 0))
    tree = (MULTIKERNEL / "device_tree").read_bytes()
    check("kerf init again finds nothing to do", b"nothing to do" in kerf("init", *request))
    check("and changed nothing", (MULTIKERNEL / "device_tree").read_bytes() == tree)

    kerf("create", NAME, f"--cpus={pool[0]}", f"--memory={MEMORY}")
    becomes("ready")
    check("the instance has its memory", pool_memory() == (POOL_MEMORY, MEMORY))
    kerf("load", NAME, f"--kernel={KERNEL}", f"--initrd={INITRD}")
    becomes("loaded")
    kerf("start", NAME)
    becomes("active")

    shown = kerf("show", NAME)
    check("kerf show tells name and state", NAME.encode() in shown and b"active" in shown.lower())
    with tempfile.TemporaryDirectory() as scratch:
        for what, origin in ((), MULTIKERNEL), ((NAME,), INSTANCE):
            kerf("dump", *what, "-o", f"{scratch}/tree")
            dumped = Path(scratch, "tree").read_bytes()
            check("kerf dump gives what the kernel shows", dumped == (origin / "device_tree").read_bytes())
    check("the spawned kernel has a boot id of its own", console() != boot_id.strip())
    check("it still runs", status() == "active")

    kerf("kill", NAME, "--force")
    becomes("loaded")
    kerf("unload", NAME)
    becomes("ready")
    kerf("delete", NAME)
    becomes("absent")
    check("the pool is as it was", (MULTIKERNEL / "device_tree").read_bytes() == tree)
    check("all its memory is free", pool_memory() == (POOL_MEMORY, 0))

    kerf("init", "--cpus=none", "--memory=none", "--devices=none")
    check("the host has all CPUs and memory again", (online(), pool_memory()) == before)
    states = {
        path.parent.name: path.read_text().strip()
        for path in sorted((MULTIKERNEL / "overlays").glob("tx_*/status"))
    }
    check(f"all transactions were applied: {states}", set(states.values()) == {"applied"})
    check("the host is the same boot", Path("/proc/sys/kernel/random/boot_id").read_text() == boot_id)


if __name__ == "__main__":
    main()
