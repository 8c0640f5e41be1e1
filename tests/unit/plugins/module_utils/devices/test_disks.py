# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Disks by the real qemu-storage-daemon: rings and requests are written here, as a spawned kernel would."""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
from pathlib import Path

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure
from ansible_collections.mkops.multikernel.plugins.module_utils.devices import virtio
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.backends import Children, make_disk
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.channel import NEEDS_RESET
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.declare import Disk
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.serve import Block, serving

from .conftest import FakeChannel

READ, WRITE, FLUSH, DISCARD = 0, 1, 4, 11
MIB = 1 << 20


@pytest.fixture
def launcher():
    # The address of a socket is short.
    with tempfile.TemporaryDirectory(prefix="mk-", dir="/tmp") as directory:
        made = Children(Path(directory))
        yield made
        for child in [*made._running.values()]:
            child.kill()
            child.wait()


@pytest.fixture
def served(driver, launcher, wake):
    """Serve a disk to a spawned kernel that is up."""
    log = []

    class Served:
        def __init__(self, disk, flags=0):
            self.flags = flags
            self.channel = FakeChannel(driver, [virtio.BLK], [1])
            self.backend = Block("red", 0, disk, launcher)
            self.log = log
            self.server = serving(self.channel, [self.backend], log.append)

        def step(self, until, steps=200):
            for _each in range(steps):
                self.live.step(wake, 0.05)
                if until():
                    return
            raise AssertionError(self.log)

        def __enter__(self):
            self.live = self.server.__enter__()
            self.live.offer()
            self.channel.start()
            if not self.flags:
                driver.clear()
            self.channel.ready(0, flags=self.flags)
            self.step(self.backend_is_served)
            self.count = driver.used(0)
            return self

        def backend_is_served(self):
            return self.live._slots[0].activation == self.channel.activations[0]

        def __exit__(self, *error):
            return self.server.__exit__(*error)

        def request(self, kind, sector, data=b"", length=0):
            driver.disk(kind, sector, data, length)
            self.channel.kick(0)
            self.count += 1
            driver.wait(0, self.count % 65536)
            return driver.answer(length)

    return Served


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(b"hello disk!!" + bytes(MIB - 12))
    return path


def test_a_disk_is_read_and_written(served, image):
    with served(Disk(str(image))) as disk:
        assert struct.unpack("<Q", disk.channel.configs[0][:8])[0] == MIB // 512
        assert disk.channel.offered[0] & virtio.VERSION_1
        # A flush can be asked for, and how the cache works cannot be chosen.
        assert disk.channel.offered[0] & 1 << 9 and not disk.channel.offered[0] & 1 << 11
        assert disk.request(READ, 0, length=512)[1][:12] == b"hello disk!!"
        assert disk.channel.called(0)
        assert disk.request(WRITE, 8, b"y" * 4096)[0] == 0
        assert disk.request(FLUSH, 0)[0] == 0
        assert image.read_bytes()[4096:8192] == b"y" * 4096
        assert disk.request(READ, MIB, length=512)[0] != 0
        assert disk.log == [f"disk {image}: is served"]


def test_a_disk_that_is_read_only(served, image):
    with served(Disk(str(image), read_only=True)) as disk:
        assert disk.channel.offered[0] & 1 << 5
        assert disk.request(WRITE, 0, b"y" * 512)[0] != 0
    assert image.read_bytes().startswith(b"hello")


def test_an_overlay_leaves_its_base_alone(served, image, tmp_path):
    before = image.read_bytes()
    # What the header of the file says of a base is not believed.
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 1000 + bytes(MIB))
    disk = Disk(str(tmp_path / "a.qcow2"), "qcow2", MIB, str(image), "raw")
    make_disk(disk)
    subprocess.run(["qemu-img", "rebase", "-u", "-F", "raw", "-b", str(secret), disk.path], check=True)
    with served(disk) as one:
        assert one.request(READ, 0, length=512)[1][:12] == b"hello disk!!"
        assert one.request(WRITE, 0, b"z" * 512)[0] == 0
        assert one.request(READ, 0, length=512)[1] == b"z" * 512
    assert image.read_bytes() == before
    alone = Disk(disk.path, "qcow2")
    with served(alone) as one:
        assert one.request(READ, 8, length=512)[1] == bytes(512)


def test_a_disk_that_is_made(served, tmp_path):
    disk = Disk(str(tmp_path / "new.img"), size=MIB, discard=True, cache="writethrough")
    make_disk(disk)
    assert os.stat(disk.path).st_mode & 0o777 == 0o600
    make_disk(Disk(disk.path, size=2 * MIB))  # is there, and stays as it is
    assert os.stat(disk.path).st_size == MIB
    with served(disk) as one:
        assert one.channel.offered[0] & 1 << 13
        assert one.request(WRITE, 0, b"q" * MIB)[0] == 0
        full = os.stat(disk.path).st_blocks
        assert one.request(DISCARD, 0, struct.pack("<QII", 0, MIB // 512, 0))[0] == 0
        assert os.stat(disk.path).st_blocks < full


def test_a_disk_that_cannot_be_made(tmp_path):
    with pytest.raises(Failure, match=r"cannot be made: No such file"):
        make_disk(Disk(str(tmp_path / "none/new.img"), size=MIB))
    with pytest.raises(Failure, match=r"cannot make the disk"):
        make_disk(Disk(str(tmp_path / "x.qcow2"), "qcow2", MIB, str(tmp_path / "none"), "raw"))
    assert not (tmp_path / "x.qcow2").exists()


@pytest.mark.parametrize("path", ["none", "text"])
def test_a_disk_that_is_none(driver, launcher, tmp_path, path):
    (tmp_path / "text").write_text("no qcow2")
    channel = FakeChannel(driver, [virtio.BLK], [1])
    disk = Disk(str(tmp_path / path), "qcow2")
    with (
        serving(channel, [Block("red", 0, disk, launcher)], print) as server,
        pytest.raises(Failure, match=path),
    ):
        server.offer()


def test_a_backend_that_dies_is_started_again(served, image, launcher):
    with served(Disk(str(image))) as disk:
        for number in range(3):
            assert disk.request(WRITE, 0, bytes([number]) * 512)[0] == 0
            (child,) = launcher._running.values()
            child.kill()
            child.wait()
            disk.step(lambda: not disk.backend_is_served())
            disk.step(disk.backend_is_served)
            assert disk.request(READ, 0, length=512)[1] == bytes([number]) * 512
        assert [line.partition(": ")[2] for line in disk.log].count("is served") == 4


def test_restarts_and_resets_of_the_spawned_kernel(served, image, driver):
    with served(Disk(str(image))) as disk:
        assert disk.request(READ, 0, length=512)[0] == 0
        disk.channel.reset(0)
        disk.step(lambda: disk.channel.acknowledged == [0])
        for stop in (False, True):
            if stop:
                disk.channel.stop()
                disk.step(lambda: not disk.backend_is_served())
                disk.channel.start()
            driver.clear()
            disk.channel.ready(0)
            disk.step(disk.backend_is_served)
            disk.count = 0
            assert disk.request(READ, 0, length=512)[1][:5] == b"hello"


def test_a_new_server_goes_on(served, image, driver):
    """This one was killed, and the spawned kernel has noticed nothing."""
    disk = Disk(str(image))
    with served(disk) as one:
        assert one.request(READ, 0, length=512)[0] == 0
    with served(disk, NEEDS_RESET) as again:
        assert again.channel.resumed == [0]
        assert again.request(READ, 0, length=512)[1][:5] == b"hello"
