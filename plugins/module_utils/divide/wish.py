# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What users may wish, as values, and what is wrong with a wish by itself. The machine is not looked at."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from ..common.cpuset import parse_cpus
from ..common.size import MIB, format_size, parse_memory, parse_size

DEFAULT_CONSOLE = "mktty0"  # kerf adds it to a command line that names no console
FIRST_ID, LAST_ID = 1, 511
LONGEST_CMDLINE = 2047  # COMMAND_LINE_SIZE of x86, less the end
SMALLEST_MEMORY = 32 * MIB
LABEL = "label."  # such words of a command line are labels; Linux takes them for those of an unknown module
POLICIES = ("cores", "node", "spread", "cache")
STATES = ("present", "loaded", "started", "stopped", "absent")
RESTARTS = ("always", "on-failure", "never")
WAITS = ("none", "agent", "heartbeat")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ALL_BUT = re.compile(r"all\s+but\s+(\d{1,4})")
_PCI = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_LABEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_WORD = re.compile(r"[!-~]+")
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_DEVICE = re.compile(r"[A-Za-z0-9._-]{1,15}")


@dataclass(frozen=True)
class Image:
    """A kernel or initramfs file on the host."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class AllBut:
    """All CPUs of the machine but so many, which the host keeps."""

    count: int


@dataclass(frozen=True)
class PoolWish:
    """Logical CPUs, how many, or all but some; memory in total or per NUMA node; None keeps what there is."""

    cpus: tuple[int, ...] | int | AllBut | None = None
    memory: int | Mapping[int, int] | None = None
    devices: tuple[str, ...] | None = None
    absent: bool = False
    said: frozenset[str] = frozenset()  # parameters that were given, even if they are wrong


@dataclass(frozen=True)
class InstanceWish:
    """One instance as its task describes it; None means not said."""

    name: str
    state: str = "present"
    cpus: tuple[int, ...] | None = None  # logical
    cpu_count: int | None = None
    cpu_policy: frozenset[str] = frozenset()
    memory: int | None = None
    id: int | None = None
    kernel: Image | None = None
    initrd: Image | None = None
    cmdline: str = ""
    allow_restart: bool = False
    restart: str = "always"
    said: frozenset[str] = frozenset()  # parameters that were given, even if they are wrong

    @property
    def full_cmdline(self) -> str:
        """As kerf hands it over."""
        if not any(word.startswith("console=") for word in self.cmdline.split()):
            return f"{self.cmdline} console={DEFAULT_CONSOLE}".strip()
        return self.cmdline


@dataclass(frozen=True)
class Manner:
    """How steps of an instance are to be taken, and when it counts as up."""

    force: bool = False
    stop_timeout: float = 60
    wait_for: str | None = None
    wait: str = "none"
    timeout: float = 60

    @property
    def waits(self) -> bool:
        return self.wait_for is not None or self.wait != "none"


@dataclass(frozen=True)
class Wish:
    """How a host is to be divided. Instances that are not named stay, or go when it is to be pruned."""

    pool: PoolWish | None = None
    instances: tuple[InstanceWish, ...] = ()
    prune: bool = False
    headroom: int = 0  # bytes that stay available to the host
    host_cpus: int = 1  # how many it keeps


def collect(reasons: list[str], prefix: str, parse, value):
    """The parsed value, None when there is none or when it is wrong; then the reasons are noted."""
    if value is None:
        return None
    try:
        return parse(value)
    except ValueError as error:
        reasons += [f"{prefix}{reason}" for reason in error.args]
        return None


def _said(params: Mapping) -> frozenset[str]:
    """Nobody is asked to give what was given wrongly."""
    given = {name for name, value in params.items() if value is not None}
    return frozenset(given | {"cpus"} if "cpu_count" in given else given)


def compile_pattern(pattern: str) -> re.Pattern:
    """A regular expression whose ^ and $ match at lines; ValueError says what is wrong with it."""
    try:
        return re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise ValueError(f"'{pattern}' is not a regular expression: {error}") from error


def name_reasons(name: str) -> list[str]:
    if _NAME.fullmatch(name):
        return []
    return [
        f"name '{name}' is not usable: begin with a letter or digit,"
        " go on with those, '.', '_' and '-', at most 63 in all"
    ]


# Pool


def parse_pool_cpus(value) -> tuple[int, ...] | AllBut:
    """A list of CPUs, or C(all but N)."""
    if match := _ALL_BUT.fullmatch(str(value).strip()):
        return AllBut(int(match[1]))
    cpus = tuple(parse_cpus(value))
    if not cpus:
        raise ValueError("no CPU is named: a pool needs at least one (state: absent gives everything back)")
    return cpus


def parse_pool_memory(value) -> int | dict[int, int]:
    """Bytes in all, or by NUMA node."""
    if not isinstance(value, dict):
        return parse_memory(value)
    reasons: list[str] = []
    nodes = {}
    for node, size in value.items():
        if not str(node).isdecimal():
            reasons.append(f"'{node}' is not a NUMA node")
            continue
        nodes[int(node)] = collect(reasons, f"node {node}: ", parse_memory, size)
    if not nodes and not reasons:
        reasons.append("no NUMA node is named")
    if reasons:
        raise ValueError(*reasons)
    return nodes


def parse_devices(value) -> tuple[str, ...]:
    """PCI addresses with their domain."""
    reasons = [
        f"'{device}' is not a PCI address such as 0000:3b:00.0"
        for device in value
        if not _PCI.fullmatch(str(device))
    ]
    reasons += [f"{device} is listed twice" for device in sorted({*value}) if value.count(device) > 1]
    if reasons:
        raise ValueError(*reasons)
    return tuple(value)


def make_pool_wish(params: Mapping) -> tuple[PoolWish, list[str]]:
    """The wish and what is wrong with its values."""
    reasons: list[str] = []
    count = params.get("cpu_count")
    if count is not None and params.get("cpus") is not None:
        reasons.append("cpus and cpu_count: say one of them")
    if count is not None and count < 1:
        reasons.append(f"cpu_count: {count} is too few, a pool needs at least one CPU")
        count = None
    cpus = collect(reasons, "cpus: ", parse_pool_cpus, params.get("cpus"))
    wish = PoolWish(
        cpus=cpus if cpus is not None else count,
        memory=collect(reasons, "memory: ", parse_pool_memory, params.get("memory")),
        devices=collect(reasons, "devices: ", parse_devices, params.get("devices")),
        absent=params.get("state") == "absent",
        said=_said(params),
    )
    return wish, reasons


def parse_headroom(reasons: list[str], params: Mapping) -> tuple[int, int]:
    """Bytes and CPUs that the host keeps."""
    cpus = params["host_cpus"]
    if cpus < 1:
        reasons.append(f"host_cpus: {cpus} is too few, the host needs at least one CPU")
    return collect(reasons, "headroom: ", parse_size, params["headroom"]) or 0, cpus


# Instance


def parse_instance_memory(value) -> int:
    size = parse_memory(value)
    if size < SMALLEST_MEMORY:
        raise ValueError(
            f"'{value}' does not hold a kernel and its initramfs: at least"
            f" {format_size(SMALLEST_MEMORY)} are needed"
        )
    return size


def _address(what: str, value: str) -> str:
    try:
        socket.inet_pton(socket.AF_INET, value)
        return value
    except OSError:
        raise ValueError(f"{what} '{value}' is not an IPv4 address") from None


def network_word(network: Mapping) -> str:
    """The kernel's C(ip=) for an address or C(dhcp); ValueError(*reasons) names every mistake."""
    reasons: list[str] = []
    fields = {key: value for key, value in network.items() if value is not None}
    for key, pattern in (("hostname", _HOST_NAME), ("device", _DEVICE)):
        if key in fields and not pattern.fullmatch(fields[key]):
            reasons.append(f"{key} '{fields[key]}' is not one")
    address = fields.get("address", "")
    if not address:
        reasons.append("address is missing: an IPv4 address or dhcp")
    elif address != "dhcp":
        collect(reasons, "", lambda value: _address("address", value), address)
        for key in ("gateway", "netmask"):
            collect(reasons, "", lambda value, key=key: _address(key, value), fields.get(key))
    else:
        reasons += [
            f"{key} and address dhcp exclude each other" for key in ("gateway", "netmask") if key in fields
        ]
    if reasons:
        raise ValueError(*reasons)
    names = fields.get("hostname", ""), fields.get("device", "")
    if address == "dhcp":
        return f"ip=::::{names[0]}:{names[1]}:dhcp"
    mask = fields.get("netmask", "255.255.255.0")
    return f"ip={address}::{fields.get('gateway', '')}:{mask}:{names[0]}:{names[1]}:off"


def label_words(labels: Mapping) -> str:
    """Labels as words of a command line, where the kernel keeps them."""
    reasons = []
    for name, value in labels.items():
        if not _LABEL_NAME.fullmatch(str(name)):
            reasons.append(f"'{name}' is not usable: letters, digits, '_' and '-', at most 63")
        if not _WORD.fullmatch(str(value)) or '"' in str(value):
            reasons.append(f"'{value}' of {name} is not usable: one word of printable ASCII without quotes")
    if reasons:
        raise ValueError(*reasons)
    return " ".join(f"{LABEL}{name}={value}" for name, value in sorted(labels.items()))


def labels_of(cmdline: str | None) -> dict[str, str]:
    """The labels in a command line."""
    words = [word[len(LABEL) :] for word in (cmdline or "").split() if word.startswith(LABEL)]
    return {name: value for name, _equals, value in (word.partition("=") for word in words)}


def _cmdline(params: Mapping, reasons: list[str]) -> str:
    """Command line, labels, network and console in one."""
    text = params.get("cmdline") or ""
    if not all(char.isprintable() and char.isascii() for char in text):
        reasons.append("cmdline: only printable ASCII reaches a kernel unharmed")
    words = [text, collect(reasons, "labels: ", label_words, params.get("labels"))]
    names = [word.partition("=")[0] for word in text.split()]
    if params.get("network") is not None:
        words.append(collect(reasons, "network: ", network_word, params["network"]))
        if "ip" in names:
            reasons.append("network and ip= in cmdline: say one of them")
    console = params.get("console")
    if console is not None:
        if "console" in names:
            reasons.append("console and console= in cmdline: say one of them")
        if _DEVICE.fullmatch(console):
            words.append(f"console={console}")
        else:
            reasons.append(f"console '{console}' is not the name of a device such as {DEFAULT_CONSOLE}")
    line = " ".join(filter(None, words))
    if len(line) > LONGEST_CMDLINE:
        reasons.append(
            f"cmdline: {len(line)} characters are too many, a kernel takes {LONGEST_CMDLINE} at most"
        )
    return line


def _image(reasons: list[str], read, path: str | None) -> Image | None:
    """What is at a path. One that is of no use is still one that was given, so that nobody asks for it."""
    return collect(reasons, "", read, path) or (Image(path, 0, "") if path else None)


IMAGE_OPTIONS = ("initrd", "cmdline", "labels", "network", "console")


def make_instance_wish(params: Mapping, read_kernel, read_initrd) -> tuple[InstanceWish, list[str]]:
    """The wish and what is wrong with its values. Files matter only where an instance is to be."""
    name, state = params["name"], params["state"]
    reasons = name_reasons(name)
    absent = state == "absent"
    count = params["cpu_count"]
    policy = frozenset(params["cpu_policy"] or ())
    cpus = collect(reasons, "cpus: ", lambda value: tuple(parse_cpus(value)), params["cpus"])
    if cpus == ():
        reasons.append("cpus: no CPU is named: an instance needs at least one")
    if cpus is not None and count is not None:
        reasons.append("cpus and cpu_count: say one of them")
    if cpus is not None and policy:
        reasons.append("cpus and cpu_policy: the policy chooses CPUs, and they are chosen already")
    if count is not None and count < 1:
        reasons.append(f"cpu_count: {count} is too few, an instance needs at least one CPU")
        count = None
    if params["id"] is not None and not FIRST_ID <= params["id"] <= LAST_ID:
        reasons.append(f"id {params['id']} is out of range: choose {FIRST_ID} to {LAST_ID}, or leave it out")
    if params["kernel"] is None:
        reasons += [f"{what} without kernel: say which" for what in IMAGE_OPTIONS if params.get(what)]
    for what in ("stop_timeout", "timeout"):
        if params[what] < 1:
            reasons.append(f"{what}: {params[what]} is no time to wait")
    collect(reasons, "wait_for: ", compile_pattern, params["wait_for"])
    wish = InstanceWish(
        name=name,
        state=state,
        cpus=cpus or None,
        cpu_count=count,
        cpu_policy=policy,
        memory=collect(reasons, "memory: ", parse_instance_memory, params["memory"]),
        id=params["id"],
        kernel=None if absent else _image(reasons, read_kernel, params["kernel"]),
        initrd=None if absent else _image(reasons, read_initrd, params["initrd"]),
        cmdline=_cmdline(params, reasons),
        allow_restart=params["allow_restart"],
        restart=params["restart"],
        said=_said(params),
    )
    return wish, reasons


def make_manner(params: Mapping) -> Manner:
    keys = ("force", "stop_timeout", "wait_for", "wait", "timeout")
    return Manner(**{key: params[key] for key in keys})


def wish_reasons(wish: Wish) -> list[str]:
    """What instances of one wish have against each other."""
    reasons = []
    names = [one.name for one in wish.instances]
    reasons += [f"instance {name} is declared twice" for name in sorted({*names}) if names.count(name) > 1]
    wanted: dict[int, str] = {}
    numbers: dict[int, str] = {}
    for one in wish.instances:
        if one.state == "absent":
            continue
        for cpu in one.cpus or ():
            other = wanted.setdefault(cpu, one.name)
            if other != one.name:
                reasons.append(f"CPU {cpu} is declared for {other} and for {one.name}: a CPU runs one kernel")
        other = numbers.setdefault(one.id, one.name) if one.id is not None else one.name
        if other != one.name:
            reasons.append(f"id {one.id} is declared for {other} and for {one.name}: leave one of them out")
    return reasons
