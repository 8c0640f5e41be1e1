# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Entries of kernels and those of our own. What is written, GRUB itself checks and starts."""

from __future__ import annotations

import subprocess

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils.boot import grub as loader
from ansible_collections.mkops.multikernel.plugins.module_utils.boot import plan as kernel_boot
from ansible_collections.mkops.multikernel.plugins.module_utils.boot.grub_menu import Files, Menu
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure
from ansible_collections.mkops.multikernel.tests.unit import grub_emu

# As update-grub of Debian 13 writes it, shortened.
MENU = """\
### BEGIN /etc/grub.d/00_header ###
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="${saved_entry}"
fi
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option
function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
    save_env saved_entry
  fi
}
  set timeout=5
### END /etc/grub.d/00_header ###
### BEGIN /etc/grub.d/10_linux ###
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
### END /etc/grub.d/10_linux ###
### BEGIN /etc/grub.d/41_custom ###
if [ -f  ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
fi
### END /etc/grub.d/41_custom ###
"""
PATH_NEW = "gnulinux-advanced-u1>gnulinux-6.12.9-advanced-u1"
PATH_OLD = "gnulinux-advanced-u1>gnulinux-6.1.0-advanced-u1"


def menu_of(text, custom="", **block):
    def read(path):
        return {"/boot/grub/custom.cfg": custom, "/boot/grub/grubenv": "x"}.get(path)

    return Menu(text, Files(read), block, "pc")


def head(text):
    """The menu with the beginning and the end that Debian's has."""
    start, end = (
        MENU.partition("### BEGIN /etc/grub.d/10_linux ###\n")[0],
        MENU[MENU.index("### BEGIN /etc/grub.d/41") :],
    )
    return f"{start}{text}{end}"


def ordinary(text, release):
    return loader.ordinary(menu_of(head(text)), release)


def start(folder, text, custom, prelude=grub_emu.LOAD, patience=30, **block):
    """GRUB starts a machine with these files. Returns what it did."""
    (folder / "grub.cfg").write_text(text)
    if custom:
        (folder / "custom.cfg").write_text(custom)
        subprocess.run(["grub-script-check", str(folder / "custom.cfg")], check=True)
    words = [f"{name}={value}" for name, value in block.items()]
    subprocess.run(["grub-editenv", str(folder / "grubenv"), "set", *words], check=True)
    return grub_emu.start(folder, prelude, patience)


def trial(entry, words=("panic=10",)):
    return loader.render_custom("", [loader.trial_entry(entry, list(words))])


def test_menu():
    menu = menu_of(MENU)
    assert [(entry.path, loader.release_of(entry)) for entry in menu.everything()] == [
        ("gnulinux-simple-u1", "6.12.9"),
        (PATH_NEW, "6.12.9"),
        ("gnulinux-advanced-u1>gnulinux-6.12.9-recovery-u1", "6.12.9"),
        (PATH_OLD, "6.1.0"),
        ("Memory test", ""),
    ]
    assert loader.release_of(menu.find(PATH_OLD)) == "6.1.0"
    assert menu.find("gone") is None


def test_the_ordinary_entry_is_neither_simple_nor_recovery():
    menu = menu_of(MENU)
    assert loader.ordinary(menu, "6.12.9").path == PATH_NEW
    assert loader.ordinary(menu, "6.1.0").path == PATH_OLD
    assert loader.ordinary(menu, "6.12") is None
    only_recovery = MENU.replace("gnulinux-6.12.9-advanced", "gnulinux-6.12.9-recovery")
    assert loader.ordinary(menu_of(only_recovery), "6.12.9") is None


def test_environment():
    text = "# GRUB Environment Block\n# do not edit\nsaved_entry=a>b=c\\\\d\nnext_entry=\n####"
    assert loader.parse_environment(text) == {"saved_entry": "a>b=c\\d", "next_entry": ""}
    with pytest.raises(Failure, match="environment block is damaged"):
        loader.parse_environment("saved_entry=a\n")


@pytest.mark.parametrize("value", ["a>b", "it's", "a\\b", "x=y", "ü #"])
def test_environment_as_grub_writes_it(tmp_path, value):
    path = tmp_path / "grubenv"
    subprocess.run(["grub-editenv", str(path), "set", f"saved_entry={value}", "next_entry=t"], check=True)
    assert loader.parse_environment(path.read_text()) == {"saved_entry": value, "next_entry": "t"}


# What is in a block, and which entry GRUB starts: a, the first one, where it sees no saved_entry.
@pytest.mark.parametrize(
    ("lines", "seen"),
    [
        ("saved_entry=b\n", "b"),
        ("saved_entry=a\nsaved_entry=b\n", "b"),
        ("# x\n#=\nsaved_entry=\\b\n", "b"),
        ("=\nsaved_entry=b\n", "b"),
        ("saved_entry=b\0\n", "b"),
        ("\nsaved_entry=b\n", ""),
        ("by hand\nsaved_entry=b\n", ""),
        ("x=1\\\nsaved_entry=b\n", ""),
        ("saved_entry=b", ""),
        ("#\\\nsaved_entry=b\n", ""),
        (" saved_entry=b\n", ""),
    ],
)
def test_environment_as_grub_reads_it(tmp_path, lines, seen):
    block = f"{loader.SIGNATURE}{lines}".ljust(1024, "#")
    assert loader.parse_environment(block).get("saved_entry", "") == seen
    (tmp_path / "grub.cfg").write_text(head("menuentry a { linux a; }\nmenuentry b { linux b; }\n"))
    (tmp_path / "grubenv").write_text(block)
    assert grub_emu.start(tmp_path).linux == [seen or "a"]


# --- a trial --------------------------------------------------------------------------------------------


def test_trial_restarts_where_grub_would_wait_for_a_key():
    text = loader.trial_entry(loader.ordinary(menu_of(MENU), "6.12.9"), ["panic=10", "mkops.trial=t"])
    lines = text.splitlines()
    assert lines[0] == "menuentry 'Trial of 6.12.9' --class 'os' --unrestricted --id 'mkops-trial' {"
    assert [line.strip() for line in lines[1:] if line.strip()] == [
        "set boot_once=true",
        "if [ x$grub_platform = xxen ]; then insmod xzio; fi",
        "echo\t'Loading Linux 6.12.9 ...'",
        "if linux\t/boot/vmlinuz-6.12.9 root=UUID=u1 ro rootwait=60 quiet panic=10 mkops.trial=t; "
        "then true; else reboot; fi",
        "if initrd\t/boot/initrd.img-6.12.9; then true; else reboot; fi",
        "boot",
        "reboot",
        "}",
    ]


@pytest.mark.parametrize("fail", ["", "linux", "initrd"])
def test_grub_leaves_the_trial_whatever_fails_in_it(tmp_path, fail):
    custom = trial(loader.ordinary(menu_of(MENU), "6.12.9"))
    text = MENU.replace("load_env\n", f"load_env\n  set fail={fail}\n", 1)
    seen = start(tmp_path, text, custom, grub_emu.GO_ON, next_entry="mkops-trial", saved_entry=PATH_OLD)
    assert seen.ended
    assert seen.linux == ["/boot/vmlinuz-6.12.9 root=UUID=u1 ro rootwait=60 quiet panic=10"]
    assert seen.initrd == ([] if fail == "linux" else ["/boot/initrd.img-6.12.9"])
    # ... and the next start is the one before.
    again = grub_emu.start(tmp_path)
    assert again.linux == ["/boot/vmlinuz-6.1.0 root=UUID=u1 ro"]


ALWAYS = "\tlinux /boot/vmlinuz-6.1 root=/dev/vda1 rootwait ro # why\n\tinitrd /boot/initrd.img-6.1\n"
# An entry's body, and what GRUB is to load: the words of the trial come last.
BODIES = {
    "as it is": (ALWAYS, ["/boot/vmlinuz-6.1 root=/dev/vda1 rootwait=60 ro panic=10"]),
    "in a condition": (
        '\tif [ "$grub_platform" = efi ]; then\n\t\tlinuxefi /boot/vmlinuz-6.1 efi\n\telse\n'
        "\t\tlinux /boot/vmlinuz-6.1 bios\n\tfi\n\tinitrd /boot/initrd.img-6.1\n",
        ["/boot/vmlinuz-6.1 bios panic=10"],
    ),
    "all on one line": (
        " if true; then linux /boot/vmlinuz-6.1 a; else echo no; fi ",
        ["/boot/vmlinuz-6.1 a panic=10"],
    ),
    "the condition itself": (
        "\tif linux /boot/vmlinuz-6.1 first; then\n\t\tinitrd /boot/i\n\telse\n"
        "\t\tlinux /boot/vmlinuz-6.1 second\n\tfi\n",
        ["/boot/vmlinuz-6.1 first panic=10"],
    ),
    "a negation": (
        "\tif ! linux /boot/vmlinuz-6.1 first; then\n\t\tlinux /boot/vmlinuz-6.1 second\n\tfi\n",
        ["/boot/vmlinuz-6.1 first panic=10"],
    ),
    "on several lines": (
        "\tlinux /boot/vmlinuz-6.1 \\\n\t\troot=/dev/vda1 \\\n\t\tro\n",
        ["/boot/vmlinuz-6.1 root=/dev/vda1 ro panic=10"],
    ),
    "a loop": (
        '\tfor word in a b; do\n\t\tset words="$words $word"\n\tdone\n\tlinux /boot/vmlinuz-6.1 $words\n',
        ["/boot/vmlinuz-6.1 a b rootwait=60 panic=10"],
    ),
    "a quoted name": ("\t'linux' \"/boot/vmlinuz-6.1\" 'a b'\n", ["/boot/vmlinuz-6.1 a b panic=10"]),
    "words for init": (
        "\tlinux /boot/vmlinuz-6.1 ro -- verbose --\n\tinitrd /boot/initrd.img-6.1\n",
        ["/boot/vmlinuz-6.1 ro panic=10 -- verbose --"],
    ),
    "words that only look so": (
        "\tlinux /boot/vmlinuz-6.1 --- '-- x'\n",
        ["/boot/vmlinuz-6.1 --- -- x panic=10"],
    ),
    "a device": (
        "\tset d=hd0\n\tlinux ($d)/boot/vmlinuz-6.1 x\n",
        ["(hd0)/boot/vmlinuz-6.1 x rootwait=60 panic=10"],
    ),
    "braces in text": (
        "\techo '}' \"{\" # }\n\tlinux /boot/vmlinuz-6.1 a=\\}\n",
        ["/boot/vmlinuz-6.1 a=} panic=10"],
    ),
    "a function of the menu": (
        "\tsavedefault\n\tlinux /boot/vmlinuz-6.1 x\n",
        ["/boot/vmlinuz-6.1 x panic=10"],
    ),
    "ends of lines of DOS": ("\techo a\r\n\tlinux /boot/vmlinuz-6.1 x\r\n", ["/boot/vmlinuz-6.1 x panic=10"]),
}
HEADS = ["menuentry 'Linux 6.1' --id l", 'menuentry "Bob\'s Linux 6.1" --class x --users= --id "l"']


@pytest.mark.parametrize("first", HEADS)
@pytest.mark.parametrize("name", BODIES)
def test_a_copied_entry_keeps_its_structure(tmp_path, name, first):
    body, loads = BODIES[name]
    text = head(f"{first} {{\n{body}}}\n")
    entry = loader.ordinary(menu_of(text), "6.1")
    seen = start(tmp_path, text, trial(entry), next_entry="mkops-trial", saved_entry="l")
    assert (seen.linux, seen.ended) == (loads, True)
    assert loader.parse_environment((tmp_path / "grubenv").read_text()) == {
        "next_entry": "",
        "saved_entry": "l",
    }


def test_words_of_a_command_line_reach_the_kernel_as_they_are(tmp_path):
    """All that a command line may have, by bad_words()."""
    words = ["a.b,c:d=/e@f%g+h~i[j]k!l^m-n", "x=[0-9]", "~", "^a", "!b", "isolcpus=2-3,8", "=", "%", "a=b=c"]
    assert kernel_boot.bad_words(" ".join(words)) == []
    custom = trial(ordinary("menuentry l { linux /boot/vmlinuz-6.1; }\n", "6.1"), words)
    seen = start(tmp_path, head("menuentry l { echo l; }\n"), custom, next_entry="mkops-trial")
    assert seen.linux == [f"/boot/vmlinuz-6.1 {' '.join(words)}"]


def test_a_command_line_that_the_kernel_would_cut_off():
    """What gives a trial up comes last in it."""
    entry = ordinary(f"menuentry l {{ linux /boot/vmlinuz-6.1 {'a' * 2030}; }}\n", "6.1")
    loader.trial_entry(entry, ["panic=10"])
    with pytest.raises(
        Failure, match=r"command line of 6\.1 would have 2048 characters, of which a kernel takes"
    ):
        loader.trial_entry(entry, ["panic=10", "oops=pan"])


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("menuentry l { set c=linux; $c /boot/x; linux /boot/vmlinuz-6.1; }", "which command it runs"),
        ("menuentry l { linux /boot/vmlinuz-6.1 $1; }", "it uses its own arguments"),
        ("menuentry l { if [ $x ]; then return; fi; linux /boot/vmlinuz-6.1; }", "it may end (`return`)"),
        (
            "submenu s --id s { set r=/dev/vda1; menuentry l { linux /boot/vmlinuz-6.1 root=$r; }; }",
            "it uses $r, which is set only in the submenu around it",
        ),
    ],
)
def test_what_cannot_be_copied_is_not(entry, why):
    found = ordinary(f"{entry}\n", "6.1")
    assert loader.not_copied(found).startswith(why)
    with pytest.raises(Failure) as caught:
        loader.trial_entry(found, ["a"])
    assert why in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        "linux /boot/vmlinuz-$v",
        "if [ $x ]; then linux /boot/vmlinuz-6.1; else linux /boot/vmlinuz-6.2; fi",
        "linux",
        "linux /boot/other",
        "chainloader +1",
        "menuentry inner { linux /boot/vmlinuz-6.1; }",
    ],
)
def test_the_kernel_of_an_entry_is_not_guessed(body):
    (entry,) = menu_of(f"menuentry l {{ {body}; }}\n").everything()
    assert loader.release_of(entry) == ""


# --- entries that last ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "path", "title"),
    [
        (
            "menuentry \"Bob's Linux 6.1.0\" $menuentry_id_option 'gnulinux-6.1.0-advanced-u'",
            "gnulinux-6.1.0-advanced-u",
            "Bob's Linux 6.1.0",
        ),
        ("menuentry 'By hand' --id \"my-id\"", "my-id", "By hand"),
        ("menuentry Plain --id=plain", "plain", "Plain"),
        ("menuentry --id 'a b' --class=x Plain\\ one", "a b", "Plain one"),
        ("menuentry 'It'\\''s \"it\"'", 'It\'s "it"', 'It\'s "it"'),
        ("menuentry 'a > b' --hotkey=b --users root", "a >> b", "a > b"),
        ("menuentry \"\\$HOME\" --unrestricted --id='$x  y' extra", "$x  y", "$HOME"),
        ("menuentry Grüße", "Grüße", "Grüße"),
    ],
)
def test_titles_and_ids_however_they_are_quoted(tmp_path, first, path, title):
    text = head(
        f"menuentry first {{ linux first; }}\n{first} {{\n\tlinux /boot/vmlinuz-6.1.0 root=/dev/vda1\n}}\n"
    )
    entry = loader.ordinary(menu_of(text), "6.1.0")
    assert (entry.path, entry.title) == (path, title)
    custom = loader.render_custom("", [loader.own_entry(entry, "quiet isolcpus=1")])
    # By its path GRUB starts the entry, and by the name of ours the entry of our own.
    assert start(tmp_path, text, custom, saved_entry=path).linux == ["/boot/vmlinuz-6.1.0 root=/dev/vda1"]
    own = start(tmp_path, text, custom, saved_entry="mkops-kernel-6.1.0")
    assert own.linux == ["/boot/vmlinuz-6.1.0 root=/dev/vda1 quiet isolcpus=1"]
    again = menu_of(text, custom).find("mkops-kernel-6.1.0")
    assert (again.title, again.unrestricted) == (f"{title}, quiet isolcpus=1", True)


def test_a_name_that_is_a_number_to_grub_selects_nothing(tmp_path):
    text = head("menuentry a { linux /boot/vmlinuz-1; }\nmenuentry 0-b { linux /boot/vmlinuz-6.1; }\n")
    assert start(tmp_path, text, "", saved_entry="0-b").linux == ["/boot/vmlinuz-1"]
    assert loader.ordinary(menu_of(text), "6.1") is None


def test_an_entry_behind_another_of_the_same_name_is_not_taken(tmp_path):
    text = head(
        "menuentry a --id x { linux /boot/vmlinuz-1; }\nmenuentry b --id a { linux /boot/vmlinuz-6.1; }\n"
    )
    assert start(tmp_path, text, "", saved_entry="a").linux == ["/boot/vmlinuz-1"]
    assert loader.ordinary(menu_of(text), "6.1") is None


def test_own_entry_is_found_again_and_its_kernel_known():
    entry = loader.own_entry(loader.ordinary(menu_of(MENU), "6.1.0"), "isolcpus=2-3 nohz_full=2-3")
    custom = loader.render_custom("", [entry])
    again = menu_of(MENU, custom).find("mkops-kernel-6.1.0")
    assert loader.release_of(again) == "6.1.0"
    assert loader.cmdline_of(again).endswith("ro isolcpus=2-3 nohz_full=2-3")
    (own,) = loader.own_entries(custom)
    assert (own.release, own.cmdline, own.text) == ("6.1.0", "isolcpus=2-3 nohz_full=2-3", entry)
    # ... but it is not what the distribution starts the kernel by
    assert loader.ordinary(menu_of(custom), "6.1.0") is None


def test_custom_keeps_what_others_wrote():
    theirs = "menuentry 'x' {\n\tchainloader +1\n}"
    with_ours = loader.render_custom(theirs, ["menuentry a {\n}\n"])
    assert with_ours == f"{theirs}\n{loader.BEGIN}\nmenuentry a {{\n}}\n{loader.END}\n"
    changed = loader.render_custom(with_ours + "# more\n", ["menuentry b {\n}\n"])
    assert changed == f"{theirs}\n# more\n{loader.BEGIN}\nmenuentry b {{\n}}\n{loader.END}\n"
    assert loader.render_custom(changed, []) == f"{theirs}\n# more\n"


def test_what_is_left_of_our_part_is_not_guessed_at():
    with pytest.raises(Failure, match="is incomplete"):
        loader.render_custom(f"{loader.BEGIN}\nmenuentry x {{\n", [])
    with pytest.raises(Failure, match=r"is damaged \(line 2"):
        loader.own_entries(f"{loader.BEGIN}\nmenuentry x {{\n{loader.END}\n")


# What may stand before and behind the title T: GRUB makes an entry w of it, or none at all.
@pytest.mark.parametrize(
    ("words", "made"),
    [
        ("T --id -z --id w", False),
        ("T --id - --id w", False),
        ("T --class -z --id w", False),
        ("T --class - --id w", False),
        ("T --hotkey --unrestricted --id w", False),
        ("T --id w --users", False),
        ("T --unrestricted= --id w", False),
        ("T --unrestricted=x --id w", False),
        ("T --id w --source x", False),
        ("T --id w --source=x", False),
        ("T --id w --id ''", False),
        ("-- T --id w", False),
        ("T --id w -u", False),
        ("T --id w -hu", False),
        ("T --id w --help=x", False),
        ("T --id '' --id w", True),
        ("T --id= --id=w", True),
        ("T --class '' --class= --id w", True),
        ("--odd T --id w", True),
        ("-abc --id w -- T", True),
        ("T --id w --odd=1 -x -hx --helps", True),
        ("--id w -- T --unrestricted=x", True),
        ("T --id w --hotkey=-", True),
    ],
)
def test_options_of_an_entry(tmp_path, words, made):
    text = head(f"menuentry first {{ linux first; }}\nmenuentry {words} {{ linux /boot/vmlinuz-6.1; }}\n")
    assert (menu_of(text).find("w") is not None) is made
    assert start(tmp_path, text, "", saved_entry="w").linux == ["/boot/vmlinuz-6.1" if made else "first"]


# --- who may start what -----------------------------------------------------------------------------------

SUPERUSERS = 'set superusers="boss"\npassword boss secret\n'


@pytest.mark.parametrize(
    ("users", "submenu", "entry", "reason"),
    [
        ("", "", "", ""),
        (SUPERUSERS, "--unrestricted", "--unrestricted", ""),
        (SUPERUSERS, "", "--unrestricted", "add --unrestricted to this submenu in /etc/grub.d/10_linux"),
        (SUPERUSERS, "--unrestricted", "", "add --unrestricted to this menuentry in /etc/grub.d/10_linux"),
        (SUPERUSERS, "--unrestricted", "--unrestricted --users=eve", "add --unrestricted to this menuentry"),
        ("set superusers=\n", "--unrestricted", "", "add --unrestricted to this menuentry"),
        ("export superusers\n", "--unrestricted", "", "add --unrestricted to this menuentry"),
        (SUPERUSERS + "unset superusers\n", "", "", ""),
        (
            "eval 'set superusers=boss'\nexport superusers\n",
            "--unrestricted",
            "",
            "add --unrestricted to this",
        ),
    ],
)
def test_superusers(tmp_path, users, submenu, entry, reason):
    text = MENU.replace("### BEGIN /etc/grub.d/10_linux", f"{users}### BEGIN /etc/grub.d/10_linux")
    text = text.replace("submenu 'Advanced", f"submenu {submenu} 'Advanced").replace(
        "6.12.9' --class os", f"6.12.9' --class os {entry}"
    )
    # GRUB's variables are not passed on to a submenu unless they are exported.
    if "set superusers" in users and "unset" not in users:
        text = text.replace(users, f"{users}export superusers\n")
    menu = menu_of(text)
    found = loader.ordinary(menu, "6.12.9")
    assert reason in loader.locked(menu, found)
    assert bool(loader.locked(menu, found)) is bool(reason)
    assert start(tmp_path, text, "", saved_entry=PATH_NEW).asks is bool(reason)
    # What is ours starts while nobody is there, whatever it was made of.
    custom = loader.render_custom(
        "", [loader.own_entry(found, "quiet"), loader.trial_entry(found, ["panic=10"])]
    )
    for name in ("mkops-kernel-6.12.9", "mkops-trial"):
        seen = start(tmp_path, text, custom, saved_entry=PATH_OLD, next_entry=name)
        assert (seen.asks, len(seen.linux)) == (False, 1)


INNER = "menuentry z { linux /boot/vmlinuz-9; }\nmenuentry l {} {{ linux /boot/vmlinuz-6.1; }}\n"


@pytest.mark.parametrize(
    ("head_of_submenu", "entry", "reason", "linux"),
    [
        ("true", "", "", ["/boot/vmlinuz-6.1"]),
        (SUPERUSERS, "", "add --unrestricted to this menuentry", []),
        (SUPERUSERS, "--unrestricted", "", ["/boot/vmlinuz-6.1"]),
        ("source $prefix/custom.cfg", "", "add --unrestricted to this menuentry", []),
        (
            "set default=0",
            "",
            "sets its own default or timeout (/etc/grub.d/10_linux (line",
            ["/boot/vmlinuz-9"],
        ),
        ("load_env default", "", "sets its own default", ["/boot/vmlinuz-9"]),
        ("set timeout=-1", "", "sets its own default or timeout", []),
        ("unset timeout", "", "sets its own default or timeout", []),
        ("if [ -e (hd0)/none ]; then timeout=9; fi", "", "sets its own default", ["/boot/vmlinuz-6.1"]),
    ],
)
def test_what_a_submenu_does_when_it_is_opened(tmp_path, head_of_submenu, entry, reason, linux):
    inner = INNER.replace("l {}", f"l {entry}").replace("{{", "{").replace("}}", "}")
    text = head(f"### BEGIN /etc/grub.d/10_linux ###\nsubmenu s {{\n{head_of_submenu}\n{inner}}}\n")
    users = SUPERUSERS if "source" in head_of_submenu else ""
    block = {"saved_entry": "s>l", **({"default": "z"} if "load_env" in head_of_submenu else {})}
    menu = menu_of(text, users, **block)
    # custom.cfg is read by the menu itself, too; here it is the submenu that matters
    menu.state.variables.pop("superusers", None)
    found = menu.find("s>l")
    assert reason in loader.locked(menu, found)
    assert bool(loader.locked(menu, found)) is bool(reason)
    text = text.replace("  source ${config_directory}/custom.cfg\n", "  true\n")
    assert start(tmp_path, text, users, patience=30 if linux else 2, **block).linux == linux


@pytest.mark.parametrize(
    ("after", "asks"),
    [
        (f"{SUPERUSERS}export superusers\n", True),
        (SUPERUSERS, False),
        ("set name=superusers\n", False),
        (f"function f {{\n{SUPERUSERS}export superusers\n}}\nf\n", True),
        (f"{SUPERUSERS}export superusers\nunset superusers\n", False),
    ],
)
def test_a_submenu_is_opened_when_all_of_the_menu_was_read(tmp_path, after, asks):
    text = head(f"submenu s --unrestricted {{ menuentry l {{ linux /boot/vmlinuz-6.1; }}; }}\n{after}")
    menu = menu_of(text)
    assert bool(loader.locked(menu, menu.find("s>l"))) is asks
    seen = start(tmp_path, text, "", saved_entry="s>l")
    assert (seen.asks, seen.linux) == (asks, [] if asks else ["/boot/vmlinuz-6.1"])


# --- settings ---------------------------------------------------------------------------------------------


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
        ("X=1\nGRUB_DEFAULT=0\nGRUB_DEFAULT='2'\n", "X=1\nGRUB_DEFAULT=saved\nGRUB_DEFAULT=saved\n"),
        ("#GRUB_DEFAULT=0\n", "#GRUB_DEFAULT=0\nGRUB_DEFAULT=saved\n"),
        ("", "GRUB_DEFAULT=saved\n"),
        ("X=1", "X=1\nGRUB_DEFAULT=saved\n"),
        ("export GRUB_DEFAULT=0 # first\n", "GRUB_DEFAULT=saved\n"),
        ("GRUB_DEFAULT=0\r\nX=1\r\n", "GRUB_DEFAULT=saved\nX=1\r\n"),
        ("GRUB_DEFAULT='a b'\"c\"d#e\n", "GRUB_DEFAULT=saved\n"),
        # Nothing else of a script is lost, and none of its conditions decides.
        *(
            (text, f"{text}GRUB_DEFAULT=saved\n")
            for text in (
                "GRUB_DEFAULT=0; GRUB_TIMEOUT=3\n",
                "GRUB_DEFAULT=0 GRUB_TIMEOUT=3\n",
                'GRUB_DEFAULT="1>\\\n2"\n',
                'GRUB_DEFAULT="a\nb"\n',
                "GRUB_DEFAULT=$(cat /etc/x) && X=1\n",
                "if [ -e /x ]; then\n\tGRUB_DEFAULT=0\nfi\n",
            )
        ),
        ("X='a\u2028b\x0c'\nGRUB_DEFAULT=0\n", "X='a\u2028b\x0c'\nGRUB_DEFAULT=saved\n"),
    ],
)
def test_keep_saved(before, after):
    assert loader.keep_saved(before) == after
    assert loader.keep_saved(after) == after


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ([], ("", "")),
        (["GRUB_TIMEOUT=1\n# GRUB_DEFAULT=0\n"], ("", "")),
        (["GRUB_DEFAULT=0\n"], ("1.cfg", "0")),
        (["GRUB_DEFAULT=saved\n", "export GRUB_DEFAULT='a>b' # c\n"], ("2.cfg", "a>b")),
        (["GRUB_DEFAULT=0\n", 'GRUB_DEFAULT="saved"\n'], ("", "")),
        (["GRUB_DEFAULT='open\n"], ("1.cfg", "'open")),
    ],
)
def test_who_else_sets_the_default(texts, found):
    assert loader.other_default({f"{number}.cfg": text for number, text in enumerate(texts, 1)}) == found


@pytest.mark.parametrize("words", ["x='", "x={", "x=$("])
def test_words_that_grub_would_not_read_make_no_entry(words):
    with pytest.raises(
        Failure, match=r"no entry for GRUB can have the title 'Debian, with Linux 6\.12\.9, x="
    ):
        loader.own_entry(ordinary(MENU, "6.12.9"), words)


def test_what_somebody_wrote_between_our_entries_is_none_of_them():
    entry = loader.own_entry(ordinary(MENU, "6.12.9"), "quiet")
    custom = loader.render_custom("", [f"set x=1\necho y\n{entry}"])
    assert [(one.release, one.cmdline) for one in loader.own_entries(custom)] == [("6.12.9", "quiet")]
