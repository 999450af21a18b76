"""Records as a run leaves them, written by Forge's own code, without the jobs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from snakemake_executor_plugin_forge.record.attempt_dir import JobDirectory
from snakemake_executor_plugin_forge.record.identity import boot_id, start_time
from snakemake_executor_plugin_forge.spec.job import Config, JobRequest, RunContext
from snakemake_executor_plugin_forge.spec.outcome import judge
from snakemake_executor_plugin_forge.spec.plan import plan
from snakemake_executor_plugin_forge.spec.verdict import Evidence, Usage

from .unit.test_plan import HOST

MIB = 2**20
BEGIN = datetime(2026, 1, 31, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Made:
    """The values of one attempt's record."""

    rule: str = "call"
    wildcards: Mapping[str, str] = field(default_factory=dict)
    evidence: Mapping[str, object] = field(default_factory=dict)
    memory_bytes: int = 100 * MIB
    cpu_seconds: float = 1.0
    seconds: float = 2.0
    start: float = 0.0  # seconds after the start of the run
    wait: float = 0.0  # seconds from submission to start
    attempt: int = 1
    threads: int = 1
    resources: Mapping[str, object] = field(default_factory=lambda: {"mem_mb": 512, "runtime": 3})
    stderr: str = ""
    ended: bool = True
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    logs: tuple[str, ...] = ()


def write_run(workdir: Path, made: list[Made], name: str = "20260131-120000-1-aaaa", *, over: bool = True) -> Path:
    """Write a run; an unfinished one belongs to this process."""
    state = workdir / ".snakemake" / "forge"
    run_dir = state / "runs" / name
    run_dir.mkdir(parents=True)
    context = RunContext(name, str(workdir), str(state), ())
    for number, item in enumerate(made, 1):
        write_attempt(context, number, item)
    own = {"pid": os.getpid(), "start_time": start_time(os.getpid()), "boot_id": boot_id()}
    end = (BEGIN + timedelta(seconds=max((m.start + m.seconds for m in made), default=0))).isoformat()
    record = {
        "schema": 1, "run": name, "host": "h", "command": ["snakemake", "--executor", "forge"],
        "workdir": str(workdir), "isolation": "Forge: limits by cgroup-v1", "cgroup": "", "memory_bytes": 2**34,
        "started": BEGIN.isoformat(), "ended": end if over else None, **own,
    }
    (run_dir / "run.json").write_text(json.dumps(record))
    return run_dir


def write_attempt(context: RunContext, number: int, item: Made) -> str:
    """Write one attempt; return its directory."""
    request = JobRequest(
        rule=item.rule, wildcards=item.wildcards, attempt=item.attempt, threads=item.threads,
        resources=item.resources, command="true", inputs=item.inputs, outputs=item.outputs, logs=item.logs,
    )
    spec = plan(request, number, "true", "launcher", Config(), HOST, context)
    spec = replace(spec, submitted=(BEGIN + timedelta(seconds=item.start - item.wait)).isoformat())
    directory = JobDirectory(spec)
    os.write(directory.stderr, item.stderr.encode())
    directory.describe()
    if item.ended:
        values: dict[str, object] = {"exit_code": 0, "signal": None, "error": None, **item.evidence}
        evidence = Evidence(stderr_tail=item.stderr, **values)  # type: ignore[arg-type]
        usage = Usage(memory_peak_bytes=item.memory_bytes, memory_anon_peak_bytes=item.memory_bytes,
                      cpu_seconds=item.cpu_seconds, io_read_bytes=10, io_write_bytes=20, pids_peak=3)
        started = (BEGIN + timedelta(seconds=item.start)).isoformat()
        verdict = judge(evidence, spec, usage, started, item.seconds)
        directory.finish(replace(verdict, directory=spec.job_dir))
    directory.close()
    return spec.job_dir
