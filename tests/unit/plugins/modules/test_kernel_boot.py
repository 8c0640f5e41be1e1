# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module on a simulated host: a directory, and commands that do to it what the real ones would."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace

import pytest

from ansible_collections.mkops.multikernel.plugins.module_utils import _boot_host as boot_host
from ansible_collections.mkops.multikernel.plugins.module_utils import _grub as loader
from ansible_collections.mkops.multikernel.plugins.module_utils import _kernel_boot as host_part
from ansible_collections.mkops.multikernel.plugins.module_utils._errors import Failure
from ansible_collections.mkops.multikernel.plugins.modules import kernel_boot

OLD, NEW = "6.1.0-old", "6.12.9-new"
HEAD = """\
if [ "${{next_entry}}" ] ; then
   set default="${{next_entry}}"
   save_env next_entry
else
   set default="{default}"
fi
set timeout=5
"""
ENTRY = """\
menuentry 'Linux {0}' $menuentry_id_option 'gnulinux-{0}-advanced-u' {{
\tlinux /boot/vmlinuz-{0} root=/dev/vda1 ro
}}
"""
TAIL = "source ${config_directory}/custom.cfg\n"


class Simulated(boot_host.Machine):
    def __init__(self, root):
        super().__init__(str(root))
        self.environment, self.debs, self.failing, self.fail_on = {}, set(), [], ()
        for path in ("run/systemd/system", "boot/grub", "var/lib/dpkg", "etc/default"):
            (root / path).mkdir(parents=True)
        (root / "etc/default/grub").write_text("GRUB_DEFAULT=0\n")
        self.add(OLD)
        self.boots = 0
        self.boot()

    def file(self, path, text):
        self.at(path).parent.mkdir(parents=True, exist_ok=True)
        self.at(path).write_text(text)

    def add(self, release, config="CONFIG_SOFTLOCKUP_DETECTOR=y\nCONFIG_DETECT_HUNG_TASK=y\n"):
        self.file(f"/boot/vmlinuz-{release}", "image")
        self.file(f"/boot/config-{release}", config)
        self.debs.add(release)
        self.menu()

    def menu(self):
        saved = "GRUB_DEFAULT=saved" in self.text("/etc/default/grub")
        kernels = sorted(path.name.removeprefix("vmlinuz-") for path in self.at("/boot").glob("vmlinuz-*"))
        text = HEAD.format(default="${saved_entry}" if saved else "0")
        # the newest first, as update-grub has it
        self.file("/boot/grub/grub.cfg", text + "".join(map(ENTRY.format, reversed(kernels))) + TAIL)

    def boot(self):
        """As GRUB and the kernel would. Returns what was started."""
        menu = loader.parse_menu(self.text("/boot/grub/grub.cfg"))
        guarded = self.text("/boot/grub/custom.cfg").replace("if linux ", "linux ").replace("; then", "")
        custom = loader.parse_menu(guarded)
        wanted = self.environment.pop("next_entry", "") or (
            self.environment.get("saved_entry", "") if menu.saved_default else ""
        )
        entries = [*menu.entries, *custom.entries]
        entry = next((entry for entry in entries if entry.path == wanted), entries[0])
        loads = [line for line in entry.body if "/boot/vmlinuz-" in line]
        self.boots += 1
        self.file("/proc/cmdline", loads[0].split("ro ", 1)[-1])
        self.file("/proc/sys/kernel/osrelease", entry.release)
        self.file("/proc/sys/kernel/random/boot_id", f"boot-{self.boots}")
        self.file("/proc/filesystems", "nodev\tmultikernel\n" if entry.release == NEW else "ext4\n")
        return entry.release

    def run(self, argv, purpose, ok=(0,), seconds=600):
        self.commands.append(list(argv))
        output, code = "", 0
        match list(argv):
            case [name, *_] if name in self.fail_on:
                code = 1
            case ["grub-editenv", "-", "list"]:
                output = "".join(f"{name}={value}\n" for name, value in self.environment.items())
            case ["grub-editenv", "-", "set", word]:
                name, value = word.split("=", 1)
                self.environment[name] = value
            case ["grub-editenv", "-", "unset", name]:
                self.environment.pop(name, None)
            case ["grub-probe", "--target=fs", _]:
                output = "ext2"
            case ["update-grub"]:
                self.menu()
            case ["dpkg-query", *words]:
                known = [f"linux-image-{name}" for name in self.debs]
                output = "".join(f"installed {word}\n" for word in words if word in known)
            case ["dpkg-deb", "--field", package, *_]:
                release = package.rsplit("/", 1)[-1].removesuffix(".deb")
                output = f"Package: linux-image-{release}\nInstalled-Size: 10\n"
            case ["dpkg", "--install", package]:
                self.add(package.rsplit("/", 1)[-1].removesuffix(".deb"))
            case ["dpkg", "--purge", name]:
                release = name.removeprefix("linux-image-")
                self.at(f"/boot/vmlinuz-{release}").unlink()
                self.debs.discard(release)
                self.menu()
            case ["systemctl", "list-units", *_]:
                output = "".join(f"{name} loaded failed failed x\n" for name in self.failing)
            case ["systemctl", "is-active", name]:
                output = "failed" if name in self.failing else "active"
            case ["systemctl", "is-system-running"]:
                output = "running"
            case ["/bin/false"]:
                code = 1
            case ["grub-probe" | "systemctl" | "systemd-run" | "journalctl", *_]:
                pass
            case unexpected:
                raise AssertionError(unexpected)
        if code not in ok:
            raise Failure(f"cannot {purpose}", {"rc": code})
        return subprocess.CompletedProcess(argv, code, output, "")

    def files(self):
        return {
            str(path): path.read_text() if path.is_file() else str(path.readlink())
            for path in self.at("/").rglob("*")
            if path.is_file() or path.is_symlink()
        }


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_boot.time, "sleep", lambda _seconds: None)
    return Simulated(tmp_path)


def phase(machine, name, **params):
    defaults = {key: option.get("default") for key, option in kernel_boot.ARGUMENT_SPEC.items()}
    health = {key: option["default"] for key, option in kernel_boot.HEALTH.items()} | {"timeout": 0}
    wish = {"release": NEW, "packages": [f"/tmp/{NEW}.deb"], "reboot_ok": True}
    params = defaults | wish | params | {"health": health | params.get("health", {})}
    run = kernel_boot.Run(SimpleNamespace(params=params), machine)
    return getattr(run, name)()


def promoted(machine, **params):
    """A whole run of which all goes well."""
    if not phase(machine, "plan", **params)["changed"]:
        return None
    phase(machine, "install", **params)
    trial = phase(machine, "trial", **params)["trial"]
    machine.boot()
    assert phase(machine, "judge", trial=trial, **params)["reasons"] == []
    return phase(machine, "promote", trial=trial, **params)


def test_the_plan_changes_nothing_and_tells_what_the_run_does(machine):
    before = machine.files()
    planned = phase(machine, "plan", health={"multikernel": True})
    assert machine.files() == before
    assert planned["reasons"] == []
    assert planned["steps"] == [
        "let the boot loader remember its default",
        f"keep the running kernel as the default, gnulinux-{OLD}-advanced-u",
        f"install {NEW}",
        f"boot {NEW} once, on trial",
        "judge its health",
        f"make {NEW} the default",
    ]
    assert (
        planned["diff"]["before"]
        == f"running: {OLD}\ndefault: the first entry of the menu\nonce: -\nkernel: {OLD}\n"
    )
    assert planned["diff"]["after"] == promoted(machine, health={"multikernel": True})["after"]
    again = phase(machine, "plan")
    assert (again["changed"], again["steps"], again["reasons"]) == (False, [], [])
    assert again["diff"]["before"] == again["diff"]["after"]


def test_until_it_is_promoted_a_restart_brings_the_old_kernel(machine):
    phase(machine, "install")
    assert machine.boot() == OLD
    phase(machine, "trial")
    assert machine.boot() == NEW
    assert machine.boot() == OLD
    report = phase(machine, "report")
    assert report["default"] == OLD
    assert not any("mkops-kernel-trial" in path for path in machine.files())
    assert host_part.TRIAL_ID not in machine.text("/boot/grub/custom.cfg")


def test_the_trial_is_armed_by_units_for_this_boot_alone(machine):
    phase(machine, "install")
    trial = phase(machine, "trial", trial_timeout=300)["trial"]
    timer = machine.text("/etc/systemd/system/mkops-kernel-trial.timer")
    assert f"ConditionKernelCommandLine=mkops.trial={trial['token']}" in timer
    assert "OnBootSec=300\n" in timer
    for target in ("sysinit", "rescue", "emergency"):
        assert machine.at(f"/etc/systemd/system/{target}.target.wants/mkops-kernel-trial.timer").is_symlink()
    words = loader.parse_menu(machine.text("/boot/grub/custom.cfg")).entries
    assert words == ()  # the only entry is guarded by `if`, and not taken for an ordinary one
    machine.boot()
    cmdline = machine.text("/proc/cmdline").split()
    assert {"panic=10", "oops=panic", "softlockup_panic=1", "hung_task_panic=1"} < set(cmdline)
    assert machine.commands[-1][:1] == ["systemd-run"]


def test_without_a_timer_left_after_the_promotion(machine):
    promoted(machine)
    assert ["systemctl", "stop", "mkops-kernel-trial.timer"] in machine.commands
    assert not any("mkops-kernel-trial" in path for path in machine.files())
    assert machine.boot() == NEW


def test_an_interrupted_run_is_taken_up_where_it_was(machine):
    phase(machine, "install")
    phase(machine, "trial")
    machine.boot()
    planned = phase(machine, "plan")
    assert planned["todo"]["resume"]
    assert planned["steps"] == ["judge its health", f"make {NEW} the default"]
    other = phase(machine, "plan", release=OLD, packages=None)
    assert other["reasons"][0].startswith(f"a trial of {NEW} is running")
    phase(machine, "promote", trial=planned["todo"]["trial"])
    assert machine.boot() == NEW


def test_a_trial_that_was_left_behind_is_forgotten(machine):
    phase(machine, "install")
    phase(machine, "trial")
    machine.environment.pop("next_entry")
    machine.boot()
    planned = phase(machine, "plan", release=OLD, packages=None, state="installed")
    assert planned["steps"] == ["forget the trial that was left behind"]
    phase(machine, "install", release=OLD, packages=None, state="installed")
    assert not phase(machine, "plan", release=OLD, packages=None, state="installed")["changed"]


def test_going_back_to_the_previous_kernel(machine):
    promoted(machine)
    assert machine.record() == {"kernels": [NEW], "previous": OLD}
    promoted(machine, release="previous", packages=None)
    assert machine.boot() == OLD
    assert machine.record()["previous"] == NEW


def test_there_is_no_previous_kernel_at_first(machine):
    assert "no kernel was promoted here before" in phase(machine, "plan", release="previous")["reasons"][0]


def test_a_command_line_of_its_own(machine):
    promoted(machine, cmdline="isolcpus=1")
    assert not phase(machine, "plan", cmdline="isolcpus=1")["changed"]
    assert machine.boot() == NEW
    assert "isolcpus=1" in machine.text("/proc/cmdline").split()
    assert "panic=10" not in machine.text("/proc/cmdline").split()
    # Another one, or none, needs another boot.
    for cmdline in ("isolcpus=0", ""):
        assert phase(machine, "plan", cmdline=cmdline)["todo"]["boot"]
    promoted(machine, cmdline="")
    assert machine.boot() == NEW
    assert "isolcpus=1" not in machine.text("/proc/cmdline").split()
    assert machine.text("/boot/grub/custom.cfg") == ""
    assert not phase(machine, "plan")["changed"]


def test_old_kernels_go_but_never_those_that_are_needed(machine):
    releases = [f"6.12.{number}-x" for number in (8, 9, 10, 11)]
    for release in releases:
        promoted(machine, release=release, packages=[f"/tmp/{release}.deb"], keep=2)
    # 11 runs, 10 was good before it; the distribution's is not ours to remove.
    assert sorted(machine.debs) == sorted([OLD, "6.12.10-x", "6.12.11-x"])
    assert machine.record() == {"kernels": ["6.12.10-x", "6.12.11-x"], "previous": "6.12.10-x"}
    assert machine.boot() == "6.12.11-x"


@pytest.mark.parametrize(
    ("change", "params", "reason"),
    [
        ({}, {"reboot_ok": False}, "set reboot_ok to true"),
        ({}, {"packages": None}, f"{NEW} is not installed and no packages are given; installed are {OLD}"),
        ({}, {"cmdline": "a;b"}, "words that a boot menu cannot hold: a;b"),
        ({}, {"keep": 1}, "keep is 1"),
        ({}, {"trial_timeout": 60, "health": {"timeout": 60}}, "no time to boot"),
        (
            {"/sys/fs/multikernel/instances/web/status": "active\n"},
            {},
            "instances are not stopped: web (active)",
        ),
        (
            {"/sys/fs/multikernel/instances/web/status": "loaded\n"},
            {},
            "instances are not stopped: web (loaded)",
        ),
        ({"/boot/grub/grub.cfg": ""}, {}, "neither GRUB with"),
        ({"/boot/grub/grub.cfg": "set timeout=-1\n"}, {}, "GRUB waits for a key"),
        ({"/boot/grub/grub.cfg": "x\n"}, {}, "cannot boot an entry once"),
        ({"/boot/grub/grub.cfg": "x\n"}, {}, "does not read custom.cfg"),
        ({"/boot/grub/grub.cfg": "x\n"}, {}, f"the running kernel {OLD} is not in the menu of GRUB"),
    ],
)
def test_refusals(machine, change, params, reason):
    for path, text in change.items():
        machine.file(path, text)
    before = machine.files()
    planned = phase(machine, "plan", **params)
    assert reason in "; ".join(planned["reasons"])
    with pytest.raises(Failure):
        phase(machine, "install", **params)
    assert machine.files() == before


def test_no_systemd(machine):
    machine.at("/run/systemd/system").rmdir()
    assert "systemd does not run here" in phase(machine, "plan")["reasons"][0]


def test_instances_that_may_be_stopped_are_named(machine):
    machine.file("/sys/fs/multikernel/instances/web/status", "active\n")
    machine.file("/sys/fs/multikernel/instances/db/status", "ready\n")
    planned = phase(machine, "plan", instances="stop")
    assert (planned["reasons"], planned["todo"]["stop"]) == ([], ["web"])
    phase(machine, "install", instances="stop")
    # Whoever does not stop them gets no restart, and the trial is off.
    with pytest.raises(Failure, match="instances are not stopped: web"):
        phase(machine, "trial", instances="stop")
    assert "next_entry" not in machine.environment
    assert machine.boot() == OLD


@pytest.mark.parametrize("fault", ["systemd-run", "grub-editenv"])
def test_a_failure_while_arming_leaves_the_old_kernel(machine, fault):
    phase(machine, "install")
    machine.fail_on = (fault,)
    with pytest.raises(Failure):
        phase(machine, "trial")
    machine.fail_on = ()
    assert machine.boot() == OLD


def test_a_package_of_another_kernel_is_not_installed(machine):
    with pytest.raises(Failure, match="none of them is linux-image"):
        phase(machine, "install", packages=["/tmp/6.0.0-other.deb"])
    assert machine.debs == {OLD}


def test_a_full_boot_is_noticed_before(machine, monkeypatch):
    monkeypatch.setattr(boot_host.shutil, "disk_usage", lambda _path: SimpleNamespace(free=1))
    with pytest.raises(Failure, match="make room"):
        phase(machine, "install")
    assert machine.debs == {OLD}


def test_half_an_installation_is_taken_back(machine):
    machine.fail_on = ("dpkg",)
    with pytest.raises(Failure):
        phase(machine, "install")
    assert machine.commands[-1] == ["dpkg", "--purge", f"linux-image-{NEW}"]
    machine.fail_on = ()
    assert machine.boot() == OLD


def test_the_image_for_spawns_is_placed_once(machine, tmp_path):
    image = tmp_path / "vmlinux"
    image.write_text("elf")
    digest = boot_host.sha256(image)
    params = {"image": str(image), "image_sha256": digest, "state": "installed"}
    assert f"place /boot/vmlinux-{NEW}" in phase(machine, "plan", **params)["steps"]
    phase(machine, "install", **params)
    assert machine.text(f"/boot/vmlinux-{NEW}") == "elf"
    assert not phase(machine, "plan", **params)["changed"]


def test_installed_only(machine):
    phase(machine, "install", state="installed", reboot_ok=False)
    assert machine.boot() == OLD
    assert not phase(machine, "plan", state="installed", reboot_ok=False)["changed"]


def test_unhealthy_kernels(machine):
    phase(machine, "install")
    trial = phase(machine, "trial")["trial"]
    wrong = phase(machine, "judge", trial=trial)["reasons"]
    assert wrong == [
        f"{OLD} runs, not {NEW}",
        "the host did not restart: its boot id is the same",
        "this boot is not the trial: its token is not on the command line",
    ]
    machine.boot()
    machine.failing = ["db.service"]
    health = {"units": ["ssh.service", "db.service"], "checks": [["/bin/false"]]}
    assert phase(machine, "judge", trial=trial, health=health)["reasons"] == [
        "unit db.service is failed",
        "unit db.service failed, which it did not on the earlier kernel",
        "check /bin/false ended with 1",
    ]


def test_evidence_of_the_trial(machine):
    phase(machine, "install")
    trial = phase(machine, "trial")["trial"]
    machine.file(trial["evidence"], "a\nb\n")
    machine.file("/sys/fs/pstore/dmesg-1", "Kernel panic\n")
    machine.boot()
    machine.boot()
    assert phase(machine, "report")["evidence"] == {"trial": ["a", "b"], "pstore": ["Kernel panic"]}


def test_a_damaged_record_is_named(machine):
    machine.file("/var/lib/mkops/kernel-boot/record.json", "{")
    with pytest.raises(Failure, match=r"record\.json is damaged"):
        phase(machine, "plan")


def test_what_cannot_bring_a_kernel_back_is_said(machine):
    machine.add(NEW, config="CONFIG_SOFTLOCKUP_DETECTOR=y\n# CONFIG_DETECT_HUNG_TASK is not set\n")
    run = kernel_boot.Run(
        SimpleNamespace(
            params={key: option.get("default") for key, option in kernel_boot.ARGUMENT_SPEC.items()}
            | {"release": NEW, "health": {"timeout": 10}}
        ),
        machine,
    )
    warnings = " ".join(run.todo.warnings)
    assert "no CONFIG_DETECT_HUNG_TASK" in warnings
    assert "SOFTLOCKUP" not in warnings
    assert "no hardware watchdog" in warnings


def test_the_lock_is_exclusive(machine):
    with machine.lock(), pytest.raises(Failure, match="another run"), machine.lock():
        pass


def test_documentation_and_arguments_agree():
    import yaml

    documented = yaml.safe_load(kernel_boot.DOCUMENTATION)["options"]
    assert set(documented) == set(kernel_boot.ARGUMENT_SPEC)
    for name, option in kernel_boot.ARGUMENT_SPEC.items():
        assert documented[name].get("default") == option.get("default"), name
        assert documented[name].get("choices") == option.get("choices"), name
    assert json.dumps(documented["health"]["suboptions"]["timeout"]["default"]) == "120"


@pytest.mark.parametrize("writable", [True, False])
def test_the_script_tells_on_the_console_what_it_cannot_keep(tmp_path, writable):
    console, kept = tmp_path / "console", tmp_path / ("kept" if writable else "gone/kept")
    script = host_part.EVIDENCE_SCRIPT.replace("/dev/console", str(console)).replace("/dev/kmsg", "/dev/null")
    # only the shell and what it reads: no systemd is needed, and none is asked
    subprocess.run(
        ["sh", "-s", str(kept)], input=script, text=True, check=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert (kept if writable else console).read_text().startswith("kernel ")
    assert console.exists() is not writable
