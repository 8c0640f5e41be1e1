# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
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


@pytest.mark.parametrize(
    "text", ["[]", "1", "null", '"x"', "{}", '{"key": "k", "files": []}', "[" * 99999, "\udcff"]
)
def test_a_manifest_of_anything_is_none(cache, finished, text):
    path = finished("k") / "manifest.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert cache.manifest("k") is None
    assert cache.latest() is None
    assert cache.prune(1, "other") == ["k"]


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


# --- pruning ----------------------------------------------------------------------------------------------


@pytest.fixture
def four(cache, finished):
    """Kernels that were asked for one after the other."""
    for age, key in enumerate(("newest", "newer", "older", "oldest")):
        directory = finished(key)
        manifest = json.loads((directory / "manifest.json").read_text())
        (directory / "manifest.json").write_text(json.dumps({**manifest, "release": f"6.12-{key}"}))
        os.utime(directory, (1000 - age, 1000 - age))
    return cache


def kept(cache):
    return sorted(path.parent.name for path in cache.results.glob("*/manifest.json"))


@pytest.mark.parametrize(
    ("keep", "key", "removed"),
    [
        (4, "newest", []),
        (2, "newest", ["oldest", "older"]),
        (1, "newest", ["oldest", "older", "newer"]),
        (1, "oldest", ["older", "newer", "newest"]),
        (2, "to be built", ["oldest", "older", "newer"]),
        (9, "newest", []),
    ],
)
def test_what_was_asked_for_longest_ago_is_removed(four, keep, key, removed):
    before = kept(four)
    wished = [f"6.12-{name}" for name in removed]
    assert four.prune(keep, key, check=True) == wished
    assert kept(four) == before
    assert four.prune(keep, key) == wished
    assert kept(four) == sorted(set(before) - set(removed))
    assert four.prune(keep, key) == []


def test_a_kernel_that_is_asked_for_again_stays(four):
    four.note_use("oldest")
    four.note_use("gone")
    assert four.prune(2, "newest") == ["6.12-older", "6.12-newer"]
    assert kept(four) == ["newest", "oldest"]


def test_what_is_in_use_is_not_removed(four, monkeypatch):
    uname = os.uname()
    running = os.uname_result((uname[0], uname[1], "6.12-older", uname[3], uname[4]))
    monkeypatch.setattr(os, "uname", lambda: running)
    with four.lock("oldest", lambda: None):
        assert four.prune(1, "newest", check=True) == four.prune(1, "newest") == ["6.12-newer"]
    assert kept(four) == ["newest", "older", "oldest"]


def test_a_damaged_kernel_is_removed_as_any_other(four):
    (four.results / "oldest/manifest.json").write_text("{")
    os.utime(four.results / "oldest", (1, 1))
    four.work("oldest", ".log").parent.mkdir(parents=True, exist_ok=True)
    four.work("oldest", ".log").touch()
    assert four.prune(3, "newest") == ["oldest"]
    assert not four.work("oldest", ".log").exists()
