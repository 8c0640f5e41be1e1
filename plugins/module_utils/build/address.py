# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Addresses, and what is secret in them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any
from urllib.parse import unquote

from ..common.errors import Failure

REMOTE = ("https://", "http://", "file://")


def _pattern(stop: str) -> re.Pattern[str]:
    """An address up to one of the signs: scheme, names and passwords, which may have an @ themselves, place,
    and what is asked for: a key, or a signature of access.
    """
    # A quote may be a part of it. One that ends it is followed by the end of a word.
    sign = rf"""(?:[^{stop}]|['"](?=[^\s'":,;.()<>\]}}]))"""
    name = rf"(?:(?![/?#]){sign})"
    # A password that was not encoded may have what ends the host's part elsewhere; what precedes it is no
    # port.
    user = rf"{name}*@|(?:(?![][:]){name})*:(?!\d*[/?#]){sign}*@"
    return re.compile(rf"([A-Za-z][\w+.-]*://)({user})?([^?#{stop}]*)(\?{sign}*)?")


_IN_TEXT = _pattern(r"\s'\"")
_ALONE = _pattern(r"\0")


def is_remote(src: str) -> bool:
    return src.startswith(REMOTE)


def masked(text: str) -> str:
    """Addresses without the names, passwords and queries in them."""

    def mask(match: re.Match[str]) -> str:
        scheme, user, rest, query = match.groups()
        return f"{scheme}{'***@' if user else ''}{rest}{'?***' if query else ''}"

    return _IN_TEXT.sub(mask, text)


def secrets_of(addresses: Iterable[str | None]) -> set[str]:
    """What must not be shown anywhere, as it stands in the addresses and as it is meant."""
    found: set[str] = set()
    for address in addresses:
        match = _ALONE.match(address or "")
        _scheme, user, _rest, query = match.groups() if match else ("", "", "", "")
        if user:
            password = user[:-1].partition(":")[2]
            # With the @: a name may be an ordinary word, and is a token where it stands alone.
            found |= {user, password, unquote(password)}
        if query:
            found.add(query[1:])
    return found - {""}


def file_name(address: str) -> str:
    """What a file from an address is called."""
    match = _ALONE.match(address)
    path = match[3].partition("/")[2] if match else address
    return PurePath(path).name or "file"


def without_secrets(error: Failure) -> Failure:
    """The same failure, with no secret of an address in its message or details."""
    return Failure(masked(str(error)), {key: _masked_in(value) for key, value in error.details.items()})


def _masked_in(value: Any) -> Any:
    if isinstance(value, str):
        return masked(value)
    return [_masked_in(one) for one in value] if isinstance(value, list) else value
