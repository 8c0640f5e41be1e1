# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What options of devices may be: all that argument specifications need, which every run compiles."""

MODES = ("bridge", "routed", "isolated")
FORMATS = ("raw", "qcow2")
CACHES = ("writeback", "writethrough", "unsafe")
PROTOCOLS = ("tcp", "udp")
MTU = 1500
