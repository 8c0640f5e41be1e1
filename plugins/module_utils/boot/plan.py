# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What it takes to have a host run a kernel without ever losing the one that works. No I/O.

The kernel that runs is made the default, the new one is installed beside it and armed for one boot, with a
timer that restarts the host unless somebody confirms. After the restart it is judged, and made the default.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..common.errors import Failure
from ..common.text import shown
from . import trial
from .live import MASK, Means, five_levels, live_reasons
from .trial import GUARDS, Note, State

PREVIOUS = "previous"
LONGEST_WAIT = 7 * 24 * 3600  # seconds; systemd understands no time without end
LONGEST_CMDLINE = 2047  # COMMAND_LINE_SIZE of x86, less the end; the kernel cuts off what follows
_OF_A_TRIAL = 256  # characters; what trial.trial_words() adds
END_OF_WORDS = "--"
# As `uname -r` has it.
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+~_-]{0,63}")
# An emergency restart is refused by the kernel while there are such instances.
ACTIVE, LOADED = "active", "loaded"
LIVE = (ACTIVE, LOADED)
# Entries of the boot menu that are ours: the trial, and lasting ones with a command line of their own.
TRIAL_ID = "mkops-trial"
OWN_ID = "mkops-kernel-"
# What a boot menu, GRUB's shell or the kernel would not take as it stands.
_WORD = re.compile(r"[\w.,:=/@%+~\[\]!^-]+")


@dataclass(frozen=True)
class KernelWish:
    release: str
    boot: bool = True
    package: bool = False  # whether packages were given
    image_sha256: str = ""
    cmdline: str = ""
    keep: int = 3
    reboot_ok: bool = False
    stop_instances: bool = False
    keep_instances: bool = False
    live: bool = False  # by kexec, instead of by the firmware
    trial_timeout: int = 600
    health_timeout: int = 120
    timeout: int | None = None
    stop_timeout: int = 60


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
    lines: Mapping[str, str] = field(default_factory=dict)  # release: the command line of its ordinary entry


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
    record: Mapping[str, Any] = field(
        default_factory=dict
    )  # {"kernels": [installed through here], "previous": the last good one}
    live: Means = field(default_factory=Means)
    half: tuple[str, ...] = ()  # with a package that is neither installed nor removed
    note: Note | None = None  # of the trial that is under way or left behind
    state: State = State.IDLE

    @property
    def on_trial(self) -> bool:
        """This very boot is a trial."""
        return self.state in trial.TRIED

    @property
    def default(self) -> str:
        """Release of the kernel that a restart starts, if it is known."""
        return self.boot.releases.get(self.boot.default, "")


@dataclass(frozen=True)
class BootPlan:
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
    tidy: str = ""  # what is to be done first about an earlier trial
    stop: tuple[str, ...] = ()
    keep: tuple[str, ...] | None = None  # instances that run on meanwhile; None: it is no live update
    remove: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return bool(self.steps())

    def steps(self) -> list[str]:
        steps = []
        if self.tidy:
            steps.append(self.tidy)
        if self.saved:
            steps.append("let the boot loader remember its default")
        if self.pin:
            steps.append(f"keep the running kernel as the default, {self.pin}")
        if self.install:
            steps.append(f"install {self.release}")
        if self.image:
            steps.append(f"place /boot/vmlinux-{self.release}")
        steps += [f"stop instance {name}" for name in self.stop]
        if self.boot and self.keep is None:
            steps.append(f"boot {self.release} once, on trial")
        elif self.boot:
            on = f", while these instances run on: {', '.join(self.keep or ())}" if self.keep else ""
            steps.append(f"boot {self.release} by kexec, on trial{on}")
        if self.promote:
            steps += ["judge its health", f"make {self.release} the default"]
        steps += [f"remove {release}" for release in self.remove]
        return steps


def release_reasons(release: str) -> list[str]:
    if _RELEASE.fullmatch(release):
        return []
    return [f"release {shown(release)} is not the name of a kernel, such as uname -r shows"]


def version_key(release: str) -> tuple[tuple[int, int, str], ...]:
    """6.12.107 comes after 6.12.99."""
    return tuple(
        (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.findall(r"\d+|\D+", release)
    )


def removable(host: Host, release: str, keep: int, wanted_previous: str) -> tuple[str, ...]:
    """Kernels beyond the `keep` newest, of those that were installed through here, and what is left of such.

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
        (name for name in host.record.get("kernels", ()) if name in host.packaged),
        key=version_key,
        reverse=True,
    )
    others = [name for name in ours if name not in holy]
    room = max(0, keep - len([name for name in holy if name in ours or name == release]))
    half = (name for name in host.record.get("kernels", ()) if name in host.half and name not in holy)
    return (*others[room:], *half)


def plan(wish: KernelWish, host: Host) -> BootPlan:
    """All that is to be done, or every reason why nothing is."""
    no: list[str] = []
    warnings: list[str] = []
    release = wish.release
    if release == PREVIOUS:
        release = host.record.get("previous", "")
        if not release:
            return BootPlan(
                "", ("no kernel was promoted here before, so there is no previous one; name a release",)
            )

    installed = release in host.kernels
    install = wish.package and release not in host.packaged
    if not installed and not install:
        kernels = ", ".join(sorted(host.kernels, key=version_key)) or "none"
        no.append(
            f"{release} is not installed and no packages are given; give them, or an installed one: {kernels}"
        )
    no += cmdline_reasons(wish.cmdline, host.cmdline if wish.cmdline else ())
    if wish.keep_instances and not wish.live:
        no.append("instances: keep needs method: live; a restart by the firmware ends all instances")
    if wish.keep < 2:
        no.append(
            f"keep is {wish.keep}, but the running kernel and the last good one always stay; give 2 or more"
        )
    no += _bad_times(wish)
    if install and installed and release not in host.half:
        no.append(
            f"/boot/vmlinuz-{release} belongs to no package, so installing over it could not be undone; "
            "remove it, or build the kernel under another name"
        )

    loader = host.boot
    if not loader.loader:
        return BootPlan(release, (*no, *loader.faults))

    entry = loader.entries.get(release, "")
    own = own_id(release) + loader.suffix
    target = own if wish.cmdline else entry
    runs = host.running == release and all(word in host.cmdline for word in wish.cmdline.split())
    if loader.default == own and entry:
        # Words that are no longer wanted are gone only after a restart.
        runs &= loader.own.get(release) == wish.cmdline
    tried = host.note is not None and host.note.release == release
    resume = wish.boot and tried and host.state in (State.ON_TRIAL, State.APPROVED)
    boot = wish.boot and not runs and not resume
    promote = wish.boot and (boot or resume or loader.default != target)
    image = bool(wish.image_sha256) and host.images.get(release) != wish.image_sha256
    busy = host.state in trial.GOING or (host.on_trial and not resume)
    if busy and (wish.boot or install):
        no.append(trial.describe(host.state, host.note))

    if boot:
        if not wish.reboot_ok and wish.live:
            no.append(
                f"{host.running} is running; a {release} that is booted by kexec and is not healthy is given "
                "up by a restart, which ends all instances; allow that (reboot_ok: true), or do without "
                "(state: installed)"
            )
        elif not wish.reboot_ok:
            no.append(
                f"{host.running} is running, and booting {release} needs a restart; allow it (reboot_ok: "
                "true), or do without (state: installed)"
            )
        if wish.live:
            no += _live_reasons(wish, host, release)
        elif host.live.takes_reboots:
            no.append(
                "the init scripts of kexec-tools take restarts over (LOAD_KEXEC=true in /etc/default/kexec) "
                f"and pass the boot loader by; {MASK}"
            )
        if wish.health_timeout >= 0 and 0 < wish.trial_timeout <= wish.health_timeout:
            no.append(
                f"trial_timeout is {wish.trial_timeout} s, which leaves no time to boot before the "
                f"{wish.health_timeout} s of health.timeout; give more"
            )
        if release in host.half and not install:
            no.append(
                f"{release} is only half installed; give its packages, or run dpkg --configure "
                f"linux-image-{release}"
            )
        if host.running in host.half:
            no.append(
                f"the running kernel {host.running}, which is the way back, is only half installed; run "
                f"dpkg --configure linux-image-{host.running}"
            )
        if not host.systemd:
            no.append("systemd is not running on this host; the timer that gives up a trial needs it")
        no += loader.faults
        # Without the one that runs there is no way back.
        no += [
            loader.broken[name] for name in dict.fromkeys((release, host.running)) if name in loader.broken
        ]
        if why := host.untrusted.get(release):
            no.append(f"Secure Boot is on and the image of {release} {why}, or turn Secure Boot off")
        live = sorted(name for name, status in host.instances.items() if status in LIVE)
        if live and not (wish.stop_instances or wish.keep_instances):
            names = ", ".join(f"{name} ({host.instances[name]})" for name in live)
            how = "have them stopped (instances: stop)" + (" or kept (instances: keep)" if wish.live else "")
            no.append(f"instances are not stopped: {names}; stop them, or {how}")
        if wish.keep_instances:
            warnings += _kept_warnings(host)
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
                f"there is no hardware watchdog: if {release} hangs before systemd starts and does not "
                "panic, somebody has to reset the host"
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
    return BootPlan(
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
        tidy=trial.tidying(host.state, host.note) if host.state in trial.TIDIED else "",
        stop=() if wish.keep_instances else tuple(live),
        keep=_kept(wish, host) if boot else None,
        remove=removed,
    )


def _kept(wish: KernelWish, host: Host) -> tuple[str, ...] | None:
    """Instances that run on; None when this is no live update."""
    running = (name for name, status in host.instances.items() if status == ACTIVE)
    return tuple(sorted(running)) if wish.live and wish.keep_instances else () if wish.live else None


def _kept_warnings(host: Host) -> list[str]:
    """What those that are kept do not keep."""
    loaded = sorted(name for name, status in host.instances.items() if status == LOADED)
    if not loaded:
        return []
    return [
        f"the images of {', '.join(loaded)}, which are loaded and do not run, are not handed over: they have "
        "to be loaded again, which the units of what is declared for boot do"
    ]


def _live_reasons(wish: KernelWish, host: Host, release: str) -> list[str]:
    """Why this kernel cannot take over from the running one; for some of it, its files have to be there."""
    options, line = host.options.get(release), host.boot.lines.get(release)
    words = [*(line or "").split(), *wish.cmdline.split()]
    known = options if line is not None else None
    levels = (
        five_levels(host.running, host.options.get(host.running), host.cmdline, host.live.flags, True),
        five_levels(release, known, words, host.live.flags, False),
    )
    no = live_reasons(host.live, host.running, release, levels)
    if release in host.boot.entries and line is None:
        no.append(
            f"the command line of {release} depends on variables of the boot loader, so that kexec cannot be "
            "given it; write its words into the entry, or do without (method: reboot)"
        )
    return no


def _bad_times(wish: KernelWish) -> list[str]:
    """Seconds that are none."""
    times = (
        ("trial_timeout", wish.trial_timeout, 1),
        ("health.timeout", wish.health_timeout, 0),
        ("timeout", 1 if wish.timeout is None else wish.timeout, 1),
        ("stop_timeout", wish.stop_timeout, 1),
    )
    return [
        f"{name} is {seconds} s; give {f'{least} or more' if seconds < least else f'{LONGEST_WAIT} or less'}"
        for name, seconds, least in times
        if not least <= seconds <= LONGEST_WAIT
    ]


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


def cmdline_reasons(cmdline: str, beside: Iterable[str]) -> list[str]:
    """Why a kernel cannot be tried with these words, beside those that it has anyway."""
    words = cmdline.split()
    no = []
    if bad := bad_words(cmdline):
        no.append(f"cmdline has words that a boot menu cannot hold: {', '.join(bad)}")
    if END_OF_WORDS in words:
        no.append(f"cmdline has {END_OF_WORDS}, and the kernel ignores every word after that; leave it out")
    if ours := [word for word in words if word.startswith(trial.TOKEN_WORD)]:
        no.append(f"cmdline has {ours[0]}, which is reserved for trials; leave it out")
    if shells := [word for word in words if re.fullmatch(_SHELL, word)]:
        no.append(
            f"cmdline has {', '.join(shells)}, which makes the kernel wait for a person before "
            "anything can end its trial; leave it out"
        )
    line = " ".join([*(word for word in beside if word not in words), *words])
    if len(line) + _OF_A_TRIAL > LONGEST_CMDLINE:
        no.append(
            f"cmdline: with the words of this host and of a trial {len(line) + _OF_A_TRIAL} characters, of "
            f"which a kernel takes {LONGEST_CMDLINE}; give fewer"
        )
    return no


def with_words(line: str, more: Sequence[str]) -> str:
    """A command line with more words, which the kernel takes: what follows its `--` is for init."""
    words = re.finditer(r"""(?:"[^"]*"|[^\s"])+|"[^"]*$""", line)
    end = next((word.start() for word in words if word[0] == END_OF_WORDS), len(line))
    return " ".join(filter(None, [line[:end].rstrip(" "), *more, line[end:]]))


def check_length(release: str, line: str) -> None:
    """What comes at the end would be lost: that is what gives a trial up."""
    if len(line) > LONGEST_CMDLINE:
        raise Failure(
            f"the command line of {release} would have {len(line)} characters, of which a kernel takes "
            f"{LONGEST_CMDLINE}; shorten GRUB_CMDLINE_LINUX or /etc/kernel/cmdline, or cmdline"
        )


def bad_words(cmdline: str) -> list[str]:
    """The words of a command line that cannot be written into a boot menu as they are."""
    return [word for word in cmdline.split() if not _WORD.fullmatch(word)]


# Before systemd runs: Linux and the makers of initramfs take these.
_SHELL = r"(?:rd)?init=(?:.*/)?(?:ba|da|k|z)?sh|(?:rd\.)?break(?:=.*)?|rd\.systemd\.unit=.*"
# Of an entry that ends where somebody has to be.
_RESCUE = re.compile(
    rf"single|[sS1]|-s|-b|rescue|emergency|recovery|systemd\.unit=(?:rescue|emergency)\.target|{_SHELL}"
)


def for_rescue(words: Iterable[str]) -> bool:
    """Whether a kernel with these words waits for a person instead of running the host."""
    return any(_RESCUE.fullmatch(word) for word in words)


def bounded(cmdline: str) -> str:
    """Without a limit the kernel waits for a missing root for ever."""
    return re.sub(r"(?<!\S)rootwait(?!\S)", "rootwait=60", cmdline)


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


def foresee(wish: KernelWish, host: Host, todo: BootPlan) -> str:
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
    stay = {ACTIVE: todo.keep or ()} if todo.boot else dict.fromkeys(LIVE, host.instances)
    live = {name: status for name, status in host.instances.items() if name in stay.get(status, ())}
    once = "-" if todo.tidy or todo.boot else host.boot.once or "-"
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


def remembered(
    record: Mapping[str, Any], installed: str = "", promoted: str = "", before: str = ""
) -> dict[str, Any]:
    """The record with a kernel more, or after a promotion: what ran before is what to go back to."""
    kernels = {*record.get("kernels", ()), *([installed] if installed else [])}
    moved = promoted and before and promoted != before
    return {
        "kernels": sorted(kernels, key=version_key),
        "previous": before if moved else record.get("previous", ""),
    }
