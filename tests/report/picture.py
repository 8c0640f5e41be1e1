# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A picture of a report: picture.py PAGE PNG [WIDTH [HEIGHT]]. Without a height, all of it is on it."""

import os
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright


def main():
    page, picture = Path(sys.argv[1]).resolve(), sys.argv[2]
    width, height = int(sys.argv[3]) if sys.argv[3:] else 1280, int(sys.argv[4]) if sys.argv[4:] else None
    with sync_playwright() as playwright:
        # As root, Chromium has no sandbox.
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", chromium_sandbox=os.geteuid() != 0
        )
        shown = browser.new_page(viewport={"width": width, "height": height or 100})
        shown.goto(page.as_uri())
        shown.screenshot(path=picture, full_page=height is None)
        browser.close()


if __name__ == "__main__":
    main()
