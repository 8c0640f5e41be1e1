# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A Debian root file system: what is wished, what is wrong with it, and what it is made of. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..common.files import sha256
from ..common.size import MIB, format_size
from ..common.text import shown
from . import accounts, rootfs

# Raised when the way of making roots changes, so that nothing made the old way is taken for the new.
KEY_FORMAT = 1
# The first of January 2025: what is made here looks as old as that, and nothing is younger.
EPOCH = 1735689600
DAY = EPOCH // 86400
# What a root needs to start and to be logged in to, whatever else is wished.
PACKAGES = ("login", "mount", "passwd", "systemd-sysv", "udev")
# Suites without updates and security updates beside them.
ROLLING = ("sid", "unstable", "experimental", "rc-buggy")
# As the machine is to be used, not to be read about. The licences of packages stay.
EXCLUDED = (
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    "/usr/lib/udev/hwdb.d/*",
)
INCLUDED = ("/usr/share/doc/*/copyright",)
# What does not apply to a spawned kernel: it has no virtual terminals, no hardware clock, no disks of its own
# to look after, and no one who waits for it to fetch updates.
MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "getty-static.service",
    "getty@tty1.service",
    "modprobe@configfs.service",
    "modprobe@drm.service",
    "modprobe@fuse.service",
    "systemd-pstore.service",
    "systemd-update-done.service",
    "ldconfig.service",
    "systemd-journal-catalog-update.service",
)
FORMS = {"initramfs": "root.cpio", "disk": "root", "tar": "root.tar"}
CONSOLES = ("shell", "login", "none")
COMPRESSIONS = {"gzip": ".gz", "zstd": ".zst", "xz": ".xz", "none": ""}
DISKS = ("raw", "qcow2")
LOCALES = ("C", "C.UTF-8", "POSIX")
NETWORKS = ("none", "dhcp")
AGENT = "usr/lib/mkops/kerf-init"
ENTRYPOINT = "usr/lib/mkops/kerf-entrypoint"
UUID_NAMESPACE = "mkops root"
LABEL = "root"  # of the file system
MARGIN = 0.25  # of a disk that is only as large as it has to be
SMALLEST = 64 * MIB

_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(?:=[A-Za-z0-9.+:~-]+)?")
_SUITE = re.compile(r"[a-z][a-z0-9.-]*")
_HOST = re.compile(
    r"(?=.{1,64}$)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*"
)
_UNIT = re.compile(
    r"[A-Za-z0-9:_.\\-]+(?:@[A-Za-z0-9:_.\\-]*)?\.(?:service|socket|target|timer|mount|path|slice)"
)
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*")


@dataclass(frozen=True)
class Deb:
    """A package, as the signed archive has it."""

    name: str
    version: str
    architecture: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class RootWish:
    """All that somebody may say of a root. Files are told by their digests, never by their contents."""

    suite: str
    packages: tuple[str, ...]
    recommends: bool = False
    excluded: tuple[str, ...] = EXCLUDED
    hostname: str = "localhost"
    timezone: str = "UTC"
    locale: str = "C.UTF-8"
    users: tuple[accounts.User, ...] = ()
    network: str = "none"  # one of NETWORKS, or the text of a .network file
    nameservers: tuple[str, ...] = ()
    enabled: tuple[str, ...] = ()
    masked: tuple[str, ...] = MASKED
    console: str = "shell"
    agent: str = ""  # digest of kerf's agent
    overlays: tuple[str, ...] = ()  # digests of directories
    modules: str = ""  # digest of the kernel's modules
    form: str = "initramfs"
    compression: str = "gzip"
    disk: str = "raw"
    size: int | None = None  # bytes of a disk

    def wanted(self) -> tuple[str, ...]:
        """Every package that is asked for by name."""
        more = [*PACKAGES]
        if self.form == "disk":
            more.append("e2fsprogs")
        if self.timezone != "UTC":
            more.append("tzdata")
        if self.modules:
            more.append("kmod")
        return tuple(sorted({*more, *self.packages}))

    def problems(self) -> list[str]:
        """What is wrong with it, all of it."""
        found = []
        if not _SUITE.fullmatch(self.suite):
            found.append(f"suite {shown(self.suite)} is not the name of a suite, such as trixie")
        found += [
            f"package {shown(name)} is not the name of a package, or NAME=VERSION"
            for name in self.packages
            if not _PACKAGE.fullmatch(name)
        ]
        found += [
            f"exclude {shown(path)} is not a path that begins with /"
            for path in self.excluded
            if not path.startswith("/") or "\n" in path
        ]
        if not _HOST.fullmatch(self.hostname):
            found.append(
                f"hostname {shown(self.hostname)} is not a name that a host can have: use up to 64 lower "
                "case letters, "
                "digits, hyphens and dots"
            )
        if not _ZONE.fullmatch(self.timezone):
            found.append(f"timezone {shown(self.timezone)} is not a name such as UTC or Europe/Vienna")
        if self.locale not in LOCALES and "locales-all" not in self.packages:
            found.append(
                f"locale {shown(self.locale)} needs the package locales-all, which is not among the "
                "packages; "
                f"without it there are {', '.join(LOCALES)}"
            )
        if not re.fullmatch(r"[A-Za-z0-9_.@-]+", self.locale):
            found.append(f"locale {shown(self.locale)} is not the name of a locale")
        found += accounts.problems(self.users)
        if self.network not in NETWORKS and "[Match]" not in self.network:
            found.append("network: the file has no section [Match], so systemd-networkd would not use it")
        found += [
            f"nameserver {shown(address)} is not an address"
            for address in self.nameservers
            if not re.fullmatch(r"[0-9.]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*", address)
        ]
        found += [
            f"unit {shown(unit)} is not the name of a unit, such as ssh.service"
            for unit in (*self.enabled, *self.masked)
            if not _UNIT.fullmatch(unit)
        ]
        found += [
            f"unit {unit} cannot be enabled and masked" for unit in sorted({*self.enabled} & {*self.masked})
        ]
        if self.size is not None and self.size < SMALLEST:
            found.append(
                f"size {format_size(self.size)} is too small: no Debian fits into {format_size(SMALLEST)}"
            )
        if self.size is not None and self.size % MIB:
            found.append(f"size {format_size(self.size)} is not a whole number of MiB")
        return found

    def base_facts(self, debs: Sequence[Deb]) -> dict[str, Any]:
        """What decides about the unpacked and configured packages."""
        return {
            "format": KEY_FORMAT,
            "epoch": EPOCH,
            "suite": self.suite,
            "wanted": self.wanted(),
            "recommends": self.recommends,
            "excluded": self.excluded,
            "debs": [list(asdict(deb).values()) for deb in debs],
        }

    def base_key(self, debs: Sequence[Deb]) -> str:
        return _key(self.base_facts(debs))

    def facts(self, debs: Sequence[Deb], tools: Sequence[str]) -> dict[str, Any]:
        """What decides about the result. tools: versions of the programs whose output the bytes depend on."""
        facts = asdict(self)
        # Known from the packages already, or of no account for this form.
        for name in ("suite", "packages", "recommends", "excluded"):
            del facts[name]
        if self.form == "disk":
            del facts["compression"]
        else:
            del facts["disk"], facts["size"]
        return {**facts, "base": self.base_key(debs), "tools": tools, "ours": _OURS}

    def key(self, debs: Sequence[Deb], tools: Sequence[str]) -> str:
        """Same key, same bytes."""
        return _key(self.facts(debs, tools))

    def file_name(self) -> str:
        if self.form == "disk":
            return f"{FORMS['disk']}.{self.disk}"
        return FORMS[self.form] + COMPRESSIONS[self.compression]

    def boot_configuration(self) -> str:
        """For the end of an initramfs: the agent finds on the kernel's command line what it is to start."""
        return f'kernel.kerf.entrypoint = "/{ENTRYPOINT}"\n' if self.agent else ""

    def cmdline(self) -> str:
        """The words that a kernel needs so as to start from it; an initramfs needs none."""
        words = {
            "initramfs": [],
            "disk": ["root=/dev/vda", "rw", "rootwait"],
            "tar": ["rootfstype=virtiofs", "root=root", "rw"],
        }[self.form]
        if self.agent and self.form != "initramfs":
            words.append(f"kerf.entrypoint=/{ENTRYPOINT}")
        return " ".join(words)


def _key(facts: Mapping[str, Any]) -> str:
    return sha256(json.dumps(facts, sort_keys=True))


def package_lines(output: str) -> tuple[Deb, ...]:
    """The packages that apt-get --print-uris install names, sorted. Raises ValueError if it names none."""
    found = re.findall(
        r"^'[^']+' ([^_\s]+)_([^_\s]+)_([^_\s]+)\.deb \d+ SHA256:([0-9a-f]{64})$", output, re.M
    )
    if not found:
        raise ValueError((output.strip() or "no output").splitlines()[-1])
    return tuple(
        sorted(
            (Deb(name, version.replace("%3a", ":"), arch, digest) for name, version, arch, digest in found),
            key=lambda deb: (deb.name, deb.architecture),
        )
    )


def installed(status: str) -> set[tuple[str, str]]:
    """Names and versions in a file /var/lib/dpkg/status."""
    found = set()
    for paragraph in status.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Status): (.*)$", paragraph, re.M))
        if fields.get("Status", "").endswith(" installed"):
            found.add((fields["Package"], fields["Version"]))
    return found


def sources(mirror: str, suite: str, security_mirror: str, updates: bool, keyring: str) -> list[str]:
    """Lines of sources.list(5)."""
    options = f"[signed-by={keyring}] " if keyring else ""
    lines = [f"deb {options}{mirror} {suite} main"]
    if updates and suite not in ROLLING:
        lines.append(f"deb {options}{mirror} {suite}-updates main")
        lines.append(f"deb {options}{security_mirror} {suite}-security main")
    return lines


def debian_sources(suite: str) -> str:
    """Where the root itself gets packages from, in the format of deb822."""
    paragraphs = [("http://deb.debian.org/debian", suite if suite in ROLLING else f"{suite} {suite}-updates")]
    if suite not in ROLLING:
        paragraphs.append(("http://security.debian.org/debian-security", f"{suite}-security"))
    return "\n".join(
        f"Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        for uri, suites in paragraphs
    )


AGENT_UNIT = """\
[Unit]
Description=Commands of kerf exec from the host
DefaultDependencies=no
After=local-fs.target systemd-tmpfiles-setup.service
Before=console-getty.service shutdown.target
Conflicts=shutdown.target

[Service]
Type=notify
NotifyAccess=all
ExecStart=/usr/lib/mkops/agent
KillMode=mixed
TimeoutStartSec=120
RuntimeDirectory=mkops

[Install]
WantedBy=multi-user.target
"""

# The agent mounts /proc and /dev/pts once more than is good: over what systemd has mounted with its options.
AGENT_SCRIPT = f"""\
#!/bin/sh
# kerf's agent mounts what an initramfs lacks, starts what the kernel's command line names, and listens. Once
# it does,
# its file systems on top of those that were there before are taken away again.
/{AGENT} &
agent=$!
until [ -e /run/mkops/started ] && ls -l /proc/$agent/fd | grep -q socket:; do
    kill -0 $agent || exit 1
    sleep 0.1
done
for place in /proc /dev/pts; do
    [ "$(grep -c " $place " /proc/self/mountinfo)" -lt 2 ] || umount "$place"
done
systemd-notify --ready
wait $agent
"""

ENTRYPOINT_SCRIPT = """\
#!/bin/sh
# What kerf's agent starts first, on the console, and ends with. It stays, also when somebody else gets the
# console.
trap '' HUP
: >/run/mkops/started
exec sleep infinity
"""

FACTS_UNIT = """\
[Unit]
Description=Tell the console that this kernel is up, and what it has
After=multi-user.target

[Service]
Type=oneshot
RemainAfterExit=yes
# The prompt of a shell may stand there already, and who resets the terminal may write in between: the line
# and what ends the one before it are written at once.
ExecStart=/bin/sh -c 'facts=$$(/usr/bin/mkops-facts) && printf "\\n%%s\\n" "$$facts"'
StandardOutput=tty
TTYPath=/dev/console

[Install]
WantedBy=graphical.target multi-user.target
"""

KEYS_UNIT = """\
[Unit]
Description=Make the keys of the SSH server at the first start
Before=ssh.service ssh.socket sshd.service
ConditionFileIsExecutable=/usr/bin/ssh-keygen

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/ssh-keygen -A

[Install]
WantedBy=multi-user.target
"""

DHCP = """\
[Match]
Type=ether

[Network]
DHCP=yes
"""

SHELL_DROP_IN = """\
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noreset --noclear --keep-baud 115200,57600,38400,9600 - ${TERM}
"""

# Of ext4 on a disk, said in full: mke2fs is kept from the settings of the machine it runs on, and without
# any it would make a file system without a journal, which does not survive that its kernel dies.
EXT4_FEATURES = (
    "has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,"
    "huge_file,dir_nlink,extra_isize,metadata_csum"
)

# Whoever waits for a line at the console wants it to begin with its first character.
SHELL_INPUTRC = """$include /etc/inputrc
set enable-bracketed-paste off
"""


@dataclass(frozen=True)
class Files:
    """What of this machine goes into a root."""

    facts: str = ""  # the script mkops-facts
    agent: bytes = b""
    overlays: tuple[Path, ...] = ()  # directories
    modules: tuple[Path, ...] = ()  # directories to put at usr/lib/modules


def furnish(tree: rootfs.Tree, wish: RootWish, files: Files) -> None:
    """Make the packages' tree the root that is wished. Raises ValueError with all reasons, or OSError."""
    _leave_nothing_of_the_build(tree, wish.form)
    _name(tree, wish)
    reasons: list[str] = []
    _users(tree, wish.users, reasons)
    enabled = [*wish.enabled]
    enabled += _network(tree, wish)
    enabled += _console(tree, wish.console)
    if files.agent:
        tree.put(AGENT, rootfs.program(files.agent))
        tree.put(ENTRYPOINT, rootfs.text_file(ENTRYPOINT_SCRIPT, 0o755))
        tree.put("usr/lib/mkops/agent", rootfs.text_file(AGENT_SCRIPT, 0o755))
        tree.put("usr/lib/systemd/system/kerf-agent.service", rootfs.text_file(AGENT_UNIT))
        enabled.append("kerf-agent.service")
    if files.facts:
        tree.put("usr/bin/mkops-facts", rootfs.text_file(files.facts, 0o755))
        tree.put("usr/lib/systemd/system/mkops-facts.service", rootfs.text_file(FACTS_UNIT))
        enabled.append("mkops-facts.service")
    if tree.find("usr/sbin/sshd"):
        tree.put("usr/lib/systemd/system/mkops-ssh-keys.service", rootfs.text_file(KEYS_UNIT))
        enabled.append("mkops-ssh-keys.service")
    if wish.form == "disk":
        tree.put("etc/fstab", rootfs.text_file(f"LABEL={LABEL} / ext4 noatime,x-systemd.growfs 0 1\n"))
    for top in files.modules:
        tree.add_directory(top, "usr/lib/modules")
    for top in files.overlays:
        tree.add_directory(top)
    for unit in enabled:
        try:
            tree.enable(unit)
        except ValueError as error:
            reasons += map(str, error.args)
    for unit in wish.masked:
        tree.mask(unit)
    if wish.form == "initramfs":
        # The kernel starts /init.
        tree.put("init", rootfs.link("usr/lib/systemd/systemd"))
    if tree.find("usr/lib/systemd/systemd") is None:
        reasons.append("there is no systemd in the packages")
    if wish.timezone != "UTC" and tree.find(f"usr/share/zoneinfo/{wish.timezone}") is None:
        reasons.append(f"there is no timezone {wish.timezone}")
    if reasons:
        raise ValueError(*reasons)


def _leave_nothing_of_the_build(tree: rootfs.Tree, form: str) -> None:
    """What differs from build to build, or is to be made at the first start."""
    dropped = tree.below("dev") + tree.below("var/lib/apt/lists") + tree.below("run") + tree.below("tmp")
    dropped += [name for name in tree.below("etc/ssh") if name.startswith("etc/ssh/ssh_host_")]
    dropped += [name for name in tree.below("var/log") if tree.entries[name].is_kind(rootfs.FILE)]
    dropped += [
        "etc/apt/sources.list", "etc/resolv.conf", "init", "var/cache/apt/pkgcache.bin",
        "var/cache/apt/srcpkgcache.bin", "var/cache/debconf/templates.dat-old",
        "var/cache/ldconfig/aux-cache",
        "var/cache/debconf/config.dat-old", "var/lib/dpkg/status-old", "var/lib/systemd/random-seed",
    ]  # fmt: skip
    tree.drop(dropped)
    if form == "initramfs":
        # The kernel opens its console before anybody could mount /dev.
        tree.put("dev/console", rootfs.device(5, 1, 0o600))
        tree.put("dev/null", rootfs.device(1, 3, 0o666))
    # Empty, not missing: made at every boot, but the boot is no "first boot", which would preset every unit.
    tree.put("etc/machine-id", rootfs.text_file("", 0o444))


def _name(tree: rootfs.Tree, wish: RootWish) -> None:
    first = wish.hostname.partition(".")[0]
    names = " ".join(dict.fromkeys([wish.hostname, first]))
    tree.put("etc/hostname", rootfs.text_file(f"{wish.hostname}\n"))
    hosts = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
    hosts += f"127.0.1.1 {names}\n" if wish.hostname != "localhost" else ""
    tree.put("etc/hosts", rootfs.text_file(hosts))
    tree.put(
        "etc/localtime",
        rootfs.link(f"/usr/share/zoneinfo/{'Etc/UTC' if wish.timezone == 'UTC' else wish.timezone}"),
    )
    tree.put("etc/timezone", rootfs.text_file(f"{'Etc/UTC' if wish.timezone == 'UTC' else wish.timezone}\n"))
    tree.put("etc/default/locale", rootfs.text_file(f"LANG={wish.locale}\n"))
    tree.put("etc/apt/sources.list.d/debian.sources", rootfs.text_file(debian_sources(wish.suite)))


def _users(tree: rootfs.Tree, users: Sequence[accounts.User], reasons: list[str]) -> None:
    texts = {name: tree.read_text(name) or "" for name in accounts.FILES}
    try:
        changed, ids = accounts.with_users(texts, users, DAY)
    except ValueError as error:
        reasons += map(str, error.args)
        return
    for name, text in changed.items():
        before = tree.find(name)
        if text != texts[name] and before:
            tree.put(name, rootfs.text_file(text, before.mode & 0o7777, before.uid, before.gid))
    for user in users:
        home, (uid, gid) = user.home.lstrip("/"), ids[user.name]
        if user.name != "root":
            tree.put(home, rootfs.directory(0o700, uid, gid))
            for name in tree.below("etc/skel"):
                copied = tree.entries[name]
                tree.put(name.replace("etc/skel", home, 1), rootfs.owned(copied, uid, gid))
        if user.keys:
            tree.put(f"{home}/.ssh", rootfs.directory(0o700, uid, gid))
            keys = "".join(f"{key}\n" for key in user.keys)
            tree.put(f"{home}/.ssh/authorized_keys", rootfs.text_file(keys, 0o600, uid, gid))


def _network(tree: rootfs.Tree, wish: RootWish) -> list[str]:
    servers = "".join(f"nameserver {address}\n" for address in wish.nameservers)
    if tree.find("usr/lib/systemd/systemd-resolved") and not servers:
        tree.put("etc/resolv.conf", rootfs.link("/run/systemd/resolve/stub-resolv.conf"))
    else:
        tree.put("etc/resolv.conf", rootfs.text_file(servers))
    if wish.network == "none":
        return []
    text = DHCP if wish.network == "dhcp" else wish.network
    tree.put("etc/systemd/network/10-mkops.network", rootfs.text_file(text))
    return ["systemd-networkd.service"]


def _console(tree: rootfs.Tree, console: str) -> list[str]:
    """A getty on whatever the kernel's console is: systemd does not know the spawn's tty by its name."""
    tree.mask("serial-getty@.service")
    if console == "none":
        return []
    if console == "shell":
        tree.put("etc/systemd/system/console-getty.service.d/mkops.conf", rootfs.text_file(SHELL_DROP_IN))
        tree.put("root/.inputrc", rootfs.text_file(SHELL_INPUTRC))
    return ["console-getty.service"]


# Of the texts above: they are part of what decides.
_OURS = sha256(
    "".join(
        [
            AGENT_UNIT,
            AGENT_SCRIPT,
            ENTRYPOINT_SCRIPT,
            FACTS_UNIT,
            KEYS_UNIT,
            DHCP,
            SHELL_DROP_IN,
            SHELL_INPUTRC,
            EXT4_FEATURES,
        ]
    )
)
