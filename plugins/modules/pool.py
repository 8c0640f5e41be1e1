#!/usr/bin/python

# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pool
short_description: CPUs and memory that a host gives up for other kernels
description:
  - Takes CPUs and memory from the running kernel of a multikernel host into its pool, or gives them back.
    Instances (M(mkops.multikernel.instance)) are made from the pool.
  - Everything is judged against the live machine first. When anything speaks against it, nothing is changed
    and all reasons are returned at once.
  - PCI devices that are in the pool stay there.
options:
  state:
    description:
      - V(present) makes the pool as described.
      - V(absent) gives everything back to the host. It is refused while there are instances.
    type: str
    choices: [present, absent]
    default: present
  cpus:
    description:
      - Logical CPU numbers, as C(lscpu) counts them, such as V(2-3,6) or a list of them.
      - This is the whole pool; CPUs that are in the pool and not named here go back to the host.
      - CPU 0 is where the host booted and always stays with it. Keep the threads of a core together.
      - Needed when there is no pool yet. When left out later, the CPUs stay as they are.
    type: raw
  memory:
    description:
      - Memory in all, as bytes or with V(K), V(M), V(G) or V(T) in powers of 1024, such as V(512M) or
        V(2GiB); or a dictionary of NUMA node and such a size, which then lists all nodes.
      - A total is taken from the NUMA node of the CPUs, or grows where the pool already has memory.
      - The kernel gives memory back only in the pieces it took. A size that cannot be reached is refused.
      - Needed when there is no pool yet. When left out later, the memory stays as it is.
    type: raw
  headroom:
    description: Memory that must remain available to the host.
    type: str
    default: 256M
extends_documentation_fragment:
  - mkops.multikernel.attributes
  - mkops.multikernel.attributes.changes
  - mkops.multikernel.kerf
seealso:
  - module: mkops.multikernel.instance
  - module: mkops.multikernel.info
author:
  - mkops contributors (@mkops)
"""

EXAMPLES = r"""
- name: Give up CPUs 2 and 3 and one gigabyte
  mkops.multikernel.pool:
    cpus: 2-3
    memory: 1G

- name: Take memory from two NUMA nodes
  mkops.multikernel.pool:
    cpus: [8, 9, 24, 25]
    memory:
      0: 4G
      1: 4G

- name: Give everything back
  mkops.multikernel.pool:
    state: absent
"""

RETURN = r"""
pool:
  description: The pool as it is now; in check mode, as it is before.
  returned: success
  type: dict
  contains:
    cpus:
      description: Logical numbers of all CPUs of the pool.
      type: list
      elements: int
    physical_cpus:
      description: APIC ids of the same CPUs, in the same order.
      type: list
      elements: int
    free_cpus:
      description: Logical numbers of those that no instance has.
      type: list
      elements: int
    memory:
      description: Bytes in all.
      type: int
    free_memory:
      description: Bytes that no instance has.
      type: int
    nodes:
      description: Bytes per NUMA node.
      type: dict
    devices:
      description: PCI addresses of the devices that no instance has.
      type: list
      elements: str
  sample:
    cpus: [2, 3]
    physical_cpus: [2, 3]
    free_cpus: [3]
    memory: 1073741824
    free_memory: 536870912
    nodes: {"0": 1073741824}
    devices: []
commands:
  description: The calls of kerf that were made.
  returned: success
  type: list
  elements: str
  sample: ["/opt/mkops/kerf/bin/kerf init --cpus=2,3 --memory=1073741824@0 --devices=none"]
reasons:
  description: Everything that speaks against the wish. Nothing was changed.
  returned: when refused
  type: list
  elements: str
kernel_log:
  description: What the kernel logged during the failed call.
  returned: when the kernel or kerf failed
  type: list
  elements: str
transactions:
  description: Overlay transactions of the failed call and their status.
  returned: when the kernel or kerf failed
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.mkops.multikernel.plugins.module_utils._cpuset import parse_cpus
from ansible_collections.mkops.multikernel.plugins.module_utils._facts import pool_facts
from ansible_collections.mkops.multikernel.plugins.module_utils._kerf import Attempt, Kerf, host_lock
from ansible_collections.mkops.multikernel.plugins.module_utils._kernelfs import KernelFs, Paths
from ansible_collections.mkops.multikernel.plugins.module_utils._module import (
    KERF_OPTIONS,
    collect,
    run_guarded,
)
from ansible_collections.mkops.multikernel.plugins.module_utils._plan import (
    PoolWish,
    Refused,
    describe_pool,
    plan_no_pool,
    plan_pool,
)
from ansible_collections.mkops.multikernel.plugins.module_utils._size import parse_memory, parse_size


def parse_pool_memory(value):
    """Bytes in all, or by NUMA node."""
    if not isinstance(value, dict):
        return parse_memory(value)
    reasons = []
    nodes = {}
    for node, size in value.items():
        if not str(node).isdecimal():
            reasons.append(f"'{node}' is not a NUMA node")
            continue
        nodes[int(node)] = collect(reasons, f"node {node}: ", parse_memory, size)
    if not nodes and not reasons:
        reasons.append("no NUMA node is named")
    if reasons:
        raise ValueError(*reasons)
    return nodes


def make_wish(params):
    """The wish and what is wrong with its values."""
    reasons = []
    wish = PoolWish(
        cpus=collect(reasons, "cpus: ", parse_cpus, params["cpus"]),
        memory=collect(reasons, "memory: ", parse_pool_memory, params["memory"]),
        headroom=collect(reasons, "headroom: ", parse_size, params["headroom"]) or 0,
    )
    return wish, tuple(reasons)


def ensure(params, check_mode, kernel, kerf):
    """Read, plan, apply, re-read."""
    wish, early = make_wish(params)
    machine = kernel.read()
    try:
        plan = plan_no_pool(machine) if params["state"] == "absent" else plan_pool(wish, machine, early)
    except Refused as refused:
        raise Refused(*refused.reasons, *kerf.reasons()) from None
    result = {"changed": plan.changed, "diff": {"before": plan.before, "after": plan.after}}
    if plan.changed:
        if reasons := kerf.reasons():
            raise Refused(*reasons)
        if not check_mode:
            machine = apply(plan, kernel, kerf)
    return {**result, "pool": pool_facts(machine), "commands": kerf.commands}


def apply(plan, kernel, kerf):
    """One call of kerf; the kernel is asked what came of it, because kerf may say yes to half of a wish."""
    with Attempt(kernel) as attempt:
        outcome = kerf.init(plan.cpus, plan.memory, plan.devices)
        machine = kernel.read()
        now = describe_pool(machine)
        if now != plan.after:
            wrong = f"the pool is now {now or 'empty'} instead of {plan.after or 'empty'}"
            failure = attempt.failure(wrong, outcome)
            failure.details["changed"] = now != plan.before
            raise failure
    return machine


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "cpus": {"type": "raw"},
            "memory": {"type": "raw"},
            "headroom": {"type": "str", "default": "256M"},
            **KERF_OPTIONS,
        },
        supports_check_mode=True,
    )
    paths = Paths()
    kernel = KernelFs(paths)

    def work():
        with host_lock(paths):
            kerf = Kerf.find(module.params["kerf"], kernel)
            return ensure(module.params, module.check_mode, kernel, kerf)

    run_guarded(module, "pool", work)


if __name__ == "__main__":
    main()
