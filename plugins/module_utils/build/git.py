# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Repositories of git, and what is fetched from them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..common.command import must, run
from ..common.errors import Failure
from ..common.files import sha256
from .address import masked
from .openpgp import split_tag, verify_signature

ENVIRONMENT = {
    "LC_ALL": "C",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "https:http:ssh:git:file",
}


@dataclass
class Git:
    """A repository in the cache that holds what was fetched from one address."""

    root: Path
    url: str

    @property
    def path(self) -> Path:
        return self.root / f"git-{sha256(self.url)[:16]}"

    def git(self, purpose: str, *args: str, repository: bool = True) -> str:
        where = ["-C", str(self.path)] if repository else []
        try:
            return must(["git", *where, *args], purpose, env={**os.environ, **ENVIRONMENT}).stdout
        except Failure as error:
            raise Failure(masked(str(error))) from None  # no command line: it has the address

    def tag_commit(self, tag: str) -> tuple[str, str]:
        """(the tag's object, its commit), as the address has them now."""
        names = f"refs/tags/{tag}", f"refs/tags/{tag}^{{}}"
        purpose = f"ask {masked(self.url)} for tag {tag}"
        text = self.git(purpose, "ls-remote", "--", self.url, *names, repository=False)
        found = {name: commit for commit, name in (line.split("\t") for line in text.splitlines())}
        if names[0] not in found:
            raise Failure(f"{masked(self.url)} has no tag {tag}")
        return found[names[0]], found.get(names[1], found[names[0]])

    def fetch(self, ref: str, commit: str) -> None:
        if not self.path.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            self.git(f"make {self.path}", "init", "-q", "--bare", "--", str(self.path), repository=False)
        if self.has(commit) and not ref.startswith("refs/"):
            return
        purpose = f"fetch {ref} from {masked(self.url)}"
        try:
            self.git(purpose, "fetch", "-q", "--no-tags", "--depth=1", "--", self.url, f"+{ref}")
        except Failure:
            if ref.startswith("refs/"):
                raise
            # Not every server hands out commits that no name points to.
            self.git(purpose, "fetch", "-q", "--no-tags", "--", self.url, "+refs/heads/*:refs/heads/*")
        if not self.has(commit):
            raise Failure(f"{masked(self.url)} has no commit {commit}")

    def has(self, commit: str) -> bool:
        argv = ["git", "-C", self.path, "cat-file", "-e", f"{commit}^{{commit}}"]
        return not run(argv, env={**os.environ, **ENVIRONMENT}).rc

    def verify_tag(self, tag: str, tag_object: str, keyring: Path, scratch: Path) -> None:
        what = f"tag {tag} of {masked(self.url)}"
        if self.git(f"read {what}", "cat-file", "-t", tag_object).strip() != "tag":
            raise Failure(f"{what} is not signed: it is no annotated tag, and a keyring was given")
        text, signature = split_tag(self.git(f"read {what}", "cat-file", "tag", tag_object))
        if not signature:
            raise Failure(f"{what} is not signed with OpenPGP, and a keyring was given")
        data, seal = scratch / "tag", scratch / "tag.asc"
        data.write_text(text)
        seal.write_text(signature)
        try:
            verify_signature(what, keyring, seal, data, scratch)
        finally:
            data.unlink()
            seal.unlink()

    def place(self, commit: str, directory: Path) -> Path:
        tree, packed = directory / "linux", directory / "linux.tar"
        tree.mkdir()
        self.git(f"export {commit}", "archive", f"--output={packed}", commit)
        must(["tar", "-xf", packed, "-C", tree], f"unpack {commit}")
        packed.unlink()
        return tree
