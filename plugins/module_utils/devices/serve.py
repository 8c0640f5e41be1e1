# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Serves the virtio devices of one instance: connects its queues with what works on them.

Nothing that a spawned kernel sends or reads passes through here. What it says of its queues is checked by the
host's kernel, and by whoever serves them. The devices stay when the spawned kernel ends, and are there for
its next run; a backend that dies is started again, and goes on where the ring says that the last one ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, cast

from ..common.errors import Failure
from . import virtio
from .backends import Launcher, Service, disk_service, share_service
from .channel import EVENT_INSTANCE, LIVE, NEEDS_RESET, RESETTING, Channel, Device, Gone, Memory, eventfd
from .declare import Disk, Share
from .qmp import Qmp, export
from .record import Link, Record
from .tap import Ring, Tap, VhostNet
from .vhostuser import VhostUser

_FIRST_DELAY, _LONGEST_DELAY = 0.2, 10.0  # seconds before a backend is started again
_PATIENCE = 5.0  # seconds for one to come up, while others are served
_FIRST_PATIENCE = 40.0  # all at once on a host that has much else to do; the unit has 90 to be ready
_BLK_CONFIG, _USED_INDEX = 60, 2  # bytes

Log = Callable[[str], None]


class Backend(Protocol):
    """What works on the queues of a device."""

    title: str
    offered: int  # features
    kind: int  # of virtio

    def connect(self, patience: float = _PATIENCE) -> None:
        """Be ready to start. Raises Failure, or OSError. patience: seconds for a program to come up."""

    def config(self) -> bytes: ...

    @property
    def connected(self) -> bool: ...

    def watched(self) -> int | None:
        """A descriptor that hangs up when it has died."""

    def start(self, features: int, memory: Memory, rings: Sequence[Ring]) -> bool: ...

    def stop(self, places: Sequence[int]) -> None:
        """It touches no memory any more when this returns."""

    def lose(self) -> None:
        """It has died, or is not to be trusted any more: the next one is another one."""

    def close(self) -> None: ...


class Net:
    """A tap with vhost_net behind it."""

    kind = virtio.NET
    offered = virtio.NET_FEATURES

    def __init__(self, link: Link, set_up: Callable[[Link], None]):
        self.title = f"network {link.tap}"
        self.link = link
        self._set_up = set_up
        self._tap: Tap | None = None
        self._vhost: VhostNet | None = None

    def connect(self, patience: float = _PATIENCE) -> None:
        if self._tap is None:
            self._tap = Tap(self.link.tap)
        self._set_up(self.link)

    def config(self) -> bytes:
        return virtio.net_config(self.link.mac, self.link.mtu)

    @property
    def connected(self) -> bool:
        return self._tap is not None

    def watched(self) -> int | None:
        return None

    def start(self, features: int, memory: Memory, rings: Sequence[Ring]) -> bool:
        self._vhost = VhostNet()
        return self._vhost.start(cast(Tap, self._tap), features, memory, rings)  # it is connected

    def stop(self, places: Sequence[int]) -> None:
        if self._tap is not None:
            self._tap.set_carrier(False)
        if self._vhost is not None:
            self._vhost.close()
            self._vhost = None

    def lose(self) -> None:
        self.stop(())

    def close(self) -> None:
        self.stop(())
        if self._tap is not None:
            self._tap.close()
            self._tap = None


class _User:
    """A program that speaks vhost-user. At each stop it is let go of: what comes then is another user."""

    def __init__(self, title: str, service: Service, launcher: Launcher):
        self.title = title
        self._service = service
        self._launcher = launcher
        self._socket: Path = launcher.directory(service.label) / "vhost.sock"
        self._connection: VhostUser | None = None
        self._known = 0
        self.offered = 0
        self._runs = False

    def connect(self, patience: float = _PATIENCE) -> None:
        if self._connection is not None:
            return
        if not self._runs:
            self._launcher.stop(self._service)  # what a former process has left
            self._launcher.start(self._service)
            self._runs = True
        try:
            self._prepare(patience)
            self._connection = VhostUser(self._socket, self.title, patience)
        except Failure:
            self.lose()
            raise
        features = self._connection.features & self._known
        if not self.offered:
            self.offered = features
        elif self.offered & ~features:
            self.lose()
            raise Failure(f"{self.title} does not offer any more what a spawned kernel may use")

    def _prepare(self, patience: float) -> None:
        """What a program that was just started has to know."""

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def watched(self) -> int | None:
        return None if self._connection is None else self._connection.fileno()

    def start(self, features: int, memory: Memory, rings: Sequence[Ring]) -> bool:
        cast(VhostUser, self._connection).start(features, memory, rings)  # it is connected
        return True

    def stop(self, places: Sequence[int]) -> None:
        if self._connection is None:
            return
        try:
            for place in places:
                self._connection.stop(place)
            self._connection.close()
            self._connection = None
        except Failure:
            # It may have ended of the memory that is gone. Whatever it does: not any more.
            self.lose()

    def lose(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._launcher.stop(self._service)
        self._runs = False

    def close(self) -> None:
        self.lose()


class Block(_User):
    """A disk, by qemu-storage-daemon."""

    kind = virtio.BLK

    def __init__(self, name: str, place: int, disk: Disk, launcher: Launcher):
        service = disk_service(name, place, disk, launcher)
        super().__init__(f"disk {disk.path}", service, launcher)
        self._disk = disk
        self._monitor = launcher.directory(service.label) / "qmp.sock"
        self._known = virtio.BLK_FEATURES
        self._exported = False

    def _prepare(self, patience: float) -> None:
        if self._exported:
            return
        with contextlib.closing(Qmp(self._monitor, self.title, patience)) as monitor:
            export(monitor, self._disk, self._socket)
        self._exported = True

    def config(self) -> bytes:
        return cast(VhostUser, self._connection).config(_BLK_CONFIG)  # it is connected

    def lose(self) -> None:
        super().lose()
        self._exported = False


class Files(_User):
    """A directory, by virtiofsd, which ends when it is let go of."""

    kind = virtio.FS

    def __init__(self, name: str, place: int, share: Share, launcher: Launcher):
        super().__init__(f"share {share.tag}", share_service(name, place, share, launcher), launcher)
        self._share = share
        self._known = virtio.RING

    def config(self) -> bytes:
        return virtio.fs_config(self._share.tag)

    def stop(self, places: Sequence[int]) -> None:
        super().stop(places)
        self.lose()


def backends_of(record: Record, launcher: Launcher, set_up: Callable[[Link], None]) -> list[Backend]:
    """In the order of the kernel's table. Raises Failure."""
    return [
        *(Net(link, set_up) for link in record.links),
        *(Block(record.name, place, disk, launcher) for place, disk in enumerate(record.disks)),
        *(Files(record.name, place, share, launcher) for place, share in enumerate(record.shares)),
    ]


class _Slot:
    """One device, and how it is served."""

    def __init__(self, index: int, backend: Backend):
        self.index = index
        self.backend = backend
        self.activation = 0  # that is served; 0: none
        self.rings: list[Ring] = []
        self.delay = _FIRST_DELAY
        self.due: float | None = None  # when it is connected again
        self.died = False

    def close_rings(self) -> None:
        for ring in self.rings:
            for fd in (ring.kick, ring.call, ring.error):
                os.close(fd)
        self.rings = []
        self.activation = 0


class Server:
    """Of one instance."""

    def __init__(self, channel: Channel, backends: Sequence[Backend], log: Log):
        self._channel = channel
        self._slots = [_Slot(index, backend) for index, backend in enumerate(backends)]
        self._memory: Memory | None = None
        self._log = log

    def offer(self) -> None:
        """Have all backends up, and tell the kernel what they offer. Raises Failure, with all that failed."""
        found = [self._channel.device(index).kind for index in range(self._channel.info().devices)]
        wanted = [slot.backend.kind for slot in self._slots]
        if found != wanted:
            raise Failure(
                f"the kernel has devices of the types {found}, and those that are declared are {wanted}:"
                " recreate the instance"
            )
        self._connect()
        for slot in self._slots:
            with contextlib.suppress(OSError):  # a kernel that runs has agreed to what it was
                self._channel.set_features(slot.index, slot.backend.offered)
            if self._channel.config(slot.index) != slot.backend.config().ljust(256, b"\0"):
                self._channel.set_config(slot.index, slot.backend.config())

    def _connect(self) -> None:
        """All at once: none needs another one, and each waits for its program most of the time."""
        failures: dict[int, str] = {}
        mistakes: list[Exception] = []

        def connect(slot: _Slot) -> None:
            try:
                slot.backend.connect(_FIRST_PATIENCE)
            except Failure as failure:
                failures[slot.index] = str(failure)
            except OSError as error:
                failures[slot.index] = f"{slot.backend.title}: {error.strerror or error}"
            except Exception as mistake:  # which a thread would keep for itself
                mistakes.append(mistake)

        threads = [threading.Thread(target=connect, args=[slot]) for slot in self._slots]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if mistakes:
            raise mistakes[0]
        if failures:
            raise Failure("; ".join(failures[index] for index in sorted(failures)))

    def step(self, wake: int, longest: float | None = None) -> bool:
        """Wait for something, and do what it takes. wake: a descriptor that ends the wait.

        longest: seconds. False: there is nothing to serve any more.
        """
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        poll.register(wake, select.POLLIN)
        watched: dict[int, tuple[_Slot, Ring | None]] = {}
        for slot in self._slots:
            fd = slot.backend.watched()
            if fd is not None:
                watched[fd] = slot, None
                poll.register(fd, select.POLLIN | select.POLLRDHUP)
            for ring in slot.rings:
                watched[ring.error] = slot, ring
                poll.register(ring.error, select.POLLIN)
        found = dict(poll.poll(self._patience(longest)))
        # First: what ends with the instance is no news then.
        events = found.get(self._channel.fileno(), 0)
        if events & (select.POLLHUP | select.POLLERR):
            return False
        if events:
            self._changed(self._channel.events())
        for fd, (slot, broken) in watched.items():
            still = slot.backend.watched() == fd if broken is None else broken in slot.rings
            if fd in found and still:
                self._noticed(slot, broken)
        now = time.monotonic()
        for slot in self._slots:
            if slot.due is not None and slot.due <= now:
                self._again(slot)
        return True

    def _patience(self, longest: float | None) -> float | None:
        """Milliseconds."""
        times = [slot.due - time.monotonic() for slot in self._slots if slot.due is not None]
        times += [longest] if longest is not None else []
        return max(min(times), 0) * 1000 if times else None

    def _noticed(self, slot: _Slot, ring: Ring | None) -> None:
        if ring is not None:
            self._log(f"{slot.backend.title}: a ring of the spawned kernel cannot be used any more")
            with contextlib.suppress(OSError):
                os.read(ring.error, 8)
            return
        # Told when it is started again: it may have been stopped, as this process is about to be.
        slot.died = True
        self._let_go(slot, lost=True)
        self._postpone(slot)

    def _postpone(self, slot: _Slot) -> None:
        """Not at once, and each time later: somebody may make it fail on purpose."""
        slot.due = time.monotonic() + slot.delay
        slot.delay = min(slot.delay * 2, _LONGEST_DELAY)

    def _again(self, slot: _Slot) -> None:
        slot.due = None
        if slot.died:
            slot.died = False
            self._log(f"{slot.backend.title}: what serves it has ended, and is started again")
        try:
            slot.backend.connect()
        except (Failure, OSError) as error:
            self._log(f"{slot.backend.title}: {error}")
            self._postpone(slot)
            return
        self._look(slot, lost=True)

    def _changed(self, events: int) -> None:
        if events & EVENT_INSTANCE:
            # Memory of a run that has ended is not there any more.
            for slot in self._slots:
                self._let_go(slot)
            if self._memory is not None:
                self._memory.close()
                self._memory = None
            with contextlib.suppress(Gone):
                info = self._channel.info()
                if info.active:
                    self._memory = Memory(self._channel.memory(), info.memory_size)
            events = -1
        for slot in self._slots:
            if events >> slot.index & 1:
                self._look(slot)

    def _look(self, slot: _Slot, lost: bool = False) -> None:
        """Serve a device as it is now. lost: the backend has ended in the middle of its work."""
        try:
            device = self._channel.device(slot.index)
            if device.flags & RESETTING:
                self._let_go(slot)
                self._channel.acknowledge_reset(slot.index)
            elif slot.activation and not (device.flags & LIVE and device.activation == slot.activation):
                self._let_go(slot)
            if device.flags & LIVE and not slot.activation and slot.backend.connected:
                self._start(slot, device, lost)
        except Gone:
            self._let_go(slot)
        except (Failure, OSError) as error:
            self._log(f"{slot.backend.title}: {error}")
            self._let_go(slot, lost=True)
            self._postpone(slot)

    def _start(self, slot: _Slot, device: Device, lost: bool) -> None:
        if self._memory is None:
            return
        resumes = bool(device.flags & NEEDS_RESET)
        for place in range(device.queues):
            queue = self._channel.queue(slot.index, place)
            if not queue.size:
                continue
            base = self._memory.u16(queue.used + _USED_INDEX) if resumes or lost else 0
            fds = [eventfd() for _each in range(3)]
            slot.rings.append(Ring(place, queue, base, *fds))
        for ring in slot.rings:
            self._channel.set_call(slot.index, ring.place, ring.call)
        if not slot.backend.start(device.driver_features, self._memory, slot.rings):
            self._log(f"{slot.backend.title}: the rings of the spawned kernel make no sense")
        for ring in slot.rings:
            self._channel.set_kick(slot.index, ring.place, ring.kick)
        if resumes:
            self._channel.resume(slot.index)
        slot.activation = device.activation
        slot.delay = _FIRST_DELAY
        self._log(f"{slot.backend.title}: is served")

    def _let_go(self, slot: _Slot, lost: bool = False) -> None:
        if slot.activation or slot.rings or lost:
            if lost:
                slot.backend.lose()
            else:
                slot.backend.stop([ring.place for ring in slot.rings])
            slot.close_rings()
        if not slot.backend.connected and slot.due is None:
            slot.due = time.monotonic()

    def close(self) -> None:
        for slot in self._slots:
            with contextlib.suppress(Failure, OSError):
                slot.backend.close()
            slot.close_rings()
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        self._channel.close()


@contextlib.contextmanager
def serving(channel: Channel, backends: Sequence[Backend], log: Log) -> Iterator[Server]:
    """A server that lets go of everything in the end."""
    server = Server(channel, backends, log)
    try:
        yield server
    finally:
        server.close()
