# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run the pip that Python carries for virtual environments, where it lies.

To unpack and compile it into an environment takes several times longer than the one installation it is for.
"""

import ensurepip
import runpy
import sys
import sysconfig
from pathlib import Path

place = sysconfig.get_config_var("WHEEL_PKG_DIR") or Path(ensurepip.__file__).with_name("_bundled")
sys.path.insert(0, str(max(Path(place).glob("pip-*.whl"))))
runpy.run_module("pip", run_name="__main__", alter_sys=True)
