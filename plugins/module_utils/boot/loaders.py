# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The boot loaders that a kernel can be tried with. All of them do the same, each in its way:

look        what it would do, as a Boot
prove       see that what it is told reaches it, before anything depends on that
refresh     take notice of a kernel that was installed
forget      that a kernel was there, whose image is gone
remember    let a default that is set last
default     set it, and see that it is set
arm         choose a trial for the next boot alone, and see that it is chosen
disarm      forget the trial, whether it was started or not; arm does it by itself if it fails
own         make or remove a lasting entry for a kernel with a command line of its own; its name
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Sequence
from pathlib import Path

from ..common.command import ANY
from ..common.errors import Failure
from . import grub, grub_menu, systemd_boot
from .access import EFI, EFI_VARIABLES, Access
from .plan import TRIAL_ID, Boot, own_id

GRUB_CFG = "/boot/grub/grub.cfg"
CUSTOM = "/boot/grub/custom.cfg"
GRUBENV = "/boot/grub/grubenv"
SETTINGS = "/etc/default/grub"
# Scripts of /etc/grub.d that write GRUB_DEFAULT into grub.cfg; a menu may come without their names.
HEADERS = ("/etc/grub.d/00_header", "")
# Stands for any default, and for any variable, that could be set.
MARK = "mkops-any-entry"
PROBE = "mkops_probe"
# EFI variables of systemd-boot, the one for the next start first.
TIMEOUTS = ("LoaderConfigTimeoutOneShot", "LoaderConfigTimeout")
# GRUB cannot write these, or cannot write through them.
READ_ONLY_FS = ("btrfs", "zfs", "cpiofs", "newc", "odc", "iso9660", "squash4", "f2fs")
# Where bootctl looks for the EFI system partition.
EFI_PARTITIONS = ("/efi", "/boot", "/boot/efi")


def find(machine: Access) -> Grub | SystemdBoot:
    """What has started this host; a Failure if that is not supported, or cannot be told."""
    # Written anew at every start. GRUB before 2.12 says nothing.
    info = machine.variable("LoaderInfo")
    if info.startswith("systemd-boot"):
        return SystemdBoot(machine)
    if info and not info.startswith("GRUB"):
        raise Failure(f"{info} starts this host; only GRUB and systemd-boot are supported")
    # A grub.cfg may be left from before. What it says would change nothing then, not even that a kernel is
    # only on trial.
    seen = not machine.at(EFI).exists() or any(machine.at(EFI_VARIABLES).glob("*"))
    if not seen and (path := _systemd_boot_file(machine)):
        raise Failure(
            f"the EFI variables cannot be read, and {path} exists, so systemd-boot may have started this "
            f"host; mount efivarfs on {EFI_VARIABLES} (the kernel needs EFI runtime services)"
        )
    if machine.text(GRUB_CFG):
        return Grub(machine)
    raise Failure(
        f"neither GRUB with {GRUB_CFG}, as on Debian, nor systemd-boot starts this host; no other boot "
        "loader is supported"
    )


def _systemd_boot_file(machine: Access) -> str:
    folders = (machine.at(f"{partition}/EFI/systemd") for partition in EFI_PARTITIONS)
    path = next((path for folder in folders for path in sorted(folder.glob("systemd-boot*.efi"))), None)
    return "/" + str(path.relative_to(machine.at("/"))) if path else ""


def look(machine: Access) -> Boot:
    try:
        return find(machine).look()
    except Failure as failure:
        return Boot(faults=(str(failure),))


class Grub:
    """GRUB 2 as Debian and its relatives set it up: grubenv, custom.cfg, update-grub."""

    def __init__(self, machine: Access) -> None:
        self.machine = machine

    # --- what it does -------------------------------------------------------------------------------

    def _menu(self, custom: str | None = None, **block: str) -> grub_menu.Menu:
        """The menu that the next start makes, with another custom.cfg, or other variables in its environment
        block: an empty one is none.
        """
        variables = {name: value for name, value in {**self._environment(), **block}.items() if value}

        def read(path: str) -> str | None:
            if path == CUSTOM:
                return self.machine.exact(CUSTOM) if custom is None else custom
            if path == GRUBENV:
                return grub.SIGNATURE  # it is made before it is needed
            return self.machine.exact(path) if self.machine.at(path).is_file() else None

        platform = "efi" if self.machine.at(EFI).exists() else ""
        try:
            return grub_menu.Menu(
                self.machine.exact(GRUB_CFG), grub_menu.Files(read), variables, platform, GRUB_CFG
            )
        except grub_menu.Unclear as unclear:
            raise Failure(f"cannot tell what GRUB would start: {unclear}") from unclear

    def _environment(self) -> dict[str, str]:
        text = self.machine.exact(GRUBENV)
        return grub.parse_environment(text) if text else {}

    def look(self) -> Boot:
        menu = self._menu(next_entry="")
        own = {entry.release: entry for entry in self._own() if entry.release}
        entries: dict[str, str] = {}
        releases: dict[str, str] = {}
        broken: dict[str, str] = {}
        lines: dict[str, str] = {}
        for entry in menu.everything():
            release = grub.release_of(entry)
            if not release or entry.ident == TRIAL_ID:
                continue
            usual = release not in entries and grub.ordinary(menu, release) is entry
            # One that does not name its kernel is, mostly, the one that always starts the newest.
            if usual or (release in f"{entry.ident} {entry.title}" and not grub.rescue(entry)):
                releases[entry.path] = release
            if usual:
                entries[release] = entry.path
                if (line := grub.plain_cmdline(entry)) is not None:
                    lines[release] = line
                if why := grub.unsafe(menu, entry):
                    broken[release] = f"{release} cannot be started through '{entry.title}': {why}"
        block = self._environment()
        remembers = self._remembers(MARK, next_entry="", saved_entry=MARK)
        # What an older grub-reboot has left becomes the default at the next start.
        known = remembers and not block.get("prev_saved_entry")
        return Boot(
            loader="GRUB",
            entries=entries,
            releases=releases,
            own={release: entry.cmdline for release, entry in own.items()},
            default=self._started(menu) if known else "",
            once=block.get("next_entry", ""),
            remembers=remembers,
            faults=tuple(self._faults()),
            fixed=self._fixed(),
            broken=broken,
            lines=lines,
        )

    def _started(self, menu: grub_menu.Menu) -> str:
        """What selects the entry that a menu starts; if that is none, what it would start."""
        name = next(iter(menu.default)) if len(menu.default) == 1 else ""
        entry = None if isinstance(name, grub_menu.Odd) else menu.find(name)
        return entry.path if entry else "" if isinstance(name, grub_menu.Odd) else name

    def _remembers(self, entry: str, **block: str) -> bool:
        return self._menu(prev_saved_entry="", **block).default == {entry}

    def _fixed(self) -> str:
        """Why no default that is set lasts, nor could be made to; empty if it does."""
        if hidden := [name for name in self._environment() if "\n" in name]:
            unseen = hidden[0].rpartition("\n")[2]
            return (
                f"{GRUBENV} has an empty line, or one that sets nothing, before {unseen}, which GRUB "
                f"therefore does not see; create it again: grub-editenv {GRUBENV} create"
            )
        menu = self._menu(next_entry="", prev_saved_entry="", saved_entry=MARK)
        path, value = grub.other_default(self._dropins())
        if path:
            return (
                f"{path} sets GRUB_DEFAULT={value} after {SETTINGS}, so no other default of GRUB lasts; "
                "remove the line, or set it to saved there, and run update-grub"
            )
        if menu.default == {MARK}:
            return ""
        others = [
            str(place) for place in menu.fixed_by if place.file != GRUB_CFG or place.section not in HEADERS
        ]
        if others:
            return f"the default of GRUB is set in {', '.join(others)}; remove that, then run update-grub"
        return ""

    def _dropins(self) -> dict[str, str]:
        paths = sorted(self.machine.at(f"{SETTINGS}.d").glob("*.cfg"))
        names = ["/" + str(path.relative_to(self.machine.at("/"))) for path in paths]
        return {name: self.machine.exact(name) for name in names}

    def _faults(self) -> list[str]:
        found = []
        once = self._menu(next_entry=TRIAL_ID, saved_entry=MARK)
        left = once.state.block.get("next_entry", frozenset((grub_menu.UNSET,)))
        if once.default != {TRIAL_ID} or not left <= {"", grub_menu.UNSET}:
            found.append(
                f"{GRUB_CFG} does not boot an entry once and then forget it "
                f"(next_entry){self._places(once)}; "
                "run update-grub"
            )
        if CUSTOM not in once.sourced:
            found.append(
                f"{GRUB_CFG} does not read custom.cfg; restore /etc/grub.d/41_custom and run update-grub"
            )
        # Ubuntu's menu stays longer after a start that did not end well.
        waits = {*once.waits, *self._menu(next_entry="", recordfail="1").waits}
        if waits:
            found.append(
                f"GRUB waits for a key at its menu (timeout={sorted(waits)[0] or 'not set'}); set "
                f"GRUB_TIMEOUT, and GRUB_RECORDFAIL_TIMEOUT if it is there, in {SETTINGS}, then run "
                "update-grub"
            )
        if fault := self._environment_fault():
            found.append(f"GRUB cannot forget a trial once it has started it: {fault}")
        return found

    @staticmethod
    def _places(menu: grub_menu.Menu) -> str:
        return f": the default is set in {', '.join(map(str, menu.fixed_by))}" if menu.fixed_by else ""

    def _environment_fault(self) -> str:
        """Why GRUB itself, or the host, could not write its environment block."""
        file = self.machine.at(GRUBENV)
        if file.is_symlink():
            return f"{GRUBENV} is a symbolic link; replace it with a file: grub-editenv {GRUBENV} create"
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            return f"{GRUBENV} cannot be written; mount its file system read-write"
        probe = self.machine.run
        abstraction = probe(
            ["grub-probe", "--target=abstraction", "/boot/grub"], "find out where /boot/grub lies"
        ).stdout.split()
        if abstraction:
            return f"/boot/grub lies on {', '.join(abstraction)}, which GRUB cannot write to"
        kind = probe(
            ["grub-probe", "--target=fs", "/boot/grub"], "find out where /boot/grub lies"
        ).stdout.strip()
        return f"/boot/grub lies on {kind}, which GRUB cannot write to" if kind in READ_ONLY_FS else ""

    # --- changing it --------------------------------------------------------------------------------

    def refresh(self) -> None:
        self.machine.run(["update-grub"], "write GRUB's menu")
        self._menu()

    def prove(self) -> None:
        self._set(PROBE, "1")
        self._set(PROBE, "")

    def forget(self, release: str) -> None:
        self.refresh()

    def _set(self, name: str, value: str) -> None:
        """Set a variable of the environment block, or remove it, and see that it is so."""
        argv = ["grub-editenv", "-", *(["set", f"{name}={value}"] if value else ["unset", name])]
        block = "GRUB's environment block"
        purpose = f"set {name} in {block}" if value else f"remove {name} from {block}"
        self.machine.run(argv, purpose)
        if (now := self._environment().get(name, "")) != value:
            raise Failure(
                f"cannot {purpose}: {name} is '{now}' instead of '{value}'; make {GRUBENV} writable"
            )

    def remember(self) -> None:
        before = self.machine.exact(SETTINGS)
        text = grub.keep_saved(before)
        if text != before:
            self.machine.write(SETTINGS, text)
        try:
            self.refresh()
            if not self._remembers(MARK, next_entry="", saved_entry=MARK):
                menu = self._menu(next_entry="", saved_entry=MARK)
                raise Failure(
                    self._fixed()
                    or f"GRUB does not remember its default with GRUB_DEFAULT=saved in {SETTINGS}"
                    f"{self._places(menu)}"
                )
        except Failure:
            if text != before:
                self.machine.write(SETTINGS, before)
                with contextlib.suppress(Failure):
                    self.refresh()
            raise

    def default(self, entry: str) -> None:
        found = self._menu().find(entry)
        if found is None:
            raise Failure(f"GRUB has no entry {entry} to make the default; run update-grub")
        if why := grub.locked(self._menu(), found):
            raise Failure(f"{entry} cannot be the default of GRUB: {why}")
        block = self._environment()
        # It would come back with the next start.
        if block.get("prev_saved_entry"):
            self._set("prev_saved_entry", "")
        self._set("saved_entry", entry)
        menu = self._menu(next_entry="")
        if self._remembers(MARK, next_entry="", saved_entry=MARK) and menu.default != {entry}:
            self._set("saved_entry", block.get("saved_entry", ""))
            raise Failure(f"GRUB would not start {entry} when it is made the default{self._places(menu)}")

    def arm(self, release: str, words: Sequence[str]) -> None:
        try:
            self._arm(release, words)
        except BaseException:
            with contextlib.suppress(Failure):
                self.disarm()
            raise

    def _arm(self, release: str, words: Sequence[str]) -> None:
        usual = self._usual(release)
        kept = self._environment().get("saved_entry", "")
        lasting = [entry.text for entry in self._own() if entry.ident != TRIAL_ID]
        self._custom([*lasting, grub.trial_entry(usual, words)])
        # The last step: what comes before changes nothing about the next boot.
        self._set("next_entry", TRIAL_ID)
        menu = self._menu()
        trial = menu.find(TRIAL_ID)
        if menu.default != {TRIAL_ID} or trial is None or grub.release_of(trial) != release:
            raise Failure(f"GRUB would not start the trial of {release}{self._places(menu)}")
        if why := grub.locked(menu, trial):
            raise Failure(f"GRUB would not start the trial of {release} by itself: {why}")
        block = menu.after(trial)
        if block.get("saved_entry", {grub_menu.UNSET}) != {kept or grub_menu.UNSET}:
            raise Failure(
                f"the trial of {release} would become the default of GRUB: its entry '{usual.title}' saves "
                "itself"
            )
        if not block.get("next_entry", frozenset()) <= {"", grub_menu.UNSET}:
            raise Failure(f"GRUB would start the trial of {release} again and again")

    def _usual(self, release: str) -> grub_menu.Entry:
        menu = self._menu()
        entry = grub.ordinary(menu, release)
        if entry is None:
            raise Failure(f"GRUB no longer has an entry for {release}; run update-grub, then run again")
        if why := grub.unsafe(menu, entry):
            raise Failure(f"{release} cannot be started through '{entry.title}': {why}")
        return entry

    def disarm(self) -> None:
        if self._environment().get("next_entry") == TRIAL_ID:
            self._set("next_entry", "")
        entries = self._own()
        if any(entry.ident == TRIAL_ID for entry in entries):
            self._custom([entry.text for entry in entries if entry.ident != TRIAL_ID])

    def own(self, release: str, cmdline: str) -> str:
        ident = own_id(release)
        texts = [entry.text for entry in self._own() if entry.ident != ident]
        if cmdline:
            texts.append(grub.own_entry(self._usual(release), cmdline))
        self._custom(texts)
        if not cmdline:
            return ""
        menu = self._menu()
        entry = menu.find(ident)
        if entry is None or grub.release_of(entry) != release:
            raise Failure(f"GRUB does not find the entry {ident} that was written into {CUSTOM}")
        if why := grub.locked(menu, entry):
            raise Failure(f"{release} cannot be started through '{entry.title}': {why}")
        return ident

    def _own(self) -> list[grub.Own]:
        return grub.own_entries(self.machine.exact(CUSTOM))

    def _custom(self, entries: Sequence[str]) -> None:
        """custom.cfg with these entries of our own. GRUB itself says whether it takes them."""
        before = self.machine.exact(CUSTOM)
        text = grub.render_custom(before, entries)
        if text == before:
            return
        self.machine.write(CUSTOM, text)
        if not entries:
            return
        try:
            self.machine.run(["grub-script-check", str(self.machine.at(CUSTOM))], f"check {CUSTOM}")
        except Failure:
            self.machine.write(CUSTOM, before)
            raise


class SystemdBoot:
    """systemd-boot with entries of type 1, as kernel-install makes them."""

    def __init__(self, machine: Access) -> None:
        self.machine = machine

    def look(self) -> Boot:
        found = self._entries()
        ordinary = {release: entry for release, (_path, entry) in self._ordinary().items()}
        broken = {release: self._fault(entry) for release, entry in ordinary.items()}
        return Boot(
            loader="systemd-boot",
            entries={release: entry.ident for release, entry in ordinary.items()},
            releases={entry.ident: entry.release for entry in found.values() if not entry.rescue},
            own={
                entry.release: entry.cmdline
                for entry in found.values()
                if entry.ident == own_id(entry.release) + systemd_boot.SUFFIX
            },
            suffix=systemd_boot.SUFFIX,
            default=self.machine.variable("LoaderEntryDefault"),
            once=self.machine.variable("LoaderEntryOneShot"),
            fixed=self._fixed(),
            faults=tuple(self._faults()),
            broken={release: fault for release, fault in broken.items() if fault},
            variables=True,
            lines={release: entry.cmdline_words for release, entry in ordinary.items()},
        )

    def _fixed(self) -> str:
        """What comes before any default."""
        for folder in self._folders:
            path = f"{folder}/loader/loader.conf"
            if dict(systemd_boot.parse_lines(self.machine.text(path))).get("preferred"):
                return f"`preferred` in {path} overrides every default of systemd-boot; remove that line"
        if entry := self.machine.variable("LoaderEntryPreferred"):
            return f"systemd-boot prefers {entry} to every default; run bootctl set-preferred ''"
        return ""

    def _faults(self) -> list[str]:
        found = []
        if not self._folders:
            found.append("the EFI system partition is not mounted; mount it on /efi, /boot or /boot/efi")
        for folder in self._folders:
            variables = map(self.machine.variable, TIMEOUTS)
            if systemd_boot.waits_for_key(self.machine.text(f"{folder}/loader/loader.conf"), *variables):
                found.append(
                    f"systemd-boot waits for a key (timeout menu-force in {folder}/loader/loader.conf or in "
                    f"an EFI variable, {' or '.join(TIMEOUTS)}); set a timeout in seconds"
                )
        if not os.access(self.machine.at(EFI_VARIABLES), os.W_OK):
            found.append(f"{EFI_VARIABLES} cannot be written; mount efivarfs there read-write")
        return found

    def _fault(self, entry: systemd_boot.Entry) -> str:
        """Why it would not start: a file is missing, or not what the package has put into /boot."""
        image = f"/boot/vmlinuz-{entry.release}"
        what = ""
        for key, name in entry.lines:
            if key not in ("linux", "initrd"):
                continue
            copies = [self.machine.at(f"{folder}/{name.lstrip('/')}") for folder in self._folders]
            copies = [copy for copy in copies if copy.is_file()]
            installed = self.machine.at(image)
            if not copies:
                what = f"{name} of {entry.ident} is not on the boot partition"
            elif key == "linux" and installed.is_file() and not any(same(installed, copy) for copy in copies):
                what = f"the image of {entry.release} on the boot partition differs from {image}"
        return f"{what}; run kernel-install add {entry.release} {image}" if what else ""

    @functools.cached_property
    def _folders(self) -> list[str]:
        """Where the EFI system partition, and the extended boot partition if there is one, are mounted."""
        found = []
        for option in ("--print-esp-path", "--print-boot-path"):
            path = self.machine.run(["bootctl", option], "find the boot partitions", ok=ANY).stdout.strip()
            if path and path not in found:
                found.append(path)
        return found

    def _entries(self) -> dict[Path, systemd_boot.Entry]:
        paths = [
            path
            for folder in self._folders
            for path in sorted(self.machine.at(f"{folder}/loader/entries").glob("*"))
            if path.name.lower().endswith(systemd_boot.SUFFIX) and not path.name.startswith(".")
        ]
        texts = {
            path: self.machine.exact("/" + str(path.relative_to(self.machine.at("/")))) for path in paths
        }
        return {path: systemd_boot.parse_entry(path.name, text) for path, text in texts.items()}

    def _ordinary(self) -> dict[str, tuple[Path, systemd_boot.Entry]]:
        """The entry of each kernel; ours, if another system on the same partition has the same kernel."""
        machine_id = self.machine.text("/etc/machine-id").strip()
        found: dict[str, tuple[Path, systemd_boot.Entry]] = {}
        for path, entry in sorted(self._entries().items(), key=lambda item: item[1].rank(machine_id)):
            if entry.ordinary and entry.release:
                found.setdefault(entry.release, (path, entry))
        return found

    def _place(self, release: str) -> tuple[str, systemd_boot.Entry]:
        """The directory that has the ordinary entry of a kernel, and the entry."""
        found = self._ordinary().get(release)
        if found is None:
            raise Failure(
                f"systemd-boot no longer has an entry for {release}; run kernel-install add, then run again"
            )
        path, entry = found
        return "/" + str(path.parent.relative_to(self.machine.at("/"))), entry

    def refresh(self) -> None:
        for path in sorted(self.machine.at("/boot").glob("vmlinuz-*")):
            release = path.name.removeprefix("vmlinuz-")
            if release not in self.look().entries:
                argv = ["kernel-install", "add", release, f"/boot/vmlinuz-{release}"]
                self.machine.run(argv, f"add {release} to the menu of systemd-boot")

    def prove(self) -> None:
        """Each variable is read again when it is set, and none is set before."""

    def forget(self, release: str) -> None:
        self.machine.run(
            ["kernel-install", "remove", release], f"remove {release} from the menu of systemd-boot"
        )

    def remember(self) -> None:
        """It always does."""

    def default(self, entry: str) -> None:
        self.machine.run(["bootctl", "set-default", entry], f"make {entry} the default of systemd-boot")
        if (now := self.machine.variable("LoaderEntryDefault")) != entry:
            raise Failure(f"the default of systemd-boot is {now or 'not set'} after it was set to {entry}")
        if entry not in [each.ident for each in self._entries().values()]:
            raise Failure(f"the default of systemd-boot is {entry} now, which is not in its menu")

    def arm(self, release: str, words: Sequence[str]) -> None:
        try:
            folder, entry = self._place(release)
            self._write(
                f"{folder}/{systemd_boot.TRIAL_FILE}", systemd_boot.trial_entry(entry, words), release
            )
            # The last step: what comes before changes nothing about the next boot.
            self.machine.run(
                ["bootctl", "set-oneshot", systemd_boot.TRIAL_FILE], "choose the trial for the next boot"
            )
            if (now := self.machine.variable("LoaderEntryOneShot")) != systemd_boot.TRIAL_FILE:
                raise Failure(
                    f"systemd-boot would start {now or 'its default'}, although the trial was chosen"
                )
        except BaseException:
            with contextlib.suppress(Failure):
                self.disarm()
            raise

    def disarm(self) -> None:
        if self.machine.variable("LoaderEntryOneShot") == systemd_boot.TRIAL_FILE:
            self.machine.run(["bootctl", "set-oneshot", ""], "unset the entry to boot once")
            if now := self.machine.variable("LoaderEntryOneShot"):
                raise Failure(f"systemd-boot would still start {now} once, although that was unset")
        self._unlink(systemd_boot.TRIAL_FILE)

    def own(self, release: str, cmdline: str) -> str:
        if not cmdline:
            self._unlink(own_id(release) + systemd_boot.SUFFIX)
            return ""
        folder, entry = self._place(release)
        name, text = systemd_boot.own_entry(entry, cmdline)
        self._write(f"{folder}/{name}", text, release)
        return name

    def _write(self, path: str, text: str, release: str) -> None:
        self.machine.write(path, text)
        written = self._entries().get(self.machine.at(path))
        if written is None or written.release != release:
            raise Failure(f"{path} was written but is not an entry for {release}")

    def _unlink(self, name: str) -> None:
        for path in self._entries():
            if path.name == name:
                try:
                    path.unlink()
                except OSError as error:
                    raise Failure(f"cannot remove {path}: {error.strerror}") from error


def same(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()
