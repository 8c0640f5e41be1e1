# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only caller of kerf: argument lists, locks, time-outs. Whether a call worked, the kernel tells."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ._kernelfs import KernelFs, Paths

DEFAULT_KERF = "/opt/mkops/kerf/bin/kerf"
SUPPORTED = re.compile(r"0\.4\.\d+")

# Seconds. The kernel itself may wait 10 for a spawn to answer and 30 for it to halt; taking gigabytes from
# a busy host can take a minute.
TIMEOUT = 120
HALT_TIMEOUT = 60
LOCK_TIMEOUT = 300

_LOCK_BUSY = "Could not acquire lock"


class KerfError(Exception):
    """A call without the effect it should have had. details go into the module's result."""

    def __init__(self, message: str, details: Mapping | None = None):
        super().__init__(message)
        self.details = dict(details or {})


@dataclass(frozen=True)
class Outcome:
    """What a call of kerf said; rc None when it was stopped for taking too long."""

    cmd: str
    rc: int | None
    stdout: str = ""
    stderr: str = ""


def run_argv(argv: Sequence[str], timeout: float) -> Outcome:
    """Run a command without a shell and without input, in a locale that kerf can print in."""
    env = {**os.environ, "LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-8"}
    cmd = shlex.join(argv)
    process = subprocess.Popen(
        argv,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout)
        return Outcome(cmd, process.returncode, stdout, stderr)
    except subprocess.TimeoutExpired:
        process.terminate()  # never SIGKILL: kerf would leave its lock behind
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=5)
        return Outcome(cmd, None, stderr=f"no answer within {timeout:g} s")


@contextlib.contextmanager
def host_lock(paths: Paths, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
    """One change of a host at a time: kerf locks only some of its commands."""
    paths.lock.parent.mkdir(parents=True, exist_ok=True)
    with paths.lock.open("w", encoding="utf-8") as handle:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise KerfError(
                        f"{paths.lock} is held by another run for more than {timeout:g} s: wait for it to end"
                    ) from None
                time.sleep(0.2)
        yield


class KernelLog:
    """The kernel's messages since this object was made: only they tell why a transaction failed."""

    def __init__(self, paths: Paths):
        self._fd = None
        with contextlib.suppress(OSError):
            self._fd = os.open(paths.kernel_log, os.O_RDONLY | os.O_NONBLOCK)
            os.lseek(self._fd, 0, os.SEEK_END)

    def lines(self) -> list[str]:
        found: list[str] = []
        while self._fd is not None:
            try:
                records = os.read(self._fd, 8192)
            except BrokenPipeError:
                continue  # messages were overwritten; go on with the oldest
            except OSError:
                break
            if not records:
                break
            for line in records.decode("utf-8", "replace").splitlines():
                if ";" in line and not line.startswith(" "):
                    found.append(line.split(";", 1)[1])
        return found[-20:]

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


@dataclass
class Kerf:
    """kerf 0.4 on this host."""

    path: str
    kernel: KernelFs
    run: Callable[[Sequence[str], float], Outcome] = run_argv
    outcomes: list[Outcome] = field(default_factory=list)

    @classmethod
    def find(cls, path: str, kernel: KernelFs) -> Kerf:
        """The kerf at the path, or when that is the default and empty, the one in PATH."""
        if path == DEFAULT_KERF and not Path(path).exists():
            path = shutil.which("kerf") or path
        return cls(path, kernel, run_argv)

    @property
    def commands(self) -> list[str]:
        return [outcome.cmd for outcome in self.outcomes]

    def reasons(self) -> list[str]:
        """Why this kerf cannot be used."""
        remedy = "install kerf 0.4 (role mkops.multikernel.host does)"
        try:
            outcome = self.run([self.path, "--version"], TIMEOUT)
        except OSError as error:
            return [f"kerf cannot be run from {self.path} ({error.strerror}): {remedy}"]
        words = outcome.stdout.split()
        if outcome.rc != 0 or not words:
            return [f"{self.path} --version failed ({(outcome.stderr.strip() or outcome.rc)}): {remedy}"]
        if not SUPPORTED.fullmatch(words[-1]):
            return [f"kerf {words[-1]} at {self.path} is not supported, only 0.4: {remedy}"]
        return []

    def init(self, cpus: Sequence[int], memory: Mapping[int, int], devices: Sequence[str]) -> Outcome:
        """The whole wanted pool, always in all three kinds: what is left out would go back to the host."""
        sizes = [f"{size}@{node}" for node, size in sorted(memory.items()) if size]
        return self._call(
            "init",
            f"--cpus={','.join(map(str, cpus)) or 'none'}",
            f"--memory={','.join(sizes) or 'none'}",
            f"--devices={','.join(devices) or 'none'}",
        )

    def create(self, name: str, cpus: Sequence[int], memory: int, instance_id: int | None = None) -> Outcome:
        options = [f"--cpus={','.join(map(str, cpus))}", f"--memory={memory}"]
        if instance_id is not None:
            options.append(f"--id={instance_id}")
        return self._call("create", name, *options)

    def load(self, name: str, kernel: str, initrd: str | None, cmdline: str) -> Outcome:
        options = [f"--kernel={kernel}"]
        if initrd:
            options.append(f"--initrd={initrd}")
        if cmdline:
            options.append(f"--cmdline={cmdline}")
        return self._call("load", name, *options)

    def start(self, name: str) -> Outcome:
        return self._call("start", name)

    def kill(self, name: str, force: bool, timeout: float = HALT_TIMEOUT) -> Outcome:
        return self._call("kill", name, *(["--force"] if force else []), timeout=timeout)

    def unload(self, name: str) -> Outcome:
        return self._call("unload", name)

    def delete(self, name: str) -> Outcome:
        return self._call("delete", name)

    def _call(self, *words: str, timeout: float = TIMEOUT) -> Outcome:
        outcome = self.run([self.path, *words], timeout)
        self.outcomes.append(outcome)
        if outcome.rc and _LOCK_BUSY in outcome.stderr and self._drop_stale_locks():
            outcome = self.run([self.path, *words], timeout)
            self.outcomes.append(outcome)
        return outcome

    def _drop_stale_locks(self) -> bool:
        """kerf's lock is a bare file without an owner: it is stale when no kerf runs."""
        if _kerf_runs(self.kernel.paths.at("/proc")):
            return False
        held = [lock for lock in self.kernel.paths.kerf_locks if lock.exists()]
        for lock in held:
            lock.unlink()
        return bool(held)


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
        self._known = set(kernel.transactions())

    def details(self, outcome: Outcome) -> dict:
        """What kerf said, and what the kernel made of it."""
        transactions = {
            f"tx_{number}": status
            for number, status in sorted(self._kernel.transactions().items())
            if number not in self._known
        }
        return {**asdict(outcome), "transactions": transactions, "kernel_log": self._log.lines()}

    def failure(self, message: str, outcome: Outcome) -> KerfError:
        details = self.details(outcome)
        parts = [message]
        if complaint := outcome.stderr.strip().splitlines():
            # An error comes first and hints follow; a traceback ends with the error.
            parts.append(f"kerf: {complaint[-1 if complaint[0].startswith('Traceback') else 0]}")
        if details["kernel_log"]:
            parts.append(f"kernel: {details['kernel_log'][-1]}")
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
