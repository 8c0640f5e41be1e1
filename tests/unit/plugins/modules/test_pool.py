# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import shutil

import pytest

from ansible_collections.mkops.multikernel.plugins.modules import pool
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import (
    KERF,
    MIB,
    POOL_BASE,
    FakeInstance,
)

WISH = {"cpus": "2-3", "memory": "512M"}
INIT = ["init", "--cpus=4,6", "--memory=536870912@0", "--devices=none"]


@pytest.fixture
def pooled(make_host):
    return make_host(
        pool_cpus=[4, 6],
        chunks=[(POOL_BASE, 512 * MIB, 0)],
        instances={"web": FakeInstance(1, [4], POOL_BASE, 128 * MIB, "active")},
    )


def test_check_apply_check_apply(host, run_module):
    before = host.snapshot()
    first_check = run_module(pool, host, _check=True, **WISH)
    assert host.snapshot() == before
    assert host.changes == []
    applied = run_module(pool, host, **WISH)
    after = host.snapshot()
    second_check = run_module(pool, host, _check=True, **WISH)
    again = run_module(pool, host, **WISH)
    assert host.snapshot() == after
    assert [run["changed"] for run in (first_check, applied, second_check, again)] == [
        True,
        True,
        False,
        False,
    ]
    assert host.changes == [INIT]
    assert (
        first_check["diff"]
        == applied["diff"]
        == {
            "before": {},
            "after": {"cpus": "2-3", "memory": {"node0": "512 MiB"}},
        }
    )
    assert applied["commands"] == [f"{KERF} " + " ".join(INIT)]
    assert (
        applied["pool"]
        == again["pool"]
        == {
            "cpus": [2, 3],
            "physical_cpus": [4, 6],
            "free_cpus": [2, 3],
            "memory": 512 * MIB,
            "free_memory": 512 * MIB,
            "nodes": {"0": 512 * MIB},
            "devices": [],
        }
    )
    assert again["diff"]["before"] == again["diff"]["after"]


def test_nothing_to_do_needs_no_kerf(pooled, run_module):
    pooled.version = "0.1.0"
    assert not run_module(pool, pooled, **WISH)["changed"]
    assert pooled.calls == []


def test_grow_and_shrink(host, run_module):
    run_module(pool, host, **WISH)
    run_module(pool, host, cpus=[2, 3], memory="768M")
    shrunk = run_module(pool, host, memory="512M")
    assert shrunk["diff"] == {
        "before": {"cpus": "2-3", "memory": {"node0": "768 MiB"}},
        "after": {"cpus": "2-3", "memory": {"node0": "512 MiB"}},
    }
    assert [call[2] for call in host.changes] == [
        "--memory=536870912@0",
        "--memory=805306368@0",
        "--memory=536870912@0",
    ]
    assert host.changes[-1][1] == "--cpus=4,6"


def test_by_node(make_host, run_module):
    host = make_host(nodes=2)
    result = run_module(pool, host, cpus=3, memory={"0": "128M", "1": "256M"})
    assert result["pool"]["nodes"] == {"0": 128 * MIB, "1": 256 * MIB}
    assert not run_module(pool, host, memory={0: "128M", 1: "256M"})["changed"]


def test_absent(host, run_module):
    run_module(pool, host, **WISH)
    for check, changed in ((True, True), (False, True), (True, False), (False, False)):
        assert run_module(pool, host, _check=check, state="absent")["changed"] is changed
    assert host.changes[1:] == [["init", "--cpus=none", "--memory=none", "--devices=none"]]
    assert host.pool_cpus == []


def test_absent_is_refused_while_there_are_instances(pooled, run_module):
    before = pooled.snapshot()
    result = run_module(pool, pooled, state="absent")
    assert result["failed"]
    assert "the pool still serves web" in result["msg"]
    assert pooled.snapshot() == before
    assert pooled.changes == []


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"cpus": "0,2", "memory": "64M"}, ["CPU 0 is the boot CPU"]),
        ({"cpus": "2,2", "memory": "64M"}, ["CPU 2 is listed twice"]),
        ({"cpus": "9", "memory": "64M"}, ["CPU 9 does not exist: this machine has 0-3"]),
        ({"cpus": "two", "memory": "64M"}, ["'two' is neither a CPU number"]),
        ({"cpus": "2", "memory": "64X"}, ["'64X' is not a size"]),
        ({"cpus": "2", "memory": "5000"}, ["not a multiple of the page size 4096"]),
        ({"cpus": "2", "memory": "0"}, ["no memory at all"]),
        ({"cpus": "2", "memory": "64G"}, ["node 0 would have to give", "keeps 256 MiB of it"]),
        ({"cpus": "2", "memory": "1900M"}, ["keeps 256 MiB of it"]),
        (
            {"cpus": "2", "memory": {"x": "64M", "0": "1X"}},
            ["'x' is not the number of a NUMA node", "'1X' is not a size"],
        ),
        ({"cpus": "2", "memory": {}}, ["no NUMA node is named"]),
        ({"cpus": "2", "memory": "64M", "headroom": "much"}, ["headroom: 'much' is not a size"]),
        ({"cpus": "0,9,x", "memory": "1X"}, ["'x' is neither", "'1X' is not a size"]),
        ({}, ["cpus must be given", "memory must be given"]),
    ],
)
def test_bad_input_changes_nothing(host, run_module, wish, words, check):
    before = host.snapshot()
    result = run_module(pool, host, _check=check, **wish)
    assert result["failed"]
    assert len(result["reasons"]) == len(words), result["reasons"]
    assert all(word in reason for word, reason in zip(words, result["reasons"], strict=True)), result[
        "reasons"
    ]
    assert host.snapshot() == before
    assert host.changes == []


def test_cpus_that_are_lent_stay(pooled, run_module):
    result = run_module(pool, pooled, cpus="3")
    assert "CPU 2 is lent to instance web" in result["msg"]
    assert pooled.changes == []


@pytest.mark.parametrize(
    ("traits", "word"),
    [
        ({"supported": False, "mounted": False}, "has no multikernel support"),
        ({"mounted": False}, "/sys/fs/multikernel is not mounted"),
        ({"version": "0.5.0"}, "kerf 0.5.0 at"),
    ],
)
def test_unfit_hosts(make_host, run_module, traits, word):
    host = make_host(**traits)
    result = run_module(pool, host, **WISH)
    assert result["failed"]
    assert word in result["msg"]
    assert host.changes == []


def test_kerf_missing(host, run_module, monkeypatch):
    def missing(_argv, _timeout, **_manner):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("ansible_collections.mkops.multikernel.plugins.module_utils.divide.kerf.run", missing)
    assert "kerf cannot be run from" in run_module(pool, host, **WISH)["msg"]
    # The role host may come first in the same play.
    check = run_module(pool, host, _check=True, **WISH)
    assert check["changed"]
    assert check["depends"][0].startswith("kerf cannot be run from")
    assert any("kerf cannot be run from" in warning for warning in check["warnings"])


def test_all_reasons_at_once(make_host, run_module):
    host = make_host(version="0.3.0")
    result = run_module(pool, host, cpus="0,9", memory="1X")
    for word in ("CPU 0", "CPU 9", "'1X'", "0.3.0"):
        assert any(word in reason for reason in result["reasons"])


def test_what_the_kernel_refuses_is_explained(host, run_module):
    host.broken["init"] = (
        "Error: Overlay transaction 2 failed with status: 'failed' (target: /resources)\nhint"
    )
    result = run_module(pool, host, **WISH)
    assert result["failed"]
    assert "the pool has no CPUs and no memory instead of CPUs 2-3 and 512 MiB on node 0" in result["msg"]
    assert not result["changed"]
    assert (result["rc"], result["transactions"], result["kernel_log"]) == (
        1,
        {"tx_2": "failed"},
        ["reason of init"],
    )


def test_half_of_a_wish_is_a_failure_although_kerf_is_content(host, run_module):
    def shortfall(kernel):
        kernel.pool_cpus = [4]
        kernel.sync()

    host.after["init"] = shortfall
    result = run_module(pool, host, **WISH)
    assert result["failed"]
    assert "the pool has CPU 2 and 512 MiB on node 0 instead of CPUs 2-3 and 512 MiB" in result["msg"]
    assert result["changed"]


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        ("64G", ["node 0 would have to give 64 GiB more, but has only 1024 MiB", "64 GiB from the host"]),
        ({"0": "900M"}, ["900 MiB from the host"]),
        ({"0": "2G", "3": "2G"}, ["node 0 would have to give 2 GiB", "node 3 would have to give 2 GiB"]),
    ],
)
def test_a_host_without_numa_directories(make_host, run_module, memory, words):
    host = make_host(cpus=8, memory_mib=1024)
    shutil.rmtree(host.root / "sys/devices/system/node")
    reasons = run_module(pool, host, cpus="2-3", memory=memory)["reasons"]
    assert all(any(word in reason for reason in reasons) for word in words), reasons
    assert run_module(pool, host, cpus="2-3", memory="256M", headroom="256M")["changed"]
    assert host.chunks[0][1:] == (256 * 1024**2, 0)
