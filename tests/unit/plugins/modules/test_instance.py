# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import time

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.divide import apply as _apply
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import image as _image
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import kerf as _kerf
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import ready as _ready
from ansible_collections.mkops.multikernel.plugins.modules import instance
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import (
    MIB,
    POOL_BASE,
    FakeInstance,
)

PLACE = {"cpus": 2, "memory": "128M"}


@pytest.fixture
def pooled(make_host):
    return make_host(pool_cpus=[4, 6], chunks=[(POOL_BASE, 512 * MIB, 0)])


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    monkeypatch.setattr(_apply, "SETTLE", 0.1)
    monkeypatch.setattr(_apply, "SETTLE_AFTER_ERROR", 0)


@pytest.fixture
def wish(vmlinux, initrd):
    """A complete instance."""
    return {"name": "web", "kernel": str(vmlinux), "initrd": str(initrd), "cmdline": "quiet", **PLACE}


CREATE = ["create", "web", "--cpus=4", "--memory=134217728"]


def load(wish):
    return ["load", "web", f"--kernel={wish['kernel']}", f"--initrd={wish['initrd']}", "--cmdline=quiet"]


@pytest.mark.parametrize("state", ["present", "loaded", "started", "stopped"])
def test_check_apply_check_apply(pooled, run_module, wish, state):
    before = pooled.snapshot()
    first_check = run_module(instance, pooled, _check=True, state=state, **wish)
    assert pooled.snapshot() == before
    assert pooled.changes == []
    applied = run_module(instance, pooled, state=state, **wish)
    after = pooled.snapshot()
    second_check = run_module(instance, pooled, _check=True, state=state, **wish)
    again = run_module(instance, pooled, state=state, **wish)
    assert pooled.snapshot() == after
    assert [run["changed"] for run in (first_check, applied, second_check, again)] == [
        True,
        True,
        False,
        False,
    ]
    calls = [CREATE, load(wish), ["start", "web"]]
    assert pooled.changes == calls[: {"present": 1, "started": 3}.get(state, 2)]
    assert first_check["steps"] == applied["steps"] == [call[0] for call in pooled.changes]
    assert first_check["diff"] == applied["diff"]
    assert first_check["instance"] == {}
    # What was predicted is what now is.
    assert applied["diff"]["after"] == again["diff"]["before"] == again["diff"]["after"]
    assert len(applied["commands"]) == len(pooled.changes)
    assert again["commands"] == []


def test_result(pooled, run_module, wish):
    result = run_module(instance, pooled, state="started", **wish)["instance"]
    assert (result["name"], result["id"], result["state"]) == ("web", 1, "active")
    assert (result["cpus"], result["physical_cpus"], result["memory"]) == ([2], [4], 128 * MIB)
    assert result["cmdline"] == "quiet console=mktty0"
    assert result["kernel"]["path"] == wish["kernel"]


def test_absent(pooled, run_module, wish):
    run_module(instance, pooled, state="started", **wish)
    before = pooled.changes
    for check, changed in ((True, True), (False, True), (True, False), (False, False)):
        assert run_module(instance, pooled, _check=check, name="web", state="absent")["changed"] is changed
    assert pooled.changes[len(before) :] == [["kill", "web"], ["unload", "web"], ["delete", "web"]]


def test_absent_does_not_read_the_files(pooled, run_module, wish):
    wish["kernel"] = "/gone"
    assert not run_module(instance, pooled, state="absent", **wish).get("failed")


def test_force(pooled, run_module, wish):
    run_module(instance, pooled, state="started", **wish)
    run_module(instance, pooled, name="web", state="stopped", force=True)
    assert pooled.changes[-1] == ["kill", "web", "--force"]


def test_a_crashed_instance_is_started_again(pooled, run_module, wish):
    run_module(instance, pooled, state="started", **wish)
    pooled.instances["web"].status = "loaded"
    pooled.sync()
    assert run_module(instance, pooled, state="started", **wish)["steps"] == ["start"]


def test_another_kernel(pooled, run_module, wish, vmlinux):
    run_module(instance, pooled, state="started", **wish)
    vmlinux.write_bytes(vmlinux.read_bytes() + b"another")
    before = pooled.snapshot()
    refused = run_module(instance, pooled, state="started", **wish)
    assert refused["failed"]
    assert "runs and would need a restart, because kernel" in refused["msg"]
    assert pooled.snapshot() == before
    result = run_module(instance, pooled, state="started", allow_restart=True, **wish)
    assert result["steps"] == ["kill", "unload", "load", "start"]
    before, after = result["diff"]["before"], result["diff"]["after"]
    assert before["kernel"]["sha256"] != after["kernel"]["sha256"]
    assert not run_module(instance, pooled, state="started", **wish)["changed"]


def test_a_loaded_instance_takes_another_command_line(pooled, run_module, wish):
    run_module(instance, pooled, state="loaded", **wish)
    result = run_module(instance, pooled, state="loaded", **{**wish, "cmdline": "debug"})
    assert result["steps"] == ["unload", "load"]
    assert result["instance"]["cmdline"] == "debug console=mktty0"


def test_two_instances(pooled, run_module, wish):
    run_module(instance, pooled, state="started", **wish)
    other = run_module(instance, pooled, name="db", cpu_count=1, memory="64M", id=9)
    assert (other["instance"]["cpus"], other["instance"]["id"]) == ([3], 9)


WRONG_IN_ITSELF = [
    ({"name": "a/b"}, ["name 'a/b' cannot be used"]),
    ({"name": ".."}, ["name '..' cannot be used"]),
    ({"cpus": "2,2"}, ["CPU 2 is listed twice"]),
    ({"cpus": 0}, ["CPU 0 is the boot CPU"]),
    ({"cpus": 7}, ["CPU 7 does not exist"]),
    ({"memory": "1T"}, ["instance web needs 1 TiB"]),
    ({"memory": "1.1M"}, ["'1.1M' is not a whole number of bytes"]),
    ({"memory": "100001K"}, ["not a multiple of the page size"]),
    ({"memory": "-5"}, ["'-5' is not a size"]),
    ({"kernel": "/etc/passwd"}, ["kernel /etc/passwd is neither"]),
    ({"initrd": "/etc/passwd"}, ["initrd /etc/passwd is not an initramfs"]),
    ({"id": 0}, ["id 0 is out of range"]),
    ({"wait_for": "("}, ["wait_for: '(' is not a regular expression"]),
    (
        {"cpus": "0,x", "memory": "1X", "kernel": "/etc", "initrd": "/etc", "name": "-"},
        ["name '-'", "'x' is neither", "'1X' is not", "kernel /etc", "initrd /etc"],
    ),
]
# Earlier tasks of the same play may add a CPU to the pool, remove an instance, copy a file.
FOR_EARLIER_TASKS = [
    ({"cpus": 1}, ["CPU 1 is not in the pool"]),
    ({"cpus": 3}, ["CPU 3 is already lent to instance old"]),
    ({"kernel": "/no/such"}, ["kernel /no/such cannot be read"]),
    ({"initrd": "/no/such"}, ["initrd /no/such cannot be read"]),
    ({"id": 5}, ["id 5 is taken by instance old"]),
    ({"memory": "512M"}, ["instance web needs 512 MiB, but only 448 MiB of the pool's 512 MiB is free"]),
    ({"cpus": None, "cpu_count": 2}, ["instance web needs 2 CPUs, but the pool has only 1"]),
]


@pytest.fixture
def with_another(pooled):
    pooled.instances["old"] = FakeInstance(5, [6], POOL_BASE, 64 * MIB)
    pooled.sync()
    return pooled


@pytest.mark.parametrize(
    ("check", "other", "words"),
    [
        *((True, *case) for case in WRONG_IN_ITSELF),
        *((False, *case) for case in WRONG_IN_ITSELF + FOR_EARLIER_TASKS),
    ],
)
def test_bad_input_changes_nothing(with_another, run_module, wish, other, words, check):
    before = with_another.snapshot()
    result = run_module(instance, with_another, _check=check, state="started", **{**wish, **other})
    assert result["failed"]
    assert all(any(word in reason for reason in result["reasons"]) for word in words), result["reasons"]
    assert with_another.snapshot() == before
    assert with_another.changes == []


@pytest.mark.parametrize(("other", "words"), FOR_EARLIER_TASKS)
def test_check_mode_says_what_depends_on_earlier_tasks(with_another, run_module, wish, other, words):
    """What cannot be yet is not refused, but told; what would be done is known all the same."""
    before = with_another.snapshot()
    result = run_module(instance, with_another, _check=True, state="started", **{**wish, **other})
    assert not result.get("failed")
    assert result["changed"]
    assert [any(word in reason for reason in result["depends"]) for word in words] == [True]
    assert all(any(reason in text for text in result["warnings"]) for reason in result["depends"])
    assert result["steps"] == ["create", "load", "start"]
    assert result["diff"]["before"] == {}
    assert result["diff"]["after"]["state"] == "active"
    assert [command.split()[1] for command in result["commands"]] == ["create", "load", "start"]
    assert with_another.snapshot() == before
    assert with_another.changes == []


def test_cpu_count_must_be_positive(pooled, run_module):
    result = run_module(instance, pooled, name="web", cpu_count=0, memory="64M")
    assert "cpu_count: 0 is too few" in result["msg"]


def test_options_that_need_each_other(pooled, run_module, wish):
    result = run_module(instance, pooled, cpu_count=1, cpu_policy=["node"], console="ttynull", **wish)
    assert "cpus and cpu_count exclude each other: give one of them" in result["reasons"]
    assert any("cpus and cpu_policy" in reason for reason in result["reasons"])
    del wish["kernel"]
    assert {
        "initrd needs a kernel: give kernel as well",
        "cmdline needs a kernel: give kernel as well",
    } <= set(run_module(instance, pooled, **wish)["reasons"])


def test_no_pool(host, run_module, wish):
    assert "there is no pool yet" in run_module(instance, host, state="started", **wish)["msg"]


@pytest.mark.parametrize("step", ["create", "load", "start"])
def test_a_step_without_effect_ends_the_run(pooled, run_module, wish, step):
    pooled.broken[step] = f"Error: no {step}\nmore"
    result = run_module(instance, pooled, state="started", **wish)
    assert result["failed"]
    assert f"after kerf {step} it is" in result["msg"]
    assert f"kerf: Error: no {step}; kernel: reason of {step}" in result["msg"]
    assert result["rc"] == 1
    assert result["kernel_log"] == [f"reason of {step}"]
    assert pooled.changes[-1][0] == step
    assert result["changed"] is (step != "create")  # what was done before stays done


def test_an_instance_that_does_not_halt(pooled, run_module, wish):
    run_module(instance, pooled, state="started", **wish)
    pooled.broken["kill"] = "Error: reboot syscall failed: Connection timed out"
    result = run_module(instance, pooled, name="web", state="stopped")
    assert "force: true stops it anyway" in result["msg"]
    assert pooled.instances["web"].status == "active"


def test_an_error_of_kerf_is_no_error_when_the_kernel_did_it(pooled, run_module, wish, monkeypatch):
    """kerf fails after the fact when it cannot write its notes or print its check mark."""

    def grumble(argv, timeout, **_manner):
        done = pooled.run(argv, timeout)
        return done if argv[1] == "--version" else type(done)(done.argv, 1, "", "Traceback")

    monkeypatch.setattr(_kerf, "run", grumble)
    assert run_module(instance, pooled, state="started", **wish)["instance"]["state"] == "active"


def test_other_resources_than_wanted_are_given_back(pooled, run_module, wish):
    def round_up(kernel):
        kernel.instances["web"].size = 256 * MIB
        kernel.sync()

    pooled.after["create"] = round_up
    result = run_module(instance, pooled, **wish)
    assert "has CPU 2 and 256 MiB instead of CPU 2 and 128 MiB; it was deleted again" in result["msg"]
    assert pooled.changes == [CREATE, ["delete", "web"]]
    assert pooled.instances == {}


class FakeConsole:
    """Says what was set, once."""

    output = ""
    events = []  # noqa: RUF012 (reset by every test)

    def __init__(self, _paths, instance_id):
        self.events.append(f"open {instance_id}")
        self.fresh = ""

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.events.append("close")

    def history(self):
        self.events.append("history")
        self.fresh = self.output
        return ""

    def read(self, _timeout):
        self.events.append("read")
        text, self.fresh = self.fresh, ""
        return text.encode()


@pytest.fixture
def console(monkeypatch):
    FakeConsole.events = []
    FakeConsole.output = "Linux version\nlogin: "
    monkeypatch.setattr(_ready, "Console", FakeConsole)
    return FakeConsole


def test_wait_for(pooled, run_module, wish, console):
    result = run_module(instance, pooled, state="started", wait_for="login: $", timeout=7, **wish)
    assert result["console"] == ["Linux version", "login: "]
    # Opened and emptied before the start, because only fresh output counts.
    assert console.events == ["open 1", "history", "read", "close"]
    again = run_module(instance, pooled, state="started", wait_for="login: $", **wish)
    assert not again["changed"]
    assert "console" not in again


def test_wait_for_in_vain(pooled, run_module, wish, console):
    console.output = "\n".join(f"line {number}" for number in range(100))
    result = run_module(instance, pooled, state="started", wait_for="login: $", timeout=1, **wish)
    assert result["failed"]
    assert result["msg"] == "instance web: 'login: $' did not appear on the console within 1 s"
    assert result["changed"]
    assert result["console"] == [f"line {number}" for number in range(60, 100)]


def test_nobody_waits_for_the_dead(pooled, run_module, wish, console):
    def die(kernel):
        kernel.instances["web"].status = "loaded"
        kernel.sync()

    pooled.after["start"] = die
    result = run_module(instance, pooled, state="started", wait_for="never", timeout=600, **wish)
    assert "stopped before 'never' appeared" in result["msg"]
    assert result["console"] == ["Linux version", "login: "]


def test_a_heartbeat(pooled, run_module, wish):
    result = run_module(instance, pooled, state="started", wait="heartbeat", **wish)
    assert result["instance"]["stats"]["heartbeat_age_ms"] == 300


def test_no_heartbeat(pooled, run_module, wish, monkeypatch, console):
    monkeypatch.setattr(_ready, "ALIVE", 100)
    result = run_module(instance, pooled, state="started", wait="heartbeat", timeout=1, **wish)
    assert "there was no sign of its heartbeat within 1 s" in result["msg"]


def test_a_kernel_without_heartbeats_is_not_waited_for(make_host, run_module, wish):
    host = make_host(series="upstream", pool_cpus=[4, 6], chunks=[(POOL_BASE, 512 * MIB, 0)])
    result = run_module(instance, host, state="started", wait="heartbeat", **wish)
    assert "wait: heartbeat needs a kernel that reports" in result["reasons"][0]


def test_an_agent_needs_vsock(pooled, run_module, wish, monkeypatch):
    def refuse(*_arguments):
        raise OSError(92, "Protocol not available")

    monkeypatch.setattr("socket.socket", refuse)
    result = run_module(instance, pooled, state="started", wait="agent", **wish)
    assert "wait: agent needs a kernel that reaches its instances by vsock" in result["reasons"][0]


def test_an_agent(pooled, run_module, wish, monkeypatch):
    monkeypatch.setattr(_ready, "agent_reasons", list)
    answers = iter([False, False, True])
    monkeypatch.setattr(_ready, "agent_answers", lambda number, _patience: number == 1 and next(answers))
    assert run_module(instance, pooled, state="started", wait="agent", **wish)["changed"]
    assert next(answers, "all asked") == "all asked"


# What it has


def test_cpus_and_memory_change_while_it_runs(pooled, run_module, wish):
    run_module(instance, pooled, state="started", **wish)
    result = run_module(instance, pooled, state="started", **{**wish, "cpus": "2-3", "memory": "256M"})
    assert result["steps"] == ["set_memory", "set_cpus"]
    assert pooled.changes[-2:] == [["update", "web", "--memory=268435456"], ["update", "web", "--cpus=4,6"]]
    assert (result["instance"]["cpus"], result["instance"]["memory"]) == ([2, 3], 256 * MIB)
    assert result["instance"]["epoch"] == 1
    back = run_module(instance, pooled, state="started", **wish)
    assert back["steps"] == ["set_cpus", "set_memory"]
    assert not run_module(instance, pooled, state="started", **wish)["changed"]


@pytest.mark.parametrize(
    ("other", "word"),
    [
        ({"cpus": 3}, "it was started on CPU 2"),
        ({"memory": "64M"}, "memory can leave it only in the pieces in which it was added"),
        ({"memory": "130M"}, "memory is added in steps of 128 MiB"),
        ({"memory": "512M"}, "no chunk of the pool has 384 MiB free in one piece"),
        ({"id": 9}, "its id is 1 instead of 9"),
    ],
)
def test_what_a_running_kernel_cannot_take_needs_a_restart(pooled, run_module, wish, other, word):
    run_module(instance, pooled, state="started", **wish)
    pooled.chunks.append((POOL_BASE + 1024 * MIB, 512 * MIB, 0))
    pooled.chunks[0] = (POOL_BASE, 256 * MIB, 0)
    pooled.sync()
    before = pooled.snapshot()
    refused = run_module(instance, pooled, state="started", **{**wish, **other})
    if "384 MiB" in word:
        assert not refused.get("failed")  # the other chunk has it
        return
    assert word in refused["msg"]
    assert "allow_restart: true" in refused["msg"]
    assert pooled.snapshot() == before
    result = run_module(instance, pooled, state="started", allow_restart=True, **{**wish, **other})
    assert result["steps"][0] == "kill"
    assert result["steps"][-1] == "start"
    assert not run_module(instance, pooled, state="started", **{**wish, **other})["changed"]


def test_a_kernel_that_does_not_tell_the_boot_cpu_may_say_no(make_host, run_module, wish):
    host = make_host(tells_boot=False, cpus=5, pool_cpus=[4, 6, 8], chunks=[(POOL_BASE, 512 * MIB, 0)])
    run_module(instance, host, state="started", **{**wish, "cpus": 3})
    run_module(instance, host, state="started", **{**wish, "cpus": "2-3"})
    refused = run_module(instance, host, state="started", **{**wish, "cpus": "2,4"})
    assert "the boot CPU stays" in refused["msg"]
    assert host.instances["web"].epoch == 1
    result = run_module(instance, host, state="started", allow_restart=True, **{**wish, "cpus": "2,4"})
    assert (result["instance"]["cpus"], result["instance"]["state"]) == ([2, 4], "active")
    assert result["steps"] == ["kill", "set_cpus", "start"]
    assert [command.split()[1] for command in result["commands"]][-3:] == ["kill", "update", "start"]
    assert host.instances["web"].epoch == 2
    assert not run_module(instance, host, state="started", **{**wish, "cpus": "2,4"})["changed"]


def test_kernels_that_cannot_resize(make_host, run_module, wish):
    host = make_host(series="first", pool_cpus=[4, 6], chunks=[(POOL_BASE, 512 * MIB, 0)])
    run_module(instance, host, state="started", **wish)
    more = {**wish, "memory": "256M"}
    assert "cannot change that" in run_module(instance, host, state="started", **more)["msg"]
    result = run_module(instance, host, state="started", allow_restart=True, **more)
    assert result["steps"] == ["kill", "unload", "delete", "create", "load", "start"]


def test_made_anew_without_an_image_at_hand(pooled, run_module, wish):
    run_module(instance, pooled, state="loaded", **wish)
    result = run_module(instance, pooled, name="web", id=9)
    assert "that loses its kernel, so give kernel" in result["msg"]


def test_failed_ones_are_made_anew(pooled, run_module, wish):
    run_module(instance, pooled, state="present", **wish)
    pooled.instances["web"].status = "failed"
    pooled.sync()
    assert run_module(instance, pooled, state="started", **wish)["steps"] == [
        "delete",
        "create",
        "load",
        "start",
    ]


# Command lines


def test_labels_network_and_console(pooled, run_module, wish):
    wish.update(
        cmdline="quiet",
        labels={"role": "db", "tier": 1},
        network={"address": "10.0.0.2", "gateway": "10.0.0.1", "hostname": "web", "device": "eth0"},
        console="ttynull",
    )
    result = run_module(instance, pooled, state="loaded", **wish)
    assert result["instance"]["cmdline"] == (
        "quiet label.role=db label.tier=1 ip=10.0.0.2::10.0.0.1:255.255.255.0:web:eth0:off console=ttynull"
    )
    assert result["instance"]["labels"] == {"role": "db", "tier": "1"}
    assert not run_module(instance, pooled, state="loaded", **wish)["changed"]


def test_dhcp_names_its_device_where_the_kernel_looks_for_it(pooled, run_module, wish):
    wish["network"] = {"address": "dhcp", "device": "eth0"}
    result = run_module(instance, pooled, state="loaded", **wish)
    assert "ip=:::::eth0:dhcp" in result["instance"]["cmdline"]


# Restart policies


@pytest.mark.parametrize(
    ("restart", "ended", "steps"),
    [
        ("always", "clean: power off", ["start"]),
        ("on-failure", "clean: power off", []),
        ("on-failure", "forced", []),
        ("on-failure", "panic: oops", ["start"]),
        ("on-failure", "lost", ["start"]),
        ("no", "panic: oops", []),
    ],
)
def test_restart(pooled, run_module, wish, restart, ended, steps):
    wish.update(state="started", restart=restart)
    assert run_module(instance, pooled, **wish)["steps"] == ["create", "load", "start"]
    pooled.instances["web"].status, pooled.instances["web"].exit_reason = "loaded", ended
    pooled.sync()
    result = run_module(instance, pooled, **wish)
    assert result["steps"] == steps
    if not steps:
        assert f"ended ({ended}) and is not started again" in result["warnings"][0]


def test_restart_policies_need_to_know_the_end(make_host, run_module, wish):
    host = make_host(series="upstream", pool_cpus=[4, 6], chunks=[(POOL_BASE, 512 * MIB, 0)])
    result = run_module(instance, host, state="started", restart="no", **wish)
    assert "restart: no for instance web needs a kernel that tells how an instance ended" in result["msg"]


# Provenance


@pytest.fixture
def settled(monkeypatch):
    """Files of a test have just been made, which is too late for a proof."""
    monkeypatch.setattr(_image, "_DOUBT", -(10**9))


def no_reading(_what, path):
    raise AssertionError(f"{path} was read")


def test_a_file_that_is_proved_the_same_is_not_read(pooled, run_module, wish, monkeypatch, settled):
    run_module(instance, pooled, state="started", **wish)
    monkeypatch.setattr(_image, "_read", no_reading)
    assert not run_module(instance, pooled, state="started", **wish)["changed"]


def test_what_was_loaded_by_hand_is_proved_once(pooled, run_module, wish, monkeypatch, settled):
    for words in (CREATE, load(wish), ["start", "web"]):
        pooled.run(["kerf", *words], 1)
    assert not run_module(instance, pooled, _check=True, state="started", **wish)["changed"]
    assert not run_module(instance, pooled, state="started", **wish)["changed"]
    monkeypatch.setattr(_image, "_read", no_reading)
    assert not run_module(instance, pooled, state="started", **wish)["changed"]


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("step", [-7200, 3600, 10**7])
def test_a_step_of_the_clock_changes_nothing(pooled, run_module, wish, monkeypatch, by_hand, step):
    """The record of what is loaded seems to be from before the boot, or from the future."""
    if by_hand:
        for words in (CREATE, load(wish), ["start", "web"]):
            pooled.run(["kerf", *words], 1)
    run_module(instance, pooled, state="started", **wish)
    real = time.time_ns
    monkeypatch.setattr("time.time_ns", lambda: real() + step * 10**9)
    assert not run_module(instance, pooled, state="started", **wish)["changed"]


@pytest.mark.parametrize("step", [-7200, 0, 3600])
def test_a_record_of_a_former_boot_proves_nothing_whatever_the_clock_says(
    pooled, run_module, wish, monkeypatch, step
):
    run_module(instance, pooled, state="started", **wish)
    pooled.write("/proc/sys/kernel/random/boot_id", "22222222-2222-3333-4444-555555555555\n")
    os.utime(pooled.root / "var/lib/kerf/instances/web.json", (1, 1))
    real = time.time_ns
    monkeypatch.setattr("time.time_ns", lambda: real() + step * 10**9)
    refused = run_module(instance, pooled, state="started", **wish)
    assert "there is no record of the kernel that is loaded" in refused["msg"]


def test_another_record_than_the_noted_one_is_judged_by_the_clock(pooled, run_module, wish):
    run_module(instance, pooled, state="started", **wish)
    record = pooled.root / "var/lib/kerf/instances/web.json"
    record.write_bytes(record.read_bytes() + b" ")
    os.utime(record, (1, 1))
    assert "there is no record of" in run_module(instance, pooled, state="started", **wish)["msg"]


def test_an_instance_loaded_by_others_is_adopted(pooled, run_module, wish):
    for words in (CREATE, load(wish), ["start", "web"]):
        pooled.run(["kerf", *words], 1)
    assert not run_module(instance, pooled, state="started", **wish)["changed"]
