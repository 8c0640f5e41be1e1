# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Programs that a kernel's build needs."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..common.command import must, run

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


NONE = "none"
GCC_PLUGINS = "gcc plugins"
# Options that are off where Kconfig does not find a program, and the Debian packages that have it.
ASKED_BY = {
    "DEBUG_INFO_BTF": ("pahole", "dwarves"),
    "RUST": ("rustc", "rustc rust-src bindgen"),
    "GCC_PLUGINS": (GCC_PLUGINS, "gcc-N-plugin-dev, N as in gcc --version"),
}


def missing_tools(more: Mapping[str, str]) -> list[str]:
    """One reason for all tools that a kernel's build needs, these and those of any, and that are missing."""
    return absent_tools({**TOOLS, **more})


def absent_tools(needed: Mapping[str, str]) -> list[str]:
    """One reason for all programs that the machine has not; needed: them and the packages that have them."""
    absent = [tool for tool in needed if not (Path(tool).exists() if tool[0] == "/" else shutil.which(tool))]
    if not absent:
        return []
    packages = " ".join(sorted({needed[tool] for tool in absent}))
    return [f"not on the build host: {', '.join(absent)}; install {packages}"]


def toolchain() -> tuple[str, ...]:
    """What Kconfig finds out about programs, by their own words: a line for each that it probes.

    On x86 with gcc these are the compiler and its headers for plugins, the assembler and linker (nm, ar
    and objcopy come with them), pahole, and rustc with bindgen and its libclang. It counts whether one is
    there at all: options come and go with it. clang and lld are not asked: nothing here compiles with them.
    """
    lines = [must([tool, "--version"], f"ask {tool} for its version").stdout for tool in ("gcc", "as", "ld")]
    plugins = Path(_said(["gcc", "-print-file-name=plugin"])[0], "include/plugin-version.h").is_file()
    rustc = [line for line in _said(["rustc", "-vV"]) if line.startswith(("rustc ", "LLVM ", NONE))]
    probed = {
        GCC_PLUGINS: "yes" if plugins else NONE,
        "pahole": _said(["pahole", "--version"])[0],
        "rustc": ", ".join(rustc) or NONE,
        "bindgen": _said(["bindgen", "--version", "workaround-for-0.69.0"])[0],
    }
    if probed["bindgen"] != NONE:
        probed["libclang"] = _libclang()
    return (*(text.splitlines()[0] for text in lines), *(f"{tool}: {said}" for tool, said in probed.items()))


def absent(symbol: str, lines: Sequence[str]) -> bool:
    """Whether a toolchain is without the program that an option needs."""
    return f"{ASKED_BY[symbol][0]}: {NONE}" in lines


def _said(argv: Sequence[str | Path]) -> list[str]:
    """What a program says of itself where make would find it; NONE if it is not there or cannot be run."""
    # As make does it: a program that needs something in a home directory is none there.
    env = {"PATH": os.environ.get("PATH", os.defpath), "HOME": "/dev/null", "LC_ALL": "C"}
    try:
        done = run(argv, env=env)
    except OSError:
        return [NONE]
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return lines if lines and not done.rc else [NONE]


def _libclang() -> str:
    """The version of the library that bindgen uses, asked as the kernel's build asks."""
    with tempfile.TemporaryDirectory() as scratch:
        header = Path(scratch, "version.h")
        header.write_text('#pragma message("clang version " __clang_version__)\n', encoding="utf-8")
        try:
            said = run(["bindgen", header]).stderr
        except OSError:
            return NONE
    match = re.search(r"clang version \S+", said)
    return match[0] if match else NONE


# What a finished configuration has make run, and the Debian packages.
_RUN_BY = {
    "KERNEL_BZIP2": ("bzip2", "bzip2"),
    "KERNEL_LZMA": ("lzma", "xz-utils"),
    "KERNEL_XZ": ("xz", "xz-utils"),
    "KERNEL_LZO": ("lzop", "lzop"),
    "KERNEL_LZ4": ("lz4", "lz4"),
    "KERNEL_ZSTD": ("zstd", "zstd"),
    "MODULE_COMPRESS_XZ": ("xz", "xz-utils"),
    "MODULE_COMPRESS_ZSTD": ("zstd", "zstd"),
    "MODULE_SIG": ("openssl", "openssl"),
    "DEBUG_INFO_BTF": ("pahole", "dwarves"),
}


def missing_for(config: Mapping[str, str]) -> list[str]:
    """A reason for every program that a configuration needs and the machine has not."""
    return [
        f"CONFIG_{symbol}=y needs {tool}, which is not on the build host; install the package {package}"
        for symbol, (tool, package) in _RUN_BY.items()
        if config.get(symbol) == "y" and not shutil.which(tool)
    ]
