# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The log of a build: how far make is, and what went wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..common.dotconfig import enabled

# Objects per enabled option: measured with the lab profile, used until a build of this cache tells better.
OBJECTS_PER_OPTION = 2.15
_OBJECT = re.compile(r"^\s+(?:CC|AS)(?:\s+\[M\])?\s+(\S+\.o)$")
_LINK = re.compile(r"^\s+(LD|OBJCOPY|BUILD|KSYMS|SORTTAB|GZIP)\s+(?:\[M\]\s+)?(\S*(?:vmlinux|bzImage)\S*)$")
_PACKAGE = re.compile(r"^dpkg-deb: building package '([^']+)'")


@dataclass
class BuildLog:
    """Counts what make prints."""

    objects: int = 0
    stage: str = "compile"
    detail: str = ""

    def feed(self, line: str) -> None:
        if match := _OBJECT.match(line):
            self.objects += 1
            self.detail = match[1]
        elif match := _LINK.match(line):
            self.stage, self.detail = "link", match[2]
        elif match := _PACKAGE.match(line):
            self.stage, self.detail = "package", match[1]


def expected_objects(config: Mapping[str, str], earlier: Mapping[str, int] | None) -> int:
    """How many objects a build will have, from an earlier one's {"objects", "options"} if there is one."""
    ratio = earlier["objects"] / earlier["options"] if earlier else OBJECTS_PER_OPTION
    return max(1, round(ratio * enabled(config)))


_ERROR = re.compile(
    r"\berror:|\bfatal:|undefined reference|\*\*\* |: No such file|Killed|No space left", re.IGNORECASE
)


def error_lines(log: str, limit: int = 8) -> list[str]:
    """The first lines of a build log that tell what went wrong, else its last ones."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    return [line for line in lines if _ERROR.search(line)][:limit] or lines[-limit:]
