# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What users may wish, as values, and what is wrong with a wish by itself. The machine is not looked at."""

from __future__ import annotations

import re
import socket
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..common.cpuset import parse_cpus
from ..common.size import MIB, format_size, parse_memory
from ..common.text import prefixed, reasons_of, shown

if TYPE_CHECKING:
    from ..devices.record import Record

DEFAULT_CONSOLE = "mktty0"  # kerf adds it to a command line that names no console
FIRST_ID, LAST_ID = 1, 511
LONGEST_CMDLINE = 2047  # COMMAND_LINE_SIZE of x86, less the end
SMALLEST_MEMORY = 32 * MIB
LONGEST_WAIT = 7 * 24 * 3600  # seconds
SHORTEST_WATCHDOG = 5  # seconds; a spawned kernel gives a sign of life every second
MOST_STARTS = 10000
MOST_CRASHES = 1000
LABEL = "label."  # such words of a command line are labels; Linux takes them for those of an unknown module
POLICIES = ("cores", "node", "spread", "cache")
STATES = ("present", "loaded", "started", "stopped", "absent")
RESTARTS = ("always", "on-failure", "no")
WAITS = ("none", "agent", "heartbeat")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ALL_BUT = re.compile(r"all\s+but\s+(\d{1,4})")
_PCI = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_LABEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_WORD = re.compile(r"[!-~]+")
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_DEVICE = re.compile(r"[A-Za-z0-9._-]{1,15}")

Value = TypeVar("Value")


@dataclass(frozen=True)
class Image:
    """A kernel or initramfs file on the host."""

    path: str
    size: int
    sha256: str
    device_trees: bool | None = None  # a kernel was built with CONFIG_OF; None: it does not tell


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
    devices: Record | None = None  # all of them, with their addresses; None: nobody has said anything
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
class Service:
    """What systemd does with an instance that is declared, when it ends. Times are seconds."""

    restart: str = "no"
    restart_delay: int = 1
    restart_delay_max: int | None = None  # None: it does not grow
    restart_steps: int = 5
    restart_limit: int = 5  # starts within the interval
    restart_interval: int = 600  # 0: no limit
    watchdog: int | None = None
    crash_keep: int = 10  # crashes that are kept
    crash_size: int = 1 << 30  # bytes that these may take
    crash_memory: bool = False

    @property
    def reasons(self) -> list[str]:
        """What its values have against each other."""
        if self.restart_delay_max is None or self.restart_delay_max > self.restart_delay:
            return []
        return [
            f"restart_delay_max: {self.restart_delay_max} is not more than restart_delay, which is"
            f" {self.restart_delay}"
        ]


@dataclass(frozen=True)
class Wish:
    """How a host is to be divided. Instances that are not named stay, or go when it is to be pruned."""

    pool: PoolWish | None = None
    instances: tuple[InstanceWish, ...] = ()
    prune: bool = False
    headroom: int = 0  # bytes that stay available to the host
    host_cpus: int = 1  # how many it keeps


def collect(reasons: list[str], prefix: str, parse: Callable[[Any], Value], value: object) -> Value | None:
    """The parsed value, None when there is none or when it is wrong; then the reasons are noted."""
    if value is None:
        return None
    try:
        return parse(value)
    except ValueError as error:
        reasons += [prefixed(prefix, reason) for reason in reasons_of(error)]
        return None


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A regular expression whose ^ and $ match at lines; ValueError says what is wrong with it."""
    try:
        with warnings.catch_warnings():
            # What another Python may take in another way is no concern of who reads the result.
            warnings.simplefilter("ignore", FutureWarning)
            return re.compile(pattern, re.MULTILINE)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{shown(pattern)} is not a regular expression: {error}") from error


def check_pattern(pattern: str) -> str:
    compile_pattern(pattern)
    return pattern


def name_reasons(name: str) -> list[str]:
    if _NAME.fullmatch(name):
        return []
    return [
        f"name {shown(name)} cannot be used: begin with a letter or digit and continue with letters, digits,"
        " '.', '_' and '-', at most 63 characters in all"
    ]


def parse_name(name: str) -> str:
    if reasons := name_reasons(name):
        raise ValueError(*reasons)
    return name


def parse_count(count: int) -> int:
    if count < 1:
        raise ValueError(f"{count} is too few: at least one CPU is needed")
    return count


def parse_host_cpus(count: int) -> int:
    if count < 1:
        raise ValueError(f"{count} is too few: the host needs at least one CPU")
    return count


def parse_seconds(seconds: int) -> int:
    if seconds < 1:
        raise ValueError(f"{seconds} is too short: give at least one second")
    if seconds > LONGEST_WAIT:
        raise ValueError(f"{seconds} is too long: give at most {LONGEST_WAIT} seconds, a week")
    return seconds


def parse_delay(seconds: int) -> int:
    """Also none at all."""
    return seconds if seconds == 0 else parse_seconds(seconds)


def parse_starts(count: int) -> int:
    if not 1 <= count <= MOST_STARTS:
        raise ValueError(f"{count} is out of range: choose 1 to {MOST_STARTS}")
    return count


def parse_crashes(count: int) -> int:
    if not 1 <= count <= MOST_CRASHES:
        raise ValueError(f"{count} is out of range: choose 1 to {MOST_CRASHES}")
    return count


def parse_watchdog(seconds: int) -> int:
    if seconds < SHORTEST_WATCHDOG:
        raise ValueError(
            f"{seconds} is too short: a kernel gives a sign of life every second, and some come late; give at"
            f" least {SHORTEST_WATCHDOG} seconds"
        )
    return parse_seconds(seconds)


def parse_lines(count: int) -> int:
    if count < 0:
        raise ValueError(f"{count} is not a number of lines: give 0 or more")
    return count


# Pool


def parse_pool_cpus(value: object) -> tuple[int, ...] | AllBut:
    """A list of CPUs, or C(all but N)."""
    if match := _ALL_BUT.fullmatch(str(value).strip()):
        return AllBut(int(match[1]))
    cpus = tuple(parse_cpus(value))
    if not cpus:
        raise ValueError("no CPU is named: a pool needs at least one (state: absent gives everything back)")
    return cpus


def parse_pool_memory(value: object) -> int | dict[int, int]:
    """Bytes in all, or by NUMA node."""
    if not isinstance(value, Mapping):
        return parse_memory(value)
    reasons: list[str] = []
    nodes: dict[int, int] = {}
    for node, size in value.items():
        if not re.fullmatch(r"[0-9]{1,4}", str(node)):
            reasons.append(f"{shown(node)} is not the number of a NUMA node")
            continue
        # A node without a size is a mistake as well.
        found = collect(reasons, f"node {node}: ", parse_memory, shown(size) if size is None else size)
        nodes[int(node)] = found or 0
    if not nodes and not reasons:
        reasons.append("no NUMA node is named")
    if reasons:
        raise ValueError(*reasons)
    return nodes


def parse_devices(value: Sequence[str]) -> tuple[str, ...]:
    """PCI addresses with their domain."""
    reasons = [
        f"{shown(device)} is not a PCI address such as 0000:3b:00.0"
        for device in value
        if not _PCI.fullmatch(device)
    ]
    reasons += [f"{device} is listed twice" for device in sorted({*value}) if value.count(device) > 1]
    if reasons:
        raise ValueError(*reasons)
    return tuple(value)


# Instance


def parse_id(number: int) -> int:
    if not FIRST_ID <= number <= LAST_ID:
        raise ValueError(f"id {number} is out of range: choose {FIRST_ID} to {LAST_ID}, or leave it out")
    return number


def parse_instance_cpus(value: object) -> tuple[int, ...]:
    cpus = tuple(parse_cpus(value))
    if not cpus:
        raise ValueError("no CPU is named: an instance needs at least one")
    return cpus


def parse_instance_memory(value: object) -> int:
    size = parse_memory(value)
    if size < SMALLEST_MEMORY:
        raise ValueError(
            f"{shown(value)} is too small for a kernel and its initramfs: give at least"
            f" {format_size(SMALLEST_MEMORY)}"
        )
    return size


def parse_cmdline(text: str) -> str:
    if not all(char.isprintable() and char.isascii() for char in text):
        raise ValueError("only printable ASCII characters can be passed to a kernel")
    return text


def console_word(device: str) -> str:
    """The kernel's C(console=)."""
    if not _DEVICE.fullmatch(device):
        raise ValueError(f"console {shown(device)} is not the name of a device such as {DEFAULT_CONSOLE}")
    return f"console={device}"


def _is_address(value: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET, value)
        return True
    except (OSError, ValueError):
        return False


def network_word(network: Mapping[str, str | None]) -> str:
    """The kernel's C(ip=) for an address or C(dhcp); ValueError(*reasons) names every mistake."""
    reasons: list[str] = []
    fields = {key: value for key, value in network.items() if value is not None}
    for key, pattern in (("hostname", _HOST_NAME), ("device", _DEVICE)):
        if key in fields and not pattern.fullmatch(fields[key]):
            what = "a host name" if key == "hostname" else "the name of a network device"
            reasons.append(f"{key} {shown(fields[key])} is not {what}")
    address = fields.get("address", "")
    if not address:
        reasons.append("address is missing: give an IPv4 address or dhcp")
    elif address != "dhcp":
        reasons += [
            f"{key} {shown(fields[key])} is not an IPv4 address"
            for key in ("address", "gateway", "netmask")
            if key in fields and not _is_address(fields[key])
        ]
    else:
        reasons += [
            f"{key} and address: dhcp exclude each other" for key in ("gateway", "netmask") if key in fields
        ]
    if reasons:
        raise ValueError(*reasons)
    names = fields.get("hostname", ""), fields.get("device", "")
    if address == "dhcp":
        return f"ip=::::{names[0]}:{names[1]}:dhcp"
    mask = fields.get("netmask", "255.255.255.0")
    return f"ip={address}::{fields.get('gateway', '')}:{mask}:{names[0]}:{names[1]}:off"


def label_words(labels: Mapping[object, object]) -> str:
    """Labels as words of a command line, where the kernel keeps them."""
    reasons = []
    words = []
    for name, value in labels.items():
        if not _LABEL_NAME.fullmatch(str(name)):
            reasons.append(
                f"name {shown(name)} cannot be used: begin with a letter or digit and continue with letters,"
                " digits, '_' and '-', at most 63 characters in all"
            )
        if not isinstance(value, (str, int, float)) or not _WORD.fullmatch(str(value)) or '"' in str(value):
            reasons.append(
                f"{shown(value)} cannot be the value of {shown(name)}: give one word of printable ASCII"
                " without quotes"
            )
        words.append((str(name), f"{LABEL}{name}={value}"))
    if reasons:
        raise ValueError(*reasons)
    return " ".join(word for _name, word in sorted(words))


def labels_of(cmdline: str | None) -> dict[str, str]:
    """The labels in a command line."""
    words = [word[len(LABEL) :] for word in (cmdline or "").split() if word.startswith(LABEL)]
    return {name: value for name, _equals, value in (word.partition("=") for word in words)}


def length_reasons(cmdline: str) -> list[str]:
    if len(cmdline) <= LONGEST_CMDLINE:
        return []
    return [f"cmdline: {len(cmdline)} characters are too many: a kernel takes at most {LONGEST_CMDLINE}"]


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
                reasons.append(
                    f"CPU {cpu} is declared for {other} and for {one.name}: a CPU can run only one kernel"
                )
        other = numbers.setdefault(one.id, one.name) if one.id is not None else one.name
        if other != one.name:
            reasons.append(f"id {one.id} is declared for {other} and for {one.name}: leave one of them out")
    return reasons
