# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Print a hash of everything that a change of the pool or of an instance would show in."""

import hashlib
from pathlib import Path

MULTIKERNEL = Path("/sys/fs/multikernel")

digest = hashlib.sha256()
for path in sorted(MULTIKERNEL.rglob("*")):
    digest.update(f"{path}\n".encode())
    if path.name in ("device_tree", "id", "status"):
        digest.update(path.read_bytes())
for path in ("/proc/iomem", "/sys/devices/system/cpu/online"):
    digest.update(Path(path).read_bytes())
print(digest.hexdigest())
