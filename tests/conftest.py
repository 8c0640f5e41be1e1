# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Makes the tests run wherever they are started: by make, by pytest alone, by ansible-test.

What they cannot do without is asked for before the first test, with the command that installs it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
MODULES = ("ansible", "hypothesis", "jmespath", "libfdt", "netaddr", "yaml")
PROGRAMS = (
    "ansible", "dpkg-deb", "fakeroot", "gcc", "git", "gpg", "gpgv", "grub-script-check", "make", "nsenter",
    "openssl", "patch", "perl", "sbsign", "sbverify", "tar", "unshare",
)  # fmt: skip


def collections() -> Path:
    """A directory that has this collection under its name: where it lies, or one with a link to it."""
    if TOP.parts[-3:] == ("ansible_collections", "mkops", "multikernel"):
        return TOP.parents[2]
    link = TOP / ".ansible/collections/ansible_collections/mkops/multikernel"
    if not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(TOP)
        # Python may have looked there already, and remember that there is nothing.
        sys.path_importer_cache.clear()
    return TOP / ".ansible/collections"


def prepare() -> None:
    """The environment that make gives, for this process and for the ansible that tests start."""
    path = [str(Path(sys.executable).parent), *os.environ.get("PATH", os.defpath).split(os.pathsep)]
    # sbin: where Debian has what mends and makes file systems, and not everybody's $PATH.
    os.environ["PATH"] = os.pathsep.join(dict.fromkeys([*path, "/usr/sbin", "/sbin"]))
    where = str(collections())
    os.environ["ANSIBLE_COLLECTIONS_PATH"] = where
    if where not in sys.path:
        sys.path.insert(0, where)
    os.environ.setdefault("ANSIBLE_HOME", str(TOP / ".ansible/home"))
    # Ansible wants UTF-8, and a bare machine may have no other locale than this one.
    os.environ["LC_ALL"] = "C.UTF-8"


def missing() -> list[str]:
    modules = [f"Python package {name}" for name in MODULES if importlib.util.find_spec(name) is None]
    return modules + [f"program {name}" for name in PROGRAMS if shutil.which(name) is None]


prepare()
if lack := missing():
    pytest.exit(
        f"{sys.executable} lacks what the tests need: {', '.join(lack)}. `make unit` installs it and runs "
        "them; `tools/bootstrap build test` only installs it, for ~/.cache/mkops/venv/bin/pytest.",
        returncode=4,
    )
