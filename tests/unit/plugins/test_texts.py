# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What people read of the collection's programs, as it is written in them: no Python, and English."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parents[3]
PROGRAMS = sorted([*TOP.glob("plugins/**/*.py"), *TOP.glob("roles/*/files/*.py"), *TOP.glob("tools/*.py")])
SHOWN_TO_ANSIBLE = ("DOCUMENTATION", "EXAMPLES", "RETURN")

# Turns that are translated word for word, or leave the plural to the reader.
FOREIGN = re.compile(
    r"(?<!there )\b(?:is|are) none\b(?! of)"
    r"|\b(?:is|are) no (?:file|directory|dictionary|text|such step|whole)\b"
    r"|\bcannot be (?:had|told)\b|\bmade anew\b|\bmake it anew\b|\bwanted (?:is|are)\b"
    r"|\bwho removed it\b|\bnot content with\b|\bsay (?:one of them|which)\b|\(s\)"
    r"|, so that (?:no|it|they|kerf)\b"
)


def texts_in(path: Path) -> Iterator[tuple[int, str]]:
    """Line and words of every text with a space in it; what is put into it at run time is {}."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                skipped.add(first.value)
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in SHOWN_TO_ANSIBLE:
            skipped.update(ast.walk(node))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.JoinedStr):
            skipped.update(part for part in node.values if isinstance(part, ast.Constant))
            parts = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.lineno, node.value


def representations_in(path: Path) -> Iterator[int]:
    """Lines that put a value into a text as Python writes it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FormattedValue) and node.conversion in (ord("r"), ord("a")):
            yield node.lineno


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(TOP)))
def test_texts_are_english(path):
    assert [(line, text) for line, text in texts_in(path) if FOREIGN.search(text)] == []


@pytest.mark.parametrize(
    "path",
    [path for path in PROGRAMS if "tools" not in path.parts],
    ids=lambda path: str(path.relative_to(TOP)),
)
def test_no_value_is_shown_as_python_writes_it(path):
    """common.text has shown() for that."""
    assert list(representations_in(path)) == []


def test_the_walk_finds_what_it_looks_for(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        '"""is no file"""\n\ndef f(x):\n    "is none here"\n    return f"{x!r} is no file", "CPU(s) are"\n'
    )
    assert [line for line, text in texts_in(path) if FOREIGN.search(text)] == [5, 5]
    assert list(representations_in(path)) == [5]
