# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Crash instances, and see that systemd starts them again as declared, and what is kept of it.

restarts.py panic NAME SIBLING LIMIT     until it is given up after so many starts; the delay has to grow
restarts.py hang NAME SIBLING SECONDS    with interrupts off, which its watchdog of so many seconds finds

On the host, as root; the units of both are active, crash_memory is declared, and makedumpfile is there. For
a hang, the command line of the instance has panic=600, with which it panics and loops with interrupts off,
instead of telling its host.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LONGEST = 300  # seconds for anything
INSTANCES = Path("/sys/fs/multikernel/instances")
CRASHES = Path("/var/lib/mkops/crashes")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PANIC = "Kernel panic - not syncing: sysrq triggered crash"


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


def kernel_says(name, what):
    """Asked often, so not by the program, whose start is work on a slow machine."""
    return (INSTANCES / name / what).read_text().strip()


def is_again(name, before):
    """Whether it was started once more, and is ready."""
    epoch = int(kernel_says(name, "epoch"))
    return epoch == before["epoch"] + 1 and unit(name, "ActiveState") == ("active",)


def run_of(one):
    """What tells this run of an instance from another one."""
    return one["state"], one["epoch"], one["stats"]["state_since_ms"]


def until(what, condition):
    begun = time.monotonic()
    while not (found := condition()):
        if time.monotonic() - begun > LONGEST:
            sys.exit(f"{what}: not within {LONGEST} s; {said('systemctl', 'status', '--full', 'mkops@*')}")
        time.sleep(0.5)
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
    check(f"{made}: memory {meta['memory']}", meta["memory"]["kept"] and meta["memory"]["format"] == "kdump")
    check(f"{made}: the panic is in its memory", PANIC in dmesg(made / "vmcore"))
    print(
        f"{made}: {sorted(path.name for path in made.iterdir())}, {meta['reason']}, memory {meta['memory']}",
        flush=True,
    )


def dmesg(core):
    """The log of the kernel that this is the memory of."""
    with tempfile.TemporaryDirectory() as made:
        text = Path(made) / "log"
        tool = subprocess.run(
            ["makedumpfile", "--dump-dmesg", core, text],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        check(f"makedumpfile of {core}: {tool.stdout} {tool.stderr}", tool.returncode == 0)
        return text.read_text(errors="replace")


def panic(name, limit):
    said("systemctl", "reset-failed", f"mkops@{name}")  # what was before, does not count
    begun = time.clock_gettime(time.CLOCK_MONOTONIC)
    for number in range(1, limit + 2):
        before = status()[name]
        crash(before)
        if number > limit:
            until(f"{name} is given up", lambda: unit(name, "ActiveState") == ("failed",))
        else:
            until(f"{name} is restarted", lambda before=before: is_again(name, before))
        newest(name, before["epoch"], "panic: ")
    state, result, restarts = unit(name, "ActiveState", "Result", "NRestarts")
    print(f"after {number} panics {name} is {state} ({result}), with {restarts} restarts")
    entries = [(at, message) for at, message in journal(name) if at > begun]
    delays, failed = [], None
    for at, message in entries:
        # That is said when all is done about one, and the time until the next one begins.
        if "Failed with result" in message:
            failed = at
        elif "Scheduled restart job" in message and failed is not None:
            delays.append(at - failed)
            failed = None
    print(f"delays: {', '.join(f'{delay:.1f} s' for delay in delays)}")
    check("the delay grows", len(delays) >= limit and sorted(delays) == delays and delays[-1] - delays[0] > 2)
    check("that it is given up is said", any("repeated too quickly" in message for _at, message in entries))
    check("the kernel still has its memory", PANIC in dmesg(INSTANCES / name / "vmcore"))
    panics = [at for at, message in entries if PANIC in message]
    check(f"{len(panics)} panics are in the journal", len(panics) == limit + 1)
    ready = [at for at, message in entries if message.startswith("mkops-facts ")]
    check(f"{len(ready)} boots are in the journal", len(ready) >= limit)


def hang(name, seconds):
    before = status()[name]
    begun = time.clock_gettime(time.CLOCK_MONOTONIC)
    crash(before)
    until(f"{name} is restarted", lambda: is_again(name, before))
    ready = time.clock_gettime(time.CLOCK_MONOTONIC)
    entries = [(at, message) for at, message in journal(name) if at > begun]
    last = max(at for at, message in entries if PANIC in message)

    def since(what):
        """Seconds from its last words on."""
        found = [at - last for at, message in entries if message == what]
        check(f"{what} is in the journal", len(found) == 1)
        return found[0]

    found, stopped = since(f"{name}: it has given no sign of life for {seconds} s"), since(f"{name}: stopped")
    print(f"{name} hung, was found after {found:.1f} s and stopped after {stopped:.1f} s", flush=True)
    print(f"{name} was ready again after {ready - last:.1f} s", flush=True)
    newest(name, before["epoch"], "it has given no sign of life")
    check("it was found in time", seconds - 2 < found < seconds + 10)
    # Its unit's next process does that, which an emulated host takes its time to start.
    check("it was stopped in time", stopped - found < seconds)


def main():
    what, name, sibling, number = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    host, other = BOOT_ID.read_text(), run_of(status()[sibling])
    {"panic": panic, "hang": hang}[what](name, number)
    check("the host goes on", BOOT_ID.read_text() == host)
    check("the sibling goes on", run_of(status()[sibling]) == other)


if __name__ == "__main__":
    main()
