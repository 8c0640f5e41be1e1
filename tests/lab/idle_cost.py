# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the units of instances cost while nothing happens, beside one that only sleeps.

idle_cost.py SECONDS     on the host, as root; the units are active
"""

import contextlib
import re
import subprocess
import sys
import time

SLEEP = "mkops-idle-sleep.service"
METRICS = "mkops-metrics.service"
CPU = 10.0  # seconds an hour that all of them may need
MEMORY = 25.0  # MiB that each of them may need


def said(*argv):
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout


def unit(name, what):
    return said("systemctl", "show", "--value", f"--property={what}", name).strip()


def spent(name):
    return int(unit(name, "CPUUsageNSec")) / 1e9


def memory(name):
    """MiB: what the process has, and what it has alone or shares of."""
    found = {}
    with open(f"/proc/{unit(name, 'MainPID')}/smaps_rollup") as file:
        for line in file:
            if match := re.match(r"(Rss|Pss): +(\d+) kB", line):
                found[match[1]] = int(match[2]) / 1024
    return found["Rss"], found["Pss"]


def reading():
    """Seconds of CPU that one reading for Prometheus needs, where there is such; None where there is none."""
    with contextlib.suppress(subprocess.CalledProcessError, ValueError):
        said("systemctl", "start", METRICS)
        return spent(METRICS)
    return None


def main():
    seconds = int(sys.argv[1])
    lines = said("systemctl", "list-units", "--plain", "--no-legend", "--state=active", "mkops@*.service")
    names = [line.split()[0] for line in lines.splitlines()]
    subprocess.run(["systemctl", "stop", SLEEP], capture_output=True, check=False)
    said("systemd-run", f"--unit={SLEEP}", "sleep", "infinity")
    names.append(SLEEP)
    processes = [unit(name, "MainPID") for name in names]
    before = {name: spent(name) for name in names}
    begun = time.monotonic()
    time.sleep(seconds)
    after = {name: spent(name) for name in names}
    hour = 3600 / (time.monotonic() - begun)
    used = {name: memory(name) for name in names}
    if processes != [unit(name, "MainPID") for name in names]:
        sys.exit("there was another one meanwhile")
    said("systemctl", "stop", SLEEP)
    print(f"{'in ' + str(seconds) + ' s':28} {'CPU an hour':>12} {'memory':>10} {'its share':>10}")
    for name in names:
        rss, pss = used[name]
        cost = (after[name] - before[name]) * hour
        print(f"{name:28} {cost:10.2f} s {rss:6.1f} MiB {pss:6.1f} MiB")
    instances = names[:-1]
    total = sum(after[name] - before[name] for name in instances) * hour
    whole = sum(used[name][1] for name in instances)
    largest = max(used[name][0] for name in instances)
    print(f"{len(instances)} instances: {total:.2f} s an hour, {whole:.1f} MiB, {largest:.1f} MiB at most")
    cost = reading()
    if cost is not None:
        print(f"one reading for Prometheus: {cost:.2f} s")
    if total > CPU:
        sys.exit(f"that is more than {CPU:g} s an hour")
    if largest > MEMORY:
        sys.exit(f"that is more than {MEMORY:g} MiB")


if __name__ == "__main__":
    main()
