# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import socket

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.divide import agent
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import KernelFs, Paths
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.witness import gap, reasons, witness
from ansible_collections.mkops.multikernel.tests.unit.fake_agent import FakeInstance as FakeAgent
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import MIB, POOL_BASE, FakeInstance

SEEN = {"id": 1, "epoch": 2, "heartbeat": 300, "since": 4000, "at": 10.0, "wall": 1000.0}
ASKED = {"boot_id": "b", "uptime": 500.0, "asked": 9.0}


def test_what_an_instance_shows(make_host):
    host = make_host(pool_cpus=[4, 6], chunks=[(POOL_BASE, 512 * MIB, 0)])
    host.instances["red"] = FakeInstance(1, [4], POOL_BASE, 128 * MIB, "active", epoch=2)
    host.instances["spare"] = FakeInstance(2, [6], POOL_BASE + 128 * MIB, 128 * MIB, "loaded")
    host.sync()
    found = witness(KernelFs(Paths(str(host.root))))
    assert list(found) == ["red"]
    assert {name: found["red"][name] for name in ("id", "epoch", "heartbeat", "since")} == {
        "id": 1,
        "epoch": 2,
        "heartbeat": 300,
        "since": 60500,
    }
    assert "boot_id" not in found["red"]
    assert found["red"]["said"] == 0
    # A file stands for the device: what is written into it comes back.
    (host.root / "dev/mktty").write_text("...has said this\n")
    assert witness(KernelFs(Paths(str(host.root))))["red"]["said"] > 0


def test_what_its_agent_says(tmp_path, monkeypatch, make_host):
    """This machine stands for the instance: a real shell answers."""
    spawn = FakeAgent(tmp_path)
    host = make_host(pool_cpus=[4], chunks=[(POOL_BASE, 512 * MIB, 0)])
    host.instances["red"] = FakeInstance(7, [4], POOL_BASE, 128 * MIB, "active", epoch=1)
    host.sync()
    scope: dict = {"socket": socket}
    exec(spawn.overrides(), scope)
    for name in ("INSTANCES", "socket"):
        monkeypatch.setattr(agent, name, scope[name])
    seen = witness(KernelFs(Paths(str(host.root))))["red"]
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        assert seen["boot_id"] == file.read().strip()
    with open("/proc/uptime", encoding="ascii") as file:
        assert 0 <= float(file.read().split()[0]) - seen["uptime"] < 60
    assert 0 <= seen["asked"] - seen["at"] < 60
    spawn.close()


@pytest.mark.parametrize(
    ("before", "after", "status", "word"),
    [
        (SEEN, SEEN, "active", ""),
        (SEEN, SEEN | {"heartbeat": 1999}, "active", ""),
        (SEEN, None, "ready", "instance red is ready, and was active"),
        (SEEN, None, None, "instance red is gone"),
        (SEEN, SEEN | {"id": 3}, "active", "has the id 3 instead of 1"),
        (SEEN, SEEN | {"epoch": 3}, "active", "was started anew"),
        (SEEN, SEEN | {"heartbeat": 2000}, "active", "sign of life for 2.0 s"),
        (SEEN, {**SEEN, "heartbeat": None}, "active", None),
        (SEEN | {"said": 9}, SEEN | {"said": 0}, "active", "the console of instance red cannot be read"),
        (SEEN | {"said": 0}, SEEN | {"said": 0}, "active", ""),
        (SEEN | ASKED, SEEN, "active", "the agent of instance red does not answer any more"),
        (SEEN | ASKED, SEEN | ASKED | {"boot_id": "c"}, "active", "booted anew: its boot id is c"),
    ],
)
def test_whether_it_is_what_it_was(before, after, status, word):
    if word is None:
        after = {key: value for key, value in after.items() if value is not None}
        word = "has not given a sign of life any more"
    found = reasons("red", before, after, status)
    assert len(found) == bool(word)
    assert word in "".join(found)


def test_one_that_had_no_agent_may_have_one_by_now():
    assert reasons("red", SEEN, SEEN | ASKED, "active") == []


def test_the_gap_by_its_own_clock():
    """Whatever the host's wall clock has become meanwhile."""
    before = SEEN | ASKED
    # Let go of 2 s after it was asked: at 502 of its clock. The new host, 4 s after its start, has it: it was
    # asked 3.5 s later, at 515.
    after = SEEN | ASKED | {"uptime": 515.0, "asked": 7.5, "wall": 99.0}
    assert gap(before, after, left=11.0) == 9500


def test_the_gap_by_the_wall_clock():
    # Let go of at 1001; the new host's state changed 6 s before it was looked at.
    assert gap(SEEN, SEEN | {"wall": 1020.0}, left=11.0) == 13000


def test_no_gap_where_the_kernel_does_not_tell():
    assert gap(SEEN, {key: SEEN[key] for key in ("at", "wall")}, 11.0) is None
    # A clock that was set back makes no negative one.
    assert gap(SEEN, SEEN | {"wall": 900.0}, left=11.0) == 0
