# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Entries of systemd-boot, type 1 of the Boot Loader Specification. No I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .plan import OWN_ID, TRIAL_ID, bounded, own_id

SUFFIX = ".conf"
TRIAL_FILE = TRIAL_ID + SUFFIX
# Tries left and done, which boot counting puts into the name of a file.
_COUNTER = re.compile(r"\+\d+(?:-\d+)?(?=\.conf$)")
_CMDLINE = "# mkops cmdline:"


@dataclass(frozen=True)
class Entry:
    """A file of an entry; ident is what bootctl calls it."""

    ident: str
    lines: tuple[tuple[str, str], ...]  # key and value, in order
    cmdline: str  # the words of our own, of a lasting entry of ours

    def value(self, key: str) -> str:
        return next((value for name, value in self.lines if name == key), "")

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
    def ordinary(self) -> bool:
        return not self.ident.startswith((TRIAL_ID, OWN_ID)) and bool(self.value("linux"))


def parse_entry(name: str, text: str) -> Entry:
    """An entry by its file's name, such as TOKEN-6.12.107+2-1.conf, and its text."""
    lines, cmdline = [], ""
    for line in text.splitlines():
        if line.startswith(_CMDLINE):
            cmdline = line.removeprefix(_CMDLINE).strip()
        elif line.strip() and not line.lstrip().startswith("#"):
            key, _space, value = line.strip().partition(" ")
            lines.append((key, value.strip()))
    return Entry(_COUNTER.sub("", name), tuple(lines), cmdline)


def _render(entry: Entry, title: str, words: Sequence[str], head: Sequence[str] = ()) -> str:
    """The entry under another title, with more words at the end of its command line."""
    options = [value for key, value in entry.lines if key == "options"]
    kept = [f"{key} {value}" for key, value in entry.lines if key not in ("title", "sort-key", "options")]
    # Behind all others, should nothing be chosen as the default.
    lines = [*head, f"title {title}", "sort-key zz-mkops", *kept, f"options {' '.join([*options, *words])}"]
    return "\n".join(lines) + "\n"


def own_entry(entry: Entry, cmdline: str) -> tuple[str, str]:
    """File name and text of a lasting entry for a kernel with a command line of its own."""
    title = f"{entry.value('title')}, {cmdline}"
    text = _render(entry, title, cmdline.split(), [f"{_CMDLINE} {cmdline}"])
    return own_id(entry.release) + SUFFIX, text


def trial_entry(entry: Entry, words: Sequence[str]) -> str:
    """Text of the entry that is started once."""
    return bounded(_render(entry, f"Trial of {entry.release}", words))


def waits_for_key(loader_conf: str) -> bool:
    """Whether the menu stays until somebody chooses."""
    return bool(re.search(r"^\s*timeout\s+menu-force\s*$", loader_conf, re.M))
