# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Directories by the real virtiofsd, where the distribution has it: the first words of FUSE."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.devices import virtio
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.backends import (
    SHARES,
    Children,
    find_program,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.declare import Share
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.serve import Files, serving

from .conftest import FakeChannel

REQUESTS = 1  # the queue after the one for what comes first
INIT, MAJOR, MINOR = 26, 7, 38


@pytest.mark.skipif(find_program(SHARES) is None, reason="Debian 12 has no virtiofsd")
@pytest.mark.parametrize("read_only", [False, True])
def test_a_directory_is_shared(driver, wake, read_only):
    # The address of a socket is short.
    with tempfile.TemporaryDirectory(prefix="mk-", dir="/tmp") as directory:
        share = Path(directory, "share")
        share.mkdir()
        channel = FakeChannel(driver, [virtio.FS], [2])
        launcher = Children(Path(directory))
        backend = Files("red", 0, Share(str(share), "tag", read_only, "root"), launcher)
        with serving(channel, [backend], print) as server:
            server.offer()
            assert channel.configs[0][:40] == b"tag".ljust(36, b"\0") + struct.pack("<I", 1)

            def until(condition):
                for _each in range(200):
                    server.step(wake, 0.05)
                    if condition():
                        return
                raise AssertionError

            def served():
                return server._slots[0].activation == channel.activations[0]

            def greet():
                body = struct.pack("<4I", MAJOR, MINOR, 65536, 0)
                driver.write(
                    0x800000, struct.pack("<IIQQIIII", 104, INIT, 1, 0, 0, 0, 0, 0) + body.ljust(64, b"\0")
                )
                before = driver.used(REQUESTS)
                driver.submit(REQUESTS, (0x800000, 104, False), (0x801000, 80, True))
                channel.kick(0, REQUESTS)
                driver.wait(REQUESTS, before + 1)
                _length, error, _unique, major = struct.unpack("<IiQI", driver.read(0x801000, 20))
                return error, major

            channel.start()
            channel.ready(0)
            until(served)
            assert greet() == (0, MAJOR)
            # It dies; the driver lets go of it; the spawned kernel starts again.
            child = next(iter(launcher._running.values()))
            child.kill()
            child.wait()
            until(lambda: not served())
            until(served)
            assert greet() == (0, MAJOR)
            channel.reset(0)
            until(lambda: channel.acknowledged == [0])
            channel.stop()
            driver.clear()
            channel.start()
            channel.ready(0)
            until(served)
            assert greet() == (0, MAJOR)
