#!/usr/bin/python
# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kernel_build
short_description: Build a kernel from a Debian source package, patches and configuration fragments
version_added: 0.1.0
description:
  - Builds a Debian package and an uncompressed C(vmlinux) from a kernel source, a series of patches and
    configuration fragments, on the host that the task runs on.
  - Results are kept by a key made of everything that decides about them, which is the checksum of the source,
    the contents of the patches and fragments, the base, the options, the files outside of the tree that the
    configuration names, and every program that Kconfig asks (gcc with its headers for plugins, as, ld,
    pahole, rustc, bindgen). When a kernel of the same key is there, nothing is done.
  - Every option that a fragment names is looked up in the finished configuration. If any was lost, or names a
    file that is not there, the build fails before anything is compiled, naming all of them. Where the
    configuration that is built upon names certificates that the source does not have, the options get their
    default, with a warning.
  - While the kernel is built, the progress is shown on the controller.
  - A build that was interrupted is continued by the next run.
options:
  source:
    description:
      - Where the kernel source comes from.
      - O(source.package) is fetched from a Debian mirror and verified by apt through a private configuration.
        The package sources of the machine are neither used nor changed.
      - O(source.path) is an archive that lies on the build host already, or a tree that
        M(mkops.multikernel.kernel_source) has made there.
    type: dict
    required: true
    suboptions:
      package:
        description: Name of a Debian source package such as V(linux-source-6.12).
        type: str
      version:
        description:
          - Exact version of the package, such as V(6.12.107-1).
          - Without it, the newest version of the suite is taken.
        type: str
      suite:
        description: Debian suite that has the package.
        type: str
        default: trixie
      mirror:
        description:
          - Base address of the Debian mirror.
          - By default the one in the package sources of the build host that is Debian's by its Release file.
          - A name and password in it are not shown anywhere.
        type: str
      keyring:
        description: The keys that may sign the suite.
        type: path
        default: /usr/share/keyrings/debian-archive-keyring.gpg
      path:
        description:
          - A C(linux-source-*.deb) or a C(.tar.*) archive with one kernel tree in it.
          - Or a directory that M(mkops.multikernel.kernel_source) has made. It is copied and not changed.
        type: path
      checksum:
        description: Checksum of an archive O(source.path), as C(sha256:HEX). An archive needs one.
        type: str
  series:
    description:
      - Directory with the patches to apply, in the order of its file C(series), or of their names.
      - They are read as C(git am) reads them, mailboxes and encoded mails included, and applied with C(-p1).
        One with nothing to apply, or another option in the file C(series), is an error.
      - A file in its folder C(config) that has the name of a fragment in O(config) is merged right after
        that one. It holds what this version of the kernel calls otherwise.
      - Without it the source is built as it is.
    type: path
  config_base:
    description:
      - What the fragments are merged over, V(tinyconfig), V(allnoconfig), V(defconfig), V(running), or the
        path of a configuration file, which may be compressed (C(.gz)).
      - V(running) is the configuration of the kernel that the build host runs.
      - Over V(tinyconfig) and V(allnoconfig), what the fragments do not name is off. Over the others it has
        its default.
    type: str
    default: tinyconfig
  config:
    description:
      - Configuration fragments, merged in this order. The later one wins.
      - Their lines are C(CONFIG_NAME=value) and C(# CONFIG_NAME is not set).
    type: list
    elements: path
    required: true
  local_version:
    description:
      - Part of the release between the version and the first eight digits of the key. V(-mkops) gives
        C(6.12.107-mkops-0a1b2c3d).
    type: str
    default: -mkops
  jobs:
    description:
      - How many compilers to run at once.
      - V(0) stands for one per CPU.
    type: int
    default: 0
  ccache:
    description: Whether to compile through ccache, with its files in O(cache_dir).
    type: bool
    default: true
  package:
    description:
      - What the kernel is packed into. Hosts of M(mkops.multikernel.kernel_boot) take V(deb).
      - V(rpm) needs C(rpmbuild) on the build host. V(tar) is an archive to be unpacked at C(/).
    type: str
    choices: [deb, rpm, tar]
    default: deb
    version_added: 0.2.0
  sign:
    description:
      - Signs the kernel image for Secure Boot, and the modules if there are any.
      - Which certificate has signed is part of the key. A signature has the time in it, so that two builds of
        a signed kernel are not the same bytes.
    type: dict
    version_added: 0.2.0
    suboptions:
      key:
        description:
          - Private key on the build host, a PEM file without a passphrase that nobody but its owner can read.
          - Ed25519 and EC keys are not understood by all firmware, RSA with 2048 bits is.
        type: path
        required: true
      certificate:
        description: Its certificate, a PEM file on the build host. The firmware or shim has to know it.
        type: path
        required: true
  keep_tree:
    description:
      - Whether the tree that the kernel was built in is kept beside the result, for C(build_tree).
      - A kernel that is there already is not built again for its tree.
    type: bool
    default: false
    version_added: 0.2.0
  keep:
    description:
      - How many kernels stay in O(cache_dir), this one included. Removed are those that no run has asked for
        for the longest time.
      - Never removed are this kernel, one that is being built, and the one that the build host runs.
      - Give at least the number of kernels that your plays build. V(0) keeps all of them.
    type: int
    default: 0
    version_added: 0.2.0
  cache_dir:
    description: Directory on the build host that keeps sources, compiler cache and results.
    type: path
    default: ~/.cache/mkops
  lists_valid_seconds:
    description: Age at which the private package lists are fetched anew.
    type: int
    default: 86400
  progress_file:
    description:
      - File on the build host that is rewritten every second while the kernel is built.
      - It is how the progress reaches the controller and set by itself. There is no need to use it.
    type: path
  remote_src:
    description:
      - If V(false), O(series), O(config) and a path in O(config_base) are on the controller and sent along.
      - If V(true), they are on the build host.
    type: bool
    default: false
notes:
  - The build host needs a compiler and the usual packages for building kernels. What is missing is named, all
    of it at once.
  - Do not use C(async) with this module, it runs in the background by itself.
extends_documentation_fragment:
  - mkops.multikernel.attributes
  - mkops.multikernel.attributes.changes
attributes:
  platform:
    platforms: debian
author:
  - mkops contributors (@mkops)
"""

EXAMPLES = r"""
- name: Build the lab kernel from Debian's source and the series of this collection
  mkops.multikernel.kernel_build:
    source:
      package: linux-source-6.12
    series: "{{ playbook_dir }}/../roles/kernel/files/series/6.12"
    config:
      - "{{ playbook_dir }}/../roles/kernel/files/config/lab.config"
      - "{{ playbook_dir }}/../roles/kernel/files/config/multikernel.config"
  delegate_to: localhost
  register: kernel

- name: Build an archive that was fetched before, without patches, over the default configuration
  mkops.multikernel.kernel_build:
    source:
      path: /srv/linux-6.12.107.tar.xz
      checksum: sha256:0f3c0b3b1d6c9a5e1f2d3c4b5a69788796a5b4c3d2e1f0a9b8c7d6e5f4a3b2c1
    config_base: defconfig
    config: [files/mine.config]
    jobs: 8

- name: Build a signed kernel as an RPM package
  mkops.multikernel.kernel_build:
    source:
      package: linux-source-6.12
    config_base: /boot/config-6.12.0-amd64
    config: [files/mine.config]
    package: rpm
    sign:
      key: /etc/mkops/secure-boot.key
      certificate: /etc/mkops/secure-boot.pem
"""

RETURN = r"""
build_tree:
  description: Directory with the tree that the kernel was built in.
  type: str
  returned: when there is one, see O(keep_tree)

key:
  description: The key of the result, the SHA-256 of everything that decides about it.
  type: str
  returned: success
  sample: 0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9
release:
  description:
    - What C(uname -r) says on the kernel.
    - In check mode it is foretold from the version of the source, and the series or configuration may add to
      it; empty when the source is a plain archive.
  type: str
  returned: success
  sample: 6.12.107-mkops-0a1b2c3d
directory:
  description: Where the result is kept.
  type: str
  returned: success
  sample: /home/me/.cache/mkops/kernels/0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9
packages:
  description: Paths of the packages, of whatever kind.
  type: list
  elements: str
  returned: when the kernel is built
debs:
  description: Paths of the Debian packages.
  type: list
  elements: str
  returned: when the kernel is built
vmlinux:
  description: Path of the uncompressed image, which spawned kernels are loaded from.
  type: str
  returned: when the kernel is built
config:
  description: Path of the configuration.
  type: str
  returned: when the kernel is built
manifest:
  description: Path of the manifest, which has the inputs and the checksum of every file.
  type: str
  returned: when the kernel is built
log:
  description: Path of what make printed.
  type: str
  returned: when the kernel is built, or its build failed
lost:
  description: The options that are not as wanted in the finished configuration, each with the reason.
  type: list
  elements: str
  returned: when options were lost
removed:
  description: The releases of kernels that were removed from the cache, or would be in check mode.
  type: list
  elements: str
  returned: when O(keep) is not 0
  sample: [6.12.105-mkops-9f8e7d6c]
duration:
  description: Seconds that this run took.
  type: float
  returned: success
  sample: 0.4
build_seconds:
  description: Seconds that building the kernel took when it was built.
  type: float
  returned: when the kernel is built
  sample: 287.1
"""

import os
import signal
import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.mkops.multikernel.plugins.module_utils._module import printable
from ansible_collections.mkops.multikernel.plugins.module_utils.build.address import secrets_of
from ansible_collections.mkops.multikernel.plugins.module_utils.build.builder import Builder, Stopped
from ansible_collections.mkops.multikernel.plugins.module_utils.build.debian import (
    KEYRING,
    LISTS_VALID_SECONDS,
    SUITE,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.build.order import builder_of
from ansible_collections.mkops.multikernel.plugins.module_utils.build.packages import FORMATS
from ansible_collections.mkops.multikernel.plugins.module_utils.common.command import STOP_SIGNALS
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure, Refused
from ansible_collections.mkops.multikernel.plugins.module_utils.common.files import text_of

ARGUMENT_SPEC = {
    "source": {
        "type": "dict",
        "required": True,
        "options": {
            "package": {"type": "str"},
            "version": {"type": "str"},
            "suite": {"type": "str", "default": SUITE},
            "mirror": {"type": "str"},
            "keyring": {"type": "path", "default": KEYRING},
            "path": {"type": "path"},
            "checksum": {"type": "str"},
        },
        "mutually_exclusive": [("package", "path"), ("version", "path")],
        "required_one_of": [("package", "path")],
    },
    "series": {"type": "path"},
    "config_base": {"type": "str", "default": "tinyconfig"},
    "config": {"type": "list", "elements": "path", "required": True},
    "local_version": {"type": "str", "default": "-mkops"},
    "jobs": {"type": "int", "default": 0},
    "ccache": {"type": "bool", "default": True},
    "package": {"type": "str", "choices": [*FORMATS], "default": "deb"},
    "sign": {
        "type": "dict",
        "options": {
            "key": {"type": "path", "required": True, "no_log": False},
            "certificate": {"type": "path", "required": True},
        },
    },
    "keep_tree": {"type": "bool", "default": False},
    "keep": {"type": "int", "default": 0},
    "cache_dir": {"type": "path", "default": "~/.cache/mkops"},
    "lists_valid_seconds": {"type": "int", "default": LISTS_VALID_SECONDS},
    "progress_file": {"type": "path"},
    "remote_src": {"type": "bool", "default": False},
}


def side(manifest: dict | None) -> str:
    """One side of the diff: every input on a line of its own."""
    if not manifest:
        return ""
    inputs = manifest["inputs"]
    lines = [
        f"release: {manifest['release']}",
        f"key: {manifest['key']}",
        f"source: {inputs['source']['name']} {inputs['source']['sha256']}",
        f"base: {inputs['base']}",
        f"local_version: {inputs['local_version']}",
        f"package: {inputs.get('package', 'deb')}",
        f"signer: {inputs.get('signer') or '-'}",
        *(f"fragment: {name} {digest}" for name, digest in inputs["fragments"]),
        *(f"patch: {name} {digest}" for name, digest in inputs["series"]),
        *(f"toolchain: {line}" for line in inputs["toolchain"]),
    ]
    return "\n".join(lines) + "\n"


def paths(builder: Builder, manifest: dict) -> dict:
    directory = builder.cache.results / builder.key
    tree = directory / "build"

    def path_of(name: str) -> str:
        return text_of(directory / name)

    return {
        "debs": [path_of(name) for name in manifest["debs"]],
        "packages": [path_of(name) for name in manifest.get("packages", manifest["debs"])],
        **({"build_tree": text_of(tree)} if tree.is_dir() else {}),
        "vmlinux": path_of("vmlinux"),
        "config": path_of("config"),
        "manifest": path_of("manifest.json"),
        "log": path_of("build.log"),
        "build_seconds": manifest["seconds"],
    }


def stop(signum: int, _frame: object) -> None:
    raise Stopped(signal.Signals(signum).name)


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    started = time.monotonic()
    os.umask(0o022)
    # Ansible then hides them wherever it shows parameters.
    module.no_log_values.update(secrets_of([module.params["source"]["mirror"]]))
    for signum in STOP_SIGNALS:
        signal.signal(signum, stop)
    ended: dict = {}
    try:
        result = work(module)
    except Refused as refused:
        ended = {"msg": "\n".join(["nothing was built:", *refused.reasons]), "problems": [*refused.reasons]}
    except Failure as error:
        ended = {"msg": str(error), **error.details}
    except OSError as error:
        place = os.fsdecode(error.filename or module.params["cache_dir"])
        ended = {"msg": f"{place}: {error.strerror}; once that is mended, the next run continues the build"}
    except Stopped as signalled:
        ended = {"msg": f"stopped by {signalled}; the next run continues the build"}
    module.params = printable(module.params)  # Ansible may return them as well
    if ended:
        module.fail_json(**printable(ended))
    module.exit_json(**printable({**result, "duration": round(time.monotonic() - started, 2)}))


def work(module: AnsibleModule) -> dict:
    """Build the kernel, unless it is there, or in check mode find out what would be built."""
    builder = builder_of(module.params, module.warn)
    cache, key, keep = builder.cache, builder.key, module.params["keep"]
    result = {
        "key": key,
        "release": builder.inputs.release() or "",
        "directory": text_of(cache.results / key),
    }
    manifest = cache.manifest(key)
    made = manifest is None
    cache.note_use(key)
    if made and module._diff:
        wished = {"key": key, "release": result["release"], "inputs": builder.inputs.plain()}
        result["diff"] = {
            "before_header": "newest kernel in the cache",
            "before": side(cache.latest()),
            "after_header": "kernel to build",
            "after": side(wished),
        }
    if made and not module.check_mode:
        manifest, made = builder.build()
    if keep:
        result["removed"] = cache.prune(keep, key, module.check_mode)
    if manifest:
        result |= paths(builder, manifest) | {"release": manifest["release"]}
    return {"changed": made or bool(result.get("removed")), **result}


if __name__ == "__main__":
    main()
