# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""kerf's agent in the initramfs of a spawned kernel."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import pytest

MAKE_INITRAMFS = Path(__file__).resolve().parents[3] / "roles/spawn_image/files/make_initramfs.py"
MAGIC = b"#BOOTCONFIG\n"
ELF = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 64, 0, 0, 64, 56, 0, 0, 0, 0)


def make_initramfs(directory, *options):
    (directory / "busybox").write_bytes(ELF)
    argv = [sys.executable, str(MAKE_INITRAMFS), f"--busybox={directory / 'busybox'}"]
    argv += [f"--output={directory / 'image'}", *options]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


# Every remainder of the compressed image's length by four comes up.
@pytest.mark.parametrize("length", range(1, 12))
def test_image_with_agent(tmp_path, length):
    agent = tmp_path / "kerf-init"
    agent.write_bytes(ELF + bytes(range(7, 7 + length)))
    assert make_initramfs(tmp_path, f"--agent={agent}").returncode == 0
    image = (tmp_path / "image").read_bytes()

    # As the kernel reads it: from the end.
    assert image.endswith(MAGIC)
    at = len(image) - len(MAGIC) - 8
    size, total = struct.unpack_from("<II", image, at)
    text = image[at - size : at]
    assert at % 4 == 0
    assert sum(text) == total
    assert text.rstrip(b"\0") == b'kernel.kerf.entrypoint = "/sbin/kerf-entrypoint"\n'
    archive = gzip.decompress(image[: at - size])
    assert b"sbin/kerf-init\0" in archive
    assert b"sbin/kerf-entrypoint\0" in archive
    assert agent.read_bytes() in archive


def test_image_without_agent(tmp_path):
    assert make_initramfs(tmp_path).returncode == 0
    image = (tmp_path / "image").read_bytes()
    assert MAGIC not in image
    assert b"sbin/kerf-init\0" not in gzip.decompress(image)


@pytest.mark.parametrize("content", [None, b"#!/bin/sh\n"])
def test_agent_that_is_none(tmp_path, content):
    agent = tmp_path / "kerf-init"
    if content is not None:
        agent.write_bytes(content)
    done = make_initramfs(tmp_path, f"--agent={agent}")
    assert done.returncode == 1
    assert f"{agent}" in done.stderr and "without an agent" in done.stderr
    assert not (tmp_path / "image").exists()
