# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An order for a kernel: checked as a whole, and made into the build that carries it out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.errors import Refused
from ..common.files import native, read_text, sha256, sha256_file, text_of
from ..common.text import shown
from . import kconfig, sign
from .builder import Builder
from .cache import Cache, path_reasons
from .configuration import (
    MAKE_BASES,
    RUNNING_BASE,
    Configuration,
    read_config,
    running_config,
    running_configs,
)
from .debian import Archive, local_source, machine_mirror
from .key import Inputs, Source
from .packages import FORMATS
from .patches import read_patch, read_series, with_own_fragments
from .progress import Progress
from .source import content_digest, read_marker, tree_source
from .toolchain import missing_tools, toolchain

Reasons = list[str]
Warn = Callable[[str], None]


def builder_of(params: Mapping[str, Any], warn: Warn) -> Builder:
    """The build that the module's parameters ask for.

    Raises Refused with every reason why they cannot be, Failure where a source cannot be found out.
    """
    reasons: Reasons = []
    signer = params["sign"] and sign.Signer(
        native(params["sign"]["key"]), native(params["sign"]["certificate"])
    )
    reasons += _tool_reasons(params, signer)
    reasons += _value_reasons(params)
    reasons += path_reasons(params)
    base, base_file = _base(params["config_base"], reasons)
    fragments = [native(path) for path in params["config"]]
    if params["series"]:
        fragments = with_own_fragments(native(params["series"]), fragments)
    parsed = _parsed(fragments, reasons)
    patches = _patches(params["series"], reasons)
    reasons += _source_reasons(params["source"])
    if reasons:
        raise Refused(*reasons)

    cache = Cache(native(params["cache_dir"]))
    configuration = Configuration(base, base_file, kconfig.merge(parsed), warn)
    tools = toolchain()
    configuration.warn_of_absent(tools)
    source, fetch = _source(params, cache, warn)
    return Builder(
        cache=cache,
        inputs=Inputs(
            source=source,
            series=_named_digests(patches),
            base=base,
            fragments=_named_digests(fragments),
            local_version=params["local_version"],
            toolchain=tools,
            package=params["package"],
            signer=signer.fingerprint() if signer else "",
            files=tuple((text_of(path), content_digest(path)) for path in configuration.named_files()),
        ),
        patches=patches,
        configuration=configuration,
        jobs=params["jobs"] or len(os.sched_getaffinity(0)),
        ccache=params["ccache"],
        fetch=fetch,
        progress=Progress(native(params["progress_file"]) if params["progress_file"] else None),
        signer=signer,
        keep_tree=params["keep_tree"],
    )


def _named_digests(paths: Sequence[Path]) -> tuple[tuple[str, str], ...]:
    return tuple((path.name, sha256_file(path)) for path in paths)


def _tool_reasons(params: Mapping[str, Any], signer: sign.Signer | None) -> Reasons:
    tools = dict(FORMATS[params["package"]].tools)
    tools |= {"ccache": "ccache"} if params["ccache"] else {}
    tools |= sign.TOOLS if signer else {}
    reasons = missing_tools(tools)
    return signer.problems() if signer and not reasons else reasons


def _value_reasons(params: Mapping[str, Any]) -> Reasons:
    reasons = []
    if not re.fullmatch(r"(-[a-z0-9.+]+)*", params["local_version"]):
        reasons.append(
            f"local_version {shown(params['local_version'])} cannot be part of a package name; "
            "use lower case letters, digits, dot and plus, with a leading hyphen, such as -mkops"
        )
    if params["jobs"] < 0:
        reasons.append(f"jobs is {params['jobs']}; give a number of compilers, or 0 for one per CPU")
    if params["keep"] < 0:
        reasons.append(f"keep is {params['keep']}; give a number of kernels, or 0 to keep all of them")
    return reasons


def _base(base: str, reasons: Reasons) -> tuple[str, Path | None]:
    """How the key names the base, and its file if it has one."""
    if base in MAKE_BASES:
        return base, None
    path = running_config() if base == RUNNING_BASE else native(base)
    if path is None:
        reasons.append(
            f"config_base running: there is neither {' nor '.join(map(str, running_configs()))} "
            "on the build host; give the path of a configuration file"
        )
    elif not path.is_file():
        named = ", ".join((*MAKE_BASES, RUNNING_BASE))
        reasons.append(f"config_base {base} is neither one of {named} nor a file")
    else:
        try:
            return f"sha256:{sha256(read_config(path))}", path
        except (OSError, EOFError) as error:
            reasons.append(f"config_base {path} cannot be read: {error}")
    return base, None


def _parsed(fragments: Sequence[Path], reasons: Reasons) -> list[list[kconfig.Option]]:
    parsed = []
    for path in fragments:
        try:
            parsed.append(kconfig.parse_fragment(read_text(path), path.name))
        except OSError as error:
            reasons.append(f"config fragment {path}: {error.strerror}")
        except ValueError:  # a name that no file can have
            reasons.append(f"config fragment {path} is not a file")
        except Refused as refused:
            reasons += refused.reasons
    return parsed


def _patches(series: str | None, reasons: Reasons) -> list[Path]:
    if not series:
        return []
    if not native(series).is_dir():
        reasons.append(f"series {series} is not a directory on the build host")
        return []
    try:
        paths = read_series(native(series))
    except Refused as refused:
        reasons += refused.reasons
        return []
    for path in paths:
        try:
            read_patch(path, path.name)
        except Refused as refused:
            reasons += refused.reasons
        except OSError as error:
            reasons.append(f"patch {path} cannot be read: {error.strerror}")
    return paths


def _source_reasons(source: Mapping[str, Any]) -> Reasons:
    empty = [name for name in ("package", "path") if source[name] == ""]
    if empty:
        return [f"source.{name} is empty; give one, or leave it out" for name in empty]
    if not source["path"]:
        if not source["package"]:
            return ["source has neither package nor path; give one of them"]
        if native(source["keyring"]).is_file():
            return []
        return [f"source.keyring {source['keyring']} is not a file; install debian-archive-keyring"]
    path = native(source["path"])
    if path.is_dir():
        if read_marker(path):
            return []
        what = f"source.path {path} is a directory that was not made by kernel_source"
        return [f"{what}: make it with that, or give an archive"]
    reasons = [] if path.is_file() else [f"source.path {path} is not a file on the build host"]
    if not re.fullmatch(r"sha256:[0-9a-fA-F]{64}", source["checksum"] or ""):
        given = f"source.checksum {shown(source['checksum'])} is not" if source["checksum"] else ""
        reasons.append(f"{given or 'source.path needs source.checksum,'} of the form sha256:HEX")
    return reasons


def _source(params: Mapping[str, Any], cache: Cache, warn: Warn) -> tuple[Source, Callable[[], Path]]:
    """The source, and how it gets here."""
    wish = params["source"]
    if wish["path"]:
        path = native(wish["path"])
        return tree_source(path) if path.is_dir() else local_source(path, wish["checksum"]), lambda: path
    mirror = wish["mirror"] or machine_mirror()
    archive = Archive(cache.root / "sources", mirror, wish["suite"], wish["keyring"])
    source = archive.resolve(wish["package"], wish["version"], warn, params["lists_valid_seconds"])
    return source, lambda: archive.fetch(source, wish["package"])
