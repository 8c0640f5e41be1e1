# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Refused
from ansible_collections.mkops.multikernel.plugins.module_utils.common.size import parse_size
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.machine import (
    Chunk,
    Instance,
    Machine,
    Pool,
    Region,
    environment_reasons,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.model import Model
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.planner import Planner, make_plan
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.steps import Building, anew, transition
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.topology import Topology
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.versions import (
    FIRST_SERIES,
    FULL_SERIES,
    UPSTREAM,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.wish import (
    AllBut,
    Image,
    InstanceWish,
    PoolWish,
    Wish,
    name_reasons,
)

MIB = 1024**2
GIB = 1024**3

# Six CPUs with APIC ids of twice their numbers; CPU 5 is offline.
BARE = Machine(
    release="6.12.107-mkops",
    boot_id="b",
    uptime=1.0,
    supported=True,
    mounted=True,
    privileged=True,
    topology=Topology(
        online=(0, 1, 2, 3, 4),
        present=(0, 1, 2, 3, 4, 5),
        physical={0: 0, 1: 2, 2: 4, 3: 6, 4: 8},
        node={0: 0, 2: 0, 4: 0, 6: 1, 8: 1},
    ),
    node_memory={0: 3 * GIB, 1: 3 * GIB},
    memory_total=8 * GIB,
    memory_available=6 * GIB,
    interface=FULL_SERIES,
    tells_cmdline=True,
)
KERNEL = Image("/boot/vmlinux", 20 * MIB, "k1")
INITRD = Image("/boot/initrd", 2 * MIB, "i1")
WEB = Instance(
    "web",
    1,
    "active",
    (4,),
    256 * MIB,
    {"path": "/boot/vmlinux", "sha256": "k1"},
    {"path": "/boot/initrd", "sha256": "i1"},
    "quiet console=mktty0",
    boot_cpu=4,
)
POOLED = replace(
    BARE,
    topology=replace(BARE.topology, online=(0, 1, 4), present=(0, 1, 4, 5)),
    pool=Pool(
        cpus=(4, 6),
        free_cpus=(6,),
        chunks=(Chunk(1 * GIB, 512 * MIB, 0), Chunk(2 * GIB, 256 * MIB, 0)),
        regions=(Region(1 * GIB, 256 * MIB, "mk-instance-1-web-region-0"),),
    ),
    instances={"web": WEB},
)


def plan_pool(wish, machine, headroom=0):
    return make_plan(Wish(pool=wish, headroom=headroom), machine)


def plan_instance(wish, machine):
    return make_plan(Wish(instances=(wish,)), machine)


def actions(plan):
    return tuple(step.action for step in plan.steps)


def pool_step(plan):
    """CPUs and memory that the pool is to have."""
    (step,) = plan.steps
    assert step.action == "set_pool"
    return tuple(sorted(step.cpus)), step.nodes


def refusals(plan, *arguments, **other):
    with pytest.raises(Refused) as refused:
        plan(*arguments, **other)
    return refused.value.reasons


# The host


@pytest.mark.parametrize(
    ("traits", "words"),
    [
        ({}, []),
        ({"supported": False, "mounted": False, "privileged": False}, ["no multikernel support"]),
        ({"mounted": False}, ["not mounted"]),
        ({"privileged": False}, ["become: true"]),
        ({"mounted": False, "privileged": False}, ["not mounted", "become: true"]),
    ],
)
def test_environment(traits, words):
    reasons = environment_reasons(replace(BARE, **traits))
    assert len(reasons) == len(words)
    assert all(word in reason for word, reason in zip(words, reasons, strict=True))


def test_early_reasons_come_with_those_of_the_host():
    reasons = refusals(make_plan, Wish(), replace(BARE, supported=False), ("early",))
    assert [reason[:5] for reason in reasons] == ["early", "the r"]
    assert refusals(make_plan, Wish(), BARE, ("early",)) == ("early",)


# Pool


@pytest.mark.parametrize(
    ("cpus", "memory", "expected"),
    [
        ((2,), 512 * MIB, ((4,), {0: 512 * MIB})),
        ((3, 4), GIB, ((6, 8), {1: GIB})),  # the memory of the node that the CPUs are on
        ((2, 3), GIB, ((4, 6), {0: GIB})),  # of the first one, when they are on several
        ((2, 3), {0: GIB, 1: 2 * GIB}, ((4, 6), {0: GIB, 1: 2 * GIB})),
    ],
)
def test_new_pool(cpus, memory, expected):
    plan = plan_pool(PoolWish(cpus, memory), BARE)
    assert pool_step(plan) == expected
    assert plan.before["pool"] == {}


@pytest.mark.parametrize(
    "wish",
    [
        PoolWish(),
        PoolWish(cpus=(2, 3)),
        PoolWish(cpus=2),
        PoolWish(cpus=AllBut(3)),
        PoolWish(memory=768 * MIB),
        PoolWish(cpus=(2, 3), memory={0: 768 * MIB}),
        PoolWish(devices=()),
    ],
)
def test_unchanged_pool(wish):
    plan = plan_pool(wish, POOLED)
    assert not plan.changed
    assert plan.before == plan.after


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (PoolWish(cpus=(2, 3, 4)), ((4, 6, 8), {0: 768 * MIB})),
        (PoolWish(cpus=(2,)), ((4,), {0: 768 * MIB})),
        (PoolWish(cpus=1), ((4,), {0: 768 * MIB})),  # the one that is in use stays
        (PoolWish(cpus=3), ((4, 6, 8), {0: 768 * MIB})),
        (PoolWish(cpus=AllBut(1)), ((2, 4, 6, 8), {0: 768 * MIB})),
        (PoolWish(memory=GIB), ((4, 6), {0: GIB})),
        (PoolWish(memory=512 * MIB), ((4, 6), {0: 512 * MIB})),  # the idle chunk goes
        (PoolWish(memory={0: 768 * MIB, 1: GIB}), ((4, 6), {0: 768 * MIB, 1: GIB})),
    ],
)
def test_changed_pool_keeps_what_is_not_said(wish, expected):
    assert pool_step(plan_pool(wish, POOLED)) == expected


@pytest.mark.parametrize(
    ("machine", "wish", "words"),
    [
        (BARE, PoolWish(), ["cpus must be given", "memory must be given"]),
        (BARE, PoolWish(5, GIB), ["5 CPUs cannot go to the pool: the machine has 5 CPUs"]),
        (BARE, PoolWish(AllBut(0), GIB), ["all but 0 cannot go to the pool"]),
        (BARE, PoolWish(AllBut(5), GIB), ["all but 5 cannot go to the pool"]),
        (POOLED, PoolWish(devices=("0000:01:00.0",)), ["lends no devices"]),
        (BARE, PoolWish((0, 2), GIB), ["CPU 0 is the boot CPU"]),
        (BARE, PoolWish((2, 9), GIB), ["CPU 9 does not exist: this machine has 0-5"]),
        (BARE, PoolWish((5,), GIB), ["CPU 5 is offline"]),
        (BARE, PoolWish((0, 5, 9), GIB), ["CPU 0 ", "CPU 5 ", "CPU 9 "]),
        (BARE, PoolWish((2,), {0: 4 * GIB}), ["node 0 would have to give 4 GiB"]),
        (
            BARE,
            PoolWish((2,), 4 * GIB),
            ["take it from several nodes, for example memory: {0: 3 GiB, 1: 1 GiB}"],
        ),
        (BARE, PoolWish((2,), {0: GIB, 7: GIB}), ["NUMA node 7 does not exist: this machine has 0, 1"]),
        (BARE, PoolWish((2,), {0: 3 * GIB, 1: 3 * GIB}), ["keeps 256 MiB of it"]),
        (POOLED, PoolWish(cpus=(3,)), ["CPU 2 is lent to instance web"]),
        (POOLED, PoolWish(memory=640 * MIB), ["512 MiB (in use), 256 MiB"]),
        (POOLED, PoolWish(memory=256 * MIB), ["only whole idle chunks"]),
        (POOLED, PoolWish(memory={1: GIB}), ["node 0 cannot give back 768 MiB"]),
        (
            POOLED,
            PoolWish(cpus=(0, 3), memory=100 * GIB),
            ["CPU 0 ", "CPU 2 is lent", "node 0 would", "from the host"],
        ),
    ],
)
def test_refused_pool(machine, wish, words):
    reasons = refusals(plan_pool, wish, machine, headroom=256 * MIB)
    assert len(reasons) == len(words)
    assert all(word in reason for word, reason in zip(words, reasons, strict=True)), reasons


def test_shrinking_a_pool_on_several_nodes_must_say_where():
    machine = replace(POOLED, pool=replace(POOLED.pool, chunks=(Chunk(GIB, GIB, 0), Chunk(4 * GIB, GIB, 1))))
    assert "several NUMA nodes" in refusals(plan_pool, PoolWish(memory=GIB), machine)[0]


def test_cpus_of_a_pool_whose_numbers_are_unknown():
    machine = replace(POOLED, topology=replace(POOLED.topology, physical={0: 0, 1: 2, 4: 8}))
    reasons = refusals(plan_pool, PoolWish(cpus=(4,)), machine)
    assert "which logical CPUs have the pool's APIC ids 4, 6" in reasons[0]
    assert not plan_pool(PoolWish(memory=768 * MIB), machine).changed


@given(st.lists(st.integers(1, 64), min_size=1, max_size=6), st.integers(1, 400))
def test_a_smaller_pool_is_planned_only_when_chunks_add_up(sizes, wanted):
    chunks = tuple(Chunk(number * GIB, size * MIB, 0) for number, size in enumerate(sizes, start=1))
    machine = replace(BARE, pool=Pool(cpus=(4,), free_cpus=(4,), chunks=chunks))
    total = sum(sizes)
    sums = {0}
    for size in sizes:
        sums |= {have + size for have in sums}
    try:
        plan = plan_pool(PoolWish(memory=wanted * MIB), machine)
    except Refused:
        assert wanted < total
    else:
        after = plan.steps[0].nodes if plan.steps else {0: total * MIB}
        assert after == {0: wanted * MIB}
        assert wanted >= total or total - wanted in sums


def test_no_pool():
    idle = replace(POOLED, instances={}, pool=replace(POOLED.pool, free_cpus=(4, 6), regions=()))
    nothing = PoolWish(absent=True)
    assert pool_step(plan_pool(nothing, idle)) == ((), {})
    assert plan_pool(nothing, idle).after["pool"] == {}
    assert not plan_pool(nothing, BARE).changed
    assert "still serves web" in refusals(plan_pool, nothing, POOLED)[0]


# Transitions


# status, wished state, image given, image differs -> steps
@pytest.mark.parametrize(
    ("status", "wanted", "given", "differs", "steps"),
    [
        (None, "absent", False, False, ""),
        ("empty", "absent", False, False, "delete"),
        ("ready", "absent", False, False, "delete"),
        ("failed", "absent", False, False, "delete"),
        ("loaded", "absent", False, False, "unload delete"),
        ("active", "absent", False, False, "kill unload delete"),
        #
        (None, "present", False, False, "create"),
        (None, "present", True, False, "create"),
        ("ready", "present", True, False, ""),
        ("loaded", "present", True, True, ""),
        ("active", "present", True, True, ""),
        #
        (None, "loaded", True, False, "create load"),
        ("empty", "loaded", True, False, "load"),
        ("ready", "loaded", True, False, "load"),
        ("loaded", "loaded", True, False, ""),
        ("loaded", "loaded", False, False, ""),
        ("loaded", "loaded", True, True, "unload load"),
        ("active", "loaded", True, False, ""),
        ("active", "loaded", True, True, "kill unload load start"),
        #
        (None, "started", True, False, "create load start"),
        ("ready", "started", True, False, "load start"),
        ("loaded", "started", True, False, "start"),
        ("loaded", "started", False, False, "start"),
        ("loaded", "started", True, True, "unload load start"),
        ("active", "started", True, False, ""),
        ("active", "started", False, False, ""),
        ("active", "started", True, True, "kill unload load start"),
        #
        (None, "stopped", False, False, "create"),
        (None, "stopped", True, False, "create load"),
        ("ready", "stopped", False, False, ""),
        ("ready", "stopped", True, False, "load"),
        ("loaded", "stopped", True, False, ""),
        ("loaded", "stopped", True, True, "unload load"),
        ("active", "stopped", False, False, "kill"),
        ("active", "stopped", True, False, "kill"),
        ("active", "stopped", True, True, "kill unload load"),
    ],
)
def test_transition(status, wanted, given, differs, steps):
    assert transition(status, wanted, given, differs) == tuple(steps.split())


REACHED = {
    "create": "ready",
    "unload": "ready",
    "load": "loaded",
    "kill": "loaded",
    "start": "active",
    "delete": None,
}
ALLOWED = {
    "create": {None},
    "load": {"ready", "empty"},
    "start": {"loaded"},
    "kill": {"active"},
    "unload": {"loaded"},
    "delete": {"ready", "empty", "failed"},
}


@given(
    st.sampled_from([None, "empty", "ready", "loaded", "active"]),
    st.sampled_from(["absent", "present", "loaded", "started", "stopped"]),
    st.booleans(),
)
def test_steps_follow_from_each_other_and_arrive(status, wanted, differs):
    differs = differs and status in ("loaded", "active") and wanted not in ("absent", "present")
    for step in transition(status, wanted, True, differs):
        assert status in ALLOWED[step]
        status = REACHED[step]
    arrived = {
        "absent": {None},
        "present": {"empty", "ready", "loaded", "active"},
        "loaded": {"loaded", "active"},
        "started": {"active"},
        "stopped": {"loaded"},
    }[wanted]
    assert status in arrived
    assert transition(status, wanted, True, False) == ()


# Instance


def wish(state="started", **other):
    return InstanceWish("web", state, **other)


IMAGE = {"kernel": KERNEL, "initrd": INITRD, "cmdline": "quiet"}


def test_new_instance():
    machine = replace(POOLED, instances={})
    machine = replace(machine, pool=replace(machine.pool, free_cpus=(6, 4), regions=()))
    plan = plan_instance(wish(cpus=(3,), memory=256 * MIB, **IMAGE), machine)
    assert actions(plan) == ("create", "load", "start")
    assert (plan.steps[0].cpus, plan.steps[0].memory) == ({6}, 256 * MIB)
    assert plan.after["instances"]["web"] == {
        "name": "web",
        "state": "active",
        "cpus": "3",
        "memory": "256 MiB",
        "kernel": {"path": "/boot/vmlinux", "sha256": "k1"},
        "initrd": {"path": "/boot/initrd", "sha256": "i1"},
        "cmdline": "quiet console=mktty0",
    }
    assert plan_instance(wish("present", cpu_count=2, memory=GIB // 4), machine).steps[0].cpus == {4, 6}


@pytest.mark.parametrize(
    "same",
    [
        wish(),
        wish("present"),
        wish(**IMAGE),
        wish("loaded", **IMAGE),
        wish(cpus=(2,), memory=256 * MIB, id=1, **IMAGE),
        wish(cpu_count=1, **{**IMAGE, "cmdline": "quiet console=mktty0"}),
    ],
)
def test_unchanged_instance(same):
    plan = plan_instance(same, POOLED)
    assert actions(plan) == ()
    assert plan.before == plan.after


@pytest.mark.parametrize(
    ("image", "word"),
    [
        ({**IMAGE, "kernel": replace(KERNEL, sha256="k2")}, "kernel /boot/vmlinux has changed"),
        ({**IMAGE, "initrd": replace(INITRD, sha256="i2")}, "initrd /boot/initrd has changed"),
        ({**IMAGE, "initrd": None}, "initrd /boot/initrd is loaded, but none is wanted"),
        (
            {**IMAGE, "cmdline": "debug"},
            "command line is 'quiet console=mktty0' instead of 'debug console=mktty0'",
        ),
        ({**IMAGE, "cmdline": "quiet console=ttynull"}, "instead of 'quiet console=ttynull'"),
    ],
)
def test_another_image(image, word):
    reasons = refusals(plan_instance, wish(**image), POOLED)
    assert len(reasons) == 1
    assert word in reasons[0]
    assert "allow_restart: true" in reasons[0]
    restart = ("kill", "unload", "load", "start")
    assert actions(plan_instance(wish(allow_restart=True, **image), POOLED)) == restart
    assert actions(plan_instance(wish("stopped", **image), POOLED)) == restart[:3]
    stopped = replace(POOLED, instances={"web": replace(WEB, status="loaded")})
    assert actions(plan_instance(wish(**image), stopped)) == restart[1:]


def test_an_image_of_unknown_origin_counts_as_another():
    machine = replace(POOLED, instances={"web": replace(WEB, kernel={}, initrd={})})
    reason = refusals(plan_instance, wish(**IMAGE), machine)[0]
    assert "there is no record of the kernel that is loaded" in reason
    assert actions(plan_instance(wish(), machine)) == ()


def test_a_command_line_that_the_kernel_does_not_tell_is_not_compared():
    machine = replace(POOLED, tells_cmdline=False, instances={"web": replace(WEB, cmdline=None)})
    assert actions(plan_instance(wish(**{**IMAGE, "cmdline": "other"}), machine)) == ()


@pytest.mark.parametrize(
    ("other", "steps"),
    [
        ({"cpus": (2, 3)}, ["set_cpus web: CPUs 2-3 instead of 2"]),
        ({"cpu_count": 2}, ["set_cpus web: CPUs 2-3 instead of 2"]),
        ({"memory": 512 * MIB}, ["set_memory web: 512 MiB instead of 256 MiB"]),
        (
            {"cpu_count": 2, "memory": 384 * MIB},
            ["set_memory web: 384 MiB instead of 256 MiB", "set_cpus web: CPUs 2-3 instead of 2"],
        ),
    ],
)
def test_what_a_running_instance_has_changes_in_place(other, steps):
    assert [step.text for step in plan_instance(wish(**other), POOLED).steps] == steps


@pytest.mark.parametrize(
    ("machine", "other", "word"),
    [
        (POOLED, {"cpus": (3,)}, "it was started on CPU 2"),
        (POOLED, {"memory": 300 * MIB}, "steps of 128 MiB, and 44 MiB more is not a multiple of that"),
        (POOLED, {"memory": 640 * MIB}, "no chunk of the pool has 384 MiB free in one piece"),
        (POOLED, {"memory": 128 * MIB}, "and it has 256 MiB"),
        (POOLED, {"id": 7}, "its id is 1 instead of 7"),
        (replace(POOLED, interface=FIRST_SERIES), {"cpus": (2, 3)}, "cannot change that"),
        (replace(POOLED, interface=FIRST_SERIES), {"memory": 512 * MIB}, "cannot change that"),
    ],
)
def test_what_needs_a_restart(machine, other, word):
    reasons = refusals(plan_instance, wish(**IMAGE, **other), machine)
    assert len(reasons) == 1
    assert word in reasons[0]
    assert "allow_restart: true" in reasons[0]
    plan = plan_instance(wish(**IMAGE, allow_restart=True, **other), machine)
    assert actions(plan)[0] == "kill"
    assert word in plan.steps[0].text
    assert plan.after["instances"]["web"]["state"] == "active"
    # What does not run loses nothing but its image, which is at hand.
    loaded = replace(machine, instances={"web": replace(WEB, status="loaded")})
    assert "kill" not in actions(plan_instance(wish(**IMAGE, **other), loaded))


def test_an_instance_shrinks_by_the_pieces_in_which_it_grew():
    regions = (
        Region(GIB, 128 * MIB, "mk-instance-1-web-region-0"),
        Region(GIB + 384 * MIB, 128 * MIB, "mk-instance-1-web-region-3"),
    )
    machine = replace(POOLED, pool=replace(POOLED.pool, regions=regions))
    assert actions(plan_instance(wish(memory=128 * MIB), machine)) == ("set_memory",)
    assert "newest first" in refusals(plan_instance, wish(memory=64 * MIB), machine)[0]


NEW = {"memory": 256 * MIB}


@pytest.mark.parametrize(
    ("machine", "other", "words"),
    [
        (BARE, {"cpus": (3,), **NEW}, ["there is no pool yet"]),
        (POOLED, {"cpus": (2,), **NEW}, ["CPU 2 is already lent to instance web: choose one of 3"]),
        (POOLED, {"cpus": (4,), **NEW}, ["CPU 4 is not in the pool (2-3)"]),
        (POOLED, {"cpus": (0,), **NEW}, ["CPU 0 is the boot CPU"]),
        (POOLED, {"cpus": (9,), **NEW}, ["CPU 9 does not exist"]),
        (POOLED, NEW, ["cpus or cpu_count must be given"]),
        (POOLED, {"cpu_count": 2, **NEW}, ["instance new needs 2 CPUs, but the pool has only 1"]),
        (POOLED, {"cpus": (3,)}, ["memory must be given"]),
        (
            POOLED,
            {"cpus": (3,), "memory": GIB},
            ["instance new needs 1 GiB, but the pool has only 768 MiB"],
        ),
        (POOLED, {"cpus": (3,), "id": 1, **NEW}, ["id 1 is taken by instance web"]),
        (
            POOLED,
            {"cpus": (0, 2), "memory": GIB, "id": 1},
            ["boot CPU", "already lent", "is taken", "has only 768 MiB"],
        ),
    ],
)
def test_refused_new_instance(machine, other, words):
    reasons = refusals(plan_instance, InstanceWish("new", "present", **other), machine)
    assert len(reasons) == len(words), reasons
    assert all(word in reason for word, reason in zip(words, reasons, strict=True)), reasons


def test_all_cpus_lent():
    other = Instance("other", 2, "ready", (6,), 64 * MIB)
    machine = replace(POOLED, instances={"web": WEB, "other": other})
    reasons = refusals(plan_instance, InstanceWish("new", "present", cpus=(2,), **NEW), machine)
    assert "all others are lent too" in reasons[0]


@pytest.mark.parametrize("state", ["loaded", "started"])
def test_a_kernel_is_needed_to_load(state):
    machine = replace(POOLED, instances={"web": replace(WEB, status="ready", kernel={}, initrd={})})
    assert f"state {state} needs one" in refusals(plan_instance, wish(state), machine)[0]
    assert actions(plan_instance(wish("stopped"), machine)) == ()


def test_files_must_fit_into_the_memory():
    big = replace(KERNEL, size=255 * MIB)
    reasons = refusals(plan_instance, wish(kernel=big, initrd=INITRD, allow_restart=True), POOLED)
    assert "/boot/vmlinux and /boot/initrd alone take 257 MiB" in reasons[0]


def test_failed_instances_are_made_anew():
    machine = replace(POOLED, instances={"web": replace(WEB, status="failed")})
    assert actions(plan_instance(wish(**IMAGE), machine)) == ("delete", "create", "load", "start")
    assert actions(plan_instance(wish("absent"), machine)) == ("delete",)


def test_states_that_are_not_known():
    machine = replace(POOLED, instances={"web": replace(WEB, status="loading")})
    assert "is in state 'loading'" in refusals(plan_instance, wish(), machine)[0]
    assert "is in state 'loading'" in refusals(plan_instance, wish("absent"), machine)[0]
    # Of others, it is nobody's business.
    assert actions(plan_instance(InstanceWish("new", cpus=(3,), **NEW), machine)) == ("create",)


def test_no_loading_where_it_is_disabled():
    machine = replace(POOLED, kexec_disabled=True)
    assert actions(plan_instance(wish(**IMAGE), machine)) == ()
    loading = wish(allow_restart=True, **{**IMAGE, "cmdline": "x"})
    assert "kexec_load_disabled is 1" in refusals(plan_instance, loading, machine)[0]


def test_absent_asks_for_nothing_but_a_name():
    assert actions(plan_instance(wish("absent"), POOLED)) == ("kill", "unload", "delete")
    gone = plan_instance(InstanceWish("other", "absent"), POOLED)
    assert (gone.steps, gone.before["instances"]) == ((), {})


@pytest.mark.parametrize("name", ["a", "web-1", "A.b_c", "0", "x" * 63])
def test_names(name):
    assert name_reasons(name) == []


@pytest.mark.parametrize("name", ["", ".", "..", "-web", "a/b", "a b", "x" * 64, "wéb", "a\n"])
def test_refused_names(name):
    assert len(name_reasons(name)) == 1


# Whatever is planned is possible


def shared(name, number, cpu, **other):
    """A running instance of the pool (2, 3) with one CPU."""
    return replace(WEB, name=name, id=number, cpus=(cpu,), boot_cpu=cpu, **other)


SHARED = replace(
    POOLED,
    pool=replace(
        POOLED.pool,
        free_cpus=(),
        regions=(
            Region(1 * GIB, 256 * MIB, "mk-instance-1-a-region-0"),
            Region(2 * GIB, 256 * MIB, "mk-instance-2-c-region-0"),
        ),
    ),
    instances={"a": shared("a", 1, 4), "c": shared("c", 2, 6)},
)


@pytest.mark.parametrize(
    ("instances", "words"),
    [
        # c keeps its CPU, whether it is declared without CPUs or not at all.
        (
            (InstanceWish("a", cpus=(2, 3), allow_restart=True), InstanceWish("c")),
            ["CPU 3 is already lent to instance c: all others are lent too, or specify other CPUs for c"],
        ),
        (
            (InstanceWish("a", cpus=(3,), allow_restart=True), InstanceWish("c", "started", **IMAGE)),
            ["CPU 3 is already lent to instance c"],
        ),
        (
            (InstanceWish("new", cpus=(2,), memory=64 * MIB), InstanceWish("a", memory=256 * MIB)),
            ["CPU 2 is already lent to instance a"],
        ),
        ((InstanceWish("a", cpus=(2, 3)),), ["CPU 3 is already lent to instance c"]),
        # Counted ones do not get it either.
        (
            (InstanceWish("a", cpu_count=2, allow_restart=True), InstanceWish("c")),
            ["cpu_count: instance a needs 2 CPUs"],
        ),
        # Nor its memory or id.
        (
            (InstanceWish("a", cpus=(2,), memory=640 * MIB, allow_restart=True, **IMAGE), InstanceWish("c")),
            ["instance a needs 640 MiB"],
        ),
        (
            (InstanceWish("a", id=2, allow_restart=True, **IMAGE), InstanceWish("c")),
            ["id 2 is taken by instance c"],
        ),
    ],
)
def test_what_a_declared_instance_keeps_is_not_another_ones(instances, words):
    reasons = refusals(make_plan, Wish(instances=instances), SHARED)
    assert len(reasons) == len(words), reasons
    assert all(word in reason for word, reason in zip(words, reasons, strict=True)), reasons


def test_what_is_said_for_both_may_change_hands():
    wished = InstanceWish("a", cpus=(2, 3)), InstanceWish("c", "absent")
    assert actions(make_plan(Wish(instances=wished), SHARED)) == ("kill", "unload", "delete", "set_cpus")


def test_those_that_name_an_id_are_created_first():
    """The kernel would give it to the one before."""
    wished = (
        InstanceWish("first", cpus=(2,), memory=64 * MIB),
        InstanceWish("second", cpus=(3,), memory=64 * MIB, id=1),
    )
    empty = replace(SHARED, instances={}, pool=replace(SHARED.pool, regions=(), free_cpus=(4, 6)))
    assert [step.name for step in make_plan(Wish(instances=wished), empty).steps] == ["second", "first"]


def test_a_plan_that_cannot_be_carried_out_is_none(monkeypatch):
    """Whatever the planner thinks: here it believes that CPU 3 is free."""
    monkeypatch.setattr(Building, "_lent", lambda _self: {})
    monkeypatch.setattr(Planner, "_check_explicit", lambda *_arguments: None)
    wished = InstanceWish("a", cpus=(2, 3)), InstanceWish("c")
    assert refusals(make_plan, Wish(instances=wished), SHARED) == (
        "instance a: set_cpus is not possible: CPU 3 is lent to instance c:"
        " choose another, or take it from that instance in the same task",
    )


# NUMA

FOUR = replace(
    BARE,
    node_memory={0: 1 * GIB, 1: 3 * GIB, 2: 4 * GIB, 3: 5 * GIB},
    memory_available=13 * GIB,
    memory_total=16 * GIB,
)
AWAY = {0: {0: 10, 1: 31, 2: 21, 3: 12}, 1: {0: 31, 1: 10, 2: 12, 3: 21}}


@pytest.mark.parametrize(
    ("distances", "cpus", "size", "memory"),
    [
        (AWAY, (1, 2), GIB, {0: GIB}),  # APIC ids 2 and 4 are on node 0
        (AWAY, (1, 2), 2 * GIB, {3: 2 * GIB}),  # which has not so much
        (AWAY, (3, 4), 4 * GIB, {2: 4 * GIB}),
        (AWAY, (3, 4), 5 * GIB, {3: 5 * GIB}),
        ({}, (1, 2), 2 * GIB, {1: 2 * GIB}),  # distances are not told: in order
        ({}, (1, 2), 5 * GIB, {3: 5 * GIB}),
    ],
)
def test_memory_of_the_pool_comes_from_the_nearest_node_that_has_it(distances, cpus, size, memory):
    machine = replace(FOUR, distances=distances)
    assert pool_step(plan_pool(PoolWish(cpus=cpus, memory=size), machine))[1] == memory


@pytest.mark.parametrize(
    ("distances", "size", "written"),
    [
        (AWAY, 6 * GIB, "memory: {0: 1 GiB, 3: 5 GiB}"),
        (AWAY, 8 * GIB, "memory: {0: 1 GiB, 2: 2 GiB, 3: 5 GiB}"),
        ({}, 6 * GIB, "memory: {0: 1 GiB, 1: 3 GiB, 2: 2 GiB}"),
    ],
)
def test_memory_that_no_node_has_alone(distances, size, written):
    machine = replace(FOUR, distances=distances)
    reasons = refusals(plan_pool, PoolWish(cpus=(1, 2), memory=size), machine)
    assert len(reasons) == 1
    assert reasons[0].endswith(f"take it from several nodes, for example {written}")
    nodes = {node: parse_size(size) for node, size in yaml.safe_load(written)["memory"].items()}
    assert pool_step(plan_pool(PoolWish(cpus=(1, 2), memory=nodes), machine))[1] == nodes


def test_a_pool_grows_on_the_nearest_node_that_has_it():
    pooled = replace(POOLED, node_memory={0: 100 * MIB, 1: 3 * GIB}, instances={})
    (step,) = plan_pool(PoolWish(memory=GIB), pooled).steps
    assert step.nodes == {0: 768 * MIB, 1: 256 * MIB}


@pytest.mark.parametrize(
    ("sizes", "cpus", "wanted", "node"),
    [
        ({0: GIB, 1: GIB, 2: GIB}, (1,), 512 * MIB, 0),
        ({0: 256 * MIB, 1: GIB, 2: GIB}, (1,), 512 * MIB, 2),
        ({1: GIB, 2: 256 * MIB}, (1,), 512 * MIB, 1),
        ({0: GIB, 1: GIB}, (1, 3), 512 * MIB, None),  # CPUs of two nodes
        ({0: GIB, 1: GIB}, (1,), 1536 * MIB, None),  # no node has it alone
    ],
)
def test_memory_of_an_instance_comes_from_the_nearest_node_that_has_it(sizes, cpus, wanted, node):
    chunks = tuple(Chunk((place + 1) * 4 * GIB, size, place) for place, size in sizes.items())
    machine = replace(
        FOUR,
        distances=AWAY,
        topology=replace(FOUR.topology, online=(0, 2, 4)),
        pool=Pool(cpus=(2, 6), free_cpus=(2, 6), chunks=chunks),
    )
    (step,) = plan_instance(InstanceWish("new", cpus=cpus, memory=wanted), machine).steps
    assert step.node == node


@pytest.mark.parametrize(
    ("interface", "device_trees", "words"),
    [
        (UPSTREAM, False, ["kernel /boot/vmlinux for instance new was built without CONFIG_OF"]),
        (UPSTREAM, True, []),
        (UPSTREAM, None, []),
        (FULL_SERIES, False, []),
    ],
)
def test_spawns_of_multikernel_linux_need_device_trees(interface, device_trees, words):
    machine = replace(POOLED, interface=interface)
    kernel = replace(KERNEL, device_trees=device_trees)
    wished = InstanceWish("new", "started", cpus=(3,), memory=64 * MIB, kernel=kernel)
    reasons = refusals(plan_instance, wished, machine) if words else ()
    assert all(word in reason for word, reason in zip(words, reasons, strict=True)), reasons
    if not words:
        assert actions(plan_instance(wished, machine)) == ("create", "load", "start")


@pytest.mark.parametrize(
    ("cpus", "interface", "actions"),
    [
        (100, UPSTREAM, ["delete", "create"]),
        (500, UPSTREAM, ["delete", "create", "set_cpus"]),
        (500, FULL_SERIES, ["delete", "create"]),
    ],
)
def test_an_instance_is_made_anew_as_it_was(cpus, interface, actions):
    spoiled = Instance("big", 7, "ready", tuple(range(2, cpus + 2)), 256 * MIB)
    chunks = Chunk(GIB, GIB, 0), Chunk(4 * GIB, GIB, 1)
    regions = (Region(4 * GIB, 256 * MIB, "mk-instance-7-big-region-0"),)
    pool = Pool(cpus=spoiled.cpus, chunks=chunks, regions=regions)
    machine = replace(BARE, interface=interface, pool=pool, instances={"big": spoiled})
    steps = anew(spoiled, machine)
    assert [step.action for step in steps] == actions
    assert steps[1].node == 1
    model = Model(machine)
    for step in steps:
        model.take(step, InstanceWish("big", id=7))
    made = model.machine
    assert (made.pool.cpus, made.pool.chunks, made.pool.regions) == (pool.cpus, chunks, regions)
    one = made.instances["big"]
    assert (one.id, one.cpus, one.memory, one.status) == (7, spoiled.cpus, spoiled.memory, "ready")


def test_a_lent_cpu_of_the_pool_that_has_no_other_place():
    """The instance has only that one, and gets it from nowhere else: it is made anew."""
    other = replace(POOLED, topology=replace(POOLED.topology, online=(0, 1, 4)))
    wished = Wish(
        pool=PoolWish(cpus=(3, 4), memory=768 * MIB),
        instances=(wish(cpus=(4,), memory=256 * MIB, allow_restart=True, **IMAGE),),
    )
    plan = make_plan(wished, other)
    assert actions(plan) == ("kill", "unload", "delete", "set_pool", "create", "load", "start")


@pytest.mark.parametrize(
    ("memory", "taken", "warning"),
    [
        (64 * GIB, GIB, None),
        (
            65 * GIB,
            GIB,
            "the pool is larger than 64 GiB, and Multikernel Linux up to 7.0-mk2 may fail to map",
        ),
        (GIB, GIB, "the instances take all of the pool's memory, and this kernel needs a little of it"),
        (GIB + 128 * MIB, GIB, None),
    ],
)
def test_pools_that_multikernel_linux_has_trouble_with(memory, taken, warning):
    large = replace(
        BARE,
        interface=UPSTREAM,
        node_memory={0: 200 * GIB},
        memory_total=300 * GIB,
        memory_available=250 * GIB,
    )
    wish = Wish(PoolWish(cpus=2, memory=memory), (InstanceWish("a", cpus=(1,), memory=taken),))
    warnings = make_plan(wish, replace(large, topology=replace(large.topology, node={}))).warnings
    assert len(warnings) == (1 if warning else 0)
    assert all(warning in text for text in warnings)
    # The collection's own series has neither trouble.
    assert make_plan(wish, replace(large, interface=FULL_SERIES)).warnings == ()
