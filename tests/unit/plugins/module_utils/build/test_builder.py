# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import json
import os
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.build import builder as kb
from ansible_collections.mkops.multikernel.plugins.module_utils.build import kconfig

INPUTS = kb.Inputs(
    source=kb.Source("linux-source-6.12_6.12.107-1_all.deb", "aa" * 32, "6.12.107-1"),
    series=(("0001-a.patch", "11"), ("0002-b.patch", "22")),
    base="tinyconfig",
    fragments=(("lab.config", "33"), ("multikernel.config", "44")),
    local_version="-mkops",
    toolchain=("gcc 14.2.0", "as 2.44", "ld 2.44"),
)


# --- key ----------------------------------------------------------------------------------------


def test_key_is_stable():
    """Changes of the way the key is made must be meant: they rebuild every user's kernels."""
    assert (
        INPUTS.key()
        == hashlib.sha256(
            json.dumps(
                {
                    "base": "tinyconfig",
                    "format": 1,
                    "fragments": ["33", "44"],
                    "local_version": "-mkops",
                    "series": ["11", "22"],
                    "source": ["6.12.107-1", "aa" * 32],
                    "toolchain": ["gcc 14.2.0", "as 2.44", "ld 2.44"],
                }
            ).encode()
        ).hexdigest()
    )


@pytest.mark.parametrize(
    "change",
    [
        {"source": kb.Source("x", "bb" * 32, "6.12.107-1")},
        {"source": kb.Source("x", "aa" * 32, "6.12.108-1")},
        {"series": (("0001-a.patch", "11"),)},
        {"series": (("0002-b.patch", "22"), ("0001-a.patch", "11"))},
        {"base": "defconfig"},
        {"fragments": (("multikernel.config", "44"), ("lab.config", "33"))},
        {"fragments": (("lab.config", "99"), ("multikernel.config", "44"))},
        {"local_version": "-mine"},
        {"toolchain": ("gcc 14.2.1", "as 2.44", "ld 2.44")},
    ],
    ids=str,
)
def test_key_depends_on_every_input(change):
    assert dataclasses.replace(INPUTS, **change).key() != INPUTS.key()


def test_key_does_not_depend_on_names():
    renamed = dataclasses.replace(
        INPUTS,
        source=dataclasses.replace(INPUTS.source, name="other.deb"),
        series=(("x", "11"), ("y", "22")),
        fragments=(("p", "33"), ("q", "44")),
    )
    assert renamed.key() == INPUTS.key()


@pytest.mark.parametrize(
    ("version", "kernel"),
    [
        ("6.12.107-1", "6.12.107"),
        ("6.12.107-1~bpo12+1", "6.12.107"),
        ("1:6.1-2", "6.1"),
        ("6.12.107", "6.12.107"),
        ("garbage", None),
        (None, None),
    ],
)
def test_kernel_version(version, kernel):
    assert kb.Source("x", "00", version).kernel_version == kernel


def test_release_names_the_key():
    assert INPUTS.release() == f"6.12.107-mkops-{INPUTS.key()[:8]}"


def test_release_of_a_plain_archive_is_not_known_before():
    assert dataclasses.replace(INPUTS, source=kb.Source("linux.tar.xz", "aa" * 32)).release() is None


# --- progress and logs -----------------------------------------------------------------------------


def test_build_log_counts_objects():
    log = kb.BuildLog()
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
    log = kb.BuildLog()
    log.feed("  LD      vmlinux\n")
    assert (log.stage, log.detail) == ("link", "vmlinux")
    log.feed("dpkg-deb: building package 'linux-image-6.12.107' in '../x.deb'.\n")
    assert (log.stage, log.detail) == ("package", "linux-image-6.12.107")


def test_expected_objects_learns_from_the_earlier_build():
    config = dict.fromkeys("ABCD", "y") | {"N": "64"}
    assert kb.expected_objects(config, {"objects": 300, "options": 100}) == 12
    assert kb.expected_objects(config, None) == round(4 * kb.OBJECTS_PER_OPTION)
    assert kb.expected_objects({}, None) == 1


def test_first_errors_of_a_log():
    log = "  CC a.o\na.c:3:5: error: 'x' undeclared\na.c:9:1: error: expected ';'\nmake: *** [a.o] Error 1\n"
    assert kb.error_lines(log) == [
        "a.c:3:5: error: 'x' undeclared",
        "a.c:9:1: error: expected ';'",
        "make: *** [a.o] Error 1",
    ]
    assert kb.error_lines(log, 1) == ["a.c:3:5: error: 'x' undeclared"]


def test_last_lines_of_a_log_without_errors():
    assert kb.error_lines("one\n\ntwo\nthree\n", 2) == ["two", "three"]


def test_progress_is_a_whole_file_at_any_time(tmp_path):
    path = tmp_path / "p.json"
    with kb.Progress(path) as progress:
        progress.enter("unpack", "x.deb")
        facts = json.loads(path.read_text())
        assert (facts["state"], facts["stage"], facts["detail"]) == ("running", "unpack", "x.deb")
        assert facts["pid"] == os.getpid()
    assert json.loads(path.read_text())["state"] == "done"
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.json"]


def test_progress_that_nobody_watches_is_not_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with kb.Progress(None) as progress:
        progress.enter("unpack")
    assert list(tmp_path.iterdir()) == []


def test_progress_is_rewritten_while_nothing_happens(tmp_path):
    with kb.Progress(tmp_path / "p.json") as progress:
        progress.path.unlink()
        deadline = time.monotonic() + 5
        while not progress.path.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert progress.path.exists()


def test_progress_tells_failure(tmp_path):
    with pytest.raises(kb.BuildError), kb.Progress(tmp_path / "p.json") as progress:
        raise kb.BuildError("no")
    assert json.loads(progress.path.read_text())["state"] == "failed"


# --- source and series ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "mirror"),
    [
        ("http://other/apt/\nhttp://m/debian/\nhttp://n/debian-security/\n", "http://m/debian"),
        ("http://n/debian-security/\n", None),
        ("", None),
    ],
)
def test_mirror_of_the_machine(listed, mirror, tmp_path, monkeypatch):
    fake = tmp_path / "apt-get"
    fake.write_text(f"#!/bin/sh\nprintf '%s' '{listed}'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if mirror:
        assert kb.machine_mirror() == mirror
    else:
        with pytest.raises(kb.BuildError, match="no mirror"):
            kb.machine_mirror()


def test_uri_line_of_apt():
    digest = "7" * 64
    output = (
        f"'http://m/debian/pool/main/l/linux/linux-source-6.12_6.12.107-1_all.deb' "
        f"linux-source-6.12_6.12.107-1_all.deb 152778344 SHA256:{digest}\n"
    )
    assert kb.parse_uri_line(output) == ("linux-source-6.12_6.12.107-1_all.deb", digest)


@pytest.mark.parametrize("output", ["", "'http://x' x.deb 3 MD5Sum:abc\n"])
def test_uri_line_without_a_strong_checksum(output):
    with pytest.raises(ValueError, match=r"."):
        kb.parse_uri_line(output)


@pytest.mark.parametrize(
    ("name", "version"), [("linux-source_6.12.107-1_all.deb", "6.12.107-1"), ("a_1%3a2-3_all.deb", "1:2-3")]
)
def test_deb_version(name, version):
    assert kb.deb_version(name) == version


def test_archive_resolves_a_pinned_version_without_network(tmp_path):
    (tmp_path / "p_1%3a2-3_all.deb.sha256").write_text("ab\n")
    archive = kb.Archive(tmp_path, "http://nowhere.invalid", "trixie", "/keys")
    assert archive.resolve("p", "1:2-3", lambda text: None, 0) == kb.Source(
        "p_1%3a2-3_all.deb", "ab", "1:2-3"
    )


def test_archive_asks_apt_once_per_refresh(tmp_path, monkeypatch):
    archive = kb.Archive(tmp_path, "http://m", "trixie", "/k")
    asked = []

    def apt(self, *args, **_kwargs):
        if args[0] == "update":
            self._state.mkdir(parents=True, exist_ok=True)
            return ""
        asked.append(args)
        return f"'http://m/p_1-{len(asked)}_all.deb' p_1-{len(asked)}_all.deb 9 SHA256:{'a' * 64}\n"

    monkeypatch.setattr(kb.Archive, "apt", apt)
    resolve = functools.partial(archive.resolve, "p", None, lambda text: None)
    assert resolve(60).version == resolve(60).version == "1-1"
    assert len(asked) == 1
    # Fetched anew, the lists may have a newer version.
    os.utime(archive._state / "refreshed", (1, 1))
    assert resolve(60).version == "1-2"
    with pytest.raises(kb.BuildError, match=r"no source package q=2 in http://m trixie"):
        monkeypatch.setattr(kb.Archive, "apt", lambda *_args, **_kwargs: "")
        archive.resolve("q", "2", lambda text: None, 60)


def test_archive_refuses_a_changed_package(tmp_path):
    (tmp_path / "p_1_all.deb").write_text("tampered")
    archive = kb.Archive(tmp_path, "http://nowhere.invalid", "trixie", "/keys")
    with pytest.raises(kb.BuildError, match="remove it and try again"):
        archive.fetch(kb.Source("p_1_all.deb", "00" * 32, "1"), "p")


def test_archive_uses_no_configuration_of_the_machine(tmp_path, monkeypatch):
    called = []

    def fake(argv, **_kwargs):
        called.append(argv)
        return subprocess.CompletedProcess(argv, 0, "", "")

    monkeypatch.setattr(kb.subprocess, "run", fake)
    kb.Archive(tmp_path, "http://m/debian", "trixie", "/keys.gpg").apt("update")
    options = dict(arg[2:].split("=", 1) for arg in called[0] if arg.startswith("-o"))
    for name in (
        "Dir::Etc::sourcelist",
        "Dir::Etc::sourceparts",
        "Dir::State",
        "Dir::State::lists",
        "Dir::Cache",
    ):
        assert Path(options[name]).is_relative_to(tmp_path)
    assert Path(options["Dir::Etc::sourcelist"]).read_text() == (
        "deb [signed-by=/keys.gpg] http://m/debian trixie main\n"
    )


def test_old_lists_serve_when_the_mirror_is_away(tmp_path, monkeypatch):
    archive = kb.Archive(tmp_path, "http://m", "trixie", "/k")
    calls = []

    def fail(self, *args, **_kwargs):
        calls.append(args)
        raise kb.BuildError("no route")

    monkeypatch.setattr(kb.Archive, "apt", fail)
    warnings = []
    with pytest.raises(kb.BuildError):
        archive.refresh(warnings.append, 60)
    archive._state.mkdir(parents=True)
    stamp = archive._state / "refreshed"
    stamp.touch()
    archive.refresh(warnings.append, 60)
    assert (len(calls), warnings) == (1, [])
    os.utime(stamp, (1, 1))
    archive.refresh(warnings.append, 60)
    assert len(calls) == 2
    assert "no route" in warnings[0]


def test_local_source_checks_the_checksum(tmp_path):
    path = tmp_path / "linux.tar.xz"
    path.write_bytes(b"x")
    digest = hashlib.sha256(b"x").hexdigest()
    assert kb.local_source(path, f"sha256:{digest.upper()}") == kb.Source("linux.tar.xz", digest)
    with pytest.raises(kb.BuildError, match=digest):
        kb.local_source(path, "sha256:" + "0" * 64)


def test_series_in_the_order_of_names(tmp_path):
    for name in ("0002-b.patch", "0001-a.patch", "README"):
        (tmp_path / name).touch()
    assert [path.name for path in kb.read_series(tmp_path)] == ["0001-a.patch", "0002-b.patch"]


def test_series_in_the_order_of_its_listing(tmp_path):
    for name in ("a.patch", "b.patch", "c.patch"):
        (tmp_path / name).touch()
    (tmp_path / "series").write_text("# order matters\nb.patch\n\na.patch # last\n")
    assert [path.name for path in kb.read_series(tmp_path)] == ["b.patch", "a.patch"]


def test_series_names_every_missing_patch(tmp_path):
    (tmp_path / "series").write_text("a.patch\nb.patch\n")
    with pytest.raises(kb.BuildError, match=r"a\.patch, b\.patch"):
        kb.read_series(tmp_path)


def test_empty_series(tmp_path):
    assert kb.read_series(tmp_path) == []


@pytest.fixture
def tree(tmp_path):
    tree = tmp_path / "linux"
    (tree / "kernel").mkdir(parents=True)
    (tree / "kernel/reboot.c").write_text("".join(f"line {number}\n" for number in range(1, 21)))
    (tree / "Kbuild").touch()
    return tree


def patch(tmp_path: Path, old: str, new: str, path: str = "kernel/reboot.c") -> Path:
    hunk = f"@@ -9,3 +9,3 @@\n line 9\n-{old}\n+{new}\n line 11\n"
    text = f"Subject: x\n\n--- a/{path}\n+++ b/{path}\n{hunk}-- \n2.39\n"
    file = tmp_path / "0001-x.patch"
    file.write_text(text)
    return file


def apply(tree: Path, file: Path) -> None:
    kb.apply_patch(tree, file, file.name)


def test_series_is_applied(tree, tmp_path):
    apply(tree, patch(tmp_path, "line 10", "LINE 10"))
    assert "LINE 10" in (tree / "kernel/reboot.c").read_text()
    assert sorted(entry.name for entry in (tree / "kernel").iterdir()) == ["reboot.c"]


def test_patch_error_names_patch_file_and_hunk(tree, tmp_path):
    with pytest.raises(kb.BuildError) as caught:
        apply(tree, patch(tmp_path, "other", "new"))
    assert str(caught.value) == "patch 0001-x.patch does not apply: kernel/reboot.c hunk 1 at line 9"


def test_patch_error_names_a_missing_file(tree, tmp_path):
    with pytest.raises(kb.BuildError, match=r"0001-x\.patch does not apply: .*kernel/gone\.c"):
        apply(tree, patch(tmp_path, "line 10", "x", "kernel/gone.c"))


def test_series_that_is_applied_already(tree, tmp_path):
    file = patch(tmp_path, "line 10", "LINE 10")
    apply(tree, file)
    with pytest.raises(kb.BuildError, match="does not apply"):
        apply(tree, file)


def test_unpack_takes_the_one_tree(tree, tmp_path):
    archive = tmp_path / "linux.tar.gz"
    subprocess.run(["tar", "-czf", archive, "-C", tmp_path, "linux"], check=True)
    out = tmp_path / "out"
    out.mkdir()
    assert kb.unpack(archive, out) == out / "linux"


def test_unpack_refuses_what_is_no_kernel(tmp_path):
    (tmp_path / "doc").mkdir()
    archive = tmp_path / "doc.tar"
    subprocess.run(["tar", "-cf", archive, "-C", tmp_path, "doc"], check=True)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(kb.BuildError, match="0 kernel trees"):
        kb.unpack(archive, out)


def test_unknown_symbols(tree):
    (tree / "kernel/Kconfig.preempt").write_text("menuconfig FOO\n\tbool\n\nconfig BAR\n\tbool\n")
    assert kb.no_such_symbols(tree, {"FOO", "BAR", "BA", "MULTIKERNEL"}) == {"BA", "MULTIKERNEL"}


# --- cache --------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path):
    return kb.Cache(tmp_path / "cache")


def finished(cache: kb.Cache, key: str) -> Path:
    directory = cache.kernels / key
    directory.mkdir(parents=True)
    (directory / "vmlinux").write_text("elf")
    files = {"vmlinux": kb.sha256_file(directory / "vmlinux")}
    (directory / "manifest.json").write_text(json.dumps({"key": key, "files": files}))
    return directory


def test_manifest_of_a_whole_build(cache):
    finished(cache, "k")
    assert cache.manifest("k")["key"] == "k"
    assert cache.manifest("other") is None


@pytest.mark.parametrize("harm", ["change", "remove", "garble"])
def test_harmed_build_counts_as_none(cache, harm):
    directory = finished(cache, "k")
    if harm == "change":
        (directory / "vmlinux").write_text("ELF")
    elif harm == "remove":
        (directory / "vmlinux").unlink()
    else:
        (directory / "manifest.json").write_text("{")
    assert cache.manifest("k") is None


def test_latest_manifest(cache):
    assert cache.latest() is None
    os.utime(finished(cache, "old") / "manifest.json", (1, 1))
    finished(cache, "new")
    assert cache.latest()["key"] == "new"


def test_second_build_of_a_key_waits(cache):
    waits = []
    with cache.lock("k", lambda: waits.append("first")) as lock:
        holder = subprocess.Popen(["sleep", "0.5"], pass_fds=[lock])
    # The first build is over, but what it started still holds the lock.
    with cache.lock("k", lambda: waits.append("second")):
        assert holder.poll() is not None or holder.wait(0.2) == 0
    assert waits == ["second"]
    holder.wait()


def test_abandoned_trees_are_dropped_but_not_those_in_use(cache):
    for key in ("mine", "abandoned", "used", f"{kb.TRASH}x"):
        cache.work(key).mkdir(parents=True)
    for name, age in (("old", 7200), ("new", 0)):
        path = cache.work(f"progress-{name}", ".json")
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    with cache.lock("used", lambda: None):
        cache.drop_abandoned("mine")
    assert [path.name for path in cache.work("x").parent.glob("progress-*")] == ["progress-new.json"]
    deadline = time.monotonic() + 10
    while (left := sorted(path.name for path in cache.work("x").parent.glob("*/"))) != ["mine", "used"]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


# --- builder, with commands in the place of make ----------------------------------------------------------


def builder(cache: kb.Cache, wanted: str = "") -> kb.Builder:
    return kb.Builder(
        cache=cache,
        inputs=INPUTS,
        patches=(),
        base_file=None,
        fragments=(),
        wanted=kconfig.merge([kconfig.parse_fragment(wanted, "w.config")]),
        jobs=2,
        ccache=True,
        suite="trixie",
        fetch=lambda: pytest.fail("nothing is to be fetched"),
    )


def test_build_that_is_there_is_not_built_again(cache):
    finished(cache, INPUTS.key())
    manifest, made = builder(cache).build()
    assert (manifest["key"], made) == (INPUTS.key(), False)


def test_environment_of_make_is_fixed(cache, tree, monkeypatch):
    monkeypatch.setenv("KCFLAGS", "-O0")
    monkeypatch.setenv("LOCALVERSION", "-mine")
    environment = builder(cache)._environment(tree, 86400)
    assert "KCFLAGS" not in environment
    assert environment["LOCALVERSION"] == INPUTS.local_suffix()
    assert environment["KBUILD_BUILD_TIMESTAMP"] == "Fri Jan  2 00:00:00 UTC 1970"
    assert environment["SOURCE_DATE_EPOCH"] == "86400"


def test_lost_options_tell_their_reasons(cache, tree):
    (tree / "kernel/Kconfig").write_text(
        'config SMP\n\tbool "SMP"\n\tdepends on X86 && !UP\nconfig NR_CPUS\n\tint\n'
    )
    build = builder(cache, "CONFIG_SMP=y\nCONFIG_NR_CPUS=64\nCONFIG_MULTIKERNEL=y\n")
    error = build._lost_error(
        tree, kconfig.lost(build.wanted, {"NR_CPUS": "8"}), {"NR_CPUS": "8", "UP": "y", "X86": "y"}
    )
    assert str(error).splitlines()[0] == "3 wanted options are not in the final .config:"
    smp, cpus, multikernel = error.details["lost"]
    assert smp == "CONFIG_SMP=y (w.config:1): it is not set in the result: it depends on !UP"
    assert "the result has 8" in cpus
    assert "no such symbol" in multikernel


@pytest.fixture
def making(cache, tree, monkeypatch):
    """A builder whose make is a shell command; returns a function that runs it."""
    build = builder(cache)
    build.work.mkdir(parents=True)
    environment = {"PATH": os.environ["PATH"]}

    def run(script: str) -> int:
        monkeypatch.setattr(build, "_argv", lambda *_targets: ["sh", "-c", script])
        with build.progress, cache.lock(build.key, lambda: None) as lock:
            return build._make(tree, environment, {"A": "y"}, lock)

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
    with pytest.raises(kb.BuildError) as caught:
        making("echo 'a.c:1: error: no'; exit 2")
    assert str(caught.value) == f"make failed with 2; the log is {making.build.log}\na.c:1: error: no"
    assert caught.value.details["rc"] == 2


def runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_stopped_make_leaves_no_process(making, tmp_path):
    pid_file = tmp_path / "pid"

    def stop(_signum, _frame):
        raise kb.Stopped("SIGTERM")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(kb.Stopped):
            making(f"sleep 60 & echo $! > {pid_file}; kill -TERM $PPID; wait")
    finally:
        signal.signal(signal.SIGTERM, before)
    deadline = time.monotonic() + 10
    while runs(pid_file.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_results_are_put_in_place(cache, tree, monkeypatch):
    build = builder(cache)
    build.work.mkdir(parents=True)
    release = build.inputs.release()
    (tree / "include/config").mkdir(parents=True)
    (tree / "include/config/kernel.release").write_text(f"{release}\n")
    (tree / ".config").write_text("CONFIG_A=y\n")
    build.log.write_text("log")
    (build.work / f"linux-image-{release}_6.12.107-1_amd64.deb").write_text("deb")
    monkeypatch.setattr(kb, "run", lambda argv, *_args: Path(argv[-1]).write_text("elf"))

    manifest = build._collect(tree, {"A": "y"}, 7, 1.23)

    assert manifest == cache.manifest(build.key)
    assert manifest["release"] == release
    assert (manifest["objects"], manifest["options"], manifest["seconds"]) == (7, 1, 1.2)
    assert manifest["debs"] == [f"linux-image-{release}_6.12.107-1_amd64.deb"]
    assert set(manifest["files"]) == {*manifest["debs"], "vmlinux", "config", "build.log"}
    assert manifest["files"]["vmlinux"] == hashlib.sha256(b"elf").hexdigest()
    assert not build.work.exists()


def test_release_other_than_expected_is_refused(cache, tree):
    build = builder(cache)
    build.work.mkdir(parents=True)
    (tree / "include/config").mkdir(parents=True)
    (tree / "include/config/kernel.release").write_text("6.12.107\n")
    with pytest.raises(kb.BuildError, match=r"calls itself 6\.12\.107, not 6\.12\.107-mkops-"):
        build._collect(tree, {}, 1, {})


# --- tools --------------------------------------------------------------------------------------------------


def test_packed_configuration_is_read_like_a_plain_one(tmp_path):
    (tmp_path / "config").write_bytes(b"CONFIG_SMP=y\n")
    (tmp_path / "config.gz").write_bytes(gzip.compress(b"CONFIG_SMP=y\n"))
    assert kb.read_config(tmp_path / "config") == kb.read_config(tmp_path / "config.gz") == b"CONFIG_SMP=y\n"
    (tmp_path / "bad.gz").write_bytes(b"CONFIG_SMP=y\n")
    with pytest.raises(OSError, match="gzip"):
        kb.read_config(tmp_path / "bad.gz")


def test_running_configuration_is_the_first_that_is_there(tmp_path, monkeypatch):
    places = (tmp_path / "config-6.12", tmp_path / "config.gz")
    monkeypatch.setattr(kb, "running_configs", lambda: places)
    assert kb.running_config() is None
    places[1].touch()
    assert kb.running_config() == places[1]
    places[0].touch()
    assert kb.running_config() == places[0]


def test_missing_tools_are_named_at_once_with_their_packages(monkeypatch):
    monkeypatch.setattr(
        kb.shutil, "which", lambda tool: None if tool in ("flex", "ccache") else f"/usr/bin/{tool}"
    )
    monkeypatch.setattr(kb.Path, "exists", lambda self: self.name != "gelf.h")
    (reason,) = kb.missing_tools({"ccache": "ccache"})
    assert reason == (
        "flex, /usr/include/gelf.h, ccache missing on the build host; "
        "install the packages: ccache flex libelf-dev"
    )
    assert "ccache" not in kb.missing_tools({})[0]


def test_what_is_always_so_is_not_in_the_key():
    again = dataclasses.replace(INPUTS, package="deb", signer="")
    assert again.key() == INPUTS.key()
    others = [dataclasses.replace(INPUTS, package="rpm"), dataclasses.replace(INPUTS, signer="0a")]
    assert len({INPUTS.key(), *(other.key() for other in others)}) == 3


def test_no_link_to_the_place_of_the_build_is_in_a_tar(tmp_path):
    modules = tmp_path / "lib/modules/6.12.0"
    (modules / "kernel/build").mkdir(parents=True)
    (modules / "kernel/build/a.ko").touch()
    (modules / "build").symlink_to(tmp_path)
    options = kb.FORMATS["tar"].environment["TAR_OPTIONS"].replace("EPOCH", "0")
    argv = ["tar", "-cf", "kernel.tar", "lib"]
    subprocess.run(argv, cwd=tmp_path, check=True, env={**os.environ, "TAR_OPTIONS": options})
    with tarfile.open(tmp_path / "kernel.tar") as archive:
        names = [name.removeprefix("lib/modules/6.12.0/") for name in archive.getnames()]
    assert "build" not in names
    assert "kernel/build/a.ko" in names


def test_a_full_disk_ends_make_and_is_told(making, monkeypatch, tmp_path):
    pid_file = tmp_path / "pid"
    monkeypatch.setattr(making.build, "log", Path("/dev/full"))
    with pytest.raises(OSError, match="No space left"):
        making(f"echo $$ > {pid_file}; yes | head -c 1000000; sleep 60")
    assert not runs(pid_file.read_text().strip())


def test_progress_on_a_full_disk_is_not_what_fails(tmp_path):
    progress = kb.Progress(Path("/dev/full/progress"))
    with progress:
        progress.enter("compile")
