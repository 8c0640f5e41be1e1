# Copyright (c) 2026 mkops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Makes the Grafana dashboard of role monitoring, by Grafana's own SDK.

python3 tools/dashboard.py            writes roles/monitoring/files/dashboard.json
python3 tools/dashboard.py --check    ends with 1 when that is not what is made
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

PATH = Path(__file__).resolve().parents[1] / "roles/monitoring/files/dashboard.json"
SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
HOSTS = 'instance=~"$host"'
WIDTH = 24
# The states of an instance: number, word and colour. The words are in each field, so no colour stands alone.
STATES = ((0, "ready", "blue"), (1, "loaded", "orange"), (2, "active", "green"), (3, "failed", "red"))


def query(expr: str, legend: str = "", as_table: bool = False) -> prometheus.Dataquery:
    made = prometheus.Dataquery().expr(expr).legend_format(legend or "__auto")
    return made.format(PromQueryFormat.TABLE).instant() if as_table else made.range()


def steps(*pairs: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps([Threshold(value=value, color=color) for value, color in pairs])
    )


def figure(title: str, text: str, expr: str, unit: str = "short", bad: float | None = None) -> stat.Panel:
    """One number for all hosts that are chosen; red from bad on."""
    limits = steps((None, "green"), *(((bad, "red"),) if bad is not None else ()))
    return (
        stat.Panel()
        .title(title)
        .description(text)
        .datasource(SOURCE)
        .unit(unit)
        .no_value("0")
        .color_mode(BigValueColorMode.VALUE if bad is not None else BigValueColorMode.NONE)
        .thresholds(limits)
        .with_target(query(expr))
        .span(4)
        .height(4)
    )


def lines(
    title: str, text: str, queries: Iterable[tuple[str, str]], unit: str = "short", stacked: bool = False
) -> timeseries.Panel:
    made = (
        timeseries.Panel()
        .title(title)
        .description(text)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
        .span(12)
        .height(8)
    )
    if stacked:
        made = made.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(30)
    for expr, legend in queries:
        made = made.with_target(query(expr, legend))
    return made


def states() -> statetimeline.Panel:
    words = {str(number): ValueMappingResult(text=word, color=color) for number, word, color in STATES}
    each = " or ".join(
        f'{number} * (mkops_instance_state{{{HOSTS}, state="{word}"}} == 1)'
        for number, word, _color in STATES
    )
    # One line for each instance, whatever its state.
    now = f"max by (instance, name) ({each})"
    return (
        statetimeline.Panel()
        .title("States of instances")
        .description("ready: it has CPUs and memory; loaded: a kernel, too; active: that runs.")
        .datasource(SOURCE)
        .mappings([ValueMap(options=words)])
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .thresholds(steps((None, "text")))
        .with_target(query(now, "{{instance}} {{name}}"))
        .span(WIDTH)
        .height(9)
    )


def instances() -> table.Panel:
    """A row for each instance, joined by host and name."""
    columns = {
        "A": ("Memory", f"max by (instance, name) (mkops_instance_memory_bytes{{{HOSTS}}})", "bytes"),
        "B": ("CPUs", f"max by (instance, name) (mkops_instance_cpus{{{HOSTS}}})", "short"),
        "C": ("Starts", f"max by (instance, name) (mkops_instance_starts_total{{{HOSTS}}})", "short"),
        "D": (
            "In its state for",
            f"time() - max by (instance, name) (mkops_instance_state_since_timestamp_seconds{{{HOSTS}}})",
            "s",
        ),
        "E": (
            "Ended last",
            f'max by (instance, name, reason) (mkops_instance_last_exit{{{HOSTS}, reason!="none"}} == 1)',
            "short",
        ),
    }
    made = (
        table.Panel()
        .title("Instances")
        .description("What each instance has, how often it was started and how it has ended last.")
        .datasource(SOURCE)
        .span(WIDTH)
        .height(9)
    )
    for ref, (name, expr, unit) in columns.items():
        made = made.with_target(query(expr, as_table=True).ref_id(ref))
        made = made.override_by_name(
            f"Value #{ref}",
            [
                DynamicConfigValue(id_val="unit", value=unit),
                DynamicConfigValue(id_val="displayName", value=name),
            ],
        )
    return made.with_transformation(DataTransformerConfig(id_val="merge", options={})).with_transformation(
        DataTransformerConfig(
            id_val="organize",
            options={
                "excludeByName": {"Time": True, "Value #E": True},
                "indexByName": {"instance": 0, "name": 1},
                "renameByName": {"instance": "Host", "name": "Instance", "reason": "Ended last"},
            },
        )
    )


def panels() -> Iterable[stat.Panel | statetimeline.Panel | table.Panel | timeseries.Panel]:
    yield figure("Hosts", "Hosts that can be divided.", f"sum(mkops_host_multikernel{{{HOSTS}}})")
    yield figure(
        "Running", "Instances whose kernel runs.", f'sum(mkops_instance_state{{{HOSTS}, state="active"}})'
    )
    yield figure(
        "Down",
        "Instances that are declared to run at boot and do not run.",
        f"count(mkops_instance_declared{{{HOSTS}}} == 1 unless on (job, instance, name)"
        f' mkops_instance_state{{{HOSTS}, state="active"}} == 1)',
        bad=1,
    )
    yield figure(
        "Crashed",
        "Instances whose last run has ended by a panic or without a sign of life.",
        f'sum(mkops_instance_last_exit{{{HOSTS}, reason=~"panic|lost"}})',
        bad=1,
    )
    yield figure(
        "Drift",
        "Differences from what is declared for boot, and reasons why that cannot be.",
        f"sum(mkops_declared_drift{{{HOSTS}}} + mkops_declared_faults{{{HOSTS}}})",
        bad=1,
    )
    yield figure(
        "Oldest reading",
        "Age of the metrics of the host that has not written any for longest.",
        f"max(time() - mkops_collection_timestamp_seconds{{{HOSTS}}})",
        unit="s",
        bad=300,
    )
    yield states()
    yield instances()
    yield lines(
        "Memory of pools",
        "By NUMA node.",
        (
            (f"mkops_pool_memory_used_bytes{{{HOSTS}}}", "{{instance}} node {{node}} used"),
            (f"mkops_pool_memory_free_bytes{{{HOSTS}}}", "{{instance}} node {{node}} free"),
        ),
        unit="bytes",
        stacked=True,
    )
    yield lines(
        "CPUs of pools",
        "By NUMA node.",
        (
            (f"mkops_pool_cpus_used{{{HOSTS}}}", "{{instance}} node {{node}} used"),
            (f"mkops_pool_cpus_free{{{HOSTS}}}", "{{instance}} node {{node}} free"),
        ),
        stacked=True,
    )
    yield lines(
        "Starts",
        "Starts of instances within an hour.",
        ((f"increase(mkops_instance_starts_total{{{HOSTS}}}[1h])", "{{instance}} {{name}}"),),
    )
    yield lines(
        "Signs of life",
        "Time since the last one of each running instance.",
        ((f"mkops_instance_heartbeat_age_seconds{{{HOSTS}}}", "{{instance}} {{name}}"),),
        unit="s",
    )
    yield lines(
        "Records of crashes",
        "What they take on the disks of hosts.",
        ((f"mkops_crash_records_bytes{{{HOSTS}}}", "{{instance}}"),),
        unit="bytes",
    )
    yield lines(
        "Interrupts from instances",
        "A second; those that the host only counts are a storm. Empty where the kernel does not count them.",
        (
            (f"rate(mkops_interrupts_total{{{HOSTS}}}[$__rate_interval])", "{{instance}}"),
            (f"rate(mkops_interrupts_limited_total{{{HOSTS}}}[$__rate_interval])", "{{instance}} in a storm"),
        ),
    )


def made() -> str:
    """The dashboard as JSON."""
    board = (
        dashboard.Dashboard("Kernels side by side")
        .uid("mkops-multikernel")
        .description("Hosts that mkops.multikernel divides into kernels, and their instances.")
        .tags(["mkops", "multikernel"])
        .time("now-6h", "now")
        .refresh("30s")
        .timezone("browser")
        .editable()
        .with_variable(dashboard.DatasourceVariable("source").label("Data source").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("host")
            .label("Host")
            .datasource(SOURCE)
            .query("label_values(mkops_host_info, instance)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
            .include_all(True)
            .multi(True)
        )
    )
    for panel in panels():
        board = board.with_panel(panel)
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


def main() -> int:
    if sys.argv[1:] == ["--check"]:
        if PATH.is_file() and PATH.read_text(encoding="utf-8") == made():
            return 0
        print(f"{PATH} is not what tools/dashboard.py makes: run python3 tools/dashboard.py", file=sys.stderr)
        return 1
    PATH.write_text(made(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
