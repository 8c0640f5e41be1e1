# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fail unless a wheel is the released one, and what is installed byte for byte what it holds, no module more.

verify_wheel.py WHEEL SHA256                before it is installed
verify_wheel.py WHEEL SHA256 ENVIRONMENT    afterwards
"""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path


def differences(wheel: Path, sha256: str, environment: Path | None = None) -> list[str]:
    if not wheel.is_file():
        return [f"{wheel} is missing"]
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != sha256:
        return [f"{wheel} does not have the SHA-256 {sha256}"]
    if environment is None:
        return []
    places = sorted(environment.glob("lib/python3*/site-packages"))
    if len(places) != 1:
        return [f"{environment} is not a virtual environment with one Python"]
    found = []
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        for name in names:
            installed = places[0] / name
            if name.endswith(".dist-info/RECORD"):
                continue  # the installer adds lines of its own
            if not installed.is_file():
                found.append(f"{installed} is missing")
            elif installed.read_bytes() != archive.read(name):
                found.append(f"{installed} is not as released")
    for package in sorted({name.split("/")[0] for name in names if name.endswith(".py")}):
        known = {places[0] / name for name in names}
        found += [f"{path} was added" for path in (places[0] / package).rglob("*.py") if path not in known]
    return found


if __name__ == "__main__":
    problems = differences(Path(sys.argv[1]), sys.argv[2], *map(Path, sys.argv[3:]))
    if problems:
        sys.exit("\n".join(problems))
    print(f"{sys.argv[-1] if sys.argv[3:] else 'it'} is as released in {Path(sys.argv[1]).name}")
