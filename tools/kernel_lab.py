# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Test the kernel series in QEMU machines that boot it directly, without a disk.

build VARIANT...   build the kernel with a variant's options, incrementally, and the selftests
run [TEST...]      boot a machine and run the selftests in it; logs stay in .lab/kernel/VERSION
bench              how long the steps of a spawn's life take, beside the same kernel as a plain QEMU guest
sparse             sparse on the files of the series: warnings that the base does not have
shapes             list machine shapes and variants

A run fails on a failed, skipped or missing test, on a report of the kernel's own checks (lockdep, KASAN, RCU
stalls, any WARNING or BUG) by the host or by a spawn that was not told to crash, and when it takes too long.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import select
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TOP / "roles/lab/files"), str(TOP / "roles/spawn_image/files"), str(TOP / "plugins")]
sys.path.append(str(TOP / "tools"))

import lab_vm  # noqa: E402
import make_initramfs  # noqa: E402
from module_utils.build import cpio  # noqa: E402
from module_utils.build.sign import Signer  # noqa: E402
from series import default_kernel, tree_version  # noqa: E402

CACHE = Path(
    os.environ.get("MKOPS_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mkops"
)
TREE = CACHE / f"series/linux-{default_kernel()}"
SELFTESTS = "tools/testing/selftests/multikernel"
LOGS = TOP / ".lab/kernel"
BUSYBOX = Path("/bin/busybox")
# Reads the memory of a spawn that has died.
MAKEDUMPFILE = Path("/usr/bin/makedumpfile")

# The tests that end the host by a kexec: the next kernel prints their results, and what is to come last.
LAST = ("takeover", "live")

# What is built besides the profile "lab" and the fragment "multikernel".
VARIANTS = {
    "lab": (),
    "normal": ("debug-test", "debug-faults"),
    "lockdep": ("debug-test", "debug-faults", "debug-lockdep"),
    "kasan": ("debug-test", "debug-faults", "debug-kasan"),
}
# How much longer than "normal" they may take.
SLOWNESS = {"lab": 1, "normal": 1, "lockdep": 4, "kasan": 6}

# Reports that no test provokes on the host.
REPORTS = re.compile(
    r"WARNING: |\bBUG: |BUG at |INFO: possible |possible circular locking|inconsistent lock state"
    r"|suspicious RCU usage|rcu: INFO: |detected stall|soft lockup|hard LOCKUP|Hard LOCKUP|KASAN: |KFENCE: "
    r"|UBSAN: |ODEBUG: |sleeping function called|scheduling while atomic|list_(?:add|del) corruption"
    r"|refcount_t: |general protection fault|Oops: |Kernel panic|blocked for more than|unreferenced object"
    r"|new suspected memory leaks|lock held when returning|Bad page state|Bad rss-counter"
    r"|INFO: lockdep is turned off|Unable to handle|stack guard page|double fault|NMI: IOCK|Call Trace:"
)
# Of multikernel itself: what it could not do.
COMPLAINTS = re.compile(
    r"multikernel: .*"
    r"(?:does not stop|cannot be stopped|was not started|did not halt|stays in the pool|is lost)"
)
# What spawn_init prints before it makes its kernel crash, and when the next one is up.
PROVOKED, READY = "mk-init: provoking ", "mk-init: ready "
# The same of the host, in its kernel's log.
HOST_PROVOKED, HOST_READY = "takeover: provoking ", "Linux version "


class LabError(Exception):
    """Something a person has to look at."""


def say(text: str) -> None:
    print(f"kernel-lab: {text}", flush=True)


# --- Machines ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A kind of machine, and shell commands that must succeed in it: it really is what it is to be."""

    text: str
    cpus: str = "4"
    memory: str = "2560M"
    cpu: str = ""
    arguments: tuple[str, ...] = ()
    append: str = ""
    firmware: str = ""
    probes: tuple[str, ...] = field(default=())
    # What is run if nothing is asked for, instead of all tests.
    tests: tuple[str, ...] = ()


SHAPES = {
    "smp4": Shape("4 CPUs, all memory below 4 GB", probes=('[ "$(nproc)" = 4 ]',)),
    "numa": Shape(
        "8 CPUs: 2 NUMA nodes, 2 cores each with 2 threads",
        cpus="8,sockets=2,cores=2,threads=2",
        memory="4G",
        # Not marked as virtual: the host may load microcode.
        cpu=",vendor=GenuineIntel,family=6,model=85,stepping=4,-svm,-sse4a,-topoext,-cmp-legacy,-hypervisor",
        arguments=(
            "-object", "memory-backend-ram,id=m0,size=2G", "-object", "memory-backend-ram,id=m1,size=2G",
            "-numa", "node,nodeid=0,memdev=m0,cpus=0-3", "-numa", "node,nodeid=1,memdev=m1,cpus=4-7",
        ),
        probes=(
            '[ "$(nproc)" = 8 ]',
            '[ "$(cat /sys/devices/system/node/online)" = 0-1 ]',
            '[ "$(cat /sys/devices/system/cpu/cpu7/topology/thread_siblings_list)" = 6-7 ]',
            "[ -e /sys/devices/system/cpu/microcode ]",
        ),
    ),
    "mem8g": Shape(
        "8 GB: pool and instances above 4 GB",
        memory="8G",
        probes=("awk '/MemTotal/ { exit $2 < 7000000 }' /proc/meminfo",),
    ),
    "la57": Shape(
        "5-level paging",
        memory="5G",
        cpu=",la57=on",
        probes=("grep -qw la57 /proc/cpuinfo",),
    ),
    "x2apic": Shape(
        "x2APIC with interrupt remapping, and CPUs with APIC ids above 255",
        cpus="2,sockets=400,cores=1,threads=1,maxcpus=400",
        memory="5G",
        cpu=",+x2apic",
        arguments=(
            "-device", "intel-iommu,intremap=on,eim=on",
            "-device", "max-x86_64-cpu,socket-id=300,core-id=0,thread-id=0",
            "-device", "max-x86_64-cpu,socket-id=399,core-id=0,thread-id=0",
        ),
        probes=(
            "dmesg | grep -qi 'x2apic.*enabled\\|enabled x2apic'",
            '[ "$(nproc)" = 4 ]',
            "grep -q '^apicid.*: 399$' /proc/cpuinfo",
        ),
    ),
    "bios": Shape(
        "GRUB, started by a BIOS",
        memory="5G",
        firmware="bios",
        probes=("[ ! -e /sys/firmware/efi ]", "grep -q BOOT_IMAGE= /proc/cmdline"),
    ),
    "uefi": Shape(
        "GRUB, started by UEFI",
        memory="5G",
        firmware="uefi",
        probes=("[ -e /sys/firmware/efi ]", "grep -q BOOT_IMAGE= /proc/cmdline"),
    ),
    "locked": Shape(
        "a machine that a test locks down",
        cpus="2",
        probes=(
            "mount -t securityfs none /sys/kernel/security",
            "grep -qF '[none]' /sys/kernel/security/lockdown",
        ),
        tests=("signature", "lockdown", "signature"),
    ),
}  # fmt: skip

# The clock of an "icount" machine counts instructions (4 ns each) and skips idle time: however little CPU its
# emulator gets, no time-out in it comes too soon.
ACCELERATORS = {
    **lab_vm.ACCELERATORS,
    "icount": [
        "-accel", "tcg,thread=single", "-icount", "shift=2,sleep=off", "-rtc", "clock=vm",
        *lab_vm.ACCELERATORS["tcg"][-2:],
    ],
}  # fmt: skip

OVMF = ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd")


def qemu(shape: Shape, accelerator: str) -> list[str]:
    """QEMU without disks, networks and displays."""
    *start, model = ACCELERATORS[accelerator]
    return [
        lab_vm.QEMU, "-nodefaults", "-no-user-config", "-machine", "q35", *start, model + shape.cpu,
        "-smp", shape.cpus, "-m", shape.memory, "-display", "none", "-monitor", "none", "-no-reboot",
        *shape.arguments,
    ]  # fmt: skip


def serial(number: int, target: str) -> list[str]:
    """The ports have interrupts of their own: the kernel does not share them."""
    address, irq = ((0x3F8, 4), (0x2F8, 3), (0x3E8, 10))[number]
    return [
        "-chardev", f"{target},id=serial{number}",
        "-device", f"isa-serial,chardev=serial{number},index={number},iobase={address},irq={irq}",
    ]  # fmt: skip


def boot(shape: Shape, kernel: Path, initramfs: Path, append: str, scratch: Path) -> list[str]:
    """QEMU's arguments to start a kernel, directly or by a boot loader."""
    if not shape.firmware:
        return ["-kernel", str(kernel), "-initrd", str(initramfs), "-append", append]
    image = scratch / "boot.iso"
    make_image(image, kernel, initramfs, append, scratch)
    arguments = ["-drive", f"file={image},format=raw,media=cdrom,readonly=on,if=ide"]
    if shape.firmware == "uefi":
        variables = scratch / "OVMF_VARS.fd"
        if not Path(OVMF[0]).exists():
            raise LabError(f"{OVMF[0]} is missing: install ovmf")
        shutil.copy(OVMF[1], variables)
        arguments += [
            "-drive", f"if=pflash,format=raw,readonly=on,file={OVMF[0]}",
            "-drive", f"if=pflash,format=raw,file={variables}",
        ]  # fmt: skip
    return arguments


def make_image(image: Path, kernel: Path, initramfs: Path, append: str, scratch: Path) -> None:
    """A CD with GRUB for BIOS and for UEFI."""
    root = scratch / "image"
    (root / "boot/grub").mkdir(parents=True)
    os.link(kernel, root / "boot/kernel") if same_device(kernel, root) else shutil.copy(
        kernel, root / "boot/kernel"
    )
    shutil.copy(initramfs, root / "boot/initramfs")
    (root / "boot/grub/grub.cfg").write_text(
        f"set timeout=0\nlinux /boot/kernel {append}\ninitrd /boot/initramfs\nboot\n"
    )
    run(
        ["grub-mkrescue", "--output", str(image), str(root)],
        "make a CD with GRUB (grub-pc-bin, grub-efi-amd64-bin, xorriso, mtools)",
    )
    for need in ("i386-pc", "x86_64-efi"):
        if not Path("/usr/lib/grub", need).is_dir():
            raise LabError(f"GRUB for {need} is missing: install grub-pc-bin and grub-efi-amd64-bin")


def same_device(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def run(argv: list[str], what: str, **options) -> str:
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **options
        )
    except FileNotFoundError:
        raise LabError(f"cannot {what}: {argv[0]} is not installed") from None
    if done.returncode:
        raise LabError(
            f"cannot {what} (rc {done.returncode}): {(done.stderr or done.stdout).strip()[-2000:]}"
        )
    return done.stdout


# --- Kernels, selftests, initramfs --------------------------------------------------------------------


@dataclass(frozen=True)
class Built:
    out: Path

    @property
    def bzimage(self) -> Path:
        return self.out / "arch/x86/boot/bzImage"

    @property
    def vmlinux(self) -> Path:
        return self.out / "vmlinux"

    @property
    def selftests(self) -> Path:
        return self.out / "kselftest/multikernel"

    @property
    def signs(self) -> bool:
        """Does it know signatures?"""
        return (self.out / "certs/signing_key.x509").exists()


def logs(tree: Path) -> Path:
    """Where the logs of a kernel's machines stay: one series does not overwrite those of another."""
    version = tree_version(tree)
    if not version:
        raise LabError(f"{tree} is not a kernel tree: run `tools/series unpack` first")
    return LOGS / version


def built(tree: Path, variant: str) -> Built:
    return Built(tree.with_name(f"{tree.name}-{variant}"))


def build(args: argparse.Namespace) -> None:
    for variant in args.variants:
        build_variant(args.tree, variant, args.jobs)


def build_variant(tree: Path, variant: str, jobs: int, partial: bool = False) -> Built:
    """partial: the tree is within the series, and has not all options yet."""
    made = built(tree, variant)
    series = [
        str(TOP / "tools/series"),
        "build",
        str(tree),
        f"--out={made.out}",
        f"--jobs={jobs}",
        *(f"--fragment={name}" for name in VARIANTS[variant]),
        *(["--partial"] if partial else []),
    ]
    if subprocess.run(series, check=False).returncode:
        raise LabError(f"the kernel of variant {variant} cannot be built, see above")
    if (tree / SELFTESTS).exists() or not partial:
        build_selftests(tree, made, jobs)
    return made


def build_selftests(tree: Path, made: Built, jobs: int, headers: bool = True) -> None:
    if headers:
        make = ["make", "-s", "-C", str(tree), f"O={made.out}", f"-j{jobs}"]
        run([*make, "headers"], "make the kernel's headers")
    made.selftests.mkdir(parents=True, exist_ok=True)
    run(
        [
            "make", "-s", "-C", str(tree / SELFTESTS), f"-j{jobs}", f"OUTPUT={made.selftests}",
            f"KHDR_INCLUDES=-isystem {made.out}/usr/include", "USERCFLAGS=-Werror", "all",
        ],
        "build the selftests",
    )  # fmt: skip


def test_names(tree: Path) -> list[str]:
    """The test programs, as the selftests' Makefile lists them."""
    text = (tree / SELFTESTS / "Makefile").read_text().replace("\\\n", " ")
    found = re.findall(r"^TEST_GEN_PROGS \+?:?= (.+)$", text, re.M)
    if not found:
        raise LabError(f"{tree / SELFTESTS}/Makefile has no TEST_GEN_PROGS")
    return " ".join(found).split()


def wanted_tests(given: list[str], names: list[str]) -> list[list[str]]:
    """What was asked for, or all; nothing can run after the one that ends the host."""
    tests = [shlex.split(test) for test in given or names]
    if len(enders := [test[0] for test in tests if test[0] in LAST]) > 1:
        raise LabError(f"{' and '.join(enders)} end the machine: one at a time")
    return sorted(tests, key=lambda test: test[0] in LAST)


INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t debugfs debugfs /sys/kernel/debug
mount -t tmpfs tmpfs /tmp
gunzip -c /proc/config.gz >/config
exec </dev/null >/dev/ttyS1 2>&1
stty -echo <&1
export MK_VMLINUX=/vmlinux MK_BZIMAGE=/bzImage MK_CONSOLE_LOG=/dev/ttyS2 PATH=/bin
. /jobs
echo '# lab: finished'
sync
sleep 1
poweroff -f
"""


def make_host_initramfs(target: Path, made: Built, jobs: str, extra: dict[str, Path] | None = None) -> None:
    """busybox, selftests, the kernel to spawn, and what to run."""
    directory, program, plain = 0o040755, 0o100755, 0o100644
    members: list[tuple] = [(name, directory) for name in ("bin", "dev", "proc", "sys", "tmp", "tests")]
    members += [
        ("dev/console", 0o020600, b"", (5, 1)),
        ("bin/busybox", program, BUSYBOX.read_bytes()),
        ("init", program, INIT.encode()),
        ("jobs", plain, jobs.encode()),
        ("vmlinux", plain, made.vmlinux.read_bytes()),
    ]
    made_of = {str(parent) for name in extra or {} for parent in Path(name).parents} - {"."}
    members += [(name, directory) for name in sorted(made_of - {member[0] for member in members})]
    for name, path in (extra or {}).items():
        members.append((name, program if os.access(path, os.X_OK) else plain, path.read_bytes()))
    for path in sorted(made.selftests.iterdir()):
        if path.is_file() and os.access(path, os.X_OK):
            members.append((f"tests/{path.name}", program, path.read_bytes()))
    members.append(("TRAILER!!!", 0))
    with target.open("wb") as file:
        for number, member in enumerate(members, start=1):
            file.write(cpio.member(number, *member))


def make_signatures(made: Built, scratch: Path) -> dict[str, Path]:
    """What is appended to the kernel to sign it: with the key that it trusts, and with another one."""
    if not made.signs:
        return {}
    key, certificate = scratch / "other.key", scratch / "other.pem"
    argv = ["openssl", "req", "-new", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-batch"]
    argv += ["-subj", "/CN=nobody", "-keyout", str(key), "-out", str(certificate)]
    run(argv, "make a key that nobody trusts")
    trusted = made.out / "certs/signing_key.pem"  # of key and certificate
    size, found = made.vmlinux.stat().st_size, {}
    for name, signer in (
        ("vmlinux.sig", Signer(trusted, trusted)),
        ("vmlinux.other", Signer(key, certificate)),
    ):
        signed = scratch / "signed"
        shutil.copy(made.vmlinux, signed)
        signer.append(signed)
        found[name] = scratch / name
        with signed.open("rb") as file:
            file.seek(size)
            found[name].write_bytes(file.read())
        signed.unlink()
    return found


def with_libraries(program: Path) -> dict[str, Path]:
    """A program and the libraries that it is linked with, where the machine has them, too."""
    if not program.exists():
        raise LabError(f"{program} is missing: run `tools/bootstrap lab`")
    listed = run(["ldd", str(program)], f"ask what {program.name} is linked with")
    libraries = re.findall(r"(?:=> |^\s*)(/\S+) \(0x", listed, re.M)
    return {name.lstrip("/"): Path(name) for name in [str(program), *libraries]}


def check_inputs(made: Built) -> None:
    for path in (made.bzimage, made.vmlinux, made.selftests):
        if not path.exists():
            raise LabError(f"{path} is missing: run `tools/kernel-lab build` first")
    if not BUSYBOX.exists() or not make_initramfs.is_static(BUSYBOX.read_bytes()):
        raise LabError(f"{BUSYBOX} is missing or not static: install busybox-static")


# --- run ----------------------------------------------------------------------------------------------


class Tail:
    """New complete lines of a growing file."""

    def __init__(self, path: Path) -> None:
        self.path, self.position, self.rest = path, 0, b""

    def lines(self) -> Iterator[str]:
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(self.position)
            data = file.read()
            self.position += len(data)
            *lines, self.rest = (self.rest + data).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace").rstrip("\r")


def host_reports(log: Path) -> list[str]:
    """It may crash after it was told to, until its next kernel is up."""
    provoked, found = False, []
    for line in read_lines(log):
        provoked = HOST_PROVOKED in line or (provoked and HOST_READY not in line)
        if not provoked and REPORTS.search(line):
            found.append(line)
    return found


def complaints(log: Path) -> list[str]:
    """What the host could not do, as its kernel says: some tests provoke it, others fail of it."""
    return [line for line in read_lines(log) if COMPLAINTS.search(line)]


def spawn_reports(log: Path) -> list[str]:
    """As for the host, but a spawn may crash after it was told to, until the next one is up."""
    provoked: set[str] = set()
    found = []
    for line in read_lines(log):
        name, _bar, text = line.partition("| ")
        if PROVOKED in text:
            provoked.add(name)
        elif READY in text:
            provoked.discard(name)
        elif name not in provoked and REPORTS.search(text):
            found.append(line)
    return found


def read_lines(log: Path) -> list[str]:
    if not log.exists():
        return []
    return [line.rstrip("\r") for line in log.read_text(errors="replace").splitlines()]


def reasons(tap: list[str], failure: str) -> str:
    """What a failed test printed, in lines of their own."""
    end = tap.index(failure)
    begin = max((n for n in range(end) if re.match(r"#  RUN ", tap[n])), default=end)
    return "".join(f"\n    {line}" for line in tap[begin:end] if re.match(r"# \S+\.c:\d+:", line))


def judge(tap: list[str], console: list[str], wanted: list[str]) -> tuple[dict, list[str]]:
    """Counts, and everything that is wrong with a run."""
    problems = []
    results = [line for line in tap if re.match(r"(?:not )?ok \d+ ", line)]
    failed = [line for line in results if line.startswith("not ok")]
    skipped = [line for line in results if re.search(r"# SKIP", line)]
    counts = {
        "passed": len(results) - len(failed) - len(skipped),
        "failed": len(failed),
        "skipped": len(skipped),
    }
    problems += [f"{line}{reasons(tap, line)}" for line in failed]
    problems += [f"skipped: {line}" for line in skipped]
    exits = dict(re.findall(r"^# lab: exit (\S+) (\d+)$", "\n".join(tap), re.M))
    for name in wanted:
        if name not in exits:
            problems.append(f"{name} did not come to its end")
        elif exits[name] != "0":
            problems.append(f"{name} ended with status {exits[name]}")
    problems += [line.removeprefix("# lab: ") for line in tap if line.startswith("# lab: probe failed")]
    if not results:
        problems.append("there are no test results")
    if "# lab: finished" not in tap:
        problems.append(
            "the machine did not come to its end; its last lines:\n  " + "\n  ".join(console[-15:])
        )
    return counts, problems


def jobs_script(shape: Shape, tests: list[list[str]], settings: dict[str, str]) -> str:
    lines = ["uname -a | sed 's/^/# lab: /'"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in settings.items()]
    for probe in shape.probes:
        lines.append(f"({probe}) || echo '# lab: probe failed:' {shlex.quote(probe)}")
    epilogue = f"# lab: exit {tests[-1][0]} 0\n# lab: finished"
    lines.append(f"export MK_EPILOGUE={shlex.quote(epilogue)}")
    for test in tests:
        command = shlex.join([f"/tests/{test[0]}", *test[1:]])
        lines.append(f"echo '# lab: test {shlex.join(test)}'; {command}; echo \"# lab: exit {test[0]} $?\"")
        lines.append("echo \"lab: after $(cat /proc/uptime | cut -d' ' -f1) s\" >/dev/kmsg")
    return "\n".join(lines) + "\n"


def run_tests(args: argparse.Namespace) -> None:
    shape = SHAPES[args.shape]
    made = built(args.tree, args.variant)
    check_inputs(made)
    build_selftests(args.tree, made, args.jobs, headers=False)
    tests = wanted_tests(args.tests or list(shape.tests), [*test_names(args.tree), LAST[0]])
    settings = dict(setting.partition("=")[::2] for setting in args.set)
    extra, versions = {}, [tree_version(args.tree)]
    if tests[-1][0] in LAST:
        extra["bzImage"] = made.bzimage
    if args.next:
        if tests[-1][0] != "live":
            raise LabError("--next is for the test live, the others know one kernel only")
        other = built(args.next, args.variant)
        check_inputs(other)
        extra |= {"bzImage": other.bzimage, "after": made.bzimage}
        settings["MK_BZIMAGE_AFTER"] = "/after"
        versions.append(tree_version(args.next))
    for test in tests:
        if not (made.selftests / test[0]).exists():
            raise LabError(f"there is no test {test[0]}; there are {', '.join(test_names(args.tree))}")
    directory = logs(args.tree) / f"{args.variant}-{args.shape}{'-' + args.name if args.name else ''}"
    directory.mkdir(parents=True, exist_ok=True)
    tap, console, spawns = (directory / name for name in ("tap.log", "console.log", "spawns.log"))
    for log in (tap, console, spawns):
        log.unlink(missing_ok=True)
    timeout = args.timeout * SLOWNESS[args.variant]
    with tempfile.TemporaryDirectory(prefix="kernel-lab-", dir=directory) as scratch:
        initramfs = Path(scratch, "initramfs")
        extra |= make_signatures(made, Path(scratch)) | with_libraries(MAKEDUMPFILE)
        make_host_initramfs(initramfs, made, jobs_script(shape, tests, settings), extra)
        append = f"console=ttyS0 panic=-1 ignore_loglevel {shape.append} {args.append}".strip()
        argv = [
            *qemu(shape, args.accelerator),
            *boot(shape, made.bzimage, initramfs, append, Path(scratch)),
            *serial(0, f"file,path={console}"),
            *serial(1, f"file,path={tap}"),
            *serial(2, f"file,path={spawns}"),
        ]
        (directory / "command").write_text(shlex.join(argv) + "\n")
        begin = time.monotonic()
        ended = watch(argv, tap, timeout, args.quiet)
        seconds = time.monotonic() - begin
    counts, problems = judge(read_lines(tap), read_lines(console), [test[0] for test in tests])
    if ended:
        problems.append(ended)
    if args.next:
        problems += turns_not_taken(read_lines(tap), versions)
    reports = [f"host: {line}" for line in host_reports(console)]
    reports += [f"spawn {line}" for line in spawn_reports(spawns)]
    problems += reports
    if problems:
        problems += [f"the host said: {line}" for line in complaints(console)[-8:]]
    result = {
        "variant": args.variant,
        "shape": args.shape,
        "seconds": round(seconds, 1),
        **counts,
        "problems": problems,
    }
    (directory / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    numbers = ", ".join(f"{number} {what}" for what, number in counts.items())
    say(
        f"{args.variant} on {args.shape}: {numbers}, {len(reports)} reports, {seconds:.0f} s; "
        f"logs in {show(directory)}"
    )
    if problems:
        raise LabError("\n  ".join(["failed:", *problems[:60]]))


def turns_not_taken(tap: list[str], versions: list[str]) -> list[str]:
    """What is wrong with the kernels that followed each other: the two are to take turns."""
    ran = dict(re.findall(r"^# step (\d+) runs (\S+)$", "\n".join(tap), re.M))
    if not ran:
        return ["no step says which kernel it runs"]
    return [
        f"step {step} runs {release}, not {wanted}"
        for step, release in ran.items()
        if not release.startswith(f"{(wanted := versions[int(step) % 2])}.")
    ]


def show(path: Path) -> Path:
    return path.relative_to(TOP) if path.is_relative_to(TOP) else path


def watch(argv: list[str], tap: Path, timeout: float, quiet: bool) -> str:
    """Run QEMU to its end and print the test output meanwhile; what went wrong, or nothing."""
    tail = Tail(tap)
    deadline = time.monotonic() + timeout
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
        try:
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.2)
                print_lines(tail, quiet)
            ended = process.poll()
        finally:
            process.kill()
            process.wait()
        print_lines(tail, quiet)
        errors.seek(0)
        message = errors.read().strip()
    if ended is None:
        return f"it took longer than {timeout:.0f} s"
    return f"QEMU ended with status {ended}: {message}" if ended else ""


def print_lines(tail: Tail, quiet: bool) -> None:
    for line in tail.lines():
        if not quiet or re.match(r"(?:not )?ok |# lab: ", line):
            print(line, flush=True)


# --- bench --------------------------------------------------------------------------------------------

PLAIN = Shape("the plain guest", cpus="1", memory="256M")
FIGURES = (
    ("load", "load kernel and initramfs"),
    ("first_byte", "start to first console byte"),
    ("userland", "start to userland"),
    ("restart", "start to userland, again in the same memory"),
    ("plain", "plain QEMU guest, start to userland"),
    ("stop", "forced stop"),
    ("cpu_add", "add a CPU to the running spawn"),
    ("cpu_remove", "remove it again"),
)


class Conversation:
    """The bench program in the host machine, over its second serial port."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + 10
        while True:
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise LabError(f"QEMU does not listen on {path}") from None
                time.sleep(0.05)
        self.text = b""

    def wait(self, seconds: float) -> dict:
        deadline = time.monotonic() + seconds
        while True:
            while b"\n" in self.text:
                line, self.text = self.text.split(b"\n", 1)
                if line.startswith(b"bench {"):
                    return json.loads(line[6:])
                if b"not ok" in line or b"failed" in line:
                    raise LabError(f"the bench program says: {line.decode(errors='replace').strip()}")
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.socket], [], [], left)[0]:
                raise LabError(f"the bench program does not answer; it said {self.text[-500:]!r}")
            data = self.socket.recv(65536)
            if not data:
                raise LabError("the host machine has ended")
            self.text += data

    def ask(self, command: str, seconds: float) -> dict:
        self.socket.sendall(command.encode() + b"\n")
        return self.wait(seconds)


def plain_guest(made: Built, initramfs: Path, accelerator: str, append: str) -> float:
    """Seconds from QEMU's start to its userland's first line."""
    argv = [
        *qemu(PLAIN, accelerator), "-kernel", str(made.bzimage), "-initrd", str(initramfs),
        "-append", f"console=ttyS0 {append}", "-serial", "stdio",
    ]  # fmt: skip
    begin = time.monotonic()
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    text = b""
    try:
        while READY.encode() not in text:
            if not select.select([process.stdout], [], [], 120)[0]:
                raise LabError(f"the plain guest is not up after 120 s: {text[-1000:]!r}")
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                raise LabError(f"the plain guest has ended: {text[-1000:]!r}")
            text += data
        return time.monotonic() - begin
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def bench(args: argparse.Namespace) -> None:
    made = built(args.tree, args.variant)
    check_inputs(made)
    build_selftests(args.tree, made, args.jobs, headers=False)
    directory = logs(args.tree) / f"bench-{args.variant}"
    directory.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[args.shape]
    samples: dict[str, list[float]] = {name: [] for name, _text in FIGURES}
    with tempfile.TemporaryDirectory(prefix="kernel-lab-", dir=directory) as scratch:
        spawn = Path(scratch, "spawn")
        make_spawn_initramfs(spawn, made)
        initramfs = Path(scratch, "initramfs")
        steps = "--no-cpu-hotplug" if args.no_cpu_hotplug else ""
        jobs = f"MK_INITRAMFS=/spawn exec /tests/bench {shlex.quote(args.append)} {steps} </dev/ttyS1\n"
        make_host_initramfs(initramfs, made, jobs, {"spawn": spawn})
        listener = Path(scratch, "bench.sock")
        argv = [
            *qemu(shape, args.accelerator),
            *boot(shape, made.bzimage, initramfs, "console=ttyS0 panic=-1 ignore_loglevel", Path(scratch)),
            *serial(0, f"file,path={directory / 'console.log'}"),
            *serial(1, f"socket,path={listener},server=on,wait=off"),
            *serial(2, f"file,path={directory / 'spawns.log'}"),
        ]  # fmt: skip
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        try:
            talk = Conversation(listener)
            facts = talk.wait(120)
            say(f"host is up: {facts}")
            for number in range(args.warm_up + args.samples):
                measured = talk.ask("sample", 300)
                measured["plain"] = plain_guest(made, spawn, args.accelerator, args.append)
                if number < args.warm_up:
                    continue
                for name in samples:
                    if name in measured:
                        samples[name].append(measured[name])
        finally:
            process.kill()
            process.wait()
    report_figures(args, samples, directory / "figures.json")


def make_spawn_initramfs(target: Path, made: Built) -> None:
    init = made.selftests / "spawn_init"
    members = [(name, 0o040755) for name in ("dev", "proc", "sbin", "sys")]
    members += [("init", 0o100755, init.read_bytes()), ("TRAILER!!!", 0)]
    target.write_bytes(
        b"".join(cpio.member(number, *member) for number, member in enumerate(members, start=1))
    )


def report_figures(args: argparse.Namespace, samples: dict[str, list[float]], target: Path) -> None:
    medians = {name: statistics.median(values) for name, values in samples.items() if values}
    ratio = medians["userland"] / medians["plain"]
    print(f"\n{'median of ' + str(args.samples):<44} {'ms':>9} {'least':>9} {'most':>9}")
    for name, text in FIGURES:
        if samples[name]:
            low, high = min(samples[name]), max(samples[name])
            print(f"{text:<44} {medians[name] * 1e3:9.2f} {low * 1e3:9.2f} {high * 1e3:9.2f}")
    print(f"{'start to userland, spawn / plain guest':<44} {ratio:9.2f}")
    target.write_text(
        json.dumps(
            {
                "variant": args.variant, "shape": args.shape, "accelerator": args.accelerator,
                "append": args.append, "medians_s": medians, "ratio": ratio, "samples_s": samples,
            },
            indent=2,
        )
        + "\n"
    )  # fmt: skip
    say(f"figures in {show(target)}")
    if args.goal and ratio > args.goal:
        raise LabError(f"the ratio is {ratio:.2f}, the goal {args.goal}")


# --- sparse -------------------------------------------------------------------------------------------


def sparse(args: argparse.Namespace) -> None:
    """make C=2 on the objects of the series; a file of the base may keep the warnings that it had."""
    if not shutil.which("sparse"):
        raise LabError("sparse is not installed: apt-get install sparse")
    made = built(args.tree, args.variant)
    if not (made.out / ".config").exists():
        raise LabError(f"{made.out} is not configured: run `tools/kernel-lab build {args.variant}` first")
    changed = git(args.tree, "diff", "--name-only", f"{args.base}..HEAD", "--", "*.c").split()
    sources = [name for name in changed if (args.tree / name).exists() and not name.startswith("tools/")]
    objects = [name.removesuffix(".c") + ".o" for name in sources]
    environment = {
        **os.environ, "CCACHE_DIR": str(CACHE / "ccache"), "CCACHE_BASEDIR": str(args.tree.parent),
        "CCACHE_NOHASHDIR": "1", "LOCALVERSION": "-series",
    }  # fmt: skip
    make = [
        "make",
        "-C",
        str(args.tree),
        f"O={made.out}",
        f"-j{args.jobs}",
        "CC=ccache gcc",
        "HOSTCC=ccache gcc",
    ]
    done = subprocess.run(
        [*make, "C=2", *objects], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LabError(f"make C=2 failed: {(done.stdout + done.stderr).strip()[-3000:]}")
    output = done.stdout + done.stderr
    checked = set(
        re.findall(r"^\s+CHECK\s+(?:\S*/)?linux[^/]*/(\S+\.c)$|^\s+CHECK\s+(\S+\.c)$", output, re.M)
    )
    if len(checked) < len(sources):
        raise LabError(
            f"sparse saw {len(checked)} files of {len(sources)}: the variant {args.variant} lacks some"
        )
    new = []
    for name in sources:
        found = warnings_of(output, name)
        if found and name in base_files(args):
            known = base_warnings(args, made, name)
            found = [text for text in found if text not in known]
        new += [f"{name}: {text}" for text in found]
    if new:
        raise LabError("new warnings:\n  " + "\n  ".join(new))
    say(f"sparse: {len(sources)} files, no warning that {args.base} does not have")


def git(tree: Path, *arguments: str) -> str:
    return run(["git", "-C", str(tree), *arguments], f"run git {arguments[0]} in {tree}")


def each(args: argparse.Namespace) -> None:
    """A bisection may stop at any patch: each builds, kernel or selftests, by itself."""
    tree = args.tree.with_name(f"{args.tree.name}-each")
    if not tree.exists():
        git(args.tree, "worktree", "prune")
        git(args.tree, "worktree", "add", "--quiet", "--detach", str(tree), args.base)
    commits = git(args.tree, "rev-list", "--reverse", f"{args.base}..HEAD").split()
    for number, commit in enumerate(commits, 1):
        git(tree, "checkout", "--quiet", "--detach", "--force", commit)
        title = git(tree, "show", "--no-patch", "--format=%s", commit).strip()
        files = git(tree, "show", "--name-only", "--format=", commit).split()
        began = time.monotonic()
        try:
            if any(not name.startswith(("Documentation/", "tools/")) for name in files):
                build_variant(tree, args.variant, args.jobs, partial=True)
            elif any(name.startswith(f"{SELFTESTS}/") for name in files):
                build_selftests(tree, built(tree, args.variant), args.jobs)
        except LabError as error:
            raise LabError(f"{number} of {len(commits)}, {title}: {error}") from error
        say(f"each: {number} of {len(commits)}: {title}: {time.monotonic() - began:.0f} s")


def base_files(args: argparse.Namespace) -> set[str]:
    return set(git(args.tree, "ls-tree", "-r", "--name-only", args.base).splitlines())


def warnings_of(output: str, name: str) -> list[str]:
    """What sparse says of a file, without line numbers: those change."""
    return re.findall(rf"^\S*{re.escape(name)}:\d+:\d+: (?:warning|error): (.*)$", output, re.M)


def compiler_options(command: str) -> list[str]:
    """Of the line in a .cmd file, with the words that belong to them; not what is compiled, and to where."""
    words = iter(shlex.split(command.partition(":=")[2].partition(" ; ")[0]))
    options = []
    for word in words:
        if word == "-o":
            next(words)
        elif word in ("-include", "-isystem", "-I", "--param"):
            options += [word, next(words)]
        elif word.startswith("-") and word != "-c":
            options.append(word)
    return options


def base_warnings(args: argparse.Namespace, made: Built, name: str) -> list[str]:
    """sparse on the file as it was, with the options that it is compiled with now."""
    path = Path(name)
    options = compiler_options((made.out / path.parent / f".{path.stem}.o.cmd").read_text().splitlines()[0])
    with tempfile.TemporaryDirectory() as scratch:
        old = Path(scratch, name)
        old.parent.mkdir(parents=True)
        old.write_text(git(args.tree, "show", f"{args.base}:{name}"))
        flags = ["-D__linux__", "-D__STDC__", "-D__unix__", "-D__x86_64__", "--arch=x86", "-Wbitwise", "-m64"]
        done = subprocess.run(
            ["sparse", *flags, "-Wno-return-void", *options, f"-I{args.tree / path.parent}", str(old)],
            cwd=made.out,
            capture_output=True,
            text=True,
            check=False,
        )
    return warnings_of(done.stdout + done.stderr, name)


def shapes(_args: argparse.Namespace) -> None:
    for name, shape in SHAPES.items():
        print(f"{name:<10} {shape.text}{': ' if shape.tests else ''}{', '.join(shape.tests)}")
    print()
    for name, fragments in VARIANTS.items():
        print(f"{name:<10} {' '.join(('lab', 'multikernel', *fragments))}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="kernel-lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tree", type=Path, default=TREE, help="repository with the series (%(default)s)")
    parser.add_argument(
        "--jobs", type=int, default=len(os.sched_getaffinity(0)), help="compilers at once (%(default)s)"
    )
    parser.add_argument("--accelerator", choices=ACCELERATORS, default="tcg", help="of QEMU (%(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("build", help="build variants")
    command.add_argument("variants", nargs="+", choices=VARIANTS, metavar="VARIANT", help=" ".join(VARIANTS))
    command.set_defaults(function=build)

    command = commands.add_parser("run", help="run selftests")
    command.add_argument("tests", nargs="*", help="programs, with arguments in quotes (all)")
    command.add_argument("--variant", choices=VARIANTS, default="normal", help="kernel (%(default)s)")
    command.add_argument("--shape", choices=SHAPES, default="smp4", help="machine (%(default)s)")
    command.add_argument(
        "--timeout", type=float, default=1200, help="seconds; more on debug kernels (%(default)s)"
    )
    command.add_argument("--append", default="", help="more for the host's command line")
    command.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="environment of the tests"
    )
    command.add_argument("--name", default="", help="suffix of the directory with the logs")
    command.add_argument(
        "--next", type=Path, help="live: repository whose kernel, of the same variant, is every second one"
    )
    command.add_argument("--quiet", action="store_true", help="results only")
    command.set_defaults(function=run_tests)

    command = commands.add_parser("bench", help="measure")
    command.add_argument("--variant", choices=VARIANTS, default="lab", help="kernel (%(default)s)")
    command.add_argument("--shape", choices=SHAPES, default="smp4", help="machine of the host (%(default)s)")
    command.add_argument("--samples", type=int, default=20, help="(%(default)s)")
    command.add_argument("--warm-up", type=int, default=1, help="samples that do not count (%(default)s)")
    command.add_argument("--append", default="quiet", help="command line of spawn and guest (%(default)s)")
    command.add_argument("--no-cpu-hotplug", action="store_true", help="do not add and remove a CPU")
    command.add_argument("--goal", type=float, help="fail if the ratio to the plain guest is higher")
    command.set_defaults(function=bench)

    command = commands.add_parser("sparse", help="static checks")
    command.add_argument("--base", default="base", help="commit whose warnings are known (%(default)s)")
    command.add_argument("--variant", choices=VARIANTS, default="normal", help="configuration (%(default)s)")
    command.set_defaults(function=sparse)

    command = commands.add_parser("each", help="build every patch of the series, one after the other")
    command.add_argument("--base", default="base", help="commit that the series follows (%(default)s)")
    command.add_argument("--variant", choices=VARIANTS, default="normal", help="configuration (%(default)s)")
    command.set_defaults(function=each)

    commands.add_parser("shapes", help="list shapes and variants").set_defaults(function=shapes)
    args = parser.parse_args()
    args.tree = args.tree.absolute()
    if getattr(args, "next", None):
        args.next = args.next.absolute()
    try:
        args.function(args)
    except LabError as error:
        print(f"kernel-lab: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
