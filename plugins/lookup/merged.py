# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: merged
short_description: One dictionary of several variables
version_added: 0.2.0
description:
  - A variable of C(host_vars) replaces the one of the same name in C(group_vars). This lookup merges
    dictionaries of several names instead, so that each group and each host adds its part.
  - Merged are the variables whose names begin with a word and an underscore, in the order of their names,
    and at last the variable of that very name.
  - Dictionaries in them are merged, too. Anything else that is said again replaces what was said before.
options:
  _terms:
    description: Words that names of variables begin with.
    type: list
    elements: str
    required: true
author:
  - mkops contributors (@mkops)
"""

EXAMPLES = r"""
# group_vars/web.yml
#   instances_declared_web:
#     web: {cpu_count: 2, memory: 2G}
# host_vars/large.yml
#   instances_declared:
#     web: {memory: 8G}
- name: Show what a host of this name and group is to run
  ansible.builtin.debug:
    # web: {cpu_count: 2, memory: 8G}
    msg: "{{ lookup('mkops.multikernel.merged', 'instances_declared') }}"
"""

RETURN = r"""
_raw:
  description: For each word, the merged dictionary. It is empty when there is no such variable.
  type: list
  elements: dict
"""

from collections.abc import Mapping

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

# As people call them.
KINDS = {bool: "true or false", str: "a string", list: "a list", int: "a number", float: "a number"}


def merge(one: Mapping, other: Mapping) -> dict:
    """Both, with dictionaries in them merged; the second one wins. A key without a value adds nothing."""
    result = dict(one)
    for key, value in other.items():
        before = result.get(key)
        if isinstance(before, Mapping) and (value is None or isinstance(value, Mapping)):
            value = merge(before, value or {})
        result[key] = value
    return result


class LookupModule(LookupBase):
    def run(self, terms, variables=None, **kwargs):
        self.set_options(var_options=variables, direct=kwargs)
        return [self._merged(str(term), variables or {}) for term in terms]

    def _merged(self, word: str, variables: Mapping) -> dict:
        names = sorted(name for name in variables if name.startswith(f"{word}_"))
        merged: dict = {}
        for name in [*names, *([word] if word in variables else [])]:
            value = self._templar.template(variables[name])
            if value is None:
                continue
            if not isinstance(value, Mapping):
                kind = next(
                    (text for kind, text in KINDS.items() if isinstance(value, kind)), "something else"
                )
                raise AnsibleError(f"variable {name} is {kind}: it has to be a dictionary to be merged")
            merged = merge(merged, value)
        return merged
