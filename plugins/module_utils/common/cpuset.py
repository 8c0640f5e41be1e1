# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Lists of CPU numbers in the kernel's own notation, such as C(2-3,5)."""

from __future__ import annotations

import re

_RANGE = re.compile(r"(\d{1,4})(?:\s*-\s*(\d{1,4}))?")  # Linux ends below 9999 CPUs


def parse_cpus(value) -> list[int]:
    """Sorted CPU numbers of C("2-3,5"), C(5), or a list of such; ValueError(*reasons) names every mistake."""
    items = value if isinstance(value, (list, tuple)) else str(value).split(",")
    cpus: list[int] = []
    reasons = []
    for item in (part.strip() for entry in items for part in str(entry).split(",")):
        match = _RANGE.fullmatch(item)
        if not match:
            reasons.append(f"'{item}' is neither a CPU number nor a range such as 2-3")
            continue
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            reasons.append(f"range '{item}' runs backwards: write {last}-{first}")
        cpus.extend(range(first, last + 1))
    for cpu in sorted({cpu for cpu in cpus if cpus.count(cpu) > 1}):
        reasons.append(f"CPU {cpu} is listed twice")
    if reasons:
        raise ValueError(*reasons)
    return sorted(cpus)


def format_cpus(cpus) -> str:
    """The shortest C(2-3,5) form; empty for no CPU."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
