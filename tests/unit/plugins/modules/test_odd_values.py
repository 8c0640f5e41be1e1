# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whatever is put into whatever option: a result or a message, no traceback, and no Python to read."""

from __future__ import annotations

import re

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.mkops.multikernel.plugins.module_utils.divide import ready as _ready
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.options import (
    CONSOLE,
    HEADROOM,
    INFO,
    INSTANCE,
    KERF,
    LAYOUT,
    POOL,
)
from ansible_collections.mkops.multikernel.plugins.modules import console, info, instance, layout, pool
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import MIB, POOL_BASE, FakeInstance

ODD = [
    *(True, False, -1, 0, 1, 1.5, -0.5, 10**30, float("inf"), float("nan")),
    *("", " ", "-", "ü", "\udcff", "\0", "a\nb", "all but", "2-", "1G1", "(", "[", "a{99999999999999}"),
    *("x" * 5000, "9" * 5000, "0-9999," * 2000, "~", "$HOME", "/", "/dev/null", "../..", "{{ x }}", "'"),
    *([], [None], [[]], [{}], [True], [1, "x", None, {"a": 1}], ["ü", "\udcff"]),
    *({}, {"a": None}, {"a": {"b": []}}, {"0": "1G", "x": True}, {"name": 5}, {"\udcff": "\udcff"}),
]
PYTHON = re.compile(r"Traceback|\{'|\[None|\[\{|\['\w|None|True\b|False\b|ordinal not in|<class|Error\(")

MODULES = {
    "pool": (pool, POOL + HEADROOM + KERF, {"cpus": "2-3", "memory": "1G"}),
    "instance": (instance, INSTANCE + KERF, {"name": "web", "cpus": 2, "memory": "128M"}),
    "layout": (layout, LAYOUT + HEADROOM + KERF, {"instances": [{"name": "web", "cpu_count": 1}]}),
    "info": (info, INFO, {}),
    "console": (console, CONSOLE, {"name": "web", "timeout": 1}),
}
IN_LAYOUT = {
    "pool": (POOL, lambda values: {"pool": {"cpus": "2-3", "memory": "1G", **values}}),
    "instances": (INSTANCE, lambda values: {"instances": [{"name": "a", "cpu_count": 1, **values}]}),
    "defaults": (INSTANCE, lambda values: {"defaults": values, "instances": [{"name": "a"}]}),
    "profiles": (
        INSTANCE,
        lambda values: {"profiles": {"p": values}, "instances": [{"name": "a", "profile": "p"}]},
    ),
}


@pytest.fixture
def divided(make_host, monkeypatch):
    monkeypatch.setattr(_ready, "agent_reasons", list)
    host = make_host(
        pool_cpus=[4, 6],
        chunks=[(POOL_BASE, 512 * MIB, 0)],
        instances={"web": FakeInstance(1, [4], POOL_BASE, 128 * MIB, "active")},
    )
    host.version = "0.5.0"  # nothing is to be changed here: this kerf is refused
    return host


def check(result):
    assert "msg" in result or not result.get("failed")
    for text in [result.get("msg", ""), *result.get("reasons", []), *result.get("depends", [])]:
        assert not PYTHON.search(text), text
    assert sum(map(len, result.get("reasons", []))) < 20000


def gets_through(group, params):
    """Whether a module sees it at all. What Ansible itself refuses, or falls over, is not ours."""
    try:
        result = ArgumentSpecValidator(group.spec()).validate(params)
        for value in result.validated_parameters.values():
            str(value).encode() if isinstance(value, (str, int)) else None  # for the system log
        return not result.error_messages
    except (TypeError, ValueError, ArithmeticError):
        return False


CASES = [(name, option.name) for name, (_module, group, _base) in MODULES.items() for option in group]


@pytest.mark.parametrize(("name", "option"), CASES)
def test_every_option_of_every_module(divided, run_module, name, option):
    module, group, base = MODULES[name]
    type_ = {one.name: one.type for one in group}[option]
    for value in ODD:
        params = {**base, option: value}
        if gets_through(group, params):
            result = run_module(module, divided, _check=name != "layout", **params)
            # Ansible makes texts of what is no text, and those look like Python.
            if type_ == "raw" or isinstance(value, str):
                check(result)


@pytest.mark.parametrize(
    ("where", "option"),
    [(where, option.name) for where, (group, _place) in IN_LAYOUT.items() for option in group],
)
def test_every_option_within_a_layout(divided, run_module, where, option):
    _group, place = IN_LAYOUT[where]
    for number, value in enumerate(ODD):
        check(run_module(layout, divided, _check=bool(number % 2), **place({option: value})))


@pytest.mark.parametrize("where", ["profiles", "defaults", "pool", "instances"])
def test_odd_things_in_the_place_of_dictionaries(divided, run_module, where):
    for value in ODD:
        check(run_module(layout, divided, instances=[{"name": "a", "profile": "p"}], profiles={"p": value}))
        check(run_module(layout, divided, instances=[value]))
        check(run_module(layout, divided, instances={"a": value}))
        check(run_module(layout, divided, instances=[{"name": "a", "profile": value}]))
