# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail

from ansible_collections.mkops.multikernel.plugins.action import info as action

FOUND = {
    "changed": False,
    "host": {"cpus": [0, 1]},
    "instances": [{"name": "red", "state": "active"}, {"name": "blue", "state": "loaded"}],
    "_ansible_parsed": True,
}


@pytest.fixture
def run(monkeypatch):
    def run(found=None, **args):
        found = FOUND if found is None else found
        plugin = object.__new__(action.ActionModule)
        plugin._task = SimpleNamespace(args=args, async_val=0, check_mode=False)
        asked = []
        monkeypatch.setattr(action.ActionBase, "run", lambda *_arguments: {})
        monkeypatch.setattr(
            plugin, "_execute_module", lambda name, args, task_vars: asked.append((name, args)) or dict(found)
        )
        result = plugin.run(task_vars={})
        assert asked == [("mkops.multikernel.info", args)]
        return result

    return run


def test_without_a_query(run):
    assert run(console_tail=1) == FOUND


def test_only_the_answer_is_returned(run):
    result = run(query="instances[?state!='active'].name")
    assert result == {"changed": False, "_ansible_parsed": True, "result": ["blue"]}
    assert run(query="nothing")["result"] is None


def test_a_failure_is_not_queried(run):
    assert run(found={"failed": True, "msg": "no"}, query="host") == {"failed": True, "msg": "no"}


@pytest.mark.parametrize("query", ["instances[?", "sum(host)"])
def test_bad_queries(run, query):
    with pytest.raises(AnsibleActionFail, match="query: "):
        run(query=query)


def test_the_library_is_named_when_it_is_missing(run, monkeypatch):
    monkeypatch.setattr(action, "jmespath", None)
    assert run() == FOUND
    with pytest.raises(AnsibleActionFail, match="pip install jmespath"):
        run(query="host")
