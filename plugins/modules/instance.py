#!/usr/bin/python

# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: instance
short_description: One kernel beside the host's, on CPUs and memory of its own
description:
  - Reserves CPUs and memory from the pool (M(mkops.multikernel.pool)), loads a kernel into them, starts and
    stops it, and gives everything back.
  - Goes from whatever state there is to the wished one by the fewest steps. A running kernel is only
    stopped by O(state=stopped), O(state=absent) or O(allow_restart=true).
  - Everything is judged against the live machine first. When anything speaks against it, nothing is changed
    and all reasons are returned at once.
  - A spawned kernel that halts, reboots or panics is found loaded but not running, and O(state=started)
    starts it anew.
options:
  name:
    description: Name of the instance. Letters, digits, V(.), V(_) and V(-), at most 63.
    type: str
    required: true
  state:
    description:
      - V(present) reserves CPUs and memory. A loaded or running instance is left as it is.
      - V(loaded) also loads the kernel. A running instance is left running.
      - V(started) also runs it.
      - V(stopped) means that it does not run. With O(kernel) it is loaded as well.
      - V(absent) stops it, unloads the kernel and gives CPUs and memory back to the pool.
    type: str
    choices: [present, loaded, started, stopped, absent]
    default: present
  cpus:
    description:
      - Logical CPU numbers of the pool, such as V(2-3) or a list of them.
      - This or O(cpu_count) is needed to create the instance. What an existing instance has cannot be
        changed.
    type: raw
  cpu_count:
    description: Take so many free CPUs of the pool, those with the lowest numbers.
    type: int
  memory:
    description:
      - Bytes, or a number with V(K), V(M), V(G) or V(T) in powers of 1024, such as V(512M).
      - Needed to create the instance. What an existing instance has cannot be changed.
    type: str
  id:
    description: Number of the instance, 1 to 511. The kernel chooses one when this is left out.
    type: int
  kernel:
    description:
      - File on the host, an uncompressed C(vmlinux) for x86-64, or a bzImage that kerf unpacks.
      - The host's own kernel, or one built from the same source, is what is known to work.
      - Compared by SHA-256 with what kerf noted when it loaded the image.
      - When left out, a loaded kernel is left as it is.
    type: path
  initrd:
    description: Initramfs on the host, a cpio archive, plain or compressed. Left out with O(kernel) means
      none.
    type: path
  cmdline:
    description:
      - Kernel command line. V(console=mktty0) is added when it names no console.
      - Compared with C(/proc/kimage) where the kernel has it; where not, a change of it alone goes
        unnoticed.
    type: str
  allow_restart:
    description: Stop and start a running instance when O(kernel), O(initrd) or O(cmdline) differ from what
      it runs.
    type: bool
    default: false
  force:
    description:
      - Stop without asking the spawned kernel. Its file systems are not synced.
      - Without this it is asked to shut down, and it is an error when it does not.
    type: bool
    default: false
  stop_timeout:
    description: Seconds for the spawned kernel to stop. The host's kernel itself waits up to 30 for it.
    type: int
    default: 60
  wait_for:
    description:
      - Python regular expression to wait for on the console after the instance was started, such as a login
        prompt.
      - Only output since the start counts. When nothing needed to be started, there is nothing to wait for.
      - On kernels that give a console to its latest reader, one that was open loses it.
    type: str
  timeout:
    description: Seconds to wait for O(wait_for).
    type: int
    default: 60
extends_documentation_fragment:
  - mkops.multikernel.attributes
  - mkops.multikernel.attributes.changes
  - mkops.multikernel.kerf
seealso:
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
    kernel: /boot/vmlinux-spawn
    initrd: /var/lib/mkops/spawn.cpio.gz
    cmdline: quiet
    wait_for: 'login:'

- name: Roll out another kernel, restarting what runs
  mkops.multikernel.instance:
    name: web
    state: started
    kernel: /boot/vmlinux-spawn-new
    initrd: /var/lib/mkops/spawn.cpio.gz
    cmdline: quiet
    allow_restart: true

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
  sample:
    name: web
    id: 1
    state: active
    cpus: [2]
    physical_cpus: [2]
    memory: 536870912
    kernel: {path: /boot/vmlinux-spawn, sha256: 0f3c..., version: 6.12.107-mkops}
    initrd: {path: /var/lib/mkops/spawn.cpio.gz, sha256: 7ac1...}
    cmdline: quiet console=mktty0
steps:
  description: What was done, or in check mode would be done, in this order.
  returned: success
  type: list
  elements: str
  sample: [create, load, start]
commands:
  description: The calls of kerf that were made.
  returned: success
  type: list
  elements: str
console:
  description: Console output since the start, up to what was waited for.
  returned: when O(wait_for) was waited for
  type: list
  elements: str
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

import contextlib

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.mkops.multikernel.plugins.module_utils._console import (
    Console,
    ConsoleError,
    last_lines,
)
from ansible_collections.mkops.multikernel.plugins.module_utils._cpuset import parse_cpus
from ansible_collections.mkops.multikernel.plugins.module_utils._facts import instance_facts
from ansible_collections.mkops.multikernel.plugins.module_utils._image import read_initrd, read_kernel
from ansible_collections.mkops.multikernel.plugins.module_utils._kerf import (
    Attempt,
    Kerf,
    KerfError,
    host_lock,
    wait_until,
)
from ansible_collections.mkops.multikernel.plugins.module_utils._kernelfs import KernelFs, Paths
from ansible_collections.mkops.multikernel.plugins.module_utils._module import (
    KERF_OPTIONS,
    collect,
    run_guarded,
)
from ansible_collections.mkops.multikernel.plugins.module_utils._plan import (
    InstanceWish,
    Refused,
    compile_pattern,
    describe_instance,
    name_reasons,
    plan_instance,
)
from ansible_collections.mkops.multikernel.plugins.module_utils._size import parse_memory

SETTLE = 5  # seconds for a status to follow a call that has returned
CONSOLE_LINES = 40

RESULT_OF = {"create": "ready", "load": "loaded", "start": "active", "kill": "loaded", "unload": "ready"}


def make_wish(params):
    """The wish and what is wrong with its values. Files matter only where an instance is to be."""
    reasons = name_reasons(params["name"])
    absent = params["state"] == "absent"
    if params["cpu_count"] is not None and params["cpu_count"] < 1:
        reasons.append(f"cpu_count: {params['cpu_count']} is too few, an instance needs at least one CPU")
    collect(reasons, "wait_for: ", compile_pattern, params["wait_for"])
    wish = InstanceWish(
        name=params["name"],
        state=params["state"],
        cpus=collect(reasons, "cpus: ", parse_cpus, params["cpus"]),
        cpu_count=params["cpu_count"],
        memory=collect(reasons, "memory: ", parse_memory, params["memory"]),
        id=params["id"],
        kernel=None if absent else collect(reasons, "", read_kernel, params["kernel"]),
        initrd=None if absent else collect(reasons, "", read_initrd, params["initrd"]),
        cmdline=params["cmdline"] or "",
        allow_restart=params["allow_restart"],
    )
    return wish, tuple(reasons)


def ensure(params, check_mode, kernel, kerf):
    """Read, plan, apply step by step, re-read."""
    wish, early = make_wish(params)
    machine = kernel.read()
    try:
        plan = plan_instance(wish, machine, early)
    except Refused as refused:
        raise Refused(*refused.reasons, *kerf.reasons()) from None
    result = {
        "changed": bool(plan.steps),
        "steps": list(plan.steps),
        "diff": {"before": plan.before, "after": plan.after},
    }
    if plan.steps:
        if reasons := kerf.reasons():
            raise Refused(*reasons)
        if not check_mode:
            steps = Steps(params, wish, plan, kernel, kerf)
            try:
                for step in plan.steps:
                    steps.take(step)
            except KerfError as error:
                machine = kernel.read()
                now = describe_instance(machine, machine.instances.get(wish.name))
                error.details["changed"] = now != plan.before or steps.started
                raise
            if steps.console is not None:
                result["console"] = last_lines(steps.console, CONSOLE_LINES)
            machine = kernel.read()
    return {**result, "instance": instance_facts(machine, wish.name), "commands": kerf.commands}


class Steps:
    """Takes one step after the other, and believes only what the kernel then shows."""

    def __init__(self, params, wish, plan, kernel, kerf):
        self.params = params
        self.wish = wish
        self.plan = plan
        self.kernel = kernel
        self.kerf = kerf
        self.console = None
        self.started = False

    def take(self, step):
        with Attempt(self.kernel) as attempt:
            getattr(self, step)(attempt)

    def _expect(self, attempt, step, outcome, remedy=""):
        wanted = RESULT_OF.get(step)
        if not wait_until(lambda: self.kernel.status(self.wish.name) == wanted, SETTLE):
            state = self.kernel.status(self.wish.name) or "absent"
            message = f"after kerf {step} it is {state}, not {wanted or 'absent'}{remedy}"
            raise attempt.failure(message, outcome)

    def create(self, attempt):
        outcome = self.kerf.create(self.wish.name, self.plan.cpus, self.plan.memory, self.wish.id)
        self._expect(attempt, "create", outcome)
        made = describe_instance(machine := self.kernel.read(), machine.instances[self.wish.name])
        if any(self.plan.after[key] != made[key] for key in ("cpus", "memory")):
            # Half of a wish is worse than none: what was not asked for must not be held.
            self.kerf.delete(self.wish.name)
            raise attempt.failure(
                f"the kernel gave CPUs {made['cpus']} and {made['memory']} instead of CPUs"
                f" {self.plan.after['cpus']} and {self.plan.after['memory']}; it was given back",
                outcome,
            )

    def load(self, attempt):
        initrd = self.wish.initrd.path if self.wish.initrd else None
        outcome = self.kerf.load(self.wish.name, self.wish.kernel.path, initrd, self.wish.cmdline)
        self._expect(attempt, "load", outcome)

    def start(self, attempt):
        with contextlib.ExitStack() as stack:
            console = None
            if self.params["wait_for"]:
                # Before the start, because some kernels drop what nobody reads.
                instance_id = self.kernel.read().instances[self.wish.name].id
                console = stack.enter_context(Console(self.kernel.paths, instance_id))
                console.history()
            outcome = self.kerf.start(self.wish.name)
            self.started = outcome.rc == 0
            if console is None or outcome.rc != 0:
                self._expect(attempt, "start", outcome)
            if console is not None:
                self._await(console, attempt, outcome)

    def _await(self, console, attempt, outcome):
        try:
            self.console = console.expect(
                compile_pattern(self.params["wait_for"]),
                self.params["timeout"],
                alive=lambda: self.kernel.status(self.wish.name) == "active",
            )
        except ConsoleError as error:
            details = {**attempt.details(outcome), "console": last_lines(error.output, CONSOLE_LINES)}
            raise KerfError(str(error), details) from error

    def kill(self, attempt):
        force = self.params["force"]
        outcome = self.kerf.kill(self.wish.name, force, self.params["stop_timeout"])
        remedy = "" if force else ": it did not shut down when asked, force: true stops it all the same"
        self._expect(attempt, "kill", outcome, remedy=remedy)

    def unload(self, attempt):
        self._expect(attempt, "unload", self.kerf.unload(self.wish.name))

    def delete(self, attempt):
        self._expect(attempt, "delete", self.kerf.delete(self.wish.name))


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {
                "type": "str",
                "choices": ["present", "loaded", "started", "stopped", "absent"],
                "default": "present",
            },
            "cpus": {"type": "raw"},
            "cpu_count": {"type": "int"},
            "memory": {"type": "str"},
            "id": {"type": "int"},
            "kernel": {"type": "path"},
            "initrd": {"type": "path"},
            "cmdline": {"type": "str"},
            "allow_restart": {"type": "bool", "default": False},
            "force": {"type": "bool", "default": False},
            "stop_timeout": {"type": "int", "default": 60},
            "wait_for": {"type": "str"},
            "timeout": {"type": "int", "default": 60},
            **KERF_OPTIONS,
        },
        mutually_exclusive=[["cpus", "cpu_count"]],
        required_by={"initrd": ["kernel"], "cmdline": ["kernel"]},
        supports_check_mode=True,
    )
    paths = Paths()
    kernel = KernelFs(paths)

    def work():
        with host_lock(paths):
            kerf = Kerf.find(module.params["kerf"], kernel)
            return ensure(module.params, module.check_mode, kernel, kerf)

    run_guarded(module, f"instance {module.params['name']}", work)


if __name__ == "__main__":
    main()
