# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The configuration of a kernel: fragments over a base, and nothing of what they want lost."""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..common.command import must
from ..common.dotconfig import parse_config
from ..common.errors import Failure
from ..common.files import read_text
from . import kconfig
from .log import error_lines
from .sign import Signer
from .tree import kconfig_texts, no_such_symbols

TINY_BASES = ("tinyconfig", "allnoconfig")
MAKE_BASES = (*TINY_BASES, "defconfig")
RUNNING_BASE = "running"


def running_configs() -> tuple[Path, ...]:
    """Where the configuration of the running kernel may be."""
    return Path(f"/boot/config-{os.uname().release}"), Path("/proc/config.gz")


def running_config() -> Path | None:
    return next((path for path in running_configs() if path.is_file()), None)


def read_config(path: Path) -> bytes:
    """A configuration file's contents, unpacked; raises OSError or EOFError."""
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


@dataclass(frozen=True)
class Configuration:
    """What a kernel's configuration is made of."""

    base: str  # one of MAKE_BASES, or the digest of base_file
    base_file: Path | None
    fragments: Sequence[Path]
    wanted: Mapping[str, kconfig.Option]

    def make(
        self, tree: Path, environment: Mapping[str, str], make: Sequence[str], signer: Signer | None
    ) -> dict[str, str]:
        """Merge the fragments over the base and assert that every wanted line survived.

        make: the command, without a target.
        """
        base = tree / ".mkops-base.config"
        if self.base_file:
            base.write_bytes(read_config(self.base_file))
        else:
            _must([*make, self.base], f"make {self.base}", tree, environment)
            (tree / ".config").replace(base)
        # What nobody asked for is off over a tiny base, at its default over any other.
        rest = ["-n"] if self.base in TINY_BASES else []
        merge = ["scripts/kconfig/merge_config.sh", *rest, base.name, *map(str, self.fragments)]
        _must(merge, "merge the configuration fragments", tree, {**environment, "ARCH": "x86"})
        if signer:
            setting = ["scripts/config", "--set-str", "MODULE_SIG_KEY", signer.module_key]
            _must(setting, "name the key of the modules", tree, environment)
            _must([*make, "olddefconfig"], "make olddefconfig", tree, environment)
        config = parse_config(read_text(tree / ".config"))
        if lost := kconfig.lost(self.wanted, config):
            raise lost_error(tree, lost, config)
        if signer:
            check_signable(config)
        return config


def _must(argv: Sequence[str], purpose: str, tree: Path, environment: Mapping[str, str]) -> None:
    # What works in a tree holds its lock, should this process be killed.
    must(argv, purpose, causes=error_lines, cwd=tree, env=environment, inherit=True)


def check_signable(config: Mapping[str, str]) -> None:
    """Raises Failure for a kernel that cannot be signed as a whole."""
    wanting = [] if config.get("EFI_STUB") == "y" else ["EFI_STUB"]
    if config.get("MODULES") == "y":
        wanting += [name for name in ("MODULE_SIG", "MODULE_SIG_ALL") if config.get(name) != "y"]
    if wanting:
        lines = ", ".join(f"CONFIG_{name}=y" for name in wanting)
        raise Failure(f"sign: such a kernel cannot be signed as a whole; a fragment has to have {lines}")


def lost_error(tree: Path, lost: Sequence[tuple[kconfig.Option, str]], config: Mapping[str, str]) -> Failure:
    """Why options are not as wanted in a finished configuration."""
    texts = kconfig_texts(tree)
    unknown = no_such_symbols(tree, {option.symbol for option, _value in lost})
    reasons = []
    for option, value in lost:
        if option.symbol in unknown:
            reason = "this source has no such symbol (is the series complete?)"
        elif value == "n":
            why = kconfig.why_unset(option.symbol, texts, config)
            reason = f"it is not set in the result: {why or 'something it depends on is missing'}"
        else:
            reason = f"the result has {value}: the symbol is selected or limited by another"
        reasons.append(f"{option} ({option.where}): {reason}")
    return Failure(
        f"{len(lost)} wanted options are not in the final .config:\n" + "\n".join(reasons), lost=reasons
    )
