# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The file of this program, which may be replaced while it runs: the rest of it cannot be read then."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


class Itself:
    """As it is now, to be asked later."""

    def __init__(self) -> None:
        self._begun = _identity()

    @property
    def replaced(self) -> bool:
        """Whether there is another one in its place."""
        return _identity() not in (self._begun, None)

    @staticmethod
    def become(words: Sequence[str]) -> None:
        """Go on as the one that is there, with these words on its command line."""
        os.execv(sys.argv[0], [sys.argv[0], *words])


def _identity() -> tuple[int, ...] | None:
    """None when there is none."""
    try:
        found = os.stat(sys.argv[0])
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns
