# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host under a directory: the files that a multikernel kernel shows, and a kerf that changes them.

It keeps the rules that the real ones keep: what they refuse is refused here. APIC ids are twice the logical
numbers, so that taking one for the other shows; with threads they are as on real machines, where siblings are
numbered far apart.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path

import libfdt

from ansible_collections.mkops.multikernel.plugins.module_utils.common.command import Done
from ansible_collections.mkops.multikernel.plugins.module_utils.common.cpuset import format_cpus
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.fdt import parse_fdt
from ansible_collections.mkops.multikernel.tests.unit import kerf_trees

MIB = 1024**2
PAGE = 4096
POOL_BASE = 0x40000000
KERF = "/opt/mkops/kerf/bin/kerf"


def u64(*values: int) -> bytes:
    return struct.pack(f">{len(values)}Q", *values)


def u32(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def device_tree(node: dict) -> bytes:
    """A blob of nested dictionaries: bytes and text are properties, dictionaries are nodes."""
    writer = libfdt.FdtSw()
    writer.finish_reservemap()

    def write(name: str, content: dict) -> None:
        with writer.add_node(name):
            for key, value in content.items():
                if isinstance(value, str):
                    writer.property_string(key, value)
                elif isinstance(value, bytes):
                    writer.property(key, value)
            for key, value in content.items():
                if isinstance(value, dict):
                    write(key, value)

    write("", node)
    return bytes(writer.as_fdt().as_bytearray())


class Refusal(Exception):
    """What kerf or the kernel say no to."""


@dataclass
class FakeInstance:
    id: int
    cpus: list[int]  # the one it starts on first
    base: int
    size: int
    status: str = "ready"
    cmdline: str = ""
    added: list[tuple[int, int]] = field(default_factory=list)  # further regions: base, size
    exit_reason: str = "none"
    epoch: int = 0
    spoiled: bool = False  # by an image that could not be loaded
    virtio: dict[str, tuple[int, int]] = field(default_factory=dict)  # node: device id and queues

    @property
    def regions(self) -> list[tuple[int, int]]:
        return [(self.base, self.size), *self.added]

    @property
    def memory(self) -> int:
        return sum(size for _base, size in self.regions)


@dataclass
class FakeKernel:
    root: Path
    cpus: int = 4
    threads: int = 1
    nodes: int = 1
    distances: list[list[int]] = field(default_factory=list)  # between nodes
    caches: int = 1
    memory_mib: int = 2048
    supported: bool = True
    mounted: bool = True
    series: str = "full"  # this collection's: full, first; or upstream
    tells_logical: bool = True
    tells_boot: bool = True
    tells_cmdline: bool = True
    flags: str = "kerf 0.4"  # of kexec_file_load(2); or others, as of mainline
    unloadable: str = ""  # the end of a path of an image that the kernel does not take
    kexec_errno: int = 0  # that it answers whatever is asked
    version: str = "0.4.0"
    granule: int = 128 * MIB
    pool_cpus: list[int] = field(default_factory=list)  # APIC ids
    chunks: list[tuple[int, int, int]] = field(default_factory=list)  # base, size, node
    instances: dict[str, FakeInstance] = field(default_factory=dict)
    calls: list[list[str]] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)  # command -> what it says instead of doing anything
    after: dict = field(default_factory=dict)  # command -> called once it has had its effect
    virtio: bool = False  # offers virtio devices
    bridges: list[str] = field(default_factory=list)
    units: list[str] = field(default_factory=list)  # what systemctl was asked for
    networks: list[list[str]] = field(default_factory=list)  # whose was set up, each time
    transactions: int = 1
    shown: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sync()

    # The files

    def write(self, path: str, content: str | bytes) -> None:
        data = content.encode() if isinstance(content, str) else content
        if self.shown.get(path) == data and os.path.exists(f"{self.root}{path}"):
            return
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        self.shown[path] = data

    def apic(self, cpu: int) -> int:
        if self.threads == 1:
            return 2 * cpu
        cores = self.cpus // self.threads
        return cpu % cores * self.threads + cpu // cores

    def node_of(self, cpu: int) -> int:
        cores = self.cpus // self.threads
        return cpu % cores * self.nodes // cores

    def cache_of(self, cpu: int) -> int:
        cores = self.cpus // self.threads
        return cpu % cores * self.caches // cores

    @property
    def logical(self) -> dict[int, int]:
        return {self.apic(cpu): cpu for cpu in range(self.cpus)}

    def sync(self) -> None:
        online = [cpu for cpu in range(self.cpus) if self.apic(cpu) not in self.pool_cpus]
        available = self.memory_mib * 1024 - sum(size for _base, size, _node in self.chunks) // 1024
        self.write("/proc/filesystems", "nodev\tsysfs\n" + ("nodev\tmultikernel\n" if self.supported else ""))
        self.write(
            "/proc/mounts",
            "none /sys/fs/multikernel multikernel rw 0 0\n" if self.mounted else "/ / ext4 rw 0 0\n",
        )
        (self.root / "var/run").mkdir(parents=True, exist_ok=True)
        self.write("/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
        if self.virtio:
            (self.root / "sys/class/mkvirtio").mkdir(parents=True, exist_ok=True)
        for bridge in self.bridges:
            (self.root / "sys/class/net" / bridge / "bridge").mkdir(parents=True, exist_ok=True)
        self.write("/proc/uptime", "120.50 400.00\n")
        self.write("/proc/stat", "cpu  1 2 3\nbtime 1790000000\nprocesses 7\n")
        self.write("/proc/meminfo", f"MemTotal: {available + 65536} kB\nMemAvailable: {available} kB\n")
        self.write("/proc/sys/kernel/osrelease", "6.12.107-mkops\n")
        self.write("/proc/sys/kernel/random/boot_id", "11111111-2222-3333-4444-555555555555\n")
        self.write(
            "/proc/cpuinfo",
            "".join(
                f"processor\t: {cpu}\nvendor_id\t: Any\nphysical id\t: 0\n"
                f"core id\t\t: {cpu % (self.cpus // self.threads)}\napicid\t\t: {self.apic(cpu)}\n\n"
                for cpu in online
            ),
        )
        at = "/sys/devices/system/cpu"
        self.write(f"{at}/present", format_cpus(range(self.cpus)) + "\n")
        self.write(f"{at}/smt/control", "on\n" if self.threads > 1 else "notsupported\n")
        sharing: dict[int, list[int]] = {}
        for cpu in online:
            sharing.setdefault(self.cache_of(cpu), []).append(cpu)
        for cpus in sharing.values():
            text = format_cpus(cpus) + "\n"
            for cpu in cpus:
                self.write(f"{at}/cpu{cpu}/cache/index3/level", "3\n")
                self.write(f"{at}/cpu{cpu}/cache/index3/shared_cpu_list", text)
        for node in range(self.nodes):
            path = f"/sys/devices/system/node/node{node}"
            for cpu in range(self.cpus):
                if self.node_of(cpu) == node:
                    self.write(f"{path}/cpu{cpu}/online", "")
            if self.distances:
                self.write(f"{path}/distance", " ".join(map(str, self.distances[node])) + "\n")
            self.write(
                f"{path}/meminfo",
                f"Node {node} MemTotal: {self.memory_mib * 1024 // self.nodes} kB\n"
                f"Node {node} MemFree:  {available // self.nodes} kB\n",
            )
        if not (self.root / "dev/kmsg").exists():
            self.write("/dev/kmsg", b"")
        if self.tells_cmdline:
            rows = [
                f'{one.id:5d}  multikernel  0x000040000000         4  file  "{one.cmdline}"\n'
                for one in self.instances.values()
                if one.status in ("loaded", "active")
            ]
            self.write(
                "/proc/kimage",
                "MK_ID  Type        Start Address   Segments  Mode  Cmdline\n-----  ----------\n"
                + "".join(rows),
            )
        if self.mounted:
            self._sync_multikernel()

    def _sync_multikernel(self) -> None:
        resources: dict = {}
        if self.chunks or self.pool_cpus:
            lent = {apic for one in self.instances.values() for apic in one.cpus}
            free = [apic for apic in self.pool_cpus if apic not in lent]
            if self.pool_cpus:
                resources["cpus"] = u64(*self.pool_cpus)
            if self.tells_logical:
                resources["cpus-logical"] = u32(*(self.logical[apic] for apic in self.pool_cpus))
            if free:
                resources["cpus-available"] = u64(*free)
            for base, size, node in self.chunks:
                resources[f"memory@{base:x}"] = {"reg": u64(base, size), "numa-node-id": u32(node)}
        else:
            resources["cpus"] = u64(*(self.apic(cpu) for cpu in range(self.cpus)))
        root: dict = {"id": u32(0), "resources": resources}
        if self.series != "upstream":
            root["implementation"] = "mkops,multikernel-1"
        if self.series == "full":
            root["memory-granule"] = u64(self.granule)
        self.write("/sys/fs/multikernel/device_tree", device_tree(root))

        instances = self.root / "sys/fs/multikernel/instances"
        instances.mkdir(parents=True, exist_ok=True)
        for path in instances.iterdir():
            if path.name not in self.instances:
                shutil.rmtree(path)
        for name, one in self.instances.items():
            at = f"/sys/fs/multikernel/instances/{name}"
            self.write(f"{at}/id", f"{one.id}\n")
            self.write(f"{at}/status", f"{one.status}\n")
            own = {
                "cpus": u64(*sorted(one.cpus)),
                "memory-base": u64(one.base),
                "memory-bytes": u64(one.memory),
            }
            if self.series == "full" and self.tells_boot:
                own["boot-cpu"] = u64(one.cpus[0])
            if one.virtio:
                own["virtio"] = {
                    node: {"device-id": u32(kind), "queues": u32(queues)}
                    for node, (kind, queues) in one.virtio.items()
                }
            self.write(f"{at}/device_tree", device_tree({"model": name, "id": u32(one.id), "resources": own}))
            if self.series == "full":
                self.write(f"{at}/exit_reason", f"{one.exit_reason}\n")
                self.write(f"{at}/epoch", f"{one.epoch}\n")
                age = "heartbeat_age_ms 300\n" if one.status == "active" else ""
                stats = (
                    f"spawn_epoch {one.epoch}\nrestarts {max(one.epoch - 1, 0)}\nstate_since_ms 60500\n{age}"
                )
                self.write(f"{at}/stats", f"{stats}new and odd\n")

        lines = ["00001000-0009ffff : System RAM"]
        for base, size, _node in self.chunks:
            lines.append(f"{base:08x}-{base + size - 1:08x} : Multikernel Memory Pool")
            lines += [
                f"  {start:08x}-{start + length - 1:08x} : mk-instance-{one.id}-{name}-region-{number}"
                for name, one in self.instances.items()
                for number, (start, length) in enumerate(one.regions)
                if base <= start < base + size
            ]
        self.write("/proc/iomem", "\n".join(lines) + "\n")

    def log(self, text: str, level: int = 3) -> None:
        with (self.root / "dev/kmsg").open("a") as kmsg:
            kmsg.write(f"{level},100,5000,-;{text}\n")

    def was_read(self, path: Path) -> None:
        """Multikernel Linux makes a tree for every reading, and says so."""
        name = path.parent.name
        if self.series == "upstream" and name in self.instances:
            number = self.instances[name].id
            self.log(f"multikernel: Generated instance DTB for '{name}' (ID {number}): 301 bytes", level=6)

    def snapshot(self) -> dict[str, bytes]:
        """All that a change would show in."""
        base = self.root / "sys/fs/multikernel"
        return {str(path): path.read_bytes() for path in sorted(base.rglob("*")) if path.is_file()}

    def kexec_file_load(self, flags: int) -> int:
        """The errno that a load without files gets."""
        number, switch = flags >> 5 & 0x7FF, flags & 0x10
        if self.kexec_errno:
            return self.kexec_errno
        if self.flags != "kerf 0.4":
            return errno.EINVAL if flags & ~0x3F else errno.EBADF  # no CMA and a forced tree are legal there
        if self.series == "upstream":
            assert number not in {one.id for one in self.instances.values()}, "that would spoil an instance"
            return errno.ENOENT if switch and number else errno.EBADF
        return errno.EBADF if switch and 1 <= number <= 511 else errno.EINVAL

    # kerf

    def run(self, argv: list[str], _timeout: float, **_manner: bool) -> Done:
        self.calls.append(list(argv))
        command, words = argv[1], argv[2:]
        if command == "--version":
            return Done(tuple(argv), 0, f"kerf, version {self.version}\n")
        names = [word for word in words if not word.startswith("--")]
        pairs = [word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word]
        options = {name.replace("-", "_"): value for name, value in pairs}
        flags = [word for word in words if word.startswith("--") and "=" not in word]
        if command in self.broken:
            self.log(f"reason of {command}")
            self._transaction("failed")
            return Done(tuple(argv), 1, "", self.broken[command])
        try:
            getattr(self, f"kerf_{command}")(*names, **options, flags=flags)
        except Refusal as refusal:
            self.log(str(refusal))
            self._transaction("failed", str(refusal))
            return Done(tuple(argv), 1, "", f"Error: {refusal}")
        self.sync()
        if command in self.after:
            self.after[command](self)
        return Done(tuple(argv), 0, "done\n")

    @property
    def changes(self) -> list[list[str]]:
        """The calls that change something, without the path of kerf."""
        return [call[1:] for call in self.calls if call[1] != "--version"]

    def _transaction(self, status: str, error: str = "") -> None:
        self.transactions += 1
        at = f"/sys/fs/multikernel/overlays/tx_{self.transactions}"
        self.write(f"{at}/status", f"{status}\n")
        if error and self.series != "upstream":
            self.write(f"{at}/error", f"{error}\n")

    def _refuse_unless(self, holds: bool, why: str) -> None:
        if not holds:
            raise Refusal(why)

    def gaps(self) -> list[tuple[int, int, int]]:
        """Begin, end and node of what is free."""
        found = []
        used = sorted(region for one in self.instances.values() for region in one.regions)
        for base, size, node in sorted(self.chunks):
            begin = base
            for start, length in used:
                if base <= start < base + size:
                    found.append((begin, start, node))
                    begin = start + length
            found.append((begin, base + size, node))
        return [gap for gap in found if gap[1] > gap[0]]

    def free_cpus(self) -> set[int]:
        return set(self.pool_cpus) - {apic for one in self.instances.values() for apic in one.cpus}

    def kerf_init(self, cpus: str, memory: str, devices: str, flags: list[str]) -> None:
        assert not flags
        wanted_cpus = set() if cpus == "none" else set(map(int, cpus.split(",")))
        wanted = {} if memory == "none" else dict(reversed(part.split("@")) for part in memory.split(","))
        sizes = {int(node): int(size) for node, size in wanted.items()}
        live = bool(self.pool_cpus or self.chunks)
        self._refuse_unless(bool(wanted_cpus) or not sizes, "a pool without CPUs is invalid")
        self._refuse_unless(live or bool(sizes) or not wanted_cpus, "Spawn pool size must be positive")
        coming, leaving = self._pool_changes(sizes)
        gone, new = set(self.pool_cpus) - wanted_cpus, wanted_cpus - set(self.pool_cpus)
        if not live:
            self._tree(kerf_trees.baseline, sorted(wanted_cpus), sizes, limit=None)
        elif gone or new or coming or leaving:
            self._tree(kerf_trees.pool, new, gone, coming, [chunk[:2] for chunk in leaving])
        lent = {apic for one in self.instances.values() for apic in one.cpus}
        self._refuse_unless(self.apic(0) not in wanted_cpus, "the boot CPU stays")
        self._refuse_unless(wanted_cpus <= set(self.logical), "no such CPU")
        self._refuse_unless(lent <= wanted_cpus, "a CPU is lent")
        self._transaction("applied")
        self.pool_cpus = sorted(wanted_cpus, key=self.logical.get)
        for node, size in coming:
            end = max([base + length for base, length, _node in self.chunks], default=POOL_BASE)
            self.chunks.append((-(-end // self.granule) * self.granule, size, node))
        for chunk in leaving:
            self.chunks.remove(chunk)

    def _pool_changes(
        self, sizes: dict[int, int]
    ) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
        """Node and size of what comes, chunks that leave: whole idle ones, the largest first."""
        coming, leaving = [], []
        regions = [region for one in self.instances.values() for region in one.regions]
        for node in range(self.nodes):
            held = [chunk for chunk in self.chunks if chunk[2] == node]
            rest = sum(size for _base, size, _node in held) - sizes.get(node, 0)
            if rest < 0:
                coming.append((node, -rest))
            for chunk in sorted(held, key=lambda chunk: -chunk[1]):
                busy = any(chunk[0] <= base < chunk[0] + chunk[1] for base, _size in regions)
                if not busy and chunk[1] <= rest:
                    leaving.append(chunk)
                    rest -= chunk[1]
        return coming, leaving

    def _tree(self, make, *arguments, limit: int | None = PAGE, **other) -> None:
        """kerf makes it, and the kernel takes it: Multikernel Linux no more of an overlay than a page."""
        try:
            tree = make(*arguments, **other)
        except libfdt.FdtException as error:
            raise Refusal(f"Failed to generate overlay: {error}") from error
        cut = self.series == "upstream" and limit is not None and len(tree) > limit
        self._refuse_unless(not cut, "Failed to write overlay to overlays/new: [Errno 22] Invalid argument")

    def kerf_create(
        self, name: str, cpus: str, memory: str, flags: list[str], id: str = "", numa_nodes: str = ""
    ) -> None:
        used = {one.id for one in self.instances.values()}
        number = int(id) if id else next(number for number in range(1, 512) if number not in used)
        wanted = sorted(map(int, cpus.split(",")))
        self._refuse_unless(name not in self.instances, "the name is in use")
        self._refuse_unless(number not in used, "the id is in use")
        self._refuse_unless(set(wanted) <= self.free_cpus(), "a CPU is not free")
        self._tree(
            kerf_trees.create,
            name,
            wanted,
            int(memory),
            int(id) if id else None,
            int(numa_nodes) if numa_nodes else None,
        )
        gaps = [gap for gap in self.gaps() if numa_nodes in ("", str(gap[2]))]
        regions = (self._halves if self.series == "upstream" else self._pieces)(int(memory), gaps)
        self._transaction("applied")
        self.instances[name] = FakeInstance(number, wanted, *regions[0], added=regions[1:])

    def write_overlay(self, path: Path, blob: bytes) -> None:
        """An overlay that creates an instance with virtio devices, the only one that kerf does not write."""
        assert path == self.root / "sys/fs/multikernel/overlays/new"
        if why := self.broken.get("overlay"):
            raise OSError(errno.EINVAL, why)
        create = parse_fdt(blob).find("/fragment@0/__overlay__/instance-create")
        resources = create.find("resources")
        number = create.cells("id", 4)
        try:
            self.kerf_create(
                create.text("instance-name"),
                ",".join(map(str, resources.cells("cpus", 8))),
                str(resources.cell("memory-bytes", 8)),
                [],
                *map(str, number or [""]),
                *map(str, resources.cells("numa-nodes", 4)),
            )
        except Refusal as refusal:
            self._transaction("failed", str(refusal))
        else:
            self.instances[create.text("instance-name")].virtio = {
                node: (one.cell("device-id", 4), one.cell("queues", 4))
                for node, one in resources.find("virtio").children.items()
            }
        self.sync()

    def set_network(self, root: str, records: Path, served: Path) -> None:
        assert (root, served) == (str(self.root), self.root / "run/mkops/devices")
        self.networks.append(sorted(path.stem for path in records.glob("*.json")))

    def systemctl(self, argv: list[str], _purpose: str, timeout: float) -> None:
        """A service of devices has its directory while it runs."""
        assert argv[0] == "systemctl" and timeout
        self.units.append(" ".join(argv[1:]))
        for unit in argv[2:]:
            at = self.root / "run/mkops/devices" / unit.partition("@")[2].removesuffix(".service")
            if argv[1] == "stop":
                at.rmdir()
            elif at.name:
                at.mkdir(parents=True, exist_ok=True)

    def _pieces(self, left: int, gaps: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
        regions = []
        fitting = [gap for gap in gaps if gap[1] - gap[0] >= left]
        self._refuse_unless(bool(fitting) or self.series == "full", "no memory")
        for begin, end, _node in fitting[:1] or sorted(gaps, key=lambda gap: gap[0] - gap[1]):
            if left:
                regions.append((begin, min(end - begin, left)))
                left -= regions[-1][1]
        self._refuse_unless(not left, "no memory")
        return regions

    def _halves(self, left: int, gaps: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
        """What is left, or half of it, and so on to a page, wherever it fits first."""
        regions, free = [], [list(gap[:2]) for gap in gaps]
        while left:
            size = left
            while not (fitting := [gap for gap in free if gap[1] - gap[0] >= size]):
                self._refuse_unless(size > PAGE, "Failed to allocate chunk")
                size = size // 2 // PAGE * PAGE
            regions.append((fitting[0][0], size))
            fitting[0][0] += size
            left -= size
        return regions

    def kerf_update(self, name: str, flags: list[str], cpus: str = "", memory: str = "") -> None:
        one = self.instances[name]
        self._refuse_unless(self.series != "first", "not yet")
        if cpus:
            wanted = set(map(int, cpus.split(",")))
            kept = [apic for apic in one.cpus if apic in wanted]
            self._refuse_unless(wanted - set(kept) <= self.free_cpus(), "a CPU is not free")
            self._refuse_unless(bool(kept), "the last CPU stays")
            self._refuse_unless(one.status != "active" or kept[0] == one.cpus[0], "the boot CPU stays")
            self._tree(kerf_trees.update, name, set(one.cpus) - wanted, wanted - set(one.cpus))
            one.cpus = [*kept, *sorted(wanted - set(kept))]
        if memory:
            more = int(memory) - one.memory
            if more > 0:
                self._refuse_unless(more % self.granule == 0, "not a multiple of the granule")
                begins = [
                    begin
                    for first, end, _node in self.gaps()
                    for begin in [(end - more) // self.granule * self.granule]
                    if begin >= first
                ]
                self._refuse_unless(bool(begins), "no free range that large")
                one.added.append((max(begins), more))
            gone = []
            while more < 0 and one.added:
                gone.append(one.added.pop())
                more += gone[-1][1]
            self._refuse_unless(more >= 0, "whole regions only")
            if gone:
                self._tree(kerf_trees.update, name, (), (), gone)
        self._transaction("applied")

    def kerf_load(
        self, name: str, kernel: str, flags: list[str], initrd: str = "", cmdline: str = ""
    ) -> None:
        one = self.instances[name]
        self._refuse_unless(one.status == "ready", "busy")
        if one.spoiled:
            raise Refusal("kexec_file_load failed: [Errno 16] Device or resource busy")
        if self.unloadable and kernel.endswith(self.unloadable):
            one.spoiled = self.series == "upstream"
            raise Refusal("kexec_file_load failed: [Errno 8] Exec format error")
        one.status = "loaded"
        words = cmdline.split()
        has_console = any(word.startswith("console=") for word in words)
        one.cmdline = cmdline if has_console else " ".join([*words, "console=mktty0"])

        def note(path: str) -> dict | None:
            if not path:
                return None
            data = Path(path).read_bytes()
            return {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

        self.write(
            f"/var/lib/kerf/instances/{name}.json",
            json.dumps({"kernel": note(kernel), "initrd": note(initrd)}),
        )

    def kerf_start(self, name: str, flags: list[str]) -> None:
        one = self.instances[name]
        self._refuse_unless(one.status == "loaded", "not loaded")
        one.status, one.exit_reason = "active", "none"
        one.epoch += 1

    def kerf_kill(self, name: str, flags: list[str]) -> None:
        one = self.instances[name]
        self._refuse_unless(one.status == "active", "not running")
        one.status = "loaded"
        one.exit_reason = "forced" if "--force" in flags else "clean: power off"

    def kerf_unload(self, name: str, flags: list[str]) -> None:
        self._refuse_unless(self.instances[name].status == "loaded", "not loaded")
        self.instances[name].status = "ready"
        self._forget(name)

    def kerf_delete(self, name: str, flags: list[str]) -> None:
        self._refuse_unless(self.instances[name].status in ("ready", "empty", "failed"), "in use")
        self._transaction("applied")
        del self.instances[name]
        self._forget(name)

    def _forget(self, name: str) -> None:
        (self.root / f"var/lib/kerf/instances/{name}.json").unlink(missing_ok=True)
