# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Boot loaders that do not do what they are told: noticed before anything is installed, or taken back.

What the host would start is not believed, but tried: GRUB itself starts it.
"""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.boot import grub, loaders, plan
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure
from ansible_collections.mkops.multikernel.tests.unit import fake_boot
from ansible_collections.mkops.multikernel.tests.unit.boot_rig import Clock
from ansible_collections.mkops.multikernel.tests.unit.fake_boot import (
    ENTRY,
    GRUBENV,
    HEAD,
    NEW,
    OLD,
    TAIL,
    Simulated,
    SimulatedSystemdBoot,
)
from ansible_collections.mkops.multikernel.tests.unit.plugins.modules import test_kernel_boot as host_tests

CFG = "/boot/grub/grub.cfg"
CUSTOM = "/boot/grub/custom.cfg"
PIN = f"gnulinux-{OLD}-advanced-u"


class Scripted(Simulated):
    """Its update-grub also runs what a directory of scripts would add, and reads drop-ins."""

    def __init__(self, root):
        self.parts = {}
        super().__init__(root)

    def menu(self):
        settings = self.text("/etc/default/grub")
        for path in sorted(self.at("/etc/default/grub.d").glob("*.cfg")):
            settings += path.read_text()
        script = f'{settings}\necho "$GRUB_DEFAULT"'
        value = subprocess.run(
            ["sh"], input=script, text=True, check=True, capture_output=True, env={"PATH": "/usr/bin:/bin"}
        ).stdout.strip()
        kernels = sorted(path.name.removeprefix("vmlinuz-") for path in self.at("/boot").glob("vmlinuz-*"))
        text = HEAD.format(default="${saved_entry}" if value == "saved" else value)
        text += "### BEGIN /etc/grub.d/10_linux ###\n"
        text += "".join(map(ENTRY.format, reversed(kernels))) + "### END /etc/grub.d/10_linux ###\n"
        for name, part in self.parts.items():
            text += f"### BEGIN /etc/grub.d/{name} ###\n{part}### END /etc/grub.d/{name} ###\n"
        self.file(CFG, text + TAIL)


@pytest.fixture
def host(tmp_path):
    return Scripted(tmp_path)


def add(host, name, part):
    host.parts[name] = part
    host.menu()


def installs_nothing(host, **params):
    """Nothing is installed, nothing is armed, and GRUB starts the old kernel."""
    before = host.files()
    params = {"state": "installed", "reboot_ok": False, **params}
    reasons = host_tests.phase(host, "plan", **params)["reasons"]
    with pytest.raises(Failure):
        host_tests.phase(host, "install", **params)
    assert host.files() == before
    assert host.debs == {OLD}
    return "; ".join(reasons)


# --- the default is decided elsewhere -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", ["GRUB_DEFAULT=0", "export GRUB_DEFAULT='0' # the first", 'GRUB_DEFAULT="a>b"']
)
@pytest.mark.parametrize("state", ["installed", "booted"])
def test_a_default_in_a_drop_in(host, line, state):
    host.file("/etc/default/grub.d/50-site.cfg", f"GRUB_TIMEOUT=1\n{line}\n")
    host.menu()
    reason = installs_nothing(host, state=state, reboot_ok=True)
    assert "/etc/default/grub.d/50-site.cfg sets GRUB_DEFAULT=" in reason
    host.file("/etc/default/grub.d/50-site.cfg", "GRUB_DEFAULT=saved\n")
    host.menu()
    assert host_tests.phase(host, "plan")["reasons"] == []


@pytest.mark.parametrize(
    "text",
    [
        "[ -d / ] && GRUB_DEFAULT=0\n",
        "eval GRUB_DEFAULT=0\n",
        "for GRUB_DEFAULT in 1 0; do :; done\n",
        "unset GRUB_DEFAULT\n",
        "GRUB_TIMEOUT=1; GRUB_DEFAULT=0\n",
        "GRUB_DEFAULT=saved\nexport X=1 GRUB_DEFAULT=0\n",
        "case x in x) GRUB_DEFAULT=0;; esac\n",
    ],
)
def test_a_drop_in_that_is_a_script(host, text):
    """What it comes to is seen in the finished menu; all is as it was then."""
    settings = host.text("/etc/default/grub")
    host.file("/etc/default/grub.d/50-site.cfg", text)
    host.menu()
    with pytest.raises(Failure, match=r"GRUB does not remember its default|sets GRUB_DEFAULT="):
        host_tests.phase(host, "install", state="installed")
    assert (host.debs, host.text("/etc/default/grub")) == ({OLD}, settings)


@pytest.mark.parametrize(
    "text",
    ["[ -d /none ] && GRUB_DEFAULT=0\n:\n", ': "${GRUB_DEFAULT:=0}"\n', "# GRUB_DEFAULT=0\n", "X=1\r\n"],
)
def test_a_drop_in_that_changes_nothing(host, text):
    host.file("/etc/default/grub.d/50-site.cfg", text)
    host.menu()
    host_tests.phase(host, "install", state="installed")
    assert host.boot() == OLD


@pytest.mark.parametrize(
    "part",
    [
        "set default=0\n",
        'default="Linux 1"\n',
        'if [ "${saved_entry}" ]; then set default=0; fi\n',
        'function choose {\n  set default="$1"\n}\nchoose 0\n',
        "for number in 0; do set default=$number; done\n",
        "unset default\n",
        'eval "set default=0"\n',
        "regexp --set default . x\n",
    ],
)
def test_a_default_in_another_script(host, part):
    add(host, "45_site", part)
    reason = installs_nothing(host)
    assert "the default of GRUB is set in /etc/grub.d/45_site (line " in reason


@pytest.mark.parametrize("text", ["set default=0\n", "export default\nset default=1\n"])
def test_a_default_in_custom_cfg(host, text):
    host.file(CUSTOM, text)
    assert f"the default of GRUB is set in {CUSTOM}, line " in installs_nothing(host)


def test_a_default_in_a_file_that_custom_cfg_reads(host):
    host.file("/boot/grub/site.cfg", "set default=0\n")
    host.file(CUSTOM, "source $prefix/site.cfg\n")
    assert "the default of GRUB is set in /boot/grub/site.cfg, line 1" in installs_nothing(host)


def test_a_default_in_the_script_that_comes_back_although_it_is_set_otherwise(host, monkeypatch):
    """Nothing tells beforehand: seen only in the finished menu, the settings are as they were."""
    menu = host.menu

    def stubborn():
        menu()
        host.file(CFG, host.text(CFG).replace('"${saved_entry}"', '"0"'))

    monkeypatch.setattr(host, "menu", stubborn)
    settings = host.text("/etc/default/grub")
    with pytest.raises(
        Failure, match=r"GRUB does not remember its default with GRUB_DEFAULT=saved .*00_header"
    ):
        host_tests.phase(host, "install", state="installed")
    assert host.debs == {OLD}
    assert host.text("/etc/default/grub") == settings
    assert host.boot() == OLD


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("source (hd0,1)/other.cfg\n", "it reads (hd0,1)/other.cfg"),
        ("configfile $prefix/x.cfg\n", "`configfile` may leave the menu"),
        ("if [ -e (hd0)/x ]; then exit; fi\n", "`exit` may leave the menu"),
        ("blscfg\n", "entries come from /boot/loader/entries"),
        ("authenticate\n", "waits for somebody at the console"),
        ("read answer\n", "waits for somebody at the console"),
        ("load_env -f (hd0,1)/env\n", "it loads all variables of (hd0,1)/env"),
        ("regexp --set c . x; $c default=0\n", "which command it is depends on a variable"),
        ("menuentry x {\n}\n", f"{CUSTOM}, line 2: }} is found where a command should be"),
        ("echo 'open\n", f"{CUSTOM}, line 1: a quote is not closed"),
    ],
)
def test_what_cannot_be_told_is_refused(host, text, why):
    host.file(CUSTOM, text)
    assert f"cannot tell what GRUB would start: {CUSTOM}, line" in (reason := installs_nothing(host))
    assert why in reason


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("read answer", "`read` waits for somebody at the console"),
        ("exit", "`exit` may leave the entry before its kernel is started"),
        ("pause", "`read` waits for somebody at the console"),
        ('if [ "${boot_once}" ]; then return; fi', "it may end (`return`) before its kernel is started"),
        ("blscfg", "entries come from /boot/loader/entries"),
    ],
)
@pytest.mark.parametrize("state", ["installed", "booted"])
def test_an_entry_that_needs_somebody_at_the_console(host, monkeypatch, line, why, state):
    add(host, "00_more", "function pause {\n\tread answer\n}\n")
    monkeypatch.setattr(
        fake_boot,
        "ENTRY",
        ENTRY.replace("\tlinux", f"\t{line.replace('{', '{{').replace('}', '}}')}\n\tlinux"),
    )
    monkeypatch.setitem(globals(), "ENTRY", fake_boot.ENTRY)
    host.menu()
    reason = installs_nothing(host, state=state, reboot_ok=True)
    assert f"{OLD} cannot be started through 'Linux {OLD}': " in reason
    assert why in reason


def test_settings_that_are_a_script(host):
    """Nothing that is in it is lost, and the default is remembered in the end."""
    text = "GRUB_DEFAULT=0; GRUB_TIMEOUT=3\nif true; then\n  GRUB_DEFAULT=1\nfi"
    host.file("/etc/default/grub", text)
    host_tests.phase(host, "install", state="installed")
    assert host.text("/etc/default/grub") == f"{text}\nGRUB_DEFAULT=saved\n"
    assert host.boot() == OLD


def test_a_kernel_that_an_entry_always_takes_the_newest_of_is_not_kept_by_it(host):
    """Such an entry starts the running kernel now, and another one as soon as that is installed."""
    add(host, "10_more", f"menuentry 'Linux' --id gnulinux-simple-u {{\n\tlinux /boot/vmlinuz-{OLD} ro\n}}\n")
    host.file("/etc/default/grub", "GRUB_DEFAULT=saved\n")
    host.menu()
    host.run(["grub-editenv", "-", "set", "saved_entry=gnulinux-simple-u"], "choose it")
    host_tests.phase(host, "install", state="installed")
    assert host.environment["saved_entry"] == PIN
    assert host.boot() == OLD


def test_a_default_by_title_or_by_number_is_known_or_replaced(host):
    host.file("/etc/default/grub", "GRUB_DEFAULT=saved\n")
    host.menu()
    host.run(["grub-editenv", "-", "set", f"saved_entry=Linux {OLD}"], "choose it")
    assert loaders.look(host).default == PIN
    host.run(["grub-editenv", "-", "set", "saved_entry=0"], "choose it")
    host_tests.phase(host, "install", state="installed")
    assert host.environment["saved_entry"] == PIN
    assert host.boot() == OLD


def test_what_an_older_grub_reboot_left_does_not_come_first(host):
    add(host, "00_old", 'if [ "${prev_saved_entry}" ]; then\n  set default="${prev_saved_entry}"\nfi\n')
    host.run(["grub-editenv", "-", "set", f"prev_saved_entry=gnulinux-{NEW}-advanced-u"], "have it left")
    host_tests.phase(host, "install", state="installed")
    assert "prev_saved_entry" not in host.environment
    assert host.boot() == OLD


def saved(host):
    host.file("/etc/default/grub", "GRUB_DEFAULT=saved\n")
    host.menu()
    loaders.find(host).default(PIN)
    return host


@pytest.mark.parametrize(
    ("text", "entry", "why"),
    [
        ("", "gone", "GRUB has no entry gone to make the default"),
        ("submenu more --id more {\n\techo x\n}\n", "more", "GRUB has no entry more"),
        (
            f"set superusers=x\nmenuentry 'Linux' --id x {{\n\tlinux /boot/vmlinuz-{OLD}\n}}\n",
            "x",
            f"x cannot be the default of GRUB: GRUB has superusers .* in {CUSTOM}, for Linux",
        ),
        (
            'if [ "$default" = x ]; then set default=y; fi\nmenuentry x {\n\techo\n}\n',
            "x",
            f"GRUB would not start x when it is made the default: the default is set in {CUSTOM}, line 1",
        ),
    ],
)
def test_a_default_that_does_not_hold_is_not_left(host, text, entry, why):
    saved(host).file(CUSTOM, text)
    with pytest.raises(Failure, match=why):
        loaders.find(host).default(entry)
    assert host.environment["saved_entry"] == PIN


def test_an_entry_of_our_own_that_another_hides(host):
    saved(host).file(CUSTOM, f"menuentry first --id mkops-kernel-{OLD} {{\n\techo first\n}}\n")
    with pytest.raises(Failure, match=f"does not find the entry mkops-kernel-{OLD} that was written"):
        loaders.find(host).own(OLD, "quiet")


def test_an_entry_that_is_gone(host):
    with pytest.raises(Failure, match=r"GRUB no longer has an entry for 9\.9"):
        loaders.find(host).own("9.9", "quiet")


def test_an_entry_of_the_trial_that_another_hides(host):
    host_tests.phase(host, "install")
    host.file(CUSTOM, f"menuentry first --id {plan.TRIAL_ID} {{\n\techo first\n}}\n")
    with pytest.raises(Failure, match=f"GRUB would not start the trial of {NEW}"):
        loaders.find(host).arm(NEW, ["panic=10"])
    assert "next_entry" not in host.environment
    assert host.boot() == OLD


# --- the environment block cannot be written ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nothing", "unchanged", "error"])
def test_a_block_that_does_not_take_what_is_written(host, monkeypatch, kind):
    """Without a word, with an error, or with the word of another time."""
    run = host.run

    def stubborn(argv, purpose, ok=(0,), seconds=600):
        if list(argv)[:1] == ["grub-editenv"]:
            if kind == "error":
                raise Failure(f"cannot {purpose}: grub-editenv ended with status 1: cannot open")
            if kind == "unchanged":
                argv = ["grub-editenv", "-", "set", "other=1"]
            else:
                argv = ["systemctl", "x"]
        return run(argv, purpose, ok, seconds)

    monkeypatch.setattr(host, "run", stubborn)
    with pytest.raises(Failure, match="mkops_probe"):
        host_tests.phase(host, "install")
    assert host.debs == {OLD}
    monkeypatch.undo()
    assert host.boot() == OLD


def test_a_block_on_a_file_system_that_is_read_only(host, monkeypatch):
    real = os.access
    folder = host.at("/boot/grub")
    monkeypatch.setattr(
        loaders.os, "access", lambda path, mode: folder not in [path, path.parent] and real(path, mode)
    )
    assert f"{GRUBENV} cannot be written" in installs_nothing(host, state="booted", reboot_ok=True)


def test_a_block_that_is_a_link(host):
    host.file("/boot/efi/grubenv", "")
    host.at(GRUBENV).unlink(missing_ok=True)
    host.at(GRUBENV).symlink_to("../efi/grubenv")
    reason = installs_nothing(host, state="booted", reboot_ok=True)
    assert f"{GRUBENV} is a symbolic link" in reason


def test_a_block_that_is_damaged(host):
    host.file(GRUBENV, "saved_entry=x\n")
    assert "GRUB's environment block is damaged" in installs_nothing(host)


@pytest.mark.parametrize("lines", ["\n", "by hand\n", "x\n\n", "a=1\n \n"])
@pytest.mark.parametrize("state", ["installed", "booted"])
def test_a_block_that_was_edited_by_hand(host, lines, state):
    """GRUB does not see the variable behind a line without one; grub-editenv does, and changes it there."""
    block = f"{grub.SIGNATURE}{lines}saved_entry={PIN}\n"
    host.file(GRUBENV, block.ljust(1024, "#"))
    reason = installs_nothing(host, state=state, reboot_ok=True)
    assert "before saved_entry, which GRUB therefore does not see; create it again: grub-editenv" in reason
    host.file(GRUBENV, f"{grub.SIGNATURE}# by hand\nsaved_entry={PIN}\n".ljust(1024, "#"))
    host_tests.phase(host, "install", state="installed")
    assert host.boot() == OLD


def test_a_block_that_is_not_there_is_made(host):
    assert not host.at(GRUBENV).exists()
    host_tests.phase(host, "install", state="installed")
    assert host.boot() == OLD


@pytest.mark.parametrize(
    ("target", "answer", "text"),
    [
        ("--target=abstraction", "lvm", "/boot/grub lies on lvm"),
        ("--target=abstraction", "diskfilter mdraid1x", "/boot/grub lies on diskfilter, mdraid1x"),
        ("--target=fs", "btrfs", "/boot/grub lies on btrfs"),
        ("--target=fs", "zfs", "/boot/grub lies on zfs"),
    ],
)
def test_file_systems_that_grub_cannot_write(host, monkeypatch, target, answer, text):
    run = host.run

    def probe(argv, purpose, ok=(0,), seconds=600):
        if list(argv)[:2] == ["grub-probe", target]:
            return loaders.Access.run(host, ["echo", answer], purpose)
        return run(argv, purpose, ok, seconds)

    monkeypatch.setattr(host, "run", probe)
    reason = installs_nothing(host, state="booted", reboot_ok=True)
    assert f"GRUB cannot forget a trial once it has started it: {text}, which GRUB cannot write to" in reason


@pytest.mark.parametrize("lines", ["   save_env next_entry\n", "  load_env\n"])
def test_a_menu_that_does_not_read_or_write_the_block(host, lines):
    menu = host.text(CFG)
    host.file(CFG, menu.replace(lines, "  true\n", 1))
    assert "does not boot an entry once and then forget it" in "; ".join(
        host_tests.phase(host, "plan")["reasons"]
    )


@pytest.mark.parametrize(
    ("part", "waits"),
    [
        ("set timeout=-1\n", True),
        ("unset timeout\n", True),
        ("set timeout=soon\n", True),
        ('if [ "${recordfail}" = 1 ]; then set timeout=-1; else set timeout=0; fi\n', True),
        ('if [ "${recordfail}" = 1 ]; then set timeout=30; else set timeout=0; fi\n', False),
        ("if keystatus --shift; then set timeout=-1; else set timeout=0; fi\n", False),
        ("if [ x$feature_timeout_style = xy ]; then set timeout=3; else set timeout=-1; fi\n", False),
        ("if [ -e (hd7)/x ]; then set timeout=-1; fi\n", True),
        ("set timeout=0\n", False),
    ],
)
def test_a_menu_that_waits_for_a_key(host, part, waits):
    add(host, "09_time", part)
    reasons = "; ".join(host_tests.phase(host, "plan")["reasons"])
    assert ("GRUB waits for a key at its menu" in reasons) is waits


# --- a password ---------------------------------------------------------------------------------------------


SUPERUSERS = 'set superusers="boss"\npassword boss secret\nexport superusers\n'


def test_a_host_with_a_password_on_the_way_to_the_running_kernel(host):
    add(host, "01_users", SUPERUSERS)
    for state in ("installed", "booted"):
        reason = installs_nothing(host, state=state, reboot_ok=True)
        assert "GRUB has superusers and asks for a user name and a password" in reason
        assert "add --unrestricted to this menuentry in /etc/grub.d/10_linux" in reason


@pytest.mark.parametrize("cmdline", ["", "isolcpus=1"])
def test_a_host_with_a_password_whose_kernels_anybody_may_start(host, monkeypatch, cmdline):
    entry = ENTRY.replace("' $menuentry", "' --class gnu --unrestricted $menuentry")
    monkeypatch.setitem(globals(), "ENTRY", entry)
    monkeypatch.setattr(fake_boot, "ENTRY", entry)
    monkeypatch.setattr(host_tests.kernel_boot, "time", Clock())
    add(host, "01_users", SUPERUSERS)
    host_tests.promoted(host, cmdline=cmdline)
    assert host.boot() == NEW
    assert ("isolcpus=1" in host.text("/proc/cmdline")) is bool(cmdline)
    assert not host_tests.phase(host, "plan", cmdline=cmdline)["changed"]


# --- arming -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("\tset saved_entry=mkops-trial\n\tsave_env saved_entry\n", "would become the default"),
        ("\tset next_entry=mkops-trial\n\tsave_env next_entry\n", "again and again"),
        ("\tif false; then $x /boot/vmlinuz-1; fi\n", "which command it runs depends on a variable"),
    ],
)
def test_what_fails_after_arming_is_taken_back(host, monkeypatch, entry, why):
    text = ENTRY.replace("\tlinux", entry.replace("{", "{{").replace("}", "}}") + "\tlinux")
    host_tests.phase(host, "install")
    monkeypatch.setitem(globals(), "ENTRY", text)
    host.menu()
    with pytest.raises(Failure, match=why):
        loaders.find(host).arm(NEW, ["panic=10"])
    assert "next_entry" not in host.environment
    assert host.text(CUSTOM) == ""
    assert host.boot() == OLD


def test_a_default_that_comes_between_is_taken_back(host):
    """custom.cfg is written by somebody between the two phases."""
    host_tests.phase(host, "install")
    host.file(CUSTOM, "set default=0\n")
    with pytest.raises(Failure, match=f"the default is set in {CUSTOM}, line 1"):
        loaders.find(host).arm(NEW, ["panic=10"])
    assert "next_entry" not in host.environment
    assert host.text(CUSTOM) == "set default=0\n"


@pytest.mark.parametrize(
    ("kind", "step"),
    [(Scripted, "grub-script-check"), (Scripted, "grub-editenv"), (SimulatedSystemdBoot, "bootctl")],
)
def test_every_step_of_arming_that_fails(tmp_path, kind, step):
    host = kind(tmp_path)
    host_tests.phase(host, "install")
    host.fail_on = (step,)
    with pytest.raises(Failure):
        loaders.find(host).arm(NEW, ["panic=10"])
    host.fail_on = ()
    assert host.boot() == OLD


def test_what_others_wrote_into_custom_cfg_is_kept_with_every_byte(host):
    theirs = b"# Gr\xfc\xdfe\nmenuentry 'other' {\n\techo x\n}\n"
    host.at(CUSTOM).write_bytes(theirs)
    host_tests.phase(host, "install")
    loaders.find(host).arm(NEW, ["panic=10"])
    assert host.at(CUSTOM).read_bytes().startswith(theirs)
    loaders.find(host).disarm()
    assert host.at(CUSTOM).read_bytes() == theirs


def test_a_text_that_grub_does_not_take_is_taken_back(host, monkeypatch):
    host_tests.phase(host, "install")
    monkeypatch.setattr(grub, "trial_entry", lambda _entry, _words: "menuentry x --id mkops-trial {\n")
    with pytest.raises(Failure):
        loaders.find(host).arm(NEW, ["panic=10"])
    assert host.text(CUSTOM) == ""


def test_another_entry_that_was_chosen_once_is_not_ours_to_forget(host):
    host.run(["grub-editenv", "-", "set", "next_entry=windows"], "choose it")
    loaders.find(host).disarm()
    assert host.environment["next_entry"] == "windows"


# --- systemd-boot -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["tabs", "dos", "bom", "counter", "latin"])
def test_entries_of_systemd_boot_in_any_form(tmp_path, monkeypatch, style):
    class Styled(SimulatedSystemdBoot):
        def menu(self):
            super().menu()
            for path in self.at(self.ENTRIES).glob("t0ken-*"):
                text = path.read_bytes()
                if style == "tabs":
                    text = text.replace(b" ", b"\t ")
                if style == "dos":
                    text = text.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
                if style == "bom" and not text.startswith(b"\xef"):
                    text = b"\xef\xbb\xbf" + text
                if style == "latin" and b"f\xfcr" not in text:
                    text = text.replace(b"Debian", b"Debian f\xfcr uns")
                path.write_bytes(text)

    monkeypatch.setattr(host_tests.kernel_boot, "time", Clock())
    host = Styled(tmp_path)
    if style == "counter":
        path = host.at(f"{host.ENTRIES}/t0ken-{OLD}.conf")
        path.rename(path.with_name(f"t0ken-{OLD}+2-1.conf"))
    assert loaders.look(host).entries == {OLD: f"t0ken-{OLD}.conf"}
    assert host_tests.phase(host, "plan")["reasons"] == []
    host_tests.phase(host, "install")
    loaders.find(host).arm(NEW, ["panic=10"])
    lines = dict(loaders.systemd_boot.parse_lines(host.text(f"{host.ENTRIES}/mkops-trial.conf")))
    assert lines["options"].split() == ["root=/dev/vda1", "ro", "rootwait=60", "panic=10"]
    assert lines["linux"] == f"/t0ken/{NEW}/linux"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"/efi/loader/loader.conf": "preferred\tx*\n"},
            "`preferred` in /efi/loader/loader.conf overrides every default",
        ),
        (
            {"/efi/loader/loader.conf": "default @saved\ntimeout\t\tmenu-force\r\n"},
            "systemd-boot waits for a key",
        ),
    ],
)
def test_settings_of_systemd_boot(tmp_path, change, reason):
    host = SimulatedSystemdBoot(tmp_path)
    for path, text in change.items():
        host.file(path, text)
    assert reason in "; ".join(host_tests.phase(host, "plan")["reasons"])


def test_variables_of_systemd_boot_come_first(tmp_path):
    host = SimulatedSystemdBoot(tmp_path)
    host.set("LoaderConfigTimeout", "menu-force")
    host.set("LoaderEntryPreferred", "x.conf")
    reasons = "; ".join(host_tests.phase(host, "plan")["reasons"])
    assert "systemd-boot waits for a key" in reasons
    assert "systemd-boot prefers x.conf to every default" in reasons


@pytest.mark.parametrize(
    "words", ["single", "systemd.unit=rescue.target", "emergency", "rd.break", "init=/bin/sh"]
)
@pytest.mark.parametrize("kind", [Simulated, SimulatedSystemdBoot])
def test_the_way_back_does_not_end_in_a_rescue_shell(tmp_path, words, kind):
    """An entry for the running kernel that stands before its ordinary one, and is the default."""
    host = kind(tmp_path)
    host.quick = True
    if kind is Simulated:
        host.file("/etc/default/grub", "GRUB_DEFAULT=saved\n")
        host.menu()
        name = f"rescue-{OLD}"
        entry = (
            f"menuentry 'Linux {OLD}, rescue' --id '{name}' {{\n\tlinux /boot/vmlinuz-{OLD} ro {words}\n}}\n"
        )
        host.file(CFG, host.text(CFG).replace("set timeout=5\n", f"set timeout=5\n{entry}"))
        host.run(["grub-editenv", "-", "set", f"saved_entry={name}"], "choose it")
    else:
        name = f"t0ken-{OLD}-a.conf"
        host.file(
            f"{host.ENTRIES}/{name}",
            f"title Rescue\nversion {OLD}\nlinux /t0ken/{OLD}/linux\noptions ro\noptions {words}\n",
        )
        host.set("LoaderEntryDefault", name)
    seen = loaders.look(host)
    assert name != seen.entries[OLD]
    assert seen.releases.get(seen.default) is None
    assert host_tests.phase(host, "plan")["steps"][:1] == [
        f"keep the running kernel as the default, {seen.entries[OLD]}"
    ]


def test_the_entry_that_kernel_install_made_comes_first(tmp_path):
    host = SimulatedSystemdBoot(tmp_path)
    text = host.text(f"{host.ENTRIES}/t0ken-{OLD}.conf")
    host.file(f"{host.ENTRIES}/t0ken-{OLD}-debug.conf", text.replace("ro ", "ro debug "))
    assert loaders.look(host).entries[OLD] == f"t0ken-{OLD}.conf"


def test_a_trial_that_systemd_boot_does_not_take_is_taken_back(tmp_path, monkeypatch):
    host = SimulatedSystemdBoot(tmp_path)
    host_tests.phase(host, "install")
    real = host.set
    monkeypatch.setattr(host, "set", lambda name, text: real(name, text) if "OneShot" not in name else None)
    with pytest.raises(Failure, match="systemd-boot would start its default, although the trial was chosen"):
        loaders.find(host).arm(NEW, ["panic=10"])
    assert host.ours() == ""


def test_a_default_that_systemd_boot_does_not_have(tmp_path):
    host = SimulatedSystemdBoot(tmp_path)
    with pytest.raises(Failure, match=r"is gone\.conf now, which is not in its menu"):
        loaders.find(host).default("gone.conf")


def test_a_boot_partition_that_is_not_mounted(tmp_path, monkeypatch):
    host = SimulatedSystemdBoot(tmp_path)
    run = host.loader_command
    monkeypatch.setattr(
        host, "loader_command", lambda name, words: (1, "") if "--print" in words[0] else run(name, words)
    )
    assert "the EFI system partition is not mounted" in loaders.look(host).faults[0]


def test_a_boot_partition_that_is_full(tmp_path, monkeypatch):
    host = SimulatedSystemdBoot(tmp_path)
    host_tests.phase(host, "install")

    def full(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "mkstemp", full)
    with pytest.raises(Failure, match=r"cannot write /efi/loader/entries/mkops-trial\.conf: No space left"):
        loaders.find(host).arm(NEW, ["panic=10"])
    assert host.variable("LoaderEntryOneShot") == ""
    assert plan.TRIAL_ID not in host.ours()
