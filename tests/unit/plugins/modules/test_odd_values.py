# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whatever is put into whatever option: a result or a message, no traceback, and no Python to read."""

from __future__ import annotations

import json
import re

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.mkops.multikernel.plugins.module_utils._module import printable
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Refused
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import ready as _ready
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.converge import converge
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import KernelFs, Paths
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.options import (
    BOOT,
    CONSOLE,
    HEADROOM,
    INFO,
    INSTANCE,
    KERF,
    LAYOUT,
    POOL,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.request import layout_request
from ansible_collections.mkops.multikernel.plugins.modules import console, info, instance, layout, pool
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import MIB, POOL_BASE, FakeInstance

ODD = [
    *(True, False, -1, 0, 1, 1.5, -0.5, 10**30, float("inf"), float("nan")),
    *("", " ", "-", "ü", "\0", "a\nb", "all but", "2-", "1G1", "(", "[", "a{99999999999999}"),
    *("x" * 5000, "9" * 5000, "0-9999," * 20, "~", "$HOME", "/", "/dev/null", "../..", "{{ x }}", "'"),
    *([], [None], [[]], [{}], [True], [1, "x", None, {"a": 1}], ["ü"]),
    *({}, {"a": None}, {"a": {"b": []}}, {"0": "1G", "x": True}, {"name": 5}),
]
NO_TEXT = ["\udcff", ["ü", "\udcff"], {"\udcff": "\udcff"}]  # bytes that are no UTF-8
PYTHON = re.compile(
    r"Traceback|\{'|\{\}|\[None|\[\{|\[\]|\['\w|None|True\b|False\b|ordinal not in"
    r"|<class|\[<|<\w+ object|Error\("
)
TWICE = re.compile(r"(?:^|: )(\w+): \1: ")  # the same option, or object, in front of itself

MODULES = {
    "pool": (pool, POOL + HEADROOM + KERF + BOOT, {"cpus": "2-3", "memory": "1G"}),
    "instance": (instance, INSTANCE + KERF + BOOT, {"name": "web", "cpus": 2, "memory": "128M"}),
    "layout": (layout, LAYOUT + HEADROOM + KERF + BOOT, {"instances": [{"name": "web", "cpu_count": 1}]}),
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
    machine = KernelFs(Paths(str(host.root))).read()
    monkeypatch.setattr(KernelFs, "read", lambda _kernel: machine)  # once for hundreds of runs
    return host


def check(result):
    assert "msg" in result or not result.get("failed")
    for text in [result.get("msg", ""), *result.get("reasons", []), *result.get("depends", [])]:
        assert not PYTHON.search(text), text
        assert not TWICE.search(text), text
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


def outcome(host, check_mode=True, **params):
    """Of a layout, without Ansible, which would not let all of it through."""
    try:
        result = converge(
            Paths(str(host.root)),
            "/opt/mkops/kerf/bin/kerf",
            check_mode,
            lambda machine, images: layout_request(params, machine, images),
        )
    except Refused as refused:
        return {"reasons": refused.reasons}
    return {"depends": result.depends}


@pytest.mark.parametrize(
    ("where", "option"),
    [(where, option.name) for where, (group, _place) in IN_LAYOUT.items() for option in group],
)
def test_every_option_within_a_layout(divided, where, option):
    _group, place = IN_LAYOUT[where]
    for number, value in enumerate([*ODD, *NO_TEXT]):
        check(outcome(divided, bool(number % 2), **place({option: value})))


@pytest.mark.parametrize("value", [*ODD, *NO_TEXT], ids=lambda value: repr(value)[:20])
def test_odd_things_in_the_place_of_dictionaries(divided, value):
    profiled = [{"name": "a", "profile": "p"}]
    check(outcome(divided, instances=profiled, profiles={"p": value}))
    check(outcome(divided, instances=profiled, profiles=value))
    check(outcome(divided, instances=profiled, defaults=value, pool=value))
    check(outcome(divided, instances=[value]))
    check(outcome(divided, instances={"a": value}))
    check(outcome(divided, instances=[{"name": "a", "profile": value}]))


def test_a_result_can_be_printed_whatever_is_in_it():
    """As of a file whose name is no UTF-8."""
    found = printable({"a\udcff": ["b\udcfe", ("c", 1)], "d": {"e": None, "f": True}})
    assert found == {"a\\xff": ["b\\xfe", ["c", 1]], "d": {"e": None, "f": True}}
    json.dumps(found, ensure_ascii=False).encode()
    # Half of a character is no byte of a file's name.
    assert printable("a\ud800") == "a\\ud800"
