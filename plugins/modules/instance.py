#!/usr/bin/python

# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: instance
short_description: One kernel beside the host's, on CPUs and memory of its own
version_added: 0.1.0
description:
  - Reserves CPUs and memory from the pool (M(mkops.multikernel.pool)), loads a kernel into them, starts and
    stops it, and gives everything back.
  - Goes from whatever state there is to the wished one by the fewest steps. CPUs and memory of a running
    kernel are changed while it runs, where the kernels can do that. It is only stopped by O(state=stopped),
    O(state=absent) or O(allow_restart=true).
  - Everything is judged against the live machine first. When anything speaks against it, nothing is changed
    and all reasons are returned at once.
  - In check mode, what earlier tasks of the play may have done by then is supposed and told (RV(depends)),
    such as a pool that is still to be made or a file that is still to be copied.
  - A spawned kernel that halts, reboots or panics is found loaded but not running, and O(state=started)
    starts it anew.
  - The task fails when an instance that it has started does not run any more at its end, unless that ended
    cleanly (a power off) or by somebody's hand, which gives a warning. What happens later, it does not see,
    so name what to wait for (O(wait_for), O(wait)).
extends_documentation_fragment:
  - mkops.multikernel.attributes
  - mkops.multikernel.attributes.changes
  - mkops.multikernel.instance
  - mkops.multikernel.kerf
  - mkops.multikernel.at_boot
seealso:
  - module: mkops.multikernel.layout
  - module: mkops.multikernel.pool
  - module: mkops.multikernel.console
  - module: mkops.multikernel.info
author:
  - mkops contributors (@mkops)
"""

EXAMPLES = r"""
- name: A kernel of its own on CPU 2
  mkops.multikernel.instance:
    name: web
    state: started
    cpus: 2
    memory: 512M
    kernel: /var/lib/mkops/kernels/vmlinux-spawn
    initrd: /var/lib/mkops/spawn.cpio.gz
    cmdline: quiet
    wait_for: 'login:'

- name: Roll out another kernel, restarting what runs
  mkops.multikernel.instance:
    name: web
    state: started
    kernel: /var/lib/mkops/kernels/vmlinux-6.12.107-mkops-0a1b2c3d
    initrd: /var/lib/mkops/spawn.cpio.gz
    cmdline: quiet
    allow_restart: true

- name: Give it two more CPUs and another gigabyte while it runs
  mkops.multikernel.instance:
    name: web
    cpu_count: 3
    memory: 1536M

- name: Stop it
  mkops.multikernel.instance:
    name: web
    state: stopped

- name: Give its CPU and memory back to the pool, whether it answers or not
  mkops.multikernel.instance:
    name: web
    state: absent
    force: true
"""

RETURN = r"""
instance:
  description: The instance as it is now; in check mode, as it is before. Empty when there is none.
  returned: success
  type: dict
  contains:
    name:
      description: Its name.
      type: str
    id:
      description: Its number.
      type: int
    state:
      description: The kernel's word, V(ready), V(loaded), V(active), V(empty) or V(failed).
      type: str
    cpus:
      description: Logical CPU numbers.
      type: list
      elements: int
    physical_cpus:
      description: APIC ids of the same CPUs, in the same order.
      type: list
      elements: int
    memory:
      description: Bytes.
      type: int
    kernel:
      description: What kerf noted about the loaded kernel, such as C(path), C(sha256) and C(version).
      type: dict
    initrd:
      description: What kerf noted about the loaded initramfs.
      type: dict
    cmdline:
      description: Command line of the loaded kernel, where the host's kernel tells it.
      type: str
    labels:
      description: The labels in it.
      type: dict
    exit_reason:
      description:
        - How it ended last, V(none), V(clean), V(panic), V(forced) or V(lost), for some with what it said;
          null where the host's kernel does not tell.
      type: str
    epoch:
      description: How often it was started; null where the host's kernel does not tell.
      type: int
    stats:
      description: Numbers that the host's kernel keeps, such as C(restarts) and C(heartbeat_age_ms).
      type: dict
    devices:
      description: >-
        Its C(links), C(disks) and C(shares) as the host serves them, with the addresses that were allotted;
        empty without any.
      type: dict
  sample:
    name: web
    id: 1
    state: active
    cpus: [2]
    physical_cpus: [2]
    memory: 536870912
    kernel: {path: /var/lib/mkops/kernels/vmlinux-spawn, sha256: 0f3c..., version: 6.12.107-mkops}
    initrd: {path: /var/lib/mkops/spawn.cpio.gz, sha256: 7ac1...}
    cmdline: quiet console=mktty0
    labels: {}
    exit_reason: none
    epoch: 1
    stats: {spawn_epoch: 1, restarts: 0, state_since_ms: 81042, heartbeat_age_ms: 310}
steps:
  description: What was done, or in check mode would be done, in this order.
  returned: success
  type: list
  elements: str
  sample: [create, load, start]
commands:
  description: The calls of kerf that were made, or in check mode would be made.
  returned: success
  type: list
  elements: str
console:
  description: Console output since the start, up to what was waited for.
  returned: when O(wait_for) was waited for, or did not come
  type: list
  elements: str
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
  description: What the host's kernel logged during the failed step.
  returned: when the kernel or kerf failed
  type: list
  elements: str
transactions:
  description: Overlay transactions of the failed step and their status.
  returned: when the kernel or kerf failed
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.mkops.multikernel.plugins.module_utils._module import diff, run_guarded, told
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.converge import converge
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.facts import instance_facts
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import Paths
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.options import (
    BOOT,
    INSTANCE,
    KERF,
    spec_of,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.request import instance_request


def main() -> None:
    module = AnsibleModule(argument_spec=spec_of(INSTANCE, KERF, BOOT), supports_check_mode=True)
    params = module.params
    name = params["name"]

    def work():
        result = converge(
            Paths(),
            params["kerf"],
            module.check_mode,
            lambda machine, images: instance_request(params, machine, images),
        )
        before, after = (side["instances"].get(name, {}) for side in (result.before, result.after))
        found = {
            **told(result, module.check_mode),
            "diff": diff(result, before, after),
            "instance": instance_facts(result.machine, name),
            "steps": result.actions,
        }
        if name in result.console:
            found["console"] = result.console[name]
        return found

    run_guarded(module, f"instance {name}", work)


if __name__ == "__main__":
    main()
