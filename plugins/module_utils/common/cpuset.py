# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Lists of CPU numbers in the kernel's own notation, such as C(2-3,5)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from .text import counted, shown

_RANGE = re.compile(r"([0-9]{1,4})(?:\s*-\s*([0-9]{1,4}))?")  # Linux ends below 9999 CPUs
_EXAMPLES = 8  # of the same mistake
_MANY = 100_000  # numbers in all; whoever names more has made a mistake


def _items(value: object) -> list[object]:
    """The parts between commas, of a text or of each element of a list."""
    entries = value if isinstance(value, (list, tuple)) else [value]
    parts: list[object] = []
    for entry in entries:
        plain = isinstance(entry, (str, int)) and not isinstance(entry, bool)
        parts += [part.strip() for part in str(entry).split(",")] if plain else [entry]
    return parts


def parse_cpus(value: object) -> list[int]:
    """Sorted CPU numbers of C("2-3,5"), C(5), or a list of such; ValueError(*reasons) names every mistake."""
    cpus: Counter[int] = Counter()
    reasons = []
    for item in _items(value):
        match = _RANGE.fullmatch(item) if isinstance(item, str) else None
        if not match:
            reasons.append(f"{shown(item)} is neither a CPU number nor a range such as 2-3")
            continue
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            reasons.append(f"range '{item}' runs backwards: write {last}-{first}")
        if sum(cpus.values()) < _MANY:
            cpus.update(range(first, last + 1))
    twice = sorted(cpu for cpu, count in cpus.items() if count > 1)
    reasons += [f"CPU {cpu} is listed twice" for cpu in twice[:_EXAMPLES]]
    if (more := len(twice) - _EXAMPLES) > 0:
        reasons.append(f"{counted(more, 'more CPU')} {'is' if more == 1 else 'are'} listed twice")
    if reasons:
        raise ValueError(*reasons)
    return sorted(cpus)


def format_cpus(cpus: Iterable[int]) -> str:
    """The shortest C(2-3,5) form; empty for no CPU."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def format_known_cpus(cpus: Iterable[int | None]) -> str:
    """The same of those whose numbers are known, and how many there are beside them; empty for no CPU."""
    cpus = list(cpus)
    known = format_cpus(cpu for cpu in cpus if cpu is not None)
    others = cpus.count(None)
    return " and ".join(filter(None, [known, f"{others} unknown" if others else ""]))
