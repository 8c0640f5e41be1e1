# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import libfdt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mkops.multikernel.plugins.module_utils.devices.declare import Disk, Share
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.record import Record
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.create import create_overlay
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.fdt import Node, make_fdt, parse_fdt
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.steps import Step
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import device_tree, u32, u64

TREE = {
    "model": "one",
    "resources": {
        "cpus": u64(4, 6),
        "empty": b"",
        "memory@40": {"reg": u64(64, 4096), "numa-node-id": u32(1)},
    },
    "pci@0": {"pci@1": {"compatible": "odd length"}},
}
BLOB = device_tree(TREE)
BLOB = BLOB[: int.from_bytes(BLOB[4:8], "big")]  # without what the writer has to spare


def test_a_tree():
    root = parse_fdt(BLOB)
    assert root.text("model") == "one"
    resources = root.find("/resources")
    assert resources.cells("cpus", 8) == (4, 6)
    assert resources.properties["empty"] == b""
    assert resources.children["memory@40"].cell("numa-node-id", 4) == 1
    assert root.find("/pci@0/pci@1").text("compatible") == "odd length"
    assert list(root.children) == ["resources", "pci@0"]


def test_what_is_missing_is_empty():
    missing = parse_fdt(BLOB).find("/no/such/node")
    assert missing == Node()
    assert (missing.text("x"), missing.cells("x", 8), missing.cell("x", 4, 7)) == ("", (), 7)


def test_cells_of_another_width():
    with pytest.raises(ValueError, match="model has 4 bytes, which is not a multiple of 8"):
        parse_fdt(BLOB).cells("model", 8)


@pytest.mark.parametrize("length", range(0, len(BLOB), 23))
def test_blobs_that_are_cut_off(length):
    with pytest.raises(ValueError):
        parse_fdt(BLOB[:length])


@given(st.integers(0, len(BLOB) - 1), st.binary(min_size=1, max_size=8))
def test_any_damage_ends_in_a_tree_or_an_error(place, damage):
    try:
        assert isinstance(parse_fdt(BLOB[:place] + damage + BLOB[place + len(damage) :]), Node)
    except ValueError as error:
        assert str(error)


names = st.text("abcdefghij@-0123456789", min_size=1, max_size=12)
trees = st.recursive(
    st.dictionaries(names, st.binary(max_size=20), max_size=4),
    lambda inner: st.dictionaries(names, st.one_of(st.binary(max_size=20), inner), max_size=4),
    max_leaves=12,
)


@given(trees)
def test_the_same_as_libfdt_reads(tree):
    blob = device_tree(tree)
    fdt = libfdt.Fdt(blob)

    def same(node, offset):
        for name, value in node.properties.items():
            assert bytes(fdt.getprop(offset, name)) == value
        for name, child in node.children.items():
            same(child, fdt.subnode_offset(offset, name))

    def count(content):
        return sum(1 + (count(value) if isinstance(value, dict) else 0) for value in content.values())

    def counted(node):
        return len(node.properties) + sum(1 + counted(child) for child in node.children.values())

    root = parse_fdt(blob)
    same(root, 0)
    assert counted(root) == count(tree)


def test_what_is_made_is_what_libfdt_reads():
    blob = make_fdt(parse_fdt(BLOB))
    assert parse_fdt(blob) == parse_fdt(BLOB)
    tree = libfdt.FdtRo(blob)
    assert tree.getprop(tree.path_offset("/resources/memory@40"), "reg") == u64(64, 4096)
    assert tree.getprop(tree.path_offset("/pci@0/pci@1"), "compatible").as_str() == "odd length"
    assert tree.totalsize() == len(blob)


def test_an_overlay_with_devices():
    disk, share = Disk("/a"), Share("/s", "t")
    step = Step(
        "create", "red", "ready", frozenset({6, 4}), 1 << 30, 1, record=Record("red", (), (disk,), (share,))
    )
    root = parse_fdt(create_overlay(step, 7))
    assert root.text("compatible") == "linux,multikernel-overlay"
    fragment = root.find("/fragment@0")
    assert fragment.text("target-path") == "/instances"
    create = fragment.find("/__overlay__/instance-create")
    assert (create.text("instance-name"), create.cell("id", 4)) == ("red", 7)
    resources = create.find("/resources")
    assert resources.cells("cpus", 8) == (4, 6) and resources.cell("memory-bytes", 8) == 1 << 30
    assert resources.cells("numa-nodes", 4) == (1,) and resources.text("cpu-affinity") == "compact"
    found = {name: one.cell("device-id", 4) for name, one in resources.find("/virtio").children.items()}
    assert found == {"blk@0": 2, "fs@1": 26}
    assert resources.find("/virtio/fs@1").cells("queues", 4) == (2,)
    plain = parse_fdt(create_overlay(Step("create", "red", cpus=frozenset({4}), memory=4096), None))
    create = plain.find("/fragment@0/__overlay__/instance-create")
    assert "id" not in create.properties and not create.find("/resources").children
