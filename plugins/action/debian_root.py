# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run the module debian_root in the background and show its progress on the controller."""

from __future__ import annotations

from ansible_collections.mkops.multikernel.plugins.action.kernel_build import ActionModule as Build


class ActionModule(Build):
    MODULE = "mkops.multikernel.debian_root"

    def _arguments(self) -> dict:
        """All files are on the host that makes the root."""
        return dict(self._task.args)
