# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules, dashboard and units of role monitoring, by ansible-playbook, promtool and systemd-analyze."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ansible_collections.mkops.multikernel.plugins.module_utils.program import metrics

TOP = Path(__file__).parents[3]
ROLE = TOP / "roles/monitoring"
RULE_TESTS = Path(__file__).parent / "files/monitoring_rules_test.yml"
DEFAULTS = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
ALERTS = {
    "down": "MkopsInstanceDown",
    "crash_loop": "MkopsInstanceCrashLooping",
    "heartbeat": "MkopsHeartbeatStale",
    "drift": "MkopsDrift",
    "pool": "MkopsPoolExhausted",
    "evidence": "MkopsEvidenceDisk",
    "stale": "MkopsMetricsStale",
}


def play(tmp_path, *plays):
    book = tmp_path / "play.yml"
    book.write_text(yaml.safe_dump(list(plays)))
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"),
            *("-i", "localhost,", "-e", f"ansible_python_interpreter={sys.executable}", book),
        ],
        env={
            **os.environ,
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_COLLECTIONS_PATH": os.environ["ANSIBLE_COLLECTIONS_PATH"],
        },
        capture_output=True,
        text=True,
        check=False,
    )
    parts = re.split(r"^PLAY (?:\[(.*?)\]|RECAP) \*+$", done.stdout, flags=re.M)
    return done, dict(zip(parts[1::2], parts[2::2], strict=True))


def server(name, at, check=False, **variables):
    return {
        "name": name,
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "check_mode": check,
        "tasks": [
            {
                "ansible.builtin.import_role": {
                    "name": "mkops.multikernel.monitoring",
                    "tasks_from": "server",
                },
                "vars": {
                    "monitoring_rules_path": f"{at}/rules.yml",
                    "monitoring_dashboard_path": f"{at}/dashboard.json",
                    "monitoring_prometheus_service": "",
                    "monitoring_promtool": shutil.which("promtool"),
                    **variables,
                },
            }
        ],
    }


@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    """Where the rules are, as they are by default and as few, and what the plays said."""
    top = tmp_path_factory.mktemp("server")
    for name in ("default", "few"):
        (top / name).mkdir()
    few = {
        "monitoring_alerts": ["pool", "evidence"],
        "monitoring_pool_free": "512M",
        "monitoring_evidence_size": "20M",
        "monitoring_pool_for": "1h30m",
    }
    units = {
        "name": "units",
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars_files": [str(ROLE / "defaults/main.yml"), str(ROLE / "vars/main.yml")],
        "tasks": [
            {
                "ansible.builtin.template": {
                    "src": str(ROLE / f"templates/{name}.j2"),
                    "dest": str(top / name),
                    "mode": "0644",
                }
            }
            for name in ("mkops-metrics.service",)
        ],
    }
    done, said = play(
        top,
        server("check", top / "default", check=True),
        server("apply", top / "default"),
        server("again", top / "default"),
        server("few", top / "few", **few),
        units,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return top, said


def promtool(*words, at=None):
    return subprocess.run(["promtool", *words], capture_output=True, text=True, check=False, cwd=at)


def test_check_apply_apply(placed):
    _top, said = placed
    assert [said[name].count("changed: [") for name in ("check", "apply", "again")] == [2, 2, 0]


def rules_in(path):
    (group,) = yaml.safe_load(path.read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def test_the_rules_are_such(placed):
    top, _said = placed
    for name, count in (("default", 7), ("few", 2)):
        done = promtool("check", "rules", str(top / name / "rules.yml"))
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"SUCCESS: {count} rules found" in done.stdout
    assert list(rules_in(top / "default/rules.yml")) == [
        ALERTS[name] for name in DEFAULTS["monitoring_alerts"]
    ]
    few = rules_in(top / "few/rules.yml")
    assert set(few) == {"MkopsPoolExhausted", "MkopsEvidenceDisk"}
    assert "<= 536870912" in few["MkopsPoolExhausted"]["expr"]
    assert few["MkopsPoolExhausted"]["for"] == "1h30m"


def test_each_alert_fires_and_ends(placed):
    top, _said = placed
    shutil.copy(RULE_TESTS, top / "default/test.yml")
    done = promtool("test", "rules", "test.yml", at=top / "default")
    assert done.returncode == 0, done.stdout + done.stderr
    told = RULE_TESTS.read_text()
    assert {name for name in ALERTS.values() if name not in told} == set()


def test_rules_that_are_none_are_not_placed(tmp_path):
    at = tmp_path / "at"
    at.mkdir()
    done, _said = play(tmp_path, server("bad", at, monitoring_drift_for="soon"))
    assert done.returncode != 0
    assert "monitoring_drift_for: 'soon' is not a time as Prometheus writes it" in " ".join(
        done.stdout.split()
    )
    done, _said = play(tmp_path, server("worse", at, monitoring_heartbeat_age="{{ '7 and' }}"))
    assert done.returncode != 0
    assert list(at.iterdir()) == []


def metric_names(text):
    return set(re.findall(r"\bmkops_[a-z_]+", text))


def known_metrics():
    """Names of all that mkops metrics knows, as they are in its source."""
    source = Path(metrics.__file__).read_text()
    gauges = re.findall(r'_gauge\(\s*"([a-z_]+)"', source)
    return {f"mkops_{name}" for name in gauges} | {
        f"mkops_{name}_total" for name in re.findall(r'_counter\(\s*"([a-z_]+)"', source)
    }


def test_rules_and_dashboard_ask_for_what_there_is(placed):
    top, _said = placed
    known = known_metrics()
    assert len(known) > 20
    for path in (top / "default/rules.yml", ROLE / "files/dashboard.json"):
        assert metric_names(path.read_text()) - known == set()


def test_the_documentation_has_all_metrics():
    text = (TOP / "docs/monitoring.md").read_text()
    assert known_metrics() - metric_names(text) == set()
    assert metric_names("\n".join(line for line in text.splitlines() if line[0:1] == "|")) == known_metrics()


def expressions(dashboard):
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def test_prometheus_can_read_all_of_the_dashboard(tmp_path):
    """As rules: promtool reads expressions nowhere else."""
    dashboard = json.loads((ROLE / "files/dashboard.json").read_text())
    found = [(title, expr.replace("$__rate_interval", "5m")) for title, expr in expressions(dashboard)]
    assert len(found) > 10
    rules = [{"record": f"panel:{number}", "expr": expr} for number, (_title, expr) in enumerate(found)]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = promtool("check", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_unit(placed):
    top, _said = placed
    service = (top / "mkops-metrics.service").read_text()
    assert "--output /var/lib/prometheus/node-exporter/mkops.prom --interval 30\n" in service
    # The program is not on this machine.
    (top / "mkops-metrics.service").write_text(service.replace("/usr/local/sbin/mkops", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", top / "mkops-metrics.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    found = [line for line in done.stderr.splitlines() if "mkops-metrics" in line]
    assert (done.returncode, found) == (0, [])
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", top / "mkops-metrics.service"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
