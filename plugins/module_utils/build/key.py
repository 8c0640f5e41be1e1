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
KEY_FORMAT = 1


@dataclass(frozen=True)
class Source:
    """A source archive: known exactly before it is fetched."""

    name: str
    sha256: str
    version: str | None = None  # of the Debian package

    @property
    def kernel_version(self) -> str | None:
        """6.12.107 for the package version 6.12.107-1."""
        match = re.match(r"(?:\d+:)?(\d+\.\d+(?:\.\d+)?)(?:~rc\d+)?(?=[-+~]|$)", self.version or "")
        return match[1] if match else None


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
        return sha256(json.dumps(facts, sort_keys=True))

    def plain(self) -> dict[str, Any]:
        """As it is read back from a manifest."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def local_suffix(self) -> str:
        """What follows the kernel version in the release, so that uname -r names the build."""
        return f"{self.local_version}-{self.key()[:8]}"

    def release(self) -> str | None:
        version = self.source.kernel_version
        return f"{version}{self.local_suffix()}" if version else None
