# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.mkops.multikernel.plugins.filter import multikernel

FILTERS = multikernel.FilterModule().filters()


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("cpus_expand", ["2-3,5"], [2, 3, 5]),
        ("cpus_expand", [[7, "1-2"]], [1, 2, 7]),
        ("cpus_expand", [""], []),
        ("cpus_compress", [[5, 2, 3]], "2-3,5"),
        ("cpus_compress", [[]], ""),
        ("cpus_intersect", ["2-5", "4-7"], [4, 5]),
        ("cpus_intersect", ["2-5", ""], []),
        ("size_bytes", ["1.5G"], 3 * 1024**3 // 2),
        ("size_human", [3 * 1024**3 // 2], "1.5 GiB"),
        ("size_human", ["512M"], "512 MiB"),
    ],
)
def test_filters(name, arguments, result):
    assert FILTERS[name](*arguments) == result


@pytest.mark.parametrize(
    ("name", "arguments", "word"),
    [
        ("cpus_expand", ["3-2,x"], "range '3-2' runs backwards: write 2-3; 'x' is neither"),
        ("cpus_intersect", ["1", "y"], "'y' is neither"),
        ("size_bytes", ["much"], "size_bytes: 'much' is not a size"),
        ("size_human", ["0.3K"], "whole number"),
        ("instance_addresses", [[], "10.0.0.1/24"], "the network is 10.0.0.0/24"),
        ("instance_addresses", [[], "x"], "'x' is not a network"),
        ("instance_addresses", [["web"], "10.0.0.0/24"], "'web' is not an instance"),
        ("instance_addresses", [[{"name": "a"}], "10.0.0.0/24"], ": a dictionary is not an instance"),
        ("instance_addresses", [[None], "10.0.0.0/24"], ": nothing is not an instance"),
        ("instance_addresses", [[{"name": "a", "id": 255}], "10.0.0.0/24"], "no address number 255 for a"),
    ],
)
def test_mistakes(name, arguments, word):
    with pytest.raises(AnsibleFilterError) as error:
        FILTERS[name](*arguments)
    assert word in str(error.value)


def test_addresses_stay_with_the_number():
    instances = [{"name": "web", "id": 1}, {"name": "db", "id": 7}]
    found = FILTERS["instance_addresses"](instances, "10.80.0.0/24", 10)
    assert {name: one["cidr"] for name, one in found.items()} == {
        "web": "10.80.0.11/24",
        "db": "10.80.0.17/24",
    }
    assert FILTERS["instance_addresses"](instances[1:], "10.80.0.0/24", 10)["db"] == found["db"]
    assert FILTERS["instance_addresses"](instances, "fd00::/64")["db"]["address"] == "fd00::7"


def test_the_library_is_named_when_it_is_missing(monkeypatch):
    monkeypatch.setattr(multikernel, "netaddr", None)
    with pytest.raises(AnsibleFilterError, match="pip install netaddr"):
        FILTERS["instance_addresses"]([], "10.0.0.0/24")


def test_place():
    filters = multikernel.FilterModule().filters()
    hosts = {"big": {"cpus": 12, "memory": "64G"}, "small": {"cpus": 4, "memory": "8G"}}
    wanted = {f"web{number}": {"cpu_count": 2, "memory": "4G", "apart": "web"} for number in (1, 2)}
    placed = {"placed": {"web1": "big", "web2": "small"}, "moved": {}, "reasons": []}
    assert filters["place"](wanted, hosts) == placed
    with pytest.raises(AnsibleFilterError, match="policy: 'full' is not spread or pack"):
        filters["place"](wanted, hosts, "full")
    with pytest.raises(AnsibleFilterError, match=r"web: cpu_count: .*; host big: cpus: "):
        filters["place"]({"web": {"memory": "1G"}}, {"big": {"memory": 1}})


def test_instance_hosts():
    convert = multikernel.FilterModule().filters()["instance_hosts"]
    facts = {
        "big": {"instances": [{"name": "web", "id": 2, "state": "active"}, {"name": "a b"}], "changed": True},
        "small": {"instances": []},
    }
    (web,) = convert(facts)
    assert web["inventory_name"] == "web.big"
    assert web["groups"] == ["mkops_instances", "mkops_web", "mkops_host_big", "mkops_state_active"]
    way = {key: value for key, value in web.items() if key.startswith("ansible_")}
    assert way == {
        "ansible_connection": "mkops.multikernel.kerf",
        "ansible_kerf_host": "big",
        "ansible_kerf_instance": "web",
    }
    with pytest.raises(AnsibleFilterError, match="'x' is not a dictionary by host"):
        convert("x")
    with pytest.raises(AnsibleFilterError, match="host big: there is no 'instances' in it"):
        convert({"big": {"failed": True}})
