# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""mkops devices on a fake host, with a real qemu-storage-daemon for a disk."""

from __future__ import annotations

import errno
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure
from ansible_collections.mkops.multikernel.plugins.module_utils.devices import hostnet
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.backends import Children, Units
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.declare import Disk
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.record import Link, Record
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import store
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import Paths
from ansible_collections.mkops.multikernel.plugins.module_utils.program import devices
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import (
    MIB,
    POOL_BASE,
    FakeInstance,
    FakeKernel,
)
from ansible_collections.mkops.multikernel.tests.unit.plugins.module_utils.devices.conftest import (
    Driver,
    FakeChannel,
)

LINK = Link("mk-red-0", "isolated", "02:00:00:00:00:01", "fe:00:00:00:00:01", 1500, None, ("10.0.0.2/24",))


@pytest.fixture
def host(make_host, monkeypatch):
    # The address of a socket is short.
    with tempfile.TemporaryDirectory(prefix="mk-", dir="/tmp") as directory:
        found = make_host(pool_cpus=[4], chunks=[(POOL_BASE, 256 * MIB, 0)])
        short = FakeKernel(
            Path(directory), pool_cpus=found.pool_cpus, chunks=found.chunks,
            instances={"red": FakeInstance(3, [4], POOL_BASE, 128 * MIB)},
        )  # fmt: skip
        yield short


@pytest.fixture
def paths(host):
    return Paths(str(host.root))


@pytest.fixture
def served(monkeypatch, paths):
    """What was done with the host's network, in place of doing it."""
    said = []

    class Network:
        def __init__(self, root):
            assert root == paths.root

        def apply(self, records):
            said.append(f"apply {' '.join(sorted(records))}")

        def claim(self):
            said.append("claim")

        def set_up(self, name, link):
            said.append(f"set_up {name} {link.tap} {link.mode}")

    monkeypatch.setattr(devices, "HostNetwork", Network)
    monkeypatch.setattr(hostnet, "HostNetwork", Network)
    return said


@pytest.fixture
def channel():
    driver = Driver()
    made = FakeChannel(driver, [2], [1])
    opened = []

    def open_channel(path):
        opened.append(path)
        return made

    open_channel.channel, open_channel.opened = made, opened
    yield open_channel
    os.close(driver.fd)


def soon(condition, then):
    """From another thread, once something is so."""

    def wait():
        for _each in range(500):
            if condition():
                break
            time.sleep(0.02)
        then()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_what_cannot_be_served(mkops, monkeypatch, host, paths, served):
    said = mkops("devices", "red")
    assert said.rc == 3 and "no devices are recorded of red" in said.err
    store.keep_record(paths.devices, Record("gone", disks=(Disk("/x"),)))
    monkeypatch.setattr(devices, "program_reasons", lambda _record: ["qemu is not here"])
    with pytest.raises(devices.Refused) as refused:
        devices.devices(paths, "gone")
    assert refused.value.reasons == ("there is no instance gone: choose from red", "qemu is not here")


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (errno.EBUSY, "another process serves the devices of red already"),
        (errno.ENOENT, "instance red was created without devices"),
        (errno.EPERM, "Operation not permitted"),
    ],
)
def test_a_channel_that_cannot_be_opened(monkeypatch, paths, served, number, why):
    store.keep_record(paths.devices, Record("red", disks=(Disk("/x"),)))

    def fail(path):
        assert path == paths.at("/dev/mkvirtio/3")
        raise OSError(number, os.strerror(number))

    with pytest.raises(Failure, match=why):
        devices.devices(paths, "red", fail)
    assert not (paths.served / "red").exists()
    assert served == ["apply red"]


def test_from_its_start_to_its_end(monkeypatch, capsys, paths, served, channel, tmp_path):
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    record = Record("red", disks=(Disk(str(image)),))
    store.keep_record(paths.devices, record)
    told = []
    monkeypatch.setattr(devices, "notify", lambda *lines: told.append(lines[0]))
    thread = soon(lambda: told, lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    devices.devices(paths, "red", channel)
    thread.join()
    assert told == ["READY=1", "STOPPING=1"]
    assert channel.opened == [paths.at("/dev/mkvirtio/3")] and channel.channel.offered
    assert not (paths.served / "red").exists() and signal.getsignal(signal.SIGTERM) == before
    assert capsys.readouterr().out == f"red: disk {image}\n"


def test_what_is_declared_meanwhile(monkeypatch, capsys, paths, served, channel):
    first = Record("red", (LINK,))
    store.keep_record(paths.devices, first)
    monkeypatch.setattr(devices, "program_reasons", lambda _record: [])

    class Backend:
        title, kind, offered, connected = "network x", 1, 1 << 32, True

        def __init__(self, set_up):
            self._set_up = set_up

        def connect(self, _patience=None):
            self._set_up(LINK)

        def config(self):
            return b""

        def watched(self):
            return None

        def stop(self, places):
            pass

        close = stop.__get__(0)

    monkeypatch.setattr(devices, "backends_of", lambda _record, _launcher, set_up: [Backend(set_up)])
    monkeypatch.setattr(Backend, "close", lambda _self: None)
    made = channel.channel
    made.kinds, made.queues = [1], [2]
    changed = Record("red", (Link(**{**LINK.__dict__, "mode": "routed"}),))

    def change():
        store.keep_record(paths.devices, changed)
        os.kill(os.getpid(), signal.SIGHUP)
        for _each in range(500):
            if "set_up red mk-red-0 routed" in served:
                break
            time.sleep(0.02)
        (paths.devices / "red.json").write_text("{")
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.3)
        made.hang_up()

    thread = soon(lambda: "set_up red mk-red-0 isolated" in served, change)
    with pytest.raises(ValueError, match="cannot be read"):
        devices.devices(paths, "red", channel)
    thread.join()
    assert served[:3] == ["claim", "apply red", "set_up red mk-red-0 isolated"]
    assert served[3:] == ["apply red", "set_up red mk-red-0 routed"]
    said = capsys.readouterr()
    assert said.out == "red: mk-red-0 (isolated)\nred: mk-red-0 (routed)\nred: it was removed\n"
    assert "cannot be read" in said.err


def test_as_a_service_it_starts_services(monkeypatch, tmp_path):
    assert isinstance(devices._launcher(tmp_path, "red"), Children)
    monkeypatch.setenv("NOTIFY_SOCKET", "@x")
    assert isinstance(devices._launcher(tmp_path, "red"), Units)


def test_what_a_backend_says_has_a_name(capsys, paths, tmp_path):
    devices._Serving(paths, "red", Record("red"), Children(tmp_path))._tell("is served")
    assert capsys.readouterr().out == "red: is served\n"


def test_records_that_cannot_be_kept(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Failure, match="cannot be written"):
        store.keep_record(tmp_path / "file", Record("red"))
    (tmp_path / "red.json").mkdir()
    with pytest.raises(Failure, match="cannot be removed"):
        store.drop_record(tmp_path, "red")


def test_records_that_cannot_be_looked_at(tmp_path, monkeypatch):
    store.keep_record(tmp_path, Record("red", disks=(Disk("/x"),)))
    listed = os.listdir(tmp_path)
    monkeypatch.setattr(os, "listdir", lambda _path: [*listed, "gone.json"])
    assert [*store.read_records(tmp_path)] == ["red"]

    def refuse(_path):
        raise PermissionError

    monkeypatch.setattr(os, "listdir", refuse)
    assert store.read_records(tmp_path) == {}
