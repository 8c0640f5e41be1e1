# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the program writes: for a terminal, whatever somebody else has put into it."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from ..common.text import harmless

# Details of a failure: the key, and how people call it.
_DETAILS = {
    "steps": "done before that",
    "kernel_log": "the host's kernel said",
    "console": "its console said last",
}


def say(text: str) -> None:
    """A line for whoever has asked."""
    sys.stdout.write(f"{harmless(text)}\n")
    sys.stdout.flush()  # a journal has it at once


def complain(text: str) -> None:
    """A line about what is wrong, on standard error."""
    sys.stderr.write(f"{harmless(text)}\n")


def complain_of_all(title: str, reasons: Iterable[str]) -> None:
    """What is wrong, a line each."""
    complain(f"{title}:")
    for reason in reasons:
        complain(f"  {reason}")


def complain_of_failure(title: str, message: str, details: Mapping[str, Any]) -> None:
    """What has failed, and all that helps to see why."""
    complain(f"{title}: {message}")
    for key, heading in _DETAILS.items():
        if details.get(key):
            complain_of_all(heading, details[key])


def notify(*lines: str) -> None:
    """Tell systemd, where it has started this, how the service is: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect("\0" + address[1:] if address[0] == "@" else address)
        channel.sendall("\n".join(lines).encode())


def table(rows: Iterable[Iterable[str]], width: int | None = None) -> list[str]:
    """Lines of columns, each as wide as its widest word. width: columns of a terminal, where lines end."""
    cells = [[harmless(cell).replace("\n", " ").replace("\t", " ") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["  ".join(cell.ljust(size) for cell, size in zip(row, widths)).rstrip() for row in cells]
    if width is None:
        return lines
    return [line if len(line) <= width else f"{line[: max(width - 1, 0)]}…" for line in lines]
