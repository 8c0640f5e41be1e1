# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whatever README, docs and plugins show as YAML is what modules and roles take."""

from __future__ import annotations

import ast
import copy
import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

TOP = Path(__file__).parents[2]
NAME = "mkops.multikernel."
TEXTS = [TOP / "README.md", TOP / "CONTRIBUTING.md", *TOP.glob("docs/*.md"), *TOP.glob("roles/*/README.md")]
PLUGINS = [
    path
    for room in ("modules", "lookup", "filter", "connection", "inventory")
    for path in (TOP / "plugins" / room).iterdir()
]
MODULES = {path.stem for path in (TOP / "plugins/modules").glob("*.py")}
ROLES = {path.name for path in (TOP / "roles").iterdir()}
# Of a play, a task or a block, which are not a module's name.
WORDS = """
action_groups any_errors_fatal become become_user block always rescue changed_when check_mode
collections connection delegate_facts delegate_to diff environment failed_when force_handlers
gather_facts handlers hosts ignore_errors ignore_unreachable loop loop_control max_fail_percentage
module_defaults name no_log notify order poll async post_tasks pre_tasks register remote_user retries
until delay roles run_once serial strategy tags tasks throttle vars vars_files when
"""
# The roles merge these with what begins with them and an underscore.
MERGED = ("instances_pool", "instances_declared", "instances_defaults", "instances_profiles")


def options_of(plugin: str) -> dict[str, Any]:
    """What a plugin's documentation says of its options."""
    module = importlib.import_module(
        f"ansible_collections.mkops.multikernel.plugins.{plugin.replace('/', '.')}"
    )
    return yaml.safe_load(module.DOCUMENTATION)["options"]


KERF_VARIABLES = {
    variable["name"]
    for option in options_of("connection/kerf").values()
    for variable in option.get("vars", ())
}


class Captured(Exception):
    """Instead of a run, what the module asks of its arguments."""


def fenced(path: Path) -> Iterator[str]:
    """The YAML blocks of a Markdown file."""
    for _indent, block in re.findall(r"^( *)```ya?ml\n(.*?)^\1```$", path.read_text(), re.S | re.M):
        yield block


def shown(path: Path) -> Iterator[str]:
    """The EXAMPLES of a plugin."""
    if path.suffix == ".yml":
        yield yaml.safe_load(path.read_text())["EXAMPLES"]
        return
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "EXAMPLES":
            yield ast.literal_eval(node.value)


def module_spec(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    module = importlib.import_module(f"ansible_collections.mkops.multikernel.plugins.modules.{name}")

    def capture(**options: Any) -> None:
        raise Captured(options)

    monkeypatch.setattr(module, "AnsibleModule", capture)
    with pytest.raises(Captured) as caught:
        module.main()
    return caught.value.args[0]


def entry_points(role: str) -> dict[str, Any]:
    return yaml.safe_load((TOP / f"roles/{role}/meta/argument_specs.yml").read_text())["argument_specs"]


def role_options(role: str) -> dict[str, Any]:
    """Every variable of a role, whichever entry point takes it. Any of them may be set elsewhere."""
    options: dict[str, Any] = {}
    for point in entry_points(role).values():
        options |= {name: {**spec, "required": False} for name, spec in point.get("options", {}).items()}
    return options


ALL_OPTIONS = {name: spec for role in sorted(ROLES) for name, spec in role_options(role).items()}


def concrete(value: Any, spec: Mapping[str, Any]) -> Any:
    """The value with something possible in place of what Ansible has yet to evaluate."""
    kind = spec.get("type", "str")
    if isinstance(value, str) and ("{{" in value or "{%" in value):
        if spec.get("choices"):
            return spec["choices"][0]
        return {"list": [], "dict": {}, "int": 1, "bool": True, "float": 1.0}.get(kind, "text")
    if isinstance(value, dict) and kind == "dict" and spec.get("options"):
        return {key: concrete(item, spec["options"].get(key, {})) for key, item in value.items()}
    if isinstance(value, list) and kind == "list":
        inner = {**spec, "type": spec.get("elements", "str")}
        return [concrete(item, inner) for item in value]
    if isinstance(value, dict):
        return {
            key: concrete(item, {"type": "str"}) if isinstance(item, str) else item
            for key, item in value.items()
        }
    return value


def faults(values: Mapping[str, Any], spec: dict[str, Any], **rules: Any) -> list[str]:
    given = {key: concrete(value, spec.get(key, {})) for key, value in values.items()}
    # A copy: what is nested in a default, Ansible fills in where it stands.
    return ArgumentSpecValidator(copy.deepcopy(spec), **rules).validate(given).error_messages


class Reader:
    """Walks through an example and collects what is wrong with it, and how much was checked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.faults: list[str] = []
        self.checked = 0

    def read(self, text: str) -> None:
        for document in yaml.safe_load_all(text):
            if isinstance(document, list):
                for item in document:
                    self.item(item)
            elif isinstance(document, dict):
                self.top(document)

    def top(self, values: dict[str, Any]) -> None:
        """An inventory, the configuration of one, or variables of a group."""
        if "plugin" in values:
            self.inventory(values)
        elif any(isinstance(value, dict) and {"hosts", "children"} & set(value) for value in values.values()):
            for group in values.values():
                self.group(group)
        else:
            self.variables(values)

    def inventory(self, values: dict[str, Any]) -> None:
        self.checked += 1
        name = values["plugin"].removeprefix(NAME)
        known = options_of(f"inventory/{name}").keys() | {
            "compose",
            "groups",
            "keyed_groups",
            "strict",
            "cache",
        }
        self.faults += [f"{name} has no option {key}" for key in sorted(values.keys() - known)]
        self.variables(values.get("compose", {}))

    def group(self, group: Any) -> None:
        self.variables((group or {}).get("vars", {}))
        for variables in ((group or {}).get("hosts") or {}).values():
            self.variables(variables or {})
        for child in ((group or {}).get("children") or {}).values():
            self.group(child)

    def item(self, item: dict[str, Any]) -> None:
        """A play, a block or a task."""
        self.variables(item.get("vars", {}))
        for role in item.get("roles", []):
            self.role(role if isinstance(role, dict) else {"role": role})
        for part in ("pre_tasks", "tasks", "post_tasks", "handlers", "block", "rescue", "always"):
            for task in item.get(part, []):
                self.item(task)
        for name, args in item.items():
            if name in WORDS.split() or name.startswith("with_"):
                continue
            if name.startswith(NAME):
                self.module(name.removeprefix(NAME), args or {})
            elif name in ("ansible.builtin.import_role", "ansible.builtin.include_role"):
                self.role({**args, "role": args["name"], "vars": item.get("vars", {})})
            elif "." not in name:
                self.faults.append(f"{name} is no full name of a module, and no word of a task")

    def module(self, name: str, args: dict[str, Any]) -> None:
        self.checked += 1
        if name not in MODULES:
            self.faults.append(f"there is no module {name}")
            return
        rules = module_spec(name, self.monkeypatch)
        rules.pop("supports_check_mode", None)
        spec = rules.pop("argument_spec")
        self.faults += [f"{name}: {fault}" for fault in faults(args, spec, **rules)]

    def role(self, role: dict[str, Any]) -> None:
        name = role["role"]
        if not name.startswith(NAME):
            return
        self.checked += 1
        name = name.removeprefix(NAME)
        if name not in ROLES or role.get("tasks_from", "main") not in entry_points(name):
            self.faults.append(f"there is no role {name} with {role.get('tasks_from', 'main')}")
            return
        inline = {key: value for key, value in role.items() if key.startswith(f"{name}_")}
        self.variables({**role.get("vars", {}), **inline})

    def variables(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            base = next((word for word in MERGED if name.startswith(f"{word}_")), name)
            if base in ALL_OPTIONS:
                self.checked += 1
                spec = {base: ALL_OPTIONS[base]}
                self.faults += [f"{name}: {fault}" for fault in faults({base: value}, spec)]
            elif name.startswith("ansible_kerf_"):
                self.checked += 1
                if name not in KERF_VARIABLES:
                    self.faults.append(f"{name} is no variable of the connection")
            elif base.split("_")[0] in {role.split("_")[0] for role in ROLES}:
                self.faults.append(f"{name} is no variable of a role")


EXAMPLES = [
    pytest.param(text, id=f"{path.relative_to(TOP)}-{number}")
    for path, read in [*((path, fenced) for path in TEXTS), *((path, shown) for path in PLUGINS)]
    if path.is_file()
    for number, text in enumerate(read(path), start=1)
]


@pytest.mark.parametrize("text", EXAMPLES)
def test_an_example_is_what_modules_and_roles_take(text, monkeypatch):
    reader = Reader(monkeypatch)
    reader.read(text)
    assert reader.faults == []


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem) for path in sorted((TOP / "plugins/modules").glob("*.py"))],
)
def test_every_module_has_an_example_of_itself(path, monkeypatch):
    (text,) = shown(path)
    assert f"{NAME}{path.stem}:" in text
    reader = Reader(monkeypatch)
    reader.read(text)
    assert reader.checked


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("- mkops.multikernel.pool: {cpus: '1', memory: 1G, colour: red}", "colour"),
        ("- mkops.multikernel.instance: {cpus: [1]}", "name"),
        ("- mkops.multikernel.instance: {name: one, state: sleeping}", "sleeping"),
        ("- mkops.multikernel.pol: {}", "there is no module pol"),
        ("{plugin: mkops.multikernel.instances, colour: red}", "has no option colour"),
        ("{x: {hosts: {y: {ansible_kerf_pilot: z}}}}", "ansible_kerf_pilot is no variable of the connection"),
        ("- pool: {cpus: '1'}", "no full name"),
        ("- {hosts: all, roles: [{role: mkops.multikernel.hosts}]}", "there is no role hosts"),
        (
            "- {hosts: all, roles: [mkops.multikernel.host], vars: {host_wheels: 1}}",
            "host_wheels is no variable",
        ),
        ("- block: [{mkops.multikernel.info: {qery: '@'}}]", "qery"),
        ("instances_declared_web: [one]", "instances_declared_web"),
        ("{web: {hosts: {one: {kernel_reboot_ok: perhaps}}}}", "kernel_reboot_ok"),
        (
            "- ansible.builtin.import_role: {name: mkops.multikernel.kernel, tasks_from: none}",
            "no role kernel",
        ),
    ],
)
def test_a_wrong_example_is_seen(text, fault, monkeypatch):
    reader = Reader(monkeypatch)
    reader.read(text)
    assert len(reader.faults) == 1
    assert fault in reader.faults[0]
