# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A systemd of its own for tests, with units of a directory, in namespaces that end with it.

systemd_user.py UNIT_DIRECTORY LOG

To be run by `unshare --mount --pid --fork --mount-proc --kill-child`. Reads lines of JSON, each the words of
a command, and answers each with its return code and output.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

SYSTEMD = "/lib/systemd/systemd"
RUNTIME = "/run/user"  # its own; short, because sockets are in it
CGROUPS = Path("/sys/fs/cgroup")


def own_groups() -> list[str]:
    """Control groups of its own, so that several of these do not tidy up after each other."""
    made = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _number, names, path = line.split(":", 2)
        for mount in {"": ("unified", "."), "name=systemd": ("systemd",)}.get(names, ()):
            group = CGROUPS / mount / path.lstrip("/") / f"mkops-test-{uuid.uuid4().hex}"
            with contextlib.suppress(OSError):
                if (group.parent / "cgroup.procs").exists():
                    group.mkdir()
                    made.append(str(group))
                    (group / "cgroup.procs").write_text("0")
                    break
    return made


def remove_groups(groups: list[str]) -> None:
    """With all that a systemd has made in them; what runs there has to have ended."""
    for group in groups:
        for _try in range(50):
            for path in [*sorted(Path(group).rglob("*"), reverse=True), Path(group)]:
                with contextlib.suppress(OSError):
                    path.rmdir()
            if not Path(group).exists():
                break
            time.sleep(0.1)  # what was killed is about to be gone


def main(units: str, log: str) -> None:
    groups = own_groups()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    Path("/run/systemd/system").mkdir(parents=True)  # or it would not believe that there is a systemd
    Path(RUNTIME).mkdir(mode=0o700)
    env = {
        "XDG_RUNTIME_DIR": RUNTIME,
        "SYSTEMD_UNIT_PATH": f"{units}:",
        "HOME": RUNTIME,
        "PATH": os.environ["PATH"],
        "SYSTEMD_COLORS": "0",
    }
    with Path(log).open("w") as file:
        manager = subprocess.Popen(
            [SYSTEMD, "--user", "--log-target=console"], env=env, stdout=file, stderr=file
        )
    for _try in range(600):
        if Path(RUNTIME, "systemd/private").exists() or manager.poll() is not None:
            break
        time.sleep(0.1)
    ready = Path(RUNTIME, "systemd/private").exists()
    print(json.dumps({"ready": ready, "groups": groups}), flush=True)
    for line in sys.stdin:
        done = subprocess.run(
            json.loads(line), env=env, capture_output=True, text=True, timeout=60, check=False
        )
        print(json.dumps({"rc": done.returncode, "out": done.stdout, "err": done.stderr}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
