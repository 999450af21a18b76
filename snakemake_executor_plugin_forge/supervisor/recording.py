"""The record of an attempt at its end: written whatever happens to the disk, or the verdict says why it is not."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from ..record.attempt_dir import JobDirectory, now
from ..record.jsonfile import to_disk
from ..spec.job import LaunchSpec
from ..spec.outcome import judge
from ..spec.verdict import Evidence, Outcome, Usage, Verdict
from ..staging.pending import entry_path
from .prepared import Tools
from .space import full_by


def write(record: JobDirectory, spec: LaunchSpec, verdict: Verdict) -> Verdict:
    """Write the record. A full disk must end neither the supervisor nor a job that has done its work."""
    try:
        record.complete()
        record.finish(verdict)
    except OSError as error:
        note = f"the record of this attempt is incomplete, {spec.job_dir} could not be written: {error.strerror}"
        return replace(verdict, notes=(*verdict.notes, note))
    return verdict


def keep(record: JobDirectory, spec: LaunchSpec, verdict: Verdict) -> None:
    """Bring the record to the disk, and the entry by which a run finds what is staged."""
    with suppress(OSError):
        record.keep()
        if verdict.staged:
            to_disk(entry_path(spec))


def not_started(spec: LaunchSpec, tools: Tools, record: JobDirectory, error: Exception) -> Verdict:
    """Record an attempt whose sandbox could not be made."""
    with suppress(OSError):
        record.describe()
    full = full_by(error, spec.workdir) if isinstance(error, OSError) else ()
    evidence = Evidence(None, None, None, setup_error=str(error), refusals=full)
    verdict = judge(evidence, spec, Usage(), record.started, 0.0)
    try:
        verdict = tools.confirm(verdict)
    except OSError:
        verdict = replace(verdict, outcome=Outcome.LOST)
    return write(record, spec, verdict)


def unrecorded(spec: LaunchSpec, error: OSError) -> Verdict:
    """Return the verdict on an attempt for which there is no place to write."""
    reason = f"the record of this attempt could not be written to {spec.job_dir}: {error.strerror}. Free space there"
    evidence = Evidence(None, None, None, setup_error=reason, refusals=full_by(error, spec.workdir))
    return judge(evidence, spec, Usage(), now(), 0.0)
