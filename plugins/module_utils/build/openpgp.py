# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""OpenPGP signatures of files and of tags."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..common.command import bytes_of, must, run
from ..common.errors import Failure

# Compressed archives that may be signed as what is in them, as those of kernel.org are.
UNPACKERS = {".xz": "xz", ".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2"}


@contextlib.contextmanager
def binary_keyring(keyring: Path, scratch: Path) -> Iterator[Path]:
    """gpgv reads no ASCII armour."""
    if not keyring.read_bytes().lstrip().startswith(b"-----BEGIN PGP"):
        yield keyring
        return
    plain = scratch / f"keyring-{os.getpid()}.gpg"
    home = scratch / f"gnupg-{os.getpid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    gpg = ("gpg", "--batch", "--yes", "--homedir", home, "--output", plain, "--dearmor", keyring)
    try:
        must(gpg, f"read the keyring {keyring}")
        yield plain
    finally:
        plain.unlink(missing_ok=True)
        shutil.rmtree(home, ignore_errors=True)


def verify_signature(what: str, keyring: Path, signature: Path, data: Path, scratch: Path) -> None:
    """By gpgv, and by nothing but the keys of the keyring."""
    with binary_keyring(keyring, scratch) as keys:
        argv = ("gpgv", "--keyring", keys.absolute(), signature)
        if unpacker := inner(signature, data):
            with bytes_of([unpacker, "-dc", data]) as unpacked:
                done = run((*argv, "-"), stdin=unpacked.stdout)
            broken = unpacked.returncode
        else:
            done = run((*argv, data))
            broken = 0
    if done.rc or broken:
        said = " | ".join(line.removeprefix("gpgv: ") for line in done.stderr.splitlines()[-3:])
        raise Failure(
            f"{what} is not signed by a key of {keyring}: {said}. Add the key, if you trust it",
            done.details(),
        )


def inner(signature: Path, data: Path) -> str:
    """The program that unpacks what was signed; empty when the file itself was."""
    unpacker = UNPACKERS.get(data.suffix, "")
    return unpacker if unpacker and signature.stem == data.stem else ""


def split_tag(text: bytes) -> tuple[bytes, bytes]:
    """What was signed, and the signature, of an annotated tag as `git cat-file tag` prints it."""
    begin = text.find(b"-----BEGIN PGP SIGNATURE-----")
    return (text, b"") if begin < 0 else (text[:begin], text[begin:])
