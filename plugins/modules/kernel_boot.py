#!/usr/bin/python
# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kernel_boot
short_description: Install a kernel, boot it once on trial, and keep it only if it is healthy
version_added: 0.2.0
description:
  - Has a host run a kernel without ever losing the one that works.
  - The running kernel is made the boot loader's default, the new one is installed beside it and chosen for
    the next boot only. When the host is back, the kernel is judged, and becomes the default when it is
    healthy.
  - When it is not, the host goes back to the earlier kernel by itself, whatever happened to the new one. A
    crash restarts the machine at once, because the kernel on trial gets C(panic=10) and what turns lock-ups
    into crashes. A kernel that runs but cannot be reached, or stops in emergency mode, is given up by a timer
    on the host after O(trial_timeout). A damaged image makes GRUB restart. The module then fails, with the
    reason and what is known of the failed boot.
  - With O(method=live) the host boots the new kernel by kexec, and its instances run on meanwhile and belong
    to the new kernel afterwards (O(instances=keep)). The way back is the same restart to the old kernel,
    which ends them.
  - A kernel that was kept is returned to the same way, by naming its release, or V(previous).
  - A run that was cut off, on either side, leaves a host that starts the old kernel, one that was found
    healthy, or the trial with its way back. The next run takes it up from there.
options:
  release:
    description:
      - What C(uname -r) says on the wanted kernel.
      - V(previous) is the last good kernel before the one that was promoted last.
    type: str
    required: true
  state:
    description:
      - V(installed) only has the kernel installed, beside the others. The default stays the running kernel.
      - V(booted) has it running and the default.
    type: str
    choices: [installed, booted]
    default: booted
  packages:
    description:
      - Debian packages of the kernel, among them C(linux-image-RELEASE).
      - Not needed when the kernel is installed already.
      - While somebody else changes packages this is waited for, for up to ten minutes. An installation that
        fails removes what it brought, and only that.
    type: list
    elements: path
  image:
    description: Uncompressed C(vmlinux), to be placed as C(/boot/vmlinux-RELEASE) for spawned kernels.
    type: path
  remote_src:
    description:
      - If V(false), O(packages) and O(image) are on the controller and sent when they are needed.
      - If V(true), they are on the host.
    type: bool
    default: false
  cmdline:
    description:
      - More words for the command line of this kernel alone, such as that of a profile.
      - With it the kernel gets an entry of its own in the boot menu.
    type: str
    default: ""
  keep:
    description:
      - How many kernels to keep of those that this module installed.
      - The running, the last good, and the default kernel stay in any case, and so do all that others
        installed. The oldest go first, after a promotion.
    type: int
    default: 3
  reboot_ok:
    description:
      - Whether the host may be restarted.
      - If not, and a restart is needed, the module changes nothing, fails, and says so.
    type: bool
    default: false
  method:
    description:
      - How the new kernel is booted for its trial.
      - V(reboot) goes through firmware and boot loader, which ends all spawned kernels.
      - V(live) loads it by C(kexec) with a handover of all that the running kernel has lent. That one has to
        be able to (C(kernel.live_update) of M(mkops.multikernel.info)), and the image of the new one has to
        say that it takes the handover. All reasons against it are told before anything is changed, but what
        depends on the files of a kernel that is not installed yet, which are looked at when they are there.
      - A kernel that is found unhealthy is given up by a restart to the old one in any case, and so it needs
        O(reboot_ok).
    type: str
    choices: [reboot, live]
    default: reboot
    version_added: 0.2.0
  instances:
    description:
      - What to do with spawned kernels that are loaded or running. A restart ends them, and some kernels
        refuse to restart in an emergency while there are any.
      - V(refuse) changes nothing and fails. V(stop) stops and deletes them before the restart, in one go with
        it.
      - V(keep) lets those run on that run, and is for O(method=live) alone. The new kernel is healthy only
        when each of them is the same run as before, gives signs of life, and its console and its agent answer
        if they did before. If the new kernel is given up, they have ended. Those that are loaded and do not
        run have to be loaded again.
    type: str
    choices: [refuse, stop, keep]
    default: refuse
  stop_timeout:
    description: Seconds to wait for each instance to stop, 1 or more.
    type: int
    default: 60
  health:
    description: What a kernel has to show before it is promoted, beyond being reached by Ansible.
    type: dict
    default: {}
    suboptions:
      multikernel:
        description: Whether it must have the multikernel interface.
        type: bool
        default: false
      units:
        description:
          - Units that must be active.
          - A unit that failed, and had not failed on the earlier kernel, always speaks against the new one.
        type: list
        elements: str
        default: []
      checks:
        description: Commands, as lists of words, that must end with 0 on the host. No shell is involved.
        type: list
        elements: list
        default: []
      timeout:
        description: Seconds that the kernel has to become healthy, from when it is reached. With V(0) it is
          looked at once.
        type: int
        default: 120
  trial_timeout:
    description:
      - Seconds from the start of the kernel on trial after which the host restarts by itself, unless the
        kernel was promoted.
      - It has to be longer than booting and O(health.timeout) together.
    type: int
    default: 600
  timeout:
    description:
      - Seconds to wait for the host to come back, whichever kernel it runs, 1 or more.
      - By default O(trial_timeout) and 600 seconds more.
    type: int
  console_log:
    description:
      - File on the controller that the host's serial console is written to, if there is one.
      - What was added to it during a failed trial is part of the result.
    type: path
  phase:
    description:
      - The part of the work to do on the host. Set by the module's own action, there is no need to use it.
    type: str
    choices: [plan, install, trial, judge, promote, give_up, report]
    default: plan
  trial:
    description: The trial that the phase is about. Set by the module's own action.
    type: dict
  image_sha256:
    description: Checksum of O(image) on the controller. Set by the module's own action.
    type: str
notes:
  - Supported are GRUB 2 as Debian and its relatives set it up, with C(/boot/grub/grub.cfg) on a file system
    that GRUB can write, so that a trial is forgotten when it starts, and systemd-boot with the entries that
    C(kernel-install) makes.
  - Where GRUB has C(superusers), the entries of the kernels need C(--unrestricted), because nobody is there
    to log in; what else may decide GRUB's default is refused by name.
  - On the host it uses C(/boot/grub/custom.cfg), two units named C(mkops-kernel-trial) during a trial, and
    C(/var/lib/mkops/kernel-boot), which root alone can read.
  - It takes the same lock as M(mkops.multikernel.layout), M(mkops.multikernel.pool) and
    M(mkops.multikernel.instance). From when it stops the instances until the host restarts nobody else gets
    it.
  - For O(method=live) the host needs C(kexec) of kexec-tools, which the role P(mkops.multikernel.host#role)
    installs with C(host_live_update). A host that is locked down is refused.
  - What hangs before systemd starts without a crash comes back only with a hardware watchdog that runs from
    power-on; the module warns when there is no watchdog.
extends_documentation_fragment:
  - mkops.multikernel.attributes
  - mkops.multikernel.attributes.changes
attributes:
  platform:
    platforms: debian
seealso:
  - module: mkops.multikernel.kernel_build
  - module: mkops.multikernel.instance
author:
  - mkops contributors (@mkops)
"""

EXAMPLES = r"""
- name: Run the kernel that was built, if it is healthy
  mkops.multikernel.kernel_boot:
    release: "{{ kernel.release }}"
    packages: "{{ kernel.debs }}"
    image: "{{ kernel.vmlinux }}"
    reboot_ok: true
    health:
      multikernel: true
      units: [ssh.service, postgresql.service]
      checks:
        - [curl, --fail, --silent, http://127.0.0.1:8080/health]

- name: The same while the spawned kernels run on
  mkops.multikernel.kernel_boot:
    release: "{{ kernel.release }}"
    packages: "{{ kernel.debs }}"
    image: "{{ kernel.vmlinux }}"
    method: live
    instances: keep
    # If it is not healthy, the host restarts to the old kernel, and they end.
    reboot_ok: true
    health:
      multikernel: true

- name: Go back to the last good kernel
  mkops.multikernel.kernel_boot:
    release: previous
    reboot_ok: true
"""

RETURN = r"""
release:
  description: The wanted kernel.
  type: str
  returned: always
  sample: 6.12.107-mkops-0a1b2c3d
running:
  description: The kernel that runs now; in check mode, the one that ran before.
  type: str
  returned: always
  sample: 6.12.107-mkops-0a1b2c3d
previous:
  description: The last good kernel before it, which V(previous) stands for.
  type: str
  returned: always
steps:
  description: What was done, or in check mode would be done.
  type: list
  elements: str
  returned: always
  sample: [install 6.12.107-mkops-0a1b2c3d]
reasons:
  description: Everything that speaks against the wish, or against the kernel that was tried.
  type: list
  elements: str
  returned: when refused or fallen back
outcome:
  description:
    - V(unchanged), V(planned) in check mode, V(installed), V(promoted), V(refused), V(fell_back) when the
      earlier kernel runs again, V(lost) when the host did not come back, or V(failed).
    - V(tidied) when only what earlier runs had left was removed, of a trial or of old kernels.
  type: str
  returned: always
removed:
  description: Old kernels that were removed. One that could not be is a warning, and goes in the next run.
  type: list
  elements: str
  returned: when promoted, installed or tidied
evidence:
  description:
    - What is known of the failed boot, the last lines of each. C(console) from O(console_log), C(trial) what
      the kernel on trial wrote before it gave up, C(journal) and C(pstore) what lasted.
  type: dict
  returned: when fallen back or lost
instances:
  description: The instances that ran on, each as the new kernel has it.
  type: list
  elements: dict
  returned: when promoted with O(method=live)
  contains:
    name:
      description: Its name.
      type: str
    boot_id:
      description: Its own boot id, which is that of before; null where no agent tells it.
      type: str
    gap_ms:
      description:
        - Milliseconds from when the old host let go of it until the new kernel had it. It ran on meanwhile,
          without a reader of its console, connections to the host and devices that the host serves.
        - By its own clock, where its agent answers, else by the host's, which may be wrong by a second or
          more after a boot. Null where the new kernel does not tell.
      type: int
  version_added: 0.2.0
lost:
  description: Instances that ran on at first, and ended when the host went back.
  type: list
  elements: str
  returned: when fallen back with O(method=live) and any
  version_added: 0.2.0
down_seconds:
  description: Seconds from the restart to the host being reached again for good.
  type: float
  returned: when restarted
  sample: 34.5
"""

import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.mkops.multikernel.plugins.module_utils.boot import plan as kernel_boot
from ansible_collections.mkops.multikernel.plugins.module_utils.boot.host import BootHost
from ansible_collections.mkops.multikernel.plugins.module_utils.boot.packages import Busy
from ansible_collections.mkops.multikernel.plugins.module_utils.boot.rollout import Rollout
from ansible_collections.mkops.multikernel.plugins.module_utils.boot.trial import Note, State, judge
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure, Refused
from ansible_collections.mkops.multikernel.plugins.module_utils.common.files import sha256_file
from ansible_collections.mkops.multikernel.plugins.module_utils.common.lock import host_lock
from ansible_collections.mkops.multikernel.plugins.module_utils.common.text import shown
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.converge import converge
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.handover import hand_over, take_over
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.image import Images
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import KernelFs, Paths
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.machine import Machine
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.options import INSTANCE
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.request import Request
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.versions import DEFAULT_KERF
from ansible_collections.mkops.multikernel.plugins.module_utils.divide.witness import gap, reasons, witness

HEALTH = {
    "multikernel": {"type": "bool", "default": False},
    "units": {"type": "list", "elements": "str", "default": []},
    "checks": {"type": "list", "elements": "list", "default": []},
    "timeout": {"type": "int", "default": 120},
}
PHASES = ("plan", "install", "trial", "judge", "promote", "give_up", "report")
ARGUMENT_SPEC = {
    "release": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["installed", "booted"], "default": "booted"},
    "packages": {"type": "list", "elements": "path"},
    "image": {"type": "path"},
    "remote_src": {"type": "bool", "default": False},
    "cmdline": {"type": "str", "default": ""},
    "keep": {"type": "int", "default": 3},
    "reboot_ok": {"type": "bool", "default": False},
    "method": {"type": "str", "choices": ["reboot", "live"], "default": "reboot"},
    "instances": {"type": "str", "choices": ["refuse", "stop", "keep"], "default": "refuse"},
    "stop_timeout": {"type": "int", "default": 60},
    "health": {"type": "dict", "default": {}, "options": HEALTH, "apply_defaults": True},
    "trial_timeout": {"type": "int", "default": 600},
    "timeout": {"type": "int"},
    "console_log": {"type": "path"},
    "phase": {"type": "str", "choices": list(PHASES), "default": "plan"},
    "trial": {"type": "dict"},
    "image_sha256": {"type": "str"},
}
# The others only read.
CHANGING = ("install", "trial", "promote", "give_up", "report")
JUDGE_SECONDS = 3
# How much longer than the trial itself the host may be away.
DOWN_SECONDS = 600


def _health_reasons(params: dict) -> list[str]:
    """What could only be found out once the host has restarted for it."""
    health = params["health"]
    no = [
        f"health.units: {shown(name)} is not the name of a unit"
        for name in health["units"]
        if not name or name.startswith("-") or name.split() != [name]
    ]
    if not all(words and str(words[0]) for words in health["checks"]):
        no.append("health.checks: a check is empty: give a list of a program and its words")
    return no


class Run:
    """One phase on the host."""

    def __init__(self, module: AnsibleModule, host: BootHost) -> None:
        self.params = module.params
        self.host = host
        self.rollout = Rollout(host)
        if wrong := [*kernel_boot.release_reasons(self.params["release"]), *_health_reasons(self.params)]:
            raise Failure("; ".join(wrong))
        self.seen = host.look(self.params["release"])
        self.wish = self._wish()
        self.todo = kernel_boot.plan(self.wish, self.seen)

    def _wish(self) -> kernel_boot.KernelWish:
        params = self.params
        image_sha256 = params["image_sha256"] or ""
        if params["image"] and params["remote_src"]:
            try:
                image_sha256 = sha256_file(self.host.at(params["image"]))
            except OSError as error:
                raise Failure(f"image {params['image']} cannot be read: {error.strerror}") from error
        return kernel_boot.KernelWish(
            release=params["release"],
            boot=params["state"] == "booted",
            package=bool(params["packages"]),
            image_sha256=image_sha256,
            cmdline=params["cmdline"].strip(),
            keep=params["keep"],
            reboot_ok=params["reboot_ok"],
            stop_instances=params["instances"] == "stop",
            keep_instances=params["instances"] == "keep",
            live=params["method"] == "live",
            trial_timeout=params["trial_timeout"],
            health_timeout=params["health"]["timeout"],
            timeout=params["timeout"],
            stop_timeout=params["stop_timeout"],
        )

    @property
    def kernel(self) -> KernelFs:
        return KernelFs(Paths(self.host.root))

    @property
    def token(self) -> str:
        """Of the trial that the action means."""
        return (self.params["trial"] or {}).get("token", "")

    @property
    def fulfilled(self) -> bool:
        """The kernel runs and is the default, whoever was told so."""
        over = self.seen.state in (State.IDLE, State.PROMOTED)
        return over and self.wish.boot and not (self.todo.boot or self.todo.promote)

    def facts(self) -> dict:
        return {
            "release": self.todo.release or self.params["release"],
            "running": self.host.running(),
            "boot_id": self.host.boot_id(),
            "previous": self.host.record().get("previous", ""),
        }

    def plan(self) -> dict:
        todo = self.todo
        return {
            "changed": todo.changed,
            "steps": todo.steps(),
            "reasons": list(todo.refusals),
            "warnings": list(todo.warnings),
            "todo": {
                "install": todo.install,
                "image": todo.image,
                "boot": todo.boot,
                "resume": todo.resume,
                "promote": todo.promote,
                "stop": list(todo.stop),
                "keep": todo.keep,
                "trial": self._told(self.seen.note) if todo.resume else {},
                "timeout": self.wish.timeout or self.wish.trial_timeout + DOWN_SECONDS,
            },
            "diff": {
                "before": kernel_boot.view(self.seen),
                "after": kernel_boot.foresee(self.wish, self.seen, todo),
            },
        }

    def _told(self, note: Note | None) -> dict:
        """What the controller has to know of a trial."""
        if note is None:
            return {}
        told = {name: getattr(note, name) for name in ("token", "release", "previous", "boot_id", "live")}
        return {**told, "kept": sorted(note.kept)}

    def refuse(self) -> None:
        """What was planned may have become impossible since."""
        if self.todo.refusals:
            raise Failure("; ".join(self.todo.refusals))

    def install(self) -> dict:
        self.refuse()
        try:
            self.rollout.install(self.todo, self.params["packages"] or [], self.params["image"] or "")
        except Busy as busy:
            return {"changed": False, "busy": str(busy)}
        gone, left = [], []
        if not self.todo.promote:
            gone, left = self.rollout.prune(self.todo.remove)
        done = self.todo.tidy or self.todo.install or self.todo.image or self.todo.pin or self.todo.saved
        return {"changed": bool(done or gone), "removed": gone, "warnings": left}

    def trial(self) -> dict:
        self.refuse()
        if not self.todo.boot:
            raise Failure(f"there is nothing to try: {self.todo.release} is running already")
        self._stop_instances()
        kept = self._kept() if self.wish.live and self.wish.keep_instances else None
        note = self.rollout.arm(self.todo, self.wish, self.seen, self.token, kept)
        return {"changed": True, "trial": self._told(note)}

    def _stop_instances(self) -> None:
        """In one go with the restart: whoever waits for the lock meanwhile does not start them again."""
        if not self.todo.stop:
            return

        def absent(machine: Machine, images: Images) -> Request:
            request = Request()
            for name in self.todo.stop:
                wish = {"name": name, "state": "absent", "stop_timeout": self.params["stop_timeout"]}
                request.add(INSTANCE.read(wish, complete=True), machine, images)
            return request

        try:
            converge(Paths(self.host.root), DEFAULT_KERF, False, absent, locked=True)
        except Refused as refused:
            raise Failure(f"instances cannot be stopped: {'; '.join(refused.reasons)}") from refused

    def _kept(self) -> dict:
        """What the instances show that run on. What is noted of all of them, the next kernel is told."""
        for name in self.seen.instances:
            hand_over(self.kernel, name)
        return witness(self.kernel)

    def judge(self) -> dict:
        health, note = self.params["health"], self.seen.note
        if note and not (self.seen.on_trial or note.token == self.token):
            note = None
        wanted = {"release": self.todo.release, "multikernel": health["multikernel"]}
        if note:
            wanted |= {"boot_id": note.boot_id, "failed_units": note.failed_units}
        else:
            wanted["failed_units"] = self.host.failed_units()
        if self.token:
            wanted["token"] = self.token
        deadline = time.monotonic() + health["timeout"]
        while True:
            left = deadline - time.monotonic()
            seen = self.host.health(health["units"], health["checks"], max(left, 1))
            kept, bad = self._judge_kept(note) if note and note.live else ([], [])
            bad = [*judge(wanted, seen), *bad]
            if not bad or deadline - time.monotonic() < JUDGE_SECONDS:
                told = {"instances": kept} if note and note.live else {}
                return {"changed": False, "reasons": bad, "seen": seen, **told}
            time.sleep(JUDGE_SECONDS)

    def _judge_kept(self, note: Note) -> tuple[list, list]:
        """What instances show that ran on, and every reason why they are not what they were."""
        kernel = self.kernel
        # Their units have done this already, where there are such.
        take_over(kernel)
        live = kernel.live_update
        bad = []
        if live is None or live.generation != note.generation + 1:
            bad.append("the kernel does not say that it has taken instances over")
        elif live.lost:
            bad.append(f"the kernel has lost {live.lost} of the instances")
        after = witness(kernel)
        told = []
        for name, before in sorted(note.kept.items()):
            seen = after.get(name)
            bad += reasons(name, before, seen, kernel.status(name))
            left = kernel.notes.read(name).get("left", before["at"])
            lasted = gap(before, seen, left) if seen else None
            told.append({"name": name, "boot_id": (seen or {}).get("boot_id"), "gap_ms": lasted})
        return told, bad

    def promote(self) -> dict:
        warnings = []
        if not self.fulfilled or self.seen.state is State.PROMOTED:
            warnings = self.rollout.promote(self.todo, self.wish.cmdline, self.seen, self.token)
        return self._promoted(warnings)

    def _promoted(self, warnings: list) -> dict:
        """Whatever fails from here on is no reason to go back."""
        result = {"changed": True, "promoted": True, "removed": [], "after": "", "warnings": warnings}
        try:
            seen = self.host.look(self.params["release"])
            extra = kernel_boot.removable(seen, self.todo.release, self.params["keep"], "")
            result["removed"], left = self.rollout.prune(extra)
            warnings += left
            result["after"] = kernel_boot.view(self.host.look(self.params["release"]))
        except (Failure, OSError) as error:
            warnings.append(
                f"{self.todo.release} is the default, but old kernels were not looked for: {error}"
            )
        return result

    def give_up(self) -> dict:
        """The controller does not know what came of the promotion: here it is known."""
        if self.fulfilled:
            return self.promote()
        self.rollout.give_up(self.seen)
        return {"changed": True, "promoted": False}

    def report(self) -> dict:
        """Another boot: what became of the trial, and nothing of it is left."""
        if self.fulfilled:
            return self.promote()
        note = self.seen.note
        found = self.host.evidence(note) if note else {}
        # With another boot than that of the trial they have ended.
        gone = bool(note and note.live and not self.seen.on_trial and note.boot_id != self.host.boot_id())
        started = self.seen.state is State.FELL_BACK
        if not self.seen.on_trial:
            self.rollout.tidy()
        return {
            "changed": True,
            "promoted": False,
            "started": started,
            "lost": sorted(note.kept) if note and gone else [],
            "evidence": found,
            "default": self.seen.default,
            "after": kernel_boot.view(self.host.look(self.params["release"])),
        }


def work(params_of: AnsibleModule, host: BootHost) -> dict:
    """The phase, alone on the host if it changes something."""
    phase = params_of.params["phase"]
    if phase not in CHANGING:
        run = Run(params_of, host)
        return {**getattr(run, phase)(), **run.facts()}
    with host_lock(host.lock):
        run = Run(params_of, host)
        return {**getattr(run, phase)(), **run.facts()}


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    name = f"kernel {module.params['release']}"
    try:
        result = work(module, BootHost())
    except Failure as failure:
        module.fail_json(msg=f"{name}: {failure}", **failure.details)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        module.fail_json(msg=f"{name}: {where}{error.strerror or error}")
    for warning in result.pop("warnings", ()):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
