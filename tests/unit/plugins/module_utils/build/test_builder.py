# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The builder, with commands in the place of make."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.build.builder import (
    COMPILER,
    Builder,
    Stopped,
    date,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.build.configuration import Configuration
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure


@pytest.fixture
def build(cache, inputs):
    return Builder(
        cache=cache,
        inputs=inputs,
        patches=(),
        configuration=Configuration("tinyconfig", None, {}),
        jobs=2,
        ccache=True,
        fetch=lambda: pytest.fail("nothing is to be fetched"),
    )


def test_build_that_is_there_is_not_built_again(build, finished):
    finished(build.key)
    manifest, made = build.build()
    assert (manifest["key"], made) == (build.key, False)


def test_environment_of_make_is_fixed(build, tree, monkeypatch):
    monkeypatch.setenv("KCFLAGS", "-O0")
    monkeypatch.setenv("LOCALVERSION", "-mine")
    environment = build._environment(tree, 86400)
    assert "KCFLAGS" not in environment
    assert environment["LOCALVERSION"] == build.inputs.local_suffix()
    assert environment["KBUILD_BUILD_TIMESTAMP"] == "Fri Jan  2 00:00:00 UTC 1970"
    assert environment["SOURCE_DATE_EPOCH"] == "86400"


@pytest.fixture
def making(build, cache, tree, monkeypatch):
    """A builder whose make is a shell command; returns a function that runs it."""
    build.work.mkdir(parents=True)
    environment = {"PATH": os.environ["PATH"]}

    def run(script: str) -> int:
        monkeypatch.setattr(build, "_argv", lambda *_targets: ["sh", "-c", script])
        with build.progress, cache.lock(build.key, lambda: None):
            return build._make(tree, environment, {"A": "y"})

    run.build = build
    return run


def test_make_is_counted_and_logged(making):
    assert making("echo '  CC      a.o'; echo '  CC      '$PWD/tools/b.o") == 2
    assert making.build.progress.detail == "tools/b.o"
    assert making.build.log.read_text().startswith("  CC      a.o\n  CC      /")


def test_continued_make_counts_what_is_there(making, tree):
    making("true")
    (tree / "kernel/.a.o.cmd").touch()
    assert making("echo '  CC      b.o'") == 2


def test_failing_make_tells_first_errors_and_log(making):
    with pytest.raises(Failure) as caught:
        making("echo 'a.c:1: error: no'; exit 2")
    assert str(caught.value) == f"make ended with status 2; its log is {making.build.log}\na.c:1: error: no"
    assert caught.value.details["rc"] == 2


def runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_stopped_make_leaves_no_process(making, tmp_path):
    pid_file = tmp_path / "pid"

    def stop(_signum, _frame):
        raise Stopped("SIGTERM")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(Stopped):
            making(f"sleep 60 & echo $! > {pid_file}; kill -TERM $PPID; wait")
    finally:
        signal.signal(signal.SIGTERM, before)
    deadline = time.monotonic() + 60
    while runs(pid_file.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_full_disk_ends_make_and_is_told(making, monkeypatch, tmp_path):
    pid_file = tmp_path / "pid"
    monkeypatch.setattr(making.build, "log", Path("/dev/full"))
    with pytest.raises(OSError, match="No space left"):
        making(f"echo $$ > {pid_file}; yes | head -c 1000000; sleep 60")
    assert not runs(pid_file.read_text().strip())


def test_results_are_put_in_place(build, cache, tree):
    build.work.mkdir(parents=True)
    release = build.inputs.release()
    (tree / "include/config").mkdir(parents=True)
    (tree / "include/config/kernel.release").write_text(f"{release}\n")
    (tree / ".config").write_text("CONFIG_A=y\n")
    build.log.write_text("log")
    (build.work / f"linux-image-{release}_6.12.107-1_amd64.deb").write_text("deb")
    shutil.copy("/bin/true", tree / "vmlinux")
    signed = []
    build.signer = SimpleNamespace(append=lambda path: signed.append(path.name))

    manifest = build._collect(tree, {"A": "y"}, release, 7, 1.23)

    assert signed == ["vmlinux"]

    assert manifest == cache.manifest(build.key)
    assert manifest["release"] == release
    assert (manifest["objects"], manifest["options"], manifest["seconds"]) == (7, 1, 1.2)
    assert manifest["debs"] == [f"linux-image-{release}_6.12.107-1_amd64.deb"]
    assert set(manifest["files"]) == {*manifest["debs"], "vmlinux", "config", "build.log"}
    vmlinux = (cache.results / build.key / "vmlinux").read_bytes()
    assert vmlinux.startswith(b"\x7fELF")
    assert manifest["files"]["vmlinux"] == hashlib.sha256(vmlinux).hexdigest()
    assert not build.work.exists()


MAKEFILE = """\
include/config/kernel.release:
\t@mkdir -p include/config && echo "{release}" >$@
kernelrelease: include/config/kernel.release
\t@cat $<
"""


def test_the_release_is_what_the_tree_says(build, tree):
    (tree / "Makefile").write_text(MAKEFILE.format(release="6.12.107-rt5-cfg$(LOCALVERSION)"))
    release = build._release(tree, build._environment(tree, 0))
    assert release == f"6.12.107-rt5-cfg{build.inputs.local_suffix()}" != build.inputs.release()


@pytest.mark.parametrize(
    ("release", "reason"),
    [
        ("6.12.107", r"release would be '6\.12\.107', without -mkops-"),
        ("6.12.107$(LOCALVERSION)+", "without -mkops-"),
        ("", "release would be '', without"),
        ("6.12.107-" + 45 * "x" + "$(LOCALVERSION)", "64: give a shorter local_version"),
    ],
)
def test_a_release_that_cannot_be_is_refused_before_anything_is_compiled(build, tree, release, reason):
    (tree / "Makefile").write_text(MAKEFILE.format(release=release))
    with pytest.raises(Failure, match=reason):
        build._release(tree, build._environment(tree, 0))


def test_a_release_that_changes_meanwhile_is_refused(build, tree):
    build.work.mkdir(parents=True)
    (tree / "include/config").mkdir(parents=True)
    (tree / "include/config/kernel.release").write_text("6.12.107\n")
    with pytest.raises(Failure, match=r"release is 6\.12\.107 instead of 6\.12\.108"):
        build._collect(tree, {}, "6.12.108", 1, 0)


@pytest.mark.parametrize("timestamp", [0, 86400, 951782400, 1700000000, 4102444799])
def test_the_date_of_a_build_is_in_no_language(timestamp):
    argv = ["date", "-u", "-d", f"@{timestamp}", "+%a %b %e %H:%M:%S UTC %Y"]
    said = subprocess.run(argv, check=True, capture_output=True, text=True, env={"LC_ALL": "C"}).stdout
    assert date(timestamp) == said.strip()


def test_a_make_without_a_package_is_told(build, tree):
    build.work.mkdir(parents=True)
    (tree / "include/config").mkdir(parents=True)
    (tree / "include/config/kernel.release").write_text("6.12.108\n")
    with pytest.raises(Failure, match=r"make built no package in .*: see .*\.log"):
        build._collect(tree, {}, "6.12.108", 1, 0)


def test_a_package_without_an_image_is_not_taken_for_signed(build, tmp_path):
    (tmp_path / "root/DEBIAN").mkdir(parents=True)
    fields = "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: x\n"
    (tmp_path / "root/DEBIAN/control").write_text(fields)
    (tmp_path / "root/boot").mkdir()
    (tmp_path / "root/boot/config").touch()
    package = tmp_path / "x.deb"
    subprocess.run(["dpkg-deb", "-b", tmp_path / "root", package], check=True, capture_output=True)
    with pytest.raises(Failure, match=r"x\.deb has no kernel image in it: see .*\.log"):
        build._take_out_image(package, tmp_path / "image")
    assert not (tmp_path / "image").exists()


def test_a_disk_that_is_too_small_or_gets_full(build, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(9 << 20, 0, 5 << 20))
    with pytest.raises(
        Failure, match="has 5 MiB free, but a build needs 4096 MiB; make room or give another"
    ):
        build.build()
    monkeypatch.undo()

    def full():
        raise OSError(28, "No space left on device", "linux.tar")

    build.fetch = full
    with pytest.raises(
        Failure, match=r"there is no space left: .* MiB and \d+ files free, but a build needs 4096"
    ):
        build.build()

    def wrong():
        raise Failure("it is not what it should be")

    build.fetch = wrong
    with pytest.raises(Failure, match=r"^it is not what it should be$"):
        build.build()


@pytest.mark.parametrize("name", ["data.S", "data.c"])
def test_what_is_taken_in_by_the_assembler_is_compiled_anew(build, tree, name):
    """As ccache did not: it knows nothing of such files in its depend mode."""
    text = '.incbin "data"'
    (tree / name).write_text(text + "\n" if name.endswith("S") else f"asm({json.dumps(text)});\n")
    (tree / "plain.c").write_text("int plain;\n")
    (build.work).mkdir(parents=True, exist_ok=True)
    (build.work / "compiler").write_text(COMPILER)
    environment = build._environment(tree, 0)
    compiler = build._argv()[3].removeprefix("CC=").split()

    def compiled(source, *words):
        argv = [*words, "-Wp,-MMD,.d", "-c", "-o", "out.o", source]
        subprocess.run(argv, check=True, cwd=tree, env=environment)
        return (tree / "out.o").read_bytes()

    found = []
    for data in ("one", "two"):
        (tree / "data").write_text(data)
        found.append((compiled(name, *compiler), compiled("plain.c", *compiler)))
    assert [b"one" in found[0][0], b"two" in found[1][0]] == [True, True]
    stats = ["ccache", "--print-stats"]
    said = subprocess.run(stats, check=True, capture_output=True, text=True, env=environment).stdout
    assert "direct_cache_hit\t1\n" in said  # the plain one, the second time
