# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.common.size import MIB
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.image import Images
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.request import (
    instance_request,
    layout_request,
    pool_request,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.wish import Manner


@pytest.fixture
def request_of(read):
    return lambda **params: layout_request(params, read(), Images())


def one(request):
    assert request.reasons == []
    (wish,) = request.instances
    return wish


# What is shared


def test_the_nearest_counts(request_of, vmlinux):
    shared = {"memory": "1G", "kernel": str(vmlinux), "cmdline": "quiet", "stop_timeout": 5, "force": True}
    request = request_of(
        defaults=shared,
        profiles={"large": {"memory": "2G", "cmdline": "debug"}},
        instances=[{"name": "a", "profile": "large", "cmdline": "splash", "force": False}],
    )
    wish = one(request)
    assert (wish.memory, wish.kernel.path, wish.cmdline) == (2048 * MIB, str(vmlinux), "splash")
    assert request.manners["a"] == Manner(force=False, stop_timeout=5)


@pytest.mark.parametrize(
    ("shared", "own", "field", "value"),
    [
        ({"cpu_count": 1}, {"cpus": "2-3"}, "cpus", (2, 3)),
        ({"cpu_count": 1, "cpu_policy": ["node"]}, {"cpus": 2}, "cpu_policy", frozenset()),
        ({"cpus": "2-3"}, {"cpu_count": 1}, "cpu_count", 1),
        ({"cpus": "2-3"}, {"cpu_count": 1}, "cpus", None),
        ({"cpu_policy": ["node"]}, {"cpu_count": 2}, "cpu_policy", frozenset({"node"})),
        ({"memory": "1G"}, {"memory": None}, "memory", None),
    ],
)
@pytest.mark.parametrize("where", ["defaults", "profile"])
def test_what_is_shared_forbids_nothing(request_of, shared, own, field, value, where):
    layers = {"defaults": shared} if where == "defaults" else {"profiles": {"p": shared}}
    profile = {} if where == "defaults" else {"profile": "p"}
    wish = one(request_of(**layers, instances=[{"name": "a", **profile, **own}]))
    assert getattr(wish, field) == value


def test_a_profile_goes_before_the_defaults(request_of):
    request = request_of(
        defaults={"cpus": "2-3"},
        profiles={"p": {"cpu_count": 2}},
        instances=[{"name": "a", "profile": "p"}],
    )
    assert (one(request).cpus, one(request).cpu_count) == (None, 2)


@pytest.mark.parametrize(
    ("shared", "own", "line"),
    [
        ({"console": "ttynull"}, {"cmdline": "console=ttyS0 quiet"}, "console=ttyS0 quiet"),
        ({"network": {"address": "dhcp"}}, {"cmdline": "ip=off"}, "ip=off"),
        ({"console": "ttynull"}, {"cmdline": "quiet"}, "quiet console=ttynull"),
        ({"cmdline": "quiet"}, {"labels": {"b": 1, "a": "x"}}, "quiet label.a=x label.b=1"),
    ],
)
def test_words_of_the_command_line_that_say_the_same(request_of, vmlinux, shared, own, line):
    wish = one(
        request_of(
            defaults={**shared, "kernel": str(vmlinux)}, instances=[{"name": "a", "cpu_count": 1, **own}]
        )
    )
    assert wish.cmdline == line


def test_what_an_instance_says_twice_is_refused(request_of, vmlinux):
    twice = {
        "name": "a",
        "kernel": str(vmlinux),
        "cpus": 2,
        "cpu_count": 1,
        "cpu_policy": ["node"],
        "cmdline": "ip=off console=x",
        "console": "y",
        "network": {"address": "dhcp"},
    }
    assert sorted(request_of(instances=[twice]).reasons) == [
        "instance a: console and console= in cmdline exclude each other: give one of them",
        "instance a: cpus and cpu_count exclude each other: give one of them",
        "instance a: cpus and cpu_policy exclude each other: a policy chooses CPUs, and cpus has chosen them",
        "instance a: network and ip= in cmdline exclude each other: give one of them",
    ]


def test_an_image_that_is_shared_in_part_is_of_those_who_have_a_kernel(request_of, vmlinux, initrd):
    request = request_of(
        defaults={"initrd": str(initrd), "cmdline": "quiet"},
        instances=[{"name": "a", "cpu_count": 1}, {"name": "b", "cpu_count": 1, "kernel": str(vmlinux)}],
    )
    assert request.reasons == []
    assert [(one.initrd is not None, one.cmdline) for one in request.instances] == [
        (False, ""),
        (True, "quiet"),
    ]
    alone = request_of(instances=[{"name": "a", "cmdline": "quiet", "initrd": str(initrd)}])
    assert alone.reasons == [
        "instance a: initrd needs a kernel: give kernel as well",
        "instance a: cmdline needs a kernel: give kernel as well",
    ]


def test_mistakes_are_told_of_the_place_where_they_are_and_once(request_of):
    request = request_of(
        defaults={"memory": "1X", "name": "all"},
        profiles={"p": {"timeout": 0}, "unused": {"speed": 1}, "none": None},
        instances=[{"name": "a", "profile": "p"}, {"name": "b", "profile": "p"}],
    )
    assert len(request.reasons) == 4
    for word in (
        "defaults: memory: '1X' is not a size",
        "defaults: name belongs to one instance and cannot be shared",
        "profile p: timeout: 0 is too short",
        "profile unused: there is no option 'speed'",
    ):
        assert any(word in reason for reason in request.reasons)
    # Nobody is asked for what was said wrongly.
    assert all("memory" in wish.said for wish in request.instances)


@pytest.mark.parametrize("kind", ["x", ["x"], 3, True])
def test_a_profile_that_is_no_dictionary(request_of, kind):
    (reason,) = request_of(profiles={"a": kind}, instances=[{"name": "db", "profile": "a"}]).reasons
    assert reason.startswith("profile a: ")
    assert reason.endswith(" is not a dictionary of options")


@pytest.mark.parametrize(
    ("profile", "word"), [("b", "b: choose from a, c"), (["a"], "a list: choose from a, c")]
)
def test_no_such_profile(request_of, profile, word):
    request = request_of(profiles={"c": {}, "a": {}}, instances=[{"name": "db", "profile": profile}])
    assert request.reasons == [f"instance db: there is no profile {word}"]


# The instances


def test_instances_by_name(request_of):
    request = request_of(
        defaults={"cpu_count": 1},
        instances={"a": {"memory": "64M"}, "b": None, "c": {"name": "c", "state": "absent"}},
    )
    assert request.reasons == []
    assert [(wish.name, wish.state) for wish in request.instances] == [
        ("a", "present"),
        ("b", "present"),
        ("c", "absent"),
    ]


@pytest.mark.parametrize(
    ("instances", "reason"),
    [
        ("a,b", "instances: 'a,b' is neither a list of instances nor a dictionary by name"),
        (True, "instances: true is neither"),
        (["a"], "instance 1 of the list: 'a' is not a dictionary of options"),
        ([{"name": "a"}, None], "instance 2 of the list: nothing is not a dictionary of options"),
        ([{}], "instance 1 of the list: name is missing"),
        ({"a": "b"}, "instance a: 'b' is not a dictionary of options"),
        ({"a": {"name": "b"}}, "instance a: its options call it 'b': leave name out of them"),
        ({"a b": {}}, "instance a b: name 'a b' cannot be used"),
        ([{"name": "a", "memory": "x"}], "instance a: memory: 'x' is not a size"),
        ([{"name": {"a": 1}}], "instance 1 of the list: name: a dictionary is not a string"),
    ],
)
def test_what_is_no_instance(request_of, instances, reason):
    assert [found[: len(reason)] for found in request_of(instances=instances).reasons] == [reason]


def test_files_are_not_read_for_what_goes(request_of):
    wish = one(request_of(instances=[{"name": "a", "state": "absent", "kernel": "/none", "initrd": "/no"}]))
    assert (wish.kernel, wish.initrd) == (None, None)


# The rest of a layout


def test_the_manner_of_what_is_pruned(request_of):
    request = request_of(defaults={"force": True, "stop_timeout": 7, "cpu_count": 1}, prune=True)
    assert request.prune
    assert request.manner_of("anybody") == Manner(force=True, stop_timeout=7)


def test_all_mistakes_of_pool_and_host(request_of):
    request = request_of(
        pool={"cpus": 2, "cpu_count": 0, "memory": {0: None, "x": 1}},
        headroom="much",
        host_cpus=0,
        prune="perhaps",
        defaults="x",
        profiles=[],
    )
    texts = "\n".join(request.reasons)
    for word in (
        "pool: cpus and cpu_count exclude each other",
        "pool: cpu_count: 0 is too few",
        "pool: memory: node 0: 'nothing' is not a size",
        "pool: memory: 'x' is not the number of a NUMA node",
        "headroom: 'much' is not a size",
        "host_cpus: 0 is too few",
        "prune: 'perhaps' is neither true nor false",
        "defaults: 'x' is not a dictionary",
        "profiles: a list is not a dictionary",
    ):
        assert word in texts
    assert len(request.reasons) == 9
    assert (request.headroom, request.host_cpus) == (0, 1)


def test_a_pool():
    request = pool_request({"cpus": None, "cpu_count": 3, "memory": "1G", "state": "present"})
    assert request.reasons == []
    assert (request.pool.cpus, request.pool.memory) == (3, 1024 * MIB)
    assert {"cpus", "cpu_count", "memory"} <= request.pool.said
    assert request.headroom == 256 * MIB


def test_one_instance(read):
    request = instance_request({"name": "a", "cpus": 2, "memory": "64M"}, read(), Images())
    assert one(request).cpus == (2,)
    assert request.instances[0].state == "present"
    assert request.manners == {"a": Manner()}
