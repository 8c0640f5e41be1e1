# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Crash instances, and see that systemd starts them again as declared, and what is kept of it.

restarts.py panic NAME SIBLING LIMIT     until it is given up after so many starts; the delay has to grow
restarts.py hang NAME SIBLING SECONDS    with interrupts off, which its watchdog of so many seconds finds

On the host, as root; the units of both are active. For a hang, the command line of the instance has
panic=600, with which it panics and loops with interrupts off, instead of telling its host.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

LONGEST = 300  # seconds for anything
CRASHES = Path("/var/lib/mkops/crashes")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def said(*argv):
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stdout


def unit(name, *properties):
    lines = said(
        "systemctl", "show", f"mkops@{name}", *(f"--property={one}" for one in properties)
    ).splitlines()
    found = dict(line.split("=", 1) for line in lines)
    return tuple(found.get(one, "") for one in properties)


def status():
    return {one["name"]: one for one in json.loads(said("mkops", "status", "--json"))["instances"]}


def run_of(one):
    """What tells this run of an instance from another one."""
    return one["state"], one["epoch"], one["stats"]["state_since_ms"]


def until(what, condition):
    begun = time.monotonic()
    while not (found := condition()):
        if time.monotonic() - begun > LONGEST:
            sys.exit(f"{what}: not within {LONGEST} s; {said('systemctl', 'status', '--full', 'mkops@*')}")
        time.sleep(0.2)
    return found


def crash(instance):
    """Its shell does it."""
    console = os.open("/dev/mktty", os.O_RDWR | os.O_NONBLOCK)
    os.write(console, f"{instance['id']}\n".encode())
    os.write(console, b"\necho c > /proc/sysrq-trigger\n")
    os.close(console)


def check(what, holds):
    if not holds:
        sys.exit(f"{what}: {holds!r}")


def journal(name):
    """(seconds, message) of an instance: its console, its watcher, and what systemd says of its unit."""
    fields = [f"MKOPS_INSTANCE={name}", "+", f"UNIT=mkops@{name}.service"]
    lines = said("journalctl", "--boot", "--output=json", "--all", *fields).splitlines()
    entries = [json.loads(line) for line in lines]
    return [(int(one["__MONOTONIC_TIMESTAMP"]) / 1e6, str(one["MESSAGE"])) for one in entries]


def newest(name, epoch, reason):
    """The evidence of a run has to be whole."""
    made = until(f"evidence of {name}", lambda: sorted((CRASHES / name).glob(f"*-{epoch}")))[-1]
    meta = json.loads((made / "meta.json").read_text())
    check(f"{made}: reason {meta['reason']}", re.match(reason, meta["reason"]))
    check(f"{made}: epoch, boot", (meta["epoch"], meta["boot_id"]) == (epoch, BOOT_ID.read_text().strip()))
    check(f"{made}: kernel and layout", meta["kernel"].get("sha256") and meta["layout"])
    check(f"{made}: console", "sysrq: Trigger a crash" in (made / "console").read_text())
    check(f"{made}: kernel log", "is now active" in (made / "kernel.log").read_text())
    check(f"{made}: for root alone", made.stat().st_mode & 0o777 == 0o700)
    print(
        f"{made}: {sorted(path.name for path in made.iterdir())}, {meta['reason']}, memory {meta['memory']}"
    )


def panic(name, limit):
    said("systemctl", "reset-failed", f"mkops@{name}")  # what was before, does not count
    for number in range(1, limit + 2):
        before = status()[name]
        crash(before)
        if number > limit:
            until(f"{name} is given up", lambda: unit(name, "ActiveState") == ("failed",))
        else:
            until(
                f"{name} is restarted",
                lambda before=before: (
                    unit(name, "ActiveState") == ("active",)
                    and status()[name]["epoch"] == before["epoch"] + 1
                ),
            )
        newest(name, before["epoch"], "panic: ")
    state, result, restarts = unit(name, "ActiveState", "Result", "NRestarts")
    print(f"after {number} panics {name} is {state} ({result}), with {restarts} restarts")
    entries = journal(name)
    ended = [at for at, message in entries if message.startswith(f"{name}: it is loaded (panic")][
        -limit - 1 :
    ]
    again = [at for at, message in entries if "Scheduled restart job" in message][-limit:]
    delays = [later - earlier for earlier, later in zip(ended, again, strict=False)]
    print(f"delays: {', '.join(f'{delay:.1f} s' for delay in delays)}")
    check("the delay grows", len(delays) == limit and sorted(delays) == delays and delays[-1] - delays[0] > 2)
    panics = [at for at, message in entries if "Kernel panic - not syncing: sysrq triggered crash" in message]
    check(f"{len(panics)} panics are in the journal", len(panics) == limit + 1)
    ready = [at for at, message in entries if message.startswith("mkops-facts ")]
    check(f"{len(ready)} boots are in the journal", len(ready) >= limit)


def hang(name, seconds):
    before = status()[name]
    crash(before)
    begun = time.monotonic()
    until(f"{name} is stopped", lambda: status()[name]["exit_reason"] in ("forced", "lost"))
    found = time.monotonic() - begun
    until(
        f"{name} is restarted",
        lambda: unit(name, "ActiveState") == ("active",) and status()[name]["epoch"] == before["epoch"] + 1,
    )
    ready = time.monotonic() - begun
    print(f"{name} hung, was stopped after {found:.1f} s, and was ready again after {ready:.1f} s")
    newest(name, before["epoch"], "it has given no sign of life")
    check("it was found in time", seconds - 2 < found < 2 * seconds + 10)


def main():
    what, name, sibling, number = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    host, other = BOOT_ID.read_text(), run_of(status()[sibling])
    {"panic": panic, "hang": hang}[what](name, number)
    check("the host goes on", BOOT_ID.read_text() == host)
    check("the sibling goes on", run_of(status()[sibling]) == other)


if __name__ == "__main__":
    main()
