# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether one kernel can take over from another while instances run on: what is known of that before. No I/O.

The running kernel loads the next one by kexec_file_load(2), with a handover of all that it has lent, and the
next one adopts that. An image says by a mark which handovers it adopts.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ..common.live import LIVE_UPDATE, LiveUpdate

# Documentation/arch/x86/boot.rst: the setup header, and what is beside it
_SETUP_SECTS, _HEADER, _VERSION, _INFO_OFFSET = 0x1F1, 0x202, 0x206, 0x268
_SECTOR, _OLD_SECTS = 512, 4
_WITH_INFO = 0x020F  # the first version of the header that has kernel_info
_INFO = struct.Struct("<4sII")  # LToP, size, size with what follows
_CHUNK = struct.Struct("<4sI")
_RANGE = struct.Struct("<II")
_INFO_MAGIC, _MARK = b"LToP", b"MKLU"
_LAST_OPTIONAL = (6, 16)  # the last kernel that can be built without page tables of five levels, surely
# That of Debian 12 has them; systemd makes units of them.
SCRIPTS = ("kexec", "kexec-load")
MASK = "run systemctl mask kexec.service kexec-load.service (role host: host_live_update)"
_LONGEST_INFO = 1 << 20  # more is no list of chunks


@dataclass(frozen=True)
class Marker:
    """Versions of the handover that an image can adopt."""

    lowest: int
    highest: int

    def __str__(self) -> str:
        return str(self.lowest) if self.lowest == self.highest else f"{self.lowest} to {self.highest}"


def marker(image: bytes) -> Marker | None:
    """The mark of a bzImage; None when it has none, or is none that could be read.

    It is one of the chunks after the fixed part of kernel_info, each of which has a name and its own size.
    """
    head = image[: _INFO_OFFSET + 4]
    if len(head) < _INFO_OFFSET + 4 or head[_HEADER : _HEADER + 4] != b"HdrS":
        return None
    if struct.unpack_from("<H", head, _VERSION)[0] < _WITH_INFO:
        return None
    begin = ((head[_SETUP_SECTS] or _OLD_SECTS) + 1) * _SECTOR
    begin += struct.unpack_from("<I", head, _INFO_OFFSET)[0]
    if begin + _INFO.size > len(image):
        return None
    magic, size, total = _INFO.unpack_from(image, begin)
    end = begin + total
    if magic != _INFO_MAGIC or not _INFO.size <= size <= total <= _LONGEST_INFO or end > len(image):
        return None
    return _among(image, begin + size, end)


def _among(image: bytes, at: int, end: int) -> Marker | None:
    """The mark among the chunks from here to there."""
    while at + _CHUNK.size <= end:
        name, length = _CHUNK.unpack_from(image, at)
        if not _CHUNK.size <= length <= end - at:
            return None
        if name == _MARK:
            if length < _CHUNK.size + _RANGE.size:
                return None
            lowest, highest = _RANGE.unpack_from(image, at + _CHUNK.size)
            return Marker(lowest, highest) if 0 < lowest <= highest else None
        at += length
    return None


@dataclass(frozen=True)
class Means:
    """What a host has for live updates."""

    update: LiveUpdate | None = None  # None: the running kernel has no such thing
    tool: bool = False  # kexec, the program
    disabled: bool = False  # kernel.kexec_load_disabled
    lockdown: str = "none"
    scripts: tuple[str, ...] = ()  # of kexec-tools, which boot by kexec while services still stop
    takes_reboots: bool = False  # these load a kernel at any restart, and pass the boot loader by
    markers: Mapping[str, Marker | None] = field(default_factory=dict)  # release with an image: its mark
    flags: frozenset[str] = frozenset()  # of the CPUs


def five_levels(
    release: str,
    options: Mapping[str, str] | None,
    words: Collection[str],
    flags: Collection[str],
    running: bool,
) -> bool | None:
    """Whether a kernel has page tables of five levels; None when that cannot be told.

    options: of its configuration, None if that is not known. flags: of the CPUs, as the running kernel shows
    them, which hides this one when it does not use it.
    """
    if "no5lvl" in words:
        return False
    if options is None:
        return None
    if options.get("X86_5LEVEL") != "y":
        # Later kernels always have it, and no such option; the one in between is not known.
        version = tuple(map(int, re.findall(r"\d+", release)[:2]))
        if version < (7, 0):
            return False if version <= _LAST_OPTIONAL else None
    if "la57" in flags:
        return True
    # Another kernel may use what the running one was told to hide.
    return False if running else None


def live_reasons(
    means: Means, running: str, release: str, levels: tuple[bool | None, bool | None] = (None, None)
) -> list[str]:
    """Everything that speaks against it, as far as it is known. levels: of both kernels, see five_levels."""
    if means.update is None:
        no = [
            f"the running kernel {running} cannot hand its instances over: {LIVE_UPDATE} is not there; boot "
            "a kernel that can, or do without (method: reboot)"
        ]
    else:
        no = [] if means.update.possible else [f"the kernel refuses a live update: {means.update.reason}"]
    if not means.tool:
        no.append("kexec is not installed; install kexec-tools (role host: host_live_update)")
    if means.disabled:
        no.append(
            "kernel.kexec_load_disabled is 1, so no kernel can be loaded until the next restart; remove the "
            "setting, and restart the host"
        )
    if means.scripts:
        no.append(
            f"the init scripts of kexec-tools ({', '.join(means.scripts)}) would boot what is loaded while "
            f"services still stop; {MASK}"
        )
    if means.lockdown != "none":
        no.append(
            f"the kernel is locked down ({means.lockdown}), and kernels that are locked down are not updated "
            "live; do without (method: reboot)"
        )
    if release in means.markers:
        no += _marker_reasons(release, means.markers[release], means.markers.get(running))
    if None not in levels and levels[0] != levels[1]:
        names = {True: "five", False: "four"}
        no.append(
            f"{running} has page tables of {names[bool(levels[0])]} levels and {release} would have "
            f"{names[bool(levels[1])]}; give both the same no5lvl and CONFIG_X86_5LEVEL"
        )
    return no


def _marker_reasons(release: str, wanted: Marker | None, own: Marker | None) -> list[str]:
    if wanted is None:
        return [
            f"/boot/vmlinuz-{release} has no mark that it takes instances over, so they would be lost; build "
            "it with this collection's series, or do without (method: reboot)"
        ]
    # A kernel hands over what it could adopt itself.
    if own is not None and not wanted.lowest <= own.highest <= wanted.highest:
        return [
            f"{release} takes over handovers of version {wanted}, and the running kernel makes version "
            f"{own.highest}; go by a kernel between them, or do without (method: reboot)"
        ]
    return []
