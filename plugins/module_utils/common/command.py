# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one place that runs programs: argument lists, no shell, a fixed locale, and no input unless given."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .errors import Failure
from .files import encoded

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LOCALE = {"LC_ALL": "C.UTF-8", "LANGUAGE": "C", "PYTHONIOENCODING": "utf-8"}
GRACE = 5  # seconds between SIGTERM and SIGKILL
ANY = range(-64, 256)  # return codes: all of them
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def environment() -> dict[str, str]:
    """This process's, in a locale that every program can print in and whose messages are known."""
    return {**os.environ, **_LOCALE}


@dataclass(frozen=True)
class Done:
    """What a program said; rc is None when it was stopped for taking too long, negative for a signal."""

    argv: tuple[str, ...]
    rc: int | None
    stdout: str = ""
    stderr: str = ""

    @property
    def cmd(self) -> str:
        """As typed into a shell."""
        return shlex.join(self.argv)

    def details(self, longest: int = 4000) -> dict[str, object]:
        """For a module's result."""
        return {
            "cmd": list(self.argv),
            "rc": self.rc,
            "stdout": self.stdout[-longest:],
            "stderr": self.stderr[-longest:],
        }


def run(
    argv: Sequence[str | Path],
    timeout: float | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | IO[bytes] | None = None,
    inherit: bool = False,
    kill: bool = True,
) -> Done:
    """Run a program to its end.

    timeout: seconds; then it gets SIGTERM and, if kill, SIGKILL 5 s later. env: instead of this process's
    environment and locale. stdin: text, or a file or pipe. inherit: it inherits the locks held here.
    Raises OSError if it cannot be started.
    """
    words = tuple(map(str, argv))
    text = stdin if isinstance(stdin, str) else None
    source = subprocess.PIPE if isinstance(stdin, str) else stdin or subprocess.DEVNULL
    process = subprocess.Popen(
        _encoded(argv),
        cwd=cwd,
        env=environment() if env is None else dict(env),
        stdin=source,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        close_fds=not inherit,
        encoding="utf-8",
        errors="replace",
    )
    try:
        stdout, stderr = process.communicate(text, timeout)
    except subprocess.TimeoutExpired:
        stdout, stderr = _stop(process, kill)
        late = f"no answer within {timeout:g} s"
        return Done(words, None, stdout, "\n".join(filter(None, [stderr, late])))
    except BaseException:
        _stop(process, kill)
        raise
    return Done(words, process.returncode, stdout, stderr)


def _encoded(argv: Sequence[str | Path]) -> list[bytes]:
    """Text is UTF-8 whatever the locale is; a Path has the bytes of a name in the locale's way."""
    return [os.fsencode(word) if isinstance(word, Path) else encoded(word) for word in argv]


def _stop(process: subprocess.Popen[str], kill: bool) -> tuple[str, str]:
    process.terminate()
    try:
        return process.communicate(timeout=GRACE)
    except subprocess.TimeoutExpired:
        if kill:
            process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=GRACE)
    return "", ""


def must(
    argv: Sequence[str | Path],
    purpose: str,
    ok: Collection[int] = (0,),
    causes: Callable[[str], Sequence[str]] | None = None,
    timeout: float | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | IO[bytes] | None = None,
    inherit: bool = False,
) -> Done:
    """Run a program that has to succeed, or raise Failure, which says what it was for and why it did not.

    purpose: continues "cannot ...". ok: return codes that count as success. causes: finds the lines that
    matter in what it said; by default the last three.
    """
    name = str(argv[0])
    try:
        done = run(argv, timeout, cwd, env, stdin, inherit)
    except FileNotFoundError:
        raise Failure(
            f"cannot {purpose}: {name} is not installed on this host; install it", cmd=list(map(str, argv))
        ) from None
    except OSError as error:
        raise Failure(
            f"cannot {purpose}: {name} cannot be run: {error.strerror}", cmd=list(map(str, argv))
        ) from error
    if done.rc is None:
        raise Failure(f"cannot {purpose}: {name} did not finish within {timeout:.0f} s", done.details())
    if done.rc not in ok:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        lines = causes(done.stderr + done.stdout) if causes else said
        raise Failure(
            f"cannot {purpose}: {name} ended with status {done.rc}: {' | '.join(lines)}", done.details()
        )
    return done


@contextlib.contextmanager
def stream(
    argv: Sequence[str | Path],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    inherit: bool = False,
    stdin: IO[bytes] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """A program whose lines, of standard output and error, are read from its stdout as they come.

    It ends, with all that it started, when the body is left by an exception.
    """
    said: dict[str, Any] = {"stderr": subprocess.STDOUT, "encoding": "utf-8", "errors": "replace"}
    said |= {} if stdin is None else {"stdin": stdin}
    env = environment() if env is None else dict(env)
    with _group(argv, cwd=cwd, env=env, close_fds=not inherit, **said) as process:
        yield process


@contextlib.contextmanager
def bytes_of(
    argv: Sequence[str | Path], stdin: IO[bytes] | None = None, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A program whose stdout is read as bytes. Whoever does not read to the end leaves it a broken pipe."""
    given = subprocess.DEVNULL if stdin is None else stdin
    env = environment() if env is None else dict(env)
    with _group(argv, env=env, stdin=given, stderr=subprocess.DEVNULL) as process:
        yield process


@contextlib.contextmanager
def _group(argv: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    # A signal that came before the process is known here would leave it behind: hold it back until then.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, **options}
    try:
        with subprocess.Popen(
            _encoded(argv),
            start_new_session=True,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, mask),  # noqa: PLW1509
            **options,
        ) as process:
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                yield process
            except BaseException:
                _end_group(process)
                raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _end_group(process: subprocess.Popen[Any]) -> None:
    """End a program and all that it started."""
    for signum, patience in ((signal.SIGTERM, 2 * GRACE), (signal.SIGKILL, GRACE)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            return


def detach(argv: Sequence[str | Path]) -> None:
    """Start a program that nobody waits for, and that outlives this process."""
    nothing = subprocess.DEVNULL
    subprocess.Popen(_encoded(argv), stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True)
