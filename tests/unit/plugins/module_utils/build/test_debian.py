# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import email.utils
import functools
import hashlib
import os
import subprocess
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

PACKAGES = "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: x\nFilename: x.deb\n"
PACKAGES += f"Size: 1\nSHA256: {'0' * 64}\n"


def repository(directory: Path, origin: str, label: str) -> str:
    """A repository that apt takes, with one package; returns its address."""
    suite = directory / "dists/trixie"
    listing = suite / "main/binary-amd64/Packages"
    listing.parent.mkdir(parents=True)
    listing.write_text(PACKAGES)
    digest = hashlib.sha256(PACKAGES.encode()).hexdigest()
    date = email.utils.formatdate(usegmt=True)
    (suite / "Release").write_text(
        f"Origin: {origin}\nLabel: {label}\nSuite: stable\nCodename: trixie\nDate: {date}\n"
        "Architectures: amd64\nComponents: main\n"
        f"SHA256:\n {digest} {len(PACKAGES)} main/binary-amd64/Packages\n"
    )
    return f"file:{directory}"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """The package sources of a machine of its own, for the real apt; returns what sets and fetches them."""
    apt = tmp_path / "apt"
    for part in ("lists/partial", "cache/archives/partial", "parts"):
        (apt / part).mkdir(parents=True)
    settings = [
        f'Dir::Etc::SourceList "{apt}/sources.list";', f'Dir::Etc::SourceParts "{apt}/parts";',
        f'Dir::State::Lists "{apt}/lists";', f'Dir::Cache "{apt}/cache";',
        'APT::Architecture "amd64";', 'APT::Sandbox::User "root";', 'Acquire::Retries "0";',
    ]  # fmt: skip
    (apt / "apt.conf").write_text("\n".join(settings))
    monkeypatch.setenv("APT_CONFIG", str(apt / "apt.conf"))

    def have(*addresses: str, update: bool = True) -> None:
        lines = [f"deb [trusted=yes] {address} trixie main\n" for address in addresses]
        (apt / "sources.list").write_text("".join(lines))
        if update:
            subprocess.run(["apt-get", "-q", "update"], check=True, capture_output=True)

    return have


SCRIPT = Path(__file__).parents[5] / "roles/lab/files/debian-mirror"


def by_script() -> str:
    """As the role lab and what installs the build's tools ask."""
    done = subprocess.run([SCRIPT], check=False, capture_output=True, text=True)
    if done.returncode:
        raise Failure(done.stderr)
    return done.stdout.strip().rstrip("/")


@pytest.mark.parametrize("mirror", [machine_mirror, by_script])
@pytest.mark.parametrize("update", [True, False], ids=["lists", "no lists"])
def test_the_mirror_of_a_machine_says_that_it_is_debian(machine, tmp_path, update, mirror):
    other = repository(tmp_path / "stable/debian", "example", "example")
    security = repository(tmp_path / "debian-security", "Debian", "Debian-Security")
    backports = repository(tmp_path / "more/debian", "Debian Backports", "Debian Backports")
    debian_itself = repository(tmp_path / "anything", "Debian", "Debian")
    machine(other, security, backports, debian_itself, update=update)
    assert mirror() == debian_itself
    machine(debian_itself, other, update=update)
    assert mirror() == debian_itself


DISC = "cdrom:[Debian GNU/Linux 13.0.0 _Trixie_ - DVD Binary-1 20250809-11:20]/"
ITS_LISTS = "Debian%20GNU_Linux%2013.0.0%20%5fTrixie%5f%20-%20DVD%20Binary-1%2020250809-11:20_dists_trixie"


@pytest.mark.parametrize("mirror", [machine_mirror, by_script])
@pytest.mark.parametrize("update", [True, False], ids=["lists", "no lists"])
def test_the_disc_of_an_installation_is_no_mirror(machine, tmp_path, update, mirror):
    debian_itself = repository(tmp_path / "debian", "Debian", "Debian")
    machine(debian_itself, update=update)
    lists = tmp_path / "apt/lists"
    for path in list(lists.glob("*_dists_trixie_*")):  # as apt-cdrom would leave them
        (lists / f"{ITS_LISTS}{path.name.partition('_dists_trixie')[2]}").write_bytes(path.read_bytes())
    machine(DISC, debian_itself, update=False)
    assert mirror() == debian_itself


@pytest.mark.parametrize("mirror", [machine_mirror, by_script])
@pytest.mark.parametrize(
    "fields",
    ["Origin:Debian\nLabel:Debian", "origin: Debian \nLABEL:\tDebian\t", "Origin: Debian\r\nLabel: Debian\r"],
)
def test_a_release_file_in_other_hands(machine, tmp_path, fields, mirror):
    address = repository(tmp_path / "debian", "Debian", "Debian")
    release = tmp_path / "debian/dists/trixie/Release"
    release.write_text(release.read_text().replace("Origin: Debian\nLabel: Debian", fields))
    machine(address, update=False)
    assert mirror() == address


@pytest.mark.parametrize(
    "text",
    [
        "Origin: Example\nDescription: x\fOrigin: Debian\fLabel: Debian\n",
        "Origin: Example\nDescription: x\u2028Origin: Debian\u2028Label: Debian\n",
        "Origin: Example\nLabel: Example\nDescription: like\n Origin: Debian\n Label: Debian\n",
        "Origin: Debian\nLabel: Debian\n-----BEGIN PGP SIGNED MESSAGE-----\n\nOrigin: Example\n",
        "-----BEGIN PGP SIGNED MESSAGE-----\n\nOrigin: Example\n-----BEGIN PGP SIGNATURE-----\n"
        "Origin: Debian\nLabel: Debian\n",
        "Origin: Debian Ports\nLabel: Debian\n",
        "",
    ],
)
def test_a_release_file_that_only_looks_like_debian_s(machine, tmp_path, text):
    address = repository(tmp_path / "debian", "Example", "Example")
    (tmp_path / "debian/dists/trixie/Release").write_text(text)
    machine(address, update=False)
    with pytest.raises(Failure, match="no mirror was given"):
        machine_mirror()


@pytest.mark.parametrize("update", [True, False], ids=["lists", "no lists"])
def test_a_machine_without_a_debian_mirror(machine, tmp_path, update):
    other = repository(tmp_path / "stable/debian", "example", "example")
    machine(other, "http://alice:secret@127.0.0.1:9/debian", update=update)
    with pytest.raises(
        Failure, match=r"no mirror was given.*asked: file:.*stable/debian/, http://\*\*\*@127"
    ) as error:
        machine_mirror()
    assert "secret" not in f"{error.value}{error.value.details}"


def test_a_machine_without_a_debian_mirror_by_script(machine, tmp_path):
    machine(repository(tmp_path / "stable/debian", "example", "example"))
    with pytest.raises(Failure, match="none of this machine's package sources is a Debian mirror"):
        by_script()


def test_a_password_of_a_mirror_is_nowhere_to_be_read(machine, tmp_path):
    archive = Archive(tmp_path, "http://alice:secret@127.0.0.1:9/debian", "trixie", "/keys.gpg")
    sources = archive._state / "sources.list"
    sources.parent.mkdir()
    sources.write_text("deb [signed-by=/keys.gpg] http://alice:secret@127.0.0.1:9/debian trixie main\n")
    sources.chmod(0o644)
    with pytest.raises(Failure, match=r"cannot fetch the package lists of http://\*\*\*@127") as caught:
        archive.refresh(pytest.fail, 60)
    assert "secret" not in f"{caught.value}{caught.value.details}"
    readable = [path for path in tmp_path.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]
    assert machine and [(path, path.stat().st_mode & 0o777) for path in readable] == [(sources, 0o600)]


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
    # A power cut has left it empty, or half.
    (answer,) = archive._state.glob("resolved-*")
    for number, text in enumerate(("", "[", "[1]", "{}", "1"), 2):
        times = answer.stat().st_mtime_ns
        answer.write_text(text)
        os.utime(answer, ns=(times, times))
        assert resolve(60).version == f"1-{number}"
    asked[:] = [()]
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

    def fake(argv, *_args, **_kwargs):
        called.append(argv)
        return Done(tuple(argv), 0)

    monkeypatch.setattr(debian, "must", fake)
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
