# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Machines of any size as module info tells of them, and a fleet that has everything that can be wrong."""

from __future__ import annotations

import random
from typing import Any

GIB = 1 << 30
HOSTILE = "\"><script>alert(1)</script><b onload='x'>&amp; \x1b[2J\u202e\udcff ]]>{{ 7*7 }}"


def instance(number: int, cpus: list[int], **more: Any) -> dict[str, Any]:
    return {
        "name": f"kernel-{number}",
        "id": number,
        "state": "active",
        "cpus": cpus,
        "physical_cpus": cpus,
        "memory": 4 * GIB,
        "kernel": {"path": "/var/lib/mkops/kernels/vmlinux-spawn"},
        "initrd": {},
        "cmdline": "",
        "labels": {},
        "exit_reason": "none",
        "epoch": 1,
        "stats": {"state_since_ms": 60_000, "heartbeat_age_ms": 300},
        **more,
    }


def machine(sockets=2, nodes=2, cores=16, threads=2, lent=6, each=4, free=4) -> dict[str, Any]:
    """nodes of each socket, cores of each node; instances that are lent each so many CPUs, and free ones."""
    count = sockets * nodes * cores
    owners: dict[int, int | None] = {}
    order = [core + count * thread for core in reversed(range(1, count)) for thread in range(threads)]
    for number in range(lent):
        owners.update(dict.fromkeys(order[number * each : (number + 1) * each], number))
    owners.update(dict.fromkeys(order[lent * each : lent * each + free]))
    instances = [
        instance(number, sorted(cpu for cpu, owner in owners.items() if owner == number))
        for number in range(lent)
    ]
    cpus = []
    for cpu in range(count * threads):
        core = cpu % count
        owner = owners.get(cpu)
        cpus.append(
            {
                "cpu": cpu,
                "physical_cpu": cpu,
                "socket": core // cores // nodes,
                "node": core // cores,
                "core": core,
                "owner": "host" if cpu not in owners else "pool" if owner is None else "instance",
                "instance": None if owner is None else instances[owner]["name"],
            }
        )
    used = {}
    for one in instances:
        node = cpus[one["cpus"][0]]["node"]
        used.setdefault(node, {})[one["name"]] = one["memory"]
    return {
        "kernel": {"release": "6.12.107-mkops", "multikernel": True, "mounted": True},
        "host": {"uptime": 273_600.0, "memory": sockets * nodes * 64 * GIB, "cpus": []},
        "topology": {
            "cpus": cpus,
            "nodes": [
                {
                    "node": node,
                    "memory": 64 * GIB,
                    "pool_memory": sum(used.get(node, {}).values()) + 2 * GIB,
                    "free_memory": 2 * GIB,
                    "instances": used.get(node, {}),
                }
                for node in range(sockets * nodes)
            ],
        },
        "at_boot": {"path": "/etc/mkops/layout.json", "layout": {}, "drift": [], "reasons": []},
        "instances": instances,
    }


def small() -> dict[str, Any]:
    """One socket of six cores, and two instances."""
    return machine(1, 1, 6, 1, lent=2, each=1, free=1)


def troubled() -> dict[str, Any]:
    """Whatever may be wrong with instances, said by somebody who means no good."""
    told = machine(1, 1, 8, 2, lent=4, each=2)
    one, two, three, four = told["instances"]
    for cpu in told["topology"]["cpus"]:
        if cpu["instance"] == one["name"]:
            cpu["instance"] = HOSTILE
    told["topology"]["nodes"][0]["instances"][HOSTILE] = told["topology"]["nodes"][0]["instances"].pop(
        one["name"]
    )
    crashes = [
        {
            "time": f"2026-11-29T19:0{minute}:00Z",
            "reason": HOSTILE,
            "path": f"/var/lib/mkops/crashes/{minute}",
        }
        for minute in (2, 1)
    ]
    one.update(name=HOSTILE, state="loaded", exit_reason=f"panic: {HOSTILE}", crashes=crashes)
    two["stats"]["heartbeat_age_ms"] = 90_000
    three.update(state="failed", epoch=None, stats={}, exit_reason=None)
    four.update(state=HOSTILE, cpus=[3, None])
    told["at_boot"].update(drift=[f"start {HOSTILE}"], reasons=[HOSTILE * 20])
    told["kernel"]["release"] = HOSTILE
    return told


def fleet(size: int = 50) -> dict[str, Any]:
    """Large machines, and in their midst those that are out of order."""
    hosts: dict[str, Any] = {f"server-{number:02}": machine() for number in range(1, size - 4)}
    hosts["small"] = small()
    hosts["troubled"] = troubled()
    hosts["away"] = {"unreachable": True, "msg": f"Failed to connect: {HOSTILE}"}
    hosts["refused"] = {"failed": True, "msg": "only root may read it"}
    hosts["many"] = machine(2, 1, 32, 2, lent=45, each=2, free=0)
    return hosts


def to_place(hosts: int, each: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What filter place is given: hosts that are all needed, and so many instances of all kinds for each."""
    node = {"cpus": each * 5 // 4, "memory": f"{each * 8}G"}
    room = {"cpus": 2 * node["cpus"], "memory": f"{each * 16}G", "nodes": {0: node, 1: node}}
    chance = random.Random(1)
    instances = {
        f"i{number}": {
            "cpu_count": chance.choice((1, 2, 3)),
            "memory": chance.choice(("4G", "8G")),
            "requires": {"zone": str(number % 3)} if number % 2 else {},
            "apart": f"a{number // 8}",
            "one_node": number % 5 == 0,
        }
        for number in range(hosts * each)
    }
    return {f"h{number}": {**room, "labels": {"zone": str(number % 3)}} for number in range(hosts)}, instances
