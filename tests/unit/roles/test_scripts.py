# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The programs that roles run, and the last page of the demo."""

from __future__ import annotations

import gzip
import hashlib
import importlib.machinery
import importlib.util
import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from ansible_collections.mkops.multikernel.plugins.module_utils.build.rootfs import Tree

TOP = Path(__file__).resolve().parents[3]
MAKE_INITRAMFS = TOP / "roles/spawn_image/files/make_initramfs.py"
VERIFY_WHEEL = TOP / "roles/host/files/verify_wheel.py"


def load_program(path):
    loader = importlib.machinery.SourceFileLoader(path.stem, str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def elf(*segments):
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0
    )
    return header + b"".join(struct.pack("<II48x", kind, 5) for kind in segments)


def make_initramfs(busybox, output, *more):
    argv = [sys.executable, str(MAKE_INITRAMFS), f"--busybox={busybox}", f"--output={output}", *more]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def members(archive):
    """Name to (mode, device, content) of a newc archive."""
    found = {}
    at = 0
    while True:
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        assert archive[at : at + 6] == b"070701"
        name_end = at + 110 + fields[11]
        name = archive[at + 110 : name_end - 1].decode()
        data = name_end + -name_end % 4
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], tuple(fields[9:11]), archive[data : data + fields[6]])
        at = data + fields[6] + -fields[6] % 4


def test_initramfs(tmp_path):
    busybox = tmp_path / "busybox"
    busybox.write_bytes(elf(1, 1, 7) + b"odd")
    output = tmp_path / "cache" / "spawn.cpio.gz"
    assert make_initramfs(busybox, output).returncode == 0
    image = output.read_bytes()
    found = members(gzip.decompress(image))
    assert found["bin/busybox"] == (0o100755, (0, 0), busybox.read_bytes())
    assert found["dev/console"] == (0o020600, (5, 1), b"")
    assert found["init"][0] == 0o100755
    assert found["init"][2].startswith(b"#!/bin/busybox sh\n")
    assert {
        "proc",
        "sys",
        "dev",
        "sbin/poweroff",
        "sbin/mkops-network",
        "sbin/mkops-lease",
        "bin/mkops-facts",
    } <= set(found)
    assert found["etc/ansible/facts.d/mkops.fact"][0] == 0o100755

    stamp = output.stat().st_mtime_ns
    assert make_initramfs(busybox, output).returncode == 0
    assert output.stat().st_mtime_ns == stamp  # left alone
    again = tmp_path / "again.gz"
    assert make_initramfs(busybox, again).returncode == 0
    assert again.read_bytes() == image  # reproducible
    assert sorted(path.name for path in output.parent.iterdir()) == ["spawn.cpio.gz"]


def test_a_debian_root_says_that_it_is_a_spawned_kernel(tmp_path):
    """Ansible runs facts that are executable, and reads the others."""
    tasks = yaml.safe_load((TOP / "roles/spawn_image/tasks/debian.yml").read_text())
    assert "role_path ~ '/files/debian'" in tasks[0]["mkops.multikernel.debian_root"]["overlays"]
    tree = Tree(io.BytesIO())
    tree.add_directory(TOP / "roles/spawn_image/files/debian")
    fact = tree.entries["etc/ansible/facts.d/mkops.fact"]
    assert (fact.mode, fact.uid) == (0o100755, 0)
    said = tmp_path / "mkops.fact"
    said.write_bytes(fact.data)
    environment = {"PATH": os.environ["PATH"]}
    for more, expected in (
        ({}, (None, None, None)),
        ({"MKOPS_HOST": 'b"g', "MKOPS_INSTANCE": "red", "MKOPS_INSTANCE_ID": "7"}, ('b"g', "red", 7)),
    ):
        done = subprocess.run(["/bin/sh", said], env={**environment, **more}, capture_output=True, check=True)
        found = json.loads(done.stdout)
        assert found["spawned"] is True
        assert (found["host"], found["instance"], found["id"]) == expected


@pytest.mark.parametrize("content", [elf(1, 3), b"#!/bin/sh\n", b""])
def test_initramfs_wants_a_static_busybox(tmp_path, content):
    busybox = tmp_path / "busybox"
    busybox.write_bytes(content)
    result = make_initramfs(busybox, tmp_path / "out")
    assert result.returncode == 1
    assert "install busybox-static" in result.stderr
    assert not (tmp_path / "out").exists()


def test_initramfs_without_busybox(tmp_path):
    result = make_initramfs(tmp_path / "none", tmp_path / "out")
    assert (result.returncode, "No such file" in result.stderr) == (1, True)


def test_programs_come_with_their_libraries(tmp_path):
    busybox, script = tmp_path / "busybox", tmp_path / "script"
    busybox.write_bytes(elf(1))
    script.write_text("#!/bin/sh\n")
    wanted = ["--program=/usr/bin/env", f"--program={script}"]
    assert make_initramfs(busybox, tmp_path / "out.gz", *wanted).returncode == 0
    found = members(gzip.decompress((tmp_path / "out.gz").read_bytes()))
    assert found["usr/bin/env"] == (0o100755, (0, 0), Path("/usr/bin/env").read_bytes())
    assert found[str(script)[1:]][2] == b"#!/bin/sh\n"
    libraries = [name for name in found if "libc.so" in name or "ld-linux" in name]
    assert len(libraries) == 2
    names = list(found)
    for name in (*libraries, "usr/bin/env"):
        assert found[name][2] == Path("/", name).read_bytes()
        # The kernel makes no directories of its own.
        assert names.index(str(Path(name).parent)) < names.index(name)


def test_programs_that_are_not_there(tmp_path):
    busybox, lonely = tmp_path / "busybox", tmp_path / "lonely"
    busybox.write_bytes(elf(1))
    env = Path("/usr/bin/env").read_bytes()
    lonely.write_bytes(env.replace(b"libc.so.6\0", b"libx.so.6\0"))
    lonely.chmod(0o755)
    wanted = ["--program=/none", "--program=env", f"--program={lonely}"]
    result = make_initramfs(busybox, tmp_path / "out", *wanted)
    assert result.returncode == 1
    first, second, third = result.stderr.split("program ")[1:]
    assert "/none: No such file" in first
    assert "env: the path has to be absolute" in second
    assert "libx.so.6" in third
    assert not (tmp_path / "out").exists()


@pytest.fixture
def installed(tmp_path):
    """A wheel, and an environment with just what it holds."""
    files = {
        "kerf/__init__.py": b"one = 1\n",
        "kerf/data/blob": b"\0\1",
        "kerf-1.dist-info/RECORD": b"as built\n",
    }
    wheel = tmp_path / "kerf-1-py3-none-any.whl"
    site = tmp_path / "env/lib/python3.13/site-packages"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_bytes(content)
    (site / "kerf-1.dist-info/RECORD").write_bytes(b"as installed\n")
    (site / "kerf/__pycache__").mkdir()
    (site / "kerf/__pycache__/x.pyc").write_bytes(b"")
    return wheel, hashlib.sha256(wheel.read_bytes()).hexdigest(), tmp_path / "env", site


def test_an_unmodified_wheel(installed):
    assert load_program(VERIFY_WHEEL).differences(*installed[:3]) == []


@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (
            lambda site: (site / "kerf/__init__.py").write_bytes(b"one = 2\n"),
            "__init__.py is not as released",
        ),
        (lambda site: (site / "kerf/data/blob").unlink(), "blob is missing"),
        (lambda site: (site / "kerf/extra.py").write_bytes(b""), "extra.py was added"),
        (lambda site: site.rename(site.with_name("elsewhere")), "is not a virtual environment"),
    ],
)
def test_a_modified_wheel(installed, harm, word):
    harm(installed[3])
    found = load_program(VERIFY_WHEEL).differences(*installed[:3])
    assert len(found) == 1
    assert word in found[0]


def test_another_wheel(installed):
    found = load_program(VERIFY_WHEEL).differences(installed[0], "0" * 64, installed[2])
    assert "does not have the SHA-256" in found[0]


def test_no_wheel(installed):
    found = load_program(VERIFY_WHEEL).differences(installed[0].with_name("none.whl"), "0" * 64, installed[2])
    assert found == [f"{installed[0].with_name('none.whl')} is missing"]


def test_verify_wheel_tells_by_its_exit_code(installed):
    argv = [sys.executable, str(VERIFY_WHEEL), *map(str, installed[:3])]
    assert subprocess.run(argv, capture_output=True, check=False).returncode == 0
    (installed[3] / "kerf/__init__.py").unlink()
    assert subprocess.run(argv, capture_output=True, check=False).returncode == 1


def test_verify_wheel_before_the_installation(installed):
    wheel, sha256 = installed[:2]
    argv = [sys.executable, str(VERIFY_WHEEL), str(wheel), sha256]
    assert subprocess.run(argv, capture_output=True, check=False).returncode == 0
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    result = subprocess.run(argv, capture_output=True, check=False, text=True)
    assert (result.returncode, result.stderr) == (1, f"{wheel} does not have the SHA-256 {sha256}\n")


def kerf_tasks():
    tasks = yaml.safe_load((TOP / "roles/host/tasks/kerf.yml").read_text())
    return [task["name"] for task in tasks[1]["block"]], tasks


def test_kerf_is_verified_before_it_is_installed():
    names = kerf_tasks()[0]
    assert names.index("Compare the wheel on the host with what was released") < names.index(
        "Install kerf alone"
    )


def test_a_kept_wheel_is_taken_for_its_hash_alone(tmp_path):
    """The role's own tasks, as far as the controller: whether pip is asked."""
    block = {task["name"]: task for task in kerf_tasks()[1][1]["block"]}
    fetch = block["Fetch kerf to the controller"]
    fetch["ansible.builtin.command"] = {"argv": ["touch", f"{tmp_path}/{{{{ inventory_hostname }}}}/fetched"]}
    kept = {"missing": None, "damaged": b"the wheel\0", "good": b"the wheel"}
    for name, content in kept.items():
        (tmp_path / name).mkdir()
        if content is not None:
            (tmp_path / name / "kerf.whl").write_bytes(content)
    variables = {
        "host_wheelhouse": f"{tmp_path}/{{{{ inventory_hostname }}}}",
        "host_kerf_wheel": "kerf.whl",
        "host_kerf_sha256": hashlib.sha256(b"the wheel").hexdigest(),
    }
    tasks = [block["Look for kerf on the controller"], fetch]
    play = [{"hosts": "all", "gather_facts": False, "vars": variables, "tasks": tasks}]
    (tmp_path / "play.yml").write_text(yaml.safe_dump(play))
    argv = ["ansible-playbook", "-i", ",".join(kept), "-c", "local", str(tmp_path / "play.yml")]
    done = subprocess.run(argv, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stdout
    assert {name for name in kept if (tmp_path / name / "fetched").exists()} == {"missing", "damaged"}


def test_demo_table():
    demo = load_program(TOP / "tools/demo.py")
    instances = [
        {"name": "red", "cpus": [2], "memory": 256 << 20, "state": "loaded"},
        {"name": "blue", "cpus": [3], "memory": 256 << 20, "state": "active"},
    ]
    report = {
        "name": "lab1",
        "after": {
            "kernel": {"release": "6.12"},
            "pool": {"memory": 512 << 20},
            "host": {"boot_id": "h", "cpus": [0, 1], "memory": 2 << 30, "uptime": 3725.9},
            "instances": instances,
        },
        "facts_before": [
            {"boot_id": "r", "release": "6.12", "uptime_s": 5.2},
            {"boot_id": "b", "release": "6.12", "uptime_s": 4.0},
        ],
        "facts_after": [{"boot_id": "b", "release": "6.12", "uptime_s": 65.0}],
    }
    assert demo.rows(report)[1:] == [
        ["lab1", "6.12", "h", "0,1", "1536 MiB", "host", "1 h 02 min"],
        ["red", "6.12", "r", "2", "256 MiB", "loaded, crashed", "ended after 5 s"],
        ["blue", "6.12", "b", "3", "256 MiB", "active", "1 min 05 s"],
    ]


def test_demo_counts_changes():
    demo = load_program(TOP / "tools/demo.py")
    recap = "PLAY RECAP ***\nlab1           : ok=9    changed=2    unreachable=0    failed=0    skipped=1\n"
    assert demo.RECAP.findall(recap) == [("lab1", "2", "0", "0")]
