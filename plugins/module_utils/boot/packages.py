# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Kernels as Debian packages: what dpkg has, and an installation that takes nothing away when it fails."""

from __future__ import annotations

import contextlib
import fcntl
import re
import shutil
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import Failure
from .access import Access

# Each is held by whoever changes packages, the first one by apt for as long as it works.
LOCKS = ("/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock")
IMAGE = "linux-image-"
_RECORDS = 8 << 20  # bytes; what dpkg writes down
_IN_BOOT = re.compile(r"^-\S+ +\S+ +([0-9]+) .*? \./boot/", re.MULTILINE)
GONE = ("", "not-installed", "config-files")
_LOCKED = "locked by another process"  # how dpkg says it
_FLOCK = "hhqqi4x"  # struct flock: type, whence, start, length, process


class Busy(Failure):
    """Somebody else changes packages at the moment; nothing was changed."""


@dataclass(frozen=True)
class Package:
    """A package as dpkg has it."""

    status: str = ""
    version: str = ""

    @property
    def installed(self) -> bool:
        return self.status == "installed"

    @property
    def half(self) -> bool:
        return not self.installed and self.status not in GONE


def packages(access: Access, names: Iterable[str]) -> dict[str, Package]:
    """What dpkg knows of these."""
    wanted = list(dict.fromkeys(names))
    if not wanted:
        return {}
    done = access.run(
        ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status} ${Version}\n", *wanted],
        "ask dpkg for packages",
        ok=(0, 1),
    )
    lines = [line.split(" ") for line in done.stdout.splitlines()]
    found = {line[0]: Package(line[1], line[2]) for line in lines if len(line) == 3}
    return {name: found.get(name, Package()) for name in wanted}


def kernels(access: Access, releases: Iterable[str]) -> dict[str, Package]:
    """The packages of these kernels, by release."""
    found = packages(access, [f"{IMAGE}{release}" for release in releases])
    return {name.removeprefix(IMAGE): one for name, one in found.items()}


def holder(access: Access) -> str:
    """Who changes packages at the moment, as a sentence; empty for nobody."""
    for path in LOCKS:
        # Not to be had by taking and leaving it: dpkg would fail in that moment.
        with contextlib.suppress(OSError), access.at(path).open("rb") as file:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, 0, 0, 0, 0)
            kind, *_range, process = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
            if kind != fcntl.F_UNLCK:
                name = access.text(f"/proc/{process}/comm").strip()
                return f"{path} is held by process {process}{f' ({name})' if name else ''}"
    return ""


def _read(access: Access, files: Sequence[str]) -> tuple[list[str], dict[str, int]]:
    """Names of the packages in these files, and the bytes that they need in each place."""
    names, size, boot = [], 0, 0
    for path in files:
        argv = ["dpkg-deb", "--field", path, "Package", "Installed-Size"]
        fields = access.run(argv, f"read the package {path}").stdout
        facts = dict(line.split(": ", 1) for line in fields.splitlines() if ": " in line)
        names.append(facts.get("Package", ""))
        size += int(facts.get("Installed-Size", 0)) * 1024
        listed = access.run(["dpkg-deb", "--contents", path], f"read the package {path}").stdout
        boot += sum(int(bytes_) for bytes_ in _IN_BOOT.findall(listed))
    # What it has in its initramfs is not known yet: as much as the largest that is there.
    made = max((path.stat().st_size for path in access.at("/boot").glob("initrd.img-*")), default=0)
    return names, {"/boot": boot + made, "/lib/modules": max(size - boot, 0), "/var/lib/dpkg": _RECORDS}


def _device(path: Path) -> int:
    return path.stat().st_dev


def _no_room(access: Access, needs: Mapping[str, int]) -> str:
    """Where there is not enough, places of one file system together; empty if there is."""
    paths = {place: access.at(place) if access.at(place).exists() else access.at("/") for place in needs}
    together: dict[int, list[str]] = {}
    for place, path in paths.items():
        together.setdefault(_device(path), []).append(place)
    for places in together.values():
        free, size = shutil.disk_usage(paths[places[0]]).free, sum(needs[place] for place in places)
        if free < size:
            return f"{', '.join(places)}: {free >> 20} MiB free, but {{}} needs {size >> 20} MiB"
    return ""


def check(access: Access, release: str, files: Sequence[str]) -> list[str]:
    """Names of the packages in these files, or a Failure if they cannot be installed. Nothing is changed."""
    wanted = f"{IMAGE}{release}"
    names, needs = _read(access, files)
    if wanted not in names:
        raise Failure(f"nothing was installed: {wanted} is not among the packages ({', '.join(names)})")
    if why := _no_room(access, needs):
        raise Failure(f"nothing was installed: {why.format(wanted)}; make room")
    if who := holder(access):
        raise Busy(who)
    return names


def install(access: Access, release: str, files: Sequence[str], names: Sequence[str]) -> None:
    """Have dpkg install these. A failure takes away what is new, and says what else is not as before."""
    before = packages(access, names)
    try:
        # Not apt: a kernel needs no other package, and neither the archive nor python3-apt need be there.
        access.run(["dpkg", "--install", *files], f"install {IMAGE}{release}", seconds=1800)
    except Failure as failure:
        locked = _LOCKED in str(failure) or _LOCKED in str(failure.details.get("stderr", ""))
        if locked and packages(access, names) == before:
            raise Busy(holder(access) or f"one of {', '.join(LOCKS)} was held by another process") from None
        left = _undo(access, release, before)
        raise Failure("; ".join([_why(failure, names), *left]), failure.details) from failure


def _why(failure: Failure, names: Sequence[str]) -> str:
    """What a package's own script said comes before what dpkg always says at the end."""
    lines = [line.strip() for line in str(failure.details.get("stderr", "")).splitlines()]
    usual = ("Errors were encountered while processing", "dpkg: error processing")
    said = [line for line in lines if line and not line.startswith(usual) and line not in names]
    return f"{str(failure).partition(': ')[0]}: {' | '.join(said[-4:])}" if said else str(failure)


def _undo(access: Access, release: str, before: Mapping[str, Package]) -> list[str]:
    """Remove what was not installed before; what is still not as it was, and what to do about it."""
    left = []
    # What was only half there before is half a kernel now, too; other packages that were there stay.
    new = [
        name
        for name, one in before.items()
        if one.status in GONE or (name == f"{IMAGE}{release}" and one.half)
    ]
    there = [name for name, now in packages(access, new).items() if now.status not in GONE]
    try:
        purge(access, there)
    except Failure as failure:
        left.append(str(failure))
    for name, now in packages(access, before).items():
        was = before[name]
        if now == was or (name in new and now.status in GONE):
            continue
        if name in new:
            left.append(f"{name} is {now.status}: run dpkg --purge --force-remove-reinstreq {name}")
        else:
            repair = "" if now.installed else f"run dpkg --configure {name}, or "
            left.append(
                f"{name} was {was.version} ({was.status}) and is {now.version} ({now.status}): {repair}"
                f"install {was.version} again"
            )
    return left


def purge(access: Access, names: Sequence[str]) -> None:
    """Remove packages, also those that are only half installed."""
    if names:
        argv = ["dpkg", "--purge", "--force-remove-reinstreq", *names]
        access.run(argv, f"remove {', '.join(names)}", seconds=600)
