# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Refused
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kerf import words_of
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import KernelFs, Paths
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.machine import Region
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.model import (
    Impossible,
    Model,
    refusal,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.planner import make_plan
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.steps import Step
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.versions import FIRST_SERIES, UPSTREAM
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.wish import (
    AllBut,
    Image,
    InstanceWish,
    PoolWish,
    Wish,
)
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import FakeKernel
from ansible_collections.mkops.multikernel.tests.unit.plugins.module_utils.divide.test_planner import (
    BARE,
    KERNEL,
    POOLED,
    WEB,
)

MIB = 1024**2
GIB = 1024**3
WISH = InstanceWish("new", "started", cpus=(3,), memory=128 * MIB, kernel=KERNEL)
CREATE = Step("create", "new", "ready", frozenset({6}), 128 * MIB)
ONCE = Step("create", "new", "ready", frozenset({6}), 128 * MIB, node=0)
READY = replace(POOLED, instances={"web": replace(WEB, status="ready")})
TWO = replace(WEB, cpus=(4, 6), boot_cpu=4)
BOTH = replace(POOLED, instances={"web": TWO})


def pool(cpus, memory):
    return Step("set_pool", cpus=frozenset(cpus), nodes=memory)


def web(action, status, cpus=(4,), memory=256 * MIB):
    return Step(action, "web", status, frozenset(cpus), memory)


@pytest.mark.parametrize(
    ("machine", "step", "wish", "why"),
    [
        # CPUs
        (POOLED, replace(CREATE, cpus=frozenset()), WISH, "it would have no CPU"),
        (POOLED, replace(CREATE, cpus=frozenset({4, 6})), WISH, "CPU 2 is lent to instance web"),
        (POOLED, replace(CREATE, cpus=frozenset({2})), WISH, "CPU 1 is not in the pool"),
        (POOLED, web("set_cpus", "active", (6,)), None, "cannot give up all of its CPUs at once"),
        (BOTH, web("set_cpus", "active", (6,)), None, "it was started on CPU 2"),
        (POOLED, web("set_cpus", "active", (4, 8)), None, "CPU 4 is not in the pool"),
        (
            replace(BOTH, interface=FIRST_SERIES),
            web("set_cpus", "active", (4,)),
            None,
            "cannot change its CPUs",
        ),
        # Memory
        (POOLED, replace(CREATE, memory=0), WISH, "not a whole number of pages"),
        (POOLED, replace(CREATE, memory=MIB + 1), WISH, "not a whole number of pages"),
        (POOLED, replace(CREATE, memory=GIB), WISH, "does not fit into what the pool has free"),
        (POOLED, replace(ONCE, memory=640 * MIB), WISH, "the pool has free on NUMA node 0 "),
        (POOLED, web("set_memory", "active", memory=128 * MIB), None, "only in the pieces"),
        (POOLED, web("set_memory", "active", memory=300 * MIB), None, "in steps of 128 MiB"),
        (POOLED, web("set_memory", "active", memory=2 * GIB), None, "no chunk of the pool has"),
        (
            replace(POOLED, interface=FIRST_SERIES),
            web("set_memory", "active", memory=GIB),
            None,
            "change its mem",
        ),
        # Ids
        (POOLED, CREATE, replace(WISH, id=1), "id 1 is taken by instance web"),
        (
            replace(
                POOLED,
                instances={"web": WEB}
                | {f"i{n}": replace(WEB, name=f"i{n}", id=n, cpus=(), memory=0) for n in range(2, 512)},
            ),
            CREATE,
            WISH,
            "all ids up to 511 are taken",
        ),
        # States
        (POOLED, replace(CREATE, name="web"), WISH, "an instance of that name exists already"),
        (POOLED, replace(CREATE, status="loaded"), WISH, "it would be ready after that, not loaded"),
        (POOLED, web("start", "active"), None, "it is active: bring it to loaded first"),
        (POOLED, web("load", "loaded"), WISH, "it is active: bring it to ready or empty first"),
        (POOLED, web("unload", "ready"), None, "it is active"),
        (POOLED, web("delete", None), None, "it is active"),
        (READY, web("kill", "loaded"), None, "it is ready: bring it to active first"),
        (READY, web("load", "loaded"), None, "there is no kernel to load"),
        (replace(READY, kexec_disabled=True), web("load", "loaded"), WISH, "kexec_load_disabled is 1"),
        (READY, web("load", "loaded", cpus=(4, 6)), WISH, "it would have CPU 2 and 256 MiB, not CPUs 2-3"),
        (POOLED, replace(web("kill", "loaded"), name="other"), None, "there is no such instance"),
        # The pool
        (POOLED, pool({0, 4, 6}, {0: 768 * MIB}), None, "CPU 0 is the boot CPU"),
        (POOLED, pool({6}, {0: 768 * MIB}), None, "CPU 2 is lent to instance web and cannot leave"),
        (POOLED, pool({4, 6, 10}, {0: 768 * MIB}), None, "APIC 10 is not online"),
        (POOLED, pool({4, 6}, {0: 256 * MIB}), None, "node 0 cannot give back 256 MiB"),
        (BARE, pool({4, 6}, {0: 0}), None, "a pool needs both CPUs and memory"),
        (BARE, pool((), {0: GIB}), None, "a pool needs both CPUs and memory"),
        (
            replace(POOLED, instances={"web": replace(WEB, cpus=())}),
            pool((), {}),
            None,
            "it still serves web",
        ),
    ],
)
def test_what_the_kernel_refuses(machine, step, wish, why):
    with pytest.raises(Impossible, match=why):
        Model(machine).take(step, wish)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([pool({4, 6, 8}, {0: 768 * MIB}), CREATE, replace(CREATE, name="b", cpus=frozenset({8}))], None),
        (
            [CREATE, replace(CREATE, name="b")],
            "instance b: create is not possible: CPU 3 is lent to instance new",
        ),
        ([pool({6}, {0: 768 * MIB})], "the pool is not possible: CPU 2 is lent"),
        ([web("kill", "loaded"), web("unload", "ready"), web("delete", None), pool((), {})], None),
    ],
)
def test_a_refusal_names_the_object(steps, words):
    why = refusal(tuple(steps), {}, POOLED)
    assert why is None if words is None else why.startswith(words)


def test_where_no_places_are_known_sums_are():
    """Without the addresses in /proc/iomem."""
    blind = replace(POOLED, pool=replace(POOLED.pool, regions=()))
    with pytest.raises(Impossible, match="does not fit into what the pool has free"):
        Model(blind).take(replace(CREATE, memory=640 * MIB), WISH)
    with pytest.raises(Impossible, match="not have that much memory free"):
        Model(blind).take(web("set_memory", "active", memory=GIB))
    Model(blind).take(replace(CREATE, memory=256 * MIB), WISH)


def test_what_a_machine_becomes():
    """Others keep what they have, with places and names as /proc/iomem would show them."""
    other = Region(2 * GIB, 16 * MIB, "daxfs")
    machine = replace(POOLED, pool=replace(POOLED.pool, regions=(*POOLED.pool.regions, other)))
    model = Model(machine)
    assert model.machine == machine
    model.take(CREATE, WISH)
    made = model.machine
    assert made.instances["web"] == WEB
    assert made.instances["new"].id == 2
    assert made.pool.free_cpus == ()
    assert [region.name for region in made.pool.regions] == [
        "mk-instance-1-web-region-0",
        "mk-instance-2-new-region-0",
        "daxfs",
    ]
    model.take(replace(CREATE, action="load", status="loaded"), WISH)
    assert model.machine.instances["new"].kernel == {"path": KERNEL.path, "sha256": KERNEL.sha256}
    assert model.machine.instances["new"].cmdline == "console=mktty0"
    model.take(replace(CREATE, action="unload", status="ready"), WISH)
    assert model.machine.instances["new"].kernel == {}
    model.take(replace(CREATE, action="delete", status=None), WISH)
    assert model.machine == machine


@pytest.mark.parametrize(("interface", "boot"), [(POOLED.interface, 4), (UPSTREAM, None)])
def test_which_cpu_a_kernel_starts_on_is_told_or_not(interface, boot):
    machine = replace(POOLED, instances={}, pool=replace(POOLED.pool, regions=()), interface=interface)
    model = Model(machine)
    model.take(replace(CREATE, cpus=frozenset({4, 6})), WISH)
    assert model.machine.instances["new"].boot_cpu == boot
    model.take(replace(CREATE, action="set_cpus"), WISH)
    assert model.machine.instances["new"].boot_cpu == 6


# Beside the simulated host, which keeps the same rules in another form

NAMES = st.lists(st.sampled_from("abcd"), unique=True, max_size=4)
SIZES = st.sampled_from([None, 128 * MIB, 256 * MIB, 512 * MIB])


@st.composite
def wishes(draw, image):
    instances = []
    for name in draw(NAMES):
        said = draw(st.sampled_from(["nothing", "cpus", "count"]))
        cpus = draw(st.sets(st.integers(1, 7), min_size=1, max_size=3))
        instances.append(
            InstanceWish(
                name,
                draw(st.sampled_from(["present", "loaded", "started", "started", "stopped", "absent"])),
                cpus=tuple(sorted(cpus)) if said == "cpus" else None,
                cpu_count=draw(st.integers(1, 3)) if said == "count" else None,
                memory=draw(SIZES),
                id=draw(st.sampled_from([None, None, 1, 2])),
                kernel=draw(st.sampled_from([image, image, None])),
                allow_restart=draw(st.booleans()),
            )
        )
    pool = draw(
        st.sampled_from(
            [
                None,
                PoolWish(cpus=(2, 3, 4, 5), memory=GIB),
                PoolWish(cpus=AllBut(1), memory=2 * GIB),
                PoolWish(cpus=3, memory={0: GIB, 1: 512 * MIB}),
            ]
        )
    )
    return Wish(pool, tuple(instances), draw(st.booleans()))


@pytest.mark.untraced
@settings(
    max_examples=int(os.environ.get("MKOPS_EXAMPLES", "25")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(st.data())
@pytest.mark.parametrize("series", ["full", "upstream"])
def test_the_simulated_host_takes_every_planned_step_and_becomes_the_same(series, data):
    with tempfile.TemporaryDirectory() as root:
        kernel = Path(root, "vmlinux")
        kernel.write_bytes(b"kernel")
        image = Image(str(kernel), 6, "sha")
        host = FakeKernel(root=Path(root, "host"), cpus=8, nodes=2, memory_mib=8192, series=series)
        fs = KernelFs(Paths(str(host.root)))
        for _turn in range(3):
            wish = data.draw(wishes(image))
            machine = replace(fs.read(), privileged=True)
            try:
                plan = make_plan(wish, machine)
            except Refused:
                event("refused")
                continue
            event("granted" if plan.steps else "empty")
            model = Model(machine)
            declared = {one.name: one for one in wish.instances}
            for step in plan.steps:
                model.take(step, declared.get(step.name))
                outcome = host.run(["kerf", *words_of(step, declared.get(step.name), force=True)], 1)
                if series == "upstream" and "the boot CPU stays" in outcome.stderr:
                    event("the boot CPU of a running instance, which is not told")
                    return
                assert outcome.rc == 0, (step, outcome.stderr)
                same(fs.read(), model.machine)


def same(real, thought):
    assert real.pool.memory == thought.pool.memory
    assert set(real.pool.cpus) == set(thought.pool.cpus)
    assert set(real.pool.free_cpus) == set(thought.pool.free_cpus)
    assert real.topology.online == thought.topology.online
    assert real.instances.keys() == thought.instances.keys()
    for name, one in real.instances.items():
        other = thought.instances[name]
        keys = ("id", "status", "memory", "cmdline", "boot_cpu")
        assert [getattr(one, key) for key in keys] == [getattr(other, key) for key in keys]
        assert set(one.cpus) == set(other.cpus)
