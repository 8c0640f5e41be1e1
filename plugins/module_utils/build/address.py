# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Addresses, and what is secret in them."""

from __future__ import annotations

import re

REMOTE = ("https://", "http://", "file://")


def masked(text: str) -> str:
    """Addresses without the names and passwords in them."""
    return re.sub(r"(\w+://)[^/@\s]+@", r"\1***@", text)


def is_remote(src: str) -> bool:
    return src.startswith(REMOTE)
