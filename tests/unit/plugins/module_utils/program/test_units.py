# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The units under a real systemd, with the real program: a kerf that writes files stands for the kernel."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ansible_collections.mkops.multikernel.tests.unit import systemd_user
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import MIB, POOL_BASE, FakeInstance
from ansible_collections.mkops.multikernel.tests.unit.roles.test_scripts import load_program

TOP = Path(__file__).resolve().parents[5]
UNITS = TOP / "roles/host/files/units"
NAME = "web-1"  # which systemd would escape
KERF = """\
#!/bin/sh
at=$ROOT/sys/fs/multikernel/instances/$2
echo "$*" >>$ROOT/calls
case $1 in
--version) echo "kerf, version 0.4.0" ;;
start) echo none >$at/exit_reason; echo $(($(cat $at/epoch) + 1)) >$at/epoch; echo active >$at/status ;;
kill) echo "clean: power off" >$at/exit_reason; echo loaded >$at/status ;;
esac
"""
MKOPS = """\
#!/bin/sh
PATH={bin}:$PATH
exec {python} -I -c 'import sys
sys.path.insert(0, "{program}")
from mkops.divide.kernelfs import Paths
from mkops.program.main import main
sys.exit(main(sys.argv[1:], paths=Paths("{root}")))' "$@" --kerf {kerf}
"""


class Host:
    """A fake host whose services a real systemd starts and stops."""

    def __init__(self, root, process):
        self.root = root
        self._process = process

    def ctl(self, *words):
        self._process.stdin.write(json.dumps(["systemctl", "--user", "--no-pager", *words]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def unit(self, *properties, name=f"mkops@{NAME}"):
        said = self.ctl("show", name, *(f"--property={one}" for one in properties))["out"]
        found = dict(line.split("=", 1) for line in said.splitlines())
        return tuple(found[one] for one in properties)

    def becomes(self, state, name=f"mkops@{NAME}"):
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if self.unit("ActiveState", name=name) == (state,):
                return True
            time.sleep(0.1)
        return False

    @property
    def file(self):
        return self.root / f"sys/fs/multikernel/instances/{NAME}"

    @property
    def state(self):
        return (self.file / "status").read_text().strip()

    @property
    def changes(self):
        return [line for line in (self.root / "calls").read_text().split("\n") if line and line[0] != "-"]


@pytest.fixture
def served(make_host, tmp_path):
    host = make_host(
        pool_cpus=[4, 6],
        chunks=[(POOL_BASE, 512 * MIB, 0)],
        instances={NAME: FakeInstance(1, [4], POOL_BASE, 128 * MIB, "loaded", "console=mktty0")},
    )
    (host.root / "calls").touch()
    make = load_program(TOP / "roles/host/files/make_program.py")
    program = make.keep(make.program(TOP), tmp_path, "1")
    kerf, mkops = tmp_path / "kerf", tmp_path / "mkops"
    systemctl = tmp_path / "bin/systemctl"
    systemctl.parent.mkdir()
    systemctl.write_text('#!/bin/sh\nexec /usr/bin/systemctl --user "$@"\n')
    kerf.write_text(KERF.replace("$ROOT", str(host.root)))
    there = {"python": "/usr/bin/python3", "program": program, "root": host.root, "kerf": kerf}
    mkops.write_text(MKOPS.format(bin=systemctl.parent, **there))
    for path in (kerf, mkops, systemctl):
        path.chmod(0o755)
    (tmp_path / "units").mkdir()
    for path in UNITS.iterdir():
        text = path.read_text().replace("/usr/local/sbin/mkops", str(mkops))
        for there in ("/etc/mkops/layout.json", "/sys/fs/multikernel"):
            text = text.replace(f"={there}", f"={host.root}{there}")
        # Units of the system, which a systemd of a user does not have.
        text = text.replace(" network.target local-fs.target remote-fs.target", "")
        (tmp_path / "units" / path.name).write_text(text)
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    allowed = subprocess.run([*namespaces, "true"], capture_output=True, text=True, check=False)
    if allowed.returncode:
        pytest.skip(f"no namespaces for a systemd of its own here: {allowed.stderr.strip()}")
    log = tmp_path / "log"
    process = subprocess.Popen(
        [*namespaces, sys.executable, systemd_user.__file__, tmp_path / "units", log],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    if not json.loads(process.stdout.readline() or '{"ready": false}')["ready"]:
        process.kill()
        said = log.read_text()
        # A container may not give it control groups.
        (pytest.skip if "cgroup" in said else pytest.fail)(f"systemd does not come up: {said}")
    yield Host(host.root, process)
    process.stdin.close()
    process.kill()
    process.wait()


def test_an_instance_is_a_service(served):
    assert served.ctl("start", f"mkops@{NAME}")["rc"] == 0
    assert served.unit("ActiveState", "StatusText") == ("active", f"{NAME} is running")
    assert (served.state, served.changes) == ("active", [f"start {NAME}"])
    assert served.ctl("stop", f"mkops@{NAME}")["rc"] == 0
    assert served.unit("ActiveState", "Result", "ExecMainStatus") == ("inactive", "success", "0")
    assert (served.state, served.changes) == ("loaded", [f"start {NAME}", f"kill {NAME}"])


def test_who_watches_can_be_killed_and_the_instance_goes_on(served):
    for number in range(10):
        assert served.ctl("start", f"mkops@{NAME}")["rc"] == 0
        time.sleep(number / 20)
        served.ctl("kill", "--signal=KILL", f"mkops@{NAME}")
        assert served.becomes("failed")
        assert served.state == "active"
        served.ctl("reset-failed")  # so many starts in such a short time
    assert served.changes == [f"start {NAME}"]
    assert served.ctl("start", f"mkops@{NAME}")["rc"] == 0
    assert served.unit("ActiveState") == ("active",)
    assert served.changes == [f"start {NAME}"]


@pytest.mark.parametrize(
    ("reason", "state", "code"),
    [("panic: oh", "failed", "4"), ("clean: power off", "inactive", "0"), ("forced", "inactive", "0")],
)
def test_how_it_ends_is_how_its_unit_ends(served, reason, state, code):
    assert served.ctl("start", f"mkops@{NAME}")["rc"] == 0
    (served.file / "exit_reason").write_text(reason)
    (served.file / "status").write_text("loaded\n")
    assert served.becomes(state), served.ctl("status", f"mkops@{NAME}")["out"]
    assert served.unit("ExecMainStatus") == (code,)
    assert served.changes == [f"start {NAME}"]


def test_the_target_stops_all(served):
    assert served.ctl("start", "mkops.target")["rc"] == 0
    assert served.ctl("start", f"mkops@{NAME}")["rc"] == 0
    assert served.ctl("stop", "mkops.target")["rc"] == 0
    assert served.becomes("inactive")
    assert served.state == "loaded"


def test_one_that_a_task_starts_and_declares_is_watched_at_once(served):
    assert served.ctl("start", "mkops-adopt.path")["rc"] == 0
    (served.file / "status").write_text("active\n")
    layout = {"instances": {NAME: {"state": "started", "cpus": 2, "memory": "128M", "kernel": "/k"}}}
    (served.root / "etc/mkops").mkdir(parents=True)
    (served.root / "etc/mkops/new").write_text(json.dumps(layout))
    (served.root / "etc/mkops/new").chmod(0o600)
    (served.root / "etc/mkops/new").replace(served.root / "etc/mkops/layout.json")
    if not served.becomes("active"):
        pytest.fail(served.ctl("status", "mkops-adopt.service", "mkops-adopt.path")["out"])
    assert served.changes == []


def test_an_instance_that_there_is_not(served):
    assert served.ctl("start", "mkops@other")["rc"] == 1
    assert served.unit("ActiveState", "ExecMainStatus", name="mkops@other") == ("failed", "3")
