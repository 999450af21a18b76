"""What a verdict becomes by what only the Slurm job around it knows. Pure."""

from __future__ import annotations

from dataclasses import replace

from ..model import LaunchSpec, OomScope, Outcome, Verdict
from ..sandbox.step_cgroup import Step
from ..units import show_bytes, show_seconds
from .slurm_states import TABLE, SlurmState

TERMINATED = "Slurm ended the job (SIGTERM: scancel, preemption, or the time limit of the Slurm job)"
"""The reason that the node's part of Forge gives for what Slurm has asked of it."""

_NEAR_SECONDS = 15.0
"""Slurm's clock starts before Forge's, and it looks at time limits now and then."""


def amend(verdict: Verdict, spec: LaunchSpec, around: Step | None, elapsed_seconds: float) -> Verdict:
    """On the node: an end that came from outside the sandbox, but from a limit of the job, is that limit's.

    Args:
        verdict: as the supervisor concluded.
        around: the cgroup of the Slurm job, with what was killed in it meanwhile; None where it has none.
        elapsed_seconds: since the Slurm job began.

    """
    wall = spec.limits.wall_seconds
    by_slurm = verdict.outcome is Outcome.CANCELLED and TERMINATED in verdict.reason
    if by_slurm and wall is not None and elapsed_seconds >= wall - _NEAR_SECONDS:
        limit = show_seconds(wall)
        return _as(verdict, Outcome.TIMEOUT, f"timed out after {limit} (the time limit of the Slurm job)",
                   "raise the rule's runtime (minutes) if the job needs longer",
                   {"seconds": verdict.seconds, "limit_seconds": wall})  # fmt: skip
    if around is not None and _ran_out(verdict, around):
        limit_bytes = around.memory_limit_bytes
        limit = f" of {show_bytes(limit_bytes)}" if limit_bytes is not None else ""
        process = verdict.evidence.get("process")
        ending = f", in {process}" if process else ""
        exit_note = ", although the command exited with 0" if verdict.exit_code == 0 else ""
        facts = {"process": process, "oom_kills": around.oom_kills} | dict(verdict.evidence)
        facts |= {"scope": memory_scope(spec), "where": "the Slurm job"}
        facts |= {"limit_bytes": limit_bytes, "memory_peak_bytes": around.memory_peak_bytes}
        words = f"out of memory: the Slurm job reached its memory limit{limit}{ending}{exit_note}"
        return _as(verdict, Outcome.OOM, words, "raise the rule's mem_mb", facts)
    return verdict


def memory_scope(spec: LaunchSpec) -> str:
    """Whose limit that of a Slurm job is: the job's own if its rule asks for memory, else the cluster's default."""
    return str(OomScope.OUTSIDE if spec.limits.memory_bytes is None else OomScope.JOB)


def _ran_out(verdict: Verdict, around: Step) -> bool:
    """Whether the limit of the Slurm job was reached, and not one of the sandbox in it."""
    if verdict.outcome is Outcome.OOM:
        return verdict.evidence.get("scope") in ("outside", "run") and around.memory_limit_bytes is not None
    plain = verdict.outcome in (Outcome.FAILED, Outcome.SUCCEEDED) and verdict.evidence.get("stage") != "setup"
    return plain and around.oom_kills > 0


def reconcile(verdict: Verdict, state: SlurmState | None) -> Verdict:
    """On the controller: what Slurm says of a job that it has ended, where the node knew only that it was ended."""
    if verdict.outcome is not Outcome.CANCELLED or TERMINATED not in verdict.reason or state is None:
        return verdict
    meaning = TABLE[state]
    if meaning.outcome is None or meaning.outcome is Outcome.LOST:
        return verdict
    return _as(verdict, meaning.outcome, f"{meaning.outcome}: Slurm: {meaning.words}", meaning.remedy,
               {**verdict.evidence, "slurm_state": str(state)})  # fmt: skip


def needs_state(verdict: Verdict) -> bool:
    """Whether :func:`reconcile` may change it."""
    return verdict.outcome is Outcome.CANCELLED and TERMINATED in verdict.reason


def _as(verdict: Verdict, outcome: Outcome, reason: str, remedy: str, evidence: dict[str, object]) -> Verdict:
    return replace(
        verdict, outcome=outcome, reason=f"{reason}; {remedy[:1].lower()}{remedy[1:]}", remedy=remedy, evidence=evidence
    )
