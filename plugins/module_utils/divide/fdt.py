# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Device tree blobs, as far as they are needed here. A tenth of the time that importing libfdt would take."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

_MAGIC = 0xD00DFEED
_HEADER = 40  # bytes
_BEGIN, _END, _PROPERTY, _NOP, _FINISH = 1, 2, 3, 4, 9


@dataclass
class Node:
    """A node with its properties and children in the order of the blob."""

    properties: dict[str, bytes] = field(default_factory=dict)
    children: dict[str, Node] = field(default_factory=dict)

    def find(self, path: str) -> Node:
        """The node at a path; an empty one when it is missing, which has nothing of what is asked."""
        node = self
        for name in filter(None, path.split("/")):
            node = node.children.get(name) or Node()
        return node

    def text(self, name: str) -> str:
        return self.properties.get(name, b"").split(b"\0")[0].decode(errors="replace")

    def cells(self, name: str, width: int) -> tuple[int, ...]:
        """Numbers of 4 or 8 bytes; empty when the property is absent."""
        value = self.properties.get(name, b"")
        if len(value) % width:
            raise ValueError(f"property {name} has {len(value)} bytes, which is not a multiple of {width}")
        return struct.unpack(f">{len(value) // width}{'Q' if width == 8 else 'I'}", value)

    def cell(self, name: str, width: int, default: int = 0) -> int:
        return (self.cells(name, width) or (default,))[0]


def parse_fdt(blob: bytes) -> Node:
    """The root node; ValueError says what is wrong with the blob."""
    try:
        magic, size, structure, strings = struct.unpack_from(">4I", blob)
        if magic != _MAGIC or size > len(blob):
            raise ValueError("its header is wrong or cut off")
        return _nodes(blob, structure, strings)
    except (struct.error, IndexError) as error:
        raise ValueError("it is cut off") from error


def make_fdt(root: Node) -> bytes:
    """The blob of a tree, version 17, with nothing reserved."""
    strings = bytearray()
    places: dict[str, int] = {}

    def node(name: str, content: Node) -> bytes:
        parts = [struct.pack(">I", _BEGIN), _padded(name.encode() + b"\0")]
        for key, value in content.properties.items():
            if key not in places:
                places[key] = len(strings)
                strings.extend(key.encode() + b"\0")
            parts += [struct.pack(">3I", _PROPERTY, len(value), places[key]), _padded(value)]
        parts += [node(child, below) for child, below in content.children.items()]
        return b"".join((*parts, struct.pack(">I", _END)))

    structure = node("", root) + struct.pack(">I", _FINISH)
    begin = _HEADER + 16  # after an empty list of reserved memory
    end = begin + len(structure)
    sizes = (len(strings), len(structure))
    header = (_MAGIC, end + len(strings), begin, end, _HEADER, 17, 16, 0, *sizes)
    return struct.pack(">10I16x", *header) + structure + bytes(strings)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _string(blob: bytes, offset: int) -> str:
    end = blob.find(b"\0", offset)
    if end < 0:
        raise ValueError("a string is not terminated")
    return blob[offset:end].decode(errors="replace")


def _nodes(blob: bytes, offset: int, strings: int) -> Node:
    top = Node()
    path = [top]
    while True:
        token = struct.unpack_from(">I", blob, offset)[0]
        offset += 4
        if token == _BEGIN:
            name = _string(blob, offset)
            offset += len(name.encode()) // 4 * 4 + 4
            node = Node()
            path[-1].children[name] = node
            path.append(node)
        elif token == _PROPERTY:
            length, name_offset = struct.unpack_from(">2I", blob, offset)
            offset += 8
            if offset + length > len(blob):
                raise ValueError("a property is cut off")
            path[-1].properties[_string(blob, strings + name_offset)] = blob[offset : offset + length]
            offset += (length + 3) // 4 * 4
        elif token == _END and len(path) > 1:
            path.pop()
        elif token == _FINISH and len(path) == 1 and len(top.children) == 1:
            return next(iter(top.children.values()))
        elif token != _NOP:
            raise ValueError(f"token {token} is not allowed there")
