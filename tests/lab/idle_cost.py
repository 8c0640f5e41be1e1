# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the units of instances cost while nothing happens, and the one that writes metrics if there is one.

Beside one that only sleeps.

idle_cost.py SECONDS     on the host, as root; the units are active

The goal is for an ordinary CPU. On an emulated one all takes many times as long, more so while other things
run on the machine: how many times, starts of Python tell, before and after.
"""

import re
import resource
import statistics
import subprocess
import sys
import time

SLEEP = "mkops-idle-sleep.service"
METRICS = "mkops-metrics.service"
CPU = 10.0  # seconds an hour that all of them may need,
START = 0.010  # where a start of Python needs so many
STARTS = 15
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


def starts():
    """Seconds of CPU that starts of Python need, each."""
    found = []
    for _number in range(STARTS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        said("/usr/bin/python3", "-I", "-S", "-c", "pass")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return found


def main():
    seconds = int(sys.argv[1])
    lines = said("systemctl", "list-units", "--plain", "--no-legend", "--state=active", "mkops@*.service")
    names = [line.split()[0] for line in lines.splitlines()]
    instances = len(names)
    if unit(METRICS, "ActiveState") == "active":
        names.append(METRICS)
    subprocess.run(["systemctl", "stop", SLEEP], capture_output=True, check=False)
    said("systemd-run", f"--unit={SLEEP}", "sleep", "infinity")
    names.append(SLEEP)
    processes = [unit(name, "MainPID") for name in names]
    yardstick = starts()
    before = {name: spent(name) for name in names}
    begun = time.monotonic()
    time.sleep(seconds)
    after = {name: spent(name) for name in names}
    hour = 3600 / (time.monotonic() - begun)
    used = {name: memory(name) for name in names}
    if processes != [unit(name, "MainPID") for name in names]:
        sys.exit("there was another one meanwhile")
    said("systemctl", "stop", SLEEP)
    start = statistics.median(yardstick + starts())
    print(f"{'in ' + str(seconds) + ' s':28} {'CPU an hour':>12} {'memory':>10} {'its share':>10}")
    for name in names:
        rss, pss = used[name]
        cost = (after[name] - before[name]) * hour
        print(f"{name:28} {cost:10.2f} s {rss:6.1f} MiB {pss:6.1f} MiB")
    names.remove(SLEEP)
    total = sum(after[name] - before[name] for name in names) * hour
    whole = sum(used[name][1] for name in names)
    largest = max(used[name][0] for name in names)
    print(f"{instances} instances: {total:.2f} s an hour, {whole:.1f} MiB, {largest:.1f} MiB at most")
    slower = max(start / START, 1)
    print(f"a start of Python needs {start * 1000:.0f} ms, {slower:.1f} times {START * 1000:.0f} ms")
    print(f"without that: {total / slower:.2f} s an hour")
    if total / slower > CPU:
        sys.exit(f"that is more than {CPU:g} s an hour")
    if largest > MEMORY:
        sys.exit(f"that is more than {MEMORY:g} MiB")


if __name__ == "__main__":
    main()
