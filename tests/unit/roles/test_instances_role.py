# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role instances makes of its variables, as ansible-playbook evaluates them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROLE = Path(__file__).resolve().parents[3] / "roles/instances"
KERNELS = "/var/lib/mkops/kernels"
CASES = {
    "parts": {
        "instances_declared_web": {"web": {"cpu_count": 2, "memory": "{{ size }}"}, "log": None},
        "instances_declared": {"web": {"memory": "8G"}, "db": {"cpus": [4], "memory": "{{ size }}"}},
        "size": "2G",
    },
    "nothing": {},
    "words": {"instances_defaults_all": {"cmdline": "quiet"}},
}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """For each case, the variables that the role's task uses."""
    folder = tmp_path_factory.mktemp("role")
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    plays = [
        {
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": False,
            "vars": {
                **defaults,
                "ansible_python_interpreter": sys.executable,
                "role_path": str(ROLE),
                "result": "{{ [instances_list, instances_all, instances_kernel_profiles] }}",
                **variables,
            },
            "vars_files": [str(ROLE / "vars/main.yml")],
            "tasks": [
                {
                    "ansible.builtin.copy": {
                        "content": "{{ result | to_json }}",
                        "dest": str(folder / case),
                        "mode": "0600",
                    }
                }
            ],
        }
        for case, variables in CASES.items()
    ]
    (folder / "play.yml").write_text(yaml.safe_dump(plays, sort_keys=False))
    program = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [program, "-i", "localhost,", folder / "play.yml"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_PIPELINING": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = ("list", "all", "profiles")
    return {case: dict(zip(names, json.loads((folder / case).read_text()), strict=True)) for case in CASES}


def test_instances_of_groups_and_of_the_host_become_one_list(evaluated):
    assert evaluated["parts"]["list"] == [
        {"name": "web", "cpu_count": 2, "memory": "8G"},
        {"name": "log"},
        {"name": "db", "cpus": [4], "memory": "2G"},
    ]


def test_without_variables_nothing_is_declared(evaluated):
    found = evaluated["nothing"]
    assert found["list"] == []
    assert found["all"] == {"pool": {}, "declared": {}, "defaults": {}, "profiles": {}}


def test_each_kernel_profile_is_one_of_instances(evaluated):
    found = evaluated["words"]["profiles"]
    assert found["spawn"] == {"kernel": f"{KERNELS}/vmlinux-spawn", "cmdline": "quiet"}
    assert found["realtime"] == {
        "kernel": f"{KERNELS}/vmlinux-realtime",
        "cmdline": "quiet rcu_nocbs=all nowatchdog",
    }
    assert set(found) == {"lab", "host", "spawn", "realtime", "hardened", "throughput"}


def test_a_profile_without_words_says_nothing_of_the_command_line(evaluated):
    found = evaluated["nothing"]["profiles"]
    assert found["spawn"] == {"kernel": f"{KERNELS}/vmlinux-spawn"}
    assert found["throughput"]["cmdline"] == "transparent_hugepage=always"
