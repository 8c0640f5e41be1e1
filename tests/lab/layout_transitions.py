# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every module from every state to every other: check, apply, check, apply is changed, changed, not, not.

layout_transitions.py KERNEL INITRD     on a host of eight CPUs with /root/modules, as root

The table is generated: from each state that an instance can have to each that can be wished, with the
image that is loaded and with another one; and from each pool to each other. The first check leaves the
kernel's files as they were, byte for byte.
"""

import itertools
import time

from layout_lab import arguments, check, fingerprint, nothing, online, run, total_memory

KERNEL, INITRD, _DICE = arguments()
MIB = 1 << 20

STATES = ("absent", "ready", "loaded", "active")
WISHES = {
    "absent": (None,),
    "present": ("ready", "loaded", "active"),
    "loaded": ("loaded", "active"),
    "started": ("active",),
    "stopped": ("loaded",),
}
TO_REACH = {"absent": "absent", "ready": "present", "loaded": "loaded", "active": "started"}
POOL = {"cpus": "2-7", "memory": "1G"}
POOLS = {
    "absent": {"state": "absent"},
    "small": {"cpus": "6-7", "memory": "256M"},
    "other": {"cpus": "4-5", "memory": "256M"},
    "large": {"cpus": "2-7", "memory": "1G"},
    "by count": {"cpu_count": 3, "memory": "256M"},
    "by rest": {"cpus": "all but 3", "memory": "512M"},
}
IMAGE = {"kernel": KERNEL, "initrd": INITRD}
SAME = {**IMAGE, "cmdline": "loglevel=5"}
OTHER = {**IMAGE, "cmdline": "loglevel=4"}
ROOM = {"cpus": "2-3", "memory": "128M"}
SIZES = {
    "as it is": {},
    "more CPUs": {"cpus": "2-4"},
    "fewer CPUs": {"cpus": "2"},
    "other CPUs": {"cpus": "2,5"},
    "more memory": {"memory": "256M"},
    "all": {"cpus": "2,5-6", "memory": "384M"},
}


def instance(**wish):
    return "instance", {"name": "red", "force": True, "allow_restart": True, **wish}


def layout(**wish):
    one = instance(**wish)[1]
    return "layout", {"pool": POOL, "instances": [one]}


def status():
    states = {one["name"]: one["state"] for one in run("info")["instances"]}
    return states.get("red")


def four_times(what, module, params, expected):
    """expected: whether there is something to do; None when only the four have to agree."""
    before = fingerprint()
    runs = [run(module, check=True, **params)]
    check(f"{what}: the first check left the kernel's files as they were", fingerprint() == before)
    runs.append(run(module, **params))
    after = fingerprint()
    runs += [run(module, check=True, **params), run(module, **params)]
    check(f"{what}: the second round left them as they were", fingerprint() == after)
    changed = [one["changed"] for one in runs]
    first = changed[0] if expected is None else expected
    check(f"{what}: changed was {changed}", changed == [first, first, False, False])
    check(
        f"{what}: steps {runs[0]['steps']} were foretold, taken were {runs[1]['steps']}",
        runs[0]["steps"] == runs[1]["steps"],
    )
    check(
        f"{what}: what was foretold differs: {runs[0]['diff']} {runs[3]['diff']}",
        runs[0]["diff"]["after"] == runs[3]["diff"]["before"] or module == "layout",
    )
    return runs[1]


def instances():
    """Every state to every wish, by both modules that can."""
    number = 0
    for make, start, wished, image in itertools.product((instance, layout), STATES, WISHES, (SAME, OTHER)):
        differs = image is OTHER
        if differs and start not in ("loaded", "active"):
            continue
        reach(start)
        check(f"{start} was reached", status() == (None if start == "absent" else start))
        arrive = WISHES[wished]
        there = None if start == "absent" else start
        expected = there not in arrive or (differs and wished not in ("absent", "present"))
        room = {} if wished == "absent" else ROOM
        module, params = make(state=wished, **(image if wished != "absent" else {}), **room)
        what = f"{module}: from {start} to {wished}{' with another image' if differs else ''}"
        result = four_times(what, module, params, expected)
        check(f"{what}: it is {status()}", status() in arrive)
        print(f"ok  {what}: {', '.join(result['steps']) or 'nothing'}", flush=True)
        number += 1
        reach("absent")
    return number


def reach(state):
    """By the module instance."""
    wish = {} if state == "absent" else {**SAME, **ROOM}
    run("instance", **instance(state=TO_REACH[state], **wish)[1])


def sizes():
    """What it has, while it is reserved and while it runs."""
    number = 0
    for state, (name, size), make in itertools.product(
        ("present", "started"), SIZES.items(), (instance, layout)
    ):
        reach({"present": "ready", "started": "active"}[state])
        epoch = run("info")["instances"][0]["epoch"]
        module, params = make(state=state, **SAME, **{**ROOM, **size})
        what = f"{module}: {state} with {name}"
        result = four_times(what, module, params, bool(size))
        now = run("info")["instances"][0]
        check(f"{what}: it was restarted", now["epoch"] == epoch)
        print(f"ok  {what}: {', '.join(result['steps']) or 'nothing'}", flush=True)
        number += 1
        reach("absent")
    return number


def pools():
    number = 0
    for start, wished, module in itertools.product(POOLS, POOLS, ("pool", "layout")):
        if not reachable(start, wished):
            continue
        nothing()
        if start != "absent":
            run("pool", **POOLS[start])
        params = POOLS[wished] if module == "pool" else {"pool": POOLS[wished]}
        what = f"{module}: from {start} to {wished}"
        result = four_times(what, module, params, None)
        print(f"ok  {what}: {', '.join(result['steps']) or 'nothing'}", flush=True)
        number += 1
    nothing()
    return number


def reachable(start, wished):
    """A pool of one piece cannot become a smaller one but none."""
    sizes = {"256M": 1, "512M": 2, "1G": 4}
    have, want = (sizes.get(POOLS[name].get("memory"), 0) for name in (start, wished))
    return want >= have or want == 0


def main():
    began = time.monotonic()
    nothing()
    before = online(), total_memory()
    number = pools()
    run("pool", **POOL)
    number += instances()
    number += sizes()
    nothing()
    check(
        f"the host has what it had: {before} {(online(), total_memory())}",
        (online(), total_memory()) == before,
    )
    print(f"{number} transitions, four runs each, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
