# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.build.tree import no_such_symbols, unpack
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure


def test_unpack_takes_the_one_tree(tree, tmp_path):
    archive = tmp_path / "linux.tar.gz"
    subprocess.run(["tar", "-czf", archive, "-C", tmp_path, "linux"], check=True)
    out = tmp_path / "out"
    out.mkdir()
    assert unpack(archive, out) == out / "linux"


def test_unpack_refuses_what_is_no_kernel(tmp_path):
    (tmp_path / "doc").mkdir()
    archive = tmp_path / "doc.tar"
    subprocess.run(["tar", "-cf", archive, "-C", tmp_path, "doc"], check=True)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(Failure, match="0 kernel trees"):
        unpack(archive, out)


def test_a_package_without_a_source_archive(tmp_path):
    (tmp_path / "root/DEBIAN").mkdir(parents=True)
    fields = "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: x\n"
    (tmp_path / "root/DEBIAN/control").write_text(fields)
    deb = tmp_path / "x.deb"
    subprocess.run(["dpkg-deb", "-b", tmp_path / "root", deb], check=True, capture_output=True)
    with pytest.raises(Failure, match="is not a linux-source package: it has 0 archives in /usr/src"):
        unpack(deb, tmp_path / "root")


def test_unknown_symbols(tree):
    (tree / "kernel/Kconfig.preempt").write_text("menuconfig FOO\n\tbool\n\nconfig BAR\n\tbool\n")
    assert no_such_symbols(tree, {"FOO", "BAR", "BA", "MULTIKERNEL"}) == {"BA", "MULTIKERNEL"}


def test_once_all_symbols_are_found_nobody_looks_further(tree, monkeypatch):
    (tree / "Kconfig").write_text("config FOO\n")
    (tree / "zoo").mkdir()
    (tree / "zoo/Kconfig").write_text("config BAR\n")
    read = []
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, **how: read.append(path) or real(path, **how))
    assert no_such_symbols(tree, {"FOO"}) == set()
    assert read == [tree / "Kconfig"]
