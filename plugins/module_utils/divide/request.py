# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From what users say to one wish: what instances share is merged, files are read, all mistakes noted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..common.errors import Pending
from ..common.text import prefixed, shown
from .image import Images
from .machine import Machine
from .options import (
    BOOT,
    HEADROOM,
    INSTANCE,
    LAYOUT,
    POOL,
    Given,
    displaced,
    words_of,
)
from .wish import Image, InstanceWish, Manner, PoolWish, Service, Wish, collect, length_reasons

if TYPE_CHECKING:
    from ..devices.record import Allotment, Record

NAMELESS = "without a usable name"  # what messages call an instance then


@dataclass
class Request:
    """A wish as it was said, with what is wrong with it by itself."""

    pool: PoolWish | None = None
    instances: list[InstanceWish] = field(default_factory=list)
    manners: dict[str, Manner] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    manner: Manner = field(default_factory=Manner)  # of instances that are pruned: what is said of all
    reasons: list[str] = field(default_factory=list)
    prune: bool = False
    headroom: int = 0
    host_cpus: int = 1
    at_boot: bool | None = None  # it is what the host is to be at boot; False: not any more; None: as it was
    said_pool: Given | None = None  # as it was said, for that
    said_instances: dict[str, Given] = field(default_factory=dict)
    said_host: Given = field(default_factory=Given)
    allotment: Allotment | None = None  # of devices, once there are any

    @property
    def wish(self) -> Wish:
        return Wish(self.pool, tuple(self.instances), self.prune, self.headroom, self.host_cpus)

    def manner_of(self, name: str) -> Manner:
        return self.manners.get(name, self.manner)

    def keep(self, params: Mapping[str, Any]) -> None:
        """What the host keeps."""
        given = self.said_host = HEADROOM.read(HEADROOM.of(params), complete=True)
        self.reasons += given.reasons
        self.headroom = given.values["headroom"] or 0
        self.host_cpus = given.values["host_cpus"] or 1

    def ask(self, params: Mapping[str, Any]) -> None:
        """Whether it is to be so at boot."""
        given = BOOT.read(BOOT.of(params))
        self.reasons += given.reasons
        self.at_boot = given.values.get("at_boot")

    def add(
        self, given: Given, machine: Machine, images: Images, prefix: str = "", called: str = NAMELESS
    ) -> None:
        """An instance. called: what messages call it where its name is of no use."""
        reasons = [*given.reasons]
        values, said = given.values, given.said
        for one, other in (("cpus", "cpu_count"), ("cpus", "cpu_policy")):
            if one in said and other in said:
                reasons.append(_BOTH[other])
        if "kernel" not in said:
            reasons += [
                f"{option.name} needs a kernel: give kernel as well"
                for option in INSTANCE
                if values.get(option.name) and option.of_image(values[option.name])
            ]
        name = values.get("name")
        kernel = initrd = None
        if values.get("state") != "absent":
            current = machine.instances.get(str(name))
            kernel = _image(reasons, lambda path: images.kernel(path, current), values.get("kernel"))
            initrd = _image(reasons, lambda path: images.initrd(path, current), values.get("initrd"))
        devices = self._devices(str(name or called), values, machine, images, reasons)
        wish = InstanceWish(
            **{"name": called, **INSTANCE.part("wish", values)},
            kernel=kernel,
            initrd=initrd,
            cmdline=_cmdline(given, reasons, devices),
            devices=devices,
            said=frozenset(said | {"cpus"} if "cpu_count" in said else said),
        )
        self.instances.append(wish)
        self.said_instances[wish.name] = given
        self.manners[wish.name] = Manner(**INSTANCE.part("manner", values))
        service = Service(values.get("restart") or "no", **INSTANCE.part("service", values))
        self.services[wish.name] = service
        reasons += service.reasons
        self.reasons += [prefixed(prefix, reason) for reason in reasons]

    def _devices(
        self, name: str, values: Mapping[str, Any], machine: Machine, images: Images, reasons: list[str]
    ) -> Record | None:
        """All devices of an instance, with what is made up for them; None where nobody has said anything."""
        network = values.get("network")
        parts = (network if isinstance(network, tuple) else None, values.get("disks"), values.get("shares"))
        if parts == (None, None, None) and not machine.devices and self.allotment is None:
            return None
        from ..devices.declare import Devices  # most runs have none
        from ..devices.record import Allotment

        said = Devices(*parts)
        if self.allotment is None:
            self.allotment = Allotment(machine.machine_id, machine.devices)
        if values.get("state") == "absent":
            self.allotment.forget(name)
            return None
        if not said:
            return machine.devices.get(name)
        record, more = self.allotment.settle(name, said)
        reasons += more
        # Only what was said just now: the rest may wait for its bridge until it starts.
        reasons += [
            Pending(f"network: bridge {link.bridge} does not exist on the host: make it first")
            for link in record.links
            if said.network and images.looks and link.bridge and link.bridge not in machine.bridges
        ]
        for disk in said.disks or ():
            reasons += images.disk(disk)
        for share in said.shares or ():
            reasons += images.share(share)
        return record


_BOTH = {
    "cpu_count": "cpus and cpu_count exclude each other: give one of them",
    "cpu_policy": "cpus and cpu_policy exclude each other: a policy chooses CPUs, and cpus has chosen them",
}


def _image(reasons: list[str], read: Callable[[str], Image], path: str | None) -> Image | None:
    """What is at a path. One that is of no use is still one that was given, so that nobody asks for it."""
    return collect(reasons, "", read, path) or (Image(path, 0, "") if path else None)


def _cmdline(given: Given, reasons: list[str], devices: Record | None) -> str:
    """Command line, labels, network and console in one."""
    words = words_of(given)
    loads = "kernel" in given.said and devices is not None
    # Who configures the network himself needs no word for it.
    more = (
        [word for word in devices.words if word.partition("=")[0] not in words] if loads and devices else []
    )
    reasons += [
        f"{option.name} and {option.word}= in cmdline exclude each other: give one of them"
        for option in INSTANCE
        if option.word in words and option.name in given.said and option.of_image(given.values[option.name])
    ]
    said = [part for part in INSTANCE.part("line", given.values).values() if isinstance(part, str)]
    line = " ".join(filter(None, [*said, *more]))
    reasons += length_reasons(line)
    return line


def pool_wish(given: Given) -> tuple[PoolWish, list[str]]:
    """The wish and what is wrong with it."""
    values, said = given.values, given.said
    reasons = [*given.reasons]
    if {"cpus", "cpu_count"} <= said:
        reasons.append(_BOTH["cpu_count"])
    cpus = values.get("cpus")
    wish = PoolWish(
        cpus=values.get("cpu_count") if cpus is None else cpus,
        memory=values.get("memory"),
        devices=values.get("devices"),
        absent=values.get("state") == "absent",
        said=frozenset(said | {"cpus"} if "cpu_count" in said else said),
    )
    return wish, reasons


def pool_request(params: Mapping[str, Any]) -> Request:
    """Of the module pool."""
    given = POOL.read(POOL.of(params), complete=True)
    wish, reasons = pool_wish(given)
    request = Request(pool=wish, reasons=reasons, said_pool=given)
    request.keep(params)
    request.ask(params)
    return request


def instance_request(params: Mapping[str, Any], machine: Machine, images: Images) -> Request:
    """Of the module instance."""
    request = Request()
    request.ask(params)
    called = _called(params, NAMELESS)
    request.add(INSTANCE.read(INSTANCE.of(params), complete=True), machine, images, called=called)
    return request


def layout_request(params: Mapping[str, Any], machine: Machine, images: Images) -> Request:
    """Of the module layout."""
    given = LAYOUT.read(LAYOUT.of(params), complete=True)
    values = given.values
    request = Request(reasons=given.reasons, prune=bool(values["prune"]))
    request.keep(params)
    request.ask(params)
    if values["pool"] is not None:
        request.said_pool = POOL.read(values["pool"], complete=True)
        request.pool, reasons = pool_wish(request.said_pool)
        request.reasons += [f"pool: {reason}" for reason in reasons]
    defaults = _shared(values["defaults"], "defaults", request.reasons)
    profiles = {
        str(name): _shared(kind, f"profile {name}", request.reasons)
        for name, kind in (values["profiles"] or {}).items()
    }
    request.manner = Manner(**INSTANCE.part("manner", defaults.values))
    for what, one in _declared(values["instances"], request.reasons):
        own = _own(what, one, profiles, request.reasons)
        if own is not None:
            kind, mine = own
            merged = merge(defaults, kind, mine)
            name = merged.values.get("name")
            called = _called(one, what.partition(" ")[2])
            prefix = f"instance {name}: " if name else f"{what}: "
            request.add(merged, machine, images, prefix, called)
    if request.allotment is not None:
        # Of others, those whom they may reach may be gone.
        from ..devices.record import unknown_reach

        said = [name for name, given in request.said_instances.items() if "network" in given.said]
        request.reasons += unknown_reach(request.allotment.records, said)
    return request


def _called(given: object, otherwise: str) -> str:
    """The name that somebody gave, even one that cannot be had, if it can stand in a message."""
    name = given.get("name") if isinstance(given, Mapping) else None
    return name if isinstance(name, str) and name.isprintable() and 0 < len(name) <= 80 else otherwise


def _declared(instances: object, reasons: list[str]) -> list[tuple[str, Any]]:
    """Each instance, with what it is called in messages: from a list, or from a dictionary by name."""
    if isinstance(instances, Mapping):
        found = []
        for name, one in instances.items():
            options = {} if one is None else one
            if isinstance(options, Mapping) and options.get("name", name) != name:
                reasons.append(
                    f"instance {name}: its options call it {shown(options['name'])}: leave name out of them"
                )
            found.append(
                (f"instance {name}", {**options, "name": name} if isinstance(options, Mapping) else one)
            )
        return found
    if isinstance(instances, (list, tuple)):
        return [(f"instance {number} of the list", one) for number, one in enumerate(instances, 1)]
    reasons.append(f"instances: {shown(instances)} is neither a list of instances nor a dictionary by name")
    return []


def _shared(options: object, what: str, reasons: list[str]) -> Given:
    """What several instances share; mistakes are told once, of the place where they are."""
    given = INSTANCE.read({} if options is None else options)
    if given.values.pop("name", None) is not None:
        given.reasons.append("name belongs to one instance and cannot be shared: leave it out")
    given.said.discard("name")
    reasons += [f"{what}: {reason}" for reason in given.reasons]
    given.reasons = []
    return given


def _own(
    what: str, options: object, profiles: Mapping[str, Given], reasons: list[str]
) -> tuple[Given, Given] | None:
    """The profile of an instance, and what it says itself; None if it is no instance."""
    if not isinstance(options, Mapping):
        reasons.append(f"{what}: {shown(options)} is not a dictionary of options")
        return None
    values = dict(options)
    profile = values.pop("profile", None)
    given = INSTANCE.read(values)
    if profile is not None and str(profile) not in profiles:
        known = f"choose from {', '.join(sorted(profiles))}" if profiles else "no profiles are declared"
        word = profile if isinstance(profile, str) else shown(profile)
        given.reasons.append(f"there is no profile {word}: {known}")
        profile = None
    return profiles[str(profile)] if profile is not None else Given(), given


def merge(*layers: Given) -> Given:
    """One instance from what it shares and what it says itself, which comes last and counts most.

    Nothing that is shared forbids what an instance says: options that say the same in another way are
    replaced, and what describes an image is left out where there is none.
    """
    merged = Given()
    for layer in layers:
        for name in displaced(layer, merged.values) - layer.said:
            merged.values.pop(name, None)
            merged.said.discard(name)
        merged.values.update(layer.values)
        merged.raw.update(layer.raw)
        merged.said -= layer.values.keys()
        merged.said |= layer.said
        merged.reasons += layer.reasons
    if "kernel" not in merged.said:
        for option in INSTANCE:
            if option.of_image(merged.values.get(option.name)) and option.name not in layers[-1].said:
                merged.values.pop(option.name, None)
                merged.said.discard(option.name)
    INSTANCE.complete(merged)
    return merged
