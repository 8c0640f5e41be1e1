# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The server of devices, with backends that note what they are told."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure
from ansible_collections.mkops.multikernel.plugins.module_utils.devices import serve, virtio
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.channel import NEEDS_RESET, Gone
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.serve import serving

from .conftest import FakeChannel


class Backend:
    """One whose death can be arranged."""

    kind = virtio.NET
    offered = virtio.NET_FEATURES

    def __init__(self, title="network x"):
        self.title = title
        self.calls = []
        self.connected = False
        self.refuses = []
        self.accepts = True
        self.rings = ()
        self._near = self._far = None

    def connect(self, _patience=None):
        if self.refuses:
            raise self.refuses.pop()
        if not self.connected:
            self._near, self._far = socket.socketpair()
            self.connected = True
            self.calls.append("connect")

    def config(self):
        return virtio.net_config("02:00:00:00:00:01", 1500)

    def watched(self):
        return self._near.fileno() if self.connected else None

    def start(self, features, memory, rings):
        if self.refuses:
            raise self.refuses.pop()
        self.rings = rings
        self.calls.append(f"start {features:x} {[(ring.place, ring.base) for ring in rings]}")
        return self.accepts

    def stop(self, places):
        self.calls.append(f"stop {places}")

    def lose(self):
        self.calls.append("lose")
        if self.connected:
            self._near.close()
            self._far.close()
        self.connected = False

    def close(self):
        self.lose()
        self.calls.append("close")

    def die(self):
        self._far.close()


@pytest.fixture
def backend():
    return Backend()


@pytest.fixture
def channel(driver):
    return FakeChannel(driver, [virtio.NET], [2])


@pytest.fixture
def log():
    return []


@pytest.fixture
def server(channel, backend, log, monkeypatch):
    monkeypatch.setattr(serve, "_FIRST_DELAY", 0.01)
    with serving(channel, [backend], log.append) as made:
        made.offer()
        made.step(os.eventfd(0), 0)
        yield made


def steps(server, wake, count=4):
    for _each in range(count):
        assert server.step(wake, 0.02)


def test_a_device_from_its_offer_to_its_end(server, channel, backend, driver, wake, log):
    assert channel.offered == {0: virtio.NET_FEATURES}
    assert channel.configs[0][:12] == bytes.fromhex("020000000001") + struct.pack("<3H", 1, 1, 1500)
    channel.start()
    channel.ready(0, features=0x100000000)
    steps(server, wake)
    assert backend.calls == ["connect", "start 100000000 [(0, 0), (1, 0)]"]
    assert set(channel.calls) == set(channel.kicks) == {(0, 0), (0, 1)}
    channel.happen(1)  # nothing that matters
    steps(server, wake)
    channel.reset(0)
    steps(server, wake)
    assert (backend.calls[2:], channel.acknowledged) == (["stop [0, 1]"], [0])
    channel.ready(0, features=0x100000000)
    steps(server, wake)
    channel.ready(0, features=0x100000000)  # once more, and the reset was missed
    steps(server, wake)
    assert [call.partition(" ")[0] for call in backend.calls[3:]] == ["start", "stop", "start"]
    channel.stop()
    steps(server, wake)
    assert backend.calls[-1] == "stop [0, 1]"
    channel.hang_up()
    assert not server.step(wake, 1)
    assert log == ["network x: is served"] * 3


def test_one_queue_may_be_unused(server, channel, backend, wake):
    channel.unused.add((0, 0))
    channel.start()
    channel.ready(0)
    steps(server, wake)
    assert backend.calls[-1].endswith("[(1, 0)]")


def test_a_backend_that_dies(server, channel, backend, driver, wake, log):
    channel.start()
    channel.ready(0)
    steps(server, wake)
    for place in (0, 1):
        driver.write(driver.queue(place).used + 2, struct.pack("<H", 7 + place))
    backend.refuses = [Failure("it does not come up"), OSError(errno.EBUSY, "busy")]
    backend.die()
    steps(server, wake, 12)
    assert backend.calls[2:4] == ["lose", "connect"]
    assert backend.calls[4].endswith("[(0, 7), (1, 8)]")
    assert log[1:] == [
        "network x: what serves it has ended, and is started again",
        "network x: [Errno 16] busy",
        "network x: it does not come up",
        "network x: is served",
    ]


def test_a_new_server_resumes(server, channel, backend, driver, wake):
    driver.write(driver.queue(0).used + 2, struct.pack("<H", 9))
    channel.start()
    channel.ready(0, flags=NEEDS_RESET)
    steps(server, wake)
    assert backend.calls[-1].endswith("[(0, 9), (1, 0)]")
    assert channel.resumed == [0]


def test_a_ring_that_makes_no_sense(server, channel, backend, wake, log):
    backend.accepts = False
    channel.start()
    channel.ready(0)
    steps(server, wake)
    assert "the rings of the spawned kernel make no sense" in log[0]
    os.write(backend.rings[1].error, struct.pack("=Q", 1))
    steps(server, wake)
    assert log[-1] == "network x: a ring of the spawned kernel cannot be used any more"


def test_a_start_that_fails_is_tried_again(server, channel, backend, wake, log):
    channel.start()
    backend.refuses = [Failure("no")]
    channel.ready(0)
    steps(server, wake, 12)
    assert [call.partition(" ")[0] for call in backend.calls] == ["connect", "lose", "connect", "start"]
    assert log == ["network x: no", "network x: is served"]


def test_the_instance_may_end_at_any_moment(server, channel, backend, wake, monkeypatch):
    channel.start()
    channel.ready(0)

    def gone(*_words):
        raise Gone

    for name in ("set_kick", "memory", "info"):
        with monkeypatch.context() as patched:
            patched.setattr(channel, name, gone)
            channel.start()
            steps(server, wake)
        channel.start()
        steps(server, wake)
        assert server._slots[0].activation == 1


def test_other_devices_than_those_that_are_declared(driver, log):
    with (
        serving(FakeChannel(driver, [virtio.BLK], [1]), [Backend()], log.append) as server,
        pytest.raises(Failure, match="recreate the instance"),
    ):
        server.offer()


def test_backends_come_up_at_the_same_time(driver, log):
    """Each waits until all others are at it as well."""
    meeting = threading.Barrier(4, timeout=10)
    backends = [Backend(f"network {number}") for number in range(4)]
    for backend in backends:
        connect = backend.connect
        backend.connect = lambda patience, connect=connect: (meeting.wait(), connect(patience))
    channel = FakeChannel(driver, [virtio.NET] * 4, [2] * 4)
    with serving(channel, backends, log.append) as server:
        server.offer()
    assert list(channel.offered) == [0, 1, 2, 3]


def test_all_that_do_not_come_up_are_told(driver, log):
    backends = [Backend(f"network {number}") for number in range(3)]
    backends[2].refuses = [Failure("network 2 did not come up")]
    backends[0].refuses = [OSError(errno.EBUSY, "busy")]
    channel = FakeChannel(driver, [virtio.NET] * 3, [2] * 3)
    with (
        serving(channel, backends, log.append) as server,
        pytest.raises(Failure, match=r"^network 0: busy; network 2 did not come up$"),
    ):
        server.offer()
    assert channel.offered == {}  # nothing, as long as not all are there
    assert backends[1].calls == ["connect", "lose", "close"]


def test_a_kernel_that_runs_has_agreed_to_what_it_was_offered(driver, channel, backend, log):
    channel.flags[0] = 1
    with serving(channel, [backend], log.append) as server:
        server.offer()
        again = channel.configs[0]
        channel.set_config = None  # is not called: it is so already
        server.offer()
        assert channel.configs[0] == again
        backend.refuses = [OSError(errno.EBUSY, "busy")]
        with pytest.raises(Failure, match="network x: busy"):
            server.offer()
