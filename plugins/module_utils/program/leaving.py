# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether the host goes down for a kernel that takes its instances over: then nobody stops them."""

from __future__ import annotations

from ..common.command import run
from ..common.live import LOADED
from ..divide.handover import hand_over
from ..divide.kernelfs import KernelFs, Paths
from .output import complain

_TARGET = "kexec.target"  # of systemd, for `systemctl kexec`


def is_left_running(paths: Paths) -> bool:
    """A kernel with the handover is loaded, and systemd is about to boot it.

    Either alone says nothing: somebody may stop an instance before, and a restart by the firmware ends all of
    them. Where systemd cannot be asked they are stopped, and what is loaded is not of now any more then.
    """
    live = KernelFs(paths).live_update
    return live is not None and live.state == LOADED and _boots_by_kexec()


def _boots_by_kexec() -> bool:
    try:
        done = run(["systemctl", "list-jobs", "--plain", "--no-legend"], timeout=60)
    except OSError:
        return False
    jobs = (line.split() for line in done.stdout.splitlines())
    return done.rc == 0 and any(job[1:3] == [_TARGET, "start"] for job in jobs)


def leave(paths: Paths, name: str) -> None:
    """What is noted of an instance goes on with it. Without that it runs on as well."""
    try:
        hand_over(KernelFs(paths), name)
    except OSError as error:
        complain(f"{name}: what is noted of it is not handed over: {error}")
