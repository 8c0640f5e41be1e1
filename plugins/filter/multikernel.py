# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Filters for what users of this collection calculate with: CPU lists, sizes, instances in a fleet."""

from __future__ import annotations

from collections.abc import Mapping

from ansible.errors import AnsibleFilterError

from ansible_collections.mkops.multikernel.plugins.module_utils.common.cpuset import format_cpus, parse_cpus
from ansible_collections.mkops.multikernel.plugins.module_utils.common.size import format_size, parse_size
from ansible_collections.mkops.multikernel.plugins.module_utils.common.text import shown
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import fleet
from ansible_collections.mkops.multikernel.plugins.plugin_utils import guests
from ansible_collections.mkops.multikernel.plugins.plugin_utils.report import page

try:
    import netaddr
except ImportError:
    netaddr = None


def _cpus(name: str, value) -> list[int]:
    try:
        return [] if value in ("", None) else parse_cpus(value)
    except ValueError as error:
        raise AnsibleFilterError(f"mkops.multikernel.{name}: {'; '.join(error.args)}") from error


def cpus_expand(value) -> list[int]:
    return _cpus("cpus_expand", value)


def cpus_compress(value) -> str:
    return format_cpus(_cpus("cpus_compress", value))


def cpus_intersect(value, other) -> list[int]:
    others = set(_cpus("cpus_intersect", other))
    return [cpu for cpu in _cpus("cpus_intersect", value) if cpu in others]


def size_bytes(value) -> int:
    try:
        return parse_size(value)
    except ValueError as error:
        raise AnsibleFilterError(f"mkops.multikernel.size_bytes: {error}") from error


def size_human(value) -> str:
    return format_size(size_bytes(value))


def instance_addresses(instances, network, first: int = 0) -> dict[str, dict]:
    """By name, an address of a network for every instance, which goes with its number and so stays."""
    name = "mkops.multikernel.instance_addresses"
    if netaddr is None:
        raise AnsibleFilterError(
            f"{name} needs the Python package 'netaddr' on the controller: pip install netaddr"
        )
    try:
        net = netaddr.IPNetwork(network)
    except (netaddr.AddrFormatError, ValueError) as error:
        raise AnsibleFilterError(f"{name}: {shown(network)} is not a network: {error}") from error
    if net.ip != net.network:
        raise AnsibleFilterError(f"{name}: {shown(network)} is an address: the network is {net.cidr}")
    found = {}
    for instance in instances:
        if not isinstance(instance, Mapping) or not {"name", "id"} <= instance.keys():
            raise AnsibleFilterError(
                f"{name}: {shown(instance)} is not an instance as mkops.multikernel.info returns it"
            )
        place = int(first) + int(instance["id"])
        # The first address is the network's own, the last one in IPv4 means all.
        last = net.size - (2 if net.version == 4 else 1)
        if not 0 < place <= last:
            raise AnsibleFilterError(
                f"{name}: {net} has no address number {place} for {instance['name']}: take a larger network"
            )
        found[instance["name"]] = {
            "address": str(net[place]),
            "netmask": str(net.netmask),
            "prefix": net.prefixlen,
            "cidr": f"{net[place]}/{net.prefixlen}",
        }
    return found


def fleet_report(hosts, title: str = "Kernels side by side", at: str = "an unknown time") -> str:
    """A page about what info has returned, by the name of the host."""
    if not isinstance(hosts, Mapping):
        raise AnsibleFilterError(
            f"mkops.multikernel.fleet_report: {shown(hosts)} is not a dictionary of what"
            " mkops.multikernel.info has returned, by the name of the host"
        )
    return page(hosts, title, at)


def place(instances, hosts, policy: str = fleet.SPREAD) -> dict:
    """A host for every instance, or all reasons why some have none."""
    if policy not in fleet.POLICIES:
        raise AnsibleFilterError(f"mkops.multikernel.place: policy: {shown(policy)} is not spread or pack")
    wanted, reasons = fleet.read_instances(instances)
    found, more = fleet.read_hosts(hosts)
    if reasons or more:
        raise AnsibleFilterError(f"mkops.multikernel.place: {'; '.join([*reasons, *more])}")
    return fleet.place(found, wanted, policy)


def instance_hosts(facts) -> list[dict]:
    """Instances of hosts as hosts of an inventory."""
    if not isinstance(facts, Mapping):
        raise AnsibleFilterError(
            f"mkops.multikernel.instance_hosts: {shown(facts)} is not a dictionary by host"
        )
    found = []
    for host, said in facts.items():
        try:
            instances = guests.variables_of(str(host), said)
        except guests.NoInstances as error:
            raise AnsibleFilterError(f"mkops.multikernel.instance_hosts: host {host}: {error}") from error
        for variables in instances:
            name = f"{variables['mkops_name']}.{host}"
            if guests.is_host_name(name):
                groups = guests.groups_of(variables, ("name", "host", "state"), guests.PREFIX)
                way = guests.by_kerf(variables)
                found.append({"inventory_name": name, "groups": groups, **variables, **way})
    return found


class FilterModule:
    def filters(self) -> dict:
        functions = (
            *(cpus_expand, cpus_compress, cpus_intersect, size_bytes, size_human),
            *(instance_addresses, instance_hosts, place, fleet_report),
        )
        return {function.__name__: function for function in functions}
