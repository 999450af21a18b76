"""Corrects verdicts by facts that only Slurm knows, and records jobs that left no verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...record.attempt_dir import now, record_unseen
from ...sandbox.cgroups.slurm_step import StepCgroup
from ...spec import words
from ...spec.job import LaunchSpec
from ...spec.outcome import bare, judge, revised
from ...spec.verdict import Cause, EndedBy, Evidence, OomScope, Order, Outcome, Usage, Verdict, Words
from .parse import Used
from .states import TABLE, SlurmState

_NEAR_SECONDS = 15.0
"""Slurm's clock starts before Forge's, and it looks at time limits now and then."""


def amend(verdict: Verdict, spec: LaunchSpec, around: StepCgroup | None, elapsed_seconds: float) -> Verdict:
    """Attribute, on the node, an end that came from outside the sandbox to the limit of the Slurm job that caused it.

    Args:
        around: the cgroup of the Slurm job, with the kills in it during the attempt; None where it has none.
        elapsed_seconds: the age of the Slurm job.
    """
    wall = spec.limits.wall_seconds
    if needs_state(verdict) and wall is not None and elapsed_seconds >= wall - _NEAR_SECONDS:
        facts: dict[str, object] = {"seconds": verdict.seconds, "limit_seconds": wall}
        facts |= {"limit_from": origin} if (origin := spec.limits_from.get("runtime")) else {}
        return revised(verdict, Outcome.TIMEOUT, Cause.SLURM_LIMIT, words.slurm_time_limit(wall, spec), facts)
    if around is not None and _ran_out(verdict, around):
        limit, process = around.memory_limit_bytes, verdict.evidence.get("process")
        facts = {"process": process, "oom_kills": around.oom_kills} | dict(verdict.evidence)
        facts |= {"scope": memory_scope(spec), "where": "the Slurm job"}
        facts |= {"limit_bytes": limit, "memory_peak_bytes": around.memory_peak_bytes}
        name = process if isinstance(process, str) else None
        said = words.slurm_memory_limit(limit, name, exited_well=verdict.exit_code == 0)
        return revised(verdict, Outcome.OOM, Cause.SLURM_LIMIT, said, facts)
    return verdict


def memory_scope(spec: LaunchSpec) -> str:
    """Return the owner of a Slurm job's memory limit: the job if its rule asks for memory, else the cluster."""
    return str(OomScope.OUTSIDE if spec.limits.memory_bytes is None else OomScope.JOB)


def _ran_out(verdict: Verdict, around: StepCgroup) -> bool:
    """Whether the attempt reached the limit of the Slurm job, and not one of the sandbox in it."""
    if verdict.outcome is Outcome.OOM:
        return (
            verdict.evidence.get("scope") in (OomScope.OUTSIDE, OomScope.RUN) and around.memory_limit_bytes is not None
        )
    plain = verdict.outcome in (Outcome.FAILED, Outcome.SUCCEEDED) and verdict.evidence.get("stage") != "setup"
    return plain and around.oom_kills > 0


def reconcile(verdict: Verdict, state: SlurmState | None) -> Verdict:
    """Add, on the controller, why Slurm ended a job: the node knew only that it did."""
    if not needs_state(verdict) or state is None:
        return verdict
    meaning = TABLE[state]
    if meaning.outcome is None or meaning.outcome is Outcome.LOST:
        return verdict
    said = words.slurm_state(meaning.outcome, meaning.words, meaning.remedy)
    return revised(verdict, meaning.outcome, Cause.SLURM_STATE, said, {**verdict.evidence, "slurm_state": str(state)})


def needs_state(verdict: Verdict) -> bool:
    """Whether only Slurm knows why the job ended, and whether it will run the job again."""
    return verdict.outcome is Outcome.CANCELLED and verdict.ended_by is EndedBy.SLURM


def ended_by_controller(verdict: Verdict, order: Order) -> Verdict:
    """Name, on the controller, the party that had it cancel a job: the node knew only that Slurm ended it."""
    if not needs_state(verdict):
        return verdict
    said = words.cancelled(order, verdict.seconds)
    facts = {**verdict.evidence, "by": order.words}
    return replace(revised(verdict, Outcome.CANCELLED, None, said, facts), ended_by=order.ended_by)


def refused(spec: LaunchSpec, error: str) -> Verdict:
    """Record an attempt that a node, or the controller, could not run."""
    return record_unseen(spec, judge(Evidence(None, None, None, setup_error=error), spec, Usage(), now(), 0.0))


def ended(
    spec: LaunchSpec,
    outcome: Outcome,
    cause: Cause,
    said: Words,
    evidence: Mapping[str, object],
    *,
    used: Used | None = None,
    ended_by: EndedBy | None = None,
) -> Verdict:
    """Record an attempt that left no verdict, by the words of Slurm or the controller."""
    verdict = replace(revised(bare(spec, now()), outcome, cause, said, evidence), ended_by=ended_by)
    if used is not None:
        started, facts = used.started or verdict.started, {**evidence, "usage_from": "sacct"}
        verdict = replace(verdict, usage=used.usage, started=started, seconds=used.seconds, evidence=facts)
    return record_unseen(spec, verdict)
