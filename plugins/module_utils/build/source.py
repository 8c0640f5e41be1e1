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
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import builder as kb

MARKER = ".mkops-source.json"
FORMAT = 1  # raised when the same inputs give another tree
REMOTE = ("https://", "http://", "file://")
# Compressed archives that may be signed as what is in them, as those of kernel.org are.
UNPACKERS = {".xz": "xz", ".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2"}
GIT_ENVIRONMENT = {
    "LC_ALL": "C",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "https:http:ssh:git:file",
}

Download = Callable[[str, Path], None]


# --- pure part ------------------------------------------------------------------------------------


def masked(text: str) -> str:
    """Addresses without the names and passwords in them."""
    return re.sub(r"(\w+://)[^/@\s]+@", r"\1***@", text)


def is_remote(src: str) -> bool:
    return src.startswith(REMOTE)


def checksum_reasons(what: str, checksum: str | None) -> list[str]:
    if checksum is None or re.fullmatch(r"sha256:[0-9a-fA-F]{64}", checksum):
        return []
    return [f"{what}: checksum {checksum!r} is not of the form sha256:HEX"]


def digits(checksum: str) -> str:
    return checksum.removeprefix("sha256:").lower()


def makefile_version(text: str) -> str:
    """7.0.0-mk5 from the Makefile at the top of a tree."""
    values = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) *= *(\S*)$", text, re.M))
    numbers = [values.get(name, "") for name in ("VERSION", "PATCHLEVEL", "SUBLEVEL")]
    return ".".join(filter(None, numbers)) + values.get("EXTRAVERSION", "")


def digest_of(identity: Mapping, patches: Sequence[tuple[str, str]]) -> str:
    """Same digest, same tree. Names of patches are left out: their contents and order count."""
    facts = {"format": FORMAT, "source": identity, "patches": [digest for _name, digest in patches]}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def split_tag(text: str) -> tuple[str, str]:
    """What was signed, and the signature, of an annotated tag as `git cat-file tag` prints it."""
    begin = text.find("-----BEGIN PGP SIGNATURE-----")
    return (text, "") if begin < 0 else (text[:begin], text[begin:])


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
                content = f"file {os.access(path, os.X_OK)} {kb.sha256_file(path)}"
            digest.update(f"{relative}\0{content}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


@contextlib.contextmanager
def binary_keyring(keyring: Path, scratch: Path) -> Iterator[Path]:
    """gpgv reads no ASCII armour."""
    if not keyring.read_bytes().lstrip().startswith(b"-----BEGIN PGP"):
        yield keyring
        return
    plain = scratch / f"keyring-{os.getpid()}.gpg"
    home = scratch / f"gnupg-{os.getpid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    try:
        kb.run(
            [
                "gpg",
                "--batch",
                "--yes",
                "--homedir",
                str(home),
                "--output",
                str(plain),
                "--dearmor",
                str(keyring),
            ],
            f"read the keyring {keyring}",
        )
        yield plain
    finally:
        plain.unlink(missing_ok=True)
        shutil.rmtree(home, ignore_errors=True)


def verify_signature(what: str, keyring: Path, signature: Path, data: Path, scratch: Path) -> None:
    """By gpgv, and by nothing but the keys of the keyring."""
    with binary_keyring(keyring, scratch) as keys:
        argv = [
            "gpgv",
            "--keyring",
            str(keys.absolute()),
            str(signature),
            "-" if inner(signature, data) else str(data),
        ]
        if unpacker := inner(signature, data):
            with subprocess.Popen([unpacker, "-dc", str(data)], stdout=subprocess.PIPE) as source:
                done = subprocess.run(argv, stdin=source.stdout, capture_output=True, text=True, check=False)
            broken = source.returncode
        else:
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            broken = 0
    if done.returncode or broken:
        said = " | ".join(line.removeprefix("gpgv: ") for line in done.stderr.splitlines()[-3:])
        raise kb.BuildError(
            f"{what} is not signed by a key of {keyring}: {said}", cmd=argv, rc=done.returncode
        )


def inner(signature: Path, data: Path) -> str:
    """The program that unpacks what was signed; empty when the file itself was."""
    unpacker = UNPACKERS.get(data.suffix, "")
    return unpacker if unpacker and signature.stem == data.stem else ""


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
            name = src.rstrip("/").rpartition("/")[2].partition("?")[0] or "file"
            kept = digits(checksum) if checksum else hashlib.sha256(src.encode()).hexdigest()
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
            path = Path(src)
        self._check(what, path, checksum)
        return path

    def _check(self, what: str, path: Path, checksum: str | None) -> None:
        if checksum and (have := kb.sha256_file(path)) != digits(checksum):
            raise kb.BuildError(
                f"{what} has sha256 {have}, wanted is {digits(checksum)}: it is not what it should be"
            )


# --- origins ------------------------------------------------------------------------------------------


@dataclass
class Origin:
    """What a tree is made of: known exactly before anything is unpacked."""

    identity: Mapping
    text: str  # for people
    place: Callable[[Path], Path]  # unpacks into an empty directory, and returns the tree in it


def debian_origin(archive: kb.Archive, package: str, version: str | None, warn, valid_seconds: int) -> Origin:
    source = archive.resolve(package, version, warn, valid_seconds)
    return Origin(
        {"debian": [source.version, source.sha256]},
        f"{package} {source.version}",
        lambda directory: kb.unpack(archive.fetch(source, package), directory),
    )


def archive_origin(
    fetcher: Fetcher, src: str, checksum: str | None, signature: str | None, keyring: Path | None
) -> Origin:
    """By its checksum; by its address where only a signature vouches for it."""
    if checksum:
        identity: dict = {"archive": digits(checksum)}
    elif is_remote(src):
        identity = {"address": src}
    else:
        identity = {"archive": kb.sha256_file(Path(src))}
    if signature:
        identity["keyring"] = kb.sha256_file(keyring)

    def place(directory: Path) -> Path:
        path = fetcher.get(f"archive {masked(src)}", src, checksum)
        if signature:
            seal = fetcher.get(f"signature {masked(signature)}", signature, None)
            named = directory / (signature.rpartition("/")[2])
            shutil.copyfile(seal, named)
            data = directory / src.rpartition("/")[2]
            os.symlink(path.absolute(), data)
            verify_signature(f"archive {masked(src)}", keyring, named, data, directory)
            named.unlink()
            data.unlink()
        return kb.unpack(path, directory)

    return Origin(identity, masked(src), place)


def directory_origin(path: Path) -> Origin:
    if not (path / "Kbuild").is_file():
        raise kb.BuildError(f"directory {path} is no kernel tree: it has no Kbuild")

    def place(directory: Path) -> Path:
        tree = directory / "linux"
        kb.run(["cp", "-a", "--reflink=auto", str(path), str(tree)], f"copy {path}")
        shutil.rmtree(tree / ".git", ignore_errors=True)
        (tree / MARKER).unlink(missing_ok=True)
        return tree

    return Origin({"directory": tree_digest(path)}, str(path), place)


@dataclass
class Git:
    """A repository in the cache that holds what was fetched from one address."""

    root: Path
    url: str

    @property
    def path(self) -> Path:
        return self.root / f"git-{hashlib.sha256(self.url.encode()).hexdigest()[:16]}"

    def git(self, purpose: str, *args: str, repository: bool = True) -> str:
        where = ["-C", str(self.path)] if repository else []
        try:
            return kb.run(["git", *where, *args], purpose, env=os.environ | GIT_ENVIRONMENT)
        except kb.BuildError as error:
            raise kb.BuildError(masked(str(error))) from None  # no command line: it has the address

    def tag_commit(self, tag: str) -> tuple[str, str]:
        """(the tag's object, its commit), as the address has them now."""
        names = f"refs/tags/{tag}", f"refs/tags/{tag}^{{}}"
        purpose = f"ask {masked(self.url)} for tag {tag}"
        text = self.git(purpose, "ls-remote", "--", self.url, *names, repository=False)
        found = {name: commit for commit, name in (line.split("\t") for line in text.splitlines())}
        if names[0] not in found:
            raise kb.BuildError(f"{masked(self.url)} has no tag {tag}")
        return found[names[0]], found.get(names[1], found[names[0]])

    def fetch(self, ref: str, commit: str) -> None:
        if not self.path.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            self.git(f"make {self.path}", "init", "-q", "--bare", "--", str(self.path), repository=False)
        if self.has(commit) and not ref.startswith("refs/"):
            return
        purpose = f"fetch {ref} from {masked(self.url)}"
        try:
            self.git(purpose, "fetch", "-q", "--no-tags", "--depth=1", "--", self.url, f"+{ref}")
        except kb.BuildError:
            if ref.startswith("refs/"):
                raise
            # Not every server hands out commits that no name points to.
            self.git(purpose, "fetch", "-q", "--no-tags", "--", self.url, "+refs/heads/*:refs/heads/*")
        if not self.has(commit):
            raise kb.BuildError(f"{masked(self.url)} has no commit {commit}")

    def has(self, commit: str) -> bool:
        argv = ["git", "-C", str(self.path), "cat-file", "-e", f"{commit}^{{commit}}"]
        return not subprocess.run(
            argv, capture_output=True, check=False, env=os.environ | GIT_ENVIRONMENT
        ).returncode

    def verify_tag(self, tag: str, tag_object: str, keyring: Path, scratch: Path) -> None:
        what = f"tag {tag} of {masked(self.url)}"
        if self.git(f"read {what}", "cat-file", "-t", tag_object).strip() != "tag":
            raise kb.BuildError(f"{what} is not signed: it is no annotated tag, and a keyring was given")
        text, signature = split_tag(self.git(f"read {what}", "cat-file", "tag", tag_object))
        if not signature:
            raise kb.BuildError(f"{what} is not signed with OpenPGP, and a keyring was given")
        data, seal = scratch / "tag", scratch / "tag.asc"
        data.write_text(text)
        seal.write_text(signature)
        try:
            verify_signature(what, keyring, seal, data, scratch)
        finally:
            data.unlink()
            seal.unlink()

    def place(self, commit: str, directory: Path) -> Path:
        tree, packed = directory / "linux", directory / "linux.tar"
        tree.mkdir()
        self.git(f"export {commit}", "archive", f"--output={packed}", commit)
        kb.run(["tar", "-xf", str(packed), "-C", str(tree)], f"unpack {commit}")
        packed.unlink()
        return tree


def git_origin(git: Git, tag: str | None, commit: str | None, keyring: Path | None) -> Origin:
    tag_object = ""
    if tag:
        tag_object, found = git.tag_commit(tag)
        if commit and commit != found:
            raise kb.BuildError(f"tag {tag} of {masked(git.url)} is commit {found}, wanted is {commit}")
        commit = found

    def place(directory: Path) -> Path:
        git.fetch(f"refs/tags/{tag}" if tag else commit, commit)
        if keyring:
            git.verify_tag(tag, tag_object, keyring, directory)
        return git.place(commit, directory)

    identity = {"git": commit, "keyring": kb.sha256_file(keyring) if keyring else None}
    return Origin(identity, f"{masked(git.url)} {tag or commit}", place)


# --- patches --------------------------------------------------------------------------------------------


def expand(src: str, checksum: str | None, fetcher: Fetcher) -> list[Patch]:
    """The files of one entry: a directory's series, or one file. What has an address is not fetched yet."""
    if is_remote(src):
        name = masked(src).rstrip("/").rpartition("/")[2]
        return [Patch(name, digits(checksum), lambda: fetcher.get(f"patch {masked(src)}", src, checksum))]
    paths = kb.read_series(Path(src)) if Path(src).is_dir() else [Path(src)]
    if checksum:
        fetcher.get(f"patch {src}", src, checksum)
    return [local_patch(path) for path in paths]


def local_patch(path: Path) -> Patch:
    digest = kb.sha256_file(path)

    def fetch() -> Path:
        if kb.sha256_file(path) != digest:
            raise kb.BuildError(f"patch {path} has changed meanwhile")
        return path

    return Patch(path.name, digest, fetch)


def diffs(patch: Patch, scratch: Path) -> list[tuple[str, Path]]:
    """(name, file) of what is to be applied: a mailbox's messages, decoded; any other file as it is."""
    path = patch.fetch()
    with path.open("rb") as file:
        if file.read(5) != b"From ":
            return [(patch.name, path)]
    folder = scratch / f"mails-{patch.sha256[:16]}"
    folder.mkdir(exist_ok=True)
    environment = os.environ | GIT_ENVIRONMENT
    git = ["git", "mailsplit", "--keep-cr", f"-o{folder}", "--", str(path.absolute())]
    kb.run(git, f"split the mailbox {patch.name}", env=environment)
    mails = sorted(one for one in folder.iterdir() if one.name.isdecimal())
    found = []
    for mail in mails:
        name = patch.name if len(mails) == 1 else f"{patch.name} message {int(mail.name)}"
        text = folder / f"{mail.name}.patch"
        argv = ["git", "mailinfo", str(folder / f"{mail.name}.message"), str(text)]
        with mail.open("rb") as message:
            done = subprocess.run(
                argv, stdin=message, capture_output=True, cwd=folder, check=False, env=environment
            )
        if done.returncode:
            raise kb.BuildError(f"patch {name} cannot be read: {done.stderr.decode().strip()}")
        if b"\ndiff " in b"\n" + text.read_bytes() or b"\n--- " in text.read_bytes():  # no cover letter
            found.append((name, text))
    return found


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

    def marker(self) -> dict | None:
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
        marker = self.marker()
        return bool(marker) and marker["digest"] == self.digest

    def make(self) -> dict:
        """The marker of the tree, which is there as a whole afterwards, or as it was before."""
        self.dest.parent.mkdir(parents=True, exist_ok=True)
        with self._lock():
            if self.is_there():
                return self.marker()
            self._sweep()
            scratch = self.dest.with_name(f".{self.dest.name}.new-{os.getpid()}")
            scratch.mkdir()
            try:
                return self._make(scratch)
            finally:
                if scratch.exists():
                    kb.discard(scratch)

    def _make(self, scratch: Path) -> dict:
        tree = self.origin.place(scratch)
        dated = (tree / "Makefile").stat().st_mtime_ns
        for one in self.patches:
            for name, path in diffs(one, scratch):
                kb.apply_patch(tree, path, name)
        marker = {
            "digest": self.digest,
            "origin": self.origin.text,
            "version": makefile_version((tree / "Makefile").read_text()),
            "patches": [one.name for one in self.patches],
        }
        # A build is dated with it, and must not depend on when the patches were applied.
        os.utime(tree / "Makefile", ns=(dated, dated))
        (tree / MARKER).write_text(json.dumps(marker, indent=2) + "\n")
        if self.dest.exists():
            self.dest.rename(scratch / "old")
        tree.rename(self.dest)
        return marker

    def _sweep(self) -> None:
        """What interrupted runs have left; nobody else works here while the lock is held."""
        for name in (f".{self.dest.name}.new-*", f"{kb.TRASH}.{self.dest.name}.new-*"):
            for left in self.dest.parent.glob(name):
                kb.discard(left)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        path = self.dest.with_name(f".{self.dest.name}.lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def read_marker(directory: Path) -> dict | None:
    """None where there is no tree of this module."""
    try:
        return json.loads((directory / MARKER).read_text())
    except (OSError, ValueError):
        return None


def tree_source(directory: Path) -> kb.Source:
    """A tree of this module as something to build; its release is known before, unless a suffix is in it."""
    marker = read_marker(directory)
    version = marker["version"]
    known = re.fullmatch(r"\d+\.\d+(\.\d+)?", version)
    return kb.Source(directory.name, marker["digest"], f"{version}-1" if known else None)
