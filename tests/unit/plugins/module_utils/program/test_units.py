# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The units under a real systemd, with the real program: a kerf that writes files stands for the kernel."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
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
start)
    echo none >$at/exit_reason
    echo $(($(cat $at/epoch) + 1)) >$at/epoch
    echo "heartbeat_age_ms 300" >$at/stats
    echo "6,1,1,-;multikernel: Multikernel instance 1 is now active" >>$ROOT/dev/kmsg
    echo active >$at/status
    ;;
kill)
    case $3 in
    --force) echo forced >$at/exit_reason ;;
    *) echo "clean: power off" >$at/exit_reason
       echo "6,1,1,-;multikernel: Multikernel instance 1 halted (graceful)" >>$ROOT/dev/kmsg ;;
    esac
    echo loaded >$at/status
    ;;
unload) echo ready >$at/status ;;
delete) rm -r $at ;;
esac
"""
MKOPS = """\
#!/bin/sh
PATH={bin}:$PATH
exec {python} -I -c 'import sys
sys.path.insert(0, "{program}")
from mkops.divide.kernelfs import Paths
from mkops.program import watch
from mkops.program.main import main
watch._LOOK = 1.0  # files tell nothing
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

    def declare(self, **options):
        """As a task keeps it, and mkops apply tells systemd."""
        self.declared = {"state": "started", "cpus": 2, "memory": "128M", **options}
        path = self.root / "etc/mkops/layout.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name("new").write_text(json.dumps({"instances": {NAME: self.declared}}))
        path.with_name("new").chmod(0o600)
        path.with_name("new").replace(path)
        assert self.ctl("start", "mkops-adopt.service")["rc"] == 0, self.ctl("status", "mkops-adopt.service")

    def ends(self, reason, state="loaded"):
        """As a kernel does by itself."""
        (self.file / "exit_reason").write_text(reason)
        (self.file / "status").write_text(f"{state}\n")

    def is_silent(self, seconds=99):
        (self.file / "stats").write_text(f"heartbeat_age_ms {seconds * 1000}\n")

    def until(self, condition, seconds=60):
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True

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
    (host.root / "run/systemd/system").mkdir(parents=True)
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
    (host.root / "etc/systemd").mkdir(parents=True)
    (host.root / "etc/systemd/system").symlink_to(tmp_path / "units")
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
    begun = json.loads(process.stdout.readline() or '{"ready": false, "groups": []}')
    if not begun["ready"]:
        process.kill()
        said = log.read_text()
        # A container may not give it control groups.
        (pytest.skip if "cgroup" in said else pytest.fail)(f"systemd does not come up: {said}")
    yield Host(host.root, process)
    process.stdin.close()
    process.kill()
    process.wait()
    systemd_user.remove_groups(begun["groups"])


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
    ("reason", "state"), [("panic: oh", "failed"), ("clean: power off", "inactive"), ("forced", "inactive")]
)
def test_how_it_ends_is_how_its_unit_ends(served, reason, state):
    assert served.ctl("start", f"mkops@{NAME}")["rc"] == 0
    (served.file / "exit_reason").write_text(reason)
    (served.file / "status").write_text("loaded\n")
    assert served.becomes(state), served.ctl("status", f"mkops@{NAME}")["out"]
    if state == "failed":  # systemd forgets what has ended well
        assert served.unit("ExecMainStatus") == ("4",)
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


# The host goes down for a kernel that takes the instance over

KEXEC = f"""\
[Unit]
Conflicts=mkops@{NAME}.service
After=mkops@{NAME}.service
"""


@pytest.fixture
def live(served):
    """The kernel can hand instances over; `goes` as the host does by `systemctl kexec`."""
    (served.root / "etc/systemd/system/kexec.target").write_text(KEXEC)
    served.ctl("daemon-reload")

    def tell(state, generation=0):
        text = f"state {state}\ngeneration {generation}\nadopted {generation}\nlost 0\n"
        (served.root / "sys/fs/multikernel/live_update").write_text(text)

    def goes():
        assert served.ctl("start", "kexec.target")["rc"] == 0
        assert served.unit("ActiveState") == ("inactive",)

    served.tell, served.goes = tell, goes
    assert served.ctl("start", f"mkops@{NAME}")["rc"] == 0
    return served


def test_an_instance_runs_on_and_its_unit_takes_it_up_after_the_boot(live):
    console = live.root / f"run/mkops/consoles/{NAME}.json"
    console.parent.mkdir(parents=True, exist_ok=True)
    boot_id = live.root / "proc/sys/kernel/random/boot_id"
    old = boot_id.read_text().strip()
    place = {"id": 1, "length": 9, "tail": "was said\n"}
    console.write_text(json.dumps({"boot_id": old, **place}))
    live.tell("loaded")
    live.goes()
    assert live.unit("Result", "ExecMainStatus") == ("success", "0")
    assert (live.state, live.changes) == ("active", [f"start {NAME}"])
    # The next kernel, whose /run is empty.
    shutil.rmtree(live.root / "run/mkops")
    boot_id.write_text("22222222-2222-3333-4444-555555555555\n")
    live.tell("off", generation=1)
    live.declare()  # which has its unit take it up, as at boot
    assert live.ctl("start", "mkops-pool.service")["rc"] == 0, live.ctl("status", "mkops-pool.service")
    assert live.ctl("start", f"mkops@{NAME}")["rc"] == 0
    assert live.unit("ActiveState") == ("active",)
    assert (live.state, live.changes) == ("active", [f"start {NAME}"])
    assert json.loads(console.read_text()) == {"boot_id": boot_id.read_text().strip(), **place}


@pytest.mark.parametrize("state", ["off", "armed", "stale"])
def test_without_a_handover_it_is_stopped(live, state):
    live.tell(state)
    live.goes()
    assert (live.state, live.changes) == ("loaded", [f"start {NAME}", f"kill {NAME}"])


def test_what_somebody_stops_before_that_is_stopped(live):
    live.tell("loaded")
    assert live.ctl("stop", f"mkops@{NAME}")["rc"] == 0
    assert (live.state, live.changes) == ("loaded", [f"start {NAME}", f"kill {NAME}"])


def test_an_instance_that_there_is_not(served):
    assert served.ctl("start", "mkops@other")["rc"] == 1
    assert served.unit("ActiveState", "ExecMainStatus", name="mkops@other") == ("failed", "3")


# What becomes of an instance that has ended


def test_what_fails_is_started_again_until_it_is_given_up(served):
    served.declare(restart="on-failure", restart_delay=0, restart_limit=3)
    assert served.ctl("start", f"mkops@{NAME}")["rc"] == 0
    for number in (2, 3):
        served.ends("panic: oh")
        assert served.until(lambda: served.unit("NRestarts", "ActiveState") == (str(number - 1), "active"))  # noqa: B023
        assert (served.changes, served.state) == ([f"start {NAME}"] * number, "active")
    served.ends("panic: oh")
    assert served.becomes("failed")
    assert served.changes == [f"start {NAME}"] * 3
    assert served.ctl("start", f"mkops@{NAME}")["rc"] == 1  # systemd keeps to it
    # Who starts it by hand has it watched all the same.
    (served.file / "status").write_text("active\n")
    served.declare(restart="on-failure", restart_limit=3)
    assert served.becomes("active")


@pytest.mark.parametrize(
    ("restart", "reason", "again"),
    [
        ("on-failure", "clean: power off", False),
        ("on-failure", "clean: restart", True),
        ("always", "clean: power off", True),
        ("always", "forced", False),
        ("always", "lost", False),
        ("no", "clean: restart", False),
    ],
)
def test_who_is_started_again(served, restart, reason, again):
    served.declare(restart=restart, restart_delay=0)
    assert served.ctl("start", f"mkops@{NAME}")["rc"] == 0
    served.ends(reason)
    if again:
        assert served.until(lambda: served.changes == [f"start {NAME}"] * 2)
        assert served.becomes("active")
    else:
        assert served.becomes("failed" if reason == "lost" else "inactive")
        time.sleep(1)
        assert (served.changes, served.state) == ([f"start {NAME}"], "loaded")


@pytest.mark.parametrize("hand", ["systemctl", "kerf", "mkops"])
def test_what_somebody_stops_stays_stopped(served, hand, tmp_path):
    served.declare(restart="always", restart_delay=0)
    assert served.ctl("start", f"mkops@{NAME}")["rc"] == 0
    if hand == "systemctl":
        assert served.ctl("stop", f"mkops@{NAME}")["rc"] == 0
    else:
        words = ["kill"] if hand == "kerf" else ["stop"]
        subprocess.run([tmp_path / hand, *words, NAME], check=True, capture_output=True)
    assert served.becomes("inactive")
    time.sleep(1)
    assert served.unit("ActiveState", "Result") == ("inactive", "success")
    assert (served.changes, served.state) == ([f"start {NAME}", f"kill {NAME}"], "loaded")


def test_what_somebody_stops_before_it_is_started_again(served, tmp_path):
    served.declare(restart="always", restart_delay=3)
    assert served.ctl("start", f"mkops@{NAME}")["rc"] == 0
    served.ends("panic: oh")
    assert served.until(lambda: served.unit("SubState") == ("auto-restart",))
    subprocess.run([tmp_path / "mkops", "stop", NAME], check=True, capture_output=True)
    assert served.becomes("inactive")
    assert (served.changes, served.state) == ([f"start {NAME}"], "loaded")
    assert served.ctl("start", f"mkops@{NAME}")["rc"] == 0  # but who wants it, has it
    assert served.changes == [f"start {NAME}"] * 2


def remove(tmp_path):
    """As a task does it that says nothing of the host's boot."""
    (tmp_path / "none.json").write_text(json.dumps({"instances": {NAME: {"state": "absent"}}}))
    words = [tmp_path / "mkops", "apply", tmp_path / "none.json"]
    subprocess.run(words, check=True, capture_output=True)


REMOVED = [f"unload {NAME}", f"delete {NAME}"]


def test_what_somebody_removes_stays_away(served, tmp_path):
    served.declare(restart="always", restart_delay=0)
    assert served.ctl("start", f"mkops@{NAME}")["rc"] == 0
    remove(tmp_path)
    assert served.becomes("inactive")
    time.sleep(1)
    assert served.unit("ActiveState", "Result") == ("inactive", "success")
    assert served.changes == [f"start {NAME}", f"kill {NAME}", *REMOVED]


def test_what_somebody_removes_before_it_is_started_again(served, tmp_path, vmlinux):
    served.declare(restart="always", restart_delay=3)
    assert served.ctl("start", f"mkops@{NAME}")["rc"] == 0
    served.ends("panic: oh")
    assert served.until(lambda: served.unit("SubState") == ("auto-restart",))
    remove(tmp_path)
    assert served.becomes("inactive"), served.changes
    assert served.unit("ActiveState", "Result") == ("inactive", "success")
    assert served.changes == [f"start {NAME}", *REMOVED]
    served.declare(kernel=str(vmlinux))
    served.ctl("start", f"mkops@{NAME}")  # but who wants it, has it
    assert served.changes[3].startswith(f"create {NAME} ")


def test_what_somebody_removes_before_it_is_ready(served, tmp_path):
    served.declare(restart="always", restart_delay=0, wait="heartbeat", timeout=60)
    kerf = tmp_path / "kerf"
    kerf.write_text(kerf.read_text().replace("heartbeat_age_ms 300", "restarts 1"))
    served.ctl("start", "--no-block", f"mkops@{NAME}")
    assert served.until(lambda: served.state == "active")
    remove(tmp_path)
    assert served.becomes("inactive"), served.changes
    time.sleep(1)
    assert served.unit("ActiveState", "Result") == ("inactive", "success")
    assert served.changes == [f"start {NAME}", f"kill {NAME}", *REMOVED]


def test_what_somebody_removes_while_its_unit_waits_for_the_lock(served, tmp_path):
    """It has begun before, and would find nothing of the instance."""
    served.declare()
    assert served.ctl("start", "mkops-pool.service")["rc"] == 0
    kerf = tmp_path / "kerf"
    # Long enough for a busy machine to start Python meanwhile.
    kerf.write_text(kerf.read_text().replace("delete) rm", "delete) sleep 8; rm"))
    removing = threading.Thread(target=remove, args=[tmp_path])
    removing.start()
    assert served.until(lambda: served.changes == REMOVED)
    assert served.ctl("start", f"mkops@{NAME}")["rc"] == 0
    removing.join()
    assert served.becomes("inactive")
    assert served.changes == REMOVED


def test_a_kernel_without_a_sign_of_life_is_stopped_and_started_again(served):
    served.declare(restart="on-failure", restart_delay=0, watchdog=5)
    assert served.ctl("start", f"mkops@{NAME}")["rc"] == 0
    begun = time.monotonic()
    served.is_silent(4)
    (served.file / "stats").write_text("heartbeat_age_ms 4000\n")
    time.sleep(2)
    assert served.unit("ActiveState", "NRestarts") == ("active", "0")
    served.is_silent()
    assert served.until(lambda: served.unit("NRestarts") == ("1",))
    assert time.monotonic() - begun < 15
    assert served.becomes("active")
    assert served.changes == [f"start {NAME}", f"kill {NAME} --force", f"start {NAME}"]


def test_without_a_policy_it_is_stopped_and_has_failed(served):
    served.declare(watchdog=5)
    assert served.ctl("start", f"mkops@{NAME}")["rc"] == 0
    served.is_silent()
    assert served.becomes("failed")
    assert served.unit("Result") == ("watchdog",)
    assert served.changes == [f"start {NAME}", f"kill {NAME} --force"]


@pytest.mark.parametrize("policy", ["no", "on-failure"])
def test_a_watcher_that_is_stuck_takes_no_kernel_with_it(served, policy):
    served.declare(restart=policy, restart_delay=0, watchdog=5)
    assert served.ctl("start", f"mkops@{NAME}")["rc"] == 0
    served.ctl("kill", "--signal=STOP", f"mkops@{NAME}")
    if policy == "no":
        assert served.becomes("failed")
        assert served.unit("Result") == ("watchdog",)
    else:
        assert served.until(lambda: served.unit("NRestarts", "ActiveState") == ("1", "active"))
    assert (served.changes, served.state) == ([f"start {NAME}"], "active")


def test_a_watcher_that_is_killed_is_back_at_once(served):
    served.declare(restart="on-failure", restart_delay=0, watchdog=30)
    assert served.ctl("start", f"mkops@{NAME}")["rc"] == 0
    served.ctl("kill", "--signal=KILL", f"mkops@{NAME}")
    assert served.until(lambda: served.unit("NRestarts", "ActiveState") == ("1", "active"))
    assert (served.changes, served.state) == ([f"start {NAME}"], "active")


def test_a_hang_that_nobody_has_watched(served):
    """The watcher was killed, and the kernel hangs: the next one finds it so."""
    served.declare(restart="on-failure", restart_delay=0, watchdog=5)
    assert served.ctl("start", f"mkops@{NAME}")["rc"] == 0
    served.is_silent()
    served.ctl("kill", "--signal=KILL", f"mkops@{NAME}")
    assert served.until(lambda: served.changes[1:] == [f"kill {NAME} --force", f"start {NAME}"])
    assert served.becomes("active")


def test_a_watchdog_that_is_declared_later_holds_at_once(served):
    assert served.ctl("start", f"mkops@{NAME}")["rc"] == 0
    served.declare(watchdog=5, restart="on-failure")
    served.is_silent()
    assert served.until(lambda: served.unit("NRestarts") == ("1",))
    assert served.becomes("active")
    served.declare(restart="on-failure")
    time.sleep(4)  # by then its watcher has seen it
    served.is_silent()
    time.sleep(12)
    assert served.unit("NRestarts", "ActiveState") == ("1", "active")


def test_stopping_takes_the_time_that_it_takes(served):
    """The watchdog is for what runs."""
    served.declare(watchdog=5, restart="always", stop_timeout=20)
    assert served.ctl("start", f"mkops@{NAME}")["rc"] == 0
    kerf = served.root.parent / "kerf"
    kerf.write_text(kerf.read_text().replace("kill)\n", "kill) sleep 9\n"))
    done = served.ctl("stop", f"mkops@{NAME}")
    assert done["rc"] == 0, done
    assert served.unit("ActiveState", "Result") == ("inactive", "success")
    assert served.changes == [f"start {NAME}", f"kill {NAME}"]


def test_one_that_does_not_get_ready_is_started_anew(served):
    served.declare(restart="on-failure", restart_delay=0, restart_limit=2, wait="heartbeat", timeout=2)
    kerf = served.root.parent / "kerf"
    kerf.write_text(kerf.read_text().replace("heartbeat_age_ms 300", "restarts 1"))
    assert served.ctl("start", f"mkops@{NAME}")["rc"] == 1
    assert served.becomes("failed")
    assert served.changes == [f"start {NAME}", f"kill {NAME} --force"] * 2


def test_evidence_is_there_before_it_is_started_again(served):
    served.declare(restart="on-failure", restart_delay=0, crash_keep=2, restart_limit=9)
    assert served.ctl("start", f"mkops@{NAME}")["rc"] == 0
    crashes = served.root / "var/lib/mkops/crashes" / NAME
    for epoch in (1, 2, 3):
        served.ends(f"panic: number {epoch}")
        assert served.until(
            lambda: served.unit("NRestarts", "ActiveState") == (str(epoch), "active")  # noqa: B023
        )
        (made,) = crashes.glob(f"*-{epoch}")
        meta = json.loads((made / "meta.json").read_text())
        assert (meta["reason"], meta["unit"]) == (
            f"panic: number {epoch}",
            {"SERVICE_RESULT": "exit-code", "EXIT_CODE": "exited", "EXIT_STATUS": "4"},
        )
    assert [path.name[-2:] for path in sorted(crashes.iterdir())] == ["-2", "-3"]
    # Whoever has filled the disk has not stopped the instance.
    for path in crashes.iterdir():
        shutil.rmtree(path)
    crashes.rmdir()
    crashes.write_text("")
    served.ends("panic: number 4")
    assert served.until(lambda: served.unit("NRestarts", "ActiveState") == ("4", "active"))
    assert served.changes == [f"start {NAME}"] * 5
