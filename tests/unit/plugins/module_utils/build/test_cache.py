# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import subprocess
import time

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.build.cache import TRASH


def test_manifest_of_a_whole_build(cache, finished):
    finished("k")
    assert cache.manifest("k")["key"] == "k"
    assert cache.manifest("other") is None


@pytest.mark.parametrize("harm", ["change", "remove", "garble"])
def test_harmed_build_counts_as_none(cache, finished, harm):
    directory = finished("k")
    if harm == "change":
        (directory / "vmlinux").write_text("ELF")
    elif harm == "remove":
        (directory / "vmlinux").unlink()
    else:
        (directory / "manifest.json").write_text("{")
    assert cache.manifest("k") is None


def test_latest_manifest(cache, finished):
    assert cache.latest() is None
    os.utime(finished("old") / "manifest.json", (1, 1))
    finished("new")
    assert cache.latest()["key"] == "new"


def test_second_build_of_a_key_waits(cache):
    waits = []
    with cache.lock("k", lambda: waits.append("first")):
        holder = subprocess.Popen(["sleep", "0.5"], close_fds=False)
    # The first build is over, but what it started still holds the lock.
    with cache.lock("k", lambda: waits.append("second")):
        assert holder.poll() is not None or holder.wait(0.2) == 0
    assert waits == ["second"]
    holder.wait()


def test_abandoned_trees_are_dropped_but_not_those_in_use(cache):
    for key in ("mine", "abandoned", "used", f"{TRASH}x"):
        cache.work(key).mkdir(parents=True)
    for name, age in (("old", 7200), ("new", 0)):
        path = cache.work(f"progress-{name}", ".json")
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    with cache.lock("used", lambda: None):
        cache.drop_abandoned("mine")
    assert [path.name for path in cache.work("x").parent.glob("progress-*")] == ["progress-new.json"]
    deadline = time.monotonic() + 10
    while (left := sorted(path.name for path in cache.work("x").parent.glob("*/"))) != ["mine", "used"]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
