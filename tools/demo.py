# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From nothing to two kernels beside the host's own, twice, and then one of them crashes.

Run by `make demo`, with ansible-playbook in PATH.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
LAB = Path(os.environ.get("MKOPS_LAB", TOP / ".lab"))
RECAP = re.compile(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def play(name: str, *arguments: str) -> tuple[float, int]:
    """Run a playbook in the open. Returns its seconds and how many tasks changed something."""
    began = time.monotonic()
    color = {"ANSIBLE_FORCE_COLOR": "1"} if sys.stdout.isatty() else {"ANSIBLE_NOCOLOR": "1"}
    process = subprocess.Popen(
        ["ansible-playbook", f"playbooks/{name}", *arguments],
        cwd=TOP,
        env={**os.environ, **color},
        stdout=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    output = ""
    for line in process.stdout:
        output += line
        print(line, end="", flush=True)
    if process.wait():
        sys.exit(f"demo: playbooks/{name} failed")
    hosts = RECAP.findall(re.sub(r"\x1b\[[\d;]*m", "", output))
    if not hosts:
        sys.exit(f"demo: playbooks/{name} reached no host")
    return time.monotonic() - began, sum(int(changed) for _host, changed, *_bad in hosts)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def cpus(numbers: list[int]) -> str:
    return ",".join(map(str, numbers))


def rows(report: dict) -> list[list[str]]:
    """One row per kernel: the host, then its instances."""
    after = report["after"]
    host = after["host"]
    table = [
        ["KERNEL", "RELEASE", "BOOT ID", "CPUS", "MEMORY", "STATE", "UPTIME"],
        [
            report["name"],
            after["kernel"]["release"],
            host["boot_id"],
            cpus(host["cpus"]),
            f"{(host['memory'] - after['pool']['memory']) >> 20} MiB",
            "host",
            duration(host["uptime"]),
        ],
    ]
    seen = {facts["boot_id"]: facts for facts in report["facts_after"]}
    for instance, before in zip(after["instances"], report["facts_before"], strict=True):
        facts = seen.get(before["boot_id"])
        table.append(
            [
                instance["name"],
                before["release"],
                before["boot_id"],
                cpus(instance["cpus"]),
                f"{instance['memory'] >> 20} MiB",
                instance["state"] if facts else f"{instance['state']}, crashed",
                duration(facts["uptime_s"]) if facts else f"ended after {duration(before['uptime_s'])}",
            ]
        )
    return table


def show(table: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for number, row in enumerate(table):
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if number == 0:
            print("  " + "  ".join("-" * width for width in widths))


def main() -> None:
    say("1. Build the kernel, boot a host with it, and start two kernels beside its own")
    first, first_changed = play("demo.yml")

    say("2. The same once more: nothing may change")
    second, second_changed = play("demo.yml")
    if second_changed:
        sys.exit(f"demo: the second run changed {second_changed} tasks, expected none")

    say("3. Crash one of the two on purpose")
    file = LAB / "demo.json"
    play("demo_crash.yml", "--inventory", str(LAB / "inventory.yml"), "--extra-vars", f"demo_report={file}")
    report = json.loads(file.read_text(encoding="utf-8"))

    crashed = report["crashed"]
    say("One machine, three kernels")
    print()
    show(rows(report))
    inventory = LAB / "inventory.yml"
    print(f"""
  '{crashed}' was crashed: {report["panic"]}
  The host's boot id is the one from before, and the other kernel still answers: {report["site"]} counted
  visit {report["visits"][0]} before and visit {report["visits"][1]} after that, in its own database.

  First run   {duration(first):>12}   changed={first_changed}
  Second run  {duration(second):>12}   changed={second_changed}

  The host stays up. In this directory:
    export PATH={Path(sys.executable).parent}:$PATH
    ansible -i {inventory} lab -m mkops.multikernel.info     how it is divided
    ansible-playbook playbooks/demo.yml                      start '{crashed}' again
    make lab-down                                            stop the host
""")


if __name__ == "__main__":
    main()
