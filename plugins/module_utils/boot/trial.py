# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The trial of a kernel as a state machine: what a host can be in, how it is told, and what may be done then.
No I/O.

The state is never remembered as such. It is told from what is there: the note of the trial, its units, what
the boot loader starts next, and which boot this is. So a run that was killed anywhere leaves a state of this
table. The order of the steps does the rest: what gives a kernel up is there before the kernel is chosen, and
the note is written first and removed last.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..common.files import parse_json

TOKEN_WORD = "mkops.trial="
UNIT = "mkops-kernel-trial"
PANIC_SECONDS = 10
# What brings a kernel back that hangs: the option that must be built in, the word that turns it into a crash,
# and what it notices.
GUARDS = {
    "SOFTLOCKUP_DETECTOR": ("softlockup_panic=1", "a processor that never leaves the kernel"),
    "DETECT_HUNG_TASK": ("hung_task_panic=1", "a task that waits for ever"),
}
# `systemctl reboot` passes the boot loader by where a kernel was loaded by kexec, or /run/nextroot is there.
BY_THE_LOADER = ("SYSTEMCTL_SKIP_AUTO_KEXEC=1", "SYSTEMCTL_SKIP_AUTO_SOFT_REBOOT=1")
HEALTHY, BAD = "healthy", "bad"  # verdicts


class State(enum.Enum):
    """What the trial of a kernel is in."""

    IDLE = "idle"
    PREPARED = "prepared"
    ARMED = "armed"
    RESTARTING = "restarting"
    LOADED = "loaded"
    LEAVING = "leaving"
    ON_TRIAL = "on trial"
    APPROVED = "approved"
    PROMOTED = "promoted"
    GIVEN_UP = "given up"
    FELL_BACK = "fell back"
    LEFT_BEHIND = "left behind"


class Event(enum.Enum):
    """What changes it. What a run does comes first, what just happens last."""

    PREPARE = "prepare"  # note and units are written
    ARM = "arm"  # the boot loader is told to start the trial once
    LOAD = "load"  # kexec has the kernel, with the handover of the instances
    RESTART = "restart"
    KEXEC = "kexec"  # the host has booted the kernel that was loaded
    APPROVE = "approve"  # it was found healthy: noted, and the timer is stopped
    PROMOTE = "promote"  # it is the default
    REVERT = "revert"  # the promotion failed: not approved any more, and the timer runs again
    GIVE_UP = "give up"
    TIDY = "tidy"  # all of the trial is removed, the note at last
    POWER = "power cycle"


@dataclass(frozen=True)
class Row:
    """A line of the table of states, in the words of the documentation."""

    state: State
    holds: str
    power: str
    failure: str
    run: str


TABLE = (
    Row(
        State.IDLE,
        "Nothing of a trial is on the host.",
        "the default",
        "idle. Before anything is installed, the running kernel was made the default.",
        "installs and tries",
    ),
    Row(
        State.PREPARED,
        "The note of the trial and its units are written. The boot loader knows nothing of it.",
        "the default, the old kernel; the units do nothing without their token",
        "A failure takes the trial back: idle. A kill: prepared.",
        "takes it back, starts over",
    ),
    Row(
        State.ARMED,
        "The boot loader starts the trial once. Default is the old kernel, read again after arming.",
        "the trial, with its timer and its way back: on trial",
        "A failure takes the trial back, the boot loader's part first: idle. A kill: armed.",
        "takes it back, starts over",
    ),
    Row(
        State.RESTARTING,
        "As armed, and the restart is under way. For five minutes of this boot nobody gets the host's lock.",
        "the trial, with its timer and its way back: on trial",
        "The restart goes on without the controller. If it does not come: armed.",
        "is refused until the host is back",
    ),
    Row(
        State.LOADED,
        "As prepared, and kexec has loaded the trial, with the handover of the instances. The boot loader "
        "knows nothing of it.",
        "the default, the old kernel: fell back",
        "A failure takes the trial back, what is loaded first: idle. A kill: loaded.",
        "takes it back, starts over",
    ),
    Row(
        State.LEAVING,
        "As loaded, and the host goes down for it. For five minutes of this boot nobody gets the host's "
        "lock.",
        "the default, the old kernel: fell back",
        "The update goes on without the controller: on trial. If the kernel refuses it then, the host "
        "restarts: fell back. If it does not go down: loaded.",
        "is refused until the host is back",
    ),
    Row(
        State.ON_TRIAL,
        "The new kernel runs, with the token of the trial. Its timer runs. Default is the old kernel.",
        "the default, the old kernel: fell back",
        "The controller gives the kernel up. If it is gone, the timer does.",
        "judges it, if it asks for this kernel; else it is refused",
    ),
    Row(
        State.APPROVED,
        "The new kernel was judged healthy, and the note says so. Its timer is stopped. Default is still the "
        "old kernel.",
        "the default, the old kernel: fell back",
        "A failure puts the old default back and starts the timer again: on trial. A kill: approved.",
        "judges it again and promotes it, if it asks for this kernel; else it is refused",
    ),
    Row(
        State.PROMOTED,
        "The new kernel was judged healthy and is the default. Something of the trial is left, or all of it.",
        "the default, the new kernel: promoted",
        "This run succeeds with a warning. Giving up does not restart the host any more. A kill: promoted.",
        "removes what is left, and notes which kernel was good before",
    ),
    Row(
        State.GIVEN_UP,
        "The new kernel runs and was found unhealthy. The restart is under way. Default is the old kernel.",
        "the default, the old kernel: fell back",
        "The restart goes on without the controller, at last by force. If it could not be asked for, the "
        "timer does it.",
        "is refused until the host is back",
    ),
    Row(
        State.FELL_BACK,
        "The trial is over, another boot runs. Note, units and entry of the trial are there and do nothing.",
        "the default, the old kernel",
        "fell back",
        "removes what is left, starts over",
    ),
    Row(
        State.LEFT_BEHIND,
        "There is something of a trial, but its note is missing or damaged, and this boot is not that trial.",
        "the default; if the boot loader still starts the trial once, that, with whatever way back is left",
        "left behind",
        "removes what is left, starts over",
    ),
)

S, E = State, Event
TRANSITIONS: Mapping[State, Mapping[Event, State]] = {
    S.IDLE: {E.PREPARE: S.PREPARED, E.POWER: S.IDLE},
    S.PREPARED: {E.ARM: S.ARMED, E.LOAD: S.LOADED, E.TIDY: S.IDLE, E.POWER: S.FELL_BACK},
    S.ARMED: {E.RESTART: S.RESTARTING, E.TIDY: S.IDLE, E.POWER: S.ON_TRIAL},
    S.RESTARTING: {E.POWER: S.ON_TRIAL},
    S.LOADED: {E.RESTART: S.LEAVING, E.KEXEC: S.ON_TRIAL, E.TIDY: S.IDLE, E.POWER: S.FELL_BACK},
    S.LEAVING: {E.KEXEC: S.ON_TRIAL, E.POWER: S.FELL_BACK},
    S.ON_TRIAL: {E.APPROVE: S.APPROVED, E.GIVE_UP: S.GIVEN_UP, E.POWER: S.FELL_BACK},
    S.APPROVED: {
        E.APPROVE: S.APPROVED,
        E.PROMOTE: S.PROMOTED,
        E.REVERT: S.ON_TRIAL,
        E.GIVE_UP: S.GIVEN_UP,
        E.POWER: S.FELL_BACK,
    },
    S.PROMOTED: {E.TIDY: S.IDLE, E.POWER: S.PROMOTED},
    S.GIVEN_UP: {E.GIVE_UP: S.GIVEN_UP, E.POWER: S.FELL_BACK},
    S.FELL_BACK: {E.TIDY: S.IDLE, E.POWER: S.FELL_BACK},
    S.LEFT_BEHIND: {E.TIDY: S.IDLE, E.POWER: S.LEFT_BEHIND},
}
TIDIED = tuple(state for state, events in TRANSITIONS.items() if E.TIDY in events)
# The host goes down for it.
GOING = (S.RESTARTING, S.LEAVING)
# The new kernel runs and is not promoted.
TRIED = (S.ON_TRIAL, S.APPROVED, S.GIVEN_UP)


@dataclass(frozen=True)
class Note:
    """What is written down of a trial before it begins."""

    token: str
    release: str
    previous: str  # the kernel to go back to
    boot_id: str = ""  # of the boot that it was armed in
    cmdline: str = ""  # more words for the kernel
    failed_units: tuple[str, ...] = ()  # those that had failed before
    armed: int = 0  # seconds since the epoch
    before: str = ""  # entry that was the default
    own: str = ""  # command line that an entry of our own for this kernel had
    verdict: str = ""
    entry: str = ""  # what is to be the default, or is
    live: bool = False  # by kexec, while instances run on
    kept: Mapping[str, Any] = field(default_factory=dict)  # what those showed before, by name
    generation: int = 0  # live updates before this one

    def text(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def parse_note(text: str) -> Note | None:
    """A note that makes sense, or none."""
    try:
        values = parse_json(text)
        names = [one.name for one in dataclasses.fields(Note)]
        fields = {name: values[name] for name in names if name in values}
        fields["failed_units"] = tuple(map(str, fields.get("failed_units", ())))
        note = Note(**fields)
    except (ValueError, TypeError, KeyError):
        return None
    others = {"failed_units": tuple, "armed": int, "live": bool, "kept": dict, "generation": int}
    sound = all(isinstance(value, others.get(name, str)) for name, value in fields.items())
    sound = sound and all(isinstance(seen, dict) for seen in note.kept.values())
    return note if sound and note.token and note.release and note.previous else None


def unit_token(text: str) -> str:
    """The token that a unit of a trial waits for."""
    found = re.search(rf"^ConditionKernelCommandLine={TOKEN_WORD}(\w+)$", text, re.M)
    return found[1] if found else ""


def token_of(cmdline: str) -> str:
    """The token of the trial that a boot is, by its command line; empty if it is none."""
    words = [word for word in cmdline.split() if word.startswith(TOKEN_WORD)]
    return words[-1].removeprefix(TOKEN_WORD) if words else ""


@dataclass(frozen=True)
class Signs:
    """What the state is told from."""

    note: Note | None
    units: bool  # there are units of a trial
    armed: bool  # the boot loader starts a trial once
    boot_id: str
    token: str  # of this boot
    default: str  # entry that a restart starts
    own: str = ""  # command line that an entry of our own for the noted kernel has
    restarting: bool = False  # the restart was asked for in this boot
    loaded: bool = False  # kexec would boot something


def tell(signs: Signs) -> State:
    """The state that a host is in."""
    note = signs.note
    if note is None:
        return State.LEFT_BEHIND if signs.units or signs.armed else State.IDLE
    # With words of its own the entry may have been the default before, with others.
    words = not note.cmdline or signs.own == note.cmdline
    if note.verdict == HEALTHY and note.entry and signs.default == note.entry and words:
        return State.PROMOTED
    if note.token == signs.token and note.boot_id != signs.boot_id:
        return {HEALTHY: State.APPROVED, BAD: State.GIVEN_UP}.get(note.verdict, State.ON_TRIAL)
    if signs.armed:
        return State.RESTARTING if signs.restarting else State.ARMED
    if note.live and signs.loaded and note.boot_id == signs.boot_id:
        return State.LEAVING if signs.restarting else State.LOADED
    return State.PREPARED if note.boot_id == signs.boot_id else State.FELL_BACK


def allows(state: State, event: Event) -> bool:
    return event in TRANSITIONS[state]


def describe(state: State, note: Note | None) -> str:
    """For whoever wanted something that cannot be had in this state: which kernel, and what to do."""
    if note is None:
        return "no trial of a kernel is known here"
    release, previous = note.release, note.previous
    return {
        State.RESTARTING: f"the host is about to restart, to boot {release} once; run again when it is back",
        State.LEAVING: f"the host is about to boot {release} by kexec; run again when it is back",
        State.ON_TRIAL: (
            f"a trial of {release} is running and was neither confirmed nor given up; wait until the host is "
            f"back on {previous}, or ask for {release} to judge it now"
        ),
        State.APPROVED: (
            f"{release} is on trial and was found healthy, but is not the default yet; ask for {release} to "
            "complete that"
        ),
        State.GIVEN_UP: (
            f"{release} was found unhealthy, and the host is about to go back to {previous}; run again when "
            "it is back"
        ),
        State.PROMOTED: f"{release} was found healthy and is the default already",
    }.get(state, f"the trial of {release} is not running (state: {state.value})")


def tidying(state: State, note: Note | None) -> str:
    """The step that ends a state, as a plan names it."""
    if note is None:
        return "remove what is left of a trial whose note is missing or damaged"
    if state is State.PROMOTED:
        return f"complete the promotion of {note.release}"
    if state is State.FELL_BACK:
        return f"forget the trial of {note.release} that was left behind"
    return f"take back the trial of {note.release}, which was not started"


def trial_words(cmdline: str, token: str, watchdog: bool, options: Mapping[str, str] | None) -> list[str]:
    """What a kernel on trial gets on its command line: everything that turns a fault into a restart."""
    return [
        *cmdline.split(),
        f"panic={PANIC_SECONDS}",
        "oops=panic",
        # An initramfs of dracut that does not find its root has a shell otherwise, which nobody ends.
        "rd.shell=0",
        "rd.emergency=reboot",
        *(word for name, (word, _what) in GUARDS.items() if options is None or options.get(name) == "y"),
        "nmi_watchdog=panic",
        *(["systemd.watchdog_sec=60"] if watchdog else []),
        f"{TOKEN_WORD}{token}",
    ]


def trial_units(token: str, seconds: int, script: str, evidence: str) -> dict[str, str]:
    """The units that restart the host unless the trial is confirmed.

    They hold on in emergency and rescue mode and while the system goes down, and do nothing in another boot.
    """
    head = [
        "DefaultDependencies=no",
        "IgnoreOnIsolate=yes",
        f"ConditionKernelCommandLine={TOKEN_WORD}{token}",
    ]
    timer = [
        "[Unit]",
        "Description=Give up the kernel on trial unless it is confirmed",
        *head,
        "[Timer]",
        f"OnBootSec={seconds}",
        "AccuracySec=1",
    ]
    service = [
        "[Unit]",
        "Description=Go back to the kernel before the trial",
        *head,
        "[Service]",
        "Type=oneshot",
        "TimeoutStartSec=infinity",
        f"Environment={' '.join(BY_THE_LOADER)}",
        f"ExecStart=-/usr/bin/timeout -k 5 30 /bin/sh {script} {evidence}",
        "ExecStart=-/usr/bin/systemctl --no-block reboot",
        "ExecStart=-/usr/bin/sleep 90",
        "ExecStart=-/usr/bin/systemctl --no-block --force reboot",
        "ExecStart=-/usr/bin/sleep 30",
        "ExecStart=-/usr/bin/systemctl --force --force reboot",
        "ExecStart=-/bin/sh -c 'echo b >/proc/sysrq-trigger'",
    ]
    return {f"{UNIT}.timer": "\n".join(timer) + "\n", f"{UNIT}.service": "\n".join(service) + "\n"}


# Whatever the kernel on trial can tell before it goes. The journal is for root alone.
EVIDENCE_SCRIPT = """\
#!/bin/sh
# Written by mkops.multikernel.kernel_boot.
umask 077
echo '<3>mkops: the kernel on trial is given up' >/dev/kmsg
# In emergency mode the root may be read-only: the console is what is left.
if ! true >"$1"; then set -- /dev/console; fi
exec >"$1" 2>&1
echo "kernel $(uname -r), boot $(cat /proc/sys/kernel/random/boot_id), up $(cut -d' ' -f1 /proc/uptime) s"
echo '--- failed units'
systemctl list-units --failed --plain --no-legend
echo '--- jobs'
systemctl list-jobs --plain --no-legend | head -n 30
echo '--- network'
cat /proc/net/dev
echo '--- journal'
journalctl -b -o short-monotonic --no-pager -n 400 || dmesg | tail -n 400
sync
"""


def judge(wanted: Mapping[str, Any], seen: Mapping[str, Any]) -> list[str]:
    """Every reason why a kernel is not healthy (yet)."""
    bad = []
    if seen["release"] != wanted["release"]:
        bad.append(f"{seen['release']} is running, not {wanted['release']}")
    if wanted.get("boot_id") and seen["boot_id"] == wanted["boot_id"]:
        bad.append("the host did not restart: its boot id is the same")
    if wanted.get("token") and seen["token"] != wanted["token"]:
        bad.append("this boot is not the trial: its token is not on the command line")
    if wanted.get("multikernel") and not seen["multikernel"]:
        bad.append("the kernel has no multikernel interface")
    if seen["system"] in ("starting", "initializing"):
        bad.append(f"the system is still {seen['system']}")
    if seen["system"] in ("maintenance", "stopping"):
        bad.append(f"the state of the system is {seen['system']}")
    bad += [f"unit {name} is {state}" for name, state in seen["units"].items() if state != "active"]
    new = sorted(set(seen["failed_units"]) - set(wanted.get("failed_units", ())))
    bad += [f"unit {name} failed, but not on the earlier kernel" for name in new]
    for check in seen["checks"]:
        if check["rc"]:
            output = (check["stderr"] or check["stdout"]).strip().splitlines()
            detail = f": {output[-1]}" if output else ""
            bad.append(f"check {' '.join(check['cmd'])} ended with status {check['rc']}{detail}")
    return bad
