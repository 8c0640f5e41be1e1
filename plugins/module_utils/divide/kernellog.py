# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only reader of the host's kernel log, /dev/kmsg: see Documentation/ABI/testing/dev-kmsg."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from .kernelfs import Paths

WARNING = 4  # level of messages; smaller is worse


@dataclass(frozen=True)
class Record:
    """A message. time: seconds on the clock of the log."""

    level: int
    time: float
    text: str


class Records:
    """What the kernel logs since this object was made, or all that it keeps; nothing where it is not read."""

    def __init__(self, paths: Paths, since_boot: bool = False):
        self._fd: int | None = None
        with contextlib.suppress(OSError):
            self._fd = os.open(paths.kernel_log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            if not since_boot:
                os.lseek(self._fd, 0, os.SEEK_END)

    def new(self) -> Iterator[Record]:
        """What has come since the last time."""
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
                head, semicolon, text = line.partition(";")
                fields = head.split(",")
                if semicolon and len(fields) > 2 and fields[0].isdecimal() and fields[2].isdecimal():
                    yield Record(int(fields[0]) & 7, int(fields[2]) / 1e6, text)
                # All else belongs to the line before.

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class Halts:
    """Whether somebody has stopped an instance: on whose wish one has ended, only the kernel's log tells."""

    def __init__(self, log: Records, instance_id: int):
        self._log = log
        words = (
            "instance {0} is now active",
            "(?P<halt>instance {0} halted .graceful.|Force halting multikernel instance {0}$)",
        )
        self._line = re.compile("|".join(words).format(instance_id))
        self._seen = False

    def seen(self) -> bool:
        """Since its last start, as far as the log was read on."""
        for record in self._log.new():
            if match := self._line.search(record.text):
                self._seen = match["halt"] is not None
        return self._seen
