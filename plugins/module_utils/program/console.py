# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""mkops console: what an instance says, and what is typed to it."""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import sys
import termios
from collections.abc import Callable, Iterator

from ..common.errors import Refused
from ..common.text import harmless
from ..divide.console import Console
from ..divide.kernelfs import KernelFs, Paths
from ..divide.machine import ACTIVE, LOADED, absence_reasons, environment_reasons
from .output import complain

LEAVE = b"\x1d"  # Ctrl-]
_LOOK = 1.0  # seconds without output after which is asked whether the instance still runs
_INPUT = 1024  # bytes


def console(paths: Paths, name: str, raw: bool, follow: bool, read_only: bool) -> None:
    """Print what an instance has said, and go on until it ends or somebody leaves.

    raw: as the instance writes it; otherwise nothing in it can steer the terminal. follow: otherwise only
    what was retained. read_only: nothing is typed; nor is it where standard input is no terminal.
    """
    kernel = KernelFs(paths)
    machine = kernel.read()
    reasons = environment_reasons(machine) or absence_reasons(machine, name)
    if not reasons and machine.instances[name].status not in (LOADED, ACTIVE):
        reasons.append(f"instance {name} is {machine.instances[name].status}, and has printed nothing")
    if reasons:
        raise Refused(*reasons)
    with Console(paths, machine.instances[name].id) as device, contextlib.ExitStack() as stack:
        if not follow:
            printer(raw)(device.history().encode())
            return
        keyboard = None
        if not read_only and sys.stdin.isatty():
            complain(f"The console of {name}; Ctrl-] leaves it.")
            keyboard = stack.enter_context(_keys(sys.stdin.fileno()))
        converse(device, keyboard, printer(raw), lambda: kernel.status(name) == ACTIVE)
    state = kernel.status(name) or "absent"
    if state != ACTIVE:
        reason = kernel.exit_reason(name)
        complain(f"instance {name} is {state}{f' ({reason})' if reason else ''}")


def converse(
    device: Console, keyboard: int | None, show: Callable[[bytes], None], alive: Callable[[], bool]
) -> None:
    """Both ways, until the instance has ended and said all, or the key to leave comes."""
    sources: list[Console | int] = [device, *([] if keyboard is None else [keyboard])]
    while True:
        ready = select.select(sources, [], [], _LOOK)[0]
        if device in ready and (data := device.read(0)):
            show(data)
            continue
        if keyboard in ready and keyboard is not None:
            typed, found, _rest = os.read(keyboard, _INPUT).partition(LEAVE)
            if typed:
                device.write(typed)
            if found or not typed:
                return
        elif not alive():
            while data := device.read(0):
                show(data)
            return


def printer(raw: bool) -> Callable[[bytes], None]:
    """What writes output as it comes, cut anywhere."""
    if raw:
        return _write
    decode = codecs.getincrementaldecoder("utf-8")("backslashreplace").decode

    def show(data: bytes) -> None:
        _write(harmless(decode(data)).encode())

    return show


def _write(data: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


@contextlib.contextmanager
def _keys(terminal: int) -> Iterator[int]:
    """Each key as it is pressed, Ctrl-C as well: it is for the instance."""
    before = termios.tcgetattr(terminal)
    mode = termios.tcgetattr(terminal)
    mode[0] &= ~(termios.ICRNL | termios.IXON)
    mode[3] &= ~(termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN)
    mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
    try:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, mode)
        yield terminal
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
