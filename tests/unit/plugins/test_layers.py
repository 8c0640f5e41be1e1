# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which room may know which: nothing imports upwards, nothing in a circle, and only what is said here."""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[3]
PLUGINS = TOP / "plugins"
UTILS = PLUGINS / "module_utils"
PREFIX = "ansible_collections.mkops.multikernel.plugins."
# Each room, and the rooms of module_utils that it may import from beside itself.
ROOMS = {
    "common": set(),
    "devices": {"common"},
    "divide": {"common", "devices"},
    "program": {"common", "devices", "divide"},
    "build": {"common"},
    "boot": {"common"},
    "": {"common", "devices", "divide", "build", "boot"},  # module_utils itself: adapters for modules
}
# What runs on a controller, or uses module_utils.
ABOVE = {"action", "connection", "filter", "inventory", "lookup", "modules", "plugin_utils"}
# The engine also runs on hosts without Ansible.
WITHOUT_ANSIBLE = {"common", "devices", "divide", "program"}
# What a file may import beside that: it says so where it is missing, and nothing else needs that file.
OPTIONAL = {"module_utils.program.metrics": "prometheus_client"}


def name_of(path: Path) -> str:
    """module_utils.divide.plan for its file."""
    return ".".join(path.relative_to(PLUGINS).with_suffix("").parts)


MODULES = {name_of(path): path for path in UTILS.rglob("*.py") if path.name != "__init__.py"}


def imports_of(name: str, path: Path, text: str | None = None) -> set[str]:
    """Full names of what a file imports, anywhere in it; plugins are named from the collection on."""
    found = set()
    for node in ast.walk(ast.parse(text or path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".")[: -node.level]
                base = ".".join([*package, *filter(None, [base])])
            base = base.removeprefix(PREFIX)
            found |= {
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names
            }
    return found


def room_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 2 else ""


def faults(name: str, path: Path, text: str | None = None) -> list[str]:
    """What a file of module_utils imports and must not."""
    room, found = room_of(name), []
    for other in sorted(imports_of(name, path, text)):
        if other.startswith("module_utils"):
            if other not in MODULES:
                found.append(f"{name} imports {other}, which is no module: name the file itself")
            elif room_of(other) not in {room, *ROOMS[room]}:
                found.append(f"{name} imports {other}, which is not below it")
        elif other.split(".")[0] in ABOVE:
            found.append(f"{name} imports {other}, which is above it")
        elif other.split(".")[0] in {*sys.stdlib_module_names, OPTIONAL.get(name)}:
            continue
        elif room in WITHOUT_ANSIBLE:
            found.append(f"{name} imports {other}, which a host without Ansible does not have")
    return found


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_imports_upwards(name):
    assert faults(name, MODULES[name]) == []


@pytest.mark.parametrize(
    ("name", "line", "fault"),
    [
        ("module_utils.common.lock", "from ..divide.plan import Plan", "is not below it"),
        ("module_utils.divide.plan", "from ..boot import host", "is not below it"),
        ("module_utils.divide.plan", "def f():\n    from ..build.kconfig import merge", "is not below it"),
        ("module_utils.boot.plan", f"from {PREFIX}module_utils.divide.plan import Plan", "is not below it"),
        ("module_utils.boot.plan", f"from {PREFIX}modules.kernel_boot import main", "is above it"),
        ("module_utils.divide.plan", f"from {PREFIX}plugin_utils.hosts import bounded", "is above it"),
        ("module_utils.divide.plan", "from ansible.module_utils.basic import AnsibleModule", "does not have"),
        ("module_utils.divide.plan", "import yaml", "does not have"),
        ("module_utils.program.status", "from prometheus_client import Metric", "does not have"),
        ("module_utils.divide.plan", "from ..program.main import main", "is not below it"),
        (
            "module_utils.program.main",
            "from ansible.module_utils.basic import AnsibleModule",
            "does not have",
        ),
        ("module_utils.program.main", "from ..build.kconfig import merge", "is not below it"),
        ("module_utils.divide.plan", "from ..common import locked", "is no module"),
    ],
)
def test_an_upward_import_is_found(name, line, fault):
    (found,) = faults(name, MODULES[name], line)
    assert fault in found


def test_the_report_is_pure():
    """It needs no room of hosts: nothing of it goes there, and nothing of it asks one."""
    for path in (PLUGINS / "plugin_utils").glob("report*.py"):
        for other in imports_of(f"plugin_utils.{path.stem}", path):
            allowed = other.startswith(("module_utils.common.", "plugin_utils."))
            assert allowed or other.split(".")[0] in sys.stdlib_module_names, f"{path.name} imports {other}"


def test_there_is_no_circle():
    known = {
        name: {other for other in imports_of(name, path) if other in MODULES}
        for name, path in MODULES.items()
    }
    tuple(graphlib.TopologicalSorter(known).static_order())  # raises CycleError with the circle


def test_every_room_is_known():
    assert {path.name for path in UTILS.iterdir() if path.is_dir() and path.name != "__pycache__"} == {
        room for room in ROOMS if room
    }
    assert {room_of(name) for name in MODULES} <= ROOMS.keys()


def test_tests_stand_where_the_code_does():
    """A test of a room is in the room's folder."""
    mirrored = Path(__file__).parent / "module_utils"
    strays = [path.name for path in mirrored.glob("test_*.py") if path.stem != "test_module"]
    assert strays == []


def test_what_hosts_are_sent_stands_alone():
    """The connection plugin kerf sends this text to hosts, where there is nothing else of the collection."""
    name = "module_utils.divide.agent"
    assert {other.split(".")[0] for other in imports_of(name, MODULES[name])} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("word", ["Machine", "Plan", "Wish"])
def test_a_word_means_one_thing(word):
    """What others call so as well has a longer name, such as KernelWish."""
    having = [
        path for path in PLUGINS.rglob("*.py") if re.search(rf"^class {word}\b", path.read_text(), re.M)
    ]
    assert [path.parent.name for path in having] == ["divide"]
