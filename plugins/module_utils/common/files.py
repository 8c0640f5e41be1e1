# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files: written as a whole or not at all, and told apart by their SHA-256."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20  # bytes
_SHORT = 64 << 20  # bytes, which Python itself hashes in a third of a second


# The same ones over and over, in one run.
@functools.lru_cache(maxsize=4096)
def below(root: str, path: str) -> Path:
    """Where a path of a host is, whose root is there."""
    return Path(root, path.lstrip("/"))


def write_file(path: Path, content: str | bytes, mode: int = 0o644, sync: bool = True) -> None:
    """Replace a file by one that has all of the content; whatever happens meanwhile, it is one of the two.

    mode: of the file, whatever the umask says. sync: it is on the disk when this returns, so that a power cut
    right after does not undo it. A link is replaced, not followed. Raises OSError and leaves nothing behind.
    """
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".mkops", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        _chmod(temporary, mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        _sync_directory(path.parent)


def _chmod(path: Path, mode: int) -> None:
    try:
        path.chmod(mode)
    except PermissionError:
        # A FAT file system, such as the EFI system partition, has no modes.
        if os.geteuid() != 0:
            raise


def _sync_directory(directory: Path) -> None:
    """The name of a file is data of its directory."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot do it
            raise
    finally:
        os.close(descriptor)


def read_text(path: Path) -> str:
    """A text file of a user, whatever bytes are in it: those that are no UTF-8 become surrogates, which
    write_file() turns back. Raises OSError.
    """
    return path.read_bytes().decode("utf-8", "surrogateescape")


def parse_json(data: str | bytes) -> Any:
    """What a text in JSON says. Raises ValueError for any other, and for one nested too deeply to be read."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_record(path: Path, **fields: type) -> dict[str, Any] | None:
    """What a JSON file of ours says; None if it is not there, damaged, or without one of these fields."""
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or not all(_is(found.get(name), kind) for name, kind in fields.items()):
        return None
    return found


def _is(value: Any, kind: type) -> bool:
    """True is a number in Python, and none in JSON."""
    return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)


def why_not(error: OSError | ValueError) -> str:
    """Why a file cannot be read. Python's ValueError is about a NUL, which no file has in its name."""
    return (error.strerror or str(error)) if isinstance(error, OSError) else "there is a NUL in its name"


def native(text: str) -> Path:
    """A path as a user has written it: names of files are UTF-8, whatever locale a host runs modules in."""
    return Path(os.fsdecode(encoded(text)))


def encoded(text: str) -> bytes:
    """UTF-8, whatever is in the text."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a character, which no file has in its name
        return text.encode("utf-8", "surrogatepass")


def text_of(path: Path) -> str:
    """The reverse: a path as a user would write it, for messages, results and arguments of programs."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits. Raises OSError."""
    import hashlib

    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sha256(data: str | bytes) -> str:
    """The SHA-256 of bytes, or of text as UTF-8, in hexadecimal digits."""
    data = data.encode() if isinstance(data, str) else data
    return str(_hasher(len(data))(data).hexdigest())


def _hasher(size: int) -> Any:
    """Python's own for all but large images: hashlib loads OpenSSL, which is faster, and 4 MiB that stay."""
    for name in ("_sha2", "_sha256") if size < _SHORT else ():
        with contextlib.suppress(ImportError, AttributeError):
            return importlib.import_module(name).sha256
    import hashlib

    return hashlib.sha256


def remove(path: Path) -> bool:
    """Remove a file if it is there; says whether it was."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
        return True
    return False
