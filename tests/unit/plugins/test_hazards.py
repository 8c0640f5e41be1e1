# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is known to go wrong when kerf 0.4 is driven by a program, and the test that each has.

Of kerf's commands, show, dump, exec, console, and load with container images are not used at all, nor are
their ways to go wrong met.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ansible_collections.mkops.multikernel.plugins.modules import instance, layout, pool
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import MIB, POOL_BASE, FakeInstance

HERE = Path(__file__).parent
UTILS, MODULES = "module_utils/divide/test_{}.py", "modules/test_{}.py"
HAZARDS = {
    "init --report and --input may change the pool": (".", "test_only_safe_options_are_used"),
    "init says yes to half of a wish": ("pool", "test_half_of_a_wish_is_a_failure_although_kerf_is_content"),
    "init gives back what is not named": ("kerf", "test_words"),
    "a tree that kerf cannot read counts as no pool": (".", "test_a_pool_whose_cpus_are_all_lent_is_one"),
    "create does not compare": ("layout", "test_instances_made_by_hand_are_adopted"),
    "create without a pool is a traceback": ("instance", "test_no_pool"),
    "overcommitment is found by the kernel alone": ("planner", "test_refused_new_instance"),
    "half of an instance stays": ("instance", "test_other_resources_than_wanted_are_given_back"),
    "update always says that it changed something": ("instance", "test_cpus_and_memory_change_while_it_runs"),
    "an update that passes the dry run fails": ("memory", "test_sizes_that_cannot_be_reached_in_place"),
    "an update is applied in part": ("kerf", "test_words"),
    "a killed kerf leaves its lock": ("kerf", "test_a_stale_lock_is_removed"),
    "a killed run leaves its kerf": ("kerf", "test_what_a_killed_run_has_started_keeps_the_host_locked"),
    "some commands take no lock": ("kerf", "test_host_lock_excludes_other_processes"),
    "a transaction may be somebody else's": ("kerf", "test_a_failure_tells_all_that_is_known"),
    "removing a transaction undoes it": (".", "test_transactions_are_left_alone"),
    "loading is busy for others": ("layout", "test_a_busy_loader_is_asked_again"),
    "nobody knows what is loaded": ("planner", "test_an_image_of_unknown_origin_counts_as_another"),
    "a record of a former boot": ("kernelfs", "test_records_of_kerf_only_count_for_loaded_images"),
    "ip=dhcp with a device is malformed": ("wish", "test_network"),
    "network options without an address vanish": ("wish", "test_every_mistake_of_a_network_is_named"),
    "images leave files behind": ("layout", "test_what_images_leave_behind_is_removed"),
    "start returns before the boot is done": ("instance", "test_wait_for"),
    "one that crashed may look like one that runs": ("instance", "test_nobody_waits_for_the_dead"),
    "a wrong state is an error like any other": ("planner", "test_transition"),
    "halting takes long and may fail": ("instance", "test_an_instance_that_does_not_halt"),
    "an error after the fact": ("instance", "test_an_error_of_kerf_is_no_error_when_the_kernel_did_it"),
    "output that cannot be printed": ("kerf", "test_run_argv"),
    "names are not checked": ("planner", "test_refused_names"),
    "memory of no size, or of odd size": ("size", "test_memory_is_whole_pages"),
    "an empty pool is wished while there are instances": ("planner", "test_no_pool"),
    "a dry run knows nothing of instances": ("pool", "test_absent_is_refused_while_there_are_instances"),
}
FILES = {"pool": MODULES, "instance": MODULES, "layout": MODULES, "size": "module_utils/common/test_{}.py"}


@pytest.mark.parametrize("hazard", HAZARDS)
def test_every_hazard_has_its_test(hazard):
    where, name = HAZARDS[hazard]
    path = Path(__file__) if where == "." else HERE / FILES.get(where, UTILS).format(where)
    assert re.search(rf"^def {name}\(", path.read_text(encoding="utf-8"), re.M)


@pytest.fixture
def lent(make_host):
    """All CPUs and all memory of the pool are an instance's."""
    return make_host(
        pool_cpus=[4, 6],
        chunks=[(POOL_BASE, 256 * MIB, 0)],
        instances={"web": FakeInstance(1, [4, 6], POOL_BASE, 256 * MIB)},
    )


def test_a_pool_whose_cpus_are_all_lent_is_one(lent, run_module):
    assert not run_module(pool, lent, cpus="2-3", memory="256M")["changed"]
    assert "the pool has none free" in run_module(instance, lent, name="b", cpu_count=1, memory="64M")["msg"]


def test_only_safe_options_are_used(make_host, run_module, vmlinux, initrd):
    host = make_host(cpus=6)
    wish = {
        "pool": {"cpus": "1-4", "memory": "1G"},
        "defaults": {"state": "started", "kernel": str(vmlinux), "initrd": str(initrd), "memory": "128M"},
        "instances": [{"name": "a", "cpus": "1-2"}, {"name": "b", "cpus": 3}],
    }
    run_module(layout, host, **wish)
    wish["instances"] = [{"name": "a", "cpus": 1, "memory": "256M"}, {"name": "b", "state": "absent"}]
    run_module(layout, host, **wish)
    run_module(layout, host, pool={"state": "absent"}, prune=True, defaults={"force": True})
    used = {word.partition("=")[0] for call in host.changes for word in call if word.startswith("-")}
    assert used <= {"--cpus", "--memory", "--devices", "--kernel", "--initrd", "--cmdline", "--force"}
    assert {call[0] for call in host.changes} == {
        *("init", "create", "update", "load", "start", "kill", "unload", "delete"),
    }


def test_transactions_are_left_alone(lent, run_module):
    run_module(instance, lent, name="web", cpus=2)
    run_module(instance, lent, name="web", state="absent")
    made = sorted(path.name for path in (lent.root / "sys/fs/multikernel/overlays").glob("tx_*"))
    assert made == [f"tx_{number}" for number in range(2, lent.transactions + 1)]
