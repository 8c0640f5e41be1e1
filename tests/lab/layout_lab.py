# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the scripts beside this one share, on a lab host to which layout_ship.yml has brought the modules."""

import hashlib
import importlib
import io
import json
import os
import random
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from ansible.module_utils.testing import patch_module_args

MULTIKERNEL = Path("/sys/fs/multikernel")
PLUGINS = "ansible_collections.mkops.multikernel.plugins.modules"
MODULES = {
    name: importlib.import_module(f"{PLUGINS}.{name}") for name in ("pool", "instance", "layout", "info")
}


class Run:
    """One run of a module, in a process group of its own, as it may be killed."""

    def __init__(self, module, /, check=False, **params):
        self.read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            os.close(self.read)
            self._child(module, {**params, "_ansible_check_mode": check, "_ansible_diff": True}, write)
        os.close(write)

    @staticmethod
    def _child(module, args, write):
        text = io.StringIO()
        try:
            with redirect_stdout(text), patch_module_args(args):
                MODULES[module].main()
        except SystemExit:
            pass
        finally:
            with os.fdopen(write, "w") as pipe:
                pipe.write(text.getvalue())
            os._exit(0)

    def result(self):
        """None when it did not come to an end."""
        with os.fdopen(self.read) as pipe:
            text = pipe.read()
        os.waitpid(self.pid, 0)
        return json.loads(text) if text else None


def run(module, /, check=False, **params):
    result = Run(module, check, **params).result()
    if result is None or result.get("failed"):
        fail(f"{module} {params}: {result}")
    return result


def fail(text):
    print(f"FAIL  {text}", flush=True)
    sys.exit(1)


def check(what, holds):
    if not holds:
        fail(what)


def fingerprint():
    """Of everything that a change of the pool or of an instance would show in."""
    digest = hashlib.sha256()
    for path in sorted(MULTIKERNEL.rglob("*")):
        digest.update(f"{path}\n".encode())
        if path.name in ("device_tree", "id", "status", "epoch"):
            digest.update(path.read_bytes())
    for path in ("/proc/iomem", "/proc/kimage", "/sys/devices/system/cpu/online"):
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()


def online():
    return Path("/sys/devices/system/cpu/online").read_text().strip()


def total_memory():
    return int(Path("/proc/meminfo").read_text().split()[1])


def nothing():
    """No instances, no pool."""
    return run("layout", pool={"state": "absent"}, prune=True, defaults={"force": True})


def mine():
    """Of the pool and the instances in /proc/iomem: bytes."""
    chunks, regions = 0, {}
    for line in Path("/proc/iomem").read_text().splitlines():
        span, _colon, name = line.strip().partition(" : ")
        first, last = (int(part, 16) for part in span.split("-"))
        if name == "Multikernel Memory Pool":
            chunks += last - first + 1
        elif name.startswith("mk-instance-"):
            owner = name.split("-")[3]
            regions[owner] = regions.get(owner, 0) + last - first + 1
    return chunks, regions


def size(text):
    return int(text[:-1]) << 20


def whole(pool_cpus, pool_memory, instances, defaults):
    """Nothing is lost: every CPU has one owner, and all memory is the pool's or an instance's."""
    facts = run("info")
    check("all CPUs of the pool are there", len(facts["pool"]["cpus"]) == pool_cpus)
    lent = [cpu for one in facts["instances"] for cpu in one["cpus"]]
    check("no CPU has two owners", len(lent) == len(set(lent)))
    check("no CPU is lost", sorted([*lent, *facts["pool"]["free_cpus"]]) == facts["pool"]["cpus"])
    chunks, regions = mine()
    check(f"the pool has {chunks} bytes", chunks == pool_memory)
    wanted = {one["name"]: size(one.get("memory", defaults["memory"])) for one in instances}
    check(f"instances have {regions}, wished {wanted}", regions == wanted)
    states = {one["name"]: one["state"] for one in facts["instances"]}
    wished = {one["name"]: "loaded" if one.get("state") == "stopped" else "active" for one in instances}
    check(f"instances are {states}, wished {wished}", states == wished)


def arguments():
    """Kernel and initramfs, and a number for the dice."""
    kernel, initrd, *rest = sys.argv[1:]
    seed = int(rest[0]) if rest else time.time_ns() % 1000000
    print(f"seed {seed}", flush=True)
    return kernel, initrd, random.Random(seed)
