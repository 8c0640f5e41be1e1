# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The connection to an instance. All is real but the instance: that is this machine, by a fake agent."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import threading
import time
from pathlib import Path

import pytest
import yaml
from ansible import constants as C
from ansible.errors import AnsibleConnectionFailure, AnsibleError, AnsibleFileNotFound
from ansible.playbook.play_context import PlayContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.mkops.multikernel.plugins.connection import kerf
from ansible_collections.mkops.multikernel.tests.unit.fake_agent import (
    ERROR,
    EXIT,
    STARTED,
    STDERR,
    STDOUT,
    FakeInstance,
    frame,
)

NAME = "mkops.multikernel.kerf"
LOCAL = {"ansible_connection": "local", "inventory_hostname": "big"}


@pytest.fixture
def red(tmp_path, monkeypatch):
    instance = FakeInstance(tmp_path)
    text = tmp_path / "agent.py"
    text.write_text(kerf.SOURCE.read_text() + instance.overrides())
    monkeypatch.setattr(kerf, "SOURCE", text)
    yield instance
    instance.close()


def load():
    """As Ansible's loader of plugins does it."""
    C.config.initialize_plugin_configuration_definitions(
        "connection", NAME, yaml.safe_load(kerf.DOCUMENTATION)["options"]
    )
    connection = kerf.Connection(PlayContext(), os.devnull)
    connection._load_name = NAME
    return connection


def connect(variables=None, **host):
    """A connection as a task has it."""
    connection = load()
    everyone = {"big": {**LOCAL, "ansible_python_interpreter": "/usr/bin/python3", **host}}
    given = {"inventory_hostname": "red", "ansible_kerf_host": "big", **(variables or {})}
    connection.set_options(var_options={**given, "hostvars": everyone})
    return connection


@pytest.fixture
def connection(red):
    return connect()


def failure(connection, command="true", **arguments):
    with pytest.raises(AnsibleConnectionFailure) as caught:
        connection.exec_command(command, **arguments)
    text = str(caught.value)
    assert "\n" not in text and text.startswith("instance 'red' on host 'big': ")
    return text.removeprefix("instance 'red' on host 'big': ")


# --- commands -----------------------------------------------------------------------------------------


def test_exit_code_and_output_apart(connection):
    assert connection.exec_command("echo out; echo err >&2; exit 42") == (42, b"out\n", b"err\n")


@pytest.mark.parametrize("code", [0, 1, 2, 126, 127, 128, 255])
def test_every_code_is_the_commands(connection, code):
    assert connection.exec_command(f"exit {code}") == (code, b"", b"")


def test_a_signal_is_128_and_its_number(connection):
    assert connection.exec_command("kill -9 $$")[0] == 137


def test_standard_input_is_binary(connection):
    data = os.urandom(3 << 20)
    assert connection.exec_command("cat", in_data=data) == (0, data, b"")


def test_a_command_may_leave_its_input(connection):
    assert connection.exec_command("exec <&-; sleep 0.2; echo done", in_data=bytes(5 << 20))[1] == b"done\n"


def test_more_output_than_anybody_takes_at_once(connection):
    """While the input is still being written: neither side may wait for the other."""
    data = bytes(8 << 20)
    code, out, err = connection.exec_command("head -c 8388608 /dev/zero; cat >/dev/null", in_data=data)
    assert (code, len(out), err) == (0, len(data), b"")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=300).filter(lambda data: b"\0" not in data))
def test_every_byte_arrives_in_a_command(connection, data):
    quoted = "'" + data.decode("utf-8", "surrogateescape").replace("'", "'\\''") + "'"
    assert connection.exec_command(f"printf %s {quoted}") == (0, data, b"")


def test_what_cannot_be_a_command(connection):
    with pytest.raises(AnsibleError, match="NUL"):
        connection.exec_command("echo \0")
    with pytest.raises(AnsibleError, match="a command of 70000 bytes is too long"):
        connection.exec_command("x" * 70000)


def test_what_the_command_finds(connection, red):
    connection.exec_command("true")
    (opened,) = red.opened
    assert opened["argv"] == [b"/bin/sh", b"-c", b"true"] and opened["cwd"] == b"/"
    assert opened["env"] == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "USER": "root",
        "LOGNAME": "root",
        "SHELL": "/bin/sh",
        "MKOPS_HOST": "big",
        "MKOPS_INSTANCE": "red",
        "MKOPS_INSTANCE_ID": "7",
    }


def test_an_instance_by_another_name(red):
    connection = connect({"inventory_hostname": "red.big", "ansible_kerf_instance": "red"})
    assert connection.exec_command("echo yes")[1] == b"yes\n"


# --- files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 65536, kerf.FETCH, kerf.FETCH + 1, kerf.PUT, kerf.PUT + 70001])
def test_files_both_ways(connection, tmp_path, size):
    data = os.urandom(size)
    source, there, back = tmp_path / "source", tmp_path / 'it\'s "there" $x\n', tmp_path / "back"
    source.write_bytes(data)
    there.write_bytes(bytes(100))
    connection.put_file(str(source), str(there))
    assert there.read_bytes() == data
    connection.fetch_file(str(there), str(back))
    assert hashlib.sha256(back.read_bytes()).digest() == hashlib.sha256(data).digest()


def test_a_file_whose_size_is_not_known(connection, tmp_path):
    connection.fetch_file("/proc/version", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == Path("/proc/version").read_bytes()


def test_what_is_not_copied_is_named(connection, tmp_path):
    with pytest.raises(AnsibleFileNotFound, match="does not exist"):
        connection.put_file(str(tmp_path / "none"), "/tmp/x")
    (tmp_path / "some").write_text("x")
    with pytest.raises(AnsibleError, match=r"/nowhere/x cannot be copied: dd: .*No such file or directory"):
        connection.put_file(str(tmp_path / "some"), "/nowhere/x")
    with pytest.raises(AnsibleError, match=r"/nowhere/x cannot be copied: dd: .*No such file or directory"):
        connection.fetch_file("/nowhere/x", str(tmp_path / "back"))
    assert not (tmp_path / "back").exists()


# --- what is wrong --------------------------------------------------------------------------------------


def test_no_such_instance(red):
    said = re.escape("instance 'green' on host 'big': there is no such instance on the host")
    with pytest.raises(AnsibleConnectionFailure, match=said):
        connect({"ansible_kerf_instance": "green"}).exec_command("true")


@pytest.mark.parametrize("name", ["..", ".", "a/b", "", "red/../red"])
def test_a_name_is_no_path(red, name):
    with pytest.raises(AnsibleError, match="is not a name of an instance"):
        connect({"ansible_kerf_instance": name}).exec_command("true")


def test_it_does_not_run(connection, red):
    red.tell(status="loaded", exit_reason="panic: \x1b[2J" + "x" * 1000)
    said = failure(connection)
    assert said.startswith(
        "it does not run: its state is 'loaded', and it ended last with 'panic: \\x1b[2Jxxx"
    )
    assert len(said) < 700


def test_a_host_without_multikernel(connection, red):
    red.directory.rename(red.instances.with_name("elsewhere"))
    red.instances.rmdir()
    assert "does not run a multikernel kernel" in failure(connection)


def test_no_agent(connection, red):
    red.close()
    red.path.unlink()
    red.path.write_text("")
    started = time.monotonic()
    assert "kerf's agent in it does not" in failure(connection)
    assert 1.5 < time.monotonic() - started < 6


def test_an_agent_that_does_not_answer(red):
    red.script = lambda channel: threading.Event().wait(30)
    connection = connect({"ansible_kerf_timeout": 1})
    assert failure(connection) == "it runs, but kerf's agent in it has not answered for 1 s"


@pytest.mark.parametrize("reason", ["panic: Fatal exception", "forced"])
def test_it_dies_meanwhile(connection, red, reason):
    threading.Timer(1, red.die, [reason]).start()
    started = time.monotonic()
    said = failure(connection, "sleep 60")
    assert said == f"it has died meanwhile: its state is 'loaded', and it ended last with '{reason}'"
    assert time.monotonic() - started < 5


def test_it_dies_and_nobody_ends_the_connection(connection, red):
    threading.Timer(1, red.tell, kwargs={"status": "loaded", "exit_reason": "lost"}).start()
    started = time.monotonic()
    assert "it ended last with 'lost'" in failure(connection, "sleep 60")
    assert time.monotonic() - started < 5


def test_it_is_started_again_meanwhile(connection, red):
    threading.Timer(1, red.tell, kwargs={"epoch": 2}).start()
    assert failure(connection, "sleep 60") == "it has died meanwhile: it has been started again"


def test_it_hangs(connection, red):
    threading.Timer(1, red.tell, kwargs={"stats": "restarts 1\nheartbeat_age_ms 12345"}).start()
    assert "no sign of life for 12 s" in failure(connection, "sleep 60")


def test_it_is_deleted_meanwhile(connection, red):
    threading.Timer(1, red.directory.rename, [red.instances / "gone"]).start()
    assert failure(connection, "sleep 60") == "it has died meanwhile: it has been deleted"


def test_the_agent_ends_the_connection(connection, red):
    red.script = red.open
    assert failure(connection) == (
        "the connection to kerf's agent in it has ended: it was closed, before it said that the command runs"
    )


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"\xff" * 64, "a message of 4294967295 bytes"),
        (frame(99, b"x"), "a message of kind 99 and 1 bytes"),
        (frame(EXIT, b"x"), "a message of kind 20 and 1 bytes"),
        (frame(ERROR, b"x"), "a message of kind 17 and 1 bytes"),
    ],
)
def test_what_an_agent_does_not_say(connection, red, said, reason):
    def talk(channel):
        red.open(channel)
        channel.sendall(said)
        time.sleep(5)

    red.script = talk
    assert failure(connection) == f"kerf's agent in it says what it should not: {reason}"


def test_a_command_that_cannot_be_started(connection, red):
    def talk(channel):
        red.open(channel)
        channel.sendall(frame(ERROR, struct.pack("<I", 2) + b"no \x1b[31m shell" + b"y" * 5000 + b"\0"))

    red.script = talk
    code, out, err = connection.exec_command("true")
    assert (code, out) == (127, b"")
    assert b"/bin/sh: no \\x1b[31m shell" in err and len(err) < 700


def test_a_spawn_cannot_say_how_it_ended(connection, red):
    """It knows the words, but not the one that the controller has chosen."""

    def talk(channel):
        red.open(channel)
        channel.sendall(frame(STARTED, bytes(4)))
        channel.sendall(frame(STDERR, b"0123456789abcdef0123456789abcdef exited 0 \n"))
        channel.sendall(frame(STDOUT, b"\xff\xfe") + frame(EXIT, b"\0\3"))

    red.script = talk
    code, out, err = connection.exec_command("true")
    assert (code, out, err) == (3, b"\xff\xfe", b"0123456789abcdef0123456789abcdef exited 0 \n")


def test_a_flood_is_stopped(red):
    connection = connect({"ansible_kerf_output_limit": 1 << 20})
    with pytest.raises(AnsibleError, match="printed more than 1048576 bytes") as caught:
        connection.exec_command("yes")
    assert not isinstance(caught.value, AnsibleConnectionFailure)
    assert red.signals[:1] == [15]


def test_a_command_has_its_time(red):
    connection = connect({"ansible_kerf_command_timeout": 1})
    with pytest.raises(AnsibleError, match="was not done after 1 s"):
        connection.exec_command("sleep 60")
    assert red.signals[:1] == [15]


def test_credit_that_nobody_has_given(connection, red):
    """An agent that asks for more than it was told to."""

    def talk(channel):
        red.open(channel)
        channel.sendall(frame(STARTED, bytes(4)) + frame(21, b"\xff\xff\xff\xff") * 3)
        received = 0
        channel.settimeout(0.5)
        try:
            while True:
                received += len(channel.recv(65536))
        except TimeoutError:
            pass
        assert received <= 2 * 65536
        channel.sendall(frame(EXIT, b"\0\0"))

    red.script = talk
    assert connection.exec_command("true", in_data=bytes(1 << 20))[0] == 0


# --- the way to the host ------------------------------------------------------------------------------


def test_a_host_that_nobody_knows(red):
    with pytest.raises(AnsibleError, match="the inventory has no such host"):
        connect({"ansible_kerf_host": "small"}).exec_command("true")


def test_a_host_that_is_an_instance(red):
    with pytest.raises(AnsibleError, match="that host is an instance itself"):
        connect(ansible_kerf_host="other").exec_command("true")


def test_a_host_without_python(red):
    said = failure(connect({"ansible_kerf_python": "/nowhere/python3"}))
    assert said.startswith("the host cannot run /nowhere/python3, which has to be Python 3.9 or newer")


def test_what_talks_to_the_agent_fails(connection, red, monkeypatch, tmp_path):
    (tmp_path / "broken.py").write_text("print(1 / 0)")
    monkeypatch.setattr(kerf, "SOURCE", tmp_path / "broken.py")
    said = failure(connection)
    assert said.startswith("what talks to the agent has ended early on the host, with code 1: ")
    assert said.endswith("ZeroDivisionError: division by zero")


def test_a_host_that_cannot_be_reached(red):
    connection = connect(
        ansible_connection="ssh", ansible_host="127.0.0.1", ansible_port=9, ansible_user="root",
        ansible_ssh_args="",
    )  # fmt: skip
    assert failure(connection).startswith("the host cannot be reached: ")


def test_reset_and_close(connection):
    assert connection.exec_command("echo 1")[1] == b"1\n"
    connection.reset()
    assert not connection.connected
    assert connection.exec_command("echo 2")[1] == b"2\n"


def test_options_of_a_task_have_all_hosts():
    """As Ansible's task executor asks for them."""

    class Templar:
        @staticmethod
        def template(value):
            return value

    found = load()._resolve_option_variables(
        {"hostvars": {"big": LOCAL}, "ansible_kerf_host": "big", "other": 1}, Templar()
    )
    assert found == {"_extras": {}, "hostvars": {"big": LOCAL}, "ansible_kerf_host": "big"}
