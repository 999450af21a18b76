"""From what was seen to a verdict in words. Pure; the order of the rules is the order of the causes."""

from __future__ import annotations

import re
import signal
from dataclasses import replace

from .model import Evidence, LaunchSpec, Outcome, Usage, Verdict
from .units import show_bytes, show_seconds

_NOT_FOUND = re.compile(r"(?:line \d+: )?(?P<tool>[^\s:]+): (?:command not found|not found)$", re.MULTILINE)
_SHELL_NOT_FOUND = 127
_TEXT = 2000
_SHELL_SIGNAL_BASE = 128


def judge(evidence: Evidence, spec: LaunchSpec, usage: Usage, started: str, seconds: float) -> Verdict:
    """Conclude: one outcome, one sentence, the evidence in numbers.

    The kernel's counters weigh more than the exit code: a job whose child was killed for memory is ``oom`` even if
    its shell went on and exited with 0.
    """
    outcome = _outcome(evidence)
    return Verdict(
        outcome=outcome,
        reason=_reason(outcome, evidence, spec, usage, seconds),
        exit_code=evidence.exit_code,
        signal=evidence.signal,
        usage=usage,
        started=started,
        seconds=seconds,
        notes=_notes(outcome, evidence, spec),
        error=evidence.error,
        stderr_tail=evidence.stderr_tail if outcome is not Outcome.SUCCEEDED else "",
        directory=spec.job_dir,
    )


def shortened(verdict: Verdict) -> Verdict:
    """The same verdict, with no text in it that is longer than anybody reads; the record has them whole."""
    return replace(
        verdict,
        reason=verdict.reason[:_TEXT],
        notes=tuple(note[:_TEXT] for note in verdict.notes[:10]),
        error=None if verdict.error is None else verdict.error[:_TEXT],
        stderr_tail=verdict.stderr_tail[-_TEXT:],
    )


def _outcome(evidence: Evidence) -> Outcome:
    failed = evidence.exit_code != 0 or evidence.error is not None
    if evidence.setup_error is not None or evidence.supervisor_error is not None:
        return Outcome.FAILED
    if evidence.cancelled is not None:
        return Outcome.CANCELLED
    if evidence.oom_kills > 0:
        return Outcome.OOM
    if evidence.timed_out:
        return Outcome.TIMEOUT
    if failed and evidence.pids_hits > 0:
        return Outcome.PIDS
    if failed and _signal_of(evidence) == signal.SIGXFSZ:
        return Outcome.DISK
    return Outcome.FAILED if failed else Outcome.SUCCEEDED


def _signal_of(evidence: Evidence) -> int | None:
    """The signal that ended the job, also when a shell reports it as 128 + N."""
    if evidence.signal is not None:
        return evidence.signal
    code = evidence.exit_code
    if code is not None and _SHELL_SIGNAL_BASE < code < _SHELL_SIGNAL_BASE + signal.NSIG:
        return code - _SHELL_SIGNAL_BASE
    return None


def _reason(outcome: Outcome, evidence: Evidence, spec: LaunchSpec, usage: Usage, seconds: float) -> str:
    match outcome:
        case Outcome.SUCCEEDED:
            return f"succeeded in {show_seconds(seconds)}"
        case Outcome.OOM:
            return _oom_reason(evidence, spec, usage)
        case Outcome.TIMEOUT:
            limit = show_seconds(spec.limits.wall_seconds or 0)
            return f"timed out after {limit}; raise the rule's runtime (minutes) if the job needs longer"
        case Outcome.PIDS:
            return (
                f"hit its limit of {spec.limits.pids} processes and threads {evidence.pids_hits} times; "
                "raise --forge-pids if it needs more"
            )
        case Outcome.DISK:
            limit = show_bytes(spec.limits.disk_bytes or 0)
            return f"a file grew beyond the {limit} of disk_mb; raise disk_mb if the job needs more"
        case Outcome.CANCELLED:
            return f"cancelled after {show_seconds(seconds)}: {evidence.cancelled}"
        case Outcome.FAILED:
            return _failure_reason(evidence)
        case Outcome.LOST | Outcome.VIOLATION:
            return str(outcome)


def _oom_reason(evidence: Evidence, spec: LaunchSpec, usage: Usage) -> str:
    limit = spec.limits.memory_bytes
    exit_note = ", although the command exited with 0" if evidence.exit_code == 0 else ""
    if spec.isolation.limits == "soft":
        whose = "than the run may use (--forge-run-memory)" if limit is None else f"than {show_bytes(limit)}"
        remedy = "give the job less to do at a time" if limit is None else "raise the rule's mem_mb"
        return (
            f"out of memory: more {whose} when Forge looked, {show_bytes(usage.memory_peak_bytes)}{exit_note} "
            f"(a soft limit: polled, not enforced by the kernel); {remedy}"
        )
    if limit is None or evidence.run_oom:
        return (
            f"out of memory: the jobs of this run together reached its limit (--forge-run-memory){exit_note}; "
            "give the rule a mem_mb so that fewer jobs run at a time"
        )
    return (
        f"out of memory: {show_bytes(usage.memory_peak_bytes)} of {show_bytes(limit)}{exit_note}; "
        "raise the rule's mem_mb"
    )


def _failure_reason(evidence: Evidence) -> str:
    if evidence.setup_error is not None:
        return f"the sandbox could not be set up, nothing was run: {evidence.setup_error}"
    if evidence.supervisor_error is not None:
        return evidence.supervisor_error
    number = _signal_of(evidence)
    if number is not None:
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return f"killed by {name}"
    if evidence.exit_code == _SHELL_NOT_FOUND and (match := _NOT_FOUND.search(evidence.stderr_tail)):
        return (
            f"exit code 127: the command {match['tool']} was not found; "
            "install it, or give the rule an environment that has it"
        )
    if evidence.summary:
        return evidence.summary
    if evidence.exit_code not in (None, 0):
        return f"exit code {evidence.exit_code}"
    first = (evidence.error or "no result").strip().splitlines()[0]
    return first.rstrip(":")


def _notes(outcome: Outcome, evidence: Evidence, spec: LaunchSpec) -> tuple[str, ...]:
    notes = []
    if evidence.leftover:
        shown = ", ".join(evidence.leftover[:5]) + (", …" if len(evidence.leftover) > 5 else "")
        notes.append(f"left {len(evidence.leftover)} process(es) running, which were killed: {shown}")
    if evidence.pids_hits and outcome is not Outcome.PIDS:
        notes.append(f"hit its limit of {spec.limits.pids} processes {evidence.pids_hits} times")
    return tuple(notes)
