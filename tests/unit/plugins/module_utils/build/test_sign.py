# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

import subprocess

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.build import sign as _kernel_sign


def make_pair(directory, name):
    key, certificate = directory / f"{name}.key", directory / f"{name}.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"]
    subprocess.run([*argv, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    key.chmod(0o600)
    return _kernel_sign.Signer(key, certificate)


@pytest.fixture(scope="module")
def signer(tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("keys"), "one")


def test_a_pair(signer):
    assert signer.problems() == []
    assert len(bytes.fromhex(signer.fingerprint())) == 32


def test_files_that_are_not_there(tmp_path):
    found = _kernel_sign.Signer(tmp_path / "a", tmp_path / "b").problems()
    assert found == [
        f"sign.key {tmp_path}/a is not a file on the build host",
        f"sign.certificate {tmp_path}/b is not a file on the build host",
    ]


def test_everything_wrong_is_told_at_once(signer, tmp_path):
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    key.write_text("no key")
    key.chmod(0o640)
    certificate.write_text("none")
    found = _kernel_sign.Signer(key, certificate).problems()
    assert [part in text for part, text in zip(("mode 0640", "PEM", "PEM"), found, strict=True)] == [True] * 3


def test_a_key_with_a_passphrase(signer, tmp_path):
    locked = tmp_path / "locked.key"
    argv = ["openssl", "pkey", "-in", signer.key, "-aes256", "-passout", "pass:secret", "-out", locked]
    subprocess.run(argv, check=True, capture_output=True)
    locked.chmod(0o600)
    (reason,) = _kernel_sign.Signer(locked, signer.certificate).problems()
    assert "without a passphrase" in reason


def test_the_certificate_of_another_key(signer, tmp_path):
    other = make_pair(tmp_path, "two")
    (reason,) = _kernel_sign.Signer(signer.key, other.certificate).problems()
    assert "does not belong to sign.key" in reason


def test_a_signature_is_appended(signer, tmp_path):
    vmlinux, message = tmp_path / "vmlinux", tmp_path / "message"
    vmlinux.write_bytes(b"\x7fELF\n\r\n" * 1000)
    content = vmlinux.read_bytes()
    signer.append(vmlinux)
    signed = vmlinux.read_bytes()
    assert signed.startswith(content)
    assert signed.endswith(b"~Module signature appended~\n")
    # struct module_signature: nothing but the kind, PKCS#7, and the length
    described = signed[-40:-28]
    assert described[:8] == bytes([0, 0, 2, 0, 0, 0, 0, 0])
    size = int.from_bytes(described[8:], "big")
    assert len(signed) == len(content) + size + 40
    message.write_bytes(signed[-40 - size : -40])
    original = tmp_path / "original"
    original.write_bytes(content)
    trust = ["-certfile", signer.certificate, "-CAfile", signer.certificate, "-purpose", "any"]
    names = ["-in", message, "-content", original, "-out", tmp_path / "out"]
    argv = ["openssl", "cms", "-verify", "-binary", "-inform", "DER", *trust, *names]
    subprocess.run(argv, check=True, capture_output=True)
    assert not list(tmp_path.glob("*.p7s"))


def test_the_key_of_the_modules_is_there_only_meanwhile(signer, tmp_path):
    (tmp_path / "certs").mkdir()
    path = tmp_path / signer.module_key
    with pytest.raises(ZeroDivisionError), signer.for_modules(tmp_path, {"MODULES": "y"}):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.read_bytes().count(b"-----BEGIN") == 2
        raise ZeroDivisionError
    assert not path.exists()
    with signer.for_modules(tmp_path, {}):
        assert not path.exists()
