# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The boot loaders that a kernel can be tried with. All of them do the same, each in its way:

look        what it would do, as a Boot
refresh     take notice of a kernel that was installed
remember    let a default that is set last
default     set it, and see that it is set
arm         choose a trial for the next boot alone, and see that it is chosen
disarm      forget the trial, whether it was started or not
own         make or remove a lasting entry for a kernel with a command line of its own; its name
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..common.command import ANY
from ..common.errors import Failure
from . import grub, systemd_boot
from .access import EFI, EFI_VARIABLES, Access
from .plan import TRIAL_ID, Boot

GRUB_CFG = "/boot/grub/grub.cfg"
CUSTOM = "/boot/grub/custom.cfg"
SETTINGS = "/etc/default/grub"
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
        raise Failure(f"{info} starts this host; supported are GRUB and systemd-boot")
    # A grub.cfg may be left from before. What it says would change nothing then, not even that a kernel is
    # only on trial.
    seen = not machine.at(EFI).exists() or any(machine.at(EFI_VARIABLES).glob("*"))
    if not seen and (path := _systemd_boot_file(machine)):
        raise Failure(
            f"the EFI variables cannot be read, and with {path} there it cannot be told whether systemd-boot "
            f"starts this host; mount efivarfs on {EFI_VARIABLES}, on a kernel with EFI runtime services"
        )
    if machine.text(GRUB_CFG):
        return Grub(machine)
    raise Failure(
        f"neither GRUB with {GRUB_CFG}, as Debian has it, nor systemd-boot starts this host; others are not "
        "supported"
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

    def look(self) -> Boot:
        menu = self._menu()
        environment = self._environment()
        own = grub.own_entries(self.machine.text(CUSTOM))
        releases = {entry.title: entry.release for entry in menu.entries}
        releases |= {entry.path: entry.release for entry in [*menu.entries, *own.values()]}
        entries = {release: menu.entry(release) for release in set(releases.values()) if release}
        entries = {release: entry for release, entry in entries.items() if entry}
        return Boot(
            loader="GRUB",
            entries={release: entry.path for release, entry in entries.items()},
            releases=releases,
            own={
                release: entry.title.removeprefix(f"{entries[release].title}, ") if release in entries else ""
                for release, entry in own.items()
            },
            default=environment.get("saved_entry", "") if menu.saved_default else "",
            once=environment.get("next_entry", ""),
            remembers=menu.saved_default,
            faults=tuple(self._faults(menu)),
        )

    def _faults(self, menu: grub.Menu) -> list[str]:
        found = []
        if not menu.once:
            found.append(f"{GRUB_CFG} cannot boot an entry once, next_entry is not in it; run update-grub")
        if not menu.reads_custom:
            found.append(
                f"{GRUB_CFG} does not read custom.cfg; restore /etc/grub.d/41_custom, run update-grub"
            )
        if menu.waits_for_key:
            found.append(
                "GRUB waits for a key at its menu (timeout=-1); set GRUB_TIMEOUT in /etc/default/grub"
            )
        if fault := self._environment_fault():
            found.append(f"GRUB cannot forget a trial when it starts it: {fault}")
        return found

    def _menu(self) -> grub.Menu:
        return grub.parse_menu(self.machine.text(GRUB_CFG))

    def _environment(self) -> dict[str, str]:
        return grub.parse_environment(
            self.machine.run(["grub-editenv", "-", "list"], "read GRUB's environment").stdout
        )

    def _environment_fault(self) -> str:
        """Why GRUB itself could not write its environment block."""
        probe = self.machine.run
        abstraction = probe(
            ["grub-probe", "--target=abstraction", "/boot/grub"], "find out where /boot/grub lies"
        ).stdout.split()
        if abstraction:
            return f"/boot/grub lies on {', '.join(abstraction)}, which it cannot write"
        kind = probe(
            ["grub-probe", "--target=fs", "/boot/grub"], "find out where /boot/grub lies"
        ).stdout.strip()
        return f"/boot/grub lies on {kind}, which it cannot write" if kind in READ_ONLY_FS else ""

    def refresh(self) -> None:
        self.machine.run(["update-grub"], "write GRUB's menu")

    def remember(self) -> None:
        self.machine.write(SETTINGS, grub.keep_saved(self.machine.text(SETTINGS)))
        self.refresh()

    def default(self, entry: str) -> None:
        argv = ["grub-editenv", "-", "set", f"saved_entry={entry}"]
        self.machine.run(argv, f"make {entry} GRUB's default")
        if (now := self._environment().get("saved_entry")) != entry:
            raise Failure(
                f"GRUB's default is {now} after it was set to {entry}; is /boot/grub/grubenv writable?"
            )

    def arm(self, release: str, words: Sequence[str]) -> None:
        self._custom(trial=grub.trial_entry(self._menu().entry(release), words))
        # The last step: what comes before changes nothing about the next boot.
        self.machine.run(
            ["grub-editenv", "-", "set", f"next_entry={TRIAL_ID}"], "choose the trial for the next boot"
        )

    def disarm(self) -> None:
        self.machine.run(["grub-editenv", "-", "unset", "next_entry"], "forget the entry to boot once")
        self._custom()

    def own(self, release: str, cmdline: str) -> str:
        own = self._own()
        own.pop(release, None)
        if cmdline:
            own[release] = grub.own_entry(self._menu().entry(release), cmdline)
        self._custom(own)
        return grub.own_id(release) if cmdline else ""

    def _own(self) -> dict[str, list[str]]:
        return {
            release: [f"menuentry '{entry.title}' --id '{entry.path}' {{", *entry.body, "}"]
            for release, entry in grub.own_entries(self.machine.text(CUSTOM)).items()
        }

    def _custom(
        self, own: Mapping[str, Sequence[str]] | None = None, trial: Sequence[str] | None = None
    ) -> None:
        """custom.cfg with these lasting entries (those that it has, by default) and this trial."""
        custom = self.machine.text(CUSTOM)
        own = self._own() if own is None else own
        text = grub.render_custom(custom, [*own.values(), *([trial] if trial else [])])
        if text != custom:
            self.machine.write(CUSTOM, text)


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
            releases={entry.ident: entry.release for entry in found.values()},
            own={
                entry.release: entry.cmdline
                for entry in found.values()
                if entry.ident == systemd_boot.own_id(entry.release) + systemd_boot.SUFFIX
            },
            suffix=systemd_boot.SUFFIX,
            default=self.machine.variable("LoaderEntryDefault"),
            once=self.machine.variable("LoaderEntryOneShot"),
            faults=tuple(self._faults()),
            broken={release: fault for release, fault in broken.items() if fault},
            variables=True,
        )

    def _faults(self) -> list[str]:
        found = []
        if not self._folders:
            found.append("the EFI system partition is not mounted; mount it where bootctl finds it")
        for folder in self._folders:
            if systemd_boot.waits_for_key(self.machine.text(f"{folder}/loader/loader.conf")):
                found.append(
                    f"systemd-boot waits for a key (timeout menu-force in {folder}/loader/loader.conf)"
                )
        if not os.access(self.machine.at(EFI_VARIABLES), os.W_OK):
            found.append(f"{EFI_VARIABLES} cannot be written; mount efivarfs there, read and write")
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
                what = f"the image of {entry.release} on the boot partition is not {image}"
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
            for path in sorted(self.machine.at(f"{folder}/loader/entries").glob(f"*{systemd_boot.SUFFIX}"))
        ]
        return {path: systemd_boot.parse_entry(path.name, path.read_text(errors="replace")) for path in paths}

    def _ordinary(self) -> dict[str, tuple[Path, systemd_boot.Entry]]:
        """The entry of each kernel; ours, if another system on the same partition has the same kernel."""
        machine_id = self.machine.text("/etc/machine-id").strip()
        found: dict[str, tuple[Path, systemd_boot.Entry]] = {}
        for path, entry in self._entries().items():
            if not (entry.ordinary and entry.release):
                continue
            known = found.get(entry.release)
            if not known or (known[1].foreign(machine_id) and not entry.foreign(machine_id)):
                found[entry.release] = path, entry
        return found

    def _place(self, release: str) -> tuple[str, systemd_boot.Entry]:
        """The directory that has the ordinary entry of a kernel, and the entry."""
        path, entry = self._ordinary().get(release, (None, None))
        if path is None:
            raise Failure(f"systemd-boot has no entry for {release} any more; who removed it?")
        return "/" + str(path.parent.relative_to(self.machine.at("/"))), entry

    def refresh(self) -> None:
        for path in sorted(self.machine.at("/boot").glob("vmlinuz-*")):
            release = path.name.removeprefix("vmlinuz-")
            if release not in self.look().entries:
                argv = ["kernel-install", "add", release, f"/boot/vmlinuz-{release}"]
                self.machine.run(argv, f"have systemd-boot know {release}")

    def remember(self) -> None:
        """It always does."""

    def default(self, entry: str) -> None:
        self.machine.run(["bootctl", "set-default", entry], f"make {entry} the default of systemd-boot")
        if (now := self.machine.variable("LoaderEntryDefault")) != entry:
            raise Failure(f"the default of systemd-boot is {now or 'not set'} after it was set to {entry}")

    def arm(self, release: str, words: Sequence[str]) -> None:
        folder, entry = self._place(release)
        self.machine.write(f"{folder}/{systemd_boot.TRIAL_FILE}", systemd_boot.trial_entry(entry, words))
        # The last step: what comes before changes nothing about the next boot.
        self.machine.run(
            ["bootctl", "set-oneshot", systemd_boot.TRIAL_FILE], "choose the trial for the next boot"
        )

    def disarm(self) -> None:
        if self.machine.variable("LoaderEntryOneShot"):
            self.machine.run(["bootctl", "set-oneshot", ""], "forget the entry to boot once")
            if now := self.machine.variable("LoaderEntryOneShot"):
                raise Failure(f"systemd-boot still starts {now} once, after that was unset")
        self._unlink(systemd_boot.TRIAL_FILE)

    def own(self, release: str, cmdline: str) -> str:
        if not cmdline:
            self._unlink(systemd_boot.own_id(release) + systemd_boot.SUFFIX)
            return ""
        folder, entry = self._place(release)
        name, text = systemd_boot.own_entry(entry, cmdline)
        self.machine.write(f"{folder}/{name}", text)
        return name

    def _unlink(self, name: str) -> None:
        for path in self._entries():
            if path.name == name:
                path.unlink()


def same(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()
