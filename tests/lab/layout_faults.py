# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A kernel that fails on purpose: what the modules say of it, and that the next run finishes the work.

layout_faults.py KERNEL INITRD     on a host of eight CPUs with /root/modules, as root, whose kernel was built
                                   with CONFIG_MULTIKERNEL_FAULT_INJECTION
"""

import os
import subprocess
import time
from pathlib import Path

from layout_lab import Run, arguments, check, fail, nothing, online, run, total_memory, whole

KERNEL, INITRD, _DICE = arguments()
FAULTS = Path("/sys/kernel/debug/multikernel")
POOL_CPUS, POOL_MEMORY = 4, 768 << 20
POOL = {"cpus": "2-5", "memory": POOL_MEMORY}
DEFAULTS = {
    "state": "started",
    "kernel": KERNEL,
    "initrd": INITRD,
    "cmdline": "loglevel=5",
    "memory": "128M",
    "wait_for": "^mkops-facts",
    "timeout": 120,
}
RED = {"name": "red", "cpus": "2"}


def arm(fault, times=1):
    """The next so many tries fail."""
    (FAULTS / fault / "times").write_text(str(times))
    (FAULTS / fault / "probability").write_text("100")


def left(fault):
    """How many of them are still to come."""
    return int((FAULTS / fault / "times").read_text())


def disarm():
    for path in FAULTS.glob("*/probability"):
        path.write_text("0")


def layout(*instances, pool=None, **wish):
    return {
        "pool": pool or POOL,
        "instances": list(instances),
        "defaults": {**DEFAULTS, **wish.pop("defaults", {})},
        **wish,
    }


def red():
    return next(one for one in run("info")["instances"] if one["name"] == "red")


def fails(what, wish, *words):
    """The module fails, and its message has the words."""
    result = Run("layout", **wish).result()
    check(f"{what}: it fails: {result}", result and result.get("failed"))
    for word in words:
        check(f"{what}: '{word}' is in: {result['msg']}", word in result["msg"])
    print(f"ok  {what}: {result['msg']}", flush=True)
    return result


def goes_on(what, wish):
    """The next run makes it so, and one more finds nothing to do; steps of the first."""
    disarm()
    result = run("layout", **wish)
    check(f"{what}: the next run changed nothing", result["changed"])
    check(f"{what}: there is still something to do", not run("layout", **wish)["changed"])
    if wish["pool"] == POOL:
        whole(POOL_CPUS, POOL_MEMORY, wish["instances"], DEFAULTS)
    print(f"ok  {what}: then {', '.join(result['steps'])}", flush=True)
    return result


def pools():
    half = {"cpus": "2-3", "memory": "256M"}
    run("pool", **half)
    wish = layout()
    arm("overlay_half")
    fails("half of a larger pool", wish, "the pool is now", "injected")
    goes_on("half of a larger pool", wish)

    arm("pool_memory_busy")
    away = layout(pool={"state": "absent"})
    fails("CPUs go back, memory does not", away, "the pool is now", "injected")
    goes_on("CPUs go back, memory does not", away)

    (FAULTS / "pool_slow/ms").write_text("20000")
    arm("pool_slow")
    began = time.monotonic()
    check("a slow pool: it is made", run("layout", **wish)["changed"])
    seconds = time.monotonic() - began
    check(f"a slow pool: it took {seconds:.0f} s", seconds >= 20)
    print(f"ok  a slow pool: made in {seconds:.0f} s", flush=True)


def loading():
    wish = layout(RED)
    arm("load_busy", 2)
    result = run("layout", **wish)
    check("a busy loader: it was asked again", left("load_busy") == 0)
    check("a busy loader: it runs", red()["state"] == "active")
    print(
        f"ok  a busy loader: {len([one for one in result['commands'] if ' load ' in one])} tries", flush=True
    )
    run("layout", **layout(prune=True, defaults={"force": True}))

    arm("load_busy", 100)
    fails("a loader that stays busy", wish, "instance red: after kerf load it is ready, not loaded")
    goes_on("a loader that stays busy", wish)
    run("layout", **layout(prune=True, defaults={"force": True}))

    arm("start_fails")
    fails("a start that fails", wish, "instance red: after kerf start it is loaded, not active")
    goes_on("a start that fails", wish)


def resizing():
    epoch = red()["epoch"]
    more = layout({**RED, "cpus": "2-3"})
    arm("cpu_add_fails")
    fails("a CPU that does not come", more, "instance red has CPU 2 and 128 MiB instead of CPUs 2-3")
    goes_on("a CPU that does not come", more)
    more = layout({**RED, "cpus": "2-3", "memory": "256M"})
    arm("mem_add_fails")
    fails("memory that does not come", more, "instance red has CPUs 2-3 and 128 MiB instead of")
    goes_on("memory that does not come", more)
    check("neither has cost a restart", red()["epoch"] == epoch)


def stopping():
    stopped = layout({**RED, "cpus": "2-3", "memory": "256M", "state": "stopped"})
    arm("halt_lost")
    fails("a halt that is not heard", stopped, "it is active, not loaded", "force: true")
    goes_on("a halt that is not heard", stopped)

    started = layout({**RED, "cpus": "2-3", "memory": "256M"})
    run("layout", **started)
    arm("exit_lost")
    crash()
    deadline = time.monotonic() + 60
    while red()["stats"].get("heartbeat_age_ms", 0) < 11000:
        if time.monotonic() > deadline:
            fail(f"an end that nobody hears of: {red()}")
        time.sleep(0.5)
    check("an end that nobody hears of: it looks active", red()["state"] == "active")
    fails("an end that nobody hears of", stopped, "it is active, not loaded", "force: true")
    forced = layout({**RED, "cpus": "2-3", "memory": "256M", "state": "stopped", "force": True})
    goes_on("an end that nobody hears of", forced)
    check(f"it was lost: {red()}", red()["exit_reason"] == "lost")
    check("it starts again", run("layout", **started)["changed"])


def crash():
    """By its console."""
    console = os.open("/dev/mktty", os.O_RDWR)
    os.write(console, f"{red()['id']}\n".encode())
    os.write(console, b"echo c > /proc/sysrq-trigger\n")
    os.close(console)


def main():
    if not os.path.ismount("/sys/kernel/debug"):
        subprocess.run(["mount", "-t", "debugfs", "debugfs", "/sys/kernel/debug"], check=True)
    check(f"{FAULTS} is there", FAULTS.is_dir())
    began = time.monotonic()
    disarm()
    nothing()
    before = online(), total_memory()
    pools()
    loading()
    resizing()
    stopping()
    disarm()
    nothing()
    now = online(), total_memory()
    check(f"the host has what it had: {before} {now}", before == now)
    print(f"all faults met, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
