# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import base64
import email
import quopri
import subprocess
from pathlib import Path

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.build import patches
from ansible_collections.mkops.multikernel.plugins.module_utils.build.patches import (
    apply_patch,
    own_fragments,
    read_patch,
    read_series,
    with_own_fragments,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure, Refused


def test_series_in_the_order_of_names(tmp_path):
    for name in ("0002-b.patch", "0001-a.patch", "README"):
        (tmp_path / name).touch()
    assert [path.name for path in read_series(tmp_path)] == ["0001-a.patch", "0002-b.patch"]


def test_series_in_the_order_of_its_listing(tmp_path):
    for name in ("a.patch", "b.patch", "c.patch"):
        (tmp_path / name).touch()
    (tmp_path / "series").write_text("# order matters\nb.patch\n\na.patch # last\n")
    assert [path.name for path in read_series(tmp_path)] == ["b.patch", "a.patch"]


def test_series_names_every_missing_patch(tmp_path):
    (tmp_path / "series").write_text("a.patch\nb.patch\n")
    with pytest.raises(Refused, match=r"a\.patch, b\.patch"):
        read_series(tmp_path)


def test_empty_series(tmp_path):
    assert read_series(tmp_path) == []


def test_a_fragment_is_followed_by_the_one_of_the_series(tmp_path):
    assert with_own_fragments(tmp_path, [Path("/x/a.config")]) == [Path("/x/a.config")]
    (tmp_path / "config").mkdir()
    for name in ("b.config", "c.config", "README"):
        (tmp_path / "config" / name).touch()
    assert [path.name for path in own_fragments(tmp_path)] == ["b.config", "c.config"]
    given = [Path("/x/b.config"), Path("/x/README"), Path("/x/a.config")]
    assert with_own_fragments(tmp_path, given) == [given[0], tmp_path / "config/b.config", *given[1:]]


def patch(tmp_path: Path, old: str, new: str, path: str = "kernel/reboot.c") -> Path:
    hunk = f"@@ -9,3 +9,3 @@\n line 9\n-{old}\n+{new}\n line 11\n"
    text = f"Subject: x\n\n--- a/{path}\n+++ b/{path}\n{hunk}-- \n2.39\n"
    file = tmp_path / "0001-x.patch"
    file.write_text(text)
    return file


def apply(tree: Path, file: Path) -> None:
    apply_patch(tree, file, file.name)


def test_series_is_applied(tree, tmp_path):
    apply(tree, patch(tmp_path, "line 10", "LINE 10"))
    assert "LINE 10" in (tree / "kernel/reboot.c").read_text()
    assert sorted(entry.name for entry in (tree / "kernel").iterdir()) == ["reboot.c"]


def test_patch_error_names_patch_file_and_hunk(tree, tmp_path):
    with pytest.raises(Failure) as caught:
        apply(tree, patch(tmp_path, "other", "new"))
    assert str(caught.value) == "patch 0001-x.patch does not apply: kernel/reboot.c hunk 1 at line 9"


def test_patch_error_names_a_missing_file(tree, tmp_path):
    with pytest.raises(Failure, match=r"0001-x\.patch does not apply: .*kernel/gone\.c"):
        apply(tree, patch(tmp_path, "line 10", "x", "kernel/gone.c"))


def test_series_that_is_applied_already(tree, tmp_path):
    file = patch(tmp_path, "line 10", "LINE 10")
    apply(tree, file)
    with pytest.raises(Failure, match="does not apply"):
        apply(tree, file)


@pytest.mark.parametrize(
    ("listing", "names"),
    [
        ("b.patch -p1\na.patch -pab # why\n", ["b.patch", "a.patch"]),
        ("# für uns\nfix-#12.patch\n#a.patch\n", ["fix-#12.patch"]),
        ("\ufeffa.patch\r\n\r\n  b.patch\t-p1\r\n", ["a.patch", "b.patch"]),
        ("sub/c.patch\nä.patch\n", ["c.patch", "ä.patch"]),
    ],
)
def test_listing_of_a_series(tmp_path, listing, names):
    (tmp_path / "sub").mkdir()
    for name in ("a.patch", "b.patch", "fix-#12.patch", "sub/c.patch", "ä.patch"):
        (tmp_path / name).touch()
    (tmp_path / "series").write_bytes(listing.encode())
    assert [path.name for path in read_series(tmp_path)] == names


@pytest.mark.parametrize("comment", [b"# f\xfcr uns", b"#\xff\xfe\x00", b"# \xe2\x80"])
def test_listing_in_any_encoding(tmp_path, comment):
    (tmp_path / "a.patch").touch()
    (tmp_path / "series").write_bytes(comment + b"\na.patch\n")
    assert [path.name for path in read_series(tmp_path)] == ["a.patch"]
    (tmp_path / "series").write_bytes(b"f\xfcr.patch\n")
    with pytest.raises(Refused, match=r"do not exist: f\\xfcr\.patch"):
        read_series(tmp_path)


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000 + "x", "a\0b", "sub", "sub/", ".", "a.patch/x"])
def test_a_listed_name_that_is_no_file(tmp_path, name):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.patch").touch()
    (tmp_path / "series").write_text(f"a.patch\n{name}\n")
    with pytest.raises(Refused, match="series lists patches that do not exist: "):
        read_series(tmp_path)


def test_a_listing_that_cannot_be_read(tmp_path):
    (tmp_path / "series").mkdir()
    with pytest.raises(Refused, match=r"/series cannot be read: Is a directory"):
        read_series(tmp_path)


def test_what_a_series_cannot_have_is_told_at_once(tmp_path):
    (tmp_path / "a.patch").touch()
    (tmp_path / "series").write_text(
        "a.patch -p0\na.patch -R\na.patch b.patch\n../x.patch\n/x.patch\ngone.patch\n"
    )
    with pytest.raises(Refused) as caught:
        read_series(tmp_path)
    reasons = caught.value.reasons
    words = (
        "series:1: a.patch has the option -p0",
        "series:2: a.patch has the option -R",
        "series:3: a.patch has a second",
    )
    words += (
        "series:4: ../x.patch lies outside",
        "series:5: /x.patch lies outside",
        "do not exist: gone.patch",
    )
    assert [word in reason for word, reason in zip(words, reasons, strict=True)] == [True] * 6


# --- what is in a patch: as git am reads it ---------------------------------------------------------------

MBOX = "From 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001\n"
HEAD = "From: A <a@example.org>\nDate: Sat, 1 Nov 2025 10:00:00 +0000\nSubject: [PATCH] a: two\n"
DIFF = """\
diff --git a/a.c b/a.c
--- a/a.c
+++ b/a.c
@@ -1,3 +1,3 @@
 one
-two
+TWO é =
 three
"""
BARE = DIFF
DIFF += "-- \n2.39\n"
EXAMPLE = """\
--- a/b.c
+++ b/b.c
@@ -1,3 +1,3 @@
 alpha
-beta
+WAIT
 gamma
"""


def indented(text: str) -> str:
    return "".join(f"    {line}" for line in text.splitlines(keepends=True))


def mime(encoding: str, text: str, kind: str = "text/plain; charset=UTF-8") -> str:
    encoders = {
        "base64": base64.encodebytes,
        "quoted-printable": quopri.encodestring,
        "8bit": lambda data: data,
    }
    head = f"MIME-Version: 1.0\nContent-Type: {kind}\nContent-Transfer-Encoding: {encoding}\n\n"
    return head + encoders[encoding](text.encode()).decode()


def attached(text: str) -> str:
    part = mime("base64", text.replace("\n", "\r\n"), "text/x-patch; name=a.patch")
    head = 'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="=-="\n\n'
    return f"{head}--=-=\nContent-Type: text/plain\n\nsee below\n\n--=-=\n{part}\n--=-=--\n"


PATCHES = {
    "in the message": f"{MBOX}{HEAD}\nTo see it:\n\n{indented(EXAMPLE)}\n---\n{DIFF}",
    "in the notes": f"{MBOX}{HEAD}\ntext\n---\n{indented(EXAMPLE)}\n{DIFF}",
    "after the end": f"{MBOX}{HEAD}\ntext\n---\n{DIFF}\n{indented(EXAMPLE)}",
    "quoted": f"{MBOX}{HEAD}\n> {EXAMPLE.replace(chr(10), chr(10) + '> ')}\n---\n{DIFF}",
    "quoted-printable": f"{MBOX}{HEAD}{mime('quoted-printable', 'text' + chr(10) + DIFF)}",
    "base64": f"{MBOX}{HEAD}{mime('base64', 'text' + chr(10) + DIFF)}",
    "8bit": f"{MBOX}{HEAD}{mime('8bit', 'text' + chr(10) + DIFF)}",
    "a mail without the line of a mailbox": f"{HEAD}{mime('quoted-printable', 'text' + chr(10) + DIFF)}",
    "attached": f"{MBOX}{HEAD}{attached(DIFF)}",
    "a line that begins as a mail does": f"{MBOX}{HEAD}\nFrom Monday on, 10:30 it is, 2024\n\n---\n{DIFF}",
    "headers in the message": f"{MBOX}{HEAD}\nFrom: B <b@example.org>\nSubject: y\n\n>From\n---\n{DIFF}",
    "long lines": f"{MBOX}{HEAD}{mime('quoted-printable', DIFF.replace('TWO é =', 'TWO é =' * 30))}",
    "empty lines of context": f"{MBOX}{HEAD}\n---\n" + DIFF.replace("@@ -1,3", "@@ -1,4").replace(
        "+1,3 @@", "+1,4 @@").replace(" three\n", " three\n\n"),
}  # fmt: skip


@pytest.fixture
def two_trees(tmp_path):
    """The same files twice, one of them for git."""
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.c").write_text("one\ntwo\nthree\n\nfour\n")
        (tmp_path / name / "b.c").write_text("alpha\nbeta\ngamma\n")
    git(tmp_path / "theirs", "init", "-q")
    git(tmp_path / "theirs", "add", "-A")
    git(tmp_path / "theirs", "commit", "-qm", "base")
    return tmp_path / "ours", tmp_path / "theirs"


def git(directory: Path, *args: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", directory, *who, *args], check=True, capture_output=True)


def files(tree: Path) -> dict[str, tuple[bytes, int]]:
    return {
        path.name: (path.read_bytes(), path.stat().st_mode & 0o111)
        for path in sorted(tree.iterdir())
        if path.is_file()
    }


@pytest.mark.parametrize("kind", PATCHES)
def test_a_patch_is_read_as_git_reads_it(two_trees, tmp_path, kind):
    ours, theirs = two_trees
    file = tmp_path / "one.patch"
    file.write_text(PATCHES[kind])
    git(theirs, "am", "-q", "--quoted-cr=strip", str(file))
    apply(ours, file)
    assert files(ours) == files(theirs)
    assert "TWO é =" in (ours / "a.c").read_text()
    assert "WAIT" not in (ours / "b.c").read_text()


EFFECTS = {
    "new": "diff --git a/new b/new\nnew file mode 100755\nindex 0000000..e69de29\n",
    "mode": "diff --git a/a.c b/a.c\nold mode 100644\nnew mode 100755\n",
    "renamed": "diff --git a/b.c b/c.c\nsimilarity index 100%\nrename from b.c\nrename to c.c\n",
    "deleted": "diff --git a/b.c b/b.c\ndeleted file mode 100644\n--- a/b.c\n+++ /dev/null\n"
    "@@ -1,3 +0,0 @@\n-alpha\n-beta\n-gamma\n",
    "copied": "diff --git a/b.c b/c.c\nsimilarity index 100%\ncopy from b.c\ncopy to c.c\n",
    "renamed and changed": "diff --git a/a.c b/c.c\nsimilarity index 60%\nrename from a.c\nrename to c.c\n"
    + BARE.partition("\n")[2].replace("b/a.c", "b/c.c"),
    "swapped": "diff --git a/b.c b/a.c\nsimilarity index 100%\nrename from b.c\nrename to a.c\n"
    "diff --git a/a.c b/b.c\nsimilarity index 100%\nrename from a.c\nrename to b.c\n",
    "a name with spaces": "diff --git a/c d b/c d\nnew file mode 100644\n--- /dev/null\n+++ b/c d\t\n"
    "@@ -0,0 +1 @@\n+x\n",
    "a link": "diff --git a/l b/l\nnew file mode 120000\n--- /dev/null\n+++ b/l\n@@ -0,0 +1 @@\n+b.c\n"
    "\\ No newline at end of file\n",
    "two files": BARE + "diff --git a/b.c b/b.c\n" + EXAMPLE,
    "no newline": "--- a/b.c\n+++ b/b.c\n@@ -1,3 +1,3 @@\n alpha\n beta\n-gamma\n+gamma\n"
    "\\ No newline at end of file\n",
}


@pytest.mark.parametrize("kind", EFFECTS)
def test_changes_of_every_kind(two_trees, tmp_path, kind):
    ours, theirs = two_trees
    file = tmp_path / "one.patch"
    file.write_text(EFFECTS[kind])
    before = files(ours)
    git(theirs, "apply", str(file))
    apply(ours, file)
    assert files(ours) == files(theirs) != before


@pytest.mark.parametrize("how", ["rename", "copy"])
def test_a_file_that_is_there_is_not_lost(two_trees, tmp_path, how):
    file = tmp_path / "one.patch"
    file.write_text(f"diff --git a/a.c b/b.c\nsimilarity index 100%\n{how} from a.c\n{how} to b.c\n")
    before = files(two_trees[0])
    with pytest.raises(Failure, match=r"one\.patch does not apply: it renames or copies a file to b\.c"):
        apply(two_trees[0], file)
    assert files(two_trees[0]) == before


@pytest.mark.parametrize("how", ["rename", "copy"])
def test_a_file_whose_name_git_has_quoted_is_not_lost(two_trees, tmp_path, how):
    file = tmp_path / "one.patch"
    for name in ("f\n.c", 'ü "x".c'):
        (two_trees[0] / name).write_text("old\n")
    before = files(two_trees[0])
    for quoted, shown in ((r"f\n.c", r"f\n\.c"), (r"\303\274 \"x\".c", 'ü "x"\\.c')):
        file.write_text(
            f'diff --git a/a.c "b/{quoted}"\nsimilarity index 100%\n{how} from a.c\n{how} to "{quoted}"\n'
        )
        with pytest.raises(Failure, match=f"it renames or copies a file to {shown}, which exists already"):
            apply(two_trees[0], file)
    assert files(two_trees[0]) == before


def test_mails_of_a_box_in_their_order(two_trees, tmp_path):
    ours, _theirs = two_trees
    cover = f"{MBOX}{HEAD.replace('[PATCH]', '[PATCH v2 0/2]')}\nWhat it is for.\n\n"
    answer = (
        f"{MBOX}{HEAD.replace('[PATCH]', 'Re: [PATCH 1/2]')}\n> {DIFF.replace(chr(10), chr(10) + '> ')}\n"
    )
    second = DIFF.replace("-two\n+TWO é =", "-TWO é =\n+2").replace("-- \n2.39\n", "")
    box = tmp_path / "box"
    box.write_text(f"{cover}{PATCHES['base64']}\n{answer}{MBOX}{HEAD}\n---\n{second}")
    found = read_patch(box, "box")
    assert [change.name for change in found] == ["box message 2", "box message 4"]
    assert [change.files for change in found] == [(("a/a.c", "b/a.c"),)] * 2
    apply(ours, box)
    assert (ours / "a.c").read_text() == "one\n2\nthree\n\nfour\n"


def test_lines_that_flow(two_trees, tmp_path):
    text = "".join(f" {line}" if line.startswith(" ") else line for line in DIFF.splitlines(keepends=True))
    kind = 'text/plain; charset="utf-8"; format=flowed'
    file = tmp_path / "one.patch"
    body = mime("8bit", f"so it \nflows\n{text}", kind)
    file.write_text(f"{MBOX}{HEAD}{body}")
    git(two_trees[1], "am", "-q", str(file))
    apply(two_trees[0], file)
    assert files(two_trees[0]) == files(two_trees[1])


def test_a_last_line_without_an_end(two_trees, tmp_path):
    """Which git takes for a damaged patch."""
    file = tmp_path / "one.patch"
    file.write_text(f"{HEAD}\n---\n{BARE}".rstrip("\n"))
    apply(two_trees[0], file)
    assert (two_trees[0] / "a.c").read_text() == "one\nTWO é =\nthree\n\nfour\n"


def test_returns_of_a_file_stay_and_those_of_the_mail_do_not(tmp_path):
    (tmp_path / "a.c").write_bytes(b"one\r\ntwo\r\nthree\r\n")
    (tmp_path / "b.c").write_bytes(b"alpha\nbeta\ngamma\n")
    dos = DIFF.replace(" one\n-two\n+TWO é =\n three\n", " one\r\n-two\r\n+TWO\r\n three\r\n")
    (tmp_path / "dos.patch").write_bytes(dos.encode())
    apply(tmp_path, tmp_path / "dos.patch")
    assert (tmp_path / "a.c").read_bytes() == b"one\r\nTWO\r\nthree\r\n"
    (tmp_path / "mail.patch").write_bytes(f"{HEAD}\n{EXAMPLE}".replace("\n", "\r\n").encode())
    apply(tmp_path, tmp_path / "mail.patch")
    assert (tmp_path / "b.c").read_bytes() == b"alpha\nWAIT\ngamma\n"


@pytest.mark.parametrize(
    "text",
    [
        f"{MBOX}{HEAD}\nThe patch got lost.\n",
        f"{MBOX}{HEAD}\n{indented(EXAMPLE)}",
        f"{MBOX}{HEAD.replace('[PATCH]', '[PATCH 0/1]')}\ncover\n",
        "",
        "\x1f\x8b\x08 packed",
        EXAMPLE.replace("-beta\n+WAIT", " beta"),
        "diff --git a/b.c b/b.c\nindex 0000000..e69de29 100644\n",
    ],
)
def test_a_patch_with_nothing_to_apply(two_trees, tmp_path, text):
    file = tmp_path / "lost.patch"
    file.write_text(text)
    before = files(two_trees[0])
    with pytest.raises(Refused, match=r"patch lost\.patch has nothing to apply"):
        apply(two_trees[0], file)
    assert files(two_trees[0]) == before


# What is left of a second diff that was cut off, or changed on the way; git refuses the first four.
LEFT = [
    "diff --git a/b.c b/b.c\n",
    "diff --git a/b.c b/b.c\nindex 1..2 100644\n",
    "diff --git a/b.c b/b.c\nindex 1..2 100644\n--- a/b.c\n",
    "diff --git a/b.c b/b.c\nold mode 100644\n",
    "diff --git a/b.c b/b.c\nindex 1..2 100644\n--- a/b.c\n+++ b/b.c\n",
    "diff --git a/n.c b/n.c\nnew file mode 100644\n--- /dev/null\n+++ b/n.c\n",
    "diff --git a/a c.c b/n c.c\nsimilarity index 9%\nrename from a c.c\nrename to n c.c\n--- a/a c.c\n",
    "diff -ru a/b.c b/b.c\n--- a/b.c\n+++ b/b.c\n\n",
    EXAMPLE.replace("@@ -1,3 +1,3 @@", "@@ -1,3 +1,3"),
    f"diff --git a/b.c b/b.c\nindex 1..2\n{EXAMPLE.replace('@@ -1,3', '-1,3')}",
]


@pytest.mark.parametrize("left", LEFT)
def test_a_diff_of_which_only_a_part_is_left(two_trees, tmp_path, left):
    file = tmp_path / "cut.patch"
    before = files(two_trees[0])
    mail = MBOX + HEAD + mime("quoted-printable", f"text\n---\n{BARE}{left}")
    for text in (BARE + left, mail):
        file.write_text(text)
        with pytest.raises(Refused, match=r"patch cut\.patch has nothing to apply in the diff at line \d+: "):
            apply(two_trees[0], file)
    assert files(two_trees[0]) == before


@pytest.mark.parametrize(
    "words",
    [
        "diff --git shows more",
        "diff --git old new",
        "diff -u says:\n--- before\n+++ after",
        "--- before\n+++ after\nis what it says",
        "2c3\nis a place",
        "-- \n@someone: see @@ -1 +1",
    ],
)
def test_words_that_are_no_diff(two_trees, tmp_path, words):
    file = tmp_path / "one.patch"
    file.write_text(f"{HEAD}\n{words}\n---\n{BARE}{words}\nand more\n")
    assert [change.files for change in read_patch(file, "one")] == [(("a/a.c", "b/a.c"),)]
    apply(two_trees[0], file)


def test_a_lost_mail_of_a_box(tmp_path):
    subject = "=?UTF-8?q?=5BPATCH=201/2=5D=20f=C3=BCr?="
    lost = f"{MBOX}{HEAD.replace('[PATCH] a: two', subject)}\nlost\n"
    (tmp_path / "box").write_text(f"{lost}{MBOX}{HEAD}\n---\n{DIFF}")
    with pytest.raises(Refused, match=r"patch box message 1 has nothing to apply: .*'\[PATCH 1/2\] für'"):
        read_patch(tmp_path / "box", "box")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (DIFF.replace(" three\n-- \n2.39\n", ""), r"is damaged: the hunk in line 4 .* \(see line 8\)"),
        (DIFF.replace("+TWO é =", "+TWO é\n="), "is damaged"),
        (DIFF.replace("+TWO", "+TWO\n+"), "is damaged"),
        (DIFF.replace(" three\n", " three\n+four\n"), "is damaged"),
        (DIFF.replace("-1,3 +1,3", "-1,1 +1,3"), "is damaged"),
        (
            "diff --git a/x.bin b/x.bin\nindex 1..2 100644\nGIT binary patch\nliteral 0\n",
            r"binary file \(b/x\.bin\)",
        ),
        ("*** a/b.c\n--- b/b.c\n***************\n*** 1,3 ****\n", "is a context diff"),
        (f"{BARE}diff -r a/b.c b/b.c\n2c2\n< beta\n---\n> B\n", "is a diff without context"),
        ("2,3d1\r\n< beta\r\n< gamma\r\n", "is a diff without context"),
        (
            f"{BARE}diff --cc b.c\nindex 1,2..3\n--- a/b.c\n+++ b/b.c\n@@@ -1,1 -1,1 +1,1 @@@\n--a\n++b\n",
            "is a combined diff of a merge",
        ),
        (
            "diff --git a/s b/s\nnew file mode 160000\nindex 0..1\n--- /dev/null\n+++ b/s\n@@ -0,0 +1 @@\n"
            "+Subproject commit 1\n",
            r"changes a submodule \(b/s\)",
        ),
        ("diff --git a/s b/s\nindex 1..2 160000\n--- a/s\n+++ b/s\n@@ -1 +1 @@\n-1\n+2\n", "a submodule"),
        (f"{BARE}@@ -10,2 +10,3\n x\n+y\n z\n", r"is damaged: line 9 does not say how many"),
        (f"{BARE}@ -10,2 +10,3 @@\n x\n+y\n z\n", r"is damaged: line 9 does not say how many"),
    ],
)
def test_a_patch_that_is_not_right(tmp_path, text, reason):
    (tmp_path / "bad.patch").write_text(text)
    with pytest.raises(Refused, match=rf"patch bad\.patch .*{reason}|patch bad\.patch {reason}"):
        read_patch(tmp_path / "bad.patch", "bad.patch")


def test_a_subject_in_a_charset_that_nobody_knows():
    message = email.message_from_string("Subject: =?x-nobodys?q?Fix_?= =?utf-8?q?=C3=BCber?=\n\n")
    assert patches._subject(message) == "Fix über"
