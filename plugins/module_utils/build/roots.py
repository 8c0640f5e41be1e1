# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Making a Debian root: packages by mmdebstrap, the rest by `root`, an image by mke2fs or a compressor."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from ..common.command import bytes_of, must, stream
from ..common.errors import Failure, Refused
from ..common.files import native, read_text, sha256, sha256_file, text_of, why_not, write_file
from ..common.size import MIB, format_size, parse_size
from ..common.text import shown
from . import accounts, cpio, root
from .address import masked, without_secrets
from .cache import Cache, discard, path_reasons
from .debian import Archive, machine_mirror
from .progress import Progress
from .rootfs import Tree
from .source import content_digest
from .toolchain import absent_tools

FREE_BYTES = 2 << 30
SECURITY = "http://security.debian.org/debian-security"
FIELDS: Mapping[str, type] = {"key": str, "release": str, "inputs": dict, "files": dict}
BASE = "packages.tar"
# mke2fs takes archives, and the time of SOURCE_DATE_EPOCH, from this version on.
MKE2FS = (1, 47, 2)
Warn = Callable[[str], None]


@dataclass
class RootBuilder:
    """A root that is to be, or is there."""

    wish: root.RootWish
    files: root.Files
    archive: Archive
    debs: tuple[root.Deb, ...]
    tools: tuple[str, ...]
    cache: Cache
    bases: Cache
    progress: Progress = field(default_factory=lambda: Progress(None))

    def __post_init__(self) -> None:
        self.key = self.wish.key(self.debs, self.tools)
        self.base_key = self.wish.base_key(self.debs)
        self.release = f"{self.wish.suite}-{self.wish.form}-{self.key[:8]}"
        self.file_name = self.wish.file_name()

    def manifest(self) -> dict[str, Any] | None:
        return self.cache.manifest(self.key)

    def inputs(self) -> dict[str, Any]:
        """For the manifest and the diff. Of users only names: their hashes and keys are nobody's business."""
        facts = self.wish.facts(self.debs, self.tools)
        facts["users"] = [user.name for user in self.wish.users]
        facts["suite"] = self.wish.suite
        facts["debs"] = [str(deb) for deb in self.debs]
        plain: dict[str, Any] = json.loads(json.dumps(facts))
        return plain

    def build(self) -> tuple[dict[str, Any], bool]:
        """The manifest, and whether this run made it. Raises Failure, Refused, OSError or Stopped."""

        def waiting() -> None:
            self.progress.enter("wait", "for another build of the same root")

        with self.progress, self.cache.lock(self.key, waiting):
            if manifest := self.manifest():
                return manifest, False
            started = time.monotonic()
            self.cache.drop_abandoned(self.key)
            base = self._base()
            with self._work(self.cache, self.key) as work:
                self.progress.enter("furnish", self.release)
                with base.open("rb") as archive:
                    self._write(archive, work)
                manifest = self._kept(self.cache, self.key, work, self.file_name, started)
            return manifest, True

    @contextlib.contextmanager
    def _work(self, cache: Cache, key: str) -> Iterator[Path]:
        work = cache.work(key)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True, mode=0o700)
        if (free := shutil.disk_usage(work).free) < FREE_BYTES:
            raise Failure(
                f"{work} has {format_size(free // MIB * MIB)} free, but a root needs "
                f"{format_size(FREE_BYTES)}: "
                "make room or give another cache_dir"
            )
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _kept(self, cache: Cache, key: str, work: Path, name: str, started: float) -> dict[str, Any]:
        """Move what was made to where it is kept, with its manifest: complete or not there."""
        manifest = {
            "key": key,
            "release": self.release,
            "inputs": self.inputs(),
            "files": {name: sha256_file(work / name)},
            "size": (work / name).stat().st_size,
            "seconds": round(time.monotonic() - started, 1),
        }
        # There may be hashes of passwords in it.
        (work / name).chmod(0o600)
        write_file(work / "manifest.json", json.dumps(manifest, indent=1))
        final = cache.results / key
        if final.exists():  # damaged
            discard(final)
        work.replace(final)
        final.chmod(0o755)
        return manifest

    def _base(self) -> Path:
        """The unpacked and configured packages, as an archive."""

        def waiting() -> None:
            self.progress.enter("wait", "for the same packages of another root")

        self.bases.note_use(self.base_key)
        with self.bases.lock(self.base_key, waiting):
            path = self.bases.results / self.base_key / BASE
            if self.bases.manifest(self.base_key):
                return path
            started = time.monotonic()
            self.bases.drop_abandoned(self.base_key)
            with self._work(self.bases, self.base_key) as work:
                self._bootstrap(work / BASE)
                self._check(work / BASE)
                self._kept(self.bases, self.base_key, work, BASE, started)
            return path

    def _bootstrap(self, path: Path) -> None:
        """Fetch, verify, unpack and configure the packages. What is said of sources goes by its input: no
        address
        with a password is among the arguments.
        """
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": text_of(path.parent),
            "LC_ALL": "C.UTF-8",
            "SOURCE_DATE_EPOCH": str(root.EPOCH),
            **{name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")},
        }
        listing = path.with_name("sources.list")
        write_file(listing, self.archive.sources, 0o600, sync=False)
        argv: list[str | Path] = [
            "mmdebstrap",
            "--variant=apt",
            "--format=tar",
            f'--aptopt=APT::Install-Recommends "{str(self.wish.recommends).lower()}"',
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in self.wish.excluded),
            *(f"--dpkgopt=path-include={pattern}" for pattern in root.INCLUDED),
            f"--include={','.join(self.wish.wanted())}",
            self.wish.suite,
            path,
            "-",
        ]
        self.progress.enter("packages", f"{len(self.debs)} of {self.wish.suite}")
        said: list[str] = []
        with listing.open("rb") as source, stream(argv, env=environment, stdin=source) as process:
            for line in process.stdout or ():
                line = masked(line.strip())
                said = [*said, line][-40:]
                if line.startswith("I: "):
                    self.progress.detail = line[3:].rstrip(".")
                    self.progress.done += 1
        listing.unlink()
        if process.returncode:
            errors = [line for line in said if line.startswith("E: ")] or said[-3:]
            raise Failure(
                f"cannot make a root of {masked(self.archive.mirror)} {self.wish.suite}: mmdebstrap ended "
                "with status "
                f"{process.returncode}: {' | '.join(errors[:4])}",
                stdout="\n".join(said),
            )

    def _check(self, path: Path) -> None:
        """What is in it has to be what the key says."""
        with path.open("rb") as archive:
            there = root.installed(Tree.read(archive, root.EPOCH).read_text("var/lib/dpkg/status") or "")
        wanted = {(deb.name, deb.version) for deb in self.debs}
        if there != wanted:
            odd = ", ".join(f"{name} {version}" for name, version in sorted(there ^ wanted)[:4])
            raise Failure(
                f"the packages in the root are not those that the archive had a moment ago ({odd}): it "
                "has changed "
                "meanwhile. Run again with lists_valid_seconds: 0"
            )

    def _write(self, archive: IO[bytes], work: Path) -> None:
        tree = Tree.read(archive, root.EPOCH)
        try:
            root.furnish(tree, self.wish, self.files)
        except ValueError as error:
            raise Refused(*map(str, error.args)) from None
        path = work / self.file_name
        if self.wish.form == "disk":
            self._disk(tree, work, path)
            return
        plain = work / ("root" if self.wish.compression != "none" else self.file_name)
        with plain.open("wb") as out:
            (tree.write_cpio if self.wish.form == "initramfs" else tree.write_tar)(out)
        self._compress(plain, path)
        if self.wish.form == "initramfs" and (text := self.wish.boot_configuration()):
            with path.open("ab") as out:
                out.write(cpio.boot_configuration(out.tell(), text))

    def _compress(self, plain: Path, path: Path) -> None:
        argv = COMPRESSORS[self.wish.compression]
        if not argv:
            return
        self.progress.enter("compress", f"{format_size(plain.stat().st_size // MIB * MIB)} with {argv[0]}")
        with plain.open("rb") as source, path.open("wb") as out:
            with bytes_of(argv, stdin=source) as process:
                shutil.copyfileobj(cast(IO[bytes], process.stdout), out, 1 << 20)
            if process.returncode:
                raise Failure(f"cannot compress the root: {argv[0]} ended with status {process.returncode}")
        plain.unlink()

    def _disk(self, tree: Tree, work: Path, path: Path) -> None:
        """One file system over the whole disk: nobody has to find a partition, and it grows with its disk."""
        needed = int(tree.contents() * 1.02) + 48 * MIB  # inode tables and journal
        size = self.wish.size or -(-int(needed * (1 + root.MARGIN)) // (64 * MIB)) * 64 * MIB
        if size < needed:
            raise Refused(
                f"size {format_size(size)} is too small: "
                f"this root needs {format_size(-(-needed // MIB) * MIB)}"
            )
        archive, raw = work / "root.tar", work / "root.raw"
        with archive.open("wb") as out:
            tree.write_tar(out)
        self.progress.enter("disk", format_size(size))
        with raw.open("wb") as disk:
            disk.truncate(size)
        identity = uuid.uuid5(uuid.NAMESPACE_URL, f"{root.UUID_NAMESPACE} {self.key}")
        must(
            [
                "mke2fs", "-q", "-F", "-t", "ext4", "-O", root.EXT4_FEATURES,
                "-b", "4096", "-I", "256", "-m", "1",
                "-L", root.LABEL, "-U", str(identity),
                # What is written later at the first mount is written now: the same bytes whenever it is made.
                "-E", f"hash_seed={identity},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,nodiscard",
                "-d", archive, raw, f"{size // 4096}",
            ],
            "make the file system",
            env={"PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin", "LC_ALL": "C.UTF-8",
                 "SOURCE_DATE_EPOCH": str(root.EPOCH), "E2FSPROGS_FAKE_TIME": str(root.EPOCH),
                 "MKE2FS_CONFIG": "/dev/null"},
        )  # fmt: skip
        archive.unlink()
        if self.wish.disk == "qcow2":
            self.progress.enter("convert", "to qcow2")
            must(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", raw, path], "make a qcow2 image")
            raw.unlink()


COMPRESSORS: Mapping[str, tuple[str, ...]] = {
    "gzip": ("gzip", "-6", "--no-name", "--stdout"),
    "zstd": ("zstd", "-12", "--quiet", "--stdout", "--no-check"),
    # The kernel's decompressor knows no other check.
    "xz": ("xz", "-6", "--check=crc32", "--stdout"),
    "none": (),
}


def builder_of(params: Mapping[str, Any], warn: Warn) -> RootBuilder:
    """The root that a module's parameters ask for. Raises Refused with every reason why not, or Failure."""
    reasons: list[str] = []
    reasons += absent_tools(_tools(params))
    reasons += path_reasons(params)
    reasons += (
        []
        if native(params["keyring"]).is_file()
        else [f"keyring {params['keyring']} is not a file; install debian-archive-keyring"]
    )
    agent = _agent(params["agent"], reasons)
    overlays = [native(path) for path in params["overlays"]]
    reasons += [f"overlay {path} is not a directory" for path in overlays if not path.is_dir()]
    modules = _modules(params["modules"], reasons)
    users = tuple(_user(user, reasons) for user in params["users"])
    wish = root.RootWish(
        suite=params["suite"],
        packages=tuple(sorted(set(params["packages"]))),
        recommends=params["recommends"],
        excluded=tuple(params["exclude"]),
        hostname=params["hostname"],
        timezone=params["timezone"],
        locale=params["locale"],
        users=users,
        network=_network(params["network"], reasons),
        nameservers=tuple(params["nameservers"]),
        enabled=tuple(params["enabled_units"]),
        masked=tuple(params["masked_units"]),
        console=params["console"],
        agent=sha256(agent) if agent else "",
        overlays=tuple(content_digest(path) for path in overlays if path.is_dir()),
        modules=content_digest(modules) if modules else "",
        form=params["form"],
        compression=params["compression"],
        disk=params["disk_format"],
        size=_size(params["size"], reasons),
    )
    reasons += wish.problems()
    if params["form"] != "disk" and params["size"] is not None:
        reasons.append(f"size is for a disk, and form is {params['form']}: leave it out")
    facts = _facts(params["facts"], reasons)
    if reasons:
        raise Refused(*reasons)
    cache_dir = native(params["cache_dir"])
    mirror = (params["mirror"] or machine_mirror()).rstrip("/")
    more = root.sources(mirror, wish.suite, params["security_mirror"], params["updates"], params["keyring"])[
        1:
    ]
    archive = Archive(cache_dir / "sources", mirror, wish.suite, params["keyring"], tuple(more))
    return RootBuilder(
        wish=wish,
        files=root.Files(facts, agent, tuple(overlays), tuple(filter(None, [modules]))),
        archive=archive,
        debs=_debs(archive, wish, warn, params["lists_valid_seconds"]),
        tools=_versions(wish, sha256(facts)),
        cache=Cache(cache_dir, "roots", FIELDS),
        bases=Cache(cache_dir, "root-packages", FIELDS),
        progress=Progress(native(params["progress_file"]) if params["progress_file"] else None),
    )


def _tools(params: Mapping[str, Any]) -> dict[str, str]:
    """Programs, and the packages that have them."""
    tools = {"mmdebstrap": "mmdebstrap", "apt-get": "apt"}
    if os.geteuid() != 0:
        tools["newuidmap"] = "uidmap"
    if params["form"] == "disk":
        tools["mke2fs"] = "e2fsprogs"
        if params["disk_format"] == "qcow2":
            tools["qemu-img"] = "qemu-utils"
    elif command := COMPRESSORS[params["compression"]]:
        tools[command[0]] = {"xz": "xz-utils"}.get(command[0], command[0])
    return tools


def _versions(wish: root.RootWish, *more: str) -> tuple[str, ...]:
    """Of the programs that write the last bytes; another version may write others. Raises Failure."""
    found = []
    if wish.form == "disk":
        said = must(["mke2fs", "-V"], "find out the version of mke2fs").stderr.splitlines()[0]
        version = tuple(
            int(part) for part in (re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", said) or ["0"])[0].split(".")
        )
        if version < MKE2FS:
            raise Refused(
                f"{said} cannot make a file system of an archive: install e2fsprogs "
                f"{'.'.join(map(str, MKE2FS))} or newer, which Debian 12 has in its backports"
            )
        found.append(said)
        if wish.disk == "qcow2":
            found.append(
                must(["qemu-img", "--version"], "find out the version of qemu-img").stdout.splitlines()[0]
            )
    elif command := COMPRESSORS[wish.compression]:
        found.append(
            must([command[0], "--version"], f"find out the version of {command[0]}").stdout.splitlines()[0]
        )
        found.append(" ".join(command))
    return (*found, *more)


def _debs(archive: Archive, wish: root.RootWish, warn: Warn, valid_seconds: int) -> tuple[root.Deb, ...]:
    """The packages with versions, as the signed archive has them. Raises Refused, Failure."""
    archive.refresh(warn, valid_seconds)
    try:
        return root.package_lines(archive.needed(wish.wanted(), wish.recommends))
    except Failure as failure:
        said = f"{failure.details.get('stderr', '')}".splitlines()
        reasons = [line[3:] for line in said if line.startswith("E: ")]
        where = f"{masked(archive.mirror)} {wish.suite}"
        raise Refused(*(f"{where}: {masked(reason)}" for reason in reasons or [str(failure)])) from None
    except ValueError as error:
        raise without_secrets(
            Failure(f"apt-get does not name the packages that {wish.suite} needs: {error}")
        ) from None


def _agent(path: str | None, reasons: list[str]) -> bytes:
    if not path:
        return b""
    try:
        data = native(path).read_bytes()
    except (OSError, ValueError) as error:
        reasons.append(f"agent {path} cannot be read: {why_not(error)}")
        return b""
    if data[:5] != b"\x7fELF\x02":
        reasons.append(f"agent {path} is not a 64-bit ELF program: take kerf-init of kerf's wheel")
    return data


def _facts(path: str | None, reasons: list[str]) -> str:
    try:
        return read_text(native(path)) if path else ""
    except (OSError, ValueError) as error:
        reasons.append(f"facts {path} cannot be read: {why_not(error)}")
        return ""


def _modules(path: str | None, reasons: list[str]) -> Path | None:
    """A directory with a directory for each release in it, as /usr/lib/modules is."""
    if not path:
        return None
    found = native(path)
    if not found.is_dir() or not any((one / "modules.dep").is_file() for one in found.iterdir()):
        reasons.append(
            f"modules {path} is not a directory such as /lib/modules, with a directory for a release and its "
            "modules.dep in it"
        )
        return None
    return found


def _network(wish: str, reasons: list[str]) -> str:
    if wish in root.NETWORKS:
        return wish
    try:
        return read_text(native(wish))
    except (OSError, ValueError) as error:
        named = ", ".join(root.NETWORKS)
        reasons.append(
            f"network {shown(wish)} is neither one of {named} nor a file that can be read: {why_not(error)}"
        )
        return "none"


def _size(wish: str | None, reasons: list[str]) -> int | None:
    if wish is None:
        return None
    try:
        return parse_size(wish)
    except ValueError as error:
        reasons.append(f"size: {error}")
        return None


def _user(wish: Mapping[str, Any], reasons: list[str]) -> accounts.User:
    keys = [*wish["ssh_keys"]]
    for path in wish["ssh_key_files"]:
        try:
            if stat.S_ISDIR(native(path).stat().st_mode):
                raise OSError(0, "it is a directory")
            keys += accounts.key_lines(read_text(native(path)))
        except (OSError, ValueError) as error:
            reasons.append(f"user {shown(wish['name'])}: key file {path} cannot be read: {why_not(error)}")
    return accounts.User(
        name=wish["name"],
        password=wish["password"] or "",
        keys=tuple(keys),
        groups=tuple(wish["groups"]),
        shell=wish["shell"],
        uid=wish["uid"],
    )


def paths(builder: RootBuilder, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a module returns of a root that is there."""
    directory = builder.cache.results / builder.key
    return {
        "path": text_of(directory / builder.file_name),
        "checksum": f"sha256:{manifest['files'][builder.file_name]}",
        "size": manifest["size"],
        "build_seconds": manifest["seconds"],
        "manifest": text_of(directory / "manifest.json"),
    }
