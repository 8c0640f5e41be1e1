# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.mkops.multikernel.plugins.action import kernel_build as action
from ansible_collections.mkops.multikernel.plugins.module_utils import _kernel_build as kb


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (
            {"stage": "compile", "done": 1204, "total": 2800, "detail": "kernel/sched/core.o"},
            "compile 43% (1204/2800) kernel/sched/core.o",
        ),
        ({"stage": "compile", "done": 2800, "total": 2800, "detail": ""}, "compile 99% (2800/2800)"),
        ({"stage": "unpack", "done": 0, "total": 0, "detail": "x.deb"}, "unpack x.deb"),
        ({"stage": "start"}, "start"),
    ],
)
def test_describe(progress, text):
    assert action.describe(progress) == text


def test_action_and_module_know_the_same_bases():
    assert set(action.MAKE_BASES) == set(kb.MAKE_BASES)
