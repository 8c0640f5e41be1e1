# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the machine is: plain values without I/O, read by _kernelfs and judged by _plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..common.size import MIB
from .topology import Topology
from .versions import UPSTREAM, Interface

if TYPE_CHECKING:
    from ..common.live import LiveUpdate
    from ..devices.record import Record

HOST_ID = 0
ABSENT, READY, LOADED, ACTIVE, FAILED, EMPTY = None, "ready", "loaded", "active", "failed", "empty"
DEFAULT_GRANULE = 128 * MIB


@dataclass(frozen=True)
class Chunk:
    """Memory that the pool took from the host in one piece."""

    base: int
    size: int
    node: int = 0

    @property
    def end(self) -> int:
        return self.base + self.size

    def holds(self, base: int) -> bool:
        return self.base <= base < self.end


@dataclass(frozen=True)
class Region:
    """Memory of a chunk that is in use, as /proc/iomem names it."""

    base: int
    size: int
    name: str

    @property
    def end(self) -> int:
        return self.base + self.size


@dataclass(frozen=True)
class Pool:
    """CPUs (APIC ids), memory and PCI devices that the host gave up; all empty when there is no pool."""

    cpus: tuple[int, ...] = ()
    free_cpus: tuple[int, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    regions: tuple[Region, ...] = ()
    devices: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.cpus or self.chunks or self.devices)

    @property
    def memory(self) -> dict[int, int]:
        """Bytes per NUMA node."""
        nodes: dict[int, int] = {}
        for chunk in self.chunks:
            nodes[chunk.node] = nodes.get(chunk.node, 0) + chunk.size
        return nodes

    @property
    def size(self) -> int:
        return sum(chunk.size for chunk in self.chunks)

    def node_of(self, region: Region) -> int:
        """The NUMA node that a region of the pool is on."""
        return next(chunk.node for chunk in self.chunks if chunk.holds(region.base))

    @property
    def used_memory(self) -> dict[int, int]:
        """Bytes in use per NUMA node."""
        nodes: dict[int, int] = {}
        for region in self.regions:
            node = self.node_of(region)
            nodes[node] = nodes.get(node, 0) + region.size
        return nodes

    @property
    def free_memory(self) -> int:
        return self.size - sum(region.size for region in self.regions)


@dataclass(frozen=True)
class Instance:
    """One reserved or running kernel."""

    name: str
    id: int
    status: str
    cpus: tuple[int, ...] = ()  # APIC ids
    memory: int = 0
    kernel: Mapping[str, Any] = field(
        default_factory=dict
    )  # kerf's record of the loaded file; empty when unproven
    initrd: Mapping[str, Any] = field(default_factory=dict)
    cmdline: str | None = None  # None: this kernel does not tell
    exit_reason: str | None = None  # these three, too
    epoch: int | None = None
    stats: Mapping[str, int] = field(default_factory=dict)
    virtio: tuple[str, ...] | None = None  # nodes of its virtio devices; None: this kernel does not tell
    boot_cpu: int | None = None  # that it starts on and cannot give up while it runs; None: not told
    # From our note of it, if there is one of this boot:
    files: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # identities of its image files
    awaited: Mapping[str, Any] = field(default_factory=dict)  # its start, when it was not up yet


@dataclass(frozen=True)
class Machine:
    """One reading of a host."""

    release: str
    boot_id: str
    uptime: float
    supported: bool
    mounted: bool
    privileged: bool
    topology: Topology
    node_memory: Mapping[int, int]  # NUMA node -> bytes that can be had without swapping
    memory_total: int
    memory_available: int
    node_total: Mapping[int, int] = field(default_factory=dict)  # NUMA node -> all its bytes, with the pool's
    interface: Interface = UPSTREAM
    distances: Mapping[int, Mapping[int, int]] = field(default_factory=dict)  # between NUMA nodes, where told
    granule: int = DEFAULT_GRANULE  # what memory is added to an instance in
    tells_cmdline: bool = False  # has /proc/kimage
    console: bool = False  # has /dev/mktty
    kexec_disabled: bool = False  # kernel.kexec_load_disabled, which only a reboot takes back
    lockdown: str = "none"
    live: LiveUpdate | None = None  # None: its kernel cannot be updated while instances run
    pool: Pool = Pool()
    instances: Mapping[str, Instance] = field(default_factory=dict)
    virtio: bool = False  # offers virtio devices to instances
    machine_id: str = ""
    bridges: frozenset[str] = frozenset()  # of the host's network
    devices: Mapping[str, Record] = field(default_factory=dict)  # that are recorded, by instance

    def nearest(self, node: int, others: Iterable[int]) -> list[int]:
        """NUMA nodes, the nearest to one of them first; where distances are not told, in their order."""
        away = self.distances.get(node, {})
        return sorted(others, key=lambda other: (other != node, away.get(other, 0), other))

    def instance_memory(self) -> dict[int, dict[str, int]]:
        """Bytes that instances have, by NUMA node and name."""
        names = {str(one.id): one.name for one in self.instances.values()}
        found: dict[int, dict[str, int]] = {}
        for region in self.pool.regions:
            prefix, _dash, rest = region.name.partition("mk-instance-")
            name = names.get(rest.partition("-")[0]) if not prefix else None
            if name is not None:
                of_node = found.setdefault(self.pool.node_of(region), {})
                of_node[name] = of_node.get(name, 0) + region.size
        return found

    def lenders(self) -> dict[int, str]:
        """APIC id to the name of the instance that holds it."""
        return {apic: one.name for one in self.instances.values() for apic in one.cpus}

    def logical(self, apic_ids: Iterable[int]) -> list[int | None]:
        return self.topology.to_logical(apic_ids)

    def host_cpus(self, pool: Iterable[int]) -> int:
        """How many CPUs the host has beside such a pool (APIC ids)."""
        physical = self.topology.physical
        return len({*self.pool.cpus, *(physical[cpu] for cpu in self.topology.online)} - set(pool))


def environment_reasons(machine: Machine) -> list[str]:
    """Why this host cannot be divided at all."""
    if not machine.supported:
        return [
            f"the running kernel {machine.release} has no multikernel support"
            " (no 'multikernel' in /proc/filesystems): boot a multikernel kernel,"
            " such as the one that role mkops.multikernel.kernel builds"
        ]
    reasons = []
    if not machine.mounted:
        reasons.append(
            "/sys/fs/multikernel is not mounted: start sys-fs-multikernel.mount"
            " (role mkops.multikernel.host sets it up) or run 'mount -t multikernel none /sys/fs/multikernel'"
        )
    if not machine.privileged:
        reasons.append("only root may read and change the pool: use 'become: true'")
    return reasons


def absence_reasons(machine: Machine, name: str) -> list[str]:
    """That there is no instance of that name, and which there are."""
    if name in machine.instances:
        return []
    known = f"choose from {', '.join(machine.instances)}" if machine.instances else "there are none"
    return [f"there is no instance {name}: {known}"]
