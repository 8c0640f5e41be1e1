# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A rollout that is cut off at each step, on the host and on the controller.

Whatever happens: the next power cycle starts the old kernel, one that was judged healthy, or the trial with
its timer and its way back; the state after it is the one that the table has; and the next run ends well.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import subprocess

import pytest
from ansible.errors import AnsibleConnectionFailure

from ansible_collections.mkops.multikernel.plugins.module_utils.boot import loaders
from ansible_collections.mkops.multikernel.plugins.module_utils.boot.trial import (
    TRANSITIONS,
    Event,
    State,
    token_of,
)
from ansible_collections.mkops.multikernel.tests.unit.boot_rig import Killed, Rig
from ansible_collections.mkops.multikernel.tests.unit.fake_boot import (
    GRUBENV,
    NEW,
    OLD,
    Simulated,
    SimulatedSystemdBoot,
    cutting,
)

pytestmark = pytest.mark.untraced


class Cut:
    """Something happens at the nth change, or from then on."""

    def __init__(self, number, action, lasting=False):
        self.number, self.action, self.lasting = number, action, lasting
        self.seen = []
        self.dead = False  # it changes nothing any more, whatever it tries

    def __call__(self, what):
        if self.dead:
            raise Killed
        self.seen.append(what)
        if len(self.seen) - 1 == self.number or (self.lasting and len(self.seen) > self.number):
            self.action(self, what)

    @property
    def where(self):
        return self.seen[self.number]

    @property
    def over(self):
        """There are not as many changes."""
        return len(self.seen) <= self.number


def die(cut, _what):
    cut.dead = True
    raise Killed


def fail(_cut, what):
    raise OSError(errno.EIO, os.strerror(errno.EIO), what)


def lose(_cut, what):
    raise AnsibleConnectionFailure(f"lost at {what}")


KNOWN = {}


def remembered(function):
    """The same files make the same menu, which takes long to find out."""

    def find(grub, *args, **block):
        files = (grub.machine.exact(path) for path in (loaders.GRUB_CFG, loaders.CUSTOM, loaders.GRUBENV))
        settings = grub.machine.exact(loaders.SETTINGS)
        key = (function.__name__, *files, settings, args, tuple(sorted(block.items())))
        if key not in KNOWN:
            KNOWN[key] = function(grub, *args, **block)
        return KNOWN[key]

    return find


@pytest.fixture(params=[Simulated, SimulatedSystemdBoot])
def fresh(tmp_path, monkeypatch, request):
    """Makes hosts, each with a run of its own."""
    for name in ("_menu", "look"):
        monkeypatch.setattr(loaders.Grub, name, remembered(getattr(loaders.Grub, name)))
    (tmp_path / "k.deb").write_text("deb")
    pristine = request.param(tmp_path / "pristine")
    pristine.quick = True
    count = itertools.count()

    def make(host=pristine):
        return Rig(host.copy(tmp_path / f"host{next(count)}"), monkeypatch, tmp_path)

    return make


def gone(rig):
    shutil.rmtree(rig.host.root)


def state(host):
    return host.state(loaders.look(host))[0]


def default(host):
    boot = loaders.look(host)
    return boot.releases.get(boot.default, "")


def check_power_cycle(fresh, rig, where):
    """What the next power cycle starts, and what comes after that if nobody comes."""
    other = fresh(rig.host)
    host = other.host
    before = state(host)
    host.boot()
    assert TRANSITIONS[before][Event.POWER] is state(host), (where, before)
    words = host.text("/proc/cmdline").split()
    if host.running() == NEW and token_of(" ".join(words)):
        assert {"panic=10", "oops=panic"} < set(words), where
        assert host.sim.get("timer"), f"{where}: a trial without its timer"
        assert default(host) == OLD, where
        assert host.wait() == OLD, where
    elif host.running() == NEW:
        assert rig.judged, f"{where}: starts a kernel that was never judged healthy"
        assert default(host) == NEW, where
    else:
        assert host.running() == OLD, where
    gone(other)


def check_next_run(rig, where, **args):
    """It ends on the new kernel, promoted, with nothing left of a trial; and one more changes nothing."""
    host = rig.host
    result = rig.run(**args)
    if result.get("failed"):
        # Only while the host is about to restart.
        assert result["outcome"] in ("refused", "failed"), (where, result)
        assert "run again when it is back" in result["msg"], (where, result)
        host.wait()
        result = rig.run(**args)
    assert not result.get("failed"), (where, result["msg"])
    assert (host.running(), default(host)) == (NEW, NEW), where
    assert (host.left_of_a_trial(), state(host)) == ([], State.IDLE), where
    assert host.record() == {"kernels": [NEW], "previous": OLD}, where
    assert host.debs == {OLD, NEW}, where
    assert rig.run(**args)["outcome"] == "unchanged", where


CHECKED = set()


def look(rig):
    """All that what comes next depends on; tokens are random."""
    host = rig.host
    note = host.state(loaders.look(host))[1]
    tokens = [note.token if note else "-", token_of(host.text("/proc/cmdline")) or "-"]
    found = []
    for path in sorted(host.at("/").rglob("*")):
        if path.is_file() and path.name != "restart":
            content = path.read_bytes()
            for token in tokens:
                content = content.replace(token.encode(), b"-") if token != "-" else content
            found.append((str(path.relative_to(host.root)), content))
        elif path.is_symlink() or path.name == "restart":
            found.append((str(path.relative_to(host.root)), b""))
    return (type(host), rig.judged, tokens[0] == tokens[1], tuple(found))


def check(fresh, rig, where, cycle=False, **args):
    """Many cuts leave the same host behind: it is checked once."""
    seen = (look(rig), cycle)
    if seen in CHECKED:
        return
    CHECKED.add(seen)
    check_power_cycle(fresh, rig, where)
    if cycle:
        again = fresh(rig.host)
        again.host.boot()
        check_next_run(again, where, **args)
        gone(again)
    check_next_run(rig, where, **args)


def check_result(rig, result, where):
    """What the user is told is what is there."""
    if result["outcome"] == "promoted":
        assert rig.host.running() == NEW, where
        assert default(rig.host) == NEW, where
    elif result["outcome"] == "fell_back":
        assert rig.host.running() == OLD == result["running"], where
        assert default(rig.host) == OLD, where
    else:
        assert result["outcome"] in ("failed", "refused", "lost"), (where, result)
        assert rig.host.running() == OLD or result["outcome"] == "lost", (where, result)


def each(fresh, action, lasting=False, caught=False, **args):
    """A run that is cut at the first change of the host, another at the second, and so on."""
    for number in range(999):
        rig, cut = fresh(), Cut(number, action, lasting)
        rig.module_dies_alone = caught
        with cutting(rig.host, cut):
            try:
                result = rig.run(**args)
            except Killed:
                result = None
        if cut.over:
            assert number > 30
            return
        yield rig, f"{number}: {cut.where}", result
        gone(rig)
    raise AssertionError("it never ends")


def test_both_sides_die_at_each_change_of_the_host(fresh):
    for rig, where, result in each(fresh, die):
        assert result is None
        check(fresh, rig, where, cycle=True)


def test_the_module_is_killed_at_each_change_of_the_host(fresh):
    for rig, where, result in each(fresh, die, caught=True):
        check_result(rig, result, where)
        check(fresh, rig, where)


def test_each_change_of_the_host_fails_once(fresh):
    for rig, where, result in each(fresh, fail):
        check_result(rig, result, where)
        if result["outcome"] == "failed":
            assert (rig.host.left_of_a_trial(), state(rig.host)) == ([], State.IDLE), where
        check(fresh, rig, where)


def test_each_change_of_the_host_fails_and_all_after_it(fresh):
    """A disk that is full or read-only from then on."""
    for rig, where, result in each(fresh, fail, lasting=True, timeout=60):
        check_result(rig, result, where)
        check(fresh, rig, where)


# --- somebody else ---


def choose(host, *words):
    subprocess.run(["grub-editenv", str(host.at(GRUBENV)), *words], check=True)


def settle_anew(host):
    """As a tool does that manages the settings of hosts."""
    host.file("/etc/default/grub", "GRUB_DEFAULT=0\n")
    host.menu()


MEDDLING = {
    "the new kernel": (Simulated, lambda host: choose(host, "set", f"saved_entry=gnulinux-{NEW}-advanced-u")),
    "no default": (Simulated, lambda host: choose(host, "unset", "saved_entry")),
    "no trial": (Simulated, lambda host: choose(host, "unset", "next_entry")),
    "other settings": (Simulated, settle_anew),
    "by a variable": (SimulatedSystemdBoot, lambda host: host.set("LoaderEntryDefault", f"t0ken-{NEW}.conf")),
}


@pytest.mark.parametrize(
    ("fresh", "meddle", "bad"),
    [
        pytest.param(*MEDDLING[how], bad, id=f"{how}{bad and ', which is '}{bad}")
        for how, bad in (
            *((how, "") for how in MEDDLING),
            ("the new kernel", "sick"),
            ("by a variable", "sick"),
        )
    ],
    indirect=["fresh"],
)
def test_somebody_else_chooses_what_the_host_starts_at_each_change(fresh, meddle, bad):
    def now(cut, _what):
        watched, cut.host.cut = cut.host.cut, None
        meddle(cut.host)
        cut.host.cut = watched

    for number in range(0, 999, 3):
        rig, cut = fresh(), Cut(number, now)
        rig.host.bad = bad
        cut.host = rig.host
        with cutting(rig.host, cut):
            result = rig.run()
        if cut.over:
            assert number > 20
            return
        where = f"{number}: {cut.where}"
        assert result["outcome"] in ("promoted", "fell_back", "failed", "refused", "lost"), (where, result)
        rig.host.boot()
        started = rig.host.running(), bool(token_of(rig.host.text("/proc/cmdline")))
        # Nobody restarts a host for us where it was too late to notice.
        late = "systemd-run" in "".join(cut.seen[:number])
        assert rig.judged or late or started != (NEW, False), (where, result)
        gone(rig)


# --- the controller -------------------------------------------------------------------------------


def each_call(fresh, action, bad="", **args):
    """A run that is cut at the controller's first word to the host, at its answer, and so on."""
    for number in range(99):
        rig, cut = fresh(), Cut(number, action)
        rig.host.bad = bad
        rig.cut = cut
        try:
            result = rig.run(**args)
        except (Killed, AnsibleConnectionFailure) as error:
            result = error
        if cut.over:
            assert number > 10
            return
        rig.cut = lambda _what: None
        rig.host.bad = ""
        yield rig, f"{number}: {cut.where}", result
        gone(rig)
    raise AssertionError("it never ends")


@pytest.mark.parametrize("bad", ["", "sick"])
def test_the_controller_dies_at_each_word(fresh, bad):
    for rig, where, result in each_call(fresh, die, bad):
        assert isinstance(result, Killed), where
        check(fresh, rig, where)


@pytest.mark.parametrize("bad", ["", "sick", "panic"])
def test_each_word_of_the_controller_is_lost_once(fresh, bad):
    """What it says of the host is true: it has asked again."""
    for rig, where, result in each_call(fresh, lose, bad):
        # Before anything of a trial Ansible itself says that the host is unreachable.
        if isinstance(result, AnsibleConnectionFailure):
            assert where.endswith(("plan", "install")), where
        else:
            check_result(rig, result, where)
            assert rig.host.left_of_a_trial() == [], where
            if bad:
                assert result["outcome"] in ("fell_back", "failed"), where
        check(fresh, rig, where)


# --- a command line of its own --------------------------------------------------------------------


def test_new_words_for_the_same_kernel_are_cut_off(tmp_path, fresh):
    """Old and new kernel differ by an entry of our own alone, which the promotion writes again."""
    first = fresh()
    assert first.run(cmdline="isolcpus=1")["outcome"] == "promoted"
    for number in range(999):
        rig, cut = fresh(first.host), Cut(number, die)
        with cutting(rig.host, cut), contextlib.suppress(Killed):
            rig.run(cmdline="isolcpus=2")
        if cut.over:
            assert number > 20
            return
        where = f"{number}: {cut.where}"
        other = fresh(rig.host)
        other.host.boot()
        if not token_of(other.host.text("/proc/cmdline")):
            words = other.host.text("/proc/cmdline").split()
            assert "isolcpus=1" in words or (rig.judged and "isolcpus=2" in words), where
        else:
            other.host.wait()
            assert "isolcpus=1" in other.host.text("/proc/cmdline").split(), where
        gone(other)
        result = rig.run(cmdline="isolcpus=2")
        if result.get("failed"):
            assert "run again when it is back" in result["msg"], where
            rig.host.wait()
            result = rig.run(cmdline="isolcpus=2")
        assert not result.get("failed"), (where, result["msg"])
        assert rig.host.left_of_a_trial() == [], where
        rig.host.boot()
        assert "isolcpus=2" in rig.host.text("/proc/cmdline").split(), where
        assert rig.run(cmdline="isolcpus=2")["outcome"] == "unchanged", where
        gone(rig)


# --- while instances run on -----------------------------------------------------------------------

LIVE = {"method": "live", "instances": "keep"}


@pytest.fixture
def live(fresh):
    """As fresh, with kernels that hand their instances over, and one that runs."""

    def make(host=None):
        if host is not None:
            return fresh(host)
        rig = fresh()
        rig.host.become_live()
        rig.host.instance("red")
        return rig

    return make


def check_instance(live, rig, where):
    """It runs as long as the old kernel goes on, and beside a new one that came by kexec."""
    host = rig.host
    before = state(host)
    if host.running() == OLD and before is not State.FELL_BACK and host.sim["boots"] == "1":
        assert host.running_instances() == ["red"], where
    other = live(host)
    # What was asked for goes on without anybody.
    if before is State.LEAVING and host.sim.get("pending"):
        assert other.host.wait() == NEW, where
        assert (state(other.host), other.host.running_instances()) == (State.ON_TRIAL, ["red"]), where
        assert other.host.sim.get("timer"), f"{where}: a trial without its timer"
        assert other.host.wait() == OLD, where
        assert (state(other.host), default(other.host)) == (State.FELL_BACK, OLD), where
    gone(other)


@pytest.mark.parametrize("caught", [False, True])
def test_a_live_update_dies_at_each_change_of_the_host(live, caught):
    for rig, where, result in each(live, die, caught=caught, **LIVE):
        if result:
            check_result(rig, result, where)
        check_instance(live, rig, where)
        check(live, rig, where, cycle=not caught, **LIVE)


@pytest.mark.parametrize("lasting", [False, True])
def test_each_change_of_the_host_fails_in_a_live_update(live, lasting):
    for rig, where, result in each(live, fail, lasting=lasting, timeout=60, **LIVE):
        check_result(rig, result, where)
        if result["outcome"] == "failed" and not lasting:
            assert (rig.host.left_of_a_trial(), state(rig.host)) == ([], State.IDLE), where
            assert not rig.host.kexec_loaded(), where
        check_instance(live, rig, where)
        check(live, rig, where, **LIVE)


@pytest.mark.parametrize("bad", ["", "sick", "panic"])
def test_each_word_of_the_controller_is_lost_once_in_a_live_update(live, bad):
    for rig, where, result in each_call(live, lose, bad, **LIVE):
        if not isinstance(result, AnsibleConnectionFailure):
            check_result(rig, result, where)
            assert rig.host.left_of_a_trial() == [], where
            if bad:
                assert result["outcome"] in ("fell_back", "failed"), where
            if result["outcome"] == "fell_back" and not where.endswith(("before report", "after report")):
                assert result["lost"] == ["red"], where
        check(live, rig, where, **LIVE)
