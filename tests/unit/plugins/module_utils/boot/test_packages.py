# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Packages that are installed by dpkg itself, into a directory."""

from __future__ import annotations

import fcntl
import os
import subprocess
from types import SimpleNamespace

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.boot import packages
from ansible_collections.mkops.multikernel.plugins.module_utils.boot.access import Access
from ansible_collections.mkops.multikernel.plugins.module_utils.boot.packages import Busy, Package
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure

NEW = "6.12.9-new"
IMAGE = f"linux-image-{NEW}"
BROKEN = "#!/bin/sh\necho 'update-initramfs: failed' >&2\nexit 1\n"


class Rooted(Access):
    """dpkg works on the directory, as anybody."""

    def run(self, argv, purpose, ok=(0,), seconds=600):
        options = [f"--admindir={self.at('/var/lib/dpkg')}"]
        if argv[0] == "dpkg":
            options += [
                f"--instdir={self.root}",
                "--force-not-root",
                "--force-script-chrootless",
                "--log=/dev/null",
            ]
            options += ["--force-bad-path"]
        return super().run(
            [argv[0], *(options if argv[0] != "dpkg-deb" else []), *argv[1:]], purpose, ok, seconds
        )


@pytest.fixture
def host(tmp_path):
    for path in ("var/lib/dpkg/updates", "var/lib/dpkg/info", "boot"):
        (tmp_path / "root" / path).mkdir(parents=True)
    (tmp_path / "root/var/lib/dpkg/status").touch()
    return Rooted(str(tmp_path / "root"))


@pytest.fixture
def deb(tmp_path):
    """Makes a package."""

    def make(name, version="1", files=(), **scripts):
        tree = tmp_path / f"tree-{name}-{version}"
        (tree / "DEBIAN").mkdir(parents=True)
        fields = (
            f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: nobody <n@example.org>\n"
        )
        (tree / "DEBIAN/control").write_text(f"{fields}Installed-Size: 4\nDescription: none\n")
        for path in files:
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(f"{name} {version}")
        for script, text in scripts.items():
            (tree / "DEBIAN" / script).write_text(text)
            (tree / "DEBIAN" / script).chmod(0o755)
        target = tmp_path / f"{name}_{version}.deb"
        argv = ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(target)]
        subprocess.run(argv, check=True, capture_output=True)
        return str(target)

    return make


def install(host, files):
    return packages.install(host, NEW, files, packages.check(host, NEW, files))


def vmlinuz(host):
    return host.at(f"/boot/vmlinuz-{NEW}")


def test_a_kernel_is_installed(host, deb):
    install(host, [deb(IMAGE, files=[f"boot/vmlinuz-{NEW}"])])
    assert packages.kernels(host, [NEW, "other"]) == {NEW: Package("installed", "1"), "other": Package()}
    assert vmlinuz(host).exists()
    packages.purge(host, [IMAGE])
    assert not vmlinuz(host).exists()
    assert packages.packages(host, []) == {}


def test_a_kernel_that_fails_to_install_is_gone(host, deb):
    image = deb(IMAGE, files=[f"boot/vmlinuz-{NEW}"], postinst=BROKEN)
    with pytest.raises(Failure, match="update-initramfs: failed"):
        install(host, [image])
    assert packages.kernels(host, [NEW]) == {NEW: Package()}
    assert not vmlinuz(host).exists()


def test_packages_that_were_there_stay(host, deb):
    """linux-libc-dev comes with a kernel, too, and belongs to the distribution."""
    host.run(["dpkg", "--install", deb("linux-libc-dev", "1"), deb("linux-headers-x", "1")], "prepare")
    image = deb(IMAGE, "2", files=[f"boot/vmlinuz-{NEW}"], postinst=BROKEN)
    with pytest.raises(Failure) as raised:
        install(host, [image, deb("linux-libc-dev", "2"), deb("linux-doc-x", "2")])
    assert "linux-libc-dev was 1 (installed) and is 2 (installed): install 1 again" in str(raised.value)
    assert "linux-doc-x" not in str(raised.value)
    known = packages.packages(host, [IMAGE, "linux-libc-dev", "linux-headers-x", "linux-doc-x"])
    assert known == {
        IMAGE: Package(),
        "linux-libc-dev": Package("installed", "2"),
        "linux-headers-x": Package("installed", "1"),
        "linux-doc-x": Package(),
    }


def test_one_that_was_there_and_is_half_there_now_is_told_with_what_to_do(host, deb):
    host.run(["dpkg", "--install", deb("linux-libc-dev", "1")], "prepare")
    files = [deb(IMAGE, "2"), deb("linux-libc-dev", "2", postinst=BROKEN)]
    with pytest.raises(Failure) as raised:
        install(host, files)
    assert (
        "linux-libc-dev was 1 (installed) and is 2 (half-configured): run dpkg --configure linux-libc-dev, "
        "or install 1 again"
    ) in str(raised.value)
    assert packages.packages(host, [IMAGE])[IMAGE] == Package()


def test_a_kernel_that_was_half_there_before_is_completed_or_gone(host, deb):
    broken = deb(IMAGE, "1", files=[f"boot/vmlinuz-{NEW}"], postinst=BROKEN)
    with pytest.raises(Failure):
        host.run(["dpkg", "--install", broken], "prepare")
    assert packages.kernels(host, [NEW])[NEW].half
    with pytest.raises(Failure):
        install(host, [broken])
    assert packages.kernels(host, [NEW])[NEW] == Package()
    install(host, [deb(IMAGE, "2", files=[f"boot/vmlinuz-{NEW}"])])
    assert packages.kernels(host, [NEW])[NEW].installed


def test_what_cannot_even_be_removed_is_told(host, deb):
    image = deb(IMAGE, files=[f"boot/vmlinuz-{NEW}"], postinst=BROKEN, postrm=BROKEN)
    with pytest.raises(Failure) as raised:
        install(host, [image])
    assert f"cannot remove {IMAGE}" in str(raised.value)
    assert f"run dpkg --purge --force-remove-reinstreq {IMAGE}" in str(raised.value)


def test_what_is_no_package_changes_nothing(host, tmp_path):
    (tmp_path / "x.deb").write_text("x")
    with pytest.raises(Failure, match="cannot read the package"):
        packages.check(host, NEW, [str(tmp_path / "x.deb")])


def test_packages_of_another_kernel_are_named(host, deb):
    with pytest.raises(Failure, match=rf"{IMAGE} is not among the packages \(linux-image-6.0.0\)"):
        packages.check(host, NEW, [deb("linux-image-6.0.0")])


def test_a_full_disk_is_noticed_before(host, deb, monkeypatch):
    monkeypatch.setattr(packages.shutil, "disk_usage", lambda _path: SimpleNamespace(free=1))
    with pytest.raises(Failure, match=r"/boot, /lib/modules, /var/lib/dpkg: 0 MiB free, .*; make room"):
        packages.check(host, NEW, [deb(IMAGE)])


@pytest.fixture(params=packages.LOCKS)
def held(request, host):
    """A lock that another process has."""
    path = host.at(request.param)
    path.touch()
    ready, told = os.pipe()
    child = os.fork()
    if not child:
        with path.open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            os.write(told, b"x")
            os.read(os.pipe()[0], 1)
        os._exit(0)
    os.read(ready, 1)
    yield request.param, child
    os.kill(child, 9)
    os.waitpid(child, 0)


def test_who_changes_packages_is_named(held, host, deb):
    path, process = held
    host.at(f"/proc/{process}").mkdir(parents=True)
    host.at(f"/proc/{process}/comm").write_text("unattended-upgr\n")
    assert packages.holder(host) == f"{path} is held by process {process} (unattended-upgr)"
    with pytest.raises(Busy, match=f"{path} is held by process {process}"):
        packages.check(host, NEW, [deb(IMAGE)])


def test_somebody_who_comes_between_look_and_installation(held, host, deb):
    """dpkg itself says so, and has changed nothing."""
    path, process = held
    with pytest.raises(Busy, match=f"{path} is held by process {process}"):
        packages.install(host, NEW, [deb(IMAGE)], [IMAGE])
    assert packages.kernels(host, [NEW]) == {NEW: Package()}


def test_nobody_changes_packages(host):
    assert packages.holder(host) == ""
    for path in packages.LOCKS:
        host.at(path).touch()
    assert packages.holder(host) == ""
