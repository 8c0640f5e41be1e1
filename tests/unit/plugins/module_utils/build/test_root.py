# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is wished of a Debian root, what decides about it, and what becomes of the packages."""

from __future__ import annotations

import dataclasses

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.build import root
from ansible_collections.mkops.multikernel.plugins.module_utils.build.accounts import User
from ansible_collections.mkops.multikernel.plugins.module_utils.build.rootfs import Tree

DEBS = (root.Deb("apt", "3.0", "amd64", "aa" * 32), root.Deb("systemd-sysv", "1:257", "amd64", "bb" * 32))
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJl3dIeudNqd0DPMRD6OIh65tjkxFNOtGcYnXDBzhtFG alice"
OTHERS = {
    "recommends": True,
    "excluded": (),
    "hostname": "red",
    "timezone": "Europe/Vienna",
    "locale": "C",
    "users": (User("alice"),),
    "network": "dhcp",
    "nameservers": ("192.0.2.1",),
    "enabled": ("ssh.service",),
    "masked": (),
    "console": "login",
    "agent": "11",
    "overlays": ("22",),
    "modules": "33",
    "form": "tar",
    "compression": "zstd",
    "packages": ("python3",),
}


def wish(**changes):
    return dataclasses.replace(root.RootWish("trixie", ()), **changes)


def furnished(archive, wished, files=None):
    tree = Tree.read(archive, root.EPOCH)
    root.furnish(tree, wished, files or root.Files())
    return tree


@pytest.mark.parametrize("name", OTHERS)
def test_everything_decides(name):
    assert wish(**{name: OTHERS[name]}).key(DEBS, ()) != wish().key(DEBS, ())


def test_versions_and_tools_decide():
    newer = (DEBS[0], dataclasses.replace(DEBS[1], version="1:258"))
    assert wish().key(newer, ()) != wish().key(DEBS, ()) != wish().key(DEBS, ("gzip 1.12",))
    # What only the image is made with leaves the packages as they are.
    assert wish(hostname="red").base_key(DEBS) == wish().base_key(DEBS) != wish().base_key(newer)


def test_what_is_of_no_account_does_not_decide():
    assert wish(form="disk", compression="xz").key(DEBS, ()) == wish(form="disk").key(DEBS, ())
    assert wish(size=1 << 30, disk="qcow2").key(DEBS, ()) == wish().key(DEBS, ())
    assert wish(form="disk", size=1 << 30).key(DEBS, ()) != wish(form="disk").key(DEBS, ())


def test_packages_that_come_along():
    assert wish(packages=("zsh", "udev")).wanted() == (*root.PACKAGES, "zsh")
    assert {"e2fsprogs", "tzdata", "kmod"} <= {
        *wish(form="disk", timezone="Europe/Vienna", modules="1").wanted()
    }


def test_nothing_is_wrong_with_what_is_usual():
    assert wish().problems() == []
    usual = wish(
        **OTHERS | {"network": "[Match]\nName=eth0\n", "nameservers": ("192.0.2.1", "2001:db8::1")},
        size=1 << 30,
    )
    assert usual.problems() == []
    assert wish(locale="de_AT.UTF-8", packages=("locales-all", "systemd=257.1-1~deb13u1")).problems() == []


def test_all_that_is_wrong_is_told_at_once():
    wished = wish(
        suite="Trixie!",
        packages=("Python", "--help"),
        excluded=("usr/*",),
        hostname="-red",
        timezone="../etc/shadow",
        locale="de_AT.UTF-8",
        users=(User("Alice"),),
        network="no section",
        nameservers=("dns.example",),
        enabled=("ssh", "a.service"),
        masked=("a.service",),
        size=(1 << 20) + 1,
    )
    found = "\n".join(wished.problems())
    for reason in (
        "suite 'Trixie!'", "package 'Python'", "package '--help'", "exclude 'usr/*'", "hostname '-red'",
        "timezone '../etc/shadow'", "needs the package locales-all", "user 'Alice'", "no section [Match]",
        "nameserver 'dns.example'", "unit 'ssh'", "unit a.service cannot be enabled and masked",
        "is too small", "is not a whole number of MiB",
    ):  # fmt: skip
        assert reason in found
    assert "is not the name of a locale" in "".join(wish(locale="a b", packages=("locales-all",)).problems())


def test_lines_of_apt():
    output = (
        "Reading package lists...\n"
        f"'http://m/pool/b/bash_5.2%2b1_amd64.deb' bash_1%3a5.2+1_amd64.deb 12 SHA256:{'a' * 64}\n"
        f"'http://m/pool/a/apt_3.0_amd64.deb' apt_3.0_amd64.deb 12 SHA256:{'b' * 64}\n"
    )
    found = root.package_lines(output)
    assert [str(deb) for deb in found] == ["apt 3.0", "bash 1:5.2+1"]
    for nothing in ("", "'http://m/apt_3.0_amd64.deb' apt_3.0_amd64.deb 12 MD5Sum:00"):
        with pytest.raises(ValueError, match=r"."):
            root.package_lines(nothing)


def test_what_dpkg_has_installed(packages_tar):
    status = Tree.read(packages_tar(), 0).read_text("var/lib/dpkg/status")
    assert root.installed(status) == {("apt", "3.0"), ("systemd-sysv", "1:257")}


def test_sources():
    assert root.sources("http://m", "trixie", "http://s", True, "/k.gpg") == [
        "deb [signed-by=/k.gpg] http://m trixie main",
        "deb [signed-by=/k.gpg] http://m trixie-updates main",
        "deb [signed-by=/k.gpg] http://s trixie-security main",
    ]
    assert len(root.sources("http://m", "sid", "http://s", True, "")) == 1
    assert len(root.sources("http://m", "trixie", "http://s", False, "")) == 1
    assert "Suites: trixie trixie-updates\n" in root.debian_sources("trixie")
    assert "Suites: trixie-security\n" in root.debian_sources("trixie")
    assert "security" not in root.debian_sources("sid")


@pytest.mark.parametrize(
    ("changes", "name", "cmdline"),
    [
        ({}, "root.cpio.gz", ""),
        ({"agent": "1", "compression": "zstd"}, "root.cpio.zst", ""),
        ({"form": "disk"}, "root.raw", "root=/dev/vda rw rootwait"),
        ({"form": "tar", "compression": "none"}, "root.tar", "rootfstype=virtiofs root=root rw"),
        (
            {"form": "disk", "disk": "qcow2", "agent": "1"},
            "root.qcow2",
            "root=/dev/vda rw rootwait kerf.entrypoint=/usr/lib/mkops/kerf-entrypoint",
        ),
    ],
)
def test_how_a_kernel_starts_from_it(changes, name, cmdline):
    wished = wish(**changes)
    assert (wished.file_name(), wished.cmdline()) == (name, cmdline)
    assert ("kerf-entrypoint" in wished.boot_configuration()) is bool(wished.agent)


def test_nothing_of_the_build_is_left(packages_tar):
    tree = furnished(packages_tar(), wish())
    assert tree.read_text("etc/machine-id") == ""
    assert tree.read_text("etc/hostname") == "localhost\n" and tree.read_text("etc/resolv.conf") == ""
    assert not {"etc/ssh/ssh_host_rsa_key", "etc/apt/sources.list", "var/log/dpkg.log"} & {*tree.entries}
    assert "var/lib/apt/lists/lock" not in tree.entries and "etc/ssh/sshd_config" in tree.entries
    assert b"secret" not in b"".join(tree.read_bytes(one) for one in tree.entries.values())


def test_an_initramfs_has_what_the_kernel_looks_for(packages_tar):
    tree = furnished(packages_tar(), wish())
    assert tree.entries["init"].target == "usr/lib/systemd/systemd"
    assert tree.entries["dev/console"].device == (5, 1)
    assert "etc/fstab" not in tree.entries
    disk = furnished(packages_tar(), wish(form="disk"))
    assert "LABEL=root / ext4" in disk.read_text("etc/fstab")
    assert not {"init", "dev/console"} & {*disk.entries}


def test_users_have_homes_and_keys(packages_tar):
    users = (User("alice", keys=(KEY,), groups=("adm",)), User("root", keys=(KEY,)))
    tree = furnished(packages_tar(), wish(users=users, hostname="red.example"))
    shadow = tree.entries["etc/shadow"]
    assert shadow.mode & 0o7777 == 0o640 and tree.read_text("etc/shadow").count("\n") == 2
    for name in ("home/alice", "home/alice/.profile", "home/alice/.ssh", "home/alice/.ssh/authorized_keys"):
        assert (tree.entries[name].uid, tree.entries[name].gid) == (1000, 1000)
    assert tree.entries["home/alice/.ssh/authorized_keys"].mode & 0o777 == 0o600
    assert tree.read_text("root/.ssh/authorized_keys") == f"{KEY}\n"
    assert tree.read_text("etc/hosts").endswith("127.0.1.1 red.example red\n")


def test_network(packages_tar):
    etc = "etc/systemd/network/10-mkops.network"
    wants = "etc/systemd/system/multi-user.target.wants/systemd-networkd.service"
    assert not {etc, wants} & {*furnished(packages_tar(), wish()).entries}
    tree = furnished(packages_tar(), wish(network="dhcp", nameservers=("192.0.2.7",)))
    assert "DHCP=yes" in tree.read_text(etc) and wants in tree.entries
    assert tree.read_text("etc/resolv.conf") == "nameserver 192.0.2.7\n"
    tree = furnished(
        packages_tar(**{"usr/lib/systemd/systemd-resolved": "x"}), wish(network="[Match]\nName=eth0\n")
    )
    assert tree.read_text(etc) == "[Match]\nName=eth0\n"
    assert tree.entries["etc/resolv.conf"].target.startswith("/run/systemd/resolve/")


@pytest.mark.parametrize("console", root.CONSOLES)
def test_console(packages_tar, console):
    tree = furnished(packages_tar(), wish(console=console))
    wanted = "etc/systemd/system/getty.target.wants/console-getty.service" in tree.entries
    drop_in = tree.read_text("etc/systemd/system/console-getty.service.d/mkops.conf") or ""
    assert (wanted, "--autologin root" in drop_in) == (console != "none", console == "shell")
    # No escape sequence before each line that a command prints.
    assert ("root/.inputrc" in tree.entries) == (console == "shell")


def test_files_of_the_controller(packages_tar, tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/motd").write_text("hello\n")
    (tmp_path / "modules/6.12").mkdir(parents=True)
    (tmp_path / "modules/6.12/modules.dep").write_text("")
    files = root.Files("#!/bin/sh\n", b"\x7fELF", (tmp_path,), (tmp_path / "modules",))
    tree = furnished(packages_tar(), wish(enabled=("ssh.service",), masked=("a.timer",)), files)
    assert tree.read_text("etc/motd") == "hello\n"
    assert "usr/lib/modules/6.12/modules.dep" in tree.entries
    assert tree.entries[root.AGENT].mode & 0o777 == 0o755
    wants = {name.rpartition("/")[2] for name in tree.below("etc/systemd/system/multi-user.target.wants")}
    assert wants == {"kerf-agent.service", "mkops-facts.service", "mkops-ssh-keys.service", "ssh.service"}
    assert tree.entries["etc/systemd/system/a.timer"].target == "/dev/null"


def test_all_that_the_packages_lack_is_told_at_once(packages_tar):
    archive = packages_tar(**{"usr/lib/systemd/systemd": None})
    wished = wish(
        users=(User("alice", groups=("wheel",)),), enabled=("nginx.service",), timezone="Mars/Olympus"
    )
    with pytest.raises(ValueError, match="wheel") as caught:
        furnished(archive, wished)
    assert len(caught.value.args) == 4


def test_a_file_in_the_way(packages_tar, tmp_path):
    (tmp_path / "etc/hostname").mkdir(parents=True)
    (tmp_path / "etc/hostname/x").write_text("")
    with pytest.raises(ValueError, match="/etc/hostname"):
        furnished(packages_tar(), wish(), root.Files(overlays=(tmp_path,)))


def test_what_says_that_a_kernel_is_up_is_written_at_once():
    """A getty that resets the terminal in between would have the line begin with something else."""
    assert "ExecStartPre" not in root.FACTS_UNIT
    assert 'printf "\\n%%s\\n" "$$facts"' in root.FACTS_UNIT
