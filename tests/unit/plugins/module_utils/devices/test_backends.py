# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How backends are started, and what they are when they are not as they should be."""

from __future__ import annotations

import json
import os
import pwd
import socket
import struct
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure
from ansible_collections.mkops.multikernel.plugins.module_utils.devices import (
    backends,
    qmp,
    vhostuser,
    virtio,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.backends import (
    Children,
    Launcher,
    Service,
    Units,
    disk_service,
    program_reasons,
    share_service,
    user_of,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.channel import Queue
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.declare import Disk, Share
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.qmp import Qmp
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.record import Link, Record
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.serve import Files, backends_of
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.tap import Ring
from ansible_collections.mkops.multikernel.plugins.module_utils.devices.vhostuser import VhostUser

LINK = Link("mk-red-0", "isolated", "02:00:00:00:00:01", "fe:00:00:00:00:01", 1500)


@pytest.fixture
def short():
    with tempfile.TemporaryDirectory(prefix="mk-", dir="/tmp") as directory:
        yield Path(directory)


# Units


def properties(words):
    return [word.removeprefix("--property=") for word in words if word.startswith("--property=")]


def test_a_disk_sees_itself_and_programs_alone(tmp_path):
    units = Units(tmp_path, "mkops-devices@red.service")
    odd = Disk('/srv/a "b" 100%:c', "qcow2", base="/srv/base")
    words = units.words(disk_service("red", 0, odd, units))
    assert words[:4] == ["systemd-run", "--quiet", "--collect", "--unit=mkops-red-disk-0"]
    assert words[words.index("--") + 1].endswith("qemu-storage-daemon")
    found = properties(words)
    assert {
        "BindsTo=mkops-devices@red.service",
        f"RootDirectory={tmp_path}/disk-0.root",
        "DynamicUser=yes",
        f'BindPaths="{tmp_path}/disk-0"',
        'BindPaths="/srv/a \\"b\\" 100%\\:c"',
        'BindReadOnlyPaths="/srv/base"',
        "CapabilityBoundingSet=CAP_DAC_OVERRIDE",
        "AmbientCapabilities=CAP_DAC_OVERRIDE",
        "PrivateNetwork=yes",
        "SystemCallFilter=@system-service",
    } <= {*found}
    # The owner waits for it before it is ready itself: ordered after it, neither would ever start.
    assert not any(one.startswith("After=") for one in found)
    read_only = properties(units.words(disk_service("red", 1, Disk("/srv/a", read_only=True), units)))
    assert 'BindReadOnlyPaths="/srv/a"' in read_only and 'BindPaths="/srv/a"' not in read_only


def test_a_block_device_is_allowed(monkeypatch, tmp_path):
    monkeypatch.setattr(backends, "_is_device", lambda path: path == "/dev/sdb")
    units = Units(tmp_path, "x")
    assert 'DeviceAllow="/dev/sdb" rw' in properties(
        units.words(disk_service("red", 0, Disk("/dev/sdb"), units))
    )


def test_a_share_is_served_by_its_owner(tmp_path, monkeypatch):
    units = Units(tmp_path, "x")
    nobody = pwd.getpwnam("nobody").pw_uid
    share = tmp_path / "share"
    share.mkdir()
    os.chown(share, nobody, -1)
    service = share_service("red", 0, Share(str(share), "t"), units)
    assert (service.user, service.capabilities) == ("nobody", "")
    assert f"--shared-dir={share}" in service.argv and "--readonly" not in service.argv
    found = properties(units.words(service))
    assert "User=nobody" in found and "CapabilityBoundingSet=" in found
    assert not any(one.startswith(("AmbientCapabilities", "SystemCallFilter")) for one in found)
    os.chown(share, 0, -1)
    with pytest.raises(Failure, match="belongs to root"):
        user_of(Share(str(share), "t"))
    service = share_service("red", 0, Share(str(share), "t", read_only=True), units)
    assert service.user == "nobody" and service.argv[-1] == "--readonly" and service.readable == (str(share),)
    os.chown(share, 4242424, -1)
    with pytest.raises(Failure, match="number 4242424, to whom"):
        user_of(Share(str(share), "t"))
    with pytest.raises(Failure, match="the user no-one-has-this does not exist"):
        user_of(Share(str(share), "t", user="no-one-has-this"))
    with pytest.raises(Failure, match="No such file"):
        user_of(Share(str(share / "none"), "t"))


def test_units_are_started_and_stopped(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(backends, "must", lambda argv, purpose, timeout: said.append((argv[0], purpose)))
    monkeypatch.setattr(backends, "run", lambda argv, _timeout: said.append(tuple(argv)))
    units = Units(tmp_path, "x")
    service = Service("mkops-red-disk-0", "disk-0", ("/bin/true",), user="nobody")
    units.start(service)
    (tmp_path / "disk-0/old").touch()
    units.start(service)
    units.stop(service)
    assert os.stat(tmp_path / "disk-0").st_uid == pwd.getpwnam("nobody").pw_uid
    assert not (tmp_path / "disk-0/old").exists()
    assert said == [("systemd-run", "start /bin/true")] * 2 + [
        ("systemctl", "stop", "mkops-red-disk-0.service")
    ]
    with pytest.raises(Failure, match="disk-0 cannot be made"):
        Units(tmp_path / "none", "x").start(service)
    for method in (Launcher(tmp_path).stop,):
        with pytest.raises(NotImplementedError):
            method(service)


def test_a_program_that_is_not_there(tmp_path):
    children = Children(tmp_path)
    with pytest.raises(Failure, match="cannot start /none/x"):
        children.start(Service("u", "l", ("/none/x",)))
    children.stop(Service("u", "l", ()))


# What the host needs


def test_what_is_missing_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(backends, "PLACES", (str(tmp_path),))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os.path, "exists", lambda path: not path.startswith("/dev/"))
    full = Record("red", (LINK,), (Disk("/a"),), (Share("/s", "t"),))
    reasons = program_reasons(full)
    assert [reason.partition(":")[0] for reason in reasons] == [
        "qemu-storage-daemon is not on this host",
        "virtiofsd is not on this host",
        "/dev/net/tun is not on this host, which network devices need",
        "/dev/vhost-net is not on this host, which network devices need",
        "nft is not on this host",
    ]
    assert program_reasons(Record("red")) == []
    for name, said in (("qemu-storage-daemon", "version 5.2.0"), ("virtiofsd", "virtiofsd of mine")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {said}\n")
        (tmp_path / name).chmod(0o755)
    reasons = program_reasons(full)
    assert "is 5.2, and 7.2 or newer is needed" in reasons[0]
    assert "is a version that it does not tell, and 1.10 or newer" in reasons[1]
    (tmp_path / "virtiofsd").write_text("#!/bin/sh\necho virtiofsd 1.13.2\n")
    assert len(program_reasons(full)) == 4


# Backends that answer as they should not


class Peer(threading.Thread):
    """A program at the other end of a socket."""

    def __init__(self, path, talk):
        super().__init__(daemon=True)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._talk = talk
        self.start()

    def run(self):
        with self._socket.accept()[0] as connection:
            self._talk(connection)


def speak(answers):
    """Answers by request; None: ends. Requests without one are only read."""

    def talk(connection):
        while head := connection.recv(12, socket.MSG_WAITALL):
            request, flags, size = struct.unpack("<3I", head)
            if size:
                connection.recv(size, socket.MSG_WAITALL)
            answer = answers.get(request)
            if request in answers and answer is None:
                return
            if isinstance(answer, tuple):
                connection.sendall(struct.pack("<3I", *answer))
            elif answer is not None:
                connection.sendall(struct.pack("<3I", request, 5, len(answer)) + answer)
            elif flags & 8:
                connection.sendall(struct.pack("<3IQ", request, 5, 8, answers.get("ack", 0)))

    return talk


def u64(value):
    return struct.pack("<Q", value)


GOOD = {1: u64(1 << 32 | 1 << 30), 15: u64(1 << 3 | 1 << 9)}


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ({1: None}, "has closed the connection"),
        ({1: u64(0)}, "does not offer virtio 1"),
        ({1: b"x"}, "gave an answer of 1 bytes to request 1"),
        ({1: (2, 5, 0)}, "answers request 1 with something else"),
        ({1: (1, 1, 0)}, "answers request 1 with something else"),
        ({1: (1, 5, 1 << 20)}, "answers request 1 with something else"),
    ],
)
def test_a_backend_that_is_none(short, answers, why):
    Peer(short / "s", speak(answers))
    with pytest.raises(Failure, match=f"disk x {why}"):
        VhostUser(short / "s", "disk x")


def test_a_backend_that_refuses(short, driver):
    memory = driver.memory()
    Peer(short / "a", speak({**GOOD, "ack": 1, 24: b"short", 11: b"x"}))
    made = VhostUser(short / "a", "disk x")
    with pytest.raises(Failure, match="disk x refuses request 5"):
        made.start(1 << 32, memory, [])
    with pytest.raises(Failure, match="does not tell the configuration"):
        made.config(60)
    with pytest.raises(Failure, match="does not tell where it has stopped"):
        made.stop(0)
    made.close()
    Peer(short / "b", speak({1: u64(1 << 32)}))
    plain = VhostUser(short / "b", "disk x")
    with pytest.raises(Failure, match="does not tell the configuration"):
        plain.config(60)
    queue = Queue(0, 4096, 8192, 64)
    plain.start(1 << 32, memory, [Ring(0, queue, 0, memory.fd, memory.fd, -1)])
    plain.close()
    memory.close()


def test_a_backend_that_says_nothing(short, monkeypatch):
    monkeypatch.setattr(vhostuser, "TIMEOUT", 0.1)
    held = threading.Event()
    Peer(short / "a", lambda _connection: held.wait(10))
    with pytest.raises(Failure, match=r"disk x does not answer$"):
        VhostUser(short / "a", "disk x")
    with pytest.raises(Failure, match=r"disk x did not come up within 0\.1 s: No such file"):
        VhostUser(short / "none", "disk x", 0.1)
    Peer(short / "q", lambda _connection: held.wait(10))
    with pytest.raises(Failure, match="does not answer within"):
        Qmp(short / "q", "disk x")
    held.set()


def test_a_connection_that_is_lost(short):
    Peer(short / "a", speak({**GOOD, 2: None}))
    made = VhostUser(short / "a", "disk x")
    with pytest.raises(Failure, match=r"disk x (does not answer: |has closed)"):
        for _each in range(100):
            made._send(2, bytes(8))
            made._ask_u64(1)
    made.close()


def test_a_monitor_that_complains(short):
    def talk(connection):
        connection.sendall(b'{"QMP": {}}\n{"event": "X"}\n')
        for answer in ({"return": {}}, {"error": {"desc": "too bad"}}):
            connection.recv(4096)
            connection.sendall(
                json.dumps({"event": "Y"}).encode() + b"\n" + json.dumps(answer).encode() + b"\n"
            )

    Peer(short / "q", talk)
    made = Qmp(short / "q", "disk x")
    with pytest.raises(Failure, match="disk x: too bad"):
        made.command("x")
    with pytest.raises(Failure, match=r"disk x (has ended|does not answer)"):
        made.command("x")
    made.close()
    with pytest.raises(Failure, match="disk x does not answer"):
        made.command("x")


def test_a_disk_that_is_not_there():
    with pytest.raises(Failure, match="/none/x cannot be opened: No such file"):
        qmp._file("/none/x", False, False, {})


# A share, with somebody else in the place of virtiofsd


class FakeLauncher(Launcher):
    def __init__(self, base, answers):
        super().__init__(base)
        self.answers = answers
        self.said = []

    def start(self, service):
        super().start(service)
        self.said.append("start")
        Peer(self.directory(service.label) / "vhost.sock", speak(self.answers))

    def stop(self, service):
        self.said.append("stop")


@pytest.fixture
def files(short):
    launcher = FakeLauncher(short, dict(GOOD))
    made = Files("red", 0, Share(str(short), "tag", user="root"), launcher)
    made.said = launcher.said
    made.answers = launcher.answers
    return made


def test_a_share_is_served_anew_each_time(files, driver):
    files.connect()
    files.connect()
    assert files.connected and files.watched() > 2 and files.offered == virtio.VERSION_1
    assert files.config() == b"tag".ljust(36, b"\0") + struct.pack("<I", 1)
    files.answers[11] = struct.pack("<II", 0, 7)
    memory = driver.memory()
    assert files.start(1 << 32, memory, [])
    memory.close()
    files.stop([0])
    assert (files.connected, files.watched(), files.said) == (False, None, ["stop", "start", "stop"])
    files.stop([0])
    files.connect()
    files.answers[11] = None
    files.stop([0])
    files.close()
    assert not files.connected


def test_a_share_that_offers_less_than_before(files):
    files.connect()
    files.lose()
    files.offered |= virtio.INDIRECT
    with pytest.raises(Failure, match="does not offer any more"):
        files.connect()
    files.answers[1] = None
    with pytest.raises(Failure, match="closed the connection"):
        files.connect()
    assert not files.connected


def test_backends_are_in_the_order_of_the_table(short):
    record = Record("red", (LINK,), (Disk("/a"),), (Share(str(short), "t", user="root"),))
    found = backends_of(record, Children(short), SimpleNamespace)
    assert [one.kind for one in found] == [virtio.NET, virtio.BLK, virtio.FS]
