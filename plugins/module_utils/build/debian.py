# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Debian archives: source packages, fetched and verified by apt through a configuration of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..common.command import must, run
from ..common.errors import Failure
from ..common.files import read_text, sha256, sha256_file, text_of, write_file
from .address import masked, without_secrets
from .key import Source

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SUITE = "trixie"
LISTS_VALID_SECONDS = 24 * 3600


def parse_uri_line(output: str) -> tuple[str, str]:
    """(file name, sha256) of what `apt-get --print-uris download` printed."""
    match = re.search(r"^'[^']+' (\S+) \d+ SHA256:([0-9a-f]{64})$", output, re.M)
    if not match:
        raise ValueError(output.strip() or "no output")
    return match[1], match[2]


def deb_version(filename: str) -> str:
    """The version in a package's file name: NAME_VERSION_ARCH.deb, with %3a for a colon."""
    return filename.split("_")[1].replace("%3a", ":")


def machine_mirror() -> str:
    """The Debian mirror that this machine's own package sources name: the one whose Release file says Debian.

    An address proves nothing: anybody's repository may end in /debian.
    """
    targets = ["apt-get", "indextargets", "Created-By: Packages"]
    purpose = "find the Debian mirror of this machine"
    known = _network(must([*targets, "--format=$(REPO_URI)", *_FILTERS], purpose).stdout)
    if known:
        return known[0].rstrip("/")
    # Their package lists were never fetched, or were thrown away, as in images of containers.
    listed = must([*targets, "--no-release-info", "--format=$(REPO_URI) $(RELEASE)"], purpose).stdout
    places = [line.split()[:2] for line in _network(listed) if len(line.split()) > 1]
    for uri, suite in places:
        if _is_debian(uri, suite):
            return uri.rstrip("/")
    asked = ", ".join(dict.fromkeys(masked(uri) for uri, _suite in places)) or "none"
    raise Failure(
        "no mirror was given, and no package source of this machine is a Debian mirror "
        f"(Origin: Debian in its Release file); asked: {asked}. Give a mirror, or run apt-get update"
    )


_DEBIAN = {"origin": "Debian", "label": "Debian"}  # security updates and backports have other labels
_FILTERS = [f"{name.title()}: {value}" for name, value in _DEBIAN.items()]


def _network(listed: str) -> list[str]:
    """Lines of addresses, each once: without the discs of an installation, which hold no archive."""
    return [line for line in dict.fromkeys(listed.splitlines()) if not line.startswith("cdrom:")]


def _is_debian(uri: str, suite: str) -> bool:
    """Ask an archive itself, through apt, which knows the machine's proxies and passwords."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("InRelease", "Release"):
            path = Path(scratch, name)
            run([_HELPER, "download-file", f"{uri.rstrip('/')}/dists/{suite}/{name}", path], timeout=60)
            if path.exists():
                return _DEBIAN.items() <= _fields(read_text(path)).items()
    return False


def _fields(release: str) -> dict[str, str]:
    """What a Release or InRelease file says, by names in lower case; of what is signed, where a part is."""
    found: dict[str, str] = {}
    for line in release.split("\n"):
        if line.startswith("-----BEGIN PGP SIGNED MESSAGE-----"):
            found = {}
        elif line.startswith("-----BEGIN PGP SIGNATURE-----"):
            break
        name, colon, value = line.partition(":")
        if colon and not name.startswith((" ", "\t")):
            found.setdefault(name.lower(), value.strip(" \t\r"))
    return found


_HELPER = "/usr/lib/apt/apt-helper"


_PURPOSES = {
    "update": "fetch the package lists of",
    "--print-uris": "find the package in",
    "download": "fetch the package from",
    "install": "find the packages in",
}


def _apt_errors(said: str) -> list[str]:
    """apt's errors, and its warnings, which may have the reason."""
    lines = [line for line in said.splitlines() if line.startswith(("E:", "W:"))]
    return sorted(lines, key=lambda line: line.startswith("W:"))[:4] or said.splitlines()[-3:]


def _holds(path: Path, text: str) -> bool:
    """Whether a file has this text, and nobody else can read it: an address may have a password."""
    return path.exists() and read_text(path) == text and not path.stat().st_mode & 0o077


@dataclass(frozen=True)
class Archive:
    """A Debian archive, used through an apt configuration of its own: the machine's is not touched."""

    root: Path
    mirror: str
    suite: str
    keyring: str
    more: tuple[str, ...] = ()  # lines of sources.list(5), for other suites and archives

    @property
    def sources(self) -> str:
        """The archive in the words of sources.list(5). There may be a password in it."""
        return "".join(
            f"{line}\n"
            for line in (f"deb [signed-by={self.keyring}] {self.mirror} {self.suite} main", *self.more)
        )

    @property
    def _state(self) -> Path:
        name = sha256(" ".join([self.mirror, self.suite, self.keyring, *self.more]))[:12]
        return self.root / f"apt-{self.suite}-{name}"

    def apt(self, *args: str, cwd: Path | None = None) -> str:
        state = self._state
        for part in ("lists/partial", "cache/archives/partial", "parts"):
            (state / part).mkdir(parents=True, exist_ok=True)
        sources = state / "sources.list"
        if not _holds(sources, self.sources):
            write_file(sources, self.sources, 0o600)
        options = {
            "Dir::Etc::sourcelist": sources,
            "Dir::Etc::sourceparts": state / "parts",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": state / "parts",
            "Dir::State": state,
            "Dir::State::lists": state / "lists",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": state / "cache",
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "root",
        }
        words = [
            f"-o{name}={text_of(value) if isinstance(value, Path) else value}"
            for name, value in options.items()
        ]
        purpose = f"{_PURPOSES[args[0]]} {self.mirror} {self.suite}"
        try:
            return must(["apt-get", "-q", *words, *args], purpose, causes=_apt_errors, cwd=cwd).stdout
        except Failure as error:
            raise without_secrets(error) from None

    def refresh(self, warn: Callable[[str], None], valid_seconds: int) -> None:
        """Fetch the package lists if they are old; old lists serve when the mirror is away."""
        stamp = self._state / "refreshed"
        if stamp.exists() and time.time() - stamp.stat().st_mtime < valid_seconds:
            return
        try:
            self.apt("update", "-oAPT::Update::Error-Mode=any")
        except Failure as error:
            if not stamp.exists():
                raise
            warn(f"using package lists of {time.ctime(stamp.stat().st_mtime)}: {error}")
        else:
            stamp.touch()

    def resolve(
        self, package: str, version: str | None, warn: Callable[[str], None], valid_seconds: int
    ) -> Source:
        """The exact source package that is wanted: pinned, or the newest of the suite."""
        pinned = self.root / f"{package}_{(version or '').replace(':', '%3a')}_all.deb.sha256"
        if version and pinned.exists():
            return Source(pinned.name.removesuffix(".sha256"), pinned.read_text().strip(), version)
        self.refresh(warn, valid_seconds)
        wanted = f"{package}={version}" if version else package
        # apt takes a second to read its lists: the same lists give the same answer.
        answer = self._state / f"resolved-{wanted}"
        refreshed = (self._state / "refreshed").stat().st_mtime_ns
        if answer.exists() and answer.stat().st_mtime_ns == refreshed:
            # A power cut may have left nothing in it.
            with contextlib.suppress(ValueError, TypeError):
                return Source(*json.loads(answer.read_bytes()))
        try:
            name, digest = parse_uri_line(self.apt("--print-uris", "download", wanted))
        except (Failure, ValueError) as error:
            raise Failure(
                f"no source package {wanted} in {masked(self.mirror)} {self.suite}: {error}. "
                "Give a package and version that the suite has (apt-cache policy), or source.path"
            ) from None
        source = Source(name, digest, deb_version(name))
        write_file(answer, json.dumps([source.name, source.sha256, source.version]), sync=False)
        os.utime(answer, ns=(refreshed, refreshed))
        return source

    def needed(self, packages: Sequence[str], recommends: bool) -> str:
        """What apt says of all packages that these, the essential ones and apt need: addresses and hashes.

        Raises Failure, whose details have apt's words.
        """
        recommended = f"-oAPT::Install-Recommends={str(recommends).lower()}"
        # Patterns as in apt-patterns(7).
        strong = "-oAcquire::ForceHash=SHA256"
        return self.apt(
            "install", "--yes", "--print-uris", recommended, strong, "?essential", "apt", *packages
        )

    def fetch(self, source: Source, package: str) -> Path:
        path = self.root / source.name
        if not path.exists():
            incoming = self.root / f".incoming-{os.getpid()}"
            incoming.mkdir()
            try:
                self.apt("download", f"{package}={source.version}", cwd=incoming)
                (incoming / source.name).replace(path)
            finally:
                shutil.rmtree(incoming, ignore_errors=True)
        if (digest := sha256_file(path)) != source.sha256:
            raise Failure(
                f"{path} has sha256 {digest}, but the archive says {source.sha256}: remove it and try again"
            )
        write_file(path.with_name(f"{path.name}.sha256"), source.sha256 + "\n")
        return path


def local_source(path: Path, checksum: str) -> Source:
    """A source archive that is on the build host already: .deb or .tar.*, checked against sha256:HEX."""
    digest = sha256_file(path)
    if digest != checksum.removeprefix("sha256:").lower():
        raise Failure(
            f"source.path {path} has sha256 {digest}, but source.checksum says {checksum}: "
            "fetch it again, or correct the checksum"
        )
    version = None
    if path.suffix == ".deb":
        version = must(["dpkg-deb", "-f", path, "Version"], f"read the version of {path}").stdout.strip()
    return Source(path.name, digest, version)
