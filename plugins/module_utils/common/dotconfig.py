# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The finished configuration of a kernel, a .config or a /boot/config-RELEASE. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SET = re.compile(r"^CONFIG_(\w+)=(y|m|n|-?\d+|0[xX][0-9a-fA-F]+|\"(?:[^\"\\]|\\.)*\")$", re.ASCII)
_UNSET = re.compile(r"^# CONFIG_(\w+) is not set$", re.ASCII)


def parse_line(line: str) -> tuple[str, str] | None:
    """Symbol and value of a line, "n" for "is not set"; nothing if it is no option."""
    if match := _SET.match(line):
        return match[1], match[2]
    if match := _UNSET.match(line):
        return match[1], "n"
    return None


def lines_of(text: str) -> list[str]:
    """As Kconfig takes them: nothing but a newline ends one."""
    return [line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n")]


def parse_config(text: str) -> dict[str, str]:
    """Symbol to value, without the symbols that are not set."""
    parsed = (parse_line(line) for line in lines_of(text))
    return {symbol: value for symbol, value in filter(None, parsed) if value != "n"}


def enabled(config: Mapping[str, str]) -> int:
    """How many symbols are built in or modules: a rough measure of a kernel's size."""
    return sum(value in ("y", "m") for value in config.values())
