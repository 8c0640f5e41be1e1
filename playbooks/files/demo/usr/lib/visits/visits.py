# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Counts visits in a database on the disk, and tells which kernel has counted. nginx stands before it."""

import contextlib
import http.server
import json
import os
import platform
import sqlite3
from pathlib import Path

DATABASE = Path(os.environ["STATE_DIRECTORY"], "visits.db")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def visit():
    """One more is in the database, and on the disk, when this returns how many there are."""
    with contextlib.closing(sqlite3.connect(DATABASE)) as database:
        with database:
            database.execute("create table if not exists visits (at text not null)")
            database.execute("insert into visits values (datetime('now'))")
        return database.execute("select count(*) from visits").fetchone()[0]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        answer = {"visits": visit(), "boot_id": BOOT_ID, "release": platform.release()}
        body = json.dumps(answer).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    http.server.HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
