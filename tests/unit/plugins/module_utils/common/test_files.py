# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.common import files


def test_a_file_is_written_whole_with_its_mode(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o666)
    files.write_file(path, "new\n", 0o600)
    assert path.read_text() == "new\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    path.write_text("old")

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((files.os, "fsync") if call == "fsync" else (files.Path, "replace")), full)
    with pytest.raises(OSError, match="No space"):
        files.write_file(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_without_modes(tmp_path, monkeypatch):
    def denied(*_args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(files.Path, "chmod", denied)
    monkeypatch.setattr(files.os, "geteuid", lambda: 0)
    files.write_file(tmp_path / "file", b"bytes", 0o644)
    assert (tmp_path / "file").read_bytes() == b"bytes"
    monkeypatch.setattr(files.os, "geteuid", lambda: 1000)
    with pytest.raises(PermissionError):
        files.write_file(tmp_path / "file", b"other")


@pytest.mark.parametrize("number", [22, 95])
def test_a_directory_that_cannot_be_synced(tmp_path, monkeypatch, number):
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", fsync)
    files.write_file(tmp_path / "file", "x")
    assert (tmp_path / "file").read_text() == "x"


def test_any_bytes_are_text_and_come_back(tmp_path):
    (tmp_path / "a").write_bytes(b"caf\xe9 \xff\n")
    files.write_file(tmp_path / "b", files.read_text(tmp_path / "a"))
    assert (tmp_path / "b").read_bytes() == b"caf\xe9 \xff\n"


def test_hashes(tmp_path):
    data = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(data)
    wanted = hashlib.sha256(data).hexdigest()
    assert files.sha256_file(tmp_path / "file") == files.sha256(data) == wanted
    assert files.sha256("é") == files.sha256("é".encode()) == hashlib.sha256("é".encode()).hexdigest()


def test_a_process_that_stays_does_not_have_openssl_for_a_short_hash():
    code = f"""if True:
        import sys
        from {files.__package__.rpartition(".")[0]}.program import change, record
        from {files.__name__} import sha256
        sha256("a record")
        sys.exit("_hashlib" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_record_has_what_it_should(tmp_path):
    path = tmp_path / "a.json"
    assert files.read_record(path, a=int) is None
    path.write_text('{"a": 1, "b": true}')
    assert files.read_record(path, a=int) == {"a": 1, "b": True}
    assert files.read_record(path, b=int) is None
    assert files.read_record(path, c=str) is None


def test_remove(tmp_path):
    (tmp_path / "file").touch()
    assert files.remove(tmp_path / "file")
    assert not files.remove(tmp_path / "file")


def test_a_directory_that_was_not_synced_is_told(tmp_path, monkeypatch):
    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        files.write_file(tmp_path / "file", "x")


def test_half_a_character_is_no_traceback():
    assert files.encoded("a\ud800ü") == b"a\xed\xa0\x80\xc3\xbc"
    assert not files.native("/a\ud800").exists()


def test_where_a_path_of_a_host_is():
    assert str(files.below("/srv/root", "/etc/fstab")) == "/srv/root/etc/fstab"
    assert str(files.below("/", "//etc")) == "/etc"
