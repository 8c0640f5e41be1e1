# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which kernels the role kernel has built for hosts that differ, in check mode, by ansible-playbook."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

ROLE = Path(__file__).resolve().parents[3] / "roles/kernel"


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """What was printed, and for each host what would be built for it."""
    folder = tmp_path_factory.mktemp("kernel")
    (folder / "linux").mkdir()
    (folder / "linux/Makefile").write_text("VERSION = 6\n")
    with tarfile.open(folder / "linux.tar", "w") as archive:
        archive.add(folder / "linux", "linux")
    checksum = hashlib.sha256((folder / "linux.tar").read_bytes()).hexdigest()
    for name, option in (("one", "A"), ("same", "A"), ("other", "B")):
        (folder / name).write_text(f"CONFIG_{option}=y\n")
    hosts = {
        name: {"ansible_connection": "local", "kernel_config_base": str(folder / base)}
        for name, base in (("web1", "one"), ("web2", "same"), ("db1", "other"), ("db2", "other"))
    }
    play = {
        "hosts": "all",
        "gather_facts": False,
        "vars": {
            "ansible_python_interpreter": sys.executable,
            "kernel_source": {"path": str(folder / "linux.tar"), "checksum": f"sha256:{checksum}"},
            "kernel_cache_dir": str(folder / "cache"),
        },
        "tasks": [
            {"ansible.builtin.import_role": {"name": "mkops.multikernel.kernel", "tasks_from": "build"}},
            {
                "ansible.builtin.copy": {
                    "content": "{{ groups.all | map('extract', hostvars, 'kernel_built') | to_json }}",
                    "dest": str(folder / "built.json"),
                    "mode": "0600",
                },
                "check_mode": False,
                "run_once": True,
            },
        ],
    }
    (folder / "inventory.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))
    (folder / "play.yml").write_text(yaml.safe_dump([play]))
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("ansible-playbook"), "--check"),
            *("-i", folder / "inventory.yml", folder / "play.yml"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_PIPELINING": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, dict(zip(hosts, json.loads((folder / "built.json").read_text()), strict=True))


def test_hosts_that_differ_get_kernels_of_their_own(played):
    _text, built = played
    assert built["db1"]["key"] == built["db2"]["key"] != built["web1"]["key"]


def test_a_configuration_is_told_by_its_contents(played):
    _text, built = played
    assert built["web1"]["key"] == built["web2"]["key"]


def test_each_distinct_wish_is_looked_up_once(played):
    text, _built = played
    # Two files with the same contents are two wishes, four hosts are not.
    assert text.count("-> localhost]") == 3


@pytest.mark.parametrize(
    ("given", "environment", "version", "suite"),
    [
        ({}, {}, "6.12", "trixie"),
        ({"kernel_version": "7.3"}, {}, "7.3", "trixie-backports"),
        ({}, {"MKOPS_KERNEL_VERSION": "7.3"}, "7.3", "trixie-backports"),
        ({"kernel_version": "6.12"}, {"MKOPS_KERNEL_VERSION": "7.3"}, "6.12", "trixie"),
    ],
)
def test_the_version_picks_package_suite_and_series(tmp_path, given, environment, version, suite):
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {
            "ansible_python_interpreter": sys.executable,
            "kernel_config_base": "tinyconfig",
            "role_path": str(ROLE),
            **given,
        },
        "tasks": [
            # Its variables alone; role_path is there within a role only.
            {
                "ansible.builtin.import_role": {"name": "mkops.multikernel.kernel", "tasks_from": "build"},
                "when": False,
            },
            {
                "ansible.builtin.copy": {
                    "content": "{{ kernel_wish | to_json }}",
                    "dest": str(tmp_path / "wish.json"),
                    "mode": "0600",
                }
            },
        ],
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    left = {key: value for key, value in os.environ.items() if not key.startswith("MKOPS_")}
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", tmp_path / "play.yml"],
        capture_output=True,
        text=True,
        check=False,
        env={**left, "ANSIBLE_NOCOLOR": "1", "MKOPS_DEBIAN_MIRROR": "http://mirror.example", **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    wish = json.loads((tmp_path / "wish.json").read_text())
    assert wish["source"] == {
        "package": f"linux-source-{version}",
        "suite": suite,
        "mirror": "http://mirror.example",
    }
    assert wish["series"] == f"{ROLE}/files/series/{version}"
