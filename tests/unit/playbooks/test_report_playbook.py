# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""playbooks/report.yml on this machine, and with hosts that cannot be reached or read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

PLAYBOOK = Path(__file__).parents[3] / "playbooks/report.yml"


def test_each_host_is_on_the_page(tmp_path):
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    hosts = {
        # The first one, on whose behalf the page is written.
        "away": {"ansible_host": "127.0.0.1", "ansible_port": 9},
        "here": here,
        "broken": {**here, "ansible_python_interpreter": "/bin/false"},
    }
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(yaml.safe_dump({"multikernel": {"hosts": hosts}}))
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"),
            *("-i", inventory, PLAYBOOK, "-e", "ansible_become=false"),
            *("-e", f"report_path={tmp_path}/page.html", "-e", "report_title='Rack & 7'"),
        ],
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "page.html").read_text()
    assert "<h1>Rack &amp; 7</h1>" in page
    assert "3 machines, read at 20" in page
    assert "It could not be reached: " in page
    assert "It could not be read: " in page
    assert 'aria-label="NUMA node 0. host: ' in page or "Socket" in page
