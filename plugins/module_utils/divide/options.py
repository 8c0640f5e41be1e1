# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every option, once: its type, what it may be, what it becomes, and how it differs from what is there.

Argument specifications, the reading of dictionaries, the merging of what instances share, and the comparison
with a loaded image all follow from these tables. Which CPUs and how much memory an instance gets depends on
the whole machine, and so only the planner compares those.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..common.size import parse_memory, parse_size
from ..common.text import prefixed, reasons_of, shown
from ..devices.choices import CACHES, FORMATS, MODES, MTU, PROTOCOLS
from .machine import ACTIVE, LOADED, Instance, Machine
from .versions import DEFAULT_KERF
from .wish import (
    POLICIES,
    RESTARTS,
    STATES,
    WAITS,
    Image,
    InstanceWish,
    check_pattern,
    console_word,
    label_words,
    network_word,
    parse_cmdline,
    parse_count,
    parse_crashes,
    parse_delay,
    parse_devices,
    parse_host_cpus,
    parse_id,
    parse_instance_cpus,
    parse_instance_memory,
    parse_lines,
    parse_name,
    parse_pool_cpus,
    parse_pool_memory,
    parse_seconds,
    parse_starts,
    parse_watchdog,
)

if TYPE_CHECKING:
    from ..devices.declare import Forward, Interface

_TRUE = ("yes", "on", "1", "true", "y", "t")
_FALSE = ("no", "off", "0", "false", "n", "f")

Differs = Callable[[InstanceWish, Instance], Iterator[str]]


def _text(value: object) -> str:
    if isinstance(value, bool):  # what YAML makes of yes, no, on and off
        raise ValueError(f"{shown(value)} is not a string: put quotes around it")
    if isinstance(value, (str, int, float)):
        return str(value)
    raise ValueError(f"{shown(value)} is not a string")


def _int(value: object) -> int:
    text = str(value).strip()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not text.lstrip("+-").isdecimal() or len(text) > 20:
        raise ValueError(f"{shown(value)} is not a whole number")
    try:
        return int(text)
    except ValueError:  # +-5
        raise ValueError(f"{shown(value)} is not a whole number") from None


def _bool(value: object) -> bool:
    word = str(value).strip().lower()
    if isinstance(value, (str, int, float)) and word in (*_TRUE, *_FALSE, "1.0", "0.0"):
        return word in (*_TRUE, "1.0")
    raise ValueError(f"{shown(value)} is neither true nor false")


def _path(value: object) -> str:
    path = os.path.expanduser(os.path.expandvars(_text(value)))
    if not path or "\0" in path:
        raise ValueError("a path must not be empty")
    return path


def _list(value: object) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return [part.strip() for part in str(value).split(",") if part.strip()]
    raise ValueError(f"{shown(value)} is not a list")


def _dict(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise ValueError(f"{shown(value)} is not a dictionary")


_TYPES: Mapping[str, Callable[[Any], Any]] = {
    "str": _text,
    "int": _int,
    "bool": _bool,
    "path": _path,
    "list": _list,
    "dict": _dict,
    "raw": lambda value: value,
}


@dataclass(frozen=True)
class Option:
    """One option of one object."""

    name: str
    type: str = "str"
    default: Any = None
    required: bool = False
    choices: tuple[str, ...] = ()
    elements: str | None = None
    options: tuple[Option, ...] = ()  # of a dictionary
    parse: Callable[[Any], Any] | None = None  # what it becomes; ValueError(*reasons)
    element: Callable[[Mapping[str, Any]], Any] = dict  # what each dictionary of a list becomes; as parse
    part: str = "wish"  # of what it becomes a field: wish, manner, service, devices; image, line: see request
    displaces: tuple[str, ...] = ()  # options that something shared may say, and that this one replaces
    word: str = ""  # of the command line that says the same
    needs_kernel: bool = False  # it describes the image, and means nothing without one
    differs: Differs | None = None  # how what is there is something else
    remedy: str = ""  # for that: load, anew

    def spec(self) -> dict[str, Any]:
        """As Ansible wants it."""
        spec: dict[str, Any] = {"type": self.type}
        if self.default is not None:
            spec["default"] = copy.deepcopy(self.default)
        if self.required:
            spec["required"] = True
        if self.choices:
            spec["choices"] = list(self.choices)
        if self.elements:
            spec["elements"] = self.elements
        if self.options:
            spec["options"] = OptionGroup(*self.options).spec()
        return spec

    def take(self, value: object) -> Any:
        """What a value becomes; ValueError(*reasons)."""
        if value is False and "no" in self.choices:
            value = "no"  # which YAML takes for something else
        found = _TYPES[self.type](value)
        if self.elements and self.options:
            found = _each(found, OptionGroup(*self.options), self.element)
        elif self.elements:
            found = [_TYPES[self.elements](element) for element in found]
        for word in (found if self.elements else [found]) if self.choices else ():
            if word not in self.choices:
                wrong = shown(word if self.elements else value)
                raise ValueError(f"{wrong} is not one of {', '.join(self.choices)}")
        if self.options and not self.elements:
            given = OptionGroup(*self.options).read(found, complete=True)
            if given.reasons:
                raise ValueError(*given.reasons)
            found = given.values
        return self.parse(found) if self.parse else found

    def of_image(self, value: object) -> bool:
        """Whether a value describes the image: network devices are no words of a command line."""
        return self.needs_kernel and not isinstance(value, tuple)

    @property
    def fallback(self) -> Any:
        """What it is when nothing is said."""
        return None if self.default is None else self.take(copy.deepcopy(self.default))

    def reasons(self, error: ValueError) -> list[str]:
        """What is wrong with a value, with the name of the option in front."""
        return [
            reason if reason.startswith(f"{self.name} ") else prefixed(f"{self.name}: ", reason)
            for reason in reasons_of(error)
        ]


@dataclass
class Given:
    """What somebody said of an object, and what is wrong with it."""

    values: dict[str, Any] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)  # names with a value, even if it is wrong
    raw: dict[str, Any] = field(default_factory=dict)  # those values as they were said
    reasons: list[str] = field(default_factory=list)


class OptionGroup:
    """The options of one object."""

    def __init__(self, *options: Option):
        self._options = {option.name: option for option in options}

    def __iter__(self) -> Iterator[Option]:
        return iter(self._options.values())

    def __add__(self, other: OptionGroup) -> OptionGroup:
        return OptionGroup(*self, *other)

    def spec(self) -> dict[str, Any]:
        return {option.name: option.spec() for option in self}

    def of(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the values that are of these options."""
        return {name: values[name] for name in self._options if name in values}

    def part(self, part: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of one part that have a value."""
        return {
            option.name: values[option.name]
            for option in self
            if option.part == part and values.get(option.name) is not None
        }

    def read(self, given: object, complete: bool = False) -> Given:
        """The values of a dictionary. What is not said is left out, or if complete has its default."""
        found = Given()
        if not isinstance(given, Mapping):
            found.reasons.append(f"{shown(given)} is not a dictionary of options")
            return found
        for name, value in given.items():
            option = self._options.get(name)
            if option is None:
                known = ", ".join(self._options)
                found.reasons.append(f"there is no option {shown(name)}: the options are {known}")
                continue
            found.values[name] = None
            if value is None:
                continue
            found.said.add(name)
            found.raw[name] = value
            try:
                found.values[name] = option.take(value)
            except ValueError as error:
                found.reasons += option.reasons(error)
        if complete:
            self.complete(found)
        return found

    def complete(self, given: Given) -> None:
        """Defaults for what is not said."""
        for option in self:
            if option.name in given.said:
                continue
            if option.required:
                given.reasons.append(f"{option.name} is missing")
            given.values[option.name] = option.fallback


def _each(values: Sequence[Any], group: OptionGroup, make: Callable[[Mapping[str, Any]], Any]) -> list[Any]:
    """What becomes of the dictionaries of a list; ValueError(*reasons) says of which one it speaks."""
    found, reasons = [], []
    for number, value in enumerate(values, 1):
        given = group.read(value, complete=True)
        mine = given.reasons
        if not mine:
            try:
                found.append(make(given.values))
            except ValueError as error:
                mine = reasons_of(error)
        reasons += [f"number {number}: {reason}" if len(values) > 1 else reason for reason in mine]
    if reasons:
        raise ValueError(*reasons)
    return found


def spec_of(*groups: OptionGroup) -> dict[str, Any]:
    """The argument specification of a module."""
    return {name: spec for group in groups for name, spec in group.spec().items()}


# How an image differs from what is loaded


def _image_differs(what: str) -> Differs:
    def differs(wish: InstanceWish, current: Instance) -> Iterator[str]:
        image: Image | None = getattr(wish, what)
        record: Mapping[str, Any] = getattr(current, what)
        if image is None:
            if record:
                yield f"{what} {record.get('path')} is loaded, but none is wanted"
        elif not record:
            yield f"there is no record of the {what} that is loaded, and {image.path} is wanted"
        elif image.sha256 and image.sha256 != record.get("sha256"):
            yield f"{what} {image.path} has changed since it was loaded"

    return differs


def _cmdline_differs(wish: InstanceWish, current: Instance) -> Iterator[str]:
    if current.cmdline is not None and current.cmdline.split() != wish.full_cmdline.split():
        yield f"the command line is '{current.cmdline}' instead of '{wish.full_cmdline}'"


def _id_differs(wish: InstanceWish, current: Instance) -> Iterator[str]:
    if wish.id is not None and wish.id != current.id:
        yield f"its id is {current.id} instead of {wish.id}"


# The tables

KERF = OptionGroup(Option("kerf", "path", default=DEFAULT_KERF))

# What the host keeps.
HEADROOM = OptionGroup(
    Option("headroom", default="256M", parse=parse_size),
    Option("host_cpus", "int", default=1, parse=parse_host_cpus),
)

POOL = OptionGroup(
    Option("state", choices=("present", "absent"), default="present"),
    Option("cpus", "raw", parse=parse_pool_cpus),
    Option("cpu_count", "int", parse=parse_count),
    Option("memory", "raw", parse=parse_pool_memory),
    Option("devices", "list", elements="str", parse=parse_devices),
)


def _later(name: str) -> Callable[[Any], Any]:
    """A parser of devices. Most runs declare none, and a host compiles what it imports, in every run."""

    def parse(value: Any) -> Any:
        from ..devices import declare

        return getattr(declare, name)(value)

    return parse


# Of a network device. Without a mode, somebody else has made it, and the kernel is only told its address.
_ADDRESS = (
    Option("address", required=True),
    Option("netmask"),
    Option("gateway"),
    Option("device"),
    Option("hostname"),
)

_FORWARD = (
    Option("port", "int", required=True, parse=_later("parse_port")),
    Option("to", "int", parse=_later("parse_port")),
    Option("protocol", choices=PROTOCOLS, default="tcp"),
)


def _forward(values: Mapping[str, Any]) -> Forward:
    from ..devices.declare import Forward

    return Forward(values["port"], values["to"] or values["port"], values["protocol"])


_INTERFACE = OptionGroup(
    Option("mode", choices=MODES, required=True),
    Option("bridge", parse=_later("parse_link")),
    Option("mac", parse=_later("parse_mac")),
    Option("mtu", "int", default=MTU, parse=_later("parse_mtu")),
    Option("addresses", "list", elements="str", parse=_later("parse_addresses")),
    Option("prefixes", "list", elements="str", parse=_later("parse_prefixes")),
    Option("gateway", "list", elements="str", parse=_later("parse_ips")),
    Option("dns", "list", elements="str", parse=_later("parse_ips")),
    Option("device", parse=_later("parse_link")),
    Option("hostname", parse=_later("parse_host_name")),
    Option("host_entry", parse=_later("parse_host_name")),
    Option("nat", "bool", default=False),
    Option("forwards", "list", elements="dict", options=_FORWARD, element=_forward, parse=tuple),
    Option("reach", "list", elements="str", parse=_later("parse_names")),
    # What is said without a mode, to say what is meant.
    Option("address"),
    Option("netmask"),
)

_DISK = (
    Option("path", "path", required=True, parse=_later("parse_absolute")),
    Option("format", choices=FORMATS, default="raw"),
    Option("size", parse=_later("parse_disk_size")),
    Option("base", "path", parse=_later("parse_absolute")),
    Option("base_format", choices=FORMATS),
    Option("read_only", "bool", default=False),
    Option("discard", "bool", default=False),
    Option("cache", choices=CACHES, default="writeback"),
)

_SHARE = (
    Option("path", "path", required=True, parse=_later("parse_absolute")),
    Option("tag", required=True, parse=_later("parse_tag")),
    Option("read_only", "bool", default=False),
    Option("user", parse=_later("parse_user")),
)


def parse_network(value: object) -> str | tuple[Interface, ...]:
    """The word of a command line, or network devices that are to be made; ValueError(*reasons)."""
    if isinstance(value, Mapping) and value.get("mode") is None:
        given = OptionGroup(*_ADDRESS).read(value, complete=True)
        if {*value} & {"bridge", "mac", "mtu", "addresses", "prefixes"}:
            given.reasons = [f"mode is missing: choose {', '.join(MODES)}"]
        if given.reasons:
            raise ValueError(*given.reasons)
        return network_word(given.values)
    if not isinstance(value, (list, tuple, Mapping)):
        raise ValueError(f"{shown(value)} is neither a dictionary of options nor a list of them")
    return tuple(
        _each([value] if isinstance(value, Mapping) else value, _INTERFACE, _later("parse_interface"))
    )


INSTANCE = OptionGroup(
    Option("name", required=True, parse=parse_name),
    Option("state", choices=STATES, default="present"),
    Option("cpus", "raw", parse=parse_instance_cpus, displaces=("cpu_count", "cpu_policy")),
    Option("cpu_count", "int", parse=parse_count, displaces=("cpus",)),
    Option("cpu_policy", "list", elements="str", choices=POLICIES, parse=frozenset),
    Option("memory", parse=parse_instance_memory),
    Option("id", "int", parse=parse_id, differs=_id_differs, remedy="anew"),
    Option("kernel", "path", part="image", differs=_image_differs("kernel"), remedy="load"),
    Option(
        "initrd", "path", part="image", needs_kernel=True, differs=_image_differs("initrd"), remedy="load"
    ),
    Option(
        "cmdline",
        part="line",
        parse=parse_cmdline,
        needs_kernel=True,
        differs=_cmdline_differs,
        remedy="load",
    ),
    Option("labels", "dict", part="line", parse=label_words, needs_kernel=True),
    Option("network", "raw", part="line", parse=parse_network, needs_kernel=True, word="ip"),
    Option(
        "disks",
        "list",
        elements="dict",
        options=_DISK,
        element=_later("parse_disk"),
        part="devices",
        parse=tuple,
    ),
    Option(
        "shares",
        "list",
        elements="dict",
        options=_SHARE,
        element=_later("parse_share"),
        part="devices",
        parse=tuple,
    ),
    Option("console", part="line", parse=console_word, needs_kernel=True, word="console"),
    Option("restart", choices=RESTARTS),
    Option("restart_delay", "int", default=1, part="service", parse=parse_delay),
    Option("restart_delay_max", "int", part="service", parse=parse_seconds),
    Option("restart_steps", "int", default=5, part="service", parse=parse_starts),
    Option("restart_limit", "int", default=5, part="service", parse=parse_starts),
    Option("restart_interval", "int", default=600, part="service", parse=parse_delay),
    Option("watchdog", "int", part="service", parse=parse_watchdog),
    Option("crash_keep", "int", default=10, part="service", parse=parse_crashes),
    Option("crash_size", default="1G", part="service", parse=parse_memory),
    Option("crash_memory", "bool", default=False, part="service"),
    Option("allow_restart", "bool", default=False),
    Option("force", "bool", default=False, part="manner"),
    Option("stop_timeout", "int", default=60, part="manner", parse=parse_seconds),
    Option("wait_for", part="manner", parse=check_pattern),
    Option("wait", choices=WAITS, default="none", part="manner"),
    Option("timeout", "int", default=60, part="manner", parse=parse_seconds),
)

LAYOUT = OptionGroup(
    Option("pool", "dict"),
    Option("instances", "raw", default=[]),
    Option("defaults", "dict", default={}),
    Option("profiles", "dict", default={}),
    Option("prune", "bool", default=False),
)

# Whether what is wished is also what the host is to be at boot; not said: as it was.
BOOT = OptionGroup(Option("at_boot", "bool"))

INFO = OptionGroup(
    Option("query"),  # for the action plugin, which evaluates it
    Option("facts", "bool", default=False),
    Option("console_tail", "int", default=0, parse=parse_lines),
)

CONSOLE = OptionGroup(
    Option("name", required=True),
    Option("send"),
    Option("expect", parse=check_pattern),
    Option("timeout", "int", default=30, parse=parse_seconds),
)


def differences(wish: InstanceWish, current: Instance, remedy: str) -> list[str]:
    """How an instance differs from its wish in what it takes to load it, or to make it anew, to change."""
    if remedy == "load" and (wish.kernel is None or current.status not in (LOADED, ACTIVE)):
        return []
    return [
        difference
        for option in INSTANCE
        if option.differs and option.remedy == remedy
        for difference in option.differs(wish, current)
    ]


def device_changes(wish: InstanceWish, have: Instance, machine: Machine) -> list[str]:
    """Why the devices that an instance was created with are others than those that are wished."""
    if wish.devices is None:
        return []
    known = machine.devices.get(wish.name)
    nodes = (known.nodes if known else ()) if have.virtio is None else have.virtio
    if nodes == wish.devices.nodes:
        return []
    return [
        f"it has {', '.join(nodes) or 'no devices'} instead of {', '.join(wish.devices.nodes) or 'none'},"
        " which are given when an instance is created"
    ]


def service_options(given: Given) -> list[str]:
    """Names of those that only a unit takes notice of, where they are not what goes without saying."""
    return [
        option.name
        for option in INSTANCE
        if option.part == "service" and given.values.get(option.name) not in (None, option.fallback)
    ]


def displaced(given: Given, shared: Mapping[str, Any]) -> set[str]:
    """Options that say the same in another way: who says one of them takes nothing shared for the others."""
    words = words_of(given)
    return {
        name
        for option in INSTANCE
        for name in (
            *(option.displaces if option.name in given.said else ()),
            *([option.name] if option.word in words and option.of_image(shared.get(option.name)) else []),
        )
    }


def words_of(given: Given) -> Sequence[str]:
    """Names of the words of its command line."""
    return [word.partition("=")[0] for word in (given.values.get("cmdline") or "").split()]
