# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""GRUB itself, run by a test: grub-emu on a file system with the /boot of a simulated host.

It reads the real grub.cfg, custom.cfg and grubenv, and writes grubenv as it does on a machine. It has no
command `linux`; functions take its place, which say what they were given.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import struct
import subprocess
import tempfile
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

# The first kernel that is loaded ends it.
LOAD = 'function linux { echo "@linux:" "$@"; reboot; }\n'
# All is loaded, as far as FAIL allows, and what the entry does then is done.
GO_ON = """\
function linux { echo "@linux:" "$@"; if [ "$fail" = linux ]; then false; fi; }
function initrd { echo "@initrd:" "$@"; if [ "$fail" = initrd ]; then false; fi; }
"""
ASKS = "Enter username:"
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


@dataclass(frozen=True)
class Start:
    """What one start of the machine came to."""

    output: str
    ended: bool  # GRUB did not stay: in its menu, or at a question

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()

    @property
    def linux(self) -> list[str]:
        """The words of the commands that loaded a kernel."""
        return [line.split("@linux: ", 1)[1] for line in self.lines if "@linux: " in line]

    @property
    def initrd(self) -> list[str]:
        return [line.split("@initrd: ", 1)[1] for line in self.lines if "@initrd: " in line]

    @property
    def asks(self) -> bool:
        """It waits for a person with a password."""
        return ASKS in self.output


def _files(grub: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(grub.rglob("*")):
        if path.is_symlink():
            yield str(path.relative_to(grub)), bytes(path.readlink())
        elif path.is_file():
            yield str(path.relative_to(grub)), path.read_bytes()


# What GRUB did with these files, and its grubenv then: it does it again.
_known: dict[tuple[object, ...], tuple[Start, bytes | None]] = {}


def start(grub: Path, prelude: str = LOAD, patience: float = 30) -> Start:
    """Start a machine whose /boot/grub is this directory; its grubenv is afterwards as GRUB has left it."""
    key = (prelude, patience, *_files(grub))
    if key not in _known:
        _known[key] = _start(grub, prelude, patience)
    done, environment = _known[key]
    if environment is not None:
        (grub / "grubenv").write_bytes(environment)
    return done


def _start(grub: Path, prelude: str, patience: float) -> tuple[Start, bytes | None]:
    environment = None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree = folder / "tree/boot/grub"
        shutil.copytree(grub, tree, symlinks=True)
        config = tree / "grub.cfg"
        text = config.read_text(errors="surrogateescape")
        # Nobody wants to wait for the menu to pass, and there is no screen for graphics.
        text = re.sub(r"timeout=\d+\b", "timeout=0", text).replace("terminal_output gfxterm\n", "true\n")
        config.write_text(prelude + text, errors="surrogateescape")
        image = folder / "image"
        with image.open("wb") as file:
            file.truncate(2 << 20)
        make = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(folder / "tree"), str(image)]
        subprocess.run(make, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        (folder / "map").write_text(f"(hd0) {image}\n")
        argv = ["grub-emu", "-m", str(folder / "map"), "-r", "hd0", "-d", "/boot/grub"]
        done = _watch(argv, patience)
        if (grub / "grubenv").exists():
            dump = f"dump /boot/grub/grubenv {folder / 'grubenv'}"
            subprocess.run(
                ["debugfs", "-R", dump, str(image)],
                check=True,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=60,
            )
            environment = (folder / "grubenv").read_bytes()
    return done, environment


def _watch(argv: list[str], patience: float) -> Start:
    """What a program says on its terminal, and whether it ended by itself."""
    terminal, other = pty.openpty()
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 200, 4000, 0, 0))
    said = b""
    environment = {**os.environ, "TERM": "vt100"}
    with subprocess.Popen(
        argv, stdin=other, stdout=other, stderr=other, start_new_session=True, env=environment
    ) as child:
        os.close(other)
        end = time.monotonic() + patience
        ended = False
        while not ended and time.monotonic() < end and ASKS.encode() not in said:
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    data = os.read(terminal, 65536)
                except OSError:  # the other side is closed
                    data = b""
                said += data
                ended = not data
        child.kill()
    os.close(terminal)
    return Start(_ESCAPE.sub("", said.decode(errors="replace")), ended)
