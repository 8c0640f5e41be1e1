# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the modules do alike: options, refusals, failures."""

from __future__ import annotations

from collections.abc import Callable

from ansible.module_utils.basic import AnsibleModule

from .common.errors import Failure, Refused
from .divide.versions import DEFAULT_KERF
from .divide.wish import POLICIES, RESTARTS, STATES, WAITS

KERF_OPTIONS = {"kerf": {"type": "path", "default": DEFAULT_KERF}}

# What the host keeps.
HEADROOM_OPTIONS = {
    "headroom": {"type": "str", "default": "256M"},
    "host_cpus": {"type": "int", "default": 1},
}

POOL_OPTIONS = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "cpus": {"type": "raw"},
    "cpu_count": {"type": "int"},
    "memory": {"type": "raw"},
    "devices": {"type": "list", "elements": "str"},
}

INSTANCE_OPTIONS = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": list(STATES), "default": "present"},
    "cpus": {"type": "raw"},
    "cpu_count": {"type": "int"},
    "cpu_policy": {"type": "list", "elements": "str", "choices": list(POLICIES)},
    "memory": {"type": "str"},
    "id": {"type": "int"},
    "kernel": {"type": "path"},
    "initrd": {"type": "path"},
    "cmdline": {"type": "str"},
    "console": {"type": "str"},
    "network": {
        "type": "dict",
        "options": {
            "address": {"type": "str", "required": True},
            "netmask": {"type": "str"},
            "gateway": {"type": "str"},
            "device": {"type": "str"},
            "hostname": {"type": "str"},
        },
    },
    "labels": {"type": "dict"},
    "restart": {"type": "str", "choices": list(RESTARTS), "default": "always"},
    "allow_restart": {"type": "bool", "default": False},
    "force": {"type": "bool", "default": False},
    "stop_timeout": {"type": "int", "default": 60},
    "wait_for": {"type": "str"},
    "wait": {"type": "str", "choices": list(WAITS), "default": "none"},
    "timeout": {"type": "int", "default": 60},
}


def run_guarded(module: AnsibleModule, what: str, work: Callable[[], dict]) -> None:
    """Exit with the result of the work, or fail with all that is known."""
    try:
        result = work()
    except Refused as refused:
        module.fail_json(
            msg=f"{what}: nothing was changed: " + "; ".join(refused.reasons),
            reasons=list(refused.reasons),
        )
    except Failure as failure:
        message = str(failure)
        prefix = "" if message.startswith(what) else f"{what}: "
        module.fail_json(msg=f"{prefix}{message}", **failure.details)
    for warning in result.pop("warnings", ()):
        module.warn(warning)
    module.exit_json(**result)
