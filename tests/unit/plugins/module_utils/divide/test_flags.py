# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import os
import platform
from dataclasses import replace

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.divide import flags
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.versions import FULL_SERIES, UPSTREAM
from ansible_collections.mkops.multikernel.plugins.modules import info, instance, layout, pool
from ansible_collections.mkops.multikernel.tests.unit.plugins.module_utils.divide.test_planner import BARE

ALONE = replace(BARE, interface=UPSTREAM)
real_call = flags.kexec_file_load


def answers(monkeypatch, *errnos):
    """What the kernel answers in turn, the last one again and again. Returns what it was asked."""
    asked = []

    def call(given):
        asked.append(given)
        return errnos[min(len(asked), len(errnos)) - 1]

    monkeypatch.setattr(flags, "kexec_file_load", call)
    monkeypatch.setattr(flags.time, "sleep", lambda _seconds: None)
    return asked


@pytest.mark.parametrize(
    ("errnos", "expected"),
    [
        ([errno.ENOENT], (True, 0)),
        ([errno.EBUSY, errno.EBUSY, errno.ENOENT], (True, 0)),
        # This collection's series: ids up to 511, and files are read first
        ([errno.EINVAL, errno.EBADF, errno.EINVAL], (True, 0)),
        # Other flags: all of these are unknown, or all are legal and mean something else
        ([errno.EINVAL], (False, 0)),
        ([errno.EBADF], (False, 0)),
        ([errno.EINVAL, errno.EBADF, errno.EBADF], (False, 0)),
        # No answer
        ([errno.EPERM], (None, errno.EPERM)),
        ([errno.ENOSYS], (None, errno.ENOSYS)),
        ([errno.EBUSY], (None, errno.EBUSY)),
    ],
)
def test_layout(monkeypatch, errnos, expected):
    asked = answers(monkeypatch, *errnos)
    assert flags.layout() == expected
    for given in asked:
        # Never to unload or for a crash, and never only what is legal in mainline.
        assert given & 0x7 == 0x4
        assert given & 0xFFC0


@pytest.mark.parametrize(
    ("machine", "errnos", "words"),
    [
        (ALONE, [errno.ENOENT], None),
        (ALONE, [errno.EINVAL], "expects other flags of kexec_file_load(2) than kerf 0.4 passes"),
        (
            ALONE,
            [errno.EPERM],
            "does not tell whether it accepts kexec_file_load(2) from kerf 0.4 (Operation",
        ),
        (replace(ALONE, kexec_disabled=True), [errno.EPERM], None),
        (replace(ALONE, interface=FULL_SERIES), [errno.EINVAL], None),
    ],
)
def test_reasons(monkeypatch, machine, errnos, words):
    answers(monkeypatch, *errnos)
    reasons = flags.flag_reasons(machine)
    assert reasons == [] if words is None else words in reasons[0]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({}, False),
        ({"interface": FULL_SERIES}, True),
        ({"interface": FULL_SERIES, "mounted": False}, False),
        ({"supported": False}, False),
        ({"privileged": False}, None),
    ],
)
def test_pairs(monkeypatch, other, expected):
    answers(monkeypatch, errno.EINVAL)
    assert flags.pairs(replace(ALONE, **other)) is expected


def test_the_system_call(monkeypatch):
    """The kernel that runs this test is none that knows instances, or does not let us ask."""
    answer = real_call(flags._NO_INITRAMFS | flags._MULTIKERNEL | flags._NOBODY << flags._SHIFT)
    assert answer in (errno.EINVAL, errno.EPERM, errno.ENOSYS), os.strerror(answer)
    monkeypatch.setattr(platform, "machine", lambda: "s390x")
    assert real_call(0) == errno.ENOSYS


@pytest.mark.parametrize("series", ["upstream", "full", "first"])
@pytest.mark.parametrize("mounted", [True, False])
def test_kernels_that_pair_with_kerf(make_host, run_module, series, mounted):
    host = make_host(series=series, mounted=mounted)
    assert run_module(info, host)["kernel"]["pairs"] is True


@pytest.mark.parametrize("number", [None, 1, 2])
@pytest.mark.parametrize("check", [True, False])
def test_nothing_is_changed_on_a_kernel_of_other_flags(make_host, run_module, vmlinux, number, check):
    host = make_host(series="upstream", flags="of mainline", cpus=8, memory_mib=4096)
    assert run_module(info, host)["kernel"]["pairs"] is False
    image = {"kernel": str(vmlinux), "state": "started"}
    one = {"name": "a", "cpus": 2, "memory": "256M", "id": number, **image}
    pooled = {"cpus": "2-3", "memory": "1G"}
    for result in (
        run_module(pool, host, _check=check, **pooled),
        run_module(layout, host, _check=check, pool=pooled, instances=[one]),
    ):
        told = result["warnings"] if check else result["reasons"]
        assert any("expects other flags of kexec_file_load(2)" in text for text in told)
    # One that was prepared by other means
    host.pool_cpus, host.chunks = [4, 6], [(1 << 30, 1 << 30, 0)]
    host.sync()
    result = run_module(instance, host, _check=check, **one)
    told = result["warnings"] if check else result["reasons"]
    assert any("expects other flags of kexec_file_load(2)" in text for text in told)
    assert host.changes == []
