# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Source trees from real repositories, archives and directories, with real signatures."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from ansible.module_utils.common.parameters import PASS_VARS
from ansible.module_utils.testing import patch_module_args

from ansible_collections.mkops.multikernel.plugins.module_utils.build import source as ks
from ansible_collections.mkops.multikernel.plugins.module_utils.build.git import ENVIRONMENT, Git
from ansible_collections.mkops.multikernel.plugins.module_utils.build.tree import unpack
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure
from ansible_collections.mkops.multikernel.plugins.modules import kernel_build, kernel_source

MAKEFILE = "VERSION = 7\nPATCHLEVEL = 0\nSUBLEVEL = 0\nEXTRAVERSION =\nNAME = x\n"
LINES = "".join(f"line {number}\n" for number in range(1, 21))
IDENTITY = ("-c", "user.name=a", "-c", "user.email=a@example.com")


def sha256(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def make_patch(path: Path, old: str = "line 10", new: str = "LINE 10", mail: str = "") -> Path:
    hunk = f"@@ -9,3 +9,3 @@\n line 9\n-{old}\n+{new}\n line 11\n"
    diff = f"--- a/kernel/reboot.c\n+++ b/kernel/reboot.c\n{hunk}"
    path.write_text(f"{mail}diff --git a/kernel/reboot.c b/kernel/reboot.c\n{diff}-- \n2.39\n")
    return path


@pytest.fixture
def tree(tmp_path):
    tree = tmp_path / "upstream/linux-7.0"
    (tree / "kernel").mkdir(parents=True)
    (tree / "kernel/reboot.c").write_text(LINES)
    (tree / "Kbuild").touch()
    (tree / "Makefile").write_text(MAKEFILE)
    os.utime(tree / "Makefile", (1_700_000_000, 1_700_000_000))
    return tree


@pytest.fixture
def archive(tree, tmp_path):
    path = tmp_path / "linux-7.0.tar.gz"
    subprocess.run(["tar", "-czf", path, "-C", tree.parent, tree.name], check=True)
    return path


@pytest.fixture
def run(tmp_path, capsys):
    """Run the module; the destination and the cache are the test's own."""

    def run(check=False, **params):
        args = {"dest": str(tmp_path / "dest"), "cache_dir": str(tmp_path / "cache"), **params}
        settings = {"_ansible_check_mode": check, "_ansible_diff": True}
        if "inject_invocation" in PASS_VARS:
            # Since core 2.21 a user has to ask for the parameters in the result; before, they always were.
            settings["_ansible_inject_invocation"] = True
        with patch_module_args({**args, **settings}), pytest.raises(SystemExit):
            kernel_source.main()
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def dest(tmp_path):
    return tmp_path / "dest"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two signers, and the keyring of the first, binary and armoured."""
    home = tmp_path_factory.mktemp("gnupg")
    home.chmod(0o700)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--pinentry-mode", "loopback", "--passphrase", ""]
    for name in ("good", "other"):
        subprocess.run([*gpg, "--quick-gen-key", f"{name}@example.com", "ed25519", "sign"], check=True)
    subprocess.run([*gpg, "--output", str(home / "ring.gpg"), "--export", "good@example.com"], check=True)
    armoured = [*gpg, "--armor", "--output", str(home / "ring.asc"), "--export", "good@example.com"]
    subprocess.run(armoured, check=True)

    def sign(data: Path, signature: Path, name: str = "good") -> Path:
        words = ["--yes", "--local-user", f"{name}@example.com", "--output", str(signature)]
        subprocess.run([*gpg, *words, "--detach-sign", str(data)], check=True)
        return signature

    sign.home = home
    yield sign
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=True)


@pytest.fixture
def server(tmp_path):
    """The address of an HTTP server for the directory of the test."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_args: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def git(directory: Path, *args: str, **environment: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(directory), *IDENTITY, *args],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | ENVIRONMENT | environment,
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tree, keys):
    """Tags: signed, other (by another key), plain (annotated), light."""
    git(tree, "init", "-q")
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", "first")
    home = str(keys.home)
    git(tree, "tag", "-u", "good@example.com", "-m", "x", "signed", GNUPGHOME=home)
    git(tree, "tag", "-u", "other@example.com", "-m", "x", "other", GNUPGHOME=home)
    git(tree, "tag", "-a", "-m", "x", "plain")
    git(tree, "tag", "light")
    return tree


# --- every origin ---------------------------------------------------------------------------------------


def four_times(run, dest, **params):
    """check, apply, check, apply: changed, changed, not, not; what the second one returned."""
    before = sorted(dest.parent.iterdir())
    first = run(check=True, **params)
    assert "failed" not in first, first
    assert first["changed"]
    assert [path for path in sorted(dest.parent.iterdir()) if path.name != "cache"] == before
    made = run(**params)
    assert made["changed"], made
    assert (dest / ks.MARKER).is_file()
    assert made["diff"] == first["diff"]
    for check in (True, False):
        again = run(check=check, **params)
        assert not again["changed"]
        assert again["version"] == made["version"]
        assert again["diff"]["before"] == again["diff"]["after"]
    assert not list(dest.parent.glob(".dest.new-*"))
    return made


def test_archive(run, dest, archive, tmp_path):
    patch = make_patch(tmp_path / "a.patch")
    wish = {"archive": {"src": str(archive), "checksum": sha256(archive)}, "patches": [{"src": str(patch)}]}
    made = four_times(run, dest, **wish)
    assert made["version"] == "7.0.0"
    assert made["patches"] == ["a.patch"]
    assert "LINE 10\n" in (dest / "kernel/reboot.c").read_text()
    assert (dest / "Makefile").stat().st_mtime == 1_700_000_000


def test_directory_is_left_as_it_is(run, dest, tree, tmp_path):
    before = ks.tree_digest(tree)
    patch = make_patch(tmp_path / "a.patch")
    four_times(run, dest, directory=str(tree), patches=[{"src": str(patch), "checksum": sha256(patch)}])
    assert ks.tree_digest(tree) == before != ks.tree_digest(dest)
    (tree / "kernel/reboot.c").chmod(0o755)
    assert run(check=True, directory=str(tree))["changed"]


@pytest.mark.parametrize("wish", [{"tag": "light"}, {"tag": "plain"}, {"commit": "HEAD"}], ids=str)
def test_git(run, dest, repository, wish):
    commit = git(repository, "rev-parse", "HEAD")
    if "commit" in wish:
        wish = {"commit": commit}
    four_times(run, dest, git={"url": f"file://{repository}", **wish})
    assert (dest / "kernel/reboot.c").read_text() == LINES
    assert not (dest / ".git").exists()


@pytest.mark.parametrize("text", ["[]", "1", "{}", '{"digest": 1}', '"x"', "{"])
def test_a_tree_whose_marker_is_damaged_is_nobodys(run, dest, repository, text):
    wish = {"git": {"url": f"file://{repository}", "commit": git(repository, "rev-parse", "HEAD")}}
    run(**wish)
    (dest / ".mkops-source.json").write_text(text)
    assert "was not made by this module" in run(**wish)["msg"]


def test_a_signed_tag_and_a_makefile_that_are_no_utf_8(run, dest, repository, keys):
    makefile = repository / "Makefile"
    makefile.write_bytes(b"# f\xfcr uns\n" + makefile.read_bytes())
    git(repository, "commit", "-q", "-a", "-m", "second")
    message = repository.with_name("message")
    message.write_bytes(b"Gr\xfc\xdfe\n")
    words = (
        "-c",
        "i18n.commitEncoding=ISO-8859-1",
        "tag",
        "-u",
        "good@example.com",
        "-F",
        str(message),
        "latin",
    )
    git(repository, *words, GNUPGHOME=str(keys.home))
    keyring = str(keys.home / "ring.gpg")
    result = run(git={"url": f"file://{repository}", "tag": "latin", "keyring": keyring})
    assert result["changed"], result
    assert (dest / "Makefile").read_bytes().startswith(b"# f\xfcr")


def test_what_a_tree_says_of_archives_does_not_count(run, dest, repository):
    (repository / "left-out").write_text("x\n")
    (repository / "changed").write_text("$Format:%H$\n")
    (repository / ".gitattributes").write_text("left-out export-ignore\nchanged export-subst\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "second")
    commit = git(repository, "rev-parse", "HEAD")
    run(git={"url": f"file://{repository}", "commit": commit})
    assert (dest / "left-out").read_text() == "x\n"
    assert (dest / "changed").read_text() == "$Format:%H$\n"


def test_a_commit_that_is_there_needs_no_network(run, dest, repository):
    commit = git(repository, "rev-parse", "HEAD")
    wish = {"git": {"url": f"file://{repository}", "commit": commit}}
    assert run(**wish)["changed"]
    repository.rename(repository.with_name("away"))
    assert not run(**wish)["changed"]
    # Nor does another tree of the same commit.
    assert run(**wish, dest=str(dest.with_name("second")))["changed"]


def test_a_tag_that_was_moved(run, repository):
    wish = {"git": {"url": f"file://{repository}", "tag": "light"}}
    assert run(**wish)["changed"]
    (repository / "kernel/reboot.c").write_text("other\n")
    git(repository, "commit", "-q", "-a", "-m", "second")
    git(repository, "tag", "-f", "light")
    assert run(check=True, **wish)["changed"]
    pinned = {"git": {**wish["git"], "commit": git(repository, "rev-parse", "HEAD~1")}}
    assert "the tag was moved" in run(**pinned)["msg"]


@pytest.mark.parametrize("ring", ["ring.gpg", "ring.asc"])
def test_a_signed_tag(run, dest, repository, keys, ring):
    keyring = str(keys.home / ring)
    four_times(run, dest, git={"url": f"file://{repository}", "tag": "signed", "keyring": keyring})


@pytest.mark.parametrize(
    ("tag", "word"),
    [
        ("other", "is not signed by a key of"),
        ("plain", "is not signed with OpenPGP, but a keyring was given"),
        ("light", "is not an annotated tag, but a keyring was given"),
    ],
)
def test_a_tag_that_nobody_known_has_signed(run, dest, repository, keys, tag, word):
    wish = {"url": f"file://{repository}", "tag": tag, "keyring": str(keys.home / "ring.gpg")}
    result = run(git=wish)
    assert result["failed"]
    assert f"tag {tag}" in result["msg"]
    assert word in result["msg"]
    assert not dest.exists()


def test_a_signature_is_about_what_was_packed(run, dest, archive, keys, server):
    plain = archive.with_suffix("")
    plain.write_bytes(subprocess.run(["gzip", "-dc", archive], check=True, capture_output=True).stdout)
    signature = keys(plain, archive.with_name("linux-7.0.tar.sign"))
    plain.unlink()
    wish = {
        "src": f"{server}/{archive.name}",
        "signature": f"{server}/{signature.name}",
        "keyring": str(keys.home / "ring.gpg"),
    }
    four_times(run, dest, archive=wish)


def test_a_signature_of_the_file_itself(run, dest, archive, keys):
    signature = keys(archive, archive.with_name(f"{archive.name}.sig"))
    wish = {"src": str(archive), "signature": str(signature), "keyring": str(keys.home / "ring.asc")}
    four_times(run, dest, archive=wish)


@pytest.mark.parametrize("harm", ["other signer", "other content"])
def test_a_signature_that_is_not_right(run, dest, archive, keys, harm):
    signer = "other" if harm == "other signer" else "good"
    signature = keys(archive, archive.with_name(f"{archive.name}.sig"), signer)
    if harm == "other content":
        archive.write_bytes(archive.read_bytes() + b"\0")
    keyring = str(keys.home / "ring.gpg")
    result = run(archive={"src": str(archive), "signature": str(signature), "keyring": keyring})
    assert "is not signed by a key of" in result["msg"]
    assert not dest.exists()


# --- patches ----------------------------------------------------------------------------------------------


def test_series_mailbox_and_address(run, dest, tree, tmp_path, server):
    series = tmp_path / "series.d"
    series.mkdir()
    make_patch(series / "b.patch")
    make_patch(series / "a.patch", "LINE 10", "Line 10")
    (series / "series").write_text("b.patch\na.patch # a comment\n")
    mail = "From 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001\nFrom: A <a@example.com>\n"
    head = f"{mail}Date: Tue, 1 Sep 2026 00:00:00 +0000\nSubject: [PATCH] x\n\ntext\n---\n"
    one = make_patch(tmp_path / "one", "Line 10", "line ten", head).read_text()
    two = make_patch(tmp_path / "two", "line ten", "LINE TEN", head).read_text()
    cover = f"{mail}Date: Tue, 1 Sep 2026 00:00:00 +0000\nSubject: [PATCH 0/2] cover\n\ntext\n\n"
    box = tmp_path / "box.mbox"
    box.write_text(f"{cover}{one}\n{two}")
    last = make_patch(tmp_path / "last.patch", "LINE TEN", "the end")
    patches = [
        {"src": str(series)},
        {"src": str(box)},
        {"src": f"{server}/last.patch", "checksum": sha256(last)},
    ]
    made = four_times(run, dest, directory=str(tree), patches=patches)
    assert made["patches"] == ["b.patch", "a.patch", "box.mbox", "last.patch"]
    assert "the end\n" in (dest / "kernel/reboot.c").read_text()
    # The order counts.
    assert run(check=True, directory=str(tree), patches=patches[::-1])["changed"]


def test_a_patch_that_does_not_apply(run, dest, tree, tmp_path):
    assert run(directory=str(tree))["changed"]
    before = ks.tree_digest(dest)
    good = make_patch(tmp_path / "good.patch")
    bad = make_patch(tmp_path / "bad.patch", "something", "else")
    result = run(directory=str(tree), patches=[{"src": str(good)}, {"src": str(bad)}])
    assert result["msg"] == "patch bad.patch does not apply: kernel/reboot.c hunk 1 at line 9"
    assert ks.tree_digest(dest) == before
    assert not list(dest.parent.glob(".dest.new-*"))
    assert run(directory=str(tree), patches=[{"src": str(good)}])["changed"]


def test_a_patch_that_was_tampered_with(run, dest, tree, tmp_path, server):
    patch = make_patch(tmp_path / "a.patch")
    wanted = sha256(patch)
    make_patch(patch, new="evil")
    for src in (str(patch), f"{server}/a.patch"):
        result = run(directory=str(tree), patches=[{"src": src, "checksum": wanted}])
        assert "a.patch has sha256" in result["msg"]
        assert not dest.exists()
    assert not list((tmp_path / "cache/sources").glob("*"))


# --- what goes wrong ------------------------------------------------------------------------------------


def test_a_wrong_checksum(run, dest, archive, server):
    for src in (str(archive), f"{server}/{archive.name}"):
        result = run(archive={"src": src, "checksum": f"sha256:{'0' * 64}"})
        assert "find out why before you change the checksum" in result["msg"]
        assert not dest.exists()


def test_nothing_is_trusted_for_want_of_a_word(archive, tmp_path):
    """The module asks for all of these; who calls these functions without them gets no tree."""
    fetcher = ks.Fetcher(tmp_path / "sources", lambda *_arguments: None)
    git_tree = Git(tmp_path / "sources", "https://me:secret@example.org/linux.git")
    with pytest.raises(Failure, match=r"git https://\*\*\*@example\.org/linux\.git: give tag or commit"):
        ks.git_origin(git_tree, None, None, None)
    with pytest.raises(Failure, match="keyring verifies a tag: give tag as well"):
        ks.git_origin(git_tree, None, 40 * "1", archive)
    with pytest.raises(Failure, match=r"signature needs a keyring with the key that made it"):
        ks.archive_origin(fetcher, str(archive), None, f"{archive}.sig", None)
    with pytest.raises(
        Failure, match=r"patch https://example\.org/a\.patch: a patch that is fetched needs a checksum"
    ):
        ks.expand("https://example.org/a.patch", None, fetcher)


def test_a_link_is_told_apart_from_what_it_names(tree):
    (tree / "scripts").mkdir()
    (tree / "link").symlink_to("scripts")
    before = ks.tree_digest(tree)
    (tree / "link").unlink()
    (tree / "link").symlink_to("kernel")
    assert ks.tree_digest(tree) != before
    (tree / ".git").mkdir()
    (tree / ".git/config").touch()
    (tree / "link").unlink()
    (tree / "link").symlink_to("scripts")
    assert ks.tree_digest(tree) == before


def test_a_patch_that_changes_meanwhile(tmp_path):
    path = make_patch(tmp_path / "a.patch")
    patch = ks.local_patch(path)
    assert patch.fetch() == path
    make_patch(path, new="LINE TEN")
    with pytest.raises(Failure, match=r"a\.patch has changed while this ran: run again"):
        patch.fetch()


def test_a_tree_of_somebody_else_is_nothing_to_build(tree):
    with pytest.raises(Failure, match="was not made by kernel_source: make it with that, or give an archive"):
        ks.tree_source(tree)


def test_what_is_there_already_is_not_fetched_again(tmp_path):
    fetched = []

    def download(src, path):
        fetched.append(src)
        path.write_text("wrong" if len(fetched) == 2 else "right")

    fetcher = ks.Fetcher(tmp_path / "sources", download)
    checksum = f"sha256:{hashlib.sha256(b'right').hexdigest()}"
    path = fetcher.get("a", "http://m/a.tar", checksum)
    assert fetcher.get("a", "http://m/a.tar", checksum) == path
    assert fetched == ["http://m/a.tar"]
    with pytest.raises(Failure, match=r"b has sha256 .* instead of .*: find out why"):
        fetcher.get("b", "http://m/b.tar", checksum)
    assert list((tmp_path / "sources").iterdir()) == [path]


def test_all_reasons_at_once(run, tmp_path):
    result = run(
        git={"url": "--upload-pack=x", "commit": "abc", "tag": "x", "keyring": "/no/ring"},
        patches=[
            {"src": "https://example.com/a.patch"},
            {"src": "/no/such.patch"},
            {"src": str(tmp_path), "checksum": "md5:1"},
        ],
    )
    for word in (
        *("url and tag must not begin", "not a full commit id", "keyring /no/ring is not a file"),
        *("needs a checksum", "such.patch does not exist", "is not of the form", "a directory, which has no"),
    ):
        assert word in result["msg"]
    assert len(result["problems"]) == 7
    assert "needs a checksum or a signature" in run(archive={"src": "https://example.com/x.tar.xz"})["msg"]


def test_passwords_are_not_shown(run):
    result = run(git={"url": "http://me:secret@127.0.0.1:9/x.git", "tag": "v1"})
    assert result["failed"]
    assert "//***@127.0.0.1:9/x.git" in result["msg"]
    assert "invocation" in result
    assert "secret" not in json.dumps(result)
    result = run(archive={"src": "http://me:secret@127.0.0.1:9/x.tar", "checksum": f"sha256:{'0' * 64}"})
    assert "cannot fetch http://***@127.0.0.1:9/x.tar" in result["msg"]


def test_what_is_in_the_way_stays(run, dest, tree):
    dest.mkdir()
    (dest / "mine").touch()
    for check in (True, False):
        assert "was not made by this module" in run(check=check, directory=str(tree))["msg"]
    assert [path.name for path in dest.iterdir()] == ["mine"]
    (dest / "mine").unlink()
    assert run(directory=str(tree))["changed"]


def test_what_an_interrupted_run_has_left_is_removed(run, dest, tree):
    left = dest.with_name(".dest.new-1")
    (left / "linux").mkdir(parents=True)
    assert run(directory=str(tree))["changed"]
    assert not left.exists()


def test_a_full_disk(run, dest, archive, tree):
    """As a limit on the size of files, which cp and tar meet as they meet a full disk."""
    (tree / "big").write_bytes(b"x" * 200_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        result = run(directory=str(tree))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"cannot copy {tree}" in result["msg"]
    assert not dest.exists()
    assert run(directory=str(tree))["changed"]


# --- the tree is something to build -----------------------------------------------------------------------


def test_a_build_takes_the_tree(run, dest, tree, tmp_path):
    made = run(directory=str(tree))
    source = ks.tree_source(dest)
    assert source.sha256 == made["digest"]
    assert source.kernel_version == "7.0.0"
    work = tmp_path / "work"
    work.mkdir()
    copy = unpack(dest, work)
    assert ks.tree_digest(copy) == ks.tree_digest(dest)
    (tree / "Makefile").write_text(MAKEFILE.replace("EXTRAVERSION =", "EXTRAVERSION = -mk5"))
    assert run(directory=str(tree))["version"] == "7.0.0-mk5"
    assert ks.tree_source(dest).kernel_version is None


def test_a_build_refuses_any_other_directory(tree, tmp_path, capsys):
    args = {"source": {"path": str(tree)}, "config": [], "cache_dir": str(tmp_path / "cache")}
    with patch_module_args({**args, "_ansible_check_mode": True}), pytest.raises(SystemExit):
        kernel_build.main()
    assert "is a directory that was not made by kernel_source" in json.loads(capsys.readouterr().out)["msg"]


# --- values and names of every kind -------------------------------------------------------------------------

ODD = [
    "",
    " ",
    "-",
    "ü",
    "\0",
    "a\nb",
    "/",
    "..",
    "~nobody-here/x",
    "http://[",
    "http://a:b@",
    "file://",
    "https://x/?",
    0,
    None,
    [],
]


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_odd_values_end_with_a_message(run, tmp_path, value):
    none = {"src": "/none", "checksum": f"sha256:{'0' * 64}"}
    wishes = [
        {"directory": value},
        {"directory": str(tmp_path / "none"), "patches": [{"src": value}]},
        *({"git": {"url": "file:///none", "tag": "v1", name: value}} for name in ("url", "tag", "keyring")),
        *({"archive": {**none, name: value}} for name in ("src", "checksum", "signature")),
    ]
    for wish in wishes:
        result = run(check=True, **wish)
        assert result.get("msg") or result["changed"], wish


def test_what_is_empty_is_not_left_out(run, repository, archive):
    """Above all no keyring."""
    result = run(git={"url": f"file://{repository}", "tag": "plain", "keyring": ""})
    assert "git: keyring is empty" in result["msg"]
    result = run(archive={"src": str(archive), "checksum": sha256(archive), "signature": "", "keyring": ""})
    assert len(result["problems"]) == 2
    assert "git: tag is empty" in run(git={"url": f"file://{repository}", "tag": ""})["msg"]


def test_a_host_whose_locale_is_not_utf_8(tree, tmp_path):
    place = tmp_path / "größe"
    place.mkdir()
    tree.rename(place / "källa")
    (place / "källa/tür.c").touch()
    make_patch(place / "für.patch")
    args = {
        "dest": f"{place}/Ziel", "cache_dir": f"{place}/cache", "directory": f"{place}/källa",
        "patches": [{"src": f"{place}/für.patch"}],
    }  # fmt: skip
    results = []
    for variables, options in (
        ({"LC_ALL": "C.UTF-8"}, []),
        ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}, ["-X", "utf8=0"]),
    ):
        done = subprocess.run(
            [sys.executable, *options, "-c", MODULE, json.dumps(args)],
            check=False, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables},
        )  # fmt: skip
        results.append(json.loads(done.stdout))
    first, second = results
    assert (first["changed"], second["changed"]) == (True, False)
    assert (first["digest"], first["path"], first["origin"]) == (
        second["digest"],
        second["path"],
        second["origin"],
    )
    assert second["path"] == f"{place}/Ziel"
    assert "LINE 10" in (place / "Ziel/kernel/reboot.c").read_text()


MODULE = """
import json, sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.mkops.multikernel.plugins.modules import kernel_source
with patch_module_args(json.loads(sys.argv[1])):
    kernel_source.main()
"""


def test_secrets_are_in_no_result(run):
    mirror = {
        "package": "linux-source-6.12",
        "mirror": "http://me:hush-hush@127.0.0.1:9/debian",
        "keyring": "/dev/null",
    }
    address = "https://127.0.0.1:9/x.tar?signature=hush-hush"
    for wish in (
        {"archive": {"src": address, "checksum": f"sha256:{'0' * 64}"}},
        {"git": {"url": "http://hush-hush@127.0.0.1:9/x", "tag": "v1"}},
    ):
        result = run(**wish)
        assert result["failed"]
        assert "hush-hush" not in json.dumps(result)
    reasons = kernel_source.addresses(
        {"git": None, "archive": None, "debian": mirror, "patches": [{"src": address}]}
    )
    assert [one for one in reasons if one] == [mirror["mirror"], address]


def test_all_origins_read_a_patch_as_a_series_does(run, dest, tree, tmp_path):
    """One that a mail's text only shows is not applied; one that is not there is no success."""
    mail = "From 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001\nFrom: A <a@example.com>\n"
    diff = "--- a/Makefile\n+++ b/Makefile\n@@ -1,2 +1,2 @@\n-VERSION = 7\n+VERSION = 8\n PATCHLEVEL = 0\n"
    shown = "".join(f"    {line}" for line in diff.splitlines(keepends=True))
    one = make_patch(tmp_path / "one.patch", mail=f"{mail}Subject: [PATCH] x\n\nTo see it:\n\n{shown}\n---\n")
    assert run(directory=str(tree), patches=[{"src": str(one)}])["version"] == "7.0.0"
    lost = tmp_path / "lost.patch"
    lost.write_text(f"{mail}Subject: [PATCH] lost\n\nThe patch got lost.\n")
    result = run(directory=str(tree), patches=[{"src": str(one)}, {"src": str(lost)}])
    assert "patch lost.patch has nothing to apply" in result["msg"]
    assert (dest / "Makefile").read_text() == MAKEFILE
