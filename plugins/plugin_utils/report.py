# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One page about a fleet: each machine as sockets, NUMA nodes, cores and memory, by the kernel that has them.

Pure: what module info has told of hosts goes in, HTML comes out. The page is built as a tree and written by
Python's own serializer, so that whatever a host or a spawned kernel says is text and never markup. It needs
no other file and no script, and forbids both. Each kernel of a machine has a letter, a colour and a pattern;
each picture says in words what it shows, and the tables below it have the same.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from ..module_utils.common.cpuset import format_known_cpus
from ..module_utils.common.size import about
from ..module_utils.common.text import counted, harmless, span
from .report_style import COLOURS, PATTERNS, STYLE

HOST, FREE = "host", "free"
_NOTHING = "\N{EN DASH}"  # in a cell of a table
_ACTIVE = "active"
_ALIVE = 2000  # milliseconds after which a sign of life is missed
_LONGEST = 300  # characters of a text that somebody else wrote
_SHORT = 120  # and of one in the list of the fleet
_OURS = (1, 3, 5)  # of an instance's words, those that no host has written: times and sizes
_CRASHES = ("panic", "lost")

# Of a picture of a node, in pixels
_WIDTH = 340
_CELL, _HEIGHT, _GAP = 19, 22, 5
_BAR = 26


@dataclass(frozen=True)
class Kernel:
    """Whoever can own a part of a machine. style: of the page's classes."""

    name: str
    letter: str
    style: str


@dataclass
class Share:
    """What a kernel has of a NUMA node."""

    cpus: list[int | None] = field(default_factory=list)
    memory: int = 0


@dataclass
class Place:
    """A NUMA node in a socket."""

    socket: int | None
    node: int | None
    cores: dict[Any, list[tuple[int | None, str]]] = field(default_factory=dict)  # core -> (CPU, owner)
    shares: dict[str, Share] = field(default_factory=dict)  # by owner

    def share(self, owner: str) -> Share:
        return self.shares.setdefault(owner, Share())


def page(hosts: Mapping[str, Any], title: str, at: str) -> str:
    """The page. hosts: what info has returned, or a failed or unreachable result, by the name of the host.

    at: when that was, for people.
    """
    machines = [ReportedHost(name, told) for name, told in hosts.items()]
    root = Element("html", {"lang": "en"})
    _head(root, title)
    body = SubElement(root, "body")
    _add(body, "a", "To the machines", href="#fleet", **{"class": "skip"})
    body.append(_definitions())
    header = SubElement(body, "header")
    _add(header, "h1", title)
    troubled = [one for one in machines if one.troubles]
    _add(header, "p", f"{counted(len(machines), 'machine')}, read at {at}.")
    main = SubElement(body, "main")
    _fleet(main, machines, troubled)
    for number, one in enumerate(machines, start=1):
        one.draw(main, f"machine-{number}")
    return "<!DOCTYPE html>\n" + tostring(root, encoding="unicode", method="html") + "\n"


def _text(value: object) -> str:
    """What somebody else wrote, on one line and not endless."""
    text = " ".join(harmless(str(value)).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _add(parent: Element, tag: str, text: object = "", **attributes: str) -> Element:
    made = SubElement(parent, tag, {key: _text(value) for key, value in attributes.items()})
    made.text = _text(text)
    return made


def _head(root: Element, title: str) -> None:
    head = SubElement(root, "head")
    SubElement(head, "meta", {"charset": "utf-8"})
    SubElement(head, "meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"})
    SubElement(head, "meta", {"name": "color-scheme", "content": "light dark"})
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    # Nothing is fetched, nothing runs, whatever should get into the page.
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    SubElement(head, "meta", {"http-equiv": "Content-Security-Policy", "content": policy})
    _add(head, "title", title)
    SubElement(head, "style").text = STYLE


def _definitions() -> Element:
    """The patterns that all pictures fill with."""
    svg = Element("svg", {"class": "definitions", "width": "0", "height": "0", "aria-hidden": "true"})
    defs = SubElement(svg, "defs")
    for colour in range(COLOURS):
        for number, marks in enumerate(PATTERNS):
            made = SubElement(
                defs,
                "pattern",
                {
                    "id": f"fill-{colour}-{number}",
                    "width": "8",
                    "height": "8",
                    "patternUnits": "userSpaceOnUse",
                },
            )
            SubElement(made, "rect", {"width": "8", "height": "8", "class": f"tint-{colour}"})
            if marks:
                SubElement(made, "path", {"d": marks, "class": f"mark-{colour}"})
    return svg


def cpu_list(cpus: Iterable[int | None]) -> str:
    return format_known_cpus(cpus) or _NOTHING


def letter(number: int) -> str:
    """A, B, ..., Z, AA, AB, ...; without H, which is the host's."""
    letters = "ABCDEFGIJKLMNOPQRSTUVWXYZ"
    more, place = divmod(number, len(letters))
    return (letter(more - 1) if more else "") + letters[place]


def style_of(number: int) -> str:
    """The class of the instance with that place: neighbours differ in colour and in pattern."""
    return f"fill-{number % COLOURS}-{number % len(PATTERNS)}"


class ReportedHost:
    """A host, as a part of the page."""

    def __init__(self, name: str, told: Any) -> None:
        self.name = _text(name)
        self.error = _refusal(told)
        self.facts: Mapping[str, Any] = {}
        self.kernels: dict[str, Kernel] = {}
        self.places: list[Place] = []
        self.crashes: list[tuple[Any, ...]] = []
        self.troubles: list[str] = [self.error] if self.error else []
        if not self.error:
            try:
                self._read(told)
            except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                # Another version's, or made up. It must not take the page from the other hosts.
                self.error = f"What it told cannot be read ({type(error).__name__}: {error})."
                self.facts, self.places, self.troubles = {}, [], [self.error]

    def _read(self, told: Mapping[str, Any]) -> None:
        self.facts = told
        self.kernels = {
            HOST: Kernel("host", "H", "fill-host"),
            FREE: Kernel("free in the pool", "", "fill-free"),
            **{
                f"instance {one['name']}": Kernel(_text(one["name"]), letter(number), style_of(number))
                for number, one in enumerate(told["instances"])
            },
        }
        self.places = sorted(
            self._places(told["topology"]).values(),
            key=lambda place: (place.socket is None, place.socket or 0, place.node is None, place.node or 0),
        )
        self.troubles = list(self._troubles())
        for one in told["instances"]:
            self.row(one)  # it is seen now whether it can be
            self.crashes += [
                (crash.get("time"), one["name"], crash.get("reason"), crash.get("path"))
                for crash in one.get("crashes") or []
            ]
        self.crashes.sort(key=lambda crash: str(crash[0]))

    def _places(self, topology: Mapping[str, Any]) -> dict[Any, Place]:
        found: dict[Any, Place] = {}
        sockets: dict[Any, Any] = {}
        for cpu in topology["cpus"]:
            node = cpu["node"]
            socket = sockets.setdefault(node, cpu["socket"]) if node is not None else cpu["socket"]
            key = (socket, node) if node is None else node
            place = found.setdefault(key, Place(socket, node))
            owner = {"host": HOST, "pool": FREE}.get(cpu["owner"], f"instance {cpu['instance']}")
            if owner not in self.kernels:
                raise KeyError(owner)
            core = cpu["core"] if cpu["core"] is not None else ("alone", cpu["physical_cpu"])
            place.cores.setdefault(core, []).append((cpu["cpu"], owner))
            place.share(owner).cpus.append(cpu["cpu"])
        for node in topology["nodes"]:
            place = found.setdefault(node["node"], Place(sockets.get(node["node"]), node["node"]))
            lent = {f"instance {name}": int(size) for name, size in node["instances"].items()}
            sizes = {HOST: max(node["memory"] - node["pool_memory"], 0), **lent, FREE: node["free_memory"]}
            for owner, size in sizes.items():
                if size:
                    self.kernels[owner]  # or it is not to be read
                    place.share(owner).memory += size
        order = [HOST, *(owner for owner in self.kernels if owner not in (HOST, FREE)), FREE]
        for place in found.values():
            place.shares = {owner: place.shares[owner] for owner in order if owner in place.shares}
        return found

    def _troubles(self) -> Iterable[str]:
        """What somebody should look at."""
        kernel, at_boot = self.facts["kernel"], self.facts["at_boot"]
        if not (kernel["multikernel"] and kernel["mounted"]):
            release = _text(kernel["release"])
            yield f"It cannot be divided: its kernel {release} has no multikernel, or it is not mounted."
        for one in self.facts["instances"]:
            reason = one["exit_reason"] or ""
            age = one["stats"].get("heartbeat_age_ms", 0)
            if one["state"] == "failed":
                yield f"Instance {_text(one['name'])} has failed."
            if one["state"] != _ACTIVE and reason.partition(":")[0] in _CRASHES:
                yield f"Instance {_text(one['name'])} has crashed: {_text(reason)}"
            if one["state"] == _ACTIVE and age > _ALIVE:
                yield f"Instance {_text(one['name'])} has shown no sign of life for {span(age / 1000)}."
        yield from (f"Not as declared for boot: {_text(step)}" for step in at_boot["drift"])
        yield from (f"Cannot be as declared for boot: {_text(reason)}" for reason in at_boot["reasons"])

    @property
    def instances(self) -> Sequence[Mapping[str, Any]]:
        found: Sequence[Mapping[str, Any]] = self.facts.get("instances", [])
        return found

    def row(self, one: Mapping[str, Any]) -> list[str]:
        """An instance in words."""
        since, age = one["stats"].get("state_since_ms"), one["stats"].get("heartbeat_age_ms")
        ended = one["exit_reason"]
        return [
            _text(one["state"]),
            _NOTHING if since is None else span(max(self.facts["host"]["uptime"] - since / 1000, 0)),
            cpu_list(one["cpus"]),
            about(one["memory"]),
            _NOTHING if one["epoch"] is None else _text(one["epoch"]),
            _NOTHING if age is None else f"{age / 1000:.1f} s ago",
            _NOTHING if ended in (None, "none") else _text(ended),
        ]

    # What is drawn

    def draw(self, main: Element, name: str) -> None:
        section = SubElement(main, "section", {"class": "machine", "aria-labelledby": name})
        _add(section, "h2", self.name, id=name)
        if self.error:
            _add(section, "p", self.error, **{"class": "trouble"})
            return
        kernel, host = self.facts["kernel"], self.facts["host"]
        _add(section, "p", f"Kernel {_text(kernel['release'])}, up {span(host['uptime'])}.")
        if self.troubles:
            box = SubElement(section, "div", {"class": "trouble"})
            _add(box, "h3", "Needs attention")
            listed = SubElement(box, "ul")
            for trouble in self.troubles:
                _add(listed, "li", trouble)
        self._draw_places(section)
        self._draw_kernels(section, name)
        self._draw_crashes(section, name)
        self._draw_shares(section, name)

    def _draw_places(self, section: Element) -> None:
        sockets: dict[int | None, list[Place]] = {}
        for place in self.places:
            sockets.setdefault(place.socket, []).append(place)
        row = SubElement(section, "div", {"class": "sockets"})
        for socket, places in sockets.items():
            box = SubElement(row, "div", {"class": "socket"})
            _add(box, "h3", "Socket not known" if socket is None else f"Socket {_text(socket)}")
            nodes = SubElement(box, "div", {"class": "nodes"})
            for place in places:
                figure = SubElement(nodes, "figure")
                memory = sum(share.memory for share in place.shares.values())
                cpus = sum(len(share.cpus) for share in place.shares.values())
                what = "No NUMA node known" if place.node is None else f"NUMA node {_text(place.node)}"
                _add(figure, "figcaption", f"{what}: {counted(cpus, 'CPU')}, {about(memory)}")
                figure.append(self._picture(place, what))

    def _picture(self, place: Place, what: str) -> Element:
        words = "; ".join(
            f"{self.kernels[owner].name}: {counted(len(share.cpus), 'CPU')}, {about(share.memory)}"
            for owner, share in place.shares.items()
        )
        threads = max((len(core) for core in place.cores.values()), default=1)
        step = threads * _CELL + _GAP
        columns = max((_WIDTH + _GAP) // step, 1)
        width = max(_WIDTH, step)
        rows = -(-len(place.cores) // columns)
        top = rows * (_HEIGHT + _GAP)
        height = top + _BAR + 2
        svg = Element(
            "svg",
            {
                "role": "img",
                "aria-label": f"{what}. {words}.",
                "viewBox": f"-1 -1 {width + 2} {height}",
                "width": str(width + 2),
                "height": str(height),
            },
        )
        for number, core in enumerate(place.cores.values()):
            left, upper = number % columns * step, number // columns * (_HEIGHT + _GAP)
            for thread, (_cpu, owner) in enumerate(core):
                self._cell(svg, owner, left + thread * _CELL, upper, _CELL, _HEIGHT)
            frame = {"x": left, "y": upper, "width": len(core) * _CELL, "height": _HEIGHT}
            SubElement(svg, "rect", {"class": "core", **{key: str(value) for key, value in frame.items()}})
        self._memory(svg, place, top, width)
        return svg

    def _cell(self, svg: Element, owner: str, x: float, y: float, width: float, height: float) -> None:
        kernel = self.kernels[owner]
        box = {"x": f"{x:g}", "y": f"{y:g}", "width": f"{width:g}", "height": f"{height:g}"}
        fill = {} if kernel.style in ("fill-host", "fill-free") else {"fill": f"url(#{kernel.style})"}
        SubElement(svg, "rect", {"class": f"cell {kernel.style}" if not fill else "cell", **box, **fill})
        if kernel.letter and width >= 8 * len(kernel.letter):
            place = {"x": f"{x + width / 2:g}", "y": f"{y + height / 2:g}"}
            ground = kernel.style.split("-")[1]
            SubElement(svg, "text", {**place, "class": f"on-{ground}"}).text = kernel.letter

    def _memory(self, svg: Element, place: Place, top: float, width: float) -> None:
        """A bar; whoever has some of it is seen."""
        held = [(owner, share.memory) for owner, share in place.shares.items() if share.memory]
        total = sum(size for _owner, size in held)
        least = 4.0
        left, room = 0.0, width - least * len(held)
        for owner, size in held:
            wide = least + room * size / total
            self._cell(svg, owner, round(left, 1), top, round(wide, 1), _BAR - 2)
            left += wide
        if held:
            frame = {"x": 0, "y": top, "width": width, "height": _BAR - 2}
            SubElement(svg, "rect", {"class": "core", **{key: str(value) for key, value in frame.items()}})

    def _key(self, cell: Element, owner: str) -> None:
        """As it is in pictures, beside the name of a kernel."""
        svg = SubElement(
            cell,
            "svg",
            {"class": "key", "viewBox": "-1 -1 30 24", "width": "30", "height": "24", "aria-hidden": "true"},
        )
        self._cell(svg, owner, 0, 0, 28, _HEIGHT)
        SubElement(svg, "rect", {"class": "core", "width": "28", "height": str(_HEIGHT)})

    def _draw_kernels(self, section: Element, name: str) -> None:
        head = ["Key", "Kernel", "State", "For", "CPUs", "Memory", "Starts", "Sign of life", "Ended last"]
        rows = _table(section, f"{name}-kernels", f"Kernels of {self.name}", head, level="h3")
        host = self.facts["host"]
        memory = dict.fromkeys(self.kernels, 0)
        cpus: dict[str, list[int | None]] = {owner: [] for owner in self.kernels}
        for place in self.places:
            for owner, share in place.shares.items():
                memory[owner] += share.memory
                cpus[owner] += share.cpus
        told = {f"instance {one['name']}": self.row(one) for one in self.instances}
        known = {
            HOST: [
                "active",
                span(host["uptime"]),
                cpu_list(cpus[HOST]),
                about(memory[HOST]),
                _NOTHING,
                _NOTHING,
                _NOTHING,
            ],
            FREE: [
                _NOTHING,
                _NOTHING,
                cpu_list(cpus[FREE]),
                about(memory[FREE]),
                _NOTHING,
                _NOTHING,
                _NOTHING,
            ],
        }
        for owner, kernel in self.kernels.items():
            if owner == FREE and not (cpus[FREE] or memory[FREE]):
                continue
            line = SubElement(rows, "tr")
            cell = SubElement(line, "td")
            self._key(cell, owner)
            _add(cell, "span", f"Letter {kernel.letter}" if kernel.letter else "Empty", **{"class": "spoken"})
            _add(line, "th", kernel.name, scope="row")
            for number, word in enumerate(known.get(owner) or told[owner]):
                _add(line, "td", word, **({"class": "short"} if number in _OURS else {}))

    def _draw_crashes(self, section: Element, name: str) -> None:
        if not self.crashes:
            return
        head = ["When", "Kernel", "Reason", "Kept in"]
        rows = _table(section, f"{name}-crashes", f"Crashes that {self.name} has kept", head, level="h3")
        for words in self.crashes:
            line = SubElement(rows, "tr")
            for word in words:
                _add(line, "td", word)

    def _draw_shares(self, section: Element, name: str) -> None:
        details = SubElement(section, "details")
        _add(details, "summary", f"The pictures of {self.name} as a table")
        head = ["Socket", "NUMA node", "Kernel", "CPUs", "Cores shared with others", "Memory"]
        rows = _table(details, f"{name}-shares", f"CPUs and memory of {self.name} by NUMA node", head)
        for place in self.places:
            for owner, share in place.shares.items():
                shared = [
                    cpu
                    for core in place.cores.values()
                    if len({other for _cpu, other in core}) > 1
                    for cpu, other in core
                    if other == owner
                ]
                line = SubElement(rows, "tr")
                for value in (place.socket, place.node):
                    _add(line, "td", "not known" if value is None else value)
                _add(line, "th", self.kernels[owner].name, scope="row")
                for word in (
                    cpu_list(share.cpus),
                    f"those of CPU {cpu_list(shared)}" if shared else _NOTHING,
                    about(share.memory),
                ):
                    _add(line, "td", word)


def _refusal(told: Any) -> str:
    """Why there is nothing to show of a host; empty when there is."""
    if not isinstance(told, Mapping):
        return "Nothing is known of it."
    if told.get("unreachable"):
        return f"It could not be reached: {_text(told.get('msg', ''))}"
    if told.get("failed"):
        return f"It could not be read: {_text(told.get('msg', ''))}"
    return ""


def _table(parent: Element, name: str, caption: str, head: Sequence[str], level: str = "") -> Element:
    """The body of a new table, which can be scrolled by keys where it is too wide."""
    if level:
        _add(parent, level, caption, id=name)
        box = SubElement(
            parent, "div", {"class": "wide", "role": "group", "tabindex": "0", "aria-labelledby": name}
        )
    else:
        box = SubElement(
            parent, "div", {"class": "wide", "role": "group", "tabindex": "0", "aria-label": caption}
        )
    table = SubElement(box, "table")
    if not level:
        _add(table, "caption", caption)
    line = SubElement(SubElement(table, "thead"), "tr")
    for word in head:
        _add(line, "th", word, scope="col")
    return SubElement(table, "tbody")


def _fleet(main: Element, machines: Sequence[ReportedHost], troubled: Sequence[ReportedHost]) -> None:
    section = SubElement(main, "section", {"aria-labelledby": "fleet"})
    head = [
        "Machine",
        "CPUs: host, lent, free",
        "Memory: host, lent, free",
        "Instances that run",
        "Attention",
    ]
    words = f"{len(troubled)} of {len(machines)} need attention" if troubled else "None needs attention"
    rows = _table(section, "fleet", f"Fleet: {words}", head, level="h2")
    for number, one in enumerate(machines, start=1):
        line = SubElement(rows, "tr")
        cell = _add(line, "th", scope="row")
        _add(cell, "a", one.name, href=f"#machine-{number}")
        cpus, memory = [0, 0, 0], [0, 0, 0]
        for place in one.places:
            for owner, share in place.shares.items():
                column = {HOST: 0, FREE: 2}.get(owner, 1)
                cpus[column] += len(share.cpus)
                memory[column] += share.memory
        running = sum(instance["state"] == _ACTIVE for instance in one.instances)
        if one.error:
            texts = [_NOTHING, _NOTHING, _NOTHING]
        else:
            texts = [
                ", ".join(map(str, cpus)),
                ", ".join(map(about, memory)),
                f"{running} of {len(one.instances)}",
            ]
        for text in texts:
            _add(line, "td", text, **{"class": "short"})
        cell = SubElement(line, "td", {"class": "long"})
        if one.troubles:
            first = one.troubles[0]
            short = first if len(first) <= _SHORT else f"{first[: _SHORT - 1]}…"
            more = f" and {len(one.troubles) - 1} more" if len(one.troubles) > 1 else ""
            _add(cell, "strong", short).tail = more
        else:
            cell.text = _NOTHING
