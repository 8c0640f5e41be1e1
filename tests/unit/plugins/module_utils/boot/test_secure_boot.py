# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images and lists of keys made by the real tools, and both cut at any place."""

import subprocess
import uuid

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.boot import secure_boot

OWNER = "11111111-2222-3333-4444-123456789abc"


def run(directory, *argv):
    return subprocess.run(argv, check=True, capture_output=True, cwd=directory).stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Directory with certificates `own`, `other`, and `leaf` issued by `own`; an image signed by each."""
    directory = tmp_path_factory.mktemp("secure-boot")
    (directory / "image.s").write_text(
        ".globl _start\n.text\n_start: ret\n.data\n.long 1\n.section .reloc\n.long 0,8\n"
    )
    run(directory, "gcc", "-nostdlib", "-shared", "-Wl,-Bsymbolic", "-o", "image.so", "image.s")
    sections = [word for name in (".text", ".data", ".reloc") for word in ("-j", name)]
    run(directory, "objcopy", "-O", "efi-app-x86_64", *sections, "image.so", "image")
    for name in ("own", "other"):
        new = ("-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-subj", f"/CN={name}")
        run(directory, "openssl", "req", "-x509", *new, "-out", f"{name}.pem")
    new = ("-newkey", "rsa:2048", "-nodes", "-keyout", "leaf.key", "-subj", "/CN=leaf", "-out", "leaf.csr")
    run(directory, "openssl", "req", *new)
    issuer = ("-CA", "own.pem", "-CAkey", "own.key", "-set_serial", "7")
    run(directory, "openssl", "x509", "-req", "-in", "leaf.csr", *issuer, "-out", "leaf.pem")
    for name in ("own", "other", "leaf"):
        pair = ("--key", f"{name}.key", "--cert", f"{name}.pem")
        run(directory, "sbsign", *pair, "--output", f"by-{name}", "image")
        run(directory, "openssl", "x509", "-in", f"{name}.pem", "-outform", "DER", "-out", f"{name}.der")
        make_list(directory, "x509", name, f"{name}.der")
    return directory


def make_list(directory, kind, name, data):
    run(directory, "sbsiglist", "--owner", OWNER, "--type", kind, "--output", f"{name}.esl", data)


def read(made, *names):
    return b"".join((made / name).read_bytes() for name in names)


def test_signature(made):
    assert secure_boot.signature(read(made, "image")) == b""
    assert b"own" in secure_boot.signature(read(made, "by-own"))


def test_subject_is_what_openssl_says(made):
    name = secure_boot.subject(read(made, "leaf.der"))
    (made / "name.der").write_bytes(name)
    assert b"leaf" in run(made, "openssl", "asn1parse", "-inform", "DER", "-in", "name.der")
    assert b"own" not in name


def test_lists_of_keys(made):
    listed = list(secure_boot.entries(read(made, "own.esl", "other.esl")))
    assert listed == [(secure_boot.X509, read(made, f"{name}.der")) for name in ("own", "other")]


@pytest.mark.parametrize(
    ("image", "lists", "words"),
    [
        ("image", None, "has no signature"),
        ("image", ("own.esl",), "has no signature"),
        ("by-own", None, ""),
        ("by-own", ("own.esl",), ""),
        ("by-own", ("other.esl", "own.esl"), ""),
        ("by-leaf", ("own.esl",), ""),  # its issuer is there
        ("by-leaf", ("leaf.esl",), ""),
        ("by-own", ("other.esl",), "does not know"),
        ("by-own", ("leaf.esl",), "does not know"),
        ("by-other", ("own.esl", "leaf.esl"), "does not know"),
        ("by-own", (), "does not know"),
    ],
)
def test_fault(made, image, lists, words):
    databases = None if lists is None else [read(made, name) for name in lists]
    found = secure_boot.fault(read(made, image), databases)
    assert words in found
    assert bool(found) == bool(words)


def test_a_list_with_hashes_may_name_the_image(made):
    sha256 = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328").bytes_le
    (made / "hash").write_bytes(bytes(32))
    make_list(made, "sha256", "hash", "hash")
    assert list(secure_boot.entries(read(made, "hash.esl"))) == [(sha256, bytes(32))]
    assert secure_boot.fault(read(made, "by-own"), [read(made, "other.esl"), read(made, "hash.esl")]) == ""


def test_anything_may_be_cut_off(made):
    image, keys, der = (read(made, name) for name in ("by-own", "own.esl", "own.der"))
    for length in range(0, len(der), 3):
        assert secure_boot.subject(der[:length]) in (b"", secure_boot.subject(der))
        assert list(secure_boot.entries(keys[:length])) == []
    for length in range(0, 512, 3):
        assert secure_boot.signature(image[:length]) == b""


def test_an_image_without_a_place_for_signatures(made):
    image = bytearray(read(made, "by-own"))
    pe = int.from_bytes(image[0x3C:0x40], "little")
    count = pe + 24 + 112 - 4
    assert image[count : count + 4] == (16).to_bytes(4, "little")
    image[count : count + 4] = (4).to_bytes(4, "little")
    assert secure_boot.signature(bytes(image)) == b""
