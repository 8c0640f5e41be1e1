# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A root file system as a tree of entries: read from an archive, changed, and written, without being root.

The same entries give the same bytes: they are sorted, nothing is younger than a given time, and no name of a
user or
group is in the result.
"""

from __future__ import annotations

import io
import posixpath
import stat
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from . import cpio

_KINDS = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}
_TYPES = {kind: code for code, kind in _KINDS.items() if code != tarfile.AREGTYPE}
_XATTR = "SCHILY.xattr."
_BLOCK = 1 << 20
FILE = stat.S_IFREG
LINKS = 40  # as many as the kernel follows


@dataclass(frozen=True)
class Entry:
    """A file, directory, link or device. Its data are bytes, or a place in the archive it came from."""

    mode: int  # with the kind, as stat(2) has it
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    data: bytes = b""
    place: tuple[int, int] | None = None  # offset and size in the archive
    target: str = ""  # of a symbolic link
    same: str = ""  # another name of the same file, which has the data
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[str, str], ...] = ()

    @property
    def size(self) -> int:
        return self.place[1] if self.place else len(self.data)

    def is_kind(self, kind: int) -> bool:
        return stat.S_IFMT(self.mode) == kind


def directory(mode: int = 0o755, uid: int = 0, gid: int = 0) -> Entry:
    return Entry(stat.S_IFDIR | mode, uid, gid)


def text_file(text: str, mode: int = 0o644, uid: int = 0, gid: int = 0) -> Entry:
    return Entry(stat.S_IFREG | mode, uid, gid, data=text.encode("utf-8", "surrogateescape"))


def program(data: bytes) -> Entry:
    return Entry(FILE | 0o755, data=data)


def link(target: str) -> Entry:
    return Entry(stat.S_IFLNK | 0o777, target=target)


def device(major: int, minor: int, mode: int) -> Entry:
    """A character device."""
    return Entry(stat.S_IFCHR | mode, device=(major, minor))


def owned(entry: Entry, uid: int, gid: int) -> Entry:
    return replace(entry, uid=uid, gid=gid)


@dataclass
class Tree:
    """Entries by their names, which are relative to the root and without a slash at either end."""

    archive: IO[bytes]
    entries: dict[str, Entry] = field(default_factory=dict)
    epoch: int = 0  # seconds since 1970; nothing is younger

    @classmethod
    def read(cls, archive: IO[bytes], epoch: int) -> Tree:
        """From a tar archive that can be read again. Raises tarfile.TarError, OSError."""
        tree = cls(archive, {}, epoch)
        with tarfile.open(fileobj=archive, mode="r:") as tar:
            for one in tar:
                name = posixpath.normpath(one.name).lstrip("/")
                if name == ".":
                    continue
                if one.islnk():
                    tree.entries[name] = Entry(
                        stat.S_IFREG | one.mode, one.uid, one.gid, int(one.mtime),
                        same=posixpath.normpath(one.linkname).lstrip("/"),
                    )  # fmt: skip
                    continue
                xattrs = [(key, value) for key, value in one.pax_headers.items() if key.startswith(_XATTR)]
                tree.entries[name] = Entry(
                    mode=_KINDS[one.type] | one.mode,
                    uid=one.uid,
                    gid=one.gid,
                    mtime=int(one.mtime),
                    place=(one.offset_data, one.size) if one.isreg() else None,
                    target=one.linkname if one.issym() else "",
                    device=(one.devmajor, one.devminor) if one.ischr() or one.isblk() else (0, 0),
                    xattrs=tuple(sorted(xattrs)),
                )
        for name in [*tree.entries]:
            tree._have_above(name)
        return tree

    def resolve(self, path: str) -> str:
        """The name under which a path is to be found, its last part not followed. Raises ValueError."""
        name = ""
        parts = [part for part in path.split("/") if part not in ("", ".")]
        follow = LINKS
        while parts:
            part = parts.pop(0)
            name = posixpath.dirname(name) if part == ".." else posixpath.join(name, part)
            found = self.entries.get(name)
            if parts and found and found.is_kind(stat.S_IFLNK):
                follow -= 1
                if not follow:
                    raise ValueError(f"/{path} leads through too many links")
                target = [part for part in found.target.split("/") if part not in ("", ".")]
                parts = target + parts
                name = "" if found.target.startswith("/") else posixpath.dirname(name)
        return name

    def find(self, path: str) -> Entry | None:
        """What is there, links followed; None if nothing is."""
        for _link in range(LINKS):
            name = self.resolve(path)
            found = self.entries.get(name)
            if not found or not found.is_kind(stat.S_IFLNK):
                return found
            path = posixpath.join(
                "" if found.target.startswith("/") else posixpath.dirname(name), found.target
            )
        return None

    def read_bytes(self, entry: Entry) -> bytes:
        while entry.same:
            entry = self.entries[entry.same]
        return b"".join(self._blocks(entry))

    def read_text(self, path: str) -> str | None:
        found = self.find(path)
        if found is None or not found.is_kind(stat.S_IFREG):
            return None
        return self.read_bytes(found).decode("utf-8", "surrogateescape")

    def _blocks(self, entry: Entry) -> Iterator[bytes]:
        if entry.place is None:
            yield entry.data
            return
        at, left = entry.place
        while left:
            self.archive.seek(at)
            block = self.archive.read(min(left, _BLOCK))
            if not block:
                raise OSError(0, "the archive of the packages is cut off")
            yield block
            at, left = at + len(block), left - len(block)

    def put(self, path: str, entry: Entry) -> None:
        """Put an entry there, with the directories above it. Raises ValueError where that cannot be."""
        name = self.resolve(path)
        above = self._have_above(name)
        if above and not self.entries[above].is_kind(stat.S_IFDIR):
            raise ValueError(f"/{name} cannot be there: /{above} is not a directory")
        before = self.entries.get(name)
        if before and before.is_kind(stat.S_IFDIR) != entry.is_kind(stat.S_IFDIR):
            raise ValueError(f"/{name} cannot be replaced: only one of the two is a directory")
        if before:
            self._keep_other_names(name)
        self.entries[name] = entry

    def _have_above(self, name: str) -> str:
        """Have all directories above an entry; returns the nearest that was there."""
        above = posixpath.dirname(name)
        while above and above not in self.entries:
            self.entries[above] = directory()
            above = posixpath.dirname(above)
        return above

    def _keep_other_names(self, name: str) -> None:
        """What is another name of this file becomes the file, before this one goes."""
        others = [other for other, entry in self.entries.items() if entry.same == name]
        for position, other in enumerate(others):
            first = self.entries[name]
            self.entries[other] = replace(self.entries[other], same=others[0]) if position else first

    def drop(self, names: Iterable[str]) -> None:
        for name in [*names]:
            if name in self.entries:
                self._keep_other_names(name)
                del self.entries[name]

    def below(self, path: str) -> list[str]:
        """The names of all that is in a directory, at any depth."""
        prefix = f"{path}/"
        return [name for name in self.entries if name.startswith(prefix)]

    def add_directory(self, top: Path, at: str = "") -> None:
        """What is in a directory of this machine, as root's: readable by all, and executable if it is here.

        Raises OSError, ValueError.
        """
        for path in sorted(top.rglob("*")):
            place = posixpath.join(at, path.relative_to(top).as_posix())
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                self.put(place, link(str(path.readlink())))
            elif stat.S_ISDIR(mode):
                if self.find(place) is None:
                    self.put(place, directory())
            elif stat.S_ISREG(mode):
                self.put(
                    place, Entry(stat.S_IFREG | (0o755 if mode & 0o100 else 0o644), data=path.read_bytes())
                )
            else:
                raise ValueError(f"{path} is neither a file nor a directory nor a link")

    def enable(self, unit: str) -> None:
        """Have systemd start a unit, as its section [Install] says. Raises ValueError."""
        text = None
        template = f"{unit.partition('@')[0]}@.{unit.rpartition('.')[2]}" if "@" in unit else unit
        for folder in ("etc/systemd/system", "usr/lib/systemd/system"):
            text = self.read_text(f"{folder}/{template}")
            if text is not None:
                break
        else:
            raise ValueError(f"there is no unit {unit}; a package or overlay has to bring it along")
        wants = _install(text)
        if not wants:
            raise ValueError(
                f"unit {unit} cannot be enabled: its section [Install] has no WantedBy or RequiredBy"
            )
        for where in wants:
            self.put(f"etc/systemd/system/{where}/{unit}", link(f"/{folder}/{template}"))

    def mask(self, unit: str) -> None:
        """Never have systemd start a unit."""
        self.put(f"etc/systemd/system/{unit}", link("/dev/null"))

    def _sorted(self) -> Iterator[tuple[str, Entry]]:
        """In the order of the names' parts, so that every directory comes before what is in it."""
        for name in sorted(self.entries, key=lambda name: name.split("/")):
            entry = self.entries[name]
            if entry.same:  # all names of a file have its owner and mode
                entry = replace(self.entries[entry.same], same=entry.same)
            yield name, replace(entry, mtime=min(entry.mtime, self.epoch) if entry.mtime else self.epoch)

    def _firsts(self) -> dict[str, str]:
        """For each name of a file with several, the one that comes first."""
        groups: dict[str, list[str]] = {}
        for name, entry in self.entries.items():
            if entry.same:
                groups.setdefault(entry.same, [entry.same]).append(name)
        return {
            name: min(names, key=lambda name: name.split("/")) for names in groups.values() for name in names
        }

    def contents(self) -> int:
        """Bytes that its files need on a file system with blocks of 4 KiB, directories and links included."""
        return sum(4096 + -(-entry.size // 4096) * 4096 for entry in self.entries.values())

    def write_cpio(self, out: IO[bytes]) -> None:
        """For the kernel to unpack. Extended attributes, such as capabilities of programs, are left out."""
        firsts = self._firsts()
        counts = {first: [*firsts.values()].count(first) for first in set(firsts.values())}
        numbers: dict[str, int] = {}
        for number, (name, entry) in enumerate(self._sorted(), start=1):
            first = firsts.get(name, name)
            numbers[name] = numbers.get(first, number)
            origin = self.entries[entry.same] if entry.same else entry
            data: Iterable[bytes] = self._blocks(origin) if first == name else ()
            size = origin.size if first == name else 0
            if entry.target:
                target = entry.target.encode("utf-8", "surrogateescape")
                data, size = [target], len(target)
            out.write(
                cpio.header(
                    numbers[name], name, entry.mode, size, entry.device, (entry.uid, entry.gid), entry.mtime,
                    counts.get(first, 0),
                )
            )  # fmt: skip
            for block in data:
                out.write(block)
            out.write(cpio.padding(size))
        out.write(cpio.member(0, cpio.TRAILER, 0))

    def write_tar(self, out: IO[bytes]) -> None:
        firsts = self._firsts()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, entry in self._sorted():
                one = tarfile.TarInfo(f"./{name}")
                one.mode, one.uid, one.gid, one.mtime = (
                    stat.S_IMODE(entry.mode),
                    entry.uid,
                    entry.gid,
                    entry.mtime,
                )
                one.type = _TYPES[stat.S_IFMT(entry.mode)]
                one.devmajor, one.devminor = entry.device
                origin = self.entries[entry.same] if entry.same else entry
                one.pax_headers = dict(origin.xattrs)
                if firsts.get(name, name) != name:
                    one.type, one.linkname, one.pax_headers = tarfile.LNKTYPE, f"./{firsts[name]}", {}
                    tar.addfile(one)
                    continue
                one.linkname, one.size = entry.target, origin.size
                tar.addfile(one, _Blocks(self._blocks(origin)) if origin.size else None)


class _Blocks(io.RawIOBase):
    """What tarfile reads from."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        super().__init__()
        self._left, self._blocks = b"", blocks

    def read(self, size: int = -1) -> bytes:
        while len(self._left) < size:
            block = next(self._blocks, b"")
            if not block:
                break
            self._left += block
        taken, self._left = self._left[:size], self._left[size:]
        return taken


def _install(text: str) -> list[str]:
    """The directories for links to a unit that its section [Install] asks for."""
    section, found = "", []
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("["):
            section = line
        key, equals, value = (part.strip() for part in line.partition("="))
        if section == "[Install]" and equals and key in ("WantedBy", "RequiredBy"):
            kind = "wants" if key == "WantedBy" else "requires"
            found += [f"{target}.{kind}" for target in value.split()]
    return found
