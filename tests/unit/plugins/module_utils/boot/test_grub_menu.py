# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is told of a menu is what GRUB makes of it."""

from __future__ import annotations

import re
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.mkops.multikernel.plugins.module_utils.boot import grub
from ansible_collections.mkops.multikernel.plugins.module_utils.boot.grub_menu import (
    ANY,
    UNSET,
    Files,
    Menu,
    Unclear,
)
from ansible_collections.mkops.multikernel.tests.unit import grub_emu

SIGNATURE = grub.SIGNATURE


def menu_of(text, files=None, platform="", **block):
    known = {"/boot/grub/grubenv": SIGNATURE, **(files or {})}
    return Menu(text, Files(known.get), block, platform)


# Conditions, loops and functions of what GRUB knows by itself, and nothing that only a machine has.

VALUES = st.sampled_from(["a", "b", "a b", "", "$x", "${y}", "0"])
NAMES = st.sampled_from(["x", "y", "default"])
QUOTES = st.sampled_from(['"{}"', "'{}'", "{}"])


@st.composite
def words(draw):
    value = draw(VALUES)
    return draw(QUOTES).format(value) if value else '""'


@st.composite
def conditions(draw):
    one, other = draw(words()), draw(words())
    form = draw(
        st.sampled_from(
            [
                "[ {0} = {1} ]",
                "[ {0} != {1} ]",
                "[ -z {0} ]",
                "[ -n {0} -a {1} = a ]",
                "[ ! {0} = {1} ]",
                "[ {0} = a -o {1} = b ]",
                "test {0} == {1}",
                "true",
                "false",
                "! false",
                "! [ {0} = {1} ]",
                "[ {0} ]",
                "[ -s $prefix/grubenv ]",
                "[ -f $prefix/none ]",
                "[ ( {0} = a ) -a ( {1} = b ) ]",
            ]
        )
    )
    return form.format(one, other)


def statements(depth):
    simple = st.one_of(
        st.builds("set {}={}".format, NAMES, words()),
        st.builds("{}={}".format, NAMES, words()),
        st.builds("unset {}".format, NAMES),
        st.builds("call {}".format, words()),
        st.builds("give {}".format, words()),
        st.just("return"),
        st.just("export x"),
        st.just("load_env"),
        st.builds("save_env {}".format, NAMES),
        st.builds('eval "set y={}"'.format, st.sampled_from(["a", "b"])),
        st.just("source $prefix/other.cfg"),
    )
    if not depth:
        return simple
    inner = st.lists(statements(depth - 1), min_size=1, max_size=2).map("\n".join)
    return st.one_of(
        simple,
        st.builds("if {}; then\n{}\nelse\n{}\nfi".format, conditions(), inner, inner),
        st.builds("if {}; then\n{}\nelif {}; then\n{}\nfi".format, conditions(), inner, conditions(), inner),
        st.builds("for x in {} {}; do\n{}\ndone".format, words(), words(), inner),
    )


FRAME = """\
function give {{
  set default="$1"
}}
function call {{
  if [ "$1" = a ]; then
    set y="$1"
    return
  fi
  set default="$1$x"
}}
load_env
{}
echo "@default:$default:"
echo "@y:$y:"
reboot
"""
OTHER = "if [ $x ]; then\n  set default=other\n  return\nfi\nset y=b\n"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(statements(2), min_size=1, max_size=5).map("\n".join))
def test_a_script_is_run_as_grub_runs_it(tmp_path_factory, script):
    text = FRAME.format(script)
    folder = tmp_path_factory.mktemp("grub")
    (folder / "grub.cfg").write_text(text)
    (folder / "other.cfg").write_text(OTHER)
    block = {"x": "b", "default": "of the block"}
    for name, value in block.items():
        subprocess.run(["grub-editenv", str(folder / "grubenv"), "set", f"{name}={value}"], check=True)
    start = grub_emu.start(folder)
    said = dict(re.findall(r"@(default|y):(.*):$", start.output, re.M))
    try:
        menu = menu_of(text.replace("reboot\n", ""), {"/boot/grub/other.cfg": OTHER}, **block)
    except Unclear:
        return
    if not said:  # `return` ends the script
        assert "return" in script
        return
    for name in ("default", "y"):
        told = menu.state.get(name)
        assert ANY in told or said[name] in {"" if value is UNSET else value for value in told}
    written = grub.parse_environment((folder / "grubenv").read_text())
    for name, value in written.items():
        told = menu.state.block.get(name, frozenset((UNSET,)))
        assert ANY in told or value in {"" if each is UNSET else each for each in told}


@pytest.mark.parametrize(
    ("script", "values"),
    [
        ("if [ $grub_cpu = x86_64 ]; then set default=a; else set default=b; fi", {"a", "b"}),
        ("search --set=root --label x; if [ $root = hd0 ]; then set default=a; fi", {"a", UNSET}),
        ("while [ $root ]; do set default=a; done", {"a", UNSET}),
        ("set default=b; until [ -e (hd0)/x ]; do default=a; done", {"a", "b"}),
        ('if [ "$?" = 0 ]; then set default=a; fi', {"a", UNSET}),
        ("smbios --type 1 --get-string 4 --set default", {ANY}),
        ("for default in a b; do true; done", {"b"}),
        ("for default in $root; do true; done", {ANY, UNSET}),
        ("function f { set default=a; }; if [ -e (hd0)/x ]; then f; fi", {"a", UNSET}),
        ("hwmatch $prefix/list 3; if [ ${match} = 0 ]; then set default=a; fi", {"a", UNSET}),
        ("set default=$root", {ANY}),
        ("default=a; if [ -e (hd0)/x ]; then unset default; fi", {"a", UNSET}),
        ("if [ $grub_platform = pc ]; then set default=a; fi", {"a"}),
    ],
)
def test_where_only_the_machine_knows_both_are_told(script, values):
    assert menu_of(f"{script}\n", platform="pc").default == values


FILES = {"/boot/grub/empty": "", "/boot/grub/more.cfg": "set default='of more'"}
MANY = "".join(f"if [ -e (hd0)/{name} ]; then v={name}; fi; " for name in "abcdefghijklmnopq")
WORDS = "".join(f"if [ -e (hd0)/{name} ]; then {name}=1; fi; " for name in "abcdefg")


@pytest.mark.parametrize(
    ("script", "values"),
    [
        (f"{MANY}set default=$v", {ANY, "q"}),  # too many to name each
        (f"{WORDS}echo $a $b $c $d $e $f $g; default=x", {"x"}),
        ("if [ -e (hd0)/x ]; then v=a; else v=b; fi; w=${v}${v}; default=$w", {"aa", "ab", "ba", "bb"}),
        ("if [ -e (hd0)/x ]; then v=a; else v=b; fi; $v=1; default=$a", {"", "1"}),
        ("if [ -e (hd0)/x ]; then v=1; fi; set default=$v", {"", "1"}),
        ("v='a b'; set default=$v", {ANY}),
        ("set default=a*", {ANY}),
        ('function f { set default="$@"; }; f a', {ANY}),
        ('function f { set default="$0"; }; f a', {ANY}),
        ('function f { set default="$2"; }; f a', {""}),
        ('function f { shift; set default="$1"; }; f a b', {ANY}),
        ("v=; $v; set; set default; ! set x=1; source $prefix/none.cfg; default=x", {"x"}),
        ("$root=1; default=x", {"x"}),
        ("load_env -f (hd0)/env default", {ANY}),
        ("load_env --file=(hd0)/env default", {ANY}),
        ("load_env --file=$prefix/grubenv default", {"saved"}),
        ("load_env other", {UNSET}),
        ("check_signatures=enforce; load_env", {UNSET}),
        ("check_signatures=enforce; load_env --skip-sig", {"saved"}),
        ("save_env -f (hd0)/env x; load_env", {"saved"}),
        ("unset default; save_env default; load_env", {UNSET}),
        ("if [ a = a; then default=x; fi", {"x"}),
        ("if [ a b c d ]; then default=x; fi", {"x"}),
        ("if [ a -lt b ]; then default=x; fi", {"x", UNSET}),
        ("if [ ! = a ]; then default=x; fi", {UNSET}),
        ("if [ -d $prefix ]; then default=x; fi", {"x", UNSET}),
        ("if [ -s $prefix/empty ]; then default=x; fi", {UNSET}),
        ("if [ ! -n '' ]; then default=x; fi", {"x"}),
        ("if [ ! '' ]; then default=x; fi", {"x"}),
        ("if test a = a; then default=x; fi", {"x"}),
        ("export $root; default=x", {"x"}),
        ("source /boot/grub/more.cfg", {"of more"}),  # as a path of the host
        # More values than are told one by one.
        ("if [ -e (hd0)/x ]; then v=a; else v=b; fi; set default=${v}${v}${v}${v}${v}${v}", {ANY}),
    ],
)
def test_words_and_commands(script, values):
    if script.startswith("$root"):
        with pytest.raises(Unclear):
            menu_of(f"{script}\n")
        return
    assert menu_of(f"{script}\n", FILES, default="saved").default == values


def test_without_an_environment_block_nothing_is_loaded_or_saved():
    files = Files({}.get)
    menu = Menu("load_env; set x=1; if save_env x; then default=a; fi\n", files, None)
    assert (menu.default, menu.state.block) == ({UNSET}, {})


@pytest.mark.parametrize(
    ("head", "seen"),
    [
        ("menuentry a --odd", [("a", "a")]),
        ("menuentry --odd a", [("--odd", "--odd")]),
        ("menuentry", []),
        ("menuentry a --class", []),
        ("menuentry a --id --class", []),
        ("menuentry a --class $root --id x", [(None, None)]),
        ("menuentry a --id $root --id x", [(None, None)]),
        ("menuentry $root --id x", [(None, None)]),
        ("menuentry a --users $root", [(None, None)]),
        ("menuentry -- --id", [("--id", "--id")]),
        ("menuentry a -", [("a", "a")]),
    ],
)
def test_heads_of_entries(head, seen):
    menu = menu_of(f"{head} {{ echo x; }}\n")
    assert [(entry.title, entry.ident) for entry in menu.entries] == seen


def test_a_function_is_any_of_those_that_it_may_be():
    files = {f"/boot/grub/{name}": f"function f {{ default={name}; }}" for name in "abc"}
    text = "if [ -e (hd0)/x ]; then source $prefix/a; else source $prefix/b; fi; f\n"
    assert menu_of(text, files).default == {"a", "b"}
    # One that surely comes later takes the place of both.
    assert menu_of(text.replace("; f", "; source $prefix/c; f"), files).default == {"c"}


def test_an_entry_that_a_function_makes_again_is_one():
    menu = menu_of("function f {\n  submenu s { menuentry a { echo a; }; }\n}\nf\nf\n")
    assert [(entry.title, [one.title for one in entry.children]) for entry in menu.entries] == [("s", ["a"])]


def test_an_entry_that_is_made_twice_is_one():
    menu = menu_of("while [ -e (hd0)/x ]; do menuentry a { echo a; }; done\nmenuentry b\n")
    assert [(entry.title, entry.sure) for entry in menu.entries] == [("a", False)]


@pytest.mark.parametrize(
    "text",
    [
        "load_env $root",
        "function f { f; }; f",
        "source $prefix/loop.cfg",
        "eval $root",
        "unset $root",
        "set $root=1",
        "save_env $root",
        "boot",
        # One value goes one variable further with each turn.
        f"while [ -e (hd0)/x ]; do {'; '.join(f'v{n}=$v{n + 1}' for n in range(50))}; v50=1; done",
    ],
)
def test_what_cannot_be_followed(text):
    with pytest.raises(Unclear):
        menu_of(f"{text}\n", {"/boot/grub/loop.cfg": "source $prefix/loop.cfg\n"})


# As update-grub of Ubuntu writes it, shortened.
UBUNTU = """\
### BEGIN /etc/grub.d/00_header ###
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${initrdfail}" = 2 ]; then
   set initrdfail=
elif [ "${initrdfail}" = 1 ]; then
   set next_entry="${prev_entry}"
   set prev_entry=
   save_env prev_entry
   if [ "${next_entry}" ]; then
      set initrdfail=2
   fi
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
function initrdfail {
    if [ -n "${have_grubenv}" ]; then if [ -n "${partuuid}" ]; then
      if [ -z "${initrdfail}" ]; then
        set initrdfail=1
        if [ -n "${boot_once}" ]; then
          set prev_entry="${default}"
          save_env prev_entry
        fi
      fi
      save_env initrdfail
    fi; fi
}
function recordfail {
  set recordfail=1
  if [ -n "${have_grubenv}" ]; then if [ -z "${boot_once}" ]; then save_env recordfail; fi; fi
}
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod vbe
  fi
}
if loadfont unicode ; then
  set gfxmode=auto
  load_video
  insmod gfxterm
fi
terminal_output gfxterm
if [ "${recordfail}" = 1 ] ; then
  set timeout=30
else
  if [ x$feature_timeout_style = xy ] ; then
    set timeout_style=hidden
    set timeout=0
  # Fallback hidden-timeout code in case the timeout_style feature is
  # unavailable.
  elif sleep --interruptible 0 ; then
    set timeout=0
  fi
fi
### END /etc/grub.d/00_header ###
### BEGIN /etc/grub.d/10_linux ###
function gfxmode {
\tset gfxpayload="${1}"
\tif [ "${1}" = "keep" ]; then
\t\tset vt_handoff=vt.handoff=7
\telse
\t\tset vt_handoff=
\tfi
}
if [ "${recordfail}" != 1 ]; then
  if [ -e ${prefix}/gfxblacklist.txt ]; then
    if [ ${grub_platform} != pc ]; then
      set linux_gfx_mode=keep
    elif hwmatch ${prefix}/gfxblacklist.txt 3; then
      if [ ${match} = 0 ]; then
        set linux_gfx_mode=keep
      else
        set linux_gfx_mode=text
      fi
    else
      set linux_gfx_mode=text
    fi
  else
    set linux_gfx_mode=keep
  fi
else
  set linux_gfx_mode=text
fi
export linux_gfx_mode
submenu 'Advanced options for Ubuntu' $menuentry_id_option 'gnulinux-advanced-u1' {
\tmenuentry 'Ubuntu, with Linux 6.8.0-51' $menuentry_id_option 'gnulinux-6.8.0-51-advanced-u1' {
\t\trecordfail
\t\tload_video
\t\tgfxmode $linux_gfx_mode
\t\tinsmod gzio
\t\tif [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
\t\tif [ "${initrdfail}" = 1 ]; then
\t\t\tlinux\t/boot/vmlinuz-6.8.0-51 root=PARTUUID=p1 ro  quiet splash $vt_handoff
\t\t\tinitrd\t/boot/initrd.img-6.8.0-51
\t\telse
\t\t\tlinux\t/boot/vmlinuz-6.8.0-51 root=PARTUUID=p1 ro  quiet splash $vt_handoff panic=-1
\t\tfi
\t\tinitrdfail
\t}
}
if [ "$grub_platform" = "efi" ]; then
\tfwsetup --is-supported
\tif [ "$?" = 0 ]; then
\t\tmenuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {
\t\t\tfwsetup
\t\t}
\tfi
fi
### END /etc/grub.d/10_linux ###
if [ -f  ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
fi
"""
PATH = "gnulinux-advanced-u1>gnulinux-6.8.0-51-advanced-u1"


@pytest.mark.parametrize("platform", ["pc", "efi", ""])
@pytest.mark.parametrize("recordfail", [{}, {"recordfail": "1"}])
def test_ubuntu(tmp_path, platform, recordfail):
    block = dict(recordfail)
    files = {"/boot/grub/gfxblacklist.txt": "x"}
    menu = menu_of(UBUNTU, files, platform, saved_entry=PATH, **block)
    assert (menu.default, menu.waits) == ({PATH}, ())
    entry = grub.ordinary(menu, "6.8.0-51")
    assert (entry.path, grub.not_copied(entry)) == (PATH, "")
    custom = grub.render_custom("", [grub.trial_entry(entry, ["panic=10"])])
    files["/boot/grub/custom.cfg"] = custom
    block |= {"saved_entry": PATH, "next_entry": "mkops-trial"}
    armed = menu_of(UBUNTU, files, platform, **block)
    assert armed.default == {"mkops-trial"}
    after = armed.after(armed.find("mkops-trial"))
    assert (after["saved_entry"], after["next_entry"]) == ({PATH}, {""})
    # ... and GRUB.
    (tmp_path / "grub.cfg").write_text(UBUNTU)
    (tmp_path / "custom.cfg").write_text(custom)
    pairs = [f"{name}={value}" for name, value in block.items()]
    subprocess.run(["grub-editenv", str(tmp_path / "grubenv"), "set", *pairs], check=True)
    first, second = grub_emu.start(tmp_path), grub_emu.start(tmp_path)
    assert first.linux[0].endswith(" panic=-1 rootwait=60 panic=10")
    assert second.linux[0].endswith(" panic=-1")


# As grub2-mkconfig of Fedora writes it, shortened: the entries are files of their own.
FEDORA = """\
### BEGIN /etc/grub.d/00_header ###
if [ -f ${config_directory}/grubenv ]; then
  load_env -f ${config_directory}/grubenv
elif [ -s $prefix/grubenv ]; then
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
set timeout=5
### END /etc/grub.d/00_header ###
### BEGIN /etc/grub.d/10_linux ###
insmod part_gpt
set root='hd0,gpt2'
if [ -z "${kernelopts}" ]; then
  set kernelopts="root=UUID=u1 ro rhgb quiet "
fi
insmod blscfg
blscfg
### END /etc/grub.d/10_linux ###
"""


def test_fedora_with_entries_elsewhere_is_refused_by_name():
    with pytest.raises(Unclear, match=r"/etc/grub\.d/10_linux .*/boot/loader/entries \(blscfg\)"):
        menu_of(FEDORA)


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "menuentry a { echo a; }"])
def test_menus_that_say_little(text):
    menu = menu_of(text)
    assert (menu.default, menu.waits, menu.superusers) == ({UNSET}, ("",), False)


def test_a_variable_that_is_not_exported_is_not_in_a_submenu(tmp_path):
    text = (
        "set id=x\nexport id\nset name=y\nset default='s>x'\nset timeout=0\n"
        'submenu s { menuentry "n$name" --id $id { linux right; }; }\nmenuentry z { linux wrong; }\n'
    )
    (entry, _other) = menu_of(text).everything()
    assert (entry.path, entry.title) == ("s>x", "n")
    (tmp_path / "grub.cfg").write_text(text)
    assert grub_emu.start(tmp_path).linux == ["right"]


def test_an_entry_that_only_the_machine_knows_is_not_relied_on():
    perhaps = "if [ -e (hd0)/x ]; then menuentry a { echo a; }; fi\n"
    menu = menu_of(f"{perhaps}menuentry b {{ echo b; }}\nmenuentry a {{ echo a; }}\n")
    assert [(entry.title, entry.sure) for entry in menu.entries] == [("a", False), ("b", True), ("a", True)]
    assert (menu.find("a"), menu.find("b").title) == (None, "b")


@pytest.mark.parametrize(
    ("timeout", "waits"),
    [("5", False), (" 5 ", False), ("0", False), ("2147483648", True), ("4294967295", True)]
    + [(text, True) for text in ("9" * 30, "-1", "", "²", "soon", "0x")],
)
def test_a_timeout_that_is_none_to_grub_waits(tmp_path, timeout, waits):
    text = f"set timeout='{timeout}'\nmenuentry a {{ linux a; }}\n"
    assert menu_of(text).waits == ((timeout,) if waits else ())
    if timeout in ("0", "2147483648", "4294967295", "9" * 30):
        (tmp_path / "grub.cfg").write_text(text)
        assert grub_emu.start(tmp_path, patience=2).linux == ([] if waits else ["a"])


@pytest.mark.parametrize("word", ["read x", "authenticate x", "exit", "halt", "configfile $prefix/x", "menu"])
def test_an_entry_that_waits_or_leaves(word):
    menu = menu_of(f"function menu {{ fwsetup; }}\nmenuentry a {{\n{word}\nlinux a\n}}\n")
    with pytest.raises(Unclear, match=r"waits for somebody|may leave the entry before its kernel"):
        menu.after(menu.find("a"))
    menu = menu_of("menuentry a { linux a; boot; reboot; }\n")
    assert menu.after(menu.find("a")) == {}


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("source $prefix/other.cfg\nmenuentry a { linux a; }\n", "return\n"),
        ("menuentry a { source $prefix/other.cfg; linux a; }\n", "return\n"),
        ("return\nmenuentry a { linux a; }\n", ""),
        (
            "function f { source $prefix/other.cfg; }\nf\nmenuentry a { linux a; }\n",
            "if true; then return; fi\n",
        ),
    ],
)
def test_a_return_outside_of_a_function(text, other):
    """GRUB may read the file again and again."""
    with pytest.raises(Unclear, match="`return` stands outside of a function"):
        menu = menu_of(text, {"/boot/grub/other.cfg": other})
        menu.after(menu.find("a"))


def test_a_return_in_a_function_ends_that_alone(tmp_path):
    text = "function f { return; }\nf\nset default=a\nset timeout=0\nmenuentry a { f; linux a; }\n"
    menu = menu_of(text)
    assert (menu.default, menu.after(menu.find("a"))) == ({"a"}, {})
    (tmp_path / "grub.cfg").write_text(text)
    assert grub_emu.start(tmp_path).linux == ["a"]


def test_submenus_without_an_end():
    with pytest.raises(Unclear, match="submenus in each other without an end"):
        menu_of("function f { submenu s { f; }; }\nf\n")


def test_what_a_submenu_is_made_of_comes_when_it_is_opened(tmp_path):
    text = (
        "set default='s>l'\nset timeout=0\nfunction f { menuentry x --id x { linux wrong; }; }\n"
        "submenu s { f $i; menuentry l --id $i { linux right; }; }\n"
        "set i=l\nexport i\nfunction f { menuentry y --id y { linux wrong; }; }\n"
        "menuentry z { linux wrong; }\n"
    )
    menu = menu_of(text)
    assert [entry.ident for entry in menu.everything()] == ["y", "l", "z"]
    (tmp_path / "grub.cfg").write_text(text)
    assert grub_emu.start(tmp_path).linux == ["right"]
