# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A systemd of its own for tests, with units of a directory, in namespaces that end with it.

systemd_user.py UNIT_DIRECTORY LOG

To be run by `unshare --mount --pid --fork --mount-proc --kill-child`. Reads lines of JSON, each the words of
a command, and answers each with its return code and output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

SYSTEMD = "/lib/systemd/systemd"
RUNTIME = "/run/user"  # its own; short, because sockets are in it


def main(units: str, log: str) -> None:
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
    print(json.dumps({"ready": Path(RUNTIME, "systemd/private").exists()}), flush=True)
    for line in sys.stdin:
        done = subprocess.run(
            json.loads(line), env=env, capture_output=True, text=True, timeout=60, check=False
        )
        print(json.dumps({"rc": done.returncode, "out": done.stdout, "err": done.stderr}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
