# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The console of an instance is in the journal: each line, whoever is killed, and the last of a flood.

console_journal.py NAME     on the host, as root; its unit is active and restarts it
"""

import json
import os
import random
import subprocess
import sys
import time

LINES = 400
FLOOD = 50000
LONGEST = 180  # seconds for anything


def said(*argv):
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stdout


def journal(name):
    """What its console said."""
    return said(
        "journalctl", "--boot", "--output=cat", "--all", f"MKOPS_INSTANCE={name}", "-t", name
    ).splitlines()


def type_(name, text):
    number = next(
        one["id"] for one in json.loads(said("mkops", "status", "--json"))["instances"] if one["name"] == name
    )
    console = os.open("/dev/mktty", os.O_RDWR)
    os.write(console, f"{number}\n".encode())
    os.write(console, f"\n{text}\n".encode())
    os.close(console)


def until(what, condition):
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > LONGEST:
            sys.exit(f"{what}: not within {LONGEST} s")
        time.sleep(0.5)


def pid(name):
    return int(said("systemctl", "show", "--value", "--property=MainPID", f"mkops@{name}"))


def idle(name, seconds=120):
    """What its watcher costs while nothing happens."""
    process = pid(name)

    def spent():
        found = said("systemctl", "show", "--value", "--property=CPUUsageNSec", f"mkops@{name}")
        return int(found) / 1e9

    before = spent()
    time.sleep(seconds)
    cost = (spent() - before) * 3600 / seconds
    with open(f"/proc/{process}/status") as file:
        size = next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024
    print(f"the watcher of {name} needs {cost:.2f} s of CPU an hour, and {size:.1f} MiB", flush=True)
    if size > 25:
        sys.exit("that is more than 25 MiB")


def main():
    name = sys.argv[1]
    boots = [line for line in journal(name) if line.startswith("mkops-facts ")]
    print(f"{len(boots)} boots are in the journal", flush=True)
    if not boots:
        sys.exit("nothing of its boot is in the journal")
    idle(name)

    # Printed by the shell of the instance, so that what is typed does not look the same.
    type_(name, f"i=0; while [ $i -lt {LINES} ]; do echo =$i=; i=$((i+1)); sleep 0.02; done; echo do'n'e")
    kills = 0
    while "done" not in journal(name):
        # One that has begun to listen; how long that takes, depends on the machine.
        until(
            "its watcher listens", lambda: said("systemctl", "is-active", f"mkops@{name}").strip() == "active"
        )
        time.sleep(random.uniform(0, 2))
        os.kill(pid(name), 9)
        kills += 1
        if kills > 50:
            sys.exit("it does not come to an end")
    until("its watcher is back", lambda: said("systemctl", "is-active", f"mkops@{name}").strip() == "active")
    found = [line for line in journal(name) if line[:1] == line[-1:] == "=" and line[1:-1].isdecimal()]
    twice = len(found) - LINES
    if [*dict.fromkeys(found)] != [f"={number}=" for number in range(LINES)] or not 0 <= twice <= 10 * kills:
        sys.exit(f"not each of {LINES} lines, over {kills} kills: {found}")
    print(f"each of {LINES} lines, {twice} of them twice: its watcher was killed {kills} times", flush=True)

    before = len(journal(name))
    type_(name, f"yes flood-of-text | head -n {FLOOD}; echo en'd' of it")
    until("the end of a flood", lambda: "end of it" in journal(name)[before:])
    lines = journal(name)[before:]
    told = [line for line in lines if "lines are left out" in line]
    print(f"of {FLOOD} lines, {lines.count('flood-of-text')} are in the journal; {told}", flush=True)
    if not told or lines.count("flood-of-text") > FLOOD / 2:
        sys.exit("a flood is not limited")


if __name__ == "__main__":
    main()
