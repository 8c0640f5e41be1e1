# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write bad device trees to a live kernel: each is refused with its reason, and nothing is changed.

Runs as root on a multikernel host that has at least three CPUs beside CPU 0 and no pool. Makes a pool and an
instance for the second part, and gives everything back. Prints TAP.
"""

import errno
import os
import re
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

MULTIKERNEL = Path("/sys/fs/multikernel")
MIB = 1 << 20
TIB = 1 << 40
POOL = 256 * MIB

# --- blobs: a tree is a dict of bytes (properties) and dicts (nodes); a list of pairs where names repeat


def u32(*numbers):
    return struct.pack(f">{len(numbers)}I", *numbers)


def u64(*numbers):
    return struct.pack(f">{len(numbers)}Q", *numbers)


def text(string):
    return string.encode() + b"\0"


def padded(data):
    return data + bytes(-len(data) % 4)


def structure(name, tree, strings):
    """The node's part of the structure block; puts names of properties into strings."""
    items = list(tree.items() if isinstance(tree, dict) else tree)
    out = u32(1) + padded(text(name))
    for key, value in items:
        if isinstance(value, bytes):
            strings.setdefault(key, sum(len(other) + 1 for other in strings))
            out += u32(3, len(value), strings[key]) + padded(value)
    for key, value in items:
        if not isinstance(value, bytes):
            out += structure(key, value, strings)
    return out + u32(2)


def blob(tree, **header):
    """The whole blob; header fields by name in place of the right ones."""
    strings = {}
    body = header.pop("body", None) or structure("", tree, strings) + u32(9)
    names = b"".join(text(name) for name in strings)
    fields = {
        "magic": 0xD00DFEED,
        "totalsize": 56 + len(body) + len(names),
        "off_dt_struct": 56,
        "off_dt_strings": 56 + len(body),
        "off_mem_rsvmap": 40,
        "version": 17,
        "last_comp_version": 16,
        "boot_cpuid_phys": 0,
        "size_dt_strings": len(names),
        "size_dt_struct": len(body),
        **header,
    }
    return u32(*fields.values()) + bytes(16) + body + names


def baseline(cpus, *sizes, **more):
    memory = {f"memory@{number}": {"size": u64(size)} for number, size in enumerate(sizes)}
    return blob({"resources": {"cpus": cpus if isinstance(cpus, bytes) else u64(*cpus), **memory}, **more})


def overlay(*fragments):
    """Fragments are pairs of target path and operations."""
    nodes = {
        f"fragment@{number:x}": {"target-path": text(target), "__overlay__": operations}
        for number, (target, operations) in enumerate(fragments)
    }
    return blob({"compatible": text("linux,multikernel-overlay"), **nodes})


def create(name, cpus, memory, **more):
    resources = {"cpus": cpus if isinstance(cpus, bytes) else u64(*cpus), "memory-bytes": u64(memory)}
    resources.update(more.pop("resources", {}))
    return {"instance-create": {"instance-name": text(name), "resources": resources, **more}}


def remove(name):
    return {"instance-remove": {"instance-name": text(name)}}


def cpus(*ids):
    return [(f"cpu@{number:x}", {"reg": u64(number)}) for number in ids]


def ranges(*pairs):
    return [(f"memory@{start:x}", {"reg": u64(start, size)}) for start, size in pairs]


def sizes(*numbers):
    return [("memory@0", {"size": u64(number)}) for number in numbers]


# --- the live kernel


def read(path):
    return Path(path).read_text()


def write(file, data, offset=0):
    """0 or the error number."""
    fd = os.open(MULTIKERNEL / file, os.O_WRONLY)
    try:
        done = os.pwrite(fd, data, offset) if offset else os.write(fd, data)
        return 0 if done == len(data) else errno.EIO
    except OSError as error:
        return error.errno
    finally:
        os.close(fd)


def transactions():
    return {int(path.name[3:]) for path in (MULTIKERNEL / "overlays").glob("tx_*")}


def state():
    """All that a bad blob must not change."""
    found = {
        "pool": (MULTIKERNEL / "device_tree").read_bytes(),
        "iomem": [line for line in read("/proc/iomem").splitlines() if re.search("ultikernel|mk-inst", line)],
        "online": read("/sys/devices/system/cpu/online"),
        "memory": re.search("MemTotal:.*", read("/proc/meminfo"))[0],
        "transactions": transactions(),
    }
    for instance in sorted((MULTIKERNEL / "instances").iterdir()):
        for name in ("id", "status", "device_tree"):
            found[f"{instance.name}/{name}"] = (instance / name).read_bytes()
    return found


class Log:
    """The kernel's messages since the last look."""

    def __init__(self):
        self.fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self.fd, 0, os.SEEK_END)

    def lines(self):
        found = []
        while True:
            try:
                found.append(os.read(self.fd, 8192).decode(errors="replace"))
            except BlockingIOError:
                return "".join(found)
            except BrokenPipeError:  # overrun
                continue


@dataclass
class Case:
    """What is written where, the error number that it meets, and a part of the reason.

    A number with a reason is one of a transaction (or of a baseline, then the reason is in the log), a
    number without one that of the write.
    """

    name: str
    blob: bytes
    number: int
    reason: str = ""
    file: str = "overlays/new"
    offset: int = 0


class Tap:
    def __init__(self):
        self.done = self.failed = 0

    def check(self, problems, name):
        self.done += 1
        self.failed += bool(problems)
        print(f"{'not ' if problems else ''}ok {self.done} - {name}", flush=True)
        for problem in problems:
            print(f"# {problem}")


def number_name(number):
    return errno.errorcode.get(number, str(number))


def difference(before, after):
    return [f"{key} changed" for key in sorted({*before, *after}) if before.get(key) != after.get(key)]


def overlay_problems(case, new):
    """Of a write that went through: its transaction has failed for the right reason."""
    if len(new) != 1:
        return [f"{len(new)} new transactions"]
    directory = MULTIKERNEL / f"overlays/tx_{new.pop()}"
    status, error = read(directory / "status").strip(), read(directory / "error").strip()
    problems = [] if status == "failed" else [f"the transaction is {status}"]
    if f"(errno {case.number})" not in error or case.reason not in error:
        problems.append(f"error is {error!r}, wanted {number_name(case.number)} and {case.reason!r}")
    if (directory / "dtbo").read_bytes() != case.blob:
        problems.append("dtbo is not what was written")
    os.rmdir(directory)
    return problems


def try_case(case, log):
    before = state()
    log.lines()
    number = write(case.file, case.blob, case.offset)
    new = transactions() - before["transactions"]
    if case.reason and case.file == "overlays/new":
        problems = [f"the write failed with {number_name(number)}"] if number else overlay_problems(case, new)
    else:
        problems = [f"{len(new)} transactions"] if new else []
        if number != case.number:
            problems.append(f"the write gave {number_name(number)}, wanted {number_name(case.number)}")
        messages = log.lines()
        if case.reason not in messages:
            problems.append(f"the log says {messages!r}, wanted {case.reason!r}")
    return problems + difference(before, state())


# --- the tables


def header_cases(file, good):
    """What is no blob at all. Of a good one every whole word of the header that matters is made a bad one."""

    def case(name, data, number=errno.EINVAL, **more):
        return Case(f"{file}: {name}", data, number, file=file, **more)

    tree = {"resources": {}}
    yield case("one byte", b"\0")
    yield case("text", b"/dts-v1/; / { };\n" * 8)
    yield case("only the header", good[:40])
    yield case("cut short", good[:-1])
    yield case("one byte too much", good + b"\0")
    yield case("at an offset", good, offset=64)
    yield case("wrong magic", blob(tree, magic=0xD00DFEEE))
    yield case("little endian magic", blob(tree, magic=0xEDFE0DD0))
    yield case("version 16", blob(tree, version=16))
    yield case("only for later versions", blob(tree, version=18, last_comp_version=18))
    yield case("total size 0", blob(tree, totalsize=0))
    yield case("total size beyond 2 GiB", blob(tree, totalsize=0x80000010))
    yield case("structure beyond the end", blob(tree, off_dt_struct=1 << 20))
    yield case("structure not aligned", blob(tree, off_dt_struct=57))
    yield case("strings beyond the end", blob(tree, off_dt_strings=0xFFFFFFF0))
    yield case("1 MiB and a byte", good + bytes(MIB + 1 - len(good)), errno.EFBIG)
    yield case("1 MiB and a page", good + bytes(MIB + 4096 - len(good)), errno.EFBIG)
    yield case("2 MiB", good + bytes(2 * MIB - len(good)), errno.E2BIG)


def structure_cases(file):
    """Blobs with a good header, but no tree inside."""
    node, end, last, property_ = u32(1), u32(2), u32(9), u32(3)
    root = node + padded(b"\0")
    deep = b"".join(node + padded(text("n")) for _level in range(8))
    bodies = {
        "no node": last,
        "no end": root + end,
        "root not closed": root + last,
        "closed twice": root + end + end + last,
        "two roots": root + end + root + end + last,
        "root with a name": node + padded(text("root")) + end + last,
        "child without a name": root + root + end + end + last,
        "name not terminated": root + node + b"resources",
        "name with a line feed": root + node + padded(text("a\nb")) + end + end + last,
        "name that is no ASCII": root + node + padded("ä".encode() + b"\0") + end + end + last,
        "deeper than 8 nodes": root + deep + 8 * end + end + last,
        "property beyond the end": root + property_ + u32(1 << 20, 0) + end + last,
        "property of 4 GiB": root + property_ + u32(0xFFFFFFFC, 0) + end + last,
        "property with a name beyond the strings": root + property_ + u32(0, 4096) + end + last,
        "property outside of nodes": property_ + u32(0, 0) + root + end + last,
        "unknown tag": root + u32(5) + end + last,
    }
    for name, body in bodies.items():
        yield Case(f"{file}: {name}", blob({}, body=body), errno.EINVAL, "malformed device tree", file)
    long = blob({65 * "n": b""})
    yield Case(f"{file}: property with a long name", long, errno.EINVAL, "malformed device tree", file)


def baseline_cases(cpu):
    def case(name, data, number, reason):
        return Case(f"baseline: {name}", data, number, reason, "device_tree")

    def memory(node):
        return blob({"resources": {"cpus": u64(cpu), "memory@0": node}})

    size = u64(64 * MIB)
    yield case("empty tree", blob({}), errno.EINVAL, "there is no /resources")
    yield case("no cpus", blob({"resources": {"memory@0": {"size": size}}}), errno.EINVAL, "there is no cpus")
    yield case("cpus is empty", baseline((), POOL), errno.EINVAL, "cpus has 0 bytes")
    yield case("cpus of 32 bits", baseline(u32(cpu), POOL), errno.EINVAL, "cpus has 4 bytes")
    yield case("a CPU that is not there", baseline((4095,), POOL), errno.ENODEV, "physical id 4095")
    yield case("a CPU id of 64 bits", baseline((cpu + (1 << 32),), POOL), errno.ENODEV, "there is no CPU")
    yield case("a CPU twice", baseline((cpu, cpu), POOL), errno.EINVAL, "appears twice")
    yield case("CPU 0", baseline((apic_ids()[0], cpu), POOL), errno.EINVAL, "CPU 0 has to stay with the host")
    yield case("no memory", baseline((cpu,)), errno.EINVAL, "no memory@ node")
    yield case("memory without a size", memory({}), errno.EINVAL, "there is no size")
    yield case("memory of 0 bytes", baseline((cpu,), 0), errno.EINVAL, "size 0 is zero or no multiple")
    yield case("half a page", baseline((cpu,), POOL + 2048), errno.EINVAL, "no multiple of 4096")
    yield case("size of 32 bits", memory({"size": u32(MIB)}), errno.EINVAL, "size has 4 bytes instead of 8")
    yield case("memory by address", memory({"reg": u64(0, POOL)}), errno.EINVAL, "there is no size")
    yield case(
        "no such node", memory({"size": size, "numa-node-id": u32(63)}), errno.EINVAL, "no NUMA node 63"
    )
    yield case(
        "node -1", memory({"size": size, "numa-node-id": u32(0xFFFFFFFF)}), errno.EINVAL, "no NUMA node"
    )
    yield case("node of 64 bits", memory({"size": size, "numa-node-id": u64(0)}), errno.EINVAL, "has 8 bytes")
    yield case("more than there is", baseline((cpu,), TIB), errno.ENOMEM, "the host can spare")
    yield case(
        "2^64 bytes but a page", baseline((cpu,), (1 << 64) - 4096), errno.ENOMEM, "the host can spare"
    )
    yield case("the second memory fails", baseline((cpu,), 64 * MIB, TIB), errno.ENOMEM, "the host can spare")
    old = blob({"resources": {"cpus": u64(cpu), "memory-base": u64(0), "memory-bytes": u64(POOL)}})
    yield case("the old form", old, errno.EINVAL, "no longer supported")
    with_instance = baseline((cpu,), POOL, instances={"web": {}})
    yield case("with an instance", with_instance, errno.EINVAL, "a baseline has no instances")
    device = {"cpus": u64(cpu), "memory@0": {"size": size}, "devices": {"pci": {}}}
    yield case("with a device", blob({"resources": device}), errno.EOPNOTSUPP, "devices cannot be lent")


def fragment_cases():
    def case(name, data, reason, number=errno.EINVAL):
        return Case(f"overlay: {name}", data, number, reason)

    def fragment(name, tree):
        return blob({name: tree})

    good = {"target-path": text("/instances"), "__overlay__": {}}
    yield case("no fragment", blob({"resources": {}}), "there is no fragment")
    yield case(
        "unit address that is none", fragment("fragment@x", good), "fragment@x has no valid unit address"
    )
    yield case("unit address of 36 bits", fragment("fragment@100000000", good), "no valid unit address")
    same = blob([("fragment@1", good), ("fragment@01", good)])
    yield case("a unit address twice", same, "fragment@1 appears twice")
    yield case("33 fragments", overlay(*[("/instances", {})] * 33), "more than 32 fragments")
    yield case("no target", fragment("fragment@0", {"__overlay__": {}}), "no valid target-path")
    cut = {**good, "target-path": b"/instances"}
    yield case("target not terminated", fragment("fragment@0", cut), "no valid target-path")
    feed = {**good, "target-path": text("/inst\nances")}
    yield case("target with a line feed", fragment("fragment@0", feed), "no valid target-path")
    yield case(
        "no __overlay__", fragment("fragment@0", {"target-path": text("/instances")}), "no __overlay__"
    )
    for target in ("", "/", "resources", "/resources/", "/instances/", "/instances/a/b", "/instances/.."):
        yield case(f"target {target!r}", overlay((target, {})), "target-path is not valid")
    long = "/instances/" + 64 * "n"
    yield case("target with a long name", overlay((long, {})), "target-path is not valid")
    unknown = "unknown operation cpu-adds for this target"
    yield case("unknown operation", overlay(("/resources", {"cpu-adds": {}})), unknown)
    yield case(
        "operation of another target", overlay(("/instances", {"cpu-add": {}})), "unknown operation cpu-add"
    )
    missing = overlay(("/instances/missing", {}))
    yield case("no such instance", missing, "instance missing: there is no such instance", errno.ENOENT)
    second = overlay(("/instances", {}), ("/instances/missing", {"cpu-add": {}}))
    yield case("no such instance in the second fragment", second, "no such instance", errno.ENOENT)
    device = overlay(("/resources", {"device-add": {"pci@0": {"pci-id": text("0000:00:01.0")}}}))
    yield case("a device", device, "devices cannot be lent", errno.EOPNOTSUPP)


def pool_cases(lent, free, host):
    """lent: CPU of the instance, free: CPU of the pool, host: CPU of the host."""

    def case(name, operations, number, reason):
        return Case(f"pool: {name}", overlay(("/resources", operations)), number, reason)

    (start, size) = chunks()[0]
    zero = apic_ids(everything=True)[0]
    yield case("cpu-add CPU 0", {"cpu-add": cpus(zero)}, errno.EINVAL, "CPU 0 has to stay")
    yield case("cpu-add what is there", {"cpu-add": cpus(free)}, errno.EBUSY, "in the pool already")
    yield case("cpu-add twice", {"cpu-add": cpus(host, host)}, errno.EBUSY, "in the pool already")
    yield case("cpu-add unknown", {"cpu-add": cpus(host, 4095)}, errno.ENODEV, "physical id 4095")
    yield case("cpu-add without reg", {"cpu-add": {"cpu@1": {}}}, errno.EINVAL, "cpu@1 has no valid reg")
    odd = {"cpu-add": {"cpu@1": {"reg": b"\0" * 12}}}
    yield case("cpu-add with 12 bytes", odd, errno.EINVAL, "cpu@1 has no valid reg")
    yield case(
        "cpu-remove from an instance", {"cpu-remove": cpus(lent)}, errno.EBUSY, "belongs to an instance"
    )
    yield case("cpu-remove of the host's", {"cpu-remove": cpus(host)}, errno.EINVAL, "is not in the pool")
    yield case("cpu-remove twice", {"cpu-remove": cpus(free, free)}, errno.EINVAL, "is not in the pool")
    yield case("memory-add 0", {"memory-add": sizes(0)}, errno.EINVAL, "size 0 is zero")
    yield case("memory-add half a page", {"memory-add": sizes(2048)}, errno.EINVAL, "no multiple of 4096")
    yield case("memory-add too much", {"memory-add": sizes(TIB)}, errno.ENOMEM, "the host can spare")
    reg = {"memory-add": ranges((start + size, size))}
    yield case("memory-add by address", reg, errno.EINVAL, "has reg, want size")
    node = {"memory-add": {"memory@0": {"size": u64(MIB), "numa-node-id": u32(62)}}}
    yield case("memory-add on no node", node, errno.EINVAL, "no NUMA node 62")
    used = f"the chunk at {start:#x} is in use by instance bad"
    yield case("memory-remove in use", {"memory-remove": ranges((start, size))}, errno.EBUSY, used)
    yield case(
        "memory-remove a part", {"memory-remove": ranges((start, MIB))}, errno.EINVAL, "has no chunk of"
    )
    yield case(
        "memory-remove elsewhere", {"memory-remove": ranges((0, size))}, errno.EINVAL, "has no chunk of"
    )
    wrap = {"memory-remove": ranges(((1 << 64) - 4096, 8192))}
    yield case("memory-remove beyond 2^64", wrap, errno.EINVAL, "are no whole pages")
    no_reg = {"memory-remove": {"memory@0": {"size": u64(size)}}}
    yield case("memory-remove by size", no_reg, errno.EINVAL, "memory@0 has no valid reg")
    # Only the last operation is not possible: what was done before is undone
    late = {"cpu-remove": cpus(free), "memory-add": sizes(32 * MIB, TIB)}
    yield case("fails after cpu-remove and memory-add", late, errno.ENOMEM, "the host can spare")


def instance_cases(lent, free, host):
    def case(name, target, operations, number, reason):
        return Case(f"instance: {name}", overlay((target, operations)), number, reason)

    def new(name, operations, number, reason):
        return case(f"create {name}", "/instances", operations, number, reason)

    def own(name, operations, number, reason):
        return case(name, "/instances/bad", operations, number, reason)

    size = 64 * MIB
    nothing = {"instance-create": {}}
    yield new("nothing", nothing, errno.EINVAL, "instance-name is missing or not valid")
    for name in ("", ".", "..", "a/b", "a b", "n" * 64):
        yield new(f"{name[:8]!r}", create(name, [free], size), errno.EINVAL, "missing or not valid")
    yield new(
        "a second one", create("bad", [free], size), errno.EEXIST, "instance-create bad: the name is in use"
    )
    yield new("id 0", create("new", [free], size, id=u32(0)), errno.EINVAL, "id 0 is not within 1..511")
    yield new("id 512", create("new", [free], size, id=u32(512)), errno.EINVAL, "id 512 is not within")
    yield new("id of 64 bits", create("new", [free], size, id=u64(7)), errno.EINVAL, "id has 8 bytes")
    used = int(read(MULTIKERNEL / "instances/bad/id"))
    yield new("id in use", create("new", [free], size, id=u32(used)), errno.EEXIST, f"id {used} is in use")
    bare = {"instance-create": {"instance-name": text("new")}}
    yield new("no resources", bare, errno.EINVAL, "there is no node resources")
    yield new("no CPU", create("new", [], size), errno.EINVAL, "cpus has 0 bytes")
    yield new("unknown CPU", create("new", [4095], size), errno.ENODEV, "physical id 4095")
    yield new("CPU twice", create("new", [free, free], size), errno.EINVAL, "appears twice")
    yield new("CPU of another", create("new", [free, lent], size), errno.EBUSY, "is not free")
    yield new("CPU of the host", create("new", [host], size), errno.EBUSY, "is not in the pool")
    yield new("no memory", create("new", [free], 0), errno.EINVAL, "memory-bytes 0 is zero")
    yield new("half a page", create("new", [free], size + 2048), errno.EINVAL, "no multiple of 4096")
    yield new("too little memory", create("new", [free], MIB), errno.EINVAL, "less than the minimum")
    yield new("too much memory", create("new", [free], TIB), errno.ENOMEM, "the pool has no")
    node = create("new", [free], size, resources={"numa-nodes": u32(61)})
    yield new("on no node", node, errno.EINVAL, "no NUMA node 61")
    node = create("new", [free], size, resources={"numa-nodes": b"\0\0\0"})
    yield new("on three bytes of node", node, errno.EINVAL, "numa-nodes has 3 bytes")
    yield case("remove missing", "/instances", remove("missing"), errno.ENOENT, "there is no such instance")
    yield case(
        "remove without name", "/instances", {"instance-remove": {}}, errno.EINVAL, "instance-name is missing"
    )
    both = [*remove("bad").items(), *remove("bad").items()]
    yield case("remove twice", "/instances", both, errno.ENOENT, "there is no such instance")

    (start, length) = chunks()[0]
    (first, first_size) = regions("bad")[0]
    end = start + length
    yield own("cpu-add its own", {"cpu-add": cpus(lent)}, errno.EEXIST, "has CPU")
    yield own("cpu-add the host's", {"cpu-add": cpus(host)}, errno.EBUSY, "is not in the pool")
    yield own("cpu-add twice", {"cpu-add": cpus(free, free)}, errno.EEXIST, "already")
    yield own("cpu-remove the last", {"cpu-remove": cpus(lent)}, errno.EBUSY, "is the instance's last one")
    yield own("cpu-remove a free one", {"cpu-remove": cpus(free)}, errno.EINVAL, "does not have CPU")
    yield own("memory-add nothing", {"memory-add": ranges((end - MIB, 0))}, errno.EINVAL, "no whole pages")
    yield own(
        "memory-add unaligned", {"memory-add": ranges((end - MIB, MIB))}, errno.EINVAL, "are not aligned"
    )
    beyond = {"memory-add": ranges((end - 2 * MIB, 4 * MIB))}
    yield own("memory-add beyond the chunk", beyond, errno.EINVAL, "not within one chunk")
    yield own(
        "memory-add what it has", {"memory-add": ranges((first, 2 * MIB))}, errno.EBUSY, "by instance bad"
    )
    twice = {"memory-add": ranges((end - 4 * MIB, 4 * MIB), (end - 2 * MIB, 2 * MIB))}
    yield own("memory-add overlapping", twice, errno.EBUSY, "are in use by instance bad")
    by_size = {"memory-add": {"memory@0": {"size": u64(2 * MIB)}}}
    yield own("memory-add by size", by_size, errno.EINVAL, "memory@0 has no valid reg")
    root = {"memory-remove": ranges((first, first_size))}
    yield own("memory-remove the first region", root, errno.EBUSY, "first region has to stay")
    part = {"memory-remove": ranges((first, 2 * MIB))}
    yield own("memory-remove a part", part, errno.EINVAL, "has no region of")
    device = {"device-remove": {"pci@0": {"pci-id": text("0000:00:01.0")}}}
    yield own("a device", device, errno.EOPNOTSUPP, "devices cannot be lent")


def late_cases(free, host):
    """Whole transactions of which only the last operation is not possible."""

    def case(name, *fragments):
        data = overlay(*fragments, ("/resources", {"memory-add": sizes(TIB)}))
        return Case(f"undone: {name}", data, errno.ENOMEM, "the host can spare")

    (start, length) = chunks()[0]
    grown = {"memory-add": ranges((start + length - 32 * MIB, 32 * MIB)), "cpu-add": cpus(free)}
    yield case("create", ("/instances", create("new", [free], 64 * MIB)))
    yield case("remove", ("/instances", remove("bad")))
    yield case("replace", ("/instances", remove("bad")), ("/instances", create("bad", [free], 128 * MIB)))
    yield case("grow", ("/instances/bad", grown))
    yield case(
        "cpu-add and create",
        ("/resources", {"cpu-add": cpus(host)}),
        ("/instances", create("new", [host], POOL // 2)),
    )
    empty = {"memory-remove": ranges((start, length)), "cpu-remove": cpus(free)}
    yield case("empty the pool", ("/instances", remove("bad")), ("/resources", empty))


# --- the run


def apic_ids(everything=False):
    """Physical ids by logical number: of the online CPUs, or as they were at the first call."""
    found = dict(
        zip(
            *(
                map(int, re.findall(rf"^{key}\s*: (\d+)$", read("/proc/cpuinfo"), re.M))
                for key in ("processor", "apicid")
            ),
            strict=True,
        )
    )
    apic_ids.first = getattr(apic_ids, "first", found)
    return apic_ids.first if everything else found


def iomem(pattern):
    lines = re.findall(rf"^\s*([0-9a-f]+)-([0-9a-f]+) : {pattern}$", read("/proc/iomem"), re.M)
    return [(int(start, 16), int(end, 16) - int(start, 16) + 1) for start, end in lines]


def chunks():
    return iomem("Multikernel Memory Pool")


def regions(name):
    return iomem(rf"mk-instance-\d+-{re.escape(name)}-region-\d+")


def must(file, data, what):
    known = transactions()
    number = write(file, data)
    for new in transactions() - known:
        directory = MULTIKERNEL / f"overlays/tx_{new}"
        if read(directory / "status") != "applied\n":
            sys.exit(f"Bail out! cannot {what}: {read(directory / 'error')}")
    if number:
        sys.exit(f"Bail out! cannot {what}: {os.strerror(number)}")


def main():
    if not (MULTIKERNEL / "overlays/new").exists():
        sys.exit(f"Bail out! {MULTIKERNEL} is not mounted")
    spare = [ident for cpu, ident in sorted(apic_ids(everything=True).items()) if cpu]
    if len(spare) < 3:
        sys.exit(f"Bail out! the host has {len(spare)} CPUs beside CPU 0, needs 3")
    if chunks():
        sys.exit("Bail out! there is a pool, empty it first")
    lent, free, host = spare[:3]
    tap, log, before = Tap(), Log(), state()

    def run(cases):
        for case in cases:
            tap.check(try_case(case, log), case.name)

    print("TAP version 13")
    run(header_cases("device_tree", baseline([lent], POOL)))
    run(structure_cases("device_tree"))
    run(baseline_cases(lent))
    no_pool = overlay(("/resources", {"cpu-add": cpus(lent)}))
    run([Case("pool: none yet", no_pool, errno.EPERM, "there is no pool, write a baseline first")])

    must("device_tree", baseline([lent, free], POOL), "make a pool")
    must("overlays/new", overlay(("/instances", create("bad", [lent], 64 * MIB))), "create an instance")
    run(
        [
            Case(
                "baseline: a second one",
                baseline([host], POOL),
                errno.EBUSY,
                "there is a pool already",
                "device_tree",
            )
        ]
    )
    run(header_cases("overlays/new", overlay(("/instances", {}))))
    run(structure_cases("overlays/new"))
    run(fragment_cases())
    run(pool_cases(lent, free, host))
    run(instance_cases(lent, free, host))
    run(late_cases(free, host))

    everything = {"cpu-remove": cpus(lent, free), "memory-remove": ranges(*chunks())}
    must("overlays/new", overlay(("/instances", remove("bad")), ("/resources", everything)), "empty the pool")
    for number in transactions() - before["transactions"]:
        before["transactions"].add(number)
    tap.check(difference(before, state()), "the host has everything back")
    print(f"1..{tap.done}")
    return 1 if tap.failed else 0


if __name__ == "__main__":
    sys.exit(main())
