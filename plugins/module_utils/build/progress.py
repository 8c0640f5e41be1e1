# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The progress of a build, for whoever watches."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from ..common.command import STOP_SIGNALS
from ..common.files import write_file


@dataclass
class Progress:
    """What is told to whoever watches, if anybody does; the file is replaced as a whole every time."""

    path: Path | None
    stage: str = "start"
    done: int = 0
    total: int = 0
    detail: str = ""
    state: str = "running"
    started: float = field(default_factory=time.time)
    _closing: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Progress:
        self.write()
        # A watcher takes a file that no longer changes for a dead build.
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_args: object) -> None:
        self._closing.set()
        if self._thread:
            self._thread.join()
        self.state = "failed" if kind else "done"
        self.write()

    def enter(self, stage: str, detail: str = "") -> None:
        self.stage, self.detail, self.done, self.total = stage, detail, 0, 0
        self.write()

    def _tick(self) -> None:
        # Left to the main thread, which holds them back at times.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        while not self._closing.wait(1):
            self.write()

    def write(self) -> None:
        if not self.path:
            return
        facts = {
            "state": self.state,
            "stage": self.stage,
            "done": self.done,
            "total": self.total,
            "detail": self.detail,
            "seconds": round(time.time() - self.started, 1),
            "pid": os.getpid(),
        }
        # A full disk is for the build to find out, which can say so.
        with contextlib.suppress(OSError):
            write_file(self.path, json.dumps(facts), sync=False)
