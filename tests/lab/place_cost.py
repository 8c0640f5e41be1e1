# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How the cost of the filter place grows with hosts and instances: a table, and a picture by gnuplot (SVG).

place_cost.py --output=PICTURE [--rounds=3]     fails when 1,000 hosts of 64 instances take more than 5 s

Of each size the median of CPU seconds: reading what is wished and what is free, and finding a host for each.
Instances have labels, NUMA nodes and others that they are to be apart from, as in the unit tests.
"""

import argparse
import copy
import math
import statistics
import subprocess
import sys
import time

from ansible.plugins.loader import filter_loader, init_plugin_loader

HOSTS = (125, 250, 500, 1000, 2000)
EACH = (8, 16, 32, 64)
LARGE, GOAL = (1000, 64), 5  # seconds
COLOURS = ("#2471a3", "#c0392b", "#1e8449", "#b9770e")
LINES = {"spread": 1, "pack": 2}  # dash types
PLOT = """
set terminal svg size 900,420 font "sans-serif,13" background "white"
set output "{output}"
set logscale xy
set xlabel "instances"
set ylabel "CPU seconds"
set grid
set key left top
plot {curves}
"""


def cost(place, hosts, instances, policy, rounds):
    spent = []
    for _round in range(rounds):
        given = copy.deepcopy((instances, hosts))
        begun = time.process_time()
        found = place(*given, policy)
        spent.append(time.process_time() - begun)
        if found["reasons"] or len(found["placed"]) != len(instances):
            sys.exit(f"{len(instances)} instances on {len(hosts)} hosts: {found['reasons'][:3]}")
    return statistics.median(spent)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    init_plugin_loader()
    from ansible_collections.mkops.multikernel.tests.unit.fleets import to_place  # found from here on

    place = filter_loader.get("mkops.multikernel.place").j2_function
    found, curves, data = {}, [], []
    for each, colour in zip(EACH, COLOURS, strict=True):
        for policy, dashes in LINES.items():
            rows = []
            for count in HOSTS:
                hosts, instances = to_place(count, each)
                seconds = found[count, each, policy] = cost(place, hosts, instances, policy, options.rounds)
                print(f"{policy:6} {count:5} hosts x {each:2}: {seconds:7.3f} s", flush=True)
                rows.append(f"{count * each} {seconds}\n")
            title = f"{each} each, {policy}"
            curves.append(f"'-' with linespoints pt 7 ps 0.5 lc rgb '{colour}' dt {dashes} title '{title}'")
            data.append(f"{''.join(rows)}e\n")
    plot = PLOT.format(output=options.output, curves=", ".join(curves)) + "".join(data)
    subprocess.run(["gnuplot"], input=plot, text=True, check=True)
    for policy in LINES:
        few, many = HOSTS[0], HOSTS[-1]
        power = math.log(found[many, LARGE[1], policy] / found[few, LARGE[1], policy]) / math.log(many / few)
        print(f"{policy}: with {LARGE[1]} instances each, grows as hosts to the power of {power:.2f}")
    slow = max(found[*LARGE, policy] for policy in LINES)
    if slow > GOAL:
        sys.exit(f"{LARGE[0]} hosts of {LARGE[1]} instances: {slow:.2f} s, and at most {GOAL} are allowed")


if __name__ == "__main__":
    main()
