# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Names of spawned kernels in the host's /etc/hosts, in lines that are marked as ours. No I/O."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from .declare import DHCP
from .record import Record

_MARK = "# mkops"


def hosts_text(text: str, records: Mapping[str, Record]) -> str:
    """The file with our lines as the records want them, and all other lines as they are."""
    lines = text.splitlines()
    others = [line for line in lines if not line.endswith(f"\t{_MARK}")]
    ours = [
        f"{ipaddress.ip_interface(address).ip}\t{link.host_entry}\t{_MARK}"
        for _name, record in sorted(records.items())
        for link in record.links
        if link.host_entry
        for address in link.addresses
        if address != DHCP
    ]
    if len(others) == len(lines) and not ours:
        return text
    return "\n".join([*others, *ours]) + "\n"
