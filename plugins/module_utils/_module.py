# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the modules do alike: options, refusals, failures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ._console import ConsoleError
from ._kerf import DEFAULT_KERF, KerfError
from ._kernelfs import KernelFsError
from ._plan import Refused

KERF_OPTIONS = {"kerf": {"type": "path", "default": DEFAULT_KERF}}


def collect(reasons: list[str], prefix: str, parse: Callable, value: Any) -> Any:
    """The parsed value, None when there is none or when it is wrong; then the reasons are noted."""
    if value is None:
        return None
    try:
        return parse(value)
    except ValueError as error:
        reasons += [f"{prefix}{reason}" for reason in error.args]
        return None


def run_guarded(module: AnsibleModule, what: str, work: Callable[[], dict]) -> None:
    """Exit with the result of the work, or fail with all that is known."""
    try:
        result = work()
    except Refused as refused:
        module.fail_json(
            msg=f"{what}: nothing was changed: " + "; ".join(refused.reasons),
            reasons=list(refused.reasons),
        )
    except KerfError as error:
        module.fail_json(msg=f"{what}: {error}", **error.details)
    except ConsoleError as error:
        module.fail_json(msg=f"{what}: {error}", output=error.output)
    except KernelFsError as error:
        module.fail_json(msg=f"{what}: {error}")
    module.exit_json(**result)
