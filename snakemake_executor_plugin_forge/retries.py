"""Whether a job that ran out of memory is run again, and with how much. Pure; attempts.py carries it out."""

from __future__ import annotations

import math
import posixpath
from dataclasses import dataclass, replace

from .model import Config, LaunchSpec, OomScope, Outcome, Verdict
from .units import MEBIBYTE

_OTHER_SIZES = ("mem_mb_per_cpu",)
"""Resources that would win over the memory limit where the job is run: backends/slurm_text.py."""


@dataclass(frozen=True, slots=True)
class OomPolicy:
    """``--forge-oom-retries``, ``--forge-oom-factor`` and ``--forge-oom-max``."""

    retries: int = 0
    factor: float = 2.0
    max_bytes: int | None = None  # None: what the run may use on this host

    @classmethod
    def of(cls, config: Config) -> OomPolicy:
        """As the settings say."""
        return cls(config.oom_retries, config.oom_factor, config.oom_max_bytes)


def raised_memory(policy: OomPolicy, spec: LaunchSpec, verdict: Verdict, run_memory_bytes: int) -> int | None:
    """The memory limit with which an attempt is run again, in bytes; None if it is not.

    It is not if anything else than its own limit ended it, if it was tried as often as it may be, or if it had all that
    it could get.

    Args:
        spec: of the attempt that ended.
        run_memory_bytes: what all jobs of the run may use together where it runs.

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


def again(spec: LaunchSpec, number: int, memory_bytes: int) -> LaunchSpec:
    """The next attempt of the same job: another name, directory and limit, and all else as it was.

    What the rule was told (``resources.mem_mb``, the text of its command) stays: see
    docs/decisions/0017-oom-retries.md.

    Args:
        spec: of the attempt that ended, as it was planned.
        number: counts the attempts of this run.
        memory_bytes: its limit.

    """
    name = f"{number:05d}-{spec.name.partition('-')[2]}"
    job_dir = posixpath.join(posixpath.dirname(spec.job_dir), name)
    return replace(
        spec,
        name=name,
        job_dir=job_dir,
        limits=replace(spec.limits, memory_bytes=memory_bytes),
        environment={**spec.environment, "FORGE_JOB_DIR": job_dir, "FORGE_MEMORY_BYTES": str(memory_bytes)},
        resources={key: value for key, value in spec.resources.items() if key not in _OTHER_SIZES},
        retry=spec.retry + 1,
        retry_of=spec.name,
    )
