# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Source trees: unpacked, patched, and looked through for Kconfig files."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from ..common.command import must
from ..common.errors import Failure


def unpack(archive: Path, directory: Path) -> Path:
    """Unpack a source package or archive, or copy a tree; returns the one directory in it."""
    if archive.is_dir():
        must(["cp", "-a", "--reflink=auto", archive, directory / "linux"], f"copy {archive}", inherit=True)
    elif archive.suffix == ".deb":
        package = directory / "package"
        must(["dpkg-deb", "-x", archive, package], f"unpack {archive}", inherit=True)
        inner = sorted(package.glob("usr/src/linux-source-*.tar.*"))
        if len(inner) != 1:
            count = f"{len(inner)} archives in /usr/src instead of one"
            raise Failure(f"{archive} is not a linux-source package: it has {count}")
        must(["tar", "-xf", inner[0], "-C", directory], f"unpack {inner[0].name}", inherit=True)
        shutil.rmtree(package)
    else:
        must(["tar", "-xf", archive, "-C", directory], f"unpack {archive}", inherit=True)
    trees = [path for path in directory.iterdir() if (path / "Kbuild").is_file()]
    if len(trees) != 1:
        raise Failure(
            f"{archive} has {len(trees)} kernel trees at its top instead of one: a tree has a file Kbuild"
        )
    return trees[0]


def kconfig_texts(tree: Path) -> list[str]:
    """All Kconfig files that count for x86."""
    foreign = tree / "arch"
    return [
        path.read_text(encoding="utf-8", errors="replace")
        for path in sorted(tree.rglob("Kconfig*"))
        if path.is_file()
        and (foreign not in path.parents or path.parent == foreign or foreign / "x86" in path.parents)
    ]


def no_such_symbols(tree: Path, symbols: set[str]) -> set[str]:
    """Which of these symbols no Kconfig file of the tree defines."""
    absent = set(symbols)
    for directory, _folders, files in os.walk(tree):
        for name in files:
            if name.startswith("Kconfig"):
                text = Path(directory, name).read_text(encoding="utf-8", errors="replace")
                absent -= set(re.findall(r"^\s*(?:menu)?config\s+(\w+)", text, re.M))
        if not absent:
            break
    return absent
