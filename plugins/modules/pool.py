#!/usr/bin/python

# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pool
short_description: CPUs and memory that a host gives up for other kernels
version_added: 0.1.0
description:
  - Takes CPUs and memory from the running kernel of a multikernel host into its pool, or gives them back.
    Instances (M(mkops.multikernel.instance)) are made from the pool.
  - Everything is judged against the live machine first. When anything speaks against it, nothing is changed
    and all reasons are returned at once.
  - In check mode, what earlier tasks of the play may have done by then is supposed and told (RV(depends)),
    such as a pool that is still to be made or a file that is still to be copied.
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
      - Logical CPU numbers, as C(lscpu) counts them, such as V(2-3,6) or a list of them; or V(all but 2),
        which leaves so many to the host.
      - This is the whole pool; CPUs that are in the pool and not named here go back to the host.
      - CPU 0 is where the host booted and always stays with it. Keep the threads of a core together.
      - This or O(cpu_count) is needed when there is no pool yet. When left out later, the CPUs stay as they
        are.
    type: raw
  cpu_count:
    description:
      - So many CPUs. Those that instances have, and those that are in the pool already, are among them; the
        others are chosen by whole cores, high numbers first.
    type: int
  memory:
    description:
      - Memory in all, as bytes or with V(K), V(M), V(G) or V(T) in powers of 1024, such as V(512M) or
        V(2GiB); or a dictionary of NUMA node and such a size, which then lists all nodes.
      - A total is taken from the NUMA node of the CPUs, or grows where the pool already has memory.
      - The kernel gives memory back only in the pieces it took. A size that cannot be reached is refused.
      - Needed when there is no pool yet. When left out later, the memory stays as it is.
    type: raw
  devices:
    description:
      - PCI addresses, such as V(0000:3b:00.0), of all devices that are to be in the pool.
      - A change is refused on every kernel that this collection is tested with, because none of them lends
        devices. When left out, devices that are in the pool stay there.
    type: list
    elements: str
extends_documentation_fragment:
  - mkops.multikernel.attributes
  - mkops.multikernel.attributes.changes
  - mkops.multikernel.headroom
  - mkops.multikernel.kerf
  - mkops.multikernel.at_boot
seealso:
  - module: mkops.multikernel.layout
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

- name: Give up all but the host's own four CPUs
  mkops.multikernel.pool:
    cpus: all but 4
    memory: 64G

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
steps:
  description: What was done, or in check mode would be done.
  returned: success
  type: list
  elements: str
  sample: [set_pool]
commands:
  description: The calls of kerf that were made, or in check mode would be made.
  returned: success
  type: list
  elements: str
  sample: ["/opt/mkops/kerf/bin/kerf init --cpus=2,3 --memory=1073741824@0 --devices=none"]
instances:
  description: All instances as they are then, as M(mkops.multikernel.info) returns them.
  returned: when a step or the wait failed
  type: list
  elements: dict
at_boot:
  description: What the host is at boot now; in check mode, as it is before. The options of
    M(mkops.multikernel.layout), as C(/etc/mkops/layout.json) has them; empty when nothing is declared.
  returned: success, when O(at_boot) was said
  type: dict
  sample:
    pool: {cpus: "2-3", memory: 1G}
    instances:
      red: {state: started, cpus: "2", memory: 256M, kernel: /var/lib/mkops/kernels/vmlinux-spawn}
depends:
  description: What is not so yet and has to be in the real run. Earlier tasks of the play may see to it.
  returned: in check mode, when there is something
  type: list
  elements: str
  sample: ["there is no pool yet: create it first with mkops.multikernel.pool"]
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

from ansible_collections.mkops.multikernel.plugins.module_utils._module import diff, run_guarded, told
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.converge import converge
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.facts import pool_facts
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import Paths
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.options import (
    BOOT,
    HEADROOM,
    KERF,
    POOL,
    spec_of,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.request import pool_request


def main() -> None:
    module = AnsibleModule(argument_spec=spec_of(POOL, HEADROOM, KERF, BOOT), supports_check_mode=True)
    params = module.params

    def work():
        result = converge(
            Paths(), params["kerf"], module.check_mode, lambda _machine, _images: pool_request(params)
        )
        return {
            **told(result, module.check_mode),
            "diff": diff(result, result.before["pool"], result.after["pool"]),
            "pool": pool_facts(result.machine),
            "steps": result.actions,
        }

    run_guarded(module, "pool", work)


if __name__ == "__main__":
    main()
