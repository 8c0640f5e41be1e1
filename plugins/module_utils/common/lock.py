# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Locks between processes: one change of a host at a time, one build of a kernel at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import Failure

HOST_LOCK = "/run/mkops/host.lock"
TIMEOUT = 300  # seconds; longer than all that kerf may take
_POLL = 0.2  # seconds
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_RESTART = 300  # seconds that a restart may take to begin; then it does not come any more


@contextlib.contextmanager
def locked(
    path: Path,
    timeout: float | None = None,
    waiting: Callable[[], None] | None = None,
    inherit: bool = False,
) -> Iterator[int]:
    """Hold an exclusive flock on a file, which is made if it is not there; yields its descriptor.

    timeout: seconds to wait, None for as long as it takes, 0 to try once. waiting: called once if somebody
    else holds it. inherit: what is started meanwhile holds the lock as well, should this process be killed.
    Raises BlockingIOError when the time is up, OSError when the file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.set_inheritable(descriptor, inherit)
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if deadline is not None and time.monotonic() >= deadline:
                    raise
                if waiting:
                    waiting()
                    waiting = None
                time.sleep(_POLL)
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def host_lock(path: Path, timeout: float = TIMEOUT, restarting: bool = False) -> Iterator[None]:
    """The one lock of a host, held by whatever divides it or changes its kernels.

    A kerf that is called meanwhile holds it as well. Its directory is root's alone, so that nobody else can
    take it. restarting: also while the host is about to restart, for what only stops kernels. Raises Failure.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_directory(path.parent)
            stack.enter_context(locked(path, timeout, inherit=True))
        except BlockingIOError:
            raise Failure(
                f"{path} has been held by another run for more than {timeout:g} s: wait for it to end"
            ) from None
        except PermissionError as error:
            raise Failure(
                f"{path} cannot be locked ({error.strerror}): run as root (become: true)"
            ) from error
        except OSError as error:
            raise Failure(
                f"{path} cannot be locked ({error.strerror}): {path.parent} has to be a directory"
                " that root can write to"
            ) from error
        if restart_announced(path) and not restarting:
            raise Failure("the host is about to restart, to boot another kernel: run again when it is back")
        yield


def announce_restart(path: Path) -> None:
    """Nobody gets the host's lock any more in this boot: a restart was asked for, and takes a moment.

    To be called by who holds the lock, which ends with the process; an instance that was started after that
    could hold up the restart.
    """
    from .files import write_file  # what nearly all runs do without

    write_file(_announcement(path), f"{_boot_id()} {_uptime() + _RESTART:.0f}\n", mode=0o600, sync=False)


def withdraw_restart(path: Path) -> None:
    """It does not come."""
    _announcement(path).unlink(missing_ok=True)


def restart_announced(path: Path) -> bool:
    """Whether a restart is on its way; one that was announced in another boot, or did not come, is not."""
    try:
        boot_id, end = _announcement(path).read_text(encoding="utf-8").split()
        return boot_id == _boot_id() and _uptime() < float(end)
    except (OSError, ValueError):
        return False


def _announcement(path: Path) -> Path:
    return path.with_name("restart")


def _boot_id() -> str:
    return _BOOT_ID.read_text(encoding="utf-8").strip()


def _uptime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _check_directory(directory: Path) -> None:
    """Anybody could hold up the host for ever with a lock in a directory that they can write to."""
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.getuid()) or found.st_mode & 0o022:
        raise Failure(
            f"{directory} is not a directory that only root can write to: remove it, then run again"
        )
