# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""GRUB's language as GRUB itself reads it: grub-script-check and grub-emu say what is right."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.mkops.multikernel.plugins.module_utils.boot import grub_script
from ansible_collections.mkops.multikernel.tests.unit import grub_emu

# What a title, an id or a word can hold: a line goes on to the next by nothing but a quote.
TEXTS = st.text(
    st.characters(blacklist_categories=["Cs", "Cc"]) | st.sampled_from("'\"\\$`#;{}|&<>()[]*?~! \t"),
    max_size=20,
)


def checked(text):
    """Whether grub-script-check takes it."""
    done = subprocess.run(["grub-script-check"], input=text.encode(), check=False, capture_output=True)
    # A text without a command is none of its errors.
    empty = b"contains no commands" in done.stderr and b"syntax error" not in done.stderr.lower()
    return empty or done.returncode == 0


def parsed(text):
    try:
        grub_script.parse(text)
    except grub_script.ScriptError:
        return False
    return True


@given(TEXTS)
def test_what_is_quoted_is_one_word_with_the_same_text(text):
    assert grub_script.unquote(grub_script.quote(text)) == text


@pytest.mark.parametrize("text", ["a\nb", "a\r", "a\0b"])
def test_no_word_goes_over_the_end_of_a_line(text):
    with pytest.raises(ValueError, match="a word cannot contain the end of a line"):
        grub_script.quote(text)


def test_a_list_of_words_has_an_end():
    with pytest.raises(grub_script.ScriptError, match="a `;` or the end of the line is missing"):
        grub_script.parse("for x in a }")


def test_commands_and_whether_what_they_return_is_looked_at():
    script = "function f {\n  if a; then b; fi\n}\nwhile c; do d; done"
    found = [(command.name, checked) for command, checked in grub_script.commands(grub_script.parse(script))]
    assert found == [("a", True), ("b", False), ("c", True), ("d", True)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_grub_takes_what_is_quoted(texts):
    words = " ".join(map(grub_script.quote, texts))
    assert checked(f"menuentry {words} --id {words} {{\n\techo {words}\n}}\n")


def echoed(folder, sources):
    """What GRUB makes of words."""
    (folder / "grub.cfg").write_text("".join(f"echo '@'{source}'@'\n" for source in sources) + "reboot\n")
    lines = [line for line in grub_emu.start(folder).lines if "@" in line]
    return [line[line.index("@") + 1 : line.rindex("@")] for line in lines]


def test_grub_prints_what_is_quoted(tmp_path):
    """Each word that it reads from the quotes is the text that was put there."""
    texts = [
        "Bob's Linux",
        '"',
        "'",
        "''",
        "\\",
        "\\'",
        "$x ${y}",
        "a  b",
        "#no",
        "{;}",
        "\\n",
        "~ [x] * ?",
        "a>b",
    ]
    (tmp_path / "grub.cfg").write_text(
        "".join(f"echo '@'{grub_script.quote(text)}'@'\n" for text in texts) + "reboot\n"
    )
    lines = [line for line in grub_emu.start(tmp_path).lines if "@" in line]
    assert [line[line.index("@") + 1 : line.rindex("@")] for line in lines] == texts


# A word as it is written, and what GRUB makes of it.
WORDS = [
    ("plain", "plain"),
    ("'it'\\''s'", "it's"),
    ('"it\'s"', "it's"),
    (r'"a\"b\\c\$d\e"', r'a"b\c$d\e'),
    (r"a\ b\'c\"d\\e", "a b'c\"d\\e"),
    ("a'b c'\"d e\"f", "ab cd ef"),
    ("a#b", "a#b"),
    (r"\#\;\{\}", "#;{}"),
    ("''", ""),
    ("a\\\nb", "ab"),
    ('"a\\\nb"', "ab"),
    ("--id=plain", "--id=plain"),
    ("é'ü'", "éü"),
    ("a\N{NO-BREAK SPACE}b", "a\N{NO-BREAK SPACE}b"),
    ("\f\v\x1c\x85\u3000", "\f\v\x1c\x85\u3000"),
]


@pytest.mark.parametrize(("source", "text"), WORDS)
def test_words(source, text):
    assert grub_script.unquote(source) == text


def test_words_as_grub_has_them(tmp_path):
    words = [(source, text) for source, text in WORDS if text.isascii()]
    (tmp_path / "grub.cfg").write_text(
        "".join(f"echo '@'{source}'@'\n" for source, _text in words) + "reboot\n"
    )
    lines = [line for line in grub_emu.start(tmp_path).lines if "@" in line]
    assert [line[line.index("@") + 1 : line.rindex("@")] for line in lines] == [
        text for _source, text in words
    ]


@pytest.mark.parametrize("source", ["$x", '"a${b}c"', "a$1", '$"translated"', "$?"])
def test_a_word_that_depends_on_something_has_no_value(source):
    assert grub_script.unquote(source) is None


@pytest.mark.parametrize("source", ["", "a b", "'open", '"open', "$", "a;b", "a|b", "{", "#", "\\"])
def test_what_is_not_one_word(source):
    with pytest.raises(grub_script.ScriptError):
        grub_script.unquote(source)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_a_path_has_the_names_it_is_made_of(names):
    names = [name.strip(">") + "x" for name in names]  # at its ends a sign cannot be told from the separator
    assert grub_script.split_path(grub_script.join_path(tuple(names))) == tuple(names)


def test_the_sign_between_submenus_is_doubled_in_a_name():
    assert grub_script.join_path(("More > more", "a>b")) == "More >> more>a>>b"


def test_grub_finds_an_entry_by_its_path(tmp_path):
    names = ("More > 'more'", 'a>b$"c')
    path = grub_script.join_path(names)
    sub, entry = map(grub_script.quote, names)
    (tmp_path / "grub.cfg").write_text(
        "menuentry first {\n\tlinux first\n}\n"
        f"submenu {sub} {{\n\tmenuentry first {{\n\t\tlinux wrong\n\t}}\n"
        f"\tmenuentry {entry} {{\n\t\tlinux right\n\t}}\n}}\n"
        f"set timeout=0\nset default={grub_script.quote(path)}\n"
    )
    assert grub_emu.start(tmp_path).linux == ["right"]


# Each is taken, or refused, by GRUB 2.06, which the next test asks again.
GOOD = [
    "echo a; echo b\necho c",
    "if true; then echo a; elif [ x = y ]\nthen echo b\nelse\n\n echo c; fi",
    "for x in a b; do echo $x; done; while false; do echo; done; until true; do echo; done",
    "function f {\n echo $1\n}\nf a",
    "function f\n{ echo; }\nf",
    "menuentry a { echo b }",
    "menuentry 'a b' --class x { # why\n if true; then linux /a; fi; }",
    "submenu a { menuentry b { echo c; }; menuentry d { echo e; } }",
    "echo if then fi for in function case",
    "echo a # { ' \"\necho b",
    "echo a \\\n  b",
    "linux /vmlinuz \\\n",
    "menuentry a {\r\n\techo b\r\n}",
    "function f\r\n{\r\n\tif true; then\r\n\t\techo b\r\n\tfi\r\n}\r",
    # Signs that look like spaces are a part of the word.
    "menuentry\N{NO-BREAK SPACE}'a' {\n\techo b\n}",
    "if true\N{NO-BREAK SPACE}; then echo a\fb; fi",
    "\v\x1c\x85\u3000\ufeff",
    "echo $1a ${12} ${_a1}",
    "! true",
    "x=1",
    "a{ echo b; }",
    "echo {a}",
]
BAD = [
    "menuentry a { }",
    "menuentry a { # nothing\n}",
    "menuentry a\n{ echo b; }",
    "menuentry a { ; echo b; }",
    "menuentry a { function f { echo; }; f; }",
    "echo a; ; echo b",
    "; echo a",
    "echo a && echo b",
    "echo a || echo b",
    "echo a | cat",
    "echo a > b",
    "if true; then echo a; fi\N{NO-BREAK SPACE}",
    "echo ${1a}",
    "echo ${a-b}",
    "echo a & echo b",
    "if true; then fi",
    "if true then echo a; fi",
    "for x; do echo a; done",
    "function 1f { echo a; }",
    "function if { echo a; }",
    "echo 'a",
    'echo "a',
    "echo $",
    "echo }",
    "fi",
    "case x in y) echo z;; esac",
    "[[ a = a ]]",
    "echo [[",
    "menuentry a { echo b",
]


@pytest.mark.parametrize("text", GOOD)
def test_what_grub_takes(text):
    assert (parsed(f"{text}\n"), checked(f"{text}\n")) == (True, True)


@pytest.mark.parametrize("text", BAD)
def test_what_grub_does_not_take(text):
    assert (parsed(f"{text}\n"), checked(f"{text}\n")) == (False, False)


ATOMS = st.sampled_from(
    [
        *("if", "then", "else", "fi", "elif", "true", ";", "\n", "{", "}", "a", "'b c'", '"d $x"', "\\\n"),
        *("while", "do", "done", "for", "in", "function", "menuentry", "$y", "${z}", "\\;", "'", '"', "|"),
        *("$", "[", "]", "=", "!", ";;", "x#y", '$"t"', "until", "case", "[[", "]]", "#", "&&"),
        *("\r\n", "\N{NO-BREAK SPACE}", "\f", "\x1c", "ä", "${1a}", "$1a", "${12}"),
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(ATOMS, st.sampled_from(["", " ", " "])), min_size=1, max_size=10),
    st.sampled_from(["{}\n", "if true; then {}\nfi\n", "menuentry a {{\n{}\n}}\n"]),
)
def test_any_text_is_taken_as_grub_takes_it(atoms, frame):
    text = frame.format("".join(map("".join, atoms)))
    assert parsed(text) == checked(text)


def test_where_a_text_is_wrong_is_said():
    with pytest.raises(grub_script.ScriptError, match=r"^line 3: a quote is not closed$"):
        grub_script.parse("echo a\n\necho 'b\n\n")
    with pytest.raises(grub_script.ScriptError, match=r"^line 2: } is found where a command should be$"):
        grub_script.parse("menuentry a {\n}\n")


def test_the_places_of_commands_are_those_in_the_text():
    text = "menuentry 'a' {\n\tif true; then\n\t\tlinux /x \\\n\t\t  y # why\n\tfi\n}\n"
    (entry,) = grub_script.parse(text)
    (condition, load) = [command for command, _checked in grub_script.commands(entry.block.body)]
    assert text[load.start : load.end] == "linux /x \\\n\t\t  y"
    assert text[condition.start : condition.end] == "true"
    assert text[entry.block.start : entry.block.end].startswith("\n\tif true")
    assert (entry.line, load.line) == (1, 3)
