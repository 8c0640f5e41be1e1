# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is kept of a spawned kernel that crashed, before its next start overwrites it.

A directory per crash, for root alone, below /var/lib/mkops/crashes. So many are kept of each instance, and so
many bytes; the oldest go first. Whatever cannot be kept is told, and keeps nothing from going on.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..common.command import run
from ..common.files import read_record, text_of, write_file
from ..common.size import format_size
from ..common.text import harmless
from .console import Console, ConsoleError
from .kernelfs import KernelFs, Paths
from .kernellog import WARNING, Records
from .machine import LOADED, Instance
from .wish import Service

META = "meta.json"
CORE = "vmcore"  # in an instance's directory, from its end to its next start, where the kernel has it
SPARE = 256 << 20  # bytes of the disk that evidence leaves free
_NAME = re.compile(r"\d{8}T\d{6}Z-\d+")
_CRASHED = ("panic", "lost")
_UNIT = ("SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS")  # that systemd tells of the watcher: systemd.exec(5)
_LINES = 500  # of the host's log
_BLOCK = 1 << 20  # bytes
_DUMP_TIME = 300  # seconds; the unit has 600 for all of it


def crashed(kernel: KernelFs, name: str) -> str | None:
    """Why the last run of an instance was a crash, as the kernel tells; None when it was none."""
    reason = kernel.exit_reason(name)
    if kernel.status(name) != LOADED or not reason or reason.partition(":")[0] not in _CRASHED:
        return None
    return reason


def is_kept(kernel: KernelFs, name: str) -> bool:
    """Whether there is evidence of its last run."""
    last = (kernel.boot_id, kernel.epoch(name))
    return None not in last and any(
        (one.get("boot_id"), one.get("epoch")) == last for one in _metas(kernel.paths, name)
    )


def keep(kernel: KernelFs, name: str, why: str, service: Service, declared: Mapping[str, Any]) -> list[str]:
    """Keep what there is of a crash that was not kept yet; returns what people are to know of it.

    why: it is one. declared: the options of the instance, where it is declared.
    """
    if is_kept(kernel, name):
        return []
    instance = kernel.read().instances.get(name)
    if instance is None:
        return []
    parent = kernel.paths.crashes / name
    stamp = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{instance.epoch or 0}"
    told: list[str] = []
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(parent)
        with _new(parent / stamp) as made:
            told += _fill(made, kernel, instance, why, service, declared)
    except OSError as error:
        return [f"no evidence of it could be kept in {text_of(parent)} ({error.strerror})"]
    told.insert(0, f"evidence of it is in {text_of(parent / stamp)}")
    return told + _prune(parent, service)


@contextlib.contextmanager
def _new(path: Path) -> Iterator[Path]:
    """A directory that is there as a whole, or not at all."""
    made = Path(tempfile.mkdtemp(prefix=".", dir=path.parent))
    try:
        yield made
        made.rename(path)
    finally:
        if made.exists():
            shutil.rmtree(made, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """What somebody who was interrupted has left."""
    for path in parent.glob(".*"):
        shutil.rmtree(path, ignore_errors=True)


def _fill(
    made: Path, kernel: KernelFs, instance: Instance, why: str, service: Service, declared: Mapping[str, Any]
) -> list[str]:
    """Raises OSError; memory alone may be missing."""
    name = instance.name
    _write(made / "console", _console(kernel.paths, instance.id))
    _write(made / "kernel.log", "".join(f"{line}\n" for line in _log(kernel.paths, instance)))
    stats = dict(instance.stats)
    _write(made / "stats", "".join(f"{key} {value}\n" for key, value in stats.items()))
    memory, told = _memory(made, kernel, name, service)
    meta = {
        "name": name,
        "id": instance.id,
        "epoch": instance.epoch,
        "reason": why,
        "exit_reason": instance.exit_reason,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "boot_id": kernel.boot_id,
        "host_kernel": kernel.release,
        "kernel": dict(instance.kernel),
        "initrd": dict(instance.initrd),
        "cmdline": instance.cmdline,
        "layout": dict(declared),
        "unit": {key: os.environ[key] for key in _UNIT if key in os.environ},
        "memory": memory,
    }
    _write(made / META, json.dumps(meta, indent=2, sort_keys=True) + "\n")
    return told


def _write(path: Path, text: str) -> None:
    write_file(path, text, mode=0o600)


def _console(paths: Paths, instance_id: int) -> str:
    try:
        with Console(paths, instance_id) as console:
            return harmless(console.history())
    except ConsoleError as error:
        return f"[{error}]\n"


def _log(paths: Paths, instance: Instance) -> list[str]:
    """What the host's kernel has said since its start, of it or at all worth a warning."""
    begun = re.compile(rf"Multikernel instance {instance.id} is now active")
    about = re.compile(rf"\binstance {instance.id}\b|\({re.escape(instance.name)}\)", re.IGNORECASE)
    found: list[str] = []
    with contextlib.closing(Records(paths, since_boot=True)) as log:
        for record in log.new():
            if begun.search(record.text):
                found = []
            if record.level <= WARNING or about.search(record.text):
                found.append(harmless(f"[{record.time:12.6f}] {record.text}"))
    return found[-_LINES:]


# Memory


def _memory(
    made: Path, kernel: KernelFs, name: str, service: Service
) -> tuple[dict[str, Any] | None, list[str]]:
    """What meta.json says of it, and what people are to know."""
    if not service.crash_memory:
        return None, []
    source = kernel.paths.multikernel / "instances" / name / CORE
    target = made / CORE
    try:
        with source.open("rb", buffering=0) as memory:
            _room(made.parent, memory.seek(0, os.SEEK_END), service)
        how = _dump(source, target, min(service.crash_size, _free(made)))
        target.chmod(0o600)
        return {"kept": True, "size": target.stat().st_size, "format": how}, []
    except OSError as error:
        target.unlink(missing_ok=True)
        why = error.strerror or str(error)
        if isinstance(error, FileNotFoundError):
            why = "the host's kernel does not give it"
        reason = f"its memory is not kept: {why}"
        return {"kept": False, "reason": reason}, [reason]


def _free(path: Path) -> int:
    """Bytes of its disk that evidence may use."""
    disk = os.statvfs(path)
    return max(disk.f_bavail * disk.f_frsize - SPARE, 0)


def _room(parent: Path, size: int, service: Service) -> None:
    """Older evidence makes room for it, where that helps."""
    old = _kept(parent)
    while old and _free(parent) < min(size, service.crash_size):
        shutil.rmtree(old.pop(0), ignore_errors=True)


def _dump(source: Path, target: Path, limit: int) -> str:
    """Returns the format. Raises OSError."""
    tool = shutil.which("makedumpfile")
    if tool:
        done = run([tool, "-c", "-d", "31", source, target], timeout=_DUMP_TIME)
        if done.rc == 0 and target.stat().st_size <= limit:
            return "kdump"
        target.unlink(missing_ok=True)
    _copy(source, target, limit)
    return "elf"


def _copy(source: Path, target: Path, limit: int) -> None:
    """With holes for what is zero: much of a memory is."""
    used = 0
    with source.open("rb", buffering=0) as memory, target.open("xb", buffering=0) as file:
        while block := memory.read(_BLOCK):
            if block.count(0) == len(block):
                file.seek(len(block), os.SEEK_CUR)
                continue
            used += len(block)
            if used > limit:
                raise OSError(f"it is more than {format_size(limit)}, which is what may be used for it")
            left = memoryview(block)
            while left:
                left = left[file.write(left) :]
        file.truncate()


# What is kept


def _kept(parent: Path) -> list[Path]:
    """The oldest first."""
    try:
        return sorted(path for path in parent.iterdir() if _NAME.fullmatch(path.name))
    except OSError:
        return []


def _size(path: Path) -> int:
    """Bytes on the disk."""
    with contextlib.suppress(OSError):
        return sum(one.lstat().st_blocks * 512 for one in path.rglob("*"))
    return 0


def _prune(parent: Path, service: Service) -> list[str]:
    """The newest one stays in any case."""
    kept = _kept(parent)
    sizes = {path: _size(path) for path in kept}
    told = []
    while len(kept) > 1 and (len(kept) > service.crash_keep or sum(sizes.values()) > service.crash_size):
        oldest = kept.pop(0)
        shutil.rmtree(oldest, ignore_errors=True)
        sizes.pop(oldest)
        told.append(f"{text_of(oldest)} is removed")
    return told


def _metas(paths: Paths, name: str) -> list[dict[str, Any]]:
    found = []
    for path in _kept(paths.crashes / name):
        meta = read_record(path / META)
        if meta is not None:
            found.append({**meta, "path": text_of(path)})
    return found


def crash_facts(paths: Paths, name: str) -> list[dict[str, Any]]:
    """What is kept of an instance, the oldest first; empty for others than root."""
    return [
        {key: one.get(key) for key in ("path", "time", "reason", "epoch", "boot_id", "memory")}
        for one in _metas(paths, name)
    ]
