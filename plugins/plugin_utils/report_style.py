# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How the report looks: on light and dark screens, and on paper."""

from __future__ import annotations

# Of a kernel's cells: the ground, which letters stand on, and the marks of its pattern, on light and on dark.
PALETTE = (
    (("#cfe3fb", "#5b93d6"), ("#1c3f66", "#5f95d2")),
    (("#ffe0b5", "#d98f1f"), ("#5a3a08", "#c98a2e")),
    (("#cdeccf", "#4f9f57"), ("#1d4a25", "#5aa964")),
    (("#f9d3e2", "#cf5f92"), ("#5c1f3f", "#cf6a99")),
    (("#e2d8f7", "#8a6bcb"), ("#3b2a63", "#9279d0")),
    (("#f3eca8", "#a8992a"), ("#4b4409", "#ab9d35")),
    (("#c6ecea", "#3a9d97"), ("#0f4744", "#45a39d")),
    (("#f8d2c8", "#cf6a4f"), ("#5f2414", "#d0755c")),
)
COLOURS = len(PALETTE)
INK = ("#16191d", "#f1f3f5")
PAPER = ("#ffffff", "#14171a")
# Paths in a square of 8 pixels; none for plain ground. An odd number beside eight colours: 40 kinds.
PATTERNS = (
    "",
    "M-1 9L9 -1M-1 1L1 -1M7 9L9 7",
    "M0 2H8M0 6H8",
    "M2 2h.01M6 6h.01",
    "M2 0V8M6 0V8",
)


def _variables(dark: bool) -> str:
    made = {
        "ink": INK[dark],
        "paper": PAPER[dark],
        "soft": ("#f2f4f6", "#1f242a")[dark],
        "line": ("#6b747d", "#8b959f")[dark],
        "faint": ("#d5dade", "#3a424a")[dark],
        "link": ("#0b57a4", "#8ec2ff")[dark],
        "host": ("#e3e6e9", "#363d44")[dark],
        "alarm": ("#8f1d14", "#ffb4a8")[dark],
        "alarm-ground": ("#fdeeec", "#3a1a16")[dark],
    }
    for number, colours in enumerate(PALETTE):
        made[f"tint-{number}"], made[f"mark-{number}"] = colours[dark]
    return "".join(f"--{name}:{value};" for name, value in made.items())


STYLE = (
    f":root{{color-scheme:light dark;{_variables(False)}}}\n"
    + f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables(True)}}}}}\n"
    + "".join(
        f".tint-{number}{{fill:var(--tint-{number})}}"
        f".on-{number}{{stroke:var(--tint-{number})}}"
        f".mark-{number}{{stroke:var(--mark-{number});stroke-width:1.6;stroke-linecap:round;fill:none}}\n"
        for number in range(COLOURS)
    )
    + """\
*{box-sizing:border-box}
html{scroll-padding-top:1rem}
body{margin:0 auto;max-width:90rem;padding:0 1rem 3rem;font:16px/1.5 system-ui,sans-serif;
color:var(--ink);background:var(--paper)}
h1{font-size:1.75rem;line-height:1.2;margin:1.5rem 0 .25rem}
h2{font-size:1.3rem;line-height:1.3;margin:0 0 .5rem;overflow-wrap:anywhere}
h3{font-size:1rem;margin:1rem 0 .4rem}
p{margin:.25rem 0 .75rem;overflow-wrap:anywhere}
a{color:var(--link)}
a:focus-visible,summary:focus-visible,.wide:focus-visible{outline:3px solid var(--link);outline-offset:2px}
.skip{position:absolute;left:-99rem}
.skip:focus{left:1rem;top:.5rem;background:var(--paper);padding:.5rem;z-index:1}
.definitions{position:absolute}
.spoken{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
section{margin-top:1.5rem}
.machine{border-top:2px solid var(--line);padding-top:1rem;margin-top:2.5rem}
.trouble{color:var(--alarm);background:var(--alarm-ground);border-left:4px solid currentcolor;
padding:.5rem .75rem;margin-bottom:1rem;overflow-wrap:anywhere}
.trouble h3{margin:0}
.trouble ul{margin:.25rem 0;padding-left:1.25rem}
.sockets,.nodes{display:flex;flex-wrap:wrap;gap:1rem}
.socket{border:1px solid var(--faint);border-radius:.5rem;padding:0 .75rem .75rem;background:var(--soft);
max-width:100%}
.socket h3{margin:.5rem 0}
figure{margin:0;max-width:100%}
figcaption{font-size:.875rem;margin-bottom:.3rem}
svg{display:block;max-width:100%;height:auto}
.key{display:inline-block;min-width:30px}
svg text{font:600 11px system-ui,sans-serif;fill:var(--ink);text-anchor:middle;dominant-baseline:central;
stroke-width:3px;stroke-linejoin:round;paint-order:stroke}
.core{fill:none;stroke:var(--line);stroke-width:1.5}
.cell{stroke:var(--line);stroke-width:.5}
.fill-host{fill:var(--host)}
.fill-free{fill:var(--paper);stroke-dasharray:2 2}
.wide{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:.25rem 0;font-weight:600}
th,td{text-align:left;vertical-align:top;padding:.3rem .75rem .3rem 0;border-bottom:1px solid var(--faint);
max-width:28rem;overflow-wrap:break-word}
thead th{border-bottom-color:var(--line)}
.long{min-width:14rem}
.short{white-space:nowrap}
tbody th{font-weight:600}
strong{color:var(--alarm)}
details{margin-top:.75rem}
summary{cursor:pointer;width:fit-content}
@media (max-width:40rem){body{padding:0 .75rem 2rem}.socket{padding:0 .5rem .5rem}}
@media print{
body{max-width:none;padding:0;font-size:10pt}
.skip{display:none}
.machine{break-inside:avoid;margin-top:1.5rem}
figure,tr{break-inside:avoid}
h2,h3{break-after:avoid}
.wide{overflow:visible}
svg,.socket,.trouble{print-color-adjust:exact;-webkit-print-color-adjust:exact}
details::details-content{content-visibility:visible;block-size:auto}
a{color:inherit;text-decoration:none}
}
"""
)
