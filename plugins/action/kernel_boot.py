# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's part of kernel_boot: it restarts the host, waits for it, and has it judged and promoted.

Nothing here is needed for the host to come back: that is arranged on the host before it restarts.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.mkops.multikernel.plugins.module_utils.boot.trial import TOKEN_WORD
from ansible_collections.mkops.multikernel.plugins.module_utils.common.files import sha256_file

MODULE = "mkops.multikernel.kernel_boot"
INTERNAL = ("phase", "trial", "image_sha256")
POLL_SECONDS = 2
# A package manager at work is waited for, looked at this often.
BUSY_SECONDS = 600
BUSY_POLL_SECONDS = 10
REPORTS = 3  # attempts
CONSOLE_BYTES = 1 << 20
CONSOLE_LINES = 60
# What the kernel on trial says when it goes by itself.
GIVEN_UP = "mkops: the kernel on trial is given up"
PROBE = "cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/osrelease /proc/cmdline"

display = Display()


class Stop(Exception):
    """The run ends here, with this as the result."""

    def __init__(self, result: dict) -> None:
        super().__init__()
        self.result = result


def parse_probe(output: str) -> tuple[str, str, str] | None:
    """(boot id, release, command line), or nothing if that is not what was printed."""
    lines = output.splitlines()
    if len(lines) < 3 or not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", lines[-3].strip()):
        return None
    return lines[-3].strip(), lines[-2].strip(), lines[-1].strip()


def console_part(text: str, release: str) -> list[str]:
    """What the wanted kernel printed: from the last time that it said its name."""
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", line) for line in text.splitlines()]
    lines = [line for line in lines if line.strip()]
    starts = [number for number, line in enumerate(lines) if f"Linux version {release} " in line]
    # One that never did left only what the boot loader said, before another kernel came.
    lines = lines[starts[-1] :] if starts else ["", *lines]
    ends = [number for number, line in enumerate(lines[1:], 1) if "Linux version " in line]
    return [line for line in (lines[: ends[0]] if ends else lines) if line]


def cause(evidence: dict[str, list[str]]) -> str:
    """In one sentence why a kernel was never reached."""
    for lines in evidence.values():
        for line in lines:
            if match := re.search(r"Kernel panic - not syncing: (.*?)[. ]*$", line):
                return f"it panicked: {match[1]}"
            # As the initramfs of Debian says it, before it restarts by panic=.
            if match := re.search(r"ALERT!\s+(.* does not exist)\.", line):
                return f"its initramfs gave up: {match[1]}"
    lines = itertools.chain.from_iterable(evidence.values())
    if "trial" in evidence or any(GIVEN_UP in line for line in lines):
        return "it ran but could not be reached, and gave up when its time was over"
    for line in reversed(evidence.get("console", [])):
        # The second is what GRUB says at every start by UEFI from a disk with a DOS label.
        if line.startswith("error: ") and "partition UUID of boot device" not in line:
            return f"the boot loader could not start it: {line}"
    return "it never came up"


class ActionModule(ActionBase):
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: object = None, task_vars: dict | None = None) -> dict:
        result = super().run(tmp, task_vars)
        self._task_vars = task_vars
        self._host = self._task.delegate_to or (task_vars or {}).get("inventory_hostname", "")
        if given := [name for name in INTERNAL if name in self._task.args]:
            raise AnsibleActionFail(f"{', '.join(given)}: set by the module itself, leave it out")
        self._args = dict(self._task.args)
        self._keep: list | None = None  # instances that run on; None: the host restarts
        self._kept: dict = {}  # what became of them
        self._local_files()
        self._notice_dead_connections()
        try:
            return result | self._converge()
        except Stop as stop:
            return result | stop.result

    # --- the way through --------------------------------------------------------------------------

    def _converge(self) -> dict:
        planned = self._module("plan")
        if planned.get("failed"):
            return planned | {"outcome": "failed"}
        todo = planned.pop("todo")
        boot_id = planned.pop("boot_id", "")
        release = self._release = planned["release"]
        self._base = planned
        if planned["reasons"]:
            raise Stop(self._failure("refused", planned["reasons"], "nothing was changed", changed=False))
        if not planned["changed"]:
            return planned | {"outcome": "unchanged"}
        if self._task.check_mode:
            return planned | {"outcome": "planned"}
        if todo["boot"] and self._connection.transport == "local":
            reason = "this host is the controller, which cannot restart itself and wait until it is back"
            raise Stop(self._failure("refused", [reason], "nothing was changed", changed=False))

        # From here on a kernel is named, not what it was when the run began.
        self._args["release"] = release
        self._limit = todo["timeout"]
        self._send(todo)
        if todo["install"]:
            self._say(f"installs {release}")
        installed = self._install()
        self._keep = todo["keep"]
        if todo["stop"]:
            self._say(f"stops instances before the restart: {', '.join(todo['stop'])}")
        if todo["boot"]:
            return self._trial(boot_id)
        if todo["promote"]:
            return self._judge(todo["trial"])
        outcome = "installed" if todo["install"] or todo["image"] else "tidied"
        facts = {"changed": installed.get("changed", True), "removed": installed.get("removed", [])}
        return self._base | facts | {"outcome": outcome} | self._after(None)

    def _install(self) -> dict:
        """As soon as nobody else changes packages."""
        deadline = time.monotonic() + BUSY_SECONDS
        told = ""
        while True:
            installed = self._must(self._module("install"), "it was not installed")
            busy = installed.get("busy", "")
            if not busy:
                return installed
            if time.monotonic() >= deadline:
                what = f"nothing was installed within {BUSY_SECONDS} s: {busy}; run again when that has ended"
                raise Stop(self._failure("failed", [what], "nothing was changed", changed=False))
            if busy != told:
                self._say(f"waits: {busy}")
                told = busy
            time.sleep(BUSY_POLL_SECONDS)

    def _trial(self, boot_id: str) -> dict:
        console = self._console_size()
        # The host takes this token, so that its trial is known also if it is gone before it can say so.
        trial = {"token": secrets.token_hex(8), "boot_id": boot_id, "previous": self._base["running"]}
        self._begin = time.monotonic()
        started = False
        with contextlib.suppress(AnsibleConnectionFailure):
            trial |= self._must(self._module("trial", trial), "it was not booted")["trial"]
            started = True
        if self._keep is None:
            self._say(f"restarts, to boot {self._release} once")
        else:
            self._say(f"boots {self._release} by kexec, keeps running: {', '.join(self._keep) or 'nothing'}")
        for seen in self._answers():
            if seen and seen[0] != trial["boot_id"]:
                break
            if seen and not started:
                self._take_back(trial, "the connection was lost when its trial began")
        else:
            if seen:
                self._take_back(trial, f"the host did not restart in {self._limit} s")
            self._lost(seen, console)
        if TOKEN_WORD + trial["token"] not in seen[2].split():
            return self._fallen_back(trial, seen, [], console)
        self._say(f"is back on {seen[1]}, judging its health")
        return self._judge(trial, seen, console)

    def _take_back(self, trial: dict, why: str) -> None:
        """End here if there is a trial that does not begin; its restart may still be under way."""
        with contextlib.suppress(AnsibleConnectionFailure):
            report = self._module("report", trial)
            if not report.get("failed"):
                what = "the trial was taken back, the host was not restarted"
                raise Stop(self._failure("failed", [why], what) | self._after(report.get("after")))

    def _judge(self, trial: dict, seen: tuple[str, str, str] | None = None, console: int = 0) -> dict:
        try:
            judged = self._module("judge", trial)
            self._kept = {"instances": judged["instances"]} if "instances" in judged else {}
            reasons = judged.get("reasons") or ([judged["msg"]] if judged.get("failed") else [])
            if not reasons:
                promoted = self._module("promote", trial)
                if not promoted.get("failed"):
                    return self._promoted(promoted, restarted=bool(seen))
                reasons = [f"it could not be promoted: {promoted['msg']}"]
        except AnsibleConnectionFailure as error:
            reasons = [f"the connection was lost while it was judged: {error}"]
        if not trial:
            raise Stop(self._failure("failed", reasons, "it runs, but was not made the default"))
        return self._give_up(trial, reasons, console, restarted=bool(seen))

    def _promoted(self, result: dict, restarted: bool) -> dict:
        self._say(f"{self._release} is healthy and the default now")
        seconds = {"down_seconds": round(time.monotonic() - self._begin, 1)} if restarted else {}
        facts = {name: result[name] for name in ("running", "previous", "removed")}
        warnings = [*self._base.get("warnings", []), *result.get("warnings", [])]
        told = {"warnings": warnings} if warnings else {}
        facts |= self._kept | seconds | told
        return self._base | facts | {"outcome": "promoted"} | self._after(result["after"])

    def _give_up(self, trial: dict, reasons: list[str], console: int, restarted: bool) -> dict:
        """Have the host go back. It may have been promoted without anybody hearing of it: then it stays."""
        self._say(f"{self._release} is not healthy, going back to {trial['previous']}: {'; '.join(reasons)}")
        if not restarted:
            self._begin = time.monotonic()
        answer = self._asked_to_go(trial)
        for seen in self._answers():
            if answer.get("promoted"):
                return self._promoted(answer, restarted)
            if seen and TOKEN_WORD + trial["token"] not in seen[2].split():
                return self._fallen_back(trial, seen, reasons, console, restarted)
            if seen and not answer:
                answer = self._asked_to_go(trial)
        return self._lost(seen, console, reasons)

    def _asked_to_go(self, trial: dict) -> dict:
        """What the host says to it; nothing if it was not heard. Its timer does the same a little later."""
        with contextlib.suppress(AnsibleConnectionFailure):
            answer = self._module("give_up", trial)
            return {} if answer.get("failed") else answer
        return {}

    def _fallen_back(
        self,
        trial: dict,
        seen: tuple[str, str, str],
        reasons: list[str],
        console: int,
        restarted: bool = True,
    ) -> dict:
        seconds = round(time.monotonic() - self._begin, 1)
        report = self._report(trial)
        if report.get("promoted"):
            return self._promoted(report, restarted)
        evidence = self._console(console) | report.get("evidence", {})
        reasons = reasons or [cause(evidence)]
        kept = "which is still the default"
        if report.get("default", seen[1]) != seen[1]:
            kept = "which is not the default"
        what = f"the host is back on {seen[1]}, {kept}, after {seconds:.0f} s"
        if lost := report.get("lost", []):
            what += f"; with it have ended the instances {', '.join(lost)}"
        if report.get("failed"):
            what += f"; the rest of the trial was not removed, the next run does that: {report['msg']}"
        failure = self._failure("fell_back", reasons, what)
        failure |= {"running": seen[1], "down_seconds": seconds, "evidence": evidence}
        failure |= {"lost": lost} if lost else {}
        raise Stop(failure | self._after(report.get("after")))

    def _report(self, trial: dict) -> dict:
        """What the host knows of a trial that is over; it has just come up, and may be slow to answer."""
        for _attempt in range(REPORTS):
            try:
                return self._module("report", trial)
            except AnsibleConnectionFailure as error:
                report = {"failed": True, "msg": f"the connection was lost: {error}"}
                time.sleep(POLL_SECONDS)
        return report

    # --- parts ------------------------------------------------------------------------------------

    def _failure(self, outcome: str, reasons: list[str], what: str, changed: bool = True) -> dict:
        message = f"kernel {self._release} on {self._host}: {'; '.join(reasons)}. {what[0].upper()}{what[1:]}"
        return self._base | {
            "failed": True,
            "changed": changed,
            "msg": message,
            "reasons": reasons,
            "outcome": outcome,
        }

    def _must(self, result: dict, what: str) -> dict:
        if result.get("failed"):
            raise Stop(
                self._base | result | {"outcome": "failed", "msg": f"{result['msg']}. On {self._host} {what}"}
            )
        return result

    def _after(self, view: str | None) -> dict:
        """The diff with what came of it, which is not always what was planned."""
        return {"diff": self._base["diff"] | {"after": view}} if view else {}

    def _module(self, phase: str, trial: dict | None = None) -> dict:
        args = self._args | {"phase": phase} | ({"trial": trial} if trial else {})
        return self._execute_module(module_name=MODULE, module_args=args, task_vars=self._task_vars)

    def _probe(self) -> tuple[str, str, str] | None:
        with contextlib.suppress(AnsibleError):
            self._connection.reset()
        try:
            done = self._low_level_execute_command(PROBE)
        except AnsibleError as error:
            display.vvv(f"kernel_boot [{self._host}]: {error}")
            return None
        return parse_probe(done.get("stdout", "")) if done.get("rc") == 0 else None

    def _answers(self) -> Iterator[tuple[str, str, str] | None]:
        """Who the host says that it is, again and again until the time is over. The last one is real."""
        deadline = time.monotonic() + self._limit
        while True:
            time.sleep(POLL_SECONDS)
            yield self._probe()
            if time.monotonic() >= deadline:
                return

    def _lost(
        self, seen: tuple[str, str, str] | None, console: int, reasons: list[str] | None = None
    ) -> dict:
        state = f"it answers, but runs {seen[1]} without a restart" if seen else "it does not answer"
        reasons = [*(reasons or []), f"the host did not come back in {self._limit} s: {state}"]
        failure = self._failure("lost", reasons, "look at its console")
        raise Stop(failure | {"evidence": self._console(console)})

    def _console_size(self) -> int:
        path = self._args.get("console_log")
        return os.path.getsize(path) if path and os.path.exists(path) else 0

    def _console(self, offset: int) -> dict[str, list[str]]:
        path = self._args.get("console_log")
        if not path or not os.path.exists(path):
            return {}
        with open(path, "rb") as file:
            size = os.path.getsize(path)
            file.seek(max(offset if offset <= size else 0, size - CONSOLE_BYTES))
            text = file.read().decode(errors="replace")
        lines = console_part(text, self._release)
        return {"console": lines[-CONSOLE_LINES:]} if lines else {}

    # --- files and connection ---------------------------------------------------------------------

    def _local_files(self) -> None:
        """Find packages and image on the controller, before anything is done."""
        if self._args.get("console_log"):
            self._args["console_log"] = os.path.expanduser(self._args["console_log"])
        if boolean(self._args.get("remote_src", False), strict=False):
            return
        packages = self._args.get("packages") or []
        packages = [path.strip() for path in packages.split(",")] if isinstance(packages, str) else packages
        image = self._args.get("image")
        found, missing = {}, []
        for name in [*packages, *([image] if image else [])]:
            try:
                found[name] = self._find_needle("files", os.path.expanduser(str(name)))
            except AnsibleFileNotFound:
                missing.append(str(name))
        if missing:
            raise AnsibleActionFail(
                f"not found on the controller: {', '.join(missing)}. Give paths that exist, absolute or "
                "relative to the playbook or role; for files on the host set remote_src: true"
            )
        if packages:
            self._args["packages"] = [found[name] for name in packages]
        if image:
            self._args["image"] = found[image]
            self._args["image_sha256"] = sha256_file(Path(found[image]))

    def _send(self, todo: dict) -> None:
        """Only what the host needs."""
        if (
            boolean(self._args.get("remote_src", False), strict=False)
            or self._connection.transport == "local"
        ):
            return
        if todo["install"]:
            self._args["packages"] = [self._sent(path) for path in self._args["packages"]]
        if todo["image"]:
            self._args["image"] = self._sent(self._args["image"])

    def _sent(self, path: str) -> str:
        shell = self._connection._shell
        if shell.tmpdir is None:
            self._make_tmp_path()
        target = shell.join_path(shell.tmpdir, os.path.basename(path))
        self._say(f"sends {os.path.basename(path)}, {os.path.getsize(path) / 1e6:.0f} MB")
        self._transfer_file(path, target)
        self._fixup_perms2([shell.tmpdir, target])
        return target

    def _notice_dead_connections(self) -> None:
        """A host that loses its network does not close connections: SSH has to find out."""
        if self._connection.transport != "ssh":
            return
        extra = self._connection.get_option("ssh_extra_args") or ""
        alive = "-o ServerAliveInterval=5 -o ServerAliveCountMax=4"
        self._connection.set_option("ssh_extra_args", f"{extra} {alive}".strip())
        with contextlib.suppress(AnsibleError):
            self._connection.reset()

    def _say(self, text: str) -> None:
        display.display(f"kernel_boot [{self._host}]: {text}")
