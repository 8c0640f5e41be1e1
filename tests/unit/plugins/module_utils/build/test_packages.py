# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import subprocess
import tarfile

from ansible_collections.mkops.multikernel.plugins.module_utils.build.packages import FORMATS


def test_no_link_to_the_place_of_the_build_is_in_a_tar(tmp_path):
    modules = tmp_path / "lib/modules/6.12.0"
    (modules / "kernel/build").mkdir(parents=True)
    (modules / "kernel/build/a.ko").touch()
    (modules / "build").symlink_to(tmp_path)
    options = FORMATS["tar"].environment["TAR_OPTIONS"].replace("EPOCH", "0")
    argv = ["tar", "-cf", "kernel.tar", "lib"]
    subprocess.run(argv, cwd=tmp_path, check=True, env={**os.environ, "TAR_OPTIONS": options})
    with tarfile.open(tmp_path / "kernel.tar") as archive:
        names = [name.removeprefix("lib/modules/6.12.0/") for name in archive.getnames()]
    assert "build" not in names
    assert "kernel/build/a.ko" in names
