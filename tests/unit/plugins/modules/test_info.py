# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import time

from ansible_collections.mkops.multikernel.plugins.module_utils.common.command import Done
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import units as _units
from ansible_collections.mkops.multikernel.plugins.modules import info
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import (
    MIB,
    POOL_BASE,
    FakeInstance,
)


def test_divided_host(make_host, run_module):
    host = make_host(
        pool_cpus=[4, 6],
        chunks=[(POOL_BASE, 512 * MIB, 0)],
        instances={"web": FakeInstance(1, [4], POOL_BASE, 128 * MIB, "active", "console=mktty0")},
    )
    before = host.snapshot()
    result = run_module(info, host, _check=True)
    assert not result["changed"]
    assert result["kernel"]["release"] == "6.12.107-mkops"
    assert result["kernel"]["multikernel"]
    assert (result["host"]["cpus"], result["host"]["physical_cpus"]) == ([0, 1], [0, 2])
    assert (result["pool"]["cpus"], result["pool"]["free_cpus"]) == ([2, 3], [3])
    assert result["pool"]["free_memory"] == 384 * MIB
    assert [(one["name"], one["state"], one["cpus"]) for one in result["instances"]] == [
        ("web", "active", [2])
    ]
    assert "console" not in result["instances"][0]
    assert host.snapshot() == before
    assert host.calls == []


def test_live_updates(host, run_module):
    """Whether the host's kernel can be replaced while instances run, and why not."""
    facts = run_module(info, host)["kernel"]["live_update"]
    assert facts == {
        "possible": False,
        "reason": "the kernel 6.12.107-mkops does not hand its instances over to another one",
        "generation": None,
        "state": None,
    }
    host.write("/sys/fs/multikernel/live_update", "state off\ngeneration 2\nadopted 1\nlost 0\n")
    assert run_module(info, host)["kernel"]["live_update"] == {
        "possible": True,
        "reason": None,
        "generation": 2,
        "state": "off",
    }
    host.write("/sys/fs/multikernel/live_update", "state off\ngeneration 0\nreason CPU 3 is on its way\n")
    facts = run_module(info, host)["kernel"]["live_update"]
    assert (facts["possible"], facts["reason"]) == (False, "CPU 3 is on its way")


def test_bare_host(make_host, run_module):
    result = run_module(info, make_host(supported=False, mounted=False))
    assert not result.get("failed")
    assert (result["kernel"]["multikernel"], result["pool"]["cpus"], result["instances"]) == (False, [], [])


def test_console_tail(make_host, run_module, monkeypatch):
    class Console:
        def __init__(self, _paths, instance_id):
            self.text = f"one\r\ntwo\r\nof {instance_id}\r\n"

        def __enter__(self):
            return self

        def __exit__(self, *_error):
            pass

        def history(self):
            return self.text

    monkeypatch.setattr(info, "Console", Console)
    host = make_host(
        pool_cpus=[4],
        chunks=[(POOL_BASE, 128 * MIB, 0)],
        instances={"web": FakeInstance(7, [4], POOL_BASE, 128 * MIB, "loaded")},
    )
    assert run_module(info, host, console_tail=2)["instances"][0]["console"] == ["two", "of 7"]


def test_units_and_crashes(make_host, run_module, monkeypatch):
    host = make_host(
        pool_cpus=[4, 6],
        chunks=[(POOL_BASE, 512 * MIB, 0)],
        instances={
            "red": FakeInstance(1, [4], POOL_BASE, 128 * MIB, "active"),
            "b-1": FakeInstance(2, [6], POOL_BASE + 128 * MIB, 128 * MIB, "loaded"),
        },
    )
    assert [(one["unit"], one["crashes"]) for one in run_module(info, host)["instances"]] == [(None, [])] * 2
    (host.root / "run/systemd/system").mkdir(parents=True)
    answers = (
        "Result=success\nNRestarts=3\nId=mkops@b-1.service\nActiveState=inactive\nSubState=dead\n\n"
        "Result=watchdog\nNRestarts=0\nId=mkops@red.service\nActiveState=failed\nSubState=failed\n"
    )
    asked = []
    monkeypatch.setattr(_units, "run", lambda argv, **_how: asked.append(argv) or Done((), 0, answers))
    crash = host.root / "var/lib/mkops/crashes/red/20261129T120000Z-2"
    crash.mkdir(parents=True)
    meta = {"time": "2026-11-29T12:00:00Z", "reason": "panic: oh", "epoch": 2, "boot_id": "b", "memory": None}
    (crash / "meta.json").write_text(json.dumps({**meta, "layout": {}}))
    blue, red = run_module(info, host)["instances"]
    assert blue["unit"] == {"state": "inactive", "sub_state": "dead", "result": "success", "restarts": 3}
    assert red["unit"] == {"state": "failed", "sub_state": "failed", "result": "watchdog", "restarts": 0}
    assert (blue["crashes"], red["crashes"]) == ([], [{"path": str(crash), **meta}])
    assert asked == [
        [
            *("systemctl", "show", "--property=Id,ActiveState,SubState,Result,NRestarts"),
            *("mkops@b-1.service", "mkops@red.service"),
        ]
    ]
    monkeypatch.setattr(_units, "run", lambda _argv, **_how: Done((), 1, "", "no"))
    assert [one["unit"] for one in run_module(info, host)["instances"]] == [None, None]


def test_facts(make_host, run_module):
    result = run_module(info, make_host(), facts=True)
    assert result["ansible_facts"]["multikernel"]["host"] == result["host"]


def test_topology(make_host, run_module):
    host = make_host(
        cpus=8,
        threads=2,
        nodes=2,
        pool_cpus=[4, 5, 6, 7],
        chunks=[(POOL_BASE, 256 * MIB, 0), (1 << 40, 512 * MIB, 1)],
        instances={
            "web": FakeInstance(7, [4, 5], POOL_BASE, 128 * MIB, "loaded", added=[(1 << 40, 64 * MIB)]),
            "web-1": FakeInstance(1, [6], (1 << 40) + 128 * MIB, 64 * MIB),
        },
    )
    topology = run_module(info, host)["topology"]
    cpus = {one["cpu"]: one for one in topology["cpus"]}
    assert list(cpus) == list(range(8))
    assert cpus[2] == {
        "cpu": 2,
        "physical_cpu": 4,
        "socket": None,  # the host has no CPU on that node
        "node": 1,
        "core": 2,
        "owner": "instance",
        "instance": "web",
    }
    assert (cpus[6]["core"], cpus[6]["instance"]) == (2, "web")
    assert (cpus[7]["owner"], cpus[7]["instance"]) == ("pool", None)
    assert (cpus[1]["owner"], cpus[1]["instance"]) == ("host", None)
    assert topology["nodes"] == [
        {
            "node": 0,
            "memory": 1024 * MIB,
            "pool_memory": 256 * MIB,
            "free_memory": 128 * MIB,
            "instances": {"web": 128 * MIB},
        },
        {
            "node": 1,
            "memory": 1024 * MIB,
            "pool_memory": 512 * MIB,
            "free_memory": 384 * MIB,
            "instances": {"web": 64 * MIB, "web-1": 64 * MIB},
        },
    ]


def test_topology_of_regions_that_nobody_has(make_host, run_module):
    host = make_host(pool_cpus=[4], chunks=[(POOL_BASE, 256 * MIB, 0)])
    host.write(
        "/proc/iomem",
        f"{POOL_BASE:08x}-{POOL_BASE + 64 * MIB - 1:08x} : daxfs\n"
        f"{POOL_BASE + 64 * MIB:08x}-{POOL_BASE + 128 * MIB - 1:08x} : mk-instance-9-gone-region-0\n",
    )
    (node,) = run_module(info, host)["topology"]["nodes"]
    assert (node["free_memory"], node["instances"]) == (128 * MIB, {})


def test_64_instances_in_less_than_a_second(make_host, run_module):
    host = make_host(
        cpus=140,
        memory_mib=16384,
        nodes=2,
        pool_cpus=[2 * cpu for cpu in range(4, 132)],
        chunks=[(POOL_BASE, 64 * 64 * MIB, 0)],
        instances={
            f"i{number}": FakeInstance(
                number + 1,
                [2 * (4 + 2 * number), 2 * (5 + 2 * number)],
                POOL_BASE + number * 64 * MIB,
                64 * MIB,
                "active",
                f"label.number={number} console=mktty0",
                epoch=1,
            )
            for number in range(64)
        },
    )
    began = time.process_time()
    result = run_module(info, host)
    assert time.process_time() - began < 0.5
    assert len(result["instances"]) == 64
    assert {one["state"] for one in result["instances"]} == {"active"}
    assert result["instances"][0]["labels"] == {"number": "0"}
