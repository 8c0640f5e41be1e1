# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The console of an instance through /dev/mktty: the first line written selects it, then bytes flow."""

from __future__ import annotations

import os
import re
import select
import time
from collections.abc import Callable

from ..common.errors import Failure
from .kernelfs import Paths

_READ_SIZE = 65536
_KEPT = 1 << 20  # bytes to look for something in; an instance may talk without an end
_SETTLE = 0.1  # seconds of silence that end what was retained


class ConsoleError(Failure):
    """The console cannot be used, or did not say what was awaited; output is what it said."""

    def __init__(self, message: str, output: str = ""):
        super().__init__(message, {"output": output})

    @property
    def output(self) -> str:
        return str(self.details["output"])


def last_lines(text: str, count: int) -> list[str]:
    return text.replace("\r", "").splitlines()[-count:] if count else []


class Console:
    """An open console. What a kernel retains from before comes first; history() takes it, or drops it."""

    def __init__(self, paths: Paths, instance_id: int):
        try:
            self._fd = os.open(paths.console, os.O_RDWR | os.O_NONBLOCK)
        except OSError as error:
            raise ConsoleError(
                f"{paths.console} cannot be opened ({error.strerror}): the host's kernel needs CONFIG_MKTTY"
            ) from error
        try:
            os.write(self._fd, f"{instance_id}\n".encode())
        except OSError as error:
            os.close(self._fd)
            reason = f"{paths.console} refuses instance id {instance_id}: {error.strerror}"
            raise ConsoleError(reason) from error

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        """For select(2)."""
        return self._fd

    def history(self, limit: float = 2.0) -> str:
        """All that comes without a pause."""
        output = b""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline and (data := self.read(_SETTLE)):
            output += data
        return output.decode("utf-8", "replace")

    def send(self, line: str, timeout: float = 10) -> None:
        """Type a line."""
        self.write(f"{line}\n".encode("utf-8", "surrogateescape"), timeout)

    def write(self, rest: bytes, timeout: float = 10) -> None:
        """Type bytes as they are. timeout: seconds. Raises ConsoleError."""
        deadline = time.monotonic() + timeout
        while rest:
            select.select([], [self._fd], [], max(deadline - time.monotonic(), 0))
            if time.monotonic() > deadline:
                raise ConsoleError(f"the instance accepted no input within {timeout:g} s")
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                time.sleep(_SETTLE)  # its buffer is full; poll does not tell
            except OSError as error:
                raise ConsoleError(f"the console cannot be written to: {error.strerror}") from error

    def expect(
        self, wanted: re.Pattern[str], timeout: float, alive: Callable[[], bool] = lambda: True
    ) -> str:
        """Read until the pattern is found. Gives up early when the instance is not alive any more."""
        awaited = Awaited(self, wanted, timeout)
        while True:
            living = alive()  # asked before reading, so that the last words are still taken
            if (text := awaited.look(1.0, living)) is not None:
                return text

    def read(self, timeout: float) -> bytes:
        if not select.select([self._fd], [], [], timeout)[0]:
            return b""
        try:
            return os.read(self._fd, _READ_SIZE)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise ConsoleError(f"the console cannot be read: {error.strerror}") from error


class Awaited:
    """Something that a console is to say until a deadline; several can be looked at in turn."""

    def __init__(self, console: Console, wanted: re.Pattern[str], timeout: float, said: str = ""):
        self._console = console
        self._wanted = wanted
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._output = said.encode("utf-8", "replace")

    def look(self, patience: float, living: bool) -> str | None:
        """All output when it is there, None when not yet; ConsoleError when it will not come any more."""
        data = self._console.read(min(patience, max(self._deadline - time.monotonic(), 0)))
        self._output = (self._output + data)[-_KEPT:]
        text = self._output.decode("utf-8", "replace").replace("\r", "")
        if self._wanted.search(text):
            return text
        wanted = self._wanted.pattern
        if not data and not living:
            raise ConsoleError(f"the instance stopped before '{wanted}' appeared on its console", text)
        if time.monotonic() > self._deadline:
            raise ConsoleError(f"'{wanted}' did not appear on the console within {self._timeout:g} s", text)
        return None
