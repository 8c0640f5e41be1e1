# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command lines of tools/series, as Makefile, kernel-lab and people write them."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def series():
    spec = importlib.util.spec_from_file_location("series", TOP / "tools/series.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["series"] = module  # which dataclasses look up
    spec.loader.exec_module(module)
    return module


def test_what_make_calls_is_understood(series):
    said = subprocess.run(
        ["make", "--dry-run", "kernel-test", "kernel-test-full"],
        cwd=TOP,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    calls = [shlex.split(line)[1:] for line in said.splitlines() if line.startswith("tools/series ")]
    assert calls
    for call in calls:
        given = series.arguments(call)
        assert (given.command, given.kernel) == ("sync", series.kernels()[-1])
        assert given.dir.name == f"linux-{given.kernel}"


@pytest.mark.parametrize("order", [0, 1, 2])
def test_options_stand_where_they_like(series, order):
    words = ["sync", "tree"]
    given = series.arguments([*words[:order], "--kernel", "6.12", *words[order:]])
    assert (given.command, given.dir, given.kernel) == ("sync", Path("tree"), "6.12")


def test_a_command_needs_no_directory(series):
    assert series.arguments(["check", "--kernel", "6.12"]).dir is None
