# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.mkops.multikernel.plugins.module_utils.build.log import (
    OBJECTS_PER_OPTION,
    BuildLog,
    error_lines,
    expected_objects,
)


def test_build_log_counts_objects():
    log = BuildLog()
    for line in (
        "  SYNC    include/config/auto.conf\n",
        "  HOSTCC  scripts/kconfig/conf.o\n",
        "  CC      kernel/sched/core.o\n",
        "  CC [M]  drivers/net/tun.o\n",
        "  AS      arch/x86/entry/entry_64.o\n",
        "  AR      kernel/built-in.a\n",
        "kernel/x.c:3: warning: CC nothing.o\n",
    ):
        log.feed(line)
    assert (log.objects, log.stage, log.detail) == (3, "compile", "arch/x86/entry/entry_64.o")


def test_build_log_stages():
    log = BuildLog()
    log.feed("  LD      vmlinux\n")
    assert (log.stage, log.detail) == ("link", "vmlinux")
    log.feed("dpkg-deb: building package 'linux-image-6.12.107' in '../x.deb'.\n")
    assert (log.stage, log.detail) == ("package", "linux-image-6.12.107")


def test_expected_objects_learns_from_the_earlier_build():
    config = dict.fromkeys("ABCD", "y") | {"N": "64"}
    assert expected_objects(config, {"objects": 300, "options": 100}) == 12
    assert expected_objects(config, None) == round(4 * OBJECTS_PER_OPTION)
    assert expected_objects({}, None) == 1


def test_first_errors_of_a_log():
    log = "  CC a.o\na.c:3:5: error: 'x' undeclared\na.c:9:1: error: expected ';'\nmake: *** [a.o] Error 1\n"
    assert error_lines(log) == [
        "a.c:3:5: error: 'x' undeclared",
        "a.c:9:1: error: expected ';'",
        "make: *** [a.o] Error 1",
    ]
    assert error_lines(log, 1) == ["a.c:3:5: error: 'x' undeclared"]


def test_last_lines_of_a_log_without_errors():
    assert error_lines("one\n\ntwo\nthree\n", 2) == ["two", "three"]
