# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Users, as Debian's own tools see them in the files that are made."""

from __future__ import annotations

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.build.accounts import (
    User,
    key_lines,
    problems,
    with_users,
)

HASH = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJl3dIeudNqd0DPMRD6OIh65tjkxFNOtGcYnXDBzhtFG alice"
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n",
    "etc/shadow": "root:*:20000:0:99999:7:::\ndaemon:*:20000:0:99999:7:::\n",
    "etc/group": "root:x:0:\ndaemon:x:1:\nadm:x:4:\n",
    "etc/gshadow": "root:*::\ndaemon:*::\nadm:*::\n",
}


def test_users_get_numbers_and_groups():
    users = [User("alice", HASH, (KEY,), ("adm",)), User("carol", uid=1000), User("bob", groups=("adm",))]
    texts, ids = with_users(FILES, users, 20089)
    assert ids == {"alice": (1001, 1001), "carol": (1000, 1000), "bob": (1002, 1002)}
    assert "alice:x:1001:1001::/home/alice:/bin/bash\n" in texts["etc/passwd"]
    assert f"alice:{HASH}:20089:0:99999:7:::\n" in texts["etc/shadow"]
    assert "bob:*:20089:0:99999:7:::\n" in texts["etc/shadow"]
    assert "adm:x:4:alice,bob\n" in texts["etc/group"] and "alice:x:1001:\n" in texts["etc/group"]
    assert "adm:*::alice,bob\n" in texts["etc/gshadow"] and "alice:!::\n" in texts["etc/gshadow"]
    # What was there stays.
    assert all(texts[name].startswith(text.partition("adm")[0]) for name, text in FILES.items())


def test_root_may_have_a_password():
    texts, ids = with_users(FILES, [User("root", HASH, shell="/bin/sh")], 20089)
    assert texts["etc/shadow"].startswith(f"root:{HASH}:20089:0:99999:7:::\n")
    assert texts["etc/passwd"].startswith("root:x:0:0:root:/root:/bin/sh\n")
    assert ids == {"root": (0, 0)} and texts["etc/group"] == FILES["etc/group"]
    assert (User("root").home, User("alice").home) == ("/root", "/home/alice")


def test_users_that_cannot_be_in_this_root():
    users = [User("daemon"), User("adm"), User("alice", groups=("wheel", "adm"))]
    with pytest.raises(ValueError, match="daemon is one that the packages bring along") as caught:
        with_users(FILES, users, 0)
    assert len(caught.value.args) == 3
    assert "no group wheel" in caught.value.args[2]


def test_nothing_is_wrong_with_ordinary_users():
    options = f'from="10.0.0.0/8",no-pty,command="echo hello world" {KEY}'
    users = [User("alice", HASH, (KEY, options), ("adm",), uid=1500), User("root"), User("_svc-2")]
    assert problems(users) == []


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        (User("Alice"), "user 'Alice' is not a name"),
        (User("a" * 33), "is not a name"),
        (User("a:b"), "is not a name"),
        (User("alice", "secret"), "user 'alice': password is not a hash of crypt"),
        (User("alice", "$1$abcdefgh$0123456789012345678901"), "password is not a hash"),
        (User("alice", uid=10), "uid 10 is not between 1000 and 59999"),
        (User("root", uid=0), "uid is always 0"),
        (User("alice", shell="bash"), "shell 'bash' is not a path"),
        (User("alice", groups=("a b",)), "group 'a b' has no name"),
        (User("alice", keys=(KEY, "ssh-ed25519 short")), "key 2 is not a line of authorized_keys"),
        (User("alice", keys=(f"{KEY}\nmore",)), "key 1 is not a line of authorized_keys"),
    ],
)
def test_users_that_cannot_be(user, reason):
    (found,) = problems([user])
    assert reason in found
    assert "secret" not in found


def test_users_that_are_there_twice():
    found = problems([User("alice", uid=1000), User("bob", uid=1000), User("alice")])
    assert found == ["user 'alice' is there twice", "uid 1000 is there twice"]


def test_lines_of_authorized_keys():
    assert key_lines(f"# mine\n\n  {KEY}  \n") == [KEY]
