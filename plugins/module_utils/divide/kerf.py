# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only caller of kerf: argument lists, time-outs. Whether a call worked, the kernel tells."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.command import Done, run
from ..common.errors import Failure
from ..common.files import native, read_text
from .create import create_overlay
from .forked import Forked
from .kernelfs import KernelFs, Paths
from .kernellog import WARNING, Records
from .steps import Step
from .versions import DEFAULT_KERF, kerf_reason
from .wish import InstanceWish

# Seconds. The kernel itself may wait 10 for a spawn to answer; taking gigabytes from a busy host can take a
# minute. How long a spawn may take to halt is an option.
TIMEOUT = 120

_PATIENCE = 10  # seconds, for another kerf to end what it does
_LOCK_BUSY = "Could not acquire lock"


class KerfError(Failure):
    """A call without the effect it should have had."""


# What is worth reading although the kernel takes it for mere information.
_TELLING = re.compile(r"\bhalted\b|pool: removed|fail|cannot|refus|not found|invalid", re.IGNORECASE)


class KernelLog:
    """What went wrong since this object was made, as the kernel tells: only that says why something failed.

    Some kernels also log each reading of theirs, so that what listen() has heard counts more than what came
    afterwards.
    """

    def __init__(self, paths: Paths):
        self._log = Records(paths)
        self._heard: list[str] = []
        self._later: list[str] = []

    def listen(self) -> None:
        """Right after a change, before anything is read."""
        self._heard += self._new()

    def lines(self) -> list[str]:
        self._later += self._new()
        return [*self._heard, *self._later][-20:]

    @property
    def reason(self) -> str | None:
        """The line that most likely is one."""
        return next(reversed(self._heard or self._later), None)

    def _new(self) -> list[str]:
        return [one.text for one in self._log.new() if one.level <= WARNING or _TELLING.search(one.text)]

    def close(self) -> None:
        self._log.close()


def words_of(step: Step, wish: InstanceWish | None = None, force: bool = False) -> tuple[str, ...]:
    """What a person would type after kerf for a step.

    The pool is always given in all three kinds, because what is left out goes back to the host.
    """
    cpus = ",".join(map(str, sorted(step.cpus)))
    if step.action == "set_pool":
        sizes = ",".join(f"{size}@{node}" for node, size in sorted(step.nodes.items()))
        devices = ",".join(step.devices)
        return (
            "init",
            f"--cpus={cpus or 'none'}",
            f"--memory={sizes or 'none'}",
            f"--devices={devices or 'none'}",
        )
    options: list[str] = []
    command = step.action
    if step.action == "create":
        options += [f"--cpus={cpus}", f"--memory={step.memory}"]
        if step.node is not None:
            options.append(f"--numa-nodes={step.node}")
        if wish and wish.id is not None:
            options.append(f"--id={wish.id}")
    elif step.action == "set_cpus":
        command, options = "update", [f"--cpus={cpus}"]
    elif step.action == "set_memory":
        command, options = "update", [f"--memory={step.memory}"]
    elif step.action == "load" and wish and wish.kernel:
        options.append(f"--kernel={wish.kernel.path}")
        if wish.initrd:
            options.append(f"--initrd={wish.initrd.path}")
        if wish.cmdline:
            options.append(f"--cmdline={wish.cmdline}")
    elif step.action == "kill" and force:
        options.append("--force")
    return (command, step.name, *options)


@dataclass
class Kerf:
    """kerf 0.4 on this host."""

    path: str
    kernel: KernelFs
    calls: list[Done] = field(default_factory=list)
    _imported: Forked | None = None

    @classmethod
    def find(cls, path: str, kernel: KernelFs) -> Kerf:
        """The kerf at the path, or when that is the default and empty, the one in PATH."""
        if path == DEFAULT_KERF and not native(path).exists():
            path = shutil.which("kerf") or path
        return cls(path, kernel)

    def line(self, words: Sequence[str]) -> str:
        """As typed into a shell."""
        return shlex.join([self.path, *words])

    @property
    def commands(self) -> list[str]:
        return [done.cmd for done in self.calls]

    def reasons(self) -> list[str]:
        """Why this kerf cannot be used."""
        remedy = "install kerf 0.4 (role mkops.multikernel.host does)"
        version = self._installed_version()
        if version is None:
            try:
                done = self.run([self.path, "--version"], TIMEOUT)
            except OSError as error:
                return [f"kerf cannot be run from {self.path} ({error.strerror}): {remedy}"]
            words = done.stdout.split()
            if done.rc != 0 or not words:
                said = done.stderr.strip().splitlines() or [f"it ended with status {done.rc} and no message"]
                return [f"{self.path} --version failed ({said[-1]}): {remedy}"]
            version = words[-1]
        reason = kerf_reason(version)
        return [f"kerf {version} at {self.path} cannot be used ({reason}): {remedy}"] if reason else []

    def run(self, argv: Sequence[str], timeout: float) -> Done:
        """It holds the host's lock as long as it runs, and is never killed, or its own would stay behind."""
        return run(argv, timeout, inherit=True, kill=False)

    def _installed_version(self) -> str | None:
        """As the virtual environment of a kerf notes it: to ask kerf itself takes as long as a step."""
        tool = native(self.path)
        notes = [*tool.parent.parent.glob("lib/python3*/site-packages/kerf_multikernel-*.dist-info")]
        if len(notes) != 1 or not os.access(tool, os.X_OK) or tool.is_symlink():
            return None
        return notes[0].name.removesuffix(".dist-info").partition("-")[2]

    @contextlib.contextmanager
    def imported(self) -> Iterator[None]:
        """Meanwhile kerf is imported once for all calls, where it is installed as pip does it."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                self._imported = stack.enter_context(Forked(native(self.path)))
            try:
                yield
            finally:
                self._imported = None

    def call(self, words: Sequence[str], timeout: float = TIMEOUT) -> Done:
        done = self._call(words, timeout)
        if done.rc and _LOCK_BUSY in done.stderr and self._drop_stale_locks():
            done = self._call(words, timeout)
        return done

    def _call(self, words: Sequence[str], timeout: float) -> Done:
        argv = [self.path, *words]
        if self._imported and self._imported.alive:
            try:
                done = self._imported.run(words, timeout)
            except OSError as error:
                # It may have done its work before: that is not for this side to say, and never done twice.
                done = Done(tuple(argv), None, "", str(error))
        else:
            done = self.run(argv, timeout)
        self.calls.append(done)
        return done

    def create_with_devices(self, step: Step, number: int | None) -> Done:
        """What kerf create would do, which knows no virtio devices: the overlay is written here.

        kerf's own lock is held meanwhile, as kerf would.
        """
        new = self.kernel.paths.multikernel / "overlays" / "new"
        argv = ("write-overlay", step.name, str(new))
        lock = self.kernel.paths.kerf_locks[0]
        blob = create_overlay(step, number)
        try:
            with _held(lock, self._drop_stale_locks):
                write_overlay(new, blob)
            done = Done(argv, 0)
        except OSError as error:
            done = Done(argv, 1, "", f"{error.filename or new}: {error.strerror}")
        self.calls.append(done)
        return done

    def forget(self, name: str) -> None:
        """What kerf delete leaves behind of an instance that was loaded from a container image."""
        paths = self.kernel.paths
        mounted, extracted = paths.kerf_files(name)
        if mounted.is_dir():
            if str(mounted) in read_text(paths.at("/proc/mounts")).split():
                self.run(["umount", str(mounted)], TIMEOUT)
            with contextlib.suppress(OSError):
                mounted.rmdir()
        if extracted.is_dir():
            shutil.rmtree(extracted, ignore_errors=True)
        paths.record(name).unlink(missing_ok=True)
        self.kernel.notes.forget(name)

    def _drop_stale_locks(self) -> bool:
        """kerf's lock is a bare file without an owner: it is stale when no kerf runs."""
        if _kerf_runs(self.kernel.paths.at("/proc")):
            return False
        held = [lock for lock in self.kernel.paths.kerf_locks if lock.exists()]
        for lock in held:
            lock.unlink()
        return bool(held)


def write_overlay(path: Path, blob: bytes) -> None:
    """At once, as the kernel wants it. Raises OSError; what came of it, the transaction tells."""
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(descriptor, blob)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _held(lock: Path, drop_stale: Callable[[], bool]) -> Iterator[None]:
    """kerf's lock, which is a file that only one can make. Raises FileExistsError when another kerf works."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            break
        except FileExistsError:
            if drop_stale():
                continue
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            lock.unlink()


def _kerf_runs(proc: Path) -> bool:
    """A kerf process is Python with the kerf script, or kerf itself."""
    for path in proc.glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if any(os.path.basename(word) == b"kerf" for word in path.read_bytes().split(b"\0")[:2]):
                return True
    return False


class Attempt:
    """Watches one change of the kernel, and reports all that is known about it when it had no effect."""

    def __init__(self, kernel: KernelFs):
        self._kernel = kernel
        self._log = KernelLog(kernel.paths)
        self._known = kernel.transactions()

    def listen(self) -> None:
        """Keep what the kernel has said by now apart from what it says about reading it."""
        self._log.listen()

    def details(self, done: Done | None) -> dict[str, Any]:
        """What kerf said, and what the kernel made of it."""
        transactions = {
            f"tx_{number}": self._kernel.transaction(number)
            for number in sorted(self._kernel.transactions() - self._known)
        }
        return {
            **(done.details() if done else {}),
            "transactions": transactions,
            "kernel_log": self._log.lines(),
        }

    def failure(self, message: str, done: Done) -> KerfError:
        details = self.details(done)
        parts = [message]
        if complaint := done.stderr.strip().splitlines():
            # An error comes first and hints follow; a traceback ends with the error.
            parts.append(f"kerf: {complaint[-1 if complaint[0].startswith('Traceback') else 0]}")
        if self._log.reason:
            parts.append(f"kernel: {self._log.reason}")
        return KerfError("; ".join(parts), details)

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, *_error: object) -> None:
        self._log.close()


def wait_until(condition: Callable[[], bool], timeout: float, interval: float = 0.05) -> bool:
    """Poll, because the multikernel filesystem notifies nobody."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval)
    return True
