# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host is to be at boot: kept, taken away and left alone by the modules, and told by info."""

from __future__ import annotations

import json
import os
import sys

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.common.command import Done
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import apply as _apply
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import declared as _declared
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import kerf as _kerf
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import planner as _planner
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import units as _units
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import Paths
from ansible_collections.mkops.multikernel.plugins.module_utils.program.main import main
from ansible_collections.mkops.multikernel.plugins.modules import info, instance, layout, pool
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import MIB, POOL_BASE

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
        "defaults": {**shared, "state": "started", "cpu_policy": ["cores"], "timeout": 60},
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


# What systemd is told


HEAD = (
    "# Follows from what is declared in /etc/mkops/layout.json: change it there, or add a drop-in of another"
    " name.\n"
)


@pytest.fixture
def settings(host):
    return lambda name="red": host.root / f"etc/systemd/system/mkops@{name}.service.d/50-mkops.conf"


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        (
            {"restart": "always"},
            "[Unit]\nStartLimitIntervalSec=600\nStartLimitBurst=5\n\n"
            "[Service]\nRestart=always\nRestartForceExitStatus=6\nRestartSec=1\n",
        ),
        (
            {
                "restart": "on-failure",
                "restart_delay": 0,
                "restart_delay_max": "90",
                "restart_steps": 3,
                "restart_limit": 7,
                "restart_interval": 0,
                "watchdog": 30,
            },
            "[Unit]\nStartLimitIntervalSec=0\nStartLimitBurst=7\n\n"
            "[Service]\nRestart=on-failure\nRestartForceExitStatus=6\nRestartSec=0\nRestartSteps=3\n"
            "RestartMaxDelaySec=90\nWatchdogSec=30\n",
        ),
        ({"watchdog": 5}, "[Service]\nWatchdogSec=5\n"),
        ({"restart": "no", "restart_delay": 9}, ""),
        ({"restart_limit": 9}, ""),
        ({"crash_keep": 3, "crash_size": "2G", "crash_memory": True}, ""),
        ({}, ""),
    ],
)
def test_what_systemd_does_follows_from_what_is_declared(
    host, file, run_module, red, settings, options, lines
):
    run_module(pool, host, **POOL)
    result = four_times(run_module, host, file, instance, at_boot=True, **red, **options)
    assert (settings().read_text() if settings().exists() else "") == (HEAD + lines if lines else "")
    if lines:
        assert result["steps"][-1] == "at_boot"
        assert result["diff"]["after"]["units"] == {"mkops@red.service": HEAD + lines}
        assert result["diff"]["before"]["units"] == {}
        # Somebody's hand is in it: the next task mends it, whatever it is about.
        settings().write_text("[Service]\nRestart=no\n")
        assert four_times(run_module, host, file, pool, at_boot=True, **POOL)["changed"]
        assert settings().read_text() == HEAD + lines
        (settings().parent / "mine.conf").touch()
    four_times(run_module, host, file, instance, at_boot=True, **red)
    assert not settings().exists()
    if lines:
        assert (settings().parent / "mine.conf").exists()
        (settings().parent / "mine.conf").unlink()
        four_times(run_module, host, file, instance, at_boot=True, **red, **options)
    result = four_times(
        run_module, host, file, instance, name="red", state="absent", force=True, at_boot=True
    )
    assert not settings().parent.exists() or not lines


def test_all_that_is_declared_has_its_settings(host, file, run_module, red, settings, kept):
    wish = {
        "defaults": {"restart": False, "watchdog": 9},
        "instances": {"red": {**kept, "restart": "always"}},
    }
    blue = {**kept, "cpus": "3"}
    four_times(run_module, host, file, layout, pool=POOL, at_boot=True, **wish)
    four_times(run_module, host, file, layout, at_boot=True, instances={"blue": blue})
    assert (settings().exists(), settings("blue").exists()) == (True, False)
    four_times(run_module, host, file, layout, instances={"blue": {**blue, "watchdog": 9}}, at_boot=True)
    four_times(run_module, host, file, layout, instances={"blue": blue}, at_boot=True, prune=True)
    assert (settings().exists(), settings("blue").exists(), list(read(file)["instances"])) == (
        *(False, False),
        ["blue"],
    )


def test_systemd_reads_it_again_and_says_what_it_cannot_do(
    host, file, run_module, red, settings, monkeypatch
):
    calls = []
    monkeypatch.setattr(_units, "must", lambda argv, _purpose, **_manner: calls.append(argv))
    monkeypatch.setattr(_units, "run", lambda argv, **_manner: Done(tuple(argv), 0, "systemd 252 (252.38)\n"))
    run_module(pool, host, **POOL)
    (host.root / "run/systemd/system").mkdir(parents=True)
    wish = {**red, "restart": "always", "restart_delay_max": 60}
    told = four_times(run_module, host, file, instance, at_boot=True, **wish)["warnings"]
    assert told == [
        "restart_delay_max of red has no effect here: it needs systemd 254, and this is 252. The delay stays"
        " as restart_delay says"
    ]
    assert calls == [["systemctl", "daemon-reload"]]
    monkeypatch.setattr(_units, "run", lambda argv, **_manner: Done(tuple(argv), 0, "systemd 257 (257)\n"))
    assert "warnings" not in run_module(instance, host, at_boot=True, **wish)
    monkeypatch.setattr(_units, "run", lambda argv, **_manner: Done(tuple(argv), 1, ""))
    assert "warnings" not in run_module(instance, host, at_boot=True, **wish)


def test_what_a_task_starts_is_watched_again(host, file, run_module, red, monkeypatch):
    """Its unit may have given it up."""
    calls = []
    monkeypatch.setattr(_units, "run", lambda argv, **_manner: calls.append(argv) or Done((), 0))
    monkeypatch.setattr(_units, "must", lambda *_args, **_manner: None)
    run_module(pool, host, **POOL)
    (host.root / "run/systemd/system").mkdir(parents=True)
    run_module(instance, host, **red)
    assert calls == []  # nothing is declared
    run_module(instance, host, at_boot=True, **red)
    assert calls == []
    host.instances["red"].status, host.instances["red"].exit_reason = "loaded", "panic: oh"
    host.sync()
    run_module(instance, host, _check=True, name="red", state="started")
    assert calls == []
    run_module(instance, host, name="red", state="started")
    assert calls == [["systemctl", "start", "--no-block", "mkops-adopt.service"]]

    def gone(*_args, **_manner):
        raise FileNotFoundError

    monkeypatch.setattr(_units, "run", gone)
    host.instances["red"].status = "loaded"
    host.sync()
    assert run_module(instance, host, name="red", state="started")["steps"] == ["start"]


@pytest.mark.parametrize("wish", [{"name": "red", "state": "absent"}, {"instances": {}, "prune": True}])
def test_what_is_removed_and_still_declared_is_told(host, file, run_module, red, wish):
    module = instance if "name" in wish else layout
    run_module(layout, host, pool=POOL, instances=[{**red, "wait": None}], at_boot=True)
    check = run_module(module, host, _check=True, **wish)
    told = run_module(module, host, **wish)["warnings"]
    words = (
        f"instance red is made again when the host boots, because {file} still declares it:"
        " at_boot: true takes what is absent out of that file"
    )
    assert [told, check["warnings"]] == [[words], [words]]
    assert "warnings" not in run_module(module, host, **wish)
    assert "warnings" not in run_module(module, host, at_boot=True, **wish)
    file.write_text("{")
    run_module(instance, host, **red)
    assert "warnings" not in run_module(module, host, **wish)


def test_settings_without_at_boot_are_said_to_have_no_effect(host, file, run_module, red, settings):
    run_module(pool, host, **POOL)
    result = four_times(run_module, host, file, instance, restart_limit=2, watchdog=30, **red)
    assert result["warnings"] == [
        "restart_limit, watchdog of instance red has an effect only with at_boot: true, which has systemd"
        " watch it"
    ]
    assert not settings().exists()
    assert "warnings" not in four_times(run_module, host, file, instance, at_boot=False, watchdog=30, **red)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"restart": "sometimes"}, "'sometimes' is not one of always, on-failure, no"),
        ({"restart": True}, "true is not a string"),
        ({"restart_delay": -1}, "restart_delay: -1 is too short"),
        ({"restart_delay": 10**7}, "restart_delay: 10000000 is too long"),
        ({"restart_delay_max": 0}, "restart_delay_max: 0 is too short"),
        ({"restart_delay": 60, "restart_delay_max": 60}, "60 is not more than restart_delay, which is 60"),
        ({"restart_steps": 0}, "restart_steps: 0 is out of range"),
        ({"restart_limit": 10**6}, "restart_limit: 1000000 is out of range"),
        ({"restart_interval": "1h"}, "restart_interval: '1h' is not a whole number"),
        ({"watchdog": 4}, "watchdog: 4 is too short"),
        ({"watchdog": "5\nExecStart=/x"}, "is not a whole number"),
        ({"crash_keep": 0}, "crash_keep: 0 is out of range"),
        ({"crash_size": "much"}, "crash_size: 'much' is"),
        ({"crash_memory": "perhaps"}, "crash_memory: 'perhaps' is neither true nor false"),
    ],
)
def test_settings_that_make_no_sense(host, file, run_module, kept, settings, options, words):
    run_module(pool, host, **POOL)
    before = host.snapshot()
    for place in (
        {"instances": {"red": {**kept, **options}}},
        {"instances": {"red": kept}, "defaults": options},
    ):
        result = run_module(layout, host, at_boot=True, **place)
        assert any(words in reason for reason in result["reasons"]), result
    assert (host.snapshot(), file.exists(), settings().exists()) == (before, False, False)


def test_settings_that_cannot_be_written(host, file, run_module, red, settings):
    run_module(pool, host, **POOL)
    settings().parent.parent.mkdir(parents=True)
    settings().parent.write_text("")
    result = run_module(instance, host, at_boot=True, restart="always", **red)
    assert "50-mkops.conf cannot be changed" in result["msg"]
    assert (result["changed"], file.exists()) == (True, False)  # so that the next run goes on
    settings().parent.unlink()
    assert run_module(instance, host, at_boot=True, restart="always", **red)["steps"] == ["at_boot"]


def test_settings_are_what_a_file_says(host, file, run_module, red, settings):
    """Not a link to somewhere else."""
    run_module(pool, host, **POOL)
    settings().mkdir(parents=True)
    result = run_module(instance, host, at_boot=True, restart="always", **red)
    assert "50-mkops.conf cannot be changed" in result["msg"]


def test_a_kernel_that_tells_no_heartbeats_has_no_watchdog(make_host, run_module, red):
    host = make_host(series="upstream", pool_cpus=[4, 6], chunks=[(POOL_BASE, 512 * MIB, 0)])
    result = run_module(instance, host, watchdog=30, at_boot=True, **red)
    assert "watchdog of instance red needs a kernel that reports the heartbeats" in result["reasons"][0]


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
