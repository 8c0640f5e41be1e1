# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Patches: series of them, what is in one, and how it gets into a tree.

Whoever reads a patch reads it here, in the way of git am: a mailbox is split, its mails are decoded, and
nothing counts but unified diffs that begin with the line, whose hunks have as many lines as they say.
"""

from __future__ import annotations

import email
import email.header
import email.message
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..common.command import run
from ..common.errors import Failure, Refused
from ..common.files import native, read_text, text_of

SERIES = "series"
CONFIG = "config"
# What is done anyway: one leading part of the names in a patch is taken off.
_STRIP_ONE = ("-p1", "-pab")


# --- series -----------------------------------------------------------------------------------------------


def read_series(directory: Path) -> list[Path]:
    """The patches in order: those of the file `series` if there is one, else *.patch by name.

    Raises Refused with every reason why they cannot be applied.
    """
    listing = directory / SERIES
    if not listing.exists():
        return sorted(path for path in directory.glob("*.patch") if path.is_file())
    paths, missing, reasons = [], [], []
    try:
        listed = read_text(listing)
    except OSError as error:
        raise Refused(f"{text_of(listing)} cannot be read: {error.strerror}") from error
    for number, line in enumerate(listed.lstrip("\ufeff").split("\n"), 1):
        words: list[str] = []
        for word in line.split():
            if word.startswith("#"):
                break
            words.append(word)
        if not words:
            continue
        path = directory / native(words[0])
        name, options = words[0], [word for word in words[1:] if word not in _STRIP_ONE]
        where = f"{listing}:{number}: {shown(name)}"
        if options:
            what = "the option" if options[0].startswith("-") else "a second word,"
            reasons.append(
                f"{where} has {what} {shown(' '.join(options))}: patches are applied with -p1 "
                "and nothing else; make the patch again for that, or remove it"
            )
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            reasons.append(f"{where} lies outside of the series: put the patch below {directory}")
        elif not os.path.isfile(path):  # false, too, for what no file can be called
            missing.append(shown(name))
        paths.append(path)
    if missing:
        reasons.append(f"{listing} lists patches that do not exist: {', '.join(missing)}")
    if reasons:
        raise Refused(*reasons)
    return paths


def own_fragments(directory: Path) -> list[Path]:
    """The configuration fragments of a series: what its version of the kernel needs besides others."""
    return sorted(path for path in (directory / CONFIG).glob("*.config") if path.is_file())


def with_own_fragments(directory: Path, fragments: Iterable[Path]) -> list[Path]:
    """Fragments in order, each followed by the one of a series that has its name, if there is one."""
    own = {path.name: path for path in own_fragments(directory)}
    return [one for path in fragments for one in (path, own.get(path.name)) if one]


def shown(name: str) -> str:
    """A name with whatever bytes, for people."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


# --- what is in a patch -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One diff or the diffs of one mail, without the text around them."""

    name: str
    text: bytes
    files: tuple[tuple[str, str], ...]  # (old, new), as the diffs name them


def read_patch(path: Path, name: str) -> list[Change]:
    """What is to be applied, in order. Raises Refused if that is nothing or not whole, OSError."""
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    mails = list(_mails(content))
    found = []
    for number, (subject, body) in enumerate(mails, 1):
        part = name if len(mails) == 1 else f"{name} message {number}"
        text, files = _diffs(body, part)
        if files:
            found.append(Change(part, text, files))
        elif len(mails) > 1 and _PATCH.search(subject):
            raise Refused(f"patch {part} has nothing to apply: there is no unified diff in '{subject}'")
    if not found:
        raise Refused(f"patch {name} has nothing to apply: there is no unified diff in it")
    return found


# A patch that is sent; not its cover letter, nor an answer to it.
_PATCH = re.compile(r"^\s*\[[^]]*\bPATCH\b(?![^]]*\b0+/\d)[^]]*\]", re.IGNORECASE)
# As git mailsplit has it: a year comes right after the seconds.
_SEPARATOR = re.compile(rb"^From .*\d.\d\d:\d\d[ \t]*\+?0*(?:9[1-9]|[1-9]\d\d+)[^:\n]*$", re.MULTILINE)
_HEADER = re.compile(rb"^[!-9;-~]+:[ \t]")


def _mails(content: bytes) -> Iterator[tuple[str, bytes]]:
    """(subject, decoded text) of every mail; a file that is none is one without a subject."""
    if content.startswith(b"From "):
        starts = [match.start() for match in _SEPARATOR.finditer(content)] or [0]
        for start, end in zip(starts, [*starts[1:], len(content)]):
            yield _mail(content[start:end].partition(b"\n")[2])
    elif _HEADER.match(content):
        yield _mail(content)
    else:
        yield "", _plain_lines(content)


def _mail(content: bytes) -> tuple[str, bytes]:
    message = email.message_from_bytes(content)
    texts = [
        _text(part)
        for part in message.walk()
        if not part.is_multipart() and part.get_content_type() != "text/html"
    ]
    return _subject(message), b"\n".join(texts)


def _text(part: email.message.Message) -> bytes:
    payload = part.get_payload(decode=True)
    text = _plain_lines(payload if isinstance(payload, bytes) else b"")
    if str(part.get_param("format", "")).lower() != "flowed":
        return text
    # RFC 3676: lines that begin with a space have one more, those that end with one go on in the next.
    lines = [line if line == b"-- " else line.removeprefix(b" ") for line in text.split(b"\n")]
    deleted = str(part.get_param("delsp", "")).lower() == "yes"
    joined, begun = [], b""
    for line in lines:
        if line.endswith(b" ") and line != b"-- ":
            begun += line[:-1] if deleted else line
        else:
            joined.append(begun + line)
            begun = b""
    return b"\n".join([*joined, *filter(None, [begun])])


def _subject(message: email.message.Message) -> str:
    words = []
    for text, charset in email.header.decode_header(str(message.get("Subject", ""))):
        try:
            words.append(text if isinstance(text, str) else text.decode(charset or "ascii", "replace"))
        except LookupError:  # a charset that nobody knows
            words.append(text.decode("ascii", "replace") if isinstance(text, bytes) else text)
    return " ".join("".join(words).split())


def _plain_lines(text: bytes) -> bytes:
    """Without the carriage returns that mail puts at the end of every line; those of a patch itself stay."""
    carried = re.search(rb"^\+\+\+ [^\n]*\r$", text, re.MULTILINE)
    return text.replace(b"\r\n", b"\n") if carried else text


_HUNK = re.compile(rb"^@@ -(?:\d+),?(\d+)? \+(?:\d+),?(\d+)? @@")
_NO_HUNK = re.compile(rb"^@@? ?-\d")
_GIT = re.compile(rb"^diff --git (\S+|\"[^\"]*\") (\S+|\"[^\"]*\")$")
_EXTENDED = (
    *(b"index ", b"similarity index ", b"dissimilarity index ", b"old mode ", b"new mode "),
    *(b"new file mode ", b"deleted file mode ", b"copy from ", b"copy to ", b"rename from ", b"rename to "),
)
_WITHOUT_HUNKS = (b"new mode ", b"new file mode ", b"deleted file mode ", b"copy to ", b"rename to ")
_BINARY = (b"GIT binary patch", b"Binary files ")
_SUBMODULE = re.compile(rb"^(?:new file mode|new mode|deleted file mode) 160000$|^index \S+ 160000$")
# What `diff` writes without -u.
_NORMAL = re.compile(rb"^\d+(?:,\d+)?[acd]\d+(?:,\d+)?\r?$")


def _diffs(text: bytes, name: str) -> tuple[bytes, tuple[tuple[str, str], ...]]:
    """The unified diffs alone, and the files that they are for."""
    lines = text.split(b"\n")
    kept: list[bytes] = []
    files: list[tuple[str, str]] = []
    at = 0

    def line(number: int) -> bytes:
        return lines[number] if number < len(lines) else b""

    while at < len(lines):
        header: list[bytes] = []
        named = _GIT.match(lines[at])
        if lines[at].startswith(b"diff --git "):
            header.append(lines[at])
            at += 1
            while line(at).startswith(_EXTENDED):
                header.append(lines[at])
                at += 1
            if line(at).startswith(_BINARY):
                raise Refused(
                    f"patch {name} changes a binary file ({_shown(named[2] if named else header[0])}): "
                    "give a source that has it, and a patch without it"
                )
            if any(_SUBMODULE.match(one) for one in header):
                raise Refused(
                    f"patch {name} changes a submodule ({_shown(named[2] if named else header[0])}), which "
                    "no patch can: give a source that has it"
                )
        if line(at).startswith(b"--- ") and line(at + 1).startswith(b"+++ ") and _HUNK.match(line(at + 2)):
            hunks, end = _hunks(lines, at + 2, name)
            kept += [*header, lines[at], lines[at + 1], *hunks]
            files.append((_file(lines[at]), _file(lines[at + 1])))
            at = end
        elif _begun(header, named, lines, at):
            if line(at + 2).startswith(b"@@@ "):
                raise Refused(
                    f"patch {name} is a combined diff of a merge: make one against one parent (git diff A B)"
                )
            raise Refused(
                f"patch {name} has nothing to apply in the diff at line {at + 1}: it was cut off or "
                "changed on the way; get it again"
            )
        elif any(one.startswith(_WITHOUT_HUNKS) for one in header):
            kept += header
            files.append((_shown(named[1]), _shown(named[2])) if named else ("", _shown(header[0])))
        elif not header:
            if (
                line(at).startswith(b"*** ")
                and line(at + 1).startswith(b"--- ")
                and line(at + 2)[:5] == b"*" * 5
            ):
                raise Refused(f"patch {name} is a context diff: make a unified one (diff -u)")
            if _NORMAL.match(line(at)) and line(at + 1)[:2] in (b"< ", b"> "):
                raise Refused(f"patch {name} is a diff without context: make a unified one (diff -u)")
            at += 1
    return b"\n".join([*kept, b""]), tuple(files)


def _begun(header: list[bytes], named: re.Match[bytes] | None, lines: list[bytes], at: int) -> bool:
    """Whether a diff begins before a line that has no hunk, nor says without one what it changes: a message
    may have words that look like the first ones of a diff.
    """
    first, second, *rest = [*lines[at:], b"", b""]
    names = first.startswith(b"--- ") and second.startswith(b"+++ ")
    if names and (rest[0].startswith(b"@@") or not any(rest)):
        return True
    if any(one.startswith(_WITHOUT_HUNKS) for one in header):
        return first.startswith(b"--- ")
    same = named is not None and named[1][:1] != named[2][:1] and named[1][1:] == named[2][1:]
    return len(header) > 1 or same or (bool(header) and names)


def _hunks(lines: list[bytes], at: int, name: str) -> tuple[list[bytes], int]:
    """The hunks of a file from a line on, and where they end."""
    kept: list[bytes] = []
    changes = False
    while at < len(lines) and (match := _HUNK.match(lines[at])):
        begin = at
        old, new = (int(count) if count else 1 for count in match.groups(b"1"))
        kept.append(lines[at])
        at += 1
        while old > 0 or new > 0:
            line = lines[at] if at < len(lines) else b""
            if line in (b"", b"\r") and at < len(lines) - 1:
                line = b" " + line  # context that has lost its space on the way
            kind = line[:1]
            if kind not in (b" ", b"+", b"-", b"\\") or not kind:
                raise _damaged(name, begin, at)
            old -= kind in (b" ", b"-")
            new -= kind in (b" ", b"+")
            changes |= kind in (b"+", b"-")
            kept.append(line)
            at += 1
        after = lines[at] if at < len(lines) else b""
        if after.startswith(b"\\"):
            kept.append(after)
            at += 1
        elif old < 0 or new < 0 or (after[:1] in (b"+", b"-") and not re.match(rb"--(\s|-|$)", after)):
            raise _damaged(name, begin, at)
    if at < len(lines) and _NO_HUNK.match(lines[at]):
        raise Refused(
            f"patch {name} is damaged: line {at + 1} does not say how many lines its hunk has; get it again, "
            "in a way that changes no line"
        )
    if not changes:
        raise Refused(f"patch {name} has nothing to apply: the hunks that end in line {at} change nothing")
    return kept, at


def _damaged(name: str, begin: int, at: int) -> Refused:
    return Refused(
        f"patch {name} is damaged: the hunk in line {begin + 1} does not have as many lines as it says "
        f"(see line {at + 1}); get it again, in a way that does not wrap lines"
    )


def _file(line: bytes) -> str:
    """The name in a line such as --- a/kernel/reboot.c; a time may follow it."""
    return _shown(line.partition(b" ")[2].split(b"\t")[0].strip())


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


# --- into a tree ------------------------------------------------------------------------------------------


def apply_patch(tree: Path, path: Path, name: str) -> None:
    """All that is in a patch, or Failure for the first that does not apply."""
    strict = ["--batch", "--forward", "--fuzz=0", "--no-backup-if-mismatch", "--reject-file=-"]
    for change in read_patch(path, name):
        _nothing_lost(tree, change)
        with tempfile.TemporaryFile() as file:
            file.write(change.text)
            file.seek(0)
            done = run(["patch", "-p1", *strict], cwd=tree, stdin=file, inherit=True)
        if done.rc:
            raise Failure(
                patch_error(change.name, done.stdout + done.stderr), done.details(), patch=text_of(path)
            )


def _nothing_lost(tree: Path, change: Change) -> None:
    """patch(1) renames and copies over what is there, without a word."""
    moved = {
        what: {
            _unquoted(name)
            for name in re.findall(rb"^(?:rename|copy) %b (\S.*)$" % what, change.text, re.MULTILINE)
        }
        for what in (b"from", b"to")
    }
    for name in sorted(moved[b"to"] - moved[b"from"]):
        if os.path.lexists(tree / os.fsdecode(name)):
            raise Failure(
                f"patch {change.name} does not apply: it renames or copies a file to {_shown(name)}, which "
                "exists already"
            )


_ESCAPED = re.compile(rb"\\([0-7]{3}|.)")
_SIGNS = dict(zip(b"abfnrtv", b"\a\b\f\n\r\t\v"))


def _unquoted(name: bytes) -> bytes:
    """A name that git has quoted as C does: all that is no ASCII."""
    if len(name) < 2 or name[:1] != b'"' or name[-1:] != b'"':
        return name

    def sign(match: re.Match[bytes]) -> bytes:
        code = match[1]
        return bytes([int(code, 8) & 255 if len(code) == 3 else _SIGNS.get(code[0], code[0])])

    return _ESCAPED.sub(sign, name[1:-1])


def patch_error(name: str, output: str) -> str:
    """Name the file and the hunks that patch(1) rejected."""
    path = ""
    rejected: list[str] = []
    for line in output.splitlines():
        if match := re.match(r"(?:patching|checking) file '?(.+?)'?$", line):
            path = match[1]
        elif match := re.match(r"Hunk #(\d+) FAILED at (\d+)", line):
            rejected.append(f"{path} hunk {match[1]} at line {match[2]}")
        elif match := re.match(r"\|(?:---|\+\+\+) (\S+)", line):
            path = match[1]
        elif "can't find file to patch" in line or "ignored" in line:
            rejected.append(f"{path}: {line.strip()}" if path else line.strip())
    reason = "; ".join(rejected) or output.strip()[-500:]
    return f"patch {name} does not apply: {reason}"
