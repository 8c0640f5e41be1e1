#!/usr/bin/python

# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: console
short_description: Read and write the console of an instance
version_added: 0.1.0
description:
  - Sends a line to the console of an instance, waits for what is expected, and returns what was said.
  - Speaks to C(/dev/mktty) itself. kerf is not called.
options:
  name:
    description: Name of the instance.
    type: str
    required: true
  send:
    description:
      - A line to type. A line end is added.
      - The console may echo it, so that O(expect) should not match the line itself.
    type: str
  expect:
    description:
      - Python regular expression to wait for. C(^) and C($) match at lines.
      - With O(send), only what comes after the line was sent counts. Without, what the kernel retained counts
        too.
      - Without O(expect), all output is returned that comes without a pause.
    type: str
  timeout:
    description: Seconds to wait for O(expect).
    type: int
    default: 30
extends_documentation_fragment:
  - mkops.multikernel.attributes
attributes:
  check_mode:
    description: Can run in C(check_mode) and return the changed status prediction without modifying the host.
    support: partial
    details: In check mode nothing is sent and O(expect) is not waited for.
  diff_mode:
    description: Returns what has changed when in diff mode.
    support: N/A
    details: A console has no state to compare.
  idempotent:
    description: When run twice in a row, with the same arguments, the second run changes nothing.
    support: partial
    details: Whatever is sent is sent again. Without O(send) it only reads.
requirements:
  - The Python module C(libfdt) (package C(python3-libfdt))
  - Root
notes:
  - On kernels that give a console to its latest reader, one that was open loses it, and nothing is retained.
seealso:
  - module: mkops.multikernel.instance
author:
  - mkops contributors (@mkops)
"""

EXAMPLES = r"""
- name: Wait for the login prompt
  mkops.multikernel.console:
    name: web
    expect: 'login: *$'
    timeout: 120

- name: Ask a spawned kernel how long it has been up
  mkops.multikernel.console:
    name: web
    send: cat /proc/uptime
    expect: '^[0-9.]+ [0-9.]+$'
  register: uptime
"""

RETURN = r"""
output:
  description: What the console said, without carriage returns.
  returned: always
  type: str
match:
  description: The text that O(expect) matched, and its groups.
  returned: when something was expected
  type: dict
  contains:
    text:
      description: The whole match.
      type: str
    groups:
      description: What the groups matched.
      type: list
      elements: str
  sample:
    text: "12.34 11.02"
    groups: []
"""


from ansible.module_utils.basic import AnsibleModule

from ansible_collections.mkops.multikernel.plugins.module_utils._module import run_guarded
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Refused
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.console import Console
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import KernelFs, Paths
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.machine import (
    ACTIVE,
    absence_reasons,
    environment_reasons,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.options import CONSOLE, spec_of
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.wish import compile_pattern


def converse(params, check_mode, kernel):
    """Send, expect, return."""
    machine = kernel.read()
    name, send = params["name"], params["send"]
    reasons = [*environment_reasons(machine), *CONSOLE.read(params).reasons]
    pattern = compile_pattern(params["expect"]) if params["expect"] is not None and not reasons else None
    instance = machine.instances.get(name)
    if not reasons and instance is None:
        reasons += absence_reasons(machine, name)
    elif instance and send is not None and instance.status != ACTIVE:
        reasons.append(f"instance {name} is {instance.status} and reads no input: start it first")
    if reasons:
        raise Refused(*reasons)

    result = {"changed": send is not None, "output": ""}
    if check_mode and send is not None:
        return result
    with Console(kernel.paths, instance.id) as console:
        if send is not None:
            console.history()
            console.send(send)
        if pattern is None or check_mode:
            result["output"] = console.history().replace("\r", "")
            return result
        output = console.expect(pattern, params["timeout"], alive=lambda: kernel.status(name) == ACTIVE)
    found = pattern.search(output)
    return {**result, "output": output, "match": {"text": found[0], "groups": list(found.groups())}}


def main() -> None:
    module = AnsibleModule(argument_spec=spec_of(CONSOLE), supports_check_mode=True)
    # No lock: a conversation may take long, and changes neither pool nor instance.
    run_guarded(
        module,
        f"console of {module.params['name']}",
        lambda: converse(module.params, module.check_mode, KernelFs(Paths())),
    )


if __name__ == "__main__":
    main()
