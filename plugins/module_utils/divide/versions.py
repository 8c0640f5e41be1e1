# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which kernels and which kerf this collection works with. docs/modules.md has the same table for people.

What a kernel can do is probed in what it shows; its version is not looked at. What a kerf can do shows
nowhere but in its version.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..common.size import PAGE_SIZE

DEFAULT_KERF = "/opt/mkops/kerf/bin/kerf"  # where the role host installs it
SERIES = "mkops,multikernel-1"  # root property "implementation" of the series in this collection


@dataclass(frozen=True)
class Interface:
    """What the kernel's control interface can do."""

    name: str
    resizes: bool  # CPUs and memory of an existing instance can be changed
    scatters: bool  # the memory of a new instance may come in several pieces
    tells_exit: bool  # instances/NAME has exit_reason, epoch and stats
    lends_devices: bool
    halves: bool = False  # those pieces are halves of what is wanted, to the page, not what is there
    longest_overlay: int | None = None  # bytes that it takes of one; None: any that kerf makes
    failed_load_spoils: bool = False  # an instance that could not be loaded once is of no more use


UPSTREAM = Interface("Multikernel Linux", True, True, False, True, True, PAGE_SIZE, True)
FIRST_SERIES = Interface("this collection's series, first form", False, False, False, False)
FULL_SERIES = Interface("this collection's series", True, True, True, False)


def probe_interface(implementation: str, has_granule: bool) -> Interface:
    """From the root of the kernel's device tree."""
    if implementation != SERIES:
        return UPSTREAM
    return FULL_SERIES if has_granule else FIRST_SERIES


# Version to the reason against it; None is supported.
KERF: dict[str, str | None] = {
    "0.3": "it starts instances with another command and cannot run commands in them",
    "0.4": None,
    "0.5": "it passes other flags when it loads a kernel, which kernels up to 7.0-mk4 refuse",
}


def kerf_reason(version: str) -> str | None:
    """Why this kerf cannot be used; None when it can."""
    series = ".".join(version.split(".")[:2])
    supported = ", ".join(known for known, reason in KERF.items() if reason is None)
    if series not in KERF:
        return f"only {supported} is supported"
    reason = KERF[series]
    return reason and f"only {supported} is supported, and {reason}"
