# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Kernel and initramfs files on the host: refused before kerf sees them when they are something else."""

from __future__ import annotations

import os
import stat
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..common.errors import Pending
from ..common.files import native, sha256
from .machine import Instance
from .notes import Identity
from .wish import Image

if TYPE_CHECKING:
    from ..devices.declare import Disk, Share

_ELF64_LITTLE = b"\x7fELF\x02\x01"
_X86_64 = 62
_BANNER = b"Linux version "
_CONFIG = b"IKCFG_ST"  # then gzip
_LARGEST_CONFIG = 1 << 20
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
_DOUBT = 2 * 10**9  # nanoseconds; clocks of file systems are coarse: two changes may bear the same time


class Images:
    """Reads each file once, and not at all when it is proved to be what kerf has loaded."""

    looks = True  # whether the host counts at all

    def __init__(self) -> None:
        self._read: dict[tuple[Callable[[str, bytes], Image], str], Image | ValueError] = {}
        self.identities: dict[str, Identity] = {}  # of files that were read, and not changed just now

    def kernel(self, path: str, current: Instance | None) -> Image:
        return self._look(judge_kernel, "kernel", path, current, current.kernel if current else {})

    def initrd(self, path: str, current: Instance | None) -> Image:
        return self._look(judge_initrd, "initrd", path, current, current.initrd if current else {})

    def _look(
        self,
        judge: Callable[[str, bytes], Image],
        what: str,
        path: str,
        current: Instance | None,
        record: Mapping[str, Any],
    ) -> Image:
        if current and is_unchanged(path, record, current.files.get(path)):
            return Image(path, record["size"], record["sha256"])
        if (judge, path) not in self._read:
            try:
                data, identity = _read(what, path)
                self._read[judge, path] = judge(path, data)
                if identity:
                    self.identities[path] = identity
            except ValueError as error:
                self._read[judge, path] = error
        found = self._read[judge, path]
        if isinstance(found, ValueError):
            raise found
        return found

    def disk(self, disk: Disk) -> list[str]:
        """Why a file or block device cannot be a disk. One that is to be made has to have a place."""
        reasons = []
        if disk.size is None or native(disk.path).exists():
            reasons += _path_reasons(
                "disks", disk.path, (stat.S_ISREG, stat.S_ISBLK), "a file or block device"
            )
        else:
            reasons += _path_reasons("disks", os.path.dirname(disk.path), (stat.S_ISDIR,), "a directory")
        if disk.base:
            reasons += _path_reasons(
                "disks: base", disk.base, (stat.S_ISREG, stat.S_ISBLK), "a file or block device"
            )
        return reasons

    def share(self, share: Share) -> list[str]:
        return _path_reasons("shares", share.path, (stat.S_ISDIR,), "a directory")


class NoImages(Images):
    """Reads no file: what is said is judged by itself."""

    looks = False

    def disk(self, disk: Disk) -> list[str]:
        return []

    def share(self, share: Share) -> list[str]:
        return []

    def kernel(self, path: str, current: Instance | None) -> Image:
        return Image(path, 0, "")

    def initrd(self, path: str, current: Instance | None) -> Image:
        return Image(path, 0, "")


def is_unchanged(path: str, record: Mapping[str, Any], identity: Identity | None) -> bool:
    """Whether a file is what kerf noted when it loaded it, without reading it.

    It is if it still is the file that was once read and found to be that. The time of its last change is set
    by the host's kernel alone, so that nothing was written to it since, and no other file took its place.
    """
    if identity is None or record.get("path") != path or not record.get("sha256") or "size" not in record:
        return False
    try:
        return _identity(native(path).stat()) == identity
    except OSError:
        return False


def judge_kernel(path: str, data: bytes) -> Image:
    """An x86-64 vmlinux (ELF) or bzImage; ValueError says what else it is."""
    offset, magic = _BZIMAGE
    is_bzimage = data[offset : offset + len(magic)] == magic
    is_vmlinux = data.startswith(_ELF64_LITTLE) and _BANNER in data
    if not (is_bzimage or is_vmlinux):
        raise ValueError(f"kernel {path} is neither an uncompressed vmlinux (64-bit ELF) nor a bzImage")
    if is_vmlinux and struct.unpack_from("<H", data, 18)[0] != _X86_64:
        raise ValueError(f"kernel {path} is not for x86-64")
    config = built_in_config(data)
    return Image(path, len(data), sha256(data), b"\nCONFIG_OF=y\n" in config if config else None)


def built_in_config(data: bytes) -> bytes:
    """What CONFIG_IKCONFIG put into a kernel; empty where there is none, or it is compressed with it."""
    begin = data.find(_CONFIG)
    if begin < 0:
        return b""
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(
            data[begin + len(_CONFIG) : begin + _LARGEST_CONFIG], _LARGEST_CONFIG
        )
    except zlib.error:
        return b""


def judge_initrd(path: str, data: bytes) -> Image:
    """A cpio archive, plain or compressed with what Linux unpacks; ValueError says when it is not."""
    if not data.startswith(tuple(_INITRD_MAGICS)):
        raise ValueError(
            f"initrd {path} is not an initramfs: expected a newc cpio archive,"
            f" plain or compressed ({', '.join(sorted(set(_INITRD_MAGICS.values()) - {'cpio'}))})"
        )
    return Image(path, len(data), sha256(data))


def _path_reasons(option: str, path: str, kinds: Iterable[Callable[[int], bool]], what: str) -> list[str]:
    """Why a path of the host does not lead to what it should. An earlier task may make it."""
    try:
        mode = os.stat(native(path)).st_mode
    except FileNotFoundError:
        return [Pending(f"{option}: {path} does not exist on the host")]
    except OSError as error:
        return [f"{option}: {path} cannot be used: {error.strerror}"]
    return [] if any(kind(mode) for kind in kinds) else [f"{option}: {path} is not {what}"]


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns


def _read(what: str, path: str) -> tuple[bytes, Identity | None]:
    """All of a file, and what tells whether it is changed later; None while that could go unnoticed."""
    try:
        # Not for ever, if somebody has put a pipe there.
        descriptor = os.open(native(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise ValueError(f"{what} {path} cannot be read on the host: it is not a file")
            data = file.read()
            after = os.fstat(descriptor)
    except FileNotFoundError as error:
        raise ValueError(Pending(f"{what} {path} cannot be read on the host: {error.strerror}")) from error
    except OSError as error:
        raise ValueError(f"{what} {path} cannot be read on the host: {error.strerror}") from error
    settled = _identity(before) == _identity(after) and after.st_ctime_ns + _DOUBT < time.time_ns()
    return data, _identity(after) if settled else None
