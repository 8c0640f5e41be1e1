# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How a run goes: when the host is locked, what is waited for, what the result and check mode tell."""

from __future__ import annotations

import fcntl
import json
import os

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.divide import apply as _apply
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import console as _console
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import converge as _converge
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import planner as _planner
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import ready as _ready
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import KernelFsError
from ansible_collections.mkops.multikernel.plugins.modules import instance, layout, pool
from ansible_collections.mkops.multikernel.tests.unit.boot_rig import Clock
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import MIB, POOL_BASE, FakeInstance


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    monkeypatch.setattr(_apply, "SETTLE", 0.1)
    monkeypatch.setattr(_apply, "SETTLE_AFTER_ERROR", 0)


@pytest.fixture
def pooled(make_host):
    return make_host(cpus=8, memory_mib=4096, pool_cpus=[4, 6, 8], chunks=[(POOL_BASE, 1024 * MIB, 0)])


@pytest.fixture
def wish(vmlinux, initrd):
    return {
        "name": "a",
        "cpus": 2,
        "memory": "256M",
        "kernel": str(vmlinux),
        "initrd": str(initrd),
        "state": "started",
    }


def lock_of(host):
    return host.root / "run/mkops/host.lock"


def is_locked(host):
    """Whether a run of somebody else would have to wait."""
    if not lock_of(host).exists():
        return False
    with lock_of(host).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class SaidBefore:
    """A console that retains all that was ever said."""

    retained = ""
    clock = Clock()

    def __init__(self, _paths, _instance_id):
        self.rest = self.retained

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        pass

    def history(self):
        text, self.rest = self.rest, ""
        return text

    def read(self, timeout):
        self.clock.sleep(timeout)
        self.rest = type(self).retained[len(self.rest) :] if self.rest else ""
        return b""


@pytest.fixture
def silent(monkeypatch):
    """No agent ever answers, and the time that is waited for one passes at once."""
    clock = Clock()
    monkeypatch.setattr(_ready, "time", clock)
    monkeypatch.setattr(_ready, "agent_reasons", list)
    monkeypatch.setattr(_ready, "agent_answers", lambda _number, patience: clock.sleep(patience))


@pytest.fixture
def console(monkeypatch):
    monkeypatch.setattr(_console, "time", SaidBefore.clock)
    SaidBefore.retained = ""
    monkeypatch.setattr(_ready, "Console", SaidBefore)
    monkeypatch.setattr(_apply, "Console", SaidBefore)
    return SaidBefore


# The lock


def test_a_change_is_made_under_the_lock_and_waiting_is_not(pooled, run_module, wish, monkeypatch):
    seen = {}
    pooled.after["create"] = lambda host: seen.update(create=is_locked(host))
    pooled.after["start"] = lambda host: seen.update(start=is_locked(host))

    def answers(_number, _patience):
        seen.update(waiting=is_locked(pooled))
        return True

    monkeypatch.setattr(_ready, "agent_reasons", list)
    monkeypatch.setattr(_ready, "agent_answers", answers)
    assert run_module(instance, pooled, wait="agent", **wish)["changed"]
    assert seen == {"create": True, "start": True, "waiting": False}


def test_check_mode_plans_without_the_lock(pooled, run_module, wish, monkeypatch):
    seen = []
    make_plan = _planner.make_plan
    monkeypatch.setattr(
        _planner, "make_plan", lambda *args: seen.append(is_locked(pooled)) or make_plan(*args)
    )
    run_module(instance, pooled, _check=True, **wish)
    run_module(instance, pooled, **wish)
    assert seen == [False, True]


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("module", [pool, instance, layout])
@pytest.mark.parametrize("readable", [True, False])
def test_nobody_but_root_gets_at_the_lock(pooled, run_module, wish, monkeypatch, module, check, readable):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    if not readable:

        def unreadable(_kernel):
            raise KernelFsError("cannot read device_tree: Permission denied")

        monkeypatch.setattr(_converge.KernelFs, "read", unreadable)
    params = {pool: {"cpus": "2-4"}, instance: wish, layout: {"instances": [wish]}}[module]
    result = run_module(module, pooled, _check=check, **params)
    assert "only root may read and change the pool: use 'become: true'" in result["reasons"]
    assert not lock_of(pooled).parent.exists()


def test_a_lock_that_cannot_be_had_is_no_traceback(pooled, run_module, wish):
    lock_of(pooled).parent.parent.mkdir(parents=True)
    lock_of(pooled).parent.write_text("")
    assert "host.lock cannot be locked (File exists)" in run_module(instance, pooled, **wish)["msg"]
    lock_of(pooled).parent.unlink()
    lock_of(pooled).parent.mkdir(mode=0o777)
    lock_of(pooled).parent.chmod(0o777)
    assert "is not a directory that only root can write to" in run_module(instance, pooled, **wish)["msg"]


# Another run meddles while this one waits


@pytest.mark.parametrize(
    ("meddle", "word"),
    [
        (lambda host: host.instances.pop("a"), "another run has removed it in the meantime"),
        (
            lambda host: setattr(host.instances["a"], "epoch", 5),
            "another run has restarted it in the meantime",
        ),
        (
            lambda host: (
                setattr(host.instances["a"], "status", "loaded"),
                setattr(host.instances["a"], "exit_reason", "panic: oh no"),
            ),
            "(panic: oh no)",
        ),
    ],
)
@pytest.mark.parametrize("how", [{"wait": "agent"}, {"wait_for": "login"}])
@pytest.mark.usefixtures("silent", "console")
def test_what_happens_meanwhile_is_told(pooled, run_module, wish, monkeypatch, meddle, word, how):
    def meddling(host):
        meddle(host)
        host.sync()

    begin = _ready.Watch.begin
    monkeypatch.setattr(_ready.Watch, "begin", lambda watch: (begin(watch), meddling(pooled)))
    result = run_module(instance, pooled, timeout=1, **how, **wish)
    assert result["failed"]
    assert word in result["msg"]
    assert result["changed"]


# Waiting again


@pytest.mark.usefixtures("silent")
def test_a_run_after_a_wait_in_vain_waits_again(pooled, run_module, wish, monkeypatch):
    wish.update(wait="agent", timeout=1)
    assert "no sign of its agent within 1 s" in run_module(instance, pooled, **wish)["msg"]
    check = run_module(instance, pooled, _check=True, **wish)
    assert not check["changed"]
    assert "the run will wait for it again" in check["warnings"][0]
    again = run_module(instance, pooled, **wish)
    assert "no sign of its agent within 1 s" in again["msg"]
    assert not again["changed"]
    assert again["after"]["instances"]["a"]["state"] == "active"
    monkeypatch.setattr(_ready, "agent_answers", lambda *_arguments: True)
    result = run_module(instance, pooled, **wish)
    assert not result["changed"]
    # Now it is up, and nobody asks any more.
    monkeypatch.setattr(_ready, "agent_answers", None)
    assert not run_module(instance, pooled, **wish)["changed"]


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (lambda one: setattr(one, "epoch", one.epoch + 1), "active"),  # somebody has started it anew
        (lambda one: setattr(one, "id", 9), "active"),  # somebody has made it anew
    ],
)
@pytest.mark.usefixtures("silent")
def test_another_instance_of_that_name_is_not_waited_for(pooled, run_module, wish, change, state):
    wish.update(wait="agent", timeout=1)
    assert run_module(instance, pooled, **wish)["failed"]
    change(pooled.instances["a"])
    pooled.sync()
    assert not run_module(instance, pooled, **wish)["changed"]


@pytest.mark.usefixtures("silent")
def test_one_that_was_stopped_since_is_started_and_waited_for(pooled, run_module, wish, monkeypatch):
    wish.update(wait="agent", timeout=1)
    assert run_module(instance, pooled, **wish)["failed"]
    run_module(instance, pooled, name="a", state="stopped", force=True)
    monkeypatch.setattr(_ready, "agent_answers", lambda *_arguments: True)
    result = run_module(instance, pooled, **wish)
    assert result["steps"] == ["start"]
    assert not run_module(instance, pooled, **wish)["changed"]


def test_only_what_came_since_the_start_counts_then_as_well(pooled, run_module, wish, console):
    console.retained = "login: of the run before\n"
    wish.update(wait_for="login:", timeout=1)
    assert "did not appear" in run_module(instance, pooled, **wish)["msg"]
    assert "did not appear" in run_module(instance, pooled, **wish)["msg"]
    console.retained += "Linux version\nlogin: now\n"
    result = run_module(instance, pooled, **wish)
    assert not result["changed"]
    assert result["console"] == ["Linux version", "login: now"]


LONG = "".join(f"[{number:8.6f}] a line of a kernel\n" for number in range(500))


@pytest.mark.parametrize(
    ("before", "now", "found"),
    [
        ("", "all of it", "all of it"),
        ("one\n", "one\ntwo\n", "two\n"),
        ("one\n", "one\none\n", "one\n"),
        (LONG, f"{LONG}more", "more"),
        (LONG, f"{LONG[5000:]}more", "more"),  # the oldest is overwritten
        (LONG, "all of that is new", "all of that is new"),
        (LONG, LONG, ""),
    ],
)
def test_a_place_in_a_console_is_found_again(before, now, found):
    place = json.loads(json.dumps(_ready.place_after(before)))
    assert _ready.since(place, now) == found
    assert _ready.since({"length": "x"}, now) == now


# What the result tells


def ending(reason, epoch=1):
    def end(host):
        one = host.instances["a"]
        one.status, one.exit_reason, one.epoch = "loaded", reason, epoch
        host.sync()

    return end


@pytest.mark.parametrize("reason", ["panic: boom", "lost"])
def test_one_that_panics_at_once_is_a_failure(pooled, run_module, wish, console, reason):
    pooled.after["start"] = ending(reason)
    console.retained = "Kernel panic - not syncing: boom\n"
    result = run_module(layout, pooled, instances=[wish])
    assert result["failed"]
    assert result["changed"]
    assert f"instance a was started but did not stay up: it is loaded again ({reason})" in result["msg"]
    assert result["console"] == ["Kernel panic - not syncing: boom"]
    assert [step.partition(":")[0] for step in result["steps"]] == ["create a", "load a", "start a"]
    # The result is what the kernel says, not what was planned.
    assert result["after"]["instances"]["a"]["state"] == "loaded"
    (one,) = result["instances"]
    assert (one["state"], one["exit_reason"]) == ("loaded", reason)


@pytest.mark.parametrize("reason", ["clean: power off", "forced"])
def test_one_that_ends_cleanly_at_once_is_told(pooled, run_module, wish, reason):
    pooled.after["start"] = ending(reason)
    result = run_module(layout, pooled, instances=[wish])
    assert not result.get("failed")
    assert result["warnings"] == [f"instance a was started and has since ended ({reason}): it is loaded"]
    assert result["after"]["instances"]["a"]["state"] == "loaded"
    assert result["diff"]["after"] == result["after"]
    (one,) = result["instances"]
    assert (one["state"], one["exit_reason"]) == ("loaded", reason)


def test_one_that_somebody_has_started_again_since_is_told(pooled, run_module, wish, monkeypatch):
    """After the lock was released, and before the kernel was read for the result."""
    wish["wait"] = "heartbeat"
    wait = _apply.Applier.wait

    def meddle(applier):
        wait(applier)
        ending("forced", epoch=7)(pooled)

    monkeypatch.setattr(_apply.Applier, "wait", meddle)
    result = run_module(instance, pooled, **wish)
    assert result["warnings"] == ["instance a was started, and another run has changed it since"]


def test_one_that_dies_after_it_was_up_is_a_failure(pooled, run_module, wish, monkeypatch):
    wish["wait"] = "heartbeat"
    wait = _apply.Applier.wait
    monkeypatch.setattr(_apply.Applier, "wait", lambda run: (wait(run), ending("panic: late")(pooled)))
    result = run_module(instance, pooled, **wish)
    assert "it is loaded again (panic: late)" in result["msg"]


def test_after_a_failed_step_after_is_what_there_is(pooled, run_module, wish):
    pooled.broken["start"] = "Error: no"
    result = run_module(layout, pooled, instances=[wish])
    assert result["failed"]
    assert result["before"]["instances"]["a"] == {}
    assert result["after"]["instances"]["a"]["state"] == "loaded"


# Manners


def test_pruned_instances_take_the_manner_of_the_defaults(pooled, run_module, wish):
    run_module(layout, pooled, instances=[wish])
    gone = {"prune": True, "defaults": {"force": True}}
    assert run_module(layout, pooled, _check=True, **gone)["commands"][0].endswith("kill a --force")
    run_module(layout, pooled, **gone)
    assert ["kill", "a", "--force"] in pooled.changes


@pytest.mark.parametrize(
    ("given", "seconds"), [({}, 60), ({"stop_timeout": 7}, 7), ({"stop_timeout": 90}, 90)]
)
def test_the_time_to_stop_is_the_one_that_is_said(pooled, run_module, wish, monkeypatch, given, seconds):
    run_module(instance, pooled, **wish)
    times = []

    def run(argv, timeout, **manner):
        times.append((argv[1], timeout))
        return pooled.run(argv, timeout, **manner)

    monkeypatch.setattr("ansible_collections.mkops.multikernel.plugins.module_utils.divide.kerf.run", run)
    run_module(instance, pooled, name="a", state="stopped", **given)
    assert ("kill", seconds) in times


# Check mode, before earlier tasks of the same play have done anything


def test_a_pool_of_the_same_play(make_host, run_module, wish):
    host = make_host(cpus=8, memory_mib=4096)
    before = host.snapshot()
    made = run_module(pool, host, _check=True, cpus="4-5", memory="1G")
    wish.update(cpus=[4], memory="512M")
    result = run_module(instance, host, _check=True, **wish)
    assert made["changed"]
    assert result["changed"]
    assert result["steps"] == ["create", "load", "start"]
    assert result["commands"][0].endswith("create a --cpus=8 --memory=536870912")
    assert any("there is no pool yet" in reason for reason in result["depends"])
    assert result["diff"]["after"]["state"] == "active"
    assert host.snapshot() == before
    assert host.changes == []
    assert "there is no pool yet" in run_module(instance, host, **wish)["msg"]


def test_a_pool_of_the_same_play_for_several(make_host, run_module, wish):
    host = make_host(cpus=8, memory_mib=4096)
    shared = {key: wish[key] for key in ("kernel", "initrd", "state")}
    result = run_module(
        layout,
        host,
        _check=True,
        defaults={**shared, "memory": "1G"},
        instances={"a": {"cpu_count": 2}, "b": {"cpus": "1,3"}},
    )
    assert not result.get("failed")
    assert len(result["steps"]) == 6
    assert result["before"]["pool"] == {}


def test_a_host_that_is_not_prepared_yet(make_host, run_module, wish):
    """Roles before this one build, boot and mount what is needed."""
    host = make_host(cpus=8, memory_mib=4096, supported=False, mounted=False, version="0.1")
    wish["wait"] = "heartbeat"
    result = run_module(
        layout,
        host,
        _check=True,
        pool={"cpus": "2-3", "memory": "1G"},
        instances=[{**wish, "restart": "no"}],
    )
    assert not result.get("failed")
    assert [step.partition(":")[0] for step in result["steps"]] == [
        *("set_pool", "create a", "load a", "start a"),
    ]
    texts = "\n".join(result["depends"])
    assert "has no multikernel support" in texts
    assert "kerf 0.1 at" in texts


@pytest.mark.parametrize("what", ["kernel", "initrd"])
def test_an_image_of_the_same_play(make_host, run_module, wish, what):
    host = make_host(cpus=8, memory_mib=4096)
    wish[what] = "/var/lib/of/an/earlier/task"
    wish["cpus"] = 4
    params = {"pool": {"cpus": "4-5", "memory": "1G"}, "instances": [wish]}
    result = run_module(layout, host, _check=True, **params)
    assert result["changed"]
    (reason,) = result["depends"]
    assert reason.startswith(f"instance a: {what} /var/lib/of/an/earlier/task cannot be read on the host")
    assert result["after"]["instances"]["a"][what] == {
        "path": "/var/lib/of/an/earlier/task",
        "sha256": None,
    }
    assert "cannot be read" in run_module(layout, host, **params)["msg"]


def test_a_file_that_is_gone_says_nothing_against_what_runs(pooled, run_module, wish, vmlinux):
    run_module(instance, pooled, **wish)
    os.unlink(vmlinux)
    result = run_module(instance, pooled, _check=True, **wish)
    assert not result["changed"]
    assert "cannot be read on the host" in result["depends"][0]


@pytest.mark.parametrize("state", ["present", "loaded", "started", "stopped"])
def test_an_instance_of_the_same_play(pooled, run_module, state):
    """A first task makes it, this one says little about it."""
    result = run_module(instance, pooled, _check=True, name="a", state=state)
    assert not result.get("failed")
    assert any("does not exist yet" in reason for reason in result["depends"])
    assert result["steps"] == (["start"] if state == "started" else [])
    assert "does not exist yet" in run_module(instance, pooled, name="a", state=state)["msg"]


def test_a_place_in_the_way(pooled, run_module, wish):
    """An earlier task may remove who has the CPU and the number."""
    pooled.instances["old"] = FakeInstance(3, [4, 6], POOL_BASE, 1024 * MIB)
    pooled.sync()
    wish["id"] = 3
    result = run_module(instance, pooled, _check=True, **wish)
    assert result["steps"] == ["create", "load", "start"]
    texts = "\n".join(result["depends"])
    assert "CPU 2 is already lent to instance old" in texts
    assert "id 3 is taken by instance old" in texts


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"memory": "16G"}, "needs 16 GiB"),
        ({"cpus": "0"}, "CPU 0 is the boot CPU"),
        ({"cpus": "99"}, "CPU 99 does not exist"),
        ({"cpus": None, "cpu_count": 8}, "needs 8 CPUs"),
        ({"kernel": "/etc/passwd"}, "is neither an uncompressed vmlinux"),
        ({"cpu_count": 1}, "cpus and cpu_count"),
    ],
)
def test_what_no_earlier_task_can_mend_is_refused(make_host, run_module, wish, change, word):
    host = make_host(cpus=8, memory_mib=4096)
    result = run_module(instance, host, _check=True, **{**wish, **change})
    assert result["failed"]
    assert any(word in reason for reason in result["reasons"]), result["reasons"]
