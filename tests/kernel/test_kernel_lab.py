# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The verdict of tools/kernel-lab: whatever goes wrong in a machine has to fail the run."""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools/kernel_lab.py"


@pytest.fixture(scope="module")
def lab():
    loader = importlib.machinery.SourceFileLoader("kernel_lab", str(TOOL))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("kernel_lab", loader))
    sys.modules["kernel_lab"] = module
    loader.exec_module(module)
    return module


GOOD = [
    "# lab: test pool",
    "TAP version 13",
    "1..2",
    "ok 1 pool.a",
    "ok 2 pool.b",
    "# lab: exit pool 0",
    "# lab: finished",
]


def changed(old: str, new: str | None) -> list[str]:
    lines = [new if line == old else line for line in GOOD]
    return [line for line in lines if line is not None]


def test_good_run(lab):
    counts, problems = lab.judge(GOOD, [], ["pool"])
    assert counts == {"passed": 2, "failed": 0, "skipped": 0}
    assert problems == []


@pytest.mark.parametrize(
    ("tap", "problem"),
    [
        (changed("ok 2 pool.b", "not ok 2 pool.b"), "not ok 2 pool.b"),
        (changed("ok 2 pool.b", "ok 2 pool.b # SKIP no time"), "skipped: ok 2 pool.b # SKIP no time"),
        (changed("# lab: exit pool 0", "# lab: exit pool 1"), "pool ended with status 1"),
        (changed("# lab: exit pool 0", "# lab: exit pool 139"), "pool ended with status 139"),
        (changed("# lab: exit pool 0", None), "pool did not come to its end"),
        (changed("TAP version 13", "# lab: probe failed: nproc"), "probe failed: nproc"),
        (["# lab: exit pool 0", "# lab: finished"], "there are no test results"),
    ],
)
def test_bad_run(lab, tap, problem):
    assert problem in lab.judge(tap, [], ["pool"])[1]


def test_a_machine_that_dies_shows_its_last_words(lab):
    problems = lab.judge(GOOD[:-1], ["booting", "Kernel panic"], ["pool"])[1]
    assert len(problems) == 1
    assert "Kernel panic" in problems[0]


@pytest.mark.parametrize(
    "line",
    [
        "WARNING: possible circular locking dependency detected",
        "WARNING: CPU: 0 PID: 89 at fs/kernfs/file.c:593 kernfs_unlink_open_file+0xdb/0xf0",
        "BUG: sleeping function called from invalid context at kernel/locking/mutex.c:585",
        "BUG: KASAN: slab-use-after-free in mk_console_read+0x1/0x2",
        "UBSAN: array-index-out-of-bounds in x.c:1:2",
        "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "watchdog: BUG: soft lockup - CPU#1 stuck for 26s!",
        "INFO: task kworker/0:1:9 blocked for more than 120 seconds.",
        "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
        "Kernel panic - not syncing: Fatal exception",
        "ODEBUG: free active (active state 0) object type: timer_list",
        "BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 31s!",
    ],
)
def test_reports(lab, tmp_path, line):
    host, spawns = tmp_path / "console.log", tmp_path / "spawns.log"
    host.write_text(f"[    1.000000] before\n[    2.000000] {line}\n")
    assert lab.host_reports(host) == [f"[    2.000000] {line}"]
    spawns.write_text(f"1| [    2.000000] {line}\n")
    assert lab.spawn_reports(spawns) == [f"1| [    2.000000] {line}"]


def test_a_provoked_crash_is_no_report(lab, tmp_path):
    spawns = tmp_path / "spawns.log"
    spawns.write_text(
        "1| mk-init: ready boot_id=a\n"
        "1| mk-init: provoking a panic\n"
        "1| [    2.0] Kernel panic - not syncing: sysrq triggered crash\n"
        "2| [    2.1] WARNING: of a sibling\n"
        "1| mk-init: ready boot_id=b\n"
        "1| [    3.0] BUG: by itself\n"
    )
    assert lab.spawn_reports(spawns) == ["2| [    2.1] WARNING: of a sibling", "1| [    3.0] BUG: by itself"]


def test_a_provoked_crash_of_the_host_is_no_report(lab, tmp_path):
    console = tmp_path / "console.log"
    console.write_text(
        "[    1.0] WARNING: before\n"
        "[    2.0] takeover: provoking a panic\n"
        "[    2.1] Kernel panic - not syncing: sysrq triggered crash\n"
        "[    2.2] Call Trace:\n"
        "[    0.0] Linux version 6.12.117-series\n"
        "[    3.0] BUG: of the crash kernel\n"
    )
    assert lab.host_reports(console) == ["[    1.0] WARNING: before", "[    3.0] BUG: of the crash kernel"]


def test_options_keep_the_files_that_belong_to_them(lab):
    command = (
        "savedcmd_kernel/cpu.o := ccache gcc -Wp,-MMD,kernel/.cpu.o.d -nostdinc -I../linux/include"
        " -include ../linux/include/linux/kconfig.h -isystem /usr/lib/gcc/include -D__KERNEL__"
        " -c -o kernel/cpu.o ../linux/kernel/cpu.c ; ./tools/objtool/objtool --orc kernel/cpu.o"
    )
    assert lab.compiler_options(command) == [
        "-Wp,-MMD,kernel/.cpu.o.d", "-nostdinc", "-I../linux/include",
        "-include", "../linux/include/linux/kconfig.h", "-isystem", "/usr/lib/gcc/include", "-D__KERNEL__",
    ]  # fmt: skip


def test_harmless_lines(lab, tmp_path):
    log = tmp_path / "console.log"
    log.write_text(
        "[    0.0] Command line: console=ttyS0 panic=-1\n"
        "[    0.1] rcu: Hierarchical RCU implementation.\n"
        "[    0.2] multikernel: Failed to apply overlay transaction 3: no (-22)\n"
        "[    0.3] Spectre V2 : Mitigation: Retpolines\n"
    )
    assert lab.host_reports(log) == []


def test_tail_gives_complete_lines_once(lab, tmp_path):
    log = tmp_path / "tap.log"
    tail = lab.Tail(log)
    assert list(tail.lines()) == []
    log.write_bytes(b"one\r\ntwo\nthr")
    assert list(tail.lines()) == ["one", "two"]
    with log.open("ab") as file:
        file.write(b"ee\n")
    assert list(tail.lines()) == ["three"]
    assert list(tail.lines()) == []


def test_jobs_quote_what_they_are_given(lab):
    shape = lab.Shape("test", probes=("true",))
    script = lab.jobs_script(shape, [["pool", "-t", "a b"]], {"MK_X": "1; reboot"})
    assert "export MK_X='1; reboot'\n" in script
    assert "; /tests/pool -t 'a b'; " in script
    assert "(true) || echo '# lab: probe failed:' true\n" in script


def test_the_one_that_ends_the_host_is_run_last(lab):
    assert lab.wanted_tests([], ["pool", "race", "takeover"]) == [["pool"], ["race"], ["takeover"]]
    assert lab.wanted_tests(["takeover", "race -t 'a b'"], ["pool"]) == [["race", "-t", "a b"], ["takeover"]]
    # its own result, and then these lines, come from the next kernel
    script = lab.jobs_script(lab.Shape("test"), [["takeover"]], {})
    assert "export MK_EPILOGUE='# lab: exit takeover 0\n# lab: finished'\n" in script
    script = lab.jobs_script(lab.Shape("test"), [["live"]], {})
    assert "export MK_EPILOGUE='# lab: exit live 0\n# lab: finished'\n" in script


def test_a_shape_adds_to_the_cpu_of_each_accelerator(lab):
    for accelerator in lab.ACCELERATORS:
        argv = lab.qemu(lab.SHAPES["la57"], accelerator)
        assert argv[argv.index("-cpu") + 1].endswith(",la57=on")


def test_only_one_can_end_the_host(lab):
    with pytest.raises(lab.LabError, match="takeover and live end the machine"):
        lab.wanted_tests(["takeover", "live"], [])


def test_what_the_kernel_complained_of_is_told(lab, tmp_path):
    log = tmp_path / "console.log"
    log.write_text("[1] multikernel: CPU 3 does not stop\r\n[2] multikernel: pool: added CPU 3\r\n")
    assert lab.complaints(log) == ["[1] multikernel: CPU 3 does not stop"]


@pytest.mark.parametrize(
    ("ran", "problems"),
    [
        ({1: "7.3.4-series", 2: "6.12.117-series", 3: "7.3.4-series"}, []),
        ({1: "6.12.117-series"}, ["step 1 runs 6.12.117-series, not 7.3"]),
        ({1: "7.30.1", 2: "7.3.4"}, ["step 1 runs 7.30.1, not 7.3", "step 2 runs 7.3.4, not 6.12"]),
        ({}, ["no step says which kernel it runs"]),
    ],
)
def test_two_kernels_take_turns(lab, ran, problems):
    tap = ["TAP version 13", *(f"# step {step} runs {release}" for step, release in ran.items())]
    assert lab.turns_not_taken(tap, ["6.12", "7.3"]) == problems


def test_logs_are_those_of_a_kernel(lab, tmp_path):
    with pytest.raises(lab.LabError, match="is not a kernel tree"):
        lab.logs(tmp_path)
    (tmp_path / "Makefile").write_text("# SPDX\nVERSION = 7\nPATCHLEVEL = 3\n")
    assert lab.logs(tmp_path) == lab.LOGS / "7.3"


def test_names_are_those_of_the_makefile(lab, tmp_path):
    makefile = tmp_path / lab.SELFTESTS / "Makefile"
    makefile.parent.mkdir(parents=True)
    makefile.write_text("TEST_GEN_PROGS := pool \\\n\tconsole\nTEST_GEN_PROGS += race\nTEST_GEN_FILES := x\n")
    assert lab.test_names(tmp_path) == ["pool", "console", "race"]


def test_sparse_warnings_lose_their_lines(lab):
    output = (
        "  CHECK   ../linux/kernel/a.c\n"
        "/src/linux/kernel/a.c:12:9: warning: context imbalance in 'f' - unexpected unlock\n"
        "/src/linux/kernel/b.c:13:9: warning: something else\n"
    )
    assert lab.warnings_of(output, "kernel/a.c") == ["context imbalance in 'f' - unexpected unlock"]


def test_every_fragment_of_a_variant_exists(lab):
    for fragments in lab.VARIANTS.values():
        for name in fragments:
            assert (lab.TOP / "roles/kernel/files/config" / f"{name}.config").exists()
    assert set(lab.VARIANTS) == set(lab.SLOWNESS)


@pytest.fixture
def series(tmp_path):
    """A repository with a base and three patches: documentation, kernel, selftests."""
    tree = tmp_path / "linux"

    def git(*words):
        subprocess.run(
            ["git", "-C", tree, "-c", "user.name=t", "-c", "user.email=t@localhost", *words], check=True
        )

    tree.mkdir()
    git("init", "--quiet")
    for title, name in (
        ("base", "Makefile"),
        ("doc: Say", "Documentation/a.rst"),
        ("mk: Add", "kernel/a.c"),
        ("selftests: Test", "tools/testing/selftests/multikernel/a.c"),
    ):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("")
        git("add", "--all")
        git("commit", "--quiet", "--message", title)
        if title == "base":
            git("tag", "base")
    return tree


def test_every_patch_is_built_by_itself(lab, series, monkeypatch, capsys):
    built = []
    monkeypatch.setattr(
        lab,
        "build_variant",
        lambda tree, variant, jobs, partial: built.append((variant, partial, (tree / "kernel/a.c").exists())),
    )
    monkeypatch.setattr(
        lab, "build_selftests", lambda tree, made, jobs: built.append((tree / lab.SELFTESTS / "a.c").exists())
    )
    given = argparse.Namespace(tree=series, base="base", variant="normal", jobs=1)
    lab.each(given)
    assert built == [("normal", True, True), True]
    assert "3 of 3: selftests: Test" in capsys.readouterr().out


def test_a_patch_that_does_not_build_is_named(lab, series, monkeypatch):
    def fail(*_words, **_options):
        raise lab.LabError("the kernel cannot be built")

    monkeypatch.setattr(lab, "build_variant", fail)
    with pytest.raises(lab.LabError, match=r"^2 of 3, mk: Add: the kernel cannot be built"):
        lab.each(argparse.Namespace(tree=series, base="base", variant="normal", jobs=1))
