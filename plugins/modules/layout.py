#!/usr/bin/python

# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: layout
short_description: How a whole machine is divided into kernels
version_added: 0.2.0
description:
  - The pool and all instances in one task. Whatever state the machine is in, one run makes it so, and the
    next one changes nothing.
  - Steps are taken in an order in which each is possible. What is to go goes first, instances shrink before
    others grow, the pool changes in between, and CPUs pass from one instance to another.
  - What already runs is not moved without need. CPUs and memory of a running kernel are changed while it
    runs, where the kernels can do that; where not, it is restarted if that is allowed.
  - Everything is judged against the live machine first. When anything speaks against it, nothing is changed
    and all reasons are returned at once.
  - In check mode, what earlier tasks of the play may have done by then is supposed and told (RV(depends)),
    such as a pool that is still to be made or a file that is still to be copied.
options:
  pool:
    description:
      - CPUs and memory that the host gives up, with the options of M(mkops.multikernel.pool).
      - When left out, the pool stays as it is.
    type: dict
  instances:
    description:
      - A list of instances, or a dictionary of them by name, which variables of groups and hosts can be
        merged into with the filter P(ansible.builtin.combine#filter).
      - The instances, each with the options of M(mkops.multikernel.instance), and C(profile), the name of
        one of O(profiles).
      - Several with a O(ignore:wait_for) or O(ignore:wait) start together and are waited for together.
    type: raw
    default: []
  defaults:
    description:
      - Options that all instances share unless their profile or they say otherwise. An option is taken
        whole from the nearest place that names it; C(null) there means that it is not said.
      - What is shared forbids nothing. An instance that names its O(ignore:cpus) takes no
        O(ignore:cpu_count) from here, and the other way round. What describes an image is left out for an
        instance without O(ignore:kernel).
      - O(ignore:force) and O(ignore:stop_timeout) also hold for instances that O(prune) removes.
    type: dict
    default: {}
  profiles:
    description:
      - By name, options that instances of one kind share unless they say otherwise, such as another
        O(ignore:kernel).
      - They go before O(defaults).
    type: dict
    default: {}
  prune:
    description: Whether instances that are not declared are removed, even when they run. They are left
      alone otherwise.
    type: bool
    default: false
extends_documentation_fragment:
  - mkops.multikernel.attributes
  - mkops.multikernel.attributes.changes
  - mkops.multikernel.headroom
  - mkops.multikernel.kerf
  - mkops.multikernel.at_boot
seealso:
  - module: mkops.multikernel.pool
  - module: mkops.multikernel.instance
  - module: mkops.multikernel.info
author:
  - mkops contributors (@mkops)
"""

EXAMPLES = r"""
- name: Divide a machine into three kernels
  mkops.multikernel.layout:
    pool:
      cpus: all but 4
      memory: 24G
    defaults:
      state: started
      kernel: /var/lib/mkops/kernels/vmlinux-spawn
      initrd: /var/lib/mkops/spawn.cpio.gz
      wait_for: '^mkops-facts'
    profiles:
      realtime:
        kernel: /var/lib/mkops/kernels/vmlinux-realtime
        cmdline: quiet isolcpus=1-3
    instances:
      - name: db
        cpu_count: 8
        cpu_policy: [cores, node]
        memory: 16G
        labels: {role: database}
      - name: motor
        profile: realtime
        cpu_count: 4
        cpu_policy: [cache]
        memory: 1G

- name: See what giving a CPU of one to the other would mean
  mkops.multikernel.layout:
    instances:
      - {name: red, cpus: 2}
      - {name: blue, cpus: 3-4}
  check_mode: true
  diff: true

- name: Leave nothing but these
  mkops.multikernel.layout:
    instances:
      - name: db
    prune: true
"""

RETURN = r"""
pool:
  description: The pool as it is now, as M(mkops.multikernel.pool) returns it; in check mode, as it is before.
  returned: success
  type: dict
instances:
  description: All instances as they are now, as M(mkops.multikernel.instance) returns them; in check mode,
    as they are before.
  returned: success, and when a step or the wait failed
  type: list
  elements: dict
before:
  description: The pool, and the instances that are declared or pruned, before the run.
  returned: success
  type: dict
after:
  description:
    - The same after the run, as the kernel tells it then; or in check mode as they would be.
    - When a step or the wait failed, what has become of them until then.
  returned: success, and when a step or the wait failed
  type: dict
steps:
  description: What was done, or in check mode would be done, in this order.
  returned: success, and what was done before when a step failed
  type: list
  elements: str
  sample: ["set_cpus red: CPUs 2 instead of 2-3", "set_cpus blue: CPUs 3-4 instead of 4"]
commands:
  description: The calls of kerf that were made, or in check mode would be made.
  returned: success, and those that were made when one failed
  type: list
  elements: str
  sample: ["/opt/mkops/kerf/bin/kerf update red --cpus=4", "/opt/mkops/kerf/bin/kerf update blue --cpus=6,8"]
console:
  description:
    - By name, console output since the start of the instances that were waited for.
    - When one did not come up, the last lines of that one.
  returned: when something was waited for
  type: raw
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
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.facts import (
    instances_facts,
    pool_facts,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import Paths
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.options import (
    BOOT,
    HEADROOM,
    KERF,
    LAYOUT,
    spec_of,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.request import layout_request


def main() -> None:
    module = AnsibleModule(argument_spec=spec_of(LAYOUT, HEADROOM, KERF, BOOT), supports_check_mode=True)
    params = module.params

    def work():
        result = converge(
            Paths(),
            params["kerf"],
            module.check_mode,
            lambda machine, images: layout_request(params, machine, images),
        )
        before, after = dict(result.before), dict(result.after)
        found = {
            **told(result, module.check_mode),
            "diff": diff(result, before, after),
            "before": before,
            "after": after,
            "pool": pool_facts(result.machine),
            "instances": instances_facts(result.machine),
            "steps": result.steps,
        }
        if result.console:
            found["console"] = result.console
        return found

    run_guarded(module, "layout", work)


if __name__ == "__main__":
    main()
