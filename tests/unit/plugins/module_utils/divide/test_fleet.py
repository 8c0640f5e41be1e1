# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.mkops.multikernel.plugins.module_utils.divide.fleet import (
    POLICIES,
    place,
    read_hosts,
    read_instances,
)
from ansible_collections.mkops.multikernel.tests.unit.fleets import to_place

GIB = 1 << 30


def placed(hosts, instances, policy="spread"):
    found, reasons = read_hosts(hosts)
    wanted, more = read_instances(instances)
    assert (reasons, more) == ([], [])
    return place(found, wanted, policy)


BIG = {"cpus": 8, "memory": "32G"}
SMALL = {"cpus": 4, "memory": "8G"}


def test_spread_and_pack():
    hosts = {"big": BIG, "small": SMALL}
    wanted = {"a": {"cpu_count": 2, "memory": "2G"}, "b": {"cpu_count": 2, "memory": "2G"}}
    assert placed(hosts, wanted)["placed"] == {"a": "big", "b": "big"}
    assert placed(hosts, wanted, "pack")["placed"] == {"a": "small", "b": "small"}
    assert placed({"x": SMALL, "y": SMALL}, wanted)["placed"] == {"a": "x", "b": "y"}


def test_the_largest_comes_first():
    wanted = {"a": {"cpu_count": 3, "memory": "1G"}, "z": {"cpu_count": 8, "memory": "1G"}}
    assert placed({"big": BIG, "small": SMALL}, wanted)["placed"] == {"a": "small", "z": "big"}


def test_labels_and_apart():
    hosts = {"a": {**BIG, "labels": {"disk": "fast"}}, "b": {**BIG, "labels": {"disk": "fast"}}, "c": BIG}
    wanted = {
        f"db{number}": {"cpu_count": 1, "memory": "1G", "requires": {"disk": "fast"}, "apart": "db"}
        for number in range(3)
    }
    result = placed(hosts, wanted)
    assert result["placed"] == {"db0": "a", "db1": "b"}
    assert result["reasons"] == [
        "instance db2 (1 CPU, 1 GiB) fits nowhere: of 3 hosts, 2 have another one that is to be apart (db),"
        " 1 lack its labels"
    ]


def test_numa_nodes():
    two = {"0": {"cpus": 4, "memory": "4G"}, "1": {"cpus": 4, "memory": "28G"}}
    hosts = {"a": {**BIG, "nodes": two}}
    assert placed(hosts, {"x": {"cpu_count": 4, "memory": "8G", "one_node": True}})["placed"] == {"x": "a"}
    (reason,) = placed(hosts, {"x": {"cpu_count": 5, "memory": "8G", "one_node": True}})["reasons"]
    assert (
        reason
        == "instance x (5 CPUs, 8 GiB) fits nowhere: of 1 host, 1 have no NUMA node with enough of both"
    )
    # One that need not fit takes from all.
    both = {"x": {"cpu_count": 5, "memory": "8G"}, "y": {"cpu_count": 2, "memory": "3G", "one_node": True}}
    assert placed(hosts, both)["placed"] == {"x": "a", "y": "a"}
    # A small one leaves the roomier node to a large one.
    both = {"x": {"cpu_count": 2, "memory": "3G"}, "y": {"cpu_count": 2, "memory": "27G", "one_node": True}}
    assert placed(hosts, both)["placed"] == {"x": "a", "y": "a"}


def test_what_is_there_stays():
    there = [{"name": "web", "cpus": [4, 5], "memory": 2 * GIB}]
    hosts = {"a": {"cpus": 1, "memory": "1G", "instances": there}, "b": BIG}
    wanted = {"web": {"cpu_count": 2, "memory": "2G"}}
    assert placed(hosts, wanted) == {"placed": {"web": "a"}, "moved": {}, "reasons": []}
    # One that gives something up lets another one stay.
    two = [*there, {"name": "db", "cpus": [6, 7], "memory": 2 * GIB}]
    wish = {"db": {"cpu_count": 1, "memory": "1G"}, "web": {"cpu_count": 4, "memory": "3G"}}
    full = {"a": {"cpus": 1, "memory": "1G", "instances": two}}
    assert placed(full, wish) == {"placed": {"db": "a", "web": "a"}, "moved": {}, "reasons": []}
    # It grows in place, if there is room; else it has to move.
    assert placed(hosts, {"web": {"cpu_count": 3, "memory": "3G"}})["placed"] == {"web": "a"}
    moved = placed(hosts, {"web": {"cpu_count": 4, "memory": "3G"}})
    assert moved == {"placed": {"web": "b"}, "moved": {"web": "a"}, "reasons": []}


def test_facts_of_info():
    facts = {
        "pool": {"free_cpus": [3, 4], "free_memory": 2 * GIB, "cpus": [2, 3, 4]},
        "instances": [{"name": "red", "cpus": [2], "memory": GIB, "state": "active"}],
        "kernel": {}, "host": {}, "at_boot": {},
    }  # fmt: skip
    wanted = {"red": {"cpu_count": 1, "memory": "1G"}, "blue": {"cpu_count": 2, "memory": "2G"}}
    assert placed({"h": facts}, wanted)["placed"] == {"blue": "h", "red": "h"}


def test_no_hosts():
    assert placed({}, {"a": {"cpu_count": 1, "memory": 1}})["reasons"] == [
        "instance a (1 CPU, 1 B): there are no hosts"
    ]


@pytest.mark.parametrize(
    ("given", "reasons"),
    [
        ([], ["instances: they have to be a dictionary by name"]),
        ({"a": 1}, ["instance a: '1' is not a dictionary"]),
        (
            {"a": {"cpu_count": 0, "memory": "x", "cpus": 1, "requires": 5, "one_node": "maybe"}},
            [
                "instance a: there is no option 'cpus'",
                "instance a: cpu_count: '0' is not a number of CPUs",
                "instance a: memory: 'x' is not a size",
                "instance a: requires: '5' is not a dictionary of labels",
                "instance a: one_node: 'maybe' is not true or false",
            ],
        ),
        ({"a": {"cpu_count": "2", "memory": 0}}, ["instance a: memory: '0' is not a size"]),
        ({"a": {"cpu_count": True, "memory": [1]}}, [
            "instance a: cpu_count: true is not a number of CPUs", "instance a: memory: a list is not a size",
        ]),
    ],
)  # fmt: skip
def test_instances_that_are_none(given, reasons):
    assert read_instances(given)[1] == reasons


@pytest.mark.parametrize(
    ("given", "reasons"),
    [
        (5, ["hosts: they have to be a dictionary by name"]),
        ({"h": []}, ["host h: a list is not a dictionary"]),
        (
            {
                "h": {
                    "cpus": -1,
                    "memory": None,
                    "room": 1,
                    "nodes": 5,
                    "instances": [{"x": 1}, {"name": "y"}],
                }
            },
            [
                "host h: there is no option 'room'",
                "host h: cpus: '-1' is not a number of CPUs",
                "host h: memory: nothing is not a size",
                "host h: nodes: '5' is not a dictionary",
                "host h: instances: a dictionary is not an instance as module info returns it",
                "host h: instance y: cpus: nothing is not a number of CPUs",
                "host h: instance y: memory: nothing is not a size",
            ],
        ),
        (
            {"h": {**BIG, "cpus": "\N{SUPERSCRIPT TWO}"}, "i": {**BIG, "cpus": "1" * 5000}},
            [
                "host h: cpus: '\N{SUPERSCRIPT TWO}' is not a number of CPUs",
                f"host i: cpus: '{'1' * 80}...' is not a number of CPUs",
            ],
        ),
        ({"h": {**BIG, "nodes": {0: 5}}}, ["host h: node 0: '5' is not a dictionary with cpus and memory"]),
    ],
)
def test_hosts_that_are_none(given, reasons):
    assert read_hosts(given)[1] == reasons


LABELS = st.dictionaries(st.sampled_from(["disk", "zone"]), st.sampled_from(["a", "b"]))
ROOM = st.fixed_dictionaries({"cpus": st.integers(0, 12), "memory": st.integers(0, 12)})


@st.composite
def fleets(draw):
    hosts = {}
    names = [f"i{number}" for number in range(draw(st.integers(0, 12)))]
    free = set(names)
    for number in range(draw(st.integers(0, 5))):
        nodes = draw(st.dictionaries(st.sampled_from("012"), ROOM, max_size=3))
        room = draw(ROOM)
        if nodes:
            room = {key: sum(node[key] for node in nodes.values()) for key in ("cpus", "memory")}
        there = draw(st.lists(st.sampled_from(sorted(free)), unique=True, max_size=3)) if free else []
        free -= set(there)
        hosts[f"h{number}"] = {
            **room, "labels": draw(LABELS), "nodes": nodes,
            "instances": [{"name": name, **draw(ROOM)} for name in there],
        }  # fmt: skip
    instances = {
        name: {
            "cpu_count": draw(st.integers(1, 8)),
            "memory": draw(st.integers(1, 8)),
            "requires": draw(LABELS),
            "apart": draw(st.sampled_from([None, "x", "y"])),
            "one_node": draw(st.booleans()),
        }
        for name in names
    }
    return hosts, instances


@settings(max_examples=int(os.environ.get("MKOPS_EXAMPLES", "300")), deadline=None)
@given(fleets(), st.sampled_from(POLICIES), st.randoms(use_true_random=False))
def test_any_fleet(fleet, policy, chance):
    hosts, instances = fleet
    result = placed(copy.deepcopy(hosts), instances, policy)
    where = result["placed"]

    # Every instance has a host or a reason.
    assert len(where) + len(result["reasons"]) == len(instances)
    has = {one["name"]: (name, one) for name, host in hosts.items() for one in host["instances"]}
    for name, host in hosts.items():
        mine = [one for one, other in where.items() if other == name]
        for key, option in (("cpus", "cpu_count"), ("memory", "memory")):
            kept = sum(has[one][1][key] for one in mine if has.get(one, ("",))[0] == name)
            # No host has more than is free, and what they had before.
            assert sum(instances[one][option] for one in mine) <= host[key] + kept
        words = [instances[one]["apart"] for one in mine if instances[one]["apart"]]
        assert len(words) == len(set(words))
        for one in mine:
            assert instances[one]["requires"].items() <= host["labels"].items()
    # Only what had to has moved.
    assert all(has[one][0] == former != where[one] for one, former in result["moved"].items())
    assert all(where[one] == has[one][0] or one in result["moved"] for one in where if one in has)

    # The order does not matter.
    shuffled, others = list(instances.items()), list(hosts.items())
    chance.shuffle(shuffled)
    chance.shuffle(others)
    assert placed(copy.deepcopy(dict(others)), dict(shuffled), policy)["placed"] == where


@settings(max_examples=100, deadline=None)
@given(fleets(), st.sampled_from(POLICIES))
def test_the_second_run_changes_nothing(fleet, policy):
    hosts, instances = fleet
    for host in hosts.values():
        host["instances"], host["nodes"] = [], {}
    first = placed(copy.deepcopy(hosts), instances, policy)["placed"]
    for name, host in first.items():
        one = instances[name]
        hosts[host]["cpus"] -= one["cpu_count"]
        hosts[host]["memory"] -= one["memory"]
        hosts[host]["instances"].append({"name": name, "cpus": one["cpu_count"], "memory": one["memory"]})
    again = placed(hosts, instances, policy)
    assert again["placed"].items() >= first.items() and again["moved"] == {}


def large_fleet(policy):
    """1,000 hosts with 64 instances each: seconds of work."""
    hosts, instances = to_place(1000, 64)
    started = time.process_time()
    result = placed(hosts, instances, policy)
    spent = time.process_time() - started
    assert result["reasons"] == [] and len(result["placed"]) == 64000
    return spent


@pytest.mark.parametrize("policy", POLICIES)
def test_a_large_fleet(policy):
    """In a process of its own: what measures the coverage of tests takes longer than the work."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, __file__, policy], check=True, capture_output=True, text=True, env=environment
    )
    assert float(done.stdout) < 5


if __name__ == "__main__":
    print(large_fleet(sys.argv[1]))
