# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Two controllers want different things of one host while it does what it does at boot: it is one of the two.

at_once.py INVENTORY HOST ROUNDS KERNEL INITRD     on the controller; CPUs 2 and 3 are the pool of the host

Whatever comes first, the host is in the end what is declared, that is what the one or the other has declared
as a whole, in its instances, their units and what systemd is told of them.
"""

import json
import random
import subprocess
import sys
import time

LONGEST = 300  # seconds until all that was started has ended
MODULE = "mkops.multikernel.layout"


def begin(inventory, host, module, words):
    return subprocess.Popen(
        ["ansible", "--inventory", inventory, host, "--module-name", module, "--args", words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process):
    out, _none = process.communicate(timeout=LONGEST)
    return process.returncode, out


class Host:
    def __init__(self, inventory, name):
        self.inventory, self.name = inventory, name

    def said(self, *argv):
        rc, out = end(begin(self.inventory, self.name, "ansible.builtin.command", " ".join(argv)))
        head, _newline, rest = out.partition(" >>\n")
        if rc or "| rc=0" not in head:
            sys.exit(f"{' '.join(argv)}: {out}")
        return rest

    def unit(self, name):
        return self.said("systemctl", "show", "--value", "--property=ActiveState", f"mkops@{name}").strip()


def options(kernel, initrd, red, blue):
    return {
        "at_boot": True,
        "prune": True,
        "defaults": {
            "kernel": kernel,
            "initrd": initrd,
            "memory": "256M",
            "cmdline": "loglevel=5",
            "wait_for": "^mkops-facts",
            "timeout": 240,
            "allow_restart": True,
        },
        "instances": {"red": {"cpus": 2, **red}, "blue": {"cpus": 3, **blue}},
    }


def main():
    inventory, name, rounds, kernel, initrd = sys.argv[1:]
    host = Host(inventory, name)
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    print(f"seed {seed}", flush=True)
    wishes = {
        "runs": options(kernel, initrd, {"state": "started", "watchdog": 60}, {"state": "started"}),
        "rests": options(kernel, initrd, {"state": "started", "restart": "always"}, {"state": "stopped"}),
    }
    seen = set()
    for number in range(1, int(rounds) + 1):
        jobs = [(key, MODULE, json.dumps(wish)) for key, wish in wishes.items()]
        jobs.append(("boot", "ansible.builtin.command", "systemctl restart mkops-pool mkops-start"))
        chance.shuffle(jobs)
        running = {}
        for key, module, words in jobs:
            running[key] = begin(inventory, name, module, words)
            time.sleep(chance.uniform(0, 4))
        ended = {key: end(process) for key, process in running.items()}
        begun = time.monotonic()
        while (unit := host.unit("blue")) in ("activating", "deactivating"):
            if time.monotonic() - begun > LONGEST:
                sys.exit(f"mkops@blue is {unit} for ever: {ended}")
            time.sleep(1)
        facts = json.loads(host.said("mkops", "status", "--json"))
        states = {one["name"]: one["state"] for one in facts["instances"]}
        declared = facts["at_boot"]["layout"]["instances"]
        last = "runs" if declared["blue"]["state"] == "started" else "rests"
        seen.add(last)
        for which in ("red", "blue"):
            wished = wishes[last]["instances"][which]
            kept = {key: declared[which].get(key) for key in ("state", "restart", "watchdog")}
            if kept != {key: wished.get(key) for key in kept}:
                sys.exit(f"round {number}: declared is {declared}, of both: {ended}")
        wanted = {"red": "active", "blue": "active" if last == "runs" else "loaded"}
        if states != wanted or facts["at_boot"]["drift"] or facts["at_boot"]["reasons"]:
            sys.exit(f"round {number}: {states}, {facts['at_boot']}, and {last} came last: {ended}")
        if unit != ("active" if last == "runs" else "inactive"):
            sys.exit(f"round {number}: mkops@blue is {unit}, and {last} came last: {ended}")
        if not (said := host.said("mkops", "apply", "--check")).startswith("nothing to do"):
            sys.exit(f"round {number}: mkops apply would do something: {said}; {ended}")
        # Who waits for blue to be ready while the other one stops it, is told.
        failed = {key for key, (rc, _out) in ended.items() if rc}
        if failed - ({"runs"} if last == "rests" else set()):
            sys.exit(f"round {number}: {failed} failed: {ended}")
        order = ", ".join(key for key, _module, _words in jobs)
        print(f"{number}: {order}; {last} came last, failed: {', '.join(failed) or 'none'}", flush=True)
    print(f"came last: {', '.join(sorted(seen))}")


if __name__ == "__main__":
    main()
