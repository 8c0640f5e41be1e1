# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Spawned kernels as hosts: large files, many forks, and kernels that die under a task.

guests.py INVENTORY... INSTANCE INSTANCE [--size MIB] [--part PART]     on the controller
guests.py INVENTORY... INSTANCE... --instances NUMBER --part forks --raw

Instances are named as in the inventory, are of one host, and their units watch them; the first one is killed,
and has restart=on-failure. Its files are lost. With --raw, there need not be Python in them.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from ansible.errors import AnsibleConnectionFailure
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import connection_loader, init_plugin_loader
from ansible.vars.hostvars import HostVars
from ansible.vars.manager import VariableManager

LIMIT = 5  # seconds in which a task has to notice that its kernel has died
FORKS = 20
PING = "ansible.builtin.ping"
MIB = 1 << 20
MARK = "86399"  # seconds that no other task sleeps


def check(what, holds):
    if not holds:
        sys.exit(f"{what}: {holds!r}")


class Lab:
    """Connections as tasks have them."""

    def __init__(self, sources):
        init_plugin_loader()
        # After the loader of plugins has been told where collections are.
        from ansible_collections.mkops.multikernel.plugins.plugin_utils.hosts import HostConnection

        self.sources, self.host_connection = sources, HostConnection
        loader = DataLoader()
        inventory = InventoryManager(loader=loader, sources=sources)
        self.variables = HostVars(inventory, VariableManager(loader=loader, inventory=inventory), loader)

    def guest(self, name):
        variables = self.variables[name]
        connection = connection_loader.get(variables["ansible_connection"], PlayContext(), os.devnull)
        names = ("inventory_hostname", "ansible_kerf_host", "ansible_kerf_instance")
        connection.set_options(
            var_options={**{one: variables[one] for one in names}, "hostvars": self.variables}
        )
        return connection

    def host(self, name):
        return self.host_connection(name, self.variables[name])

    def ansible(self, *words):
        where = [word for source in self.sources for word in ("-i", source)]
        return ["ansible", *where, *words]


def said(connection, command):
    """Output of a command, which has to succeed."""
    run = getattr(connection, "exec_command", None) or connection.run
    code, out, err = run(command, b"\n")
    check(f"{command}: {code}, {err.decode()}", code == 0)
    return out.decode().strip()


def until(what, condition, seconds=300):
    begun = time.monotonic()
    while not (found := condition()):
        check(f"{what}: not within {seconds} s", time.monotonic() - begun < seconds)
        time.sleep(0.2)
    return found


def digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def move(lab, guests, host, options):
    """A file to and fro, and the same by SSH to the host."""
    there, size = "/tmp/large", options.size
    with tempfile.TemporaryDirectory() as directory:
        large, back = Path(directory, "large"), Path(directory, "back")
        with large.open("wb") as file:
            for _part in range(size):
                file.write(os.urandom(MIB))
        rates = {}
        kerf, ssh = lab.guest(guests[0]), lab.host(host)
        for name, connection, talk in (("kerf", kerf, kerf), ("ssh", ssh._connection, ssh)):
            said(talk, "true")  # whatever has to be opened, is
            begun = time.monotonic()
            connection.put_file(str(large), there)
            put = time.monotonic()
            check("what arrived", said(talk, f"sha256sum {there}").split()[0] == digest(large))
            begin_fetch = time.monotonic()
            connection.fetch_file(there, str(back))
            fetched = time.monotonic()
            check("what came back", digest(back) == digest(large))
            said(talk, f"rm {there}")
            back.unlink()
            rates[name] = size / (put - begun), size / (fetched - begin_fetch)
    for index, way in enumerate(("to", "from")):
        kerf, ssh = (rates[name][index] for name in ("kerf", "ssh"))
        print(f"{size} MiB {way} a spawned kernel: {kerf:.1f} MiB/s; {way} the host by SSH: {ssh:.1f} MiB/s")


def at_once(lab, guests, _host, options):
    """As many tasks at the same time as there are forks."""
    with tempfile.TemporaryDirectory() as directory:
        inventory = Path(directory, "many.yml")
        lines = ["many:", "  hosts:"]
        for number in range(FORKS):
            guest = lab.variables[guests[number % len(guests)]]
            lines += [f"    many{number}:"]
            lines += [f"      ansible_kerf_instance: {guest['ansible_kerf_instance']}"]
        lines += ["  vars:", "    ansible_connection: mkops.multikernel.kerf"]
        lines += [f"    ansible_kerf_host: {guest['ansible_kerf_host']}"]
        inventory.write_text("\n".join([*lines, ""]))
        task = ["-m", "ansible.builtin.raw", "-a", "echo pong"] if options.raw else ["-m", PING]
        words = ("-i", str(inventory), "-f", str(FORKS), "many", *task, "--one-line")
        # More than MaxSessions are connections of their own, and a busy host lets them wait for too long.
        environment = {**os.environ, "ANSIBLE_SSH_RETRIES": "5"}
        begun = time.monotonic()
        done = subprocess.run(
            lab.ansible(*words), capture_output=True, text=True, check=False, env=environment
        )
    answers = done.stdout.count("(stdout) pong" if options.raw else "| SUCCESS =>")
    check(f"{FORKS} at once: {answers} have answered: {done.stdout}{done.stderr}", answers == FORKS)
    seconds = time.monotonic() - begun
    print(f"{FORKS} tasks by {FORKS} forks in {len(guests)} instances: {seconds:.1f} s in all")


def die(lab, guest, host, how, command, kill, reason):
    """A task in a kernel that dies."""
    name = lab.variables[guest]["ansible_kerf_instance"]
    status = f"/sys/fs/multikernel/instances/{name}/status"
    task = subprocess.Popen(
        lab.ansible(guest, "-m", "ansible.builtin.shell", "-a", command),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    words = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; true"
    until("the task", lambda: MARK in said(lab.guest(guest), words))
    died = []

    def watch():
        said(lab.host(host), f"while grep -q active {status}; do sleep 0.05; done")
        died.append(time.monotonic())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    kill()
    output, _nothing = task.communicate(timeout=120)
    ended = time.monotonic()
    watcher.join(timeout=60)
    check(f"{how}: {output}", died and "UNREACHABLE!" in output and "it has died meanwhile" in output)
    check(f"{how}, the reason {reason}: {output}", reason in output)
    told = output.rsplit("msg:", maxsplit=1)[-1].strip().splitlines()[0]
    print(f"{how}: unreachable {ended - died[0]:.1f} s later: {told}")
    check(f"{how}: it took {ended - died[0]:.1f} s", ended - died[0] < LIMIT)


def deaths(lab, guests, host, _options):
    """A kernel that is killed, and one that panics, which systemd starts again."""
    guest = guests[0]
    name = str(lab.variables[guest]["ansible_kerf_instance"])

    def killed():
        said(lab.host(host), f"/opt/mkops/kerf/bin/kerf kill --force {name}")

    die(lab, guest, host, "killed", f"exec sleep {MARK}", killed, "forced")
    unit = f"mkops@{name}.service"
    # What it says is compared, and it ends with 3 for all that is not active.
    active = f"systemctl is-active {unit} || true"
    until("the unit has ended", lambda: said(lab.host(host), active) == "inactive")
    said(lab.host(host), f"systemctl start {unit}")
    said(lab.guest(guest), "true")
    print("killed: its unit has started it again, and it answers")

    trigger = f"(sleep 15; echo c >/proc/sysrq-trigger) & exec sleep {MARK}"
    die(lab, guest, host, "panicked", trigger, lambda: None, "panic: sysrq triggered crash")

    def answers():
        try:
            return lab.guest(guest).exec_command("true", b"\n")[0] == 0
        except AnsibleConnectionFailure:
            return False

    until("systemd starts it again", answers, 600)
    print("panicked: systemd has started it again, and it answers")


PARTS = {"move": move, "forks": at_once, "deaths": deaths}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+")
    parser.add_argument("--size", type=int, default=100, help="MiB")
    parser.add_argument("--part", choices=[*PARTS], action="append", help="these alone")
    parser.add_argument("--instances", type=int, default=2, help="how many of the names are instances")
    parser.add_argument("--raw", action="store_true", help="no modules")
    options = parser.parse_args()
    sources, guests = options.names[: -options.instances], options.names[-options.instances :]
    lab = Lab(sources)
    guest, sibling = guests[:2]
    host = str(lab.variables[guest]["ansible_kerf_host"])
    boot_id = "cat /proc/sys/kernel/random/boot_id"
    before = [said(lab.guest(sibling), boot_id), said(lab.host(host), boot_id)]

    for part in options.part or PARTS:
        PARTS[part](lab, guests, host, options)
    after = [said(lab.guest(sibling), boot_id), said(lab.host(host), boot_id)]
    check(f"the others went on: {before} {after}", before == after)


if __name__ == "__main__":
    main()
