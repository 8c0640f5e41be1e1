# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What the host is to be after its next boot."""

    DOCUMENTATION = r"""
options:
  at_boot:
    description:
      - Whether the host is to be so at boot as well, without a controller.
      - V(true) keeps what is wished here in C(/etc/mkops/layout.json) on the host, once the host is so. What
        is named replaces what was kept of it, and V(absent) takes it out. Everything else that is kept stays,
        unless C(prune) is set.
      - V(false) takes what is named here out of that file. The host itself becomes what is wished all the
        same.
      - When left out, what is kept stays as it is, even where the host becomes something else. What is kept
        and becomes V(absent) that way is made again when the host boots, which a warning tells.
      - A pool and an instance can only be kept with all that it takes to make them, said here, even where the
        host has them already.
      - The file is for root alone, sorted, and can be edited by hand. One that is no layout any more is
        refused with all reasons, and left as it is.
      - The program C(mkops), which the role P(mkops.multikernel.host#role) installs, makes the host what is
        kept.
    type: bool
    version_added: 0.2.0
"""
