# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The steps of a rollout: all that changes kernels, boot loader and trial of a host.

Each step may be cut off anywhere, by a failure, a kill or a power cut. What it has done until then is a state
of trial.TABLE, from which the next run goes on. So the order of the lines here matters.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..common.errors import Failure
from ..common.live import LIVE_UPDATE, LOADED
from ..common.lock import announce_restart, withdraw_restart
from . import loaders, packages, trial
from .host import EVIDENCE, NOTE, RECORD, SCRIPT, STATE, UNIT_FILES, UNIT_LINKS, UNITS, BootHost, entry_for
from .plan import LIVE, TRIAL_ID, BootPlan, Host, KernelWish, bounded, check_length, remembered, with_words
from .trial import UNIT, Event, Note, State

PROBLEMS = (Failure, OSError)


class Rollout:
    """What a phase does. The host's lock is held by the caller."""

    def __init__(self, host: BootHost) -> None:
        self.host = host

    # --- before the restart -----------------------------------------------------------------------

    def install(self, todo: BootPlan, files: Sequence[str], image: str) -> None:
        """Everything of a plan up to the point where a restart would still bring the kernel that runs now."""
        names = packages.check(self.host, todo.release, files) if todo.install else []
        if todo.tidy:
            self.tidy()
        loader = loaders.find(self.host)
        if todo.install or todo.boot:
            loader.prove()
        if todo.pin:
            loader.default(todo.pin)
        if todo.saved:
            loader.remember()
        if todo.install:
            try:
                self._install(todo.release, files, names)
            except PROBLEMS:
                # What is left of it is not what the host starts next.
                with contextlib.suppress(*PROBLEMS):
                    self._keep_default(self.host.running())
                raise
        if todo.image:
            self._place(image, f"/boot/vmlinux-{todo.release}")
        if (todo.install or todo.boot) and todo.release not in loader.look().entries:
            loader.refresh()
            if todo.release not in loader.look().entries:
                raise Failure(
                    f"the boot menu has no entry for {todo.release}; check that its files are in /boot"
                )
        if todo.install or todo.boot:
            self._keep_default(self.host.running())

    def _keep_default(self, release: str) -> None:
        """It is the default, whoever has made another kernel that meanwhile."""
        loader = loaders.find(self.host)
        now = loader.look()
        if now.releases.get(now.default) == release:
            return
        entry = now.entries.get(release)
        if not entry:
            raise Failure(f"the boot menu no longer has an entry for {release}; run again")
        if not now.remembers:
            loader.remember()
        loader.default(entry)

    def _install(self, release: str, files: Sequence[str], names: Sequence[str]) -> None:
        there = release in self.host.kernels()
        # Before the package: what a kill leaves half installed is known to be ours.
        self._record(remembered(self.host.record(), installed=release))
        try:
            packages.install(self.host, release, files, names)
        except packages.Busy:
            self._forget(release)
            raise
        except Failure as failure:
            left = [] if there else self._half(release)
            self._forget(release)
            raise Failure("; ".join([str(failure), *left]), failure.details) from failure

    def _half(self, release: str) -> list[str]:
        """Half a kernel must not stay in the menu; what could not be done about it."""
        image = self.host.at(f"/boot/vmlinuz-{release}")
        try:
            if image.exists():
                image.unlink()
            loader = loaders.find(self.host)
            if release in loader.look().entries:
                loader.forget(release)
        except PROBLEMS as error:
            return [
                f"{release} may still be in the boot menu ({error}); the default is {self.host.running()}"
            ]
        return []

    def _place(self, source: str, path: str) -> None:
        """A copy, there as a whole or not at all."""
        target = self.host.at(path)
        temporary = target.with_name(f".{target.name}.mkops")
        try:
            shutil.copyfile(source, temporary)
            temporary.chmod(0o644)
            _sync(temporary)
            temporary.replace(target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise Failure(f"cannot place {path}: {error.strerror}; make room in /boot") from error

    def arm(
        self,
        todo: BootPlan,
        wish: KernelWish,
        seen: Host,
        token: str = "",
        kept: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Note:
        """The next boot, and only that, is the trial, and it comes in a moment. Returns what is noted.

        kept: what instances show that run on meanwhile; None when none may run.
        """
        self._demand(seen.state, Event.PREPARE, seen.note)
        note = Note(
            token=token or secrets.token_hex(8),
            release=todo.release,
            previous=seen.running,
            boot_id=seen.boot_id,
            cmdline=wish.cmdline,
            failed_units=self.host.failed_units(),
            armed=int(time.time()),
            before=seen.boot.default,
            own=seen.boot.own.get(todo.release, ""),
            live=wish.live,
            kept=dict(kept or {}),
            generation=seen.live.update.generation if wish.live and seen.live.update else 0,
        )
        words = trial.trial_words(
            wish.cmdline, note.token, bool(seen.watchdog), seen.options.get(todo.release)
        )
        if kept is None:
            self._no_instances()
        try:
            self._keep_default(seen.running)
            self._prepare(note, wish.trial_timeout)
            loader = loaders.find(self.host)
            self._check_default(loader, seen.running)
            if wish.live:
                self._load(loader, todo.release, words)
            else:
                loader.arm(todo.release, words)
                self._check_once(loader)
            self._check_default(loader, seen.running)
            os.sync()
            if kept is None:
                self._no_instances()
            self._announced(["systemctl", "kexec" if wish.live else "reboot"])
        except PROBLEMS as error:
            self._take_back(note, error)
        return note

    def _prepare(self, note: Note, seconds: int) -> None:
        """All that gives the kernel up is on the disk before the boot loader hears of it."""
        self._write_note(note)
        self.host.at(EVIDENCE).unlink(missing_ok=True)
        self.host.write(SCRIPT, trial.EVIDENCE_SCRIPT, mode=0o600)
        for name, text in trial.trial_units(note.token, seconds, SCRIPT, EVIDENCE).items():
            self.host.write(f"{UNITS}/{name}", text)
        for name in UNIT_LINKS:
            link = self.host.at(name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(f"../{UNIT}.timer")
        os.sync()

    def _check_once(self, loader: loaders.Grub | loaders.SystemdBoot) -> None:
        if not (once := loader.look().once).startswith(TRIAL_ID):
            raise Failure(
                f"the boot loader would start {once or 'its default'}, not the trial that was chosen; "
                "the host was not restarted"
            )

    def _load(self, loader: loaders.Grub | loaders.SystemdBoot, release: str, words: Sequence[str]) -> None:
        """kexec has the kernel, with a handover of all that is lent; the boot loader knows nothing of it."""
        line = loader.look().lines.get(release)
        if line is None:
            raise Failure(f"the boot menu no longer says with which words {release} is started; run again")
        line = with_words(bounded(line), words)
        check_length(release, line)
        image, initrd = (self.host.at(f"/boot/{name}-{release}") for name in ("vmlinuz", "initrd.img"))
        argv = ["kexec", "-s", "-l", str(image), f"--command-line={line}"]
        self.host.tell(LIVE_UPDATE, "1\n")
        self.host.run(
            [*argv, *([f"--initrd={initrd}"] if initrd.exists() else [])],
            f"have {release} loaded with the handover of the instances",
        )
        self._check_loaded(release)

    def _check_loaded(self, release: str) -> None:
        update = self.host.live_update()
        state = update.state if update else "gone"
        if state != LOADED or not self.host.kexec_loaded():
            why = f": {update.reason}" if update and update.reason else ""
            raise Failure(
                f"{release} was loaded, but the kernel would not hand the instances over (live_update is "
                f"{state}{why}); run again when nobody changes them"
            )

    def _unload(self, note: Note | None) -> None:
        """Nothing that was loaded for the trial in this boot is left."""
        if note is None or not note.live or note.boot_id != self.host.boot_id():
            return
        if self.host.kexec_loaded():
            self.host.run(["kexec", "-s", "-u"], "unload the trial")
            if self.host.kexec_loaded():
                raise Failure("the trial is still loaded, although kexec was told to unload it")
        if self.host.live_update():
            self.host.tell(LIVE_UPDATE, "0\n")

    def _check_default(self, loader: loaders.Grub | loaders.SystemdBoot, running: str) -> None:
        """The way back is there."""
        now = loader.look()
        if now.releases.get(now.default) != running:
            raise Failure(
                f"{now.loader} would start {now.default or 'an unknown entry'} by default, not the running "
                f"kernel {running}; the host was not restarted"
            )

    def _no_instances(self) -> None:
        if live := [name for name, status in self.host.instances().items() if status in LIVE]:
            raise Failure(f"the host was not restarted: instances are not stopped: {', '.join(live)}")

    def _announced(self, argv: Sequence[str]) -> None:
        """Returns at once; a moment later the host goes down. Until then nobody starts an instance."""
        try:
            announce_restart(self.host.lock)
            self._later(argv)
        except PROBLEMS:
            withdraw_restart(self.host.lock)
            raise

    def _later(self, argv: Sequence[str]) -> None:
        self.host.run(
            [
                "systemd-run",
                "--quiet",
                "--collect",
                "--on-active=2",
                "--timer-property=AccuracySec=100ms",
                *(f"--setenv={word}" for word in trial.BY_THE_LOADER),
                *argv,
            ],
            "restart the host",
        )

    def _take_back(self, note: Note, error: Exception) -> None:
        """The trial could not be begun: nothing of it stays."""
        try:
            self.tidy()
        except PROBLEMS as second:
            raise Failure(
                f"{_say(error)}; the trial of {note.release} could not be taken back either: "
                f"{_say(second)}. The "
                "next start of this host may be that trial, which ends by itself; the next run takes it back",
                getattr(error, "details", None),
            ) from error
        try:
            self._keep_default(note.previous)
        except PROBLEMS as second:
            raise Failure(
                f"{_say(error)}; {note.previous} could not be made the default again either: {_say(second)}. "
                f"The next start of this host may be {note.release}, without a trial; mend that first",
                getattr(error, "details", None),
            ) from error
        raise error

    # --- the end of a trial -----------------------------------------------------------------------

    def tidy(self) -> None:
        """Nothing of a trial is left, but what it had to tell. The note goes last: it says what to do."""
        loader = loaders.find(self.host)
        state, note = self.host.state(loader.look())
        if state is State.IDLE:
            return
        self._demand(state, Event.TIDY, note)
        loader.disarm()
        self._unload(note)
        self.host.run(["systemctl", "stop", f"{UNIT}.timer"], "stop the timer of the trial", ok=(0, 5))
        for name in (*UNIT_LINKS, *UNIT_FILES):
            self.host.at(name).unlink(missing_ok=True)
        self.host.run(["systemctl", "daemon-reload"], "reload systemd")
        if note and state is State.PROMOTED:
            if not note.cmdline:
                loader.own(note.release, "")
            self._record(remembered(self.host.record(), promoted=note.release, before=note.previous))
        self.host.at(NOTE).unlink(missing_ok=True)

    def promote(self, todo: BootPlan, cmdline: str, seen: Host, token: str = "") -> list[str]:
        """The kernel was seen healthy: it is the default from now on. Returns what is still to be done."""
        if seen.state is State.PROMOTED:
            return self._completed(todo.release)
        if token or seen.state is not State.IDLE:
            self._demand(seen.state, Event.APPROVE, seen.note)
        entry = entry_for(seen.boot, todo.release, cmdline)
        if not entry:
            raise Failure(f"the boot menu no longer has an entry for {todo.release}; run again")
        if seen.note is None:
            self._make_default(todo.release, cmdline, entry)
            if not cmdline:
                loaders.find(self.host).own(todo.release, "")
            self._record(remembered(self.host.record(), promoted=todo.release))
            return []
        self._promote_trial(replace(seen.note, cmdline=cmdline, entry=entry))
        return self._completed(todo.release)

    def _make_default(self, release: str, cmdline: str, entry: str) -> None:
        # Whatever happens in between, the default is an entry that is there.
        loader = loaders.find(self.host)
        if cmdline:
            loader.own(release, cmdline)
        loader.default(entry)

    def _promote_trial(self, note: Note) -> None:
        """From on trial to promoted, or back."""
        try:
            self._write_note(replace(note, verdict=trial.HEALTHY))
            self.host.run(["systemctl", "stop", f"{UNIT}.timer"], "stop the timer of the trial", ok=(0, 5))
            ending = self.host.run(
                ["systemctl", "is-active", f"{UNIT}.service"],
                "ask whether the trial is given up",
                ok=range(256),
            ).stdout.strip()
            if ending in ("active", "activating", "reloading"):
                raise Failure(
                    "the trial has run out of time, and the host is about to go back; give more trial_timeout"
                )
            self._make_default(note.release, note.cmdline, note.entry)
        except PROBLEMS as error:
            left = self._revert(note)
            raise Failure("; ".join([_say(error), *left]), getattr(error, "details", None)) from error

    def _revert(self, note: Note) -> list[str]:
        """As it was before the promotion; what could not be undone."""
        left: list[str] = []

        def attempt(what: str, step: Callable[[], object]) -> None:
            try:
                step()
            except PROBLEMS as error:
                left.append(f"{what}: {_say(error)}")

        def default() -> None:
            loader = loaders.find(self.host)
            if loader.look().default != note.before:
                loader.default(note.before)
            if loader.look().own.get(note.release, "") != note.own:
                loader.own(note.release, note.own)

        attempt(f"{note.before} could not be made the default again", default)
        boot = loaders.look(self.host)
        if self.host.state(boot)[0] is State.PROMOTED:
            # The other way is open: it was found healthy.
            return left
        attempt(
            "the note could not be put back", lambda: self._write_note(replace(note, verdict="", entry=""))
        )
        # If its time is over, it ends the trial at once.
        attempt(
            "the timer of the trial does not run",
            lambda: self.host.run(["systemctl", "start", f"{UNIT}.timer"], "start it"),
        )
        return left

    def _completed(self, release: str) -> list[str]:
        """What is left after a promotion goes; that it could not is no reason to go back."""
        try:
            self.tidy()
        except PROBLEMS as error:
            return [
                f"{release} is the default, but the rest of its trial could not be removed: "
                f"{_say(error)}. The next run removes it"
            ]
        return []

    def give_up(self, seen: Host) -> None:
        """As the timer would: what the kernel can tell is kept, and the host restarts, at last by force."""
        self._demand(seen.state, Event.GIVE_UP, seen.note)
        # Nobody promotes it any more. The restart does not depend on that.
        with contextlib.suppress(*PROBLEMS):
            if seen.note:
                self._write_note(replace(seen.note, verdict=trial.BAD))
        with contextlib.suppress(*PROBLEMS):
            if seen.note:
                self._keep_default(seen.note.previous)
        service = f"{UNIT}.service"
        if self.host.at(f"{UNITS}/{service}").exists():
            self._announced(["systemctl", "--no-block", "start", service])
        else:
            self._announced(["systemctl", "reboot"])

    def prune(self, releases: Sequence[str]) -> tuple[list[str], list[str]]:
        """Remove kernels that the plan found to be too many: which ones are gone, and why others are not."""
        gone, left = [], []
        for release in releases:
            try:
                self._remove(release)
                gone.append(release)
            except PROBLEMS as error:
                left.append(
                    f"the old kernel {release} was not removed: {_say(error)}. The next run tries again"
                )
        return gone, left

    def _remove(self, release: str) -> None:
        if release == self.host.running():
            raise Failure("it runs")
        if who := packages.holder(self.host):
            raise packages.Busy(who)
        loaders.find(self.host).own(release, "")
        self.host.at(f"/boot/vmlinux-{release}").unlink(missing_ok=True)
        packages.purge(self.host, [f"{packages.IMAGE}{release}"])
        self._forget(release)

    # --- what is written down ---------------------------------------------------------------------

    def _demand(self, state: State, event: Event, note: Note | None) -> None:
        if not trial.allows(state, event):
            raise Failure(trial.describe(state, note))

    def _write_note(self, note: Note) -> None:
        self._own_directory()
        self.host.write(NOTE, note.text(), mode=0o600)

    def _record(self, record: Mapping[str, Any]) -> None:
        self._own_directory()
        self.host.write(RECORD, json.dumps(record, indent=2, sort_keys=True) + "\n", mode=0o600)

    def _forget(self, release: str) -> None:
        """A kernel that is not ours any more, unless it is still there."""
        record = self.host.record()
        if packages.kernels(self.host, [release])[release].status in packages.GONE:
            self._record(
                {**record, "kernels": [name for name in record.get("kernels", ()) if name != release]}
            )

    def _own_directory(self) -> None:
        """What failed kernels had to tell is nobody else's business."""
        directory = self.host.at(STATE)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)


def _say(error: Exception) -> str:
    """An error of the system names its file."""
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    return str(error)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
