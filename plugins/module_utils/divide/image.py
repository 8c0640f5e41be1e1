# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Kernel and initramfs files on the host: refused before kerf sees them when they are something else."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

from .wish import Image

_ELF64_LITTLE = b"\x7fELF\x02\x01"
_X86_64 = 62
_BANNER = b"Linux version "
_BZIMAGE = (0x202, b"HdrS")
_INITRD_MAGICS = {
    b"070701": "cpio",
    b"070702": "cpio",
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"\x02\x21\x4c\x18": "lz4",
    b"\x5d\x00\x00": "lzma",
}
_DOUBT = 2 * 10**9  # nanoseconds; clocks of file systems are coarse, and loading takes a while


class Images:
    """Reads each file once, and not at all when it is proved to be what kerf has loaded."""

    def __init__(self) -> None:
        self._read: dict[tuple[Callable, str], Image | ValueError] = {}

    def kernel(self, path: str, record: Mapping, recorded: int) -> Image:
        return self._look(read_kernel, path, record, recorded)

    def initrd(self, path: str, record: Mapping, recorded: int) -> Image:
        return self._look(read_initrd, path, record, recorded)

    def _look(self, read: Callable[[str], Image], path: str, record: Mapping, recorded: int) -> Image:
        if is_unchanged(path, record, recorded):
            return Image(path, record["size"], record["sha256"])
        if (read, path) not in self._read:
            try:
                self._read[read, path] = read(path)
            except ValueError as error:
                self._read[read, path] = error
        found = self._read[read, path]
        if isinstance(found, ValueError):
            raise found
        return found


def is_unchanged(path: str, record: Mapping, recorded: int) -> bool:
    """Whether a file is what kerf noted when it loaded it, without reading it.

    The time of its last change is set by the kernel alone, so nothing was written to it since, and no other
    file was moved in its place. Behind a link there might be another, older file now.
    """
    if record.get("path") != path or not record.get("sha256") or os.path.realpath(path) != path:
        return False
    try:
        found = os.stat(path)
    except OSError:
        return False
    return (
        stat.S_ISREG(found.st_mode)
        and found.st_size == record.get("size")
        and found.st_ctime_ns + _DOUBT < recorded
    )


def read_kernel(path: str) -> Image:
    """An x86-64 vmlinux (ELF) or bzImage; ValueError says what else it is."""
    data = _read("kernel", path)
    offset, magic = _BZIMAGE
    is_bzimage = data[offset : offset + len(magic)] == magic
    is_vmlinux = data.startswith(_ELF64_LITTLE) and _BANNER in data
    if not (is_bzimage or is_vmlinux):
        raise ValueError(f"kernel {path} is neither an uncompressed vmlinux (64-bit ELF) nor a bzImage")
    if is_vmlinux and struct.unpack_from("<H", data, 18)[0] != _X86_64:
        raise ValueError(f"kernel {path} is not for x86-64")
    return _image(path, data)


def read_initrd(path: str) -> Image:
    """A cpio archive, plain or compressed with what Linux unpacks; ValueError says when it is not."""
    data = _read("initrd", path)
    if not data.startswith(tuple(_INITRD_MAGICS)):
        raise ValueError(
            f"initrd {path} is not an initramfs: expected a newc cpio archive,"
            f" plain or compressed ({', '.join(sorted(set(_INITRD_MAGICS.values()) - {'cpio'}))})"
        )
    return _image(path, data)


def _read(what: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{what} {path} cannot be read on the host: {error.strerror}") from error


def _image(path: str, data: bytes) -> Image:
    return Image(path, len(data), hashlib.sha256(data).hexdigest())
