# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Patches: series of them, and how they get into a tree."""

from __future__ import annotations

import re
from pathlib import Path

from ..common.command import run
from ..common.errors import Failure, Refused
from ..common.files import read_text


def read_series(directory: Path) -> list[Path]:
    """The patches in order: those of the file `series` if there is one, else *.patch by name."""
    listing = directory / "series"
    if not listing.exists():
        return sorted(directory.glob("*.patch"))
    names = (line.split("#")[0].strip() for line in read_text(listing).splitlines())
    paths = [directory / name for name in names if name]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise Refused(f"{listing} lists patches that do not exist: {', '.join(missing)}")
    return paths


def patch_error(name: str, output: str) -> str:
    """Name the file and the hunks that patch(1) rejected."""
    path = ""
    rejected: list[str] = []
    for line in output.splitlines():
        if match := re.match(r"(?:patching|checking) file '?(.+?)'?$", line):
            path = match[1]
        elif match := re.match(r"Hunk #(\d+) FAILED at (\d+)", line):
            rejected.append(f"{path} hunk {match[1]} at line {match[2]}")
        elif match := re.match(r"\|(?:---|\+\+\+) (\S+)", line):
            path = match[1]
        elif "can't find file to patch" in line or "ignored" in line:
            rejected.append(f"{path}: {line.strip()}" if path else line.strip())
    reason = "; ".join(rejected) or output.strip()[-500:]
    return f"patch {name} does not apply: {reason}"


def apply_patch(tree: Path, patch: Path, name: str) -> None:
    strict = ["--batch", "--forward", "--fuzz=0", "--no-backup-if-mismatch", "--reject-file=-"]
    done = run(["patch", "-p1", *strict, "-i", patch], cwd=tree, inherit=True)
    if done.rc:
        raise Failure(patch_error(name, done.stdout + done.stderr), done.details(), patch=str(patch))
