"""Equal trivial jobs on one Slurm cluster: with forge, and with snakemake-executor-plugin-slurm.

    python -m bench.slurm [--jobs 20 200] [--seconds 0.2] [--rounds 1] [--executors NAME ...] [--json PATH]

Run it as root. It starts and stops a cluster of its own (tests/slurm/cluster.py installs Debian's packages) with
accounting, which the plugin asks for the states of its jobs. Wall time is that of the ``snakemake`` process; the load
of Slurm's controller is the CPU time of ``slurmctld`` meanwhile. The delay until Snakemake knows of the end of a job is
measured: each job writes the time of its end, and Snakemake writes the job's metadata when it knows.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.slurm.cluster import Cluster, ClusterError, Shape

WORKFLOW = """
rule all:
    input: expand("{i}.txt", i=range(int(config["jobs"])))
rule one:
    output: "{i}.txt"
    shell: "sleep {config[seconds]}; date +%s.%N > {output}"
"""
RESOURCES = ("--default-resources", "mem_mb=400", "runtime=5", "slurm_partition=main")
PLUGIN = ("--executor", "slurm", "--slurm-no-account", *RESOURCES)
PACKED, AUTO = "forge, packs of 50", "forge, packs by time"
EVERY_SECOND = ("--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1")
EXECUTORS: dict[str, tuple[str, ...]] = {
    "forge": ("--executor", "forge", "--forge-backend", "slurm", "--forge-slurm-pack", "off", *RESOURCES),
    PACKED: ("--executor", "forge", "--forge-backend", "slurm", "--forge-slurm-pack", "50", *RESOURCES),
    AUTO: ("--executor", "forge", "--forge-backend", "slurm", *RESOURCES),
    "slurm, every second": (*PLUGIN, *EVERY_SECOND),
    "slurm, as it comes": PLUGIN,
    # With arrays of 100, version 2.8 left 2 of 200 outputs, probably because it hands them to sbatch as a script.
    "slurm, arrays": (*PLUGIN, "--slurm-array-jobs", "all", "--slurm-array-limit", "40"),
}
LIMITS = {"slurm, as it comes": 0.25, "slurm, every second": 0.5}
PACK_LIMITS = {"forge": 0.25, "slurm, arrays": 0.1}
TIMEOUT_SECONDS = 1800


@dataclass(frozen=True)
class Run:
    """One run of Snakemake."""

    executor: str
    jobs: int
    wall_seconds: float
    controller_cpu_seconds: float
    noticed_seconds: float  # median, from the end of a job until Snakemake knows


def measure(cluster: Cluster, executor: str, jobs: int, seconds: float) -> Run:
    """Run the jobs in a fresh directory; for packs by time, run one more such job first, which tells their time.

    Raises:
        SystemExit: with the end of its output, if it fails.

    """
    with tempfile.TemporaryDirectory(prefix="forge-bench-slurm-") as name:
        directory = Path(name)
        (directory / "Snakefile").write_text(WORKFLOW)
        environment = with_configuration(cluster.environment, directory / ".bin")
        snakemake = [
            sys.executable,
            "-m",
            "snakemake",
            "-j",
            "500",
            *EXECUTORS[executor],
            "--config",
            f"seconds={seconds}",
        ]
        before = int(executor == AUTO)
        if before:
            subprocess.run([*snakemake, "jobs=1"], cwd=directory, env=environment, capture_output=True, check=True)
        command = [*snakemake, f"jobs={jobs + before}"]
        cpu, begin = cluster.controller_cpu_seconds(), time.monotonic()
        done = subprocess.run(
            command, cwd=directory, env=environment, capture_output=True, text=True, check=False,
            timeout=TIMEOUT_SECONDS,
        )  # fmt: skip
        wall = time.monotonic() - begin
        if done.returncode:
            sys.exit(f"{executor}: {(done.stdout + done.stderr)[-3000:]}")
        ended = sorted(float(path.read_text()) for path in directory.glob("*.txt"))
        noticed = sorted(path.stat().st_mtime for path in directory.glob(".snakemake/metadata/*") if path.is_file())
        ended, noticed = ended[before:], noticed[before:]
        if len(ended) != jobs or len(noticed) != jobs:
            sys.exit(f"{executor}: {len(ended)} outputs and {len(noticed)} metadata records of {jobs} jobs")
        # Paired in their order: nothing can be known before it has happened, so this never overstates the delay.
        late = statistics.median(known - end for known, end in zip(noticed, ended, strict=True))
        return Run(executor, jobs, wall, cluster.controller_cpu_seconds() - cpu, late)


def with_configuration(environment: dict[str, str], directory: Path) -> dict[str, str]:
    """Return an environment in which the plugin's node jobs find the cluster: they drop SLURM_CONF before srun."""
    program = shutil.which("srun", path=environment["PATH"])
    directory.mkdir()
    wrapper = directory / "srun"
    wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={environment["SLURM_CONF"]} exec {program} "$@"\n')
    wrapper.chmod(0o755)
    return {**environment, "PATH": f"{directory}:{environment['PATH']}"}


def table(runs: Sequence[Run]) -> Table:
    """Show medians, and forge's ratios to them."""
    shown = Table(
        "jobs",
        "executor",
        "wall",
        "forge / it",
        "limit",
        "packs / it",
        "limit",
        "slurmctld CPU per job",
        "noticed after (median)",
    )
    for jobs in sorted({run.jobs for run in runs}):
        walls = {name: statistics.median(r.wall_seconds for r in runs if (r.executor, r.jobs) == (name, jobs))
                 for name in EXECUTORS if any(run.executor == name for run in runs)}  # fmt: skip
        for name, wall in walls.items():
            those = [run for run in runs if (run.executor, run.jobs) == (name, jobs)]
            limit = LIMITS.get(name)
            shown.add_row(
                str(jobs), name, f"{wall:.1f} s",
                _ratio(walls.get("forge"), wall), f"≤ {limit}" if limit else "",
                _ratio(walls.get(PACKED), wall), f"≤ {PACK_LIMITS[name]}" if name in PACK_LIMITS else "",
                f"{statistics.median(run.controller_cpu_seconds for run in those) / jobs * 1000:.2f} ms",
                f"{statistics.median(run.noticed_seconds for run in those):.2f} s",
            )  # fmt: skip
    return shown


def _ratio(one: float | None, other: float) -> str:
    return "" if one is None else f"{one / other:.2f}"


def main() -> None:
    """Run the comparison; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m bench.slurm", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--jobs", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--seconds", type=float, default=0.2, help="that each job sleeps")
    parser.add_argument("--executors", nargs="+", default=list(EXECUTORS), choices=list(EXECUTORS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("python -m bench.slurm: a cluster can only be started as root")
    peers = [name for name in options.executors if name not in ("forge", PACKED, AUTO)]
    if peers and importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        sys.exit("python -m bench.slurm: pip install snakemake-executor-plugin-slurm, which forge is compared with")
    runs: list[Run] = []
    try:
        with Cluster(Shape(accounting=True)) as cluster:
            for number in range(options.rounds):
                for jobs in options.jobs:
                    names = options.executors
                    for name in (*names[number % len(names) :], *names[: number % len(names)]):
                        runs.append(measure(cluster, name, jobs, options.seconds))
                        Console().print(f"{runs[-1].wall_seconds:8.1f} s  {jobs} jobs, {name}")
    except ClusterError as error:
        sys.exit(str(error))
    Console().print(table(runs))
    if options.json:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=1))


if __name__ == "__main__":
    main()
