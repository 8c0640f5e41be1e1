# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.build import debian
from ansible_collections.mkops.multikernel.plugins.module_utils.build.debian import (
    Archive,
    deb_version,
    local_source,
    machine_mirror,
    parse_uri_line,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.build.key import Source
from ansible_collections.mkops.multikernel.plugins.module_utils.common.command import Done
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure


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
        assert machine_mirror() == mirror
    else:
        with pytest.raises(Failure, match="no mirror"):
            machine_mirror()


def test_uri_line_of_apt():
    digest = "7" * 64
    output = (
        f"'http://m/debian/pool/main/l/linux/linux-source-6.12_6.12.107-1_all.deb' "
        f"linux-source-6.12_6.12.107-1_all.deb 152778344 SHA256:{digest}\n"
    )
    assert parse_uri_line(output) == ("linux-source-6.12_6.12.107-1_all.deb", digest)


@pytest.mark.parametrize("output", ["", "'http://x' x.deb 3 MD5Sum:abc\n"])
def test_uri_line_without_a_strong_checksum(output):
    with pytest.raises(ValueError, match=r"."):
        parse_uri_line(output)


@pytest.mark.parametrize(
    ("name", "version"), [("linux-source_6.12.107-1_all.deb", "6.12.107-1"), ("a_1%3a2-3_all.deb", "1:2-3")]
)
def test_deb_version(name, version):
    assert deb_version(name) == version


def test_archive_resolves_a_pinned_version_without_network(tmp_path):
    (tmp_path / "p_1%3a2-3_all.deb.sha256").write_text("ab\n")
    archive = Archive(tmp_path, "http://nowhere.invalid", "trixie", "/keys")
    assert archive.resolve("p", "1:2-3", lambda text: None, 0) == Source("p_1%3a2-3_all.deb", "ab", "1:2-3")


def test_archive_asks_apt_once_per_refresh(tmp_path, monkeypatch):
    archive = Archive(tmp_path, "http://m", "trixie", "/k")
    asked = []

    def apt(self, *args, **_kwargs):
        if args[0] == "update":
            self._state.mkdir(parents=True, exist_ok=True)
            return ""
        asked.append(args)
        return f"'http://m/p_1-{len(asked)}_all.deb' p_1-{len(asked)}_all.deb 9 SHA256:{'a' * 64}\n"

    monkeypatch.setattr(debian.Archive, "apt", apt)
    resolve = functools.partial(archive.resolve, "p", None, lambda text: None)
    assert resolve(60).version == resolve(60).version == "1-1"
    assert len(asked) == 1
    # Fetched anew, the lists may have a newer version.
    os.utime(archive._state / "refreshed", (1, 1))
    assert resolve(60).version == "1-2"
    with pytest.raises(Failure, match=r"no source package q=2 in http://m trixie"):
        monkeypatch.setattr(debian.Archive, "apt", lambda *_args, **_kwargs: "")
        archive.resolve("q", "2", lambda text: None, 60)


def test_archive_refuses_a_changed_package(tmp_path):
    (tmp_path / "p_1_all.deb").write_text("tampered")
    archive = Archive(tmp_path, "http://nowhere.invalid", "trixie", "/keys")
    with pytest.raises(Failure, match="remove it and try again"):
        archive.fetch(Source("p_1_all.deb", "00" * 32, "1"), "p")


def test_archive_uses_no_configuration_of_the_machine(tmp_path, monkeypatch):
    called = []

    def fake(argv, **_kwargs):
        called.append(argv)
        return Done(tuple(argv), 0)

    monkeypatch.setattr(debian, "run", fake)
    Archive(tmp_path, "http://m/debian", "trixie", "/keys.gpg").apt("update")
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
    archive = Archive(tmp_path, "http://m", "trixie", "/k")
    calls = []

    def fail(self, *args, **_kwargs):
        calls.append(args)
        raise Failure("no route")

    monkeypatch.setattr(debian.Archive, "apt", fail)
    warnings = []
    with pytest.raises(Failure):
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
    assert local_source(path, f"sha256:{digest.upper()}") == Source("linux.tar.xz", digest)
    with pytest.raises(Failure, match=digest):
        local_source(path, "sha256:" + "0" * 64)
