# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Attributes that the modules of this collection share."""

    DOCUMENTATION = r"""
options: {}
attributes:
  platform:
    description: Target operating systems.
    support: full
    platforms: linux
  action_group:
    description: Use C(group/mkops.multikernel.all) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - mkops.multikernel.all
"""

    # Of modules that change a host.
    CHANGES = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return the changed status prediction without modifying the host.
    support: full
  diff_mode:
    description: Returns what has changed, or in check mode what would change, when in diff mode.
    support: full
  idempotent:
    description: When run twice in a row, with the same arguments, the second run changes nothing.
    support: full
"""

    # Of modules that only read.
    READS = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode); it only reads and so does the same.
    support: full
  diff_mode:
    description: Returns what has changed when in diff mode.
    support: N/A
    details: This module only reads.
  idempotent:
    description: When run twice in a row, with the same arguments, the second run changes nothing.
    support: full
"""
