# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Start and stop an instance many times: it must boot each time, and have the same before and after.

start_stop.py NAME CYCLES [KERF]     on its host, as root; the instance is loaded or running
"""

import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path

MULTIKERNEL = Path("/sys/fs/multikernel")
FACTS = re.compile(rb'^mkops-facts \{"boot_id": "([0-9a-f-]{36})"', re.M)

NAME, CYCLES = sys.argv[1], int(sys.argv[2])
KERF = sys.argv[3] if len(sys.argv) > 3 else "/opt/mkops/kerf/bin/kerf"
INSTANCE = MULTIKERNEL / "instances" / NAME


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
        sys.exit(f"kerf {' '.join(words)}: rc {result.returncode}: {result.stderr.decode()}")


def status():
    return (INSTANCE / "status").read_text().strip()


def becomes(wanted):
    deadline = time.monotonic() + 10
    while status() != wanted:
        if time.monotonic() > deadline:
            sys.exit(f"{NAME} is {status()}, wanted {wanted}")
        time.sleep(0.02)


def resources():
    """Pool and instance as the kernel shows them; the addresses are part of it."""
    files = (MULTIKERNEL / "device_tree", INSTANCE / "device_tree", Path("/sys/devices/system/cpu/online"))
    pool = [
        line for line in Path("/proc/iomem").read_text().splitlines() if "ultikernel" in line or "mk-" in line
    ]
    return [path.read_bytes() for path in files], pool


def free_memory():
    return int(re.search(r"^MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(), re.M)[1])


def started():
    """Start it; the boot id that its userland then prints."""
    fd = os.open("/dev/mktty", os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(fd, (INSTANCE / "id").read_bytes())
        while select.select([fd], [], [], 0.1)[0]:
            os.read(fd, 65536)  # of former boots
        kerf("start", NAME)
        text = b""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if select.select([fd], [], [], 1)[0]:
                text += os.read(fd, 65536).replace(b"\r", b"")
                if found := FACTS.search(text):
                    return found[1]
        sys.exit(f"{NAME} did not reach its userland:\n{text.decode(errors='replace')}")
    finally:
        os.close(fd)


def main():
    if status() == "active":
        kerf("kill", NAME, "--force")
        becomes("loaded")
    before, memory = resources(), free_memory()
    boot_ids = set()
    for number in range(1, CYCLES + 1):
        began = time.monotonic()
        boot_ids.add(started())
        becomes("active")
        kerf("kill", NAME, "--force")
        becomes("loaded")
        if resources() != before:
            sys.exit(f"cycle {number} left something behind:\n{before}\n{resources()}")
        print(f"cycle {number}: {time.monotonic() - began:.1f} s", flush=True)
    if len(boot_ids) != CYCLES:
        sys.exit(f"only {len(boot_ids)} of {CYCLES} boots were new ones")
    lost = memory - free_memory()
    print(f"{CYCLES} boots, pool and instance the same; the host has {lost} kB less available")
    if lost > CYCLES * 1024:
        sys.exit("the host loses memory with every cycle")


if __name__ == "__main__":
    main()
