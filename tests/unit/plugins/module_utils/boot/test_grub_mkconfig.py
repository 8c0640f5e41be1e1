# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host whose menu is written by Debian's own grub-mkconfig, with its own scripts, and started by GRUB."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.boot import loaders
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure
from ansible_collections.mkops.multikernel.tests.unit import grub_emu
from ansible_collections.mkops.multikernel.tests.unit.boot_rig import Clock
from ansible_collections.mkops.multikernel.tests.unit.fake_boot import NEW, OLD, Simulated
from ansible_collections.mkops.multikernel.tests.unit.plugins.modules import test_kernel_boot as host_tests

# Stands for the disk, of which a test has none; all else is what Debian installs.
PROBE = """\
#!/bin/sh
for word; do
    case $word in
        --target=*) target=${word#--target=} ;;
        -t) next=1 ;;
        *) if [ "$next" ]; then target=$word; next=; fi ;;
    esac
done
case $target in
    device) echo /dev/vda1 ;;
    fs) echo {fs} ;;
    fs_uuid) echo 0b2d-u1 ;;
    abstraction) echo {abstraction} ;;
    hints_string) echo --hint-bios=hd0 ;;
    compatibility_hint) echo hd0 ;;
    drive) echo '(hd0)' ;;
    partmap) echo msdos ;;
esac
"""
# Paths of the host that grub-mkconfig sees instead of this machine's.
MOUNTS = """\
for place in boot etc/default etc/grub.d; do mount --bind "$1/$place" "/$place"; done
mount --bind "$1/sim/grub-probe" /usr/sbin/grub-probe
exec grub-mkconfig -o /boot/grub/grub.cfg
"""
SETTINGS = """\
GRUB_DEFAULT=0
GRUB_TIMEOUT=5
GRUB_DISTRIBUTOR=`( . /etc/os-release; echo ${NAME:-Debian} ) 2>/dev/null || echo Debian`
GRUB_CMDLINE_LINUX_DEFAULT="quiet"
"""
USERS = """\
#!/bin/sh
cat <<EOF
set superusers="boss"
export superusers
password boss secret
EOF
"""


class Debian(Simulated):
    def __init__(self, root):
        shutil.copytree("/etc/grub.d", root / "etc/grub.d")
        self.root = str(root)
        self.file("/etc/default/grub.d/README", "")
        self.disk()
        super().__init__(root)

    def disk(self, fs="ext2", abstraction=""):
        self.file("/sim/grub-probe", PROBE.replace("{fs}", fs).replace("{abstraction}", abstraction))
        self.at("/sim/grub-probe").chmod(0o755)

    def script(self, name, text):
        self.file(f"/etc/grub.d/{name}", text)
        self.at(f"/etc/grub.d/{name}").chmod(0o755)

    def settings(self, *lines):
        self.file("/etc/default/grub", SETTINGS + "".join(f"{line}\n" for line in lines))
        self.menu()

    def menu(self):
        if self.text("/etc/default/grub") == "GRUB_DEFAULT=0\n":
            self.file("/etc/default/grub", SETTINGS)
        argv = ["unshare", "--map-root-user", "--mount", "sh", "-e", "-c", MOUNTS, "-", self.root]
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def start(self):
        start = grub_emu.start(self.at("/boot/grub"))
        assert start.ended, start.output
        image, *words = start.linux[0].split()
        return self.started(image.split("/vmlinuz-")[1], " ".join(words))

    def loader_command(self, name, words):
        if name == "grub-probe":
            argv = [str(self.at("/sim/grub-probe")), *words]
            return 0, subprocess.run(argv, check=True, capture_output=True, text=True).stdout
        return super().loader_command(name, words)


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    return Debian(tmp_path_factory.mktemp("stock"))


@pytest.fixture
def host(stock, tmp_path, monkeypatch):
    monkeypatch.setattr(host_tests.kernel_boot, "time", Clock())
    return stock.copy(tmp_path / "host")


def refused(host, **params):
    """Before anything is changed."""
    before = host.files()
    reasons = host_tests.phase(host, "plan", **params)["reasons"]
    with pytest.raises(Failure):
        host_tests.phase(host, "install", **params)
    assert host.files() == before
    return "; ".join(reasons)


def test_a_stock_host(host):
    assert (host.running(), loaders.look(host).remembers) == (OLD, False)
    host_tests.phase(host, "install")
    # The newest kernel is the first in the menu now, and not the default.
    assert host.boot() == OLD
    host_tests.promoted(host)
    assert host.boot() == NEW
    host.menu()
    assert host.boot() == NEW
    assert not host_tests.phase(host, "plan")["changed"]


@pytest.mark.parametrize(
    "lines", [["GRUB_SAVEDEFAULT=true"], ["GRUB_DISABLE_SUBMENU=y", "GRUB_TERMINAL=console"]]
)
def test_a_trial_is_one_boot_also_where_grub_keeps_what_was_started(host, lines):
    host.settings("GRUB_DEFAULT=saved", *lines)
    host_tests.phase(host, "install")
    loaders.find(host).arm(NEW, ["panic=10"])
    assert [host.boot(), host.boot(), host.boot()] == [NEW, OLD, OLD]


def test_a_drop_in(host):
    host.file("/etc/default/grub.d/50-site.cfg", "GRUB_DEFAULT=0\n")
    host.menu()
    assert "/etc/default/grub.d/50-site.cfg sets GRUB_DEFAULT=0" in refused(host, state="installed")


def test_another_script(host):
    host.script("40_custom", "#!/bin/sh\nexec tail -n +3 $0\nset default=0\n")
    host.menu()
    reason = refused(host, state="installed")
    assert "the default of GRUB is set in /etc/grub.d/40_custom (line " in reason


@pytest.mark.parametrize("disk", [{"fs": "btrfs"}, {"abstraction": "lvm"}])
def test_a_disk_that_grub_cannot_write(host, disk):
    host.disk(**disk)
    host.menu()
    assert "which GRUB cannot write to" in refused(host)


@pytest.mark.parametrize("line", ["GRUB_TIMEOUT=-1", "GRUB_RECORDFAIL_TIMEOUT=-1"])
def test_a_menu_that_waits(host, line):
    host.settings(line)
    known = "recordfail" in host.text("/boot/grub/grub.cfg") or "RECORDFAIL" not in line
    assert ("GRUB waits for a key" in "; ".join(host_tests.phase(host, "plan")["reasons"])) is known


def test_a_password_and_what_the_reason_says_to_do(host):
    host.script("01_users", USERS)
    host.settings("GRUB_DEFAULT=saved")
    # So it is indeed: nothing starts by itself.
    assert grub_emu.start(host.at("/boot/grub")).asks
    for state in ("installed", "booted"):
        reason = refused(host, state=state)
        assert "add --unrestricted to this submenu in /etc/grub.d/10_linux, or set" in reason
        assert "GRUB_DISABLE_SUBMENU=true in /etc/default/grub" in reason
    host.settings("GRUB_DEFAULT=saved", "GRUB_DISABLE_SUBMENU=true")
    reason = refused(host)
    assert "add --unrestricted to this menuentry in /etc/grub.d/10_linux, for Linux by CLASS there" in reason
    script = host.text("/etc/grub.d/10_linux")
    host.script(
        "10_linux", script.replace('CLASS="--class gnu-linux', 'CLASS="--unrestricted --class gnu-linux')
    )
    host.menu()
    host_tests.promoted(host, cmdline="isolcpus=1")
    assert host.boot() == NEW
    assert "isolcpus=1" in host.text("/proc/cmdline")


def test_what_an_older_grub_reboot_left(host):
    host.settings("GRUB_DEFAULT=saved")
    host_tests.phase(host, "install", state="installed")
    new = loaders.look(host).entries[NEW]
    host.run(["grub-editenv", "-", "set", f"prev_saved_entry={new}"], "have it left")
    assert loaders.look(host).default == ""
    host_tests.phase(host, "install", packages=[])
    assert [host.boot(), host.boot()] == [OLD, OLD]
