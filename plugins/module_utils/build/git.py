# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Repositories of git, and what is fetched from them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from ..common.command import bytes_of, must, run
from ..common.errors import Failure
from ..common.files import native, read_text, sha256, text_of, write_file
from .address import masked
from .openpgp import split_tag, verify_signature

ENVIRONMENT = {
    "LC_ALL": "C",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "https:http:ssh:git:file",
}


def local_directories(url: str) -> list[str]:
    """The directories that git may find a repository of this host in, for an address of one."""
    if url.startswith("file://"):
        path = unquote(url[len("file://") :]).removeprefix("localhost")
    elif "://" not in url and ":" not in url.partition("/")[0]:
        path = url
    else:
        return []
    found = []
    for directory in dict.fromkeys([native(path).absolute(), native(path).resolve()]):
        beside = [directory.with_name(f"{directory.name}.git")] if directory.name else []
        for one in (directory, directory / ".git", *beside):
            if one.exists():
                found.append(text_of(one))
            if one.is_file() and (linked := re.match(r"gitdir: (.+)", read_text(one))):
                found.append(text_of((directory / native(linked[1].strip())).resolve()))  # of a work tree
    return list(dict.fromkeys(found))


def _errors(said: str) -> list[str]:
    """What git calls errors, before its advice."""
    lines = said.strip().splitlines()
    return [line for line in lines if line.startswith(("fatal:", "error:", "remote:"))][:3] or lines[-3:]


def _quoted(text: str) -> str:
    """For git's configuration."""
    escaped = text.replace("\\", r"\\").replace('"', r"\"")
    return f'"{escaped}"'


@dataclass
class Git:
    """A repository in the cache that holds what was fetched from one address."""

    root: Path
    url: str

    @property
    def path(self) -> Path:
        return self.root / f"git-{sha256(self.url)[:16]}"

    def git(self, purpose: str, *args: str | Path, repository: bool = True) -> str:
        where: list[str | Path] = ["-C", self.path] if repository else []
        try:
            return must(["git", *where, *args], purpose, causes=_errors, env=self._environment()).stdout
        except Failure as error:
            remedy = ""
            if "dubious ownership" in str(error.details.get("stderr")):
                remedy = (
                    ". A repository of another user is not used: run the task as its owner (become_user), "
                    "or give the repository to the user that the task runs as"
                )
            raise Failure(masked(str(error)) + remedy) from None  # no command line: it has the address

    def _environment(self) -> dict[str, str]:
        """Without the host's configuration; a repository on this host that was named may be anybody's."""
        own = {}
        if directories := local_directories(self.url):
            self.root.mkdir(parents=True, exist_ok=True)
            config = self.root / f"{self.path.name}.config"
            lines = ["[safe]", *(f"\tdirectory = {_quoted(directory)}" for directory in directories), ""]
            # Of the command line and its environment nothing reaches the program that reads the repository.
            write_file(config, "\n".join(lines), sync=False)
            own = {"GIT_CONFIG_GLOBAL": str(config)}
        return {**os.environ, **ENVIRONMENT, **own}

    def tag_commit(self, tag: str) -> tuple[str, str]:
        """(the tag's object, its commit), as the address has them now."""
        names = f"refs/tags/{tag}", f"refs/tags/{tag}^{{}}"
        purpose = f"ask {masked(self.url)} for tag {tag}"
        text = self.git(purpose, "ls-remote", "--", self.url, *names, repository=False)
        found = {name: commit for commit, name in (line.split("\t") for line in text.splitlines())}
        if names[0] not in found:
            raise Failure(f"{masked(self.url)} has no tag {tag}: see git ls-remote --tags")
        return found[names[0]], found.get(names[1], found[names[0]])

    def fetch(self, ref: str, commit: str) -> None:
        if not self.path.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            self.git(f"make {self.path}", "init", "-q", "--bare", "--", self.path, repository=False)
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
            raise Failure(f"{masked(self.url)} has no commit {commit} in any branch")

    def has(self, commit: str) -> bool:
        argv = ("git", "-C", self.path, "cat-file", "-e", f"{commit}^{{commit}}")
        return not run(argv, env=self._environment()).rc

    def verify_tag(self, tag: str, tag_object: str, keyring: Path, scratch: Path) -> None:
        what = f"tag {tag} of {masked(self.url)}"
        if self.git(f"read {what}", "cat-file", "-t", tag_object).strip() != "tag":
            raise Failure(
                f"{what} is not signed: it is not an annotated tag, but a keyring was given. "
                "Have it signed, or leave keyring out and give commit"
            )
        with bytes_of(
            ("git", "-C", self.path, "cat-file", "tag", tag_object), env=self._environment()
        ) as process:
            text, signature = split_tag(process.stdout.read() if process.stdout else b"")
        if not signature:
            raise Failure(
                f"{what} is not signed with OpenPGP, but a keyring was given. "
                "Have it signed, or leave keyring out and give commit"
            )
        data, seal = scratch / "tag", scratch / "tag.asc"
        data.write_bytes(text)
        seal.write_bytes(signature)
        try:
            verify_signature(what, keyring, seal, data, scratch)
        finally:
            data.unlink()
            seal.unlink()

    def place(self, commit: str, directory: Path) -> Path:
        tree, packed = directory / "linux", directory / "linux.tar"
        tree.mkdir()
        # A tree may say that some of its files are for no archive, or are to be changed in one.
        attributes = self.path / "info/attributes"
        attributes.parent.mkdir(exist_ok=True)
        write_file(attributes, "* -export-ignore -export-subst\n", sync=False)
        self.git(f"export {commit}", "archive", f"--output={text_of(packed)}", commit)
        must(["tar", "-xf", packed, "-C", tree], f"unpack {commit}")
        packed.unlink()
        return tree
