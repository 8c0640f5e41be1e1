# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""When an instance is left running; test_units.py has it under a real systemd."""

from __future__ import annotations

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.common.command import Done
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import Paths
from ansible_collections.mkops.multikernel.plugins.module_utils.program import leaving

FILE = "/sys/fs/multikernel/live_update"
KEXEC = "  12 kexec.target start waiting\n"
OTHERS = "  3 reboot.target start waiting\n  4 kexec.target stop waiting\n\n  5 kexec.target.wants start\n"


@pytest.fixture
def systemd(monkeypatch):
    """What `systemctl list-jobs` says from now on."""

    def says(out, rc=0):
        def run(argv, timeout):
            assert (argv[:2], timeout) == (["systemctl", "list-jobs"], 60)
            return Done((*argv,), rc, out)

        monkeypatch.setattr(leaving, "run", run)

    return says


@pytest.mark.parametrize(
    ("state", "jobs", "left"),
    [
        ("loaded", OTHERS + KEXEC, True),
        ("loaded", OTHERS, False),
        ("loaded", "", False),
        ("stale", KEXEC, False),
        ("armed", KEXEC, False),
        ("off", KEXEC, False),
    ],
)
def test_it_takes_both_a_loaded_handover_and_a_kexec_that_begins(host, systemd, state, jobs, left):
    host.write(FILE, f"state {state}\ngeneration 0\nadopted 0\nlost 0\n")
    systemd(jobs)
    assert leaving.is_left_running(Paths(str(host.root))) is left


def test_a_kernel_that_hands_nothing_over(host, systemd):
    systemd(KEXEC)
    assert not leaving.is_left_running(Paths(str(host.root)))


def test_a_systemd_that_cannot_be_asked(host, systemd, monkeypatch):
    host.write(FILE, "state loaded\ngeneration 0\nadopted 0\nlost 0\n")
    systemd(KEXEC, rc=1)
    assert not leaving.is_left_running(Paths(str(host.root)))

    def none(argv, timeout):
        raise FileNotFoundError(2, "No such file or directory", argv[0])

    monkeypatch.setattr(leaving, "run", none)
    assert not leaving.is_left_running(Paths(str(host.root)))


def test_notes_that_cannot_be_kept_are_told_and_stop_nothing(host, monkeypatch, capsys):
    def full(kernel, name):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(leaving, "hand_over", full)
    leaving.leave(Paths(str(host.root)), "red")
    assert (
        "red: what is noted of it is not handed over: [Errno 28] No space left on device"
        in capsys.readouterr().err
    )
