# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only reader of the multikernel filesystem and of the files around it. Nothing here writes."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from ._cpuset import parse_cpus
from ._machine import Chunk, Instance, Machine, Pool, Region
from ._topology import Topology, number_cpus, parse_cpuinfo, parse_madt

try:
    import libfdt
except ImportError:
    libfdt = None

MOUNT_POINT = "/sys/fs/multikernel"
LIBFDT_MISSING = (
    "the Python module 'libfdt', which reads the kernel's device trees, is missing:"
    " install the package python3-libfdt (role mkops.multikernel.host does)"
)

_IOMEM = re.compile(r"\s*([0-9a-f]+)-([0-9a-f]+) : (.*)")
_POOL_CHUNK = "Multikernel Memory Pool"
_HOST_BRIDGE = "multikernel,pci-host-bridge"


class KernelFsError(Exception):
    """The kernel's files cannot be read or do not say what they should."""


@dataclass(frozen=True)
class Paths:
    """Where things lie under a root directory."""

    root: str = "/"

    def at(self, path: str) -> Path:
        return Path(self.root, path.lstrip("/"))

    @property
    def multikernel(self) -> Path:
        return self.at(MOUNT_POINT)

    @property
    def console(self) -> Path:
        return self.at("/dev/mktty")

    @property
    def kernel_log(self) -> Path:
        return self.at("/dev/kmsg")

    @property
    def lock(self) -> Path:
        return self.at("/run/lock/mkops.lock")

    def record(self, name: str) -> Path:
        """kerf's note of what it loaded."""
        return self.at(f"/var/lib/kerf/instances/{name}.json")

    @property
    def kerf_locks(self) -> tuple[Path, ...]:
        return self.at("/var/run/kerf.lock"), self.at("/tmp/kerf.lock")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


class Tree:
    """A device tree with the few looks that are needed."""

    def __init__(self, blob: bytes, origin: Path):
        if libfdt is None:
            raise KernelFsError(LIBFDT_MISSING)
        try:
            self._fdt = libfdt.Fdt(blob)
        except libfdt.FdtException as error:
            raise KernelFsError(f"{origin} is not a device tree: {error}") from error

    def node(self, path: str) -> int | None:
        offset = self._fdt.path_offset(path, libfdt.QUIET_NOTFOUND)
        return offset if offset >= 0 else None

    def children(self, node: int | None) -> dict[str, int]:
        found: dict[str, int] = {}
        offset = -1 if node is None else self._fdt.first_subnode(node, libfdt.QUIET_NOTFOUND)
        while offset >= 0:
            found[self._fdt.get_name(offset)] = offset
            offset = self._fdt.next_subnode(offset, libfdt.QUIET_NOTFOUND)
        return found

    def raw(self, node: int | None, name: str) -> bytes | None:
        value = -1 if node is None else self._fdt.getprop(node, name, libfdt.QUIET_NOTFOUND)
        return None if isinstance(value, int) else bytes(value)

    def text(self, node: int | None, name: str) -> str:
        return (self.raw(node, name) or b"").split(b"\0")[0].decode(errors="replace")

    def cells(self, node: int | None, name: str, width: int) -> tuple[int, ...]:
        """Numbers of 4 or 8 bytes; empty when the property is absent."""
        value = self.raw(node, name) or b""
        return struct.unpack(f">{len(value) // width}{'Q' if width == 8 else 'I'}", value)

    def cpus(self, node: int | None, name: str) -> tuple[int, ...]:
        """CPU ids: 64 bits wide, in old trees 32, told apart by the length as kerf does."""
        length = len(self.raw(node, name) or b"")
        return self.cells(node, name, 8 if length % 8 == 0 else 4)


def parse_iomem(text: str) -> tuple[tuple[int, int, str], ...]:
    """(base, size, name) of every line."""
    lines = (_IOMEM.fullmatch(line) for line in text.splitlines())
    return tuple((int(m[1], 16), int(m[2], 16) - int(m[1], 16) + 1, m[3]) for m in lines if m)


def parse_kimage(text: str) -> dict[int, str]:
    """Instance id to the command line of its loaded image, from the table in /proc/kimage."""
    rows = (re.fullmatch(r"\s*(\d+)\s+multikernel\s[^\"]*\"(.*)\"\s*", line) for line in text.splitlines())
    return {int(row[1]): row[2] for row in rows if row}


def parse_choice(text: str) -> str:
    """The chosen word of a list such as C(none [integrity] confidentiality)."""
    chosen = re.search(r"\[(\w+)\]", text)
    return chosen[1] if chosen else ""


def parse_meminfo(text: str) -> dict[str, int]:
    """Bytes by field, of /proc/meminfo or of a NUMA node's meminfo."""
    rows = (re.fullmatch(r"(?:Node \d+ )?(\S+):\s+(\d+) kB", line.strip()) for line in text.splitlines())
    return {row[1]: int(row[2]) * 1024 for row in rows if row}


def _pci_devices(tree: Tree, node: int | None, domain: int) -> list[str]:
    """Addresses of the PCI functions below a bridge; a child without vendor-id is a bridge again."""
    found = []
    for child in tree.children(node).values():
        if tree.raw(child, "vendor-id") is None:
            found += _pci_devices(tree, child, domain)
        else:
            high = tree.cells(child, "reg", 4)[0]
            found.append(f"{domain:04x}:{high >> 16 & 0xFF:02x}:{high >> 11 & 0x1F:02x}.{high >> 8 & 7:x}")
    return found


def parse_pool(tree: Tree, iomem: str = "") -> tuple[Pool, tuple[int, ...]]:
    """The pool and, where the kernel tells them, the logical numbers of its CPUs."""
    resources = tree.node("/resources")
    chunks = []
    for name, node in tree.children(resources).items():
        reg = tree.cells(node, "reg", 8)
        if name.startswith("memory@") and len(reg) == 2:
            chunks.append(Chunk(reg[0], reg[1], (tree.cells(node, "numa-node-id", 4) or (0,))[0]))
    devices = [tree.text(node, "pci-id") for node in tree.children(tree.node("/resources/devices")).values()]
    for node in tree.children(tree.node("/")).values():
        if tree.text(node, "compatible") == _HOST_BRIDGE:
            devices += _pci_devices(tree, node, (tree.cells(node, "linux,pci-domain", 4) or (0,))[0])
    devices = [device for device in devices if device]

    if not (chunks or devices or tree.raw(resources, "cpus-available") is not None):
        return Pool(), ()  # before there is a pool, the tree shows the host's own CPUs
    regions = tuple(
        Region(base, size, name)
        for base, size, name in parse_iomem(iomem)
        if (name.startswith("mk-instance-") or name == "daxfs") and any(chunk.holds(base) for chunk in chunks)
    )
    pool = Pool(
        cpus=tree.cpus(resources, "cpus"),
        free_cpus=tree.cpus(resources, "cpus-available"),
        chunks=tuple(sorted(chunks, key=lambda chunk: chunk.base)),
        regions=regions,
        devices=tuple(sorted(devices)),
    )
    return pool, tree.cells(resources, "cpus-logical", 4)


class KernelFs:
    """Reads a host; each call reads anew."""

    def __init__(self, paths: Paths | None = None):
        self.paths = paths or Paths()

    def read(self) -> Machine:
        at = self.paths.at
        mounts = [line.split()[1:3] for line in _text(at("/proc/mounts")).splitlines()]
        mounted = [MOUNT_POINT, "multikernel"] in mounts
        kimage = at("/proc/kimage")
        pool, pool_logical = self._pool() if mounted else (Pool(), ())
        meminfo = parse_meminfo(_text(at("/proc/meminfo")))
        return Machine(
            release=_text(at("/proc/sys/kernel/osrelease")).strip() or platform.release(),
            boot_id=_text(at("/proc/sys/kernel/random/boot_id")).strip(),
            uptime=float(_text(at("/proc/uptime")).split()[0]),
            supported="multikernel" in _text(at("/proc/filesystems")).split(),
            mounted=mounted,
            privileged=os.geteuid() == 0,
            topology=self._topology(pool, pool_logical),
            node_memory=self._node_memory(),
            memory_total=meminfo["MemTotal"],
            memory_available=meminfo["MemAvailable"],
            tells_cmdline=kimage.exists(),
            console=self.paths.console.exists(),
            kexec_disabled=_text(at("/proc/sys/kernel/kexec_load_disabled")).strip() == "1",
            lockdown=parse_choice(_text(at("/sys/kernel/security/lockdown"))) or "none",
            pool=pool,
            instances=self._instances(parse_kimage(_text(kimage)), kimage.exists()) if mounted else {},
        )

    def status(self, name: str) -> str | None:
        """The state word of an instance, None when there is no such instance."""
        return _text(self.paths.multikernel / "instances" / name / "status").strip() or None

    def transactions(self) -> dict[int, str]:
        """Number of every overlay transaction, with its status, and the reason where the kernel tells it."""
        found = {}
        for path in (self.paths.multikernel / "overlays").glob("tx_*"):
            words = _text(path / "status").strip(), _text(path / "error").strip()
            found[int(path.name[3:])] = ": ".join(filter(None, words))
        return found

    def _tree(self, path: Path) -> Tree:
        try:
            return Tree(path.read_bytes(), path)
        except OSError as error:
            raise KernelFsError(f"cannot read {path}: {error.strerror}") from error

    def _pool(self) -> tuple[Pool, tuple[int, ...]]:
        path = self.paths.multikernel / "device_tree"
        if not path.exists() or not path.read_bytes():
            return Pool(), ()
        return parse_pool(self._tree(path), _text(self.paths.at("/proc/iomem")))

    def _topology(self, pool: Pool, pool_logical: tuple[int, ...]) -> Topology:
        at = self.paths.at
        online = parse_cpuinfo(_text(at("/proc/cpuinfo")))
        madt = b""
        if len(pool_logical) != len(pool.cpus):
            with contextlib.suppress(FileNotFoundError):
                madt = at("/sys/firmware/acpi/tables/APIC").read_bytes()
        nodes = {}
        for path in at("/sys/devices/system/node").glob("node[0-9]*"):
            cpulist = _text(path / "cpulist").strip()
            nodes.update(dict.fromkeys(parse_cpus(cpulist) if cpulist else (), int(path.name[4:])))
        return Topology(
            online=tuple(sorted(online)),
            present=tuple(parse_cpus(_text(at("/sys/devices/system/cpu/present")).strip() or [*online])),
            physical=number_cpus(online, pool.cpus, pool_logical, parse_madt(madt)),
            node={cpu: node for cpu, node in nodes.items() if cpu in online},
        )

    def _node_memory(self) -> dict[int, int]:
        available = {}
        for path in self.paths.at("/sys/devices/system/node").glob("node[0-9]*"):
            info = parse_meminfo(_text(path / "meminfo"))
            fields = ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")
            available[int(path.name[4:])] = sum(info.get(field, 0) for field in fields)
        return available

    def _instances(self, cmdlines: dict[int, str], tells_cmdline: bool) -> dict[str, Instance]:
        found = {}
        for path in sorted((self.paths.multikernel / "instances").glob("*/id")):
            name = path.parent.name
            tree = self._tree(path.parent / "device_tree")
            resources = tree.node("/resources")
            instance_id = int(_text(path))
            status = self.status(name) or "unknown"
            record = self._record(name) if status in ("loaded", "active") else {}
            found[name] = Instance(
                name=name,
                id=instance_id,
                status=status,
                cpus=tree.cpus(resources, "cpus"),
                memory=(tree.cells(resources, "memory-bytes", 8) or (0,))[0],
                kernel=record.get("kernel") or {},
                initrd=record.get("initrd") or {},
                cmdline=cmdlines.get(instance_id, "") if tells_cmdline else None,
            )
        return found

    def _record(self, name: str) -> dict:
        """What kerf notes about the image it loaded; the kernel itself does not know the file."""
        try:
            return json.loads(self.paths.record(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
