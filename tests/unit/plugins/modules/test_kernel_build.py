# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What befalls builds: the real module, by the real ansible where that matters; only the kernel is a toy."""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.mkops.multikernel.plugins.module_utils.boot import secure_boot
from ansible_collections.mkops.multikernel.plugins.module_utils.build import order
from ansible_collections.mkops.multikernel.plugins.module_utils.build.source import MARKER
from ansible_collections.mkops.multikernel.plugins.module_utils.common.command import STOP_SIGNALS
from ansible_collections.mkops.multikernel.plugins.modules import kernel_build

# A kernel of few objects. Where there is a file GATE.STAGE, that stage waits until it is gone.
MAKEFILE = """\
GATE := {gate}
wait = if [ -e $(GATE).$(1) ]; then touch $(GATE).$(1).reached; \\
\twhile [ -e $(GATE).$(1) ]; do sleep 0.05; done; fi
OBJECTS := $(patsubst %,obj/%.o,1 2 3 4 5 6 7 8)
IMAGE := arch/x86/boot/bzImage

tinyconfig:
\t@$(call wait,tinyconfig)
\t@echo "# CONFIG_B is not set" >.config
olddefconfig:
obj/%.o:
\t@mkdir -p obj && echo $@ >obj/$*.part
\t@if [ $* = 5 ]; then $(call wait,compile); fi
\t@echo "  CC      $@" && echo $@ >>compiled && mv obj/$*.part $@
image.efi: $(OBJECTS)
\t@gcc -c -fPIC -nostdlib -o image.o image.c && ld -shared -Bsymbolic -o image.so image.o
\t@objcopy -O efi-app-x86_64 -j .text -j .data image.so $@
$(IMAGE): image.efi
\t@mkdir -p arch/x86/boot/compressed && cp image.efi $@
\t@head -c 64 {linked} >arch/x86/boot/compressed/vmlinux.bin.gz
vmlinux: $(OBJECTS)
\t@ld -r -o $@ -b binary Kbuild
.PHONY: include/config/kernel.release
include/config/kernel.release:
\t@mkdir -p include/config && echo "7.0$(LOCALVERSION)" >$@
kernelrelease: include/config/kernel.release
\t@cat $<
bindeb-pkg: vmlinux $(IMAGE)
\t@if [ -e package ]; then $(call wait,pack-again); fi
\t@rm -rf package && mkdir -p package/DEBIAN package/boot
\t@printf '%s\\n' "Package: linux-image-toy" "Version: 1" "Architecture: amd64" "Maintainer: m <m@m>" \\
\t\t"Description: x" >package/DEBIAN/control
\t@cp {packed} package/boot/vmlinuz-7.0
\t@dpkg-deb --root-owner-group --build package ../linux-image-toy_1_amd64.deb
"""
FILES = {
    "Kbuild": "# toy",
    "image.c": 'int _start(void) { return 0; } char text[600] = "toy";',
    "scripts/kconfig/merge_config.sh": '#!/bin/sh\nshift; cat "$@" >.config\n',
    "scripts/package/mkdebian": "",
}
# With the arguments as they come: JSON is in no locale.
MODULE = """
import json, sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.mkops.multikernel.plugins.modules import kernel_build
with patch_module_args(json.loads(sys.argv[1])):
    kernel_build.main()
"""
SECONDS = 60


def until(condition, what):
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


class Toy:
    """A toy kernel, what to build it with, and where."""

    def __init__(self, directory: Path, packed: str = "$(IMAGE)", linked: str = "image.efi") -> None:
        self.directory = directory
        self.gate = directory / "gate"
        self.cache = directory / "cache"
        self.runs = 0
        # Commands that run elsewhere, and how that place is seen from here.
        self.prefix: list[str] = []
        self.root = Path("/")
        tree = directory / "linux-toy"
        for name, text in FILES.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(text)
            (tree / name).chmod(0o755)
        (tree / "Makefile").write_text(MAKEFILE.format(gate=self.gate, packed=packed, linked=linked))
        archive = directory / "linux-toy.tar"
        subprocess.run(["tar", "-cf", archive, "-C", directory, tree.name], check=True)
        fragment = directory / "toy.config"
        fragment.write_text("CONFIG_EFI_STUB=y\n")
        self.wish = {
            "source": {
                "path": str(archive),
                "checksum": f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}",
            },
            "config": [str(fragment)],
            "cache_dir": str(self.cache),
            "ccache": False,
            "keep_tree": True,
            "jobs": 1,
        }

    def start(self, controller: bool = False, python=(), environment=(), **more) -> subprocess.Popen:
        """A run of the module; with a controller, by the ansible command, as users do."""
        wish = self.wish | more
        if controller:
            argv = ["ansible", "localhost", "-c", "local", "-m", "mkops.multikernel.kernel_build"]
            argv += ["-a", json.dumps(wish)]
        else:
            self.runs += 1
            progress = f"{self.cache}/kernels/.work/progress-{self.runs}.json"
            argv = [sys.executable, *python, "-c", MODULE, json.dumps({"progress_file": progress, **wish})]
        settings = {"ANSIBLE_FORCE_COLOR": "0", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
        return subprocess.Popen(
            [*self.prefix, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **settings, **dict(environment)},
            start_new_session=True,
        )

    @staticmethod
    def result(process: subprocess.Popen) -> dict:
        output = process.communicate(timeout=3 * SECONDS)[0]
        assert "{" in output, output
        return json.loads(output[output.index("{") :])

    def run(self, **more) -> dict:
        """The result of a run in this process, if nothing is to befall it."""
        if self.prefix or "python" in more:
            return self.result(self.start(**more))
        self.warnings = []
        out = io.StringIO()
        handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        umask = os.umask(0o022)
        try:
            with (
                patch_module_args({**self.wish, **more}),
                pytest.MonkeyPatch.context() as patched,
                contextlib.redirect_stdout(out),
                pytest.raises(SystemExit),
            ):
                # Where an action plugin was imported before, Ansible shows them at once.
                patched.setattr(
                    AnsibleModule, "warn", lambda _module, text, **_more: self.warnings.append(text)
                )
                kernel_build.main()
        finally:
            os.umask(umask)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return json.loads(out.getvalue())

    def close(self, stage: str) -> None:
        Path(f"{self.gate}.{stage}").touch()

    def open(self, stage: str) -> None:
        Path(f"{self.gate}.{stage}").unlink()

    def reached(self, stage: str) -> None:
        until(Path(f"{self.gate}.{stage}.reached").exists, f"{stage} is not reached")

    def seen(self, pattern: str) -> list[Path]:
        """Files below the cache, as they are seen from here."""
        return list((self.root / self.cache.relative_to("/")).glob(pattern))

    def stages(self) -> set[str]:
        """What the runs say of themselves now."""
        found = set()
        for path in self.seen("kernels/.work/progress-*.json"):
            with contextlib.suppress(OSError, ValueError):
                progress = json.loads(path.read_text())
                if progress["state"] == "running":
                    found.add(progress["stage"])
        return found

    def makes(self) -> list[int]:
        """The makes that work in a tree."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                inside = f"{self.cache}/kernels/.work/" in os.readlink(path / "cwd")
                if inside and (path / "comm").read_text() == "make\n":
                    found.append(int(path.name))
        return found

    def built(self, result: dict) -> None:
        """It is all there, and nothing was compiled twice."""
        assert "msg" not in result
        kernel = self.root / Path(result["directory"]).relative_to("/")
        assert (kernel / "manifest.json").exists()
        (tree,) = (path for path in (kernel / "build").iterdir() if path.is_dir())
        compiled = (tree / "compiled").read_text().split()
        assert sorted(compiled) == [f"obj/{number}.o" for number in range(1, 9)]


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path)


@pytest.fixture
def small_disk(toy):
    """The cache is a disk of its own that only the toy's commands see; returns a function that changes it."""
    toy.cache.mkdir()
    script = 'mount -t tmpfs -o "size=64m" toy "$0" && echo there && exec sleep 600'
    unshare = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, toy.cache]
    with subprocess.Popen(unshare, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "there\n"
        toy.prefix = ["nsenter", f"--target={holder.pid}", "--user", "--mount", "--preserve-credentials"]
        toy.root = Path(f"/proc/{holder.pid}/root")

        def remount(options: str) -> None:
            subprocess.run([*toy.prefix, "mount", "-o", f"remount,{options}", toy.cache], check=True)

        yield remount
        holder.kill()


def test_a_disk_that_is_too_small(toy, small_disk):
    result = toy.run()
    assert f"{toy.cache}/kernels/.work/" in result["msg"]
    assert "MiB free, but a build needs 4096 MiB" in result["msg"]
    assert not toy.seen("kernels/[0-9a-f]*")
    small_disk("size=8g")
    toy.built(toy.run())


def test_a_disk_that_gets_full(toy, small_disk):
    small_disk("size=8g,nr_inodes=200")
    toy.close("compile")
    process = toy.start()
    toy.reached("compile")
    # Files are what there are too few of: a test has no gigabytes to waste.
    full = toy.root / toy.cache.relative_to("/") / "full"
    full.mkdir()
    with pytest.raises(OSError, match="No space left"):
        for number in range(200):
            (full / str(number)).touch()
    toy.open("compile")
    result = toy.result(process)
    assert f"there is no space left: {toy.cache} has" in result["msg"]
    assert "and 0 files free, but a build needs 4096 MiB" in result["msg"]
    assert "No space left on device" in result["msg"]
    assert not toy.makes()
    assert not toy.seen("kernels/[0-9a-f]*")
    for path in full.iterdir():
        path.unlink()
    toy.built(toy.run())


def test_the_controller_is_lost(toy):
    toy.close("compile")
    process = toy.start(controller=True)
    toy.reached("compile")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(toy.makes()) == 1
    following = toy.start(controller=True)
    until(lambda: "wait" in toy.stages(), "the next run does not wait")
    assert len(toy.makes()) == 1
    toy.open("compile")
    result = toy.result(following)
    assert result["changed"] is False
    toy.built(result)


@pytest.mark.parametrize("stage", ["tinyconfig", "compile"])
def test_the_module_is_killed(toy, stage):
    toy.close(stage)
    process = toy.start()
    toy.reached(stage)
    (progress,) = toy.seen("kernels/.work/progress-*.json")
    assert json.loads(progress.read_text())["pid"] == process.pid
    process.kill()
    process.communicate()
    (orphan,) = toy.makes()
    progress.unlink()
    following = toy.start()
    until(lambda: "wait" in toy.stages(), "the next run does not wait")
    assert toy.makes() == [orphan]
    toy.open(stage)
    result = toy.result(following)
    assert result["changed"] is True
    toy.built(result)


def test_only_so_many_kernels_are_kept(toy):
    process = toy.start(controller=True, keep=1)
    output = process.communicate(timeout=3 * SECONDS)[0]
    assert "is not built yet" in output
    first = json.loads(output[output.index("{\n") :])
    toy.built(first)
    assert (first["removed"], toy.seen("kernels/.work/progress-*.json")) == ([], [])
    Path(toy.wish["config"][0]).write_text("CONFIG_EFI_STUB=y\nCONFIG_OTHER=y\n")
    told = toy.run(keep=1, _ansible_check_mode=True, _ansible_diff=True)
    changed = set(told["diff"]["after"].splitlines()) - set(told["diff"]["before"].splitlines())
    assert sorted(line.split(":")[0] for line in changed) == ["fragment", "key", "release"]
    assert (told["changed"], told["removed"]) == (True, [first["release"]])
    assert Path(first["vmlinux"]).exists()
    second = toy.run(keep=2)
    assert (second["changed"], second["removed"]) == (True, [])
    again = toy.run(keep=1)
    assert (again["changed"], again["removed"]) == (True, [first["release"]])
    assert (again["key"], Path(first["vmlinux"]).exists()) == (second["key"], False)
    last = toy.run(keep=1)
    assert (last["changed"], last["removed"]) == (False, [])
    toy.built(last)


def test_names_that_are_no_ascii_on_a_host_that_is(tmp_path):
    """The locale of a host is not that of its files."""
    directory = tmp_path / "größe"
    directory.mkdir()
    toy = Toy(directory)
    series = directory / "Änderungen"
    series.mkdir()
    diff = "--- a/Kbuild\n+++ b/Kbuild\n@@ -1 +1 @@\n-# toy\n\\ No newline at end of file\n"
    (series / "für uns.patch").write_text(f"{diff}+# Spielzeug für uns\n")
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}.items()
    result = toy.run(python=["-X", "utf8=0"], environment=ascii_only, series=str(series))
    toy.built(result)
    assert result["directory"].startswith(f"{directory}/cache/kernels/")
    assert (Path(result["build_tree"]) / "linux-toy/Kbuild").read_text() == "# Spielzeug für uns\n"
    gone = toy.run(python=["-X", "utf8=0"], environment=ascii_only, config=[f"{directory}/nö.config"])
    assert f"config fragment {directory}/nö.config: No such file or directory" in gone["msg"]


def test_options_of_the_series_follow_the_fragment_of_their_name(toy, tmp_path):
    series = tmp_path / "series"
    (series / "config").mkdir(parents=True)
    for name, option in (("toy", "OWN"), ("unused", "OTHER")):
        (series / f"config/{name}.config").write_text(f"CONFIG_{option}=y\n")
    diff = "--- a/Kbuild\n+++ b/Kbuild\n@@ -1 +1 @@\n-# toy\n\\ No newline at end of file\n"
    (series / "0001-x.patch").write_text(f"{diff}+# a toy\n")
    result = toy.run(series=str(series))
    toy.built(result)
    manifest = json.loads(Path(result["manifest"]).read_text())
    assert [name for name, _digest in manifest["inputs"]["fragments"]] == ["toy.config", "toy.config"]
    config = Path(result["config"]).read_text().splitlines()
    assert "CONFIG_OWN=y" in config and "CONFIG_OTHER=y" not in config
    (series / "config/toy.config").write_text("CONFIG_OWN=n\n")
    assert toy.run(series=str(series))["key"] != result["key"]


def test_a_patch_that_cannot_be_read_is_named(toy, tmp_path, monkeypatch):
    def read(_path, _name):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "series.d").mkdir()
    (tmp_path / "series.d/a.patch").touch()
    monkeypatch.setattr(order, "read_patch", read)
    result = toy.run(series=str(tmp_path / "series.d"))
    assert f"patch {tmp_path}/series.d/a.patch cannot be read: Permission denied" in result["msg"]


def test_all_reasons_at_once(toy, tmp_path, monkeypatch):
    for name, text in (("none.patch", "text"), ("series", "none.patch -p0\ngone.patch\n")):
        (tmp_path / name).write_text(text)
    (tmp_path / "bad.config").write_text("CONFIG_A\n# CONFIG_B is not set\n\n# CONFIG_C is not  set\n")
    result = toy.run(
        source={"path": str(tmp_path / "gone.tar"), "checksum": "md5:1"},
        series=str(tmp_path),
        config=[str(tmp_path / "bad.config"), str(tmp_path / "gone.config")],
        config_base=str(tmp_path / "gone"),
        local_version="-Mine",
        jobs=-1,
        keep=-1,
    )
    assert result["msg"].splitlines()[0] == "nothing was built:"
    words = [
        *("local_version '-Mine' cannot be", "jobs is -1", "keep is -1", "is neither one of tinyconfig"),
        *("bad.config:1: 'CONFIG_A' is not an option", "bad.config:4:", "gone.config: No such file"),
        *("none.patch has the option -p0", "do not exist: gone.patch", "gone.tar is not a file"),
        "is not of the form",
    ]
    assert [word in reason for word, reason in zip(words, result["problems"], strict=True)] == [True] * len(
        words
    )
    (tmp_path / "series").write_text("none.patch\n")
    (tmp_path / "any.gz").write_text("not packed")
    (tmp_path / "odd/series").mkdir(parents=True)
    monkeypatch.setattr(order, "running_config", lambda: None)
    for wish, word in (
        ({"series": str(tmp_path)}, "patch none.patch has nothing to apply"),
        ({"series": str(tmp_path / "series")}, "is not a directory"),
        ({"config_base": "running"}, "config_base running: there is neither /boot/config-"),
        ({"config_base": str(tmp_path / "any.gz")}, "any.gz cannot be read"),
        ({"source": {"path": str(tmp_path)}}, "is a directory that was not made by kernel_source"),
        ({"source": {"package": "p", "keyring": "/gone"}}, "source.keyring /gone is not a file"),
        ({"source": {"path": ""}}, "source.path is empty"),
        ({"source": {"package": "", "version": "7.0-1"}}, "source.package is empty"),
        ({"source": {"path": None}}, "source has neither package nor path"),
        ({"series": str(tmp_path / "odd")}, "odd/series cannot be read: Is a directory"),
        ({"config": ["\0"]}, "is not a file"),
        ({"cache_dir": "/x\0"}, "cache_dir is no path: there is a NUL in it"),
        ({"progress_file": "\0"}, "progress_file is no path"),
        ({"source": {"path": str(tmp_path / "any.gz")}}, "source.path needs source.checksum, of the form"),
    ):
        (reason,) = toy.run(**wish)["problems"]
        assert word in reason
    assert not toy.cache.exists()


def test_a_base_that_asks_for_what_is_not_here(toy, tmp_path, monkeypatch):
    """Check mode tells it, too; the same configuration is another kernel where it can be had."""
    base = tmp_path / "base.config"
    base.write_text("CONFIG_DEBUG_INFO_BTF=y\nCONFIG_EFI_STUB=y\n")
    monkeypatch.setattr(order, "toolchain", lambda: ("gcc 12", "pahole: none"))
    bare = toy.run(config_base=str(base), _ansible_check_mode=True)
    (warning,) = toy.warnings
    assert "there is no pahole on the build host" in warning
    monkeypatch.setattr(order, "toolchain", lambda: ("gcc 12", "pahole: v1.24"))
    assert toy.run(config_base=str(base), _ansible_check_mode=True)["key"] != bare["key"]
    assert toy.warnings == []


def test_what_a_configuration_names_outside_of_the_tree_is_an_input(toy, tmp_path):
    keys = tmp_path / "keys.pem"
    Path(toy.wish["config"][0]).write_text(f'CONFIG_SYSTEM_TRUSTED_KEYS="{keys}"\nCONFIG_EFI_STUB=y\n')
    seen = set()
    for text in ("one", "two"):
        keys.write_text(text)
        seen.add(toy.run(_ansible_check_mode=True)["key"])
    keys.unlink()
    assert len(seen) == 2
    result = toy.run()
    assert f"(toy.config:1): neither the source nor the build host has {keys}" in result["msg"]
    assert not toy.seen("kernels/.work/*/linux-toy/compiled")


def test_a_tree_of_kernel_source(toy, tmp_path):
    tree = tmp_path / "linux-toy"
    marker = {"digest": "0" * 64, "origin": "x", "version": "7.0", "patches": []}
    (tree / MARKER).write_text(json.dumps(marker))
    result = toy.run(source={"path": str(tree)})
    toy.built(result)
    assert not (tree / "compiled").exists()


# --- Debian's source, by the real apt -----------------------------------------------------------------------


@pytest.fixture
def mirror(toy, tmp_path, tmp_path_factory):
    """A signed repository with the toy as a source package: what to ask for."""
    # Sockets are below it, whose paths must not be long.
    home, root = tmp_path_factory.mktemp("gpg"), tmp_path / "package"
    (root / "usr/src").mkdir(parents=True)
    (root / "DEBIAN").mkdir()
    fields = (
        "Package: linux-source-7.0\nVersion: 7.0-1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: x\n"
    )
    (root / "DEBIAN/control").write_text(fields)
    tar = ["tar", "-cJf", root / "usr/src/linux-source-7.0.tar.xz", "-C", tmp_path, "linux-toy"]
    archive = tmp_path / "mirror"
    lists = archive / "dists/sid"
    (lists / "main/binary-amd64").mkdir(parents=True)
    deb = archive / "linux-source-7.0_7.0-1_all.deb"
    gpg = ["gpg", "--homedir", home, "--batch", "--pinentry-mode", "loopback", "--passphrase", ""]
    for argv in (
        tar,
        ["dpkg-deb", "-b", root, deb],
        [*gpg, "--quick-gen-key", "m@example.com", "ed25519", "sign"],
    ):
        subprocess.run(argv, check=True, capture_output=True)

    def hashed(text: bytes) -> str:
        return f"{hashlib.sha256(text).hexdigest()} {len(text)}"

    digest, size = hashed(deb.read_bytes()).split()
    packages = f"{fields}Filename: {deb.name}\nSize: {size}\nSHA256: {digest}\n"
    (lists / "main/binary-amd64/Packages").write_text(packages)
    (tmp_path / "Release").write_text(
        f"Origin: x\nLabel: x\nSuite: sid\nCodename: sid\nDate: {email.utils.formatdate(usegmt=True)}\n"
        "Architectures: amd64\nComponents: main\n"
        f"SHA256:\n {hashed(packages.encode())} main/binary-amd64/Packages\n"
    )
    for argv in (
        [*gpg, "--clearsign", "--output", lists / "InRelease", tmp_path / "Release"],
        [*gpg, "--output", tmp_path / "keys.gpg", "--export"],
    ):
        subprocess.run(argv, check=True, capture_output=True)
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True)
    keys = str(tmp_path / "keys.gpg")
    return {"package": "linux-source-7.0", "suite": "sid", "mirror": f"file:{archive}", "keyring": keys}


def test_a_source_package(toy, mirror, tmp_path):
    told = toy.run(source=mirror, _ansible_check_mode=True)
    assert told["release"] == f"7.0.0-mkops-{told['key'][:8]}"
    result = toy.run(source=mirror)
    toy.built(result)
    # The toy calls itself 7.0, whatever its package is called: the tree is asked.
    assert result["release"] == f"7.0-mkops-{told['key'][:8]}"
    # With its version it is known without the mirror.
    (tmp_path / "mirror").rename(tmp_path / "away")
    again = toy.run(source={**mirror, "version": "7.0-1"})
    assert (again["changed"], again["key"]) == (False, told["key"])
    gone = toy.run(source={**mirror, "version": "7.0-2"})
    assert f"no source package linux-source-7.0=7.0-2 in file:{tmp_path}/mirror sid" in gone["msg"]


def test_a_source_package_that_nobody_known_has_signed(toy, mirror, tmp_path):
    (tmp_path / "keys.gpg").write_bytes(Path("/usr/share/keyrings/debian-archive-keyring.gpg").read_bytes())
    result = toy.run(source=mirror)
    assert (
        f"cannot fetch the package lists of file:{tmp_path}/mirror sid: apt-get ended with status 100"
        in result["msg"]
    )
    assert "NO_PUBKEY" in result["msg"]
    assert not toy.seen("sources/*.deb")


# --- signatures ---------------------------------------------------------------------------------------------


@pytest.fixture
def sign(tmp_path):
    key, certificate = tmp_path / "signing.key", tmp_path / "signing.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=toy"]
    subprocess.run([*argv, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    key.chmod(0o600)
    return {"key": str(key), "certificate": str(certificate)}


def signatures(deb: str, directory: Path) -> str:
    """What sbverify tells of the image in a package."""
    subprocess.run(["dpkg-deb", "-x", deb, directory], check=True)
    listed = subprocess.run(
        ["sbverify", "--list", directory / "boot/vmlinuz-7.0"], check=False, capture_output=True, text=True
    )
    return listed.stdout + listed.stderr


def test_the_signed_image_is_the_packed_one(toy, sign, tmp_path):
    result = toy.run(sign=sign)
    toy.built(result)
    listed = signatures(result["debs"][0], tmp_path / "unpacked")
    assert (listed.count("signature 1"), listed.count("subject: /CN=toy")) == (1, 1)
    assert secure_boot.signature((tmp_path / "unpacked/boot/vmlinuz-7.0").read_bytes())
    unsigned = toy.run()
    assert unsigned["key"] != result["key"]
    assert "No signature table present" in signatures(unsigned["debs"][0], tmp_path / "other")
    assert not secure_boot.signature((tmp_path / "other/boot/vmlinuz-7.0").read_bytes())
    secret = Path(sign["key"]).read_text().splitlines()[1]
    assert subprocess.run(["grep", "-rqF", secret, toy.cache], check=False).returncode == 1


def test_an_image_that_an_earlier_run_has_signed(toy, sign, tmp_path):
    toy.close("pack-again")
    process = toy.start(sign=sign)
    toy.reached("pack-again")
    process.terminate()
    assert toy.result(process)["msg"] == "stopped by SIGTERM; the next run continues the build"
    assert not toy.makes()
    toy.open("pack-again")
    result = toy.run(sign=sign)
    assert result["changed"] is True
    assert signatures(result["debs"][0], tmp_path / "unpacked").count("subject: /CN=toy") == 1


def test_an_image_that_is_packed_unsigned(tmp_path, sign):
    result = Toy(tmp_path, packed="image.efi").run(sign=sign)
    assert "cannot find the signature" in result["msg"]
    assert not list((tmp_path / "cache/kernels").glob("[0-9a-f]*"))


def test_an_image_of_another_kernel(tmp_path):
    result = Toy(tmp_path, linked="Kbuild").run()
    assert result["failed"]
    assert result["msg"].endswith(
        "bzImage does not have the kernel in it that was linked before: run again with ccache: false"
    )


def test_a_kernel_that_cannot_be_signed(toy, sign):
    Path(toy.wish["config"][0]).write_text("CONFIG_MODULES=y\n")
    result = toy.run(sign=sign)
    assert "CONFIG_EFI_STUB=y, CONFIG_MODULE_SIG=y, CONFIG_MODULE_SIG_ALL=y" in result["msg"]
    assert not toy.seen("kernels/.work/*/linux-toy/compiled")


def test_a_key_that_others_can_read(toy, sign):
    Path(sign["key"]).chmod(0o640)
    result = toy.run(sign=sign)
    assert f"sign.key {sign['key']} has mode 0640, so others can read it" in result["msg"]
    assert not toy.cache.exists()
