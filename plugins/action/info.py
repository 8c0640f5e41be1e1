# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Evaluate the query of the module info on the controller, so that no host needs a library for it."""

from __future__ import annotations

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

try:
    import jmespath
except ImportError:
    jmespath = None

MODULE = "mkops.multikernel.info"
OF_THE_TASK = ("changed", "failed", "invocation", "warnings", "deprecations", "ansible_facts")


class ActionModule(ActionBase):
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: object = None, task_vars: dict | None = None) -> dict:
        result = super().run(tmp, task_vars)
        expression = compile_query(self._task.args.get("query"))
        found = self._execute_module(MODULE, self._task.args, task_vars=task_vars)
        result.update(found if expression is None or found.get("failed") else answer(expression, found))
        return result


def compile_query(query: str | None):
    """Before anything is read, so that a mistake shows at once."""
    if query is None:
        return None
    if jmespath is None:
        raise AnsibleActionFail(
            "query needs the Python package 'jmespath' on the controller: pip install jmespath"
        )
    try:
        return jmespath.compile(query)
    except jmespath.exceptions.JMESPathError as error:
        raise AnsibleActionFail(f"query: '{query}' is not a JMESPath expression: {error}") from error


def answer(expression, found: dict) -> dict:
    """The part of a result that a query asks for, and what belongs to the task."""
    facts = {key: value for key, value in found.items() if key not in OF_THE_TASK and key[0] != "_"}
    try:
        part = expression.search(facts)
    except jmespath.exceptions.JMESPathError as error:
        raise AnsibleActionFail(f"query: '{expression.expression}' cannot be answered: {error}") from error
    return {**{key: value for key, value in found.items() if key not in facts}, "result": part}
