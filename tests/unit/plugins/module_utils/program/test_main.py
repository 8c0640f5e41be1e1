# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command line: commands, exit codes, what is said; and the file that a host gets."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.program import main as _main
from ansible_collections.mkops.multikernel.plugins.modules import info
from ansible_collections.mkops.multikernel.tests.unit.roles.test_scripts import load_program

TOP = Path(__file__).resolve().parents[5]
MANUAL = TOP / "roles/host/files/mkops.8"
MAKE = load_program(TOP / "roles/host/files/make_program.py")
COMMANDS = ("apply", "status", "run", "stop", "boot", "devices", "metrics", "console", "ended")


def interpreters():
    found = subprocess.run([TOP / "tools/pythons", "3.9"], capture_output=True, text=True, check=False)
    return ["/usr/bin/python3", *(line.split()[1] for line in found.stdout.splitlines())]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    path = MAKE.keep(MAKE.program(TOP), tmp_path_factory.mktemp("made"), "1.0")
    path.chmod(0o755)
    return path


# The file


def test_the_same_sources_are_the_same_bytes(tmp_path, built):
    copy = tmp_path / "collection"
    (copy / "plugins").mkdir(parents=True)
    shutil.copy(TOP / "galaxy.yml", copy)
    shutil.copytree(
        TOP / "plugins/module_utils", copy / "plugins/module_utils", copy_function=shutil.copyfile
    )
    (copy / "plugins/module_utils/divide/__pycache__").mkdir(exist_ok=True)
    (copy / "plugins/module_utils/divide/__pycache__/plan.cpython-39.pyc").write_bytes(b"x")
    assert MAKE.program(copy) == built.read_bytes()
    again = MAKE.keep(MAKE.program(copy), built.parent, "1.0")
    assert again == built
    assert [path.name for path in built.parent.iterdir()] == [built.name]


def test_it_has_the_engine_and_nothing_else(built):
    with zipfile.ZipFile(built) as archive:
        names = archive.namelist()
        assert names == sorted(names)
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    rooms = {name.split("/")[1] for name in names if name.count("/") > 1}
    assert rooms == {"common", "devices", "divide", "program"}
    assert all(name.endswith(".py") for name in names)


def test_a_collection_that_is_installed_has_its_version_elsewhere(tmp_path):
    (tmp_path / "MANIFEST.json").write_text('{"collection_info": {"version": "7.8.9"}}')
    assert MAKE.version_of(tmp_path) == "7.8.9"
    assert MAKE.version_of(TOP) == re.search(r"^version: (.*)$", (TOP / "galaxy.yml").read_text(), re.M)[1]


@pytest.mark.parametrize("python", interpreters())
def test_it_runs(built, host, python, run_module, write, layout):
    def run(*argv):
        return subprocess.run([python, "-I", built, *argv], capture_output=True, text=True, check=False)

    assert run("--version").stdout == f"mkops {MAKE.version_of(TOP)}\n"
    for words in ((), *((command,) for command in COMMANDS)):
        assert run(*words, "--help").stdout.startswith(f"usage: mkops {' '.join(words)}")
    refused = run("apply", "--check", write(layout))
    assert refused.returncode == 3
    assert "has no multikernel support" in refused.stderr
    # The same on a host that can be divided.
    script = (
        "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "from mkops.divide.kernelfs import Paths\n"
        "from mkops.program.main import main\n"
        "sys.exit(main(sys.argv[2:], paths=Paths(sys.argv[1])))"
    )
    argv = [python, "-I", "-c", script, built, host.root, "status", "--json"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    told = run_module(info, host)
    assert json.loads(said) == {
        key: told[key] for key in ("kernel", "host", "pool", "topology", "instances", "at_boot")
    }


def test_the_file_is_run_by_its_first_line(built):
    assert subprocess.run([built, "--version"], capture_output=True, check=True).stdout.startswith(b"mkops ")


def test_whoever_reads_has_seen_enough(built):
    done = subprocess.run(
        f"{sys.executable} -I {built} status --json | true", shell=True, capture_output=True, check=False
    )
    assert done.stderr == b""


# The manual


def test_the_manual_has_every_command_and_option():
    text = MANUAL.read_text().replace("\\", "")
    top = _main.parser("1")
    commands = next(action for action in top._actions if action.choices)
    assert set(commands.choices) == set(COMMANDS)
    for name, one in commands.choices.items():
        assert f".B {name}\n" in text or f".BR {name} :" in text
        for action in one._actions:
            for option in action.option_strings:
                assert option in text, f"{name} {option}"
    known = {option for one in commands.choices.values() for a in one._actions for option in a.option_strings}
    assert set(re.findall(r"--[a-z-]+", text)) <= {*known, "--version"}


def test_the_manual_has_every_exit_code():
    listed = re.findall(r"^\.TP\n(\d+)$", MANUAL.read_text(), re.M)
    assert listed == re.findall(r"^  (\d+) ", _main._EPILOG, re.M)


@pytest.mark.skipif(not shutil.which("man"), reason="there is no man")
def test_the_manual_is_well_formed():
    done = subprocess.run(["man", "--warnings", "-l", MANUAL], capture_output=True, text=True, check=False)
    assert done.stderr == ""


# Bad use


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["paint"],
        ["run"],
        ["apply", "--colour"],
        ["stop", "red", "--force", "--no-force"],
        ["stop", "a", "--timeout", "x"],
    ],
)
def test_a_wrong_command_line(mkops, argv):
    with pytest.raises(SystemExit) as end:
        mkops(*argv)
    assert end.value.code == 2


def test_an_interrupt(mkops, monkeypatch):
    def interrupted(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(_main, "_run", interrupted)
    assert mkops("status").rc == 130
