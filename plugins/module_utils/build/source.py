# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Kernel source trees: from a Debian package, git, an archive or a directory, with patches applied.

DEST/                       the tree, complete or not there, with MARKER in it
.DEST.lock                  one run per tree
.DEST.new-PID/              a tree under way
CACHE/sources/              what was fetched, and the private apt state that fetches packages
CACHE/sources/git-*/        a repository per address
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.command import must
from ..common.errors import Failure
from ..common.files import native, read_record, read_text, sha256, sha256_file, text_of, write_file
from ..common.lock import locked
from ..common.text import shown
from .address import file_name, is_remote, masked
from .cache import TRASH, discard
from .debian import Archive
from .git import Git
from .key import Source
from .openpgp import verify_signature
from .patches import apply_patch, read_patch, read_series
from .tree import unpack

MARKER = ".mkops-source.json"
FORMAT = 2  # raised when the same inputs give another tree
Download = Callable[[str, Path], None]


# --- pure part ------------------------------------------------------------------------------------


def checksum_reasons(what: str, checksum: str | None) -> list[str]:
    if checksum is None or re.fullmatch(r"sha256:[0-9a-fA-F]{64}", checksum):
        return []
    return [f"{what}: checksum {shown(checksum)} is not of the form sha256:HEX"]


def digits(checksum: str) -> str:
    return checksum.removeprefix("sha256:").lower()


def makefile_version(text: str) -> str:
    """7.0.0-mk5 from the Makefile at the top of a tree."""
    values: dict[str, str] = dict(
        re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) *= *(\S*)$", text, re.M)
    )
    numbers = [values.get(name, "") for name in ("VERSION", "PATCHLEVEL", "SUBLEVEL")]
    return ".".join(filter(None, numbers)) + values.get("EXTRAVERSION", "")


def digest_of(identity: Mapping[str, Any], patches: Sequence[tuple[str, str]]) -> str:
    """Same digest, same tree. Names of patches are left out: their contents and order count."""
    facts = {"format": FORMAT, "source": identity, "patches": [digest for _name, digest in patches]}
    return sha256(json.dumps(facts, sort_keys=True))


# --- what is fetched and checked ---------------------------------------------------------------------


def tree_digest(directory: Path) -> str:
    """Of names, kinds and contents of all files but those of git and of this module."""
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(directory):
        folders[:] = sorted(name for name in folders if name != ".git")
        for name in sorted([*files, *(one for one in folders if Path(folder, one).is_symlink())]):
            path = Path(folder, name)
            relative = path.relative_to(directory)
            if str(relative) == MARKER:
                continue
            if path.is_symlink():
                content = f"link {os.readlink(path)}"
            else:
                content = f"file {os.access(path, os.X_OK)} {sha256_file(path)}"
            digest.update(os.fsencode(f"{relative}\0{content}\n"))
    return digest.hexdigest()


def content_digest(path: Path) -> str:
    """Of a file, or of all that is in a directory."""
    return tree_digest(path) if path.is_dir() else sha256_file(path)


@dataclass(frozen=True)
class Patch:
    """One to apply, or a mailbox of them."""

    name: str
    sha256: str
    fetch: Callable[[], Path]


@dataclass
class Fetcher:
    """Files by address or path, each checked before it is used."""

    sources: Path
    download: Download

    def get(self, what: str, src: str, checksum: str | None) -> Path:
        """The file; for an address the copy in the cache, which is kept by its checksum if there is one."""
        if is_remote(src):
            name = file_name(src)
            kept = digits(checksum) if checksum else sha256(src)
            path = self.sources / f"{kept[:16]}-{name}"
            if not (checksum and path.exists()):
                self.sources.mkdir(parents=True, exist_ok=True)
                incoming = path.with_name(f".incoming-{os.getpid()}-{name}")
                try:
                    self.download(src, incoming)
                    self._check(what, incoming, checksum)
                    incoming.replace(path)
                finally:
                    incoming.unlink(missing_ok=True)
                return path
        else:
            path = native(src)
        self._check(what, path, checksum)
        return path

    def _check(self, what: str, path: Path, checksum: str | None) -> None:
        if checksum and (have := sha256_file(path)) != digits(checksum):
            raise Failure(
                f"{what} has sha256 {have} instead of {digits(checksum)}: find out why before you change the "
                "checksum"
            )


# --- origins ------------------------------------------------------------------------------------------


@dataclass
class Origin:
    """What a tree is made of: known exactly before anything is unpacked."""

    identity: Mapping[str, Any]
    text: str  # for people
    place: Callable[[Path], Path]  # unpacks into an empty directory, and returns the tree in it


def debian_origin(
    archive: Archive, package: str, version: str | None, warn: Callable[[str], None], valid_seconds: int
) -> Origin:
    source = archive.resolve(package, version, warn, valid_seconds)
    return Origin(
        {"debian": [source.version, source.sha256]},
        f"{package} {source.version}",
        lambda directory: unpack(archive.fetch(source, package), directory),
    )


def archive_origin(
    fetcher: Fetcher, src: str, checksum: str | None, signature: str | None, keyring: Path | None
) -> Origin:
    """By its checksum; by its address where only a signature vouches for it."""
    if checksum:
        identity: dict[str, Any] = {"archive": digits(checksum)}
    elif is_remote(src):
        identity = {"address": src}
    else:
        identity = {"archive": sha256_file(native(src))}
    if signature and keyring is None:
        raise Failure(f"archive {masked(src)}: signature needs a keyring with the key that made it")
    if keyring and signature:
        identity["keyring"] = sha256_file(keyring)

    def place(directory: Path) -> Path:
        path = fetcher.get(f"archive {masked(src)}", src, checksum)
        if signature and keyring:
            seal = fetcher.get(f"signature {masked(signature)}", signature, None)
            named = directory / (signature.rpartition("/")[2])
            shutil.copyfile(seal, named)
            data = directory / src.rpartition("/")[2]
            os.symlink(path.absolute(), data)
            verify_signature(f"archive {masked(src)}", keyring, named, data, directory)
            named.unlink()
            data.unlink()
        return unpack(path, directory)

    return Origin(identity, masked(src), place)


def directory_origin(path: Path) -> Origin:
    if not (path / "Kbuild").is_file():
        raise Failure(f"directory {path} is not a kernel tree: it has no file Kbuild")

    def place(directory: Path) -> Path:
        tree = directory / "linux"
        must(["cp", "-a", "--reflink=auto", path, tree], f"copy {path}")
        shutil.rmtree(tree / ".git", ignore_errors=True)
        (tree / MARKER).unlink(missing_ok=True)
        return tree

    return Origin({"directory": tree_digest(path)}, text_of(path), place)


def git_origin(git: Git, tag: str | None, commit: str | None, keyring: Path | None) -> Origin:
    tag_object = ""
    if tag:
        tag_object, found = git.tag_commit(tag)
        if commit and commit != found:
            raise Failure(
                f"tag {tag} of {masked(git.url)} is commit {found} instead of {commit}: the tag was moved"
            )
        commit = found
    if commit is None:
        raise Failure(f"git {masked(git.url)}: give tag or commit")
    if keyring and not tag:
        raise Failure(f"git {masked(git.url)}: keyring verifies a tag: give tag as well")
    wanted = commit

    def place(directory: Path) -> Path:
        git.fetch(f"refs/tags/{tag}" if tag else wanted, wanted)
        if keyring and tag:
            git.verify_tag(tag, tag_object, keyring, directory)
        return git.place(wanted, directory)

    identity = {"git": commit, "keyring": sha256_file(keyring) if keyring else None}
    return Origin(identity, f"{masked(git.url)} {tag or commit}", place)


# --- patches --------------------------------------------------------------------------------------------


def expand(src: str, checksum: str | None, fetcher: Fetcher) -> list[Patch]:
    """The files of one entry: a directory's series, or one file. What has an address is not fetched yet."""
    if is_remote(src):
        if checksum is None:
            raise Failure(f"patch {masked(src)}: a patch that is fetched needs a checksum")
        name = file_name(src)
        return [Patch(name, digits(checksum), lambda: fetcher.get(f"patch {masked(src)}", src, checksum))]
    paths = read_series(native(src)) if native(src).is_dir() else [native(src)]
    if checksum:
        fetcher.get(f"patch {src}", src, checksum)
    return [local_patch(path) for path in paths]


def local_patch(path: Path) -> Patch:
    digest = sha256_file(path)
    read_patch(path, path.name)

    def fetch() -> Path:
        if sha256_file(path) != digest:
            raise Failure(f"patch {path} has changed while this ran: run again")
        return path

    return Patch(path.name, digest, fetch)


# --- the tree ---------------------------------------------------------------------------------------------


@dataclass
class Tree:
    """A tree to be, or one that is there already."""

    dest: Path
    origin: Origin
    patches: Sequence[Patch]
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        self.digest = digest_of(self.origin.identity, [(one.name, one.sha256) for one in self.patches])

    def marker(self) -> dict[str, Any] | None:
        return read_marker(self.dest)

    def reasons(self) -> list[str]:
        """What is in the way at the destination."""
        if (
            not self.dest.exists()
            or read_marker(self.dest)
            or (self.dest.is_dir() and not any(self.dest.iterdir()))
        ):
            return []
        return [f"dest {self.dest} was not made by this module: remove it, or choose another"]

    def is_there(self) -> bool:
        return self._made() is not None

    def _made(self) -> dict[str, Any] | None:
        """The marker of what is there, if it is what is wanted."""
        marker = self.marker()
        return marker if marker and marker["digest"] == self.digest else None

    def make(self) -> dict[str, Any]:
        """The marker of the tree, which is there as a whole afterwards, or as it was before."""
        self.dest.parent.mkdir(parents=True, exist_ok=True)
        with self._lock():
            if marker := self._made():
                return marker
            self._sweep()
            scratch = self.dest.with_name(f".{self.dest.name}.new-{os.getpid()}")
            scratch.mkdir()
            try:
                return self._make(scratch)
            finally:
                if scratch.exists():
                    discard(scratch)

    def _make(self, scratch: Path) -> dict[str, Any]:
        tree = self.origin.place(scratch)
        dated = (tree / "Makefile").stat().st_mtime_ns
        for one in self.patches:
            apply_patch(tree, one.fetch(), one.name)
        marker = {
            "digest": self.digest,
            "origin": self.origin.text,
            "version": makefile_version(read_text(tree / "Makefile")),
            "patches": [one.name for one in self.patches],
        }
        # A build is dated with it, and must not depend on when the patches were applied.
        os.utime(tree / "Makefile", ns=(dated, dated))
        write_file(tree / MARKER, json.dumps(marker, indent=2) + "\n", sync=False)
        if self.dest.exists():
            self.dest.rename(scratch / "old")
        tree.rename(self.dest)
        return marker

    def _sweep(self) -> None:
        """What interrupted runs have left; nobody else works here while the lock is held."""
        for name in (f".{self.dest.name}.new-*", f"{TRASH}.{self.dest.name}.new-*"):
            for left in self.dest.parent.glob(name):
                discard(left)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with locked(self.dest.with_name(f".{self.dest.name}.lock")):
            yield


def read_marker(directory: Path) -> dict[str, Any] | None:
    """None where there is no tree of this module."""
    return read_record(directory / MARKER, digest=str, origin=str, version=str, patches=list)


def tree_source(directory: Path) -> Source:
    """A tree of this module as something to build; its release is known before, unless a suffix is in it."""
    marker = read_marker(directory)
    if marker is None:
        raise Failure(f"{directory} was not made by kernel_source: make it with that, or give an archive")
    version = marker["version"]
    known = re.fullmatch(r"\d+\.\d+(\.\d+)?", version)
    return Source(directory.name, marker["digest"], f"{version}-1" if known else None)
