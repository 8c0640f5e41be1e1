# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Kernel configuration fragments: read them, and compare them with a finished .config. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_SET = re.compile(r"^CONFIG_(\w+)=(y|m|n|-?\d+|0[xX][0-9a-fA-F]+|\"(?:[^\"\\]|\\.)*\")$")
_UNSET = re.compile(r"^# CONFIG_(\w+) is not set$")


class FragmentError(ValueError):
    """Lines of a fragment that are no options; str() is one reason a line."""


@dataclass(frozen=True)
class Option:
    """One line of a fragment: the value is as in a .config, "n" for "is not set"."""

    symbol: str
    value: str
    where: str

    def __str__(self) -> str:
        if self.value == "n":
            return f"# CONFIG_{self.symbol} is not set"
        return f"CONFIG_{self.symbol}={self.value}"


def _parse_line(line: str) -> tuple[str, str] | None:
    if match := _SET.match(line):
        return match[1], match[2]
    if match := _UNSET.match(line):
        return match[1], "n"
    return None


def parse_fragment(text: str, name: str) -> list[Option]:
    """The options of a fragment in order. Raises FragmentError with every bad line."""
    options: dict[str, Option] = {}
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        where = f"{name}:{number}"
        parsed = _parse_line(line)
        if parsed is None:
            # "# CONFIG_X is not set" is the one comment that means something: do not let a slip of it pass.
            if line and (not line.startswith("#") or re.match(r"^#\s*CONFIG_\w+\s+is\s+not", line)):
                forms = "CONFIG_NAME=value or '# CONFIG_NAME is not set'"
                problems.append(f"{where}: {line!r} is not an option; write {forms}")
            continue
        option = Option(*parsed, where)
        earlier = options.get(option.symbol)
        if earlier and earlier.value != option.value:
            problems.append(f"{where}: {option} contradicts {earlier} ({earlier.where}); keep one of them")
        options[option.symbol] = option
    if problems:
        raise FragmentError("\n".join(problems))
    return list(options.values())


def merge(fragments: Iterable[Iterable[Option]]) -> dict[str, Option]:
    """What several fragments want together: as in merge_config.sh the last one wins."""
    return {option.symbol: option for fragment in fragments for option in fragment}


def parse_config(text: str) -> dict[str, str]:
    """Symbol to value of a finished .config, without the symbols that are not set."""
    parsed = (_parse_line(line) for line in text.splitlines())
    return {symbol: value for symbol, value in filter(None, parsed) if value != "n"}


def lost(wanted: Mapping[str, Option], config: Mapping[str, str]) -> list[tuple[Option, str]]:
    """The wanted options that a .config does not have, each with the value that it has instead."""
    return [
        (option, config.get(symbol, "n"))
        for symbol, option in wanted.items()
        if config.get(symbol, "n") != option.value
    ]


def enabled(config: Mapping[str, str]) -> int:
    """How many symbols are built in or modules: a rough measure of a kernel's size."""
    return sum(value in ("y", "m") for value in config.values())
