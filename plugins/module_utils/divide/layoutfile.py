# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A layout in a file: the options of the module layout, as JSON."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from ..common.errors import Refused
from ..common.files import text_of
from ..common.text import shown
from .options import HEADROOM, KERF, LAYOUT

_LARGEST = 16 << 20  # bytes
_OPTIONS = LAYOUT + HEADROOM + KERF


def read_layout(path: Path, trusted: bool = False) -> dict[str, Any]:
    """Options by name, as somebody has written them; what they are worth, layout_request() tells.

    trusted: it is acted on without being asked for, so that nobody but root may be able to write it. Raises
    Refused with all reasons when it cannot be read or is no layout.
    """
    return parse_layout(_read(path, trusted), text_of(path))


def parse_layout(data: bytes, called: str) -> dict[str, Any]:
    """The same from the content of a file. called: what messages call it."""
    twice: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        names = [name for name, _value in items]
        twice.extend(f"{shown(name)} appears twice" for name in found if names.count(name) > 1)
        return found

    try:
        layout = json.loads(data.decode(), object_pairs_hook=pairs, parse_int=_int, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise Refused(f"{called}: byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise Refused(f"{called}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise Refused(f"{called}: it is nested too deeply") from None
    except ValueError as error:
        raise Refused(f"{called}: {error}") from None
    if not isinstance(layout, dict):
        raise Refused(f"{called} does not contain a layout: a layout is a dictionary of options")
    known = {option.name for option in _OPTIONS}
    reasons = [
        f"there is no option {shown(name)}: the options are {', '.join(sorted(known))}"
        for name in layout
        if name not in known
    ]
    if twice or reasons:
        raise Refused(*(f"{called}: {reason}" for reason in (*dict.fromkeys(twice), *reasons)))
    return layout


def _int(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"{shown(text)} is too large a number")
    return int(text)


def _constant(word: str) -> None:
    raise ValueError(f"{word} is not valid JSON")


def _read(path: Path, trusted: bool) -> bytes:
    called = text_of(path)
    try:
        # Not for ever, if somebody has put a pipe there.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise Refused(f"{called} is not a file")
            if trusted and (found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022):
                raise Refused(
                    f"{called} can be written by users other than root: make root its owner and set mode 0600"
                )
            data = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise Refused(f"{called} does not exist") from None
    except OSError as error:
        raise Refused(f"{called} cannot be read: {error.strerror}") from None
    if len(data) > _LARGEST:
        raise Refused(f"{called} is too large for a layout")
    return data
