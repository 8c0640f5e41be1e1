# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Values in messages, as those who wrote them know them: nobody has to read Python."""

from __future__ import annotations

_LONGEST = 80  # characters of a value in a message


def shown(value: object) -> str:
    """C('512X'), C(true), C(nothing), C(a list)."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a dictionary"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = str(value)
    return f"'{text if len(text) <= _LONGEST else text[:_LONGEST] + '...'}'"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """C(1 CPU), C(2 CPUs)."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def harmless(text: str) -> str:
    """What somebody else wrote, for a terminal: lines and tabs stay, and what could steer it is spelt out.

    Control characters become C(^[) and the like; others that do not show, such as those that turn the
    direction of writing, C(\\u202e). Carriage returns go, so that nothing is overwritten.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else _spelt_out(char) for char in text)


def _spelt_out(char: str) -> str:
    if char == "\r":
        return ""
    if char < " " or char == "\x7f":
        return f"^{chr(ord(char) ^ 0x40)}"
    return char.encode("unicode_escape").decode("ascii")


def span(seconds: float) -> str:
    """A time in its two largest units: C(45s), C(12min 5s), C(2d 4h)."""
    left = int(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
        elif parts:
            break
    return " ".join(parts[:2])


def prefixed(prefix: str, reason: str) -> str:
    """A reason with something in front, and of the class that it was."""
    return type(reason)(f"{prefix}{reason}")


def reasons_of(error: ValueError) -> list[str]:
    """What a parser has against a value: ValueError(*reasons). An error of Python itself is one reason."""
    if (
        not isinstance(error, UnicodeError)
        and error.args
        and all(isinstance(reason, str) for reason in error.args)
    ):
        return list(error.args)
    return [str(error)]
