# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a kernel is packed into: Debian packages, RPM packages, archives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Format:
    """What a kernel is packed into: a target of the kernel's own make, and what makes it reproducible."""

    make: tuple[str, ...]
    results: str  # pattern of the packages, from the directory that the tree lies in
    tools: Mapping[str, str]  # and the Debian packages that bring them
    unpack: tuple[str, ...]  # makes a tar stream of a package, from standard input to standard output
    # (file, text, what it becomes): dates that nothing else fixes
    edits: tuple[tuple[str, str, str], ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)  # EPOCH stands for the time of the build


_RPM_MACROS = {
    "_buildhost": "build",
    "use_source_date_epoch_as_buildtime": "1",
    # The same, as RPM calls it before 4.20 and since.
    "clamp_mtime_to_source_date_epoch": "1",
    "build_mtime_policy": "clamp_to_source_date_epoch",
    "source_date_epoch_from_changelog": "0",
}
FORMATS = {
    "deb": Format(
        # Only the image: linux-libc-dev, which bindeb-pkg makes as well, would replace the host's own.
        make=("bindeb-pkg", "DPKG_FLAGS=--rules-target=binary-image"),
        results="linux-image-*.deb",
        tools={"dpkg-buildpackage": "dpkg-dev", "dh_builddeb": "debhelper"},
        unpack=("dpkg-deb", "--fsys-tarfile", "-"),
        # The changelog's date would make every package different; SOURCE_DATE_EPOCH is the standard way out.
        edits=(("scripts/package/mkdebian", "$(date -R)", '$(date -R -u -d "@$SOURCE_DATE_EPOCH")'),),
    ),
    "rpm": Format(
        make=(
            "binrpm-pkg",
            # Nobody gets the packages with headers, and that for modules takes its time.
            "RPMOPTS=--without=devel "
            + " ".join(f"--define='{name} {value}'" for name, value in _RPM_MACROS.items()),
        ),
        results="*/rpmbuild/RPMS/*/kernel-[0-9]*.rpm",
        tools={"rpmbuild": "rpm"},
        unpack=("rpm2archive", "--nocompression"),
        edits=(
            ("scripts/package/mkspec", "$(LC_ALL=C date +", '$(LC_ALL=C date -u -d "@$SOURCE_DATE_EPOCH" +'),
        ),
    ),
    "tar": Format(
        make=("tarxz-pkg",),
        results="*/linux-*.tar.xz",
        tools={"tar": "tar"},
        unpack=("xz", "--decompress"),
        environment={
            # The link from the modules to the tree that they were built in would be another one elsewhere.
            "TAR_OPTIONS": "--mtime=@EPOCH --anchored --no-wildcards-match-slash "
            "--exclude=lib/modules/*/build",
            "XZ_OPT": "-T1",
        },
    ),
}
