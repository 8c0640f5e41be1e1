# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import gzip
import hashlib
import os
import time

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.divide.image import (
    Images,
    is_unchanged,
    read_initrd,
    read_kernel,
)


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


def record(path, **other):
    found = {"path": str(path), "size": path.stat().st_size, "sha256": "as recorded"}
    return {**found, **other}


def test_what_was_loaded_since_the_last_change_is_not_read(vmlinux, tmp_path):
    later = time.time_ns() + 60 * 10**9
    assert is_unchanged(str(vmlinux), record(vmlinux), later)
    assert Images().kernel(str(vmlinux), record(vmlinux), later).sha256 == "as recorded"


@pytest.mark.parametrize(
    "doubt",
    [
        lambda path: (record(path), time.time_ns()),  # it was changed about when it was loaded
        lambda path: (record(path, size=1), time.time_ns() + 60 * 10**9),
        lambda path: ({**record(path), "path": "/other"}, time.time_ns() + 60 * 10**9),
        lambda path: (record(path, sha256=None), time.time_ns() + 60 * 10**9),
        lambda _path: ({}, 0),
    ],
)
def test_in_doubt_it_is_read(vmlinux, doubt):
    assert Images().kernel(str(vmlinux), *doubt(vmlinux)) == read_kernel(str(vmlinux))


def test_behind_a_link_may_be_another_file(vmlinux, tmp_path):
    link = tmp_path / "current"
    link.symlink_to(vmlinux)
    assert not is_unchanged(str(link), record(link), time.time_ns() + 60 * 10**9)


def test_a_file_moved_into_place_is_read(vmlinux, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(vmlinux.read_bytes()[::-1])
    noted, loaded = record(vmlinux), time.time_ns()
    os.utime(other, (1, 1))
    other.rename(vmlinux)
    assert not is_unchanged(str(vmlinux), noted, loaded)


def test_each_file_is_read_once(vmlinux, tmp_path, monkeypatch):
    images = Images()
    first = images.kernel(str(vmlinux), {}, 0)
    vmlinux.unlink()
    assert images.kernel(str(vmlinux), {}, 0) == first
    for _turn in range(2):
        with pytest.raises(ValueError, match="cannot be read"):
            images.initrd(str(vmlinux), {}, 0)
