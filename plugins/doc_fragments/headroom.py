# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What modules that change the pool leave to the host."""

    DOCUMENTATION = r"""
options:
  headroom:
    description: Memory that must remain available to the host.
    type: str
    default: 256M
  host_cpus:
    description: How many CPUs must remain with the host.
    type: int
    default: 1
"""
