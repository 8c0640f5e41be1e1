# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.boot.access import Access
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure


@pytest.fixture
def host(tmp_path):
    return Access(str(tmp_path))


def test_every_byte_of_a_file_that_is_written_again_is_kept(host):
    data = b"# Gr\xfc\xdfe\r\nGRUB_DEFAULT=0\n\xff\x00"
    host.at("/custom.cfg").write_bytes(data)
    host.write("/custom.cfg", host.exact("/custom.cfg") + "more")
    assert host.at("/custom.cfg").read_bytes() == data + b"more"
    assert "\ufffd" in host.text("/custom.cfg")


def test_a_file_that_is_not_there_is_empty_one_that_cannot_be_read_is_a_failure(host):
    assert (host.text("/none"), host.exact("/none")) == ("", "")
    host.at("/folder").mkdir()
    assert host.text("/folder") == ""
    with pytest.raises(Failure, match=r"^cannot read /folder: Is a directory$"):
        host.exact("/folder")


@pytest.mark.parametrize("link", ["/etc/real", "../etc/real"])
def test_what_a_link_names_is_written_and_keeps_its_mode(host, link):
    host.write("/etc/real", "before")
    host.at("/etc/real").chmod(0o600)
    host.at("/boot").mkdir()
    host.at("/boot/custom.cfg").symlink_to(link)
    host.write("/boot/custom.cfg", "after")
    assert host.at("/boot/custom.cfg").is_symlink()
    assert host.text("/etc/real") == "after"
    assert host.at("/etc/real").stat().st_mode & 0o777 == 0o600
    assert os.listdir(host.at("/boot")) == ["custom.cfg"]


def test_what_cannot_be_written_is_a_failure_with_its_path(host):
    host.at("/a").symlink_to("b")
    host.at("/b").symlink_to("a")
    with pytest.raises(Failure, match="cannot write /a: too many levels of symbolic links"):
        host.write("/a", "x")
    host.write("/file", "x")
    with pytest.raises(Failure, match=r"^cannot write /file/below: "):
        host.write("/file/below", "x")


def test_what_the_kernel_is_told_goes_into_a_file_that_it_has(host):
    host.at("/live_update").write_text("")
    host.tell("/live_update", "1\n")
    assert host.at("/live_update").read_text() == "1\n"
    with pytest.raises(Failure, match=r"^the kernel does not take 1 in /none: No such file or directory$"):
        host.tell("/none", "1\n")
    assert not host.at("/none").exists()
