# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""mkops metrics: how a host is divided and how its instances are, for Prometheus.

Prometheus' own library writes the text. Labels are of this host or of a short list of words: what a spawned
kernel says of itself, such as the message of its panic, is in none, because each other text would be another
time series for ever.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..common.errors import Failure, Refused
from ..common.files import text_of, write_file
from ..common.text import harmless
from ..divide.declared import boot_facts, flattened
from ..divide.kernelfs import KernelFs, Paths
from ..divide.machine import ACTIVE, FAILED, LOADED, READY, Instance, Machine
from .itself import Itself
from .output import notify

if TYPE_CHECKING:
    from prometheus_client import Metric
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

OTHER = "other"
# In stats of each instance, where the kernel counts them: of all together, because an interrupt does not tell
# where it comes from.
INTERRUPTS, LIMITED = "interrupts", "interrupts_limited"
STATES = (READY, LOADED, ACTIVE, FAILED, OTHER)
ENDS = ("none", "clean", "panic", "forced", "lost", OTHER)
_LONGEST = 128  # characters of a label
_UNKNOWN = "unknown"
_OF_SERVERS = ("http.server", "ssl", "urllib.request", "wsgiref.simple_server")
_ENDS = (signal.SIGTERM, signal.SIGINT)
_REST = 1.0  # seconds between two readings, however long they take


@dataclass(frozen=True)
class Reading:
    """What there is to tell at one time."""

    machine: Machine
    version: str  # of this program
    taken: float  # when it began, in seconds since 1970
    duration: float = 0.0  # seconds
    booted: int | None = None  # when the host did, in seconds since 1970
    wanted: Mapping[str, bool] = field(default_factory=dict)  # declared for boot: whether it is to run
    drift: int = 0  # differences from what is declared
    faults: int = 0  # reasons why it cannot be had
    records: int = 0  # of crashes
    record_bytes: int = 0  # that these take on the disk


def metrics(paths: Paths, output: Path | None, version: str, interval: int | None = None) -> None:
    """Print what there is to tell, or replace a file by it.

    interval: seconds after which that is done again, until somebody ends this. A process that stays costs a
    fraction of one that is started each time, most of which is Python and its library.
    """
    if interval is not None and output is None:
        raise Refused("--interval: only a file is written again and again: name one with --output")
    write = _library()
    if output is None:
        sys.stdout.write(write(families(take(paths, version))))
        return
    itself = Itself()
    if interval is not None:
        # They end it between two readings only, so that a file is never left beside the one that it replaces.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    while True:
        begun = time.monotonic()
        try:
            # It is written every few seconds, and worth nothing after a power cut.
            write_file(output, write(families(take(paths, version))), sync=False)
        except OSError as error:
            raise Failure(f"{text_of(output)} cannot be written: {error.strerror}") from error
        notify("READY=1", "WATCHDOG=1")
        if interval is None:
            return
        # A busy host gets no readings in a row for those that were late.
        if signal.sigtimedwait(_ENDS, max(interval - (time.monotonic() - begun), _REST)):
            return
        if itself.replaced:
            itself.become(["metrics", "--output", str(output), "--interval", str(interval)])


def _library() -> Any:
    """What writes metrics as text. Looked for before the host is read."""
    try:
        with contextlib.suppress(AttributeError, TypeError), _without(*_OF_SERVERS):
            importlib.import_module("prometheus_client")
        from prometheus_client import CollectorRegistry, generate_latest  # one that does need them, as it is
    except ImportError as error:
        raise Failure(
            f"metrics needs Prometheus' Python library prometheus_client ({error}): install the package"
            " python3-prometheus-client (Debian's name), or run role mkops.multikernel.monitoring"
        ) from error

    class Found:
        def __init__(self, found: Iterable[Metric]) -> None:
            self._found = found

        def collect(self) -> Iterable[Metric]:
            return self._found

    def write(found: Iterable[Metric]) -> str:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Found(list(found)))
        return generate_latest(registry).decode()

    return write


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    """Whoever imports these modules meanwhile gets empty ones, unless they are there already.

    Prometheus' library is a server and a client of HTTP as well, whose modules take 8 MiB of a process that
    stays and two thirds of the time of its import. Its writer needs none of them.
    """
    left_out = [name for name in names if name not in sys.modules]
    for name in left_out:
        sys.modules[name] = _Empty(name)
    try:
        yield
    finally:
        for name in left_out:
            sys.modules.pop(name, None)


class _Empty(ModuleType):
    """In place of a module: all that it has is a class without anything."""

    def __getattr__(self, name: str) -> type:
        if name[:2] == "__":
            raise AttributeError(name)
        return object


def take(paths: Paths, version: str) -> Reading:
    """Read the host. Raises Refused for others than root, whom the kernel does not tell all."""
    taken, begin = time.time(), time.monotonic()
    kernel = KernelFs(paths)
    machine = kernel.read()
    if not machine.privileged:
        raise Refused("only root can read how much of the pool is in use")
    declared = boot_facts(paths, machine)
    records, record_bytes = evidence(paths.crashes)
    return Reading(
        machine,
        version,
        taken=taken,
        booted=kernel.booted,
        wanted=_wanted(declared, machine),
        drift=len(declared["drift"]),
        faults=len(declared["reasons"]),
        records=records,
        record_bytes=record_bytes,
        duration=time.monotonic() - begin,
    )


def _wanted(declared: Mapping[str, Any], machine: Machine) -> dict[str, bool]:
    with contextlib.suppress(Refused):
        instances = flattened(declared["layout"], machine, declared["path"]).get("instances", {})
        states = {name: one.get("state") for name, one in instances.items()}
        return {name: state == "started" for name, state in states.items() if state != "absent"}
    return {}


def evidence(directory: Path) -> tuple[int, int]:
    """How many directories with files of a crash there are, and the bytes that they take on the disk."""
    records = size = 0
    for at, _directories, names in os.walk(directory):
        kept = False
        for name in names:
            with contextlib.suppress(OSError):  # it is gone by now
                found = os.lstat(os.path.join(at, name))
                kept = kept or stat.S_ISREG(found.st_mode)
                size += found.st_blocks * 512
        records += kept
    return records, size


def label(text: str) -> str:
    """As long as a label may be here, and printable."""
    text = harmless(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def families(reading: Reading) -> Iterator[Metric]:
    """All metrics, in the classes of Prometheus' library; without those of which the kernel tells nothing."""
    yield from _host(reading)
    yield from _pool(reading.machine)
    yield from _instances(reading)
    yield from _interrupts(reading.machine)
    yield from _declared(reading)
    yield _gauge("crash_records", "Crashes of instances that are kept on this host.", reading.records)
    yield _gauge(
        "crash_records_bytes", "Bytes on the disk that they take on this host.", reading.record_bytes
    )
    yield _gauge(
        "collection_timestamp_seconds", "When this was read, in seconds since 1970.", round(reading.taken, 3)
    )
    yield _gauge("collection_duration_seconds", "How long it took to read this.", round(reading.duration, 3))


def _gauge(name: str, text: str, value: float | None = None, labels: Sequence[str] = ()) -> GaugeMetricFamily:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(f"mkops_{name}", text, value=value, labels=None if value is not None else labels)


def _counter(name: str, text: str, labels: Sequence[str] = ()) -> CounterMetricFamily:
    from prometheus_client.core import CounterMetricFamily

    return CounterMetricFamily(f"mkops_{name}", text, labels=labels)


def _host(reading: Reading) -> Iterator[Metric]:
    machine = reading.machine
    about = {
        "version": reading.version,
        "release": machine.release,
        "interface": machine.interface.name if machine.mounted else "none",
    }
    info = _gauge(
        "host_info",
        "The program that has read this, the host's kernel and its multikernel interface.",
        labels=[*about],
    )
    info.add_metric([*map(label, about.values())], 1)
    yield info
    yield _gauge(
        "host_multikernel",
        "Whether the host can be divided: its kernel can run others, and the control file system is mounted.",
        int(machine.supported and machine.mounted),
    )
    yield _gauge("host_cpus", "CPUs that the host runs on.", len(machine.topology.online))


def _pool(machine: Machine) -> Iterator[Metric]:
    pool = machine.pool
    free = Counter(_node_of(machine, apic) for apic in pool.free_cpus)
    total = Counter(_node_of(machine, apic) for apic in pool.cpus)
    cpus_free = _gauge("pool_cpus_free", "CPUs of the pool that no instance has.", labels=["node"])
    cpus_used = _gauge("pool_cpus_used", "CPUs of the pool that instances have.", labels=["node"])
    for node, count in sorted(total.items()):
        cpus_free.add_metric([node], free[node])
        cpus_used.add_metric([node], count - free[node])
    memory_free = _gauge(
        "pool_memory_free_bytes", "Memory of the pool that no instance has.", labels=["node"]
    )
    memory_used = _gauge("pool_memory_used_bytes", "Memory of the pool that is in use.", labels=["node"])
    for number, size in sorted(pool.memory.items()):
        used = pool.used_memory.get(number, 0)
        memory_free.add_metric([str(number)], size - used)
        memory_used.add_metric([str(number)], used)
    yield from (cpus_free, cpus_used, memory_free, memory_used)


def _node_of(machine: Machine, apic: int) -> str:
    return str(machine.topology.node.get(apic, _UNKNOWN))


def _instances(reading: Reading) -> Iterator[Metric]:
    info = _gauge(
        "instance_info",
        "The number of an instance and the file that its kernel was loaded from.",
        labels=["name", "id", "kernel"],
    )
    state = _gauge("instance_state", "1 for the state that an instance is in.", labels=["name", "state"])
    since = _gauge(
        "instance_state_since_timestamp_seconds",
        "When an instance came into its state, in seconds since 1970.",
        labels=["name"],
    )
    ended = _gauge(
        "instance_last_exit",
        "1 for how the last run of an instance has ended; none while it runs and before its first run.",
        labels=["name", "reason"],
    )
    age = _gauge(
        "instance_heartbeat_age_seconds",
        "Time since the last sign of life of a running instance.",
        labels=["name"],
    )
    cpus = _gauge("instance_cpus", "CPUs that an instance has.", labels=["name"])
    memory = _gauge("instance_memory_bytes", "Memory that an instance has.", labels=["name"])
    starts = _counter("instance_starts", "Starts of an instance since it was created.", ["name"])
    restarts = _counter("instance_restarts", "Starts of an instance after its first one.", ["name"])
    for one in reading.machine.instances.values():
        name, stats = label(one.name), one.stats
        info.add_metric([name, str(one.id), label(str(one.kernel.get("path", "")))], 1)
        for word in STATES:
            state.add_metric([name, word], int(word == _among(STATES, one.status)))
        for word in ENDS if one.exit_reason is not None else ():
            ended.add_metric([name, word], int(word == _end_of(one)))
        if "state_since_ms" in stats and reading.booted is not None:
            since.add_metric([name], reading.booted + stats["state_since_ms"] / 1000)
        if "heartbeat_age_ms" in stats:
            age.add_metric([name], stats["heartbeat_age_ms"] / 1000)
        cpus.add_metric([name], len(one.cpus))
        memory.add_metric([name], one.memory)
        counted = ((starts, one.epoch), (restarts, stats.get("restarts")))
        for counter, count in counted:
            if count is not None:
                counter.add_metric([name], count)
    yield from (info, state, since, ended, age, cpus, memory, starts, restarts)


def _interrupts(machine: Machine) -> Iterator[Metric]:
    counted = (
        (INTERRUPTS, _counter("interrupts", "Interrupts that the host has got from all instances.")),
        (
            LIMITED,
            _counter(
                "interrupts_limited", "Those of them that it only counted, because they were a storm of them."
            ),
        ),
    )
    for key, counter in counted:
        found = [one.stats[key] for one in machine.instances.values() if key in one.stats]
        if found:
            counter.add_metric([], max(found))
        yield counter


def _among(words: tuple[str, ...], word: str) -> str:
    return word if word in words else OTHER


def _end_of(instance: Instance) -> str:
    return _among(ENDS, (instance.exit_reason or "").partition(":")[0])


def _declared(reading: Reading) -> Iterator[Metric]:
    wanted = _gauge(
        "instance_declared",
        "Instances that are declared for boot: 1 for one that is to run, 0 for one that is not.",
        labels=["name"],
    )
    for name, runs in reading.wanted.items():
        wanted.add_metric([label(name)], int(runs))
    yield wanted
    yield _gauge(
        "declared_drift", "Differences between the host and what is declared for boot.", reading.drift
    )
    yield _gauge(
        "declared_faults", "Reasons why the host cannot be what is declared for boot.", reading.faults
    )
