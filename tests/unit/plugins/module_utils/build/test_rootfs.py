# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Trees of files: what cpio, tar and mke2fs make of what is written."""

from __future__ import annotations

import gzip
import io
import os
import stat
import subprocess
import tarfile

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.build import cpio, rootfs
from ansible_collections.mkops.multikernel.plugins.module_utils.build.rootfs import Entry, Tree

EPOCH = 1735689600
UNIT = "[Service]\nExecStart=/bin/true\n"
UNIT += "[Install]\nWantedBy=multi-user.target sleep.target\nRequiredBy=a.target\n"


def packed(**changes):
    """An archive as mmdebstrap makes it: a merged /usr, a file with two names, devices, attributes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def add(name, kind=tarfile.REGTYPE, data=b"", mode=0o644, **more):
            one = tarfile.TarInfo(name)
            one.type, one.size, one.mode, one.mtime = kind, len(data), mode, changes.get("mtime", EPOCH + 5)
            for key, value in more.items():
                setattr(one, key, value)
            tar.addfile(one, io.BytesIO(data))

        add("./", tarfile.DIRTYPE, mode=0o755)
        add("./usr/", tarfile.DIRTYPE, mode=0o755)
        add("./usr/bin/", tarfile.DIRTYPE, mode=0o755)
        add("./usr/bin/perl5", data=b"perl", mode=0o755, uid=3, gid=4, uname="bin", gname="adm")
        add("./usr/bin/perl", tarfile.LNKTYPE, linkname="./usr/bin/perl5", mode=0o755)
        add("./usr/bin/a-perl", tarfile.LNKTYPE, linkname="./usr/bin/perl5", mode=0o755)
        add("./bin", tarfile.SYMTYPE, linkname="usr/bin", mode=0o777)
        add("./usr/bin/ping", data=b"ping", pax_headers={"SCHILY.xattr.security.capability": "cap"})
        add("./dev/", tarfile.DIRTYPE, mode=0o755)
        add("./dev/console", tarfile.CHRTYPE, devmajor=5, devminor=1, mode=0o600)
        add("./run/pipe", tarfile.FIFOTYPE)
    out.seek(0)
    return out


@pytest.fixture
def tree():
    return Tree.read(packed(), EPOCH)


def listed(tmp_path, data):
    """What GNU cpio unpacks."""
    (tmp_path / "out").mkdir()
    subprocess.run(
        ["cpio", "-id", "--no-absolute-filenames", "--quiet"], input=data, check=True, cwd=tmp_path / "out"
    )
    return tmp_path / "out"


def written(tree, way):
    out = io.BytesIO()
    getattr(tree, way)(out)
    return out.getvalue()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make devices")
def test_cpio_is_what_was_read(tree, tmp_path):
    top = listed(tmp_path, written(tree, "write_cpio"))
    assert (top / "usr/bin/perl5").read_bytes() == b"perl"
    found = {name: (top / "usr/bin" / name).stat() for name in ("perl5", "perl", "a-perl")}
    assert len({one.st_ino for one in found.values()}) == 1 and found["perl"].st_nlink == 3
    assert (found["perl5"].st_uid, found["perl5"].st_gid, found["perl5"].st_mode & 0o777) == (3, 4, 0o755)
    assert os.readlink(top / "bin") == "usr/bin"
    console = (top / "dev/console").stat()
    assert stat.S_ISCHR(console.st_mode) and (os.major(console.st_rdev), os.minor(console.st_rdev)) == (5, 1)
    assert stat.S_ISFIFO((top / "run/pipe").stat().st_mode)


def test_the_order_and_the_time_of_what_was_read_are_of_no_account(tree):
    other = Tree.read(packed(mtime=EPOCH + 99), EPOCH)
    other.entries = dict(reversed(other.entries.items()))
    for way in ("write_cpio", "write_tar"):
        assert written(tree, way) == written(other, way)


def test_tar_is_what_was_read(tree):
    with tarfile.open(fileobj=io.BytesIO(written(tree, "write_tar"))) as tar:
        names = tar.getnames()
        assert names.index("./usr") < names.index("./usr/bin") < names.index("./usr/bin/a-perl")
        assert names == sorted(names, key=lambda name: name.split("/"))
        assert tar.extractfile("./usr/bin/perl").read() == b"perl"
        assert [tar.getmember(f"./usr/bin/{name}").islnk() for name in ("a-perl", "perl", "perl5")] == [
            False, True, True,
        ]  # fmt: skip
        assert tar.getmember("./usr/bin/ping").pax_headers["SCHILY.xattr.security.capability"] == "cap"
        assert {tar.getmember(name).mtime for name in names} == {EPOCH}
        assert {tar.getmember(name).uname for name in names} == {""}
    # What was written can be read, and is the same again.
    again = Tree.read(io.BytesIO(written(tree, "write_tar")), EPOCH)
    assert written(again, "write_tar") == written(tree, "write_tar")


def test_paths_are_followed_as_the_kernel_does(tree):
    tree.put("etc/alt", rootfs.link("/usr/bin/perl5"))
    tree.put("bin/sh", rootfs.link("perl"))
    assert "usr/bin/sh" in tree.entries
    assert tree.resolve("/bin/../bin/x") == "usr/bin/x"
    assert tree.read_text("etc/alt") == tree.read_text("bin/sh") == "perl"
    assert tree.read_text("usr") is None and tree.read_text("nowhere/at/all") is None
    tree.put("loop", rootfs.link("loop"))
    assert tree.find("loop") is None
    with pytest.raises(ValueError, match="too many links"):
        tree.resolve("loop/x")


def test_what_is_put_replaces_what_was_there(tree):
    tree.put("usr/bin/perl5", rootfs.text_file("other"))
    # The other names of the file have what it had.
    assert (tree.read_text("usr/bin/perl"), tree.read_text("usr/bin/a-perl")) == ("perl", "perl")
    assert tree.read_text("usr/bin/perl5") == "other"
    tree.drop(["usr/bin/perl", "not/there"])
    assert tree.read_text("usr/bin/a-perl") == "perl"
    with pytest.raises(ValueError, match=r"/usr/bin is not|only one of the two is a directory"):
        tree.put("usr/bin", rootfs.text_file(""))
    with pytest.raises(ValueError, match="/usr/bin/ping is not a directory"):
        tree.put("usr/bin/ping/x", rootfs.text_file(""))


def test_directories_of_this_machine(tree, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/tool").write_text("tool")
    (tmp_path / "bin/tool").chmod(0o700)
    (tmp_path / "etc/deep").mkdir(parents=True)
    (tmp_path / "etc/secret").write_text("x")
    (tmp_path / "etc/secret").chmod(0o600)
    (tmp_path / "etc/link").symlink_to("secret")
    tree.add_directory(tmp_path)
    assert tree.entries["usr/bin/tool"].mode == stat.S_IFREG | 0o755
    assert tree.entries["etc/secret"].mode == stat.S_IFREG | 0o644
    assert tree.entries["etc/link"].target == "secret"
    assert tree.entries["etc/deep"].is_kind(stat.S_IFDIR)
    # The link that is there is not made a directory.
    assert tree.entries["bin"].is_kind(stat.S_IFLNK)
    os.mkfifo(tmp_path / "etc/pipe")
    with pytest.raises(ValueError, match="etc/pipe is neither"):
        tree.add_directory(tmp_path)


def test_units_are_enabled_as_they_ask(tree):
    folder = "usr/lib/systemd/system"
    for name in ("one.service", "many@.service"):
        tree.put(f"{folder}/{name}", rootfs.text_file(UNIT))
    tree.put("etc/systemd/system/static.service", rootfs.text_file("[Service]\nExecStart=/bin/true\n"))
    tree.enable("one.service")
    tree.enable("many@x.service")
    etc = "etc/systemd/system"
    assert tree.entries[f"{etc}/multi-user.target.wants/one.service"].target == f"/{folder}/one.service"
    assert f"{etc}/sleep.target.wants/one.service" in tree.entries
    assert f"{etc}/a.target.requires/one.service" in tree.entries
    assert tree.entries[f"{etc}/sleep.target.wants/many@x.service"].target == f"/{folder}/many@.service"
    with pytest.raises(ValueError, match=r"no unit none.service"):
        tree.enable("none.service")
    with pytest.raises(ValueError, match=r"static.service cannot be enabled"):
        tree.enable("static.service")
    tree.mask("one.service")
    assert tree.entries[f"{etc}/one.service"].target == "/dev/null"


def test_an_archive_that_is_cut_off(tree):
    tree.archive = io.BytesIO(b"")
    with pytest.raises(OSError, match="cut off"):
        written(tree, "write_cpio")


def test_space_is_counted_in_blocks(tree):
    assert (
        Tree(io.BytesIO(), {"a": Entry(stat.S_IFREG, data=b"x"), "b": rootfs.directory()}).contents() == 12288
    )
    assert tree.contents() > 0


@pytest.mark.parametrize("length", range(8))
def test_boot_configuration_is_found_from_the_end(length):
    image = gzip.compress(b"") + bytes(length)
    image += cpio.boot_configuration(len(image), "kernel.a = b\n")
    assert image.endswith(b"#BOOTCONFIG\n")
    at = len(image) - 12 - 8
    size, total = (
        int.from_bytes(image[at : at + 4], "little"),
        int.from_bytes(image[at + 4 : at + 8], "little"),
    )
    assert at % 4 == 0 and sum(image[at - size : at]) == total
    assert image[at - size : at].rstrip(b"\0") == b"kernel.a = b\n"
