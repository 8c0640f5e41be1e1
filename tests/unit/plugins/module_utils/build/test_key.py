# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.build.key import Source


def test_key_is_stable(inputs):
    """Changes of the way the key is made must be meant: they rebuild every user's kernels."""
    assert (
        inputs.key()
        == hashlib.sha256(
            json.dumps(
                {
                    "base": "tinyconfig",
                    "format": 3,
                    "fragments": ["33", "44"],
                    "local_version": "-mkops",
                    "series": ["11", "22"],
                    "source": ["6.12.107-1", "aa" * 32],
                    "toolchain": ["gcc 14.2.0", "as 2.44", "ld 2.44"],
                }
            ).encode()
        ).hexdigest()
    )


@pytest.mark.parametrize(
    "change",
    [
        {"source": Source("x", "bb" * 32, "6.12.107-1")},
        {"source": Source("x", "aa" * 32, "6.12.108-1")},
        {"series": (("0001-a.patch", "11"),)},
        {"series": (("0002-b.patch", "22"), ("0001-a.patch", "11"))},
        {"base": "defconfig"},
        {"fragments": (("multikernel.config", "44"), ("lab.config", "33"))},
        {"fragments": (("lab.config", "99"), ("multikernel.config", "44"))},
        {"local_version": "-mine"},
        {"toolchain": ("gcc 14.2.1", "as 2.44", "ld 2.44")},
        {"toolchain": ("gcc 14.2.0", "as 2.44", "ld 2.44", "pahole: none")},
        {"files": (("/etc/keys/ours.pem", "55"),)},
    ],
    ids=str,
)
def test_key_depends_on_every_input(inputs, change):
    assert dataclasses.replace(inputs, **change).key() != inputs.key()


def test_key_does_not_depend_on_names(inputs):
    renamed = dataclasses.replace(
        inputs,
        source=dataclasses.replace(inputs.source, name="other.deb"),
        series=(("x", "11"), ("y", "22")),
        fragments=(("p", "33"), ("q", "44")),
    )
    assert renamed.key() == inputs.key()


def test_what_is_always_so_is_not_in_the_key(inputs):
    again = dataclasses.replace(inputs, package="deb", signer="")
    assert again.key() == inputs.key()
    others = [dataclasses.replace(inputs, package="rpm"), dataclasses.replace(inputs, signer="0a")]
    assert len({inputs.key(), *(other.key() for other in others)}) == 3


@pytest.mark.parametrize(
    ("version", "kernel"),
    [
        ("6.12.107-1", "6.12.107"),
        ("6.12.107-1~bpo12+1", "6.12.107"),
        ("1:6.1-2", "6.1.0"),
        ("6.16-1~exp1", "6.16.0"),
        ("6.17~rc3-1~exp1", "6.17.0-rc3"),
        ("6.18-1~bpo13+1", "6.18.0"),
        ("7.0~rc1+next-1", "7.0.0-rc1"),
        ("6.12.107", "6.12.107"),
        ("garbage", None),
        (None, None),
    ],
)
def test_kernel_version(version, kernel):
    assert Source("x", "00", version).kernel_version == kernel


def test_release_names_the_key(inputs):
    assert inputs.release() == f"6.12.107-mkops-{inputs.key()[:8]}"


def test_release_of_a_plain_archive_is_not_known_before(inputs):
    assert dataclasses.replace(inputs, source=Source("linux.tar.xz", "aa" * 32)).release() is None
