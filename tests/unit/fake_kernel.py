# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host under a directory: the files that a multikernel kernel shows, and a kerf that changes them.

APIC ids are twice the logical numbers, so that taking one for the other shows.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path

import libfdt

from ansible_collections.mkops.multikernel.plugins.module_utils._cpuset import format_cpus
from ansible_collections.mkops.multikernel.plugins.module_utils._kerf import Outcome

MIB = 1024**2
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


@dataclass
class FakeInstance:
    id: int
    cpus: list[int]
    base: int
    size: int
    status: str = "ready"
    cmdline: str = ""


@dataclass
class FakeKernel:
    root: Path
    cpus: int = 4
    nodes: int = 1
    memory_mib: int = 2048
    supported: bool = True
    mounted: bool = True
    tells_logical: bool = True
    tells_cmdline: bool = True
    version: str = "0.4.0"
    pool_cpus: list[int] = field(default_factory=list)  # APIC ids
    chunks: list[tuple[int, int, int]] = field(default_factory=list)  # base, size, node
    instances: dict[str, FakeInstance] = field(default_factory=dict)
    calls: list[list[str]] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)  # command -> what it says instead of doing anything
    after: dict = field(default_factory=dict)  # command -> called once it has had its effect
    transactions: int = 1

    def __post_init__(self) -> None:
        self.sync()

    # The files

    def write(self, path: str, content: str | bytes) -> None:
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)

    def node_of(self, cpu: int) -> int:
        return cpu * self.nodes // self.cpus

    def sync(self) -> None:
        online = [cpu for cpu in range(self.cpus) if 2 * cpu not in self.pool_cpus]
        available = self.memory_mib * 1024 - sum(size for _base, size, _node in self.chunks) // 1024
        self.write("/proc/filesystems", "nodev\tsysfs\n" + ("nodev\tmultikernel\n" if self.supported else ""))
        self.write(
            "/proc/mounts",
            "none /sys/fs/multikernel multikernel rw 0 0\n" if self.mounted else "/ / ext4 rw 0 0\n",
        )
        self.write("/proc/uptime", "120.50 400.00\n")
        self.write("/proc/meminfo", f"MemTotal: {available + 65536} kB\nMemAvailable: {available} kB\n")
        self.write("/proc/sys/kernel/osrelease", "6.12.107-mkops\n")
        self.write("/proc/sys/kernel/random/boot_id", "11111111-2222-3333-4444-555555555555\n")
        self.write(
            "/proc/cpuinfo",
            "".join(f"processor\t: {cpu}\nvendor_id\t: Any\napicid\t\t: {2 * cpu}\n\n" for cpu in online),
        )
        self.write("/sys/devices/system/cpu/present", format_cpus(online) + "\n")
        for node in range(self.nodes):
            here = [cpu for cpu in online if self.node_of(cpu) == node]
            path = f"/sys/devices/system/node/node{node}"
            self.write(f"{path}/cpulist", format_cpus(here) + "\n")
            self.write(f"{path}/meminfo", f"Node {node} MemFree:  {available // self.nodes} kB\n")
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
                resources["cpus-logical"] = u32(*(apic // 2 for apic in self.pool_cpus))
            if free:
                resources["cpus-available"] = u64(*free)
            for base, size, node in self.chunks:
                resources[f"memory@{base:x}"] = {"reg": u64(base, size), "numa-node-id": u32(node)}
        else:
            resources["cpus"] = u64(*(2 * cpu for cpu in range(self.cpus)))
        self.write("/sys/fs/multikernel/device_tree", device_tree({"id": u32(0), "resources": resources}))

        instances = self.root / "sys/fs/multikernel/instances"
        shutil.rmtree(instances, ignore_errors=True)
        instances.mkdir(parents=True)
        for name, one in self.instances.items():
            at = f"/sys/fs/multikernel/instances/{name}"
            self.write(f"{at}/id", f"{one.id}\n")
            self.write(f"{at}/status", f"{one.status}\n")
            own = {"cpus": u64(*one.cpus), "memory-base": u64(one.base), "memory-bytes": u64(one.size)}
            self.write(f"{at}/device_tree", device_tree({"model": name, "id": u32(one.id), "resources": own}))

        lines = ["00001000-0009ffff : System RAM"]
        for base, size, _node in self.chunks:
            lines.append(f"{base:08x}-{base + size - 1:08x} : Multikernel Memory Pool")
            lines += [
                f"  {one.base:08x}-{one.base + one.size - 1:08x} : mk-instance-{one.id}-{name}-region-0"
                for name, one in self.instances.items()
                if base <= one.base < base + size
            ]
        self.write("/proc/iomem", "\n".join(lines) + "\n")

    def log(self, text: str) -> None:
        with (self.root / "dev/kmsg").open("a") as kmsg:
            kmsg.write(f"6,100,5000,-;{text}\n")

    def snapshot(self) -> dict[str, bytes]:
        """All that a change would show in."""
        base = self.root / "sys/fs/multikernel"
        return {str(path): path.read_bytes() for path in sorted(base.rglob("*")) if path.is_file()}

    # kerf

    def run(self, argv: list[str], _timeout: float) -> Outcome:
        self.calls.append(list(argv))
        command, words = argv[1], argv[2:]
        if command == "--version":
            return Outcome(" ".join(argv), 0, f"kerf, version {self.version}\n")
        names = [word for word in words if not word.startswith("--")]
        options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
        flags = [word for word in words if word.startswith("--") and "=" not in word]
        if command in self.broken:
            self.log(f"reason of {command}")
            self._transaction("failed")
            return Outcome(" ".join(argv), 1, "", self.broken[command])
        getattr(self, f"kerf_{command}")(*names, **options, flags=flags)
        self.sync()
        if command in self.after:
            self.after[command](self)
        return Outcome(" ".join(argv), 0, "done\n")

    @property
    def changes(self) -> list[list[str]]:
        """The calls that change something, without the path of kerf."""
        return [call[1:] for call in self.calls if call[1] != "--version"]

    def _transaction(self, status: str) -> None:
        self.transactions += 1
        self.write(f"/sys/fs/multikernel/overlays/tx_{self.transactions}/status", f"{status}\n")

    def kerf_init(self, cpus: str, memory: str, devices: str, flags: list[str]) -> None:
        assert not flags
        self._transaction("applied")
        self.pool_cpus = [] if cpus == "none" else sorted(map(int, cpus.split(",")))
        wanted = {} if memory == "none" else dict(reversed(part.split("@")) for part in memory.split(","))
        for node in range(self.nodes):
            want = int(wanted.get(str(node), 0))
            held = [chunk for chunk in self.chunks if chunk[2] == node]
            have = sum(size for _base, size, _node in held)
            if want > have:
                end = max([base + size for base, size, _node in self.chunks], default=POOL_BASE)
                self.chunks.append((end, want - have, node))
            for chunk in sorted(held, key=lambda chunk: -chunk[1]):
                busy = any(chunk[0] <= one.base < chunk[0] + chunk[1] for one in self.instances.values())
                if not busy and chunk[1] <= have - want:
                    self.chunks.remove(chunk)
                    have -= chunk[1]

    def kerf_create(self, name: str, cpus: str, memory: str, flags: list[str], id: str = "") -> None:
        self._transaction("applied")
        used = {one.id for one in self.instances.values()}
        number = int(id) if id else next(number for number in range(1, 512) if number not in used)
        base = max(
            [one.base + one.size for one in self.instances.values()],
            default=min(base for base, *_ in self.chunks),
        )
        self.instances[name] = FakeInstance(number, sorted(map(int, cpus.split(","))), base, int(memory))

    def kerf_load(
        self, name: str, kernel: str, flags: list[str], initrd: str = "", cmdline: str = ""
    ) -> None:
        one = self.instances[name]
        assert one.status == "ready"
        one.status = "loaded"
        words = cmdline.split()
        has_console = any(word.startswith("console=") for word in words)
        one.cmdline = cmdline if has_console else " ".join([*words, "console=mktty0"])

        def note(path: str) -> dict | None:
            return (
                {"path": path, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}
                if path
                else None
            )

        self.write(
            f"/var/lib/kerf/instances/{name}.json",
            json.dumps({"kernel": note(kernel), "initrd": note(initrd)}),
        )

    def kerf_start(self, name: str, flags: list[str]) -> None:
        assert self.instances[name].status == "loaded"
        self.instances[name].status = "active"

    def kerf_kill(self, name: str, flags: list[str]) -> None:
        assert self.instances[name].status == "active"
        self.instances[name].status = "loaded"

    def kerf_unload(self, name: str, flags: list[str]) -> None:
        assert self.instances[name].status == "loaded"
        self.instances[name].status = "ready"

    def kerf_delete(self, name: str, flags: list[str]) -> None:
        assert self.instances[name].status in ("ready", "empty", "failed")
        self._transaction("applied")
        del self.instances[name]
