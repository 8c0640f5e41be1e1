# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host's program in this process, against a host that is a directory."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.divide import apply as _apply
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import Paths
from ansible_collections.mkops.multikernel.plugins.module_utils.program.main import main


@dataclass
class Said:
    """What a command has answered."""

    rc: int
    out: str
    err: str


@pytest.fixture
def mkops(host, monkeypatch, capsys):
    """Run a command on the fake host."""
    monkeypatch.setattr(_apply, "SETTLE", 0.1)
    monkeypatch.setattr(_apply, "SETTLE_AFTER_ERROR", 0)

    def run(*argv):
        rc = main([str(word) for word in argv], "1.2.3", Paths(str(host.root)))
        return Said(rc, *capsys.readouterr())

    return run


@pytest.fixture
def layout(vmlinux, initrd):
    return {
        "pool": {"cpus": "2-3", "memory": "512M"},
        "defaults": {"kernel": str(vmlinux), "initrd": str(initrd), "memory": "128M", "state": "started"},
        "instances": {"red": {"cpus": 2, "stop_timeout": 7}, "blue": {"cpus": 3, "state": "loaded"}},
    }


@pytest.fixture
def write(tmp_path):
    """Write a layout, or any text in its place, into a file."""

    def write(content, path=tmp_path / "layout.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        path.chmod(0o600)
        return path

    return write


@pytest.fixture
def declare(host, write, layout):
    """The same as what the host is declared to be."""
    return lambda content=layout: write(content, host.root / "etc/mkops/layout.json")
