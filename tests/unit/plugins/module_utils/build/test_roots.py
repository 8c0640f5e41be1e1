# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Making Debian roots, also by the module, with a program that stands in for the one that takes minutes."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.mkops.multikernel.plugins.action import debian_root as debian_root_action
from ansible_collections.mkops.multikernel.plugins.module_utils.build import debian, root, roots
from ansible_collections.mkops.multikernel.plugins.module_utils.build.builder import Stopped
from ansible_collections.mkops.multikernel.plugins.module_utils.common.command import STOP_SIGNALS
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure, Refused
from ansible_collections.mkops.multikernel.plugins.modules import debian_root

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJl3dIeudNqd0DPMRD6OIh65tjkxFNOtGcYnXDBzhtFG alice"
HASH = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7"
MIRROR = "http://somebody:sesame@mirror.example/debian"
MMDEBSTRAP = """\
#!{python}
import json, os, shutil, sys
json.dump({{"argv": sys.argv, "stdin": sys.stdin.read(), "env": dict(os.environ)}}, open("{said}", "w"))
print("I: running apt-get update...")
print("E: something of http://somebody:sesame@mirror.example/debian", file=sys.stderr)
shutil.copy("{packages}", sys.argv[-2])
sys.exit({status})
"""


def lines(*debs):
    return "".join(
        f"'http://m/{name}.deb' {name}_{version}_amd64.deb 1 SHA256:{'0' * 64}\n" for name, version in debs
    )


@pytest.fixture
def machine(tmp_path, monkeypatch, packages_tar):
    """A controller; returns what makes a builder on it, with what mmdebstrap was told in a file."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (tmp_path / "packages.tar").write_bytes(packages_tar().getvalue())
    (tmp_path / "keyring.gpg").touch()
    (tmp_path / "key.pub").write_text(f"# laptop\n{KEY}\n")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(debian.Archive, "refresh", lambda *args: None)
    monkeypatch.setattr(
        debian.Archive, "needed", lambda *args: lines(("apt", "3.0"), ("systemd-sysv", "1%3a257"))
    )
    monkeypatch.setattr(roots, "FREE_BYTES", 0)
    if not shutil.which("mke2fs"):
        monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")

    def bootstrap(status=0):
        path = programs / "mmdebstrap"
        said, packages = tmp_path / "said.json", tmp_path / "packages.tar"
        path.write_text(MMDEBSTRAP.format(python=sys.executable, said=said, packages=packages, status=status))
        path.chmod(0o755)

    def builder(**changes):
        params = {}
        for name, spec in debian_root.ARGUMENT_SPEC.items():
            params[name] = spec.get("default")
        params |= {
            "mirror": MIRROR,
            "keyring": str(tmp_path / "keyring.gpg"),
            "cache_dir": str(tmp_path / "cache"),
            "users": [user(name="alice", password=HASH, ssh_key_files=[str(tmp_path / "key.pub")])],
        }
        warnings = []
        return roots.builder_of(params | changes, warnings.append)

    def user(**changes):
        known = debian_root.ARGUMENT_SPEC["users"]["options"]
        return {name: spec.get("default") for name, spec in known.items()} | changes

    bootstrap()
    builder.bootstrap, builder.user, builder.said = bootstrap, user, tmp_path / "said.json"
    return builder


def test_an_initramfs_is_made_once(machine, tmp_path):
    builder = machine(progress_file=str(tmp_path / "progress.json"))
    assert builder.manifest() is None
    manifest, made = builder.build()
    assert made and builder.build() == (manifest, False)
    found = roots.paths(builder, manifest)
    path = Path(found["path"])
    assert path.name == "root.cpio.gz" and path.stat().st_mode & 0o777 == 0o600
    assert found["size"] == path.stat().st_size and len(found["checksum"]) == 7 + 64
    assert KEY.encode() in gzip.decompress(path.read_bytes())
    assert json.loads((tmp_path / "progress.json").read_text())["state"] == "done"
    # Nothing is left of the work, and another form has its packages already.
    assert not list(tmp_path.glob("cache/*/.work/*/"))
    machine.said.unlink()
    machine(form="tar").build()
    assert not machine.said.exists()


def test_no_secret_is_among_arguments_or_kept(machine, tmp_path):
    builder = machine()
    manifest, _made = builder.build()
    said = json.loads(machine.said.read_text())
    assert "sesame" not in str(said["argv"]) and "sesame" not in str(said["env"])
    assert said["stdin"].splitlines()[0].endswith(f"{MIRROR} trixie main") and "-security" in said["stdin"]
    assert said["env"]["SOURCE_DATE_EPOCH"] == str(root.EPOCH)
    assert HASH not in str(manifest) and manifest["inputs"]["users"] == ["alice"]
    kept = [path for path in tmp_path.joinpath("cache").rglob("*") if path.is_file()]
    assert [path for path in kept if b"sesame" in path.read_bytes() and "apt-" not in str(path)] == []


@pytest.mark.parametrize("compression", [*root.COMPRESSIONS])
@pytest.mark.parametrize("form", ["initramfs", "tar"])
def test_two_caches_have_the_same_bytes(machine, tmp_path, form, compression):
    digests = []
    for name in ("one", "two"):
        builder = machine(form=form, compression=compression, cache_dir=str(tmp_path / name))
        digests.append(builder.build()[0]["files"])
    assert digests[0] == digests[1]


def test_the_agent_is_started_by_the_command_line(machine, tmp_path):
    (tmp_path / "kerf-init").write_bytes(b"\x7fELF\x02\x01")
    builder = machine(agent=str(tmp_path / "kerf-init"), facts=__file__)
    manifest, _made = builder.build()
    image = Path(roots.paths(builder, manifest)["path"]).read_bytes()
    assert image.endswith(b"#BOOTCONFIG\n") and b"kerf.entrypoint" in image[-120:]


@pytest.mark.parametrize("disk", [*root.DISKS])
def test_a_disk_is_a_file_system(machine, tmp_path, disk):
    digests = []
    for name in ("one", "two"):
        builder = machine(form="disk", disk_format=disk, size="96M", cache_dir=str(tmp_path / name))
        manifest, _made = builder.build()
        digests.append(manifest["files"])
    assert digests[0] == digests[1]
    path = roots.paths(builder, manifest)["path"]
    if disk == "raw":
        assert Path(path).stat().st_size == 96 << 20
        subprocess.run(["e2fsck", "-fn", path], check=True, capture_output=True)
        super_block = subprocess.run(["dumpe2fs", "-h", path], check=True, capture_output=True)
        # Or what was written is not found again after a crash.
        assert b" has_journal " in super_block.stdout
        shown = subprocess.run(["debugfs", "-R", "cat /etc/shadow", path], check=True, capture_output=True)
        assert HASH.encode() in shown.stdout
        owner = subprocess.run(["debugfs", "-R", "stat /home/alice", path], check=True, capture_output=True)
        assert b"User:  1000" in owner.stdout


def test_a_disk_that_is_too_small(machine, packages_tar, tmp_path):
    (tmp_path / "packages.tar").write_bytes(packages_tar(**{"usr/big": "x" * (80 << 20)}).getvalue())
    with pytest.raises(Refused, match=r"size 64 MiB is too small: this root needs 13\d MiB"):
        machine(form="disk", size="64M").build()
    assert machine(form="disk").build()[0]["size"] == 192 << 20


def test_mke2fs_that_takes_no_archive(machine, monkeypatch):
    monkeypatch.setattr(roots, "MKE2FS", (9, 0))
    with pytest.raises(Refused, match=r"install e2fsprogs 9.0 or newer"):
        machine(form="disk")


def test_all_that_is_wrong_is_told_at_once(machine, tmp_path):
    (tmp_path / "text").write_text("text")
    with pytest.raises(Refused) as caught:
        machine(
            keyring="/nowhere.gpg",
            agent=str(tmp_path / "text"),
            facts="/nowhere/facts",
            overlays=["/nowhere/overlay"],
            modules=str(tmp_path),
            network="/nowhere/x.network",
            size="much",
            users=[machine.user(name="Bob", ssh_key_files=[str(tmp_path), "/nowhere/key"])],
            hostname="-",
        )
    found = "\n".join(caught.value.reasons)
    for reason in (
        "keyring /nowhere.gpg is not a file", "text is not a 64-bit ELF program", "facts /nowhere/facts",
        "overlay /nowhere/overlay", "is not a directory such as /lib/modules",
        "'/nowhere/x.network' is neither",
        "size: 'much'", "it is a directory", "key file /nowhere/key", "user 'Bob'", "hostname '-'",
    ):  # fmt: skip
        assert reason in found
    with pytest.raises(Refused, match="agent /nowhere/kerf-init cannot be read"):
        machine(agent="/nowhere/kerf-init")
    with pytest.raises(Refused) as caught:
        machine(
            keyring="\0", agent="\0", facts="\0", modules="\0", network="\0", overlays=["\0"],
            users=[machine.user(name="bob", ssh_key_files=["\0"])], cache_dir="/x\0", progress_file="\0",
        )  # fmt: skip
    assert len(caught.value.reasons) == 9
    with pytest.raises(Refused, match="size is for a disk, and form is initramfs"):
        machine(size="1G")
    assert not (tmp_path / "cache").exists()


def test_programs_that_are_missing(machine, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(
        Refused, match=r"mmdebstrap, apt-get, newuidmap, mke2fs, qemu-img; install apt e2fsprogs"
    ):
        machine(form="disk", disk_format="qcow2")
    with pytest.raises(Refused, match="install apt mmdebstrap uidmap xz-utils"):
        machine(compression="xz")


def test_packages_that_the_archive_does_not_have(machine, monkeypatch):
    def needed(*_args):
        raise Failure(
            "x", stderr="E: Unable to locate package nonsense\nW: x\nE: Unable to locate package more"
        )

    monkeypatch.setattr(debian.Archive, "needed", needed)
    with pytest.raises(Refused) as caught:
        machine()
    assert len(caught.value.reasons) == 2 and "sesame" not in str(caught.value.reasons)
    assert caught.value.reasons[0].endswith("mirror.example/debian trixie: Unable to locate package nonsense")
    monkeypatch.setattr(debian.Archive, "needed", lambda *args: "nothing")
    with pytest.raises(Failure, match="does not name the packages that trixie needs: nothing"):
        machine()


def test_an_archive_that_has_changed_meanwhile(machine, monkeypatch):
    monkeypatch.setattr(debian.Archive, "needed", lambda *args: lines(("apt", "3.1")))
    builder = machine()
    with pytest.raises(Failure, match=r"apt 3.0, apt 3.1, systemd-sysv.*has changed meanwhile"):
        builder.build()
    assert not list(builder.bases.results.glob("*/manifest.json"))


def test_mmdebstrap_that_fails(machine):
    machine.bootstrap(status=1)
    with pytest.raises(Failure, match=r"cannot make a root of http.*status 1: E: something of") as caught:
        machine().build()
    assert "sesame" not in f"{caught.value}{caught.value.details}"


def test_a_root_that_the_packages_do_not_make(machine):
    with pytest.raises(Refused, match=r"no unit nginx.service"):
        machine(enabled_units=["nginx.service"]).build()


def test_a_full_disk(machine, monkeypatch):
    monkeypatch.setattr(roots, "FREE_BYTES", 1 << 60)
    with pytest.raises(Failure, match=r"MiB free, but a root needs|GiB free, but a root needs"):
        machine().build()


def test_a_compressor_that_fails(machine, monkeypatch):
    monkeypatch.setattr(roots, "COMPRESSORS", {**roots.COMPRESSORS, "gzip": ("false", "--version")})
    monkeypatch.setattr(roots, "_versions", lambda *args: ())
    with pytest.raises(Failure, match="cannot compress the root: false ended with status 1"):
        machine().build()


def test_a_damaged_root_is_made_again(machine):
    builder = machine()
    manifest, _made = builder.build()
    path = Path(roots.paths(builder, manifest)["path"])
    path.write_bytes(b"damaged")
    assert builder.manifest() is None
    again, made = builder.build()
    assert made and again["files"] == manifest["files"] and path.stat().st_size == manifest["size"]


def test_what_the_archive_is_asked(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(debian.Archive, "apt", lambda self, *args: asked.extend(args) or "x")
    archive = debian.Archive(tmp_path, "http://m", "trixie", "/k.gpg", ("deb http://s trixie-security main",))
    assert archive.needed(["python3"], False) == "x"
    assert "?essential" in asked and "-oAPT::Install-Recommends=false" in asked and asked[-1] == "python3"
    assert archive.sources.splitlines()[1] == "deb http://s trixie-security main"


@pytest.fixture
def module(machine, tmp_path, capsys):
    """Run the module with options; returns its result."""

    def run(_check_mode=False, **options):
        options = {
            "mirror": MIRROR,
            "keyring": str(tmp_path / "keyring.gpg"),
            "cache_dir": str(tmp_path / "cache"),
            "users": [{"name": "alice", "password": HASH}],
            "_ansible_check_mode": _check_mode,
            "_ansible_diff": True,
        } | options
        handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        with patch_module_args(options), pytest.raises(SystemExit):
            try:
                debian_root.main()
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        said = capsys.readouterr().out
        assert "sesame" not in said and HASH not in said
        return json.loads(said)

    return run


def test_the_module_tells_the_truth_before_and_after(module, machine):
    planned = module(_check_mode=True)
    assert planned["changed"] and "path" not in planned and not machine.said.exists()
    assert "users: alice" in planned["diff"]["after"] and planned["diff"]["before"] == ""
    assert planned["packages"] == ["apt 3.0", "systemd-sysv 1:257"]
    made = module()
    assert made["changed"] and made["key"] == planned["key"]
    assert Path(made["path"]).exists() and made["checksum"].startswith("sha256:")
    again = module()
    assert not again["changed"] and again["path"] == made["path"] and "diff" not in again
    other = module(hostname="blue", keep=1)
    assert "hostname: localhost" in other["diff"]["before"] and "hostname: blue" in other["diff"]["after"]
    assert other["removed"] == [made["release"]] and not Path(made["path"]).exists()


def test_the_module_fails_with_all_reasons(module, monkeypatch):
    failed = module(hostname="-", users=[{"name": "Bob", "password": "sesame"}])
    assert failed["failed"] and len(failed["problems"]) == 3
    assert failed["msg"].startswith("no root was made:\nhostname '-'")

    def full(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/cache/x")

    for error, text in (
        (full, "/cache/x: No space left on device; once that is mended, run again"),
        (Failure("no network"), "no network"),
        (Stopped("SIGTERM"), "stopped by SIGTERM; run again"),
    ):

        def fail(*_args, error=error):
            if callable(error):
                error()
            raise error

        monkeypatch.setattr(roots.RootBuilder, "build", fail)
        assert module()["msg"] == text


def test_the_action_sends_nothing(monkeypatch):
    action = object.__new__(debian_root_action.ActionModule)
    action._task = SimpleNamespace(args={"overlays": ["/x"]})
    assert action._arguments() == {"overlays": ["/x"]} and action.MODULE.endswith(".debian_root")
