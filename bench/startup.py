"""The start-up case: the time that an installed plugin adds to every start of Snakemake.

Snakemake imports all plugins to build its command line, even for ``snakemake --version``. Each pair
of starts has the plugin visible once and hidden once (``bench/start.py``).

A start takes most of a second, so a few milliseconds drown in the noise of the difference between whole
starts. Therefore the plugin's own part, its import and its command-line options, is timed by itself too.
The target applies to this part, and the difference of whole starts is the check on it.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.process import BenchError
from bench.settings import Executor
from bench.timed import Metrics
from bench.workspace import Workspace

PROGRAM = Path(__file__).parent / "start.py"


@dataclass(frozen=True)
class Startup:
    """Pairs of starts with and without the plugin, in alternating order."""

    pairs: int
    name: str = "startup"

    def measure(self, executor: Executor, workspace: Workspace) -> Metrics:
        """Time the pairs of one round; an executor without a plugin has nothing to measure."""
        metrics: Metrics = {}
        if executor.plugin is None:
            return metrics
        for number in range(self.pairs):
            for mode in ("show", "hide") if number % 2 else ("hide", "show"):
                for metric, value in _start(executor.plugin, mode, workspace).items():
                    metrics.setdefault(f"{mode}_{metric}", []).append(value)
        pairs = zip(metrics["show_start_cpu_ms"], metrics["hide_start_cpu_ms"], strict=True)
        metrics["added_start_cpu_ms"] = [show - hide for show, hide in pairs]
        return metrics


def _start(plugin: str, mode: str, workspace: Workspace) -> dict[str, float]:
    """Start Snakemake once; return the milliseconds of the whole start and of the plugin's part."""
    argv = [sys.executable, "-P", str(PROGRAM), plugin, mode]
    command = workspace.command(argv, workspace.root)
    usage = command.finish(workspace.settings.timeout)
    part = next(json.loads(line) for line in command.tail().splitlines() if line.startswith("{"))
    # Its import and the registration of its options.
    if part["calls"] != (2 if mode == "show" else 0):
        raise BenchError(f"`{mode}` had no effect on {plugin}\n{command.tail()}")
    times = {"start_ms": 1000 * usage.wall, "start_cpu_ms": 1000 * usage.cpu}
    if mode == "show":
        times |= {"plugin_ms": part["wall_ms"], "plugin_cpu_ms": part["cpu_ms"]}
    return times
