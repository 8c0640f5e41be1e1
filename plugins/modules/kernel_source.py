#!/usr/bin/python
# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kernel_source
short_description: Lay out a verified kernel source tree with patches applied
version_added: 0.1.0
description:
  - Makes a directory with a kernel source tree from a Debian package, a git repository, an archive or another
    directory, applies patches to it, and notes in it what it is made of.
  - The tree is there as a whole or not at all. Where a patch does not apply, or a checksum or signature is
    not right, what was there before is left.
  - A tree that is made of the same things already is left alone. What is compared is contents, not names.
  - M(mkops.multikernel.kernel_build) builds such a tree.
options:
  dest:
    description: Directory to be made. One that exists has to be empty, or made by this module.
    type: path
    required: true
  debian:
    description:
      - A Debian source package, fetched and verified by apt through a private configuration. The package
        sources of the machine are neither used nor changed.
    type: dict
    suboptions:
      package:
        description: Name of the package such as V(linux-source-6.12).
        type: str
        required: true
      version:
        description: Exact version, such as V(6.12.107-1). Without it, the newest one of the suite is taken.
        type: str
      suite:
        description: Debian suite that has the package.
        type: str
        default: trixie
      mirror:
        description:
          - Base address of the Debian mirror.
          - By default the one in the package sources of the host that is Debian's by its Release file.
          - A name and password in it are not shown anywhere.
        type: str
      keyring:
        description: The keys that may sign the suite.
        type: path
        default: /usr/share/keyrings/debian-archive-keyring.gpg
  git:
    description: A commit or tag of a git repository. Only that state is fetched where the server allows it.
    type: dict
    suboptions:
      url:
        description:
          - Address of the repository. A name and password in it are not shown anywhere.
          - One on the host itself may belong to another user.
        type: str
        required: true
      tag:
        description:
          - Name of a tag. The repository is asked what it stands for in every run.
          - With O(git.commit), the tag has to stand for that commit.
        type: str
      commit:
        description: Full name of a commit, 40 or 64 hexadecimal digits.
        type: str
      keyring:
        description:
          - The OpenPGP keys, binary or armoured, that may sign O(git.tag). A tag that none of them has signed
            is refused.
        type: path
  archive:
    description: A C(.tar.*) archive or C(linux-source-*.deb) with one kernel tree in it.
    type: dict
    suboptions:
      src:
        description: Path on the host, or address. What has an address needs a checksum or a signature.
        type: str
        required: true
      checksum:
        description: Checksum of the archive, as C(sha256:HEX).
        type: str
      signature:
        description:
          - Path or address of a detached OpenPGP signature.
          - One called C(NAME.tar.sign) beside C(NAME.tar.xz) signs what is in the compressed file, as
            kernel.org does it.
        type: str
      keyring:
        description: The OpenPGP keys, binary or armoured, of which one has to have made O(archive.signature).
        type: path
  directory:
    description: A source tree on the host. It is copied and not changed.
    type: path
  patches:
    description: What is applied, in this order.
    type: list
    elements: dict
    default: []
    suboptions:
      src:
        description:
          - Path on the host or address of a patch or of a mailbox with patches; or a directory, of which the
            patches in its file C(series) are taken, or all C(*.patch) in the order of their names.
          - Patches are read as C(git am) reads them, and applied with C(-p1). One with nothing to apply is an
            error.
        type: str
        required: true
      checksum:
        description: Checksum of the file, as C(sha256:HEX). What has an address needs one.
        type: str
  cache_dir:
    description: Directory on the host that keeps what was fetched.
    type: path
    default: ~/.cache/mkops
  lists_valid_seconds:
    description: Age at which the private package lists are fetched anew.
    type: int
    default: 86400
notes:
  - All paths are on the host that the task runs on.
  - The host's configuration of git is not used. Proxies, certificates and keys are given in the
    C(environment) of the task (C(https_proxy), C(GIT_SSL_CAINFO), C(GIT_SSH_COMMAND)).
  - Needs C(tar), C(patch) and C(git) for what uses them, C(gpgv) for signatures, and C(gpg) for armoured
    keyrings.
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
- name: Debian's kernel source with the series of this collection
  mkops.multikernel.kernel_source:
    dest: /srv/kernels/series
    debian:
      package: linux-source-6.12
    patches:
      - src: "{{ playbook_dir }}/../roles/kernel/files/series/6.12"
  delegate_to: localhost

- name: Multikernel Linux as its developers have tagged it
  mkops.multikernel.kernel_source:
    dest: /srv/kernels/multikernel
    git:
      url: https://github.com/multikernel/linux.git
      tag: v7.0-mk4
  delegate_to: localhost

- name: A release of kernel.org by its signature, and a patch by its checksum
  mkops.multikernel.kernel_source:
    dest: /srv/kernels/stable
    archive:
      src: https://cdn.kernel.org/pub/linux/kernel/v6.x/linux-6.12.107.tar.xz
      signature: https://cdn.kernel.org/pub/linux/kernel/v6.x/linux-6.12.107.tar.sign
      keyring: /etc/mkops/kernel.org.gpg
    patches:
      - src: https://example.com/fix.patch
        checksum: sha256:0f3c0b3b1d6c9a5e1f2d3c4b5a69788796a5b4c3d2e1f0a9b8c7d6e5f4a3b2c1
  delegate_to: localhost
  register: source

- name: Build it
  mkops.multikernel.kernel_build:
    source:
      path: "{{ source.path }}"
    config_base: defconfig
    config: [files/mine.config]
  delegate_to: localhost
"""

RETURN = r"""
path:
  description: The directory with the tree.
  type: str
  returned: success
  sample: /srv/kernels/series
digest:
  description: The SHA-256 of everything that decides about the tree.
  type: str
  returned: success
version:
  description: What the Makefile of the tree says.
  type: str
  returned: when the tree is there
  sample: 6.12.107
origin:
  description: What the tree is made from, without passwords.
  type: str
  returned: success
  sample: linux-source-6.12 6.12.107-1
patches:
  description: Names of the patches that were applied.
  type: list
  elements: str
  returned: success
patch:
  description: The patch that does not apply.
  type: str
  returned: when one does not
"""

import os
import re
import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

from ansible_collections.mkops.multikernel.plugins.module_utils._module import printable
from ansible_collections.mkops.multikernel.plugins.module_utils.build import source as ks
from ansible_collections.mkops.multikernel.plugins.module_utils.build.address import (
    is_remote,
    masked,
    secrets_of,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.build.debian import (
    KEYRING,
    LISTS_VALID_SECONDS,
    SUITE,
    Archive,
    machine_mirror,
)
from ansible_collections.mkops.multikernel.plugins.module_utils.build.git import Git
from ansible_collections.mkops.multikernel.plugins.module_utils.common.errors import Failure, Refused
from ansible_collections.mkops.multikernel.plugins.module_utils.common.files import native, text_of
from ansible_collections.mkops.multikernel.plugins.module_utils.common.text import shown

ARGUMENT_SPEC = {
    "dest": {"type": "path", "required": True},
    "debian": {
        "type": "dict",
        "options": {
            "package": {"type": "str", "required": True},
            "version": {"type": "str"},
            "suite": {"type": "str", "default": SUITE},
            "mirror": {"type": "str"},
            "keyring": {"type": "path", "default": KEYRING},
        },
    },
    "git": {
        "type": "dict",
        "options": {
            "url": {"type": "str", "required": True},
            "tag": {"type": "str"},
            "commit": {"type": "str"},
            "keyring": {"type": "path"},
        },
        "required_one_of": [("tag", "commit")],
        "required_by": {"keyring": ["tag"]},
    },
    "archive": {
        "type": "dict",
        "options": {
            "src": {"type": "str", "required": True},
            "checksum": {"type": "str"},
            "signature": {"type": "str"},
            "keyring": {"type": "path"},
        },
        "required_together": [("signature", "keyring")],
    },
    "directory": {"type": "path"},
    "patches": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"src": {"type": "str", "required": True}, "checksum": {"type": "str"}},
    },
    "cache_dir": {"type": "path", "default": "~/.cache/mkops"},
    "lists_valid_seconds": {"type": "int", "default": LISTS_VALID_SECONDS},
}
ORIGINS = ("debian", "git", "archive", "directory")
CHUNK = 1 << 20


def download(address: str, path: Path) -> None:
    """Into a file; whoever asked checks what came."""
    try:
        with open_url(address, timeout=60) as answer, path.open("wb") as file:
            while block := answer.read(CHUNK):
                file.write(block)
    except Exception as error:  # urllib has many, with the address in some of them
        raise Failure(f"cannot fetch {masked(address)}: {masked(str(error))}") from None


def addresses(params: dict) -> list[str | None]:
    """All that may have a secret in them."""
    archive, git, debian = (params[name] or {} for name in ("archive", "git", "debian"))
    named = [git.get("url"), archive.get("src"), archive.get("signature"), debian.get("mirror")]
    return [*named, *(patch["src"] for patch in params["patches"])]


def problems_of(params: dict) -> list[str]:
    """What is wrong with the values and with the host, all of it."""
    needed = {"tar": True, "patch": params["patches"], "git": params["git"]}
    needed["gpgv"] = any((params[kind] or {}).get("keyring") for kind in ("git", "archive"))
    missing = [tool for tool, wanted in needed.items() if wanted and not shutil.which(tool)]
    problems = [f"{tool} is not installed on the host: install the package {tool}" for tool in missing]
    if not any(params[kind] for kind in ORIGINS):
        problems.append(f"there is nothing to make a tree from: give one of {', '.join(ORIGINS)}")

    for kind in ("git", "archive"):
        # An empty keyring or signature is a mistake of a template, not the wish to trust everybody.
        empty = [name for name, value in (params[kind] or {}).items() if value == ""]
        problems += [f"{kind}: {name} is empty: give one, or leave it out" for name in empty]

    def need_file(what: str, path: str | None) -> None:
        if path and not is_remote(path) and not native(path).is_file():
            problems.append(f"{what} {path} is not a file on the host")

    if git := params["git"]:
        if git["url"].startswith("-") or (git["tag"] or "").startswith("-"):
            problems.append("git: url and tag must not begin with a hyphen")
        if not f"{git['url']}{git['tag'] or ''}".isprintable():
            problems.append("git: url or tag has characters that cannot be printed")
        if git["commit"] and not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", git["commit"]):
            problems.append(
                f"git: commit {shown(git['commit'])} is not a full commit id: give 40 or 64 hexadecimal "
                "digits"
            )
        need_file("git: keyring", git["keyring"])
    if archive := params["archive"]:
        problems += ks.checksum_reasons("archive", archive["checksum"])
        need_file("archive", archive["src"])
        need_file("archive: signature", archive["signature"])
        need_file("archive: keyring", archive["keyring"])
        if is_remote(archive["src"]) and not (archive["checksum"] or archive["signature"]):
            problems.append(
                f"archive {masked(archive['src'])}: an archive that is fetched needs a checksum or a "
                "signature"
            )
    if (debian := params["debian"]) and not native(debian["keyring"]).is_file():
        problems.append(f"debian: keyring {debian['keyring']} is not a file; install debian-archive-keyring")
    if params["directory"] and not native(params["directory"]).is_dir():
        problems.append(f"directory {params['directory']} is not a directory on the host")
    for patch in params["patches"]:
        what = f"patch {masked(patch['src'])}"
        problems += ks.checksum_reasons(what, patch["checksum"])
        if is_remote(patch["src"]):
            if not patch["checksum"]:
                problems.append(f"{what}: a patch that is fetched needs a checksum")
        elif not native(patch["src"]).exists():
            problems.append(f"{what} does not exist on the host")
        elif native(patch["src"]).is_dir() and patch["checksum"]:
            problems.append(f"{what} is a directory, which has no checksum: leave checksum out")
    return problems


def origin_of(params: dict, fetcher: ks.Fetcher, warn) -> ks.Origin:
    if debian := params["debian"]:
        mirror = debian["mirror"] or machine_mirror()
        archive = Archive(fetcher.sources, mirror, debian["suite"], debian["keyring"])
        return ks.debian_origin(
            archive, debian["package"], debian["version"], warn, params["lists_valid_seconds"]
        )
    if git := params["git"]:
        keyring = native(git["keyring"]) if git["keyring"] else None
        return ks.git_origin(Git(fetcher.sources, git["url"]), git["tag"], git["commit"], keyring)
    if archive := params["archive"]:
        keyring = native(archive["keyring"]) if archive["keyring"] else None
        return ks.archive_origin(fetcher, archive["src"], archive["checksum"], archive["signature"], keyring)
    return ks.directory_origin(native(params["directory"]))


def plan(module: AnsibleModule) -> ks.Tree:
    """The tree that is to be. Raises Refused with every reason."""
    params = module.params
    problems = problems_of(params)
    fetcher = ks.Fetcher(native(params["cache_dir"]) / "sources", download)
    patches: list[ks.Patch] = []
    if not problems:
        for one in params["patches"]:
            try:
                patches += ks.expand(one["src"], one["checksum"], fetcher)
            except Refused as refused:
                problems += refused.reasons
            except Failure as error:
                problems.append(str(error))
    if problems:
        raise Refused(*problems)
    tree = ks.Tree(native(params["dest"]).absolute(), origin_of(params, fetcher, module.warn), patches)
    if reasons := tree.reasons():
        raise Refused(*reasons)
    return tree


def view(marker: dict | None) -> dict:
    if not marker:
        return {}
    return {name: marker[name] for name in ("digest", "origin", "patches")}


def main() -> None:
    module = AnsibleModule(
        argument_spec=ARGUMENT_SPEC,
        supports_check_mode=True,
        mutually_exclusive=[ORIGINS],
        required_one_of=[ORIGINS],
    )
    os.umask(0o022)
    # Ansible then hides them wherever it shows parameters.
    module.no_log_values.update(secrets_of(addresses(module.params)))
    ended: dict = {}
    try:
        result = work(module)
    except Refused as refused:
        ended = {"msg": "; ".join(["nothing was made", *refused.reasons]), "problems": [*refused.reasons]}
    except Failure as error:
        ended = {"msg": str(error), **error.details}
    except OSError as error:
        place = os.fsdecode(error.filename or module.params["dest"])
        ended = {"msg": f"{place}: {error.strerror}"}
    module.params = printable(module.params)  # Ansible may return them as well
    if ended:
        module.fail_json(**printable(ended))
    module.exit_json(**printable(result))


def work(module: AnsibleModule) -> dict:
    """Make the tree, or in check mode find out what it would be made of."""
    tree = plan(module)
    wished = {
        "digest": tree.digest,
        "origin": tree.origin.text,
        "patches": [one.name for one in tree.patches],
    }
    marker = tree.marker()
    made = not tree.is_there()
    result = {"changed": made, "path": text_of(tree.dest), **wished}
    if module._diff:
        result["diff"] = {"before": view(marker), "after": wished}
    if made and not module.check_mode:
        marker = tree.make()
    if not made or not module.check_mode:
        result["version"] = marker["version"]
    return result


if __name__ == "__main__":
    main()
