# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files, commands and EFI variables of the host: all that its boot loader and its kernels are reached by."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..common.command import SYSTEM_PATH, Done, must
from ..common.errors import Failure
from ..common.files import below, read_text, write_file

EFI = "/sys/firmware/efi"
EFI_VARIABLES = f"{EFI}/efivars"
# Of the variables of all boot loaders: https://systemd.io/BOOT_LOADER_INTERFACE
VENDOR = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
ATTRIBUTES = 4  # bytes before the data of an EFI variable
_ENVIRONMENT = {"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
_LINKS = 40  # as many as the kernel follows


@dataclass
class Access:
    """Paths are those of the host; root is where it is found."""

    root: str = "/"

    def at(self, path: str) -> Path:
        return below(self.root, path)

    def text(self, path: str) -> str:
        """For looking at: bytes that are no UTF-8 are replaced; empty if it cannot be read."""
        try:
            return self.at(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def exact(self, path: str) -> str:
        """For writing it again, or telling names apart: each byte is kept; empty if there is none."""
        try:
            return read_text(self.at(path))
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise Failure(f"cannot read {path}: {error.strerror}") from error

    def write(self, path: str, text: str, mode: int | None = None) -> None:
        """All of it or nothing, and on the disk before anything restarts. What a link names is written.

        mode: by default that of the file, or 0644 for a new one.
        """
        target = self._followed(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if mode is None:
                mode = target.stat().st_mode & 0o7777 if target.exists() else 0o644
            write_file(target, text, mode)
        except OSError as error:
            raise Failure(f"cannot write {path}: {error.strerror}") from error

    def tell(self, path: str, text: str) -> None:
        """Write into a file of the kernel, which acts on it at once."""
        try:
            descriptor = os.open(self.at(path), os.O_WRONLY)
            try:
                os.write(descriptor, text.encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            raise Failure(f"the kernel does not take {text.strip()} in {path}: {error.strerror}") from error

    def _followed(self, path: str) -> Path:
        target = self.at(path)
        for _step in range(_LINKS):
            if not target.is_symlink():
                return target
            link = target.readlink()
            target = self.at(str(link)) if link.is_absolute() else target.parent / link
        raise Failure(f"cannot write {path}: too many levels of symbolic links")

    def run(
        self, argv: Sequence[str], purpose: str, ok: Collection[int] = (0,), seconds: float = 600
    ) -> Done:
        return must(argv, purpose, ok=ok, timeout=seconds, env=_ENVIRONMENT)

    def variable(self, name: str) -> str:
        """An EFI variable of the boot loader; empty if there is none."""
        try:
            return parse_variable(self.at(f"{EFI_VARIABLES}/{name}-{VENDOR}").read_bytes())
        except OSError:
            return ""


def parse_variable(data: bytes) -> str:
    """Text of an EFI variable as efivarfs has it: UTF-16 behind the attributes, ended by NUL."""
    return data[ATTRIBUTES:].decode("utf-16-le", errors="replace").split("\0")[0]
