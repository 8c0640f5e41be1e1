# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the next kernel of this host is told of instances that run on while it boots.

The kernel hands over the instances themselves. What this collection has noted of them is below /run, which is
gone with the boot, so it is written to a disk before, and counts once: for the kernel that comes right after
this one by a live update, and for the same run of the same instance.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

from ..common.files import read_record, remove, write_file
from .kernelfs import KernelFs
from .witness import now

_WORDS = ("boot_id",)  # of a note, what is of its boot alone


def hand_over(kernel: KernelFs, name: str) -> None:
    """Have all that is noted of an instance outlast this boot. Raises OSError."""
    live = kernel.live_update
    path = kernel.paths.handover / f"{name}.json"
    if live is None:
        return
    note = {key: value for key, value in kernel.notes.read(name).items() if key not in _WORDS}
    told = {
        "generation": live.generation,
        "id": kernel.id(name),
        "epoch": kernel.epoch(name),
        "note": note,
        "console": read_record(kernel.paths.consoles / f"{name}.json", length=int, tail=str) or {},
        "left": now(),
    }
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(path, json.dumps(told), mode=0o600)


def take_over(kernel: KernelFs) -> list[str]:
    """Go on with what the last kernel's notes say, of those that were adopted; their names.

    It can be called again and again: what was told is gone then, whether it counted or not.
    """
    live = kernel.live_update
    taken = []
    for path in sorted(kernel.paths.handover.glob("*.json")):
        told = read_record(path, generation=int, id=int, note=dict, console=dict)
        name = path.stem
        same = (
            told is not None
            and live is not None
            and told["generation"] + 1 == live.generation
            and (told["id"], told.get("epoch")) == (kernel.id(name), kernel.epoch(name))
        )
        if same and told is not None:
            _take(kernel, name, told)
            taken.append(name)
        with contextlib.suppress(OSError):
            remove(path)
    return taken


def _take(kernel: KernelFs, name: str, told: dict[str, Any]) -> None:
    left = told.get("left")
    kernel.notes.change(name, **told["note"], **({"left": left} if isinstance(left, float) else {}))
    if told["console"]:
        place = kernel.paths.consoles / f"{name}.json"
        with contextlib.suppress(OSError):  # then its console is recorded from its beginning
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            which = {"boot_id": kernel.boot_id, "id": told["id"]}
            write_file(place, json.dumps({**told["console"], **which}), mode=0o600, sync=False)
