# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one way from a wish to a divided host, which the modules share: read, plan, apply, read again.

An unchanged run has to be cheap: what only a change needs is imported when there is one, kerf is not started,
and no file is read that is proved to be the same.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..common.errors import Failure, Pending, Refused
from ..common.files import text_of
from ..common.lock import host_lock
from .facts import instances_facts
from .image import Images
from .kernelfs import KernelFs, KernelFsError, Paths
from .machine import ACTIVE, LOADED, Machine
from .options import service_options
from .plan import Plan, nothing_to_do
from .request import Request
from .views import describe_instance, describe_pool
from .wish import InstanceWish, Wish

if TYPE_CHECKING:
    from .apply import Applier
    from .declared import Change

Make = Callable[[Machine, Images], Request]


@dataclass
class Result:
    """What came of a request; in check mode, what would come of it, and the machine as it is."""

    plan: Plan
    machine: Machine
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    steps: list[str] = field(default_factory=list)  # for people: all of a step, and only what it does
    actions: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    console: dict[str, list[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    depends: list[str] = field(default_factory=list)  # what earlier tasks of the play have to see to
    boot: Change | None = None  # of what the host is at boot, if anything was said about it

    def __post_init__(self) -> None:
        if self.boot and self.boot.steps:
            self.steps += self.boot.steps
            self.actions.append("at_boot")

    @property
    def changed(self) -> bool:
        return bool(self.steps)


def converge(
    paths: Paths, kerf_path: str, check_mode: bool, make: Make, locked: bool = False, suppose: bool = True
) -> Result:
    """Make a host what is wished, or raise Refused with all reasons, or Failure with all that is known.

    locked: the caller holds the host's lock, because this is only a part of what it does. suppose: the caller
    is a task of a play. In check mode, earlier ones may see to what is not so yet; otherwise it is refused as
    in a real run. What a task starts, is watched by its unit, where it has one.
    """
    kernel = KernelFs(paths)
    if not kernel.privileged:
        return _refuse(kernel, make)
    if check_mode:
        return _foresee(kernel, kerf_path, make, suppose)
    with contextlib.ExitStack() as consoles:
        with contextlib.nullcontext() if locked else host_lock(paths.lock):
            run = _Run(kernel, kerf_path, make, consoles, suppose)
            run.change()
        # Others may use the host while this one waits.
        return run.finish()


def _refuse(kernel: KernelFs, make: Make) -> Result:
    """Nobody but root gets at the lock, or learns enough to do without it."""
    try:
        machine = kernel.read()
    except KernelFsError:
        raise Refused("only root may read and change the pool: use 'become: true'") from None
    request = make(machine, Images())
    _plan(request.wish, machine, request.reasons)
    raise Refused("only root may change the pool: use 'become: true'")


def _plan(wish: Wish, machine: Machine, early: list[str]) -> Plan:
    plan = nothing_to_do(wish, machine, early)
    if plan is None:
        from .planner import make_plan

        plan = make_plan(wish, machine, early)
    return plan


def _boot(kernel: KernelFs, request: Request, machine: Machine, kerf_path: str) -> Change | None:
    if request.at_boot is None:
        return None
    from .declared import change

    return change(kernel.paths, request, machine, kerf_path)


# Check mode


def _foresee(kernel: KernelFs, kerf_path: str, make: Make, suppose: bool) -> Result:
    """What would be done. What earlier tasks of the play would have done first is supposed, and told."""
    from .kerf import Kerf, words_of
    from .suppose import supposed

    with host_lock(kernel.paths.lock):
        machine = kernel.read()
    request = make(machine, Images())
    kerf = Kerf.find(kerf_path, kernel)
    boot = _boot(kernel, request, machine, kerf_path)
    early = [*request.reasons, *_wait_reasons(request, machine), *(boot.reasons if boot else ())]
    depends: list[str] = []
    try:
        plan = _plan(request.wish, machine, early)
    except Refused as refused:
        if not suppose:
            raise Refused(*refused.reasons, *kerf.reasons(), *_kernel_reasons(machine)) from None
        # What also speaks against it on a machine that is prepared for it is wrong in itself.
        certain = [reason for reason in early if not isinstance(reason, Pending)]
        plan = _plan(request.wish, supposed(request.wish, machine), certain)
        depends += map(str, refused.reasons)
    if plan.changed:
        # The play may be about to install it, or to boot another kernel.
        depends += map(str, [*kerf.reasons(), *_kernel_reasons(machine)])
    if depends and not suppose:
        raise Refused(*depends)
    wishes = {one.name: one for one in request.instances}
    return Result(
        plan,
        machine,
        before=_view(machine, plan),
        after=plan.after,
        steps=[step.text for step in plan.steps],
        actions=[step.action for step in plan.steps],
        commands=[
            kerf.line(words_of(step, wishes.get(step.name), request.manner_of(step.name).force))
            for step in plan.steps
            # What kerf cannot do, nobody can type instead.
            if not (step.action == "set_devices" or (step.action == "create" and step.record))
        ],
        warnings=[
            *plan.warnings,
            *_service_warnings(request, boot, suppose),
            *_back_at_boot(kernel.paths, request, plan),
            *(
                f"check mode: {reason}. Unless an earlier task sees to it, the run will fail"
                for reason in depends
            ),
            *(
                f"check mode: instance {one.name} was started before and was not up in time: the run will"
                " wait for it again"
                for one in _still_awaited(request, machine)
            ),
        ],
        depends=depends,
        boot=boot,
    )


# The real run


class _Run:
    """One change of a host, while it is locked, and what is waited for afterwards."""

    def __init__(
        self, kernel: KernelFs, kerf_path: str, make: Make, consoles: contextlib.ExitStack, of_play: bool
    ):
        self._kernel = kernel
        self._of_play = of_play
        self._kerf_path = kerf_path
        self._consoles = consoles
        self._images = Images()
        self._machine = kernel.read()
        self._request = make(self._machine, self._images)
        self._kept: list[str] = []  # what was done for the host's boot
        self._boot = _boot(kernel, self._request, self._machine, kerf_path)
        self._applier: Applier | None = None
        self._plan = Plan()

    def change(self) -> None:
        request, kernel = self._request, self._kernel
        boot = self._boot
        early = [*request.reasons, *_wait_reasons(request, self._machine), *(boot.reasons if boot else ())]
        try:
            plan = self._plan = _plan(request.wish, self._machine, early)
        except Refused as refused:
            from .kerf import Kerf

            more = [*Kerf.find(self._kerf_path, kernel).reasons(), *_kernel_reasons(self._machine)]
            raise Refused(*refused.reasons, *more) from None
        touched = {step.name for step in plan.steps}
        again = [one for one in _still_awaited(request, self._machine) if one.name not in touched]
        if plan.changed or again:
            self._take(plan, again)
        self._remember()
        started = [step.name for step in plan.steps if step.action == "start"]
        if boot and boot.steps:
            # Not before the machine is so: what cannot be had now would not be had at boot.
            with self._what_was_done(self._applier):
                boot.write()
                self._kept = boot.steps
        if started and self._of_play:
            # Their units may have ended, or been given up.
            from .units import have_watched

            have_watched(kernel.paths)

    def _take(self, plan: Plan, again: list[InstanceWish]) -> None:
        from .apply import Applier
        from .kerf import Kerf

        kerf = Kerf.find(self._kerf_path, self._kernel)
        if plan.changed and (reasons := [*kerf.reasons(), *_kernel_reasons(self._machine)]):
            raise Refused(*reasons)
        applier = self._applier = Applier(self._kernel, kerf, self._request, self._consoles)
        with self._what_was_done(applier):
            applier.run(plan.steps)
            for one in again:
                applier.await_again(self._machine.instances[one.name])
        if plan.changed:
            self._machine = self._kernel.read()

    def finish(self) -> Result:
        """Wait for what is to be waited for. The result is what the kernel then says."""
        applier, plan = self._applier, self._plan
        warnings = [
            *plan.warnings,
            *_service_warnings(self._request, self._boot, self._of_play),
            *_back_at_boot(self._kernel.paths, self._request, plan),
        ]
        if applier is None:
            view = _view(self._machine, plan)
            return Result(plan, self._machine, plan.before, view, warnings=warnings, boot=self._boot)
        with self._what_was_done(applier):
            if applier.waits:
                applier.wait()
                self._machine = self._kernel.read()
            warnings += applier.judge(self._machine)
        return Result(
            plan,
            self._machine,
            before=plan.before,
            after=_view(self._machine, plan),
            steps=[step.text for step in applier.done],
            actions=[step.action for step in applier.done],
            commands=applier.commands,
            console=applier.console,
            warnings=warnings,
            boot=self._boot,
        )

    @contextlib.contextmanager
    def _what_was_done(self, applier: Applier | None) -> Any:
        """A failure tells what was done before it, and how the host now is."""
        try:
            yield
        except Failure as failure:
            now = self._kernel.read()
            view = _view(now, self._plan)
            steps = [step.text for step in applier.done] if applier else []
            failure.details["steps"] = [*steps, *self._kept]
            failure.details["changed"] = bool(failure.details["steps"]) or view != self._plan.before
            failure.details["commands"] = applier.commands if applier else []
            failure.details["before"] = dict(self._plan.before)
            failure.details["after"] = view
            failure.details["instances"] = instances_facts(now)
            raise

    def _remember(self) -> None:
        """Note what proves that images are those that were loaded, and what is to rest, for later runs."""
        wishes = {one.name: one for one in self._request.instances}
        notes = self._kernel.notes
        for one in self._request.instances:
            current = self._machine.instances.get(one.name)
            if one.state == "stopped" and current and current.status != ACTIVE:
                notes.change(one.name, rest=current.epoch)
        taken = {step.name for step in self._plan.steps if step.action == "delete"}
        for name in {*taken, *(one.name for one in self._request.instances if one.state == "absent")}:
            # Units that are about to start it are not to make it again.
            if name not in self._machine.instances and (name in taken or "removed" not in notes.read(name)):
                notes.change(name, removed=time.monotonic_ns() // 1000)
        for name, instance in self._machine.instances.items():
            if instance.status not in (LOADED, ACTIVE) or not instance.kernel:
                continue
            wish = wishes.get(name)
            files = dict(instance.files)
            for what in ("kernel", "initrd"):
                image, record = getattr(wish, what, None), getattr(instance, what)
                if image and (image.path, image.sha256) == (record.get("path"), record.get("sha256")):
                    identity = self._images.identities.get(image.path)
                    if identity:
                        files[image.path] = identity
            notes.change(
                name,
                removed=None,
                record=self._kernel.record_sum(name),
                files={path: list(identity) for path, identity in files.items()},
            )


def _kernel_reasons(machine: Machine) -> list[str]:
    if not (machine.supported and machine.mounted):
        return []
    from .flags import flag_reasons

    return flag_reasons(machine)


def _still_awaited(request: Request, machine: Machine) -> list[InstanceWish]:
    """Instances that an earlier run has started and waited for in vain: this one is not content with less."""
    found = []
    for one in request.instances:
        current = machine.instances.get(one.name)
        if (
            one.state == "started"
            and current
            and current.status == ACTIVE
            and request.manner_of(one.name).waits
        ):
            awaited = current.awaited
            if awaited and (awaited.get("id"), awaited.get("epoch")) == (current.id, current.epoch):
                found.append(one)
    return found


def _service_warnings(request: Request, boot: Change | None, of_play: bool) -> list[str]:
    """What of the settings of units has no effect."""
    if boot is not None:
        return [*boot.warnings]
    if not of_play:
        return []  # a layout that the host keeps is what its units follow from
    idle = {name: service_options(given) for name, given in request.said_instances.items()}
    return [
        f"{', '.join(options)} of instance {name} has an effect only with at_boot: true, which has systemd"
        " watch it"
        for name, options in idle.items()
        if options
    ]


def _back_at_boot(paths: Paths, request: Request, plan: Plan) -> list[str]:
    """What is removed, and kept for boot all the same."""
    removed = {
        step.name for step in plan.steps if step.action == "delete" and not plan.after["instances"][step.name]
    }
    if not removed or request.at_boot is not None:
        return []
    from .declared import declared_names

    return [
        f"instance {name} is made again when the host boots, because {text_of(paths.layout)} still declares"
        " it: at_boot: true takes what is absent out of that file"
        for name in sorted(removed & declared_names(paths))
    ]


def _wait_reasons(request: Request, machine: Machine) -> list[str]:
    """What cannot be waited for here."""
    if not (machine.supported and machine.mounted):
        return []
    waits = {
        request.manner_of(one.name).wait
        for one in request.instances
        if one.state in ("started", "loaded", "present")
    }
    reasons = []
    if "agent" in waits:
        from .ready import agent_reasons

        reasons += agent_reasons()
    if not machine.interface.tells_exit:
        reasons += [
            f"watchdog of instance {one.name} needs a kernel that reports the heartbeats of its instances,"
            f" and {machine.release} ({machine.interface.name}) does not: leave watchdog out"
            for one in request.instances
            if one.state != "absent" and request.services[one.name].watchdog is not None
        ]
    if "heartbeat" in waits and not machine.interface.tells_exit:
        reasons.append(
            "wait: heartbeat needs a kernel that reports the heartbeats of its instances, and"
            f" {machine.release} ({machine.interface.name}) does not: wait for console output (wait_for)"
            " instead"
        )
    return reasons


def _view(machine: Machine, plan: Plan) -> dict[str, Any]:
    """What a plan is about, as it is now."""
    instances = plan.before["instances"]
    return {
        "pool": describe_pool(machine),
        "instances": {name: describe_instance(machine, machine.instances.get(name)) for name in instances},
    }
