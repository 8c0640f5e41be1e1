# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Compare what two runs of `cyclictest --histogram --json` found, and draw both by gnuplot (SVG).

latency.py --output=PICTURE NAME=FILE NAME=FILE     fails unless the second's timers are earlier in the middle

Under an emulator the latest timers are those of the machine below it, which are the same for both.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

PLOT = """
set terminal svg size 900,420 font "sans-serif,13" background "white"
set output "{output}"
set logscale xy
set xlabel "latency of a timer (us)"
set ylabel "how often"
set yrange [0.7:*]
set grid
set key top right
set style fill transparent solid 0.5 noborder
plot {curves}
"""
# Classes of the picture: each ends this much later than it begins.
WIDER = 1.15
COLOURS = ("#c0392b", "#2471a3")


def histogram(path):
    """Latency in microseconds to how often, of the only thread; and its greatest."""
    threads = list(json.loads(Path(path).read_text())["thread"].values())
    if len(threads) != 1:
        sys.exit(f"{path}: {len(threads)} threads were measured instead of one")
    return {int(late): count for late, count in threads[0]["histogram"].items()}, threads[0]


def below(found, part):
    """The latency that so great a part of the timers does not exceed."""
    left = part * sum(found.values())
    for late, count in sorted(found.items()):
        left -= count
        if left <= 0:
            return late
    return None


def classes(found):
    """Lines of middle, count and width of the classes, for an axis that is logarithmic."""
    counts = {}
    for late, count in found.items():
        number = int(math.log(max(late, 1)) / math.log(WIDER))
        counts[number] = counts.get(number, 0) + count
    for number, count in sorted(counts.items()):
        begin, end = WIDER**number, WIDER ** (number + 1)
        yield f"{(begin + end) / 2:.2f} {count} {end - begin:.2f}\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True)
    parser.add_argument("runs", nargs=2, metavar="NAME=FILE")
    options = parser.parse_args()
    marks, data, curves = [], [], []
    print(f"{'us':26} {'count':>7} {'min':>7} {'avg':>7} {'50 %':>7} {'99 %':>7} {'99.9 %':>7} {'max':>7}")
    for run, colour in zip(options.runs, COLOURS, strict=True):
        name, path = run.split("=", 1)
        found, all_of_it = histogram(path)
        parts = [below(found, part) for part in (0.5, 0.99, 0.999)]
        marks.append(parts[0])
        shown = [all_of_it["min"], round(all_of_it["avg"]), *parts]
        row = "".join(f" {figure:7}" for figure in (sum(found.values()), *shown, all_of_it["max"]))
        print(f"{name:26}{row}")
        curves.append(f"'-' using 1:2:3 with boxes linecolor rgb '{colour}' title '{name}'")
        data.append("".join(classes(found)) + "e\n")
    script = PLOT.format(output=options.output, curves=", ".join(curves)) + "".join(data)
    subprocess.run(["gnuplot"], input=script, text=True, check=True)
    if marks[1] >= marks[0]:
        sys.exit(f"{options.runs[1]} is not earlier than {options.runs[0]}")


if __name__ == "__main__":
    main()
