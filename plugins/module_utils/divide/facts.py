# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A reading of the machine as modules return it."""

from __future__ import annotations

from typing import Any

from .machine import Instance, Machine
from .wish import labels_of


def pool_facts(machine: Machine) -> dict[str, Any]:
    """CPUs are logical numbers; null where the kernel does not let them be told."""
    pool = machine.pool
    return {
        "cpus": machine.logical(pool.cpus),
        "physical_cpus": list(pool.cpus),
        "free_cpus": machine.logical(pool.free_cpus),
        "memory": pool.size,
        "free_memory": pool.free_memory,
        "nodes": {str(node): size for node, size in sorted(pool.memory.items())},
        "devices": list(pool.devices),
    }


def instance_facts(machine: Machine, name: str) -> dict[str, Any]:
    """Empty when there is no such instance."""
    instance = machine.instances.get(name)
    return _instance(machine, instance) if instance else {}


def instances_facts(machine: Machine) -> list[dict[str, Any]]:
    return [_instance(machine, one) for one in machine.instances.values()]


def machine_facts(machine: Machine) -> dict[str, Any]:
    """All of it."""
    topology = machine.topology
    return {
        "kernel": {
            "release": machine.release,
            "multikernel": machine.supported,
            "mounted": machine.mounted,
            "interface": machine.interface.name if machine.mounted else None,
            "resizes": machine.mounted and machine.interface.resizes,
            "granule": machine.granule,
            "console": machine.console,
            "kexec_disabled": machine.kexec_disabled,
            "lockdown": machine.lockdown,
            "live_update": live_update_facts(machine),
        },
        "host": {
            "boot_id": machine.boot_id,
            "uptime": machine.uptime,
            "cpus": list(topology.online),
            "physical_cpus": [topology.physical.get(cpu) for cpu in topology.online],
            "memory": machine.memory_total,
            "available_memory": machine.memory_available,
        },
        "pool": pool_facts(machine),
        "topology": topology_facts(machine),
        "instances": instances_facts(machine),
    }


def live_update_facts(machine: Machine) -> dict[str, Any]:
    """Whether this host can boot another kernel while instances run on, and why not."""
    live = machine.live
    if live is None:
        reason = f"the kernel {machine.release} does not hand its instances over to another one"
        return {"possible": False, "reason": reason, "generation": None, "state": None}
    return {
        "possible": live.possible,
        "reason": live.reason or None,
        "generation": live.generation,
        "state": live.state,
    }


def topology_facts(machine: Machine) -> dict[str, Any]:
    """Which kernel has which CPU, and how much of the memory of each NUMA node; null where it is not told."""
    topology, pool = machine.topology, machine.pool
    lenders, numbers, pooled = machine.lenders(), topology.logical, set(machine.pool.cpus)
    apics = {*(topology.physical[cpu] for cpu in topology.online), *pool.cpus}
    lent, used = machine.instance_memory(), pool.used_memory
    return {
        "cpus": [
            {
                "cpu": numbers.get(apic),
                "physical_cpu": apic,
                "socket": topology.socket.get(apic),
                "node": topology.node.get(apic),
                "core": topology.core.get(apic),
                "owner": "host" if apic not in pooled else "instance" if apic in lenders else "pool",
                "instance": lenders.get(apic),
            }
            for apic in sorted(apics, key=lambda apic: (numbers.get(apic, apic), apic))
        ],
        "nodes": [
            {
                "node": node,
                "memory": machine.node_total.get(node, 0),
                "pool_memory": pool.memory.get(node, 0),
                "free_memory": pool.memory.get(node, 0) - used.get(node, 0),
                "instances": dict(sorted(lent.get(node, {}).items())),
            }
            for node in sorted({*machine.node_total, *pool.memory})
        ],
    }


def _instance(machine: Machine, instance: Instance) -> dict[str, Any]:
    return {
        "name": instance.name,
        "id": instance.id,
        "state": instance.status,
        "cpus": machine.logical(instance.cpus),
        "physical_cpus": list(instance.cpus),
        "memory": instance.memory,
        "kernel": dict(instance.kernel),
        "initrd": dict(instance.initrd),
        "cmdline": instance.cmdline,
        "labels": labels_of(instance.cmdline),
        "exit_reason": instance.exit_reason,
        "epoch": instance.epoch,
        "stats": dict(instance.stats),
        "devices": machine.devices[instance.name].plain() if instance.name in machine.devices else {},
    }
