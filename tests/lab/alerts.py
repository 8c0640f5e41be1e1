# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Each alert of role monitoring fires in a real Prometheus for what it is about, and it alone, and resolves.

alerts.py PLAIN HANGS LOOPS     on the host, as root; its pool has one CPU left, and its Prometheus scrapes it

Names of instances. PLAIN has no restart policy, so it is to run however it has ended. HANGS has no
watchdog, and panic=600 on its command line, with which it hangs when it panics. LOOPS is restarted 3 times.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

PROMETHEUS = "http://localhost:9090/api/v1"
CRASHES = Path("/var/lib/mkops/crashes")
LONGEST = 900  # seconds for anything; a crash loop is one as long as monitoring_crash_loop_window
LIMIT = 3  # restarts of the one that panics


def said(*argv):
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(argv)}: {done.returncode} {done.stdout} {done.stderr}")
    return done.stdout


def ask(what, **words):
    with urllib.request.urlopen(f"{PROMETHEUS}/{what}?{urllib.parse.urlencode(words)}", timeout=60) as answer:
        return json.load(answer)["data"]


def value(expression):
    """None where it has none."""
    found = ask("query", query=expression)["result"]
    return float(found[0]["value"][1]) if found else None


def firing():
    """Each as its name, and that of the instance that it is about."""
    return {
        (one["labels"]["alertname"], one["labels"].get("name", ""))
        for one in ask("alerts")["alerts"]
        if one["state"] == "firing"
    }


def until(what, condition):
    """Returns the seconds that it took."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > LONGEST:
            sys.exit(f"{what}: not within {LONGEST} s; firing: {firing()}\n{said('mkops', 'status')}")
        time.sleep(1)
    return time.monotonic() - begun


def fire(what, *wanted):
    """Until these fire; no other may."""
    wanted = set(wanted)
    took = until(f"{what}: {wanted}", lambda: wanted <= firing())
    if (now := firing()) != wanted:
        sys.exit(f"{what}: {now} fire, and not {wanted}")
    names = sorted(" ".join(one).strip() for one in wanted)
    print(f"{what}: after {took:.0f} s {', '.join(names)}", flush=True)


def resolve(what):
    took = until(f"{what}: none fires", lambda: not firing())
    print(f"{what}: after {took:.0f} s none fires", flush=True)


def status(name):
    return next(
        one for one in json.loads(said("mkops", "status", "--json"))["instances"] if one["name"] == name
    )


def crash(name):
    """Its shell does it."""
    console = os.open("/dev/mktty", os.O_RDWR | os.O_NONBLOCK)
    os.write(console, f"{status(name)['id']}\n".encode())
    os.write(console, b"\necho c > /proc/sysrq-trigger\n")
    os.close(console)


def state(name):
    return said("systemctl", "show", "--value", "--property=ActiveState", f"mkops@{name}").strip()


def scraped():
    if value('up{job="node"}') != 1:
        return False
    running = value('count(mkops_instance_state{state="active"} == 1)')
    return running is not None and running == len(json.loads(said("mkops", "status", "--json"))["instances"])


def down(name):
    said("mkops", "stop", name)
    fire(f"{name} was stopped", ("MkopsInstanceDown", name), ("MkopsDrift", ""))
    said("systemctl", "start", f"mkops@{name}")
    resolve(f"{name} was started")


def pool():
    layout = {
        "instances": {"last": {"state": "present", "cpu_count": 1, "memory": "128M"}},
    }
    file = Path("/run/mkops-last.json")
    file.write_text(json.dumps(layout))
    said("mkops", "apply", str(file))
    # To an instance that is not declared, which is a difference.
    fire("the last CPU is lent", ("MkopsPoolExhausted", ""), ("MkopsDrift", ""))
    layout["instances"]["last"] = {"state": "absent"}
    file.write_text(json.dumps(layout))
    said("mkops", "apply", str(file))
    file.unlink()
    resolve("it is back")


def hang(name):
    crash(name)
    fire(f"{name} hangs", ("MkopsHeartbeatStale", name))
    said("mkops", "stop", "--force", name)
    until(f"the unit of {name} ends", lambda: state(name) in ("inactive", "failed"))
    said("systemctl", "start", f"mkops@{name}")
    resolve(f"{name} was stopped by force, and started")


def loop(name):
    said("systemctl", "reset-failed", f"mkops@{name}")
    epoch = status(name)["epoch"]
    for number in range(LIMIT + 1):
        until(
            f"{name} runs",
            lambda number=number: state(name) == "active" and status(name)["epoch"] == epoch + number,
        )
        crash(name)
    until(f"{name} is given up", lambda: state(name) == "failed")
    fire(
        f"{name} was given up",
        ("MkopsInstanceCrashLooping", name),
        ("MkopsInstanceDown", name),
        ("MkopsDrift", ""),
        ("MkopsEvidenceDisk", ""),
    )
    kept = sorted((CRASHES / name).iterdir())
    for one in kept[-LIMIT - 1 :]:
        meta = json.loads((one / "meta.json").read_text())
        print(f"{one}: {meta['reason']}, memory {meta['memory']}", flush=True)
    said("systemctl", "reset-failed", f"mkops@{name}")
    said("systemctl", "start", f"mkops@{name}")
    for one in kept:
        shutil.rmtree(one)
    resolve(f"{name} was started, and the evidence removed")


def stale():
    said("systemctl", "stop", "mkops-metrics")
    fire("nobody writes metrics", ("MkopsMetricsStale", ""))
    said("systemctl", "start", "mkops-metrics")
    resolve("they are written again")


def main():
    plain, hangs, loops = sys.argv[1:]
    until("Prometheus has all instances", scraped)
    if value("node_textfile_scrape_error") != 0:
        sys.exit("node_exporter does not like the file")
    print(f"Prometheus {ask('status/buildinfo')['version']}", flush=True)
    print(f"alerts: {', '.join(one['name'] for one in ask('rules')['groups'][0]['rules'])}", flush=True)
    resolve("before")
    down(plain)
    pool()
    hang(hangs)
    loop(loops)
    stale()


if __name__ == "__main__":
    main()
