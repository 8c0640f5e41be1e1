# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command line of mkops, the program on a host. What each command does is in its own module."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..common.errors import Failure, Refused
from ..common.text import harmless
from ..divide.kernelfs import Paths
from .output import complain_of_all, complain_of_failure

_LONGEST = 86400  # seconds between two readings of a host
DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 3, 130
_EPILOG = """\
exit codes:
  0    done, or nothing to do
  1    something failed; the output says what was done before that
  2    the command line is wrong
  3    refused, with all reasons; nothing was changed
  4    run: the instance ended, neither cleanly nor because somebody stopped it
  5    run --service: somebody stopped the instance
  6    run --service: the instance wants to be restarted
  7    run --service: somebody stopped the instance, which had failed
  130  interrupted

See mkops(8) for more.
"""


def parser(version: str) -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="mkops",
        description="Divide this machine into several kernels.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"mkops {version}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")

    def kerf(one: argparse.ArgumentParser) -> None:
        one.add_argument("--kerf", metavar="PATH", help="path of kerf")

    apply = command("apply", "make this host what a layout says")
    apply.add_argument("--check", action="store_true", help="say what would be done, and change nothing")
    apply.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        type=Path,
        help="the layout, as JSON (default: /etc/mkops/layout.json)",
    )
    kerf(apply)

    status = command("status", "show how this host is divided")
    status.add_argument("--json", action="store_true", help="as the module info returns it")

    run = command("run", "start an instance, and wait until it ends")
    run.add_argument("name", metavar="NAME", help="the instance")
    run.add_argument(
        "--service", action="store_true", help="as a unit of systemd: SIGTERM stops the instance as well"
    )
    kerf(run)

    stop = command("stop", "stop an instance: ask it to shut down, and use force when it does not")
    stop.add_argument("name", metavar="NAME", help="the instance")
    stop.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=int,
        help="how long it may take to shut down (default: its stop_timeout, or 60)",
    )
    force = stop.add_mutually_exclusive_group()
    force.add_argument("--force", action="store_true", help="do not ask first; it cannot sync its disks")
    force.add_argument("--no-force", action="store_true", help="fail when it does not shut down")
    kerf(stop)

    ended = command("ended", "what the unit of an instance does when its watcher has ended")
    ended.add_argument("name", metavar="NAME", help="the instance")
    kerf(ended)

    boot = command("boot", "take what this host keeps for its boot, as the units of systemd do")
    boot.add_argument(
        "stage",
        metavar="STAGE",
        choices=("reserve", "start", "adopt"),
        help="reserve: the pool, and CPUs and memory of all instances; start: the units of those that are to"
        " run, and load the others; adopt: the units of those that run already",
    )
    kerf(boot)

    metrics = command("metrics", "print how this host and its instances are, for Prometheus")
    metrics.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="replace this file as a whole, for node_exporter's textfile collector",
    )
    metrics.add_argument(
        "--interval",
        metavar="SECONDS",
        type=_seconds,
        help="replace it again and again, as a unit of systemd does",
    )

    devices = command("devices", "serve the network, disks and shares of an instance, as its unit does")
    devices.add_argument("name", metavar="NAME", help="the instance")

    console = command("console", "show what an instance says, and type to it; Ctrl-] leaves")
    console.add_argument("name", metavar="NAME", help="the instance")
    console.add_argument("--no-follow", action="store_true", help="only what was retained, then end")
    console.add_argument("--read-only", action="store_true", help="type nothing to it")
    console.add_argument(
        "--raw",
        action="store_true",
        help="do not make control characters harmless; only if you trust it",
    )
    return top


def _seconds(text: str) -> int:
    if text.isdecimal() and 0 < int(text) <= _LONGEST:
        return int(text)
    raise argparse.ArgumentTypeError(f"{harmless(text)} is not a number of seconds from 1 to {_LONGEST}")


def main(argv: Sequence[str] | None = None, version: str = "unknown", paths: Paths | None = None) -> int:
    """Run a command; returns the exit code. version: of the collection that this came with."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # no locale is a reason to end
    args = parser(version).parse_args(argv)
    what = " ".join(filter(None, ["mkops", args.command, getattr(args, "name", None)]))
    try:
        code = _run(args, paths or Paths(), version)
        sys.stdout.flush()
        return code
    except Refused as refused:
        complain_of_all(f"{what}: nothing was changed", refused.reasons)
        return REFUSED
    except Failure as failure:
        complain_of_failure(what, str(failure), failure.details)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever has read has seen enough; Python would complain once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _run(args: argparse.Namespace, paths: Paths, version: str) -> int:
    """What a command does without, it does not import: a host compiles it each time."""
    if args.command == "status":
        from .status import status

        status(paths, args.json)
    elif args.command == "metrics":
        from .metrics import metrics

        metrics(paths, args.output, version, args.interval)
    elif args.command == "console":
        from .console import console

        console(paths, args.name, args.raw, not args.no_follow, args.read_only)
    elif args.command == "apply":
        from .change import apply

        apply(paths, args.file, args.check, args.kerf)
    elif args.command == "run":
        from .change import run

        return run(paths, args.name, args.kerf, args.service)
    elif args.command == "devices":
        from .devices import devices

        devices(paths, args.name)
    elif args.command == "ended":
        from .ended import ended

        ended(paths, args.name, args.kerf)
    elif args.command == "boot":
        from .boot import boot

        boot(paths, args.stage, args.kerf)
    else:
        from .change import stop

        force = True if args.force else False if args.no_force else None
        stop(paths, args.name, args.timeout, force, args.kerf)
    return DONE
