# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Programs that serve disks and directories: how they are started, and in what confinement.

Each device has a process of its own. It gets the memory of one spawned kernel, and sees what it serves, and
nothing else of the host.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..common.command import must, run
from ..common.errors import Failure
from .declare import Disk, Share
from .record import Record

STORAGE, SHARES = "qemu-storage-daemon", "virtiofsd"
# The first version of each that is known to do what is needed, and where distributions have it.
VERSIONS: Mapping[str, tuple[int, int]] = {STORAGE: (7, 2), SHARES: (1, 10)}
PLACES = ("/usr/libexec", "/usr/lib/qemu", "/usr/lib")
_PACKAGES = {STORAGE: "qemu-system-common or qemu-utils", SHARES: "virtiofsd"}
_VERSION = re.compile(r"\b(\d+)\.(\d+)")
_TIMEOUT = 30.0  # seconds
NOBODY = "nobody"

# What no backend needs. A spawned kernel writes what they read.
_CONFINEMENT = (
    "LimitCORE=0",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "NoNewPrivileges=yes",
    "PrivateDevices=yes",
    "PrivateIPC=yes",
    "PrivateNetwork=yes",
    "PrivateTmp=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectProc=invisible",
    "ProtectSystem=strict",
    "RestrictAddressFamilies=AF_UNIX",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "SystemCallArchitectures=native",
    "UMask=0077",
)


def find_program(name: str) -> str | None:
    return shutil.which(name) or next(
        (path for place in PLACES if os.access(path := f"{place}/{name}", os.X_OK)), None
    )


def program_reasons(record: Record) -> list[str]:
    """Why the devices of an instance cannot be served on this host."""
    reasons = []
    for name, devices in ((STORAGE, record.disks), (SHARES, record.shares)):
        if not devices:
            continue
        path = find_program(name)
        remedy = f"install {_PACKAGES[name]} (role mkops.multikernel.host does with host_devices: true)"
        if path is None:
            reasons.append(f"{name} is not on this host: {remedy}")
            continue
        least = VERSIONS[name]
        said = run([path, "--version"], _TIMEOUT).stdout
        match = _VERSION.search(said)
        if match is None or (int(match[1]), int(match[2])) < least:
            found = match[0] if match else "a version that it does not tell"
            reasons.append(f"{path} is {found}, and {least[0]}.{least[1]} or newer is needed: {remedy}")
    if record.links:
        reasons += [
            f"{path} is not on this host, which network devices need: load the module {module}"
            for path, module in (("/dev/net/tun", "tun"), ("/dev/vhost-net", "vhost_net"))
            if not os.path.exists(path)
        ]
        if shutil.which("nft") is None:
            reasons.append("nft is not on this host: install nftables (role mkops.multikernel.host does)")
    return reasons


@dataclass(frozen=True)
class Service:
    """A program for one device."""

    unit: str  # without .service
    label: str  # of its directory: the address of a socket may have no more than 107 bytes
    argv: tuple[str, ...]
    user: str | None = None  # None: one that is made up for it
    writable: tuple[str, ...] = ()  # what it sees of the host as it is, beside its programs
    readable: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()  # of these, those that are devices
    capabilities: str = ""
    filters: bool = False  # its system calls itself


def disk_service(name: str, place: int, disk: Disk, launcher: Launcher) -> Service:
    """qemu-storage-daemon with a monitor, and nothing that it serves yet.

    It may open what belongs to others, and sees no other files than those of its disk.
    """
    label = f"disk-{place}"
    directory = launcher.directory(label)
    argv = (
        find_program(STORAGE) or STORAGE,
        "--chardev",
        f"socket,path={directory}/qmp.sock,server=on,wait=off,id=qmp",
        "--monitor",
        "chardev=qmp",
    )
    base = (disk.base,) if disk.base else ()
    return Service(
        f"mkops-{name}-{label}",
        label,
        argv,
        writable=() if disk.read_only else (disk.path,),
        readable=(disk.path, *base) if disk.read_only else base,
        devices=tuple(path for path in (disk.path, *base) if _is_device(path)),
        capabilities="CAP_DAC_OVERRIDE",
    )


def _is_device(path: str) -> bool:
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


def share_service(name: str, place: int, share: Share, launcher: Launcher) -> Service:
    """virtiofsd, as the user to whom the directory belongs. Raises Failure: see user_of()."""
    label = f"share-{place}"
    directory = launcher.directory(label)
    argv = [
        find_program(SHARES) or SHARES,
        f"--socket-path={directory}/vhost.sock",
        f"--shared-dir={share.path}",
        # The unit confines it.
        "--sandbox=none",
        # It allows itself less than systemd's filter would, which in turn does not let it do that.
        "--seccomp=kill",
        "--inode-file-handles=never",
        "--announce-submounts",
        "--log-level=warn",
        *(["--readonly"] if share.read_only else []),
    ]
    user = user_of(share)
    return Service(
        f"mkops-{name}-{label}",
        label,
        tuple(argv),
        user,
        () if share.read_only else (share.path,),
        (share.path,) if share.read_only else (),
        (),
        filters=True,
    )


def user_of(share: Share) -> str:
    """Who reads and writes a directory for a spawned kernel. Raises Failure."""
    try:
        owner = os.stat(share.path).st_uid
        if share.user is not None:
            pwd.getpwnam(share.user)
            return share.user
        name = pwd.getpwuid(owner).pw_name
    except OSError as error:
        raise Failure(f"{share.path} cannot be shared: {error.strerror}") from error
    except KeyError:
        who = share.user or f"number {owner}, to whom {share.path} belongs,"
        raise Failure(f"{share.path} cannot be shared: the user {who} does not exist") from None
    if owner == 0:
        if share.read_only:
            return NOBODY
        raise Failure(
            f"{share.path} cannot be shared: it belongs to root, as whom nothing is served: give user, or"
            " give the directory to another user"
        )
    return name


class Launcher:
    """How programs are started and stopped, and where each has its sockets."""

    def __init__(self, base: Path):
        """base: a directory for them, that is there."""
        self._base = base

    def directory(self, label: str) -> Path:
        return self._base / label

    def start(self, service: Service) -> None:
        """The program runs when this returns, and is maybe not ready yet. Raises Failure."""
        directory = self.directory(service.label)
        try:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(mode=0o700)
            if service.user is not None and os.geteuid() == 0:
                os.chown(directory, pwd.getpwnam(service.user).pw_uid, -1)
        except OSError as error:
            raise Failure(f"{directory} cannot be made: {error.strerror}") from error

    def stop(self, service: Service) -> None:
        raise NotImplementedError


class Units(Launcher):
    """Transient units of systemd. They end with the service that has started them."""

    def __init__(self, base: Path, owner: str):
        """owner: a unit."""
        super().__init__(base)
        self._owner = owner

    def start(self, service: Service) -> None:
        super().start(service)
        self._root(service).mkdir(mode=0o755, exist_ok=True)
        must(self.words(service), f"start {service.argv[0]}", timeout=_TIMEOUT)

    def _root(self, service: Service) -> Path:
        """What is the root directory for it: empty, but for what is bound into it."""
        return self._base / f"{service.label}.root"

    def words(self, service: Service) -> list[str]:
        capabilities = service.capabilities
        properties = [
            f"BindsTo={self._owner}",
            "Type=exec",
            f"SyslogIdentifier={service.unit}",
            # Programs alone, and what is to be served. A temporary file system does not do for a root.
            f"RootDirectory={self._root(service)}",
            "MountAPIVFS=yes",
            "BindReadOnlyPaths=/usr -/bin -/lib -/lib64 -/etc/ld.so.cache -/etc/passwd -/etc/group",
            *(
                f"BindPaths={_quoted(path)}"
                for path in (str(self.directory(service.label)), *service.writable)
            ),
            *(f"BindReadOnlyPaths={_quoted(path)}" for path in service.readable),
            *(f"DeviceAllow={_quoted(path)} rw" for path in service.devices),
            *(["DynamicUser=yes"] if service.user is None else [f"User={service.user}"]),
            f"CapabilityBoundingSet={capabilities}",
            *([f"AmbientCapabilities={capabilities}"] if capabilities else []),
            *_CONFINEMENT,
            *([] if service.filters else ["SystemCallFilter=@system-service"]),
            # A share may have many files open at once; virtiofsd wants as many as this.
            "LimitNOFILE=1000000",
        ]
        return [
            "systemd-run",
            "--quiet",
            "--collect",
            f"--unit={service.unit}",
            *(f"--property={one}" for one in properties),
            "--",
            # A dollar sign would stand for a variable.
            *(word.replace("$", "$$") for word in service.argv),
        ]

    def stop(self, service: Service) -> None:
        run(["systemctl", "stop", f"{service.unit}.service"], _TIMEOUT)


def _quoted(path: str) -> str:
    """A path in a list of them: neither blank nor colon ends it."""
    text = path.replace("\\", "\\\\").replace('"', '\\"').replace(":", "\\:")
    return f'"{text}"'


class Children(Launcher):
    """The same as children of this process, for where there is no systemd: nothing confines them."""

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, service: Service) -> None:
        super().start(service)
        try:
            self._running[service.unit] = subprocess.Popen(service.argv, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise Failure(f"cannot start {service.argv[0]}: {error.strerror}") from error

    def stop(self, service: Service) -> None:
        child = self._running.pop(service.unit, None)
        if child:
            child.kill()
            child.wait()


def make_disk(disk: Disk) -> None:
    """Make a disk that is not there yet. Raises Failure, and leaves nothing behind."""
    path = Path(disk.path)
    if disk.size is None or os.path.lexists(path):
        return
    with _made(path):
        if disk.format == "raw":
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(descriptor, disk.size)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        else:
            below = ["-b", disk.base, "-F", disk.base_format] if disk.base else []
            mask = os.umask(0o077)
            try:
                must(
                    ["qemu-img", "create", "-q", "-f", disk.format, *below, disk.path, str(disk.size)],
                    f"make the disk {disk.path}",
                    timeout=_TIMEOUT,
                )
            finally:
                os.umask(mask)


@contextlib.contextmanager
def _made(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        path.unlink(missing_ok=True)
        raise Failure(f"the disk {path} cannot be made: {error.strerror}") from error
    except Failure:
        path.unlink(missing_ok=True)
        raise
