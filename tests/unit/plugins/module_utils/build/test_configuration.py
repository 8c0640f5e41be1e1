# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import gzip

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.build import configuration, kconfig
from ansible_collections.mkops.multikernel.plugins.module_utils.build.configuration import (
    lost_error,
    read_config,
    running_config,
)


def test_lost_options_tell_their_reasons(tree):
    (tree / "kernel/Kconfig").write_text(
        'config SMP\n\tbool "SMP"\n\tdepends on X86 && !UP\nconfig NR_CPUS\n\tint\n'
    )
    text = "CONFIG_SMP=y\nCONFIG_NR_CPUS=64\nCONFIG_MULTIKERNEL=y\n"
    wanted = kconfig.merge([kconfig.parse_fragment(text, "w.config")])
    error = lost_error(tree, kconfig.lost(wanted, {"NR_CPUS": "8"}), {"NR_CPUS": "8", "UP": "y", "X86": "y"})
    assert str(error).splitlines()[0] == "3 wanted options are not in the final .config:"
    smp, cpus, multikernel = error.details["lost"]
    assert smp == "CONFIG_SMP=y (w.config:1): it is not set in the result: it depends on !UP"
    assert "the result has 8" in cpus
    assert "no such symbol" in multikernel


def test_packed_configuration_is_read_like_a_plain_one(tmp_path):
    (tmp_path / "config").write_bytes(b"CONFIG_SMP=y\n")
    (tmp_path / "config.gz").write_bytes(gzip.compress(b"CONFIG_SMP=y\n"))
    assert read_config(tmp_path / "config") == read_config(tmp_path / "config.gz") == b"CONFIG_SMP=y\n"
    (tmp_path / "bad.gz").write_bytes(b"CONFIG_SMP=y\n")
    with pytest.raises(OSError, match="gzip"):
        read_config(tmp_path / "bad.gz")


def test_running_configuration_is_the_first_that_is_there(tmp_path, monkeypatch):
    places = (tmp_path / "config-6.12", tmp_path / "config.gz")
    monkeypatch.setattr(configuration, "running_configs", lambda: places)
    assert running_config() is None
    places[1].touch()
    assert running_config() == places[1]
    places[0].touch()
    assert running_config() == places[0]
