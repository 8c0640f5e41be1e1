# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a kernel says of live updates: whether another host kernel can take over what it has lent. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

LIVE_UPDATE = "/sys/fs/multikernel/live_update"
# Its states: nobody has asked for a handover; the next kernel that kexec loads gets one; it has one; it has
# one that is not of now any more.
OFF, ARMED, LOADED, STALE = "off", "armed", "loaded", "stale"
_NUMBERS = ("generation", "adopted", "lost")


@dataclass(frozen=True)
class LiveUpdate:
    """The file of a kernel that can do this."""

    state: str
    generation: int = 0  # live updates that the pool has lived through; 0 after a start by the firmware
    adopted: int = 0  # instances that this kernel has taken over,
    lost: int = 0  # and that it could not
    reason: str = ""  # why there cannot be one now

    @property
    def possible(self) -> bool:
        return not self.reason


def parse_live_update(text: str) -> LiveUpdate | None:
    """Lines of a word and what it says; those of a later kernel are left out. None: it is no such file."""
    found = {}
    for line in text.splitlines():
        key, _space, value = line.strip().partition(" ")
        found[key] = value.strip()
    if not found.get("state"):
        return None
    numbers = {name: int(found[name]) for name in _NUMBERS if found.get(name, "").isdecimal()}
    return LiveUpdate(state=found["state"], reason=found.get("reason", ""), **numbers)
