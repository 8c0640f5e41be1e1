# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""kerf's agent, without a kernel that has its transport: what is asked of a socket, and what answers mean."""

from __future__ import annotations

import contextlib
import socket
from unittest import mock

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.divide import ready as _ready
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.console import ConsoleError
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import KernelFs, Paths
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.wish import Manner
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import MIB, POOL_BASE, FakeInstance


class Socket:
    """Remembers what was asked of it."""

    asked = []  # noqa: RUF012 (reset by every test)
    taken = frozenset()  # ports
    refuses = None

    def __init__(self, family, kind):
        self.asked.append(("socket", family, kind))

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.asked.append(("close",))

    def setsockopt(self, *option):
        self.asked.append(("setsockopt", *option))

    def settimeout(self, seconds):
        self.asked.append(("settimeout", seconds))

    def bind(self, address):
        if address[1] in self.taken:
            raise OSError(98, "Address already in use")
        self.asked.append(("bind", address))

    def connect(self, address):
        self.asked.append(("connect", address))
        mock.Mock(side_effect=self.refuses)()


@pytest.fixture
def channel(monkeypatch):
    Socket.asked, Socket.taken, Socket.refuses = [], frozenset(), None
    monkeypatch.setattr("socket.socket", Socket)
    return Socket


OPENED = [("socket", socket.AF_VSOCK, socket.SOCK_STREAM), ("setsockopt", socket.AF_VSOCK, 9, 1)]


def test_an_agent_answers(channel):
    channel.taken = {1023, 1022}
    assert _ready.agent_answers(7, 0.5)
    assert channel.asked == [
        *OPENED,
        ("settimeout", 0.5),
        ("bind", (socket.VMADDR_CID_ANY, 1021)),
        ("connect", (7, 1023)),
        ("close",),
    ]


@pytest.mark.parametrize("error", [ConnectionRefusedError(), ConnectionResetError(), TimeoutError()])
def test_an_agent_does_not_answer(channel, error):
    channel.refuses = error
    assert not _ready.agent_answers(7, 0.5)
    assert channel.asked[-1] == ("close",)


def test_a_kernel_with_the_transport(channel):
    assert _ready.agent_reasons() == []
    assert channel.asked == [*OPENED, ("close",)]


@pytest.mark.parametrize("answers", [True, False])
def test_what_is_last_said_is_taken_where_there_is_a_console(make_host, monkeypatch, answers):
    """Of one that is waited for by its heartbeat, the console is only opened to look for a reason."""
    host = make_host(
        pool_cpus=[4],
        chunks=[(POOL_BASE, 128 * MIB, 0)],
        instances={"web": FakeInstance(1, [4], POOL_BASE, 128 * MIB, "loaded", exit_reason="lost")},
    )

    class Console:
        def __init__(self, _paths, _number):
            if not answers:
                raise ConsoleError("there is none")

        def __enter__(self):
            return self

        def __exit__(self, *_error):
            pass

        def history(self):
            return "last words"

    monkeypatch.setattr(_ready, "Console", Console)
    kernel = KernelFs(Paths(str(host.root)))
    with contextlib.ExitStack() as stack:
        watch = _ready.Watch(kernel, "web", 1, Manner(wait="heartbeat"), stack)
        watch.begin()
        with pytest.raises(ConsoleError, match=r"before there was a sign of its heartbeat \(lost\)") as error:
            watch.is_up(0)
    assert error.value.output == ("last words" if answers else "")


def test_where_all_reserved_ports_are_taken_it_is_tried_without_one(channel):
    channel.taken = set(range(1024))
    channel.refuses = ConnectionResetError()
    assert not _ready.agent_answers(7, 0.5)
    assert channel.asked[-2:] == [("connect", (7, 1023)), ("close",)]
