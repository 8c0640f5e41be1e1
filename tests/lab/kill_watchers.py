# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Kill the processes that watch instances, at any moment: no instance is lost, and none is started twice.

kill_watchers.py TIMES NAME...     on the host, as root; the units of the instances are active
"""

import json
import random
import subprocess
import sys
import time

TIMES, NAMES = int(sys.argv[1]), sys.argv[2:]
_ON_THE_WAY = ("active", "activating", "deactivating")
LONGEST = 4.0  # seconds between the start of a unit and the kill; a watcher needs about as long to get ready


def systemctl(*words):
    return subprocess.run(
        ["systemctl", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def running():
    """Name to the state and the number of starts of each instance."""
    found = subprocess.run(["mkops", "status", "--json"], capture_output=True, text=True, check=True)
    return {one["name"]: (one["state"], one["epoch"]) for one in json.loads(found.stdout)["instances"]}


def main():
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    before = running()
    early = 0
    print(f"seed {seed}: {before}", flush=True)
    for number in range(1, TIMES + 1):
        name = chance.choice(NAMES)
        unit = f"mkops@{name}.service"
        time.sleep(chance.uniform(0, LONGEST))
        early += systemctl("is-active", unit).stdout.strip() != "active"
        systemctl("kill", "--signal=KILL", unit)
        while (state := systemctl("is-active", unit).stdout.strip()) in _ON_THE_WAY:
            time.sleep(0.1)
        if state != "failed":
            sys.exit(f"kill {number}: {unit} is {state} after it was killed, not failed")
        systemctl("reset-failed", unit)
        started = systemctl("start", "--no-block", unit)
        if started.returncode:
            sys.exit(f"kill {number}: {unit} cannot be started: {started.stderr}")
        if number % 10 == 0:
            if (now := running()) != before:
                sys.exit(f"kill {number}: {now}, and it was {before}")
            print(f"{number} kills, {early} of them before the unit was ready", flush=True)
    for name in NAMES:
        if (done := systemctl("start", f"mkops@{name}.service")).returncode:
            sys.exit(f"mkops@{name}.service cannot be started in the end: {done.stderr}")
    if (now := running()) != before:
        sys.exit(f"in the end {now}, and it was {before}")


if __name__ == "__main__":
    main()
