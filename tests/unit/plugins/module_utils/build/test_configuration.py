# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.build import configuration, kconfig, toolchain
from ansible_collections.mkops.multikernel.plugins.module_utils.build.configuration import (
    Configuration,
    lost_error,
    read_config,
    running_config,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.build.sign import Signer
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure


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
    error = lost_error(tree, kconfig.lost(wanted, {"NR_CPUS": "64", "SMP": "y"}), {"X86": "y"})
    assert str(error).splitlines()[0] == "1 wanted option is not in the final .config:"


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


# --- files that a configuration names -------------------------------------------------------------------

MERGE = """\
#!/bin/sh
# Without Kconfig: what is set last wins.
[ "$1" != -n ] || shift
cat "$@" | awk -F= '/^CONFIG_/ { value[$1] = $0 } END { for (one in value) print value[one] }' >.config
"""


@pytest.fixture
def configure(tree, tmp_path):
    """Configure a tree that has no Kconfig; returns the .config as it was read, and the warnings."""
    script = tree / "scripts/kconfig/merge_config.sh"
    script.parent.mkdir(parents=True)
    script.write_text(MERGE)
    script.chmod(0o755)
    (tree / "Makefile").write_text("olddefconfig:\n\t@:\n")

    def run(base="", fragment="", signer=None):
        file = tmp_path / "base.config"
        file.write_text(base)
        warnings = []
        wanted = kconfig.merge([kconfig.parse_fragment(fragment, "mine.config")])
        configuration = Configuration("sha256:0", file, wanted, warnings.append)
        return configuration.make(tree, os.environ, ["make"], signer), warnings

    return run


@pytest.mark.parametrize(
    ("symbol", "value", "default"),
    [
        ("MODULE_SIG_KEY", "output/signing_key.pem", "certs/signing_key.pem"),
        ("SYSTEM_TRUSTED_KEYS", "debian/canonical-certs.pem", ""),
        ("SYSTEM_REVOCATION_KEYS", "debian/canonical-revoked-certs.pem", ""),
        ("SYSTEM_TRUSTED_KEYS", "/no/such/keys.pem", ""),
        ("SYSTEM_BLACKLIST_HASH_LIST", "debian/hashes", ""),
        ("LOGO_LINUX_CLUT224_FILE", "/no/such/logo.ppm", "drivers/video/logo/logo_linux_clut224.ppm"),
        ("LOGO_LINUX_MONO_FILE", "ours.pbm", "drivers/video/logo/logo_linux_mono.pbm"),
    ],
)
def test_keys_of_the_base_that_are_not_there(configure, symbol, value, default):
    config, warnings = configure(f'CONFIG_MODULE_SIG=y\nCONFIG_{symbol}="{value}"\n')
    assert (config[symbol], config["MODULE_SIG"]) == (f'"{default}"', "y")
    (warning,) = warnings
    assert f'CONFIG_{symbol}="{value}"' in warning
    assert f'set to "{default}"' in warning


def test_files_that_are_there_stay(configure, tree, tmp_path):
    (tree / "certs").mkdir()
    (tree / "certs/ours.pem").touch()
    (tmp_path / "key.pem").touch()
    base = (
        f'CONFIG_SYSTEM_TRUSTED_KEYS="certs/ours.pem"\nCONFIG_SYSTEM_REVOCATION_KEYS="{tmp_path}/key.pem"\n'
    )
    base += 'CONFIG_MODULE_SIG_KEY="certs/signing_key.pem"\n'
    config, warnings = configure(base)
    assert (len(config), config["SYSTEM_TRUSTED_KEYS"], warnings) == (3, '"certs/ours.pem"', [])
    assert configure('CONFIG_MODULE_SIG_KEY="pkcs11:token=a;object=b"')[1] == []


@pytest.mark.parametrize(
    ("base", "fragment", "reason"),
    [
        ("", 'CONFIG_A=y\nCONFIG_MODULE_SIG_KEY="gone.pem"', r"\(mine\.config:2\): neither .* has gone\.pem"),
        ("", 'CONFIG_INITRAMFS_SOURCE="a.cpio /b"', r"\(mine\.config:1\): .* has a\.cpio, /b"),
        ('CONFIG_INITRAMFS_SOURCE="a.cpio"', "", r"\(from the base\): .* has a\.cpio"),
        ('CONFIG_EXTRA_FIRMWARE="mine/x.bin"', "", r"has /lib/firmware/mine/x\.bin"),
        (
            'CONFIG_EXTRA_FIRMWARE="x.bin"\nCONFIG_EXTRA_FIRMWARE_DIR="firmware"', "", r"has firmware/x\.bin",
        ),
        ('CONFIG_BOOT_CONFIG_EMBED_FILE="boot.cfg"', "", r"has boot\.cfg"),
        ("", 'CONFIG_LOGO_LINUX_VGA16_FILE="/our logo.ppm"', r"\(mine\.config:1\): .* has /our logo\.ppm"),
    ],
)  # fmt: skip
def test_files_that_nothing_can_stand_for(configure, base, fragment, reason):
    with pytest.raises(Failure, match=reason):
        configure(base, fragment)


def test_a_table_may_lie_where_the_include_files_are(configure, tree):
    (tree / "include").mkdir()
    (tree / "include/DSDT.h").touch()
    config, warnings = configure('CONFIG_ACPI_CUSTOM_DSDT_FILE="DSDT.h"')
    assert (config["ACPI_CUSTOM_DSDT_FILE"], warnings) == ('"DSDT.h"', [])
    with pytest.raises(Failure, match=r"has OTHER\.h"):
        configure('CONFIG_ACPI_CUSTOM_DSDT_FILE="OTHER.h"')


def test_an_option_that_the_tree_does_not_take_is_refused(configure, tree):
    (tree / "kernel/Kconfig").write_text('config KEPT\n\tbool "kept"\nconfig LOST\n\tbool "lost"\n')
    (tree / "scripts/kconfig/merge_config.sh").write_text(f"{MERGE}sed -i /LOST/d .config\n")
    assert configure("", "CONFIG_KEPT=y")[0]["KEPT"] == "y"
    with pytest.raises(Failure, match=r"CONFIG_LOST=y \(mine\.config:2\): it is not set in the result"):
        configure("", "CONFIG_KEPT=y\nCONFIG_LOST=y")


def test_all_missing_files_are_told_at_once(configure):
    with pytest.raises(Failure) as caught:
        configure('CONFIG_INITRAMFS_SOURCE="a"\n', 'CONFIG_SYSTEM_TRUSTED_KEYS="b"\n')
    assert len(str(caught.value).splitlines()) == 3


def test_a_signer_s_key_is_not_looked_for(configure):
    signer = Signer(Path("/k"), Path("/c"))
    base = 'CONFIG_MODULE_SIG_KEY="gone.pem"\nCONFIG_EFI_STUB=y\n'
    config, warnings = configure(base, signer=signer)
    assert (config["MODULE_SIG_KEY"], warnings) == (f'"{signer.module_key}"', [])


def test_files_outside_of_the_tree_are_inputs(tmp_path):
    for name in ("keys.pem", "list", "init", "x.bin", "logo.ppm"):
        (tmp_path / name).touch()
    (tmp_path / "list").write_text(f"dir /dev 0755 0 0\nfile /init {tmp_path}/init 0755 0 0\n")
    base = tmp_path / "base.config.gz"
    lines = [
        f'CONFIG_SYSTEM_TRUSTED_KEYS="{tmp_path}/keys.pem"', f'CONFIG_EXTRA_FIRMWARE_DIR="{tmp_path}"',
        'CONFIG_EXTRA_FIRMWARE="x.bin gone.bin"', f'CONFIG_LOGO_LINUX_CLUT224_FILE="{tmp_path}/logo.ppm"',
        'CONFIG_INITRAMFS_SOURCE="overridden"',
    ]  # fmt: skip
    base.write_bytes(gzip.compress("\n".join(lines).encode()))
    fragment = f'CONFIG_INITRAMFS_SOURCE="{tmp_path}/list in-the-tree.cpio"'
    wanted = kconfig.merge([kconfig.parse_fragment(fragment, "f")])
    names = [path.name for path in Configuration("sha256:0", base, wanted).named_files()]
    assert names == ["init", "keys.pem", "list", "logo.ppm", "x.bin"]
    assert Configuration("tinyconfig", None, {}).named_files() == []


# --- what a base has and this machine cannot build ------------------------------------------------------


def test_what_the_base_has_and_the_machine_has_not_is_told_once(configure, tree, tmp_path):
    base = "CONFIG_DEBUG_INFO_BTF=y\nCONFIG_RUST=y\n"
    (tmp_path / "base.config").write_text(base)
    warnings = []
    configuration = Configuration("sha256:0", tmp_path / "base.config", {}, warnings.append)
    configuration.warn_of_absent(["gcc 12", "pahole: none", "rustc: rustc 1.63"])
    (warning,) = warnings
    assert "lack CONFIG_DEBUG_INFO_BTF=y" in warning
    assert "no pahole on the build host; install dwarves" in warning
    configuration._warn_of_dropped({})
    assert len(warnings) == 2
    assert "CONFIG_RUST=y" in warnings[1]
    assert "does not accept rustc" in warnings[1]
    configuration._warn_of_dropped({"RUST": "y"})
    assert len(warnings) == 2


@pytest.mark.parametrize("fragment", ["# CONFIG_DEBUG_INFO_BTF is not set", "CONFIG_DEBUG_INFO_BTF=y"])
def test_what_a_fragment_says_needs_no_warning(tmp_path, fragment):
    """It is not wanted; or it is, and its loss is an error."""
    (tmp_path / "base.config").write_text("CONFIG_DEBUG_INFO_BTF=y\n")
    wanted = kconfig.merge([kconfig.parse_fragment(fragment, "f")])
    configuration = Configuration("sha256:0", tmp_path / "base.config", wanted, pytest.fail)
    configuration.warn_of_absent(["pahole: none"])
    configuration._warn_of_dropped({})


def test_fragments_and_bases_in_any_encoding(configure, tmp_path):
    text = b'# f\xfcr uns\r\n  CONFIG_A=y\r\nCONFIG_B="\xe9"\n'.decode("utf-8", "surrogateescape")
    base = tmp_path / "any.config"
    base.write_bytes(b"# \xff\nCONFIG_C=y\n")
    wanted = kconfig.merge([kconfig.parse_fragment(text, "f")])
    config, _warnings = configure("CONFIG_C=y\n", "")
    assert config == {"C": "y"}
    configuration = Configuration("sha256:0", base, wanted)
    merged = configuration.make(tmp_path / "linux", os.environ, ["make"], None)
    assert merged == {"A": "y", "B": '"\udce9"', "C": "y"}


def test_a_configuration_without_its_programs_is_refused(configure, monkeypatch):
    monkeypatch.setattr(toolchain.shutil, "which", lambda _tool: None)
    with pytest.raises(Failure, match=r"cannot be built:\nCONFIG_KERNEL_LZ4=y needs lz4"):
        configure("CONFIG_KERNEL_LZ4=y\n")
