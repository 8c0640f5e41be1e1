# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host is to be at boot: kept, taken away and left alone by the modules, and told by info."""

from __future__ import annotations

import json
import os
import sys

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.divide import apply as _apply
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import declared as _declared
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import kerf as _kerf
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import planner as _planner
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import Paths
from ansible_collections.mkops.multikernel.plugins.module_utils.program.main import main
from ansible_collections.mkops.multikernel.plugins.modules import info, instance, layout, pool

POOL = {"cpus": "2-3", "memory": "512M"}


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    monkeypatch.setattr(_apply, "SETTLE", 0.1)
    monkeypatch.setattr(_apply, "SETTLE_AFTER_ERROR", 0)


@pytest.fixture
def file(host):
    return host.root / "etc/mkops/layout.json"


@pytest.fixture
def red(vmlinux, initrd):
    return {
        "name": "red",
        "state": "started",
        "cpus": "2",
        "memory": "128M",
        "kernel": str(vmlinux),
        "initrd": str(initrd),
        "network": {"address": "dhcp"},
    }


@pytest.fixture
def kept(red):
    """The same as it is kept."""
    return {key: value for key, value in red.items() if key != "name"}


def read(file):
    return json.loads(file.read_text()) if file.exists() else {}


def four_times(run_module, host, file, module, **params):
    """Check, apply, check, apply; the result of the first run."""
    before = read(file)
    check = run_module(module, host, _check=True, **params)
    assert read(file) == before
    apply = run_module(module, host, **params)
    content = file.read_bytes() if file.exists() else None
    check_again = run_module(module, host, _check=True, **params)
    again = run_module(module, host, **params)
    assert not any(run.get("failed") for run in (check, apply, check_again, again)), apply
    assert check["changed"] == apply["changed"]
    assert (check["steps"], check["diff"]) == (apply["steps"], apply["diff"])
    assert [run["changed"] for run in (check_again, again)] == [False, False]
    assert (file.read_bytes() if file.exists() else None) == content
    assert again["diff"]["before"] == again["diff"]["after"]
    if params.get("at_boot") is None:
        assert "at_boot" not in apply
        assert "at_boot" not in apply["diff"]["after"]
    else:
        assert (check["at_boot"], apply["at_boot"]) == (before, read(file))
        assert apply["diff"]["before"]["at_boot"] == before
        assert apply["diff"]["after"]["at_boot"] == read(file)
    return apply


def test_a_layout_is_kept_and_taken_away(host, file, run_module, red, kept):
    shared = {key: red[key] for key in ("kernel", "initrd", "memory")}
    wish = {
        "pool": POOL,
        "defaults": {**shared, "state": "started", "cpu_policy": ["cores"], "restart": "always"},
        "profiles": {"wired": {"network": red["network"]}},
        "instances": {"red": {"cpus": "2", "profile": "wired"}, "blue": {"state": "absent"}},
        "headroom": "128M",
    }
    result = four_times(run_module, host, file, layout, at_boot=True, **wish)
    assert result["steps"][-1] == f"at_boot: pool, red in {file}"
    assert read(file) == {"headroom": "128M", "instances": {"red": kept}, "pool": POOL}
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().startswith(
        '{\n  "headroom": "128M",\n  "instances": {\n    "red": {\n      "cpus"'
    )
    four_times(run_module, host, file, layout, **wish)
    assert read(file)["pool"] == POOL
    again = four_times(run_module, host, file, layout, at_boot=False, **wish)
    assert (again["steps"], file.exists(), host.instances["red"].status) == (
        [f"at_boot: pool, red in {file}"],
        False,
        "active",
    )


def test_each_module_adds_its_part_and_takes_it_away(host, file, run_module, red, kept):
    four_times(run_module, host, file, pool, at_boot=True, host_cpus=2, **POOL)
    assert read(file) == {"host_cpus": 2, "pool": POOL}
    result = four_times(run_module, host, file, instance, at_boot=True, **red)
    assert result["steps"] == ["create", "load", "start", "at_boot"]
    assert read(file) == {"host_cpus": 2, "pool": POOL, "instances": {"red": kept}}
    blue = {**kept, "cpus": "3"}
    four_times(run_module, host, file, layout, at_boot=True, instances={"blue": blue})
    assert read(file) == {"host_cpus": 2, "pool": POOL, "instances": {"red": kept, "blue": blue}}
    four_times(run_module, host, file, instance, at_boot=False, **red)
    assert list(read(file)["instances"]) == ["blue"]
    four_times(run_module, host, file, layout, at_boot=True, instances={"red": kept}, prune=True)
    assert list(read(file)["instances"]) == ["red"]
    four_times(run_module, host, file, instance, name="red", state="absent", at_boot=True)
    assert read(file) == {"host_cpus": 2, "pool": POOL}
    four_times(run_module, host, file, pool, state="absent", at_boot=True)
    assert not file.exists()


def test_not_said_is_as_it_was(host, file, run_module, red, kept):
    run_module(layout, host, pool=POOL, instances=[red], at_boot=True)
    content = file.read_bytes()
    four_times(run_module, host, file, instance, name="red", state="stopped")
    four_times(run_module, host, file, instance, name="red", state="absent", force=True)
    four_times(run_module, host, file, pool, cpus="3", memory="512M")
    assert file.read_bytes() == content


def test_mkops_apply_makes_the_host_what_is_kept(host, file, run_module, red, capsys):
    run_module(layout, host, pool=POOL, instances=[red], at_boot=True)
    paths = Paths(str(host.root))
    assert main(["apply"], paths=paths) == 0
    assert "nothing to do" in capsys.readouterr().out
    host.instances.clear()  # a boot
    host.pool_cpus.clear()
    host.chunks.clear()
    host.sync()
    assert main(["apply"], paths=paths) == 0
    assert host.instances["red"].status == "active"


def test_another_kerf_is_kept(host, file, run_module, red, tmp_path):
    other = str(tmp_path / "kerf")
    run_module(pool, host, at_boot=True, kerf=other, **POOL)
    assert read(file) == {"kerf": other, "pool": POOL}


def test_a_run_without_a_change_plans_nothing(host, file, run_module, red, monkeypatch):
    run_module(layout, host, pool=POOL, instances=[red], at_boot=True)
    monkeypatch.setattr(_kerf, "run", None)
    monkeypatch.setitem(sys.modules, _planner.__name__, None)
    assert not run_module(layout, host, pool=POOL, instances=[red], at_boot=True)["changed"]
    monkeypatch.setitem(sys.modules, _declared.__name__, None)  # nor is it read where nothing is said of it
    assert not run_module(layout, host, pool=POOL, instances=[red])["changed"]


# What is written by hand


def test_what_somebody_has_written_by_hand_keeps_its_meaning(host, file, run_module, red, kept):
    run_module(pool, host, **POOL)
    file.parent.mkdir(parents=True)
    shared = {"kernel": kept["kernel"], "memory": "128M", "wait": "heartbeat"}
    written = {
        "prune": True,
        "defaults": shared,
        "pool": {**POOL, "state": "present"},
        "instances": [{"name": "green", "cpus": 3}],
    }
    file.write_text(json.dumps(written))
    file.chmod(0o600)
    # What is not changed keeps its form, too.
    four_times(run_module, host, file, pool, at_boot=True, **POOL)
    assert read(file) == written
    four_times(run_module, host, file, instance, at_boot=True, **red)
    assert read(file) == {
        "instances": {"green": {"cpus": 3, **shared}, "red": kept},
        "pool": POOL,
        "prune": True,
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["line 1, column 2"]),
        (
            '{"instances": {"a": {"cpus": "x", "memory": "y"}, "b": 5}, "pool": 7}',
            ["cpus", "memory", "b:", "7"],
        ),
        ('{"instances": {"a": {"cpus": 2}, "b": {"cpus": 2}}}', ["CPU 2 is declared for a and for b"]),
        ('{"colour": "red"}', ["there is no option 'colour'"]),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_nonsense_is_refused_and_left(host, file, run_module, red, text, words, check):
    run_module(pool, host, **POOL)
    file.parent.mkdir(parents=True)
    file.write_text(text)
    file.chmod(0o600)
    before = host.snapshot()
    for module, params in ((instance, red), (pool, POOL), (layout, {"instances": [red]})):
        result = run_module(module, host, _check=check, at_boot=True, **params)
        assert result["failed"]
        assert all(any(word in reason for reason in result["reasons"]) for word in words), result["reasons"]
        assert all(str(file) in reason for reason in result["reasons"])
    assert (host.snapshot(), file.read_text()) == (before, text)
    assert not run_module(instance, host, **red).get("failed")  # who does not ask for it, does not care
    told = run_module(info, host)["at_boot"]
    assert all(any(word in reason for reason in told["reasons"]) for word in words)


# What cannot be kept


def refused(run_module, host, file, module, **params):
    before = host.snapshot()
    reasons = []
    for check in (True, False):
        result = run_module(module, host, _check=check, at_boot=True, **params)
        assert result["failed"], result
        reasons.append(result["reasons"])
    assert set(reasons[0]) <= set(reasons[1])  # in check mode, without what an earlier task may see to
    assert (host.snapshot(), file.exists()) == (before, False)
    return reasons[0]


def test_what_is_not_whole_cannot_be_made_at_boot(host, file, run_module, red):
    run_module(layout, host, pool=POOL, instances=[red])
    assert refused(run_module, host, file, pool, memory="512M") == [
        "at_boot: the pool cannot be made at boot without cpus or cpu_count: say it here as well"
    ]
    told = refused(
        run_module, host, file, layout, instances={"red": {"state": "started"}, "a": {"cpus": "x"}}
    )
    assert any(
        "red cannot be made at boot without cpus or cpu_count and memory and kernel" in one for one in told
    )
    assert any("a cannot be made at boot without memory" in one for one in told)
    assert any("instance a: cpus" in one for one in told)


def test_what_contradicts_what_is_kept(host, file, run_module, red):
    run_module(layout, host, pool=POOL, instances=[red], at_boot=True)
    run_module(instance, host, name="red", state="absent")
    content = file.read_bytes()
    result = run_module(instance, host, **{**red, "name": "blue"}, at_boot=True)
    assert result["reasons"][0].startswith("at_boot: CPU 2 is declared for red and for blue")
    assert (file.read_bytes(), host.instances) == (content, {})


def test_what_json_cannot_hold(host, file, run_module, red):
    run_module(pool, host, **POOL)
    result = run_module(instance, host, **{**red, "labels": {"a": float("nan")}}, at_boot=True)
    assert result["failed"]
    assert "at_boot: a file cannot keep this" in result["reasons"][0]
    assert host.instances == {}


# Faults


def test_a_step_that_fails_keeps_nothing(host, file, run_module, red):
    run_module(pool, host, **POOL)
    host.broken["start"] = "no"
    assert run_module(instance, host, at_boot=True, **red)["failed"]
    assert not file.exists()


def test_a_file_that_cannot_be_written(host, file, run_module, red):
    run_module(pool, host, **POOL)
    file.parent.parent.mkdir(parents=True, exist_ok=True)
    file.parent.write_text("")
    result = run_module(instance, host, at_boot=True, **red)
    assert "layout.json cannot be written" in result["msg"]
    assert result["changed"]
    assert result["steps"][-1].startswith("start red")
    result = run_module(instance, host, at_boot=True, **red)
    assert (result["changed"], result["steps"]) == (False, [])


def test_a_wait_in_vain_keeps_it_all_the_same(host, file, run_module, red, monkeypatch):
    run_module(pool, host, **POOL)
    monkeypatch.setattr(_apply.KernelFs, "heartbeat_age", lambda _kernel, _name: None)
    result = run_module(instance, host, at_boot=True, wait="heartbeat", timeout=1, **red)
    assert "no sign of its heartbeat" in result["msg"]
    assert result["steps"][-1].startswith("at_boot: red in ")
    assert list(read(file)["instances"]) == ["red"]


def test_one_that_others_can_write_is_not_trusted(host, file, run_module, red):
    run_module(layout, host, pool=POOL, instances=[red], at_boot=True)
    os.chmod(file, 0o666)
    result = run_module(instance, host, at_boot=True, **red)
    assert "can be written by " in result["reasons"][0]


# info


def test_info_tells_what_is_kept_and_how_the_host_differs(host, file, run_module, red, kept):
    assert run_module(info, host)["at_boot"] == {
        "path": str(file),
        "layout": {},
        "drift": [],
        "reasons": [],
    }
    run_module(layout, host, pool=POOL, instances=[red], at_boot=True)
    told = run_module(info, host)["at_boot"]
    assert told == {"path": str(file), "layout": read(file), "drift": [], "reasons": []}
    run_module(instance, host, name="red", state="stopped")
    run_module(instance, host, name="blue", cpus=3, memory="64M")
    assert run_module(info, host)["at_boot"]["drift"] == ["blue is not declared", "start red"]
    run_module(instance, host, name="red", state="absent")
    run_module(instance, host, name="blue", cpus="2-3")
    told = run_module(info, host)["at_boot"]
    assert told["drift"] == ["blue is not declared"]
    assert "CPU 2" in told["reasons"][0]
