#!/usr/bin/python3
# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Modules that are killed at any moment: the next run reaches what was wished, and nothing is lost.

layout_kill.py KERNEL INITRD [SEED]     on a host of eight CPUs with /root/modules, as root
"""

import os
import signal
import time
from pathlib import Path

from layout_lab import Run, arguments, check, nothing, online, run, total_memory

KERNEL, INITRD, DICE = arguments()
KILLS = 50
POOL_CPUS, POOL_MEMORY = 6, 1 << 30
POOL = {"cpus": "2-7", "memory": POOL_MEMORY}
DEFAULTS = {
    "state": "started",
    "kernel": KERNEL,
    "initrd": INITRD,
    "cmdline": "loglevel=5",
    "memory": "128M",
    "force": True,
    "allow_restart": True,
}
LAYOUTS = [
    [{"name": "red", "cpus": "2-3"}, {"name": "blue", "cpus": "4"}],
    [
        {"name": "red", "cpus": "2"},
        {"name": "blue", "cpus": "3-4", "memory": "256M"},
        {"name": "green", "cpus": 5},
    ],
    [
        {"name": "red", "cpus": "2,6-7", "memory": "256M", "cmdline": "loglevel=4"},
        {"name": "blue", "state": "stopped", "cpus": 5},
    ],
    [],
]


def mine():
    """Of the pool and the instances in /proc/iomem: bytes."""
    chunks, regions = 0, {}
    for line in Path("/proc/iomem").read_text().splitlines():
        span, _colon, name = line.strip().partition(" : ")
        first, last = (int(part, 16) for part in span.split("-"))
        if name == "Multikernel Memory Pool":
            chunks += last - first + 1
        elif name.startswith("mk-instance-"):
            owner = name.split("-")[3]
            regions[owner] = regions.get(owner, 0) + last - first + 1
    return chunks, regions


def size(text):
    return int(text[:-1]) << 20


def whole(instances):
    """Nothing is lost: every CPU has one owner, and all memory is the pool's or an instance's."""
    facts = run("info")
    check("all CPUs of the pool are there", len(facts["pool"]["cpus"]) == POOL_CPUS)
    lent = [cpu for one in facts["instances"] for cpu in one["cpus"]]
    check("no CPU has two owners", len(lent) == len(set(lent)))
    check("no CPU is lost", sorted([*lent, *facts["pool"]["free_cpus"]]) == facts["pool"]["cpus"])
    chunks, regions = mine()
    check(f"the pool has {chunks} bytes", chunks == POOL_MEMORY)
    wanted = {one["name"]: size(one.get("memory", DEFAULTS["memory"])) for one in instances}
    check(f"instances have {regions}, wished {wanted}", regions == wanted)
    states = {one["name"]: one["state"] for one in facts["instances"]}
    wished = {one["name"]: "loaded" if one.get("state") == "stopped" else "active" for one in instances}
    check(f"instances are {states}, wished {wished}", states == wished)


def main():
    nothing()
    before = online(), total_memory()
    run("pool", **POOL)
    began = time.monotonic()
    run("layout", pool=POOL, instances=LAYOUTS[1], defaults=DEFAULTS, prune=True)
    longest = time.monotonic() - began
    print(f"not killed, a layout takes {longest:.1f} s", flush=True)

    cut = 0
    turn = 0
    while cut < KILLS:
        turn += 1
        check("killing fails too often", turn < 4 * KILLS)
        instances = DICE.choice(LAYOUTS)
        wish = {"pool": POOL, "instances": instances, "defaults": DEFAULTS, "prune": True}
        victim = Run("layout", **wish)
        delay = DICE.uniform(0, longest)
        time.sleep(delay)
        # Alone, so that its kerf goes on without it; or with its kerf, which leaves a lock behind.
        together = DICE.random() < 0.5
        (os.killpg if together else os.kill)(victim.pid, signal.SIGKILL)
        result = victim.result()
        if result is None:
            cut += 1
        again = run("layout", **wish)
        check("a third run changes nothing", not run("layout", **wish)["changed"])
        whole(instances)
        if result is None:
            how = "with its kerf" if together else "alone"
            print(
                f"ok  {cut}: killed {how} after {delay:.2f} s; then {len(again['steps'])} steps", flush=True
            )

    nothing()
    check(
        f"the host has what it had: {before} {(online(), total_memory())}",
        (online(), total_memory()) == before,
    )
    print(f"{cut} killed of {turn}", flush=True)


if __name__ == "__main__":
    main()
