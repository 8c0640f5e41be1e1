# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Work on the kernel patch series.

unpack   fetch Debian's kernel source, make it a git repository with the tag "base", apply the series
apply    apply the series to a repository that is at "base"
sync     make a repository that nobody works in hold exactly the series, on the newest source
build    build the repository as it is, incrementally, beside it
export   write the commits after "base" as the series
check    the series applies to the source, is clean for checkpatch, and every exception is needed
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP / "plugins"))

from module_utils.build import kconfig  # noqa: E402
from module_utils.build.debian import KEYRING, LISTS_VALID_SECONDS, Archive, machine_mirror  # noqa: E402
from module_utils.build.key import Source  # noqa: E402
from module_utils.build.patches import read_patch, read_series, with_own_fragments  # noqa: E402
from module_utils.build.tree import unpack as unpack_source  # noqa: E402
from module_utils.common.command import bytes_of, must, run  # noqa: E402
from module_utils.common.dotconfig import parse_config  # noqa: E402
from module_utils.common.errors import Failure, Refused  # noqa: E402
from module_utils.common.files import read_text  # noqa: E402

FILES = TOP / "roles/kernel/files"
CACHE = Path(
    os.environ.get("MKOPS_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mkops"
)
CHECKPATCH = ("scripts/checkpatch.pl", "scripts/spelling.txt", "scripts/const_structs.checkpatch")
# Stable output: an export of unchanged commits changes no file.
FORMAT_PATCH = (
    "format-patch", "--zero-commit", "--no-signature", "--no-numbered", "--no-stat", "--abbrev=12",
    "--no-renames", "--diff-algorithm=histogram",
)  # fmt: skip
# For repositories that nobody works in.
ANONYMOUS = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "mkops",
    "GIT_AUTHOR_EMAIL": "mkops@localhost",
    "GIT_COMMITTER_NAME": "mkops",
    "GIT_COMMITTER_EMAIL": "mkops@localhost",
}


@dataclass(frozen=True)
class Series:
    """The patches for one kernel version, and where Debian has its source."""

    version: str
    package: str
    suite: str

    @classmethod
    def of(cls, version: str, suite: str | None) -> Series:
        """As its directory says it, but for the suite that is given. Raises Failure if there is none."""
        try:
            found = json.loads((FILES / "series" / version / "source.json").read_text())
        except FileNotFoundError:
            raise Failure(
                f"there is no series for {version}, there are {', '.join(kernels())}; for a new one, write "
                f"{(FILES / 'series' / version / 'source.json').relative_to(TOP)}"
            ) from None
        return cls(version, found["package"], suite or found["suite"])

    @property
    def directory(self) -> Path:
        return FILES / "series" / self.version

    @property
    def exceptions(self) -> Path:
        return self.directory / "checkpatch.exceptions"

    @property
    def tree(self) -> Path:
        return CACHE / f"series/linux-{self.version}"


def kernels() -> list[str]:
    """The versions that there is a series for, the oldest first."""
    found = [path.parent.name for path in (FILES / "series").glob("*/source.json")]
    return sorted(found, key=lambda name: [int(part) for part in name.split(".")])


def default_kernel() -> str:
    """The version of the series that is meant when none is named: the role's."""
    defaults = (TOP / "roles/kernel/defaults/main.yml").read_text()
    if not (found := re.search(r"^kernel_version: .*default\('([0-9.]+)', true\)", defaults, re.M)):
        raise Failure("roles/kernel/defaults/main.yml has no kernel_version")
    return found[1]


def tree_version(tree: Path) -> str | None:
    """The version of a kernel tree, as series are named after it; None if it is not one."""
    try:
        text = (tree / "Makefile").read_text()
    except FileNotFoundError:
        return None
    found = re.match(r"(?:#.*\n)*VERSION = (\d+)\nPATCHLEVEL = (\d+)\n", text)
    return f"{found[1]}.{found[2]}" if found else None


def say(text: str) -> None:
    print(f"series: {text}", flush=True)


def warn(text: str) -> None:
    print(f"series: {text}", file=sys.stderr, flush=True)


def git(directory: Path, *args: str, show: bool = False, **environment: str) -> str:
    argv = ["git", "-C", str(directory), *args]
    if show:
        if subprocess.run(argv, env=os.environ | environment, check=False).returncode:
            raise Failure(f"git {args[0]} failed in {directory}")
        return ""
    return must(argv, f"run git {args[0]} in {directory}", env=os.environ | environment).stdout


def source(series: Series, version: str | None) -> tuple[Source, Path]:
    mirror = os.environ.get("MKOPS_DEBIAN_MIRROR") or machine_mirror()
    archive = Archive(CACHE / "sources", mirror, series.suite, KEYRING)
    found = archive.resolve(series.package, version, warn, LISTS_VALID_SECONDS)
    return found, archive.fetch(found, series.package)


# --- unpack, apply, build, export -----------------------------------------------------------------


def unpack_base(directory: Path, series: Series, found: Source, archive: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        say(f"unpacks {archive.name}")
        tree = unpack_source(archive, Path(scratch))
        git(tree, "init", "--quiet", "--initial-branch=series")
        git(tree, "config", "gc.auto", "0")  # packing 85,000 files would take minutes of CPU from the build
        git(tree, "add", "--all", "--force")
        git(tree, "commit", "--quiet", "--message", f"{series.package} {found.version}", **ANONYMOUS)
        git(tree, "tag", "base")
        tree.rename(directory)


def unpack(args: argparse.Namespace) -> None:
    if args.dir.exists():
        raise Failure(f"{args.dir} exists; remove it, or give another directory")
    unpack_base(args.dir, args.series, *source(args.series, args.version))
    apply(args)
    say(f"{args.dir} is ready: commit there, then `tools/series build` and `tools/series export`")


def apply(args: argparse.Namespace) -> None:
    if git(args.dir, "rev-parse", "HEAD") != git(args.dir, "rev-parse", f"{args.base}^{{commit}}"):
        raise Failure(
            f"{args.dir} is not at {args.base}; save what is there, then `git reset --hard {args.base}`"
        )
    patches = read_series(args.series.directory)
    if patches:
        git(args.dir, "am", "--quiet", "--3way", *map(str, patches), show=True)
    say(f"{len(patches)} patches applied to {args.dir}")


def sync(args: argparse.Namespace) -> None:
    found, archive = source(args.series, args.version)
    patches = read_series(args.series.directory)
    digest = hashlib.sha256(b"".join(patch.read_bytes() for patch in patches)).hexdigest()
    # Written last: a repository without it may hold half of anything.
    mark, wanted = args.dir / ".git/mkops-synced", f"{found.sha256} {digest}\n"
    have = mark.read_text() if mark.exists() else ""
    if have == wanted:
        say(f"{args.dir} holds the series")
        return
    if not have.startswith(found.sha256):
        if args.dir.exists() and not mark.exists():
            raise Failure(f"{args.dir} was not made by sync: remove it, or give another directory")
        shutil.rmtree(args.dir, ignore_errors=True)
        unpack_base(args.dir, args.series, found, archive)
    mark.write_text(f"{found.sha256}\n")
    # of an interrupted run
    shutil.rmtree(args.dir / ".git/rebase-apply", ignore_errors=True)
    git(args.dir, "reset", "--quiet", "--hard", args.base)
    git(args.dir, "am", "--quiet", *map(str, patches), show=True, **ANONYMOUS)
    mark.write_text(wanted)
    say(f"{len(patches)} patches applied to {args.dir}")


def build(args: argparse.Namespace) -> None:
    out = args.out or args.dir.with_name(f"{args.dir.name}-build")
    out.mkdir(exist_ok=True)
    names = (args.profile, "multikernel", *args.fragment)
    fragments = [FILES / "config" / f"{name}.config" for name in names]
    parts = with_own_fragments(args.series.directory, fragments)
    make = ["make", "-C", str(args.dir), f"O={out}", f"-j{args.jobs}", "CC=ccache gcc", "HOSTCC=ccache gcc"]
    environment = {
        **os.environ,
        "CCACHE_DIR": str(CACHE / "ccache"),
        # Paths relative to the build: several checkouts side by side share what is compiled.
        "CCACHE_BASEDIR": str(args.dir.parent),
        "CCACHE_NOHASHDIR": "1",
        "LOCALVERSION": "-series",
    }

    # Configured anew only when a fragment or a Kconfig file is newer: a new .config rebuilds a good deal.
    inputs = [*parts, *(path for path in args.dir.rglob("Kconfig*") if path.is_file())]
    config = out / ".config"
    if not config.exists() or max(path.stat().st_mtime for path in inputs) > config.stat().st_mtime:
        must([*make, "tinyconfig"], "make tinyconfig", env=environment)
        merge = [str(args.dir / "scripts/kconfig/merge_config.sh"), "-n", "-O", str(out), str(config)]
        must([*merge, *map(str, parts)], "merge the fragments", cwd=args.dir, env=environment)
    wanted = kconfig.merge(kconfig.parse_fragment(read_text(path), path.name) for path in parts)
    lost = kconfig.lost(wanted, parse_config(config.read_text()))
    if lost and not args.partial:
        config.unlink()
        raise Failure("\n".join(f"lost: {option} ({option.where})" for option, _value in lost))
    if subprocess.run([*make, "-s", "bzImage"], env=environment, check=False).returncode:
        raise Failure("make failed, see above")
    say(f"built {out}/vmlinux and {out}/arch/x86/boot/bzImage")


def export(args: argparse.Namespace) -> None:
    if git(args.dir, "status", "--porcelain", "--untracked-files=no"):
        raise Failure(f"{args.dir} has changes that are not committed; commit them first")
    with tempfile.TemporaryDirectory() as scratch:
        git(args.dir, *FORMAT_PATCH, "--quiet", f"--output-directory={scratch}", f"{args.base}..HEAD")
        patches = sorted(Path(scratch).glob("*.patch"))
        directory = args.series.directory
        directory.mkdir(parents=True, exist_ok=True)
        for old in directory.glob("*.patch"):
            old.unlink()
        for patch in patches:
            shutil.copy(patch, directory)
    say(f"{len(patches)} patches written to {directory.relative_to(TOP)}")


# --- check ------------------------------------------------------------------------------------------


def touched(patches: list[Path]) -> set[str]:
    """The files of the source that the patches change, without those that they create."""
    needed: set[str] = set()
    created: set[str] = set()
    for patch in patches:
        for old, new in (names for change in read_patch(patch, patch.name) for names in change.files):
            if old == "/dev/null":
                created.add(new.removeprefix("b/"))
            elif (name := old.removeprefix("a/")) not in created:
                needed.add(name)
    return needed


def pristine(series: Series, archive: Path, digest: str, names: set[str]) -> Path:
    """These files of the source, unpacked once: reading the whole archive takes the time."""
    root = CACHE / "sources" / f"files-{digest[:16]}"
    missing = sorted(name for name in names if not (root / name).exists())
    if missing:
        root.mkdir(parents=True, exist_ok=True)
        listing = "".join(f"{series.package}/{name}\n" for name in missing)
        inner_tar = ["tar", "-xO", f"./usr/src/{series.package}.tar.xz"]
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(listing)
            file.flush()
            with (
                bytes_of(["dpkg-deb", "--fsys-tarfile", archive]) as deb,
                bytes_of(inner_tar, deb.stdout) as inner,
            ):
                wanted = ["--strip-components=1", "--files-from", file.name]
                done = run(["tar", "-xJ", "-C", root, *wanted], stdin=inner.stdout)
        absent = [name for name in missing if not (root / name).exists()]
        if absent:
            raise Failure(
                f"{archive.name} has no {', '.join(absent)}, which the series changes: {done.stderr.strip()}"
            )
    return root


def read_exceptions(path: Path) -> dict[tuple[str, str], str]:
    """Lines of PATCH-PATTERN TYPE REASON."""
    found = {}
    lines = path.read_text().splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        words = line.split(maxsplit=2)
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 3:
            raise Failure(f"{path.name}:{number}: write PATCH-PATTERN TYPE REASON")
        found[words[0], words[1]] = words[2]
    return found


def application_problems(patches: list[Path], root: Path) -> list[str]:
    """Apply the series with git to the files that it changes, up to the first patch that fails."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch)
        for name in touched(patches):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, tree / name)
        git(tree, "init", "--quiet")
        git(tree, "add", "--all", "--force")
        git(tree, "commit", "--quiet", "--allow-empty", "--message=base", **ANONYMOUS)
        for patch in patches:
            try:
                git(tree, "am", "--quiet", "--whitespace=error", str(patch), **ANONYMOUS)
            except Failure as error:
                return [f"{patch.name} does not apply: {error}"]
    return []


def remarks(patch: Path, root: Path) -> list[tuple[str, str]]:
    """What checkpatch says of a patch: type and text of each remark."""
    options = ["--no-tree", f"--root={root}", "--strict", "--terse", "--show-types", "--no-summary"]
    (root / "include").mkdir(exist_ok=True)  # where it looks for names that are there already
    with tempfile.TemporaryDirectory() as scratch:  # it leaves a file where it runs
        done = run([root / CHECKPATCH[0], *options, patch], cwd=Path(scratch))
    found = re.findall(r":(\d+: )?(?:ERROR|WARNING|CHECK):(\w+): (.*)", done.stdout)
    if done.stderr.strip() or (done.rc and not found):
        raise Failure(f"checkpatch on {patch.name}: {done.stderr.strip() or done.stdout.strip()}")
    return [(kind, f"{line}{text}") for line, kind, text in found]


def check(args: argparse.Namespace) -> None:
    patches = read_series(args.series.directory)
    if not patches:
        say("the series is empty")
        return
    found, archive = source(args.series, args.version)
    root = pristine(args.series, archive, found.sha256, touched(patches) | set(CHECKPATCH))
    problems = application_problems(patches, root)
    exceptions, used = read_exceptions(args.series.exceptions), set()
    for patch in patches:
        for kind, text in remarks(patch, root):
            allowed = {
                (pattern, name)
                for pattern, name in exceptions
                if name == kind and fnmatch.fnmatch(patch.name, pattern)
            }
            used |= allowed
            if not allowed:
                problems.append(f"{patch.name}: {kind}: {text}")
    name = args.series.exceptions.name
    problems += [f"{name}: {' '.join(key)} is not needed" for key in exceptions if key not in used]
    if problems:
        raise Failure("\n".join(problems))
    say(f"{len(patches)} patches apply to {archive.name} and are clean for checkpatch")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="series", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["unpack", "apply", "sync", "build", "export", "check"])
    parser.add_argument(
        "dir",
        nargs="?",
        type=Path,
        help=f"the repository ({CACHE}/series/linux-KERNEL)",
    )
    parser.add_argument(
        "--kernel",
        choices=kernels(),
        help=f"version whose series it is (that of the repository, if there is one, or {default_kernel()})",
    )
    parser.add_argument("--suite", help="of Debian, that has its source (the one that the series names)")
    parser.add_argument("--base", default="base", help="what the commits of the series follow (%(default)s)")
    parser.add_argument("--version", help="exact version of the source package (the newest)")
    parser.add_argument("--profile", default="lab", help="fragment to build with (%(default)s)")
    parser.add_argument("--fragment", action="append", default=[], help="build: one more, may be repeated")
    parser.add_argument(
        "--partial",
        action="store_true",
        help="build: options that later patches declare may be missing",
    )
    parser.add_argument("--out", type=Path, help="build: where to (beside the repository)")
    parser.add_argument(
        "--jobs", type=int, default=len(os.sched_getaffinity(0)), help="compilers at once (%(default)s)"
    )
    # Options may stand between the two words: Python before 3.12 takes the second for left out then.
    return parser.parse_intermixed_args(words)


def series_of(args: argparse.Namespace) -> Series:
    """The series that is meant: a repository of another version is not written over it."""
    there = tree_version(args.dir) if args.dir else None
    if there and args.kernel and args.kernel != there:
        raise Failure(f"{args.dir} is a kernel {there}, not {args.kernel}")
    return Series.of(args.kernel or there or default_kernel(), args.suite)


def main() -> int:
    args = arguments()
    args.out = args.out and args.out.absolute()
    try:
        args.series = series_of(args)
        args.dir = (args.dir or args.series.tree).absolute()
        globals()[args.command](args)
    except (Failure, Refused) as error:
        warn("\n".join(map(str, error.args)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
