# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where builds are kept:

CACHE/sources/              source packages, and the private apt state that fetches them
CACHE/ccache/
CACHE/kernels/KEY/          packages, vmlinux, config, build.log, manifest.json: complete or not there
CACHE/kernels/KEY/build/    the tree that it was built in, where that is wanted
CACHE/kernels/.work/KEY/    a build under way or interrupted
CACHE/kernels/.work/KEY.{lock,log}
CACHE/roots/KEY/            a root file system as an image, manifest.json; work and locks as with kernels
CACHE/root-packages/KEY/    the unpacked packages that roots are made of, as a tar archive
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.command import detach
from ..common.files import read_record, remove, sha256_file
from ..common.lock import locked

TRASH = "trash-"
# What every manifest of a kernel has.
_MANIFEST = {
    "key": str,
    "release": str,
    "inputs": dict,
    "debs": list,
    "files": dict,
    "objects": int,
    "options": int,
}


def path_reasons(params: Mapping[str, Any]) -> list[str]:
    """What cannot be the path of a cache, or of the file for progress."""
    names = [name for name in ("cache_dir", "progress_file") if "\0" in (params[name] or "")]
    return [f"{name} is no path: there is a NUL in it" for name in names]


def discard(tree: Path) -> None:
    """Remove a source tree, which takes a busy disk minutes, without anybody having to wait for it."""
    if not tree.name.startswith(TRASH):
        tree = tree.rename(tree.with_name(f"{TRASH}{tree.name}-{os.getpid()}"))
    detach(["rm", "-rf", tree])


@dataclass
class Cache:
    """The directory of them."""

    root: Path
    shelf: str = "kernels"
    fields: Mapping[str, type] = field(default_factory=lambda: _MANIFEST)

    @property
    def results(self) -> Path:
        return self.root / self.shelf

    def work(self, key: str, suffix: str = "") -> Path:
        return self.results / ".work" / f"{key}{suffix}"

    def manifest(self, key: str) -> dict[str, Any] | None:
        """The manifest of a build that is complete and unharmed."""
        directory = self.results / key
        manifest = read_record(directory / "manifest.json", **self.fields)
        try:
            files = manifest["files"].items() if manifest else ()
            whole = all(sha256_file(directory / name) == digest for name, digest in files)
        except OSError:
            return None
        return manifest if whole else None

    def latest(self) -> dict[str, Any] | None:
        """The manifest of the newest build, for the estimate and the diff."""
        found = sorted(self.results.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime)
        return read_record(found[-1], **self.fields) if found else None

    def prune(self, keep: int, key: str, check: bool = False) -> list[str]:
        """Remove what nobody has asked for the longest, so that so many kernels stay; returns their releases.

        Never the one with this key, one that somebody builds or waits for, or the one that this machine runs.
        check: only say which.
        """
        found = [path.parent for path in self.results.glob("*/manifest.json") if path.parent.name != key]
        others = sorted(found, key=lambda directory: directory.stat().st_mtime)
        removed = []
        for directory in others[: max(0, len(others) + 1 - keep)]:
            manifest = read_record(directory / "manifest.json", release=str)
            release = manifest["release"] if manifest else directory.name
            if release == os.uname().release or (check and self._is_used(directory.name)):
                continue
            if not check and not self._remove(directory):
                continue
            removed.append(str(release))
        return removed

    def note_use(self, key: str) -> None:
        """A kernel is asked for; the time of its directory tells when it was the last time."""
        with contextlib.suppress(OSError):  # it is not there, or belongs to somebody else
            os.utime(self.results / key)

    def _is_used(self, key: str) -> bool:
        path = self.work(key, ".lock")
        if not path.exists():
            return False
        try:
            with locked(path, timeout=0):
                return False
        except BlockingIOError:
            return True

    def _remove(self, directory: Path) -> bool:
        """Remove a kernel, unless somebody builds it."""
        key = directory.name
        self.work(key).parent.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.work(key, ".lock"), timeout=0):
                discard(directory.rename(self.work(f"{TRASH}{key}-{os.getpid()}")))
                remove(self.work(key, ".log"))
        except BlockingIOError:
            return False
        return True

    @contextlib.contextmanager
    def lock(self, key: str, waiting: Callable[[], None]) -> Iterator[None]:
        """One build per key. What a run starts inherits the lock: what a killed one leaves still holds it."""
        path = self.work(key, ".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path, waiting=waiting, inherit=True):
            yield

    def drop_abandoned(self, key: str) -> None:
        """Unfinished trees of other keys are large: remove those that nobody works in, and old progress."""
        for left in self.work(key).parent.glob("progress-*.json"):
            if time.time() - left.stat().st_mtime > 3600:
                left.unlink(missing_ok=True)
        for tree in self.work(key).parent.glob("*/"):
            if tree.name == key:
                continue
            if tree.name.startswith(TRASH):
                discard(tree)  # once more, should it have been interrupted
                continue
            with contextlib.suppress(BlockingIOError), locked(self.work(tree.name, ".lock"), timeout=0):
                discard(tree)
