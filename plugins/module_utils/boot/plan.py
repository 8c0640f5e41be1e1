# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What it takes to have a host run a kernel without ever losing the one that works. No I/O.

The kernel that runs is made the default, the new one is installed beside it and armed for one boot, with a
timer that restarts the host unless somebody confirms. After the restart it is judged, and made the default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

PREVIOUS = "previous"
TOKEN_WORD = "mkops.trial="
PANIC_SECONDS = 10
# An emergency restart is refused by the kernel while there are such instances.
LIVE = ("active", "loaded")
UNIT = "mkops-kernel-trial"
# Entries of the boot menu that are ours: the trial, and lasting ones with a command line of their own.
TRIAL_ID = "mkops-trial"
OWN_ID = "mkops-kernel-"
# What a boot menu, GRUB's shell or the kernel would not take as it stands.
_WORD = re.compile(r"[\w.,:=/@%+~\[\]!^-]+")
# What brings a kernel back that hangs: the option that must be built in, the word that turns it into a crash,
# and what it notices.
GUARDS = {
    "SOFTLOCKUP_DETECTOR": ("softlockup_panic=1", "a processor that never leaves the kernel"),
    "DETECT_HUNG_TASK": ("hung_task_panic=1", "a task that waits for ever"),
}


@dataclass(frozen=True)
class Wish:
    release: str
    boot: bool = True
    package: bool = False  # whether packages were given
    image_sha256: str = ""
    cmdline: str = ""
    keep: int = 3
    reboot_ok: bool = False
    stop_instances: bool = False
    trial_timeout: int = 600
    health_timeout: int = 120


@dataclass(frozen=True)
class Boot:
    """What the boot loader does, as far as it matters here. An entry is named by what selects it."""

    loader: str = ""  # empty if there is none that is known; faults say why
    entries: Mapping[str, str] = field(default_factory=dict)  # release: its ordinary entry
    releases: Mapping[str, str] = field(default_factory=dict)  # any name of an entry: the release it starts
    own: Mapping[str, str] = field(default_factory=dict)  # release with an entry of ours: its command line
    suffix: str = ""  # of the names of entries that are ours
    default: str = ""  # the entry that a restart starts, if it is known at all
    once: str = ""  # the entry for the next boot only
    remembers: bool = True  # a default that is set lasts
    fixed: str = ""  # why no default can be set at all
    faults: tuple[str, ...] = ()  # why no kernel can be booted on trial
    broken: Mapping[str, str] = field(default_factory=dict)  # release: why this one cannot
    variables: bool = False  # it is told what to do by EFI variables


@dataclass(frozen=True)
class Host:
    """What was seen."""

    running: str
    boot_id: str
    cmdline: tuple[str, ...]
    systemd: bool
    boot: Boot
    kernels: tuple[str, ...]  # with an image in /boot
    packaged: tuple[str, ...]  # of those, installed by a package
    images: Mapping[str, str]  # release: sha256 of /boot/vmlinux-RELEASE
    untrusted: Mapping[str, str] = field(default_factory=dict)  # release: why Secure Boot would not start it
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # of /boot/config-RELEASE
    watchdog: str = ""
    instances: Mapping[str, str] = field(default_factory=dict)
    record: Mapping = field(
        default_factory=dict
    )  # {"kernels": [installed through here], "previous": the last good one}
    trial: Mapping = field(default_factory=dict)  # the one under way or left behind

    @property
    def token(self) -> str:
        """Of the trial that this very boot is."""
        words = [word for word in self.cmdline if word.startswith(TOKEN_WORD)]
        return words[-1].removeprefix(TOKEN_WORD) if words else ""

    @property
    def on_trial(self) -> bool:
        return bool(self.trial) and self.token == self.trial.get("token")

    @property
    def default(self) -> str:
        """Release of the kernel that a restart starts, if it is known."""
        return self.boot.releases.get(self.boot.default, "")


@dataclass(frozen=True)
class Plan:
    release: str
    refusals: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    pin: str = ""  # entry of the running kernel to make the default first
    saved: bool = False  # the boot loader is to remember its default
    install: bool = False
    image: bool = False
    boot: bool = False
    resume: bool = False  # a trial of this kernel is running, and was not judged yet
    promote: bool = False
    disarm: bool = False
    stop: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return bool(self.steps())

    def steps(self) -> list[str]:
        steps = []
        if self.disarm:
            steps.append("forget the trial that was left behind")
        if self.saved:
            steps.append("let the boot loader remember its default")
        if self.pin:
            steps.append(f"keep the running kernel as the default, {self.pin}")
        if self.install:
            steps.append(f"install {self.release}")
        if self.image:
            steps.append(f"place /boot/vmlinux-{self.release}")
        steps += [f"stop instance {name}" for name in self.stop]
        if self.boot:
            steps.append(f"boot {self.release} once, on trial")
        if self.promote:
            steps += ["judge its health", f"make {self.release} the default"]
        steps += [f"remove {release}" for release in self.remove]
        return steps


def version_key(release: str) -> tuple:
    """6.12.107 comes after 6.12.99."""
    return tuple(
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"\d+|\D+", release)
    )


def removable(host: Host, release: str, keep: int, wanted_previous: str) -> tuple[str, ...]:
    """Kernels beyond the `keep` newest, of those that were installed through here.

    Neither the running, the wanted, the default, nor the last good one is ever among them, nor one that the
    distribution installed.
    """
    holy = {
        host.running,
        release,
        wanted_previous,
        host.record.get("previous", ""),
        host.default,
    }
    ours = sorted(
        (name for name in host.record.get("kernels", {}) if name in host.packaged),
        key=version_key,
        reverse=True,
    )
    others = [name for name in ours if name not in holy]
    room = max(0, keep - len([name for name in holy if name in ours or name == release]))
    return tuple(others[room:])


def plan(wish: Wish, host: Host) -> Plan:
    """All that is to be done, or every reason why nothing is."""
    no: list[str] = []
    warnings: list[str] = []
    release = wish.release
    if release == PREVIOUS:
        release = host.record.get("previous", "")
        if not release:
            return Plan(
                "", ("no kernel was promoted here before, so there is no previous one; name a release",)
            )

    installed = release in host.kernels
    install = wish.package and release not in host.packaged
    if not installed and not install:
        kernels = ", ".join(sorted(host.kernels, key=version_key)) or "none"
        no.append(f"{release} is not installed and no packages are given; installed are {kernels}")
    if bad := bad_words(wish.cmdline):
        no.append(f"cmdline has words that a boot menu cannot hold: {', '.join(bad)}")
    if wish.keep < 2:
        no.append(
            f"keep is {wish.keep}; the running kernel and the last good one stay in any case, give 2 or more"
        )

    loader = host.boot
    if not loader.loader:
        return Plan(release, (*no, *loader.faults))

    entry = loader.entries.get(release, "")
    own = own_id(release) + loader.suffix
    target = own if wish.cmdline else entry
    runs = host.running == release and all(word in host.cmdline for word in wish.cmdline.split())
    if loader.default == own and entry:
        # Words that are no longer wanted are gone only after a restart.
        runs &= loader.own.get(release) == wish.cmdline
    resume = wish.boot and host.on_trial and host.trial.get("release") == release
    boot = wish.boot and not runs and not resume
    promote = wish.boot and (boot or resume or loader.default != target)
    image = bool(wish.image_sha256) and host.images.get(release) != wish.image_sha256
    if host.on_trial and not resume and (wish.boot or install):
        no.append(
            f"a trial of {host.running} is running and was neither confirmed nor given up; wait until the "
            f"host is back on {host.trial.get('previous')}, or ask for {host.running} to judge it now"
        )
    disarm = bool(host.trial) and not host.on_trial

    if boot:
        if not wish.reboot_ok:
            no.append(
                f"{host.running} runs and a restart is needed to boot {release}; set reboot_ok to true to "
                "allow it, or state to installed to go without"
            )
        if wish.trial_timeout <= wish.health_timeout:
            no.append(
                f"trial_timeout is {wish.trial_timeout} s, which leaves no time to boot before the "
                f"{wish.health_timeout} s of health.timeout; give more"
            )
        if not host.systemd:
            no.append("systemd does not run here; the timer that gives up a trial needs it")
        no += loader.faults
        # Without the one that runs there is no way back.
        no += [
            loader.broken[name] for name in dict.fromkeys((release, host.running)) if name in loader.broken
        ]
        if why := host.untrusted.get(release):
            no.append(f"Secure Boot is on and the image of {release} {why}, or turn Secure Boot off")
        live = sorted(name for name, status in host.instances.items() if status in LIVE)
        if live and not wish.stop_instances:
            names = ", ".join(f"{name} ({host.instances[name]})" for name in live)
            no.append(f"instances are not stopped: {names}; stop them, or set instances to stop")
        options = host.options.get(release)
        if options is not None and loader.variables and (lacks := without_variables(options, wish.cmdline)):
            no.append(f"{release} {lacks}, so it could not be made the default of {loader.loader}")
        if options is not None:
            for option, (_word, what) in GUARDS.items():
                if options.get(option) != "y":
                    warnings.append(
                        f"{release} has no CONFIG_{option}: {what} ends the trial only through its time "
                        f"limit of {wish.trial_timeout} s, and only if systemd still runs"
                    )
        if not host.watchdog:
            warnings.append(
                f"no hardware watchdog: should {release} hang before systemd starts and not panic, somebody "
                "has to reset the host"
            )
    else:
        live = []

    pin = ""
    if (install or boot) and not host.on_trial:
        # Entries of our own are lasting, too.
        kept = host.default == host.running
        pin = "" if kept else loader.entries.get(host.running, "")
        if not kept and not pin:
            no.append(
                f"the running kernel {host.running} is not in the menu of {loader.loader} and cannot be kept "
                "as the default"
            )
        elif pin and not boot and host.running in loader.broken:
            no.append(loader.broken[host.running])
    if loader.fixed and (pin or install or promote):
        no.append(loader.fixed)
    removed = removable(host, release, wish.keep, host.running if boot else "") if wish.boot else ()
    return Plan(
        release=release,
        refusals=tuple(no),
        warnings=tuple(warnings),
        pin=pin,
        saved=bool(promote or install) and not loader.remembers,
        install=install,
        image=image,
        boot=boot,
        resume=resume,
        promote=promote,
        disarm=disarm,
        stop=tuple(live),
        remove=removed,
    )


def without_variables(options: Mapping[str, str], cmdline: str) -> str:
    """Why a kernel cannot write EFI variables; empty if it can."""
    if options.get("EFIVAR_FS") not in ("y", "m"):
        return "has no CONFIG_EFIVAR_FS"
    # The default of kernels with PREEMPT_RT.
    if options.get("EFI_DISABLE_RUNTIME") == "y" and "efi=runtime" not in cmdline.split():
        return "has CONFIG_EFI_DISABLE_RUNTIME and no efi=runtime in cmdline"
    return ""


def own_id(release: str) -> str:
    return f"{OWN_ID}{release}"


def bad_words(cmdline: str) -> list[str]:
    """The words of a command line that cannot be written into a boot menu as they are."""
    return [word for word in cmdline.split() if not _WORD.fullmatch(word)]


def bounded(cmdline: str) -> str:
    """Without a limit the kernel waits for a missing root for ever."""
    return re.sub(r"(?<!\S)rootwait(?!\S)", "rootwait=60", cmdline)


def trial_words(cmdline: str, token: str, watchdog: bool, options: Mapping[str, str] | None) -> list[str]:
    """What a kernel on trial gets on its command line: everything that turns a fault into a restart."""
    return [
        *cmdline.split(),
        f"panic={PANIC_SECONDS}",
        "oops=panic",
        *(word for name, (word, _what) in GUARDS.items() if options is None or options.get(name) == "y"),
        "nmi_watchdog=panic",
        *(["systemd.watchdog_sec=60"] if watchdog else []),
        f"{TOKEN_WORD}{token}",
    ]


def trial_units(token: str, seconds: int, script: str, evidence: str) -> dict[str, str]:
    """The units that restart the host unless the trial is confirmed.

    They hold on in emergency and rescue mode and while the system goes down, and do nothing in another boot.
    """
    head = [
        "DefaultDependencies=no",
        "IgnoreOnIsolate=yes",
        f"ConditionKernelCommandLine={TOKEN_WORD}{token}",
    ]
    timer = [
        "[Unit]",
        "Description=Give up the kernel on trial unless it is confirmed",
        *head,
        "[Timer]",
        f"OnBootSec={seconds}",
        "AccuracySec=1",
    ]
    service = [
        "[Unit]",
        "Description=Go back to the kernel before the trial",
        *head,
        "[Service]",
        "Type=oneshot",
        "TimeoutStartSec=infinity",
        f"ExecStart=-/usr/bin/timeout -k 5 30 /bin/sh {script} {evidence}",
        "ExecStart=-/usr/bin/systemctl --no-block reboot",
        "ExecStart=-/usr/bin/sleep 90",
        "ExecStart=-/usr/bin/systemctl --no-block --force reboot",
        "ExecStart=-/usr/bin/sleep 30",
        "ExecStart=-/usr/bin/systemctl --force --force reboot",
        "ExecStart=-/bin/sh -c 'echo b >/proc/sysrq-trigger'",
    ]
    return {f"{UNIT}.timer": "\n".join(timer) + "\n", f"{UNIT}.service": "\n".join(service) + "\n"}


# Whatever the kernel on trial can tell before it goes.
EVIDENCE_SCRIPT = """\
#!/bin/sh
# Written by mkops.multikernel.kernel_boot.
echo '<3>mkops: the kernel on trial is given up' >/dev/kmsg
# In emergency mode the root may be read-only: the console is what is left.
if ! true >"$1"; then set -- /dev/console; fi
exec >"$1" 2>&1
echo "kernel $(uname -r), boot $(cat /proc/sys/kernel/random/boot_id), up $(cut -d' ' -f1 /proc/uptime) s"
echo '--- failed units'
systemctl list-units --failed --plain --no-legend
echo '--- jobs'
systemctl list-jobs --plain --no-legend | head -n 30
echo '--- network'
cat /proc/net/dev
echo '--- journal'
journalctl -b -o short-monotonic --no-pager -n 400 || dmesg | tail -n 400
sync
"""


def judge(wanted: Mapping, seen: Mapping) -> list[str]:
    """Every reason why a kernel is not healthy (yet)."""
    bad = []
    if seen["release"] != wanted["release"]:
        bad.append(f"{seen['release']} runs, not {wanted['release']}")
    if wanted.get("boot_id") and seen["boot_id"] == wanted["boot_id"]:
        bad.append("the host did not restart: its boot id is the same")
    if wanted.get("token") and seen["token"] != wanted["token"]:
        bad.append("this boot is not the trial: its token is not on the command line")
    if wanted.get("multikernel") and not seen["multikernel"]:
        bad.append("the kernel has no multikernel interface")
    if seen["system"] in ("starting", "initializing"):
        bad.append(f"the system is still {seen['system']}")
    if seen["system"] in ("maintenance", "stopping"):
        bad.append(f"the system is in the state {seen['system']}")
    bad += [f"unit {name} is {state}" for name, state in seen["units"].items() if state != "active"]
    new = sorted(set(seen["failed_units"]) - set(wanted.get("failed_units", ())))
    bad += [f"unit {name} failed, which it did not on the earlier kernel" for name in new]
    for check in seen["checks"]:
        if check["rc"]:
            output = (check["stderr"] or check["stdout"]).strip().splitlines()
            detail = f": {output[-1]}" if output else ""
            bad.append(f"check {' '.join(check['cmd'])} ended with {check['rc']}{detail}")
    return bad


def missing_bytes(start: bytes, size: int) -> int:
    """How much of an x86 kernel image is not there, of its first 1024 bytes and its size; 0 for other images.

    Source: Documentation/arch/x86/boot.rst, setup_sects and syssize. GRUB for BIOS starts what is cut off.
    """
    if start[0x202:0x206] != b"HdrS":
        return 0
    setup = start[0x1F1] or 4
    whole = (setup + 1) * 512 + 16 * int.from_bytes(start[0x1F4:0x1F8], "little")
    return max(0, whole - size)


def view(host: Host) -> str:
    """One side of the diff."""
    lines = [
        f"running: {host.running}",
        f"default: {host.default or host.boot.default or 'the first entry of the menu'}",
        f"once: {host.boot.once or '-'}",
        *(f"kernel: {release}" for release in sorted(host.kernels, key=version_key)),
        *(f"image: {release} {digest}" for release, digest in sorted(host.images.items())),
        *(f"own entry: {release}" for release in sorted(host.boot.own)),
        *(f"instance: {name} {status}" for name, status in sorted(host.instances.items()) if status in LIVE),
    ]
    return "\n".join(lines) + "\n"


def foresee(wish: Wish, host: Host, todo: Plan) -> str:
    """The other side of it, should all go well."""
    running = todo.release if todo.boot else host.running
    default = todo.release if todo.promote else (host.running if todo.pin else host.default)
    kernels = {*host.kernels, *([todo.release] if todo.install else [])} - set(todo.remove)
    images = {release: digest for release, digest in host.images.items() if release not in todo.remove}
    if todo.image:
        images[todo.release] = wish.image_sha256
    own = set(host.boot.own) - set(todo.remove)
    if todo.promote:
        own = own | {todo.release} if wish.cmdline else own - {todo.release}
    live = {} if todo.boot else {name: status for name, status in host.instances.items() if status in LIVE}
    once = "-" if todo.disarm or todo.boot else host.boot.once or "-"
    lines = [
        f"running: {running}",
        f"default: {default or host.boot.default or 'the first entry of the menu'}",
        f"once: {once}",
        *(f"kernel: {release}" for release in sorted(kernels, key=version_key)),
        *(f"image: {release} {digest}" for release, digest in sorted(images.items())),
        *(f"own entry: {release}" for release in sorted(own)),
        *(f"instance: {name} {status}" for name, status in sorted(live.items())),
    ]
    return "\n".join(lines) + "\n"


def remembered(record: Mapping, installed: str = "", promoted: str = "", before: str = "") -> dict:
    """The record with a kernel more, or after a promotion: what ran before is what to go back to."""
    kernels = {*record.get("kernels", ()), *([installed] if installed else [])}
    moved = promoted and before and promoted != before
    return {
        "kernels": sorted(kernels, key=version_key),
        "previous": before if moved else record.get("previous", ""),
    }
