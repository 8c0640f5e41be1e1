# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The language of grub.cfg: words with their quotes, commands with their places in the text. No I/O.

It looks like a shell's and is not: no pipes, no `&&`, no redirection, functions only at the top level, and a
block that belongs to a command is `{ ... }` with something in it. Source: GRUB manual, "Shell-like
scripting", and what grub-script-check takes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

_KEYWORDS = frozenset(
    (
        *("if", "then", "elif", "else", "fi", "for", "in", "while", "until", "do", "done", "function"),
        *("case", "esac", "select", "[[", "]]"),  # reserved, for nothing yet
    )
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VARIABLE = re.compile(
    r"\$(?:\{(?P<braced>[A-Za-z_]\w*|[0-9]+|[?#*@])\}|(?P<plain>[A-Za-z_]\w*|[0-9]+|[?#*@]))", re.ASCII
)
# Not \s: a no-break space or a form feed is a sign as any other to GRUB.
_PLAIN = re.compile(r"""[^{}|&$;<> \t\n\r'"\\]+""")
_DOUBLE = re.compile(r'[^"$\\]+')


class ScriptError(Exception):
    """GRUB would not take the text, or not as it is meant. line counts from 1."""

    def __init__(self, why: str, line: int) -> None:
        super().__init__(f"line {line}: {why}")
        self.why, self.line = why, line


@dataclass(frozen=True)
class Piece:
    """A part of a word: text, or the name of a variable."""

    text: str
    variable: bool = False
    quoted: bool = False


@dataclass(frozen=True)
class Token:
    """Its place in the text."""

    start: int
    end: int


@dataclass(frozen=True)
class Word(Token):
    source: str
    pieces: tuple[Piece, ...]

    @property
    def value(self) -> str | None:
        """What GRUB makes of it; None if that depends on a variable or a translation."""
        if any(piece.variable for piece in self.pieces):
            return None
        return "".join(piece.text for piece in self.pieces)

    @property
    def pattern(self) -> bool:
        """GRUB may put names of files in its place."""
        return any(
            not piece.quoted and not piece.variable and set(piece.text) & set("*?") for piece in self.pieces
        )

    @property
    def keyword(self) -> str:
        return self.source if self.source in _KEYWORDS else ""


@dataclass(frozen=True)
class Block:
    """`{ ... }`; the text between the braces begins at start and goes up to end."""

    start: int
    end: int
    body: tuple[Statement, ...]


@dataclass(frozen=True)
class Statement:
    start: int
    end: int
    line: int


@dataclass(frozen=True)
class Command(Statement):
    words: tuple[Word, ...]
    block: Block | None = None

    @property
    def name(self) -> str | None:
        return self.words[0].value if self.words else ""


@dataclass(frozen=True)
class If(Statement):
    branches: tuple[tuple[tuple[Statement, ...], tuple[Statement, ...]], ...]  # condition and what follows it
    otherwise: tuple[Statement, ...]


@dataclass(frozen=True)
class Loop(Statement):
    """`while` and `until`; `for` has a variable, and words instead of a condition."""

    condition: tuple[Statement, ...]
    body: tuple[Statement, ...]
    until: bool = False
    variable: str = ""
    words: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Function(Statement):
    name: str
    body: tuple[Statement, ...]


def quote(text: str) -> str:
    """A word that GRUB reads as this text, whatever is in it."""
    if "\n" in text or "\r" in text or "\0" in text:
        raise ValueError("a word cannot contain the end of a line")
    return "'" + text.replace("'", "'\\''") + "'"


def unquote(source: str) -> str | None:
    """The text of one word; None if it depends on a variable. Raises ScriptError if it is not one word."""
    tokens = list(_tokens(source))
    if len(tokens) != 1 or not isinstance(tokens[0], Word):
        raise ScriptError("not one word", 1)
    return tokens[0].value


def join_path(names: tuple[str, ...]) -> str:
    """What GRUB's `default` names an entry in submenus by."""
    return ">".join(name.replace(">", ">>") for name in names)


def split_path(path: str) -> tuple[str, ...]:
    """The names of the submenus and of the entry in a path."""
    names, name, at = [], "", 0
    while at < len(path):
        if path.startswith(">>", at):
            name, at = name + ">", at + 2
        elif path[at] == ">":
            names.append(name)
            name, at = "", at + 1
        else:
            name, at = name + path[at], at + 1
    return (*names, name)


@dataclass(frozen=True)
class _Mark(Token):
    """The end of a line or of the text, or one of `; { }`."""

    text: str


def _tokens(text: str) -> Iterator[Token]:
    at = 0
    while at < len(text):
        sign = text[at]
        if sign in " \t\r":
            at += 1
        elif sign == "#":
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
        elif sign in "\n{}" or (sign == ";" and not text.startswith(";;", at)):
            yield _Mark(at, at + 1, sign)
            at += 1
        elif sign in "|&<>;":
            raise ScriptError(f"`{sign}` means nothing to GRUB", _line(text, at))
        else:
            word = _word(text, at)
            yield word
            at = word.end


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _word(text: str, start: int) -> Word:
    pieces: list[Piece] = []
    at = start
    while at < len(text):
        sign = text[at]
        if match := _PLAIN.match(text, at):
            pieces.append(Piece(match[0]))
            at = match.end()
        elif sign == "\\":
            if at + 1 == len(text):
                raise ScriptError("there is nothing after a backslash", _line(text, at))
            if text[at + 1] != "\n":
                pieces.append(Piece(text[at + 1], quoted=True))
            at += 2
        elif sign == "'":
            end = text.find("'", at + 1)
            if end < 0:
                raise ScriptError("a quote is not closed", _line(text, at))
            pieces.append(Piece(text[at + 1 : end].replace("\r", ""), quoted=True))
            at = end + 1
        elif sign == '"':
            at = _double(text, at + 1, pieces)
        elif text.startswith('$"', at):
            inner: list[Piece] = []
            at = _double(text, at + 2, inner, variables=False)
            # Translated, if GRUB has a translation.
            pieces.append(Piece("".join(piece.text for piece in inner), variable=True, quoted=True))
        elif sign == "$":
            at = _variable(text, at, pieces, quoted=False)
        elif sign == "\r":
            at += 1
        else:
            break
    # GRUB reads lines without the carriage returns that an editor may have left at their ends.
    return Word(start, at, text[start:at].rstrip("\r"), tuple(pieces))


def _double(text: str, at: int, pieces: list[Piece], variables: bool = True) -> int:
    opened = at
    pieces.append(Piece("", quoted=True))
    while at < len(text):
        sign = text[at]
        if sign == '"':
            return at + 1
        if match := _DOUBLE.match(text, at):
            pieces.append(Piece(match[0].replace("\r", ""), quoted=True))
            at = match.end()
        elif sign == "\\":
            escaped = text[at + 1 : at + 2]
            if escaped != "\n":
                known = escaped in ("$", "\\", '"') and escaped
                pieces.append(Piece(escaped if known else sign + escaped, quoted=True))
            at += 2
        elif variables:
            at = _variable(text, at, pieces, quoted=True)
        else:
            pieces.append(Piece(sign, quoted=True))
            at += 1
    raise ScriptError("a quote is not closed", _line(text, opened))


def _variable(text: str, at: int, pieces: list[Piece], quoted: bool) -> int:
    match = _VARIABLE.match(text, at)
    if not match:
        raise ScriptError("`$` without the name of a variable", _line(text, at))
    pieces.append(Piece(match["braced"] or match["plain"], variable=True, quoted=quoted))
    return match.end()


# One look at a host reads its menu several times.
@functools.lru_cache(maxsize=64)
def parse(text: str) -> tuple[Statement, ...]:
    """The statements of a script. Raises ScriptError where GRUB would not take it."""
    return _Parser(text).script()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(_tokens(text))
        self.tokens.append(_Mark(len(text), len(text), ""))
        self.at = 0

    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    def error(self, why: str) -> ScriptError:
        return ScriptError(why, _line(self.text, self.token.start))

    def mark(self, *texts: str) -> bool:
        return isinstance(self.token, _Mark) and self.token.text in texts

    def keyword(self, *words: str) -> bool:
        return isinstance(self.token, Word) and self.token.keyword in words

    def expect(self, what: str) -> Token:
        token = self.token
        if not (self.mark(what) or (what in _KEYWORDS and self.keyword(what))):
            found = self.text[token.start : token.end].strip() or "the end of the line or text"
            raise self.error(f"`{what}` is missing before {found}")
        self.at += 1
        return token

    def newlines(self) -> None:
        while self.mark("\n"):
            self.at += 1

    def delimiters(self) -> bool:
        """One `;` or end of a line, and any ends of lines behind it."""
        if not self.mark(";", "\n"):
            return False
        self.at += 1
        self.newlines()
        return True

    def script(self) -> tuple[Statement, ...]:
        statements = []
        self.newlines()
        while not self.mark(""):
            statements.append(self.function() if self.keyword("function") else self.command())
            if not self.delimiters() and not self.mark(""):
                raise self.error("a `;` or the end of the line is missing")
        return tuple(statements)

    def commands(self, *ends: str) -> tuple[Statement, ...]:
        """Up to one of the words or braces that end them; there is at least one command."""
        self.newlines()
        found = [self.command()]
        while self.delimiters() and not (self.mark(*ends) or self.keyword(*ends)):
            found.append(self.command())
        return tuple(found)

    def command(self) -> Statement:
        token = self.token
        line = _line(self.text, token.start)
        if self.keyword("if"):
            return self.conditional(token, line)
        if self.keyword("for"):
            return self.counted(token, line)
        if self.keyword("while", "until"):
            return self.conditional_loop(token, line)
        if not isinstance(token, Word) or token.keyword:
            found = self.text[token.start : token.end].strip() or "the end of the line or text"
            raise self.error(f"{found} is found where a command should be")
        words = self.words()
        block = self.block() if self.mark("{") else None
        end = self.tokens[self.at - 1].end
        return Command(token.start, end, line, words, block)

    def words(self) -> tuple[Word, ...]:
        """All that follow; a line that goes on by a backslash alone is none of them."""
        found = []
        while isinstance(self.token, Word):
            if self.keyword("[[", "]]"):
                raise self.error(f"{self.token.source} means nothing to GRUB")
            if self.token.pieces:
                found.append(self.token)
            self.at += 1
        return tuple(found)

    def block(self) -> Block:
        start = self.expect("{").end
        body = self.commands("}")
        return Block(start, self.expect("}").start, body)

    def conditional(self, token: Token, line: int) -> If:
        branches = []
        otherwise: tuple[Statement, ...] = ()
        while True:
            self.at += 1  # if, elif
            condition = self.commands("then")
            self.expect("then")
            branches.append((condition, self.commands("elif", "else", "fi")))
            if not self.keyword("elif"):
                break
        if self.keyword("else"):
            self.at += 1
            otherwise = self.commands("fi")
        return If(token.start, self.expect("fi").end, line, tuple(branches), otherwise)

    def counted(self, token: Token, line: int) -> Loop:
        self.at += 1
        variable = self.name()
        self.expect("in")
        words = self.words()
        if not self.delimiters():
            raise self.error("a `;` or the end of the line is missing")
        self.expect("do")
        body = self.commands("done")
        return Loop(token.start, self.expect("done").end, line, (), body, False, variable, words)

    def conditional_loop(self, token: Token, line: int) -> Loop:
        until = self.keyword("until")
        self.at += 1
        condition = self.commands("do")
        self.expect("do")
        body = self.commands("done")
        return Loop(token.start, self.expect("done").end, line, condition, body, until)

    def function(self) -> Function:
        start = self.expect("function")
        line = _line(self.text, start.start)
        name = self.name()
        self.newlines()
        self.expect("{")
        body = self.commands("}")
        return Function(start.start, self.expect("}").end, line, name, body)

    def name(self) -> str:
        token = self.token
        if not isinstance(token, Word) or not _NAME.fullmatch(token.source) or token.keyword:
            raise self.error("a name is missing")
        self.at += 1
        return token.source


def commands(statements: tuple[Statement, ...], checked: bool = False) -> Iterator[tuple[Command, bool]]:
    """Every command in statements, and whether something depends on how it ends: on it, a script can go on
    elsewhere. Blocks of commands are not entered.
    """
    for statement in statements:
        if isinstance(statement, Command):
            yield statement, checked
        elif isinstance(statement, If):
            for condition, body in statement.branches:
                yield from commands(condition, True)
                yield from commands(body, checked)
            yield from commands(statement.otherwise, checked)
        elif isinstance(statement, Loop):
            yield from commands(statement.condition, True)
            yield from commands(statement.body, True)
        elif isinstance(statement, Function):
            yield from commands(statement.body, checked)
