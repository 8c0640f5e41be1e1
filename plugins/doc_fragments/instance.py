# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What is wished of an instance."""

    DOCUMENTATION = r"""
options:
  name:
    description: Name of the instance. Letters, digits, V(.), V(_) and V(-), at most 63.
    type: str
    required: true
  state:
    description:
      - V(present) reserves CPUs and memory. A loaded or running instance is left as it is.
      - V(loaded) also loads the kernel. A running instance is left running.
      - V(started) also runs it.
      - V(stopped) means that it does not run. With O(kernel) it is loaded as well.
      - V(absent) stops it, unloads the kernel and gives CPUs and memory back to the pool.
    type: str
    choices: [present, loaded, started, stopped, absent]
    default: present
  cpus:
    description:
      - Logical CPU numbers of the pool, such as V(2-3) or a list of them.
      - This or O(cpu_count) is needed to create the instance. When both are left out later, it keeps what
        it has.
      - A running instance keeps the CPU that it was started on, the first one, or has to be restarted.
    type: raw
  cpu_count:
    description: So many CPUs of the pool. Those that the instance has are among them.
    type: int
  cpu_policy:
    description:
      - Which CPUs O(cpu_count) chooses. Several policies hold together.
      - V(cores) takes whole cores, V(node) takes all from one NUMA node, V(cache) takes CPUs whose
        last-level cache no other kernel uses, the host included; the cache's other CPUs then stay idle.
        Where these do not hold any more for the CPUs that an instance has, others are chosen.
      - V(spread) takes one after the other from different nodes, caches and cores. What is there is not
        moved for it.
      - Without a policy, CPUs are taken as near to each other as they can be had, in cores that no other
        kernel uses if possible.
    type: list
    elements: str
    choices: [cores, node, spread, cache]
  memory:
    description:
      - Bytes, or a number with V(K), V(M), V(G) or V(T) in powers of 1024, such as V(512M).
      - Needed to create the instance.
      - It grows in place in steps of the kernel's granule, usually 128 MiB, and shrinks by the pieces in
        which it grew. Any other change means that the instance is recreated.
    type: str
  id:
    description: Number of the instance, 1 to 511. The kernel chooses one when this is left out.
    type: int
  kernel:
    description:
      - File on the host, an uncompressed C(vmlinux) for x86-64, or a bzImage that kerf unpacks.
      - The host's own kernel, or one built from the same source, is what is known to work.
      - Compared by SHA-256 with what kerf noted when it loaded the image.
      - When left out, a loaded kernel is left as it is.
    type: path
  initrd:
    description: Initramfs on the host, a cpio archive, plain or compressed. Left out with O(kernel) means
      none.
    type: path
  cmdline:
    description:
      - Kernel command line.
      - Compared with C(/proc/kimage) where the kernel has it; where not, a change of it alone goes
        unnoticed.
    type: str
  console:
    description:
      - Device of the console, added to O(cmdline). V(mktty0) when neither names one; V(ttynull) silences it.
    type: str
  network:
    description:
      - A network device, as a dictionary, or a list of them. Devices are virtio devices that the host serves;
        C(docs/devices.md) of the collection describes them. An empty list means none; left out, they stay.
      - C(mode) is V(bridge), a port of a bridge of the host; V(routed), a network of its own with the host as
        its router; or V(isolated), the same without a way to the host and beyond.
      - C(bridge) is the bridge of the host, for mode V(bridge).
      - C(mac) is the address of the spawned kernel's end. When it is left out, one is made, and stays.
      - C(mtu) is V(1280) to V(9000), by default V(1500).
      - C(addresses) are IPv4 and IPv6 addresses of the spawned kernel with the length of their prefix, or
        V(dhcp) in mode V(bridge).
      - C(prefixes) are networks of each of which an address is allotted, which the instance keeps; in mode
        V(routed) and V(isolated) a pair, one for either end.
      - C(gateway) and C(dns) are addresses; in mode V(routed) the host is the gateway.
      - C(device) and C(hostname) are names of the device and of the host in the spawned kernel.
      - C(host_entry) is a name for its addresses in the host's C(/etc/hosts).
      - C(nat) hides it behind the host's addresses, and C(forwards) is a list of ports of the host with
        C(port), C(to) and C(protocol) (V(tcp) or V(udp)), for mode V(routed).
      - C(reach) are names of other instances that it may open connections to. Without it, it reaches none
        in mode V(routed) and V(isolated).
      - A dictionary without C(mode) makes no device. It is added to O(cmdline) as the kernel's C(ip=), with
        C(address) (an IPv4 address, or V(dhcp); required), C(netmask) (V(255.255.255.0) when left out),
        C(gateway), C(device) and C(hostname).
      - Devices need a kernel of this collection's series that offers them; on others they are refused.
    type: raw
  disks:
    description:
      - Disks that the host serves by C(qemu-storage-daemon), in the order in which the spawned kernel finds
        them (C(/dev/vda), C(/dev/vdb)). An empty list means none; left out, they stay.
      - A disk that is written belongs to one instance alone.
    type: list
    elements: dict
    suboptions:
      path:
        description: File or block device on the host.
        type: path
        required: true
      format:
        description: What is in the file. It is never guessed.
        type: str
        choices: [raw, qcow2]
        default: raw
      size:
        description: Make the file with this size, if it is not there. One that is there stays as it is.
        type: str
      base:
        description:
          - File or block device below a disk of format V(qcow2), which is read and never written. What the
            header of the disk says of a base is not looked at.
        type: path
      base_format:
        description: What is in O(disks[].base), V(raw) when left out.
        type: str
        choices: [raw, qcow2]
      read_only:
        description: The spawned kernel cannot write it. Several instances can have the same.
        type: bool
        default: false
      discard:
        description: What the spawned kernel discards is freed in the file.
        type: bool
        default: false
      cache:
        description:
          - When what was written is safe from a power cut. V(writeback) is when the spawned kernel has
            flushed, as its file systems do for C(fsync); V(writethrough) at once, and slow; V(unsafe) never.
        type: str
        choices: [writeback, writethrough, unsafe]
        default: writeback
  shares:
    description:
      - Directories that the host serves by C(virtiofsd). An empty list means none; left out, they stay.
    type: list
    elements: dict
    suboptions:
      path:
        description: Directory on the host.
        type: path
        required: true
      tag:
        description: What the spawned kernel mounts it by (C(mount -t virtiofs TAG /mnt)).
        type: str
        required: true
      read_only:
        description: The spawned kernel cannot write in it.
        type: bool
        default: false
      user:
        description:
          - Who reads and writes it on the host, and to whom new files belong. By default the owner of the
            directory; of one that belongs to root, V(nobody) if it is read only.
          - Nothing is served as V(root).
        type: str
  labels:
    description:
      - Names and values of your own, for inventories and queries. They are words C(label.NAME=VALUE) of the
        command line, so that the running kernel itself keeps them; changing one is a change of the command
        line.
    type: dict
  restart:
    description:
      - Whether an instance that has run and does not any more is started again, by a task with
        O(state=started) and, with C(at_boot=true), by systemd at once, without a task.
      - V(always) starts it. V(on-failure) starts it unless it ended cleanly or was stopped. V(no) leaves it
        as it is.
      - Left out, tasks start it and systemd does not.
      - What somebody stops, by a task, by kerf or by C(systemctl stop), systemd leaves stopped in any case. A
        kernel that restarts itself, it starts again unless V(no) is said.
      - V(on-failure) and V(no) need a kernel that tells how an instance ended.
    type: str
    choices: [always, on-failure, 'no']
  restart_delay:
    description: Seconds that systemd waits before it starts an instance again (C(RestartSec=)).
    type: int
    default: 1
    version_added: 0.2.0
  restart_delay_max:
    description:
      - Has the delay grow with each time that systemd starts the instance again, from O(restart_delay) to so
        many seconds (C(RestartMaxDelaySec=)).
      - Needs systemd 254. An older one keeps to O(restart_delay), which a warning tells.
    type: int
    version_added: 0.2.0
  restart_steps:
    description: In how many steps the delay grows to O(restart_delay_max) (C(RestartSteps=)).
    type: int
    default: 5
    version_added: 0.2.0
  restart_limit:
    description:
      - How often an instance may be started within O(restart_interval) (C(StartLimitBurst=)). After that it
        is given up, and its unit has failed, until somebody or a task starts it.
    type: int
    default: 5
    version_added: 0.2.0
  restart_interval:
    description: Seconds in which O(restart_limit) counts (C(StartLimitIntervalSec=)); V(0) means no limit.
    type: int
    default: 600
    version_added: 0.2.0
  watchdog:
    description:
      - A kernel that has given no sign of life for so many seconds, at least 5, is stopped by force, and has
        failed, which O(restart) then counts as such. Interrupts need not work in it. Until its first sign of
        life it has at least O(timeout) seconds.
      - Systemd does it (C(WatchdogSec=)), so that it needs C(at_boot=true), and a kernel of the host that
        tells of signs of life.
    type: int
    version_added: 0.2.0
  crash_keep:
    description:
      - Of how many crashes evidence is kept on the host, in C(/var/lib/mkops/crashes/NAME), for root alone.
        The oldest goes first.
      - Its console, what the host's kernel said, how it ended, its numbers and what it was started with are
        kept before it is started again, of an instance that has a unit, with C(at_boot=true).
    type: int
    default: 10
    version_added: 0.2.0
  crash_size:
    description:
      - What all evidence of an instance may take on the disk. The newest stays in any case, without
        the memory if that is too large.
    type: str
    default: 1G
    version_added: 0.2.0
  crash_memory:
    description:
      - Whether the memory of the kernel that crashed is kept as well, as an ELF core, or by C(makedumpfile)
        where the host has it. It may contain secrets.
      - Needs a kernel of the host that gives it; where it does not, that is told with the crash.
    type: bool
    default: false
    version_added: 0.2.0
  allow_restart:
    description: Stop and start a running instance when a change needs it, as with
      another O(kernel), O(initrd) or O(cmdline).
    type: bool
    default: false
  force:
    description:
      - Stop without asking the spawned kernel. Its file systems are not synced.
      - Without this it is asked to shut down, and it is an error when it does not.
    type: bool
    default: false
  stop_timeout:
    description:
      - Seconds for the spawned kernel to stop when it is asked to. After that the task fails.
      - The host's kernel itself waits up to 30, so that one which stops late may still do so afterwards.
    type: int
    default: 60
  wait_for:
    description:
      - Python regular expression to wait for on the console after the instance was started, such as a login
        prompt.
      - Only output since the start counts. When nothing needed to be started, there is nothing to wait for,
        unless an earlier run has started the instance and waited in vain. Then this one waits again.
      - On kernels that give a console to its latest reader, one that was open loses it.
    type: str
  wait:
    description:
      - What else to wait for after the instance was started. V(agent) is kerf's agent answering, which
        needs a kernel with vsock between host and instances; V(heartbeat) is a sign of life of the kernel,
        where the host's kernel tells of it.
    type: str
    choices: [none, agent, heartbeat]
    default: none
  timeout:
    description:
      - Seconds to wait for O(wait_for) and O(wait).
      - The host is not locked meanwhile. Other runs may change it.
    type: int
    default: 60
"""
