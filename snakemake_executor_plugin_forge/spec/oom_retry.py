"""Decides whether Forge repeats a job that ran out of memory, and with how much. Pure; run/attempts.py does it."""

from __future__ import annotations

import math
import posixpath
from dataclasses import dataclass, replace

from .job import Config, LaunchSpec
from .units import MEBIBYTE
from .verdict import OomScope, Outcome, Verdict

_OTHER_SIZES = ("mem_mb_per_cpu",)
"""Resources that override the memory limit of a Slurm job: backends/slurm/sbatch.py."""


@dataclass(frozen=True, slots=True)
class OomPolicy:
    """``--forge-oom-retries``, ``--forge-oom-factor`` and ``--forge-oom-max``."""

    retries: int = 0
    factor: float = 2.0
    max_bytes: int | None = None  # None: what the run may use on this host

    @classmethod
    def of(cls, config: Config) -> OomPolicy:
        """Return the policy that the settings ask for."""
        return cls(config.oom_retries, config.oom_factor, config.oom_max_bytes)


def raised_memory(policy: OomPolicy, spec: LaunchSpec, verdict: Verdict, run_memory_bytes: int) -> int | None:
    """Return the memory limit of the next attempt, in bytes; None if there is none.

    There is none if anything but its own memory limit ended the job, after the last retry, and if the job had all the
    memory that it could get.

    Args:
        run_memory_bytes: the memory that all jobs of the run may use together on that host.
    """
    limit = spec.limits.memory_bytes
    if verdict.outcome is not Outcome.OOM or verdict.evidence.get("scope") != OomScope.JOB or limit is None:
        return None
    if spec.retry >= policy.retries:
        return None
    most = run_memory_bytes if policy.max_bytes is None else min(policy.max_bytes, run_memory_bytes)
    wanted = math.ceil(limit * policy.factor / MEBIBYTE) * MEBIBYTE
    raised = min(wanted, most)
    return raised if raised > limit else None


def again(spec: LaunchSpec, number: int, memory_bytes: int, submitted: str = "") -> LaunchSpec:
    """Return the next attempt of a job: with another name, directory and limit; all else stays.

    The rule still sees the old ``resources.mem_mb``, also in the text of its command: see
    docs/decisions/0017-oom-retries.md.

    Args:
        spec: the attempt that ended, as planned.
        number: the number of the next attempt in its run.
        submitted: the time.
    """
    name = f"{number:05d}-{spec.name.partition('-')[2]}"
    job_dir = posixpath.join(posixpath.dirname(spec.job_dir), name)
    return replace(
        spec,
        name=name,
        job_dir=job_dir,
        limits=replace(spec.limits, memory_bytes=memory_bytes),
        limits_from={name: where for name, where in spec.limits_from.items() if name != "mem_mb"},
        environment={**spec.environment, "FORGE_JOB_DIR": job_dir, "FORGE_MEMORY_BYTES": str(memory_bytes)},
        resources={key: value for key, value in spec.resources.items() if key not in _OTHER_SIZES},
        retry=spec.retry + 1,
        retry_of=spec.name,
        submitted=submitted,
    )
