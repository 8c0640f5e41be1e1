# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Make the initramfs of a spawned kernel: busybox, the scripts beside this file, kerf's agent, programs.

The agent finds what it is to start, and to keep, on the kernel's command line. The boot configuration at the
end of the image puts it there.

The same inputs give the same bytes. A file that already has them is left alone.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import os
import stat
import subprocess
import sys
import types
from pathlib import Path

HERE = Path(__file__).resolve().parent
FACT = "etc/ansible/facts.d/mkops.fact"
ELF_INTERPRETER = 3
BOOT_CONFIGURATION = 'kernel.kerf.entrypoint = "/sbin/kerf-entrypoint"\n'


def _of_the_collection(name: str) -> types.ModuleType:
    """A file of module_utils, which this program runs beside without being part of a package."""
    path = HERE.parents[2] / f"plugins/module_utils/build/{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cpio = _of_the_collection("cpio")


def archive(busybox: bytes, agent: bytes | None, programs: dict[Path, bytes]) -> bytes:
    directory, program = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755
    base = ("bin", "dev", "etc", "etc/ansible", "etc/ansible/facts.d", "proc", "root", "sbin", "sys", "tmp")
    parents = {str(parent)[1:] for path in programs for parent in path.parents} - {"", *base}
    members = [
        *((name, directory) for name in (*base, *sorted(parents))),
        ("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)),
        ("bin/busybox", program, busybox),
        ("bin/mkops-facts", program, (HERE / "mkops-facts").read_bytes()),
        ("sbin/mkops-lease", program, (HERE / "mkops-lease").read_bytes()),
        ("sbin/mkops-network", program, (HERE / "debian/usr/sbin/mkops-network").read_bytes()),
        # Somebody to be: shells and Ansible look for the home of root.
        ("etc/passwd", stat.S_IFREG | 0o644, b"root::0:0:root:/root:/bin/sh\n"),
        ("etc/group", stat.S_IFREG | 0o644, b"root:x:0:\n"),
        (FACT, program, (HERE / "debian" / FACT).read_bytes()),
        ("sbin/poweroff", program, (HERE / "poweroff").read_bytes()),
        # There is no other name for a shell before it has run.
        ("init", program, b"#!/bin/busybox sh\n" + (HERE / "init").read_bytes()),
    ]
    if agent is not None:
        members.append(("sbin/kerf-init", program, agent))
        members.append(("sbin/kerf-entrypoint", program, (HERE / "kerf-entrypoint").read_bytes()))
    members += ((str(path)[1:], program, data) for path, data in sorted(programs.items()))
    members.append((cpio.TRAILER, 0))
    return b"".join(cpio.member(number, *member) for number, member in enumerate(members, start=1))


def is_elf(program: bytes) -> bool:
    """For 64-bit machines."""
    return program[:5] == b"\x7fELF\x02"


def interpreter(program: bytes) -> str | None:
    """The dynamic loader that an ELF program names among its program headers; a static one names none."""
    offset = int.from_bytes(program[32:40], "little")
    size = int.from_bytes(program[54:56], "little")
    count = int.from_bytes(program[56:58], "little")
    for at in range(offset, offset + size * count, size):
        if int.from_bytes(program[at : at + 4], "little") == ELF_INTERPRETER:
            where = int.from_bytes(program[at + 8 : at + 16], "little")
            length = int.from_bytes(program[at + 32 : at + 40], "little")
            return program[where : where + length].rstrip(b"\0").decode()
    return None


def is_static(program: bytes) -> bool:
    return is_elf(program) and interpreter(program) is None


def with_libraries(paths: list[Path]) -> dict[Path, bytes]:
    """Contents of programs and of the shared libraries that their dynamic loader finds for them here."""
    found: dict[Path, bytes] = {}
    reasons = []
    for path in paths:
        try:
            if not path.is_absolute():
                raise OSError(0, "the path has to be absolute, because it is the same in the image")
            found[path] = program = path.read_bytes()
            loader = interpreter(program) if is_elf(program) else None
            if loader is None:  # static, or a script
                continue
            found[Path(loader)] = Path(loader).read_bytes()
            listed = subprocess.run(
                [loader, "--list", str(path)], check=False, capture_output=True, text=True, env={}
            )
            # "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f...)"
            names = [line.split("=>")[1].split()[0] for line in listed.stdout.splitlines() if "=>" in line]
            if listed.returncode or "not" in names:
                raise OSError(
                    0, f"some of its libraries are missing here: {listed.stdout}{listed.stderr}".strip()
                )
            found |= {Path(name): Path(name).read_bytes() for name in names}
        except OSError as error:
            reasons.append(f"program {path}: {error.strerror}")
    if reasons:
        sys.exit("\n".join(reasons))
    return found


def read_program(path: Path, remedy: str) -> bytes:
    try:
        program = path.read_bytes()
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}: {remedy}")
    if not is_static(program):
        sys.exit(f"{path} is not a static 64-bit ELF program: {remedy}")
    return program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busybox", type=Path, required=True, help="static busybox for x86-64")
    parser.add_argument("--agent", type=Path, help="kerf-init, as kerf's wheel has it")
    parser.add_argument(
        "--program", type=Path, action="append", default=[], help="goes in with its libraries; any number"
    )
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    busybox = read_program(options.busybox, "install busybox-static")
    agent = None
    if options.agent is not None:
        agent = read_program(options.agent, "take it from kerf's wheel, or make the image without an agent")
    image = gzip.compress(archive(busybox, agent, with_libraries(options.program)), mtime=0)
    if agent is not None:
        image += cpio.boot_configuration(len(image), BOOT_CONFIGURATION)
    if options.output.is_file() and options.output.read_bytes() == image:
        return
    options.output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = options.output.with_suffix(f".{os.getpid()}")
    unfinished.write_bytes(image)
    unfinished.replace(options.output)


if __name__ == "__main__":
    main()
