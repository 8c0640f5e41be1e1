# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The inventory of instances, as ansible-inventory shows it. Hosts are this machine, each with its mkops."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time

import pytest
import yaml

HOSTILE = "panic: {{ lookup('pipe', 'touch /tmp/mkops-hostile') }} \x1b[2J"


def instance(name, number=1, **more):
    return {
        "name": name, "id": number, "state": "active", "cpus": [2], "memory": 1 << 28, "labels": {},
        "kernel": {"path": "/var/lib/mkops/kernels/vmlinux-spawn"}, "cmdline": "quiet", "exit_reason": "none",
        "epoch": 1, **more,
    }  # fmt: skip


def status(*instances):
    return {"host": {"boot_id": "b00t-1"}, "instances": list(instances)}


def plain(value):
    """Without the marks of strings that are no templates."""
    if isinstance(value, dict):
        return value.get("__ansible_unsafe", {key: plain(one) for key, one in value.items()})
    return [plain(one) for one in value] if isinstance(value, list) else value


def _cpu_time():
    """Seconds that processes have worked which this one has waited for, whatever else the machine does."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Fleet:
    """Hosts with a local connection, and a mkops for each."""

    def __init__(self, directory):
        self.directory = directory
        self.hosts = {}

    def add(self, name, said, **variables):
        """said: what its mkops does as a shell script, or what it says as JSON."""
        if not isinstance(said, str):
            (self.directory / f"{name}.json").write_text(json.dumps(said))
            said = f"cat {self.directory}/{name}.json"
        program = self.directory / f"{name}-mkops"
        program.write_text(f'#!/bin/sh\n[ "$*" = "status --json" ] || exit 9\n{said}\n')
        program.chmod(0o755)
        self.hosts[name] = {"ansible_connection": "local", **variables}

    def inventory(self, *options, check=True, **said):
        """What ansible-inventory says: all hosts with variables, groups, and what is on standard error."""
        (self.directory / "1.yml").write_text(yaml.safe_dump({"multikernel": {"hosts": self.hosts}}))
        config = {
            "plugin": "mkops.multikernel.instances",
            "program": f"{self.directory}/{{{{ inventory_hostname }}}}-mkops",
            **said,
        }
        (self.directory / "2.mkops.yml").write_text(yaml.safe_dump({"host_become": False, **config}))
        begun, worked = time.monotonic(), _cpu_time()
        done = subprocess.run(
            ["ansible-inventory", "-i", "1.yml", "-i", "2.mkops.yml", "--list", *options],
            cwd=self.directory, capture_output=True, text=True, check=False,
            env={**os.environ, "ANSIBLE_INVENTORY_ENABLED": "yaml,mkops.multikernel.instances"},
        )  # fmt: skip
        self.seconds = time.monotonic() - begun
        self.work = _cpu_time() - worked
        self.said = " ".join(done.stderr.split())
        if not check:
            assert done.returncode != 0 or "Failed to parse" in self.said or "WARNING" in self.said
            return done
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        return plain(found["_meta"]["hostvars"]), {key: one.get("hosts") for key, one in found.items()}


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path)


def test_instances_are_hosts(fleet):
    fleet.add("big", status(instance("database", 1), instance("web-1", 2, state="loaded", epoch=3)))
    fleet.add("small", status(instance("database", 1)))
    variables, groups = fleet.inventory()
    assert set(variables) == {"big", "small", "database.big", "web-1.big", "database.small"}
    assert variables["web-1.big"] == {
        "ansible_connection": "mkops.multikernel.kerf",
        "ansible_kerf_host": "big",
        "ansible_kerf_instance": "web-1",
        "mkops_address": None,
        "mkops_boot_id": "b00t-1",
        "mkops_cmdline": "quiet",
        "mkops_cpus": [2],
        "mkops_epoch": 3,
        "mkops_exit_reason": "none",
        "mkops_host": "big",
        "mkops_id": 2,
        "mkops_kernel": {"path": "/var/lib/mkops/kernels/vmlinux-spawn"},
        "mkops_labels": {},
        "mkops_memory": 1 << 28,
        "mkops_name": "web-1",
        "mkops_profile": "spawn",
        "mkops_state": "loaded",
    }
    assert groups["mkops_database"] == ["database.big", "database.small"]
    assert groups["mkops_web_1"] == groups["mkops_state_loaded"] == ["web-1.big"]
    assert groups["mkops_host_big"] == ["database.big", "web-1.big"]
    assert groups["mkops_instances"] == ["database.big", "web-1.big", "database.small"]
    assert fleet.said == ""


def test_groups_filters_names_and_expressions(fleet):
    labelled = instance("web", 4, labels={"tier": "front-end"}, kernel={"path": "/k/vmlinux-realtime"})
    fleet.add("big", status(labelled, instance("off", 5, state="ready")))
    variables, groups = fleet.inventory(
        filters=["mkops_state == 'active'", "mkops_memory > 0"],
        name="{{ mkops_host }}-{{ mkops_id }}",
        group_by=["profile", "label", "boot_id"],
        group_prefix="k_",
        compose={"number": "mkops_id * 2", "wrong": "nothing_there"},
        groups={"first": "mkops_cpus[0] == 2"},
        keyed_groups=[{"key": "mkops_profile", "prefix": "kernel"}],
    )
    assert set(variables) == {"big", "big-4"}
    assert variables["big-4"]["number"] == 8 and "wrong" not in variables["big-4"]
    mine = {name for name, hosts in groups.items() if hosts == ["big-4"]}
    assert mine == {
        "k_instances", "k_profile_realtime", "k_label_tier_front_end", "k_boot_id_b00t_1", "first",
        "kernel_realtime",
    }  # fmt: skip


def test_strict(fleet):
    fleet.add("big", status(instance("web")))
    fleet.inventory(compose={"wrong": "nothing_there"}, strict=True, check=False)
    assert "Could not set wrong for host web.big" in fleet.said


def test_what_a_spawn_says_is_no_template(fleet, tmp_path):
    said = {"exit_reason": HOSTILE, "labels": {"a": "{{ 6 * 7 }}"}, "state": "loaded"}
    fleet.add("big", status(instance("web", **said)))
    variables, groups = fleet.inventory(
        group_by=["label"],
        compose={"reason": "mkops_exit_reason", "label": "mkops_labels.a ~ ''"},
    )
    assert variables["web.big"]["reason"] == variables["web.big"]["mkops_exit_reason"] == HOSTILE
    assert variables["web.big"]["label"] == "{{ 6 * 7 }}"
    (tmp_path / "play.yml").write_text(
        "- hosts: web.big\n  gather_facts: false\n  connection: local\n  tasks:\n"
        "  - ansible.builtin.debug: {msg: '{{ reason }}|{{ mkops_exit_reason }}|{{ label }}'}\n"
        "    vars: {ansible_connection: local}\n"
    )
    assert variables["web.big"]["reason"] == variables["web.big"]["mkops_exit_reason"] == HOSTILE
    assert variables["web.big"]["label"] == "{{ 6 * 7 }}"
    assert groups["mkops_label_a____6___7___"] == ["web.big"]
    done = subprocess.run(
        ["ansible-playbook", "-i", "1.yml", "-i", "2.mkops.yml", "play.yml"], cwd=tmp_path, check=True,
        capture_output=True, text=True,
        env={**os.environ, "ANSIBLE_INVENTORY_ENABLED": "yaml,mkops.multikernel.instances"},
    )  # fmt: skip
    assert "{{ 6 * 7 }}" in done.stdout and "lookup('pipe'" in done.stdout
    assert not os.path.exists("/tmp/mkops-hostile")


@pytest.mark.parametrize("name", ["a b", "../x", "a\n[all]", "-x", "{{ x }}", "a\x1b[2J"])
def test_odd_names_are_left_out(fleet, name):
    fleet.add("big", status(instance(name), instance("web", 2)))
    variables, _groups = fleet.inventory()
    assert set(variables) == {"big", "web.big"}
    assert "is left out" in fleet.said and "\x1b" not in fleet.said


def test_names_that_are_not_unique(fleet):
    fleet.add("big", status(instance("web")))
    fleet.add("small", status(instance("web")))
    variables, _groups = fleet.inventory(name="{{ mkops_name }}")
    assert variables["web"]["mkops_host"] == "big"
    assert "instance web of small is left out: there is a host web already" in fleet.said
    fleet.inventory(name="{{ mkops_name }}", strict=True, check=False)
    assert "there is a host web already" in fleet.said


@pytest.mark.parametrize(
    ("said", "warning"),
    [
        ("exit 127", "it has no mkops: role mkops.multikernel.host installs it"),
        ("echo no such host >&2; exit 3", "mkops fails with code 3: no such host"),
        ("echo '<html>'", "what mkops says is not JSON: <html>"),
        ("head -c 100000 /dev/zero | tr '\\0' '['", f"what mkops says is not JSON: {'[' * 20}"),
        ("echo '{}'", "what mkops says is not understood: there is no 'instances' in it"),
        (
            'echo \'{"host": {}, "instances": [5]}\'',
            "what mkops says is not understood: an instance has no name",
        ),
    ],
)
def test_a_host_that_fails_is_a_warning(fleet, said, warning):
    fleet.add("bad", said)
    fleet.add("big", status(instance("web")))
    variables, _groups = fleet.inventory()
    assert set(variables) == {"bad", "big", "web.big"}
    assert f"host bad: its instances are not known: {warning}" in fleet.said


def test_hosts_that_hang_or_are_away_cost_their_time_once(fleet):
    for number in range(4):
        fleet.add(f"slow{number}", "exec sleep 100")
    fleet.add(
        "away", "", ansible_connection="ssh", ansible_host="127.0.0.1", ansible_port=9, ansible_ssh_args=""
    )
    fleet.add("big", status(instance("web")))
    variables, _groups = fleet.inventory(timeout=3)
    assert "web.big" in variables
    assert fleet.said.count("no answer within 3 s") == 4
    assert "host away: its instances are not known: cannot be reached: " in fleet.said
    assert fleet.seconds < 15
    assert subprocess.run(["pgrep", "-f", "^sleep 100$"], check=False).returncode == 1


def test_a_list_of_its_own(fleet):
    fleet.add("big", status(instance("web")))
    hosts, fleet.hosts = fleet.hosts, {"other": {}}
    variables, groups = fleet.inventory(declare=hosts, hosts=["none"])
    assert set(variables) >= {"big", "web.big"} and "big" in groups["multikernel"]
    fleet.inventory(declare={"a b": {}}, check=False)
    assert "is not the name of a host with its variables" in fleet.said


def test_hosts_by_pattern(fleet):
    fleet.add("big1", status(instance("web")))
    fleet.add("big2", status(instance("web")))
    fleet.add("small", "exit 1")
    variables, _groups = fleet.inventory(hosts=["big*"])
    assert set(variables) == {"big1", "big2", "small", "web.big1", "web.big2"} and fleet.said == ""


def test_cache(fleet, tmp_path):
    fleet.add("big", f"echo asked >>{tmp_path}/log; cat {tmp_path}/big.json")
    (tmp_path / "big.json").write_text(json.dumps(status(instance("web"))))
    cached = {"cache": True, "cache_plugin": "jsonfile", "cache_connection": str(tmp_path / "cache")}
    first, _groups = fleet.inventory(**cached)
    assert fleet.inventory(**cached)[0] == first and "web.big" in first
    assert (tmp_path / "log").read_text() == "asked\n"
    fleet.inventory("--flush-cache", **cached)
    assert (tmp_path / "log").read_text() == "asked\n" * 2


def test_a_cache_does_not_keep_that_a_host_was_away(fleet, tmp_path):
    fleet.add("big", "exit 1")
    cached = {"cache": True, "cache_plugin": "jsonfile", "cache_connection": str(tmp_path / "cache")}
    assert set(fleet.inventory(**cached)[0]) == {"big"}
    fleet.add("big", status(instance("web")))
    assert "web.big" in fleet.inventory(**cached)[0]


def test_ssh_over_the_host(fleet):
    with_address = instance("web", 2, cmdline="quiet ip=10.80.0.2::10.80.0.1:255.255.255.0:web:eth0:off")
    fleet.add("big", status(with_address, instance("db", 3)), ansible_user="admin", ansible_port=2222)
    variables, _groups = fleet.inventory(connection="ssh")
    assert variables["web.big"]["ansible_connection"] == "ansible.builtin.ssh"
    assert variables["web.big"]["ansible_host"] == "10.80.0.2"
    assert variables["web.big"]["ansible_ssh_common_args"] == "-o ProxyJump=admin@big:2222"
    assert variables["db.big"]["ansible_connection"] == "mkops.multikernel.kerf"


def test_a_large_fleet(fleet):
    """50 hosts with 64 instances each."""
    for number in range(50):
        fleet.add(f"h{number}", status(*(instance(f"i{one}", one + 1) for one in range(64))))
    variables, groups = fleet.inventory(keyed_groups=[{"key": "mkops_profile", "prefix": "kernel"}])
    assert len(groups["mkops_instances"]) == 3200 and len(variables) == 3250
    assert fleet.said == ""
    assert fleet.work < 20, "ten seconds of a machine with two CPUs"


def test_hosts_that_are_none_are_a_warning(fleet):
    fleet.add("big", status(instance("db")))
    hosts, _groups = fleet.inventory(hosts=["lab", "servers"])
    assert list(hosts) == ["big"]
    assert "2.mkops.yml: earlier inventory sources have no host for hosts: [lab, servers]" in fleet.said
