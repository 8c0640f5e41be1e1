# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The program mkops as the role host installs it, by real runs of ansible-playbook on directories."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ansible_collections.mkops.multikernel.plugins.module_utils.devices.backends import PLACES

NEWER = "#!/bin/sh\necho mkops 99.0.0\n"


@pytest.fixture(scope="module")
def plays(tmp_path_factory):
    """What each play said: check, apply, check, apply; apply over a newer one, and a broken one."""
    top = tmp_path_factory.mktemp("host")
    (top / "sbin").mkdir()
    program = top / "sbin/mkops"

    def play(name, check=False, **before):
        return {
            "name": name,
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": False,
            "check_mode": check,
            "pre_tasks": [{"ansible.builtin.copy": {"dest": str(program), "mode": "0755", **before}}]
            if before
            else [],
            "tasks": [
                {
                    "ansible.builtin.import_role": {
                        "name": "mkops.multikernel.host",
                        "tasks_from": "program",
                    },
                    "vars": {
                        "host_program_path": str(program),
                        "host_manual_path": str(top / "man/man8/mkops.8"),
                        "host_cache": str(top / "cache"),
                    },
                }
            ],
        }

    book = top / "play.yml"
    book.write_text(
        yaml.safe_dump(
            [
                *(play("check", True), play("apply"), play("check again", True), play("apply again")),
                *(play("downgrade", content=NEWER), play("broken", content="#!/none\n")),
            ]
        )
    )
    playbook = Path(sys.executable).with_name("ansible-playbook")
    if not playbook.exists():
        pytest.skip("there is no ansible-playbook beside this Python")
    done = subprocess.run(
        [playbook, "-i", "localhost,", "-e", f"ansible_python_interpreter={sys.executable}", book],
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    parts = re.split(r"^PLAY (?:\[(.*?)\]|RECAP) \*+$", done.stdout, flags=re.M)
    return top, dict(zip(parts[1::2], parts[2::2], strict=True))


def test_check_apply_check_apply(plays):
    _top, said = plays
    assert [said[name].count("changed: [") for name in ("check", "apply")] == [3, 3]
    assert [said[name].count("changed: [") for name in ("check again", "apply again")] == [0, 0]


def test_a_newer_one_is_replaced_and_that_is_told(plays):
    _top, said = plays
    told = {name: "is 99.0.0, and is replaced by" in " ".join(text.split()) for name, text in said.items()}
    assert [name for name in told if told[name]] == ["downgrade"]


def test_one_that_does_not_run_is_replaced(plays):
    top, said = plays
    assert "failed=" not in said["broken"]
    assert subprocess.run([top / "sbin/mkops", "--version"], capture_output=True, check=True).stdout
    assert (top / "sbin/mkops").stat().st_mode & 0o777 == 0o755
    assert len(list((top / "cache/program").iterdir())) == 1


def test_the_manual_page_is_there(plays):
    top, _said = plays
    assert (top / "man/man8/mkops.8").read_text().startswith('.\\" Copyright')


def test_what_serves_devices_is_looked_for_where_it_is_looked_for_later(tmp_path):
    """With all four programs nothing is installed, and without any one of them something is."""
    variables = yaml.safe_load((Path(__file__).parents[3] / "roles/host/vars/main.yml").read_text())
    assert variables["host_devices_places"] == list(PLACES)
    for place, names in (("bin", ("ip", "nft")), ("libexec", ("qemu-storage-daemon", "virtiofsd"))):
        (tmp_path / place).mkdir()
        for name in names:
            (tmp_path / place / name).write_text("#!/bin/sh\n")
            (tmp_path / place / name).chmod(0o755)

    def found():
        argv = [sys.executable, "-c", variables["host_devices_look"], str(tmp_path / "libexec")]
        done = subprocess.run(argv, env={"PATH": str(tmp_path / "bin")}, capture_output=True, check=False)
        assert not done.stderr
        return not done.returncode

    assert found()
    (tmp_path / "libexec/virtiofsd").unlink()
    assert not found()
