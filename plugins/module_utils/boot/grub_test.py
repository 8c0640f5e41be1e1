# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""GRUB's `test`, also known as `[`: what it makes of its words. No I/O.

It is no shell's: words are taken from left to right, three at a time where the middle one compares, before
parentheses and the rest mean anything. Without words it is true. A `]` at the end is left out, whatever it is
called by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Outcome = frozenset[bool]
BOTH, YES, NO = frozenset((True, False)), frozenset((True,)), frozenset((False,))
# Those that are not followed: they may come out in either way.
_ORDER = frozenset(("<", "<=", ">", ">=", "-eq", "-ge", "-gt", "-le", "-lt", "-ne", "-pgt", "-plt"))
_BETWEEN = ("-a", "-o", "!", "(")
_AGE = ("-nt", "-ot")  # with a number of seconds
_DEPTH = 50  # of parentheses in each other


class _Unclear(Exception):
    """What a word means depends on a variable."""


def outcome(words: Sequence[str], any_word: str, file: Callable[[str], tuple[bool | None, str]]) -> Outcome:
    """What it can come to. any_word stands for a word that is not known; file tells whether GRUB has a file
    of that name, if that is known, and its text.
    """
    if words and words[-1] == "]":
        words = words[:-1]
    try:
        return _Test(words, any_word, file).value()
    except _Unclear:
        return BOTH


class _Test:
    def __init__(
        self, words: Sequence[str], any_word: str, file: Callable[[str], tuple[bool | None, str]]
    ) -> None:
        self.words, self.any_word, self.file = words, any_word, file
        self.at = 0

    def value(self, depth: int = 0) -> Outcome:
        """Up to the parenthesis that closes, or the end."""
        if depth > _DEPTH:
            raise _Unclear
        before, all_of, inverted = NO, YES, False
        while self.at < len(self.words):
            word = self.words[self.at]
            found = self._three()
            if found is None and word == self.any_word:
                raise _Unclear
            found = found or self._two()
            if found is None:
                self.at += 1
                if word == ")":
                    break
                if word == "!":
                    inverted = not inverted
                    continue
                if word == "-a":
                    continue
                if word == "-o":
                    before, all_of = _either(before, all_of), YES
                    continue
                found = self.value(depth + 1) if word == "(" else _known(word != "")
            all_of = frozenset(one and other != inverted for one in all_of for other in found)
            inverted = False
        return _either(before, all_of)

    def _three(self) -> Outcome | None:
        if self.at + 2 >= len(self.words):
            return None
        left, sign, right = self.words[self.at : self.at + 3]
        if sign == self.any_word:
            if left in _BETWEEN:
                return None  # it compares only if the variable is a sign
            raise _Unclear
        if sign in ("=", "==", "!="):
            found = _known(None if self.any_word in (left, right) else (left == right) == (sign != "!="))
        elif sign in _ORDER or sign.startswith(_AGE):
            found = BOTH
        else:
            return None
        self.at += 3
        return found

    def _two(self) -> Outcome | None:
        if self.at + 1 >= len(self.words):
            return None
        sign, word = self.words[self.at : self.at + 2]
        if sign in ("-n", "-z"):
            found = _known(None if word == self.any_word else (word == "") == (sign == "-z"))
        elif sign in ("-d", "-e"):
            # A directory is no file of which anything is known.
            found = YES if sign == "-e" and self.file(word)[0] else BOTH
        elif sign in ("-f", "-s"):
            there, text = self.file(word)
            found = _known(bool(text) if there and sign == "-s" else there)
        else:
            return None
        self.at += 2
        return found


def _known(value: bool | None) -> Outcome:
    return BOTH if value is None else frozenset((value,))


def _either(one: Outcome, other: Outcome) -> Outcome:
    return frozenset(left or right for left in one for right in other)
