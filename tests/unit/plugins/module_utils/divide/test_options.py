# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.mkops.multikernel.plugins.doc_fragments.at_boot import (
    ModuleDocFragment as AtBootFragment,
)
from ansible_collections.mkops.multikernel.plugins.doc_fragments.headroom import (
    ModuleDocFragment as HeadroomFragment,
)
from ansible_collections.mkops.multikernel.plugins.doc_fragments.instance import (
    ModuleDocFragment as InstanceFragment,
)
from ansible_collections.mkops.multikernel.plugins.doc_fragments.kerf import (
    ModuleDocFragment as KerfFragment,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Pending
from ansible_collections.mkops.multikernel.plugins.module_utils.common.size import MIB
from ansible_collections.mkops.multikernel.plugins.module_utils.common.text import (
    prefixed,
    reasons_of,
    shown,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.machine import Instance
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.options import (
    BOOT,
    CONSOLE,
    HEADROOM,
    INFO,
    INSTANCE,
    KERF,
    LAYOUT,
    POOL,
    Option,
    differences,
    spec_of,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.wish import Image, InstanceWish
from ansible_collections.mkops.multikernel.plugins.modules import console, info, layout, pool

DOCUMENTED = {
    "fragment at_boot": (BOOT, AtBootFragment.DOCUMENTATION),
    "fragment headroom": (HEADROOM, HeadroomFragment.DOCUMENTATION),
    "fragment instance": (INSTANCE, InstanceFragment.DOCUMENTATION),
    "fragment kerf": (KERF, KerfFragment.DOCUMENTATION),
    "module console": (CONSOLE, console.DOCUMENTATION),
    "module info": (INFO, info.DOCUMENTATION),
    "module layout": (LAYOUT, layout.DOCUMENTATION),
    "module pool": (POOL, pool.DOCUMENTATION),
}


def described(options):
    """What a documentation says of options, in the form of an argument specification."""
    return {
        name: {
            key: described(one[key]) if key == "suboptions" else one[key]
            for key in ("type", "default", "choices", "required", "elements", "suboptions")
            if key in one
        }
        for name, one in options.items()
    }


def specified(spec):
    return {
        name: {
            "suboptions" if key == "options" else key: specified(value) if key == "options" else value
            for key, value in one.items()
        }
        for name, one in spec.items()
    }


@pytest.mark.parametrize("where", DOCUMENTED)
def test_documentation_and_table_agree(where):
    group, text = DOCUMENTED[where]
    assert described(yaml.safe_load(text)["options"]) == specified(group.spec())


@pytest.mark.parametrize("where", DOCUMENTED)
def test_documentation_refers_to_options_that_there_are(where):
    group, text = DOCUMENTED[where]
    known = {option.name for option in group + POOL + INSTANCE + LAYOUT + CONSOLE + INFO}
    assert set(re.findall(r"\bO\((?:ignore:)?(\w+)", text)) <= known


def test_a_specification_is_nobody_elses():
    """Ansible may change what it gets."""
    spec_of(LAYOUT)["defaults"]["default"]["name"] = "x"
    assert spec_of(LAYOUT)["defaults"]["default"] == {}


@pytest.mark.parametrize(
    ("type_", "value", "taken"),
    [
        ("str", 5, "5"),
        ("str", "a", "a"),
        ("int", 5, 5),
        ("int", " 5 ", 5),
        ("int", "-5", -5),
        ("int", 5.0, 5),
        ("bool", "yes", True),
        ("bool", "off", False),
        ("bool", 1, True),
        ("bool", 0.0, False),
        ("bool", False, False),
        ("list", "a,b", ["a", "b"]),
        ("list", 3, ["3"]),
        ("dict", {"a": 1}, {"a": 1}),
        ("path", "~root/x", "/root/x"),
        ("path", "$HOME_OF_NOBODY/x", "$HOME_OF_NOBODY/x"),
        ("raw", None, None),
    ],
)
def test_types(type_, value, taken):
    assert Option("a", type_).take(value) == taken
    if type_ != "raw":
        mine = ArgumentSpecValidator({"a": {"type": type_}}).validate({"a": value})
        assert mine.validated_parameters["a"] == taken  # as Ansible has it


@pytest.mark.parametrize(
    ("type_", "values", "word"),
    [
        ("str", [{}, [], {"a": 1}, True, False], "is not a string"),
        ("int", [True, "x", 1.5, float("inf"), float("nan"), "", "+-5", "--", [], {}, "9" * 5000], "whole"),
        ("bool", ["perhaps", 2, [], {}, ""], "neither true nor false"),
        ("list", [{}, {"a": 1}, True], "is not a list"),
        ("dict", ["a=b", [], 1, True], "is not a dictionary"),
        ("path", ["", "a\0b"], "a path must not be empty"),
        ("path", [[], {}, True], "is not a string"),
    ],
)
def test_no_such_type(type_, values, word):
    for value in values:
        with pytest.raises(ValueError, match=word) as error:
            Option("a", type_).take(value)
        assert not re.search(r"[{\[]|None|True", str(error.value))


def test_values_are_read_with_all_that_is_wrong():
    given = INSTANCE.read(
        {
            "name": "a b",
            "state": "gone",
            "cpus": [1, {}],
            "cpu_count": 0,
            "memory": None,
            "speed": 3,
            "network": {"gateway": 5, "hostname": "-", "x": 1},
            "labels": {"a": []},
            "stop_timeout": 10**9,
        },
        complete=True,
    )
    assert given.said == {
        *("name", "state", "cpus", "cpu_count", "network", "labels", "stop_timeout"),
    }
    assert given.values["name"] is None
    assert (given.values["wait"], given.values["timeout"]) == ("none", 60)
    texts = "\n".join(given.reasons)
    for word in (
        "name 'a b' cannot be used",
        "state: 'gone' is not one of present, loaded, started, stopped, absent",
        "cpus: a dictionary is neither a CPU number",
        "cpu_count: 0 is too few",
        "there is no option 'speed': the options are name, state,",
        "network: there is no option 'x': the options are address,",
        "network: address is missing",
        "labels: a list cannot be the value of 'a'",
        "stop_timeout: 1000000000 is too long",
    ):
        assert word in texts
    assert len(given.reasons) == 9


@pytest.mark.parametrize("value", ["x", ["x"], 1, True])
def test_what_is_no_dictionary_has_no_options(value):
    assert POOL.read(value).reasons == [f"{shown(value)} is not a dictionary of options"]


def test_values_that_are_taken_once_are_taken_again():
    """Ansible has typed them already."""
    values = {"name": "web", "cpus": "2-3", "memory": "1G", "network": {"address": "dhcp"}}
    params = ArgumentSpecValidator(INSTANCE.spec()).validate(values).validated_parameters
    given = INSTANCE.read(params, complete=True)
    assert given.reasons == []
    assert given.values["cpus"] == (2, 3)
    assert given.values["memory"] == 1024 * MIB
    assert given.values["network"] == "ip=::::::dhcp"


KERNEL, OTHER = Image("/k", 1, "k1"), Image("/o", 1, "o1")


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"kernel": KERNEL}, []),
        ({}, []),  # an image of which nothing is said stays
        ({"kernel": OTHER}, ["kernel /o has changed since it was loaded"]),
        ({"kernel": Image("/k", 0, "")}, []),  # in check mode, of a file that an earlier task brings
        (
            {"kernel": KERNEL, "initrd": OTHER},
            ["there is no record of the initrd that is loaded, and /o is wanted"],
        ),
        ({"kernel": KERNEL, "cmdline": "debug"}, ["the command line is 'console=mktty0' instead of"]),
    ],
)
def test_how_a_loaded_image_differs(wish, words):
    current = Instance("web", 1, "loaded", kernel={"path": "/k", "sha256": "k1"}, cmdline="console=mktty0")
    found = differences(InstanceWish("web", **wish), current, "load")
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))


def test_an_initrd_too_many():
    record = {"path": "/i", "sha256": "i1"}
    current = Instance("web", 1, "active", kernel={"path": "/k", "sha256": "k1"}, initrd=record)
    found = differences(InstanceWish("web", kernel=KERNEL), current, "load")
    assert found == ["initrd /i is loaded, but none is wanted"]


def test_another_number():
    current = Instance("web", 3, "ready")
    assert differences(InstanceWish("web", id=7), current, "anew") == ["its id is 3 instead of 7"]
    assert differences(InstanceWish("web", id=3), current, "anew") == []
    assert differences(InstanceWish("web"), current, "anew") == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        (5, "'5'"),
        (None, "nothing"),
        (True, "true"),
        (False, "false"),
        ({"a": 1}, "a dictionary"),
        ([1], "a list"),
        ((), "a list"),
        ("x" * 500, "'" + "x" * 80 + "...'"),
    ],
)
def test_values_are_shown_without_python(value, text):
    assert shown(value) == text


def test_an_error_of_python_is_one_reason():
    """A UnicodeEncodeError has five arguments, and none of them is a reason."""
    with pytest.raises(UnicodeEncodeError) as error:
        "ü".encode("ascii")
    assert reasons_of(error.value) == [str(error.value)]
    assert reasons_of(ValueError("a", "b")) == ["a", "b"]
    assert reasons_of(ValueError(1)) == ["1"]
    assert reasons_of(ValueError()) == [""]


def test_a_prefix_keeps_the_class():
    assert isinstance(prefixed("a: ", Pending("b")), Pending)
    assert prefixed("a: ", "b") == "a: b"
