# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What cannot be found out about systemd. What it is told: modules/test_at_boot.py, program/test_units.py."""

from __future__ import annotations

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.divide import units as _units
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import Paths
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.wish import Service


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    return Paths(str(tmp_path))


def test_a_systemd_that_does_not_answer_is_not_said_to_be_too_old(paths, monkeypatch):
    def run(_argv, **_manner):
        raise FileNotFoundError

    monkeypatch.setattr(_units, "run", run)
    assert _units.warnings(paths, {"red": Service("always", restart_delay_max=60)}) == []


def test_who_has_no_growing_delay_needs_no_new_systemd(paths, monkeypatch):
    monkeypatch.setattr(_units, "run", None)
    assert _units.warnings(paths, {"red": Service("always"), "blue": Service(restart_delay_max=60)}) == []


def test_settings_that_cannot_be_read_are_written_again(paths, monkeypatch):
    path = paths.units / "mkops@red.service.d" / _units.DROP_IN
    path.parent.mkdir(parents=True)
    path.write_text("x")
    (paths.units / "mkops@blue.service.d").mkdir()
    (paths.units / "mkops.target.d").mkdir()

    def fails(_path, **_how):
        raise PermissionError

    monkeypatch.setattr(type(path), "read_text", fails)
    assert _units.units(paths, {}).before == {"red": ""}
