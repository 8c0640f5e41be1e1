#!/usr/bin/python

# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: info
short_description: How a host is divided into kernels
version_added: 0.1.0
description:
  - Reads the host, its pool and all instances from the running kernel, each file once. kerf is not called.
  - On a kernel without multikernel support, the pool and the instances are empty.
options:
  query:
    description:
      - JMESPath expression on what is returned otherwise. Only its result is returned then.
      - It is evaluated on the controller, which needs the Python package C(jmespath).
    type: str
  facts:
    description: Return it all as the fact C(multikernel), too.
    type: bool
    default: false
  console_tail:
    description:
      - Also return so many of the last lines of each instance's console.
      - Works where the host's kernel retains console output. On kernels that give a console to its latest
        reader, one that was open loses it.
    type: int
    default: 0
extends_documentation_fragment:
  - mkops.multikernel.attributes
  - mkops.multikernel.attributes.reads
requirements:
  - Root
  - The Python package C(jmespath) on the controller, for O(query)
seealso:
  - module: mkops.multikernel.pool
  - module: mkops.multikernel.instance
author:
  - mkops contributors (@mkops)
"""

EXAMPLES = r"""
- name: See how the host is divided
  mkops.multikernel.info:
  register: division

- name: Name what does not run
  ansible.builtin.debug:
    msg: "{{ division.instances | rejectattr('state', 'equalto', 'active') | map(attribute='name') }}"

- name: Ask for that alone
  mkops.multikernel.info:
    query: instances[?state!='active'].{name:name, why:exit_reason}
  register: ended

- name: Read what the instances last said
  mkops.multikernel.info:
    console_tail: 20
"""

RETURN = r"""
result:
  description: What the expression gives.
  returned: with O(query)
  type: raw
kernel:
  description: The host's kernel.
  returned: without O(query)
  type: dict
  contains:
    release:
      description: As C(uname -r) prints it.
      type: str
    multikernel:
      description: Whether it can run other kernels beside itself.
      type: bool
    mounted:
      description: Whether C(/sys/fs/multikernel) is mounted.
      type: bool
    interface:
      description: Whose control interface it has; null when that is not mounted.
      type: str
    resizes:
      description: Whether it can change CPUs and memory of an instance.
      type: bool
    granule:
      description: Bytes in which memory is added to an instance.
      type: int
    console:
      description: Whether instances have a console, C(/dev/mktty).
      type: bool
    kexec_disabled:
      description: Whether C(kernel.kexec_load_disabled) forbids to load kernels until the next boot.
      type: bool
    pairs:
      description:
        - Whether it takes the flags of C(kexec_file_load) that kerf 0.4 gives. Role C(mkops.multikernel.host)
          and all modules refuse to change anything where it does not.
        - Null where the kernel does not let it be told, as to others than root.
      type: bool
    lockdown:
      description: The kernel's lockdown, V(none), V(integrity) or V(confidentiality).
      type: str
    live_update:
      description:
        - Whether the host can boot another kernel while its instances run on, by
          M(mkops.multikernel.kernel_boot) with O(mkops.multikernel.kernel_boot#module:method=live). Whether
          that one takes them over is not known before it is named.
        - C(possible), and C(reason), why not, null when it is.
        - C(generation), how many live updates the pool has lived through, and C(state), V(off), V(armed),
          V(loaded) or V(stale). Both are null where the kernel knows no live updates.
      type: dict
      version_added: 0.2.0
host:
  description: The host.
  returned: without O(query)
  type: dict
  contains:
    boot_id:
      description: Identifies this boot.
      type: str
    uptime:
      description: Seconds since boot.
      type: float
    cpus:
      description: Logical numbers of the CPUs that the host runs on.
      type: list
      elements: int
    physical_cpus:
      description: APIC ids of the same CPUs, in the same order.
      type: list
      elements: int
    memory:
      description: Bytes the host has.
      type: int
    available_memory:
      description: Bytes that can be had without swapping.
      type: int
pool:
  description: What the host gave up, as M(mkops.multikernel.pool) returns it.
  returned: without O(query)
  type: dict
topology:
  description: Which kernel has which CPU, and how much of each NUMA node's memory.
  returned: without O(query)
  type: dict
  contains:
    cpus:
      description: One entry per CPU, in the order of logical numbers. What the kernel does not tell is null.
      type: list
      elements: dict
      contains:
        cpu:
          description: Logical number.
          type: int
        physical_cpu:
          description: APIC id.
          type: int
        socket:
          description: Physical package.
          type: int
        node:
          description: NUMA node.
          type: int
        core:
          description: The same for all threads of a core.
          type: int
        owner:
          description: V(host), V(pool) for one that is free, or V(instance).
          type: str
        instance:
          description: Name of the instance that has it.
          type: str
    nodes:
      description: One entry per NUMA node.
      type: list
      elements: dict
      contains:
        node:
          description: Its number.
          type: int
        memory:
          description: Bytes of the node, those of the pool among them.
          type: int
        pool_memory:
          description: Bytes that the host gave up.
          type: int
        free_memory:
          description: Bytes of those that no instance has.
          type: int
        instances:
          description: Bytes of those that instances have, by name.
          type: dict
  sample:
    cpus:
      - {cpu: 0, physical_cpu: 0, socket: 0, node: 0, core: 0, owner: host, instance: null}
      - {cpu: 1, physical_cpu: 2, socket: 0, node: 0, core: 1, owner: instance, instance: red}
    nodes:
      - node: 0
        memory: 8589934592
        pool_memory: 402653184
        free_memory: 134217728
        instances: {red: 268435456}
at_boot:
  description:
    - What the host is declared to be at boot (option C(at_boot) of M(mkops.multikernel.layout),
      M(mkops.multikernel.pool) and M(mkops.multikernel.instance)), and how it differs now.
    - Reading it may mean to read the files of kernels that were not loaded by this collection.
  returned: without O(query)
  type: dict
  contains:
    path:
      description: The file that has it.
      type: str
    layout:
      description: The options of M(mkops.multikernel.layout) in it; empty when nothing is declared.
      type: dict
    drift:
      description: What would have to be done for the host to be as declared, and instances that are not
        declared. Empty when there is no difference.
      type: list
      elements: str
    reasons:
      description: Why the host cannot be as declared, or the file cannot be read.
      type: list
      elements: str
  sample:
    path: /etc/mkops/layout.json
    layout:
      pool: {cpus: "2-3", memory: 1G}
      instances:
        red: {state: started, cpus: "2", memory: 256M, kernel: /var/lib/mkops/kernels/vmlinux-spawn}
    drift: [start red]
    reasons: []
instances:
  description:
    - One entry per instance, as M(mkops.multikernel.instance) returns it, with what the host has beside it.
    - With O(console_tail), each has C(console), a list of lines.
  returned: without O(query)
  type: list
  elements: dict
  contains:
    unit:
      description: What systemd says of its unit, C(mkops@NAME.service); null where systemd does not run the
        host.
      type: dict
      contains:
        state:
          description: Such as V(active), V(activating) (also while it waits to start the instance again),
            V(inactive) and V(failed).
          type: str
        sub_state:
          description: Such as V(running), V(auto-restart) and V(dead).
          type: str
        result:
          description: How it ended last, such as V(success), V(exit-code), V(watchdog) and
            V(start-limit-hit).
          type: str
        restarts:
          description: How often systemd has started it again since somebody did.
          type: int
    crashes:
      description:
        - The evidence that is kept of its crashes, the oldest first. Only root gets to know.
        - As long as something is kept of an instance that there is not any more, it is still in
          C(/var/lib/mkops/crashes).
      type: list
      elements: dict
      contains:
        path:
          description: The directory. It has C(console), C(kernel.log), C(stats), C(meta.json), and C(vmcore)
            if the memory was kept.
          type: str
        time:
          description: When it was kept, as V(2026-01-31T12:00:00Z).
          type: str
        reason:
          description: Why it was a crash, such as C(exit_reason).
          type: str
        epoch:
          description: The number of its start (C(epoch)).
          type: int
        boot_id:
          description: The boot of the host.
          type: str
        memory:
          description: Whether the memory is C(kept), with C(size) and C(format), or the C(reason) why not;
            null when that was not wished.
          type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.mkops.multikernel.plugins.module_utils._module import run_guarded
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Refused
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.console import Console, last_lines
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import KernelFs, Paths
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.machine import ACTIVE, LOADED
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.options import INFO, spec_of
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.survey import survey


def gather(paths, params):
    """One reading."""
    given = INFO.read(params)
    if given.reasons:
        raise Refused(*given.reasons)
    facts = survey(paths, KernelFs(paths).read())
    tail = params["console_tail"]
    for instance in facts["instances"] if tail else ():
        if instance["state"] not in (LOADED, ACTIVE):
            instance["console"] = []  # it never said anything
            continue
        with Console(paths, instance["id"]) as console:
            instance["console"] = last_lines(console.history(), tail)
    return facts


def main() -> None:
    module = AnsibleModule(argument_spec=spec_of(INFO), supports_check_mode=True)

    def work():
        facts = gather(Paths(), module.params)
        extra = {"ansible_facts": {"multikernel": facts}} if module.params["facts"] else {}
        return {"changed": False, **facts, **extra}

    run_guarded(module, "info", work)


if __name__ == "__main__":
    main()
