# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run modules in this process, against a host that is a directory."""

from __future__ import annotations

import functools
import json
import os
import struct

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.mkops.multikernel.plugins.module_utils.divide import apply as _apply
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import flags as _flags
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import kerf as _kerf
from ansible_collections.mkops.multikernel.plugins.module_utils.divide import store as _store
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import KernelFs, Paths
from ansible_collections.mkops.multikernel.tests.unit.fake_kernel import FakeKernel

# Hosts take any text; where an action plugin was imported, Ansible takes this process for a controller.
os.environ["ANSIBLE_MODULE_STRICT_UTF8_RESPONSE"] = "false"


@pytest.fixture(scope="session", autouse=True)
def _no_disk():
    """What tests write is not worth waiting for a disk, least of all for all that this machine writes."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "sync", lambda: None)
        patched.setattr(os, "fsync", lambda _descriptor: None)
        yield


@pytest.fixture
def make_host(tmp_path, monkeypatch):
    """A fake host with the given traits; kerf is the fake one."""

    def make(**traits):
        host = FakeKernel(root=tmp_path / "host", **traits)
        monkeypatch.setattr(_kerf, "run", host.run)
        monkeypatch.setattr(_kerf, "write_overlay", host.write_overlay)
        monkeypatch.setattr(_store, "must", host.systemctl)
        monkeypatch.setattr(_apply, "set_network", host.set_network)
        monkeypatch.setattr(_flags, "kexec_file_load", host.kexec_file_load)
        monkeypatch.setattr("os.geteuid", lambda: 0)
        read_tree = KernelFs._tree

        def read_and_log(fs, path):
            host.was_read(path)
            return read_tree(fs, path)

        monkeypatch.setattr(KernelFs, "_tree", read_and_log)
        return host

    return make


@pytest.fixture
def host(make_host):
    return make_host()


@pytest.fixture
def read(host):
    """Read the fake host."""
    return KernelFs(Paths(str(host.root))).read


@pytest.fixture
def run_module(monkeypatch, capsys):
    """Run a module as Ansible does and return its result."""

    def run(module, host, /, _check=False, **params):
        monkeypatch.setattr(module, "Paths", functools.partial(Paths, str(host.root)))
        args = {**params, "_ansible_check_mode": _check, "_ansible_diff": True}
        # Where an action plugin was imported before, Ansible shows them at once, as on the controller.
        warnings = []
        monkeypatch.setattr(AnsibleModule, "warn", lambda _module, text, **_options: warnings.append(text))
        # Ansible logs the values, and with some versions of Python ends when one has a NUL in it.
        monkeypatch.setattr(AnsibleModule, "_log_to_syslog", lambda _module, _text: None)
        with patch_module_args(args), pytest.raises(SystemExit):
            module.main()
        result = json.loads(capsys.readouterr().out)
        return {**result, "warnings": warnings} if warnings else result

    return run


@pytest.fixture
def vmlinux(tmp_path):
    """A file that is a kernel as far as can be told."""
    path = tmp_path / "vmlinux"
    path.write_bytes(struct.pack("<16sHH", b"\x7fELF\x02\x01\x01", 2, 62) + b"Linux version 6.12.107 (one)\n")
    return path


@pytest.fixture
def initrd(tmp_path):
    path = tmp_path / "initrd.cpio"
    path.write_bytes(b"070701" + b"0" * 104)
    return path
