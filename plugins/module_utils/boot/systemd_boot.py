# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Entries of systemd-boot, type 1 of the Boot Loader Specification. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .plan import OWN_ID, TRIAL_ID, bounded, check_length, for_rescue, own_id, with_words

SUFFIX = ".conf"
TRIAL_FILE = TRIAL_ID + SUFFIX
# Tries left and done, which boot counting puts into the name of a file.
_COUNTER = re.compile(r"\+\d+(?:-\d+)?(?=\.conf$)", re.IGNORECASE)
_CMDLINE = "# mkops cmdline:"


@dataclass(frozen=True)
class Entry:
    """A file of an entry; ident is what bootctl calls it."""

    ident: str
    lines: tuple[tuple[str, str], ...]  # key and value, in order
    cmdline: str  # the words of our own, of a lasting entry of ours

    def value(self, key: str) -> str:
        """If there are several, the last one counts."""
        return next((value for name, value in reversed(self.lines) if name == key), "")

    @property
    def release(self) -> str:
        """By its version, or by its image, BOOT/TOKEN/RELEASE/linux."""
        if version := self.value("version"):
            return version
        parts = self.value("linux").split("/")
        return parts[-2] if len(parts) > 2 else ""

    def foreign(self, machine_id: str) -> bool:
        """Made by another system that has this boot partition, too, or before this one got its machine id."""
        return self.value("machine-id") not in ("", machine_id)

    @property
    def cmdline_words(self) -> str:
        """All that its kernel gets."""
        return " ".join(value for key, value in self.lines if key == "options")

    @property
    def rescue(self) -> bool:
        """Whether its system waits for a person."""
        return for_rescue(word for key, value in self.lines if key == "options" for word in value.split())

    @property
    def ordinary(self) -> bool:
        ours = self.ident.startswith((TRIAL_ID, OWN_ID))
        return bool(self.value("linux")) and not ours and not self.rescue

    def rank(self, machine_id: str) -> tuple[bool, bool]:
        """Of several for one kernel, the smallest: of this system, and named by kernel-install."""
        return self.foreign(machine_id), not self.ident.endswith(f"-{self.release}{SUFFIX}")


def parse_lines(text: str) -> Iterator[tuple[str, str]]:
    """Keys and values of an entry or of loader.conf, whatever is between them, and however lines end."""
    for line in re.split(r"[\r\n]+", text.split("\0")[0].removeprefix("\ufeff")):
        words = line.strip(" \t")
        if not words or words.startswith("#"):
            continue
        match = re.fullmatch(r"([^ \t]+)[ \t]+(.+)", words, re.DOTALL)
        if match:
            value = match[2]
            quoted = len(value) > 1 and value[0] == value[-1] == '"'
            yield match[1], value[1:-1] if quoted else value


def parse_entry(name: str, text: str) -> Entry:
    """An entry by its file's name, such as TOKEN-6.12.107+2-1.conf, and its text."""
    words = re.findall(rf"(?m)^{_CMDLINE}[ \t]*([^\r\n]*?)[ \t]*\r?$", text)
    return Entry(_COUNTER.sub("", name), tuple(parse_lines(text)), words[-1] if words else "")


def _render(entry: Entry, title: str, words: Sequence[str], head: Sequence[str] = ()) -> str:
    """The entry under another title, with more words at the end of its command line."""
    line = with_words(entry.cmdline_words, words)
    check_length(entry.release, line)
    kept = [f"{key} {value}" for key, value in entry.lines if key not in ("title", "sort-key", "options")]
    # Behind all others, should nothing be chosen as the default.
    lines = [*head, f"title {title}", "sort-key zz-mkops", *kept, f"options {line}"]
    return "\n".join(lines) + "\n"


def own_entry(entry: Entry, cmdline: str) -> tuple[str, str]:
    """File name and text of a lasting entry for a kernel with a command line of its own."""
    title = f"{entry.value('title')}, {cmdline}"
    text = _render(entry, title, cmdline.split(), [f"{_CMDLINE} {cmdline}"])
    return own_id(entry.release) + SUFFIX, text


def trial_entry(entry: Entry, words: Sequence[str]) -> str:
    """Text of the entry that is started once."""
    return bounded(_render(entry, f"Trial of {entry.release}", words))


def waits_for_key(loader_conf: str, *variables: str) -> bool:
    """Whether the menu stays until somebody chooses. variables: the time-outs that EFI variables hold; the
    first that is set comes before the one of loader.conf.
    """
    said = [value for key, value in parse_lines(loader_conf) if key == "timeout"][-1:]
    return next((value for value in (*variables, *said) if value), "") == "menu-force"
