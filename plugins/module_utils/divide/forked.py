# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run a Python command line tool many times and have it imported once.

Most of what a call of kerf costs is the import of its modules. A process that has done so forks for every
call: each runs in a process of its own, as from a shell, with its own arguments, output and return code.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..common.command import GRACE, Done, environment

# Runs under the tool's own Python, which has nothing of this collection. argv: -c, module, function.
# Reads a JSON list of arguments a line; answers with the process id, and later with what came of it.
_PARENT = r"""
import importlib, json, os, signal, sys, traceback
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
main = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])

def answer(**facts):
    print(json.dumps(facts), file=answers, flush=True)

def call(argv, out, err):
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    answers.close()
    sys.argv = argv
    try:
        sys.exit(main())
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1

answer(ready=True)
for line in sys.stdin:
    files = [os.memfd_create(name, 0) for name in ("stdout", "stderr")]
    pid = os.fork()
    if not pid:
        rc = 1
        try:
            rc = call(json.loads(line), *files)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(rc & 255)
    answer(pid=pid)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    said = []
    for descriptor in files:
        os.lseek(descriptor, 0, os.SEEK_SET)
        with os.fdopen(descriptor, "rb") as file:
            said.append(file.read().decode("utf-8", "replace"))
    answer(rc=status, stdout=said[0], stderr=said[1])
"""
_ENTRY = re.compile(r"^from ([\w.]+) import (\w+)$", re.MULTILINE)
_START_TIMEOUT = 60  # seconds for the import, on a slow machine


class Forked:
    """A tool that is imported; use as a context manager.

    Raises OSError where it cannot be run in this way: run it as it is, then.
    """

    def __init__(self, script: Path) -> None:
        """The tool as pip installs it: a script that imports one function and calls it."""
        text = script.read_text(encoding="utf-8", errors="replace")
        entry = _ENTRY.search(text)
        interpreter = text.split("\n", 1)[0]
        if not (interpreter.startswith("#!/") and " " not in interpreter and entry):
            raise OSError(f"{script} is not an entry point made by pip")
        self._script = str(script)
        self._process = subprocess.Popen(
            [interpreter[2:], "-c", _PARENT, entry[1], entry[2]],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            close_fds=False,  # it holds the host's lock as long as it runs
        )
        self._rest = b""
        try:
            ready = self._answer(_START_TIMEOUT)
        except OSError:
            ready = None
        if ready is None:
            self.close()
            raise OSError(f"{script} cannot be imported")

    def run(self, words: Sequence[str], timeout: float) -> Done:
        """As command.run() does it; one that takes too long gets SIGTERM and never SIGKILL.

        Raises OSError when the process has gone.
        """
        argv = (self._script, *words)
        if not self.alive or self._process.stdin is None:
            raise OSError(f"{self._script} has ended unexpectedly")
        self._process.stdin.write(json.dumps(argv).encode() + b"\n")
        self._process.stdin.flush()
        begun = self._answer(timeout)
        ended = self._answer(timeout) if begun else None
        late = "" if ended else f"no answer within {timeout:g} s"
        if begun and ended is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(begun["pid"], signal.SIGTERM)
            ended = self._answer(GRACE)
        if ended is None:
            # What still runs must not be taken for the next one's answer.
            self.close()
            return Done(argv, None, "", late)
        stderr = "\n".join(filter(None, [ended["stderr"], late]))
        return Done(argv, None if late else ended["rc"], ended["stdout"], stderr)

    def _answer(self, timeout: float) -> dict[str, Any] | None:
        """The next one, or None when it is late. Raises OSError when there will be none."""
        stdout = self._process.stdout
        deadline = time.monotonic() + timeout
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or stdout is None or not select.select([stdout], [], [], left)[0]:
                return None
            data = os.read(stdout.fileno(), 1 << 16)
            if not data:
                self.close()
                raise OSError(f"{self._script} has ended unexpectedly")
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    @property
    def alive(self) -> bool:
        return self._process.poll() is None and not (
            self._process.stdin is None or self._process.stdin.closed
        )

    def close(self) -> None:
        """It ends with its input; a call that still runs goes on, and nobody waits for it."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE)

    def __enter__(self) -> Forked:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()
