# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.boot import trial
from ansible_collections.mkops.multikernel.plugins.module_utils.boot.trial import (
    BAD,
    HEALTHY,
    TABLE,
    TRANSITIONS,
    Event,
    Note,
    Signs,
    State,
)

OLD, NEW = "6.1.0-old", "6.12.9-new"
NOTE = Note("t0ken", NEW, OLD, boot_id="armed here", before="old", failed_units=("a.service",))
LIVE = dataclasses.replace(NOTE, live=True, kept={"red": {"id": 1, "epoch": 2}}, generation=3)
DOCS = Path(__file__).parents[5] / "docs/rollout.md"


def test_the_documentation_has_this_table():
    text = DOCS.read_text()
    rows = [f"| {row.state.value} | {row.holds} | {row.power} | {row.failure} | {row.run} |" for row in TABLE]
    head = "| state | what holds | a power cycle starts | a failure or a kill leads to | the next run |"
    assert "\n".join([head, "|---|---|---|---|---|", *rows]) + "\n" in text


def test_every_state_is_in_the_tables():
    assert [row.state for row in TABLE] == list(State)
    assert set(TRANSITIONS) == set(State)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.state.name)
def test_the_words_of_the_table_are_those_of_the_transitions(row):
    """What a power cycle leads to, what takes the trial back, and whether the next run ends it."""
    events = TRANSITIONS[row.state]
    after = events[Event.POWER]
    if ": " in row.power:
        assert row.power.endswith(f": {after.value}")
    else:
        assert after in (row.state, State.FELL_BACK)
    assert ("removes what is left" in row.run or "takes it back" in row.run) == (Event.TIDY in events)
    assert row.run.startswith("is refused") == (set(events) <= {Event.POWER, Event.KEXEC, Event.GIVE_UP})
    assert ("judges it" in row.run) == (Event.APPROVE in events)


@pytest.mark.parametrize("state", list(State), ids=lambda state: state.name)
def test_every_state_has_a_way_out(state):
    """To idle, without anybody but the machine itself and the next run."""
    reached, edge = {state}, [state]
    while edge:
        events = TRANSITIONS[edge.pop()]
        new = {events[event] for event in (Event.POWER, Event.TIDY) if event in events} - reached
        reached |= new
        edge += new
    assert State.IDLE in reached


def test_no_new_kernel_runs_unjudged_but_on_trial():
    """After a power cycle a new kernel runs by a trial, or because it was approved before."""
    for state, events in TRANSITIONS.items():
        if events[Event.POWER] is State.ON_TRIAL:
            assert state in (State.ARMED, State.RESTARTING)
        if Event.PROMOTE in events:
            assert state is State.APPROVED


def signs(note=NOTE, **more):
    values = {"units": False, "armed": False, "boot_id": "now", "token": "", "default": "old"} | more
    return Signs(note=note, **values)


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (signs(None), State.IDLE),
        (signs(None, token="t0ken"), State.IDLE),
        (signs(None, units=True), State.LEFT_BEHIND),
        (signs(None, armed=True), State.LEFT_BEHIND),
        (signs(boot_id="armed here"), State.PREPARED),
        (signs(boot_id="armed here", units=True, armed=True), State.ARMED),
        (signs(boot_id="armed here", units=True, armed=True, restarting=True), State.RESTARTING),
        (signs(token="t0ken", units=True), State.ON_TRIAL),
        (signs(token="another"), State.FELL_BACK),
        (signs(units=True), State.FELL_BACK),
        # It was started, but the boot loader has not forgotten it.
        (signs(units=True, armed=True), State.ARMED),
        # By kexec, which the boot loader knows nothing of
        (signs(LIVE, boot_id="armed here"), State.PREPARED),
        (signs(LIVE, boot_id="armed here", loaded=True), State.LOADED),
        (signs(LIVE, boot_id="armed here", loaded=True, restarting=True), State.LEAVING),
        (signs(LIVE, token="t0ken", units=True), State.ON_TRIAL),
        (signs(LIVE, token="t0ken", units=True, loaded=True), State.ON_TRIAL),
        (signs(LIVE, units=True, loaded=True), State.FELL_BACK),
        # What somebody else has loaded is nothing of a trial by the boot loader.
        (signs(boot_id="armed here", loaded=True), State.PREPARED),
        (signs(dataclasses.replace(NOTE, verdict=HEALTHY, entry="new"), token="t0ken"), State.APPROVED),
        (signs(dataclasses.replace(NOTE, verdict=HEALTHY, entry="new")), State.FELL_BACK),
        (
            signs(dataclasses.replace(NOTE, verdict=HEALTHY, entry="new"), token="t0ken", default="new"),
            State.PROMOTED,
        ),
        (signs(dataclasses.replace(NOTE, verdict=HEALTHY, entry="new"), default="new"), State.PROMOTED),
        (signs(dataclasses.replace(NOTE, verdict=BAD), token="t0ken"), State.GIVEN_UP),
        (signs(dataclasses.replace(NOTE, verdict=BAD, entry="new"), default="new"), State.FELL_BACK),
    ],
)
def test_the_state_is_told_from_what_is_there(found, state):
    assert trial.tell(found) is state


@pytest.mark.parametrize(("own", "state"), [("a=1", State.APPROVED), ("a=2", State.PROMOTED)])
def test_an_entry_of_our_own_counts_by_its_words(own, state):
    """The same entry was the default before, with other words."""
    note = dataclasses.replace(NOTE, cmdline="a=2", verdict=HEALTHY, entry="own")
    assert trial.tell(signs(note, token="t0ken", default="own", own=own)) is state


def test_any_combination_of_signs_is_a_state():
    notes = [
        None,
        NOTE,
        LIVE,
        *(dataclasses.replace(NOTE, verdict=word, entry="new") for word in (HEALTHY, BAD)),
    ]
    flags = (False, True)
    for note, units, armed, restarting, loaded, boot, token, default in itertools.product(
        notes, flags, flags, flags, flags, ("now", "armed here"), ("", "t0ken", "x"), ("old", "new", "")
    ):
        found = Signs(note, units, armed, boot, token, default, restarting=restarting, loaded=loaded)
        state = trial.tell(found)
        assert state in TRANSITIONS
        # Whoever is refused is told a name.
        text = trial.describe(state, note)
        assert note is None or NEW in text
        if state in trial.TIDIED:
            assert trial.tidying(state, note)
            assert note is None or NEW in trial.tidying(state, note)


def test_a_note_is_read_as_it_was_written():
    assert trial.parse_note(NOTE.text()) == NOTE
    assert trial.parse_note(LIVE.text()) == LIVE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        pytest.param("[" * 100_000, id="deep"),
        json.dumps({"token": "t"}),
        json.dumps({"token": "", "release": NEW, "previous": OLD}),
        json.dumps({"token": "t", "release": "", "previous": OLD}),
        json.dumps({"token": 7, "release": NEW, "previous": OLD}),
        json.dumps({"token": "t", "release": NEW, "previous": OLD, "failed_units": 7}),
        json.dumps({"token": "t", "release": NEW, "previous": OLD, "armed": "x"}),
        NOTE.text()[:40],
    ],
)
def test_a_note_that_makes_no_sense_is_none(text):
    assert trial.parse_note(text) is None


def test_a_note_of_another_version():
    """Of what it has more nothing is known, what it lacks has not happened."""
    known = {"token": "t", "release": NEW, "previous": OLD, "evidence": "/x", "verdict2": []}
    assert trial.parse_note(json.dumps(known)) == Note("t", NEW, OLD)


def test_the_token_of_a_unit_is_found_again():
    units = trial.trial_units("abc123", 600, "/script", "/evidence")
    assert {trial.unit_token(text) for text in units.values()} == {"abc123"}
    assert trial.unit_token("[Unit]\n") == ""


@pytest.mark.parametrize(
    ("cmdline", "token"),
    [("ro quiet", ""), ("mkops.trial=a ro", "a"), ("mkops.trial=a mkops.trial=b", "b"), ("", "")],
)
def test_the_last_token_of_a_command_line_counts(cmdline, token):
    assert trial.token_of(cmdline) == token


@pytest.mark.parametrize("verdict", ["starting", "initializing", "maintenance", "stopping"])
def test_a_system_that_is_not_up(verdict):
    seen = {"release": NEW, "boot_id": "b", "token": "", "multikernel": False, "system": verdict}
    seen |= {"units": {}, "failed_units": (), "checks": []}
    (reason,) = trial.judge({"release": NEW}, seen)
    assert verdict in reason
    assert trial.judge({"release": NEW, "multikernel": True}, seen | {"system": "running"}) == [
        "the kernel has no multikernel interface"
    ]
