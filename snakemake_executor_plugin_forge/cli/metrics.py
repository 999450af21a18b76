"""``snakemake-forge metrics``: numbers for Prometheus from the record."""

from __future__ import annotations

import argparse
import os
from importlib import resources
from typing import Any

from ..analysis.metrics import COLUMNS, Tally, metrics_text, write_metrics
from ..record.index import Selection
from ..spec.errors import UsageError
from .select import add_command, local_path, open_records

_EXAMPLES = """examples:
  snakemake-forge metrics                                  OpenMetrics text of all runs
  snakemake-forge metrics --output /var/lib/node_exporter/forge.prom
                                                           a file for the textfile collector, renamed into place
  snakemake-forge metrics --dashboard > forge.json         a dashboard to import into Grafana

during a run: snakemake --executor forge --forge-metrics-file /var/lib/prometheus/node-exporter
"""
DASHBOARD = "grafana-dashboard.json"


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "metrics", _EXAMPLES)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--prometheus", action="store_true", help="print Prometheus' older text format (0.0.4)")
    form.add_argument("--output", type=local_path, metavar="FILE", help="write that format to FILE in one step")
    form.add_argument("--dashboard", action="store_true", help="print a dashboard for Grafana, as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the metrics, the dashboard, or write the file."""
    if options.dashboard:
        print(dashboard(), end="")
        return 0
    with open_records(options.directory) as index:
        tally = Tally({"workdir": os.path.realpath(options.directory)})
        for row in index.rows(columns=COLUMNS):
            tally.add(row)
        for record in index.records(Selection(failed=True)):
            tally.add_oom(record)
        tally.add_runs(record for _, record in index.runs())
    if options.output is not None:
        try:
            write_metrics(options.output, tally)
        except OSError as error:
            raise UsageError(f"--output {options.output}: cannot be written: {error.strerror}.") from None
    else:
        print(metrics_text(tally, openmetrics=not options.prometheus), end="")
    return 0


def dashboard() -> str:
    """The definition of the dashboard, as JSON."""
    return (resources.files("snakemake_executor_plugin_forge.analysis") / "data" / DASHBOARD).read_text(
        encoding="utf-8"
    )
