# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Repositories of somebody else, by the real git."""

from __future__ import annotations

import os
import subprocess

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.build.git import (
    ENVIRONMENT,
    Git,
    local_directories,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure


@pytest.fixture
def somebody_elses(tmp_path, monkeypatch):
    """A repository that git takes for another user's, as it takes any here."""
    tree = tmp_path / 'their "own" dir/linux'
    tree.mkdir(parents=True)
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for argv in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"], ["tag", "v1"]):
        subprocess.run(["git", "-C", tree, *who, *argv], check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    return tree


def addresses(tree):
    bare, link, work_tree = tree.with_name("bare.git"), tree.with_name("link"), tree.with_name("work")
    link.symlink_to(tree)
    plain = {**os.environ, "GIT_TEST_ASSUME_DIFFERENT_OWNER": "0"}
    subprocess.run(["git", "clone", "-q", "--bare", tree, bare], check=True, env=plain)
    subprocess.run(["git", "-C", tree, "worktree", "add", "-q", work_tree], check=True, env=plain)
    quoted = str(tree).replace(" ", "%20")
    return [
        f"file://{tree}", f"file://localhost{tree}/", f"file://{quoted}", f"{tree}/.git", f"{tree}",
        f"file://{bare}", f"{bare}".removesuffix(".git"), f"file://{link}", f"file://{work_tree}",
    ]  # fmt: skip


def test_a_repository_of_another_user_can_be_read(somebody_elses, tmp_path):
    for number, address in enumerate(addresses(somebody_elses)):
        argv = ["git", "ls-remote", address]
        done = subprocess.run(
            argv, check=False, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT}
        )
        assert "dubious ownership" in done.stderr, address
        git = Git(tmp_path / f"cache-{number}", address)
        assert len(git.tag_commit("v1")[1]) == 40


def test_a_cache_of_another_user_is_refused_with_a_remedy(somebody_elses, tmp_path):
    git = Git(tmp_path / "cache", f"file://{somebody_elses}")
    commit = git.tag_commit("v1")[1]
    with pytest.raises(Failure, match=r"dubious ownership.*run the task as its owner \(become_user\)"):
        git.fetch("refs/tags/v1", commit)


@pytest.mark.parametrize(
    "url", ["https://m/linux.git", "ssh://git@m/linux", "git@m:linux.git", "file:///no/such"]
)
def test_what_is_not_here_is_nobody_s(url):
    assert local_directories(url) == []


def test_a_tag_or_a_commit_that_is_not_there(somebody_elses, tmp_path):
    git = Git(tmp_path / "cache", f"file://{somebody_elses}")
    with pytest.raises(Failure, match=r"/linux has no tag v2: see git ls-remote --tags"):
        git.tag_commit("v2")


def test_a_commit_that_no_branch_has(somebody_elses, tmp_path, monkeypatch):
    monkeypatch.delenv("GIT_TEST_ASSUME_DIFFERENT_OWNER")
    git = Git(tmp_path / "cache", f"file://{somebody_elses}")
    with pytest.raises(Failure, match=f"/linux has no commit {40 * '1'} in any branch"):
        git.fetch(40 * "1", 40 * "1")
    # All branches are there now.
    assert git.has(git.tag_commit("v1")[1])
