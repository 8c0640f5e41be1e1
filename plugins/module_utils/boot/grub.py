# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""GRUB's menu: which entry starts which kernel, and the entries of our own. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .plan import OWN_ID, TRIAL_ID, bounded, own_id

BEGIN = "### BEGIN mkops: written by mkops.multikernel.kernel_boot, changes are lost ###"
END = "### END mkops ###"

_OPEN = re.compile(r"^\s*(menuentry|submenu)\s+(?:'([^']*)'|\"([^\"]*)\").*\{\s*$")
_ID = re.compile(r"(?:\$menuentry_id_option|--id)\s+'?([^\s']+)'?")
_LINUX = re.compile(r"^\s*linux(?:efi|16)?\s+(\S+)\s*(.*?)\s*$")
_INITRD = re.compile(r"^\s*initrd(?:efi|16)?\s")


@dataclass(frozen=True)
class Entry:
    """One way to start Linux; path is what grub-reboot and grub-set-default take."""

    path: str
    title: str
    image: str
    cmdline: str
    body: tuple[str, ...]

    @property
    def release(self) -> str:
        name = self.image.rsplit("/", 1)[-1]
        return name.removeprefix("vmlinuz-") if name.startswith("vmlinuz-") else ""


@dataclass(frozen=True)
class Menu:
    """What a finished grub.cfg does."""

    entries: tuple[Entry, ...]
    saved_default: bool
    once: bool
    waits_for_key: bool
    reads_custom: bool

    def entry(self, release: str) -> Entry | None:
        """The ordinary entry of a kernel: not for recovery, and not the one that always means the newest."""
        for entry in self.entries:
            words = entry.path.rsplit(">", 1)[-1]
            if (
                entry.release == release
                and not words.startswith(("gnulinux-simple-", TRIAL_ID, OWN_ID))
                and "-recovery-" not in words
                and not re.search(r"(?<!\S)(single|recovery)(?!\S)", entry.cmdline)
            ):
                return entry
        return None

    def starts(self, path: str) -> str:
        """Release of the kernel that an entry starts; empty if there is no such entry."""
        for entry in self.entries:
            if path in (entry.path, entry.title):
                return entry.release
        return ""


def parse_menu(text: str) -> Menu:
    return Menu(
        entries=tuple(_entries(text.splitlines())),
        saved_default=bool(re.search(r'^\s*set default="\$\{saved_entry\}"', text, re.M)),
        once="save_env next_entry" in text,
        waits_for_key=bool(re.search(r"^\s*set timeout=-1\s*$", text, re.M)),
        reads_custom=bool(re.search(r"^\s*source .*/custom\.cfg", text, re.M)),
    )


def _entries(lines: Sequence[str]) -> Iterable[Entry]:
    stack: list[tuple[str, str, str, list[str]]] = []
    braces = 0
    for line in lines:
        if match := _OPEN.match(line):
            title = match[2] if match[2] is not None else match[3]
            found = _ID.search(line)
            stack.append((match[1], found[1] if found else title, title, []))
            braces = 0
            continue
        if not stack:
            continue
        if line.strip() == "}" and not braces:
            kind, _name, title, body = stack.pop()
            if kind == "menuentry" and (linux := next(filter(None, map(_LINUX.match, body)), None)):
                path = ">".join([name for _kind, name, _title, _body in stack] + [_name])
                yield Entry(path, title, linux[1], linux[2], tuple(body))
            continue
        braces += line.rstrip().endswith("{") - (line.strip() == "}")
        stack[-1][3].append(line)


def parse_environment(text: str) -> dict[str, str]:
    """What `grub-editenv list` prints."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


def own_entry(entry: Entry, cmdline: str) -> list[str]:
    """A lasting entry for a kernel with a command line of its own."""
    body = [f"{line.rstrip()} {cmdline}" if _LINUX.match(line) else line for line in entry.body]
    return [f"menuentry '{entry.title}, {cmdline}' --id '{own_id(entry.release)}' {{", *body, "}"]


def trial_entry(entry: Entry, words: Sequence[str]) -> list[str]:
    """An entry that starts a kernel, or restarts the machine where GRUB would wait for a key for ever."""
    body, loads = [], []
    for line in entry.body:
        if _LINUX.match(line):
            loads.append(f"{bounded(line.strip())} {' '.join(words)}")
        elif _INITRD.match(line):
            loads.append(line.strip())
        else:
            body.append(line)
    for load in loads:
        body += [f"\tif {load}; then", "\t\ttrue", "\telse", "\t\treboot", "\tfi"]
    # By UEFI an image is looked at only when it is started; an entry that just ends leaves GRUB in its menu.
    body += ["\tboot", "\treboot"]
    return [f"menuentry 'Trial of {entry.release}' --id '{TRIAL_ID}' {{", *body, "}"]


def own_entries(custom: str) -> dict[str, Entry]:
    """The lasting entries of our own that custom.cfg has, by release."""
    return {entry.release: entry for entry in parse_menu(custom).entries if entry.path.startswith(OWN_ID)}


def render_custom(custom: str, entries: Iterable[Sequence[str]]) -> str:
    """custom.cfg with our part replaced; what others wrote there stays."""
    kept = re.sub(rf"{re.escape(BEGIN)}\n.*?{re.escape(END)}\n", "", custom, flags=re.S)
    lines = [line for entry in entries for line in entry]
    if not lines:
        return kept
    if kept and not kept.endswith("\n"):
        kept += "\n"
    return "\n".join([f"{kept}{BEGIN}", *lines, END]) + "\n"


def keep_saved(settings: str) -> str:
    """/etc/default/grub with a default that is remembered in grubenv."""
    wanted = "GRUB_DEFAULT=saved"
    lines, found = [], False
    for line in settings.splitlines():
        if re.match(r"\s*GRUB_DEFAULT=", line):
            if not found:
                lines.append(wanted)
            found = True
        else:
            lines.append(line)
    return "\n".join(lines if found else [*lines, wanted]) + "\n"
