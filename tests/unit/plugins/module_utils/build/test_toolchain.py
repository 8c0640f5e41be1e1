# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import functools
import shutil

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.build import toolchain


def test_missing_tools_are_named_at_once_with_their_packages(monkeypatch):
    monkeypatch.setattr(
        toolchain.shutil, "which", lambda tool: None if tool in ("flex", "ccache") else f"/usr/bin/{tool}"
    )
    monkeypatch.setattr(toolchain.Path, "exists", lambda self: self.name != "gelf.h")
    (reason,) = toolchain.missing_tools({"ccache": "ccache"})
    assert reason == (
        "not on the build host: flex, /usr/include/gelf.h, ccache; install ccache flex libelf-dev"
    )
    assert "ccache" not in toolchain.missing_tools({})[0]


def program(directory, name, script):
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A PATH with the compiler alone; returns its directory, and how to put a program there."""
    for name in ("gcc", "as", "ld"):
        (tmp_path / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(tmp_path))
    return functools.partial(program, tmp_path)


def test_what_kconfig_probes_is_in_the_toolchain(programs):
    bare = toolchain.toolchain()
    assert [line.split()[0] for line in bare[:3]] == ["gcc", "GNU", "GNU"]
    assert bare[4:] == ("pahole: none", "rustc: none", "bindgen: none")
    programs("pahole", "echo v1.24")
    programs(
        "rustc", "printf '%s\\n' 'rustc 1.85.0 (4d91de4e4 2025-02-17)' 'binary: rustc' 'LLVM version: 19.1.7'"
    )
    programs(
        "bindgen",
        'if [ "$1" = --version ]; then echo bindgen 0.71.1; else echo "x clang version 19.1.7" >&2; fi',
    )
    assert toolchain.toolchain()[4:] == (
        "pahole: v1.24",
        "rustc: rustc 1.85.0 (4d91de4e4 2025-02-17), LLVM version: 19.1.7",
        "bindgen: bindgen 0.71.1",
        "libclang: clang version 19.1.7",
    )


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo v1.30", "v1.30"), ("exit 1", "none"), ("", "none"), ("test -d $HOME || exit 1; echo v1", "none")],
)
def test_a_program_counts_as_make_will_find_it(programs, script, said):
    programs("pahole", script)
    assert f"pahole: {said}" in toolchain.toolchain()


def test_headers_for_plugins_are_probed(programs, tmp_path):
    (tmp_path / "gcc").unlink()
    programs("gcc", f'[ "$1" = --version ] && echo "gcc 14" || echo {tmp_path}')
    assert "gcc plugins: none" in toolchain.toolchain()
    (tmp_path / "include").mkdir()
    (tmp_path / "include/plugin-version.h").touch()
    assert "gcc plugins: yes" in toolchain.toolchain()


def test_programs_that_a_configuration_needs(programs):
    config = {"KERNEL_ZSTD": "y", "MODULE_COMPRESS_XZ": "y", "DEBUG_INFO_BTF": "y", "KERNEL_LZ4": "n"}
    reasons = toolchain.missing_for(config)
    assert [reason.split()[0] for reason in reasons] == [
        "CONFIG_KERNEL_ZSTD=y", "CONFIG_MODULE_COMPRESS_XZ=y", "CONFIG_DEBUG_INFO_BTF=y",
    ]  # fmt: skip
    assert reasons[2].endswith("needs pahole, which is not on the build host; install the package dwarves")
    programs("zstd", "")
    assert len(toolchain.missing_for(config)) == 2


def test_a_bindgen_that_says_nothing_of_its_library(programs):
    programs("rustc", "echo rustc 1.85.0")
    programs("bindgen", "echo bindgen 0.71.1")
    assert toolchain.toolchain()[-1] == "libclang: none"
