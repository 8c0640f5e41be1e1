# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Programs that a kernel's build needs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from ..common.command import must

# What must be there, and the Debian package that brings it.
TOOLS = {
    "gcc": "gcc",
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "patch": "patch",
    "xz": "xz-utils",
    "cpio": "cpio",
    "depmod": "kmod",
    "rsync": "rsync",
    "objcopy": "binutils",
    "/usr/include/gelf.h": "libelf-dev",
    "/usr/include/openssl/opensslv.h": "libssl-dev",
}


def missing_tools(more: Mapping[str, str]) -> list[str]:
    """One reason for all tools that a build needs, these and those of any build, and the machine has not."""
    needed = {**TOOLS, **more}
    absent = [tool for tool in needed if not (Path(tool).exists() if tool[0] == "/" else shutil.which(tool))]
    if not absent:
        return []
    packages = " ".join(sorted({needed[tool] for tool in absent}))
    return [f"{', '.join(absent)} missing on the build host; install the packages: {packages}"]


def toolchain() -> tuple[str, ...]:
    """The compiler, assembler and linker by their own words."""

    def first_line(tool: str) -> str:
        return must([tool, "--version"], f"ask {tool} for its version").stdout.splitlines()[0]

    return tuple(first_line(tool) for tool in ("gcc", "as", "ld"))
