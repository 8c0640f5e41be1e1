# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.program import output, status
from ansible_collections.mkops.multikernel.plugins.modules import info
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import MIB, POOL_BASE, FakeInstance


def test_json_is_what_info_returns(host, mkops, write, layout, run_module):
    mkops("apply", write(layout))
    said = mkops("status", "--json")
    told = run_module(info, host)
    assert json.loads(said.out) == {
        key: told[key] for key in ("kernel", "host", "pool", "topology", "instances", "at_boot")
    }


def test_a_table(host, mkops, write, layout, monkeypatch):
    mkops("apply", write(layout))
    host.instances["red"].status, host.instances["red"].exit_reason = "loaded", "panic: \x1b[2Joh\nno"
    host.sync()
    said = mkops("status")
    assert said.err == ""
    assert said.out.splitlines() == [
        "host  CPUs 0-1  1.5 GiB of 1.5 GiB available  6.12.107-mkops, up 2min",
        "pool  CPUs 2-3  256 MiB of 512 MiB free       all CPUs are lent",
        "",
        "NAME  STATE   FOR   CPUS  MEMORY   STARTS  KERNEL   ENDED LAST",
        "blue  loaded  1min  3     128 MiB  0       vmlinux  -",
        "red   loaded  1min  2     128 MiB  1       vmlinux  panic: ^[[2Joh no",
    ]


def test_a_host_that_cannot_be_divided(make_host, mkops):
    make_host(supported=False, mounted=False)
    said = mkops("status")
    assert said.rc == 0
    assert said.out.splitlines()[1:] == ["", "There are no instances."]
    assert "mkops status: the running kernel 6.12.107-mkops has no multikernel support" in said.err


def test_what_is_declared_for_boot(host, mkops, declare, layout):
    path = declare()
    mkops("apply")
    assert mkops("status").out.splitlines()[-1] == (
        f"At boot: 2 instances declared in {path}. The host is as declared."
    )
    mkops("stop", "red")
    assert mkops("status").out.splitlines()[-2:] == [
        f"At boot: 2 instances declared in {path}. The host differs from that:",
        "  start red",
    ]
    layout["instances"] = {"red": {"cpus": "x\x1b"}}
    declare(layout)
    said = mkops("status")
    assert said.rc == 0
    assert "mkops status: at boot: instance red: cpus" in said.err
    assert "\x1b" not in said.err
    declare("{")
    said = mkops("status")
    assert (said.rc, "At boot" in said.out) == (0, False)
    assert "mkops status: at boot:" in said.err


def test_one_that_hangs_is_named(run_module, make_host):
    facts = run_module(info, make_host())
    facts["instances"] = [
        {
            "name": "red",
            "state": "active",
            "cpus": [2, None],
            "memory": 1 << 27,
            "epoch": None,
            "kernel": {},
            "exit_reason": None,
            "stats": {"heartbeat_age_ms": 90_000},
            "unit": None,
            "crashes": [],
        }
    ]
    lines = status.lines(facts)
    assert lines[-1] == "red has sent no heartbeat for 1min 30s."
    assert "2 and 1 unknown" in lines[-3]


def test_a_narrow_terminal():
    assert output.table([["a", "bcdefgh"], ["ab", "c"]], 6) == ["a   b…", "ab  c"]


@pytest.mark.parametrize(
    ("unit", "crashes", "said"),
    [
        (("active", "running", "success", 0), [], []),
        (("active", "running", "success", 1), [], ["mkops@red.service was restarted 1 time."]),
        (
            ("activating", "auto-restart", "watchdog", 2),
            ["/a"],
            [
                "mkops@red.service is about to be started again after 2 restarts (watchdog).",
                "Evidence of 1 crash of red is kept, the last in /a.",
            ],
        ),
        (
            ("failed", "failed", "exit-code", 0),
            ["/a", "/b"],
            [
                "mkops@red.service has failed (exit-code).",
                "Evidence of 2 crashes of red is kept, the last in /b.",
            ],
        ),
    ],
)
def test_what_systemd_does_and_what_is_kept(run_module, make_host, unit, crashes, said):
    host = make_host(
        pool_cpus=[4],
        chunks=[(POOL_BASE, 512 * MIB, 0)],
        instances={"red": FakeInstance(1, [4], POOL_BASE, 128 * MIB, "loaded")},
    )
    facts = run_module(info, host)
    keys = ("state", "sub_state", "result", "restarts")
    facts["instances"][0].update(
        unit=dict(zip(keys, unit, strict=True)), crashes=[{"path": path} for path in crashes]
    )
    lines = status.lines(facts)
    assert lines[lines.index("") + 4 :] == said if said else "" not in lines[lines.index("") + 1 :]
