# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A tree, a cache with what was built, and what a kernel is made of."""

from __future__ import annotations

import io
import json
import tarfile

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
        directory = cache.results / key
        directory.mkdir(parents=True)
        (directory / "vmlinux").write_text("elf")
        files = {"vmlinux": sha256_file(directory / "vmlinux")}
        manifest = {"key": key, "release": f"6.12-{key}", "inputs": {}, "debs": [], "files": files}
        manifest |= {"objects": 1, "options": 1, "seconds": 1.0}
        (directory / "manifest.json").write_text(json.dumps(manifest))
        return directory

    return put


UNIT = "[Unit]\nDescription=x\n[Service]\nExecStart=/bin/true\n[Install]\nWantedBy={}\n"


@pytest.fixture
def packages_tar():
    """What mmdebstrap leaves of a small suite: enough of Debian's files for a root to be furnished."""
    files = {
        "etc/passwd": "root:x:0:0:root:/root:/bin/bash\n",
        "etc/shadow": "root:*:20000:0:99999:7:::\n",
        "etc/group": "root:x:0:\nadm:x:4:\n",
        "etc/gshadow": "root:*::\nadm:*::\n",
        "etc/skel/.profile": "umask 022\n",
        "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
        "etc/hostname": "builder\n",
        "etc/resolv.conf": "nameserver 192.0.2.1\n",
        "etc/ssh/ssh_host_rsa_key": "made by a package\n",
        "etc/ssh/sshd_config": "UsePAM yes\n",
        "etc/apt/sources.list": "deb http://somebody:secret@mirror.example trixie main\n",
        "usr/lib/systemd/systemd": "\x7fELF",
        "usr/sbin/sshd": "\x7fELF",
        "usr/lib/systemd/system/console-getty.service": UNIT.format("getty.target"),
        "usr/lib/systemd/system/systemd-networkd.service": UNIT.format("multi-user.target"),
        "usr/lib/systemd/system/ssh.service": UNIT.format("multi-user.target"),
        "usr/share/zoneinfo/Europe/Vienna": "TZif2",
        "var/lib/dpkg/status": "Package: apt\nStatus: install ok installed\nVersion: 3.0\n\n"
        "Package: systemd-sysv\nStatus: install ok installed\nVersion: 1:257\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nVersion: 9\n\n",
        "var/log/dpkg.log": "2026\n",
        "var/lib/apt/lists/lock": "",
    }

    def make(**more):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for folder in ("etc", "usr", "dev", "tmp", "var", "root", "usr/bin"):
                one = tarfile.TarInfo(f"./{folder}")
                one.type, one.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(one)
            for name, text in {**files, **more}.items():
                if text is None:
                    continue
                one = tarfile.TarInfo(f"./{name}")
                one.size, one.mode, one.mtime = len(text.encode()), 0o640 if "shadow" in name else 0o644, 1
                tar.addfile(one, io.BytesIO(text.encode()))
        out.seek(0)
        return out

    return make
