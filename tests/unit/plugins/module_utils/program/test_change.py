# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import os
import signal
import threading

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import KernelFs
from ansible_collections.mkops.multikernel.plugins.module_utils.program import change, watch
from ansible_collections.mkops.multikernel.plugins.modules import layout as _layout


def actions(host):
    return [call[0] for call in host.changes]


# apply


def test_check_apply_check_apply(host, mkops, write, layout):
    file = write(layout)
    before = host.snapshot()
    check = mkops("apply", "--check", file)
    assert (check.rc, host.snapshot(), host.changes) == (0, before, [])
    apply = mkops("apply", file)
    after = host.snapshot()
    assert check.out.splitlines()[:-1] == [f"would {line}" for line in apply.out.splitlines()]
    assert check.out.endswith("nothing was changed: this was a check\n")
    assert (apply.rc, apply.err) == (0, "")
    assert actions(host) == ["init", "create", "create", "load", "start", "load"]
    for words in (["--check"], []):
        again = mkops("apply", *words, file)
        assert (again.rc, again.out) == (0, f"nothing to do: the host is as {file} says\n")
    assert host.snapshot() == after


def test_it_is_what_the_module_does(host, mkops, write, layout, run_module):
    assert mkops("apply", write(layout)).rc == 0
    assert not run_module(_layout, host, **layout)["changed"]


def test_without_a_file_it_is_the_declared_layout(host, mkops, declare):
    missing = mkops("apply")
    assert (missing.rc, "etc/mkops/layout.json does not exist" in missing.err) == (3, True)
    declare()
    assert mkops("apply").rc == 0
    assert set(host.instances) == {"red", "blue"}


@pytest.mark.parametrize("words", [["--check"], []])
def test_all_reasons_at_once_and_as_the_module_has_them(host, mkops, write, layout, run_module, words):
    layout["pool"]["memory"] = "1X"
    layout["instances"] = {"red": {"cpus": 99}, "b/d": {"cpu_count": 0}, "blue": 5}
    before = host.snapshot()
    said = mkops("apply", *words, write(layout))
    assert (said.rc, said.out, host.snapshot()) == (3, "", before)
    reasons = run_module(_layout, host, **layout)["reasons"]
    assert [line.strip() for line in said.err.splitlines()[1:]] == reasons


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["line 1, column 1: Expecting value"]),
        ("{", ["line 1, column 2: Expecting property name"]),
        ("[]", ["does not contain a layout"]),
        ("null", ["does not contain a layout"]),
        ('{"pool": {}, "pool": {}}', ["'pool' appears twice"]),
        ('{"colour": 1, "pol": {}}', ["there is no option 'colour'", "there is no option 'pol'"]),
        ("[" * 100000, ["it is nested too deeply"]),
        ('{"instances": NaN}', ["NaN is not valid JSON"]),
        ('{"instances": {"red": {"id": ' + "9" * 5000 + "}}}", ["99...' is too large a number"]),
        ('{"kerf": 5, "instances": [5], "host_cpus": []}', ["is not a dictionary", "host_cpus"]),
        ('{"instances": {"r\\u001b[2Jd": {"\\u202e": 1}}}', ["^[[2J", "\\u202e"]),
    ],
)
def test_a_file_that_is_no_layout(host, mkops, write, text, words):
    before = host.snapshot()
    said = mkops("apply", write(text))
    assert said.rc == 3
    assert all(word in said.err for word in words), said.err
    assert not {"\x1b", "\u202e"} & set(said.err)
    assert host.snapshot() == before


def test_files_that_are_none(mkops, tmp_path, write):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b'{"pool": "\xff"}')
    for path, word in [
        (tmp_path, "Is a directory"),
        (tmp_path / "pipe", "is not a file"),
        (tmp_path / "bytes", "byte 10 is not UTF-8"),
        (tmp_path / "none", "does not exist"),
        (write("{}") / "x", "Not a directory"),
    ]:
        said = mkops("apply", path)
        assert (said.rc, word in said.err) == (3, True), said.err


def test_a_declared_layout_that_others_can_write_is_not_trusted(host, mkops, declare):
    declare().chmod(0o666)
    for words in (["apply"], ["run", "red"], ["stop", "red"]):
        said = mkops(*words)
        assert (said.rc, "can be written by users other than root" in said.err) == (3, True)
    assert host.changes == []


def test_a_failed_step_tells_what_was_done(host, mkops, write, layout):
    host.broken["load"] = "Error: \x1b[31mno"
    said = mkops("apply", write(layout))
    assert said.rc == 1
    assert "after kerf load it is ready, not loaded" in said.err
    assert "done before that:\n  set_pool" in said.err
    assert "the host's kernel said:\n  reason of load" in said.err
    assert "\x1b" not in said.err


def test_what_an_earlier_task_would_see_to_is_a_reason_here(mkops, write, layout):
    del layout["pool"]
    said = mkops("apply", "--check", write(layout))
    assert said.rc == 3
    assert "there is no pool yet" in said.err


# run


def ending(host, name, status="loaded", reason="none"):
    """What becomes of an instance as soon as somebody looks whether it runs."""
    one = host.instances[name]
    one.status, one.exit_reason = status, reason
    host.sync()


@pytest.fixture
def ends(host, monkeypatch):
    """How red ends, a moment after it was started."""

    def ends(reason):
        monkeypatch.setattr(KernelFs, "await_status", lambda *_how: ending(host, "red", reason=reason))
        monkeypatch.setattr(watch, "_LATE", 0)

    return ends


@pytest.mark.parametrize(
    ("reason", "rc"),
    [("clean: power off", 0), ("forced", 0), ("panic: oh \x1bno", 4), ("lost", 4), ("", 4)],
)
def test_run_makes_starts_and_stays(host, mkops, declare, layout, write, ends, reason, rc):
    declare()
    mkops("apply", write({"pool": layout["pool"]}))
    ends(reason)
    said = mkops("run", "red")
    assert (said.rc, set(host.instances)) == (rc, {"red"})
    assert said.out.startswith("red: create, load, start\nred: it is loaded (")
    assert "\x1b" not in said.out


def test_one_that_runs_is_adopted_whatever_is_declared(host, mkops, declare, layout, ends):
    declare()
    mkops("apply")
    for change_of_mind in ({"memory": "256M", "kernel": "/gone", "cpus": [3]}, 5, {"memory": "1X"}):
        host.calls.clear()
        ending(host, "red", "active")
        layout["instances"]["red"] = change_of_mind
        declare(layout)
        ends("clean")
        said = mkops("run", "red")
        assert (said.rc, host.changes) == (0, []), said.err
        assert said.out.startswith("red: is running already\n")


def test_one_that_is_not_declared_is_started_as_it_is_loaded(host, mkops, write, layout, ends):
    mkops("apply", write(layout))
    ending(host, "red", "loaded", "panic")
    ends("clean")
    assert mkops("run", "red").out.startswith("red: start\n")


def test_run_of_nothing(host, mkops, declare):
    said = mkops("run", "green")
    assert said.rc == 3
    assert (
        "there is no instance green: there are none, and /etc/mkops/layout.json does not declare it"
        in said.err
    )
    declare({"instances": {"green": 5}})
    assert "'5' is not a dictionary of options" in mkops("run", "green").err
    declare({"instances": [{"name": "green", "cpus": "x"}, 7]})
    said = mkops("run", "green")
    assert said.rc == 3
    assert "instance green: cpus" in said.err


def test_one_that_is_removed(host, mkops, declare, monkeypatch):
    declare()
    mkops("apply")

    def removed(*_how):
        host.instances.pop("red")
        host.sync()

    monkeypatch.setattr(KernelFs, "await_status", removed)
    said = mkops("run", "red")
    assert (said.rc, said.out.splitlines()[-1]) == (0, "red: it was removed")


def test_one_that_a_task_starts_anew_is_still_watched(host, mkops, declare, monkeypatch):
    """Between its stop and its start the task holds the lock."""
    declare()
    mkops("apply")
    looks = iter(["loaded", "loaded"])

    def look(*_how):
        ending(host, "red", next(looks), "clean")

    locks = []

    @contextlib.contextmanager
    def host_lock(_path, **_manner):
        locks.append("red")
        if len(locks) == 1:
            ending(host, "red", "active")
        yield

    monkeypatch.setattr(KernelFs, "await_status", look)
    monkeypatch.setattr(watch, "host_lock", host_lock)
    monkeypatch.setattr(watch, "_LATE", 0)
    said = mkops("run", "red")
    assert said.rc == 0
    assert said.out.splitlines()[1:] == [
        "red: another run has started it anew",
        "red: it is loaded (clean)",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_program_and_not_the_instance(host, mkops, declare, number):
    declare()
    before = signal.getsignal(number)
    timer = threading.Timer(1.5, signal.raise_signal, [number])
    mkops("apply")
    timer.start()
    said = mkops("run", "red")
    assert (said.rc, said.out.splitlines()[-1]) == (0, "red: it is left as it is")
    assert host.instances["red"].status == "active"
    assert signal.getsignal(number) is before


# stop


def test_stop(host, mkops, declare):
    declare()
    mkops("apply")
    said = mkops("stop", "red")
    assert (said.rc, said.out, host.instances["red"].exit_reason) == (0, "red: stopped\n", "clean: power off")
    again = mkops("stop", "red")
    assert (again.rc, again.out) == (0, "red: it is not running\n")
    assert host.changes[-1] == ["kill", "red"]
    assert mkops("stop", "green").rc == 3


@pytest.mark.parametrize(
    ("words", "rc", "calls"),
    [
        ([], 0, [["kill", "red"], ["kill", "red", "--force"]]),
        (["--force"], 0, [["kill", "red", "--force"]]),
        (["--no-force"], 1, [["kill", "red"]]),
    ],
)
def test_one_that_does_not_shut_down(host, mkops, declare, monkeypatch, words, rc, calls):
    declare()
    mkops("apply")
    kill = host.kerf_kill
    monkeypatch.setattr(host, "kerf_kill", lambda name, flags: kill(name, flags) if flags else None)
    host.calls.clear()
    said = mkops("stop", "red", *words)
    assert (said.rc, host.changes) == (rc, calls)
    assert ("stopped by force" in said.err) == (words == [])


@pytest.mark.parametrize(("words", "seconds"), [([], 7), (["--timeout", 3], 3)])
def test_the_time_to_stop(host, mkops, declare, monkeypatch, words, seconds):
    declare()
    mkops("apply")
    seen = []
    run = host.run
    monkeypatch.setattr(
        "ansible_collections.mkops.multikernel.plugins.module_utils.divide.kerf.run",
        lambda argv, timeout, **manner: seen.append((argv[1], timeout)) or run(argv, timeout, **manner),
    )
    mkops("stop", "red", *words)
    assert ("kill", seconds) in seen


def test_a_time_that_is_none(host, mkops, declare):
    declare()
    mkops("apply")
    said = mkops("stop", "red", "--timeout", 0)
    assert (said.rc, "stop_timeout: 0" in said.err) == (3, True)
    assert host.instances["red"].status == "active"


def test_nobody_but_root(host, mkops, declare, monkeypatch):
    declare()
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    for words in (["apply"], ["run", "red"], ["stop", "red"]):
        said = mkops(*words)
        assert (said.rc, "only root may" in said.err) == (3, True), said.err


def test_an_instance_alone():
    layout = {"pool": {}, "prune": True, "defaults": {"memory": 1}, "instances": {"a": None, "b": {"id": 1}}}
    assert change.only(layout, "b", state="started") == {
        "defaults": {"memory": 1},
        "instances": [{"name": "b", "id": 1, "state": "started"}],
    }
    assert change.only(layout, "a")["instances"] == [{"name": "a"}]
    assert change.only(layout, "c") is None
    assert change.only({"instances": 5}, "c") is None
