# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The report in a real browser: a fleet of 50 with everything that can be wrong, and one small host.

Pictures of all of it are in .ansible/report.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from ansible_collections.mkops.multikernel.plugins.plugin_utils.report import page as make
from ansible_collections.mkops.multikernel.tests.unit import fleets

PICTURES = Path(__file__).parents[2] / ".ansible/report"
SCHEMES, WIDTHS = ("light", "dark"), (1280, 390)
AT = "2026-11-29 20:00 UTC"
EACH = pytest.mark.parametrize(
    ("scheme", "width"), [(scheme, width) for scheme in SCHEMES for width in WIDTHS]
)


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        # As root, Chromium has no sandbox.
        started = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", chromium_sandbox=os.geteuid() != 0
        )
        yield started
        started.close()


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    """Files of a fleet, of a small one with the same faults, and of one small host."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    top = tmp_path_factory.mktemp("report")
    hosts = {"fleet": fleets.fleet(50), "few": fleets.fleet(6), "small": {"small": fleets.small()}}
    for name, one in hosts.items():
        (top / f"{name}.html").write_text(make(one, "Kernels side by side", AT), encoding="utf-8")
    return {name: f"file://{top}/{name}.html" for name in hosts}


@pytest.fixture
def show(browser, pages):
    """Open a page; what it has fetched, complained of and asked is in its attributes."""
    contexts = []

    def show(name, scheme="light", width=1280):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.fetched, page.complaints = [], []
        page.on("request", lambda request: page.fetched.append(request.url))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (page.complaints.append(dialog.message), dialog.dismiss()))
        page.goto(pages[name])
        return page

    yield show
    for context in contexts:
        context.close()


def color(page, selector, what):
    return page.eval_on_selector(selector, f"element => getComputedStyle(element).{what}")


@EACH
@pytest.mark.parametrize("name", ["few", "small"])
def test_axe_finds_nothing(show, name, scheme, width):
    page = show(name, scheme, width)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    found = Axe().run(page).response
    assert found["testEngine"]["name"] == "axe-core"
    assert len(found["passes"]) > 15
    told = [
        (one["impact"], one["id"], [node["html"][:200] for node in one["nodes"][:3]])
        for one in found["violations"]
    ]
    assert told == []


def test_axe_would_find_something(show):
    page = show("few")
    page.eval_on_selector("svg[role=img]", "element => element.removeAttribute('aria-label')")
    page.eval_on_selector("main strong", "element => { element.style.color = '#eeeeee' }")
    found = {one["id"] for one in Axe().run(page).response["violations"]}
    assert {"svg-img-alt", "color-contrast"} <= found


@EACH
@pytest.mark.parametrize("name", ["fleet", "small"])
def test_it_fits_its_screen(show, name, scheme, width):
    page = show(name, scheme, width)
    page.screenshot(path=PICTURES / f"{name}-{scheme}-{width}.png", full_page=name == "small")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Pictures are as large as they were made, and so are their letters.
    scales = page.eval_on_selector_all(
        "svg[role=img]",
        "all => all.map(one => one.getBoundingClientRect().width / one.viewBox.baseVal.width)",
    )
    assert min(scales) > 0.9
    light = color(page, "body", "backgroundColor") == "rgb(255, 255, 255)"
    assert light == (scheme == "light")


def test_a_fleet_is_there_at_once_and_needs_nothing(show):
    began = time.monotonic()
    page = show("fleet")
    assert time.monotonic() - began < 10
    assert page.locator("svg[role=img]").count() > 180
    assert len(page.fetched) == 1
    assert page.complaints == []


def test_what_hosts_say_runs_nowhere(show):
    page = show("few")
    assert page.locator("script").count() == 0
    assert page.get_by_text("<script>alert(1)</script>").count() > 5
    # And if it got into the page, the page forbids it.
    page.evaluate("document.body.append(document.createElement('script'))")
    page.eval_on_selector("body script", "element => { element.src = 'data:text/javascript,alert(2)' }")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=alert(3)>')")
    page.wait_for_timeout(500)
    assert [one for one in page.complaints if one in ("1", "2", "3")] == []
    assert "Content Security Policy" in " ".join(page.complaints)


def test_it_is_for_keyboards(show):
    page = show("few", width=390)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the machines"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.url.endswith("#fleet")
    seen = []
    for _number in range(60):
        page.keyboard.press("Tab")
        kind, outline = page.evaluate(
            "[document.activeElement.tagName + '.' + document.activeElement.className,"
            " getComputedStyle(document.activeElement).outlineStyle]"
        )
        if kind == "BODY.":
            break
        seen.append(kind)
        assert outline != "none"
        if kind == "SUMMARY.":
            page.keyboard.press("Enter")
            assert page.evaluate("document.activeElement.parentElement.open")
    assert {"A.", "SUMMARY.", "DIV.wide"} <= set(seen)
    # A table that is too wide is moved by keys.
    page.eval_on_selector("section.machine .wide", "element => element.focus()")
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(500)
    assert page.eval_on_selector("section.machine .wide", "element => element.scrollLeft") > 0


def test_pictures_and_tables_have_names(show):
    page = show("small")
    tree = page.locator("main").aria_snapshot()
    assert 'heading "Fleet' in tree
    assert 'img "NUMA node 0. host: ' in tree
    assert 'rowheader "kernel-0"' in tree
    assert 'columnheader "Ended last"' in tree
    assert "Letter A" in tree


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_is_for_paper(show, scheme):
    page = show("small", scheme)
    page.emulate_media(media="print", color_scheme=scheme)
    assert color(page, "body", "backgroundColor") == "rgb(255, 255, 255)"
    assert color(page, "svg[role=img]", "printColorAdjust") == "exact"
    # What is folded on screens is not on paper.
    assert page.locator("details table").bounding_box()["height"] > 50
    page.pdf(path=PICTURES / f"small-{scheme}.pdf", format="A4")
    page.screenshot(path=PICTURES / f"small-print-{scheme}.png", full_page=True)


def test_a_fleet_on_paper(show):
    page = show("few")
    page.pdf(path=PICTURES / "few.pdf", format="A4")
    assert (PICTURES / "few.pdf").stat().st_size > 20_000


def test_without_colours_there_are_letters(show):
    page = show("few")
    page.emulate_media(forced_colors="active")
    letters = page.eval_on_selector_all("svg[role=img] text", "all => all.map(one => one.textContent)")
    assert {"H", "A", "B", "AU"} <= set(letters)
    page.screenshot(path=PICTURES / "few-forced-colours.png")
