# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a kernel image carries a signature, and of a certificate that the firmware or shim knows.

Nothing is verified here: that is what the boot loader does. This finds what it would refuse for sure.
Formats: UEFI 2.10, 32.4.1 (EFI_SIGNATURE_LIST); Microsoft PE/COFF, attribute certificate table; X.690 (DER).
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator

X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072").bytes_le
LIST_HEADER, OWNER = 28, 16


def signature(image: bytes) -> bytes:
    """The table of signatures (PKCS #7) of a kernel image (PE/COFF), empty if it has none."""
    try:
        if image[:2] != b"MZ":
            return b""
        pe = struct.unpack_from("<I", image, 0x3C)[0]
        if image[pe : pe + 4] != b"PE\0\0":
            return b""
        optional = pe + 24
        directories = optional + (112 if struct.unpack_from("<H", image, optional)[0] == 0x20B else 96)
        count = struct.unpack_from("<I", image, directories - 4)[0]
        if count <= 4:
            return b""
        start, size = struct.unpack_from("<II", image, directories + 4 * 8)
        return image[start : start + size]
    except struct.error:
        return b""


def entries(database: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, data) of each entry of a list of keys as db and MokListRT have it, without the attributes.

    What is cut off or makes no sense ends it.
    """
    while len(database) >= LIST_HEADER:
        whole, header, size = struct.unpack_from("<III", database, 16)
        if not LIST_HEADER <= whole <= len(database) or size <= OWNER:
            return
        body = database[LIST_HEADER + header : whole]
        for at in range(0, len(body) - size + 1, size):
            yield database[:16], body[at + OWNER : at + size]
        database = database[whole:]


def _element(der: bytes, at: int) -> tuple[int, int]:
    """Where the content of the element at this place begins and ends."""
    length, start = der[at + 1], at + 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(der[at + 2 : start], "big")
    return start, start + length


def subject(certificate: bytes) -> bytes:
    """The name of whom an X.509 certificate is for, in DER; empty if this is none."""
    try:
        at = _element(certificate, _element(certificate, 0)[0])[0]
        if certificate[at] == 0xA0:  # the version is there
            at = _element(certificate, at)[1]
        for _field in ("serial number", "algorithm", "issuer", "validity"):
            at = _element(certificate, at)[1]
        end = _element(certificate, at)[1]
        return certificate[at:end] if end <= len(certificate) else b""
    except IndexError:
        return b""


def knows(databases: list[bytes], signed: bytes) -> bool:
    """Whether a signature may be one that these lists of keys allow.

    Of a certificate in them, or issued by one: both have the name of that one in the signature. A list
    that has hashes may name the image itself.
    """
    for kind, data in (entry for database in databases for entry in entries(database)):
        if kind != X509:
            return True
        name = subject(data)
        if not name or name in signed:
            return True
    return False


def fault(image: bytes, databases: list[bytes] | None) -> str:
    """Why Secure Boot would not start an image, as `the image of X ...`; empty if it may.

    Without databases only a missing signature is a fault.
    """
    signed = signature(image)
    if not signed:
        return "has no signature; build it with sign of kernel_build"
    if databases is not None and not knows(databases, signed):
        return (
            "is signed by a certificate that the firmware does not know; enrol it in db, or build the kernel "
            "with sign of kernel_build and a certificate that is enrolled"
        )
    return ""
