"""Specs of jobs for tests that care about few of the fields."""

from __future__ import annotations

from dataclasses import replace

from snakemake_executor_plugin_forge.spec.host import Host
from snakemake_executor_plugin_forge.spec.job import Config, JobRequest, LaunchSpec, Limits, RunContext
from snakemake_executor_plugin_forge.spec.plan import plan

_PLANNED = plan(
    JobRequest("call", {}, 1, 1, {}, "true"), 1, "true", "launcher", Config(),
    Host(1 << 40, 4, "cgroup-v2", "", "root", "", ()), RunContext("run", "/work", "/work/.snakemake/forge", ()),
)  # fmt: skip


def spec(name: str, memory_bytes: int | None, *, cpus: int = 1, retry: int = 0) -> LaunchSpec:
    """A job."""
    limits = Limits(memory_bytes, cpus, None, None)
    return replace(_PLANNED, name=name, job_dir=f"/work/.snakemake/forge/runs/run/{name}", limits=limits, retry=retry)
