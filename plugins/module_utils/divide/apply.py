# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Takes the steps of a plan one after the other, and believes only what the kernel then shows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace

from ..common.size import format_size
from .console import ConsoleError, last_lines
from .kerf import HALT_TIMEOUT, TIMEOUT, Attempt, Kerf, KerfError, Outcome, wait_until, words_of
from .kernelfs import KernelFs
from .machine import ACTIVE, LOADED, READY, Machine
from .plan import Step, cpu_list, describe_pool
from .ready import Watch
from .wish import InstanceWish, Manner

SETTLE = 5  # seconds for a status to follow a call that has returned
SETTLE_AFTER_ERROR = 1  # which may still have had its effect
CONSOLE_LINES = 40
BUSY_TRIES = 4  # the kernel's lock around loading is shared with the host's own kexec
_BUSY = "[Errno 16]"


class Applier:
    def __init__(
        self,
        kernel: KernelFs,
        kerf: Kerf,
        wishes: Mapping[str, InstanceWish],
        manners: Mapping[str, Manner],
    ):
        self._kernel = kernel
        self._kerf = kerf
        self._wishes = wishes
        self._manners = manners
        self._default = Manner()
        self._watches: list[Watch] = []
        self._starts: dict[str, Outcome] = {}
        self._stack = contextlib.ExitStack()
        self.done: list[Step] = []
        self.console: dict[str, list[str]] = {}

    def run(self, steps: tuple[Step, ...]) -> None:
        with self._stack:
            for step in steps:
                with Attempt(self._kernel) as attempt:
                    self._take(step, attempt)
                self.done.append(step)
            with Attempt(self._kernel) as attempt:
                self._await_all(attempt)

    def _take(self, step: Step, attempt: Attempt) -> None:
        manner = self._manners.get(step.name, self._default)
        wish = self._wishes.get(step.name)
        words = words_of(step, wish, manner.force)
        if step.action == "start":
            self._start(step, words, manner, attempt)
            return
        timeout = max(manner.stop_timeout, HALT_TIMEOUT) if step.action == "kill" else TIMEOUT
        outcome = self._kerf.call(words, timeout)
        if step.action == "load":
            outcome = self._load_again(step, words, outcome)
        elif step.action == "set_cpus" and outcome.rc and wish.allow_restart:
            outcome = self._set_cpus_stopped(step, words, outcome)
        if step.action == "set_pool":
            self._check_pool(step, outcome, attempt)
            return
        self._check_status(step, outcome, attempt, manner)
        if step.action in ("create", "set_cpus", "set_memory"):
            self._check_resources(step, outcome, attempt)
        elif step.action == "delete":
            self._kerf.forget(step.name)

    def _load_again(self, step: Step, words: tuple[str, ...], outcome: Outcome) -> Outcome:
        for _try in range(BUSY_TRIES - 1):
            if not (outcome.rc and _BUSY in outcome.stderr and self._kernel.status(step.name) == READY):
                break
            time.sleep(0.5)
            outcome = self._kerf.call(words)
        return outcome

    def _set_cpus_stopped(self, step: Step, words: tuple[str, ...], outcome: Outcome) -> Outcome:
        """A kernel that does not tell which CPU a running instance was started on may refuse to take it."""
        have = self._kernel.read().instances[step.name]
        if have.status != ACTIVE or have.boot_cpu is not None:
            return outcome
        anew = (Step("kill", step.name, LOADED), Step("start", step.name, ACTIVE))
        for between in anew:
            with Attempt(self._kernel) as attempt:
                self._take(between, attempt)
            self.done.append(replace(between, text=f"{between.action} {step.name}: its CPUs need a restart"))
            if between.action == "kill":
                outcome = self._kerf.call(words)
        return outcome

    def _check_status(self, step: Step, outcome: Outcome, attempt: Attempt, manner: Manner) -> None:
        patience = SETTLE if outcome.rc == 0 else SETTLE_AFTER_ERROR
        if wait_until(lambda: self._kernel.status(step.name) == step.status, patience):
            return
        state = self._kernel.status(step.name) or "absent"
        remedy = ""
        if step.action == "kill" and not manner.force:
            remedy = ": it did not shut down when asked, force: true stops it all the same"
        command = words_of(step, self._wishes.get(step.name))[0]
        raise attempt.failure(
            f"instance {step.name}: after kerf {command} it is {state},"
            f" not {step.status or 'absent'}{remedy}",
            outcome,
        )

    def _check_pool(self, step: Step, outcome: Outcome, attempt: Attempt) -> None:
        """kerf may say yes to half of a wish."""
        machine = self._kernel.read()
        pool = machine.pool
        if frozenset(pool.cpus) == step.cpus and pool.memory == step.memory:
            return
        cpus = cpu_list(machine, sorted(step.cpus)) or "none"
        sizes = {f"node{node}": format_size(size) for node, size in step.memory.items()}
        raise attempt.failure(
            f"the pool is now {describe_pool(machine) or 'empty'} instead of CPUs {cpus}, memory {sizes}",
            outcome,
        )

    def _check_resources(self, step: Step, outcome: Outcome, attempt: Attempt) -> None:
        machine = self._kernel.read()
        made = machine.instances.get(step.name)
        if made and frozenset(made.cpus) == step.cpus and made.memory == step.memory:
            return
        ending = ""
        if step.action == "create" and made:
            # Half of a wish is worse than none: what was not asked for must not be held.
            self._kerf.call(("delete", step.name))
            ending = "; it was given back"
        has = f"CPUs {self._cpus(machine, made.cpus)} and {format_size(made.memory)}" if made else "nothing"
        raise attempt.failure(
            f"instance {step.name} has {has} instead of CPUs {self._cpus(machine, step.cpus)} and"
            f" {format_size(step.memory)}{ending}",
            outcome,
        )

    @staticmethod
    def _cpus(machine: Machine, cpus) -> str:
        return cpu_list(machine, sorted(cpus)) or "none"

    def _start(self, step: Step, words: tuple[str, ...], manner: Manner, attempt: Attempt) -> None:
        name = step.name
        epoch = self._kernel.epoch(name)
        watch = None
        if manner.waits:
            instance_id = self._kernel.read().instances[name].id
            watch = Watch(self._kernel, name, instance_id, manner, self._stack)
        outcome = self._kerf.call(words)
        if watch is not None and outcome.rc == 0:
            watch.begin()
            self._starts[name] = outcome
            self._watches.append(watch)
            return

        def started() -> bool:
            # It may have ended again by now, which is not for this step to judge.
            again = self._kernel.epoch(name)
            return self._kernel.status(name) == ACTIVE or (epoch is not None and (again or 0) > epoch)

        if not wait_until(started, SETTLE if outcome.rc == 0 else SETTLE_AFTER_ERROR):
            self._check_status(step, outcome, attempt, manner)

    def _await_all(self, attempt: Attempt) -> None:
        left = list(self._watches)
        while left:
            for watch in tuple(left):
                try:
                    if watch.is_up(1.0 / len(left)):
                        left.remove(watch)
                        self.console[watch.name] = last_lines(watch.output, CONSOLE_LINES)
                except ConsoleError as error:
                    details = {
                        **attempt.details(self._starts[watch.name]),
                        "console": last_lines(error.output, CONSOLE_LINES),
                        "instance_name": watch.name,
                    }
                    raise KerfError(f"instance {watch.name}: {error}", details) from error
