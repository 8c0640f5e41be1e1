# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""In place of the get-pip.py that ansible-test downloads for its virtual environments, from its own site.

Python carries a pip, and that installs the wanted one from where this machine gets its packages.
tools/ansible-test puts this file where ansible-test looks first. The arguments are those of get-pip.py.
"""

from __future__ import annotations

import subprocess
import sys

# There is neither here.
wanted = [word for word in sys.argv[1:] if word not in ("--no-setuptools", "--no-wheel")]
pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
subprocess.run([sys.executable, "-m", "ensurepip"], check=True, stdout=subprocess.DEVNULL)
subprocess.run([*pip, "install", *wanted], check=True)
