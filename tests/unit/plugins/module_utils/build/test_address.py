# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.build.address import (
    file_name,
    masked,
    secrets_of,
    without_secrets,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure


@pytest.mark.parametrize(
    ("address", "shown", "secrets"),
    [
        ("http://alice:secret@m/debian", "http://***@m/debian", {"alice:secret@", "secret"}),
        ("https://token@github.com/x.git", "https://***@github.com/x.git", {"token@"}),
        ("https://a:p@ss@m/x", "https://***@m/x", {"a:p@ss@", "p@ss"}),
        ("ftp+x://a:p%40s@m", "ftp+x://***@m", {"a:p%40s@", "p%40s", "p@s"}),
        ("https://m/x.tar?sig=abc&e=1", "https://m/x.tar?***", {"sig=abc&e=1"}),
        ("https://a:p/s@m/x", "https://***@m/x", {"a:p/s@", "p/s"}),
        ("https://a:p?s#@m", "https://***@m", {"a:p?s#@", "p?s#"}),
        ("https://a:it's@m/x", "https://***@m/x", {"a:it's@", "it's"}),
        ("https://it's:p@m", "https://***@m", {"it's:p@", "p"}),
        ("https://a:p'/s@m/x", "https://***@m/x", {"a:p'/s@", "p'/s"}),
        ("https://m/x?sig=a'b&e=1", "https://m/x?***", {"sig=a'b&e=1"}),
        ("http://[fe80::1]/a@b", "http://[fe80::1]/a@b", set()),
        ("https://m:8080/a@b", "https://m:8080/a@b", set()),
        ("file:///srv/linux", "file:///srv/linux", set()),
        ("git@host:linux.git", "git@host:linux.git", set()),
        ("http://[bad", "http://[bad", set()),
        ("", "", set()),
    ],
)
def test_secrets_of_an_address(address, shown, secrets):
    assert masked(f"cannot fetch '{address}': 404") == f"cannot fetch '{shown}': 404"
    assert secrets_of([address, None]) == secrets


@pytest.mark.parametrize(
    ("address", "secrets"),
    [
        ("https://a:p q@m/x", {"a:p q@", "p q"}),
        ("https://a:'\"@m", {"a:'\"@", "'\""}),
        ("https://a:p\t'@m/x?key=1 2'", {"a:p\t'@", "p\t'", "key=1 2'"}),
    ],
)
def test_secrets_that_no_address_should_have(address, secrets):
    assert secrets_of([address]) == secrets


def test_what_follows_an_address_is_none_of_it():
    for text in (
        "{'url': 'https://m/x', 'mail': 'a@b'}",
        '{"url":"https://m","mail":"a@b"}',
        "'https://m': a:b@c",
        "see 'https://m'; then 'a:b@c'",
        "['https://m/?' 'x@y']",
        '("https://m/x")"a:b@c"',
    ):
        assert masked(text) == text.replace("/?'", "/?***'")


def test_every_address_of_a_text_is_masked():
    assert masked("E: http://a:b@m/x http://c:d@n/y?z=1 e@f") == "E: http://***@m/x http://***@n/y?*** e@f"


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://m/a/linux.tar.xz", "linux.tar.xz"),
        ("https://m/a/linux.tar.xz?key=1/2", "linux.tar.xz"),
        ("https://a:b@m", "file"),
        ("https://a:b@m/", "file"),
        ("http://m/dir/", "dir"),
    ],
)
def test_file_name_of_an_address(address, name):
    assert file_name(address) == name


def test_a_failure_without_secrets():
    error = without_secrets(
        Failure("no http://a:b@m", cmd=["x", "http://a:b@m"], stderr="http://a:b@m", rc=1)
    )
    assert str(error) == "no http://***@m"
    assert error.details == {"cmd": ["x", "http://***@m"], "stderr": "http://***@m", "rc": 1}
