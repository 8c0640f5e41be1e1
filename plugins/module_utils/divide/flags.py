# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether the kernel reads the flags of kexec_file_load(2) as kerf 0.4 writes them.

There they are 0x10 and, above it, the instance's id. For kernels that read them otherwise, 0x10 and the
lowest bit of the id are flags of an ordinary kexec: loading instance 1 would load the host's own next kernel.
So that is asked before anything is changed, in a way that can neither load nor unload anything: with no file,
for an id that no instance has.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import time

from .machine import Machine
from .versions import UPSTREAM

_SYSCALLS = {"x86_64": 320, "aarch64": 294}
_NO_INITRAMFS, _MULTIKERNEL, _SHIFT = 0x4, 0x10, 5
_NOBODY = 2047  # kerf gives ids up to 511
_LAST = 511
_TRIES = 20  # the kernel's lock around loading is shared with others


def kexec_file_load(flags: int) -> int:
    """The errno of a load without files, which never succeeds."""
    number = _SYSCALLS.get(platform.machine())
    if number is None:
        return errno.ENOSYS
    call = ctypes.CDLL(None, use_errno=True).syscall
    arguments = (ctypes.c_long(value) for value in (number, -1, -1, 0, 0, flags))
    return ctypes.get_errno() if call(*arguments) == -1 else 0


def _ask(flags: int) -> int:
    for _try in range(_TRIES):
        answer = kexec_file_load(flags | _NO_INITRAMFS)
        if answer != errno.EBUSY:
            return answer
        time.sleep(0.1)
    return errno.EBUSY


def layout() -> tuple[bool | None, int]:
    """Whether it is that of kerf 0.4; None with an errno when the kernel does not let it be told."""
    answer = _ask(_MULTIKERNEL | _NOBODY << _SHIFT)
    if answer == errno.ENOENT:
        return True, 0  # it looked for the instance
    if answer not in (errno.EINVAL, errno.EBADF):
        return None, answer
    # This collection's series knows ids up to 511 only, and reads files first. Without 0x10 it takes no id.
    inside = _ask(_MULTIKERNEL | _LAST << _SHIFT) == errno.EBADF
    return inside and _ask(_LAST << _SHIFT) == errno.EINVAL, 0


def pairs(machine: Machine) -> bool | None:
    """As info tells it; None when it cannot be told."""
    if not machine.supported:
        return False
    if machine.interface != UPSTREAM and machine.mounted:
        return True
    return layout()[0] if machine.privileged else None


def flag_reasons(machine: Machine) -> list[str]:
    """Why kerf 0.4 must not load anything on this kernel."""
    if machine.interface != UPSTREAM or machine.kexec_disabled:
        return []  # known, or nothing will be loaded anyway
    is_known, answer = layout()
    if is_known:
        return []
    if is_known is None:
        return [
            f"kernel {machine.release} does not tell whether it accepts kexec_file_load(2) from kerf 0.4"
            f" ({os.strerror(answer)}): allow that system call (root, no seccomp filter, CONFIG_KEXEC_FILE=y)"
        ]
    return [
        f"kernel {machine.release} expects other flags of kexec_file_load(2) than kerf 0.4 passes, and could"
        " mistake an instance's kernel for the host's next one: boot a kernel that goes with kerf 0.4, such"
        " as Multikernel Linux 7.0-mk4 or the one that role mkops.multikernel.kernel builds"
    ]
