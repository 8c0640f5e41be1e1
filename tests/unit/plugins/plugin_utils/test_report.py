# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The report's structure. How browsers show it is tests/report's."""

from __future__ import annotations

import html.parser
import itertools
import re

import pytest

from ansible_collections.mkops.multikernel.plugins.modules import info
from ansible_collections.mkops.multikernel.plugins.plugin_utils import report, report_style
from ansible_collections.mkops.multikernel.tests.unit import fleets
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import MIB, POOL_BASE, FakeInstance

VOID = {"meta", "br"}


class Reader(html.parser.HTMLParser):
    """As a browser takes it apart: elements with their attributes, and the text of each."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    def all(self, tag, **attributes):
        return [have for name, have in self.elements if name == tag and attributes.items() <= have.items()]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def read(hosts):
    return Reader(report.page(hosts, "Fleet", "noon"))


def test_a_machine_is_drawn_and_told():
    found = read({"one": fleets.machine(sockets=2, nodes=2, cores=4, threads=2, lent=2, each=4, free=2)})
    pictures = found.all("svg", role="img")
    assert len(pictures) == 4
    assert pictures[0]["aria-label"] == "NUMA node 0. host: 8 CPUs, 62 GiB; free in the pool: 0 CPUs, 2 GiB."
    assert pictures[3]["aria-label"] == (
        "NUMA node 3. host: 0 CPUs, 54 GiB; kernel-0: 4 CPUs, 4 GiB; kernel-1: 4 CPUs, 4 GiB;"
        " free in the pool: 0 CPUs, 2 GiB."
    )
    assert "NUMA node 2: 8 CPUs, 64 GiB" in found.text
    assert "Socket 1" in found.text
    # 32 CPUs, and memory of each node: the host's, that of instances, what is free.
    cells = [one for one in found.all("rect") if one.get("class", "").startswith("cell")]
    assert len(cells) == 32 + 4 * 2 + 2 + len(found.all("svg", **{"class": "key"}))
    assert "Letter B kernel-1 active 3d 3h 12-13,28-29 4 GiB 1 0.3 s ago" in found.text
    assert "1 2 free in the pool 11,27" in found.text
    assert "1 machine, read at noon." in found.text
    assert "None needs attention" in found.text


def test_no_kernel_is_told_by_colour_alone():
    number = report_style.COLOURS * len(report_style.PATTERNS)
    styles = [report.style_of(place) for place in range(number)]
    assert len(set(styles)) == number
    for one, other in itertools.pairwise(styles):
        assert one.split("-")[1] != other.split("-")[1]
        assert one.split("-")[2] != other.split("-")[2]
    letters = [report.letter(place) for place in range(700)]
    assert len(set(letters)) == 700
    assert "H" not in letters
    assert letters[24:27] == ["Z", "AA", "AB"]


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_letters_are_legible_on_each_ground(dark):
    ink = report_style.INK[dark]
    assert contrast(ink, report_style.PAPER[dark]) >= 7
    for colours in report_style.PALETTE:
        ground, mark = colours[dark]
        assert contrast(ink, ground) >= 7
        assert contrast(ground, mark) >= 2
    variables = dict(re.findall(r"--([a-z-]+):(#[0-9a-f]{6})", report_style._variables(dark)))
    assert contrast(ink, variables["host"]) >= 7
    for text, ground in (("link", "paper"), ("alarm", "alarm-ground"), ("alarm", "paper")):
        assert contrast(variables[text], variables[ground]) >= 4.5
    assert contrast(variables["line"], variables["paper"]) >= 3


def test_whatever_a_host_says_is_text():
    told = {"troubled": fleets.troubled(), fleets.HOSTILE: {"unreachable": True, "msg": fleets.HOSTILE}}
    page = report.page(told, fleets.HOSTILE, fleets.HOSTILE)
    found = Reader(page)
    assert found.all("script") == []
    assert found.all("b") == []
    for _tag, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    page.encode()  # no half of a character
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", page)
    assert found.text.count("<script>alert(1)</script>") > 5
    assert "{{ 7*7 }}" in found.text
    assert len(found.all("style")) == len(found.all("title")) == 1


def test_what_needs_attention():
    told = fleets.troubled()
    told["kernel"]["mounted"] = False
    text = read({"troubled": told, "fine": fleets.machine(1, 1, 2, 1, lent=0)}).text
    for said in (
        "Fleet: 1 of 2 need attention",
        "It cannot be divided",
        "has crashed: panic: ",
        "Instance kernel-1 has shown no sign of life for 1min 30s.",
        "Instance kernel-2 has failed.",
        "Not as declared for boot: start ",
        "Cannot be as declared for boot: ",
        "and 5 more",
    ):
        assert said in text
    assert "3 and 1 unknown" in text
    first, last = (text.index(f"2026-11-29T19:0{minute}:00Z") for minute in (1, 2))
    assert first < last
    assert "/var/lib/mkops/crashes/2" in text
    assert text.count("Crashes that") == 1


def test_hosts_that_tell_nothing_are_on_the_page():
    odd = fleets.machine(1, 1, 2, 1, lent=1, each=1)
    odd["topology"]["cpus"][1]["instance"] = "nobody"
    hosts = {
        "away": {"unreachable": True, "msg": "no route"},
        "refused": {"failed": True, "msg": "only root"},
        "nothing": None,
        "old": {"kernel": {}, "instances": []},
        "list": {"kernel": [], "instances": [1]},
        "odd": odd,
        "fine": fleets.machine(1, 1, 2, 1, lent=0),
    }
    found = read(hosts)
    for said in (
        "It could not be reached: no route",
        "It could not be read: only root",
        "Nothing is known of it.",
        "What it told cannot be read (KeyError",
        "What it told cannot be read (TypeError",
    ):
        assert said in found.text
    assert len(found.all("svg", role="img")) == 1
    assert "Fleet: 6 of 7 need attention" in found.text


def test_what_is_not_known():
    told = fleets.machine(1, 1, 4, 1, lent=1, each=2, free=1)
    for cpu in told["topology"]["cpus"]:
        cpu.update(node=None, socket=None, core=None, cpu=None if cpu["owner"] == "instance" else cpu["cpu"])
    found = read({"one": told})
    assert "Socket not known" in found.text
    assert "No NUMA node known: 4 CPUs" in found.text
    assert "2 unknown" in found.text
    # And its memory stands by itself.
    assert "NUMA node 0: 0 CPUs, 64 GiB" in found.text


def test_cores_that_kernels_share_are_told():
    told = fleets.machine(1, 1, 4, 2, lent=2, each=1, free=0)
    text = read({"one": told}).text
    assert "those of CPU 3" in text
    assert "those of CPU 7" in text


def test_it_needs_nothing_and_is_for_everybody():
    found = read({"one": fleets.machine()})
    assert found.all("html", lang="en")
    policy = found.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    for tag in ("link", "img", "iframe", "object", "form"):
        assert found.all(tag) == []
    assert [one["href"] for one in found.all("a") if not one["href"].startswith("#")] == []
    ids = [one["id"] for _tag, one in found.elements if "id" in one]
    assert len(ids) == len(set(ids))
    for _tag, one in found.elements:
        for name in ("aria-labelledby",):
            assert one.get(name, ids[0]) in ids
        if one.get("href", "").startswith("#"):
            assert one["href"][1:] in ids
    assert [one for one in found.all("svg") if not {"role", "aria-hidden"} & set(one)] == []
    assert [one for one in found.all("div", role="group") if one.get("tabindex") != "0"] == []
    fills = set(re.findall(r"url\(#([^)]+)\)", str(found.elements)))
    assert fills and fills <= set(ids)


def test_a_fleet_of_fifty_is_made_quickly_and_is_no_burden():
    hosts = {f"server-{number}": fleets.machine() for number in range(50)}
    page = report.page(hosts, "Fleet", "noon")
    assert len(page) < 3_000_000
    assert len(Reader(page).all("svg", role="img")) == 200


def test_what_the_module_tells_can_be_drawn(make_host, run_module):
    host = make_host(
        cpus=8,
        threads=2,
        nodes=2,
        pool_cpus=[4, 5, 6],
        chunks=[(POOL_BASE, 256 * MIB, 0)],
        instances={"web": FakeInstance(1, [4, 5], POOL_BASE, 128 * MIB, "active", epoch=1)},
    )
    found = read({"host": run_module(info, host)})
    assert "None needs attention" in found.text
    assert "web active 1min 2,6 128 MiB 1 0.3 s ago" in found.text
    found = read({"upstream": run_module(info, make_host(series="upstream"))})
    assert "None needs attention" in found.text
    found = read({"plain": run_module(info, make_host(supported=False, mounted=False))})
    assert "It cannot be divided" in found.text
