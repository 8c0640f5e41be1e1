# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One change of a host at a time, because kerf locks only some of its commands."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ._errors import Failure

TIMEOUT = 300  # seconds; longer than all that kerf may take


@contextlib.contextmanager
def host_lock(path: Path, timeout: float = TIMEOUT) -> Iterator[None]:
    """Held also by a kerf that is called meanwhile: should this process be killed, its kerf counts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as handle:
        os.set_inheritable(handle.fileno(), True)
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Failure(
                        f"{path} is held by another run for more than {timeout:g} s: wait for it to end"
                    ) from None
                time.sleep(0.2)
        yield
