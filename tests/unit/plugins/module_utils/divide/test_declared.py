# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is kept of a layout means what the layout did. What modules do with it: modules/test_at_boot.py."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Refused
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.declared import (
    change,
    declared,
    flattened,
    text,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.image import NoImages
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import KernelFs, Paths
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.layoutfile import parse_layout
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.request import layout_request
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.wish import wish_reasons

OPTIONS = {
    "state": st.sampled_from(["present", "loaded", "started", "stopped"]),
    "cpus": st.sampled_from([2, "3", "2-3", [4, "5"], None]),
    "cpu_count": st.integers(1, 3) | st.none(),
    "cpu_policy": st.lists(st.sampled_from(["cores", "node"]), unique=True),
    "memory": st.sampled_from(["128M", "1G", 134217728, None]),
    "id": st.integers(1, 511),
    "kernel": st.sampled_from(["/k", "~/k", None]),
    "initrd": st.just("/i"),
    "cmdline": st.sampled_from(["quiet", "quiet console=ttynull", "ip=dhcp x"]),
    "labels": st.dictionaries(st.sampled_from("ab"), st.sampled_from(["x", 1])),
    "network": st.sampled_from([{"address": "dhcp"}, {"address": "10.0.0.2", "gateway": None}]),
    "console": st.just("mktty0"),
    "restart": st.sampled_from(["always", "no", False]),
    "restart_delay": st.sampled_from([0, "7", 60]),
    "restart_delay_max": st.sampled_from([60, 90]),
    "restart_limit": st.integers(1, 9),
    "restart_interval": st.sampled_from([0, 600]),
    "watchdog": st.sampled_from([5, "30"]),
    "crash_keep": st.integers(1, 9),
    "crash_size": st.sampled_from(["1G", "512M", 1 << 20]),
    "crash_memory": st.sampled_from([True, "no"]),
    "allow_restart": st.sampled_from([True, False, "yes"]),
    "force": st.booleans(),
    "stop_timeout": st.sampled_from([60, "7"]),
    "wait_for": st.just("^up"),
    "wait": st.sampled_from(["none", "heartbeat"]),
    "timeout": st.integers(1, 99),
}
SAID = st.fixed_dictionaries({}, optional=OPTIONS)
PROFILED = st.fixed_dictionaries({}, optional={**OPTIONS, "profile": st.just("p")})
LAYOUTS = st.fixed_dictionaries(
    {"instances": st.dictionaries(st.sampled_from(["red", "blue", "a-b"]), PROFILED)},
    optional={
        "pool": st.fixed_dictionaries(
            {
                "cpus": st.sampled_from(["2-5", "all but 2", [2, 3]]),
                "memory": st.sampled_from(["1G", {0: "1G"}]),
            },
            optional={"state": st.just("present")},
        ),
        "defaults": SAID,
        "profiles": st.fixed_dictionaries({"p": SAID}),
        "prune": st.booleans(),
        "headroom": st.sampled_from(["256M", "1G"]),
        "host_cpus": st.integers(1, 2),
    },
)


@pytest.fixture
def machine(host):
    return KernelFs(Paths(str(host.root))).read()


def meaning(layout, machine):
    """All that a layout says, in the order of its names; not in what words."""
    request = layout_request(layout, machine, NoImages())
    instances = sorted(
        (replace(one, said=frozenset()) for one in request.instances), key=lambda one: one.name
    )
    pool = request.pool and replace(request.pool, said=frozenset())
    wish = replace(request.wish, pool=pool, instances=tuple(instances))
    return request.reasons + wish_reasons(wish), wish, (request.manners, request.services)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(layout=LAYOUTS)
def test_what_is_kept_means_the_same(machine, layout):
    reasons, wish, manners = meaning(layout, machine)
    assume(not reasons)
    kept = flattened(layout, machine, "the file")
    assert not {"defaults", "profiles"} & kept.keys()
    assert meaning(kept, machine) == ([], wish, manners) or not kept
    # And it is the same when it has been in a file.
    assert parse_layout(text(kept).encode(), "the file") == kept
    assert flattened(kept, machine, "the file") == kept


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(layout=LAYOUTS)
def test_a_task_that_is_run_again_changes_nothing(machine, layout, tmp_path):
    paths = Paths(str(tmp_path))
    paths.layout.unlink(missing_ok=True)
    assume(not meaning(layout, machine)[0])
    for at_boot in (True, False):
        asked = {**layout, "at_boot": at_boot}
        first = change(paths, layout_request(asked, machine, NoImages()), machine, "/kerf")
        assume(not first.reasons)
        first.write()
        assert declared(paths) == json.loads(text(first.after))
        again = change(paths, layout_request(asked, machine, NoImages()), machine, "/kerf")
        assert (again.steps, again.before) == ([], first.after)
    assert not paths.layout.exists()


def test_a_link_that_leads_nowhere(tmp_path):
    paths = Paths(str(tmp_path))
    assert declared(paths) == {}
    paths.layout.parent.mkdir(parents=True)
    paths.layout.symlink_to("nowhere")
    with pytest.raises(Refused, match=r"layout\.json"):
        declared(paths)
