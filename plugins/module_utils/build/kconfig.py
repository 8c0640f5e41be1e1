# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Kernel configuration fragments: read them, and compare them with a finished .config. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..common.dotconfig import lines_of, parse_line
from ..common.errors import Refused
from ..common.text import shown


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


def parse_fragment(text: str, name: str) -> list[Option]:
    """The options of a fragment in order. Raises Refused with every bad line."""
    options: dict[str, Option] = {}
    problems = []
    for number, line in enumerate(lines_of(text), 1):
        line = line.strip()
        where = f"{name}:{number}"
        parsed = parse_line(line)
        if parsed is None:
            # "# CONFIG_X is not set" is the one comment that means something: do not let a slip of it pass.
            if line and (not line.startswith("#") or re.match(r"^#\s*CONFIG_\w+\s+is\s+not", line)):
                forms = "CONFIG_NAME=value or '# CONFIG_NAME is not set'"
                problems.append(f"{where}: {shown(line)} is not an option; write {forms}")
            continue
        option = Option(*parsed, where)
        earlier = options.get(option.symbol)
        if earlier and earlier.value != option.value:
            problems.append(f"{where}: {option} contradicts {earlier} ({earlier.where}); keep one of them")
        options[option.symbol] = option
    if problems:
        raise Refused(*problems)
    return list(options.values())


def merge(fragments: Iterable[Iterable[Option]]) -> dict[str, Option]:
    """What several fragments want together: as in merge_config.sh the last one wins."""
    return {option.symbol: option for fragment in fragments for option in fragment}


def lost(wanted: Mapping[str, Option], config: Mapping[str, str]) -> list[tuple[Option, str]]:
    """The wanted options that a .config does not have, each with the value that it has instead."""
    return [
        (option, config.get(symbol, "n"))
        for symbol, option in wanted.items()
        if config.get(symbol, "n") != option.value
    ]


# --- why an option was dropped ----------------------------------------------------------------------

_DEFINES = re.compile(r"^\s*(?:menu)?config\s+(\w+)\s*$")
_PROMPT = re.compile(
    r"^\s*(?:bool|tristate|int|hex|string|prompt)\s+\"(?:[^\"\\]|\\.)*\"(?:\s+if\s+(.+))?\s*$"
)
_TOKEN = re.compile(r"\s*(&&|\|\||!=|<=|>=|[!=<>()]|\"[^\"]*\"|'[^']*'|[\w.$()-]*\w)")
_LEVELS = {"n": 0, "m": 1, "y": 2}


@dataclass
class Definition:
    """One place that defines a symbol: what it depends on there, and whether it can be set by hand."""

    symbol: str
    conditions: list[str]
    prompt: bool = False


def definitions(text: str) -> list[Definition]:
    """The symbols of a Kconfig file. Conditions around the file itself are not known here."""
    found: list[Definition] = []
    blocks: list[list[str]] = []  # of menu, choice and if; each with its conditions
    current: Definition | None = None
    help_indent = None
    for line in re.sub(r"\\\n", " ", text).splitlines():
        stripped = re.sub(r"\s+#.*", "", line).strip()
        if help_indent is not None:
            indent = len(line.expandtabs()) - len(line.expandtabs().lstrip())
            if not stripped or indent >= (help_indent or indent) > 0:
                help_indent = help_indent or (indent if stripped else 0)
                continue
            help_indent = None
        word = stripped.split(" ", 1)[0].split("\t", 1)[0]
        if word in ("help", "---help---"):
            help_indent = 0
        elif match := _DEFINES.match(line):
            current = Definition(match[1], [condition for block in blocks for condition in block])
            found.append(current)
        elif word in ("menu", "choice"):
            current = None
            blocks.append([])
        elif word == "if":
            current = None
            blocks.append([stripped[2:].strip()])
        elif word in ("endmenu", "endchoice", "endif"):
            current = None
            if blocks:
                blocks.pop()
        elif word == "depends" and (match := re.match(r"depends\s+on\s+(.+)", stripped)):
            if current:
                current.conditions.append(match[1])
            elif blocks:
                blocks[-1].append(match[1])
        elif current and (match := _PROMPT.match(stripped)):
            current.prompt = True
            if match[1]:
                current.conditions.append(match[1])
    return found


def _parts(expression: str) -> list[str]:
    """What must hold at once: A && (B || C) is A, and (B || C)."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"[()]|&&|\|\|", expression):
        if match[0] in "()":
            depth += 1 if match[0] == "(" else -1
        elif depth == 0 and match[0] == "||":
            return [expression.strip()]
        elif depth == 0:
            parts.append(expression[start : match.start()].strip())
            start = match.end()
    return [*parts, expression[start:].strip()]


def holds(expression: str, config: Mapping[str, str]) -> bool:
    """Whether a condition of Kconfig is fulfilled, if only as m. Raises ValueError on what it cannot read."""
    tokens: list[str] = _TOKEN.findall(expression)
    if "".join(tokens) != re.sub(r"\s", "", expression):
        raise ValueError(expression)
    position = 0

    def peek() -> str:
        return tokens[position] if position < len(tokens) else ""

    def take() -> str:
        nonlocal position
        position += 1
        if position > len(tokens):
            raise ValueError(expression)
        return tokens[position - 1]

    def value(token: str) -> str:
        if token[0] in "\"'":
            return token[1:-1]
        if token in _LEVELS or token.isdecimal():
            return token
        return config.get(token, "n").strip('"')

    def term() -> int:
        token = take()
        if token == "!":
            return 2 - term()
        if token == "(":
            level = any_of()
            if take() != ")":
                raise ValueError(expression)
            return level
        if not re.match(r"[\w\"']", token):
            raise ValueError(expression)
        if peek() in ("=", "!=", "<", ">", "<=", ">="):
            sign, left, right = take(), value(token), value(take())
            if sign in ("=", "!="):
                return 2 * ((left == right) is (sign == "="))
            if not (left.isdecimal() and right.isdecimal()):
                return 0
            order = {"<": int(left) < int(right), ">": int(left) > int(right)}
            order |= {"<=": not order[">"], ">=": not order["<"]}
            return 2 * order[sign]
        return _LEVELS.get(value(token), 0)

    def all_of() -> int:
        level = term()
        while peek() == "&&":
            take()
            level = min(level, term())
        return level

    def any_of() -> int:
        level = all_of()
        while peek() == "||":
            take()
            level = max(level, all_of())
        return level

    level = any_of()
    if peek():
        raise ValueError(expression)
    return level > 0


def unmet(definition: Definition, config: Mapping[str, str]) -> list[str]:
    """The conditions of a definition that a configuration does not fulfil, as small as they get."""
    missing: list[str] = []
    for condition in definition.conditions:
        for part in _parts(condition):
            try:
                fulfilled = holds(part, config)
            except ValueError:
                continue  # a macro of the build's own: nothing is claimed about it
            if not fulfilled and part not in missing:
                missing.append(part)
    return missing


def why_unset(symbol: str, texts: Iterable[str], config: Mapping[str, str]) -> str:
    """Why a symbol is not set though it was wanted, from the Kconfig files that may define it."""
    found = [definition for text in texts for definition in definitions(text) if definition.symbol == symbol]
    if not found:
        return ""
    settable = [definition for definition in found if definition.prompt]
    if not settable:
        return "it cannot be set directly, only other options select it"
    missing = [unmet(definition, config) for definition in settable]
    if all(missing):
        return "it depends on " + ", or on ".join(" and ".join(parts) for parts in missing)
    return ""
