# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: instances
short_description: Instances of multikernel hosts as hosts
version_added: 0.3.0
description:
  - Asks hosts of earlier inventory sources, or those in O(declare), for their instances, all at once, and
    makes a host of each. A play can say C(hosts=mkops_database) then.
  - Every host is asked by Ansible's own connection to it, for C(mkops status --json). The role
    C(mkops.multikernel.host) installs that program.
  - A host that does not answer is a warning, and costs its time-out once.
  - The file has to be called C(mkops.yml), or end with C(.mkops.yml) (or C(.yaml)), and to be read after the
    sources that have the hosts. In a directory, sources are read in the order of their names.
author:
  - mkops contributors (@mkops)
options:
  plugin:
    description: Has to be V(mkops.multikernel.instances).
    type: str
    required: true
    choices: [mkops.multikernel.instances]
  hosts:
    description:
      - Multikernel hosts of earlier sources, by names of hosts and groups, with wildcards.
    type: list
    elements: str
    default: [multikernel]
  declare:
    description:
      - More multikernel hosts, by name, each with its variables, such as C(ansible_host). They are added to
        the inventory, in the group C(multikernel).
    type: dict
    default: {}
  name:
    description:
      - What an instance is called in the inventory, as a template, with the variables that are listed below.
      - It has to give each instance of the fleet another name. When it is not set, that is the name of the
        instance, a point, and the name of its host.
    type: str
  group_by:
    description:
      - What groups are made of. Their names begin with O(group_prefix), and V(name) gives C(mkops_database),
        V(host) C(mkops_host_bigserver), V(state) C(mkops_state_active), V(profile) C(mkops_profile_realtime),
        V(label) C(mkops_label_tier_front), V(boot_id) one for each boot of a host.
      - All instances are in C(mkops_instances).
    type: list
    elements: str
    choices: [name, host, state, profile, label, boot_id]
    default: [name, host, state]
  group_prefix:
    description: What names of groups begin with.
    type: str
    default: mkops_
  filters:
    description:
      - Conditions, such as C(mkops_state == 'active'). Instances for which all of them hold become hosts.
    type: list
    elements: str
    default: []
  connection:
    description:
      - V(kerf) reaches instances by P(mkops.multikernel.kerf#connection), without a network in them.
      - V(ssh) reaches those that have an address on their command line (C(ip=)) by SSH, with a jump over
        their host, and the others by V(kerf).
    type: str
    choices: [kerf, ssh]
    default: kerf
  timeout:
    description: Seconds that a host has to answer.
    type: int
    default: 20
  parallel:
    description: How many hosts are asked at the same time.
    type: int
    default: 25
  program:
    description: Path of mkops on a host, as a template with the variables of the host.
    type: str
    default: /usr/local/sbin/mkops
  host_become:
    description:
      - Whether to become root on the hosts. When this is not set, root is become unless the login is root's.
    type: bool
extends_documentation_fragment:
  - constructed
  - inventory_cache
notes:
  - C(compose), C(groups), C(keyed_groups), O(filters) and O(name) can use C(mkops_name), C(mkops_host),
    C(mkops_id), C(mkops_state), C(mkops_cpus), C(mkops_memory), C(mkops_labels), C(mkops_profile),
    C(mkops_kernel), C(mkops_cmdline), C(mkops_address), C(mkops_exit_reason), C(mkops_epoch) and
    C(mkops_boot_id). Hosts that are made have them as variables.
  - What an instance says, such as why it panicked, is never taken for a template.
seealso:
  - plugin: mkops.multikernel.kerf
    plugin_type: connection
"""

EXAMPLES = r"""
# inventory/10-hosts.yml has the group multikernel; this is inventory/20-instances.mkops.yml
plugin: mkops.multikernel.instances
filters:
  - mkops_state == 'active'
group_by: [name, host, label]
keyed_groups:
  - key: mkops_profile
    prefix: kernel
compose:
  ansible_kerf_timeout: "30"
cache: true
"""

import contextlib
import fnmatch
import json
import os
import selectors
import shlex
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ansible.errors import AnsibleError, AnsibleParserError
from ansible.inventory.helpers import get_group_vars
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable
from ansible.template import Templar, trust_as_template
from ansible.utils.vars import combine_vars, load_extra_vars
from ansible.vars.plugins import get_vars_from_inventory_sources

from ansible_collections.mkops.multikernel.plugins.module_utils.common.files import parse_json
from ansible_collections.mkops.multikernel.plugins.plugin_utils.guests import (
    NoInstances,
    by_kerf,
    by_ssh,
    groups_of,
    is_host_name,
    variables_of,
)
from ansible_collections.mkops.multikernel.plugins.plugin_utils.hosts import HostConnection, bounded

LONGEST = 32 << 20  # bytes of an answer


class Templated(Mapping):
    """Variables of a host, each of which is templated when it is asked for."""

    def __init__(self, loader: Any, variables: Mapping[str, Any]) -> None:
        self._templar, self._variables = Templar(loader=loader, variables=dict(variables)), variables

    def fill(self, template: str) -> Any:
        """A template of the inventory's own."""
        return self._templar.template(trust_as_template(template))

    def __getitem__(self, name: str) -> Any:
        return self._templar.template(self._variables[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    NAME = "mkops.multikernel.instances"

    def verify_file(self, path: str) -> bool:
        name = os.path.basename(path)
        return super().verify_file(path) and any(
            name == f"mkops.{end}" or name.endswith(f".mkops.{end}") for end in ("yml", "yaml")
        )

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        self.load_cache_plugin()
        for name, variables in self.get_option("declare").items():
            self._declare(name, variables)
        hosts = {name: self._variables(name) for name in self._selected()}
        if not hosts:
            wanted = ", ".join(map(bounded, self.get_option("hosts")))
            self.display.warning(
                f"{path}: earlier inventory sources have no host for hosts: [{wanted}]. Say there whose "
                "instances are meant, and name the source of those hosts before this one"
            )
        for name, facts in self._facts(hosts, path, cache).items():
            try:
                instances = variables_of(name, facts)
            except NoInstances as error:
                self._warn(name, f"what mkops says is not understood: {error}")
                continue
            for variables in instances:
                self._add(variables, hosts[name])

    # --- hosts ---

    def _declare(self, name: str, variables: Any) -> None:
        if not is_host_name(name) or not isinstance(variables or {}, Mapping):
            raise AnsibleParserError(f"declare: {bounded(name)} is not the name of a host with its variables")
        self.inventory.add_group("multikernel")
        self.inventory.add_host(name, group="multikernel")
        for key, value in (variables or {}).items():
            self.inventory.set_variable(name, key, value)

    def _selected(self) -> list[str]:
        """Names of the hosts that are meant, in the order of the inventory."""
        meant = {*self.get_option("declare")}
        for pattern in self.get_option("hosts"):
            for name, group in self.inventory.groups.items():
                if fnmatch.fnmatchcase(name, pattern):
                    meant |= {host.name for host in group.get_hosts()}
            meant |= {name for name in self.inventory.hosts if fnmatch.fnmatchcase(name, pattern)}
        return [name for name in self.inventory.hosts if name in meant]

    def _variables(self, name: str) -> Templated:
        """Those of inventory sources, of group_vars and host_vars, and of the command line."""
        host = self.inventory.hosts[name]
        sources = getattr(self.inventory, "processed_sources", [])
        found = get_group_vars(host.get_groups())
        for entities in (host.get_groups(), [host]):
            if entities == [host]:
                found = combine_vars(found, host.get_vars())
            found = combine_vars(
                found, get_vars_from_inventory_sources(self.loader, sources, entities, "all")
            )
        found = combine_vars(found, load_extra_vars(self.loader))
        return Templated(self.loader, {**found, "inventory_hostname": name})

    def _facts(self, hosts: Mapping[str, Templated], path: str, cache: bool) -> dict[str, Any]:
        """What hosts say, by name, from the cache or from themselves."""
        key = self.get_cache_key(path)
        use_cache, update_cache = self.get_option("cache") and cache, self.get_option("cache") and not cache
        known: dict[str, Any] = {}
        if use_cache:
            try:
                known = dict(self._cache[key])
            except KeyError:
                update_cache = True
        if not use_cache or update_cache:
            known = self._ask(hosts)
            # Where a host has not answered, all are asked again by the next run.
            if update_cache and known.keys() >= hosts.keys():
                self._cache[key] = known
        return {name: known[name] for name in hosts if name in known}

    def _warn(self, host: str, text: str) -> None:
        self.display.warning(f"host {host}: its instances are not known: {text}")

    # --- asking ---

    def _ask(self, hosts: Mapping[str, Templated]) -> dict[str, Any]:
        """Each host in a process of its own, as Ansible does its tasks: one that hangs can be ended."""
        timeout = self.get_option("timeout")
        waiting, found = list(hosts.items()), {}
        running: dict[int, tuple[str, int, float, bytearray]] = {}
        with selectors.DefaultSelector() as selector:
            while waiting or running:
                while waiting and len(running) < max(1, self.get_option("parallel")):
                    name, variables = waiting.pop(0)
                    try:
                        program = str(variables.fill(self.get_option("program")))
                        host = HostConnection(
                            name, variables, become=self.get_option("host_become"), timeout=timeout
                        )
                    except AnsibleError as error:
                        self._warn(name, bounded(error))
                        continue
                    pid, end = self._fork(host, program)
                    running[end] = (name, pid, time.monotonic() + timeout, bytearray())
                    selector.register(end, selectors.EVENT_READ)
                if not running:
                    break
                left = min(deadline for _name, _pid, deadline, _said in running.values()) - time.monotonic()
                ended = set()
                for key, _events in selector.select(max(0, left)):
                    data = os.read(key.fd, 1 << 20)
                    said = running[key.fd][3]
                    said += data
                    if not data or len(said) > LONGEST:
                        ended.add(key.fd)
                now = time.monotonic()
                late = {end for end, (_name, _pid, deadline, _said) in running.items() if deadline <= now}
                for end in ended | late:
                    name, pid, _deadline, said = running.pop(end)
                    selector.unregister(end)
                    os.close(end)
                    _end(pid)
                    if end in ended:
                        facts = self._understood(name, bytes(said))
                        if facts is not None:
                            found[name] = facts
                    else:
                        self._warn(name, f"no answer within {timeout} s")
        return found

    def _fork(self, host: HostConnection, program: str) -> tuple[int, int]:
        """A process that asks, and the end of a pipe that says what it has heard."""
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid:
            os.close(theirs)
            return pid, ours
        code = 1
        try:
            os.close(ours)
            os.setsid()  # so that what it starts can be ended with it
            answer = _asked(host, program)
            data = json.dumps(answer).encode()
            while data:
                data = data[os.write(theirs, data) :]
            code = 0
        finally:
            os._exit(code)

    def _understood(self, name: str, said: bytes) -> Any:
        try:
            answer = parse_json(said)
        except ValueError:
            self._warn(name, "asking it has failed" if len(said) <= LONGEST else "it says too much")
            return None
        if answer.get("error"):
            self._warn(name, answer["error"])
        elif answer["code"] == 127:
            self._warn(name, "it has no mkops: role mkops.multikernel.host installs it")
        elif answer["code"]:
            self._warn(name, f"mkops fails with code {answer['code']}: {bounded(answer['err'])}")
        else:
            try:
                return parse_json(answer["out"])
            except ValueError:
                self._warn(name, f"what mkops says is not JSON: {bounded(answer['out'], 100)}")
        return None

    # --- instances ---

    def _add(self, variables: dict[str, Any], host: Templated) -> None:
        strict, instance = (
            self.get_option("strict"),
            f"{variables['mkops_name']} of {variables['mkops_host']}",
        )
        self.templar.available_variables = variables
        try:
            if not all(
                self.templar.evaluate_conditional(one) for one in _trusted(self.get_option("filters"))
            ):
                return
            template = self.get_option("name")
            name = (
                f"{variables['mkops_name']}.{variables['mkops_host']}"
                if template is None
                else self.templar.template(trust_as_template(template))
            )
        except Exception as error:
            if strict:
                raise AnsibleParserError(f"instance {bounded(instance)}: {error}") from error
            return
        problem = None
        if not is_host_name(name):
            problem = (
                f"'{bounded(name, 80)}' cannot be the name of a host: give another one by the option name"
            )
        elif name in self.inventory.hosts:
            problem = f"there is a host {name} already: make names unique by the option name"
        if problem:
            if strict:
                raise AnsibleParserError(f"instance {bounded(instance)}: {problem}")
            self.display.warning(f"instance {bounded(instance)} is left out: {problem}")
            return
        self.inventory.add_host(name)
        by_address = self.get_option("connection") == "ssh" and variables["mkops_address"]
        way = by_ssh(variables, host) if by_address else by_kerf(variables)
        for key, value in {**variables, **way}.items():
            self.inventory.set_variable(name, key, value)
        for group in groups_of(variables, self.get_option("group_by"), self.get_option("group_prefix")):
            self.inventory.add_child(self.inventory.add_group(group), name)
        self._set_composite_vars(self.get_option("compose"), variables, name, strict=strict)
        self._add_host_to_composed_groups(self.get_option("groups"), variables, name, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, name, strict=strict)


def _trusted(conditions: Iterable[str]) -> list[str]:
    return [trust_as_template(condition) for condition in conditions]


def _asked(host: HostConnection, program: str) -> dict[str, Any]:
    """What a host says, or why it does not."""
    try:
        code, out, err = host.run(f"{shlex.quote(program)} status --json", b"\n")
    except Exception as error:
        return {"error": bounded(error)}
    return {
        "code": code,
        "out": out[:LONGEST].decode("utf-8", "replace"),
        "err": err[-2000:].decode("utf-8", "replace"),
    }


def _end(pid: int) -> None:
    """A process and what it has started. The connection that ssh keeps open is not among them."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
