# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What systemd is told of each declared instance: a drop-in of its unit, in /etc/systemd/system.

When it is started again, after which time and how often, and for how long it may be silent: all of that is
systemd's to do. A drop-in follows from what is declared, so that it is written, mended and removed with it.
Whatever else somebody adds beside it, stays and counts.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.command import must, run
from ..common.errors import Failure
from ..common.files import remove, text_of, write_file
from .kernelfs import Paths
from .wish import Service

DROP_IN = "50-mkops.conf"
# Exit codes of mkops run --service, beside 0: it ended cleanly.
BADLY, STOPPED, AGAIN, LOST = 4, 5, 6, 7
_STEPS_SINCE = 254  # of systemd
_HEAD = "# Follows from what is declared in {layout}: change it there, or add a drop-in of another name.\n"
_ASKED = ("Id", "ActiveState", "SubState", "Result", "NRestarts")
_UNIT = re.compile(r"mkops@(.+)\.service\.d")


def unit_of(name: str) -> str:
    """All that the name of an instance may have can stand in the name of a unit as it is."""
    return f"mkops@{name}.service"


def drop_in(service: Service, layout: str) -> str:
    """What it says; empty when there is nothing to say. layout: the file that it follows from."""
    unit: list[str] = []
    lines: list[str] = []
    if service.restart != "no":
        interval = service.restart_interval
        unit += [f"StartLimitIntervalSec={interval}", f"StartLimitBurst={service.restart_limit}"]
        # A kernel that restarts itself wants to be started again, whatever a clean end means otherwise.
        lines += [f"Restart={service.restart}", f"RestartForceExitStatus={AGAIN}"]
        lines.append(f"RestartSec={service.restart_delay}")
        if service.restart_delay_max is not None:
            lines.append(f"RestartSteps={service.restart_steps}")
            lines.append(f"RestartMaxDelaySec={service.restart_delay_max}")
    if service.watchdog is not None:
        lines.append(f"WatchdogSec={service.watchdog}")
    parts = [("Unit", unit), ("Service", lines)]
    text = "\n".join("".join(f"{line}\n" for line in (f"[{name}]", *said)) for name, said in parts if said)
    return _HEAD.format(layout=layout) + text if text else ""


@dataclass(frozen=True)
class Units:
    """The drop-ins that there are, and those that are to be: text by the name of the instance."""

    paths: Paths
    before: Mapping[str, str]
    after: Mapping[str, str]

    @property
    def changed(self) -> list[str]:
        """Names of instances."""
        names = sorted({*self.before, *self.after})
        return [name for name in names if self.before.get(name) != self.after.get(name)]

    @property
    def steps(self) -> list[str]:
        """For people."""
        return [
            f"{'set' if name in self.after else 'remove'} what systemd does with {unit_of(name)}:"
            f" {text_of(_path(self.paths, name))}"
            for name in self.changed
        ]

    def write(self) -> None:
        """Have systemd know them. Raises Failure; what was written until then is right."""
        if not self.changed:
            return
        for name in self.changed:
            path = _path(self.paths, name)
            try:
                if name in self.after:
                    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                    write_file(path, self.after[name])
                else:
                    remove(path)
                    with contextlib.suppress(OSError):  # somebody else's drop-ins are in it
                        path.parent.rmdir()
            except OSError as error:
                raise Failure(
                    f"{text_of(path)} cannot be changed ({error.strerror}): run again when it can"
                ) from error
        if runs(self.paths):
            must(["systemctl", "daemon-reload"], "have systemd read the settings of units", timeout=90)

    def view(self) -> tuple[dict[str, str], dict[str, str]]:
        """Before and after, by unit, of what changes: for diffs."""
        return (
            {unit_of(name): self.before[name] for name in self.changed if name in self.before},
            {unit_of(name): self.after[name] for name in self.changed if name in self.after},
        )


def units(paths: Paths, services: Mapping[str, Service]) -> Units:
    """Of all that is declared."""
    layout = text_of(Paths().layout)
    wanted = {name: drop_in(service, layout) for name, service in services.items()}
    return Units(paths, _present(paths), {name: text for name, text in wanted.items() if text})


def have_watched(paths: Paths) -> None:
    """Have the units of what runs and is declared watch it, where there are such; nobody waits for it."""
    if paths.layout.exists() and runs(paths):
        with contextlib.suppress(OSError):
            run(["systemctl", "start", "--no-block", "mkops-adopt.service"], timeout=30)


def warnings(paths: Paths, services: Mapping[str, Service]) -> list[str]:
    """What this host's systemd does not do of it. It takes what it knows, and the rest when it is newer."""
    growing = [
        name
        for name, one in services.items()
        if one.restart != "no" and one.restart_delay_max is not None and one.restart_steps
    ]
    if not growing or not runs(paths):
        return []
    version = _version()
    if version is None or version >= _STEPS_SINCE:
        return []
    return [
        f"restart_delay_max of {', '.join(growing)} has no effect here: it needs systemd {_STEPS_SINCE}, and"
        f" this is {version}. The delay stays as restart_delay says"
    ]


def unit_facts(paths: Paths, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What systemd says of the units of instances; empty where it does not run the host."""
    if not names or not runs(paths):
        return {}
    found: dict[str, dict[str, Any]] = {}
    with contextlib.suppress(OSError, ValueError):
        asked = [f"--property={','.join(_ASKED)}", *map(unit_of, names)]
        for block in run(["systemctl", "show", *asked], timeout=30).stdout.split("\n\n"):
            said = dict(line.split("=", 1) for line in block.split("\n") if line)
            if match := re.fullmatch(r"mkops@(.+)\.service", said.get("Id", "")):
                found[match[1]] = {
                    "state": said.get("ActiveState"),
                    "sub_state": said.get("SubState"),
                    "result": said.get("Result"),
                    "restarts": int(said.get("NRestarts") or 0),
                }
    return found


def runs(paths: Paths) -> bool:
    """Whether systemd runs this host: sd_booted(3)."""
    return paths.at("/run/systemd/system").is_dir()


def _version() -> int | None:
    with contextlib.suppress(OSError):
        found = re.match(r"systemd (\d+)", run(["systemctl", "--version"], timeout=30).stdout)
        return int(found[1]) if found else None
    return None


def _path(paths: Paths, name: str) -> Path:
    return paths.units / f"{unit_of(name)}.d" / DROP_IN


def _present(paths: Paths) -> dict[str, str]:
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for directory in os.listdir(paths.units):
            match = _UNIT.fullmatch(directory)
            if match and os.path.lexists(path := _path(paths, match[1])):
                # Whatever else is there is not what it is to be.
                found[match[1]] = _text(path)
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError:
        return ""
