# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What GRUB does with a finished grub.cfg while nobody is at the machine. No I/O.

The script is run on paper. Where something depends on what only GRUB sees (its hardware, its file systems),
both ways are followed, and a variable can have several values. What cannot be followed at all is Unclear.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from . import grub_script as script
from . import grub_test
from .grub_script import ScriptError, join_path, split_path
from .grub_test import BOTH, NO, YES

# Where $prefix and $config_directory point, whatever GRUB calls it.
PREFIX = "(grub)"
_STEERING = ("default", "timeout")
_MENUS = 10  # in each other
_MOST = 16  # values of a variable, before it is "any"
_ROUNDS = 50  # of a loop
_DEPTH = 50  # of functions in each other and of files that read files


class Odd(str):
    """What a variable can be but for a text. No text of GRUB has a NUL."""

    __slots__ = ()


ANY, UNSET = Odd("\0any"), Odd("\0unset")
Values = frozenset[str]
# They only show something, or prepare what an entry needs.
_HARMLESS = frozenset(
    (
        *("echo", "insmod", "rmmod", "clear", "cls", "play", "serial", "acpi", "cutmem", "badram"),
        *(
            "terminal_input",
            "terminal_output",
            "terminfo",
            "loadfont",
            "background_image",
            "background_color",
        ),
        *("password", "password_pbkdf2", "cryptomount", "loopback", "nativedisk", "gettext", "true", "sleep"),
        *("linux", "initrd", "linuxefi", "initrdefi", "linux16", "initrd16", "videoinfo", "rmd", "tpm"),
    )
)
_SUCCEED = frozenset(("echo", "true", "sleep", "password", "password_pbkdf2", "clear", "cls"))
# Nobody is there who could press a key; `sleep --interruptible` runs to its end.
_FAIL = frozenset(("false", "keystatus"))
# The menu that was read is not what comes next.
_LEAVE = frozenset(
    (
        *("boot", "exit", "halt", "reboot", "fwsetup", "normal", "normal_exit", "configfile", "fwload"),
        *("legacy_configfile", "syslinux_configfile", "extract_entries_configfile", "legacy_source"),
        *("extract_legacy_entries_source", "extract_syslinux_entries_configfile", "syslinux_source"),
        *("extract_syslinux_entries_source", "extract_entries_source"),
    )
)
_FEATURES = (
    *("chainloader_bpb", "ntldr", "platform_search_hint", "default_font_path", "all_video_module"),
    *("menuentry_id", "menuentry_options", "200_final", "nativedisk_cmd", "timeout_style"),
)
_NAMED = re.compile(r"(?:--?[\w-]+=)?(?:\d+:)?([A-Za-z_]\w*)", re.ASCII)
_SECTION = re.compile(r"^### BEGIN (\S+) ###$", re.M)


class Unclear(Exception):
    """What the menu does cannot be told; the argument says why."""


@dataclass(frozen=True)
class Place:
    """A line of a file, and the script of /etc/grub.d that has written it, if one has."""

    file: str
    line: int
    section: str

    def __str__(self) -> str:
        return (
            f"{self.section} (line {self.line} of {self.file})"
            if self.section
            else f"{self.file}, line {self.line}"
        )


@dataclass
class Entry:
    """A menuentry or submenu as GRUB has it in its menu. What is None cannot be told."""

    title: str | None
    ident: str | None
    unrestricted: bool
    users: str | None
    classes: tuple[str, ...]
    command: script.Command
    text: str  # that command is a part of
    place: Place
    sure: bool  # it is in the menu whatever GRUB sees
    parents: tuple[Entry, ...]
    children: list[Entry] = field(default_factory=list)
    # Of a submenu: its own text makes superusers, and says where the default is set aside or the menu waits.
    superusers: bool = False
    steers: Place | None = None

    @property
    def submenu(self) -> bool:
        return self.command.name == "submenu"

    @property
    def restricted(self) -> bool:
        """Whether a person has to log in, if there are superusers."""
        return self.users is not None or not self.unrestricted

    @property
    def path(self) -> str:
        """What selects it, by the ids; empty if nothing that is known does."""
        names = [entry.ident for entry in (*self.parents, self)]
        return join_path(tuple(name or "" for name in names)) if all(map(selectable, names)) else ""


def selectable(name: str | None) -> bool:
    """Whether GRUB takes it for a name: what begins with a digit is the number of an entry to it."""
    return bool(name) and not (name or "").lstrip()[:1].isdigit() and (name or "").strip() == name


class _State:
    """Variables, and the environment block, at one point of the script."""

    def __init__(self) -> None:
        self.variables: dict[str, Values] = {}
        self.exported: set[str] = set()
        self.block: dict[str, Values] = {}
        self.places: dict[str, frozenset[Place]] = {}
        self.left = False  # what follows may not be run: after `return` and the like

    def copy(self) -> _State:
        new = _State()
        new.variables, new.exported = dict(self.variables), set(self.exported)
        new.block, new.places, new.left = dict(self.block), dict(self.places), self.left
        return new

    def merge(self, other: _State) -> None:
        """What holds if it came here, or there."""
        for mine, its in ((self.variables, other.variables), (self.block, other.block)):
            for name in {*mine, *its}:
                mine[name] = _few(mine.get(name, frozenset((UNSET,))) | its.get(name, frozenset((UNSET,))))
        for name, places in other.places.items():
            self.places[name] = self.places.get(name, frozenset()) | places
        self.exported |= other.exported
        self.left |= other.left

    def same(self, other: _State) -> bool:
        return (self.variables, self.block, self.left) == (other.variables, other.block, other.left)

    def get(self, name: str) -> Values:
        return self.variables.get(name, frozenset((UNSET,)))


def _waiting(timeouts: Values) -> tuple[str, ...]:
    """Those that are no time: GRUB takes a number of more than 31 bits for none, or for one below zero."""
    return tuple(
        sorted(
            "" if value is UNSET else value
            for value in timeouts
            if value is not ANY and not re.fullmatch(r"\s*[0-9]{1,9}\s*", value)
        )
    )


def _few(values: Values) -> Values:
    return frozenset((ANY,)) if len(values) > _MOST else values


@dataclass(frozen=True)
class Files:
    """What GRUB can read; read has the text of a file by its path on the host, None if there is none."""

    read: Callable[[str], str | None]
    folder: str = "/boot/grub"

    def path(self, name: str) -> str | None:
        """Where the host has a file that GRUB calls so, if that is known."""
        if not isinstance(name, Odd) and name.startswith(f"{PREFIX}/"):
            return self.folder + name[len(PREFIX) :]
        if not isinstance(name, Odd) and name.startswith(f"{self.folder}/"):
            return name
        return None

    def text(self, name: str) -> tuple[bool | None, str]:
        """Whether there is such a file, if that is known, and its text."""
        path = self.path(name)
        text = None if path is None else self.read(path)
        return (None if path is None else text is not None), text or ""


class Menu:
    """grub.cfg after it was read: entries, and what variables can be.

    block: the environment block, None if there is none. platform: pc or efi; empty if it is not known.
    """

    def __init__(
        self,
        text: str,
        files: Files,
        block: Mapping[str, str] | None,
        platform: str = "",
        name: str = "grub.cfg",
    ) -> None:
        self.files = files
        self.entries: list[Entry] = []
        self.sourced: set[str] = set()  # files that were read in any case
        self._available = block is not None
        self._functions: dict[str, list[tuple[script.Function, str, str]]] = {}
        self._arguments: Sequence[str] = ()
        self._unsure = 0
        self._depth = 0
        self._in_entry = False
        self._parents: tuple[Entry, ...] = ()
        self._closed: list[Entry] = []  # submenus that were not opened yet
        self._in_function = False
        self._texts: list[tuple[str, str]] = []  # text that is run, and its file
        self._evaluated: list[Place] = []  # of the `eval` whose text is run
        self.state = self._start(block or {}, platform)
        self._file(text, name, self.state)
        self._open(self.state)

    def _start(self, block: Mapping[str, str], platform: str) -> _State:
        state = _State()
        state.block = {name: frozenset((value,)) for name, value in block.items()}
        known = {
            "prefix": PREFIX,
            "config_directory": PREFIX,
            **{f"feature_{name}": "y" for name in _FEATURES},
        }
        state.variables = {name: frozenset((value,)) for name, value in known.items()}
        state.variables["grub_platform"] = frozenset((platform or ANY,))
        for name in ("root", "grub_cpu", "cmdpath", "net_default_server", "lockdown", "shim_lock", "lang"):
            state.variables[name] = frozenset((ANY,))
        state.variables["check_signatures"] = frozenset((UNSET,))
        state.exported = set(state.variables)
        return state

    # --- what it does -------------------------------------------------------------------------------

    @property
    def default(self) -> Values:
        return self.state.get("default")

    @property
    def fixed_by(self) -> tuple[Place, ...]:
        """Where the default was given the value that it has."""
        return tuple(sorted(self.state.places.get("default", ()), key=str))

    @property
    def waits(self) -> tuple[str, ...]:
        """Values of `timeout` with which GRUB waits for a key for ever."""
        return _waiting(self.state.get("timeout"))

    @property
    def superusers(self) -> bool:
        """Whether there may be any: restricted entries then ask for a name."""
        return self.state.get("superusers") != frozenset((UNSET,))

    def everything(self) -> Iterator[Entry]:
        """All entries that start something, in order."""
        pending = list(self.entries)
        while pending:
            entry = pending.pop(0)
            if entry.submenu:
                pending = entry.children + pending
            else:
                yield entry

    def find(self, path: str) -> Entry | None:
        """The entry that GRUB starts if this is its default; None if there is none, or it cannot be told."""
        entries, entry = self.entries, None
        for name in split_path(path):
            if not selectable(name):
                return None
            entry = next(
                (each for each in entries if each.ident is None or name in (each.ident, each.title)), None
            )
            if entry is None or entry.ident is None or not entry.sure:
                return None
            entries = entry.children
        return entry if entry and not entry.submenu else None

    def after(self, entry: Entry) -> dict[str, Values]:
        """The environment block once the entry was started. Raises Unclear for what may not come to that."""
        state = self.state.copy()
        state.variables["chosen"] = frozenset((entry.path or ANY,))
        self._in_entry = True
        try:
            with self._frame(entry.text, entry.place.file, (ANY,)):
                block = entry.command.block
                self._list(block.body if block else (), state)
        finally:
            self._in_entry = False
        return state.block

    # --- running ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _frame(
        self, text: str, file: str, arguments: Sequence[str], function: bool = False
    ) -> Iterator[None]:
        before, self._arguments = self._arguments, arguments
        inside, self._in_function = self._in_function, function
        self._texts.append((text, file))
        if len(self._texts) > _DEPTH:
            raise Unclear(f"{file} reads itself, or a function calls itself")
        try:
            yield
        finally:
            self._texts.pop()
            self._arguments, self._in_function = before, inside

    def _file(self, text: str, name: str, state: _State) -> None:
        try:
            statements = script.parse(text)
        except ScriptError as error:
            raise Unclear(f"{name}, {error}") from error
        with self._frame(text, name, ()):
            self._list(statements, state)
        state.left = False

    def _place(self, statement: script.Statement) -> Place:
        if self._evaluated:
            return self._evaluated[0]
        text, file = self._texts[-1]
        sections = _SECTION.findall(text[: statement.start])
        return Place(file, statement.line, sections[-1] if sections else "")

    def _list(self, statements: Iterable[script.Statement], state: _State) -> frozenset[bool]:
        status = YES
        for statement in statements:
            if state.left:
                once = state.copy()
                self._unsure += 1
                status = self._one(statement, once)
                self._unsure -= 1
                state.merge(once)
            else:
                status = self._one(statement, state)
        return status

    def _one(self, statement: script.Statement, state: _State) -> frozenset[bool]:
        if isinstance(statement, script.Command):
            return self._command(statement, state)
        if isinstance(statement, script.If):
            return self._if(statement.branches, statement.otherwise, state)
        if isinstance(statement, script.Loop):
            return self._loop(statement, state)
        if isinstance(statement, script.Function):
            text, file = self._texts[-1]
            known = self._functions.setdefault(statement.name, [])
            if not self._unsure:
                known.clear()
            known.append((statement, text, file))
        return YES

    def _if(
        self,
        branches: Sequence[tuple[tuple[script.Statement, ...], tuple[script.Statement, ...]]],
        otherwise: tuple[script.Statement, ...],
        state: _State,
    ) -> frozenset[bool]:
        if not branches:
            return self._list(otherwise, state)
        condition, body = branches[0]
        outcome = self._list(condition, state)
        if outcome == YES:
            return self._list(body, state)
        if outcome == NO:
            return self._if(branches[1:], otherwise, state)
        other = state.copy()
        self._unsure += 1
        status = self._list(body, state) | self._if(branches[1:], otherwise, other)
        self._unsure -= 1
        state.merge(other)
        return status

    def _loop(self, loop: script.Loop, state: _State) -> frozenset[bool]:
        turns = self._alternatives(loop.words, state) if loop.variable else []
        # One that is not known may be none, or several.
        if len(turns) == 1 and len(turns[0]) <= _ROUNDS and ANY not in turns[0]:
            for value in turns[0]:
                state.variables[loop.variable] = frozenset((value,))
                self._list(loop.body, state)
            state.left = False
            return BOTH
        self._unsure += 1
        for _round in range(_ROUNDS):
            once = state.copy()
            if loop.variable:
                once.variables[loop.variable] = frozenset((ANY,))
            self._list((*loop.condition, *loop.body), once)
            before = state.copy()
            state.merge(once)
            state.left = before.left
            if state.same(before):
                break
        else:
            raise Unclear(f"{self._place(loop)}: a loop that cannot be followed")
        self._unsure -= 1
        return BOTH

    # --- words --------------------------------------------------------------------------------------

    def _values(self, piece: script.Piece, state: _State) -> Values:
        if not piece.variable:
            return frozenset((piece.text,))
        if piece.text.isdigit():
            number = int(piece.text)
            if ANY in self._arguments or not number:
                return frozenset((ANY,))
            known = number <= len(self._arguments)
            return frozenset((self._arguments[number - 1] if known else "",))
        if not piece.text.isidentifier():
            return frozenset((ANY,))  # $? and the like, or a text with a translation
        values = frozenset("" if value is UNSET else value for value in state.get(piece.text))
        if not piece.quoted and any(
            not isinstance(value, Odd) and value.split() not in ([], [value]) for value in values
        ):
            return frozenset((ANY,))  # it becomes several words
        return values

    def _expand(self, word: script.Word, state: _State) -> list[list[str]]:
        """What a word can become: mostly one word, or none."""
        if word.pattern and word.value not in ("*", "?"):
            return [[ANY]]
        found: set[str] = {""}
        for piece in word.pieces:
            values = self._values(piece, state)
            found = {
                ANY if isinstance(one, Odd) or isinstance(other, Odd) else one + other
                for one, other in itertools.product(found, values)
            }
            if len(found) > _MOST:
                found = {ANY}
        solid = any(piece.quoted or not piece.variable for piece in word.pieces)
        return [[value] if value or solid else [] for value in sorted(found)]

    def _alternatives(self, words: Sequence[script.Word], state: _State) -> list[list[str]]:
        """All that the words of a command can become together."""
        each = [self._expand(word, state) for word in words]
        count = 1
        for options in each:
            count *= len(options)
        if count > 4 * _MOST:
            each = [options if len(options) == 1 else [[ANY]] for options in each]
        return [list(itertools.chain(*choice)) for choice in itertools.product(*each)]

    # --- commands -----------------------------------------------------------------------------------

    def _command(self, command: script.Command, state: _State) -> frozenset[bool]:
        alternatives = self._alternatives(command.words, state)
        if len(alternatives) == 1:
            return self._call(command, alternatives[0], state)
        before, status = state.copy(), frozenset[bool]()
        self._unsure += 1
        for number, words in enumerate(alternatives):
            one = state if not number else before.copy()
            status |= self._call(command, words, one)
            if number:
                state.merge(one)
        self._unsure -= 1
        return status

    def _call(self, command: script.Command, words: list[str], state: _State) -> frozenset[bool]:
        if not words:
            return BOTH
        name, *arguments = words
        if name == "!":
            return frozenset(not status for status in self._call(command, arguments, state))
        if isinstance(name, Odd):
            raise Unclear(f"{self._place(command)}: which command it is depends on a variable")
        special = (
            getattr(self, f"_do_{_METHODS.get(name, name)}", None)
            if name.isidentifier() or name in _METHODS
            else None
        )
        if special:
            result: frozenset[bool] = special(command, arguments, state)
            return result
        if name in _LEAVE and arguments[:1] != ["--is-supported"]:
            return self._leave(command, name, state)
        if name in _FAIL:
            return NO
        if name in _HARMLESS:
            return YES if name in _SUCCEED else BOTH
        if name in self._functions:
            return self._function(name, arguments, state)
        if "=" in name:
            return self._assign(command, name, state)
        for argument in arguments:
            # Commands set variables that they are told the name of.
            match = _NAMED.fullmatch(argument) if not isinstance(argument, Odd) else None
            if match:
                self._set(command, match[1], frozenset((ANY,)), state)
        return BOTH

    def _leave(self, command: script.Command, name: str, state: _State) -> frozenset[bool]:
        if not self._in_entry:
            raise Unclear(f"{self._place(command)}: `{name}` may leave the menu before it is shown")
        if name not in ("boot", "reboot"):
            raise Unclear(
                f"{self._place(command)}: `{name}` may leave the entry before its kernel is started"
            )
        state.left = True
        return BOTH

    def _function(self, name: str, arguments: list[str], state: _State) -> frozenset[bool]:
        status = frozenset[bool]()
        before, left = state.copy(), state.left
        variants = self._functions[name]
        for number, (function, text, file) in enumerate(variants):
            one = state if not number else before.copy()
            with self._frame(text, file, arguments, function=True):
                status |= self._list(function.body, one)
            if number:
                state.merge(one)
        if not self._in_entry:
            state.left = left
        return status

    def _set(self, command: script.Command, name: str, values: Values, state: _State) -> None:
        state.variables[name] = values
        state.places[name] = frozenset((self._place(command),))

    def _assign(self, command: script.Command, word: str, state: _State) -> frozenset[bool]:
        name, _equals, value = word.partition("=")
        self._set(command, name, frozenset((value,)), state)
        return YES

    def _do_set(self, command: script.Command, arguments: list[str], state: _State) -> frozenset[bool]:
        if not arguments:
            return YES
        if not isinstance(arguments[0], Odd) and "=" in arguments[0]:
            return self._assign(command, arguments[0], state)
        if not isinstance(arguments[0], Odd):
            return NO
        # The name at least is nearly always there.
        source = command.words[-1].source
        match = re.match(r"([A-Za-z_]\w*)=", source)
        if not match:
            raise Unclear(f"{self._place(command)}: which variable it sets depends on another variable")
        self._set(command, match[1], frozenset((ANY,)), state)
        return YES

    def _do_unset(self, command: script.Command, arguments: list[str], state: _State) -> frozenset[bool]:
        for name in arguments:
            if isinstance(name, Odd):
                raise Unclear(f"{self._place(command)}: which variable it unsets depends on another variable")
            self._set(command, name, frozenset((UNSET,)), state)
        return YES

    def _do_export(self, _command: script.Command, arguments: list[str], state: _State) -> frozenset[bool]:
        for name in arguments:
            if not isinstance(name, Odd):
                state.exported.add(name)
                # It is set from now on.
                values = frozenset("" if value is UNSET else value for value in state.get(name))
                state.variables[name] = values
        return YES

    def _do_eval(self, command: script.Command, arguments: list[str], state: _State) -> frozenset[bool]:
        if ANY in arguments:
            raise Unclear(f"{self._place(command)}: what `eval` runs depends on a variable")
        text = " ".join(str(word) for word in arguments) + "\n"
        place = self._place(command)
        self._evaluated.append(place)
        self._file(text, place.file, state)
        self._evaluated.pop()
        return BOTH

    def _do_return(self, command: script.Command, _arguments: list[str], state: _State) -> frozenset[bool]:
        if command.name == "return" and not self._in_function:
            # In a file that another one reads, GRUB reads that again and again.
            raise Unclear(f"{self._place(command)}: `return` stands outside of a function")
        state.left = True
        return BOTH

    def _do_setparams(
        self, _command: script.Command, _arguments: list[str], _state: _State
    ) -> frozenset[bool]:
        self._arguments = (ANY,)
        return YES

    def _do_source(self, command: script.Command, arguments: list[str], state: _State) -> frozenset[bool]:
        name = arguments[0] if arguments else ANY
        there, text = self.files.text(name)
        if there is None:
            raise Unclear(
                f"{self._place(command)}: it reads {command.words[-1].source}, whose content is not known"
            )
        if not there:
            return NO
        path = self.files.path(name) or ""
        left = state.left
        self._file(text, path, state)
        state.left = left
        if not self._unsure:
            self.sourced.add(path)
        return BOTH

    def _do_asks(self, command: script.Command, _arguments: list[str], _state: _State) -> frozenset[bool]:
        raise Unclear(f"{self._place(command)}: `{command.name}` waits for somebody at the console")

    def _do_blscfg(self, command: script.Command, _arguments: list[str], _state: _State) -> frozenset[bool]:
        raise Unclear(
            f"{self._place(command)}: entries come from /boot/loader/entries (blscfg), which is not supported"
        )

    def _do_hwmatch(self, command: script.Command, _arguments: list[str], state: _State) -> frozenset[bool]:
        self._set(command, "match", frozenset((ANY,)), state)
        return BOTH

    # --- the environment block ----------------------------------------------------------------------

    def _block_arguments(self, command: script.Command, arguments: list[str]) -> tuple[str, list[str]]:
        """A file that is not the usual one, and the names of variables."""
        file: str = ""
        names: list[str] = []
        rest = iter(arguments)
        for word in rest:
            if word in ("-f", "--file"):
                file = next(rest, ANY)
            elif not isinstance(word, Odd) and word.startswith("--file="):
                file = word[len("--file=") :]
            elif isinstance(word, Odd):
                raise Unclear(f"{self._place(command)}: which variables it names depends on other variables")
            elif not word.startswith("-"):
                names.append(word)
        return ("" if self.files.path(file) == f"{self.files.folder}/grubenv" else file), names

    def _do_load_env(self, command: script.Command, arguments: list[str], state: _State) -> frozenset[bool]:
        file, names = self._block_arguments(command, arguments)
        if file:
            if not names:
                raise Unclear(
                    f"{self._place(command)}: it loads all variables of {file}, whose content is not known"
                )
            for name in names:
                self._set(command, name, frozenset((ANY,)), state)
            return BOTH
        signed = {"enforce", ANY} & state.get("check_signatures")
        if not self._available or (signed and not {"-s", "--skip-sig"} & set(arguments)):
            return NO
        for name, values in state.block.items():
            if not names or name in names:
                kept = state.get(name) if UNSET in values else frozenset[str]()
                self._set(command, name, (values - {UNSET}) | kept, state)
        return YES

    def _do_save_env(self, command: script.Command, arguments: list[str], state: _State) -> frozenset[bool]:
        file, names = self._block_arguments(command, arguments)
        if file:
            return BOTH
        if not self._available:
            return NO
        for name in names:
            state.block[name] = state.get(name)
        return YES

    # --- entries ------------------------------------------------------------------------------------

    def _do_menuentry(self, command: script.Command, arguments: list[str], state: _State) -> frozenset[bool]:
        entry = self._entry(command, arguments)
        if entry is None:
            return NO
        siblings = self._parents[-1].children if self._parents else self.entries
        again = [
            each
            for each in siblings
            if (each.place, each.ident, each.title) == (entry.place, entry.ident, entry.title)
        ]
        if not again:
            siblings.append(entry)
        if entry.submenu and command.block and not again:
            self._closed.append(entry)
        return YES

    def _open(self, state: _State) -> None:
        """Run the submenus of a menu as GRUB does when they are opened: all of the menu was read by then."""
        closed, self._closed = self._closed, []
        for entry in closed:
            if len(entry.parents) > _MENUS:
                raise Unclear(f"{entry.place}: submenus in each other without an end")
            inner = state.copy()
            inner.variables = {
                name: values for name, values in inner.variables.items() if name in inner.exported
            }
            inner.left = False
            for name in _STEERING:
                inner.places.pop(name, None)
            self._parents, self._unsure = (*entry.parents, entry), 0
            block = entry.command.block
            with self._frame(entry.text, entry.place.file, (ANY,)):
                self._list(block.body if block else (), inner)
            entry.superusers = inner.get("superusers") != frozenset((UNSET,))
            # GRUB gives a submenu the rest of the path as its default, and no time to wait.
            steering = [place for name in _STEERING for place in inner.places.get(name, ())]
            entry.steers = min(steering, key=str, default=None)
            self._open(inner)
        self._parents = ()

    def _entry(self, command: script.Command, arguments: list[str]) -> Entry | None:
        options: dict[str, str] = {}
        classes: list[str] = []
        others: list[str] = []
        clear = ANY not in arguments
        rest = iter(arguments)
        for word in rest:
            key, equals, value = word.partition("=") if not isinstance(word, Odd) else ("", "", "")
            if key in ("--class", "--users", "--hotkey", "--id", "--source"):
                given = value if equals else next(rest, None)
                if given is None or (not equals and given.startswith("-")):
                    return None  # the option lacks its word
                if key == "--class":
                    classes.append(given)
                else:
                    options[key] = given
            elif key == "--unrestricted":
                if equals:
                    return None
                options[key] = ""
            elif key in ("--help", "--usage") or re.fullmatch(r"-[hu]+", word):
                return None  # GRUB tells how to use it, and goes on
            elif word == "--":
                others += rest
            else:
                others.append(word)  # and what is no option, though it looks like one
        # Its commands are its block, or what --source has.
        if not others or (command.block is None) == ("--source" not in options):
            return None
        title = others[0] if not isinstance(others[0], Odd) else None
        ident = options.get("--id", title)
        users = options.get("--users")
        return Entry(
            title=title if clear else None,
            ident=ident if clear and not isinstance(ident, Odd) else None,
            unrestricted="--unrestricted" in options,
            users=None if users is None else str(users),
            classes=tuple(name for name in classes if not isinstance(name, Odd)),
            command=command,
            text=self._texts[-1][0],
            place=self._place(command),
            sure=not self._unsure,
            parents=self._parents,
        )

    # --- conditions ---------------------------------------------------------------------------------

    def _do_test(self, _command: script.Command, arguments: list[str], _state: _State) -> frozenset[bool]:
        return grub_test.outcome(arguments, ANY, self.files.text)


# Names of commands that no method can have, or that are done alike.
_METHODS = {
    "[": "test",
    ".": "source",
    "submenu": "menuentry",
    "break": "return",
    "continue": "return",
    "shift": "setparams",
    "read": "asks",
    "authenticate": "asks",
}
