# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Kernels, boot loader and trial of the host that this runs on: what reads and what changes them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ..common.command import ANY
from ..common.dotconfig import parse_config
from ..common.errors import Failure
from ..common.files import sha256_file
from . import loaders, secure_boot
from . import plan as kernel_boot
from .access import ATTRIBUTES, EFI_VARIABLES, Access
from .plan import EVIDENCE_SCRIPT, UNIT, Host, Plan, Wish

STATE = "/var/lib/mkops/kernel-boot"
UNITS = "/etc/systemd/system"
# In whatever mode the kernel on trial ends up.
WANTED_BY = ("sysinit.target", "rescue.target", "emergency.target")
SECURE_BOOT = f"{EFI_VARIABLES}/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
# What the firmware and what shim takes signatures of.
KEYS = (
    f"{EFI_VARIABLES}/db-d719b2cb-3d3a-4596-a3bc-dad00e67656f",
    f"{EFI_VARIABLES}/MokListRT-605dab50-e046-4300-abb6-3dd810dd8b23",
)
EVIDENCE_LINES = 60


class Machine(Access):
    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        path = self.at("/run/lock/mkops-kernel-boot.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Failure(
                    "another run changes the kernels of this host at the moment; try again later"
                ) from None
            yield

    # --- reading ----------------------------------------------------------------------------------

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

    def failed_units(self) -> list[str]:
        done = self.run(
            ["systemctl", "list-units", "--failed", "--plain", "--no-legend"], "list the failed units"
        )
        return sorted(line.split()[0] for line in done.stdout.splitlines() if line.split())

    def _loader(self) -> loaders.Grub | loaders.SystemdBoot:
        return loaders.find(self)

    def _cut_off(self, kernels: Sequence[str]) -> dict[str, str]:
        """Why a kernel cannot be started, for each whose image is not whole."""
        found = {}
        for name in kernels:
            with self.at(f"/boot/vmlinuz-{name}").open("rb") as file:
                start = file.read(1024)
                size = file.seek(0, os.SEEK_END)
            if missing := kernel_boot.missing_bytes(start, size):
                found[name] = (
                    f"/boot/vmlinuz-{name} is cut off: {missing} of its {size + missing} bytes are missing; "
                    "install it again"
                )
        return found

    def _untrusted(self, kernels: Sequence[str], boot: kernel_boot.Boot) -> dict[str, str]:
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

    def _packaged(self, kernels: Sequence[str]) -> tuple[str, ...]:
        if not kernels:
            return ()
        names = [f"linux-image-{release}" for release in kernels]
        done = self.run(
            ["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package}\n", *names],
            "list the installed kernels",
            ok=(0, 1),
        )
        lines = [line.split() for line in done.stdout.splitlines()]
        return tuple(
            line[1].removeprefix("linux-image-")
            for line in lines
            if len(line) == 2 and line[0] == "installed"
        )

    def trial(self) -> dict:
        try:
            return json.loads(self.text(f"{STATE}/trial.json"))
        except ValueError:
            left = any(self.at(f"{UNITS}/{UNIT}.{kind}").exists() for kind in ("timer", "service"))
            return (
                dict.fromkeys(("token", "release", "previous", "evidence"), "") | {"armed": 0} if left else {}
            )

    def record(self) -> dict:
        text = self.text(f"{STATE}/record.json")
        try:
            return json.loads(text) if text else {}
        except ValueError:
            raise Failure(
                f"{STATE}/record.json is damaged; remove it, which forgets only the last good kernel"
            ) from None

    def look(self, release: str) -> Host:
        kernels = sorted(
            path.name.removeprefix("vmlinuz-")
            for path in self.at("/boot").glob("vmlinuz-*")
            if path.is_file() and not path.is_symlink()
        )
        record = self.record()
        wanted = record.get("previous", "") if release == kernel_boot.PREVIOUS else release
        names = [*kernels, *([wanted] if wanted and wanted not in kernels else [])]
        boot = loaders.look(self)
        boot = replace(boot, broken={**boot.broken, **self._cut_off(kernels)})
        return Host(
            running=self.running(),
            boot_id=self.boot_id(),
            cmdline=tuple(self.text("/proc/cmdline").split()),
            systemd=self.at("/run/systemd/system").is_dir(),
            boot=boot,
            kernels=tuple(kernels),
            packaged=self._packaged(names),
            images={
                path.name.removeprefix("vmlinux-"): sha256_file(path)
                for path in sorted(self.at("/boot").glob("vmlinux-*"))
                if path.is_file()
            },
            untrusted=self._untrusted(kernels, boot),
            options={
                name: parse_config(text)
                for name in kernels
                if name == wanted and (text := self.text(f"/boot/config-{name}"))
            },
            watchdog=next(
                (self.text(str(path)).strip() for path in self.at("/sys/class/watchdog").glob("*/identity")),
                "",
            ),
            instances=self.instances(),
            record=record,
            trial=self.trial(),
        )

    # --- changing ---------------------------------------------------------------------------------

    def disarm(self) -> None:
        """Nothing of a trial is left, but for what it had to tell."""
        self._loader().disarm()
        for kind in ("timer", "service"):
            self.at(f"{UNITS}/{UNIT}.{kind}").unlink(missing_ok=True)
        for target in WANTED_BY:
            self.at(f"{UNITS}/{target}.wants/{UNIT}.timer").unlink(missing_ok=True)
        self.run(["systemctl", "daemon-reload"], "reload systemd")
        self.at(f"{STATE}/trial.json").unlink(missing_ok=True)

    def install(self, todo: Plan, packages: Sequence[str], image: str) -> None:
        """Everything of a plan up to the point where a restart would still bring the kernel that runs now."""
        if todo.disarm:
            self.disarm()
        loader = self._loader()
        if todo.install or todo.boot:
            loader.prove()
        if todo.pin:
            loader.default(todo.pin)
        if todo.saved:
            loader.remember()
        if todo.install:
            self._install_packages(todo.release, packages)
        if todo.image:
            target = self.at(f"/boot/vmlinux-{todo.release}")
            temporary = target.with_name(f".{target.name}.mkops")
            try:
                shutil.copyfile(image, temporary)
            except OSError as error:
                temporary.unlink(missing_ok=True)
                raise Failure(f"cannot place {target}: {error.strerror}; make room in /boot") from error
            temporary.chmod(0o644)
            temporary.replace(target)
        if (todo.install or todo.boot) and todo.release not in loader.look().entries:
            loader.refresh()
            if todo.release not in loader.look().entries:
                raise Failure(f"the boot menu has no entry for {todo.release}; is it in /boot?")

    def _install_packages(self, release: str, packages: Sequence[str]) -> None:
        wanted = f"linux-image-{release}"
        names, size = [], 0
        for package in packages:
            fields = self.run(
                ["dpkg-deb", "--field", package, "Package", "Installed-Size"], f"read the package {package}"
            ).stdout
            facts = dict(line.split(": ", 1) for line in fields.splitlines() if ": " in line)
            names.append(facts.get("Package", ""))
            size += int(facts.get("Installed-Size", 0)) * 1024
        if wanted not in names:
            raise Failure(
                f"nothing was installed: the packages are {', '.join(names)}, none of them is {wanted}"
            )
        for place in ("/boot", "/lib/modules", "/var/lib/dpkg"):
            free = shutil.disk_usage(self.at(place) if self.at(place).exists() else self.at("/")).free
            if free < size:
                raise Failure(
                    f"nothing was installed: {place} has {free >> 20} MiB free, {wanted} needs "
                    f"{size >> 20} MiB; make room"
                )
        try:
            # Not apt: a kernel needs no other package, and neither the archive nor python3-apt need be there.
            self.run(["dpkg", "--install", *packages], f"install {wanted}", seconds=1800)
        except Failure:
            # Half a kernel must not stay in the menu.
            with contextlib.suppress(Failure):
                self.run(["dpkg", "--purge", *names], f"remove what is left of {wanted}", seconds=600)
            raise
        self._remember(kernel_boot.remembered(self.record(), installed=release))

    def _remember(self, record: Mapping) -> None:
        self.write(f"{STATE}/record.json", json.dumps(record, indent=2, sort_keys=True) + "\n")

    def arm(self, todo: Plan, wish: Wish, host: Host) -> dict:
        """The next boot, and only that, is the trial. Returns it."""
        token = secrets.token_hex(8)
        trial = {
            "token": token,
            "release": todo.release,
            "previous": host.running,
            "boot_id": host.boot_id,
            "cmdline": wish.cmdline,
            "failed_units": self.failed_units(),
            "evidence": f"{STATE}/evidence.log",
            "armed": int(time.time()),
        }
        words = kernel_boot.trial_words(
            wish.cmdline, token, bool(host.watchdog), host.options.get(todo.release)
        )
        self.at(STATE).mkdir(parents=True, exist_ok=True)
        self.at(trial["evidence"]).unlink(missing_ok=True)
        self.write(f"{STATE}/evidence.sh", EVIDENCE_SCRIPT)
        self.write(f"{STATE}/trial.json", json.dumps(trial, indent=2) + "\n")
        units = kernel_boot.trial_units(token, wish.trial_timeout, f"{STATE}/evidence.sh", trial["evidence"])
        for name, text in units.items():
            self.write(f"{UNITS}/{name}", text)
        for target in WANTED_BY:
            link = self.at(f"{UNITS}/{target}.wants/{UNIT}.timer")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(f"../{UNIT}.timer")
        loader = self._loader()
        loader.arm(todo.release, words)
        now = loader.look()
        if not now.once.startswith(kernel_boot.TRIAL_ID) or now.releases.get(now.default) != host.running:
            raise Failure(
                f"{now.loader} is not as it was set, it starts {now.once or 'nothing'} once and "
                f"{now.default or 'nothing'} by default; the host was not restarted"
            )
        os.sync()
        return trial

    def restart(self) -> None:
        """Returns at once; a moment later the host goes down."""
        if live := [name for name, status in self.instances().items() if status in kernel_boot.LIVE]:
            raise Failure(f"the host was not restarted: instances are not stopped: {', '.join(live)}")
        self._later(["systemctl", "reboot"])

    def give_up(self) -> None:
        """As the timer would: what the kernel can tell is kept, and the host restarts, at last by force."""
        self._later(["systemctl", "--no-block", "start", f"{UNIT}.service"])

    def _later(self, argv: Sequence[str]) -> None:
        self.run(
            [
                "systemd-run",
                "--quiet",
                "--collect",
                "--on-active=2",
                "--timer-property=AccuracySec=100ms",
                *argv,
            ],
            "restart the host",
        )

    def health(self, units: Sequence[str], checks: Sequence[Sequence[str]], patience: float) -> dict:
        states = {}
        for unit in units:
            done = self.run(["systemctl", "is-active", unit], f"ask for {unit}", ok=ANY)
            states[unit] = done.stdout.strip() or "unknown"
        results = []
        for words in checks:
            argv = [str(word) for word in words]
            try:
                done = self.run(argv, "check", ok=ANY, seconds=patience)
                outcome = {
                    "rc": done.rc,
                    "stdout": done.stdout[-2000:],
                    "stderr": done.stderr[-2000:],
                }
            except Failure as failure:
                outcome = {"rc": 127, "stdout": "", "stderr": str(failure)}
            results.append({"cmd": argv, **outcome})
        words = self.text("/proc/cmdline").split()
        tokens = [word for word in words if word.startswith(kernel_boot.TOKEN_WORD)]
        return {
            "release": self.running(),
            "boot_id": self.boot_id(),
            "token": tokens[-1].removeprefix(kernel_boot.TOKEN_WORD) if tokens else "",
            "multikernel": self.multikernel(),
            "system": self.run(["systemctl", "is-system-running"], "ask systemd", ok=ANY).stdout.strip(),
            "units": states,
            "failed_units": self.failed_units(),
            "checks": results,
        }

    def promote(self, todo: Plan, cmdline: str, before: str) -> None:
        """The kernel was seen healthy: it is the default from now on."""
        loader = self._loader()
        entry = loader.look().entries.get(todo.release)
        if entry is None:
            raise Failure(f"the boot menu has no entry for {todo.release} any more; who removed it?")
        trial = self.trial()
        # Whatever happens in between, the default is an entry that is there.
        if cmdline:
            entry = loader.own(todo.release, cmdline)
        loader.default(entry)
        if not cmdline:
            loader.own(todo.release, "")
        if trial:
            self.run(["systemctl", "stop", f"{UNIT}.timer"], "stop the timer of the trial", ok=(0, 5))
            self.disarm()
        self._remember(kernel_boot.remembered(self.record(), promoted=todo.release, before=before))

    def remove(self, releases: Sequence[str]) -> None:
        """Kernels that the plan found to be too many."""
        for release in releases:
            if release == self.running():
                raise Failure(f"{release} was not removed: it runs")
            self.run(["dpkg", "--purge", f"linux-image-{release}"], f"remove {release}")
            self.at(f"/boot/vmlinux-{release}").unlink(missing_ok=True)
            self._loader().own(release, "")
        record = self.record()
        kernels = [name for name in record.get("kernels", ()) if name not in releases]
        self._remember({**record, "kernels": kernels})

    # --- afterwards -------------------------------------------------------------------------------

    def evidence(self, trial: Mapping) -> dict[str, list[str]]:
        """What the failed boot left behind."""
        found = {}
        if text := self.text(trial["evidence"]):
            found["trial"] = text.splitlines()
        else:
            # Kept only where the journal lasts, and if the kernel got that far.
            journal = self.run(
                ["journalctl", "-q", "--no-pager", "-b", "-1", "-o", "short-monotonic"],
                "read the journal",
                ok=ANY,
            ).stdout
            if trial["token"] and trial["token"] in journal:
                found["journal"] = journal.splitlines()
        stored = []
        for folder in ("/sys/fs/pstore", "/var/lib/systemd/pstore"):
            for path in sorted(self.at(folder).rglob("*")):
                with contextlib.suppress(OSError):
                    if path.is_file() and path.stat().st_mtime >= trial["armed"]:
                        stored += path.read_text(errors="replace").splitlines()
        if stored:
            found["pstore"] = stored
        return {name: lines[-EVIDENCE_LINES:] for name, lines in found.items()}
