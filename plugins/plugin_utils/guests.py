# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Instances as hosts of an inventory: names, groups and variables, from what their host says of them."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

KERF = "mkops.multikernel.kerf"
# What is known about an instance, and can make groups of them
KINDS = ("name", "host", "state", "profile", "label", "boot_id")
PREFIX = "mkops_"
EVERYBODY = "instances"  # the group of all, after the prefix
# What a host may be called: nothing that a pattern, a path or a terminal takes for something else.
_HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}")
_UNFIT = re.compile(r"[^A-Za-z0-9_]")
_PROFILE = re.compile(r"vmlinux-([A-Za-z0-9_]+)")


class NoInstances(ValueError):
    """What a host has said is not what mkops says."""


def variables_of(host: str, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Variables of instances from what a host says (mkops status --json, module info), or NoInstances."""
    found = []
    instances = _at(facts, "instances", list)
    about = facts.get("host")
    boot_id = about.get("boot_id") if isinstance(about, Mapping) else None
    for one in instances:
        if not isinstance(one, Mapping) or not isinstance(one.get("name"), str):
            raise NoInstances("an instance has no name")
        cmdline = one.get("cmdline") or ""
        labels = one.get("labels")
        found.append(
            {
                "mkops_name": one["name"],
                "mkops_host": host,
                "mkops_id": one.get("id"),
                "mkops_state": one.get("state"),
                "mkops_cpus": one.get("cpus"),
                "mkops_memory": one.get("memory"),
                "mkops_cmdline": cmdline,
                "mkops_labels": dict(labels) if isinstance(labels, Mapping) else {},
                "mkops_kernel": one.get("kernel"),
                "mkops_profile": profile_of(one),
                "mkops_address": address_of(str(cmdline)),
                "mkops_exit_reason": one.get("exit_reason"),
                "mkops_epoch": one.get("epoch"),
                "mkops_boot_id": boot_id,
            }
        )
    return found


def _at(facts: object, key: str, kind: type) -> Any:
    value = facts.get(key) if isinstance(facts, Mapping) else None
    if not isinstance(value, kind):
        raise NoInstances(f"there is no '{key}' in it")
    return value


def profile_of(instance: Mapping[str, Any]) -> str | None:
    """Which of the kernels that the role kernel delivers it has; None for another one."""
    kernel = instance.get("kernel")
    path = kernel.get("path") if isinstance(kernel, Mapping) else None
    found = _PROFILE.fullmatch(str(path).rpartition("/")[2])
    return found[1] if found else None


def address_of(cmdline: str) -> str | None:
    """The address that an instance's kernel is given (ip=); None for none, or one that DHCP gives."""
    for word in cmdline.split():
        if word.startswith("ip="):
            for form in (word[3:].split(":", 1)[0], *re.findall(r"\[([^\]]*)\]", word[3:])[:1]):
                try:
                    return str(ipaddress.ip_address(form))
                except ValueError:
                    continue
    return None


def groups_of(variables: Mapping[str, Any], kinds: Iterable[str], prefix: str) -> list[str]:
    """Names of groups, of characters that every version of Ansible takes."""
    words = [EVERYBODY]
    for kind in kinds:
        if kind == "label":
            words += (f"label_{key}_{value}" for key, value in sorted(variables["mkops_labels"].items()))
        elif variables[f"mkops_{kind}"] not in (None, ""):
            value = variables[f"mkops_{kind}"]
            words.append(str(value) if kind == "name" else f"{kind}_{value}")
    return [_UNFIT.sub("_", f"{prefix}{word}") for word in words]


def is_host_name(name: object) -> bool:
    return isinstance(name, str) and _HOST_NAME.fullmatch(name) is not None


def by_kerf(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables for the connection through the host."""
    return {
        "ansible_connection": KERF,
        "ansible_kerf_host": variables["mkops_host"],
        "ansible_kerf_instance": variables["mkops_name"],
    }


def by_ssh(variables: Mapping[str, Any], host: Mapping[str, Any]) -> dict[str, Any]:
    """Variables for SSH to the instance's address with a jump over its host. host: variables of that."""
    return {
        "ansible_connection": "ansible.builtin.ssh",
        "ansible_host": variables["mkops_address"],
        "ansible_ssh_common_args": jump(variables["mkops_host"], host),
    }


def jump(name: str, host: Mapping[str, Any]) -> str:
    """Options of ssh(1) for the way over a host. ProxyJump cannot be given a key or options of its own."""

    def first(*names: str) -> Any:
        return next((host[one] for one in names if host.get(one) not in (None, "")), None)

    address = str(first("ansible_host", "ansible_ssh_host") or name)
    user, port = first("ansible_user", "ansible_ssh_user"), first("ansible_port", "ansible_ssh_port")
    key = first("ansible_ssh_private_key_file", "ansible_private_key_file")
    common = first("ansible_ssh_common_args")
    if not key and not common:
        there = f"[{address}]" if ":" in address else address
        login = f"{user}@" if user else ""
        return f"-o ProxyJump={shlex.quote(login + there + (f':{port}' if port else ''))}"
    words = ["ssh", "-W", "[%h]:%p"]
    words += ["-i", str(key)] if key else []
    words += ["-p", str(port)] if port else []
    words += ["-l", str(user)] if user else []
    command = " ".join(word if word == "[%h]:%p" else shlex.quote(word) for word in [*words, address])
    if common:
        command = command.replace("ssh ", f"ssh {common} ", 1)
    return f"-o ProxyCommand={shlex.quote(command)}"
