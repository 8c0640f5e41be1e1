# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host that boots kernels: a directory, and commands that do to it what the real ones would.

All that a power cut would keep is in the directory, so that another process may go on with it. It can be cut
at every change: of a file below its root, whoever makes it, and by every command that changes something.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path

from ansible_collections.mkops.multikernel.plugins.module_utils.boot import grub, systemd_boot, trial
from ansible_collections.mkops.multikernel.plugins.module_utils.boot.host import (
    NOTE,
    UNIT_FILES,
    UNIT_LINKS,
    BootHost,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.boot.plan import TRIAL_ID
from ansible_collections.mkops.multikernel.plugins.module_utils.common.command import Done
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure
from ansible_collections.mkops.multikernel.plugins.module_utils.common.live import LIVE_UPDATE
from ansible_collections.mkops.multikernel.plugins.module_utils.common.lock import withdraw_restart
from ansible_collections.mkops.multikernel.tests.unit import grub_emu

OLD, NEW = "6.1.0-old", "6.12.9-new"
HEAD = """\
### BEGIN /etc/grub.d/00_header ###
if [ -s $prefix/grubenv ]; then
  load_env
fi
if [ "${{next_entry}}" ] ; then
   set default="${{next_entry}}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="{default}"
fi
menuentry_id_option="--id"
export menuentry_id_option
set timeout=5
### END /etc/grub.d/00_header ###
"""
ENTRY = """\
menuentry 'Linux {0}' $menuentry_id_option 'gnulinux-{0}-advanced-u' {{
\tlinux /boot/vmlinuz-{0} root=/dev/vda1 ro
}}
"""
TAIL = """\
if [ -f ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
fi
"""
GRUBENV = "/boot/grub/grubenv"
CONFIG = "CONFIG_SOFTLOCKUP_DETECTOR=y\nCONFIG_DETECT_HUNG_TASK=y\nCONFIG_EFIVAR_FS=y\n"
INSTANCES = "/sys/fs/multikernel/instances"
KEXEC_LOADED = "/sys/kernel/kexec_loaded"
# Commands that only look, and words of others that do.
LOOKING = ("dpkg-query", "dpkg-deb", "grub-probe", "journalctl", "/bin/false")
LOOKING_WORDS = {"list", "list-units", "is-system-running", "--print-esp-path", "--print-boot-path"}


def bzimage(*chunks: bytes, sects: int = 4, size: int = 12) -> bytes:
    """A kernel image as far as its header tells: with these chunks after the fixed part of kernel_info."""
    code = b"\x90" * 64  # where kernel_info begins
    tail = b"".join(chunks)
    info = struct.pack("<4sII", b"LToP", size, size + len(tail)) + b"\0" * (size - 12) + tail
    start = bytearray(((sects or 4) + 1) * 512)
    start[0x1F1] = sects
    struct.pack_into("<4sH", start, 0x202, b"HdrS", 0x020F)
    struct.pack_into("<I", start, 0x268, len(code))
    body = (code + info).ljust(512, b"\0")
    struct.pack_into("<I", start, 0x1F4, len(body) // 16)
    return bytes(start) + body


def mark(lowest: int = 1, highest: int = 1) -> bytes:
    """The chunk that says which handovers a kernel adopts."""
    return struct.pack("<4sIII", b"MKLU", 16, lowest, highest)


# GRUB's own programs, which make the same of the same: each is asked once.


@functools.cache
def checked(script: bytes) -> int:
    """What grub-script-check returns."""
    return subprocess.run(["grub-script-check"], input=script, check=False, capture_output=True).returncode


@functools.cache
def edited(block: bytes | None, *words: str) -> bytes:
    """What grub-editenv makes of an environment block, or of none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "grubenv")
        if block is not None:
            path.write_bytes(block)
        subprocess.run(["grub-editenv", str(path), *words], check=True)
        return path.read_bytes()


class Kept(MutableMapping):
    """A dictionary in a file."""

    def __init__(self, path):
        self.path = path

    def _read(self):
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return dict(line.split("=", 1) for line in lines)

    def _write(self, values):
        # As a whole: grub-editenv writes one block, dpkg a new file.
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
        temporary.replace(self.path)

    def __getitem__(self, name):
        return self._read()[name]

    def __setitem__(self, name, value):
        self._write({**self._read(), name: value})

    def __delitem__(self, name):
        values = self._read()
        del values[name]
        self._write(values)

    def __iter__(self):
        return iter(self._read())

    def __len__(self):
        return len(self._read())


class Simulated(BootHost):
    """By GRUB."""

    def __init__(self, root):
        super().__init__(str(root))
        self.commands, self.failing, self.fail_on = [], [], ()
        # What is wrong with NEW: "panic"; "deaf": it runs, but nobody reaches it; "sick": a unit fails.
        self.bad = ""
        self.stuck = False  # it does not go down
        self.quick = False  # it starts without GRUB's own program
        self.trials = 0  # that it and those it is a copy of have had
        self.probes = 0  # in this boot; the time of a trial is over after so many
        self.cut: Callable[[str], None] | None = None
        self.image: str | bytes = "image"  # of the kernels that come
        self.live = False  # it can boot another kernel while instances run on,
        self.why_not = ""  # unless it says why not
        self.refuses = 0  # the errno of kexec
        self.stale = False  # what kexec has loaded is not of now any more when the host goes down
        for path in ("run/systemd/system", "boot/grub", "var/lib/dpkg", "etc/default", "sim"):
            (root / path).mkdir(parents=True, exist_ok=True)
        self.dpkg = Kept(root / "var/lib/dpkg/status")  # package: status and version
        self.sim = Kept(root / "sim/state")  # boots, pending, timer
        (root / "etc/default/grub").write_text("GRUB_DEFAULT=0\n")
        self.add(OLD)
        self.boot()

    # --- what is there ----------------------------------------------------------------------------

    @property
    def debs(self):
        """Releases of the kernels that are installed as packages."""
        return {
            name.removeprefix("linux-image-")
            for name, state in self.dpkg.items()
            if name.startswith("linux-image-") and state.startswith("installed ")
        }

    def file(self, path, text):
        self.at(path).parent.mkdir(parents=True, exist_ok=True)
        self.at(path).write_bytes(text if isinstance(text, bytes) else text.encode())

    def add(self, release, config=CONFIG):
        self.file(f"/boot/vmlinuz-{release}", self.image)
        self.file(f"/boot/config-{release}", config)
        self.dpkg[f"linux-image-{release}"] = "installed 1"
        self.menu()

    def menu(self):
        saved = "GRUB_DEFAULT=saved" in self.text("/etc/default/grub")
        kernels = sorted(path.name.removeprefix("vmlinuz-") for path in self.at("/boot").glob("vmlinuz-*"))
        text = HEAD.format(default="${saved_entry}" if saved else "0")
        # the newest first, as update-grub has it; it writes a new file and moves it
        self.file("/boot/grub/grub.cfg.new", text + "".join(map(ENTRY.format, reversed(kernels))) + TAIL)
        self.at("/boot/grub/grub.cfg.new").replace(self.at("/boot/grub/grub.cfg"))

    @property
    def environment(self):
        """GRUB's environment block."""
        text = self.text(GRUBENV)
        return grub.parse_environment(text) if text else {}

    def ours(self):
        """What of ours the boot menu has."""
        return self.text("/boot/grub/custom.cfg")

    def once(self):
        """The entry that is started once."""
        return self.environment.get("next_entry", "")

    def files(self):
        return {
            str(path): path.read_bytes() if path.is_file() else str(path.readlink())
            for path in self.at("/").rglob("*")
            if (path.is_file() or path.is_symlink()) and not self._apart(path)
        }

    def _apart(self, path):
        """The lock is no change, nor is what the simulation itself keeps."""
        return path.is_relative_to(self.at("/run/mkops")) or path.is_relative_to(self.at("/sim"))

    def left_of_a_trial(self):
        """All that must be gone when a trial is over."""
        found = [path for path in (NOTE, *UNIT_FILES, *UNIT_LINKS) if os.path.lexists(self.at(path))]
        found += ["entry of the trial"] if TRIAL_ID in self.ours() else []
        return found + ([f"once {self.once()}"] if self.once() else [])

    # --- starting ---------------------------------------------------------------------------------

    def boot(self):
        """Start what the boot loader would. Returns what was started. This is not cut off."""
        cut, self.cut = self.cut, None
        started = self.start()
        self.cut = cut
        return started

    def start(self):
        """GRUB itself starts it."""
        if self.quick:
            return self._start_quickly()
        start = grub_emu.start(self.at("/boot/grub"))
        assert start.ended, start.output
        image, *words = start.linux[0].split()
        return self.started(image.removeprefix("/boot/vmlinuz-"), " ".join(words))

    def _start_quickly(self):
        """What GRUB would start: the same, but that nothing is read as a script."""
        menu = self.text("/boot/grub/grub.cfg")
        block = self.environment
        wanted = block.get("next_entry") or (
            block.get("saved_entry", "") if 'default="${saved_entry}"' in menu else ""
        )
        if "next_entry" in block:
            self.loader_command("grub-editenv", ["-", "unset", "next_entry"])
        found = re.split(r"^menuentry ", menu + self.text("/boot/grub/custom.cfg"), flags=re.M)[1:]
        entry = next((text for text in found if f"'{wanted}' {{" in text.splitlines()[0]), found[0])
        image, words = re.search(r"linux (\S+) ([^;\n]*)", entry).groups()
        return self.started(image.removeprefix("/boot/vmlinuz-"), words)

    def copy(self, root):
        """Another one that is as this one is now."""
        shutil.copytree(self.root, root, symlinks=True)
        other = object.__new__(type(self))
        other.__dict__ |= self.__dict__ | {"root": str(root), "commands": [], "cut": None}
        for name in ("dpkg", "sim"):
            path = getattr(self, name).path
            setattr(other, name, Kept(root / path.relative_to(self.root)))
        return other

    def started(self, release, cmdline, by_kexec=False):
        self.probes = 0
        generation = int(self.sim.get("generation", 0)) + 1 if by_kexec else 0
        boots = int(self.sim.get("boots", 0)) + 1
        token = trial.token_of(cmdline)
        timer = bool(token) and self.way_back(token)
        live = {"generation": str(generation), "live": "off"} if self.live else {}
        self.sim._write({"boots": boots, **({"timer": token} if timer else {}), **live})
        # no disk
        shutil.rmtree(self.at("/run/mkops"), ignore_errors=True)
        self.file("/proc/cmdline", cmdline)
        self.file("/proc/sys/kernel/osrelease", release)
        self.file("/proc/sys/kernel/random/boot_id", f"{boots:08x}-0000-0000-0000-000000000000")
        self.file("/proc/filesystems", "nodev\tmultikernel\n" if release == NEW or self.live else "ext4\n")
        if self.live:
            self._take_over(by_kexec)
        if release == NEW and self.bad == "panic" and "panic=" in cmdline:
            self.start()
        return release

    def _take_over(self, by_kexec):
        """Instances that run, run on, if it was by kexec; what else was loaded is lost."""
        if not by_kexec and self.at(INSTANCES).exists():
            shutil.rmtree(self.at(INSTANCES))
        for path in self.at(INSTANCES).glob("*/status"):
            if path.read_text() != "active\n":
                path.write_text("ready\n")
        self._show_live()

    def _show_live(self):
        reason = f"reason {self.why_not}\n" if self.why_not else ""
        adopted = len(list(self.at(INSTANCES).glob("*"))) if self.sim.get("generation", "0") != "0" else 0
        numbers = f"generation {self.sim.get('generation', 0)}\nadopted {adopted}\nlost 0\n"
        self.file(LIVE_UPDATE, f"state {self.sim.get('live', 'off')}\n{numbers}{reason}")
        self.file(KEXEC_LOADED, "1\n" if "kexec" in self.sim else "0\n")

    def become_live(self):
        """From now on its kernels can hand instances over."""
        self.live, self.image = True, bzimage(mark())
        self.file(f"/boot/vmlinuz-{OLD}", self.image)
        self.file("/usr/sbin/kexec", "")
        self.menu()
        self._show_live()

    def instance(self, name, status="active", number=1):
        for file, text in {"id": number, "epoch": 1, "status": status}.items():
            self.file(f"{INSTANCES}/{name}/{file}", f"{text}\n")
        beats = "heartbeat_age_ms 300\n" if status == "active" else ""
        self.file(f"{INSTANCES}/{name}/stats", f"state_since_ms 60500\n{beats}")

    def running_instances(self):
        return [name for name, status in self.instances().items() if status == "active"]

    def tell(self, path, text):
        assert path == LIVE_UPDATE
        assert self.at(path).exists(), "there is no such file"
        if self.cut:
            self.cut(f"tell {path} {text.strip()}")
        loaded = "kexec" in self.sim
        self.sim["live"] = {"1": "loaded" if loaded else "armed", "0": "off"}[text.strip()]
        self._show_live()

    def way_back(self, token):
        """Whether this trial is ended by its units, in whatever mode it stops, by way of the boot loader."""
        if f"Environment={' '.join(trial.BY_THE_LOADER)}\n" not in self.text(UNIT_FILES[1]):
            return False
        links = all(
            self.at(link).is_symlink() and self.at(link).resolve() == self.at(UNIT_FILES[0])
            for link in UNIT_LINKS
        )
        return links and all(trial.unit_token(self.text(path)) == token for path in UNIT_FILES)

    def go_down(self):
        """As it was asked for: by kexec, and by the firmware where the kernel refuses that by then."""
        loaded = json.loads(self.sim.get("kexec", "null"))
        if self.sim.get("pending") != "kexec" or not loaded or self.stale:
            return self.boot()
        cut, self.cut = self.cut, None
        started = self.started(*loaded, by_kexec=True)
        self.cut = cut
        return started

    def wait(self):
        """Time passes: what was asked for happens, or the timer of a trial. Returns what runs then.

        A restart that was announced and does not come in five minutes does not come.
        """
        if (self.sim.get("pending") or self.sim.get("timer")) and not self.stuck:
            self.go_down()
        withdraw_restart(self.lock)
        return self.running()

    def probe(self):
        """What the controller hears when it asks who this is."""
        if self.sim.get("pending") and not self.stuck:
            self.go_down()
            return ""
        self.probes += 1
        if (self.running() == NEW and self.bad == "deaf") or (self.sim.get("timer") and self.probes > 20):
            self.wait()
            return ""
        paths = ("/proc/sys/kernel/random/boot_id", "/proc/sys/kernel/osrelease", "/proc/cmdline")
        return "".join(self.text(path).strip() + "\n" for path in paths)

    # --- commands ---------------------------------------------------------------------------------

    def run(self, argv, purpose, ok=(0,), seconds=600):
        argv = list(argv)
        self.commands.append(argv)
        if self.cut and argv[0] not in LOOKING and not LOOKING_WORDS & set(argv):
            self.cut(" ".join(argv))
        code, output = (1, "") if argv[0] in self.fail_on else self.command(argv)
        if code not in ok:
            raise Failure(f"cannot {purpose}", {"rc": code})
        return Done(tuple(argv), code, output, "")

    def command(self, argv):
        """(return code, output)"""
        name, *words = argv
        if name in ("dpkg", "dpkg-query", "dpkg-deb"):
            return getattr(self, f"_{name.replace('-', '_')}")(words)
        if name in ("systemctl", "systemd-run"):
            return getattr(self, f"_{name.replace('-', '_')}")(words)
        if name == "/bin/false":
            return 1, ""
        if name == "kexec":
            return self._kexec(words)
        if name == "journalctl":
            return 0, ""
        return self.loader_command(name, words)

    def loader_command(self, name, words):
        if name == "grub-probe":
            return 0, "ext2" if "--target=fs" in words else ""
        if name == "update-grub":
            self.menu()
            return 0, ""
        if name == "grub-script-check":
            custom = self.at("/boot/grub/custom.cfg")
            assert words == [str(custom)]
            return checked(custom.read_bytes()), ""
        assert (name, words[0]) == ("grub-editenv", "-")
        block = self.at(GRUBENV)
        edited_block = edited(block.read_bytes() if block.exists() else None, *words[1:])
        # As a whole, and as the other program that it is: all that a cut sees of it is the command.
        cut, self.cut = self.cut, None
        block.write_bytes(edited_block)
        self.cut = cut
        return 0, ""

    def package(self, path):
        """Name of the package in a file, which is called after it, or after its kernel."""
        name = path.rsplit("/", 1)[-1].removesuffix(".deb")
        return name if name.startswith("linux-") else f"linux-image-{name}"

    def _dpkg_query(self, words):
        names = [word for word in words if not word.startswith("--")]
        return 0, "".join(f"{name} {self.dpkg[name]}\n" for name in names if name in self.dpkg)

    def _dpkg_deb(self, words):
        if words[0] == "--contents":
            name = self.package(words[1]).removeprefix("linux-image-")
            files = [("./boot/", "drwxr-xr-x", 0), (f"./boot/vmlinuz-{name}", "-rw-r--r--", 5 << 20)]
            files += [(f"./lib/modules/{name}/boot/x.ko", "-rw-r--r--", 9 << 20)]
            return 0, "".join(
                f"{mode} root/root {size:9} 2026-01-01 10:00 {path}\n" for path, mode, size in files
            )
        return 0, f"Package: {self.package(words[1])}\nInstalled-Size: 20480\n"

    def _dpkg(self, words):
        action, *names = (word for word in words if not word.startswith("--force-"))
        for name in names:
            if action == "--install":
                self._unpack(self.package(name))
            else:
                self._purge(name)
        return 0, ""

    def _unpack(self, name):
        release = name.removeprefix("linux-image-")
        self.dpkg[name] = "half-installed 2"
        if release != name:
            self.file(f"/boot/vmlinuz-{release}", self.image)
            self.file(f"/boot/config-{release}", CONFIG)
            self.menu()
        self.dpkg[name] = "installed 2"

    def _purge(self, name):
        release = name.removeprefix("linux-image-")
        if name in self.dpkg:
            self.dpkg[name] = "half-installed 2"
            for kind in ("vmlinuz", "config"):
                self.at(f"/boot/{kind}-{release}").unlink(missing_ok=True)
            self.menu()
            del self.dpkg[name]

    def failed(self):
        """Units that failed."""
        return [*self.failing, *(["sick.service"] if self.bad == "sick" and self.running() == NEW else [])]

    def _systemctl(self, words):
        action, *names = words
        if action == "list-units":
            return 0, "".join(f"{name} loaded failed failed x\n" for name in self.failed())
        if action == "is-system-running":
            return 0, "running"
        if action == "is-active":
            if names[0].startswith(trial.UNIT):
                return 3, "inactive"
            return (3, "failed") if names[0] in self.failed() else (0, "active")
        if action == "stop":
            self.sim.pop("timer", None)
        if action == "start" and self.way_back(trial.token_of(self.text("/proc/cmdline"))):
            self.sim["timer"] = trial.token_of(self.text("/proc/cmdline"))
        return 0, ""

    def _kexec(self, words):
        """With the handover if it is armed; the kernel looks whether the image can take it."""
        if words == ["-s", "-u"]:
            del self.sim["kexec"]
            self._show_live()
            return 0, ""
        assert words[:2] == ["-s", "-l"]
        image = Path(words[2])
        if self.refuses or (self.sim.get("live") == "armed" and b"MKLU" not in image.read_bytes()):
            return 255, f"kexec_file_load failed: {os.strerror(self.refuses or errno.ENOEXEC)}"
        (line,) = (word.partition("=")[2] for word in words if word.startswith("--command-line="))
        if self.sim.get("live") == "armed":
            self.sim["live"] = "loaded"
        self.sim["kexec"] = json.dumps([image.name.removeprefix("vmlinuz-"), line])
        self._show_live()
        return 0, ""

    def _systemd_run(self, words):
        if words[-1] == "kexec":
            self.sim["pending"] = "kexec"
            return 0, ""
        if words[-1] == "reboot" and not {f"--setenv={word}" for word in trial.BY_THE_LOADER} <= set(words):
            raise AssertionError("with a kernel of kexec this would pass the boot loader by")
        token = trial.token_of(self.text("/proc/cmdline"))
        # The condition of a unit that does not hold: nothing happens, and that is no failure.
        if words[-1] == "reboot" or (token and self.way_back(token)):
            self.sim["pending"] = "1"
        return 0, ""


class SimulatedSystemdBoot(Simulated):
    ENTRIES = "/efi/loader/entries"

    def __init__(self, root):
        self.root = str(root)
        self.set("LoaderInfo", "systemd-boot 257.9")
        super().__init__(root)

    def _variable_path(self, name):
        return self.at(f"/sys/firmware/efi/efivars/{name}-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")

    def set(self, name, text):
        path = self._variable_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if text:
            path.write_bytes(b"\7\0\0\0" + f"{text}\0".encode("utf-16-le"))
        else:
            path.unlink(missing_ok=True)

    def menu(self):
        """kernel-install, for all that is in /boot."""
        kernels = {path.name.removeprefix("vmlinuz-"): path for path in self.at("/boot").glob("vmlinuz-*")}
        for path in self.at(self.ENTRIES).glob("t0ken-*"):
            if path.name.removeprefix("t0ken-").removesuffix(".conf") not in kernels:
                path.unlink()
        for release, path in kernels.items():
            self.file(f"/efi/t0ken/{release}/linux", path.read_bytes())
            self.file(
                f"{self.ENTRIES}/t0ken-{release}.conf",
                f"# kernel-install\ntitle Debian\nversion {release}\noptions root=/dev/vda1 ro rootwait\n"
                f"linux /t0ken/{release}/linux\n",
            )

    def start(self):
        wanted = self.once() or self.variable("LoaderEntryDefault")
        self.set("LoaderEntryOneShot", "")
        paths = sorted(self.at(self.ENTRIES).iterdir(), reverse=True)
        entries = [systemd_boot.parse_entry(path.name, path.read_text(errors="replace")) for path in paths]
        entry = next((entry for entry in entries if entry.ident == wanted), entries[0])
        return self.started(entry.release, entry.value("options"))

    def loader_command(self, name, words):
        if name == "bootctl" and words[0].startswith("--print-"):
            return 0, "/efi\n"
        if name == "bootctl":
            action, entry = words
            self.set("LoaderEntryDefault" if action == "set-default" else "LoaderEntryOneShot", entry)
            return 0, ""
        assert name == "kernel-install", (name, words)
        assert words[0] == "remove" or words[2] == f"/boot/vmlinuz-{words[1]}"
        self.menu()
        return 0, ""

    def ours(self):
        return "".join(path.read_text(errors="replace") for path in self.at(self.ENTRIES).glob("mkops-*"))

    def left_of_a_trial(self):
        entry = self.at(f"{self.ENTRIES}/{TRIAL_ID}.conf").exists()
        return [*super().left_of_a_trial(), *(["file of the trial"] if entry else [])]

    def once(self):
        return self.variable("LoaderEntryOneShot")


# --- cutting --------------------------------------------------------------------------------------

_CHANGES = ("os.rename", "os.remove", "os.symlink")
_watched: list[Simulated] = []


def _audit(event, args):
    if not _watched or not _watched[0].cut:
        return
    host = _watched[0]
    if event in _CHANGES:
        path = args[1] if event in ("os.rename", "os.symlink") else args[0]
    elif event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
        path = args[0]
    else:
        return
    name = str(path).removeprefix(host.root)
    # Of a file that is moved into its place only the move counts, and the lock is no change.
    apart = name.startswith(("/sim", "/proc")) or name.endswith((".mkops", ".tmp", ".new", ".lock"))
    apart = apart or name in (LIVE_UPDATE, KEXEC_LOADED)
    if name != str(path) and not apart and (event != "os.remove" or os.path.lexists(path)):
        host.cut(f"{event} {name}")


sys.addaudithook(_audit)


@contextlib.contextmanager
def cutting(host: Simulated, cut: Callable[[str], None]) -> Iterator[None]:
    """Call this before each change of the host."""
    host.cut = cut
    _watched[:] = [host]
    try:
        yield
    finally:
        _watched.clear()
        host.cut = None
