"""The records of attempts of which nothing was run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from ..judge import judge
from ..model import Evidence, LaunchSpec, Outcome, Usage, Verdict
from ..record.jobdir import JobDirectory, now, write_verdict
from .slurm_usage import Used


def refused(spec: LaunchSpec, error: str) -> Verdict:
    """Record an attempt that whoever was to run it has refused."""
    return _recorded(spec, judge(Evidence(None, None, None, setup_error=error), spec, Usage(), now(), 0.0))


def ended(
    spec: LaunchSpec,
    outcome: Outcome,
    reason: str,
    remedy: str,
    evidence: Mapping[str, object],
    used: Used | None = None,
) -> Verdict:
    """Record an attempt that left no verdict, by what others say of it."""
    words = f"{reason}; {remedy[:1].lower()}{remedy[1:]}" if remedy else reason
    verdict = Verdict(outcome, words, None, None, Usage(), now(), 0.0)
    if used is not None:
        verdict = replace(verdict, usage=used.usage, started=used.started or verdict.started, seconds=used.seconds)
        evidence = {**evidence, "usage_from": "sacct"}
    return _recorded(spec, replace(verdict, directory=spec.job_dir, remedy=remedy, evidence=evidence))


def _recorded(spec: LaunchSpec, verdict: Verdict) -> Verdict:
    """Write it, into the directory that is there or a new one. It counts even if it cannot be written."""
    try:
        with suppress(FileExistsError):
            record = JobDirectory(spec)
            record.close()
            record.describe()
            record.finish(verdict)
            return verdict
        write_verdict(spec, verdict)
    except OSError as error:
        return replace(verdict, notes=(*verdict.notes, f"its record could not be written: {error.strerror}"))
    return verdict
