# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Building a kernel from a Debian source package, a patch series and configuration fragments.

Everything that decides about the result goes into one key; what is built is kept under it:

    CACHE/sources/              source packages, and the private apt state that fetches them
    CACHE/ccache/
    CACHE/kernels/KEY/          packages, vmlinux, config, build.log, manifest.json: complete or not there
    CACHE/kernels/KEY/build/    the tree that it was built in, where that is wanted
    CACHE/kernels/.work/KEY/    a build under way or interrupted
    CACHE/kernels/.work/KEY.{lock,log}
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from ..common.dotconfig import enabled, parse_config
from . import kconfig

if TYPE_CHECKING:
    from .sign import Signer

# Raised when the way of building changes, so that nothing built the old way is taken for the new.
KEY_FORMAT = 1
TINY_BASES = ("tinyconfig", "allnoconfig")
MAKE_BASES = (*TINY_BASES, "defconfig")
RUNNING_BASE = "running"
# Objects per enabled option: measured with the lab profile, used until a build of this cache tells better.
OBJECTS_PER_OPTION = 2.15
FREE_BYTES = 4 << 30
IMAGE = "arch/x86/boot/bzImage"
LISTS_VALID_SECONDS = 24 * 3600
TRASH = "trash-"
NO_SPACE = ("No space left on device", "Disk quota exceeded")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

# What must be there, and the Debian package that brings it.
TOOLS = {
    "gcc": "gcc",
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "patch": "patch",
    "xz": "xz-utils",
    "cpio": "cpio",
    "depmod": "kmod",
    "rsync": "rsync",
    "objcopy": "binutils",
    "/usr/include/gelf.h": "libelf-dev",
    "/usr/include/openssl/opensslv.h": "libssl-dev",
}


@dataclass(frozen=True)
class Format:
    """What a kernel is packed into: a target of the kernel's own make, and what makes it reproducible."""

    make: tuple[str, ...]
    results: str  # pattern of the packages, from the directory that the tree lies in
    tools: Mapping[str, str]  # and the Debian packages that bring them
    unpack: tuple[str, ...]  # makes a tar stream of a package, from standard input to standard output
    # (file, text, what it becomes): dates that nothing else fixes
    edits: tuple[tuple[str, str, str], ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)  # EPOCH stands for the time of the build


_RPM_MACROS = {
    "_buildhost": "build",
    "use_source_date_epoch_as_buildtime": "1",
    # The same, as RPM calls it before 4.20 and since.
    "clamp_mtime_to_source_date_epoch": "1",
    "build_mtime_policy": "clamp_to_source_date_epoch",
    "source_date_epoch_from_changelog": "0",
}
FORMATS = {
    "deb": Format(
        # Only the image: linux-libc-dev, which bindeb-pkg makes as well, would replace the host's own.
        make=("bindeb-pkg", "DPKG_FLAGS=--rules-target=binary-image"),
        results="linux-image-*.deb",
        tools={"dpkg-buildpackage": "dpkg-dev", "dh_builddeb": "debhelper"},
        unpack=("dpkg-deb", "--fsys-tarfile", "-"),
        # The changelog's date would make every package different; SOURCE_DATE_EPOCH is the standard way out.
        edits=(("scripts/package/mkdebian", "$(date -R)", '$(date -R -u -d "@$SOURCE_DATE_EPOCH")'),),
    ),
    "rpm": Format(
        make=(
            "binrpm-pkg",
            # Nobody gets the packages with headers, and that for modules takes its time.
            "RPMOPTS=--without=devel "
            + " ".join(f"--define='{name} {value}'" for name, value in _RPM_MACROS.items()),
        ),
        results="*/rpmbuild/RPMS/*/kernel-[0-9]*.rpm",
        tools={"rpmbuild": "rpm"},
        unpack=("rpm2archive", "--nocompression"),
        edits=(
            ("scripts/package/mkspec", "$(LC_ALL=C date +", '$(LC_ALL=C date -u -d "@$SOURCE_DATE_EPOCH" +'),
        ),
    ),
    "tar": Format(
        make=("tarxz-pkg",),
        results="*/linux-*.tar.xz",
        tools={"tar": "tar"},
        unpack=("xz", "--decompress"),
        environment={
            # The link from the modules to the tree that they were built in would be another one elsewhere.
            "TAR_OPTIONS": "--mtime=@EPOCH --anchored --no-wildcards-match-slash "
            "--exclude=lib/modules/*/build",
            "XZ_OPT": "-T1",
        },
    ),
}


class BuildError(Exception):
    """A failure for the user; details become keys of the result."""

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.details = details


class Stopped(BaseException):
    """SIGTERM or SIGINT: the build is to stop and to leave what can be continued."""


# --- pure part: key, progress, errors -----------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A source archive: known exactly before it is fetched."""

    name: str
    sha256: str
    version: str | None = None  # of the Debian package

    @property
    def kernel_version(self) -> str | None:
        """6.12.107 for the package version 6.12.107-1."""
        match = re.match(r"(?:\d+:)?(\d+\.\d+(?:\.\d+)?)(?:~rc\d+)?(?=[-+~]|$)", self.version or "")
        return match[1] if match else None


@dataclass(frozen=True)
class Inputs:
    """All that decides about the result."""

    source: Source
    series: tuple[tuple[str, str], ...]  # (name, sha256) in order
    base: str  # a make target, or sha256:...
    fragments: tuple[tuple[str, str], ...]  # (name, sha256) in order
    local_version: str
    toolchain: tuple[str, ...]
    package: str = "deb"  # one of FORMATS
    signer: str = ""  # SHA-256 of the certificate

    def key(self) -> str:
        """Same key, same kernel. Names of files are left out: only their contents and order count."""
        facts = {
            "format": KEY_FORMAT,
            "source": [self.source.version, self.source.sha256],
            "series": [digest for _name, digest in self.series],
            "base": self.base,
            "fragments": [digest for _name, digest in self.fragments],
            "local_version": self.local_version,
            "toolchain": self.toolchain,
        }
        # Named only where they are not what they always were.
        facts |= {"package": self.package} if self.package != "deb" else {}
        facts |= {"signer": self.signer} if self.signer else {}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def plain(self) -> dict:
        """As it is read back from a manifest."""
        return json.loads(json.dumps(asdict(self)))

    def local_suffix(self) -> str:
        """What follows the kernel version in the release, so that uname -r names the build."""
        return f"{self.local_version}-{self.key()[:8]}"

    def release(self) -> str | None:
        version = self.source.kernel_version
        return f"{version}{self.local_suffix()}" if version else None


_OBJECT = re.compile(r"^\s+(?:CC|AS)(?:\s+\[M\])?\s+(\S+\.o)$")
_LINK = re.compile(r"^\s+(LD|OBJCOPY|BUILD|KSYMS|SORTTAB|GZIP)\s+(?:\[M\]\s+)?(\S*(?:vmlinux|bzImage)\S*)$")
_PACKAGE = re.compile(r"^dpkg-deb: building package '([^']+)'")


@dataclass
class BuildLog:
    """Counts what make prints."""

    objects: int = 0
    stage: str = "compile"
    detail: str = ""

    def feed(self, line: str) -> None:
        if match := _OBJECT.match(line):
            self.objects += 1
            self.detail = match[1]
        elif match := _LINK.match(line):
            self.stage, self.detail = "link", match[2]
        elif match := _PACKAGE.match(line):
            self.stage, self.detail = "package", match[1]


def expected_objects(config: Mapping[str, str], earlier: Mapping[str, int] | None) -> int:
    """How many objects a build will have, from an earlier one's {"objects", "options"} if there is one."""
    ratio = earlier["objects"] / earlier["options"] if earlier else OBJECTS_PER_OPTION
    return max(1, round(ratio * enabled(config)))


_ERROR = re.compile(
    r"\berror:|\bfatal:|undefined reference|\*\*\* |: No such file|Killed|No space left", re.IGNORECASE
)


def error_lines(log: str, limit: int = 8) -> list[str]:
    """The first lines of a build log that tell what went wrong, else its last ones."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    return [line for line in lines if _ERROR.search(line)][:limit] or lines[-limit:]


def patch_error(name: str, output: str) -> str:
    """Name the file and the hunks that patch(1) rejected."""
    path, rejected = "", []
    for line in output.splitlines():
        if match := re.match(r"(?:patching|checking) file '?(.+?)'?$", line):
            path = match[1]
        elif match := re.match(r"Hunk #(\d+) FAILED at (\d+)", line):
            rejected.append(f"{path} hunk {match[1]} at line {match[2]}")
        elif match := re.match(r"\|(?:---|\+\+\+) (\S+)", line):
            path = match[1]
        elif "can't find file to patch" in line or "ignored" in line:
            rejected.append(f"{path}: {line.strip()}" if path else line.strip())
    reason = "; ".join(rejected) or output.strip()[-500:]
    return f"patch {name} does not apply: {reason}"


def parse_uri_line(output: str) -> tuple[str, str]:
    """(file name, sha256) of what `apt-get --print-uris download` printed."""
    match = re.search(r"^'[^']+' (\S+) \d+ SHA256:([0-9a-f]{64})$", output, re.M)
    if not match:
        raise ValueError(output.strip() or "no output")
    return match[1], match[2]


def deb_version(filename: str) -> str:
    """The version in a package's file name: NAME_VERSION_ARCH.deb, with %3a for a colon."""
    return filename.split("_")[1].replace("%3a", ":")


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def running_configs() -> tuple[Path, ...]:
    """Where the configuration of the running kernel may be."""
    return Path(f"/boot/config-{os.uname().release}"), Path("/proc/config.gz")


def running_config() -> Path | None:
    return next((path for path in running_configs() if path.is_file()), None)


def read_config(path: Path) -> bytes:
    """A configuration file's contents, unpacked; raises OSError or EOFError."""
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def write_whole(path: Path, text: str) -> None:
    """Write a file that has all of the text or is not there, whatever happens meanwhile."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(text)
    temporary.replace(path)


def read_series(directory: Path) -> list[Path]:
    """The patches in order: those of the file `series` if there is one, else *.patch by name."""
    listing = directory / "series"
    if not listing.exists():
        return sorted(directory.glob("*.patch"))
    names = (line.split("#")[0].strip() for line in listing.read_text().splitlines())
    paths = [directory / name for name in names if name]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise BuildError(f"{listing} lists patches that do not exist: {', '.join(missing)}")
    return paths


# --- progress -----------------------------------------------------------------------------------


@dataclass
class Progress:
    """What is told to whoever watches, if anybody does; the file is replaced as a whole every time."""

    path: Path | None
    stage: str = "start"
    done: int = 0
    total: int = 0
    detail: str = ""
    state: str = "running"
    started: float = field(default_factory=time.time)
    _closing: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Progress:
        self.write()
        # A watcher takes a file that no longer changes for a dead build.
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_args: object) -> None:
        self._closing.set()
        if self._thread:
            self._thread.join()
        self.state = "failed" if kind else "done"
        self.write()

    def enter(self, stage: str, detail: str = "") -> None:
        self.stage, self.detail, self.done, self.total = stage, detail, 0, 0
        self.write()

    def _tick(self) -> None:
        # Left to the main thread, which holds them back at times.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        while not self._closing.wait(1):
            self.write()

    def write(self) -> None:
        if not self.path:
            return
        facts = {
            "state": self.state,
            "stage": self.stage,
            "done": self.done,
            "total": self.total,
            "detail": self.detail,
            "seconds": round(time.time() - self.started, 1),
            "pid": os.getpid(),
        }
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.{threading.get_ident()}")
        # A full disk is for the build to find out, which can say so.
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(facts))
            temporary.replace(self.path)


# --- what reaches outside ---------------------------------------------------------------------


def missing_tools(more: Mapping[str, str]) -> list[str]:
    """One reason for all tools that a build needs, these and those of any build, and the machine has not."""
    needed = TOOLS | more
    absent = [tool for tool in needed if not (Path(tool).exists() if tool[0] == "/" else shutil.which(tool))]
    if not absent:
        return []
    packages = " ".join(sorted({needed[tool] for tool in absent}))
    return [f"{', '.join(absent)} missing on the build host; install the packages: {packages}"]


def toolchain() -> tuple[str, ...]:
    """The compiler, assembler and linker by their own words."""

    def first_line(tool: str) -> str:
        return subprocess.run(
            [tool, "--version"], check=True, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"}
        ).stdout.splitlines()[0]

    return tuple(first_line(tool) for tool in ("gcc", "as", "ld"))


def machine_mirror() -> str:
    """The Debian mirror that this machine's own package sources name."""
    argv = ["apt-get", "indextargets", "--no-release-info", "--format=$(REPO_URI)", "Created-By: Packages"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{argv[0]} cannot be run: {error.strerror}", cmd=argv) from error
    for uri in done.stdout.split():
        if uri.rstrip("/").endswith("/debian"):
            return uri.rstrip("/")
    raise BuildError(
        "no mirror was given, and the package sources of this machine name no Debian mirror", cmd=argv
    )


@dataclass(frozen=True)
class Archive:
    """A Debian archive, used through an apt configuration of its own: the machine's is not touched."""

    root: Path
    mirror: str
    suite: str
    keyring: str

    @property
    def _state(self) -> Path:
        name = hashlib.sha256(f"{self.mirror} {self.suite} {self.keyring}".encode()).hexdigest()[:12]
        return self.root / f"apt-{self.suite}-{name}"

    def apt(self, *args: str, cwd: Path | None = None) -> str:
        state = self._state
        for part in ("lists/partial", "cache/archives/partial", "parts"):
            (state / part).mkdir(parents=True, exist_ok=True)
        sources = state / "sources.list"
        entry = f"deb [signed-by={self.keyring}] {self.mirror} {self.suite} main\n"
        if not sources.exists() or sources.read_text() != entry:
            sources.write_text(entry)
        options = {
            "Dir::Etc::sourcelist": sources,
            "Dir::Etc::sourceparts": state / "parts",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": state / "parts",
            "Dir::State": state,
            "Dir::State::lists": state / "lists",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": state / "cache",
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "root",
        }
        argv = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in options.items()), *args]
        done = subprocess.run(
            argv, capture_output=True, text=True, cwd=cwd, check=False, env=os.environ | {"LC_ALL": "C"}
        )
        if done.returncode:
            raise BuildError(
                f"apt-get {args[0]} failed for {self.mirror} {self.suite}: "
                + " ".join(error_lines(done.stderr or done.stdout, 3)),
                cmd=argv,
                rc=done.returncode,
                stdout=done.stdout,
                stderr=done.stderr,
            )
        return done.stdout

    def refresh(self, warn: Callable[[str], None], valid_seconds: int) -> None:
        """Fetch the package lists if they are old; old lists serve when the mirror is away."""
        stamp = self._state / "refreshed"
        if stamp.exists() and time.time() - stamp.stat().st_mtime < valid_seconds:
            return
        try:
            self.apt("update", "-oAPT::Update::Error-Mode=any")
        except BuildError as error:
            if not stamp.exists():
                raise
            warn(f"using package lists of {time.ctime(stamp.stat().st_mtime)}: {error}")
        else:
            stamp.touch()

    def resolve(
        self, package: str, version: str | None, warn: Callable[[str], None], valid_seconds: int
    ) -> Source:
        """The exact source package that is wanted: pinned, or the newest of the suite."""
        pinned = self.root / f"{package}_{(version or '').replace(':', '%3a')}_all.deb.sha256"
        if version and pinned.exists():
            return Source(pinned.name.removesuffix(".sha256"), pinned.read_text().strip(), version)
        self.refresh(warn, valid_seconds)
        wanted = f"{package}={version}" if version else package
        # apt takes a second to read its lists: the same lists give the same answer.
        answer = self._state / f"resolved-{wanted}"
        refreshed = (self._state / "refreshed").stat().st_mtime_ns
        if answer.exists() and answer.stat().st_mtime_ns == refreshed:
            return Source(*json.loads(answer.read_text()))
        try:
            name, digest = parse_uri_line(self.apt("--print-uris", "download", wanted))
        except (BuildError, ValueError) as error:
            raise BuildError(
                f"no source package {wanted} in {self.mirror} {self.suite}: {error}. "
                "Give a package and version that the suite has (apt-cache policy), or source.path"
            ) from None
        source = Source(name, digest, deb_version(name))
        incoming = answer.with_name(f"{answer.name}.{os.getpid()}")
        incoming.write_text(json.dumps([source.name, source.sha256, source.version]))
        os.utime(incoming, ns=(refreshed, refreshed))
        incoming.replace(answer)
        return source

    def fetch(self, source: Source, package: str) -> Path:
        path = self.root / source.name
        if not path.exists():
            incoming = self.root / f".incoming-{os.getpid()}"
            incoming.mkdir()
            try:
                self.apt("download", f"{package}={source.version}", cwd=incoming)
                (incoming / source.name).replace(path)
            finally:
                shutil.rmtree(incoming, ignore_errors=True)
        if (digest := sha256_file(path)) != source.sha256:
            raise BuildError(f"{path} has sha256 {digest}, expected {source.sha256}; remove it and try again")
        write_whole(path.with_name(f"{path.name}.sha256"), source.sha256 + "\n")
        return path


def local_source(path: Path, checksum: str) -> Source:
    """A source archive that is on the build host already: .deb or .tar.*, checked against sha256:HEX."""
    digest = sha256_file(path)
    if digest != checksum.removeprefix("sha256:").lower():
        raise BuildError(f"source.path {path} has sha256 {digest}, but source.checksum says {checksum}")
    version = None
    if path.suffix == ".deb":
        version = run(["dpkg-deb", "-f", str(path), "Version"], f"read the version of {path}").strip()
    return Source(path.name, digest, version)


def run(
    argv: Sequence[str], purpose: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Run a short command; its failure says what it was for."""
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        errors="replace",
        cwd=cwd,
        check=False,
        env=env or os.environ | {"LC_ALL": "C"},
        # What works in a tree holds its lock, should this process be killed.
        close_fds=False,
    )
    if done.returncode:
        raise BuildError(
            f"cannot {purpose}: " + " | ".join(error_lines(done.stderr + done.stdout)),
            cmd=list(argv),
            rc=done.returncode,
            stdout=done.stdout[-4000:],
            stderr=done.stderr[-4000:],
        )
    return done.stdout


def unpack(archive: Path, directory: Path) -> Path:
    """Unpack a source package or archive, or copy a tree; returns the one directory in it."""
    if archive.is_dir():
        run(["cp", "-a", "--reflink=auto", str(archive), str(directory / "linux")], f"copy {archive}")
    elif archive.suffix == ".deb":
        package = directory / "package"
        run(["dpkg-deb", "-x", str(archive), str(package)], f"unpack {archive}")
        inner = sorted(package.glob("usr/src/linux-source-*.tar.*"))
        if len(inner) != 1:
            raise BuildError(f"{archive} is no linux-source package: {len(inner)} archives in /usr/src")
        run(["tar", "-xf", str(inner[0]), "-C", str(directory)], f"unpack {inner[0].name}")
        shutil.rmtree(package)
    else:
        run(["tar", "-xf", str(archive), "-C", str(directory)], f"unpack {archive}")
    trees = [path for path in directory.iterdir() if (path / "Kbuild").is_file()]
    if len(trees) != 1:
        raise BuildError(f"{archive} holds {len(trees)} kernel trees at its top, expected one")
    return trees[0]


def apply_patch(tree: Path, patch: Path, name: str) -> None:
    strict = ["--batch", "--forward", "--fuzz=0", "--no-backup-if-mismatch", "--reject-file=-"]
    try:
        run(["patch", "-p1", *strict, "-i", str(patch)], "apply", tree)
    except BuildError as error:
        message = patch_error(name, f"{error.details['stdout']}{error.details['stderr']}")
        raise BuildError(message, patch=str(patch), **error.details) from None


def kconfig_texts(tree: Path) -> list[str]:
    """All Kconfig files that count for x86."""
    foreign = tree / "arch"
    return [
        path.read_text(errors="replace")
        for path in sorted(tree.rglob("Kconfig*"))
        if path.is_file()
        and (foreign not in path.parents or path.parent == foreign or foreign / "x86" in path.parents)
    ]


def no_such_symbols(tree: Path, symbols: set[str]) -> set[str]:
    """Which of these symbols no Kconfig file of the tree defines."""
    absent = set(symbols)
    for directory, _folders, files in os.walk(tree):
        for name in files:
            if name.startswith("Kconfig"):
                text = Path(directory, name).read_text(errors="replace")
                absent -= set(re.findall(r"^\s*(?:menu)?config\s+(\w+)", text, re.M))
        if not absent:
            break
    return absent


def discard(tree: Path) -> None:
    """Remove a source tree, which takes a busy disk minutes, without anybody having to wait for it."""
    if not tree.name.startswith(TRASH):
        tree = tree.rename(tree.with_name(f"{TRASH}{tree.name}-{os.getpid()}"))
    subprocess.Popen(
        ["rm", "-rf", str(tree)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@dataclass
class Cache:
    root: Path

    @property
    def kernels(self) -> Path:
        return self.root / "kernels"

    def work(self, key: str, suffix: str = "") -> Path:
        return self.kernels / ".work" / f"{key}{suffix}"

    def manifest(self, key: str) -> dict | None:
        """The manifest of a build that is complete and unharmed."""
        directory = self.kernels / key
        try:
            manifest = json.loads((directory / "manifest.json").read_text())
            whole = all(sha256_file(directory / name) == digest for name, digest in manifest["files"].items())
        except (OSError, ValueError, KeyError):
            return None
        return manifest if whole else None

    def latest(self) -> dict | None:
        """The manifest of the newest build, for the estimate and the diff."""
        found = sorted(self.kernels.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime)
        try:
            return json.loads(found[-1].read_text()) if found else None
        except ValueError:
            return None

    @contextlib.contextmanager
    def lock(self, key: str, waiting: Callable[[], None]) -> Iterator[int]:
        """One build per key. What a run starts inherits the lock: what a killed one leaves still holds it."""
        path = self.work(key, ".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.set_inheritable(descriptor, True)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def drop_abandoned(self, key: str) -> None:
        """Unfinished trees of other keys are large: remove those that nobody works in, and old progress."""
        for left in self.work(key).parent.glob("progress-*.json"):
            if time.time() - left.stat().st_mtime > 3600:
                left.unlink(missing_ok=True)
        for tree in self.work(key).parent.glob("*/"):
            if tree.name == key:
                continue
            if tree.name.startswith(TRASH):
                discard(tree)  # once more, should it have been interrupted
                continue
            descriptor = os.open(self.work(tree.name, ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                discard(tree)
            finally:
                os.close(descriptor)


@dataclass
class Builder:
    """One build: every stage leaves a tree that a later run can take up, or none."""

    cache: Cache
    inputs: Inputs
    patches: Sequence[Path]
    base_file: Path | None
    fragments: Sequence[Path]
    wanted: Mapping[str, kconfig.Option]
    jobs: int
    ccache: bool
    suite: str
    fetch: Callable[[], Path]
    progress: Progress = field(default_factory=lambda: Progress(None))
    signer: Signer | None = None
    keep_tree: bool = False

    def __post_init__(self) -> None:
        self.format = FORMATS[self.inputs.package]
        self.key = self.inputs.key()
        self.work = self.cache.work(self.key)
        self.log = self.cache.work(self.key, ".log")

    def build(self) -> tuple[dict, bool]:
        """The manifest, and whether this run made it. Raises BuildError, OSError or Stopped."""
        try:
            return self._build()
        except (BuildError, OSError) as error:
            if not any(text in str(error) for text in NO_SPACE):
                raise
            there = os.statvfs(self.cache.root)
            raise BuildError(
                f"there is no space left: {self.cache.root} has "
                f"{there.f_bavail * there.f_frsize >> 20} MiB and {there.f_favail} files free, a build needs "
                f"{FREE_BYTES >> 20} MiB; make room, and the next run continues the build\n{error}",
                **getattr(error, "details", {}),
            ) from error

    def _build(self) -> tuple[dict, bool]:
        self.log.parent.mkdir(parents=True, exist_ok=True)

        def waiting() -> None:
            self.progress.enter("wait", "for another build of the same kernel")

        with self.progress, self.cache.lock(self.key, waiting) as lock:
            if manifest := self.cache.manifest(self.key):
                return manifest, False
            started = time.monotonic()
            self.cache.drop_abandoned(self.key)
            tree, timestamp = self._tree()
            environment = self._environment(tree, timestamp)
            config = self._configure(tree, environment)
            self.log.unlink(missing_ok=True)
            if self.signer:
                # One that an earlier run has signed would have two signatures in the end.
                (tree / IMAGE).unlink(missing_ok=True)
            with self.signer.for_modules(tree, config) if self.signer else contextlib.nullcontext():
                objects = self._make(tree, environment, config, lock)
                if self.signer:
                    self._sign(tree, environment, config, lock)
            return self._collect(tree, config, objects, time.monotonic() - started), True

    def _tree(self) -> tuple[Path, int]:
        """The patched source, and the time that the build is dated with: that of the unpatched Makefile."""
        ready = self.work / "ready.json"
        if ready.exists():
            facts = json.loads(ready.read_text())
            return self.work / facts["tree"], facts["timestamp"]
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        if (free := shutil.disk_usage(self.work).free) < FREE_BYTES:
            raise BuildError(
                f"{self.work} has {free >> 20} MiB free, a build needs {FREE_BYTES >> 20} MiB; "
                "make room or give another cache_dir"
            )
        self.progress.enter("fetch", self.inputs.source.name)
        archive = self.fetch()
        self.progress.enter("unpack", archive.name)
        tree = unpack(archive, self.work)
        timestamp = int((tree / "Makefile").stat().st_mtime)
        self.progress.enter("patch", f"{len(self.patches)} patches")
        for patch in self.patches:
            apply_patch(tree, patch, patch.name)
        for name, text, replaced in self.format.edits:
            (tree / name).write_text((tree / name).read_text().replace(text, replaced))
        write_whole(ready, json.dumps({"tree": tree.name, "timestamp": timestamp}))
        return tree, timestamp

    def _environment(self, tree: Path, timestamp: int) -> dict[str, str]:
        """The environment of make: nothing of the caller's may leak into the kernel."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.work),
            "LC_ALL": "C",
            "LANG": "C",  # as rpmbuild sets it: ccache takes another language for another compilation
            "TZ": "UTC",
            "SOURCE_DATE_EPOCH": str(timestamp),
            "KBUILD_BUILD_TIMESTAMP": time.strftime("%a %b %e %H:%M:%S UTC %Y", time.gmtime(timestamp)),
            "KBUILD_BUILD_USER": "mkops",
            "KBUILD_BUILD_HOST": "build",
            "DEBFULLNAME": "mkops",
            "DEBEMAIL": "mkops@localhost",
            "KDEB_PKGVERSION": self.inputs.source.version or "1-1",
            "KDEB_CHANGELOG_DIST": self.suite,
            "LOCALVERSION": self.inputs.local_suffix(),
            "GIT_CEILING_DIRECTORIES": str(tree.parent),
            "GIT_CONFIG_NOSYSTEM": "1",  # mkspec asks git for a name
            "CCACHE_DIR": str(self.cache.root / "ccache"),
            "CCACHE_BASEDIR": str(tree),
            "CCACHE_NOHASHDIR": "true",
            # A first build costs what it does without ccache, not half as much again. The price: only objects
            # of the same configuration are found again.
            "CCACHE_DEPEND": "true",
            "CCACHE_INODECACHE": "true",  # every header is read once, not for every object
            **{
                name: value.replace("EPOCH", str(timestamp))
                for name, value in self.format.environment.items()
            },
        }

    def _argv(self, *targets: str) -> list[str]:
        compiler = ["CC=ccache gcc", "HOSTCC=ccache gcc"] if self.ccache else []
        return ["make", f"-j{self.jobs}", "ARCH=x86", *compiler, *targets]

    def _configure(self, tree: Path, environment: Mapping[str, str]) -> dict[str, str]:
        """Merge the fragments over the base and assert that every wanted line survived."""
        self.progress.enter("configure", self.inputs.base)
        base = tree / ".mkops-base.config"
        if self.base_file:
            base.write_bytes(read_config(self.base_file))
        else:
            run(self._argv(self.inputs.base), f"make {self.inputs.base}", tree, environment)
            (tree / ".config").replace(base)
        # What nobody asked for is off over a tiny base, at its default over any other.
        rest = ["-n"] if self.inputs.base in TINY_BASES else []
        merge = ["scripts/kconfig/merge_config.sh", *rest, base.name, *map(str, self.fragments)]
        run(merge, "merge the configuration fragments", tree, {**environment, "ARCH": "x86"})
        if self.signer:
            setting = ["scripts/config", "--set-str", "MODULE_SIG_KEY", self.signer.module_key]
            run(setting, "name the key of the modules", tree, environment)
            run(self._argv("olddefconfig"), "make olddefconfig", tree, environment)
        config = parse_config((tree / ".config").read_text())
        if lost := kconfig.lost(self.wanted, config):
            raise self._lost_error(tree, lost, config)
        wanting = [] if not self.signer or config.get("EFI_STUB") == "y" else ["EFI_STUB"]
        if self.signer and config.get("MODULES") == "y":
            wanting += [name for name in ("MODULE_SIG", "MODULE_SIG_ALL") if config.get(name) != "y"]
        if wanting:
            lines = ", ".join(f"CONFIG_{name}=y" for name in wanting)
            raise BuildError(
                f"sign: such a kernel cannot be signed as a whole; a fragment has to have {lines}"
            )
        return config

    def _lost_error(
        self, tree: Path, lost: list[tuple[kconfig.Option, str]], config: Mapping[str, str]
    ) -> BuildError:
        texts = kconfig_texts(tree)
        unknown = no_such_symbols(tree, {option.symbol for option, _value in lost})
        reasons = []
        for option, value in lost:
            if option.symbol in unknown:
                reason = "this source has no such symbol (is the series complete?)"
            elif value == "n":
                why = kconfig.why_unset(option.symbol, texts, config)
                reason = f"it is not set in the result: {why or 'something it depends on is missing'}"
            else:
                reason = f"the result has {value}: the symbol is selected or limited by another"
            reasons.append(f"{option} ({option.where}): {reason}")
        return BuildError(
            f"{len(lost)} wanted options are not in the final .config:\n" + "\n".join(reasons), lost=reasons
        )

    def _make(self, tree: Path, environment: Mapping[str, str], config: Mapping[str, str], lock: int) -> int:
        """make, its output in the log and counted. Returns the number of objects of the whole kernel."""
        expected = expected_objects(config, self.cache.latest())
        before = sum(1 for _path in tree.rglob(".*.o.cmd")) if (self.work / "started").exists() else 0
        (self.work / "started").touch()
        counted = BuildLog(objects=before)
        self.progress.enter("compile")
        argv = self._argv(*self.format.make)
        # Part of the name of an RPM package, and counted up by every start of make.
        (tree / ".version").unlink(missing_ok=True)
        with (
            self.log.open("a", encoding="utf-8", errors="replace") as log,
            process_group(argv, tree, environment, lock) as process,
        ):
            for line in process.stdout:
                log.write(line)
                counted.feed(line.replace(f"{tree}/", ""))
                self.progress.stage, self.progress.detail = counted.stage, counted.detail
                self.progress.done = counted.objects
                # The estimate may be too low, and says nothing about what follows the compilation.
                self.progress.total = max(expected, counted.objects) if counted.stage == "compile" else 0
            code = process.wait()
        if code:
            raise BuildError(
                "\n".join(
                    [f"make failed with {code}; the log is {self.log}", *error_lines(self.log.read_text())]
                ),
                cmd=argv,
                rc=code,
                log=str(self.log),
            )
        return counted.objects

    def _sign(self, tree: Path, environment: Mapping[str, str], config: Mapping[str, str], lock: int) -> None:
        """Sign the image and have it packed again: whatever is newer than its parts, make leaves alone."""
        self.progress.enter("sign")
        image = tree / IMAGE
        self.signer.sign(image)
        signed = sha256_file(image)
        for package in self.work.glob(self.format.results):
            package.unlink()
        self._make(tree, environment, config, lock)
        if sha256_file(image) != signed:
            raise BuildError(f"make has linked {image} anew when it packed it, and the signature is lost")
        for package in self.work.glob(self.format.results):
            packed = self.work / f"packed-{image.name}"
            self._take_out_image(package, packed)
            self.signer.verify(packed)
            packed.unlink()

    def _take_out_image(self, package: Path, image: Path) -> None:
        """Write the kernel image that is in a package to a file."""
        with (
            package.open("rb") as file,
            subprocess.Popen(self.format.unpack, stdin=file, stdout=subprocess.PIPE) as process,
            tarfile.open(fileobj=process.stdout, mode="r|") as archive,
        ):
            for member in archive:
                if member.isfile() and PurePath(member.name).name.startswith("vmlinuz"):
                    image.write_bytes(archive.extractfile(member).read())
                    break
            else:
                raise BuildError(f"{package} has no kernel image in it")

    def _collect(self, tree: Path, config: Mapping[str, str], objects: int, seconds: float) -> dict:
        """Put the results in place, all at once."""
        self.progress.enter("collect")
        release = (tree / "include/config/kernel.release").read_text().strip()
        if (expected := self.inputs.release()) and release != expected:
            raise BuildError(
                f"the kernel calls itself {release}, not {expected}: does the series set a version?"
            )
        out = self.work / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        packages = sorted(self.work.glob(self.format.results))
        if not packages:
            raise BuildError(f"make left no package in {self.work}; the log is {self.log}")
        for package in packages:
            shutil.copy2(package, out)
        # Spawned kernels are loaded from the ELF image: its notes and headers stay, what debuggers want goes.
        run(["objcopy", "--strip-debug", str(tree / "vmlinux"), str(out / "vmlinux")], "strip vmlinux")
        shutil.copyfile(tree / ".config", out / "config")
        shutil.copyfile(self.log, out / "build.log")
        manifest = {
            "key": self.key,
            "release": release,
            "inputs": self.inputs.plain(),
            "debs": [package.name for package in packages if package.suffix == ".deb"],
            "packages": [package.name for package in packages],
            "files": {path.name: sha256_file(path) for path in sorted(out.iterdir())},
            "objects": objects,
            "options": enabled(config),
            "seconds": round(seconds, 1),
        }
        (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        final = self.cache.kernels / self.key
        shutil.rmtree(final, ignore_errors=True)  # only there if harmed
        out.rename(final)
        if self.keep_tree:
            self.work.rename(final / "build")
        else:
            discard(self.work)
        return manifest


@contextlib.contextmanager
def process_group(
    argv: Sequence[str], cwd: Path, env: Mapping[str, str], lock: int
) -> Iterator[subprocess.Popen]:
    """A command that ends, with all that it started, when the body is left by an exception."""
    # A signal that came before the process is known here would leave it behind: hold it back until then.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        with subprocess.Popen(
            argv,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=[lock],
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, mask),  # noqa: PLW1509
        ) as process:
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                yield process
            except BaseException:
                _end_group(process)
                raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _end_group(process: subprocess.Popen) -> None:
    """End make and all that it started."""
    for signum, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            return
