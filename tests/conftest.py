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
from collections.abc import Generator
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
MODULES = ("ansible", "hypothesis", "jmespath", "libfdt", "netaddr", "prometheus_client", "yaml")
PROGRAMS = (
    "ansible", "dpkg-deb", "fakeroot", "gcc", "git", "gpg", "gpgv", "grub-script-check", "ip", "make",
    "nft", "nsenter", "openssl", "patch", "perl", "promtool", "qemu-img", "qemu-storage-daemon", "sbsign",
    "sbverify", "systemctl", "tar", "unshare",
)  # fmt: skip
# More than a build wants to see free; tests use little of it.
ROOM = 6 << 30


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
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "mkops")
    cache = Path(os.environ.get("MKOPS_CACHE", default))
    path = [
        str(Path(sys.executable).parent),
        str(cache / "bin"),
        *os.environ.get("PATH", os.defpath).split(os.pathsep),
    ]
    # sbin: where Debian has what mends and makes file systems, and not everybody's $PATH.
    os.environ["PATH"] = os.pathsep.join(dict.fromkeys([*path, "/usr/sbin", "/sbin"]))
    where = str(collections())
    os.environ["ANSIBLE_COLLECTIONS_PATH"] = where
    if where not in sys.path:
        sys.path.insert(0, where)
    os.environ.setdefault("ANSIBLE_HOME", str(TOP / ".ansible/home"))
    # Ansible wants UTF-8, and a bare machine may have no other locale than this one.
    os.environ["LC_ALL"] = "C.UTF-8"


def in_memory() -> Path | None:
    """Tests write thousands of small files: into memory, where that may hold programs, and has room.

    What a run leaves there, of tests that failed or because it was killed, goes with the next one.
    """
    memory = Path("/dev/shm")
    if "PYTEST_DEBUG_TEMPROOT" in os.environ or not os.access(memory, os.W_OK):
        return None
    # A short name: sockets of gpg go below it.
    made = memory / f"mkops-t{os.getpid()}"
    for left in memory.glob("mkops-t[0-9]*"):
        if left == made or not Path("/proc", left.name.removeprefix("mkops-t")).exists():
            shutil.rmtree(left, ignore_errors=True)
    there = os.statvfs(memory)
    if there.f_flag & os.ST_NOEXEC or there.f_bavail * there.f_frsize < ROOM:
        return None
    try:
        made.mkdir(mode=0o700)
    except FileExistsError:  # somebody else's
        return None
    # pytest's name for it; its workers inherit it.
    os.environ["PYTEST_DEBUG_TEMPROOT"] = str(made)
    return made


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "untraced: takes long, longer with coverage, and runs no line that other tests do not run"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Tests that are marked so run without the tracing of coverage: pytest-cov's `no_cover` does not do that
    in the workers of xdist, where two coverages run.
    """
    if not item.get_closest_marker("untraced"):
        return (yield)
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(tracer)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(exitstatus: int) -> None:
    if made and exitstatus == 0:
        shutil.rmtree(made, ignore_errors=True)


def missing() -> list[str]:
    modules = [f"Python package {name}" for name in MODULES if importlib.util.find_spec(name) is None]
    return modules + [f"program {name}" for name in PROGRAMS if shutil.which(name) is None]


prepare()
made = in_memory()
if lack := missing():
    pytest.exit(
        f"{sys.executable} lacks what the tests need: {', '.join(lack)}. `make unit` installs it and runs "
        "them; `tools/bootstrap build test` only installs it, for ~/.cache/mkops/venv/bin/pytest.",
        returncode=4,
    )
