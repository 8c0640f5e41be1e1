# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts and stops the QEMU processes of lab hosts, and finds out which accelerator really works.

    lab_vm.py start '{"directory": ..., "image": ..., "cpus": ..., ...}'   prints {"changed", "pid", "port"}
    lab_vm.py stop DIRECTORY [--delete]                                    prints {"changed"}
    lab_vm.py trial IMAGE CACHE_DIRECTORY                                  prints {"accelerator", "reason"}

A host is a directory: disk.qcow2 (an overlay of the shared image), disk-N.raw (empty at first), variables.fd
(of UEFI), qemu.pid, console.log, host.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

QEMU = "qemu-system-x86_64"
# cx16: 6.12 guests die at random in cmpxchg16b as older versions of TCG emulate it.
# erms, fsrm: with them the guest clears memory by string instructions, which TCG runs slowly.
ACCELERATORS = {
    "tcg": ["-accel", "tcg,thread=multi", "-cpu", "max,-cx16,-erms,-fsrm"],
    "kvm": ["-accel", "kvm", "-cpu", "host"],
}
READY = b"lab-ready"
TRIAL_SECONDS = 15


class LabError(Exception):
    """Something a person has to look at."""


def machine(accelerator: str, cpus: int, memory_mib: int, console: Path) -> list[str]:
    """The part of the command line that trials and real hosts have in common."""
    return [
        QEMU, "-nodefaults", "-no-user-config", "-machine", "q35", *ACCELERATORS[accelerator],
        "-smp", str(cpus), "-m", f"{memory_mib}M", "-display", "none",
        "-serial", f"file:{console}", "-device", "virtio-rng-pci",
    ]  # fmt: skip


def drive(path: Path, fmt: str, *options: str) -> list[str]:
    # a comma in a file name is doubled in QEMU's option syntax
    name = str(path).replace(",", ",,")
    return ["-drive", ",".join((f"file={name}", "if=virtio", f"format={fmt}", *options))]


def firmware(directory: Path, uefi: dict) -> list[str]:
    """UEFI with variables of the host's own, as {"code": FILE, "variables": FILE}; nothing for a BIOS."""
    if not uefi:
        return []
    variables = directory / "variables.fd"
    if not variables.exists():
        shutil.copyfile(uefi["variables"], variables)
    flash = [(uefi["code"], "readonly=on"), (variables, "readonly=off")]
    return [
        word
        for unit, (path, mode) in enumerate(flash)
        for word in ("-drive", f"file={str(path).replace(',', ',,')},if=pflash,unit={unit},format=raw,{mode}")
    ]


def disks(directory: Path, sizes: list[str]) -> list[str]:
    """More disks, sparse files."""
    words = []
    for number, size in enumerate(sizes, start=1):
        path = directory / f"disk-{number}.raw"
        if not path.exists():
            run(["truncate", f"--size={size}", str(path)])
        words += drive(path, "raw", "cache=unsafe")
    return words


def network(port: int, internet: bool) -> list[str]:
    """SSH from this machine's loopback; the world only if asked for."""
    restrict = "off" if internet else "on"
    return [
        "-netdev", f"user,id=net,restrict={restrict},hostfwd=tcp:127.0.0.1:{port}-:22",
        "-device", "virtio-net-pci,netdev=net,romfile=",
    ]  # fmt: skip


def free_port(preferred: int | None) -> int:
    """The port the host had before if it is still free, else any."""
    for port in (preferred or 0, 0):
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            return sock.getsockname()[1]
    raise LabError("no free TCP port on 127.0.0.1")


def running(directory: Path) -> int | None:
    """The pid of this host's QEMU: the pid file is believed only if that process was given our disk."""
    try:
        pid = int((directory / "qemu.pid").read_text())
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if str(directory / "disk.qcow2").replace(",", ",,").encode() in arguments else None


def read_state(directory: Path) -> dict:
    with contextlib.suppress(OSError, ValueError):
        return json.loads((directory / "host.json").read_text())
    return {}


def run(argv: list[str], **options) -> None:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **options
    )
    if done.returncode:
        message = done.stderr.strip() or done.stdout.strip()
        raise LabError(f"{argv[0]} failed (rc {done.returncode}): {message}\ncommand: {' '.join(argv)}")


def start(spec: dict) -> dict:
    directory = Path(spec["directory"])
    state = read_state(directory)
    pid = running(directory)
    if state.get("spec") == spec and pid:
        return {"changed": False, "pid": pid, "port": state["port"]}
    if state.get("spec") != spec:
        # Another image, size or accelerator: a lab host has nothing to lose and is made anew.
        stop(directory, delete=True)
    directory.mkdir(parents=True, exist_ok=True)
    disk, console = directory / "disk.qcow2", directory / "console.log"
    if not disk.exists():
        run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", spec["image"], str(disk)])
    if console.exists():
        console.replace(directory / "console.log.1")
    port = free_port(state.get("port"))
    run([
        *machine(spec["accelerator"], spec["cpus"], spec["memory_mib"], console),
        *firmware(directory, spec["uefi"]),
        *drive(disk, "qcow2", "cache=unsafe"), *disks(directory, spec["disks"]),
        *network(port, spec["internet"]), *spec["qemu_arguments"],
        "-name", directory.name, "-pidfile", str(directory / "qemu.pid"), "-daemonize",
    ])  # fmt: skip
    (directory / "host.json").write_text(json.dumps({"spec": spec, "port": port}, indent=2) + "\n")
    return {"changed": True, "pid": running(directory), "port": port}


def stop(directory: Path, delete: bool = False) -> dict:
    pid = running(directory)
    for sig, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        if not running(directory):
            break
        os.kill(pid, sig)
        deadline = time.monotonic() + seconds
        while running(directory) and time.monotonic() < deadline:
            time.sleep(0.05)
    if running(directory):
        raise LabError(f"{QEMU} of {directory} (pid {pid}) does not end, not even after SIGKILL")
    changed = pid is not None
    if delete:
        # The console logs stay: they tell what happened.
        for pattern in ("disk*.*", "variables.fd", "host.json", "qemu.pid"):
            for path in directory.glob(pattern):
                path.unlink(missing_ok=True)
                changed = True
    return {"changed": changed}


def trial(image: str, cache: Path) -> dict:
    """KVM only if a guest really gets to its userland with it in time: the device node alone proves nothing.

    The verdict of a trial holds until this machine is booted again.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return {"accelerator": "tcg", "reason": "/dev/kvm does not exist, or this user may not use it"}
    verdict = cache / "accelerator.json"
    key = [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), shutil.which(QEMU)]
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(verdict.read_text())
        if known["key"] == key:
            return known
    result = try_kvm(image)
    cache.mkdir(parents=True, exist_ok=True)
    verdict.write_text(json.dumps({**result, "key": key}) + "\n")
    return result


def try_kvm(image: str) -> dict:
    with tempfile.TemporaryDirectory(prefix="mkops-trial-") as scratch:
        console, errors = Path(scratch, "console.log"), Path(scratch, "errors")
        argv = [*machine("kvm", 2, 1024, console), *drive(Path(image), "raw", "snapshot=on")]
        begin = time.monotonic()
        with errors.open("wb") as stderr:
            qemu = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr)
            try:
                while qemu.poll() is None and time.monotonic() - begin < TRIAL_SECONDS:
                    if console.exists() and READY in console.read_bytes():
                        seconds = time.monotonic() - begin
                        return {"accelerator": "kvm", "reason": f"a guest was up with KVM in {seconds:.0f} s"}
                    time.sleep(0.2)
                ended = qemu.poll()
            finally:
                qemu.kill()
                qemu.wait()
        if ended is None:
            return {"accelerator": "tcg", "reason": f"a guest was not up with KVM in {TRIAL_SECONDS} s"}
        last = (errors.read_text(errors="replace").strip().splitlines() or ["no message"])[-1]
        return {"accelerator": "tcg", "reason": f"QEMU with KVM ended by itself (rc {ended}): {last}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("start").add_argument("spec", type=json.loads)
    command = commands.add_parser("stop")
    command.add_argument("directory", type=Path)
    command.add_argument("--delete", action="store_true")
    command = commands.add_parser("trial")
    command.add_argument("image")
    command.add_argument("cache", type=Path)
    options = vars(parser.parse_args())
    function = {"start": start, "stop": stop, "trial": trial}[options.pop("command")]
    try:
        print(json.dumps(function(**options)))
    except (LabError, OSError) as error:
        sys.exit(f"lab: {error}")


if __name__ == "__main__":
    main()
