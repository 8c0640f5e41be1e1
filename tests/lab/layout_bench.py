# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a layout of eight instances costs, beside a ping and beside kerf by hand. Runs on the controller.

layout_bench.py INVENTORY HOST [ROUNDS]     a host of ten CPUs without instances, with a kernel for spawns

Unchanged: `layout` and `ping` in turns as tasks of one play, the median of each. From nothing: a playbook
with one `layout`, and one with a `command: kerf ...` for every step, three of each in turns. Fails when a
goal is missed.
"""

import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

INVENTORY, HOST = sys.argv[1:3]
ROUNDS = int(sys.argv[3]) if len(sys.argv) > 3 else 20
KERF = "/opt/mkops/kerf/bin/kerf"
COUNT = 8
UNCHANGED_GOAL, NOTHING_GOAL = 1.5, 1.0
CPUS = range(2, 2 + COUNT)
MEMORY = 128 << 20


def ansible(*words, log=""):
    """Its output, and how long it took."""
    began = time.monotonic()
    result = subprocess.run(
        [*words, "-i", INVENTORY],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "ANSIBLE_FORCE_COLOR": "0",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            "ANSIBLE_LOG_PATH": log,
        },
    )
    seconds = time.monotonic() - began
    if result.returncode:
        sys.exit(f"{' '.join(words)}: rc {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout, seconds


def module(name, args):
    return ansible("ansible", HOST, "-m", name, *(["-a", json.dumps(args)] if args else []))


def answer(text):
    """What an ad hoc module returned."""
    return json.loads(text[text.index("{") :])


def find(pattern):
    text, _seconds = module(
        "ansible.builtin.find", {"paths": str(Path(pattern).parent), "patterns": Path(pattern).name}
    )
    return answer(text)["files"][0]["path"]


def play(directory, name, tasks):
    path = Path(directory, f"{name}.yml")
    path.write_text(json.dumps([{"hosts": HOST, "gather_facts": False, "tasks": tasks}]))
    return str(path)


def unchanged(wish):
    """Seconds of each ping and of each layout, from one task's begin to the next one's."""
    turn = [
        {"name": "ping", "ansible.builtin.ping": {}},
        {
            "name": "layout",
            "mkops.multikernel.layout": wish,
            "register": "bench",
            "failed_when": "bench is failed or bench is changed",
        },
    ]
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch, "log")
        path = play(scratch, "turns", [*turn * ROUNDS, turn[0]])
        ansible("ansible-playbook", path, log=str(log))
        begins = [
            datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f")
            for stamp in re.findall(r"^(\S+ \S+) .*TASK \[", log.read_text(), re.MULTILINE)
        ]
    spans = [(end - begin).total_seconds() for begin, end in itertools.pairwise(begins)]
    if len(spans) != 2 * ROUNDS:
        sys.exit(f"{len(spans)} tasks were seen instead of {2 * ROUNDS}")
    return spans[::2], spans[1::2]


def main():
    kernel, initrd = find("/var/lib/mkops/kernels/vmlinux-[0-9]*"), find("/var/lib/mkops/*.cpio*")
    text, _seconds = module("mkops.multikernel.info", {})
    host = answer(text)["host"]
    physical = dict(zip(host["cpus"], host["physical_cpus"], strict=True))
    pool = {"cpus": f"{CPUS[0]}-{CPUS[-1]}", "memory": COUNT * MEMORY}
    wish = {
        "pool": pool,
        "defaults": {
            "state": "started",
            "kernel": kernel,
            "initrd": initrd,
            "cmdline": "loglevel=5",
            "memory": str(MEMORY),
        },
        "instances": [{"name": f"i{cpu}", "cpus": cpu} for cpu in CPUS],
    }
    away = {"pool": {"state": "absent"}, "prune": True, "defaults": {"force": True}}
    ids = ",".join(str(physical[cpu]) for cpu in CPUS)
    commands = [["init", f"--cpus={ids}", f"--memory={COUNT * MEMORY}@0", "--devices=none"]]
    for cpu in CPUS:
        commands += [
            ["create", f"i{cpu}", f"--cpus={physical[cpu]}", f"--memory={MEMORY}"],
            ["load", f"i{cpu}", f"--kernel={kernel}", f"--initrd={initrd}", "--cmdline=loglevel=5"],
            ["start", f"i{cpu}"],
        ]

    with tempfile.TemporaryDirectory() as scratch:
        plays = {
            "layout": play(scratch, "layout", [{"mkops.multikernel.layout": wish}]),
            "kerf by hand": play(
                scratch, "kerf", [{"ansible.builtin.command": {"argv": [KERF, *words]}} for words in commands]
            ),
        }
        times = {name: [] for name in plays}
        for _round in range(3):
            for name, path in plays.items():
                module("mkops.multikernel.layout", away)
                times[name].append(ansible("ansible-playbook", path)[1])
                print(f"from nothing, {name}: {times[name][-1]:.1f} s", flush=True)
    nothing = {name: statistics.median(found) for name, found in times.items()}

    module("mkops.multikernel.layout", wish)
    ping, layout = (statistics.median(found) for found in unchanged(wish))
    module("mkops.multikernel.layout", away)

    ratio = nothing["layout"] / nothing["kerf by hand"]
    print(
        f"from nothing, {COUNT} instances: layout {nothing['layout']:.1f} s, kerf by hand"
        f" {nothing['kerf by hand']:.1f} s, ratio {ratio:.2f} (at most {NOTHING_GOAL}, median of 3)"
    )
    print(
        f"unchanged, {COUNT} instances: layout {layout:.2f} s, ping {ping:.2f} s, ratio {layout / ping:.2f}"
        f" (at most {UNCHANGED_GOAL}, median of {ROUNDS})"
    )
    if layout / ping > UNCHANGED_GOAL or ratio > NOTHING_GOAL:
        sys.exit("a goal was missed")


if __name__ == "__main__":
    main()
