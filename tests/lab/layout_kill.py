# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Modules that are killed at any moment: the next run reaches what was wished, and nothing is lost.

layout_kill.py KERNEL INITRD [SEED]     on a host of eight CPUs with /root/modules, as root
"""

import os
import signal
import time

from layout_lab import Run, arguments, check, nothing, online, run, total_memory, whole

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
        whole(POOL_CPUS, POOL_MEMORY, instances, DEFAULTS)
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
