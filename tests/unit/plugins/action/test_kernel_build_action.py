# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail, AnsibleFileNotFound

from ansible_collections.mkops.multikernel.plugins.action import kernel_build as action
from ansible_collections.mkops.multikernel.plugins.module_utils.build.configuration import (
    MAKE_BASES,
    RUNNING_BASE,
)


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (
            {"stage": "compile", "done": 1204, "total": 2800, "detail": "kernel/sched/core.o"},
            "compile 43% (1204/2800) kernel/sched/core.o",
        ),
        ({"stage": "compile", "done": 2800, "total": 2800, "detail": ""}, "compile 99% (2800/2800)"),
        ({"stage": "unpack", "done": 0, "total": 0, "detail": "x.deb"}, "unpack x.deb"),
        ({"stage": "start"}, "start"),
    ],
)
def test_describe(progress, text):
    assert action.describe(progress) == text


@pytest.mark.parametrize(
    ("planned", "text"),
    [
        ({"release": "6.12-a", "key": "0a"}, "6.12-a is not built yet"),
        ({"release": "", "key": "0a1b2c3d4e", "removed": ["6.12-b"]}, "0a1b2c3d is not built yet"),
        (
            {"release": "6.12-a", "key": "0a", "vmlinux": "/v", "removed": ["6.12-b", "6.12-c"]},
            "6.12-a is built; removes 6.12-b, 6.12-c from the cache",
        ),
    ],
)
def test_what_is_about_to_be_done(planned, text):
    assert action.announced(planned) == text


def test_action_and_module_know_the_same_bases():
    assert set(action.NAMED_BASES) == {*MAKE_BASES, RUNNING_BASE}


class Shell:
    tmpdir = "/remote/tmp"

    @staticmethod
    def join_path(*parts):
        return "/".join(parts)


@pytest.fixture
def make_action(tmp_path, monkeypatch):
    """An action whose files are looked up in tmp_path; `done` has what it did on the build host."""

    def make(transport="local", **args):
        plugin = object.__new__(action.ActionModule)
        plugin._task = SimpleNamespace(args=args, async_val=0, check_mode=False)
        plugin._connection = SimpleNamespace(transport=transport, _shell=Shell())
        plugin._uploads = itertools.count()
        plugin.done = []

        def find(_kind, name):
            path = tmp_path / name
            if not path.exists():
                raise AnsibleFileNotFound(file_name=name)
            return str(path)

        monkeypatch.setattr(plugin, "_find_needle", find)

        def execute(command):
            plugin.done.append(command)
            return {"rc": 1, "stderr": "no space\n"} if "/full" in command else {"rc": 0}

        monkeypatch.setattr(plugin, "_low_level_execute_command", execute)
        monkeypatch.setattr(
            plugin, "_transfer_file", lambda local, remote: plugin.done.append((local, remote))
        )
        monkeypatch.setattr(plugin, "_fixup_perms2", lambda paths, execute: None)
        return plugin

    (tmp_path / "a.config").touch()
    (tmp_path / "b.config").touch()
    (tmp_path / "series").mkdir()
    (tmp_path / "series/0001-x.patch").touch()
    return make


def test_local_files_are_used_in_place(make_action, tmp_path):
    plugin = make_action(config=["a.config", "b.config"], series="series", config_base="a.config", jobs=3)
    assert plugin._arguments() == {
        "config": [str(tmp_path / "a.config"), str(tmp_path / "b.config")],
        "series": str(tmp_path / "series"),
        "config_base": str(tmp_path / "a.config"),
        "jobs": 3,
    }
    assert plugin.done == []


def test_files_are_sent_to_a_remote_build_host(make_action, tmp_path):
    plugin = make_action("ssh", config=["a.config"], series="series", config_base="defconfig")
    assert plugin._arguments() == {
        "config": ["/remote/tmp/input-0/a.config"],
        "series": "/remote/tmp/input-1/series",
        "config_base": "defconfig",
    }
    assert plugin.done == [
        "mkdir -p /remote/tmp/input-0",
        (str(tmp_path / "a.config"), "/remote/tmp/input-0/a.config"),
        "mkdir -p /remote/tmp/input-1 /remote/tmp/input-1/series",
        (str(tmp_path / "series/0001-x.patch"), "/remote/tmp/input-1/series/0001-x.patch"),
    ]


def test_a_series_is_sent_with_its_folders(make_action, tmp_path):
    """And without whatever else lies there."""
    names = ("net/tcp/a.patch", "mm/b.patch", "ä/c.patch", "unused.patch", "README", "config/a.config")
    for name in (*names, "config/README"):
        (tmp_path / "series" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "series" / name).touch()
    (tmp_path / "series/series").write_text("net/tcp/a.patch -p1\nmm/b.patch # x\nä/c.patch\n0001-x.patch\n")
    plugin = make_action("ssh", series="series/")
    plugin._host = "builder"
    assert plugin._arguments()["series"] == "/remote/tmp/input-0/series"
    top = "/remote/tmp/input-0"
    assert plugin.done[0] == (
        f"mkdir -p {top} {top}/series {top}/series/config {top}/series/mm {top}/series/net"
        f" {top}/series/net/tcp '{top}/series/ä'"
    )
    sent = [remote.removeprefix(f"{top}/series/") for _local, remote in plugin.done[1:]]
    patches = ["net/tcp/a.patch", "mm/b.patch", "ä/c.patch", "0001-x.patch"]
    assert sent == ["series", *patches, "config/a.config"]
    assert [local for local, _remote in plugin.done[1:]] == [f"{tmp_path}/series/{name}" for name in sent]


def test_a_series_that_cannot_be_sent(make_action, tmp_path):
    (tmp_path / "series/series").write_text("../a.config\n")
    with pytest.raises(AnsibleActionFail, match="lies outside of the series"):
        make_action("ssh", series="series")._arguments()
    with pytest.raises(AnsibleActionFail, match=r"series .*a\.config is not a directory"):
        make_action("ssh", series="a.config")._arguments()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a.patch").touch()
    plugin = make_action("ssh", series="full")
    plugin._host = "builder"
    with pytest.raises(AnsibleActionFail, match="cannot make /remote/tmp/input-0 on builder: no space"):
        plugin._arguments()


def test_remote_src_sends_nothing(make_action):
    plugin = make_action("ssh", config=["/there/a.config"], series="/there/series", remote_src="yes")
    assert plugin._arguments() == plugin._task.args
    assert plugin.done == []


def test_everything_missing_is_named_at_once(make_action):
    plugin = make_action(config=["a.config", "no.config"], series="none", config_base="base")
    with pytest.raises(AnsibleActionFail, match=r"config no\.config, series none, config_base base"):
        plugin._arguments()


def test_attributes_of_the_task_are_put_back(make_action):
    plugin = make_action()
    with pytest.raises(RuntimeError), plugin._task_as(async_val=7, check_mode=True):
        assert (plugin._task.async_val, plugin._task.check_mode) == (7, True)
        raise RuntimeError
    assert (plugin._task.async_val, plugin._task.check_mode) == (0, False)


def scripted(plugin, monkeypatch, texts, job):
    """Let the progress file have these texts one after the other, and the job this state after them."""
    said = []
    clock = itertools.count(step=5)
    remaining = iter(texts)
    last = {"text": ""}

    def read(_path):
        last["text"] = next(remaining, last["text"])
        return last["text"]

    monkeypatch.setattr(action.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(action.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(plugin, "_read", read)
    monkeypatch.setattr(plugin, "_job_result", lambda *args: job)
    monkeypatch.setattr(plugin, "_say", said.append)
    plugin._host = "builder"
    return said


def progress(stage, done=0, state="running"):
    return json.dumps({"stage": stage, "done": done, "total": 10, "detail": "", "state": state, "pid": 42})


def test_follow_says_each_stage_and_every_ten_seconds(make_action, monkeypatch):
    plugin = make_action()
    texts = [
        progress("fetch"),
        *(progress("compile", done) for done in range(4)),
        progress("done", 10, "done"),
    ]
    finished = {"finished": True, "changed": True, "stdout": "", "ansible_job_id": "j1", "release": "r"}
    said = scripted(plugin, monkeypatch, texts, finished)
    assert plugin._follow("j1", "/p", {}) == {"changed": True, "release": "r"}
    assert said == ["fetch 0% (0/10)", "compile 0% (0/10)", "compile 20% (2/10)", "done 99% (10/10)"]


def test_follow_gives_up_on_a_build_that_vanished(make_action, monkeypatch):
    plugin = make_action()
    scripted(plugin, monkeypatch, [progress("compile", 3)], {"finished": False})
    with pytest.raises(AnsibleActionFail, match="wrote no progress for 90 s"):
        plugin._follow("j1", "/p", {})


def test_follow_asks_for_the_result_of_a_build_that_cannot_write(make_action, monkeypatch):
    """On a full disk the last progress may be an old one."""
    plugin = make_action()
    scripted(plugin, monkeypatch, [progress("compile", 3)], {"finished": True, "failed": True, "msg": "full"})
    assert plugin._follow("j1", "/p", {}) == {"failed": True, "msg": "full"}


def test_follow_stops_the_build_when_interrupted(make_action, monkeypatch):
    plugin = make_action()
    scripted(plugin, monkeypatch, [progress("compile", 3)], {"finished": False})

    def interrupt(_text):
        raise action.Interrupted("SIGINT")

    monkeypatch.setattr(plugin, "_say", interrupt)
    with pytest.raises(action.Interrupted):
        plugin._follow("j1", "/p", {})
    assert plugin.done == ["kill -TERM 42"]
