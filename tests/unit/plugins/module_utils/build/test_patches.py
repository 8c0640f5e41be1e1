# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.build.patches import apply_patch, read_series
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure, Refused


def test_series_in_the_order_of_names(tmp_path):
    for name in ("0002-b.patch", "0001-a.patch", "README"):
        (tmp_path / name).touch()
    assert [path.name for path in read_series(tmp_path)] == ["0001-a.patch", "0002-b.patch"]


def test_series_in_the_order_of_its_listing(tmp_path):
    for name in ("a.patch", "b.patch", "c.patch"):
        (tmp_path / name).touch()
    (tmp_path / "series").write_text("# order matters\nb.patch\n\na.patch # last\n")
    assert [path.name for path in read_series(tmp_path)] == ["b.patch", "a.patch"]


def test_series_names_every_missing_patch(tmp_path):
    (tmp_path / "series").write_text("a.patch\nb.patch\n")
    with pytest.raises(Refused, match=r"a\.patch, b\.patch"):
        read_series(tmp_path)


def test_empty_series(tmp_path):
    assert read_series(tmp_path) == []


def patch(tmp_path: Path, old: str, new: str, path: str = "kernel/reboot.c") -> Path:
    hunk = f"@@ -9,3 +9,3 @@\n line 9\n-{old}\n+{new}\n line 11\n"
    text = f"Subject: x\n\n--- a/{path}\n+++ b/{path}\n{hunk}-- \n2.39\n"
    file = tmp_path / "0001-x.patch"
    file.write_text(text)
    return file


def apply(tree: Path, file: Path) -> None:
    apply_patch(tree, file, file.name)


def test_series_is_applied(tree, tmp_path):
    apply(tree, patch(tmp_path, "line 10", "LINE 10"))
    assert "LINE 10" in (tree / "kernel/reboot.c").read_text()
    assert sorted(entry.name for entry in (tree / "kernel").iterdir()) == ["reboot.c"]


def test_patch_error_names_patch_file_and_hunk(tree, tmp_path):
    with pytest.raises(Failure) as caught:
        apply(tree, patch(tmp_path, "other", "new"))
    assert str(caught.value) == "patch 0001-x.patch does not apply: kernel/reboot.c hunk 1 at line 9"


def test_patch_error_names_a_missing_file(tree, tmp_path):
    with pytest.raises(Failure, match=r"0001-x\.patch does not apply: .*kernel/gone\.c"):
        apply(tree, patch(tmp_path, "line 10", "x", "kernel/gone.c"))


def test_series_that_is_applied_already(tree, tmp_path):
    file = patch(tmp_path, "line 10", "LINE 10")
    apply(tree, file)
    with pytest.raises(Failure, match="does not apply"):
        apply(tree, file)
