# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A tree, a cache with what was built, and what a kernel is made of."""

from __future__ import annotations

import json

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.build.cache import Cache
from ansible_collections.mkops.multikernel.plugins.module_utils.build.key import Inputs, Source
from ansible_collections.mkops.multikernel.plugins.module_utils.common.files import sha256_file


@pytest.fixture
def inputs():
    return Inputs(
        source=Source("linux-source-6.12_6.12.107-1_all.deb", "aa" * 32, "6.12.107-1"),
        series=(("0001-a.patch", "11"), ("0002-b.patch", "22")),
        base="tinyconfig",
        fragments=(("lab.config", "33"), ("multikernel.config", "44")),
        local_version="-mkops",
        toolchain=("gcc 14.2.0", "as 2.44", "ld 2.44"),
    )


@pytest.fixture
def tree(tmp_path):
    tree = tmp_path / "linux"
    (tree / "kernel").mkdir(parents=True)
    (tree / "kernel/reboot.c").write_text("".join(f"line {number}\n" for number in range(1, 21)))
    (tree / "Kbuild").touch()
    return tree


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def finished(cache):
    """Put a build of a key into the cache; returns its directory."""

    def put(key):
        directory = cache.kernels / key
        directory.mkdir(parents=True)
        (directory / "vmlinux").write_text("elf")
        files = {"vmlinux": sha256_file(directory / "vmlinux")}
        manifest = {"key": key, "release": f"6.12-{key}", "inputs": {}, "debs": [], "files": files}
        manifest |= {"objects": 1, "options": 1, "seconds": 1.0}
        (directory / "manifest.json").write_text(json.dumps(manifest))
        return directory

    return put
