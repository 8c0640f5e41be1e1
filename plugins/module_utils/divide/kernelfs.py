# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only reader of the multikernel filesystem and of the files around it. Nothing here writes."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import select
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.cpuset import parse_cpus
from ..common.errors import Failure
from ..common.files import below, parse_json, sha256
from ..common.live import LIVE_UPDATE, LiveUpdate, parse_live_update
from ..common.lock import HOST_LOCK
from .fdt import Node, parse_fdt
from .machine import DEFAULT_GRANULE, HOST_ID, Chunk, Instance, Machine, Pool, Region
from .notes import Notes, identities
from .store import read_records
from .topology import (
    OnlineCpu,
    Topology,
    caches,
    cores,
    number_cpus,
    parse_cpuinfo,
    parse_madt,
    parse_srat,
    sockets,
)
from .versions import Interface, probe_interface

MOUNT_POINT = "/sys/fs/multikernel"

_IOMEM = re.compile(r"\s*([0-9a-f]+)-([0-9a-f]+) : (.*)")
_HOST_BRIDGE = "multikernel,pci-host-bridge"
_SINGLE_THREADED = ("notsupported", "notimplemented")
_AVAILABLE = ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")  # of a node, without swapping
_LOOK = 1.0  # seconds between two looks where nothing is told
_CACHE_LEAVES = (4, 0x8000001D)  # of CPUID, Intel's and AMD's


class KernelFsError(Failure):
    """The kernel's files cannot be read or do not say what they should."""


@dataclass(frozen=True)
class Paths:
    """Where things lie under a root directory."""

    root: str = "/"

    def at(self, path: str) -> Path:
        return below(self.root, path)

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
        return self.at(HOST_LOCK)

    @property
    def notes(self) -> Path:
        """Of ours: see notes."""
        return self.at("/run/mkops/instances")

    @property
    def layout(self) -> Path:
        """What the host is declared to be at boot: see declared."""
        return self.at("/etc/mkops/layout.json")

    @property
    def crashes(self) -> Path:
        """What is kept of instances that have crashed."""
        return self.at("/var/lib/mkops/crashes")

    @property
    def devices(self) -> Path:
        """Records of what instances have: see store."""
        return self.at("/var/lib/mkops/devices")

    @property
    def served(self) -> Path:
        """A directory of each instance whose devices are served."""
        return self.at("/run/mkops/devices")

    @property
    def units(self) -> Path:
        """Of systemd, those of this host: see units."""
        return self.at("/etc/systemd/system")

    @property
    def consoles(self) -> Path:
        """Of ours, how much of each is in the journal."""
        return self.at("/run/mkops/consoles")

    @property
    def handover(self) -> Path:
        """What the next kernel of this host is told of instances that run on: see handover."""
        return self.at("/var/lib/mkops/handover")

    def record(self, name: str) -> Path:
        """kerf's note of what it loaded."""
        return self.at(f"/var/lib/kerf/instances/{name}.json")

    def kerf_files(self, name: str) -> tuple[Path, Path]:
        """Where kerf mounts and unpacks container images."""
        return self.at(f"/var/lib/kerf/daxfs/{name}"), self.at(f"/var/lib/kerf/rootfs/{name}")

    @property
    def kerf_locks(self) -> tuple[Path, ...]:
        return self.at("/var/run/kerf.lock"), self.at("/tmp/kerf.lock")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def read_cpus(node: Node, name: str) -> tuple[int, ...]:
    """CPU ids: 64 bits wide, in old trees 32, told apart by the length as kerf does."""
    return node.cells(name, 4 if len(node.properties.get(name, b"")) % 8 else 8)


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


def _seconds(uptime: str) -> float:
    words = uptime.split()
    if not words:
        raise ValueError("/proc/uptime is empty")
    return float(words[0])


def parse_stats(text: str) -> dict[str, int]:
    """Lines of a word and a number; others are of a later kernel and left out."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdecimal()}


def cache_shift(leaf: bytes) -> int | None:
    """Bits of an APIC id that tell users of one cache apart, from a CPUID leaf about a third-level cache."""
    eax = struct.unpack_from("<I", leaf)[0] if len(leaf) == 16 else 0
    return (eax >> 14 & 0xFFF).bit_length() if eax >> 5 & 7 == 3 else None


def _pci_devices(node: Node, domain: int) -> list[str]:
    """Addresses of the PCI functions below a bridge; a child without vendor-id is a bridge again."""
    found = []
    for child in node.children.values():
        if "vendor-id" not in child.properties:
            found += _pci_devices(child, domain)
        else:
            high = child.cell("reg", 4)
            found.append(f"{domain:04x}:{high >> 16 & 0xFF:02x}:{high >> 11 & 0x1F:02x}.{high >> 8 & 7:x}")
    return found


def parse_pool(root: Node, iomem: str = "") -> tuple[Pool, tuple[int, ...]]:
    """The pool and, where the kernel tells them, the logical numbers of its CPUs."""
    resources = root.find("/resources")
    chunks = []
    for name, node in resources.children.items():
        reg = node.cells("reg", 8)
        if name.startswith("memory@") and len(reg) == 2:
            chunks.append(Chunk(reg[0], reg[1], node.cell("numa-node-id", 4)))
    devices = [node.text("pci-id") for node in root.find("/resources/devices").children.values()]
    for node in root.children.values():
        if node.text("compatible") == _HOST_BRIDGE:
            devices += _pci_devices(node, node.cell("linux,pci-domain", 4))
    devices = [device for device in devices if device]

    if not (chunks or devices or "cpus-available" in resources.properties):
        return Pool(), ()  # before there is a pool, the tree shows the host's own CPUs
    regions = tuple(
        Region(base, size, name)
        for base, size, name in parse_iomem(iomem)
        if (name.startswith("mk-instance-") or name == "daxfs") and any(chunk.holds(base) for chunk in chunks)
    )
    pool = Pool(
        cpus=read_cpus(resources, "cpus"),
        free_cpus=read_cpus(resources, "cpus-available"),
        chunks=tuple(sorted(chunks, key=lambda chunk: chunk.base)),
        regions=regions,
        devices=tuple(sorted(devices)),
    )
    return pool, resources.cells("cpus-logical", 4)


class KernelFs:
    """Reads a host; each call reads anew."""

    def __init__(self, paths: Paths | None = None):
        self.paths = paths or Paths()

    @property
    def privileged(self) -> bool:
        return os.geteuid() == 0

    @property
    def boot_id(self) -> str:
        return _text(self.paths.at("/proc/sys/kernel/random/boot_id")).strip()

    @property
    def booted(self) -> int | None:
        """When the host has booted, in seconds since 1970; None where it is not told.

        It is the same in each reading, as long as nobody sets the clock.
        """
        match = re.search(r"^btime (\d+)$", _text(self.paths.at("/proc/stat")), re.M)
        return int(match[1]) if match else None

    @property
    def release(self) -> str:
        return _text(self.paths.at("/proc/sys/kernel/osrelease")).strip() or platform.release()

    @property
    def notes(self) -> Notes:
        return Notes(self.paths.notes, self.boot_id)

    @property
    def live_update(self) -> LiveUpdate | None:
        """What the kernel says of live updates; None when it knows none, or tells it to root alone."""
        with contextlib.suppress(PermissionError):
            return parse_live_update(_text(self.paths.at(LIVE_UPDATE)))
        return None

    def read(self) -> Machine:
        try:
            return self._read()
        except (ValueError, KeyError) as error:
            what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
            raise KernelFsError(f"the kernel's files have unexpected content: {what}") from error

    def _read(self) -> Machine:
        at = self.paths.at
        mounts = [line.split()[1:3] for line in _text(at("/proc/mounts")).splitlines()]
        mounted = [MOUNT_POINT, "multikernel"] in mounts
        kimage = at("/proc/kimage")
        root = self._root() if mounted else Node()
        pool, pool_logical = parse_pool(root, _text(at("/proc/iomem"))) if root.children else (Pool(), ())
        interface = probe_interface(root.text("implementation"), "memory-granule" in root.properties)
        meminfo = parse_meminfo(_text(at("/proc/meminfo")))
        nodes = self._node_meminfo()
        uptime = _seconds(_text(at("/proc/uptime")))
        return Machine(
            release=self.release,
            boot_id=self.boot_id,
            uptime=uptime,
            supported="multikernel" in _text(at("/proc/filesystems")).split(),
            mounted=mounted,
            privileged=self.privileged,
            topology=self._topology(pool, pool_logical),
            node_memory={node: sum(info.get(key, 0) for key in _AVAILABLE) for node, info in nodes.items()},
            node_total={node: info.get("MemTotal", 0) for node, info in nodes.items()},
            distances=self._distances(),
            memory_total=meminfo["MemTotal"],
            memory_available=meminfo["MemAvailable"],
            interface=interface,
            granule=root.cell("memory-granule", 8) or self._block_size(),
            tells_cmdline=kimage.exists(),
            console=self.paths.console.exists(),
            kexec_disabled=_text(at("/proc/sys/kernel/kexec_load_disabled")).strip() == "1",
            lockdown=parse_choice(_text(at("/sys/kernel/security/lockdown"))) or "none",
            live=self.live_update if mounted else None,
            pool=pool,
            instances=self._instances(kimage, interface, uptime) if mounted else {},
            virtio=at("/sys/class/mkvirtio").is_dir(),
            machine_id=_text(at("/etc/machine-id")).strip(),
            bridges=frozenset(path.parent.name for path in at("/sys/class/net").glob("*/bridge")),
            devices=read_records(self.paths.devices),
        )

    def status(self, name: str) -> str | None:
        """The state word of an instance, None when there is no such instance."""
        return _text(self.paths.multikernel / "instances" / name / "status").strip() or None

    def id(self, name: str) -> int | None:
        """The number of an instance, None when there is no such instance."""
        text = _text(self.paths.multikernel / "instances" / name / "id").strip()
        return int(text) if text else None

    def tells(self, name: str) -> bool:
        """Whether the kernel tells how an instance ended, when its state changes, and keeps its console."""
        return (self.paths.multikernel / "instances" / name / "exit_reason").exists()

    def epoch(self, name: str) -> int | None:
        """How often an instance was started, None when the kernel does not tell."""
        text = _text(self.paths.multikernel / "instances" / name / "epoch").strip()
        return int(text) if text else None

    def exit_reason(self, name: str) -> str | None:
        """How an instance has ended, None when it has not or the kernel does not tell."""
        text = _text(self.paths.multikernel / "instances" / name / "exit_reason").strip()
        return text if text not in ("", "none") else None

    def stats(self, name: str) -> dict[str, int]:
        """Numbers that the kernel keeps of an instance; empty when it does not tell any."""
        return parse_stats(_text(self.paths.multikernel / "instances" / name / "stats"))

    def heartbeat_age(self, name: str) -> int | None:
        """Milliseconds since the last sign of life, None when there is none or the kernel does not tell."""
        return self.stats(name).get("heartbeat_age_ms")

    def await_status(self, name: str, state: str, seconds: float) -> None:
        """Until the state word of an instance is another one, or the time is up.

        Only where the kernel tells how an instance ended, it also tells that its state has changed; elsewhere
        this returns within a second, so that the caller looks.
        """
        path = self.paths.multikernel / "instances" / name
        tells = self.tells(name)
        try:
            with (path / "status").open(encoding="utf-8") as file:
                if file.read().strip() != state:
                    return
                poll = select.poll()
                poll.register(file, select.POLLPRI | select.POLLERR)
                poll.poll((seconds if tells else min(seconds, _LOOK)) * 1000)
        except OSError:
            return  # it is gone

    def transactions(self) -> set[int]:
        """Numbers of the overlay transactions since boot."""
        with contextlib.suppress(OSError):
            names = os.listdir(self.paths.multikernel / "overlays")
            return {int(name[3:]) for name in names if name[:3] == "tx_" and name[3:].isdecimal()}
        return set()

    def transaction(self, number: int) -> str:
        """Its status, and the reason where the kernel tells it."""
        path = self.paths.multikernel / "overlays" / f"tx_{number}"
        return ": ".join(filter(None, (_text(path / "status").strip(), _text(path / "error").strip())))

    def _tree(self, path: Path) -> Node:
        try:
            return parse_fdt(path.read_bytes())
        except OSError as error:
            raise KernelFsError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise KernelFsError(f"{path} is not a device tree: {error}") from error

    def _root(self) -> Node:
        path = self.paths.multikernel / "device_tree"
        with contextlib.suppress(OSError):
            if not path.read_bytes():
                return Node()  # some kernels show nothing before there is a pool
        return self._tree(path)

    def _block_size(self) -> int:
        text = _text(self.paths.at("/sys/devices/system/memory/block_size_bytes")).strip()
        return int(text, 16) if text else DEFAULT_GRANULE

    def _topology(self, pool: Pool, pool_logical: tuple[int, ...]) -> Topology:
        at = self.paths.at
        online = parse_cpuinfo(_text(at("/proc/cpuinfo")))
        apics = {cpu: one.apic for cpu, one in online.items()}
        madt = b""
        if len(pool_logical) != len(pool.cpus):
            with contextlib.suppress(OSError):
                madt = at("/sys/firmware/acpi/tables/APIC").read_bytes()
        physical = number_cpus(apics, pool.cpus, pool_logical, parse_madt(madt))
        threads = _text(at("/sys/devices/system/cpu/smt/control")).strip() not in _SINGLE_THREADED
        node = self._nodes(physical, pool)
        return Topology(
            online=tuple(sorted(online)),
            present=tuple(parse_cpus(_text(at("/sys/devices/system/cpu/present")).strip() or [*online])),
            physical=physical,
            node=node,
            socket=sockets(online, pool.cpus, node),
            core=cores(online, pool.cpus, threads),
            cache=caches(self._caches(online), pool.cpus, self._cache_shift()),
        )

    def _nodes(self, physical: Mapping[int, int], pool: Pool) -> dict[int, int]:
        """APIC id to NUMA node. Linux keeps the links of CPUs that are present but offline."""
        nodes = {}
        for path in self.paths.at("/sys/devices/system/node").glob("node[0-9]*"):
            for name in os.listdir(path):
                if name[:3] == "cpu" and name[3:].isdecimal() and int(name[3:]) in physical:
                    nodes[physical[int(name[3:])]] = int(path.name[4:])
        if missing := [apic for apic in pool.cpus if apic not in nodes]:
            srat = b""
            with contextlib.suppress(OSError):
                srat = self.paths.at("/sys/firmware/acpi/tables/SRAT").read_bytes()
            domains = parse_srat(srat)
            numbers = {domain: number for number, domain in enumerate(sorted(set(domains.values())))}
            # What other CPUs of a domain show comes before any rule: firmware may list them in any order.
            numbers.update({domains[apic]: node for apic, node in nodes.items() if apic in domains})
            nodes.update({apic: numbers[domains[apic]] for apic in missing if apic in domains})
        return nodes

    def _caches(self, online: Mapping[int, OnlineCpu]) -> dict[int, str]:
        """APIC id to the list of the CPUs that share its third-level cache. One file is read per cache."""
        found: dict[int, str] = {}
        for cpu, one in online.items():
            if one.apic in found:
                continue
            at = self.paths.at(f"/sys/devices/system/cpu/cpu{cpu}/cache/index3")
            users = _text(at / "shared_cpu_list").strip()
            if not users or _text(at / "level").strip() != "3":
                return {}  # there are no such caches, or none that is told
            found.update({online[user].apic: users for user in parse_cpus(users) if user in online})
        return found

    def _cache_shift(self) -> int | None:
        """Told by CPUID itself, where the host has loaded the module cpuid."""
        for leaf in _CACHE_LEAVES:
            with contextlib.suppress(OSError):
                fd = os.open(self.paths.at("/dev/cpu/0/cpuid"), os.O_RDONLY)
                try:
                    shift = cache_shift(os.pread(fd, 16, leaf | 3 << 32))
                finally:
                    os.close(fd)
                if shift is not None:
                    return shift
        return None

    def _distances(self) -> dict[int, dict[int, int]]:
        """Between NUMA nodes. Each tells a list, for all of them in the order of their numbers."""
        paths = self.paths.at("/sys/devices/system/node").glob("node[0-9]*")
        lists = {int(path.name[4:]): _text(path / "distance").split() for path in paths}
        return {
            node: dict(zip(sorted(lists), map(int, words)))
            for node, words in lists.items()
            if len(words) == len(lists) and all(word.isdecimal() for word in words)
        }

    def _node_meminfo(self) -> dict[int, dict[str, int]]:
        """Bytes by field, by NUMA node."""
        paths = self.paths.at("/sys/devices/system/node").glob("node[0-9]*")
        return {int(path.name[4:]): parse_meminfo(_text(path / "meminfo")) for path in paths}

    def _instances(self, kimage: Path, interface: Interface, uptime: float) -> dict[str, Instance]:
        cmdlines = parse_kimage(_text(kimage))
        tells_cmdline = kimage.exists()
        booted = time.time_ns() - int(uptime * 1e9)
        notes = self.notes
        found = {}
        for path in sorted((self.paths.multikernel / "instances").glob("*/id")):
            at = path.parent
            name = at.name
            instance_id = int(_text(path) or HOST_ID)
            if instance_id == HOST_ID:
                continue  # gone since the directory was listed
            resources = self._tree(at / "device_tree").find("/resources")
            status = self.status(name) or "unknown"
            note = notes.read(name) if status in ("loaded", "active") else {}
            record = self._record(name, booted, note) if status in ("loaded", "active") else {}
            cpus = read_cpus(resources, "cpus")
            boot = resources.cells("boot-cpu", 8) or cpus
            stats = parse_stats(_text(at / "stats")) if interface.tells_exit else {}
            found[name] = Instance(
                name=name,
                id=instance_id,
                status=status,
                cpus=cpus,
                boot_cpu=boot[0] if len(boot) == 1 else None,
                memory=resources.cell("memory-bytes", 8),
                virtio=tuple(resources.children["virtio"].children)
                if "virtio" in resources.children
                else None,
                kernel=_dictionary(record.get("kernel")),
                initrd=_dictionary(record.get("initrd")),
                files=identities(note) if record else {},
                awaited=_dictionary(note.get("awaited")),
                cmdline=cmdlines.get(instance_id, "") if tells_cmdline else None,
                exit_reason=_text(at / "exit_reason").strip() or None if interface.tells_exit else None,
                epoch=self.epoch(name) if interface.tells_exit else None,
                stats=stats,
            )
        return found

    def _record(self, name: str, booted: int, note: Mapping[str, Any]) -> dict[str, Any]:
        """What kerf notes about the image it loaded; the kernel itself does not know the file.

        A record from before the host booted is about an image that is long gone. Our own note tells which one
        is of this boot. For what was loaded by hand there is none at first, and the host's clock has to tell.
        """
        path = self.paths.record(name)
        try:
            data = path.read_bytes()
            if note.get("record") != sha256(data) and path.stat().st_mtime_ns <= booted:
                return {}
            return _dictionary(parse_json(data))
        except (OSError, ValueError):
            return {}

    def record_sum(self, name: str) -> str | None:
        """What tells kerf's record of an instance from another one; None when there is none."""
        with contextlib.suppress(OSError):
            return sha256(self.paths.record(name).read_bytes())
        return None


def _dictionary(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
