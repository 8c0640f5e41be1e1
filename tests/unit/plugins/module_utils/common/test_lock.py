# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import stat
import threading

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.common import lock
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure
from ansible_collections.mkops.multikernel.plugins.module_utils.common.lock import (
    announce_restart,
    host_lock,
    locked,
    restart_announced,
    withdraw_restart,
)


def test_the_lock_is_for_nobody_else(tmp_path):
    path = tmp_path / "mkops/host.lock"
    with host_lock(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_a_directory_that_others_can_write_to_is_refused(tmp_path, mode):
    directory = tmp_path / "mkops"
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(Failure, match="only root can write to"), host_lock(directory / "host.lock"):
        pytest.fail("locked")
    assert list(directory.iterdir()) == []


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "host.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Failure, match="cannot be locked"), host_lock(tmp_path / "host.lock"):
        pytest.fail("locked")
    assert not (tmp_path / "elsewhere").exists()


def test_without_permission_it_says_what_to_do(tmp_path, monkeypatch):
    def denied(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(lock.os, "open", denied)
    with (
        pytest.raises(Failure, match=r"cannot be locked \(Permission denied\): run as root \(become: true\)"),
        host_lock(tmp_path / "host.lock"),
    ):
        pytest.fail("locked")


def test_one_waits_for_the_other_and_says_so(tmp_path):
    path, told, order = tmp_path / "lock", threading.Event(), []

    def second():
        with locked(path, waiting=told.set):
            order.append("second")

    with locked(path):
        thread = threading.Thread(target=second)
        thread.start()
        assert told.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_lock_that_is_tried_once(tmp_path):
    with locked(tmp_path / "lock"), pytest.raises(BlockingIOError), locked(tmp_path / "lock", timeout=0):
        pytest.fail("locked twice")


@pytest.mark.parametrize("inherit", [True, False])
def test_who_inherits_it(tmp_path, inherit):
    with locked(tmp_path / "lock", inherit=inherit) as descriptor:
        assert os.get_inheritable(descriptor) is inherit


def test_nobody_gets_it_between_the_last_check_and_the_restart(tmp_path):
    path = tmp_path / "mkops/host.lock"
    with host_lock(path):
        announce_restart(path)
    with pytest.raises(Failure, match="about to restart"), host_lock(path):
        pytest.fail("locked")
    with host_lock(tmp_path / "other/host.lock"):
        pass
    withdraw_restart(path)
    with host_lock(path):
        pass


@pytest.mark.parametrize(
    ("boot_id", "seconds"), [("another boot", 0), ("this boot", lock._RESTART), ("this boot", 9999)]
)
def test_the_restart_of_another_boot_means_nothing_nor_one_that_did_not_come(
    tmp_path, monkeypatch, boot_id, seconds
):
    path, current = tmp_path / "mkops/host.lock", tmp_path / "boot_id"
    current.write_text("this boot\n".replace(" ", "-"))
    monkeypatch.setattr(lock, "_BOOT_ID", current)
    monkeypatch.setattr(lock.time, "clock_gettime", lambda _clock: 100.0)
    with host_lock(path):
        announce_restart(path)
    assert restart_announced(path)
    current.write_text(boot_id.replace(" ", "-"))
    monkeypatch.setattr(lock.time, "clock_gettime", lambda _clock: 100.0 + seconds)
    assert not restart_announced(path)
    with host_lock(path):
        pass


@pytest.mark.parametrize("text", ["", "x", "a b c", "boot never"])
def test_an_announcement_that_makes_no_sense_is_none(tmp_path, text):
    (tmp_path / "restart").write_text(text)
    assert not restart_announced(tmp_path / "host.lock")
