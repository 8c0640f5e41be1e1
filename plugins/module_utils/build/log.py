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
    known = earlier and earlier["options"] > 0
    ratio = earlier["objects"] / earlier["options"] if earlier and known else OBJECTS_PER_OPTION
    return max(1, round(ratio * enabled(config)))


_ERROR = re.compile(
    r"\berror(?:\[E\d+\])?:|\bfatal:|undefined reference|: No such file|Killed|No space left", re.IGNORECASE
)
_GAVE_UP = re.compile(r"^\S*make(?:\[\d+\])?: \*\*\* |^\*\*\* ")
_QUIET = re.compile(r"^\s+[A-Z][A-Z0-9_]+(?:\s+\[M\])?\s+\S+$")
# What compilers of other jobs say meanwhile.
_WARNING = re.compile(r": (?:warning|note): |^\s*\d* \| |: In function |: At top level:")
_NEAR = 200  # lines before make gives up; other jobs print meanwhile
_CAUSE = 4  # lines of them


def error_lines(log: str, limit: int = 8) -> list[str]:
    """The lines of a log that tell what went wrong, else its last ones.

    What was said right before make gave up belongs to it, in whatever words.
    """
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    errors = [number for number, line in enumerate(lines) if _ERROR.search(line)]
    ends = [number for number, line in enumerate(lines) if _GAVE_UP.match(line)]
    if not errors and not ends:
        return lines[-limit:]
    end = ends[0] if ends else len(lines)
    before = [number for number in range(max(0, end - _NEAR), end) if not _QUIET.match(lines[number])]
    before = [number for number in before if not _WARNING.search(lines[number])] or before
    cause = before[: -_CAUSE - 1 : -1] if ends else []
    wanted = [*errors[:1], *cause[:1], *ends[:1], *cause[1:], *errors[1:], *ends[1:]]
    return [lines[number] for number in sorted(list(dict.fromkeys(wanted))[:limit])]
