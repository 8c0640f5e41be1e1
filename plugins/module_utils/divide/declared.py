# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host is declared to be at boot: a layout that it keeps, in a file for people to read and edit.

Tasks add to it and take away as they do with the machine: what is named counts, the rest stays. The file has
what was said, and no more than one place for each option: what instances have shared is in each of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..common.errors import Failure, Refused
from ..common.files import remove, text_of, write_file
from .image import Images, NoImages
from .kernelfs import Paths
from .layoutfile import read_layout
from .machine import Machine
from .options import HEADROOM, INSTANCE, POOL, Given, OptionGroup
from .plan import nothing_to_do
from .request import Request, layout_request
from .units import Units, units, warnings
from .versions import DEFAULT_KERF
from .wish import Service, wish_reasons

_KEPT = ("prune", "kerf")  # beside what is made of the rest


def declared(paths: Paths) -> dict[str, Any]:
    """The layout that a host keeps; empty when there is none. Raises Refused when it is not to be read."""
    return read_layout(paths.layout, trusted=True) if os.path.lexists(paths.layout) else {}


def declared_names(paths: Paths) -> set[str]:
    """Of the instances in it, as far as it can be read."""
    try:
        instances = declared(paths).get("instances")
    except Refused:
        return set()
    if isinstance(instances, Mapping):
        return set(instances)
    listed = instances if isinstance(instances, list) else []
    return {str(one.get("name")) for one in listed if isinstance(one, Mapping)}


@dataclass(frozen=True)
class Change:
    """What a request makes of the layout that a host keeps, and of what systemd is told of it."""

    paths: Paths
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    reasons: tuple[str, ...] = ()  # why it cannot be kept
    warnings: tuple[str, ...] = ()
    units: Units | None = None

    @property
    def steps(self) -> list[str]:
        """For people; empty when nothing changes."""
        kept = [self._step] if self.before != self.after else []
        return [*kept, *(self.units.steps if self.units else [])]

    @property
    def _step(self) -> str:
        names = ["pool"] if self.before.get("pool") != self.after.get("pool") else []
        old, new = self.before.get("instances", {}), self.after.get("instances", {})
        if isinstance(old, Mapping):
            names += [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        return f"at_boot: {', '.join(names) or 'options'} in {text_of(self.paths.layout)}"

    def write(self) -> None:
        """Raises Failure, and leaves the file as it was."""
        # First what somebody else is told, who acts on the file as soon as it is there.
        if self.units:
            self.units.write()
        if self.before == self.after:
            return
        path = self.paths.layout
        try:
            if self.after:
                path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                write_file(path, text(self.after), mode=0o600)
            else:
                remove(path)
        except OSError as error:
            raise Failure(
                f"{text_of(path)} cannot be written ({error.strerror}): what is kept for boot stays as it was"
            ) from error


def text(layout: Mapping[str, Any]) -> str:
    """A layout as a file has it: sorted, a line for each option."""
    return json.dumps(layout, indent=2, sort_keys=True) + "\n"


def change(paths: Paths, request: Request, machine: Machine, kerf: str) -> Change:
    """What is kept when the request is granted. Nothing is written yet."""
    try:
        before = declared(paths)
        flat = flattened(before, machine, text_of(paths.layout))
        after = _changed(flat, request, kerf)
    except Refused as refused:
        return Change(paths, {}, {}, refused.reasons)
    reasons = _incomplete(request) if request.at_boot else []
    if after == flat:
        after = before
    elif not (reasons or request.reasons):
        reasons = [f"at_boot: {reason}" for reason in _faults(after, machine)]
    services = services_of(after, machine)
    told = tuple(warnings(paths, services)) if request.at_boot else ()
    return Change(paths, before, after, tuple(reasons), told, units(paths, services))


def declared_units(paths: Paths, layout: Mapping[str, Any], machine: Machine) -> Units:
    """What systemd is to be told of a layout that the host keeps."""
    return units(paths, services_of(layout, machine))


def services_of(layout: Mapping[str, Any], machine: Machine) -> dict[str, Service]:
    """What is to become of its instances when they end. Those that are wrong are left out."""
    request = layout_request(layout, machine, NoImages())
    names = [one.name for one in request.instances if one.state != "absent"]
    return {name: request.services[name] for name in names if not request.said_instances[name].reasons}


def flattened(layout: Mapping[str, Any], machine: Machine, called: str) -> dict[str, Any]:
    """The same layout: all options of an instance in one place, instances by name, without what goes without
    saying. called: what messages call it. Raises Refused with all that is wrong with it by itself.
    """
    request = layout_request(layout, machine, NoImages())
    if faults := [*request.reasons, *wish_reasons(request.wish)]:
        raise Refused(*(f"{called}: {reason}" for reason in faults))
    flat = {key: value for key, value in layout.items() if key in _KEPT}
    flat["instances"] = {name: plain(INSTANCE, given) for name, given in request.said_instances.items()}
    if request.said_pool is not None:
        flat["pool"] = plain(POOL, request.said_pool)
    return _as_read({**flat, **plain(HEADROOM, request.said_host)})


def _changed(layout: Mapping[str, Any], request: Request, kerf: str) -> dict[str, Any]:
    instances = {} if request.prune else dict(layout.get("instances", {}))
    for name, given in request.said_instances.items():
        instances.pop(name, None)
        if request.at_boot and given.values.get("state") != "absent":
            instances[name] = plain(INSTANCE, given)
    changed = {**layout, "instances": instances}
    if request.said_pool is not None:
        for key in ("pool", *(option.name for option in HEADROOM)):
            changed.pop(key, None)
        if request.at_boot and not (request.pool and request.pool.absent):
            changed.update({"pool": plain(POOL, request.said_pool), **plain(HEADROOM, request.said_host)})
    if request.at_boot and kerf != DEFAULT_KERF:
        changed["kerf"] = kerf
    return _as_read(changed)


def _as_read(layout: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes out of the file again; empty when it declares nothing."""
    if not (layout.get("instances") or "pool" in layout):
        return {}
    some = {key: value for key, value in layout.items() if key != "instances" or value}
    try:
        found: dict[str, Any] = json.loads(json.dumps(some, allow_nan=False))
    except ValueError as error:
        raise Refused(f"at_boot: a file cannot keep this: {error}") from None
    return found


def plain(group: OptionGroup, given: Given) -> dict[str, Any]:
    """What somebody has said of an object, without what goes without saying.

    Paths are those that were meant: another process may have another home.
    """
    return {
        option.name: _plain(given.values[option.name] if option.type == "path" else given.raw[option.name])
        for option in group
        if option.name in given.said
        and option.name != "name"
        and given.values.get(option.name) != option.fallback
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _incomplete(request: Request) -> list[str]:
    """After a boot there is nothing that an instance could have kept what is not said from."""
    reasons = []
    if request.said_pool is not None and request.pool and not request.pool.absent:
        reasons += _missing("the pool", request.said_pool, False)
    for name, given in request.said_instances.items():
        state = given.values.get("state")
        if state != "absent":
            reasons += _missing(name, given, state in ("loaded", "started"))
    return reasons


def _missing(what: str, given: Given, loads: bool) -> list[str]:
    missing = [
        *([] if {"cpus", "cpu_count"} & given.said else ["cpus or cpu_count"]),
        *([] if "memory" in given.said else ["memory"]),
        *(["kernel"] if loads and "kernel" not in given.said else []),
    ]
    if not missing:
        return []
    return [f"at_boot: {what} cannot be made at boot without {' and '.join(missing)}: say it here as well"]


def _faults(layout: Mapping[str, Any], machine: Machine) -> list[str]:
    request = layout_request(layout, machine, NoImages())
    return [*request.reasons, *wish_reasons(request.wish)]


def boot_facts(paths: Paths, machine: Machine) -> dict[str, Any]:
    """What is declared, and how the machine differs from it.

    path, layout; drift: what would have to be done; reasons: why that cannot be had, or the layout not read.
    """
    facts: dict[str, Any] = {"path": text_of(paths.layout), "layout": {}, "drift": [], "reasons": []}
    try:
        layout = facts["layout"] = declared(paths)
        if not layout:
            return facts
        request = layout_request(layout, machine, Images())
        facts["drift"] = [
            f"{name} is not declared" for name in machine.instances if name not in request.said_instances
        ]
        plan = nothing_to_do(request.wish, machine, request.reasons)
        if plan is None:
            from .planner import make_plan

            plan = make_plan(request.wish, machine, request.reasons)
        facts["drift"] += [step.text for step in plan.steps]
    except Refused as refused:
        facts["reasons"] += map(str, refused.reasons)
    return facts
