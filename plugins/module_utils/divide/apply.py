# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Takes the steps of a plan one after the other, and believes only what the kernel then shows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..common.command import Done
from ..common.size import format_size
from ..devices.backends import make_disk
from .console import Console, ConsoleError, last_lines
from .kerf import TIMEOUT, Attempt, Kerf, KerfError, wait_until, words_of
from .kernelfs import KernelFs
from .machine import ACTIVE, LOADED, READY, Instance, Machine
from .ready import Watch
from .request import Request
from .steps import Step, anew
from .store import DeviceUnits, drop_record, keep_record, set_network
from .views import cpus_named
from .wish import InstanceWish, Manner

SETTLE = 5  # seconds for a status to follow a call that has returned
SETTLE_AFTER_ERROR = 1  # which may still have had its effect
CONSOLE_LINES = 40
BUSY_TRIES = 4  # the kernel's lock around loading is shared with the host's own kexec
_BUSY = "[Errno 16]"


class Applier:
    """Takes steps while the host is locked; wait() and judge() are for afterwards."""

    def __init__(self, kernel: KernelFs, kerf: Kerf, request: Request, consoles: contextlib.ExitStack):
        self._kernel = kernel
        self._kerf = kerf
        self._wishes = {one.name: one for one in request.instances}
        self._manner_of = request.manner_of
        self._consoles = consoles
        self._units = DeviceUnits(kernel.paths.devices, kernel.paths.served)
        self._watches: list[Watch] = []
        self._starts: dict[str, Done] = {}
        self._epochs: dict[str, int | None] = {}  # of what was started, right after that
        self._begun = False  # with devices
        self.done: list[Step] = []
        self._then: list[Step] = []  # what the step that is under way had to do after it
        self.console: dict[str, list[str]] = {}

    @property
    def waits(self) -> bool:
        return bool(self._watches)

    @property
    def commands(self) -> list[str]:
        return self._kerf.commands

    def run(self, steps: Iterable[Step]) -> None:
        with self._kerf.imported():
            left = list(steps)
            for place, step in enumerate(left):
                self._begin_devices(left[place:])
                with Attempt(self._kernel) as attempt:
                    try:
                        self._take(step, attempt)
                        self.done.append(step)
                    finally:
                        self.done += self._then
                        self._then = []

    def _begin_devices(self, left: Sequence[Step]) -> None:
        """Of all that is to start, as soon as nothing else is to be made: to serve them takes time."""
        if self._begun or left[0].action not in ("load", "start"):
            return
        self._begun = True
        if len(left) > 1:  # else it is waited for at once
            self._units.begin([step.name for step in left if step.action == "start"])

    def await_again(self, instance: Instance) -> None:
        """One that runs already, and that an earlier run has waited for in vain."""
        place = instance.awaited.get("place")
        watch = self._watch(instance.name, instance.id, place if isinstance(place, dict) else {})
        watch.begin()
        self._watches.append(watch)

    def _watch(self, name: str, instance_id: int, again: dict[str, Any] | None = None) -> Watch:
        return Watch(self._kernel, name, instance_id, self._manner_of(name), self._consoles, again)

    def _take(self, step: Step, attempt: Attempt) -> None:
        manner = self._manner_of(step.name)
        wish = self._wishes.get(step.name)
        words = words_of(step, wish, manner.force)
        if step.action == "start":
            self._start(step, words, manner, attempt)
            return
        if step.action == "set_devices":
            self._set_devices(step)
            return
        if step.action == "delete":
            self._units.stop(step.name)
        timeout = manner.stop_timeout if step.action == "kill" else TIMEOUT
        if step.action == "create" and step.record:
            done = self._kerf.create_with_devices(step, wish.id if wish else None)
        else:
            done = self._kerf.call(words, timeout)
        attempt.listen()
        if step.action == "load":
            done = self._load_again(step, words, done, attempt)
        elif step.action == "set_cpus" and done.rc and wish and wish.allow_restart:
            done = self._set_cpus_stopped(step, words, done)
        if step.action == "set_pool":
            self._check_pool(step, done, attempt)
            return
        self._check_status(step, done, attempt, manner)
        if step.action in ("create", "set_cpus", "set_memory"):
            self._check_resources(step, done, attempt)
        elif step.action == "delete":
            self._kerf.forget(step.name)

    def _set_devices(self, step: Step) -> None:
        directory = self._kernel.paths.devices
        if step.record:
            old = self._kernel.read().devices.get(step.name)
            for disk in step.record.disks:
                make_disk(disk)
            keep_record(directory, step.record)
            self._units.change(step.name, old is None or old.seen != step.record.seen)
        else:
            drop_record(directory, step.name)
            self._units.stop(step.name)
            # What served it has left the network as the record had it, or was not there at all.
            paths = self._kernel.paths
            set_network(paths.root, paths.devices, paths.served)

    def _load_again(self, step: Step, words: tuple[str, ...], done: Done, attempt: Attempt) -> Done:
        """Loading is refused while another one is going on. Some kernels never take it back."""
        if not done.rc:
            return done
        machine = self._kernel.read()
        spoils = machine.interface.failed_load_spoils
        for _try in range(1 if spoils else BUSY_TRIES - 1):
            if not (done.rc and _BUSY in done.stderr and self._kernel.status(step.name) == READY):
                break
            time.sleep(0.5)
            done = self._kerf.call(words)
            attempt.listen()
        have = machine.instances.get(step.name)
        if not (spoils and done.rc and have and self._kernel.status(step.name) == READY):
            return done
        # It would answer EBUSY from now on, whatever is to be loaded.
        was_spoiled = _BUSY in done.stderr
        self._make_anew(have, machine)
        if was_spoiled:
            done = self._kerf.call(words)
            attempt.listen()
        return done

    def _make_anew(self, have: Instance, machine: Machine) -> None:
        for step in anew(have, machine):
            with Attempt(self._kernel) as attempt:
                done = self._kerf.call(words_of(step, InstanceWish(step.name, id=have.id)))
                attempt.listen()
                self._check_status(step, done, attempt, self._manner_of(step.name))
                if step.action != "delete":
                    self._check_resources(step, done, attempt)
            self.done.append(step)

    def _set_cpus_stopped(self, step: Step, words: tuple[str, ...], done: Done) -> Done:
        """A kernel that does not tell which CPU a running instance was started on may refuse to take it."""
        have = self._kernel.read().instances[step.name]
        if have.status != ACTIVE or have.boot_cpu is not None:
            return done
        anew = (Step("kill", step.name, LOADED), Step("start", step.name, ACTIVE))
        for between in anew:
            with Attempt(self._kernel) as attempt:
                self._take(between, attempt)
            told = replace(between, text=f"{between.action} {step.name}: changing its CPUs needs a restart")
            (self.done if between.action == "kill" else self._then).append(told)
            if between.action == "kill":
                done = self._kerf.call(words)
        return done

    def _check_status(self, step: Step, done: Done, attempt: Attempt, manner: Manner) -> None:
        patience = SETTLE if done.rc == 0 else SETTLE_AFTER_ERROR
        if wait_until(lambda: self._kernel.status(step.name) == step.status, patience):
            return
        state = self._kernel.status(step.name) or "absent"
        remedy = ""
        if step.action == "kill" and not manner.force:
            remedy = ": it did not shut down when asked; force: true stops it anyway"
        command = words_of(step, self._wishes.get(step.name))[0]
        raise attempt.failure(
            f"instance {step.name}: after kerf {command} it is {state},"
            f" not {step.status or 'absent'}{remedy}",
            done,
        )

    def _check_pool(self, step: Step, done: Done, attempt: Attempt) -> None:
        """kerf may say yes to half of a wish."""
        machine = self._kernel.read()
        pool = machine.pool
        if frozenset(pool.cpus) == step.cpus and pool.memory == step.nodes:
            return
        raise attempt.failure(
            f"the pool has {pool_text(machine, pool.cpus, pool.memory)} instead of"
            f" {pool_text(machine, step.cpus, step.nodes)}",
            done,
        )

    def _check_resources(self, step: Step, done: Done, attempt: Attempt) -> None:
        machine = self._kernel.read()
        made = machine.instances.get(step.name)
        if made and frozenset(made.cpus) == step.cpus and made.memory == step.memory:
            return
        ending = ""
        if step.action == "create" and made:
            # Half of a wish is worse than none: what was not asked for must not be held.
            self._kerf.call(("delete", step.name))
            ending = "; it was deleted again"
        has = f"{_cpus(machine, made.cpus)} and {format_size(made.memory)}" if made else "nothing"
        raise attempt.failure(
            f"instance {step.name} has {has} instead of {_cpus(machine, step.cpus)} and"
            f" {format_size(step.memory)}{ending}",
            done,
        )

    def _start(self, step: Step, words: tuple[str, ...], manner: Manner, attempt: Attempt) -> None:
        name = step.name
        self._units.start(name)
        epoch = self._kernel.epoch(name)
        watch = None
        if manner.waits:
            instance_id = self._kernel.read().instances[name].id
            watch = self._watch(name, instance_id)
        done = self._kerf.call(words)
        attempt.listen()
        self._epochs[name] = self._kernel.epoch(name)
        if watch is not None and done.rc == 0:
            watch.begin()
            self._starts[name] = done
            self._watches.append(watch)
            awaited = {"id": instance_id, "epoch": self._epochs[name], "place": watch.place}
            self._kernel.notes.change(name, awaited=awaited)
            return
        self._kernel.notes.change(name, awaited=None)

        def started() -> bool:
            # It may have ended again by now, which judge() tells.
            self._epochs[name] = again = self._kernel.epoch(name)
            return self._kernel.status(name) == ACTIVE or (epoch is not None and (again or 0) > epoch)

        if not wait_until(started, SETTLE if done.rc == 0 else SETTLE_AFTER_ERROR):
            self._check_status(step, done, attempt, manner)

    # Without the lock

    def wait(self) -> None:
        """Until all are up."""
        left = list(self._watches)
        with Attempt(self._kernel) as attempt:
            while left:
                for watch in tuple(left):
                    try:
                        if watch.is_up(1.0 / len(left)):
                            left.remove(watch)
                            self.console[watch.name] = last_lines(watch.output, CONSOLE_LINES)
                            self._kernel.notes.change(watch.name, awaited=None)
                    except ConsoleError as error:
                        details = {
                            **attempt.details(self._starts.get(watch.name)),
                            "console": last_lines(error.output, CONSOLE_LINES),
                            "instance_name": watch.name,
                        }
                        raise KerfError(f"instance {watch.name}: {error}", details) from None

    def judge(self, machine: Machine) -> list[str]:
        """What became of those that were started. That one is up for a moment only is no success."""
        warnings = []
        for name, epoch in self._epochs.items():
            now = machine.instances.get(name)
            if now is None or now.epoch != epoch:
                warnings.append(f"instance {name} was started, and another run has changed it since")
            elif now.status != ACTIVE:
                word = (now.exit_reason or "").partition(":")[0]
                if word not in ("clean", "forced"):
                    raise KerfError(
                        f"instance {name} was started but did not stay up: it is {now.status} again"
                        f" ({now.exit_reason or 'this kernel does not say why'})",
                        {"console": self._last_words(now), "instance_name": name},
                    )
                warnings.append(
                    f"instance {name} was started and has since ended ({now.exit_reason}): it is {now.status}"
                )
        return warnings

    def _last_words(self, instance: Instance) -> list[str]:
        with contextlib.suppress(ConsoleError), Console(self._kernel.paths, instance.id) as console:
            return last_lines(console.history(), CONSOLE_LINES)
        return []


def pool_text(machine: Machine, cpus: Iterable[int], memory: Mapping[int, int]) -> str:
    sizes = [f"{format_size(size)} on node {node}" for node, size in sorted(memory.items()) if size]
    return f"{_cpus(machine, cpus)} and {', '.join(sizes) or 'no memory'}"


def _cpus(machine: Machine, cpus: Iterable[int]) -> str:
    found = sorted(cpus)
    return cpus_named(machine, found) if found else "no CPUs"
