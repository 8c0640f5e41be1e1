# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.build.progress import Progress
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure


def test_progress_is_a_whole_file_at_any_time(tmp_path):
    path = tmp_path / "p.json"
    with Progress(path) as progress:
        progress.enter("unpack", "x.deb")
        facts = json.loads(path.read_text())
        assert (facts["state"], facts["stage"], facts["detail"]) == ("running", "unpack", "x.deb")
        assert facts["pid"] == os.getpid()
    assert json.loads(path.read_text())["state"] == "done"
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.json"]


def test_progress_that_nobody_watches_is_not_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Progress(None) as progress:
        progress.enter("unpack")
    assert list(tmp_path.iterdir()) == []


def test_progress_is_rewritten_while_nothing_happens(tmp_path):
    with Progress(tmp_path / "p.json") as progress:
        progress.path.unlink()
        deadline = time.monotonic() + 5
        while not progress.path.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert progress.path.exists()


def test_progress_tells_failure(tmp_path):
    with pytest.raises(Failure), Progress(tmp_path / "p.json") as progress:
        raise Failure("no")
    assert json.loads(progress.path.read_text())["state"] == "failed"


def test_progress_on_a_full_disk_is_not_what_fails(tmp_path):
    progress = Progress(Path("/dev/full/progress"))
    with progress:
        progress.enter("compile")
