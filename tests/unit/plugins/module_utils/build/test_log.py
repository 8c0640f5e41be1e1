# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

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


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        (
            "  BTF     vmlinux\n/bin/sh: 1: pahole: not found\n"
            "make[3]: *** [scripts/Makefile.vmlinux:35: vmlinux] Error 127\n"
            "make[3]: *** Deleting file 'vmlinux'\n",
            ["/bin/sh: 1: pahole: not found"],
        ),
        (
            "  CC      a.o\n  BTF     vmlinux\n"
            "Failed to generate BTF for vmlinux\nTry to disable CONFIG_DEBUG_INFO_BTF\n"
            "  CC      b.o\n  LD [M]  c.ko\nmake[2]: *** [x] Error 1\nmake: *** [z] Error 2\n",
            ["Failed to generate BTF for vmlinux", "Try to disable CONFIG_DEBUG_INFO_BTF"],
        ),
        (
            "  EXTRACT_CERTS certs/x\nAt main.c:160:\n- SSL error:80000002:system library::No such file\n"
            "make[1]: *** [certs/Makefile:90: certs/x] Error 1\n",
            ["At main.c:160:"],
        ),
        (
            "/bin/sh: 1: pahole: not found\n"
            + "".join(f"  CC [M]  drivers/{n}.o\n" for n in range(150))
            + "make[3]: *** [scripts/Makefile.vmlinux:35: vmlinux] Error 127\n",
            ["/bin/sh: 1: pahole: not found"],
        ),
        (
            "sign-file: certs/key.pem: bad password\n"
            + "".join(
                f"d{n}.c: In function 'f':\nd{n}.c:1:2: warning: unused\n  12 | int i;\n     |  ^\n"
                f"d{n}.c:3:1: note: declared here\n"
                for n in range(9)
            )
            + "make[2]: *** [scripts/Makefile.modinst:1: a.ko] Error 1\n",
            ["sign-file: certs/key.pem: bad password"],
        ),
        (
            "error[E0432]: unresolved import `x`\n --> rust/a.rs:1:5\n  |\n1 | use x;\n  |     ^\n\n"
            "error: aborting due to 1 previous error\n\n"
            "For more information about this error, try `rustc --explain E0432`.\n"
            "make[2]: *** [rust/Makefile:1: rust/core.o] Error 1\n",
            ["error[E0432]: unresolved import `x`", "error: aborting due to 1 previous error"],
        ),
        ("make: *** No rule to make target 'a.pem', needed by 'b.x509'.  Stop.\n", []),
    ],
)
def test_the_cause_stands_before_make_gives_up(log, cause):
    found = error_lines(log)
    assert [line for line in cause if line not in found] == []
    gave_up = next(line for line in log.splitlines() if line.startswith("make"))
    assert next(line for line in found if line.startswith("make")) == gave_up
    assert not [line for line in found if line.startswith("  CC")]


def test_the_first_error_is_never_cut_off():
    log = (
        "a.c:1: error: no\n"
        + "".join(f"w.c:{n}: warning: x\n" for n in range(50))
        + "make: *** [a.o] Error 1\n"
    )
    assert error_lines(log, 3) == ["a.c:1: error: no", "make: *** [a.o] Error 1"]
    warnings = log.replace("error: no", "warning: no")
    assert error_lines(warnings, 2) == ["w.c:49: warning: x", "make: *** [a.o] Error 1"]
    assert error_lines(log, 1) == ["a.c:1: error: no"]
