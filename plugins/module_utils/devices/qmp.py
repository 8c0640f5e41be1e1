# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What qemu-storage-daemon is told to serve."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.errors import Failure
from .declare import Disk
from .vhostuser import TIMEOUT, connect

NODE = "disk"


class Qmp:
    """A connection to its monitor. Raises Failure with what it has against a command."""

    def __init__(self, path: Path, what: str, patience: float = 15.0):
        self._what = what
        self._socket = connect(path, what, patience)
        self._buffer = b""
        self._next("QMP")
        self.command("qmp_capabilities")

    def close(self) -> None:
        self._socket.close()

    def command(self, name: str, arguments: Mapping[str, Any] | None = None) -> Any:
        text = json.dumps({"execute": name, "arguments": arguments or {}}).encode() + b"\n"
        try:
            self._socket.sendall(text)
        except OSError as error:
            raise Failure(f"{self._what} does not answer: {error.strerror}") from error
        answer = self._next("return", "error")
        if "error" in answer:
            raise Failure(f"{self._what}: {answer['error'].get('desc', name)}")
        return answer["return"]

    def _next(self, *keys: str) -> dict[str, Any]:
        """The next message with one of the keys; events are passed over."""
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                found = json.loads(line)
                if any(key in found for key in keys):
                    return dict(found)
                continue
            try:
                more = self._socket.recv(65536)
            except OSError as error:
                raise Failure(f"{self._what} does not answer within {TIMEOUT:g} s: {error}") from error
            if not more:
                raise Failure(f"{self._what} has ended")
            self._buffer += more


def export(qmp: Qmp, disk: Disk, socket_path: Path) -> None:
    """Have a disk served at a socket. Raises Failure, also when a file cannot be opened."""
    qmp.command("blockdev-add", _block(disk))
    qmp.command(
        "block-export-add",
        {
            "type": "vhost-user-blk",
            "id": NODE,
            "node-name": NODE,
            "writable": not disk.read_only,
            "writethrough": disk.cache == "writethrough",
            "addr": {"type": "unix", "path": str(socket_path)},
            "num-queues": 1,
        },
    )


def _block(disk: Disk) -> dict[str, Any]:
    """The options of blockdev-add. Below a qcow2 file is what was declared, whatever its header says."""
    cache = {"direct": False, "no-flush": disk.cache == "unsafe"}
    node: dict[str, Any] = {
        "driver": disk.format,
        "node-name": NODE,
        "read-only": disk.read_only,
        "discard": "unmap" if disk.discard else "ignore",
        "cache": cache,
        "file": _file(disk.path, disk.read_only, disk.discard, cache),
    }
    if disk.format == "qcow2":
        node["backing"] = None
        if disk.base:
            node["backing"] = {
                "driver": disk.base_format,
                "read-only": True,
                "file": _file(disk.base, True, False, cache),
                **({"backing": None} if disk.base_format == "qcow2" else {}),
            }
    return node


def _file(path: str, read_only: bool, discard: bool, cache: dict[str, bool]) -> dict[str, Any]:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise Failure(f"{path} cannot be opened: {error.strerror}") from error
    return {
        "driver": "host_device" if stat.S_ISBLK(mode) else "file",
        "filename": path,
        "read-only": read_only,
        "discard": "unmap" if discard else "ignore",
        "cache": cache,
        # Direct I/O needs pages, and the memory of another kernel has none here.
        "aio": "threads",
        # Nobody else may write what a spawned kernel has in its cache.
        "locking": "on" if stat.S_ISREG(mode) else "auto",
    }
