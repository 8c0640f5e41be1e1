# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.boot import grub as loader
from ansible_collections.mkops.multikernel.plugins.module_utils.boot import plan as kernel_boot

# As update-grub of Debian 13 writes it, shortened.
MENU = """\
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="${saved_entry}"
fi
function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
    save_env saved_entry
  fi
}
  set timeout=5
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple-u1' {
\tinsmod ext2
\tlinux\t/boot/vmlinuz-6.12.9 root=UUID=u1 ro  quiet
\tinitrd\t/boot/initrd.img-6.12.9
}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-u1' {
\tmenuentry 'Debian, with Linux 6.12.9' --class os $menuentry_id_option 'gnulinux-6.12.9-advanced-u1' {
\t\tif [ x$grub_platform = xxen ]; then insmod xzio; fi
\t\techo\t'Loading Linux 6.12.9 ...'
\t\tlinux\t/boot/vmlinuz-6.12.9 root=UUID=u1 ro rootwait quiet
\t\tinitrd\t/boot/initrd.img-6.12.9
\t}
\tmenuentry 'Debian GNU/Linux, 6.12.9 (recovery)' $menuentry_id_option 'gnulinux-6.12.9-recovery-u1' {
\t\tlinux\t/boot/vmlinuz-6.12.9 root=UUID=u1 ro single
\t}
\tmenuentry 'Debian, with Linux 6.1.0' --class os $menuentry_id_option 'gnulinux-6.1.0-advanced-u1' {
\t\tlinux\t/boot/vmlinuz-6.1.0 root=UUID=u1 ro
\t}
}
menuentry 'Memory test' {
\tlinux16 /boot/memtest
}
if [ -f  ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
fi
"""
PATH_NEW = "gnulinux-advanced-u1>gnulinux-6.12.9-advanced-u1"
PATH_OLD = "gnulinux-advanced-u1>gnulinux-6.1.0-advanced-u1"


def test_menu():
    menu = loader.parse_menu(MENU)
    assert (menu.saved_default, menu.once, menu.waits_for_key, menu.reads_custom) == (True, True, False, True)
    assert [(entry.path, entry.release) for entry in menu.entries] == [
        ("gnulinux-simple-u1", "6.12.9"),
        (PATH_NEW, "6.12.9"),
        ("gnulinux-advanced-u1>gnulinux-6.12.9-recovery-u1", "6.12.9"),
        (PATH_OLD, "6.1.0"),
        ("Memory test", ""),
    ]
    assert menu.starts(PATH_OLD) == "6.1.0"
    assert menu.starts("gone") == ""


def test_the_ordinary_entry_is_neither_simple_nor_recovery():
    menu = loader.parse_menu(MENU)
    assert menu.entry("6.12.9").path == PATH_NEW
    assert menu.entry("6.1.0").path == PATH_OLD
    assert menu.entry("6.12") is None
    only_recovery = MENU.replace("gnulinux-6.12.9-advanced", "gnulinux-6.12.9-recovery")
    assert loader.parse_menu(only_recovery).entry("6.12.9") is None


@pytest.mark.parametrize(
    ("change", "attribute", "value"),
    [
        (('set default="${saved_entry}"', 'set default="0"'), "saved_default", False),
        (("save_env next_entry", ""), "once", False),
        (("set timeout=5", "set timeout=-1"), "waits_for_key", True),
        (("source ${config_directory}/custom.cfg", ""), "reads_custom", False),
    ],
)
def test_what_keeps_a_trial_from_being_safe(change, attribute, value):
    assert getattr(loader.parse_menu(MENU.replace(*change)), attribute) is value


def test_environment():
    text = "# GRUB Environment Block\nsaved_entry=a>b=c\nnext_entry=\n####"
    assert loader.parse_environment(text) == {"saved_entry": "a>b=c", "next_entry": ""}


def test_trial_restarts_where_grub_would_wait_for_a_key():
    lines = loader.trial_entry(loader.parse_menu(MENU).entry("6.12.9"), ["panic=10", "mkops.trial=t"])
    assert lines[0] == "menuentry 'Trial of 6.12.9' --id 'mkops-trial' {"
    assert [line.strip() for line in lines[1:]] == [
        "if [ x$grub_platform = xxen ]; then insmod xzio; fi",
        "echo\t'Loading Linux 6.12.9 ...'",
        "if linux\t/boot/vmlinuz-6.12.9 root=UUID=u1 ro rootwait=60 quiet panic=10 mkops.trial=t; then",
        "true",
        "else",
        "reboot",
        "fi",
        "if initrd\t/boot/initrd.img-6.12.9; then",
        "true",
        "else",
        "reboot",
        "fi",
        "boot",
        "reboot",
        "}",
    ]


def test_own_entry_is_found_again_and_its_kernel_known():
    entry = loader.own_entry(loader.parse_menu(MENU).entry("6.1.0"), "isolcpus=2-3 nohz_full=2-3")
    custom = loader.render_custom("", [entry])
    again = loader.parse_menu(custom)
    assert again.starts("mkops-kernel-6.1.0") == "6.1.0"
    assert again.entries[0].cmdline.endswith("ro isolcpus=2-3 nohz_full=2-3")
    assert list(loader.own_entries(custom)) == ["6.1.0"]
    # ... but it is not what the distribution starts the kernel by
    assert again.entry("6.1.0") is None


def test_custom_keeps_what_others_wrote():
    theirs = "menuentry 'x' {\n\tchainloader +1\n}"
    with_ours = loader.render_custom(theirs, [["menuentry 'a' {", "}"]])
    assert with_ours == f"{theirs}\n{loader.BEGIN}\nmenuentry 'a' {{\n}}\n{loader.END}\n"
    changed = loader.render_custom(with_ours + "# more\n", [["menuentry 'b' {", "}"]])
    assert changed == f"{theirs}\n# more\n{loader.BEGIN}\nmenuentry 'b' {{\n}}\n{loader.END}\n"
    assert loader.render_custom(changed, []) == f"{theirs}\n# more\n"


@pytest.mark.parametrize(
    ("cmdline", "bad"),
    [
        ("isolcpus=2-3,managed_irq nohz_full=2-3 root=/dev/vda1 a.b=c:d@e~+", []),
        ("quiet; reboot", ["quiet;"]),
        ("a='b c'", ["a='b", "c'"]),
        ("x=$y {z}", ["x=$y", "{z}"]),
    ],
)
def test_words_that_grub_would_read_as_its_own(cmdline, bad):
    assert kernel_boot.bad_words(cmdline) == bad


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("GRUB_DEFAULT=0\nX=1\n", "GRUB_DEFAULT=saved\nX=1\n"),
        ("X=1\nGRUB_DEFAULT=0\nGRUB_DEFAULT='2'\n", "X=1\nGRUB_DEFAULT=saved\n"),
        ("#GRUB_DEFAULT=0\n", "#GRUB_DEFAULT=0\nGRUB_DEFAULT=saved\n"),
        ("", "GRUB_DEFAULT=saved\n"),
    ],
)
def test_keep_saved(before, after):
    assert loader.keep_saved(before) == after
    assert loader.keep_saved(after) == after
