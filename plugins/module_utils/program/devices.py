# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""mkops devices: serves the virtio devices of one instance until it is ended or the instance is removed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..common.errors import Failure, Refused
from ..devices.backends import Children, Launcher, Units, program_reasons
from ..devices.channel import DIRECTORY, Channel
from ..devices.hostnet import HostNetwork
from ..devices.record import Link, Record
from ..devices.serve import Server, backends_of, serving
from ..divide.kernelfs import KernelFs, Paths
from ..divide.machine import absence_reasons
from ..divide.store import read_records, set_network
from .output import complain, notify, say

Open = Callable[[Path], Channel]


def unit_of(name: str) -> str:
    return f"mkops-devices@{name}.service"


def devices(paths: Paths, name: str, open_channel: Open = Channel) -> None:
    """Serve what is recorded of an instance. Raises Refused with all reasons, or Failure."""
    record = read_records(paths.devices).get(name)
    if record is None:
        raise Refused(
            f"no devices are recorded of {name}: declare network, disks or shares of it"
            " (module mkops.multikernel.instance, or mkops apply)"
        )
    machine = KernelFs(paths).read()
    if reasons := [*absence_reasons(machine, name), *program_reasons(record)]:
        raise Refused(*reasons)
    number = machine.instances[name].id
    served = paths.served / name
    served.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with _channel(paths.at(DIRECTORY) / str(number), name, open_channel) as channel:
            _Serving(paths, name, record, _launcher(served, name)).run(channel)
    finally:
        shutil.rmtree(served, ignore_errors=True)
        with suppress(Failure, OSError):
            _apply_network(paths)


def _launcher(served: Path, name: str) -> Launcher:
    """Where this is a service of systemd, what it starts are services as well."""
    if os.environ.get("NOTIFY_SOCKET"):
        return Units(served, unit_of(name))
    return Children(served)


@contextmanager
def _channel(path: Path, name: str, open_channel: Open) -> Iterator[Channel]:
    try:
        channel = open_channel(path)
    except OSError as error:
        why = {
            errno.EBUSY: f"another process serves the devices of {name} already",
            errno.ENOENT: f"instance {name} was created without devices: recreate it",
        }.get(error.errno or 0, error.strerror)
        raise Failure(f"{path} cannot be opened: {why}") from error
    yield channel


def _apply_network(paths: Paths) -> None:
    set_network(paths.root, paths.devices, paths.served)


class _Serving:
    """The process, from its first device to the last one."""

    def __init__(self, paths: Paths, name: str, record: Record, launcher: Launcher):
        self._paths = paths
        self._name = name
        self._record = record
        self._launcher = launcher
        self._network = HostNetwork(paths.root)
        self._ends = self._reads = False

    def run(self, channel: Channel) -> None:
        with _woken(self._signal) as wake:
            if self._record.links:
                self._network.claim()
            _apply_network(self._paths)
            backends = backends_of(self._record, self._launcher, self._set_up)
            with serving(channel, backends, self._tell) as server:
                server.offer()
                notify("READY=1", f"STATUS=serves {', '.join(self._record.summary)}")
                say(f"{self._name}: {', '.join(self._record.summary)}")
                self._serve(server, wake)
        notify("STOPPING=1")

    def _serve(self, server: Server, wake: int) -> None:
        while server.step(wake):
            with suppress(BlockingIOError):
                os.read(wake, 64)
            if self._ends:
                return
            if self._reads:
                self._reads = False
                self._read_again()
        say(f"{self._name}: it was removed")

    def _read_again(self) -> None:
        """What the host does with its end may have changed; what the spawn sees, not while it runs."""
        try:
            record = read_records(self._paths.devices).get(self._name)
            _apply_network(self._paths)
            if record is not None and record.seen == self._record.seen:
                self._record = record
                for link in record.links:
                    self._set_up(link)
                say(f"{self._name}: {', '.join(record.summary)}")
        except (Failure, ValueError, OSError) as error:
            complain(f"{self._name}: {error}")

    def _set_up(self, link: Link) -> None:
        # As it is declared by now: a device is set up again when it starts again.
        places = {one.tap: one for one in self._record.links}
        self._network.set_up(self._name, places.get(link.tap, link))

    def _tell(self, text: str) -> None:
        say(f"{self._name}: {text}")

    def _signal(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._reads = True
        else:
            self._ends = True


@contextmanager
def _woken(handle: Callable[[int], None]) -> Iterator[int]:
    """A descriptor that can be read after SIGTERM, SIGINT and SIGHUP."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, lambda got, _frame: handle(got)) for number in numbers}
    old = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(old)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
