# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from ansible_collections.mkops.multikernel.plugins.lookup.merged import LookupModule


def merged(**variables):
    loader = DataLoader()
    lookup = LookupModule(loader=loader, templar=Templar(loader=loader, variables=variables))
    [found] = lookup.run(["instances_declared"], variables)
    return found


def test_groups_add_instances_and_the_host_has_the_last_word():
    found = merged(
        size="2G",
        instances_declared={"web": {"memory": "8G", "labels": {"rack": "b"}}, "own": None},
        instances_declared_base={
            "web": {"cpu_count": 1, "memory": trust_as_template("{{ size }}"), "labels": {"tier": "front"}}
        },
        instances_declared_web={"web": {"cpu_count": 2}, "log": {"memory": trust_as_template("{{ size }}")}},
        instances_declaredx={"other": {}},
    )
    assert found == {
        "web": {"cpu_count": 2, "memory": "8G", "labels": {"tier": "front", "rack": "b"}},
        "log": {"memory": "2G"},
        "own": None,
    }
    # The order in which they are declared is kept, because CPUs are given out in it.
    assert list(found) == ["web", "log", "own"]


def test_nothing_declared_is_an_empty_dictionary():
    assert merged() == {}
    assert merged(instances_declared=None) == {}


def test_a_name_alone_takes_nothing_away():
    found = merged(instances_declared_a={"web": {"memory": "2G"}}, instances_declared={"web": None})
    assert found == {"web": {"memory": "2G"}}


@pytest.mark.parametrize(
    ("value", "kind"),
    [([{"name": "web"}], "a list"), ("web", "a string"), (3, "a number"), (True, "true or false")],
)
def test_what_is_no_dictionary_is_named(value, kind):
    with pytest.raises(AnsibleError) as error:
        merged(instances_declared_web=value)
    assert f"variable instances_declared_web is {kind}: it has to be a dictionary" in str(error.value)
