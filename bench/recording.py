"""The cost of the record for a job."""

import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

from bench.settings import FORGE, Executor
from bench.timed import Metrics
from bench.workspace import Workspace
from snakemake_executor_plugin_forge.record.attempt_dir import JobDirectory
from snakemake_executor_plugin_forge.spec.job import Config, JobRequest, RunContext
from snakemake_executor_plugin_forge.spec.outcome import judge
from snakemake_executor_plugin_forge.spec.plan import plan
from snakemake_executor_plugin_forge.spec.verdict import Evidence, Usage
from tests.unit.test_plan import HOST

EVENTS = ("started", "inside", "exec", "ended inside", "dead", "published")


@dataclass(frozen=True)
class Recording:
    """The record of an attempt, written again and again by the code of a supervisor, with nothing else to do."""

    records: int = 500
    name: str = "recording"

    def measure(self, executor: Executor, workspace: Workspace) -> Metrics:
        """Write the records."""
        if executor.name != FORGE:
            return {}
        walls, cpus = write_records(workspace.directory("shell"), self.records)
        return {"record_ms": [1000 * statistics.median(walls)], "record_cpu_ms": [1000 * statistics.median(cpus)]}


def write_records(directory: Path, count: int) -> tuple[list[float], list[float]]:
    """Return wall and CPU seconds of each record: its directory, streams, description, events and verdict."""
    context = RunContext("20260131-120000-1-aaaa", str(directory), f"{directory}/.snakemake/forge", ())
    request = JobRequest(
        rule="call", wildcards={"sample": "A"}, attempt=1, threads=1, resources={"mem_mb": 512, "runtime": 3},
        command="samtools sort", inputs=("a.bam", "b.bam"), outputs=("c.bam",),
    )  # fmt: skip
    usage = Usage(memory_peak_bytes=2**20, cpu_seconds=1.0)
    walls, cpus = [], []
    for number in range(count):
        spec = plan(request, number, "samtools sort", "launcher", Config(), HOST, context)
        verdict = judge(Evidence(exit_code=0, signal=None, error=None), spec, usage, "2026-01-31T12:00:00+00:00", 1.0)
        begin, cpu = time.perf_counter(), time.process_time()
        record = JobDirectory(spec)
        record.describe(1)
        for event in EVENTS:
            record.event(event)
        record.finish(replace(verdict, directory=spec.job_dir))
        record.close()
        walls.append(time.perf_counter() - begin)
        cpus.append(time.process_time() - cpu)
    return walls, cpus
