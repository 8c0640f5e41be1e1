# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""In which order instances of a fleet are updated, and what hosts a play gets.

Played is a copy of this collection whose module layout only notes what it is asked for.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

TOP = Path(__file__).resolve().parents[3]
ROOMS = ("connection", "filter", "lookup", "plugin_utils", "module_utils")
LAYOUT = """#!/usr/bin/python
import json, os
from ansible.module_utils.basic import AnsibleModule
module = AnsibleModule(argument_spec={key: {"type": "raw"} for key in (
    "pool", "instances", "defaults", "profiles", "prune", "headroom", "host_cpus", "kerf", "at_boot")},
    supports_check_mode=True)
here = os.environ["FLEET"]
host = module.params["kerf"]
known = json.load(open(f"{here}/state.json"))
mine, steps, kept = known[host], [], known.get("kept")
for one in module.params["instances"]:
    if mine.get(one["name"]) != one["image"]:
        steps.append(f"restart {one['name']}")
        if not module.check_mode:
            assert one["allow_restart"] is True
            with open(f"{here}/log", "a") as file:
                file.write(f"{host} layout {one['name']}\\n")
            if one["image"] == "broken":
                module.fail_json(msg="it panicked", reasons=["it panicked"])
            mine[one["name"]] = one["image"]
    if module.params["at_boot"] is not None and kept[host].get(one["name"]) != one:
        steps.append(f"at_boot: {one['name']}")
        if not module.check_mode:
            kept[host][one["name"]] = one
    if not module.check_mode:
        json.dump(known, open(f"{here}/state.json", "w"))
module.exit_json(changed=bool(steps), steps=steps, instances=[
    {"name": name, "id": number, "state": "active"} for number, name in enumerate(mine, 1)])
"""
HOOK = """
- name: Note it
  ansible.builtin.lineinfile:
    path: "{{{{ lookup('ansible.builtin.env', 'FLEET') }}}}/log"
    line: "{{{{ inventory_hostname }}}} {what} {{{{ instances_one.name }}}}"
    insertafter: EOF
    create: true
    mode: "0600"
  throttle: 1
"""


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path)


class Fleet:
    def __init__(self, directory):
        self.directory = directory
        self.collection = directory / "collections/ansible_collections/mkops/multikernel"
        plugins = (f"plugins/{room}" for room in ROOMS)
        for part in (*plugins, "roles/instances", "roles/kernel/vars", "playbooks", "meta"):
            shutil.copytree(TOP / part, self.collection / part)
        shutil.copy(TOP / "galaxy.yml", self.collection)
        (self.collection / "plugins/modules").mkdir()
        (self.collection / "plugins/modules/layout.py").write_text(LAYOUT)
        for what in ("drain", "health", "undrain"):
            (directory / f"{what}.yml").write_text(HOOK.format(what=what))
        self.state = {"h1": {"red": "old", "blue": "new"}, "h2": {"red": "old"}, "h3": {"red": "old"}}
        self.wanted = {"h1": {"red": "new", "blue": "new"}, "h2": {"red": "new"}, "h3": {"red": "new"}}

    def run(self, *options, playbook="mkops.multikernel.update_instances", rc=0):
        hosts = {
            host: {
                "ansible_connection": "local",
                "ansible_python_interpreter": sys.executable,
                "instances_declared": {name: {"image": image} for name, image in wanted.items()},
                "ansible_become": False,
                "instances_kerf": host,
            }
            for host, wanted in self.wanted.items()
        }
        inventory = {"multikernel": {"hosts": hosts}}
        (self.directory / "inventory.yml").write_text(yaml.safe_dump(inventory))
        (self.directory / "state.json").write_text(json.dumps(self.state))
        (self.directory / "log").unlink(missing_ok=True)
        hooks = {
            f"instances_{what}": str(self.directory / f"{what}.yml")
            for what in ("drain", "health", "undrain")
        }
        done = subprocess.run(
            ["ansible-playbook", "-i", "inventory.yml", playbook, "-e", json.dumps(hooks), *options],
            cwd=self.directory, capture_output=True, text=True, check=False,
            env={
                **os.environ, "ANSIBLE_COLLECTIONS_PATH": str(self.directory / "collections"),
                "ANSIBLE_CONFIG": str(TOP / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1",
                "FLEET": str(self.directory),
            },
        )  # fmt: skip
        assert done.returncode == rc, done.stdout + done.stderr
        self.state = json.loads((self.directory / "state.json").read_text())
        log = self.directory / "log"
        return done.stdout, log.read_text().splitlines() if log.exists() else []


def steps(host, name):
    return [f"{host} {what} {name}" for what in ("drain", "layout", "health", "undrain")]


def test_only_what_differs_is_updated_and_in_its_order(fleet):
    said, log = fleet.run()
    assert log == [*steps("h1", "red"), *steps("h2", "red"), *steps("h3", "red")]
    table = [line.strip() for line in said.splitlines() if line.strip().startswith("- ") or "updated" in line]
    assert any("h1" in line and "blue" in line and "unchanged" in line for line in said.splitlines())
    assert said.count("updated") >= 3, table
    # The second run changes nothing.
    said, log = fleet.run()
    assert log == [] and "changed=0" in said


def test_the_first_that_fails_ends_it(fleet):
    fleet.wanted["h2"]["red"] = "broken"
    said, log = fleet.run(rc=2)
    assert log == [*steps("h1", "red"), "h2 drain red", "h2 layout red"]
    assert "Instance red of h2 is not up to date: it panicked" in " ".join(said.split())
    last = said.rindex("update_table")
    rows = said[last:]
    assert all(word in rows for word in ("updated", "failed", "it panicked", "not tried"))


def test_a_health_check_that_fails_ends_it(fleet):
    (fleet.directory / "health.yml").write_text("- ansible.builtin.fail: {msg: it is ill}\n")
    said, log = fleet.run(rc=2)
    assert log == ["h1 drain red", "h1 layout red"]
    assert "not up to date: it is ill" in " ".join(said.split())


def test_check_mode_touches_nothing(fleet):
    said, log = fleet.run("--check")
    assert log == [] and fleet.state["h1"]["red"] == "old"
    assert said.count("planned") >= 3 and "unchanged" in said


def test_what_is_kept_for_boot_is_no_reason_to_take_work_away(fleet):
    """The role's main entry keeps what is declared, and does not differ from it after an update."""
    declared = {
        host: {name: {"name": name, "image": image} for name, image in wanted.items()}
        for host, wanted in fleet.wanted.items()
    }
    fleet.state["kept"] = {**declared, "h1": {"red": declared["h1"]["red"]}}  # blue is new in the file
    _said, log = fleet.run("-e", "instances_at_boot=true")
    assert log == [*steps("h1", "red"), *steps("h2", "red"), *steps("h3", "red")]
    assert fleet.state["kept"] == declared
    fleet.state["kept"]["h1"]["red"] = {"name": "red", "image": "older"}
    _said, log = fleet.run("-e", "instances_at_boot=true")
    assert log == [] and fleet.state["kept"] == declared


def test_some_of_them_without_hooks(fleet):
    none = {f"instances_{what}": "" for what in ("drain", "health", "undrain")}
    fleet.state["h1"]["blue"] = "old"
    _said, log = fleet.run("-e", json.dumps({**none, "instances_only": ["blue"]}))
    assert log == ["h1 layout blue"]


def test_the_canary_is_watched(fleet):
    said, _log = fleet.run("-e", "instances_soak=1")
    assert said.count("Pausing for 1 seconds") == 1


def test_instances_become_hosts_of_the_play(fleet):
    play = [
        {
            "hosts": "multikernel",
            "gather_facts": False,
            "tasks": [{
                "ansible.builtin.import_role": {"name": "mkops.multikernel.instances"},
                "vars": {"instances_add_hosts": True},
            }],
        },
        {
            "hosts": "mkops_red",
            "gather_facts": False,
            "tasks": [{"ansible.builtin.debug": {
                "msg": "{{ inventory_hostname }} is {{ ansible_kerf_instance }} of {{ ansible_kerf_host }} "
                       "by {{ ansible_connection }} in {{ group_names | join(',') }}",
            }}],
        },
    ]  # fmt: skip
    (fleet.directory / "play.yml").write_text(yaml.safe_dump(play, sort_keys=False))
    fleet.state = fleet.wanted
    said, _log = fleet.run(playbook="play.yml")
    groups = "mkops_instances,mkops_red,mkops_state_active"
    for host in ("h1", "h2", "h3"):
        assert f"red.{host} is red of {host} by mkops.multikernel.kerf in mkops_host_{host},{groups}" in said
    assert "changed=0" in said
    said, _log = fleet.run("--check", playbook="play.yml")
    assert "red.h1 is" not in said
