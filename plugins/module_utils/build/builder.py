# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Building a kernel: source, patches, configuration, make, signature, packages."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from ..common.command import bytes_of, must, stream
from ..common.dotconfig import enabled
from ..common.errors import Failure
from ..common.files import read_record, read_text, sha256_file, text_of, write_file
from .cache import Cache, discard
from .configuration import Configuration
from .key import Inputs
from .log import BuildLog, error_lines, expected_objects
from .packages import FORMATS
from .patches import apply_patch
from .progress import Progress
from .sign import Signer
from .tree import unpack

FREE_BYTES = 4 << 30
LONGEST_RELEASE = 64
IMAGE = "arch/x86/boot/bzImage"
# In its depend mode ccache asks the compiler what it has read, and the assembler does not tell what .incbin
# takes in: the compressed kernel of a bzImage, certificates, an initramfs. What has that is always compiled.
COMPILER = """\
for source; do :; done
case $source in
    *.S) exec gcc "$@" ;;
    *.c) if grep -q '[.]incbin' "$source"; then exec gcc "$@"; fi ;;
esac
exec ccache gcc "$@"
"""
NO_SPACE = ("No space left on device", "Disk quota exceeded")


def date(timestamp: int) -> str:
    """As date(1) writes it for UTC, in whatever language this process runs."""
    moment = datetime.datetime.fromtimestamp(timestamp, datetime.timezone.utc)
    day = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
    month = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
    named = f"{day[moment.weekday()]} {month[moment.month - 1]} {moment.day:2}"
    return f"{named} {moment:%H:%M:%S} UTC {moment.year}"


class Stopped(BaseException):
    """SIGTERM or SIGINT: the build is to stop and to leave what can be continued."""


@dataclass
class Builder:
    """One build: every stage leaves a tree that a later run can take up, or none."""

    cache: Cache
    inputs: Inputs
    patches: Sequence[Path]
    configuration: Configuration
    jobs: int
    ccache: bool
    fetch: Callable[[], Path]
    progress: Progress = field(default_factory=lambda: Progress(None))
    signer: Signer | None = None
    keep_tree: bool = False

    def __post_init__(self) -> None:
        self.format = FORMATS[self.inputs.package]
        self.key = self.inputs.key()
        self.work = self.cache.work(self.key)
        self.log = self.cache.work(self.key, ".log")

    def build(self) -> tuple[dict[str, Any], bool]:
        """The manifest, and whether this run made it. Raises Failure, OSError or Stopped."""
        try:
            return self._build()
        except (Failure, OSError) as error:
            if not any(text in str(error) for text in NO_SPACE):
                raise
            there = os.statvfs(self.cache.root)
            raise Failure(
                f"there is no space left: {self.cache.root} has "
                f"{there.f_bavail * there.f_frsize >> 20} MiB and {there.f_favail} files free, but a build "
                "needs "
                f"{FREE_BYTES >> 20} MiB; make room, and the next run continues the build\n{error}",
                **getattr(error, "details", {}),
            ) from error

    def _build(self) -> tuple[dict[str, Any], bool]:
        self.log.parent.mkdir(parents=True, exist_ok=True)

        def waiting() -> None:
            self.progress.enter("wait", "for another build of the same kernel")

        with self.progress, self.cache.lock(self.key, waiting):
            if manifest := self.cache.manifest(self.key):
                return manifest, False
            started = time.monotonic()
            self.cache.drop_abandoned(self.key)
            tree, timestamp = self._tree()
            environment = self._environment(tree, timestamp)
            write_file(self.work / "compiler", COMPILER, sync=False)
            self.progress.enter("configure", self.inputs.base)
            config = self.configuration.make(tree, environment, self._argv(), self.signer)
            release = self._release(tree, environment)
            self.log.unlink(missing_ok=True)
            if self.signer:
                # One that an earlier run has signed would have two signatures in the end.
                (tree / IMAGE).unlink(missing_ok=True)
            with contextlib.ExitStack() as stack:
                if self.signer:
                    stack.enter_context(self.signer.for_modules(tree, config))
                objects = self._make(tree, environment, config)
                if self.signer:
                    self._sign(self.signer, tree, environment, config)
            self._check_image(tree)
            return self._collect(tree, config, release, objects, time.monotonic() - started), True

    def _tree(self) -> tuple[Path, int]:
        """The patched source, and the time that the build is dated with: that of the unpatched Makefile."""
        ready = self.work / "ready.json"
        if facts := read_record(ready, tree=str, timestamp=int):
            return self.work / facts["tree"], facts["timestamp"]
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        if (free := shutil.disk_usage(self.work).free) < FREE_BYTES:
            raise Failure(
                f"{self.work} has {free >> 20} MiB free, but a build needs {FREE_BYTES >> 20} MiB; "
                "make room or give another cache_dir"
            )
        self.progress.enter("fetch", self.inputs.source.name)
        archive = self.fetch()
        self.progress.enter("unpack", archive.name)
        tree = unpack(archive, self.work)
        timestamp = int((tree / "Makefile").stat().st_mtime)
        self.progress.enter("patch", f"{len(self.patches)} patch{'' if len(self.patches) == 1 else 'es'}")
        for patch in self.patches:
            apply_patch(tree, patch, patch.name)
        for name, text, replaced in self.format.edits:
            path = tree / name
            write_file(path, read_text(path).replace(text, replaced), path.stat().st_mode & 0o777, sync=False)
        write_file(ready, json.dumps({"tree": tree.name, "timestamp": timestamp}))
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
            "KBUILD_BUILD_TIMESTAMP": date(timestamp),
            "KBUILD_BUILD_USER": "mkops",
            "KBUILD_BUILD_HOST": "build",
            "DEBFULLNAME": "mkops",
            "DEBEMAIL": "mkops@localhost",
            "KDEB_PKGVERSION": self.inputs.source.version or "1-1",
            "KDEB_CHANGELOG_DIST": "unstable",  # by itself, the build asks the machine
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
        compiler = [f"CC=sh {self.work / 'compiler'}", "HOSTCC=ccache gcc"] if self.ccache else []
        return ["make", f"-j{self.jobs}", "ARCH=x86", *compiler, *targets]

    def _make(self, tree: Path, environment: Mapping[str, str], config: Mapping[str, str]) -> int:
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
            self.log.open("a", encoding="utf-8", errors="surrogateescape") as log,
            stream(argv, tree, environment, inherit=True) as process,
        ):
            for line in process.stdout or ():
                log.write(line)
                counted.feed(line.replace(f"{tree}/", ""))
                self.progress.stage, self.progress.detail = counted.stage, counted.detail
                self.progress.done = counted.objects
                # The estimate may be too low, and says nothing about what follows the compilation.
                self.progress.total = max(expected, counted.objects) if counted.stage == "compile" else 0
            code = process.wait()
        if code:
            raise Failure(
                "\n".join(
                    [
                        f"make ended with status {code}; its log is {self.log}",
                        *error_lines(read_text(self.log)),
                    ]
                ),
                cmd=argv,
                rc=code,
                log=text_of(self.log),
            )
        return counted.objects

    def _check_image(self, tree: Path) -> None:
        """The image has the kernel in it that was compressed last, and no other one. Raises Failure."""
        image = (tree / IMAGE).read_bytes()
        packed = (tree / IMAGE).parent.glob("compressed/vmlinux.bin.*")
        if not any(one.read_bytes() in image for one in packed if one.stat().st_size):
            raise Failure(
                f"{tree / IMAGE} does not have the kernel in it that was linked before: run again with "
                "ccache: false"
            )

    def _sign(
        self, signer: Signer, tree: Path, environment: Mapping[str, str], config: Mapping[str, str]
    ) -> None:
        """Sign the image and have it packed again: whatever is newer than its parts, make leaves alone."""
        self.progress.enter("sign")
        image = tree / IMAGE
        signer.sign(image)
        signed = sha256_file(image)
        for package in self.work.glob(self.format.results):
            package.unlink()
        self._make(tree, environment, config)
        if sha256_file(image) != signed:
            raise Failure(f"make linked {image} again when it packed it, so the signature is lost: run again")
        for package in self.work.glob(self.format.results):
            packed = self.work / f"packed-{image.name}"
            self._take_out_image(package, packed)
            signer.verify(packed)
            packed.unlink()

    def _take_out_image(self, package: Path, image: Path) -> None:
        """Write the kernel image that is in a package to a file."""
        with (
            package.open("rb") as file,
            bytes_of(self.format.unpack, file) as process,
            tarfile.open(fileobj=process.stdout, mode="r|") as archive,
        ):
            for member in archive:
                content = archive.extractfile(member)
                if content and PurePath(member.name).name.startswith("vmlinuz"):
                    image.write_bytes(content.read())
                    return
        raise Failure(f"{package} has no kernel image in it: see {self.log}")

    def _release(self, tree: Path, environment: Mapping[str, str]) -> str:
        """What uname -r will say, asked of the tree: the series and the configuration may add to it."""
        # The first target has the configuration taken over, which the second one needs.
        argv = self._argv("-s", "include/config/kernel.release", "kernelrelease")
        done = must(
            argv,
            "ask the tree for the kernel's release",
            causes=error_lines,
            cwd=tree,
            env=environment,
            inherit=True,
        )
        release = done.stdout.split()[-1] if done.stdout.split() else ""
        if not release.endswith(self.inputs.local_suffix()):
            raise Failure(
                f"the kernel's release would be '{release}', without {self.inputs.local_suffix()} at the "
                "end: the series must not change LOCALVERSION, and CONFIG_LOCALVERSION_AUTO has to stay off"
            )
        if len(release) > LONGEST_RELEASE:
            raise Failure(
                f"the kernel's release would be {release}, {len(release)} characters, but a kernel takes "
                "at most "
                f"{LONGEST_RELEASE}: give a shorter local_version or CONFIG_LOCALVERSION"
            )
        return release

    def _collect(
        self, tree: Path, config: Mapping[str, str], release: str, objects: int, seconds: float
    ) -> dict[str, Any]:
        """Put the results in place, all at once."""
        self.progress.enter("collect")
        built = (tree / "include/config/kernel.release").read_text(encoding="utf-8").strip()
        if built != release:
            raise Failure(f"the kernel's release is {built} instead of {release}: run again")
        out = self.work / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        packages = sorted(self.work.glob(self.format.results))
        if not packages:
            raise Failure(f"make built no package in {self.work}: see {self.log}")
        for package in packages:
            shutil.copy2(package, out)
        # Spawned kernels are loaded from the ELF image: its notes and headers stay, what debuggers want goes.
        must(["objcopy", "--strip-debug", tree / "vmlinux", out / "vmlinux"], "strip vmlinux")
        if self.signer:
            self.signer.append(out / "vmlinux")
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
        write_file(out / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        final = self.cache.results / self.key
        shutil.rmtree(final, ignore_errors=True)  # only there if harmed
        out.rename(final)
        if self.keep_tree:
            self.work.rename(final / "build")
        else:
            discard(self.work)
        return manifest
