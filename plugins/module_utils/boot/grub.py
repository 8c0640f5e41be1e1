# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""GRUB's menu: which entry starts which kernel, and the entries of our own. No I/O."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..common.errors import Failure
from . import grub_script as script
from .grub_menu import Entry, Menu, Unclear
from .plan import END_OF_WORDS, OWN_ID, TRIAL_ID, bounded, check_length, for_rescue, own_id

BEGIN = "### BEGIN mkops: written by mkops.multikernel.kernel_boot, changes are lost ###"
END = "### END mkops ###"
# Of the environment block; GRUB reads nothing in a file without it.
SIGNATURE = "# GRUB Environment Block\n"

_LINUX = ("linux", "linuxefi", "linux16")
_INITRD = ("initrd", "initrdefi", "initrd16")
_CMDLINE = "# mkops cmdline:"
_PART = re.compile(rf"^{re.escape(BEGIN)}\n(.*?)^{re.escape(END)}$\n?", re.M | re.S)
_GRUB_DEFAULT = re.compile(r"^[ \t]*(?:export[ \t]+)?GRUB_DEFAULT=(.*)$", re.M)
_TO_THE_END = re.compile(r"(?:\\.|[^\\\n])*\n", re.S)
# ... as a whole line of its own, in no block.
_ALONE = re.compile(
    r"""(?:export[ \t]+)?GRUB_DEFAULT=(?:[^\s'"\\;&|`$()]|'[^']*'|"[^"\\`$]*")*(?:[ \t\r]+(?:#.*)?)?$"""
)


# --- what an entry is ---------------------------------------------------------------------------------


def _loads(entry: Entry) -> Iterator[tuple[script.Command, tuple[script.Word, ...], bool]]:
    """The commands of an entry that load a kernel or an initrd: each with its words, without `!` before them,
    and whether something depends on how it ends.
    """
    block = entry.command.block
    for command, checked in script.commands(block.body if block else ()):
        words = command.words
        while words and words[0].value == "!":
            words, checked = words[1:], True
        if words and words[0].value in (*_LINUX, *_INITRD):
            yield command, words, checked


def _linux(entry: Entry) -> list[tuple[script.Word, ...]]:
    return [words for _command, words, _checked in _loads(entry) if words[0].value in _LINUX]


def release_of(entry: Entry) -> str:
    """The release of the kernel that an entry starts; empty if it starts none, one without, or not always the
    same.
    """
    names = set()
    for words in _linux(entry):
        pieces = words[1].pieces if len(words) > 1 else ()
        path = "".join("\0" if piece.variable else piece.text for piece in pieces)
        names.add(path.rsplit("/", 1)[-1])
    name = names.pop() if len(names) == 1 else ""
    return name[len("vmlinuz-") :] if name.startswith("vmlinuz-") and "\0" not in name else ""


def cmdline_of(entry: Entry) -> str:
    """Of the first kernel in it, as it is written."""
    return " ".join(word.source for words in _linux(entry)[:1] for word in words[2:])


def plain_cmdline(entry: Entry) -> str | None:
    """The same as the kernel would get it; None where it depends on variables, or on which one is loaded."""
    loads = _linux(entry)
    words = [word.value for word in loads[0][2:]] if len(loads) == 1 else [None]
    return None if any(word is None for word in words) else " ".join(word or "" for word in words)


def rescue(entry: Entry) -> bool:
    """Whether its system waits for a person."""
    words = [word.value or "" for linux in _linux(entry) for word in linux[2:]]
    return "-recovery-" in (entry.ident or "") or for_rescue(words)


def ordinary(menu: Menu, release: str) -> Entry | None:
    """The entry to start a kernel by: not for recovery, and not the one that always means the newest."""
    for entry in menu.everything():
        name = entry.ident or ""
        if (
            release_of(entry) == release
            and not name.startswith(("gnulinux-simple-", TRIAL_ID, OWN_ID))
            and not rescue(entry)
            and entry.path
            and menu.find(entry.path) is entry
        ):
            return entry
    return None


def locked(menu: Menu, entry: Entry) -> str:
    """Why GRUB would not start an entry by itself, but wait for a person or start another; or nothing."""
    for parent in entry.parents:
        if parent.steers:
            return (
                f"the submenu '{parent.title}' around it sets its own default or timeout ({parent.steers}); "
                "remove that, then run update-grub"
            )
    for each in (*entry.parents, entry):
        asks = each.parents[-1].superusers if each.parents else menu.superusers
        if not (asks and each.restricted):
            continue
        kind = "submenu" if each.submenu else "menuentry"
        remedy = (
            "or set GRUB_DISABLE_SUBMENU=true in /etc/default/grub"
            if each.submenu
            else "and no --users"
            if each.users is not None
            else "for Linux by CLASS there"
        )
        return (
            f"GRUB has superusers and asks for a user name and a password before it opens '{each.title}'; "
            "add "
            f"--unrestricted to this {kind} in {each.place.section or each.place.file}, {remedy}; then run "
            "update-grub"
        )
    return ""


def unsafe(menu: Menu, entry: Entry) -> str:
    """Why a kernel cannot be tried through an entry, nor come back through it; empty if it can."""
    if why := locked(menu, entry) or not_copied(entry):
        return why
    try:
        menu.after(entry)
    except Unclear as unclear:
        return str(unclear)
    return ""


def not_copied(entry: Entry) -> str:
    """Why no entry of our own can be made of an entry; empty if one can."""
    block = entry.command.block
    body = list(script.commands(block.body if block else ()))
    if any(command.name is None for command, _checked in body):
        return "which command it runs depends on a variable"
    if any(command.name == "return" for command, _checked in body):
        return "it may end (`return`) before its kernel is started"
    used = {
        piece.text
        for command, _checked in body
        for word in command.words
        for piece in word.pieces
        if piece.variable
    }
    if any(not name.isidentifier() and name != "?" for name in used):
        return "it uses its own arguments, such as $1"
    for parent in entry.parents:
        inside = script.commands(parent.command.block.body if parent.command.block else ())
        given = {_assigned(command) for command, _checked in inside}
        if used & given:
            return f"it uses ${sorted(used & given)[0]}, which is set only in the submenu around it"
    return ""


def _assigned(command: script.Command) -> str:
    words = [word.source for word in command.words]
    if words[:1] == ["set"]:
        words = words[1:]
    match = re.match(r"(\w+)=", words[0]) if words else None
    return match[1] if match else ""


# --- entries of our own -------------------------------------------------------------------------------


def _copy(entry: Entry, words: Sequence[str], trial: bool) -> str:
    """The body of an entry with more words for its kernel: all else stays where it is."""
    block = entry.command.block
    if block is None or (why := not_copied(entry)):
        raise Failure(f"GRUB's entry {entry.path} cannot be copied with other words: {why}")
    edits: list[tuple[int, int, str]] = []
    for command, parts, checked in _loads(entry):
        if parts[0].value in _LINUX:
            more = list(words)
            if trial:
                edits += [
                    (word.start, word.end, bounded("rootwait")) for word in parts if word.value == "rootwait"
                ]
                if any(word.value is None for word in parts):
                    more.insert(0, bounded("rootwait"))  # it may be in a variable
            check_length(release_of(entry), " ".join([*(word.source for word in parts[2:]), *more]))
            ends = [word.start for word in parts[2:] if word.value == END_OF_WORDS]
            place = ends[0] if ends else parts[-1].end
            text = "".join(f"{word} " if ends else f" {word}" for word in more)
            edits.append((place, place, text))
        if trial and not checked:
            edits.append((command.start, command.start, "if "))
            edits.append((command.end, command.end, "; then true; else reboot; fi"))
    written, at = "", block.start
    # Stable: what is put at the end of a word comes before what is put at the end of its command.
    for start, end, new in sorted(edits, key=lambda edit: edit[:2]):
        written += entry.text[at:start] + new
        at = end
    return (written + entry.text[at : block.end]).replace("\r", "").lstrip("\n")


def _menuentry(title: str, ident: str, classes: Iterable[str], body: str) -> str:
    # Whoever may use the console: a restart has to come up while nobody is there.
    words = [
        "menuentry",
        script.quote(re.sub(r"[\r\n\0]+", " ", title)),
        *(f"--class {script.quote(name)}" for name in classes),
    ]
    text = " ".join([*words, "--unrestricted", "--id", script.quote(ident)]) + f" {{\n{body}\n}}\n"
    try:
        script.parse(text)
    except script.ScriptError as error:
        raise Failure(f"no entry for GRUB can have the title '{title}': {error}") from error
    return text


def own_entry(entry: Entry, cmdline: str) -> str:
    """A lasting entry for a kernel with a command line of its own."""
    title = f"{entry.title or release_of(entry)}, {cmdline}"
    body = f"\t{_CMDLINE} {cmdline}\n{_copy(entry, cmdline.split(), trial=False)}"
    return _menuentry(title, own_id(release_of(entry)), entry.classes, body)


def trial_entry(entry: Entry, words: Sequence[str]) -> str:
    """An entry that starts a kernel, or restarts the machine where GRUB would wait for a key for ever."""
    # With boot_once `savedefault` does nothing. By UEFI an image is looked at only when it is started; an
    # entry that just ends leaves GRUB in its menu.
    body = f"\tset boot_once=true\n{_copy(entry, words, trial=True)}\n\tboot\n\treboot"
    return _menuentry(f"Trial of {release_of(entry)}", TRIAL_ID, entry.classes, body)


@dataclass(frozen=True)
class Own:
    """An entry in our part of custom.cfg."""

    ident: str
    text: str
    cmdline: str

    @property
    def release(self) -> str:
        return self.ident[len(OWN_ID) :] if self.ident.startswith(OWN_ID) else ""


def own_entries(custom: str) -> list[Own]:
    """Those that custom.cfg has, the trial among them."""
    found = []
    for part in _PART.findall(custom):
        try:
            statements = script.parse(part)
        except script.ScriptError as error:
            raise Failure(
                f"the part of custom.cfg that kernel_boot wrote is damaged ({error}); remove it"
            ) from error
        for statement in statements:
            if not isinstance(statement, script.Command) or not statement.block:
                continue
            values = [word.value for word in statement.words]
            ident = values[values.index("--id") + 1] if "--id" in values[:-1] else None
            text = part[statement.start : statement.end]
            comment = re.search(rf"^\t{_CMDLINE} (.*)$", text, re.M)
            found.append(Own(ident or "", text + "\n", comment[1] if comment else ""))
    return found


def render_custom(custom: str, entries: Iterable[str]) -> str:
    """custom.cfg with our part replaced; what others wrote there stays."""
    kept = _PART.sub("", custom)
    if BEGIN in kept or END in kept:
        raise Failure("the part of custom.cfg that kernel_boot wrote is incomplete; remove the rest of it")
    text = "".join(entries)
    if not text:
        return kept
    if kept and not kept.endswith("\n"):
        kept += "\n"
    return f"{kept}{BEGIN}\n{text}{END}\n"


# --- settings -----------------------------------------------------------------------------------------


def parse_environment(text: str) -> dict[str, str]:
    """The variables of an environment block, a file with escapes and padding.

    As GRUB reads it: a name goes on to the next `=`, over ends of lines, so that it does not see a variable
    behind an empty line. A line without an end is none.
    """
    if not text.startswith(SIGNATURE) or text == SIGNATURE:
        raise Failure("GRUB's environment block is damaged: its header is wrong; create it again")
    found = {}
    at = 0
    while at < len(text):
        equals = at if text[at] == "#" else text.find("=", at)
        line = _TO_THE_END.match(text, equals + 1) if equals >= 0 else None
        if line is None:
            break
        if text[at] != "#":
            value = re.sub(r"\\(.)", r"\1", line[0][:-1], flags=re.S)
            found[text[at:equals].partition("\0")[0]] = value.partition("\0")[0]
        at = line.end()
    return found


def keep_saved(settings: str) -> str:
    """/etc/default/grub with a default that is remembered in grubenv.

    It is a shell script: a line is replaced only if it is nothing but the setting, and counts in any case.
    """
    wanted = "GRUB_DEFAULT=saved"
    lines = [wanted if _ALONE.match(line) else line for line in settings.split("\n")]
    text = "\n".join(lines)
    if [line for line in lines if _GRUB_DEFAULT.match(line)][-1:] != [wanted]:
        text += ("" if text.endswith("\n") or not text else "\n") + wanted
    return text if text.endswith("\n") else text + "\n"


def other_default(dropins: Mapping[str, str]) -> tuple[str, str]:
    """The file among those read after /etc/default/grub that sets a GRUB_DEFAULT which is not remembered, and
    what it sets it to.
    """
    found = "", ""
    for path, text in dropins.items():
        for value in _GRUB_DEFAULT.findall(text):
            try:
                word = next(iter(shlex.split(value, comments=True)), "")
            except ValueError:
                word = value
            found = ("", "") if word == "saved" else (path, word)
    return found
