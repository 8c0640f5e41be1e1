#!/usr/bin/python
# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: debian_root
short_description: Make a Debian root file system for a spawned kernel
version_added: 0.2.0
description:
  - Makes a Debian root file system of packages of a signed archive, with users, network and services, as an
    initramfs, as a disk image, or as an archive to be unpacked into a directory.
  - The result is kept by the SHA-256 of all that decides about it, the versions of all packages among it. It
    is made only once, and the same wish gives the same bytes.
  - The packages are fetched, verified, unpacked and configured by mmdebstrap, in namespaces of its own where
    it is not run by root. All that follows is done on the archive, without being root and without mounting
    anything.
  - The ID of the machine and the keys of its SSH server are made when it starts for the first time.
options:
  suite:
    description: The Debian suite.
    type: str
    default: trixie
  packages:
    description:
      - Packages beside those that every root has, which are the essential ones, apt, systemd, udev, C(login),
        C(mount) and C(passwd). What they depend on comes along.
      - C(NAME=VERSION) pins a version that the archive has.
    type: list
    elements: str
    default: []
  recommends:
    description: Whether recommended packages are installed as well.
    type: bool
    default: false
  exclude:
    description:
      - Patterns of paths that packages leave out, now and whenever one is installed in the root.
      - The licences of packages in C(/usr/share/doc) always stay.
    type: list
    elements: str
    default: [/usr/share/doc/*, /usr/share/info/*, /usr/share/locale/*, /usr/share/man/*,
    /usr/lib/udev/hwdb.d/*]
  mirror:
    description:
      - Base address of the Debian mirror that the root is made from. The root itself uses C(deb.debian.org).
      - By default the one in the package sources of the host that is Debian's by its Release file.
      - A name and password in it are not shown anywhere.
    type: str
  updates:
    description:
      - Whether updates of the suite and its security updates are taken as well, where a suite has such.
    type: bool
    default: true
  security_mirror:
    description: Base address of the archive of security updates.
    type: str
    default: http://security.debian.org/debian-security
  keyring:
    description: The keys that may sign the suite.
    type: path
    default: /usr/share/keyrings/debian-archive-keyring.gpg
  hostname:
    description: Name of the machine.
    type: str
    default: localhost
  timezone:
    description:
      - Its time zone, such as V(Europe/Vienna). One other than V(UTC) brings the package C(tzdata) along.
    type: str
    default: UTC
  locale:
    description:
      - Value of E(LANG). One other than V(C.UTF-8), V(C) and V(POSIX) needs C(locales-all) in O(packages).
    type: str
    default: C.UTF-8
  users:
    description: Who may log in. Each gets a group of the same name, and a home directory.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the user; V(root) may be among them.
        type: str
        required: true
      uid:
        description: Number of the user and the group. By default the next one from 1000 on that is free.
        type: int
      password:
        description:
          - Hash of the password, as crypt(5) has it and the filter P(ansible.builtin.password_hash#filter)
            makes it.
          - Without one, no password fits.
        type: str
      ssh_keys:
        description: Lines of C(authorized_keys).
        type: list
        elements: str
        default: []
      ssh_key_files:
        description: Files with such lines on the host that makes the root.
        type: list
        elements: path
        default: []
      groups:
        description: Further groups, which packages bring along.
        type: list
        elements: str
        default: []
      shell:
        description: Their shell.
        type: str
        default: /bin/bash
  network:
    description:
      - What systemd-networkd is to do. V(none), V(dhcp) for every Ethernet interface, or the path of a
        C(.network) file on the host that makes the root.
    type: str
    default: none
  nameservers:
    description: Addresses of name servers. Without any, systemd-resolved decides if it is among the packages.
    type: list
    elements: str
    default: []
  enabled_units:
    description: Units that systemd is to start, beside those that packages enable.
    type: list
    elements: str
    default: []
  masked_units:
    description: Units that systemd is never to start. By default what is of no use in a spawned kernel.
    type: list
    elements: str
    default:
      - apt-daily-upgrade.timer
      - apt-daily.timer
      - getty-static.service
      - getty@tty1.service
      - modprobe@configfs.service
      - modprobe@drm.service
      - modprobe@fuse.service
      - systemd-pstore.service
      - systemd-update-done.service
      - ldconfig.service
      - systemd-journal-catalog-update.service
  console:
    description:
      - What is on the console of the spawned kernel, which only root of the host can reach. V(shell) is one
        of root, V(login) asks for a name and password, V(none) leaves it to the kernel.
    type: str
    choices: [shell, login, none]
    default: shell
  agent:
    description:
      - kerf's agent C(kerf-init), a file on the host that makes the root. It becomes the service
        C(kerf-agent), which C(kerf exec) needs.
    type: path
  facts:
    description:
      - A program that writes a line to the console once the system is up. It becomes C(mkops-facts) and a
        service.
    type: path
  overlays:
    description:
      - Directories on the host that makes the root, whose files and links are put over the root. They become
        root's and readable by all, and executable if they are so for their owner.
      - Of several with the same file the later one wins.
    type: list
    elements: path
    default: []
  modules:
    description:
      - Directory such as C(/lib/modules), whose directories for releases go into the root. Kernels of the
        profiles that are only spawned have no modules.
    type: path
  form:
    description:
      - V(initramfs) is an archive that the kernel unpacks into its memory. It needs no device, and forgets
        what is written.
      - V(disk) is a disk image with one ext4 file system and no partitions. It grows to the size of its disk.
      - V(tar) is an archive that is to be unpacked into a directory, for virtiofs or as a base for images of
        others.
    type: str
    choices: [initramfs, disk, tar]
    default: initramfs
  compression:
    description:
      - How an initramfs or an archive is compressed. The kernel has to know it, and each knows V(gzip).
    type: str
    choices: [gzip, zstd, xz, none]
    default: gzip
  disk_format:
    description: Format of a disk image.
    type: str
    choices: [raw, qcow2]
    default: raw
  size:
    description:
      - Size of a disk image, such as V(2G), in whole MiB.
      - By default what the files need and a quarter more.
    type: str
  keep:
    description:
      - How many roots stay in O(cache_dir), this one included, and how many sets of packages that they are
        made of. Removed are those that no run has asked for for the longest time. V(0) keeps all of them.
    type: int
    default: 0
  cache_dir:
    description: Directory that keeps package lists and results.
    type: path
    default: ~/.cache/mkops
  lists_valid_seconds:
    description: Age at which the private package lists are fetched anew.
    type: int
    default: 86400
  progress_file:
    description:
      - File that is rewritten every second while the root is made.
      - It is how the progress reaches the controller and set by itself. There is no need to use it.
    type: path
notes:
  - All paths are on the host that makes the root, which mostly is the controller.
  - An initramfs has no extended attributes, such as capabilities of programs.
  - Do not use C(async) with this module, it runs in the background by itself.
extends_documentation_fragment:
  - mkops.multikernel.attributes
  - mkops.multikernel.attributes.changes
attributes:
  platform:
    platforms: debian
seealso:
  - module: mkops.multikernel.kernel_build
author:
  - mkops contributors (@mkops)
"""

EXAMPLES = r"""
- name: A root in memory, with a user
  mkops.multikernel.debian_root:
    packages: [python3, openssh-server]
    hostname: red
    users:
      - name: alice
        ssh_key_files: [~/.ssh/id_ed25519.pub]
        groups: [adm]
    enabled_units: [ssh.service]
  delegate_to: localhost
  register: root

- name: A disk image of 4 GiB for virtio
  mkops.multikernel.debian_root:
    form: disk
    disk_format: qcow2
    size: 4G
    network: dhcp
    packages: [nginx-light]
  delegate_to: localhost
"""

RETURN = r"""
key:
  description: The SHA-256 of everything that decides about the result.
  type: str
  returned: success
release:
  description: A short name of the result, for people.
  type: str
  returned: success
  sample: trixie-initramfs-0a1b2c3d
directory:
  description: Where the result is kept.
  type: str
  returned: success
path:
  description: The image.
  type: str
  returned: when it is made
checksum:
  description: Its SHA-256, as C(sha256:HEX).
  type: str
  returned: when it is made
size:
  description: Its size in bytes.
  type: int
  returned: when it is made
manifest:
  description: File with what it is made of, and its checksum.
  type: str
  returned: when it is made
packages:
  description: All packages in the root, with their versions.
  type: list
  elements: str
  returned: success
  sample: [apt 3.0.3, base-files 13.8]
cmdline:
  description: Words that a kernel's command line needs so that it starts from this root.
  type: str
  returned: success
  sample: root=/dev/vda rw rootwait
removed:
  description: The names of roots that were removed from the cache, or would be in check mode.
  type: list
  elements: str
  returned: when O(keep) is not 0
duration:
  description: Seconds that this run took.
  type: float
  returned: success
build_seconds:
  description: Seconds that making the root took when it was made.
  type: float
  returned: when it is made
"""

import os
import signal
import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.mkops.multikernel.plugins.module_utils._module import printable
from ansible_collections.mkops.multikernel.plugins.module_utils.build import root
from ansible_collections.mkops.multikernel.plugins.module_utils.build.address import secrets_of
from ansible_collections.mkops.multikernel.plugins.module_utils.build.builder import Stopped
from ansible_collections.mkops.multikernel.plugins.module_utils.build.debian import (
    KEYRING,
    LISTS_VALID_SECONDS,
    SUITE,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.build.roots import SECURITY, builder_of, paths
from ansible_collections.mkops.multikernel.plugins.module_utils.common.command import STOP_SIGNALS
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure, Refused
from ansible_collections.mkops.multikernel.plugins.module_utils.common.files import text_of

ARGUMENT_SPEC = {
    "suite": {"type": "str", "default": SUITE},
    "packages": {"type": "list", "elements": "str", "default": []},
    "recommends": {"type": "bool", "default": False},
    "exclude": {"type": "list", "elements": "str", "default": [*root.EXCLUDED]},
    "mirror": {"type": "str"},
    "updates": {"type": "bool", "default": True},
    "security_mirror": {"type": "str", "default": SECURITY},
    "keyring": {"type": "path", "default": KEYRING},
    "hostname": {"type": "str", "default": "localhost"},
    "timezone": {"type": "str", "default": "UTC"},
    "locale": {"type": "str", "default": "C.UTF-8"},
    "users": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "uid": {"type": "int"},
            "password": {"type": "str", "no_log": True},
            "ssh_keys": {"type": "list", "elements": "str", "default": [], "no_log": False},
            "ssh_key_files": {"type": "list", "elements": "path", "default": [], "no_log": False},
            "groups": {"type": "list", "elements": "str", "default": []},
            "shell": {"type": "str", "default": "/bin/bash"},
        },
    },
    "network": {"type": "str", "default": "none"},
    "nameservers": {"type": "list", "elements": "str", "default": []},
    "enabled_units": {"type": "list", "elements": "str", "default": []},
    "masked_units": {"type": "list", "elements": "str", "default": [*root.MASKED]},
    "console": {"type": "str", "choices": [*root.CONSOLES], "default": "shell"},
    "agent": {"type": "path"},
    "facts": {"type": "path"},
    "overlays": {"type": "list", "elements": "path", "default": []},
    "modules": {"type": "path"},
    "form": {"type": "str", "choices": [*root.FORMS], "default": "initramfs"},
    "compression": {"type": "str", "choices": [*root.COMPRESSIONS], "default": "gzip"},
    "disk_format": {"type": "str", "choices": [*root.DISKS], "default": "raw"},
    "size": {"type": "str"},
    "keep": {"type": "int", "default": 0},
    "cache_dir": {"type": "path", "default": "~/.cache/mkops"},
    "lists_valid_seconds": {"type": "int", "default": LISTS_VALID_SECONDS},
    "progress_file": {"type": "path"},
}


def side(inputs: dict | None) -> str:
    """One side of the diff: everything that decides, on lines of its own."""
    lines = []
    for name, value in sorted((inputs or {}).items()):
        if name in ("base", "tools", "ours"):
            continue
        values = value if isinstance(value, list) else [value]
        lines += [f"{name}: {one}" for one in values]
    return "".join(f"{line}\n" for line in lines)


def stop(signum: int, _frame: object) -> None:
    raise Stopped(signal.Signals(signum).name)


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    started = time.monotonic()
    os.umask(0o022)
    # Ansible then hides them wherever it shows parameters.
    module.no_log_values.update(secrets_of([module.params["mirror"], module.params["security_mirror"]]))
    for signum in STOP_SIGNALS:
        signal.signal(signum, stop)
    ended: dict = {}
    try:
        result = work(module)
    except Refused as refused:
        ended = {"msg": "\n".join(["no root was made:", *refused.reasons]), "problems": [*refused.reasons]}
    except Failure as error:
        ended = {"msg": str(error), **error.details}
    except OSError as error:
        place = os.fsdecode(error.filename or module.params["cache_dir"])
        ended = {"msg": f"{place}: {error.strerror}; once that is mended, run again"}
    except Stopped as signalled:
        ended = {"msg": f"stopped by {signalled}; run again"}
    module.params = printable(module.params)  # Ansible may return them as well
    if ended:
        module.fail_json(**printable(ended))
    module.exit_json(**printable({**result, "duration": round(time.monotonic() - started, 2)}))


def work(module: AnsibleModule) -> dict:
    """Make the root, unless it is there, or in check mode find out what would be made."""
    builder = builder_of(module.params, module.warn)
    keep = module.params["keep"]
    result = {
        "key": builder.key,
        "release": builder.release,
        "directory": text_of(builder.cache.results / builder.key),
        "packages": [str(deb) for deb in builder.debs],
        "cmdline": builder.wish.cmdline(),
    }
    manifest = builder.manifest()
    made = manifest is None
    builder.cache.note_use(builder.key)
    if made and module._diff:
        latest = builder.cache.latest()
        result["diff"] = {
            "before_header": "newest root in the cache",
            "before": side(latest["inputs"] if latest else None),
            "after_header": "root to make",
            "after": side(builder.inputs()),
        }
    if made and not module.check_mode:
        manifest, made = builder.build()
    if keep:
        result["removed"] = builder.cache.prune(keep, builder.key, module.check_mode)
        builder.bases.prune(keep, builder.base_key, module.check_mode)
    if manifest:
        result |= paths(builder, manifest)
    return {"changed": made or bool(result.get("removed")), **result}


if __name__ == "__main__":
    main()
