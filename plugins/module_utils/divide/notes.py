# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What no kernel tells and a later run has to know, in files that are gone with the boot.

One note per instance, below /run: which of kerf's records was made in this boot, what the image files were
when they were proved to be what was loaded, what was started and is still waited for, and what somebody has
stopped or removed. They carry the boot id, so that no clock decides. What a note does not say is found out
anew, so that none is ever needed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.files import parse_json, remove, write_file

Identity = tuple[int, ...]  # device, inode, size, time of the last change, of a file


class Notes:
    """The notes of one boot."""

    def __init__(self, directory: Path, boot_id: str):
        self._directory = directory
        self._boot_id = boot_id

    def read(self, name: str) -> dict[str, Any]:
        """Empty when there is none of this boot."""
        try:
            found = parse_json(self._path(name).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) and found.get("boot_id") == self._boot_id else {}

    def change(self, name: str, **values: Any) -> None:
        """Set some of it; None takes it out."""
        old = self.read(name)
        new = {key: value for key, value in {**old, **values}.items() if value is not None}
        if new == old:
            return
        with contextlib.suppress(OSError):  # the next run finds out anew
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_file(
                self._path(name), json.dumps({**new, "boot_id": self._boot_id}), mode=0o600, sync=False
            )

    def forget(self, name: str) -> None:
        with contextlib.suppress(OSError):
            remove(self._path(name))

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.json"


def identities(note: Mapping[str, Any]) -> dict[str, Identity]:
    """Path to what the file was, as a note has it."""
    files = note.get("files")
    return {
        path: tuple(identity)
        for path, identity in (files.items() if isinstance(files, dict) else ())
        if isinstance(identity, list)
    }
