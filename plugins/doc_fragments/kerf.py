# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What modules that drive kerf share."""

    DOCUMENTATION = r"""
options:
  kerf:
    description:
      - Path of kerf on the host. When nothing is at the default path, the one in E(PATH) is taken.
      - Supported is kerf 0.4. It is only called when something is to be changed.
    type: path
    default: /opt/mkops/kerf/bin/kerf
requirements:
  - A multikernel kernel, with C(/sys/fs/multikernel) mounted
  - kerf 0.4 (PyPI C(kerf-multikernel))
  - The Python module C(libfdt) (package C(python3-libfdt))
  - Root
"""
