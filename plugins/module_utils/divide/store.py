# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Devices of instances as a host keeps them: one file for each, readable for root alone.

They outlive the boot, as leases of addresses do. What serves the devices reads them, and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.command import must
from ..common.errors import Failure
from ..common.files import parse_json, remove, text_of, write_file
from ..common.lock import locked

if TYPE_CHECKING:
    from ..devices.record import Record

_TIMEOUT = 90  # seconds


def read_records(directory: Path) -> dict[str, Record]:
    """By name of their instances. Raises ValueError for one that is damaged: it is not replaced."""
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".json") and name[0] != ".")
    except (FileNotFoundError, PermissionError):
        return {}  # who is not root is told so elsewhere
    found = {}
    for name in names:
        path = directory / name
        try:
            plain = parse_json(path.read_bytes())
        except FileNotFoundError:
            continue  # gone since the directory was listed
        except (OSError, ValueError) as error:
            raise ValueError(f"{text_of(path)} cannot be read: {error}") from None
        if not isinstance(plain, dict):
            raise ValueError(f"{text_of(path)} is no record of devices: remove it, and declare them again")
        from ..devices.record import read_record  # most hosts have none

        found[name[: -len(".json")]] = read_record(name[: -len(".json")], plain)
    return found


def keep_record(directory: Path, record: Record) -> None:
    """Replace the record of an instance. Raises Failure."""
    path = directory / f"{record.name}.json"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(path, json.dumps(record.plain(), indent=2, sort_keys=True) + "\n", mode=0o600)
    except OSError as error:
        raise Failure(f"{text_of(path)} cannot be written: {error.strerror}") from error


def _unit_of(name: str) -> str:
    return f"mkops-devices@{name}.service"


class DeviceUnits:
    """What serves the devices of an instance: a service of systemd, which role host installs."""

    def __init__(self, records: Path, served: Path):
        """records: their directory; served: where each that runs has one."""
        self._records = records
        self._served = served

    def begin(self, names: Sequence[str]) -> None:
        """Have them come up at the same time; start() waits for each, and tells why one does not."""
        names = [name for name in names if self._has_devices(name) and not self._is_active(name)]
        if names:
            with contextlib.suppress(Failure):
                must(
                    ["systemctl", "start", "--no-block", *map(_unit_of, names)],
                    "start the devices of instances",
                    timeout=_TIMEOUT,
                )

    def start(self, name: str) -> None:
        """Before the instance starts: a spawned kernel looks for its devices once. Raises Failure."""
        if self._has_devices(name):
            self._systemctl("start", name, "start the devices")

    def resume(self, name: str) -> None:
        """For an instance that runs: as after a kernel has taken it over from another one. Raises Failure."""
        if not self._is_active(name):
            self.start(name)

    def change(self, name: str, seen: bool) -> None:
        """What it serves has changed. seen: also for the spawned kernel, which does not run then."""
        if self._is_active(name):
            self._systemctl("restart" if seen else "reload", name, "change the devices")

    def stop(self, name: str) -> None:
        if self._is_active(name):
            self._systemctl("stop", name, "stop the devices")

    def _has_devices(self, name: str) -> bool:
        return (self._records / f"{name}.json").exists()

    def _is_active(self, name: str) -> bool:
        """It keeps a directory for as long as it runs; to ask systemd takes longer."""
        return (self._served / name).exists()

    def _systemctl(self, verb: str, name: str, purpose: str) -> None:
        must(["systemctl", verb, _unit_of(name)], f"{purpose} of {name}", timeout=_TIMEOUT)


def set_network(root: str, records: Path, served: Path) -> None:
    """Have the host's end of all networks as recorded: what nobody has any more goes. Raises Failure."""
    from ..devices.hostnet import HostNetwork  # most hosts have none

    try:
        served.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(served / ".lock"):
            HostNetwork(root).apply(read_records(records))
    except OSError as error:
        raise Failure(f"the networks of instances cannot be set up: {error.strerror}") from error


def drop_record(directory: Path, name: str) -> None:
    """What was allotted to an instance is free again. Raises Failure."""
    path = directory / f"{name}.json"
    try:
        remove(path)
    except OSError as error:
        raise Failure(f"{text_of(path)} cannot be removed: {error.strerror}") from error
