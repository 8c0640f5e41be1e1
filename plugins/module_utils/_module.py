# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Between Ansible and the engine: how a module ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from .common.errors import Failure, Refused
from .divide.converge import Result


def told(result: Result, check_mode: bool) -> dict[str, Any]:
    """What all modules that divide a host return."""
    found: dict[str, Any] = {
        "changed": result.changed,
        "commands": result.commands,
        "warnings": result.warnings,
    }
    if result.depends:
        found["depends"] = result.depends
    if result.boot:
        found["at_boot"] = dict(result.boot.before if check_mode else result.boot.after)
    return found


def diff(result: Result, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """How the machine, and what the host is at boot if that was asked for, differ before and after."""
    if result.boot is None:
        return {"before": dict(before), "after": dict(after)}
    found = {
        "before": {**before, "at_boot": dict(result.boot.before)},
        "after": {**after, "at_boot": dict(result.boot.after)},
    }
    if result.boot.units and result.boot.units.changed:
        found["before"]["units"], found["after"]["units"] = result.boot.units.view()
    return found


def run_guarded(module: AnsibleModule, what: str, work: Callable[[], dict[str, Any]]) -> None:
    """Exit with the result of the work, or fail with all that is known."""
    failed: dict[str, Any] | None = None
    result: dict[str, Any] = {}
    try:
        result = work()
    except Refused as refused:
        msg = f"{what}: nothing was changed: " + "; ".join(refused.reasons)
        failed = {"msg": msg, "reasons": list(refused.reasons)}
    except Failure as failure:
        message = str(failure)
        prefix = "" if message.startswith(what) else f"{what}: "
        failed = {"msg": f"{prefix}{message}", **failure.details}
    module.params = printable(module.params)  # Ansible may return them as well
    if failed is not None:
        module.fail_json(**printable(failed))
    result = printable(result)
    for warning in result.pop("warnings", ()):
        module.warn(warning)
    module.exit_json(**result)


def printable(value: Any) -> Any:
    """The same for a result: bytes in it that are no text would end the module with a traceback."""
    if isinstance(value, str):
        # Where a host's locale is not UTF-8, the name of a file comes in bytes that together are a text.
        with contextlib.suppress(UnicodeEncodeError):
            return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [printable(item) for item in value]
    return value
