# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The configuration of a kernel: fragments over a base, and nothing of what they want lost."""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..common.command import must
from ..common.dotconfig import lines_of, parse_config
from ..common.errors import Failure
from ..common.files import native, read_text, text_of, write_file
from . import kconfig
from .log import error_lines
from .sign import Signer
from .toolchain import ASKED_BY, absent, missing_for
from .tree import kconfig_texts, no_such_symbols

TINY_BASES = ("tinyconfig", "allnoconfig")
MAKE_BASES = (*TINY_BASES, "defconfig")
RUNNING_BASE = "running"
# Options that name files which the build reads, and a default that needs none of them, if there is one.
FILES: dict[str, str | None] = {
    "MODULE_SIG_KEY": "certs/signing_key.pem",  # made by the build
    "SYSTEM_TRUSTED_KEYS": "",
    "SYSTEM_REVOCATION_KEYS": "",
    "SYSTEM_BLACKLIST_HASH_LIST": "",
    # Not in 6.12, in 7.3.
    "LOGO_LINUX_MONO_FILE": "drivers/video/logo/logo_linux_mono.pbm",
    "LOGO_LINUX_VGA16_FILE": "drivers/video/logo/logo_linux_vga16.ppm",
    "LOGO_LINUX_CLUT224_FILE": "drivers/video/logo/logo_linux_clut224.ppm",
    "INITRAMFS_SOURCE": None,
    "EXTRA_FIRMWARE": None,
    "BOOT_CONFIG_EMBED_FILE": None,
    "ACPI_CUSTOM_DSDT_FILE": None,
    "UNUSED_KSYMS_WHITELIST": None,
    "CFG80211_EXTRA_REGDB_KEYDIR": None,
    "IPE_BOOT_POLICY": None,
    "EFI_SBAT_FILE": None,
}
_SEVERAL = ("INITRAMFS_SOURCE", "EXTRA_FIRMWARE")
_FIRMWARE = "/lib/firmware"


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
    wanted: Mapping[str, kconfig.Option]
    warn: Callable[[str], None] = lambda _text: None
    warned: set[str] = field(default_factory=set)  # options whose loss was told

    def named_files(self) -> list[Path]:
        """The files outside of the tree that become part of the kernel, as far as they are there."""
        config = {**self._base_options(), **{symbol: option.value for symbol, option in self.wanted.items()}}
        found: set[Path] = set()
        for symbol in FILES:
            paths = [path for path in _paths(symbol, config) if path.is_absolute() and path.exists()]
            found |= {*paths, *(listed for path in paths for listed in _listed(symbol, path))}
        return sorted(found)

    def _base_options(self) -> dict[str, str]:
        if not self.base_file:
            return {}
        return parse_config(read_config(self.base_file).decode("utf-8", "surrogateescape"))

    def make(
        self, tree: Path, environment: Mapping[str, str], make: Sequence[str], signer: Signer | None
    ) -> dict[str, str]:
        """Merge the fragments over the base, and assert that it can be built and every wanted line survived.

        make: the command, without a target.
        """
        base, merged = tree / ".mkops-base.config", tree / ".mkops-wanted.config"
        if self.base_file:
            base.write_bytes(read_config(self.base_file))
        else:
            _must([*make, self.base], f"make {self.base}", tree, environment)
            (tree / ".config").replace(base)
        # Written anew: the script that merges stumbles over more than our reading does.
        write_file(merged, "".join(f"{option}\n" for option in self.wanted.values()), sync=False)
        # What nobody asked for is off over a tiny base, at its default over any other.
        rest = ["-n"] if self.base in TINY_BASES else []
        merge = ["scripts/kconfig/merge_config.sh", *rest, base.name, merged.name]
        _must(merge, "merge the configuration fragments", tree, {**environment, "ARCH": "x86"})
        config = _read(tree)
        settings = {"MODULE_SIG_KEY": signer.module_key} if signer else {}
        settings.update(self._defaults_of_files(tree, {**config, **_quoted(settings)}, settings))
        if settings:
            lines = [f"CONFIG_{symbol}={value}" for symbol, value in _quoted(settings).items()]
            named = tuple(f"CONFIG_{symbol}=" for symbol in settings)
            kept = [line for line in lines_of(read_text(tree / ".config")) if not line.startswith(named)]
            write_file(tree / ".config", "\n".join([*kept, *lines, ""]), sync=False)
            _must([*make, "olddefconfig"], "make olddefconfig", tree, environment)
            config = _read(tree)
        if lost := kconfig.lost(self.wanted, config):
            raise lost_error(tree, lost, config)
        if signer:
            check_signable(config)
        if reasons := missing_for(config):
            raise Failure("the kernel cannot be built:\n" + "\n".join(reasons))
        self._warn_of_dropped(config)
        return config

    def _defaults_of_files(
        self, tree: Path, config: Mapping[str, str], ours: Mapping[str, str]
    ) -> dict[str, str]:
        """The options whose files are missing, with a default. Failure where they have none or are wanted."""
        reasons, defaults = [], {}
        for symbol, default in FILES.items():
            missing = [
                text_of(path) for path in _paths(symbol, config) if not any(_places(tree, symbol, path))
            ]
            if not missing or symbol in ours or config[symbol].strip('"') == default:
                continue
            line = f"CONFIG_{symbol}={config[symbol]}"
            option = self.wanted.get(symbol)
            if option or default is None:
                where = option.where if option else "from the base"
                names = ", ".join(missing)
                reasons.append(f"{line} ({where}): neither the source nor the build host has {names}")
                continue
            defaults[symbol] = default
            self.warn(
                f"{line} of the base configuration names a file that this source does not have; it is set to "
                f'"{default}". To change that, set it in a fragment'
            )
        if reasons:
            raise Failure("\n".join(["files that the configuration names are missing:", *reasons]))
        return defaults

    def _warn_of_dropped(self, config: Mapping[str, str]) -> None:
        base = self._base_options()
        for symbol, (tool, _package) in ASKED_BY.items():
            dropped = base.get(symbol) == "y" and config.get(symbol) != "y" and symbol not in self.wanted
            if dropped and symbol not in self.warned:
                self.warn(
                    f"the kernel will lack CONFIG_{symbol}=y of the base configuration: Kconfig does not "
                    "accept "
                    f"{tool} on the build host, or something else that it needs"
                )

    def warn_of_absent(self, toolchain: Sequence[str]) -> None:
        """What the base has and this machine cannot build, told before anything is done."""
        base = self._base_options()
        for symbol, (tool, package) in ASKED_BY.items():
            if base.get(symbol) == "y" and symbol not in self.wanted and absent(symbol, toolchain):
                self.warned.add(symbol)
                self.warn(
                    f"the kernel will lack CONFIG_{symbol}=y of the base configuration: there is no {tool} "
                    "on "
                    f"the build host; install {package}"
                )


def _text_of(config: Mapping[str, str], symbol: str) -> str:
    return re.sub(r"\\(.)", r"\1", config.get(symbol, '""').strip('"'))


def _paths(symbol: str, config: Mapping[str, str]) -> list[Path]:
    """The files that an option names, from the tree if they are not absolute."""
    text = _text_of(config, symbol)
    if text == "n" or (symbol == "MODULE_SIG_KEY" and text.startswith("pkcs11:")):
        return []
    names = text.split() if symbol in _SEVERAL else [text] if text else []
    root = (
        native(_text_of(config, "EXTRA_FIRMWARE_DIR") or _FIRMWARE) if symbol == "EXTRA_FIRMWARE" else Path()
    )
    return [root / native(name) for name in names]


def _places(tree: Path, symbol: str, path: Path) -> Iterator[bool]:
    """Whether it is there, at each place where the build looks for it."""
    yield (tree / path).exists()
    if symbol == "ACPI_CUSTOM_DSDT_FILE":
        yield (tree / "include" / path).exists()


def _listed(symbol: str, path: Path) -> list[Path]:
    """The files that a list for an initramfs names."""
    if symbol != "INITRAMFS_SOURCE" or not path.is_file() or ".cpio" in path.name:
        return []
    words = [line.split() for line in read_text(path).splitlines()]
    files = [native(line[2]) for line in words if line[:1] == ["file"] and len(line) > 2]
    return [file for file in files if file.is_absolute() and file.exists()]


def _quoted(settings: Mapping[str, str]) -> dict[str, str]:
    return {symbol: f'"{value}"' for symbol, value in settings.items()}


def _read(tree: Path) -> dict[str, str]:
    return parse_config(read_text(tree / ".config"))


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
        raise Failure(f"sign: this kernel cannot be signed as a whole; set {lines} in a fragment")


def lost_error(tree: Path, lost: Sequence[tuple[kconfig.Option, str]], config: Mapping[str, str]) -> Failure:
    """Why options are not as wanted in a finished configuration."""
    texts = kconfig_texts(tree)
    unknown = no_such_symbols(tree, {option.symbol for option, _value in lost})
    reasons = []
    for option, value in lost:
        if option.symbol in unknown:
            reason = "this source has no such symbol; check that the series is complete"
        elif value == "n":
            why = kconfig.why_unset(option.symbol, texts, config)
            reason = f"it is not set in the result: {why or 'something it depends on is missing'}"
        else:
            reason = f"the result has {value}: another symbol selects or limits it"
        reasons.append(f"{option} ({option.where}): {reason}")
    are = "option is" if len(lost) == 1 else "options are"
    return Failure(f"{len(lost)} wanted {are} not in the final .config:\n" + "\n".join(reasons), lost=reasons)
