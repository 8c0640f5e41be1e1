# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command lines of tools/series, as Makefile, kernel-lab and people write them."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def series():
    spec = importlib.util.spec_from_file_location("series", TOP / "tools/series.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["series"] = module  # which dataclasses look up
    spec.loader.exec_module(module)
    return module


def test_every_series_can_be_chosen_and_has_a_source(series):
    specs = yaml.safe_load((TOP / "roles/kernel/meta/argument_specs.yml").read_text())["argument_specs"]
    assert series.kernels() == specs["main"]["options"]["kernel_version"]["choices"]
    for version in series.kernels():
        found = series.Series.of(version, None)
        assert found.package == f"linux-source-{version}" and found.suite
        assert series.Series.of(version, "sid").suite == "sid"
        assert series.read_series(found.directory)


def test_all_series_are_the_same_patches(series):
    names = [
        [path.name for path in series.read_series(series.Series.of(one, None).directory)]
        for one in series.kernels()
    ]
    assert names[0] and all(one == names[0] for one in names)


def test_the_series_of_no_kernel_is_an_error(series):
    with pytest.raises(series.Failure, match=r"no series for 5\.10, there are 6\.12"):
        series.Series.of("5.10", None)


def tree_of(directory, version, patchlevel):
    text = (
        f"# SPDX-License-Identifier: GPL-2.0\nVERSION = {version}\nPATCHLEVEL = {patchlevel}\nSUBLEVEL = 4\n"
    )
    (directory / "Makefile").write_text(text)
    return directory


def test_a_repository_says_which_series_it_is_of(series, tmp_path):
    assert series.tree_version(tmp_path) is None
    given = series.arguments(["export", str(tmp_path)])
    assert series.series_of(given).version == series.default_kernel()
    tree_of(tmp_path, 7, 3)
    assert series.series_of(given).version == "7.3"
    with pytest.raises(series.Failure, match=r"is a kernel 7\.3, not 6\.12"):
        series.series_of(series.arguments(["export", str(tmp_path), "--kernel", "6.12"]))


def test_something_else_is_no_kernel(series, tmp_path):
    (tmp_path / "Makefile").write_text("all:\n")
    assert series.tree_version(tmp_path) is None


def said_by_make(*words, **environment):
    argv = ["make", "--dry-run", *words]
    env = {key: value for key, value in os.environ.items() if "KERNEL_VERSION" not in key}
    done = subprocess.run(argv, cwd=TOP, check=True, capture_output=True, text=True, env=env | environment)
    return done.stdout


def test_make_tests_one_series_and_all_of_them_at_length(series):
    assert f"--kernel {series.default_kernel()} " in said_by_make("kernel-test")
    assert "--kernel 7.3 " in said_by_make("kernel-test", "SERIES=7.3")
    assert "--kernel 7.3 " in said_by_make("kernel-test", KERNEL_VERSION="7.3")
    full = said_by_make("test-full")
    assert all(f'"kernel-test-full SERIES={version}"' in full for version in series.kernels())


@pytest.mark.parametrize(("one", "other"), [("6.12", "7.3"), ("7.3", "6.12")])
def test_make_updates_from_each_series_to_the_other(series, one, other):
    said = said_by_make("kernel-test-full", f"SERIES={one}")
    assert f"for other in {other}; do" in said
    assert "--next" in said


def test_what_make_calls_is_understood(series):
    said = said_by_make("kernel-test", "kernel-test-full")
    calls = [shlex.split(line)[1:] for line in said.splitlines() if line.startswith("tools/series ")]
    assert calls
    for call in calls:
        given = series.arguments(call)
        assert (given.command in ("sync", "check"), given.kernel) == (True, series.default_kernel())
        if given.command == "sync":
            assert given.dir.name == f"linux-{given.kernel}"


@pytest.mark.parametrize("order", [0, 1, 2])
def test_options_stand_where_they_like(series, order):
    words = ["sync", "tree"]
    given = series.arguments([*words[:order], "--kernel", "6.12", *words[order:]])
    assert (given.command, given.dir, given.kernel) == ("sync", Path("tree"), "6.12")


def test_a_command_needs_no_directory(series):
    assert series.arguments(["check", "--kernel", "6.12"]).dir is None
