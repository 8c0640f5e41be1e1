# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.mkops.multikernel.plugins.module_utils.build import toolchain


def test_missing_tools_are_named_at_once_with_their_packages(monkeypatch):
    monkeypatch.setattr(
        toolchain.shutil, "which", lambda tool: None if tool in ("flex", "ccache") else f"/usr/bin/{tool}"
    )
    monkeypatch.setattr(toolchain.Path, "exists", lambda self: self.name != "gelf.h")
    (reason,) = toolchain.missing_tools({"ccache": "ccache"})
    assert reason == (
        "flex, /usr/include/gelf.h, ccache missing on the build host; "
        "install the packages: ccache flex libelf-dev"
    )
    assert "ccache" not in toolchain.missing_tools({})[0]
