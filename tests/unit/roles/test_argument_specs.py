# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a role documents of its variables is what it has."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

ROLES = sorted((Path(__file__).resolve().parents[3] / "roles").iterdir())


def read(role, path):
    return yaml.safe_load((role / path).read_text(encoding="utf-8"))


def is_template(value):
    return "{{" in str(value)


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_each_default_is_documented_and_is_as_documented(role):
    defaults = read(role, "defaults/main.yml")
    points = read(role, "meta/argument_specs.yml")["argument_specs"]
    # What an entry point cannot do without has no default.
    options = {
        name: option
        for point, spec in points.items()
        for name, option in spec["options"].items()
        if point == "main" or not option.get("required")
    }
    assert set(options) == set(defaults)
    wrong = {}
    for name, option in options.items():
        if is_template(defaults[name]):
            continue
        documented = option.get("default")
        # A long list is only in the defaults; a part that is a template is told in words.
        if "default" in option and documented != defaults[name]:
            had = defaults[name]
            if isinstance(had, dict):
                had = {key: value for key, value in had.items() if not is_template(value)}
            if documented != had:
                wrong[name] = (documented, defaults[name])
    assert wrong == {}


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_each_entry_point_has_tasks_and_variables_of_the_role(role):
    specs = read(role, "meta/argument_specs.yml")["argument_specs"]
    known = set(read(role, "defaults/main.yml"))
    for name, spec in specs.items():
        assert (role / f"tasks/{name}.yml").is_file()
        assert spec["short_description"] and spec["description"]
        optional = {key for key, option in spec["options"].items() if not option.get("required")}
        assert optional <= known
        assert all(option["description"] for option in spec["options"].values())


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_variables_have_the_prefix_of_their_role(role):
    names = set(read(role, "defaults/main.yml"))
    if (role / "vars/main.yml").exists():
        names |= set(read(role, "vars/main.yml"))
    assert {name for name in names if not name.startswith(f"{role.name}_")} == set()
