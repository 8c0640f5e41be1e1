# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""mkops apply, run and stop: what changes a host, by the engine that the modules have."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from ..common.command import run as command
from ..common.errors import Failure, Refused
from ..common.files import text_of
from ..common.lock import TIMEOUT, host_lock
from ..divide.converge import Make, Result, converge
from ..divide.declared import declared, declared_units, services_of
from ..divide.evidence import crashed, keep
from ..divide.image import Images, NoImages
from ..divide.kernelfs import KernelFs, Paths
from ..divide.kernellog import Halts, Records
from ..divide.layoutfile import read_layout
from ..divide.machine import ACTIVE, HOST_ID, Machine, absence_reasons
from ..divide.request import Request, instance_request, layout_request
from ..divide.store import DeviceUnits
from ..divide.units import STOPPED, Units, have_watched, unit_of
from ..divide.versions import DEFAULT_KERF
from ..divide.wish import Manner, Service
from .itself import Itself
from .leaving import is_left_running
from .output import complain, complain_of_all, notify, say
from .record import Recorder
from .watch import Watcher

_SLACK = TIMEOUT + 60  # seconds beside those for shutting down: to wait for the lock, to use force
_ADOPTED = ("wait_for", "wait", "timeout")  # of what is declared, all that is about one that runs already


class Stopped(Exception):
    """Somebody wants this process to end."""


def apply(paths: Paths, file: Path | None, check: bool, kerf: str | None) -> None:
    """Make the host what a layout says. file: the layout; None: the host's declared one."""
    path = file or paths.layout

    def read() -> dict[str, Any]:
        return read_layout(path, trusted=file is None)

    result = converge(
        paths,
        kerf_of(read(), kerf),
        check,
        # Once more: whoever has held the lock until then may have changed it.
        lambda machine, images: layout_request(read(), machine, images),
        suppose=False,
    )
    units = None
    if file is None:
        with nullcontext() if check else host_lock(paths.lock):
            units = declared_units(paths, read(), result.machine)
            if not check:
                units.write()
    if "start" in result.actions and not check:
        have_watched(paths)
    _report(result, text_of(path), check, units)


def kerf_of(layout: Mapping[str, Any], given: str | None) -> str:
    """The path of kerf: what was given on the command line, else in the layout, else the usual one."""
    named = layout.get("kerf")
    return given or (named if isinstance(named, str) and named else DEFAULT_KERF)


def _report(result: Result, called: str, check: bool, units: Units | None) -> None:
    for warning in result.warnings:
        complain(f"warning: {warning}")
    steps = [*result.steps, *(units.steps if units else [])]
    for step in steps:
        say(f"would {step}" if check else step)
    if not steps:
        say(f"nothing to do: the host is as {called} says")
    elif check:
        say("nothing was changed: this was a check")


# run


def run(paths: Paths, name: str, kerf: str | None, service: bool = False) -> int:
    """Have an instance run, and stay until it does not any more. Returns the exit code.

    One that runs already is left as it is. Otherwise it is made, loaded and started as the host's declared
    layout says; one that is not declared there is started as it is loaded. service: a unit of systemd, whose
    end is the instance's as well; systemd is told when the instance is ready, and its console is recorded.
    """
    with Recorder(paths, name) if service else nullcontext():
        return _run(paths, name, kerf, service)


def _run(paths: Paths, name: str, kerf: str | None, service: bool) -> int:
    itself = Itself()
    begun = declared(paths)
    noted = KernelFs(paths).notes.read(name)
    path = kerf_of(begun, kerf)
    with _signals(), closing(Records(paths)) as log:
        try:
            if service and (done := _is_to_rest(paths, name)):
                say(f"{name}: {done} meanwhile, so it is not started again")
                notify("READY=1")  # or it would have failed
                return STOPPED
            if service:
                keep_evidence(paths, name)  # of a crash that nobody has watched
            try:
                withdrawn = _withdrawn(paths, name, begun, noted) if service else None
                result = converge(paths, path, False, _running(paths, name, withdrawn), suppose=False)
            except _Withdrawn as why:
                say(f"{name}: {why} meanwhile, so it is not started")
                notify("READY=1")
                return STOPPED
            for warning in result.warnings:
                complain(f"warning: {warning}")
            say(f"{name}: {', '.join(result.actions) or 'is running already'}")
            if "start" not in result.actions:
                _resume_devices(paths, name)
            notify("READY=1", f"STATUS={name} is running")
            instance_id = result.machine.instances[name].id if name in result.machine.instances else HOST_ID
            return Watcher(paths, name, Halts(log, instance_id), service).follow()
        except Stopped:
            if not service:
                say(f"{name}: it is left as it is")
                return 0
            if KernelFs(paths).status(name) == ACTIVE and is_left_running(paths):
                say(f"{name}: it runs on, and the next kernel of this host takes it over")
                return 0
    if itself.replaced:
        # What stopping takes cannot be read from where it was any more.
        itself.become(["stop", *(["--kerf", kerf] if kerf else []), name])
    stop(paths, name, None, None, kerf)
    return 0


def _resume_devices(paths: Paths, name: str) -> None:
    """Those of an instance that ran before this boot, or before this process. It runs without them, too."""
    try:
        DeviceUnits(paths.devices, paths.served).resume(name)
    except Failure as failure:
        complain(f"{name}: {failure}")


def _is_to_rest(paths: Paths, name: str) -> str:
    """What somebody has done with it while systemd waited to start it again; empty when it is to start."""
    kernel = KernelFs(paths)
    why = _rests(kernel, name, kernel.notes.read(name))
    if not why:
        return ""
    done = command(["systemctl", "show", "--property=NRestarts", "--value", unit_of(name)], timeout=60)
    return why if done.stdout.strip() not in ("", "0") else ""  # 0: not by itself


def _rests(kernel: KernelFs, name: str, note: Mapping[str, Any]) -> str:
    """What somebody has done last with an instance that does not run, if it is noted."""
    state, rest = kernel.status(name), note.get("rest")
    if state is None and "removed" in note:
        return "somebody has removed it"
    if state != ACTIVE and rest is not None and rest == kernel.epoch(name):
        return "somebody has stopped it"
    return ""


def only(layout: Mapping[str, Any], name: str, **more: Any) -> dict[str, Any] | None:
    """What a layout says of one instance, as a layout; None when it does not declare it.

    more: options that count instead of what it says.
    """
    instances = layout.get("instances")
    if isinstance(instances, Mapping):
        found: list[Any] = [{} if one is None else one for key, one in instances.items() if key == name]
    else:
        listed = instances if isinstance(instances, list) else []
        found = [one for one in listed if isinstance(one, Mapping) and one.get("name") == name]
    if not found:
        return None
    shared = {key: layout[key] for key in ("defaults", "profiles") if key in layout}
    # What is no dictionary of options is refused as such.
    said = [{**one, "name": name, **more} if isinstance(one, Mapping) else one for one in found]
    return {**shared, "instances": said}


class _Withdrawn(Exception):
    """The wish that an instance runs, while its unit was waiting for the lock."""


def _withdrawn(
    paths: Paths, name: str, begun: Mapping[str, Any], noted: Mapping[str, Any]
) -> Callable[[Machine], None]:
    """What raises that. begun, noted: what was declared, and noted of it, when this began.

    Whoever has held the lock did not know that a start was on its way. One that is not declared as started at
    all, somebody wants to run in spite of that.
    """

    def check(machine: Machine) -> None:
        kernel = KernelFs(paths)
        note = kernel.notes.read(name)
        news = {key: value for key, value in note.items() if noted.get(key) != value}
        if why := _rests(kernel, name, news):
            raise _Withdrawn(why)
        states = [_declared_state(layout, name, machine) for layout in (begun, declared(paths))]
        if states[0] == "started" != states[1]:
            raise _Withdrawn("it is not declared as started any more")

    return check


def _declared_state(layout: Mapping[str, Any], name: str, machine: Machine) -> str | None:
    found = only(layout, name)
    wishes = [] if found is None else layout_request(found, machine, NoImages()).instances
    return wishes[0].state if wishes else None


def _running(paths: Paths, name: str, withdrawn: Callable[[Machine], None] | None) -> Make:
    """As it is declared once the host is locked: who has held the lock until then may have changed that."""

    def make(machine: Machine, images: Images) -> Request:
        layout = declared(paths)
        current = machine.instances.get(name)
        if current is not None and current.status == ACTIVE:
            manner = _declared_manner(layout, name, machine)
            adopted = {key: getattr(manner, key) for key in _ADOPTED}
            return instance_request({"name": name, "state": "started", **adopted}, machine, images)
        if withdrawn:
            withdrawn(machine)
        wished = only(layout, name, state="started", restart="always")  # this is the wish to start it
        if wished is not None:
            return layout_request(wished, machine, images)
        request = instance_request({"name": name, "state": "started"}, machine, images)
        request.reasons += [
            f"{reason}, and {Paths().layout} does not declare it" for reason in absence_reasons(machine, name)
        ]
        return request

    return make


def _declared_manner(layout: Mapping[str, Any], name: str, machine: Machine) -> Manner:
    """How an instance is declared to be stopped and waited for; as ever when it is not."""
    declared = only(layout, name)
    return Manner() if declared is None else layout_request(declared, machine, NoImages()).manner_of(name)


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM and SIGINT raise Stopped: what was started goes on."""

    def stop(_number: int, _frame: object) -> None:
        raise Stopped

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# stop


def stop(paths: Paths, name: str, timeout: int | None, force: bool | None, kerf: str | None) -> None:
    """Stop an instance: it is asked to shut down, and stopped by force when it does not.

    timeout: seconds that it has for that; None: as declared, or 60. force: True does not ask, False never
    uses force.
    """
    layout: dict[str, Any] = {}
    try:
        layout = declared(paths)
    except Refused as refused:
        # No reason to let it run; only the time that is declared is not known.
        complain_of_all("warning", refused.reasons)
    _stop(paths, name, kerf_of(layout, kerf), layout, timeout, force)


def _stop(
    paths: Paths,
    name: str,
    kerf: str,
    layout: Mapping[str, Any],
    timeout: int | None = None,
    force: bool | None = None,
) -> None:
    kernel = KernelFs(paths)
    try:
        result = _halt(kernel, kerf, _resting(name, layout, timeout, bool(force)))
    except Failure as failure:
        if force is not None or kernel.status(name) != ACTIVE:
            raise
        complain(f"{failure}")
        complain(f"{name}: it did not shut down when asked, so it is stopped by force")
        result = _halt(kernel, kerf, _resting(name, layout, timeout, True))
    for warning in result.warnings:
        complain(f"warning: {warning}")
    say(f"{name}: {'stopped' if result.changed else 'it is not running'}")


def keep_evidence(paths: Paths, name: str, why: str = "") -> None:
    """Of a crash, before the next start. why: it is one, although the kernel does not say so."""
    kernel = KernelFs(paths)
    reason = why or crashed(kernel, name)
    if not reason or kernel.status(name) == ACTIVE:
        return
    options, service = {}, Service()
    with suppress(Refused):
        layout = declared(paths)
        machine = kernel.read()
        options = only(layout, name) or {}
        service = services_of(layout, machine).get(name, service)
    for told in keep(kernel, name, reason, service, options):
        say(f"{name}: {told}")


def force_stop(paths: Paths, name: str, kerf: str) -> None:
    """Whatever it does. That is no wish that it rests."""
    kernel = KernelFs(paths)
    _halt(kernel, kerf, _resting(name, {}, None, True))
    kernel.notes.change(name, rest=None)
    say(f"{name}: stopped")


def _halt(kernel: KernelFs, kerf: str, make: Make) -> Result:
    """Also while the host is about to restart: that is when units stop."""
    with host_lock(kernel.paths.lock, restarting=True) if kernel.privileged else nullcontext():
        return converge(kernel.paths, kerf, False, make, locked=True, suppose=False)


def _resting(name: str, layout: Mapping[str, Any], timeout: int | None, force: bool) -> Make:
    def make(machine: Machine, images: Images) -> Request:
        seconds = _declared_manner(layout, name, machine).stop_timeout if timeout is None else timeout
        notify("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int((seconds + _SLACK) * 1e6)}")
        wish = {"name": name, "state": "stopped", "force": force, "stop_timeout": seconds}
        request = instance_request(wish, machine, images)
        request.reasons += absence_reasons(machine, name)
        return request

    return make
