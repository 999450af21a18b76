"""``snakemake-forge metrics``: the record as numbers for Prometheus."""

from __future__ import annotations

import argparse
from importlib import resources
from typing import Any

from ..errors import UsageError
from ..record.index import open_index
from ..record.metrics import COLUMNS, Tally, openmetrics, prometheus_text, write_whole
from .select import add_command

_EXAMPLES = """examples:
  snakemake-forge metrics                                  OpenMetrics text of all runs
  snakemake-forge metrics --output /var/lib/node_exporter/forge.prom
                                                           for the textfile collector, renamed into place
  snakemake-forge metrics --dashboard > forge.json         to be imported into Grafana

during a run: snakemake --executor forge --forge-metrics-file /var/lib/node_exporter/forge.prom
"""
DASHBOARD = "grafana-dashboard.json"


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "metrics", _EXAMPLES)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--prometheus", action="store_true", help="Prometheus' older text format (0.0.4)")
    form.add_argument("--output", metavar="FILE", help="write that format to FILE in one step")
    form.add_argument("--dashboard", action="store_true", help="a dashboard for Grafana instead, as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print them."""
    if options.dashboard:
        print(dashboard(), end="")
        return 0
    tally = Tally()
    with open_index(options.directory) as index:
        for row in index.rows(columns=COLUMNS):
            tally.add(row)
        tally.add_runs(record for _, record in index.runs())
    if options.output is not None:
        try:
            write_whole(options.output, prometheus_text(tally))
        except OSError as error:
            raise UsageError(f"--output {options.output}: cannot be written: {error.strerror}.") from None
    else:
        print(prometheus_text(tally) if options.prometheus else openmetrics(tally), end="")
    return 0


def dashboard() -> str:
    """The definition that is shipped."""
    return (resources.files("snakemake_executor_plugin_forge.record") / "data" / DASHBOARD).read_text(encoding="utf-8")
