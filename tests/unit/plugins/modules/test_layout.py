# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from ansible_collections.mkops.multikernel.plugins.module_utils.common.command import run
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import apply as _apply
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import kerf as _kerf
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import planner
from ansible_collections.mkops.multikernel.plugins.modules import layout
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import MIB, POOL_BASE, FakeInstance


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    monkeypatch.setattr(_apply, "SETTLE", 0.1)
    monkeypatch.setattr(_apply, "SETTLE_AFTER_ERROR", 0)


@pytest.fixture
def machine(make_host):
    return make_host(cpus=8, memory_mib=4096)


@pytest.fixture
def wish(vmlinux, initrd):
    return {
        "pool": {"cpus": "2-7", "memory": "2G"},
        "defaults": {"state": "started", "kernel": str(vmlinux), "initrd": str(initrd), "memory": "256M"},
        "instances": [
            {"name": "red", "cpus": "2-3"},
            {"name": "blue", "cpu_count": 2},
            {"name": "spare", "cpu_count": 1, "state": "present"},
        ],
    }


def steps(result):
    return [step.partition(":")[0] for step in result["steps"]]


def test_check_apply_check_apply(machine, run_module, wish):
    before = machine.snapshot()
    check = run_module(layout, machine, _check=True, **wish)
    assert machine.snapshot() == before
    assert machine.changes == []
    apply = run_module(layout, machine, **wish)
    after = machine.snapshot()
    check_again = run_module(layout, machine, _check=True, **wish)
    again = run_module(layout, machine, **wish)
    assert machine.snapshot() == after
    assert [run["changed"] for run in (check, apply, check_again, again)] == [True, True, False, False]
    assert steps(apply) == [
        "set_pool",
        *["create red", "create blue", "create spare"],
        *["load red", "start red", "load blue", "start blue"],
    ]
    assert check["steps"] == apply["steps"]
    assert check["commands"] == apply["commands"]  # what a person could have typed is known beforehand
    assert check["diff"] == apply["diff"] == {"before": apply["before"], "after": apply["after"]}
    assert again["before"] == again["after"] == apply["after"]
    assert (again["steps"], again["commands"]) == ([], [])
    assert [(one["name"], one["cpus"]) for one in again["instances"]] == [
        ("blue", [4, 5]),
        ("red", [2, 3]),
        ("spare", [6]),
    ]


def test_an_unchanged_run_starts_no_process_and_plans_nothing(machine, run_module, wish, monkeypatch):
    run_module(layout, machine, **wish)
    monkeypatch.setattr(_kerf, "run", None)
    package = planner.__name__.rpartition(".divide.")[0]
    for name in ("divide.planner", "divide.apply", "devices.declare", "devices.record"):
        monkeypatch.setitem(sys.modules, f"{package}.{name}", None)  # cannot be imported
    machine.version = "0.1"
    assert not run_module(layout, machine, **wish)["changed"]


def test_a_cpu_passes_from_one_to_the_other_while_both_run(machine, run_module, wish):
    run_module(layout, machine, **wish)
    epochs = {name: one.epoch for name, one in machine.instances.items()}
    hand_over = {"instances": [{"name": "blue", "cpus": "3-5"}, {"name": "red", "cpus": "2"}]}
    result = run_module(layout, machine, **hand_over)
    assert result["steps"] == [
        "set_cpus red: CPUs 2 instead of 2-3",
        "set_cpus blue: CPUs 3-5 instead of 4-5",
    ]
    assert {name: one.epoch for name, one in machine.instances.items()} == epochs
    assert not run_module(layout, machine, **hand_over)["changed"]


def test_instances_that_trade_their_only_cpus_are_made_anew(machine, run_module, wish):
    wish["pool"]["cpus"] = "2-3"
    wish["instances"] = [{"name": "red", "cpus": 2}, {"name": "blue", "cpus": 3}]
    run_module(layout, machine, **wish)
    wish["instances"] = [{"name": "red", "cpus": 3}, {"name": "blue", "cpus": 2}]
    refused = run_module(layout, machine, **wish)
    assert "instance red runs and would need a restart" in refused["msg"]
    wish["defaults"]["allow_restart"] = True
    result = run_module(layout, machine, **wish)
    assert result["after"]["instances"]["red"]["cpus"] == "3"
    assert not run_module(layout, machine, **wish)["changed"]


def test_memory_passes_by_way_of_the_pool(machine, run_module, wish):
    wish["pool"]["memory"] = "768M"
    wish["instances"] = [{"name": "red", "cpus": 2, "memory": "384M"}, {"name": "blue", "cpus": 3}]
    run_module(layout, machine, **wish)
    wish["instances"][0]["state"] = "absent"
    wish["instances"][1]["memory"] = "640M"
    result = run_module(layout, machine, **wish)
    assert steps(result) == ["kill red", "unload red", "delete red", "set_memory blue"]
    assert machine.instances["blue"].epoch == 1


def test_the_pool_follows(machine, run_module, wish):
    run_module(layout, machine, **wish)
    wish["pool"] = {"cpus": "all but 1", "memory": "2G"}
    assert run_module(layout, machine, **wish)["pool"]["cpus"] == [1, 2, 3, 4, 5, 6, 7]
    wish["pool"] = {"cpu_count": 5, "memory": "2G"}
    result = run_module(layout, machine, **wish)
    assert steps(result) == ["set_pool"]
    assert set(result["pool"]["cpus"]) >= {2, 3, 4, 5, 6}
    assert not run_module(layout, machine, **wish)["changed"]


def test_undeclared_instances_stay_or_are_pruned(machine, run_module, wish):
    run_module(layout, machine, **wish)
    machine.run(["kerf", "create", "by-hand", "--cpus=14", "--memory=67108864"], 1)
    assert not run_module(layout, machine, **wish)["changed"]
    assert steps(run_module(layout, machine, prune=True, **wish)) == ["delete by-hand"]
    only = {"instances": [{"name": "red"}], "prune": True}
    assert steps(run_module(layout, machine, **only)) == [
        *["kill blue", "unload blue", "delete blue"],
        "delete spare",
    ]


def test_all_of_it_away(machine, run_module, wish):
    run_module(layout, machine, **wish)
    gone = {"pool": {"state": "absent"}, "prune": True}
    result = run_module(layout, machine, **gone)
    assert (machine.instances, machine.pool_cpus, machine.chunks) == ({}, [], [])
    assert result["after"] == {"pool": {}, "instances": {"blue": {}, "red": {}, "spare": {}}}
    assert not run_module(layout, machine, **gone)["changed"]


def test_instances_made_by_hand_are_adopted(machine, run_module, wish):
    commands = run_module(layout, machine, _check=True, **wish)["commands"]
    for command in commands:
        machine.run(command.split(), 1)
    assert not run_module(layout, machine, **wish)["changed"]


def test_profiles(machine, run_module, wish, tmp_path, vmlinux):
    other = tmp_path / "realtime"
    other.write_bytes(vmlinux.read_bytes() + b"rt")
    wish["profiles"] = {"realtime": {"kernel": str(other), "cmdline": "quiet"}}
    wish["instances"][0]["profile"] = "realtime"
    run_module(layout, machine, **wish)
    assert machine.instances["red"].cmdline == "quiet console=mktty0"
    assert machine.instances["blue"].cmdline == "console=mktty0"
    wish["instances"][0]["profile"] = "none such"
    assert "there is no profile none such: choose from realtime" in run_module(layout, machine, **wish)["msg"]


def test_a_failed_step_says_what_was_done(machine, run_module, wish):
    machine.broken["load"] = "Error: kexec_file_load failed: [Errno 8] Exec format error"
    result = run_module(layout, machine, **wish)
    assert result["failed"]
    assert result["changed"]
    assert steps(result) == ["set_pool", "create red", "create blue", "create spare"]
    assert result["msg"].startswith("layout: instance red: after kerf load it is ready, not loaded")
    del machine.broken["load"]
    assert steps(run_module(layout, machine, **wish)) == ["load red", "start red", "load blue", "start blue"]


def test_a_busy_loader_is_asked_again(machine, run_module, wish, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    busy = iter([True, True, False])

    def run(argv, timeout, **_manner):
        if argv[1] == "load" and next(busy, False):
            machine.calls.append(list(argv))
            return _kerf.Done(("load",), 1, "", "Error: kexec_file_load failed: [Errno 16] Device busy")
        return machine.run(argv, timeout)

    monkeypatch.setattr(_kerf, "run", run)
    assert not run_module(layout, machine, **wish).get("failed")
    assert sum(call[0] == "load" for call in machine.changes) == 4


def test_what_images_leave_behind_is_removed(machine, run_module, wish):
    run_module(layout, machine, **wish)
    machine.write("/var/lib/kerf/rootfs/red/etc/passwd", "root")
    (machine.root / "var/lib/kerf/daxfs/red").mkdir(parents=True)
    wish["instances"][0]["state"] = "absent"
    run_module(layout, machine, **wish)
    assert not (machine.root / "var/lib/kerf/rootfs/red").exists()
    assert not (machine.root / "var/lib/kerf/daxfs/red").exists()


def test_an_image_that_is_still_mounted_is_unmounted(machine, run_module, wish, monkeypatch):
    run_module(layout, machine, **wish)
    mounted = machine.root / "var/lib/kerf/daxfs/red"
    mounted.mkdir(parents=True)
    with (machine.root / "proc/mounts").open("a") as mounts:
        mounts.write(f"none {mounted} daxfs ro 0 0\n")
    asked = []

    def run(argv, timeout, **manner):
        if argv[0] != "umount":
            return machine.run(argv, timeout, **manner)
        asked.append(argv)
        return _kerf.Done(tuple(argv), 0)

    monkeypatch.setattr(_kerf, "run", run)
    wish["instances"][0]["state"] = "absent"
    assert not run_module(layout, machine, **wish).get("failed")
    assert asked == [["umount", str(mounted)]]
    assert not mounted.exists()


def test_numa(make_host, run_module, wish):
    host = make_host(cpus=8, threads=2, nodes=2, memory_mib=4096)
    wish["pool"] = {"cpus": [2, 3, 6, 7, 1, 5], "memory": {0: "512M", 1: "1G"}}
    wish["instances"] = [{"name": "red", "cpu_count": 4, "cpu_policy": ["node", "cores"], "memory": "640M"}]
    result = run_module(layout, host, **wish)
    assert result["instances"][0]["cpus"] == [2, 6, 3, 7]
    assert "--numa-nodes=1" in result["commands"][1]
    assert not run_module(layout, host, **wish)["changed"]


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pool": {"cpus": "0,2-7", "memory": "2G"}}, ["CPU 0 is the boot CPU"]),
        ({"pool": {"cpus": "all but 0", "memory": "2G"}}, ["all but 0 cannot go to the pool"]),
        ({"pool": {"cpus": "all but 8", "memory": "2G"}}, ["all but 8 cannot go to the pool"]),
        ({"pool": {"cpu_count": 0}}, ["cpu_count: 0 is too few"]),
        ({"pool": {"cpu_count": 3, "cpus": 3, "memory": "2G"}}, ["cpus and cpu_count exclude each other"]),
        ({"pool": {"cpus": "2-7", "memory": "2G", "devices": ["0000:00:03.0"]}}, ["lends no devices"]),
        ({"pool": {"cpus": "2-7", "memory": "2G", "devices": ["eth0"]}}, ["'eth0' is not a PCI address"]),
        (
            {"pool": {"cpus": "2-7", "memory": "2G", "odd": 1}},
            ["pool: there is no option 'odd': the options are"],
        ),
        (
            {"pool": {"cpus": "2-7", "memory": "2G"}, "host_cpus": 3},
            ["the host would keep only 2 CPUs, but host_cpus reserves 3"],
        ),
        ({"host_cpus": 0}, ["host_cpus: 0 is too few"]),
        ({"headroom": "3G"}, ["keeps 3 GiB of it"]),
        (
            {"instances": [{"name": "a", "cpus": 2}, {"name": "a", "cpus": 3}]},
            ["instance a is declared twice"],
        ),
        (
            {"instances": [{"name": "a", "cpus": 2}, {"name": "b", "cpus": "2-3"}]},
            ["CPU 2 is declared for a and for b"],
        ),
        (
            {"instances": [{"name": "a", "cpus": 2, "id": 3}, {"name": "b", "cpus": 3, "id": 3}]},
            ["id 3 is declared for a and for b"],
        ),
        ({"instances": [{"name": "a", "cpus": 1}]}, ["CPU 1 is not in the pool"]),
        (
            {"instances": [{"name": "a", "cpu_count": 7}]},
            ["instance a needs 7 CPUs, but the pool has only 6"],
        ),
        (
            {"instances": [{"name": "a", "cpu_count": 2, "memory": "3G"}]},
            ["instance a needs 3 GiB, but the pool has only"],
        ),
        ({"instances": [{"name": "a", "cpu_count": 2, "memory": "16M"}]}, ["is too small for a kernel"]),
        ({"instances": [{"cpu_count": 2}]}, ["instance 1 of the list: name is missing"]),
        (
            {"instances": [{"name": "a", "cpu_count": "x"}]},
            ["instance a: cpu_count: 'x' is not a whole number"],
        ),
        (
            {"instances": [{"name": "a", "cpu_count": 2, "cpu_policy": ["cache"]}]},
            ["cannot have 2 CPUs with policy cache"],
        ),
        (
            {"instances": [{"name": "a", "cpu_count": 2, "cpu_policy": ["best"]}]},
            ["instance a: cpu_policy: 'best' is not one of cores, node, spread, cache"],
        ),
        (
            {"instances": [{"name": "a", "cpu_count": 1, "network": {"address": "dhcp", "gateway": "x"}}]},
            ["gateway and address: dhcp exclude each other"],
        ),
        (
            {"instances": [{"name": "a", "cpu_count": 1, "network": {"address": "10.0.0", "gateway": "x"}}]},
            ["address '10.0.0' is not", "gateway 'x' is not"],
        ),
        (
            {"instances": [{"name": "a", "cpu_count": 1, "labels": {"a b": "c", "d": "e f"}}]},
            ["'a b'", "'e f'"],
        ),
        (
            {"instances": [{"name": "a", "cpu_count": 1, "cmdline": "x" * 2048}]},
            ["a kernel takes at most 2047"],
        ),
        ({"instances": [{"name": "a", "cpu_count": 1, "cmdline": "a\nb"}]}, ["only printable ASCII"]),
        (
            {
                "instances": [
                    {"name": "a", "cpu_count": 1, "cmdline": "ip=dhcp", "network": {"address": "dhcp"}}
                ]
            },
            ["network and ip= in cmdline"],
        ),
        (
            {"instances": [{"name": "a", "cpu_count": 1, "cmdline": "console=x", "console": "y"}]},
            ["console and console= in cmdline"],
        ),
        ({"instances": [{"name": "a", "cpu_count": 1, "console": "a b"}]}, ["console 'a b' is not the name"]),
        ({"instances": [{"name": "a", "cpu_count": 1, "timeout": 0}]}, ["timeout: 0 is too short"]),
        (
            {"instances": [{"name": "a/b", "cpus": "x", "memory": "1Y"}, {"name": "b", "cpus": 0}]},
            ["name 'a/b'", "'x' is neither", "'1Y' is not a size", "CPU 0 is the boot CPU"],
        ),
    ],
)
def test_bad_input_changes_nothing(machine, run_module, wish, change, words, check):
    before = machine.snapshot()
    result = run_module(layout, machine, _check=check, **{**wish, **change})
    assert result["failed"]
    assert all(any(word in reason for reason in result["reasons"]) for word in words), result["reasons"]
    assert machine.snapshot() == before
    assert machine.changes == []


def test_a_pool_that_cannot_shrink(machine, run_module, wish):
    run_module(layout, machine, **wish)
    wish["pool"]["memory"] = "1G"
    result = run_module(layout, machine, **wish)
    assert "node 0 cannot give back 1 GiB" in result["msg"]
    assert "2 GiB (in use)" in result["msg"]


def test_shared_cores_are_warned_of(make_host, run_module, wish):
    host = make_host(cpus=8, threads=2, memory_mib=4096)
    wish["pool"]["cpus"] = "1-3,5-7"
    wish["instances"] = [{"name": "red", "cpus": "1,2"}, {"name": "blue", "cpus": "5"}]
    assert any("threads of blue, red" in text for text in run_module(layout, host, **wish)["warnings"])


def test_a_cache_of_its_own(make_host, run_module, wish):
    host = make_host(cpus=16, threads=2, caches=4, memory_mib=4096)
    wish["pool"]["cpus"] = "2-7,10-15"
    wish["instances"] = [
        {"name": "red", "cpu_count": 3},
        {"name": "blue", "cpu_count": 2, "cpu_policy": ["cache"]},
    ]
    result = run_module(layout, host, **wish)
    caches = {one["name"]: {host.cache_of(cpu) for cpu in one["cpus"]} for one in result["instances"]}
    assert len(caches["blue"]) == 1
    assert not caches["blue"] & caches["red"]
    assert not run_module(layout, host, **wish)["changed"]


def test_an_instance_in_the_way_is_moved(machine, run_module, wish):
    machine.pool_cpus = [4, 6]
    machine.chunks = [(POOL_BASE, 1024 * MIB, 0)]
    machine.instances["a"] = FakeInstance(1, [4], POOL_BASE, 128 * MIB)
    machine.sync()
    result = run_module(
        layout, machine, instances=[{"name": "a", "cpu_count": 1}, {"name": "b", "cpus": 2, "memory": "64M"}]
    )
    assert steps(result) == ["set_cpus a", "set_cpus a", "create b"]
    assert [one["cpus"] for one in result["instances"]] == [[3], [2]]


# The table that the lab goes through on a real kernel

TABLE = next(
    task
    for task in yaml.safe_load((Path(__file__).parents[3] / "lab/bad_input.yml").read_text(encoding="utf-8"))
    if "mkops.multikernel.layout" in task
)["loop"]


def test_the_table_is_long():
    assert len(TABLE) >= 60


# The lab writes a program to that place.
@pytest.mark.parametrize("item", [item for item in TABLE if item.get("kerf") != "/tmp/kerf-0.5.0"], ids=str)
def test_bad_input_of_the_lab(make_host, run_module, wish, tmp_path, monkeypatch, item):
    host = make_host(
        pool_cpus=[4, 6],
        chunks=[(POOL_BASE, 640 * MIB, 0)],
        instances={"red": FakeInstance(1, [4], POOL_BASE, 256 * MIB)},
    )
    defaults = {**wish["defaults"], "cmdline": "loglevel=5"}
    host.kerf_load("red", defaults["kernel"], [], defaults["initrd"], defaults["cmdline"])
    host.kerf_start("red", [])
    host.sync()
    (tmp_path / "not-a-kernel").write_text("not a kernel, not an initramfs\n")
    if "kerf" in item:
        monkeypatch.setattr(_kerf, "run", run)

    def placed(value):
        return yaml.safe_load(yaml.safe_dump(value).replace("/tmp/not-a-kernel", f"{tmp_path}/not-a-kernel"))

    before = host.snapshot()
    reasons = item["reasons"]
    given = placed({key: value for key, value in item.items() if key not in ("reasons", "defaults", "check")})
    result = run_module(layout, host, **given, defaults={**defaults, "memory": "64M"})
    assert result["failed"]
    assert len(result["reasons"]) == len(reasons), result["reasons"]
    said = "; ".join(result["reasons"])
    assert all(reason in said for reason in placed(reasons)), said
    assert host.snapshot() == before
    assert host.changes == []


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize("said", [{}, {"memory": "128M"}, {"id": 1}])
def test_no_running_kernel_is_stopped_for_what_another_one_keeps(
    make_host, run_module, vmlinux, initrd, check, runs, said
):
    host = make_host(cpus=8, memory_mib=4096)
    image = {"kernel": str(vmlinux), "initrd": str(initrd), "state": "started"}
    keeper = {"name": "c", "cpus": "3", "memory": "128M", **image}
    other = {"name": "a", "cpus": "2", "memory": "128M", **image}
    run_module(
        layout, host, pool={"cpus": "2-5", "memory": "1G"}, instances=[keeper, other] if runs else [keeper]
    )
    host.calls.clear()
    taker = {**other, "cpus": "2-3", "allow_restart": True}
    result = run_module(layout, host, _check=check, instances=[taker, {"name": "c", **image, **said}])
    assert result["reasons"] == [
        "CPU 3 is already lent to instance c: choose one of 4-5, or specify other CPUs for c"
    ]
    assert host.changes == []


@pytest.mark.parametrize("series", ["full", "upstream"])
@pytest.mark.parametrize(("pool_cpus", "cpus"), [(18, 3), (49, 48), (130, 104), (220, 200)])
def test_steps_that_kerf_or_the_kernel_cannot_take_in_one_go(make_host, run_module, series, pool_cpus, cpus):
    """kerf makes no tree of some sizes, and Multikernel Linux takes no more than a page."""
    host = make_host(cpus=224, nodes=2, memory_mib=8192, series=series)
    wish = {
        "pool": {"cpu_count": pool_cpus, "memory": {"0": "1G", "1": "1G"}},
        "instances": [{"name": "database-01", "cpu_count": cpus, "memory": "1G"}],
    }
    planned = run_module(layout, host, _check=True, **wish)
    assert "reasons" not in planned, planned["reasons"]
    assert run_module(layout, host, **wish)["commands"] == planned["commands"]
    assert len(host.pool_cpus) == pool_cpus
    assert len(host.instances["database-01"].cpus) == cpus
    assert not run_module(layout, host, **wish)["changed"]
    wish["instances"][0]["cpu_count"] = 1
    wish["pool"]["cpu_count"] = 2
    assert run_module(layout, host, **wish)["changed"]
    assert [len(host.pool_cpus), len(host.instances["database-01"].cpus)] == [2, 1]
    wish = {"pool": {"state": "absent"}, "prune": True}
    assert run_module(layout, host, **wish)["changed"]
    assert (host.pool_cpus, host.chunks) == ([], [])


# Multikernel Linux


@pytest.fixture
def upstream(make_host, monkeypatch, vmlinux, initrd):
    """A host of it, a wish and an image that it does not take."""
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    host = make_host(series="upstream", cpus=8, nodes=2, memory_mib=8192, unloadable="bad")
    bad = vmlinux.with_name("bad")
    bad.write_bytes(vmlinux.read_bytes() + b"other")
    wish = {
        "pool": {"cpus": "2-5", "memory": {"0": "1G", "1": "1G"}},
        "instances": [
            {"name": "a", "cpus": "2-3", "memory": "512M", "kernel": str(bad), "state": "started"},
        ],
    }
    return host, wish, str(vmlinux)


def test_an_instance_that_could_not_be_loaded_is_made_anew(upstream, run_module):
    """There, it would not be loaded any more."""
    host, wish, good = upstream
    result = run_module(layout, host, **wish)
    assert (
        "after kerf load it is ready, not loaded; kerf: Error: kexec_file_load failed: [Errno 8]"
        in result["msg"]
    )
    assert "kernel: kexec_file_load failed: [Errno 8] Exec format error" in result["msg"]
    assert [call[0] for call in host.changes] == ["init", "create", "load", "delete", "create"]
    assert host.changes[-1] == [*host.changes[1], f"--id={host.instances['a'].id}"]
    host.calls.clear()
    wish["instances"][0]["kernel"] = good
    assert run_module(layout, host, **wish)["changed"]
    assert [call[0] for call in host.changes] == ["load", "start"]
    assert not run_module(layout, host, **wish)["changed"]


@pytest.mark.parametrize("cpus", ["3", "2-3", "2-5"])
def test_an_instance_that_others_have_spoiled_is_made_anew(upstream, run_module, cpus):
    host, wish, good = upstream
    wish["instances"][0].update(state="present", cpus=cpus)
    run_module(layout, host, **wish)
    host.instances["a"].spoiled = True
    before = host.instances["a"].id, host.instances["a"].cpus, host.instances["a"].memory
    host.calls.clear()
    wish["instances"][0].update(state="started", kernel=good)
    result = run_module(layout, host, **wish)
    assert steps(result) == ["delete a", "create a", "load a", "start a"]
    assert [call[0] for call in host.changes] == ["load", "load", "delete", "create", "load", "start"]
    now = host.instances["a"]
    assert (now.id, now.cpus, now.memory, now.status) == (*before, "active")
    assert not run_module(layout, host, **wish)["changed"]


def test_what_is_made_anew_and_cannot_be(upstream, run_module):
    host, wish, _good = upstream
    host.broken["delete"] = "Error: no"
    result = run_module(layout, host, **wish)
    assert "instance a: after kerf delete it is ready, not absent; kerf: Error: no" in result["msg"]


def test_memory_in_several_pieces(upstream, run_module):
    host, wish, good = upstream
    wish["instances"] = [{"name": "a", "cpus": "2-5", "memory": "1536M", "kernel": good, "state": "started"}]
    assert run_module(layout, host, **wish)["changed"]
    assert len(host.instances["a"].regions) > 1
    assert not run_module(layout, host, **wish)["changed"]


def test_the_reason_is_not_drowned_by_readings(upstream, run_module):
    host, wish, _good = upstream
    run_module(layout, host, **{**wish, "instances": [{"name": "z", "cpus": 5, "memory": "64M"}]})
    host.broken["create"] = "Error: Overlay transaction 4 failed with status: 'failed'"
    result = run_module(layout, host, **wish)
    assert result["msg"].endswith("kernel: reason of create")
    assert result["kernel_log"] == ["reason of create"]
