# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Users of a root file system: what passwd(5), shadow(5), group(5) and gshadow(5) have to say. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..common.text import shown

FIRST_ID = 1000  # FIRST_UID and LAST_UID of Debian's adduser
LAST_ID = 59999
NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
# crypt(5): the method, then salt and hash. What is easily guessed from its hash (DES, MD5) is no choice.
HASH = re.compile(r"\$(?:y|gy|7|2b|6|5)\$[./A-Za-z0-9$=,]{13,}")
_KEY = re.compile(
    r"(?:[^\s#]\S*(?:\s\S*)*\s)?"  # options
    r"(?:ssh-(?:ed25519|rsa)|ecdsa-sha2-nistp(?:256|384|521)|sk-(?:ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com)"
    r"\s+[A-Za-z0-9+/]{32,}={0,2}(?:\s.*)?"
)
FILES = ("etc/passwd", "etc/shadow", "etc/group", "etc/gshadow")
LOCKED = "*"  # no password fits; keys do


@dataclass(frozen=True)
class User:
    """Somebody who may log in."""

    name: str
    password: str = ""  # a hash, or nothing: with none, no password fits
    keys: tuple[str, ...] = ()  # lines of authorized_keys
    groups: tuple[str, ...] = ()  # beside their own
    shell: str = "/bin/bash"
    uid: int | None = None

    @property
    def home(self) -> str:
        return "/root" if self.name == "root" else f"/home/{self.name}"


def key_lines(text: str) -> list[str]:
    """The keys of a file in the format of authorized_keys."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def problems(users: Sequence[User]) -> list[str]:
    """What is wrong with them, as far as it can be said without the root that they are for."""
    found = []
    names = [user.name for user in users]
    found += [
        f"user {shown(name)} is there twice" for name in sorted({n for n in names if names.count(n) > 1})
    ]
    numbers = [user.uid for user in users if user.uid is not None]
    found += [f"uid {uid} is there twice" for uid in sorted({n for n in numbers if numbers.count(n) > 1})]
    for user in users:
        what = f"user {shown(user.name)}"
        if not NAME.fullmatch(user.name):
            found.append(
                f"{what} is not a name that a user can have: use up to 32 lower case letters, digits, - "
                "and _, "
                "with a letter or _ at the beginning"
            )
        if user.password and not HASH.fullmatch(user.password):
            # Never shown: it may be the password itself.
            found.append(
                f"{what}: password is not a hash of crypt(5): make one with the filter password_hash, "
                "or with mkpasswd -m yescrypt"
            )
        if user.uid is not None and user.name == "root":
            found.append("user 'root': uid is always 0: leave it out")
        elif user.uid is not None and not FIRST_ID <= user.uid <= LAST_ID:
            found.append(f"{what}: uid {user.uid} is not between {FIRST_ID} and {LAST_ID}")
        if not re.fullmatch(r"(/[A-Za-z0-9._-]+)+", user.shell):
            found.append(f"{what}: shell {shown(user.shell)} is not a path")
        found += [
            f"{what}: group {shown(name)} has no name that a group can have"
            for name in user.groups
            if not NAME.fullmatch(name)
        ]
        for number, key in enumerate(user.keys, start=1):
            if not _KEY.fullmatch(key):
                found.append(f"{what}: key {number} is not a line of authorized_keys: {shown(key)}")
    return found


def _rows(text: str) -> list[list[str]]:
    return [line.split(":") for line in text.splitlines() if line]


def _text(rows: Sequence[Sequence[str]]) -> str:
    return "".join(":".join(row) + "\n" for row in rows)


def with_users(
    files: Mapping[str, str], users: Sequence[User], day: int
) -> tuple[dict[str, str], dict[str, tuple[int, int]]]:
    """The texts of FILES with the users in them, and the uid and gid of each.

    day: since 1970, on which their passwords were set. Raises ValueError with all reasons why not.
    """
    passwd, shadow, group, gshadow = (_rows(files[name]) for name in FILES)
    ids, reasons = {}, []
    taken = {int(row[2]) for row in (*passwd, *group)} | {user.uid for user in users if user.uid}
    wanted = (number for number in range(FIRST_ID, LAST_ID) if number not in taken)
    for user in users:
        if user.name == "root":
            next(row for row in shadow if row[0] == "root")[1:3] = [user.password or LOCKED, str(day)]
            next(row for row in passwd if row[0] == "root")[6] = user.shell
            ids["root"] = (0, 0)
        elif any(user.name == row[0] for row in (*passwd, *group)):
            reasons.append(f"user {user.name} is one that the packages bring along: take another name")
            continue
        else:
            number = user.uid or next(wanted)
            ids[user.name] = (number, number)
            passwd.append([user.name, "x", str(number), str(number), "", user.home, user.shell])
            shadow.append([user.name, user.password or LOCKED, str(day), "0", "99999", "7", "", "", ""])
            group.append([user.name, "x", str(number), ""])
            gshadow.append([user.name, "!", "", ""])
        for name in user.groups:
            rows = [row for row in (*group, *gshadow) if row[0] == name]
            if not rows:
                reasons.append(f"user {user.name}: there is no group {name}; a package has to bring it along")
            for row in rows:
                row[3] = ",".join(filter(None, [row[3], user.name]))
    if reasons:
        raise ValueError(*reasons)
    return dict(zip(FILES, map(_text, (passwd, shadow, group, gshadow)))), ids
