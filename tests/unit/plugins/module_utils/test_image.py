# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import gzip
import hashlib

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils._image import read_initrd, read_kernel


def test_vmlinux(vmlinux):
    image = read_kernel(str(vmlinux))
    assert (image.path, image.size) == (str(vmlinux), vmlinux.stat().st_size)
    assert image.sha256 == hashlib.sha256(vmlinux.read_bytes()).hexdigest()


def test_bzimage(tmp_path):
    path = tmp_path / "bzImage"
    path.write_bytes(bytes(0x202) + b"HdrS" + bytes(64))
    assert read_kernel(str(path)).size == 0x202 + 4 + 64


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "neither an uncompressed vmlinux"),
        (b"#!/bin/sh\n", "neither an uncompressed vmlinux"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\0\x3e\0 any program", "neither an uncompressed vmlinux"),
        (
            b"\x7fELF\x01\x01\x01" + bytes(9) + b"\x02\0\x03\0Linux version 6",
            "neither an uncompressed vmlinux",
        ),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0\xb7\0Linux version 6", "is not for x86-64"),
    ],
)
def test_not_a_kernel(tmp_path, content, reason):
    path = tmp_path / "image"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_kernel(str(path))


@pytest.mark.parametrize(
    "content", [b"070701 and more", gzip.compress(b"070701"), b"\x28\xb5\x2f\xfd..", b"BZh9"]
)
def test_initrd(tmp_path, content):
    path = tmp_path / "initrd"
    path.write_bytes(content)
    assert read_initrd(str(path)).size == len(content)


@pytest.mark.parametrize("content", [b"", b"070707 old", b"PK\x03\x04", b"\x7fELF"])
def test_not_an_initrd(tmp_path, content):
    path = tmp_path / "initrd"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not an initramfs"):
        read_initrd(str(path))


@pytest.mark.parametrize("read", [read_kernel, read_initrd])
def test_unreadable(tmp_path, read):
    with pytest.raises(ValueError, match=r"none cannot be read on the host: No such file"):
        read(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="cannot be read on the host: Is a directory"):
        read(str(tmp_path))
