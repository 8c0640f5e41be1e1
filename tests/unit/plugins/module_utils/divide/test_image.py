# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Pending
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import image as _image
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.image import (
    Images,
    is_unchanged,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.machine import Instance


def read_kernel(path):
    return Images().kernel(path, None)


def read_initrd(path):
    return Images().initrd(path, None)


def test_vmlinux(vmlinux):
    image = read_kernel(str(vmlinux))
    assert (image.path, image.size) == (str(vmlinux), vmlinux.stat().st_size)
    assert image.sha256 == hashlib.sha256(vmlinux.read_bytes()).hexdigest()


def test_bzimage(tmp_path):
    path = tmp_path / "bzImage"
    path.write_bytes(bytes(0x202) + b"HdrS" + bytes(64))
    assert read_kernel(str(path)).size == 0x202 + 4 + 64


def packed(data):
    """The same bytes whenever it is called, so that a test has the same name in every process."""
    return gzip.compress(data, mtime=0)


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


@pytest.mark.parametrize("content", [b"070701 and more", packed(b"070701"), b"\x28\xb5\x2f\xfd..", b"BZh9"])
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
    with pytest.raises(ValueError, match=r"none cannot be read on the host: No such file") as error:
        read(str(tmp_path / "none"))
    assert isinstance(error.value.args[0], Pending)  # an earlier task may bring it
    with pytest.raises(ValueError, match="cannot be read on the host: Is a directory") as error:
        read(str(tmp_path))
    assert not isinstance(error.value.args[0], Pending)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be read on the host: Not a directory"):
        read(str(tmp_path / "file" / "below"))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="it is not a file"):
        read_kernel(str(tmp_path / "pipe"))


@pytest.mark.parametrize("name", ["größe", "ядро", "\udcff\udcfe"])
def test_names_of_files_are_utf8_in_any_locale(vmlinux, tmp_path, name):
    """With a locale of another encoding, Python would look for a file of another name, or give up."""
    path = tmp_path / name
    os.link(vmlinux, os.fsencode(path))
    code = (
        "import os, sys\n"
        "from ansible_collections.mkops.multikernel.plugins.module_utils.divide.image import Images\n"
        "path = os.fsencode(sys.argv[1]).decode('utf-8', 'surrogateescape')\n"
        "print(sys.getfilesystemencoding(), Images().kernel(path, None).size)\n"
        "try:\n"
        "    Images().kernel(path + chr(223), None)\n"
        "except ValueError as error:\n"
        "    print(ascii(error.args[0]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code, os.fsencode(path)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "LC_ALL": "C"}
        | {"PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    said = done.stdout.splitlines()
    assert said[0] == f"ascii {vmlinux.stat().st_size}"
    assert said[1].endswith("cannot be read on the host: No such file or directory'")


@pytest.fixture(autouse=True)
def _settled(monkeypatch):
    """Files of a test have just been made."""
    monkeypatch.setattr(_image, "_DOUBT", -(10**9))


def loaded(file, sha256="as recorded", **other):
    """An instance whose kernel is proved to be a file as it is now."""
    images = Images()
    image = images.kernel(str(file), None)
    record = {"path": str(file), "size": image.size, "sha256": sha256, **other}
    return Instance("web", 1, "active", kernel=record, files=dict(images.identities))


def test_a_file_that_was_proved_to_be_what_is_loaded_is_not_read(vmlinux):
    one = loaded(vmlinux)
    assert is_unchanged(str(vmlinux), one.kernel, one.files[str(vmlinux)])
    assert Images().kernel(str(vmlinux), one).sha256 == "as recorded"


@pytest.mark.parametrize(
    "doubt",
    [{"path": "/other"}, {"sha256": None}, {"sha256": ""}],
)
def test_in_doubt_it_is_read(vmlinux, doubt):
    assert Images().kernel(str(vmlinux), loaded(vmlinux, **doubt)) == read_kernel(str(vmlinux))


def test_without_a_record_or_a_proof_it_is_read(vmlinux):
    one = loaded(vmlinux)
    for other in (
        Instance("web", 1, "active", kernel=one.kernel),
        Instance("web", 1, "active", files=one.files),
        Instance("web", 1, "active", kernel={"path": str(vmlinux), "sha256": "x"}, files=one.files),
    ):
        assert Images().kernel(str(vmlinux), other) == read_kernel(str(vmlinux))


def test_what_was_changed_just_now_proves_nothing(vmlinux, monkeypatch):
    """A second change may bear the same time."""
    monkeypatch.setattr(_image, "_DOUBT", 2 * 10**9)
    images = Images()
    images.kernel(str(vmlinux), None)
    assert images.identities == {}


def test_behind_a_link_may_be_another_file(vmlinux, tmp_path):
    link, other = tmp_path / "current", tmp_path / "other"
    other.write_bytes(vmlinux.read_bytes())
    link.symlink_to(vmlinux)
    one = loaded(link)
    assert is_unchanged(str(link), one.kernel, one.files[str(link)])
    link.unlink()
    link.symlink_to(other)
    assert not is_unchanged(str(link), one.kernel, one.files[str(link)])
    link.unlink()
    assert not is_unchanged(str(link), one.kernel, one.files[str(link)])


@pytest.mark.parametrize("clock", [-7200, 0, 7200])
def test_no_clock_hides_a_change(vmlinux, tmp_path, clock):
    """A file of the same size takes its place while the host's clock is set."""
    other = tmp_path / "other"
    other.write_bytes(vmlinux.read_bytes()[::-1])
    one = loaded(vmlinux)
    found = vmlinux.stat()
    os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns + clock * 10**9))
    other.rename(vmlinux)
    assert not is_unchanged(str(vmlinux), one.kernel, one.files[str(vmlinux)])


def test_a_file_that_is_written_to_in_place_is_read(vmlinux):
    one = loaded(vmlinux)
    with vmlinux.open("r+b") as file:
        file.seek(40)
        file.write(b"x")
    os.utime(vmlinux, (1, 1))
    assert not is_unchanged(str(vmlinux), one.kernel, one.files[str(vmlinux)])


def test_each_file_is_read_once(vmlinux):
    images = Images()
    first = images.kernel(str(vmlinux), None)
    vmlinux.unlink()
    assert images.kernel(str(vmlinux), None) == first
    for _turn in range(2):
        with pytest.raises(ValueError, match="cannot be read"):
            images.initrd(str(vmlinux), None)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (packed(b"#\nCONFIG_64BIT=y\nCONFIG_OF=y\nCONFIG_PCI=y\n"), True),
        (packed(b"#\nCONFIG_64BIT=y\n# CONFIG_OF is not set\n"), False),
        (packed(b"#\nCONFIG_OFF=y\nCONFIG_NOT_OF=y\n"), False),
        (packed(b"#\nCONFIG_OF=y\n" + b"#\n" * (1 << 21)), True),
        (b"no archive", None),
        (b"", None),
    ],
)
def test_the_configuration_in_a_kernel(vmlinux, config, told):
    image = _image.judge_kernel("vmlinux", vmlinux.read_bytes() + b"IKCFG_ST" + config + b"IKCFG_ED")
    assert image.device_trees is told
    assert _image.judge_kernel("vmlinux", vmlinux.read_bytes()).device_trees is None
