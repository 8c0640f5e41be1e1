# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What becomes of an instance when it ends, from each policy to others: check, apply, check, apply.

service_transitions.py NAME     on a host whose layout is declared for boot, beside the modules, as root

Changed, changed, not, not; the file says what is wished, systemd has it, no kernel was touched. In the end
the host is as it was.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from layout_lab import check, fingerprint, run

NAME = sys.argv[1]
UNIT = f"mkops@{NAME}.service"
FILE = Path("/etc/mkops/layout.json")
LATE = 75  # seconds, after which a unit that runs has a changed watchdog
DROP_IN = Path(f"/etc/systemd/system/{UNIT}.d/50-mkops.conf")

# What systemd makes of each option: property of the unit, and its value.
SHOWN = {
    "restart": ("Restart", str),
    "restart_delay": ("RestartUSec", "{}s".format),
    "restart_delay_max": ("RestartMaxDelayUSec", "{}s".format),
    "restart_steps": ("RestartSteps", str),
    "restart_limit": ("StartLimitBurst", str),
    "restart_interval": ("StartLimitIntervalUSec", "{}s".format),
    "watchdog": ("WatchdogUSec", "{}s".format),
}
OPTIONS = (*SHOWN, "crash_keep", "crash_size", "crash_memory")
GROWING = {"restart": "on-failure", "restart_delay": 7, "restart_delay_max": 40, "restart_steps": 3}
POLICIES = {
    "nothing": {},
    "restart: no": {"restart": "no"},
    "restart: on-failure": {"restart": "on-failure"},
    "restart: always": {"restart": "always"},
    "a delay": {"restart": "always", "restart_delay": 7},
    "a growing delay": GROWING,
    "a limit": {"restart": "on-failure", "restart_limit": 3, "restart_interval": 50},
    "watchdog": {"watchdog": 45},
    "another watchdog": {"watchdog": 50},
    "crash_keep": {"crash_keep": 3},
    "crash_size": {"crash_size": "64M"},
    "crash_memory": {"crash_memory": True},
    "all": {**GROWING, "restart_limit": 3, "crash_keep": 3, "crash_size": "64M", "crash_memory": True},
}


def declared():
    return json.loads(FILE.read_text())


def unit():
    names = ",".join(["ActiveState", *(name for name, _value in SHOWN.values())])
    asked = ["systemctl", "show", UNIT, f"--property={names}"]
    shown = subprocess.run(asked, check=True, capture_output=True, encoding="utf-8").stdout
    return dict(line.split("=", 1) for line in shown.splitlines())


def four_times(what, module, expected, **params):
    """expected: whether there is something to do."""
    machine, before = fingerprint(), FILE.read_bytes()
    runs = [run(module, check=True, **params)]
    check(f"{what}: the first check left the file as it was", FILE.read_bytes() == before)
    runs.append(run(module, **params))
    after = FILE.read_bytes() if FILE.exists() else b""
    runs += [run(module, check=True, **params), run(module, **params)]
    check(f"{what}: the second round left it so", (FILE.read_bytes() if FILE.exists() else b"") == after)
    changed = [one["changed"] for one in runs]
    check(f"{what}: changed was {changed}", changed == [expected, expected, False, False])
    check(f"{what}: check foresaw the steps", runs[0]["steps"] == runs[1]["steps"])
    check(f"{what}: check foresaw the difference", runs[0]["diff"] == runs[1]["diff"])
    check(f"{what}: no kernel was touched", fingerprint() == machine)
    print(f"ok  {what}: {', '.join(runs[1]['steps']) or 'nothing'}", flush=True)


def policy_holds(what, policy, untouched):
    """untouched: what systemd has of a unit of which nothing is said."""
    kept = {key: value for key, value in declared()["instances"][NAME].items() if key in policy}
    check(f"{what}: the file says {kept}, wished {policy}", kept == policy)
    wished = {SHOWN[key][0]: SHOWN[key][1](value) for key, value in policy.items() if key in SHOWN}
    wished["ActiveState"] = "active"
    for key in ("restart", "watchdog"):
        wished.setdefault(SHOWN[key][0], untouched[SHOWN[key][0]])
    deadline = time.monotonic() + LATE
    while True:
        shown = unit()
        differs = {name: shown[name] for name, value in wished.items() if shown[name] != value}
        if not differs:
            break
        check(f"{what}: systemd has {differs}, wished {wished}", time.monotonic() < deadline)
        time.sleep(0.5)


def main():
    began = time.monotonic()
    base = declared()
    bare = {key: value for key, value in base["instances"][NAME].items() if key not in OPTIONS}
    number = 0

    def layout(policy):
        return {**base, "at_boot": True, "instances": {**base["instances"], NAME: {**bare, **policy}}}

    # From each to the next, and to all of them and back.
    run("layout", **layout({}))
    check("nothing is said of its unit", not DROP_IN.exists())
    untouched = unit()
    former, every = bare, POLICIES["all"]
    for name, policy in POLICIES.items():
        # A unit that runs takes its time to have a watchdog.
        more = () if "watchdog" in policy else ((f"{name}, to all", every), (f"all, to {name}", policy))
        for what, wished in ((name, policy), *more):
            four_times(f"layout: {what}", "layout", {**bare, **wished} != former, **layout(wished))
            policy_holds(what, wished, untouched)
            former = {**bare, **wished}
            number += 1
    for name in ("restart: always", "all", "nothing"):
        four_times(f"instance: {name}", "instance", True, name=NAME, at_boot=True, **bare, **POLICIES[name])
        policy_holds(name, POLICIES[name], untouched)
        number += 1

    # What is declared at all.
    for module, wish in (("instance", {"name": NAME, **bare}), ("pool", base["pool"])):
        four_times(f"{module}: said nothing", module, False, **wish)
        four_times(f"{module}: not at boot", module, True, at_boot=False, **wish)
        four_times(f"{module}: at boot", module, True, at_boot=True, **wish)
        number += 3
    four_times("layout: as it was", "layout", base["instances"][NAME] != bare, **base, at_boot=True)
    check("the file says what it said", declared() == base)
    print(f"{number + 1} transitions, four runs each, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
