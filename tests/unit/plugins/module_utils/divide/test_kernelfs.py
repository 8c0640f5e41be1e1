# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import shutil
import struct
import time

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.divide.fdt import parse_fdt
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import (
    KernelFs,
    KernelFsError,
    Paths,
    cache_shift,
    parse_choice,
    parse_iomem,
    parse_kimage,
    parse_meminfo,
    parse_pool,
    parse_stats,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.machine import Chunk, Pool, Region
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import (
    MIB,
    POOL_BASE,
    FakeInstance,
    device_tree,
    u32,
    u64,
)


def tree(content):
    return parse_fdt(device_tree(content))


def reader(host):
    return KernelFs(Paths(str(host.root)))


def test_before_a_pool_the_cpus_in_the_tree_are_the_hosts(read):
    machine = read()
    assert machine.pool == Pool()
    assert not machine.pool
    assert machine.topology.online == (0, 1, 2, 3)
    assert machine.topology.physical == {0: 0, 1: 2, 2: 4, 3: 6}


def test_pool_and_instances(make_host):
    host = make_host(
        pool_cpus=[4, 6],
        chunks=[(POOL_BASE, 512 * MIB, 0)],
        instances={
            "a-b-region-1": FakeInstance(3, [6], POOL_BASE, 128 * MIB, "active", "quiet console=mktty0")
        },
    )
    machine = reader(host).read()
    assert machine.pool.cpus == (4, 6)
    assert machine.pool.free_cpus == (4,)
    assert machine.pool.memory == {0: 512 * MIB}
    assert machine.pool.free_memory == 384 * MIB
    assert machine.granule == 128 * MIB
    instance = machine.instances["a-b-region-1"]
    assert (instance.id, instance.status, instance.cpus, instance.memory) == (3, "active", (6,), 128 * MIB)
    assert instance.cmdline == "quiet console=mktty0"
    assert machine.logical(instance.cpus) == [3]
    assert machine.lenders() == {6: "a-b-region-1"}


def test_a_pool_without_free_cpus_is_still_a_pool(make_host):
    host = make_host(
        pool_cpus=[4],
        chunks=[(POOL_BASE, 64 * MIB, 0)],
        instances={"one": FakeInstance(1, [4], POOL_BASE, 64 * MIB)},
    )
    pool = reader(host).read().pool
    assert (pool.cpus, pool.free_cpus, pool.free_memory) == ((4,), (), 0)


def test_logical_numbers_without_the_kernels_help(make_host):
    host = make_host(tells_logical=False, pool_cpus=[4], chunks=[(POOL_BASE, 64 * MIB, 0)])
    assert reader(host).read().logical([0, 4]) == [0, None]
    entries = b"".join(bytes([0, 8, 0, apic, 1, 0, 0, 0]) for apic in (0, 2, 4, 6))
    host.write("/sys/firmware/acpi/tables/APIC", bytes(44) + entries)
    assert reader(host).read().logical([0, 4]) == [0, 2]


def test_nodes_of_pooled_cpus_are_those_of_others_in_their_domain(make_host):
    """Linux numbers domains as it comes to them, which need not be the order of their numbers."""
    host = make_host(cpus=4, nodes=2, pool_cpus=[2, 6], chunks=[(POOL_BASE, 256 * MIB, 0)])
    for cpu in (1, 3):
        shutil.rmtree(host.root / f"sys/devices/system/node/node{cpu // 2}/cpu{cpu}")
    domains = {0: 7, 2: 7, 4: 3, 6: 3}
    entries = b"".join(
        struct.pack("<BBBBIBBBBI", 0, 16, domain, apic, 1, 0, 0, 0, 0, 0) for apic, domain in domains.items()
    )
    host.write("/sys/firmware/acpi/tables/SRAT", bytes(48) + entries)
    node = KernelFs(Paths(str(host.root))).read().topology.node
    assert node == {0: 0, 2: 0, 4: 1, 6: 1}


def test_numa(make_host):
    host = make_host(nodes=2, pool_cpus=[6], chunks=[(POOL_BASE, 64 * MIB, 1)])
    machine = reader(host).read()
    assert machine.topology.node == {0: 0, 2: 0, 4: 1, 6: 1}  # also of the CPU in the pool
    assert set(machine.node_memory) == {0, 1}
    assert machine.pool.memory == {1: 64 * MIB}


@pytest.mark.parametrize(
    ("traits", "flags"),
    [({"supported": False, "mounted": False}, (False, False)), ({"mounted": False}, (True, False))],
)
def test_a_host_that_cannot_be_divided_is_readable(make_host, traits, flags):
    machine = reader(make_host(**traits)).read()
    assert (machine.supported, machine.mounted) == flags
    assert not machine.pool
    assert not machine.instances


def test_cmdline_unknown_without_kimage(make_host):
    host = make_host(
        tells_cmdline=False,
        pool_cpus=[4],
        chunks=[(POOL_BASE, 64 * MIB, 0)],
        instances={"one": FakeInstance(1, [4], POOL_BASE, 64 * MIB, "loaded")},
    )
    machine = reader(host).read()
    assert machine.instances["one"].cmdline is None
    assert not machine.tells_cmdline


def test_records_of_kerf_only_count_for_loaded_images(make_host):
    host = make_host(
        pool_cpus=[4],
        chunks=[(POOL_BASE, 64 * MIB, 0)],
        instances={"one": FakeInstance(1, [4], POOL_BASE, 64 * MIB, "ready")},
    )
    host.write("/var/lib/kerf/instances/one.json", '{"kernel": {"sha256": "f00"}, "initrd": null}')
    assert reader(host).read().instances["one"].kernel == {}
    host.instances["one"].status = "loaded"
    host.sync()
    assert reader(host).read().instances["one"].kernel == {"sha256": "f00"}
    record = host.root / "var/lib/kerf/instances/one.json"
    old = time.time() - 3600  # the host is up for two minutes
    os.utime(record, (old, old))
    assert reader(host).read().instances["one"].kernel == {}
    host.write("/var/lib/kerf/instances/one.json", "{broken")
    assert reader(host).read().instances["one"].kernel == {}


def test_safety_switches(host, read):
    assert (read().kexec_disabled, read().lockdown, read().console) == (False, "none", False)
    host.write("/proc/sys/kernel/kexec_load_disabled", "1\n")
    host.write("/sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
    host.write("/dev/mktty", "")
    assert (read().kexec_disabled, read().lockdown, read().console) == (True, "integrity", True)


def test_a_broken_tree_is_named(host, read):
    host.write("/sys/fs/multikernel/device_tree", b"not a tree at all, but long enough to be one")
    with pytest.raises(KernelFsError, match="device_tree is not a device tree"):
        read()


def test_trees_with_odd_properties(host, read):
    host.write("/sys/fs/multikernel/device_tree", device_tree({"resources": {"cpus-available": bytes(7)}}))
    with pytest.raises(KernelFsError, match=r"cpus.* 7 bytes"):
        read()


@pytest.mark.parametrize(
    ("path", "text", "word"),
    [
        ("/proc/uptime", "", "/proc/uptime is empty"),
        ("/proc/uptime", "soon", "could not convert"),
        ("/proc/meminfo", "", "MemTotal is missing"),
        ("/sys/devices/system/cpu/present", "0-x", "neither a CPU number"),
    ],
)
def test_files_that_say_something_else_are_no_traceback(host, read, path, text, word):
    host.write(path, text)
    with pytest.raises(KernelFsError, match=word):
        read()


@pytest.mark.parametrize(
    "record",
    ["[]", "3", '"x"', '{"kernel": "x", "initrd": []}', "\xff", "{", pytest.param("[" * 100_000, id="deep")],
)
def test_odd_records_prove_nothing(make_host, record):
    host = make_host(
        pool_cpus=[4],
        chunks=[(POOL_BASE, 64 * MIB, 0)],
        instances={"one": FakeInstance(1, [4], POOL_BASE, 64 * MIB, "loaded")},
    )
    host.write("/var/lib/kerf/instances/one.json", record.encode("latin-1"))
    one = reader(host).read().instances["one"]
    assert (one.kernel, one.initrd) == ({}, {})


@pytest.mark.parametrize(
    "note",
    [
        "[]",
        "{",
        '{"boot_id": "another", "record": "x"}',
        "\xff",
        '{"files": 3}',
        pytest.param('{"a":' * 100_000, id="deep"),
    ],
)
def test_odd_notes_say_nothing(make_host, note):
    host = make_host(
        pool_cpus=[4],
        chunks=[(POOL_BASE, 64 * MIB, 0)],
        instances={"one": FakeInstance(1, [4], POOL_BASE, 64 * MIB, "loaded")},
    )
    host.write("/var/lib/kerf/instances/one.json", '{"kernel": {"sha256": "f00"}}')
    host.write("/run/mkops/instances/one.json", note.encode("latin-1"))
    one = reader(host).read().instances["one"]
    assert (one.kernel, one.files, one.awaited) == ({"sha256": "f00"}, {}, {})


def test_notes_of_this_boot(host):
    notes = reader(host).notes
    notes.change("one", record="r", files={"/k": [1, 2]}, awaited={"id": 1})
    notes.change("one", awaited=None)
    assert notes.read("one") == {"boot_id": reader(host).boot_id, "record": "r", "files": {"/k": [1, 2]}}
    path = host.root / "run/mkops/instances/one.json"
    assert path.stat().st_mode & 0o777 == 0o600
    notes.forget("one")
    notes.forget("one")
    assert notes.read("one") == {}
    # A note that cannot be written costs time, not the run.
    path.parent.rmdir()
    path.parent.write_text("")
    notes.change("one", record="r")
    assert notes.read("one") == {}


def test_an_empty_tree_is_no_pool(host, read):
    host.write("/sys/fs/multikernel/device_tree", b"")
    assert read().pool == Pool()


def test_an_instance_that_goes_while_it_is_read(make_host):
    host = make_host(instances={"one": FakeInstance(1, [4], POOL_BASE, 64 * MIB)})
    host.write("/sys/fs/multikernel/instances/one/id", "")
    assert reader(host).read().instances == {}


@pytest.mark.parametrize(
    ("series", "name", "resizes", "epoch"),
    [
        ("full", "this collection's series", True, 3),
        ("first", "this collection's series, first form", False, None),
        ("upstream", "Multikernel Linux", True, None),
    ],
)
def test_interfaces_are_probed(make_host, series, name, resizes, epoch):
    host = make_host(
        series=series,
        pool_cpus=[4],
        chunks=[(POOL_BASE, 64 * MIB, 0)],
        instances={
            "one": FakeInstance(1, [4], POOL_BASE, 64 * MIB, "loaded", exit_reason="panic: oh", epoch=3)
        },
    )
    machine = reader(host).read()
    assert (machine.interface.name, machine.interface.resizes) == (name, resizes)
    one = machine.instances["one"]
    assert one.epoch == epoch
    assert one.exit_reason == ("panic: oh" if epoch else None)
    assert one.stats == ({"spawn_epoch": 3, "restarts": 2, "state_since_ms": 60500} if epoch else {})
    assert machine.granule == 128 * MIB


def test_the_granule_of_kernels_that_do_not_tell_it(make_host):
    host = make_host(series="upstream")
    host.write("/sys/devices/system/memory/block_size_bytes", "80000000\n")
    assert reader(host).read().granule == 2048 * MIB


def test_cores_and_caches_of_pooled_cpus(make_host):
    # Eight CPUs: four cores of two threads, two caches; logical 0-3 are first threads, 4-7 second ones.
    host = make_host(cpus=8, threads=2, nodes=2, caches=2, pool_cpus=[2, 3, 6, 7])
    topology = reader(host).read().topology
    assert topology.physical == {0: 0, 4: 1, 1: 2, 5: 3, 2: 4, 6: 5, 3: 6, 7: 7}
    assert topology.core == {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2, 6: 3, 7: 3}
    assert topology.cache == {0: 0, 1: 0, 2: 0, 3: 0, 4: 1, 5: 1, 6: 1, 7: 1}
    assert topology.node == {0: 0, 1: 0, 2: 0, 3: 0, 4: 1, 5: 1, 6: 1, 7: 1}


def test_a_cache_that_only_the_host_shows_says_nothing_about_others(make_host):
    host = make_host(cpus=8, threads=2, caches=2, pool_cpus=[4, 5, 6, 7])
    assert set(reader(host).read().topology.cache) == {0, 1, 2, 3}
    # CPUID leaf 4, third-level cache, ids for four threads: the module cpuid tells exactly.
    leaf = struct.pack("<4I", 3 << 14 | 3 << 5 | 3, 0, 0, 0)
    path = host.root / "dev/cpu/0/cpuid"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.seek(4 | 3 << 32)
        file.write(leaf)
    assert reader(host).read().topology.cache[4] == 1


@pytest.mark.parametrize(
    ("eax", "shift"),
    [(3 << 14 | 3 << 5 | 3, 2), (0 << 14 | 3 << 5, 0), (63 << 14 | 3 << 5 | 3, 6), (3 << 14 | 2 << 5, None)],
)
def test_cache_shift(eax, shift):
    assert cache_shift(struct.pack("<4I", eax, 0, 0, 0)) == shift
    assert cache_shift(b"") is None


def test_stats():
    assert parse_stats("a 1\nb -\nodd\nc 2 3\nd 4\n") == {"a": 1, "d": 4}


def test_pool_of_old_trees_has_narrow_cpus():
    pool, _logical = parse_pool(
        tree(
            {"resources": {"cpus": u32(4, 5, 6), "cpus-available": u32(4), "memory@0": {"reg": u64(0, 4096)}}}
        )
    )
    assert (pool.cpus, pool.free_cpus, pool.chunks) == ((4, 5, 6), (4,), (Chunk(0, 4096, 0),))


def test_pool_devices_of_both_forms():
    bridge = {
        "compatible": "multikernel,pci-host-bridge",
        "linux,pci-domain": u32(1),
        "bridge@8": {
            "reg": u32(0x00000800, 0, 0, 0, 0),
            "nvme@1": {"reg": u32(0x00090900, 0, 0, 0, 0), "vendor-id": u32(0x144D)},
        },
    }
    pool, _logical = parse_pool(
        tree({"resources": {"devices": {"pci_0": {"pci-id": "0000:4f:01.0"}}}, "pci@0": bridge})
    )
    assert pool.devices == ("0000:4f:01.0", "0001:09:01.1")
    assert pool


def test_pool_regions_are_those_inside_its_chunks():
    iomem = (
        "40000000-4fffffff : Multikernel Memory Pool\n"
        "  40000000-43ffffff : mk-instance-1-one-region-0\n"
        "  44000000-44ffffff : daxfs\n"
        "60000000-60ffffff : mk-instance-9-elsewhere-region-0\n"
    )
    pool, _logical = parse_pool(
        tree({"resources": {"memory@40000000": {"reg": u64(0x40000000, 256 * MIB)}}}), iomem
    )
    assert pool.regions == (
        Region(0x40000000, 64 * MIB, "mk-instance-1-one-region-0"),
        Region(0x44000000, 16 * MIB, "daxfs"),
    )
    assert pool.free_memory == 176 * MIB


def test_transactions(host):
    for number, status in ((2, "applied"), (10, "failed")):
        host.write(f"/sys/fs/multikernel/overlays/tx_{number}/status", f"{status}\n")
    host.write("/sys/fs/multikernel/overlays/tx_10/error", "why\n")
    host.write("/sys/fs/multikernel/overlays/new", "")
    assert reader(host).transactions() == {2, 10}
    assert (reader(host).transaction(2), reader(host).transaction(10)) == ("applied", "failed: why")


def test_iomem():
    assert parse_iomem("00000000-00000fff : Reserved\n  1000-1fff : x : y\nnothing\n") == (
        (0, 4096, "Reserved"),
        (4096, 4096, "x : y"),
    )


def test_kimage():
    table = (
        "MK_ID  Type        Start Address   Segments  Mode  Cmdline\n"
        "-----  ----------  --------------  --------  ----  -------\n"
        '    1  multikernel  0x000040000000         4  file  "root=/dev/ram a="b" console=mktty0"\n'
        '   12  multikernel  0x000048000000         4  file  ""\n'
        '    0  crash        0x000001000000         4  file  "irqpoll"\n'
    )
    assert parse_kimage(table) == {1: 'root=/dev/ram a="b" console=mktty0', 12: ""}


def test_meminfo():
    assert parse_meminfo("MemTotal:  16 kB\nHugePages_Total:  0\n") == {"MemTotal": 16384}
    assert parse_meminfo("Node 1 MemFree:   8 kB\nNode 1 Active(file): 4 kB\n") == {
        "MemFree": 8192,
        "Active(file)": 4096,
    }


@pytest.mark.parametrize(
    ("text", "word"), [("none [integrity] x", "integrity"), ("[none] integrity", "none"), ("", "")]
)
def test_choice(text, word):
    assert parse_choice(text) == word


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([[10, 21], [21, 10]], {0: {0: 10, 1: 21}, 1: {0: 21, 1: 10}}),
        ([], {}),
        ([[10], [21, 10]], {1: {0: 21, 1: 10}}),
        ([["far", 21], [21, 10]], {1: {0: 21, 1: 10}}),
    ],
)
def test_distances_between_nodes(make_host, told, expected):
    host = make_host(nodes=2, distances=told)
    assert KernelFs(Paths(str(host.root))).read().distances == expected


def test_a_tree_that_cannot_be_read_is_named(host, read):
    (host.root / "sys/fs/multikernel/device_tree").unlink()
    (host.root / "sys/fs/multikernel/device_tree").mkdir()
    with pytest.raises(KernelFsError, match=r"cannot read .*/device_tree: Is a directory"):
        read()


@pytest.mark.parametrize(("file", "text"), [("level", "2\n"), ("shared_cpu_list", "")])
def test_no_third_cache_is_no_cache_that_counts(make_host, file, text):
    host = make_host(cpus=4, caches=2)
    assert reader(host).read().topology.cache
    host.write(f"/sys/devices/system/cpu/cpu0/cache/index3/{file}", text)
    assert reader(host).read().topology.cache == {}


def test_records_are_told_apart(host):
    assert reader(host).record_sum("one") is None
    host.write("/var/lib/kerf/instances/one.json", "{}")
    first = reader(host).record_sum("one")
    host.write("/var/lib/kerf/instances/one.json", "[]")
    assert len({None, first, reader(host).record_sum("one")}) == 3
