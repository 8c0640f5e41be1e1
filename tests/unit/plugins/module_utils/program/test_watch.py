# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How an instance ended and whether it is alive, as a unit is told. With a real systemd: test_units.py."""

from __future__ import annotations

import json
import signal
import socket
import time

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.common.command import Done
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import evidence
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.console import ConsoleError
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import KernelFs
from ansible_collections.mkops.multikernel.plugins.module_utils.program import (
    change,
    ended,
    itself,
    watch,
)

GRACEFUL = "multikernel: Multikernel instance 1 halted (graceful)"
FORCED = "multikernel: Force halting multikernel instance 1"
ANOTHER = "multikernel: Multikernel instance 12 halted (graceful)"
BEGUN = "multikernel: Multikernel instance 1 is now active"


@pytest.fixture
def service(host, mkops, declare, layout, monkeypatch):
    """Have red run as a service, and end in some way as soon as somebody looks."""
    monkeypatch.setattr(watch, "_LATE", 0.1)

    def run(reason, *log, status="loaded"):
        declare()
        mkops("apply")

        def end(*_how):
            host.instances["red"].status, host.instances["red"].exit_reason = status, reason
            host.sync()
            for line in log:
                host.log(line, level=6)

        monkeypatch.setattr(KernelFs, "await_status", end)
        return mkops("run", "--service", "red")

    return run


@pytest.mark.parametrize(
    ("reason", "log", "rc", "words"),
    [
        ("clean: power off", [], 0, "(clean: power off)"),
        ("clean: power off", [GRACEFUL], 5, "(clean: power off, somebody has stopped it)"),
        ("clean: power off", [GRACEFUL, BEGUN], 0, "(clean: power off)"),
        ("clean: power off", [ANOTHER], 0, "(clean: power off)"),
        ("clean: restart", [], 6, "(clean: restart)"),
        ("forced", [FORCED], 5, "(forced)"),
        ("lost", [FORCED], 7, "(lost, somebody has stopped it)"),
        ("panic: oh", [], 4, "(panic: oh)"),
        ("panic: oh", [GRACEFUL], 7, "(panic: oh, somebody has stopped it)"),
        ("", [], 4, "(this kernel does not say why)"),
        ("", [FORCED], 5, "(this kernel does not say why, somebody has stopped it)"),
    ],
)
def test_an_exit_code_tells_how_it_ended(service, reason, log, rc, words):
    said = service(reason, *log)
    assert (said.rc, said.out.splitlines()[-1]) == (rc, f"red: it is loaded {words}")


def test_without_a_kernel_log(service, host):
    (host.root / "dev/kmsg").unlink()
    (host.root / "dev/kmsg").mkdir()
    assert service("panic: oh").rc == 4


def test_one_that_is_gone_was_removed_by_somebody(service, host, monkeypatch, mkops):
    service("none")
    monkeypatch.setattr(KernelFs, "await_status", lambda *_how: host.instances.pop("red", 0) and host.sync())
    host.instances["red"].status = "active"
    host.sync()
    assert mkops("run", "--service", "red").rc == 5


def test_one_that_is_gone_before_anybody_watches(host, mkops, declare, monkeypatch):
    declare()
    mkops("apply")
    converge = change.converge

    def gone(*args, **how):
        result = converge(*args, **how)
        host.instances.pop("red")
        host.sync()
        return change.Result(result.plan, KernelFs(args[0]).read(), {}, {})

    monkeypatch.setattr(change, "converge", gone)
    assert mkops("run", "--service", "red").rc == 5


def test_a_program_that_was_replaced_meanwhile_goes_on_as_the_new_one(
    host, mkops, declare, monkeypatch, tmp_path
):
    """What it has not read of its file yet, is not where it was."""
    file = tmp_path / "mkops"
    file.write_text("old")
    monkeypatch.setattr(itself.sys, "argv", [str(file)])
    went_on = []
    monkeypatch.setattr(itself.os, "execv", lambda path, argv: went_on.append((path, argv)))
    declare()
    mkops("apply")

    def stopped(*_how):
        (tmp_path / "new").write_text("new")
        (tmp_path / "new").replace(file)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(KernelFs, "await_status", stopped)
    assert mkops("run", "--service", "red", "--kerf", "/kerf").rc == 0
    assert went_on == [(str(file), [str(file), "stop", "--kerf", "/kerf", "red"])]
    # One that is gone cannot go on.
    monkeypatch.setattr(KernelFs, "await_status", lambda *_how: [file.unlink(), signal.raise_signal(15)])
    mkops("apply")
    assert mkops("run", "--service", "red").rc == 0
    assert len(went_on) == 1


# Signs of life


def test_patience():
    now = time.clock_gettime(time.CLOCK_BOOTTIME) * 1000
    one = watch.Patience(30, 120)
    assert one.left({"heartbeat_age_ms": 10000}) == 20
    assert one.left({"heartbeat_age_ms": 10000, "state_since_ms": int(now - 90000)}) == 20
    assert one.left({"heartbeat_age_ms": 31000, "state_since_ms": int(now - 90000)}) == -1
    # Since its start it has given none yet.
    assert one.left({"heartbeat_age_ms": 50000, "state_since_ms": int(now - 50100)}) == 70
    assert watch.Patience(300, 120).left({"heartbeat_age_ms": 0, "state_since_ms": int(now)}) == 300
    assert one.left({}) is None
    assert watch.Patience().left({"heartbeat_age_ms": 10000}) is None


@pytest.fixture
def heard(tmp_path, monkeypatch):
    """What systemd is told, as a list."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        def heard():
            found = []
            while True:
                try:
                    found += channel.recv(1000).decode().splitlines()
                except BlockingIOError:
                    return found

        yield heard


def looks(host, mkops, monkeypatch, *steps):
    """Run red as a service; each look at it is followed by a step, and the last one ends it."""
    waits = []
    left = iter(steps)

    def look(_kernel, _name, _state, seconds):
        waits.append(seconds)
        step = next(left, None)
        if step is None:
            host.instances["red"].status, host.instances["red"].exit_reason = "loaded", "clean: halt"
            host.sync()
        else:
            step()

    monkeypatch.setattr(KernelFs, "await_status", look)
    assert mkops("run", "--service", "red").rc == 0
    return waits


def age(host, milliseconds):
    path = "/sys/fs/multikernel/instances/red/stats"
    return lambda: host.write(path, f"heartbeat_age_ms {milliseconds}\n" if milliseconds is not None else "")


def test_systemd_is_told_of_signs_of_life(host, mkops, declare, layout, heard, monkeypatch):
    layout["instances"]["red"]["watchdog"] = 20
    declare()
    mkops("apply")
    steps = [age(host, 18500), age(host, 20000), age(host, None)]
    waits = looks(host, mkops, monkeypatch, *steps)
    assert [line for line in heard() if "WATCHDOG" in line] == [
        *("WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=trigger", "WATCHDOG=1"),
    ]
    assert waits == [5, 1.5, 20, 5]


def test_without_a_watchdog_it_is_told_nothing(host, mkops, declare, heard, monkeypatch):
    declare()
    mkops("apply")
    assert looks(host, mkops, monkeypatch, age(host, 99999)) == [watch._LOOK, watch._LOOK]
    assert not [line for line in heard() if "WATCHDOG" in line]


def test_what_is_declared_later_holds_from_then_on(host, mkops, declare, layout, heard, monkeypatch):
    file = declare()
    mkops("apply")

    def change(**options):
        def step():
            layout["instances"]["red"].update(options)
            declare()

        return step

    waits = looks(
        host,
        mkops,
        monkeypatch,
        change(watchdog=8),
        lambda: declare("{"),
        change(watchdog=40),
        change(watchdog=None),
        file.unlink,
    )
    assert waits == [watch._LOOK, 2, watch._LOOK, 10, watch._LOOK, watch._LOOK]
    assert [line for line in heard() if "WATCHDOG" in line] == [
        "WATCHDOG_USEC=8000000",
        "WATCHDOG=1",
        "WATCHDOG_USEC=0",
        "WATCHDOG_USEC=40000000",
        "WATCHDOG=1",
        "WATCHDOG_USEC=0",
    ]


def test_who_has_told_systemd_alone(host, mkops, declare, heard, monkeypatch):
    declare()
    mkops("apply")
    monkeypatch.setenv("WATCHDOG_USEC", "12000000")
    assert looks(host, mkops, monkeypatch) == [3]
    assert "WATCHDOG=1" in heard()


# What comes after a watcher


@pytest.fixture
def after(host, mkops, declare, layout, monkeypatch):
    """Have red run, and its watcher end with a result."""
    declare()
    mkops("apply")
    host.calls.clear()
    monkeypatch.setattr(ended, "_LOOK", 0)

    def after(result, status="", **options):
        layout["instances"]["red"].update(options)
        declare()
        monkeypatch.setenv("SERVICE_RESULT", result)
        monkeypatch.setenv("EXIT_STATUS", status)
        return mkops("ended", "red")

    return after


@pytest.mark.parametrize(
    ("result", "silent", "options", "stopped"),
    [
        ("signal", 300, {"watchdog": 5}, False),
        ("signal", 9000, {"watchdog": 5}, True),
        ("signal", 9000, {}, False),
        ("exit-code", 9000, {"watchdog": 5}, True),
        ("watchdog", 300, {"watchdog": 5}, False),
        ("watchdog", 9000, {"watchdog": 5}, True),
        ("watchdog", 300, {}, False),
        ("watchdog", 10001, {}, True),
        ("watchdog", None, {"watchdog": 5}, False),
    ],
)
def test_only_the_kernel_counts(host, after, result, silent, options, stopped):
    age(host, silent)()
    said = after(result, **options)
    assert said.rc == 0
    assert host.changes == ([["kill", "red", "--force"]] if stopped else [])
    if stopped:
        assert said.out.splitlines()[0].startswith("red: it has given no sign of life for ")
        note = host.root / "run/mkops/instances/red.json"
        assert '"rest"' not in note.read_text()


def test_a_watcher_that_has_ended_a_moment_too_early(host, after, monkeypatch):
    ages = iter([4000, 4500, 5001])
    monkeypatch.setattr(KernelFs, "stats", lambda _kernel, _name: {"heartbeat_age_ms": next(ages)})
    after("watchdog", watchdog=5)
    assert host.changes == [["kill", "red", "--force"]]


def test_one_that_has_ended_is_left_alone(host, after):
    host.instances["red"].status = "loaded"
    host.sync()
    assert (after("exit-code", "4", restart="always", watchdog=5).rc, host.changes) == (0, [])


@pytest.mark.parametrize(
    ("result", "status", "restart", "awaited", "stopped"),
    [
        ("exit-code", "1", "on-failure", True, True),
        ("exit-code", "1", "on-failure", False, False),
        ("exit-code", "1", "no", True, False),
        ("exit-code", "3", "always", True, False),
        ("signal", "9", "always", True, False),
    ],
)
def test_one_that_did_not_get_ready(host, after, result, status, restart, awaited, stopped):
    if awaited:
        KernelFs(watch.Paths(str(host.root))).notes.change("red", awaited={"id": 1, "epoch": 1})
    said = after(result, status, restart=restart)
    assert host.changes == ([["kill", "red", "--force"]] if stopped else [])
    assert ("did not get ready in time" in said.out) == stopped


def test_a_layout_that_is_none_stops_nothing(host, after, declare, mkops):
    after("signal", watchdog=5)
    age(host, 20000)()
    KernelFs(watch.Paths(str(host.root))).notes.change("red", awaited={"id": 1, "epoch": 1})
    declare("{")
    assert (mkops("ended", "red").rc, host.changes) == (0, [])
    for words in ({"SERVICE_RESULT": "exit-code", "EXIT_STATUS": "1"}, {"SERVICE_RESULT": "watchdog"}):
        with pytest.MonkeyPatch.context() as patched:
            for name, value in words.items():
                patched.setenv(name, value)
            said = mkops("ended", "red")
    assert host.changes == [["kill", "red", "--force"]]
    assert "what is declared cannot be read: " in said.out


# Evidence


@pytest.fixture
def crashes(host, monkeypatch):
    class Console:
        def __init__(self, *_which):
            raise ConsoleError("none")

    monkeypatch.setattr(evidence, "Console", Console)
    return lambda: [
        json.loads(path.read_text())
        for path in sorted(host.root.glob("var/lib/mkops/crashes/red/*/meta.json"))
    ]


def crash(host, reason):
    host.instances["red"].status, host.instances["red"].exit_reason = "loaded", reason
    host.sync()


@pytest.mark.parametrize("declared", [True, False])
def test_of_a_panic(host, after, crashes, declare, mkops, monkeypatch, declared):
    crash(host, "panic: oh")
    if not declared:
        declare("{")
        said = mkops("ended", "red")
    else:
        said = after("exit-code", "4", crash_keep=3)
    assert said.out.startswith("red: evidence of it is in ")
    (meta,) = crashes()
    assert (meta["reason"], meta["epoch"], bool(meta["layout"])) == ("panic: oh", 1, declared)
    assert mkops("ended", "red").out == ""  # once
    assert len(crashes()) == 1


def test_of_a_hang(host, after, crashes):
    age(host, 9000)()
    after("watchdog", watchdog=5)
    (meta,) = crashes()
    assert (meta["reason"], meta["exit_reason"], meta["unit"]["SERVICE_RESULT"]) == (
        *("it has given no sign of life for 5 s", "forced"),
        "watchdog",
    )


@pytest.mark.parametrize(("result", "status"), [("success", "0"), ("success", "5"), ("signal", "9")])
def test_of_none(host, after, crashes, result, status):
    if result == "success":
        crash(host, "clean: power off")
    after(result, status)
    assert crashes() == []


def test_where_no_kernel_tells(host, after, crashes, monkeypatch):
    crash(host, "none")
    after("success", "0")
    assert crashes() == []
    after("exit-code", "4")
    assert [meta["reason"] for meta in crashes()] == ["this kernel does not say why it ended"]


def test_of_a_crash_that_nobody_has_watched(host, mkops, declare, crashes, monkeypatch):
    declare()
    mkops("apply")
    crash(host, "lost")
    monkeypatch.setattr(KernelFs, "await_status", lambda *_how: mkops("stop", "--force", "red"))
    assert mkops("run", "--service", "red").rc == 5
    assert [(meta["reason"], meta["epoch"]) for meta in crashes()] == [("lost", 1)]


# What somebody stops while it waits to be started again


@pytest.mark.parametrize(("restarts", "rests"), [("1", True), ("0", False), ("", False)])
def test_what_was_stopped_meanwhile_rests(host, mkops, declare, monkeypatch, restarts, rests):
    declare()
    mkops("apply")
    host.instances["red"].status, host.instances["red"].exit_reason = "loaded", "panic: oh"
    host.sync()
    assert mkops("stop", "red").out == "red: it is not running\n"
    asked = []
    monkeypatch.setattr(
        change, "command", lambda argv, **_how: asked.append(argv[-1]) or Done((), 0, f"{restarts}\n")
    )
    monkeypatch.setattr(KernelFs, "await_status", lambda *_how: mkops("stop", "--force", "red"))
    said = mkops("run", "--service", "red")
    assert (said.rc, host.instances["red"].epoch) == (5, 1 if rests else 2)
    assert asked == ["mkops@red.service"]
