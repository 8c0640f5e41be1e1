# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host runs to speak to kerf's agent, in this process. The rest: plugins/connection/test_kerf.py."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
import time
from typing import ClassVar

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.divide import agent
from ansible_collections.mkops.multikernel.tests.unit.fake_agent import (
    ERROR,
    EXIT,
    STARTED,
    FakeInstance,
    frame,
)


class Vsock(socket.socket):
    """A socket to the fake agent, which answers as the kernel would where a test says so."""

    path = ""
    answers: ClassVar[dict[str, list[OSError]]] = {}

    def __init__(self, *_kind):
        self._answer("socket")
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)

    def setsockopt(self, *what):
        assert what == (socket.AF_VSOCK, 9, 1)

    def bind(self, where):
        assert where[0] == socket.VMADDR_CID_ANY and 512 <= where[1] <= 1023
        self._answer("bind")

    def connect(self, where):
        assert where == (7, 1023)
        self._answer("connect")
        super().connect(self.path)

    def _answer(self, call):
        if self.answers.get(call):
            raise self.answers[call].pop(0)


@pytest.fixture
def red(tmp_path, monkeypatch):
    instance = FakeInstance(tmp_path)
    monkeypatch.setattr(agent, "INSTANCES", str(instance.instances))
    monkeypatch.setattr(Vsock, "path", str(instance.path))
    monkeypatch.setattr(Vsock, "answers", {})
    monkeypatch.setattr(agent, "socket", Module())
    yield instance
    instance.close()


class Module:
    """The module socket, with those sockets."""

    socket = Vsock

    def __getattr__(self, name):
        return getattr(socket, name)


class Call:
    """agent.call() with pipes; what came out."""

    def __init__(self, command="true", data=b"", name="red", patience=5, seconds=0, limit=1 << 24, read=True):
        ends = [os.pipe() for _stream in range(3)]
        (give, stdin), (out, stdout), (err, stderr) = (ends[0][::-1], ends[1], ends[2])
        self.out, self.err = bytearray(), bytearray()

        def write():
            with contextlib.suppress(BrokenPipeError), os.fdopen(give, "wb") as file:
                file.write(data)

        def collect(end, into):
            while part := os.read(end, 65536):
                into += part

        threads = [threading.Thread(target=write, daemon=True)]
        if read:
            threads += [
                threading.Thread(target=collect, args=pair, daemon=True)
                for pair in ((out, self.out), (err, self.err))
            ]
        else:
            os.close(out)
        for thread in threads:
            thread.start()
        try:
            self.end = agent.call(
                name, command.encode(), {"LANG": "C"}, patience, seconds, limit, stdin, stdout, stderr
            )
        finally:
            for one in (stdin, stdout, stderr):
                os.close(one)
            for thread in threads:
                thread.join(10)


def refuse(monkeypatch, call, *errors):
    monkeypatch.setattr(Vsock, "answers", {call: [OSError(one, os.strerror(one)) for one in errors]})


def test_a_command(red):
    done = Call("cat; echo err >&2; exit 5", data=b"\0\xff" * 500000)
    assert done.end == (agent.EXITED, 5, "")
    assert (bytes(done.out), bytes(done.err)) == (b"\0\xff" * 500000, b"err\n")
    assert red.opened[0]["env"]["LANG"] == "C"


def test_a_signal(red):
    assert Call("kill -9 $$").end == (agent.EXITED, 137, "")


def test_ports_that_others_have(red, monkeypatch):
    refuse(monkeypatch, "bind", errno.EADDRINUSE, errno.EADDRINUSE)
    assert Call().end == (agent.EXITED, 0, "")


def test_a_port_is_left_alone_for_a_while(monkeypatch):
    """The end of one connection must not come to another one."""
    now = [100.0]
    monkeypatch.setattr(agent.time, "monotonic", lambda: now[0])
    used: dict[int, float] = {}
    while now[0] < 140:
        tried = agent.ports()
        assert sorted(tried) == list(range(512, 1024))
        assert now[0] - used.get(tried[0], 0) > 8
        used[tried[0]] = now[0]
        now[0] += 0.026
    assert len(used) == 512


def test_no_port_left(red, monkeypatch):
    refuse(monkeypatch, "bind", *[errno.EADDRINUSE] * 512)
    assert Call().end == (agent.TRANSPORTLESS, 0, "Address already in use")


@pytest.mark.parametrize(
    ("call", "error", "end"),
    [
        ("bind", errno.EACCES, (agent.ROOTLESS, 0, "")),
        ("bind", errno.ENOMEM, (agent.TRANSPORTLESS, 0, "Cannot allocate memory")),
        ("socket", errno.EAFNOSUPPORT, (agent.TRANSPORTLESS, 0, "Address family not supported by protocol")),
        ("connect", errno.ENODEV, (agent.TRANSPORTLESS, 0, "No such device")),
    ],
)
def test_what_the_kernel_refuses(red, monkeypatch, call, error, end):
    refuse(monkeypatch, call, error)
    assert Call().end == end


def test_an_agent_that_refuses_at_first(red, monkeypatch):
    refuse(monkeypatch, "connect", *[errno.ECONNRESET] * 3)
    assert Call().end == (agent.EXITED, 0, "")


def test_no_agent(red, monkeypatch):
    monkeypatch.setattr(agent, "_ACCEPTING", 0.2)
    refuse(monkeypatch, "connect", *[errno.ECONNREFUSED] * 20)
    assert Call().end == (agent.AGENTLESS, 0, "")


def test_a_kernel_that_does_not_answer(red, monkeypatch):
    refuse(monkeypatch, "connect", *[errno.ETIMEDOUT] * 20)
    assert Call(patience=0.3).end == (agent.SILENT, 0, "")


def test_an_agent_that_does_not_start(red):
    red.script = lambda channel: threading.Event().wait(10)
    started = time.monotonic()
    assert Call(patience=1).end == (agent.SILENT, 1, "")
    assert time.monotonic() - started < 5


def test_states(red):
    red.tell(status="ready", exit_reason="none")
    assert Call().end == (agent.STOPPED, 0, "its state is 'ready'")
    red.tell(status="loaded", exit_reason="panic: x")
    assert Call().end == (agent.STOPPED, 0, "its state is 'loaded', and it ended last with 'panic: x'")
    assert Call(name="blue").end[0] == agent.ABSENT


def test_a_host_without_instances(red):
    red.directory.rename(red.instances.with_name("elsewhere"))
    red.instances.rmdir()
    assert Call().end == (agent.UNMOUNTED, 0, "")


def test_deaths(red, monkeypatch):
    monkeypatch.setattr(agent, "_LOOK", 0.2)
    threading.Timer(0.5, red.die).start()
    assert Call("sleep 60").end == (
        agent.DIED, 0, "its state is 'loaded', and it ended last with 'panic: Fatal exception'",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({"epoch": 2}, "it has been started again"),
        ({"stats": "x y\nheartbeat_age_ms 12000"}, "its kernel has shown no sign of life for 12 s"),
    ],
)
def test_deaths_that_nobody_tells(red, monkeypatch, files, text):
    monkeypatch.setattr(agent, "_LOOK", 0.2)
    threading.Timer(0.5, red.tell, kwargs=files).start()
    assert Call("sleep 60").end == (agent.DIED, 0, text)


def test_a_deleted_instance(red, monkeypatch):
    monkeypatch.setattr(agent, "_LOOK", 0.2)
    threading.Timer(0.5, red.directory.rename, [red.instances / "gone"]).start()
    assert Call("sleep 60").end == (agent.DIED, 0, "it has been deleted")


def test_a_kernel_that_tells_little(red):
    """Multikernel Linux has no epoch, exit_reason and stats."""
    for name in ("epoch", "exit_reason", "stats"):
        (red.directory / name).unlink()
    assert Call("exit 3").end == (agent.EXITED, 3, "")
    red.tell(status="loaded")
    assert Call().end == (agent.STOPPED, 0, "its state is 'loaded'")


def test_a_lost_agent(red, monkeypatch):
    monkeypatch.setattr(agent, "_LAG", 0.3)
    red.script = red.open
    assert Call().end == (agent.LOST, 0, "it was closed, before it said that the command runs")


@pytest.mark.parametrize(
    ("said", "end"),
    [
        (struct.pack("<IHH", 65537, EXIT, 0), (agent.CONFUSED, 0, "a message of 65537 bytes")),
        (frame(3, b"abc"), (agent.CONFUSED, 0, "a message of kind 3 and 3 bytes")),
        (frame(ERROR, struct.pack("<I", 13) + b"no\0way"), (agent.UNSTARTABLE, 13, "no")),
        (frame(EXIT, b"\1\xff"), (agent.EXITED, 255, "")),
    ],
)
def test_frames(red, said, end):
    def talk(channel):
        red.open(channel)
        channel.sendall(frame(STARTED, bytes(4)))
        for byte in said:  # in the smallest pieces
            channel.sendall(bytes([byte]))
        time.sleep(1)

    red.script = talk
    assert Call().end == end


def test_too_much(red):
    assert Call("yes", limit=100000).end == (agent.FLOODED, 100000, "")
    assert red.signals[:1] == [15]


def test_too_long(red, monkeypatch):
    monkeypatch.setattr(agent, "_LOOK", 0.2)
    assert Call("sleep 60", seconds=1).end == (agent.TIRED, 1, "")


def test_a_reader_that_is_gone(red):
    """The command is stopped: nobody will read what it says."""
    with pytest.raises(BrokenPipeError):
        Call("yes", read=False)
    deadline = time.monotonic() + 5
    while not red.signals and time.monotonic() < deadline:
        time.sleep(0.05)
    assert red.signals[:1] == [15]


def test_slow_readers_on_both_sides(red, monkeypatch):
    """What cannot be taken yet waits, on either side."""
    monkeypatch.setattr(agent, "_BACKLOG", 1000)

    def talk(channel):
        red.open(channel)
        channel.sendall(frame(STARTED, bytes(4)))
        time.sleep(0.3)
        received = 0
        while received < 1 << 20:
            kind, content = red.receive(channel)
            if kind == 2:
                received += len(content)
                channel.sendall(frame(18, content) + frame(21, struct.pack("<I", len(content))))
        channel.sendall(frame(EXIT, b"\0\0"))

    red.script = talk
    data = os.urandom(1 << 20)
    done = Call(data=data)
    assert done.end == (agent.EXITED, 0, "") and bytes(done.out) == data


def test_the_last_line(red, capfd):
    agent.main("mark", "red", b"echo hello", {}, 5, 0, 1000)
    assert capfd.readouterr() == ("hello\n", "mark exited 0 \n")
    assert agent.report("mark", "died", 0, "a\nb\x1b\xe9") == b"mark died 0 a\\nb\\x1b\\xe9\n"
