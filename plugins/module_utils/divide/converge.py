# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The one way from a wish to a divided host, which the modules share: read, plan, apply, read again.

An unchanged run has to be cheap: what only a change needs is imported when there is one, kerf is not started,
and no file is read that is proved to be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..common.errors import Failure, Refused
from ..common.lock import host_lock
from .image import Images
from .kernelfs import KernelFs, Paths
from .machine import Machine
from .plan import Plan, describe_instance, describe_pool, make_plan
from .steps import Step
from .wish import InstanceWish, Manner, PoolWish, Wish, make_instance_wish, make_manner, parse_headroom


@dataclass
class Request:
    """A wish as a module got it, with what is wrong with it by itself."""

    pool: PoolWish | None = None
    instances: list[InstanceWish] = field(default_factory=list)
    manners: dict[str, Manner] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    prune: bool = False
    headroom: int = 0
    host_cpus: int = 1

    def keep(self, params: Mapping) -> None:
        self.headroom, self.host_cpus = parse_headroom(self.reasons, params)

    def add(self, params: Mapping, machine: Machine, images: Images, prefix: str = "") -> None:
        """An instance."""
        current = machine.instances.get(params["name"])
        kernel, initrd = (current.kernel, current.initrd) if current else ({}, {})
        recorded = current.recorded if current else 0
        wish, reasons = make_instance_wish(
            params,
            lambda path: images.kernel(path, kernel, recorded),
            lambda path: images.initrd(path, initrd, recorded),
        )
        self.instances.append(wish)
        self.manners[wish.name] = make_manner(params)
        self.reasons += [f"{prefix}{reason}" for reason in reasons]

    @property
    def wish(self) -> Wish:
        return Wish(self.pool, tuple(self.instances), self.prune, self.headroom, self.host_cpus)


@dataclass
class Result:
    """What came of a request; in check mode the machine is as it was."""

    plan: Plan
    machine: Machine
    steps: tuple[Step, ...] = ()  # taken, or in check mode to be taken
    commands: list[str] = field(default_factory=list)
    console: dict[str, list[str]] = field(default_factory=dict)


def converge(
    paths: Paths, kerf_path: str, check_mode: bool, make: Callable[[Machine, Images], Request]
) -> Result:
    """Make a host what is wished, or raise Refused with all reasons, or Failure with all that is known."""
    kernel = KernelFs(paths)
    with host_lock(paths.lock):
        machine = kernel.read()
        request = make(machine, Images())
        try:
            plan = make_plan(request.wish, machine, [*request.reasons, *_wait_reasons(request, machine)])
        except Refused as refused:
            from .kerf import Kerf

            raise Refused(*refused.reasons, *Kerf.find(kerf_path, kernel).reasons()) from None
        if not plan.changed:
            return Result(plan, machine)
        return _change(kernel, kerf_path, check_mode, request, plan, machine)


def _wait_reasons(request: Request, machine: Machine) -> list[str]:
    """What cannot be waited for here."""
    waits = {
        request.manners[one.name].wait
        for one in request.instances
        if one.state in ("started", "loaded", "present")
    }
    reasons = []
    if "agent" in waits:
        from .ready import agent_reasons

        reasons += agent_reasons()
    if "heartbeat" in waits and not machine.interface.tells_exit:
        reasons.append(
            "wait: heartbeat needs a kernel that tells of its instances' signs of life, and"
            f" {machine.release} ({machine.interface.name}) does not: wait for console output (wait_for)"
            " instead"
        )
    return reasons


def _change(
    kernel: KernelFs, kerf_path: str, check_mode: bool, request: Request, plan: Plan, machine: Machine
) -> Result:
    from .apply import Applier
    from .kerf import Kerf, words_of

    kerf = Kerf.find(kerf_path, kernel)
    if reasons := kerf.reasons():
        raise Refused(*reasons)
    wishes = {one.name: one for one in request.instances}
    manners = request.manners
    if check_mode:
        commands = [
            kerf.line(words_of(step, wishes.get(step.name), manners.get(step.name, Manner()).force))
            for step in plan.steps
        ]
        return Result(plan, machine, plan.steps, commands)
    applier = Applier(kernel, kerf, wishes, manners)
    try:
        applier.run(plan.steps)
    except Failure as failure:
        now = kernel.read()
        failure.details["changed"] = bool(applier.done) or _view(now, plan) != plan.before
        failure.details["steps"] = [step.text for step in applier.done]
        failure.details["commands"] = kerf.commands
        raise
    return Result(plan, kernel.read(), tuple(applier.done), kerf.commands, applier.console)


def _view(machine: Machine, plan: Plan) -> dict:
    """What a plan is about, as it is now."""
    instances = plan.before["instances"]
    return {
        "pool": describe_pool(machine),
        "instances": {name: describe_instance(machine, machine.instances.get(name)) for name in instances},
    }
