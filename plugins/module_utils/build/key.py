# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What decides about a kernel, and the key that it is kept by. No I/O."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from ..common.files import sha256

# Raised when the way of building changes, so that nothing built the old way is taken for the new.
KEY_FORMAT = 3


@dataclass(frozen=True)
class Source:
    """A source archive: known exactly before it is fetched."""

    name: str
    sha256: str
    version: str | None = None  # of the Debian package

    @property
    def kernel_version(self) -> str | None:
        """What the Makefile of the package version 6.12.107-1 says: 6.12.107.

        6.16.0 for 6.16-1, whose Makefile has all three parts, and 6.17.0-rc3 for 6.17~rc3-1.
        """
        version = r"(?:\d+:)?(\d+)\.(\d+)(?:\.(\d+))?(?:~(rc\d+))?(?=[-+~]|$)"
        match = re.match(version, self.version or "")
        if not match:
            return None
        major, minor, patch, candidate = match.groups()
        return f"{major}.{minor}.{patch or 0}{f'-{candidate}' if candidate else ''}"


@dataclass(frozen=True)
class Inputs:
    """All that decides about the result."""

    source: Source
    series: tuple[tuple[str, str], ...]  # (name, sha256) in order
    base: str  # a make target, or sha256:...
    fragments: tuple[tuple[str, str], ...]  # (name, sha256) in order
    local_version: str
    toolchain: tuple[str, ...]
    package: str = "deb"  # one of packages.FORMATS
    signer: str = ""  # SHA-256 of the certificate
    files: tuple[tuple[str, str], ...] = ()  # (path, sha256) of what the configuration names outside the tree

    def key(self) -> str:
        """Same key, same kernel. Names of files are left out: only their contents and order count."""
        facts: dict[str, Any] = {
            "format": KEY_FORMAT,
            "source": [self.source.version, self.source.sha256],
            "series": [digest for _name, digest in self.series],
            "base": self.base,
            "fragments": [digest for _name, digest in self.fragments],
            "local_version": self.local_version,
            "toolchain": self.toolchain,
        }
        # Named only where they are not what they always were.
        facts |= {"package": self.package} if self.package != "deb" else {}
        facts |= {"signer": self.signer} if self.signer else {}
        facts |= {"files": [digest for _path, digest in self.files]} if self.files else {}
        return sha256(json.dumps(facts, sort_keys=True))

    def plain(self) -> dict[str, Any]:
        """As it is read back from a manifest."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def local_suffix(self) -> str:
        """What follows the kernel version in the release, so that uname -r names the build."""
        return f"{self.local_version}-{self.key()[:8]}"

    def release(self) -> str | None:
        """As far as it is known before there is a tree that can be asked: a series may change it."""
        version = self.source.kernel_version
        return f"{version}{self.local_suffix()}" if version else None
