# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Make the program mkops of a host out of the collection's engine.

make_program.py COLLECTION DIRECTORY    prints where it is, and its version, as JSON

It is one file that Python runs as it is (a zip archive with a first line for the kernel). The same sources
give the same bytes on every controller: sorted entries, one time for all, not compressed, nothing compiled.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sys
import tempfile
import zipfile
from pathlib import Path

ROOMS = ("common", "devices", "divide", "program")
# -I: no variable, no directory of somebody's may bring a module of its own into what runs as root.
FIRST_LINE = b"#!/usr/bin/python3 -I\n"
_TIME = (1980, 1, 1, 0, 0, 0)  # the first that a zip archive can have
_MAIN = """\
import sys

from mkops.program.main import main

sys.exit(main(version="{version}"))
"""


def version_of(collection: Path) -> str:
    """As it is installed, or as it is developed."""
    manifest = collection / "MANIFEST.json"
    if manifest.is_file():
        return json.loads(manifest.read_text(encoding="utf-8"))["collection_info"]["version"]
    return re.search(r"^version: *(\S+)", (collection / "galaxy.yml").read_text(encoding="utf-8"), re.M)[1]


def program(collection: Path) -> bytes:
    """The whole file."""
    engine = collection / "plugins/module_utils"
    entries = {
        "__main__.py": _MAIN.format(version=version_of(collection)).encode(),
        "mkops/__init__.py": b"",
    }
    for room in ROOMS:
        for path in (engine / room).glob("*.py"):
            entries[f"mkops/{room}/{path.name}"] = path.read_bytes()
    made = io.BytesIO()
    made.write(FIRST_LINE)
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(entries):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.create_system = 3  # Unix, whatever the controller is
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, entries[name])
    return made.getvalue()


def keep(content: bytes, directory: Path, version: str) -> Path:
    """By a name that tells it from any other; whoever makes the same one meanwhile does no harm."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"mkops-{version}-{hashlib.sha256(content).hexdigest()[:16]}.pyz"
    if not path.is_file() or path.read_bytes() != content:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=directory)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    return path


if __name__ == "__main__":
    source = Path(sys.argv[1])
    found = keep(program(source), Path(sys.argv[2]), version_of(source))
    print(json.dumps({"path": str(found), "version": version_of(source)}))
