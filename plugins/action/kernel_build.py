# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run the module kernel_build in the background and show its progress on the controller."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsibleFileNotFound
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.mkops.multikernel.plugins.module_utils.build.patches import (
    SERIES,
    own_fragments,
    read_series,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Refused

MODULE = "mkops.multikernel.kernel_build"
NAMED_BASES = ("tinyconfig", "allnoconfig", "defconfig", "running")
LIMIT_SECONDS = 12 * 3600
POLL_SECONDS = 2
LINE_SECONDS = 10
# The module rewrites its progress every second. When it stops doing that, it has ended and cannot say so,
# on a full disk for one; or it is gone.
QUIET_SECONDS = 10
SILENT_SECONDS = 90

display = Display()


class Interrupted(BaseException):
    """The controller is told to stop."""


def describe(progress: dict) -> str:
    """compile 43% (1204/2800) kernel/sched/core.o"""
    words = [progress["stage"]]
    if total := progress.get("total"):
        done = progress["done"]
        # The total is an estimate: 100% is for the end alone.
        words.append(f"{min(99, 100 * done // total)}% ({done}/{total})")
    words.append(progress.get("detail", ""))
    return " ".join(word for word in words if word)


def announced(planned: dict) -> str:
    """What is about to be done."""
    name = planned["release"] or planned["key"][:8]
    if {"vmlinux", "path"} & {*planned}:
        return f"{name} is built; removes {', '.join(planned['removed'])} from the cache"
    return f"{name} is not built yet"


def _above(path: str, top: str) -> list[str]:
    """The folders that a file lies in, below one that holds them all."""
    folders = []
    while len(path := os.path.dirname(path)) > len(top):
        folders.append(path)
    return folders


class ActionModule(ActionBase):
    _supports_check_mode = True
    _supports_async = False
    # Another module that builds for minutes has another one.
    MODULE = MODULE

    def run(self, tmp: object = None, task_vars: dict | None = None) -> dict:
        result = super().run(tmp, task_vars)
        self._host = self._task.delegate_to or (task_vars or {}).get("inventory_hostname", "")
        self._uploads = itertools.count()
        args = self._arguments()

        # Quick and honest: check mode tells whether there is anything to do, and where it would be done.
        with self._task_as(check_mode=True):
            planned = self._execute_module(module_name=self.MODULE, module_args=args, task_vars=task_vars)
        if self._task.check_mode or planned.get("failed") or not planned.get("changed"):
            return result | planned

        # Of this run alone: another one may be building, or waiting for, the same kernel.
        folder = os.path.join(os.path.dirname(planned["directory"]), ".work")
        args["progress_file"] = os.path.join(folder, f"progress-{secrets.token_hex(8)}.json")
        self._say(announced(planned))
        with self._signals_as_exceptions():
            with self._task_as(async_val=LIMIT_SECONDS):
                job = self._execute_module(
                    module_name=self.MODULE, module_args=args, task_vars=task_vars, wrap_async=True
                )
            if job.get("failed") or "ansible_job_id" not in job:
                return result | job | {"failed": True}
            return result | self._follow(job["ansible_job_id"], args["progress_file"], task_vars)

    def _arguments(self) -> dict:
        """The module's arguments, its input files sent along when they are on the controller."""
        args = dict(self._task.args)
        if boolean(args.get("remote_src", False), strict=False):
            return args
        config = args.get("config") or []
        config = [path.strip() for path in config.split(",")] if isinstance(config, str) else config
        names = {("config", index): str(name) for index, name in enumerate(config)}
        if args.get("series"):
            names["series", 0] = str(args["series"])
        if args.get("config_base", NAMED_BASES[0]) not in NAMED_BASES:
            names["config_base", 0] = str(args["config_base"])

        found, missing = {}, []
        for place, name in names.items():
            try:
                found[place] = self._find_needle("files", os.path.expanduser(name))
            except AnsibleFileNotFound:
                missing.append(f"{place[0]} {name}")
        if missing:
            raise AnsibleActionFail(
                f"not found on the controller: {', '.join(missing)}. Give paths that exist, absolute or "
                "relative to the playbook or role; for files on the build host set remote_src: true"
            )
        sent = {
            place: self._sent_series(path) if place[0] == "series" else self._sent(path)
            for place, path in found.items()
        }
        if config:
            args["config"] = [sent["config", index] for index in range(len(config))]
        return args | {name: path for (name, _index), path in sent.items() if name != "config"}

    def _sent(self, path: str) -> str:
        """The path on the build host of a file of the controller."""
        if self._is_local():
            return os.path.abspath(path)
        folder, name = self._folder(), os.path.basename(path)
        self._transferred(folder, {name: path})
        return self._connection._shell.join_path(folder, name)

    def _sent_series(self, path: str) -> str:
        """The path on the build host of a series: its listing, patches and fragments, in whatever folders."""
        if self._is_local():
            return os.path.abspath(path)
        if not os.path.isdir(path):
            raise AnsibleActionFail(f"series {path} is not a directory")
        try:
            patches = read_series(Path(path))
        except Refused as refused:
            raise AnsibleActionFail("\n".join(refused.reasons)) from refused
        listing = Path(path, SERIES)
        folder, top = self._folder(), os.path.basename(path.rstrip("/"))
        files = [*([listing] if listing.exists() else []), *patches, *own_fragments(Path(path))]
        self._transferred(folder, {os.path.join(top, file.relative_to(path)): str(file) for file in files})
        return self._connection._shell.join_path(folder, top)

    def _is_local(self) -> bool:
        return self._connection.transport == "local"

    def _folder(self) -> str:
        """A new one on the build host, for the time of the task."""
        if self._connection._shell.tmpdir is None:
            self._make_tmp_path()
        return self._connection._shell.join_path(
            self._connection._shell.tmpdir, f"input-{next(self._uploads)}"
        )

    def _transferred(self, folder: str, names: dict[str, str]) -> None:
        """Send files of the controller to names in a folder, with the folders that they lie in."""
        sent = {self._connection._shell.join_path(folder, name): path for name, path in names.items()}
        parents = sorted({folder, *(parent for name in sent for parent in _above(name, folder))})
        made = self._low_level_execute_command(f"mkdir -p {' '.join(map(shlex.quote, parents))}")
        if made.get("rc"):
            raise AnsibleActionFail(f"cannot make {folder} on {self._host}: {made.get('stderr', '').strip()}")
        for name, path in sent.items():
            self._transfer_file(path, name)
        self._fixup_perms2([*parents, *sent], execute=True)

    def _follow(self, job: str, path: str, task_vars: dict | None) -> dict:
        seen, changed_at, said_at, stage = "", time.monotonic(), float("-inf"), ""
        progress: dict = {}
        try:
            while True:
                time.sleep(POLL_SECONDS)
                now = time.monotonic()
                text = self._read(path)
                if text != seen:
                    seen, changed_at = text, now
                    with contextlib.suppress(ValueError):
                        progress = json.loads(text)
                if progress and (progress["stage"] != stage or now - said_at >= LINE_SECONDS):
                    stage, said_at = progress["stage"], now
                    self._say(describe(progress))
                over = progress.get("state") in ("done", "failed")
                quiet, silent = (now - changed_at > limit for limit in (QUIET_SECONDS, SILENT_SECONDS))
                # A module that fails before it builds writes no progress at all.
                if over or quiet or not progress:
                    finished = self._job_result(job, task_vars)
                    if finished.get("finished"):
                        self._low_level_execute_command(f"rm -f {shlex.quote(path)}")
                        return self._final(finished)
                    if silent:
                        raise AnsibleActionFail(
                            f"the build on {self._host} wrote no progress for {SILENT_SECONDS} s and did not "
                            "end: it was killed, or the host restarted. Run again to continue the build"
                        )
        except (Interrupted, KeyboardInterrupt):
            if progress.get("state") == "running":
                self._low_level_execute_command(f"kill -TERM {int(progress['pid'])}")
            raise

    def _read(self, path: str) -> str:
        try:
            read = self._low_level_execute_command(f"cat {shlex.quote(path)}")
        except AnsibleConnectionFailure as error:
            display.vvv(f"kernel_build: {error}, trying again")
            return ""
        return read.get("stdout", "") if read.get("rc") == 0 else ""

    def _job_result(self, job: str, task_vars: dict | None, mode: str = "status") -> dict:
        task = self._task.copy()
        task.action, task.args, task.async_val = "ansible.builtin.async_status", {"jid": job, "mode": mode}, 0
        action = self._shared_loader_obj.action_loader.get(
            "ansible.legacy.async_status",
            task=task,
            connection=self._connection,
            play_context=self._play_context,
            loader=self._loader,
            templar=self._templar,
            shared_loader_obj=self._shared_loader_obj,
        )
        result = action.run(task_vars=task_vars)
        if result.get("finished") and mode == "status":
            self._job_result(job, task_vars, "cleanup")
        return result

    def _final(self, finished: dict) -> dict:
        """What the module returned, without what async_status put around it."""
        around = ("ansible_job_id", "started", "finished", "results_file")
        output = ("stdout", "stderr", "stdout_lines", "stderr_lines")
        return {
            key: value
            for key, value in finished.items()
            if key not in around and (value or key not in output)
        }

    def _say(self, text: str) -> None:
        display.display(f"{self.MODULE.rpartition('.')[2]} [{self._host}]: {text}")

    @contextlib.contextmanager
    def _task_as(self, **attributes: object) -> Iterator[None]:
        """Attributes of the task that _execute_module() looks at, for the time of a call."""
        before = {name: getattr(self._task, name) for name in attributes}
        try:
            for name, value in attributes.items():
                setattr(self._task, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(self._task, name, value)

    @contextlib.contextmanager
    def _signals_as_exceptions(self) -> Iterator[None]:
        """The worker dies at once on a signal; here the build on the host is to be stopped first."""

        def interrupt(signum: int, _frame: object) -> None:
            for number in before:
                signal.signal(number, signal.SIG_IGN)
            raise Interrupted(signal.Signals(signum).name)

        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, interrupt)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
