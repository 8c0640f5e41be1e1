# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What Prometheus is told, read back by its own parser."""

from __future__ import annotations

import builtins
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ansible_collections.mkops.multikernel.plugins.module_utils.divide.kernelfs import KernelFs, Paths
from ansible_collections.mkops.multikernel.plugins.module_utils.program import metrics

TOP = Path(__file__).parents[5]


def read(text):
    """Name and labels to value."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found, metric, /, **labels):
    return found[(f"mkops_{metric}", *sorted(labels.items()))]


@pytest.fixture
def told(mkops):
    def tell():
        said = mkops("metrics")
        assert (said.rc, said.err) == (0, "")
        return read(said.out)

    return tell


def test_a_divided_host(host, mkops, told, declare):
    declare()
    mkops("apply")
    before = time.time()
    found = told()
    about = {"version": "1.2.3", "release": "6.12.107-mkops", "interface": "this collection's series"}
    assert value(found, "host_info", **about) == 1
    assert value(found, "host_multikernel") == 1
    assert value(found, "host_cpus") == 2
    assert value(found, "pool_cpus_free", node="0") == 0
    assert value(found, "pool_cpus_used", node="0") == 2
    assert value(found, "pool_memory_free_bytes", node="0") == 256 << 20
    assert value(found, "pool_memory_used_bytes", node="0") == 256 << 20
    states = {(key[1][1], key[2][1]): found[key] for key in found if key[0] == "mkops_instance_state"}
    assert {key for key, one in states.items() if one} == {("red", "active"), ("blue", "loaded")}
    assert len(states) == 2 * 5
    assert value(found, "instance_state_since_timestamp_seconds", name="red") == 1790000060.5
    assert value(found, "instance_starts_total", name="red") == 1
    assert value(found, "instance_restarts_total", name="red") == 0
    assert value(found, "instance_heartbeat_age_seconds", name="red") == 0.3
    assert ("mkops_instance_heartbeat_age_seconds", ("name", "blue")) not in found
    assert value(found, "instance_last_exit", name="red", reason="none") == 1
    assert value(found, "instance_cpus", name="red") == 1
    assert value(found, "instance_memory_bytes", name="red") == 128 << 20
    assert value(found, "instance_declared", name="red") == 1
    assert value(found, "instance_declared", name="blue") == 0
    assert value(found, "declared_drift") == value(found, "declared_faults") == 0
    assert value(found, "crash_records") == value(found, "crash_records_bytes") == 0
    assert abs(value(found, "collection_timestamp_seconds") - before) < 60
    assert 0 <= value(found, "collection_duration_seconds") < 60
    kernels = [dict(key[1:])["kernel"] for key in found if key[0] == "mkops_instance_info"]
    assert all(one.endswith("/vmlinux") for one in kernels)


def test_an_instance_that_ended_and_what_it_says_of_it(host, mkops, told, declare):
    declare()
    mkops("apply")
    red = host.instances["red"]
    red.status, red.exit_reason, red.epoch = "loaded", 'panic: "} 1\nmkops_evil{x="y"} 1', 5
    host.sync()
    found = told()
    assert value(found, "instance_last_exit", name="red", reason="panic") == 1
    assert value(found, "instance_last_exit", name="red", reason="none") == 0
    assert value(found, "instance_restarts_total", name="red") == 4
    assert value(found, "declared_drift") == 1
    assert not [key for key in found if "evil" in str(key)]
    red.status, red.exit_reason = "dreaming", "eaten: by a grue"
    host.sync()
    found = told()
    assert value(found, "instance_state", name="red", state="other") == 1
    assert value(found, "instance_last_exit", name="red", reason="other") == 1


def test_the_number_of_series_does_not_follow_what_instances_say(host, mkops, told, declare):
    declare()
    mkops("apply")
    red = host.instances["red"]
    red.status = "loaded"
    seen = set()
    for number in range(20):
        red.exit_reason = f"panic: {number}"
        host.sync()
        seen |= told().keys()
    assert len(seen) == len(told())


def test_interrupts_where_the_kernel_counts_them(host, mkops, told, declare):
    declare()
    mkops("apply")
    assert not [key for key in told() if "interrupts" in key[0]]
    for name, count in (("red", 12), ("blue", 11)):  # it went on counting while they were read
        stats = host.root / f"sys/fs/multikernel/instances/{name}/stats"
        stats.write_text(f"{stats.read_text()}interrupts {count}\ninterrupts_limited 3\n")
    found = told()
    assert value(found, "interrupts_total") == 12
    assert value(found, "interrupts_limited_total") == 3


def test_a_kernel_that_tells_less(make_host, mkops, write, layout, told):
    make_host(series="upstream")
    mkops("apply", write(layout))
    found = told()
    assert value(found, "instance_state", name="red", state="active") == 1
    names = {key[0] for key in found}
    assert not names & {
        "mkops_instance_last_exit",
        "mkops_instance_heartbeat_age_seconds",
        "mkops_instance_starts_total",
        "mkops_instance_state_since_timestamp_seconds",
    }


def test_nodes_of_which_little_is_known(make_host, mkops, write, layout, told):
    host = make_host(cpus=8, nodes=2, memory_mib=4096)
    layout["pool"] = {"cpus": "2-6", "memory": {"0": "512M", "1": "256M"}}
    assert mkops("apply", write(layout)).rc == 0
    found = told()
    # Instances have their memory where their CPUs are.
    assert value(found, "pool_memory_used_bytes", node="0") == 256 << 20
    assert value(found, "pool_memory_free_bytes", node="1") == 256 << 20
    assert value(found, "pool_cpus_free", node="1") == 3
    for path in host.root.glob("sys/devices/system/node/node1/cpu*/online"):
        path.unlink()
        path.parent.rmdir()
    assert value(told(), "pool_cpus_free", node="unknown") == 3


def test_a_host_that_cannot_be_divided(make_host, mkops, told):
    host = make_host(supported=False, mounted=False)
    (host.root / "proc/stat").unlink()
    found = told()
    assert value(found, "host_multikernel") == 0
    assert {"mkops_pool_cpus_free", "mkops_instance_state"}.isdisjoint({key[0] for key in found})
    assert KernelFs(Paths(str(host.root))).booted is None


def test_a_layout_that_is_none(host, told, declare):
    declare("{")
    found = told()
    assert value(found, "declared_faults") == 1
    declare({"instances": {"red": {"state": "absent"}, "web": {"memory": "x"}}})
    assert value(told(), "declared_faults") == 2
    declare({"instances": {"red": {"state": "absent"}}})
    found = told()
    assert value(found, "declared_faults") == 0
    assert "mkops_instance_declared" not in {key[0] for key in found}


def test_promtool_finds_nothing_wrong(host, mkops, declare):
    declare()
    mkops("apply")
    text = mkops("metrics").out
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_evidence(host, told):
    at = host.root / "var/lib/mkops/crashes"
    for name in ("red-1", "red-2", "empty"):
        (at / name).mkdir(parents=True)
    (at / "red-1/console").write_bytes(b"x" * 5000)
    (at / "red-2/console").write_bytes(b"x")
    (at / "red-2/link").symlink_to("/dev/zero")
    found = told()
    assert value(found, "crash_records") == 2
    assert 8192 <= value(found, "crash_records_bytes") < 1 << 20


def test_evidence_that_goes_meanwhile(host, monkeypatch):
    at = host.root / "var/lib/mkops/crashes/red"
    at.mkdir(parents=True)
    (at / "console").write_text("x")

    def gone(_path):
        raise FileNotFoundError

    monkeypatch.setattr(os, "lstat", gone)
    assert metrics.evidence(at.parent) == (0, 0)


def test_a_file_of_it(host, mkops, tmp_path):
    path = tmp_path / "mkops.prom"
    said = mkops("metrics", "--output", path)
    assert (said.rc, said.out, said.err) == (0, "", "")
    assert value(read(path.read_text()), "host_cpus") == 4
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert sorted(os.listdir(tmp_path)) == ["host", "mkops.prom"]
    old = path.read_text()
    said = mkops("metrics", "--output", tmp_path / "none/mkops.prom")
    assert said.rc == 1
    assert f"{tmp_path}/none/mkops.prom cannot be written: No such file or directory" in said.err
    assert path.read_text() == old


@pytest.fixture
def writer(host, tmp_path):
    """A process that writes a file again and again, and what it tells systemd."""
    made = subprocess.run(
        [sys.executable, TOP / "roles/host/files/make_program.py", TOP, tmp_path / "made"],
        capture_output=True,
        check=True,
    )
    program = tmp_path / "mkops"
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        f"sys.path.insert(0, {json.loads(made.stdout)['path']!r})\n"
        "os.geteuid = lambda: 0\n"
        "from mkops.divide.kernelfs import Paths\n"
        "from mkops.program.main import main\n"
        f"sys.exit(main(paths=Paths({str(host.root)!r})))\n"
    )
    program.chmod(0o755)
    (tmp_path / "out").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(60)
        systemd.bind(str(tmp_path / "notify"))
        process = subprocess.Popen(
            [program, "metrics", "--output", tmp_path / "out/mkops.prom", "--interval", "1"],
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process, systemd
        finally:
            process.kill()
            process.communicate()


def test_again_and_again(writer, tmp_path):
    process, systemd = writer
    taken = []
    for _number in range(3):
        assert "READY=1" in systemd.recv(100).decode().splitlines()
        found = read((tmp_path / "out/mkops.prom").read_text())
        taken.append(value(found, "collection_timestamp_seconds"))
    assert sorted({*taken}) == taken
    process.send_signal(signal.SIGTERM)
    out, _none = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert os.listdir(tmp_path / "out") == ["mkops.prom"]


def test_again_as_the_program_that_replaced_it(writer, tmp_path):
    process, systemd = writer
    systemd.recv(100)
    new = tmp_path / "new"
    new.write_text('#!/bin/sh\necho new "$@"\n')
    new.chmod(0o755)
    new.replace(tmp_path / "mkops")
    out, _none = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, f"new metrics --output {tmp_path}/out/mkops.prom --interval 1\n")


def test_a_file_that_cannot_be_written_any_more_ends_it(writer, tmp_path):
    process, systemd = writer
    systemd.recv(100)
    (tmp_path / "out/mkops.prom").unlink()
    (tmp_path / "out/mkops.prom").mkdir()
    out, _none = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"{tmp_path}/out/mkops.prom cannot be written" in out


def test_the_wait_is_for_what_is_left_of_the_interval(host, mkops, tmp_path, monkeypatch):
    """In this process, whose signals are its own affair."""
    waits, became = [], []
    ends = iter([None, None, signal.SIGTERM])

    def wait(signals, seconds):
        waits.append(seconds)
        return next(ends)

    monkeypatch.setattr(metrics.signal, "pthread_sigmask", lambda how, signals: None)
    monkeypatch.setattr(metrics.signal, "sigtimedwait", wait)
    monkeypatch.setattr(metrics.Itself, "replaced", property(lambda itself: len(waits) == 2))
    monkeypatch.setattr(metrics.Itself, "become", lambda itself, words: became.append(words))
    path = tmp_path / "mkops.prom"
    said = mkops("metrics", "--output", path, "--interval", "30")
    assert (said.rc, said.out, said.err) == (0, "", "")
    assert len(waits) == 3
    assert all(0 < seconds <= 30 for seconds in waits)
    assert became == [["metrics", "--output", str(path), "--interval", "30"]]
    assert read(path.read_text())


@pytest.mark.parametrize("seconds", ["0", "-1", "86401", "1.5", "soon", ""])
def test_intervals_that_are_none(mkops, capsys, seconds):
    with pytest.raises(SystemExit) as ended:
        mkops("metrics", "--output", "x", "--interval", seconds)
    assert ended.value.code == 2
    assert "--interval" in capsys.readouterr().err


def test_what_is_printed_is_printed_once(host, mkops):
    said = mkops("metrics", "--interval", "5")
    assert (said.rc, said.out) == (3, "")
    assert "--interval: only a file is written again and again" in said.err


def test_others_than_root_are_refused(host, mkops, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    said = mkops("metrics")
    assert (said.rc, said.out) == (3, "")
    assert "only root" in said.err


def test_without_the_library(host, mkops, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("prometheus_client"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    said = mkops("metrics")
    assert (said.rc, said.out) == (1, "")
    assert "python3-prometheus-client" in said.err
    assert mkops("status").rc == 0


@pytest.mark.parametrize("needs", [False, True])
def test_its_servers_are_left_out_where_the_library_can_do_without(tmp_path, needs):
    """In a process of its own: the tests have them."""
    (tmp_path / "prometheus_client").mkdir()
    source = Path(prometheus_client.__file__).parent
    for path in source.rglob("*.py"):
        copy = tmp_path / "prometheus_client" / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    if needs:
        with (tmp_path / "prometheus_client/exposition.py").open("a") as file:
            file.write("\nssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)\n")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import json, sys\n"
            f"sys.path[:0] = {[str(tmp_path), *sys.path]!r}\n"
            f"from {metrics.__name__} import _library, _gauge\n"
            "before = {*sys.modules}\n"
            "text = _library()([_gauge('drift', 'Why.', 3)])\n"
            "import prometheus_client\n"
            "print(json.dumps([text, prometheus_client.__file__, [*{*sys.modules} - before]]))\n"
            "import ssl, http.server\n"
            "ssl.create_default_context, http.server.HTTPServer\n",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    text, file, modules = json.loads(done.stdout)
    assert text == "# HELP mkops_drift Why.\n# TYPE mkops_drift gauge\nmkops_drift 3.0\n"
    assert file == f"{tmp_path}/prometheus_client/__init__.py"
    assert ("ssl" in modules, "http.server" in modules) == (needs, needs)


def test_labels():
    assert metrics.label("a\x1b[2J\udcff\n") == "a^[[2J\\udcff\n"
    long = metrics.label("x" * 1000)
    assert (len(long), long[-1]) == (128, "…")
