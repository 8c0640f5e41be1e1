# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.mkops.multikernel.plugins.modules import console
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import (
    MIB,
    POOL_BASE,
    FakeInstance,
)


class FakeConsole:
    """Retains one line, and answers what is sent."""

    sent = []  # noqa: RUF012 (reset by every test)

    def __init__(self, _paths, _instance_id):
        self.fresh = "retained\r\n"

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        pass

    def history(self):
        text, self.fresh = self.fresh, ""
        return text

    def send(self, line):
        self.sent.append(line)
        self.fresh += "up 12.5 s\r\n"

    def expect(self, pattern, _timeout, alive):
        assert alive()
        assert pattern.search(self.fresh)
        return self.fresh.replace("\r", "")


@pytest.fixture
def host(make_host, monkeypatch):
    FakeConsole.sent = []
    monkeypatch.setattr(console, "Console", FakeConsole)
    return make_host(
        pool_cpus=[4, 6],
        chunks=[(POOL_BASE, 512 * MIB, 0)],
        instances={
            "web": FakeInstance(1, [4], POOL_BASE, 128 * MIB, "active"),
            "dead": FakeInstance(2, [6], POOL_BASE + 128 * MIB, 128 * MIB, "loaded"),
        },
    )


def test_send_and_expect(host, run_module):
    result = run_module(console, host, name="web", send="uptime", expect=r"up ([\d.]+) s")
    assert result["changed"]
    assert result["output"] == "up 12.5 s\n"
    assert result["match"] == {"text": "up 12.5 s", "groups": ["12.5"]}
    assert FakeConsole.sent == ["uptime"]


def test_send_alone(host, run_module):
    assert run_module(console, host, name="web", send="uptime")["output"] == "up 12.5 s\n"


@pytest.mark.parametrize("name", ["web", "dead"])
def test_reading_changes_nothing(host, run_module, name):
    result = run_module(console, host, name=name)
    assert (result["changed"], result["output"]) == (False, "retained\n")


def test_what_is_retained_counts_without_send(host, run_module):
    assert run_module(console, host, name="web", expect="retained")["match"]["text"] == "retained"


def test_check_mode_sends_nothing(host, run_module):
    result = run_module(console, host, _check=True, name="web", send="uptime", expect="x")
    assert (result["changed"], result["output"]) == (True, "")
    assert FakeConsole.sent == []


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({"name": "none"}, "there is no instance none: choose from dead, web"),
        ({"name": "dead", "send": "x"}, "instance dead is loaded and reads no input"),
        ({"name": "web", "expect": "("}, "expect: '(' is not a regular expression"),
    ],
)
def test_refused(host, run_module, params, word):
    result = run_module(console, host, **params)
    assert result["failed"]
    assert word in result["msg"]
    assert FakeConsole.sent == []
