# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Signing a kernel image and its modules for Secure Boot. The key gets into no result and no message."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..common.command import must
from ..common.errors import Failure

# What follows the signature of a module, and of a kernel that is to be spawned: struct module_signature of
# include/linux/module_signature.h (algorithm and hash are in the PKCS#7 message), and the marker.
PKEY_ID_PKCS7 = 2
MODULE_SIGNATURE = struct.Struct(">BBBBB3xI")
MARKER = b"~Module signature appended~\n"

# Tool and the Debian package that brings it.
TOOLS = {"sbsign": "sbsigntool", "sbverify": "sbsigntool", "openssl": "openssl"}


@dataclass(frozen=True)
class Signer:
    """A private key without a passphrase and its certificate, both PEM files."""

    key: Path
    certificate: Path
    # Where the kernel's build looks for the key of the modules, from the tree.
    module_key: str = "certs/mkops-signing.pem"

    def problems(self) -> list[str]:
        """Every reason why they cannot be used."""
        found = []
        for name, path in (("key", self.key), ("certificate", self.certificate)):
            if not path.is_file():
                found.append(f"sign.{name} {path} is not a file on the build host")
        if found:
            return found
        mode = self.key.stat().st_mode & 0o777
        if mode & 0o077:
            found.append(f"sign.key {self.key} has mode {mode:04o}, so others can read it: set mode 0600")
        public = []
        for name, path, tool, options in (
            ("key", self.key, "pkey", ("-passin", "pass:", "-pubout")),
            ("certificate", self.certificate, "x509", ("-noout", "-pubkey")),
        ):
            try:
                public.append(must(("openssl", tool, "-in", path, *options), f"read the {name}").stdout)
            except Failure:
                found.append(
                    f"sign.{name} {path} cannot be read: it has to be a PEM file without a passphrase"
                )
        if len(public) == 2 and public[0] != public[1]:
            found.append(f"sign.certificate {self.certificate} does not belong to sign.key {self.key}")
        return found

    def fingerprint(self) -> str:
        """SHA-256 of the certificate, in hexadecimal."""
        argv = ("openssl", "x509", "-in", self.certificate, "-noout", "-fingerprint", "-sha256")
        return must(argv, "read the certificate").stdout.rpartition("=")[2].strip().replace(":", "").lower()

    def sign(self, image: Path) -> None:
        """The image becomes the signed one. It is to have no signature yet: sbsign would add a second one."""
        signed = image.with_name(f"{image.name}.signed")
        argv = ("sbsign", "--key", self.key, "--cert", self.certificate, "--output", signed)
        must((*argv, image), f"sign {image.name}")
        signed.replace(image)

    def append(self, vmlinux: Path) -> None:
        """Append a signature as scripts/sign-file does, for hosts that are locked down."""
        message = vmlinux.with_name(f"{vmlinux.name}.p7s")
        kind = ("-binary", "-noattr", "-nocerts", "-md", "sha256", "-outform", "DER")
        names = ("-signer", self.certificate, "-inkey", self.key, "-in", vmlinux, "-out", message)
        must(("openssl", "cms", "-sign", *kind, *names), f"sign {vmlinux.name}")
        signature = message.read_bytes()
        message.unlink()
        described = MODULE_SIGNATURE.pack(0, 0, PKEY_ID_PKCS7, 0, 0, len(signature))
        with vmlinux.open("ab") as file:
            file.write(signature + described + MARKER)

    def verify(self, image: Path) -> None:
        argv = ("sbverify", "--cert", self.certificate, image)
        must(argv, f"find the signature of {self.certificate} in {image.name}")

    @contextlib.contextmanager
    def for_modules(self, tree: Path, config: Mapping[str, str]) -> Iterator[None]:
        """The key lies in the tree while make runs, if there are modules to sign."""
        if config.get("MODULES") != "y":
            yield
            return
        path = tree / self.module_key
        path.unlink(missing_ok=True)
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(self.key.read_bytes() + b"\n" + self.certificate.read_bytes())
            yield
        finally:
            path.unlink(missing_ok=True)
