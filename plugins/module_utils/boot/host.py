# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Kernels, boot loader and trial of the host that this runs on, as they are. Nothing is changed here."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..common.command import ANY, SYSTEM_PATH
from ..common.dotconfig import parse_config
from ..common.errors import Failure
from ..common.files import parse_json, sha256_file
from ..common.live import LIVE_UPDATE, LiveUpdate, parse_live_update
from ..common.lock import HOST_LOCK, restart_announced
from . import loaders, packages, secure_boot, trial
from .access import ATTRIBUTES, EFI_VARIABLES, Access
from .live import SCRIPTS, Means, marker
from .plan import PREVIOUS, TRIAL_ID, Boot, Host, missing_bytes, own_id
from .trial import UNIT, Note

STATE = "/var/lib/mkops/kernel-boot"
NOTE = f"{STATE}/trial.json"
RECORD = f"{STATE}/record.json"
SCRIPT = f"{STATE}/evidence.sh"
EVIDENCE = f"{STATE}/evidence.log"
UNITS = "/etc/systemd/system"
# In whatever mode the kernel on trial ends up.
WANTED_BY = ("sysinit.target", "rescue.target", "emergency.target")
UNIT_FILES = tuple(f"{UNITS}/{UNIT}.{kind}" for kind in ("timer", "service"))
UNIT_LINKS = tuple(f"{UNITS}/{target}.wants/{UNIT}.timer" for target in WANTED_BY)
SECURE_BOOT = f"{EFI_VARIABLES}/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
# What the firmware and what shim takes signatures of.
KEYS = (
    f"{EFI_VARIABLES}/db-d719b2cb-3d3a-4596-a3bc-dad00e67656f",
    f"{EFI_VARIABLES}/MokListRT-605dab50-e046-4300-abb6-3dd810dd8b23",
)
EVIDENCE_LINES = 60


class BootHost(Access):
    """What a rollout has to know of its host."""

    @property
    def lock(self) -> Path:
        return self.at(HOST_LOCK)

    def boot_id(self) -> str:
        return self.text("/proc/sys/kernel/random/boot_id").strip()

    def running(self) -> str:
        return self.text("/proc/sys/kernel/osrelease").strip()

    def multikernel(self) -> bool:
        return "multikernel" in self.text("/proc/filesystems").split()

    def instances(self) -> dict[str, str]:
        found = self.at("/sys/fs/multikernel/instances").glob("*/status")
        statuses = {
            path.parent.name: self.text(str(path.relative_to(self.at("/")))).strip() for path in found
        }
        return dict(sorted(statuses.items()))

    def live_update(self) -> LiveUpdate | None:
        """What the kernel says of live updates; None when it knows none."""
        return parse_live_update(self.text(LIVE_UPDATE))

    def kexec_loaded(self) -> bool:
        """Whether a kernel is loaded that the next restart could boot by kexec."""
        return self.text("/sys/kernel/kexec_loaded").strip() == "1"

    def _means(self, kernels: Sequence[str]) -> Means:
        """What a live update stands on; of these kernels, those whose marks matter."""
        update = self.live_update()
        lockdown = re.search(r"\[(\w+)\]", self.text("/sys/kernel/security/lockdown"))
        scripts = tuple(name for name in SCRIPTS if self._is_run(name))
        settings = ["/etc/default/kexec", *self._names("/etc/default/kexec.d")]
        loads = re.findall(r"^[ \t]*LOAD_KEXEC=[\"']?(\w*)", "\n".join(map(self.text, settings)), re.M)
        flags = re.search(r"^flags\s*:(.*)$", self.text("/proc/cpuinfo"), re.M)
        images = {name: self.at(f"/boot/vmlinuz-{name}") for name in kernels} if update else {}
        return Means(
            update=update,
            tool=any(self.at(f"{folder}/kexec").is_file() for folder in SYSTEM_PATH.split(":")),
            disabled=self.text("/proc/sys/kernel/kexec_load_disabled").strip() == "1",
            lockdown=lockdown[1] if lockdown else "none",
            scripts=scripts,
            takes_reboots=len(scripts) == len(SCRIPTS) and loads[-1:] == ["true"],
            markers={name: marker(path.read_bytes()) for name, path in images.items()},
            flags=frozenset(flags[1].split() if flags else ()),
        )

    def _is_run(self, script: str) -> bool:
        """Whether an init script is there, and systemd does not keep it from being run."""
        unit = self.at(f"{UNITS}/{script}.service")
        masked = unit.is_symlink() and str(unit.readlink()) == os.devnull
        return self.at(f"/etc/init.d/{script}").exists() and not masked

    def _names(self, folder: str) -> list[str]:
        return [f"{folder}/{path.name}" for path in sorted(self.at(folder).glob("*"))]

    def failed_units(self) -> tuple[str, ...]:
        done = self.run(
            ["systemctl", "list-units", "--failed", "--plain", "--no-legend"], "list the failed units"
        )
        return tuple(sorted(line.split()[0] for line in done.stdout.splitlines() if line.split()))

    def _watchdog(self) -> str:
        """What the hardware watchdog calls itself; empty without one."""
        found = sorted(self.at("/sys/class/watchdog").glob("*/identity"))
        return found[0].read_text(encoding="utf-8", errors="replace").strip() if found else ""

    def kernels(self) -> list[str]:
        """Releases that have an image in /boot."""
        return sorted(
            path.name.removeprefix("vmlinuz-")
            for path in self.at("/boot").glob("vmlinuz-*")
            if path.is_file() and not path.is_symlink()
        )

    def _cut_off(self, kernels: Sequence[str]) -> dict[str, str]:
        """Why a kernel cannot be started, for each whose image is not whole."""
        found = {}
        for name in kernels:
            with self.at(f"/boot/vmlinuz-{name}").open("rb") as file:
                start = file.read(1024)
                size = file.seek(0, os.SEEK_END)
            if missing := missing_bytes(start, size):
                found[name] = (
                    f"/boot/vmlinuz-{name} is cut off: {missing} of its {size + missing} bytes are missing; "
                    "install it again"
                )
        return found

    def _untrusted(self, kernels: Sequence[str], boot: Boot) -> dict[str, str]:
        """Why Secure Boot would not start a kernel, for each that it would not."""
        secure = self.at(SECURE_BOOT)
        if not secure.exists() or secure.read_bytes()[-1:] != b"\1":
            return {}
        # GRUB goes back by itself when it is refused, whoever knows the keys; systemd-boot may not.
        databases = [self.at(path) for path in KEYS] if boot.variables else []
        known = [path.read_bytes()[ATTRIBUTES:] for path in databases if path.exists()]
        faults = {
            name: secure_boot.fault(self.at(f"/boot/vmlinuz-{name}").read_bytes(), known or None)
            for name in kernels
        }
        return {name: why for name, why in faults.items() if why}

    def record(self) -> dict[str, Any]:
        """{"kernels": [installed through here], "previous": the last good one}"""
        text = self.text(RECORD)
        try:
            found = parse_json(text) if text else {}
        except ValueError:
            found = None
        record: dict[str, Any] = found if isinstance(found, dict) else {"kernels": None}
        kernels = record.get("kernels", [])
        names = [*kernels, record.get("previous", "")] if isinstance(kernels, list) else [None]
        if not all(isinstance(name, str) for name in names):
            raise Failure(
                f"{RECORD} is damaged; remove it. That loses only which kernel was the last good one, and "
                "which kernels kernel_boot has installed"
            )
        return record

    def _note(self, boot: Boot, token: str) -> Note | None:
        """The note of a trial, or what its units and this boot say in its place."""
        if note := trial.parse_note(self.text(NOTE)):
            return note
        waiting = [trial.unit_token(self.text(path)) for path in UNIT_FILES]
        if token and token in waiting:
            return Note(token, self.running(), boot.releases.get(boot.default, "") or "the earlier kernel")
        return None

    def units(self) -> bool:
        """Whether anything of the units of a trial is there."""
        return any(os.path.lexists(self.at(path)) for path in (*UNIT_FILES, *UNIT_LINKS))

    def state(self, boot: Boot) -> tuple[trial.State, Note | None]:
        token = trial.token_of(self.text("/proc/cmdline"))
        note = self._note(boot, token)
        signs = trial.Signs(
            note=note,
            units=self.units(),
            armed=boot.once.startswith(TRIAL_ID),
            boot_id=self.boot_id(),
            token=token,
            default=boot.default,
            own=boot.own.get(note.release, "") if note else "",
            restarting=restart_announced(self.lock),
            loaded=self.kexec_loaded(),
        )
        return trial.tell(signs), note

    def look(self, release: str) -> Host:
        """All that a plan for a kernel stands on."""
        kernels = self.kernels()
        record = self.record()
        wanted = record.get("previous", "") if release == PREVIOUS else release
        known = packages.kernels(self, [*kernels, *([wanted] if wanted else []), *record.get("kernels", ())])
        boot = loaders.look(self)
        boot = replace(boot, broken={**boot.broken, **self._cut_off(kernels)})
        state, note = self.state(boot)
        running = self.running()
        concerned = [name for name in kernels if name in (wanted, running)]
        return Host(
            running=running,
            boot_id=self.boot_id(),
            cmdline=tuple(self.text("/proc/cmdline").split()),
            systemd=self.at("/run/systemd/system").is_dir(),
            boot=boot,
            kernels=tuple(kernels),
            packaged=tuple(name for name, one in known.items() if one.installed),
            half=tuple(name for name, one in known.items() if one.half),
            images={
                path.name.removeprefix("vmlinux-"): sha256_file(path)
                for path in sorted(self.at("/boot").glob("vmlinux-*"))
                if path.is_file()
            },
            untrusted=self._untrusted(kernels, boot),
            options={
                name: parse_config(text) for name in concerned if (text := self.text(f"/boot/config-{name}"))
            },
            live=self._means(concerned),
            watchdog=self._watchdog(),
            instances=self.instances(),
            record=record,
            note=note,
            state=state,
        )

    def health(
        self, units: Sequence[str], checks: Sequence[Sequence[str]], patience: float
    ) -> dict[str, Any]:
        """What the judgement of the running kernel stands on."""
        states = {}
        for unit in units:
            done = self.run(["systemctl", "is-active", unit], f"ask for {unit}", ok=ANY)
            states[unit] = done.stdout.strip() or "unknown"
        return {
            "release": self.running(),
            "boot_id": self.boot_id(),
            "token": trial.token_of(self.text("/proc/cmdline")),
            "multikernel": self.multikernel(),
            "system": self.run(["systemctl", "is-system-running"], "ask systemd", ok=ANY).stdout.strip(),
            "units": states,
            "failed_units": self.failed_units(),
            "checks": [self._checked(words, patience) for words in checks],
        }

    def _checked(self, words: Sequence[str], patience: float) -> dict[str, Any]:
        argv = [str(word) for word in words]
        try:
            done = self.run(argv, "check", ok=ANY, seconds=patience)
        except Failure as failure:
            return {"cmd": argv, "rc": 127, "stdout": "", "stderr": str(failure)}
        return {"cmd": argv, "rc": done.rc, "stdout": done.stdout[-2000:], "stderr": done.stderr[-2000:]}

    def evidence(self, note: Note) -> dict[str, list[str]]:
        """What the failed boot left behind."""
        found = {}
        if text := self.text(EVIDENCE):
            found["trial"] = text.splitlines()
        else:
            # Kept only where the journal lasts, and if the kernel got that far.
            journal = self.run(
                ["journalctl", "-q", "--no-pager", "-b", "-1", "-o", "short-monotonic"],
                "read the journal",
                ok=ANY,
            ).stdout
            if note.token in journal:
                found["journal"] = journal.splitlines()
        if stored := list(self._stored(note.armed)):
            found["pstore"] = stored
        return {name: lines[-EVIDENCE_LINES:] for name, lines in found.items()}

    def _stored(self, since: float) -> Iterable[str]:
        """What the kernel put where it lasts when it died."""
        for folder in ("/sys/fs/pstore", "/var/lib/systemd/pstore"):
            for path in sorted(self.at(folder).rglob("*")):
                with contextlib.suppress(OSError):
                    if path.is_file() and path.stat().st_mtime >= since:
                        yield from path.read_text(encoding="utf-8", errors="replace").splitlines()


def entry_for(boot: Boot, release: str, cmdline: str) -> str:
    """Name of the entry that starts a kernel with these words; empty if there is none for it."""
    entry = boot.entries.get(release, "")
    return own_id(release) + boot.suffix if entry and cmdline else entry
