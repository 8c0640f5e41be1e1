# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os

import pytest
from ansible.errors import AnsibleConnectionFailure, AnsibleError

from ansible_collections.mkops.multikernel.plugins.plugin_utils import hosts
from ansible_collections.mkops.multikernel.plugins.plugin_utils.hosts import HostConnection, bounded

LOCAL = {"ansible_connection": "local", "inventory_hostname": "big"}
# As Ansible calls sudo: -H -S -p PROMPT -u USER COMMAND..., without a password -n in place of -S and -p.
SUDO = """#!/bin/sh
echo "$*" >>{log}
while [ "$1" != -u ]; do
    [ "$1" = -p ] && {{ printf %s "$2" >&2; IFS= read -r password; [ "$password" = {password} ] || {{
        echo 'Sorry, try again.' >&2; exit 1; }}; }}
    shift
done
[ "$2" = root ] || exit 9
shift 2
exec "$@"
"""


@pytest.fixture
def sudo(tmp_path):
    program = tmp_path / "sudo"
    program.write_text(SUDO.format(log=tmp_path / "log", password="secret"))
    program.chmod(0o755)
    return program


def test_a_command_and_its_data(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    host = HostConnection("big", LOCAL)
    assert host.run("cat; echo err >&2; exit 3", b"\0data") == (3, b"\0data", b"err\n")


def test_root_is_become_without_a_password(sudo, tmp_path):
    variables = {**LOCAL, "ansible_become_exe": str(sudo), "ansible_become_user": "app"}
    host = HostConnection("big", variables, become=True)
    assert host.run("echo out; cat", b"data\n") == (0, b"out\ndata\n", b"")
    assert " -n " in f" {(tmp_path / 'log').read_text()} "


def test_root_is_become_with_a_password(sudo):
    variables = {**LOCAL, "ansible_become_exe": str(sudo), "ansible_become_password": "secret"}
    code, out, _err = HostConnection("big", variables, become=True).run("cat", b"\0data\n")
    assert (code, out) == (0, b"\0data\n")


def test_root_is_become_with_the_password_of_the_command_line(sudo):
    variables = {**LOCAL, "ansible_become_exe": str(sudo)}
    host = HostConnection("big", variables, become=True, secrets={"become_pass": "secret", "password": ""})
    assert host.run("cat", b"data\n")[:2] == (0, b"data\n")


@pytest.mark.parametrize(
    ("variables", "user", "become"),
    [
        (LOCAL, 0, False),
        (LOCAL, 1000, True),
        ({"ansible_connection": "ssh", "ansible_user": "root"}, 1000, False),
        ({"ansible_connection": "smart", "ansible_user": "admin"}, 0, True),
        ({"ansible_user": "root"}, 0, False),
    ],
)
def test_whether_root_is_to_be_become(monkeypatch, variables, user, become):
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert (HostConnection("big", variables)._become is not None) == become


def test_the_options_of_ssh_are_those_of_the_host():
    variables = {
        "ansible_host": "192.0.2.1", "ansible_port": 2222, "ansible_user": "root",
        "ansible_ssh_common_args": "-o ProxyJump=gate", "unrelated": 1,
    }  # fmt: skip
    ssh = HostConnection("big", variables, timeout=7)._connection
    names = ("host", "port", "remote_user", "ssh_common_args", "timeout")
    assert [ssh.get_option(name) for name in names] == ["192.0.2.1", 2222, "root", "-o ProxyJump=gate", 7]
    # The same place that Ansible's own tasks on the host use, so that they share what is open.
    assert ssh._play_context.remote_addr == "192.0.2.1"


def test_plugins_that_there_are_not(monkeypatch):
    monkeypatch.setattr(hosts.become_loader, "get", lambda name: None)
    with pytest.raises(AnsibleError, match="host big: there is no become plugin 'magic'"):
        HostConnection("big", {**LOCAL, "ansible_become_method": "magic"}, become=True)
    monkeypatch.setattr(hosts.connection_loader, "get", lambda *_arguments: None)
    with pytest.raises(AnsibleError, match="host big: there is no connection plugin 'pigeon'"):
        HostConnection("big", {"ansible_connection": "pigeon"})


def test_a_host_that_is_away():
    variables = {
        "ansible_host": "127.0.0.1",
        "ansible_port": 9,
        "ansible_user": "root",
        "ansible_ssh_args": "",
    }
    with pytest.raises(AnsibleConnectionFailure, match=r"^cannot be reached: .*Connection refused"):
        HostConnection("big", variables).run("true", b"\n")


def test_what_others_say_is_one_short_line():
    assert bounded(b"a\r\nb\x1b[2J\xff  c") == "a b^[[2J\\xff c"
    assert bounded("x" * 2000) == "x" * 500 + "..."
