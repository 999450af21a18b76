"""Decides the outcome of an attempt from its evidence. Pure; the order of the rules is the order of the causes."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from dataclasses import replace

from . import words
from .job import LaunchSpec, Undeclared
from .verdict import Cause, Decision, Evidence, Oom, OomScope, Outcome, RefusalKind, Usage, Verdict, Words

_OOM_LINE = re.compile(
    r"oom-kill:constraint=[^\n]*?(?:oom_memcg=(?P<limit>[^,\n]*)|global_oom),"
    r"task_memcg=(?P<victim>[^,\n]*),task=(?P<process>[^\n]*?),pid=\d+"
)
_SHELL_KILLED = re.compile(r"\d+ Killed\s+(?P<command>\S[^\n|]*)")
_HEAP_FULL = re.compile(r"java\.lang\.OutOfMemoryError: (?:Java heap space|GC overhead limit exceeded)")
_NOT_FOUND = re.compile(r"(?:line \d+: )?(?P<tool>[^\s:]+): (?:command not found|not found)$", re.MULTILINE)
_SHELL_NOT_FOUND = 127
_SHELL_SIGNAL_BASE = 128
_NOTHING = Usage()
_OURS = "forge-"  # our own processes, in which run: blocks are executed
_LONG, _MIDDLE, _SHORT, _MANY = 2000, 500, 200, 10  # characters, and members, that a shortened verdict has of a field


def judge(evidence: Evidence, spec: LaunchSpec, usage: Usage, started: str, seconds: float) -> Verdict:
    """Conclude: one outcome, the evidence in numbers and, from these, one sentence.

    The kernel's counters weigh more than the exit code: a job whose child was killed for memory is ``oom`` even if
    its shell continued and exited with 0.
    """
    decision = decide(evidence, spec)
    said = words.seen(decision, evidence, spec, usage, seconds)
    facts = _facts(decision, evidence, spec, usage, seconds) | _limit_from(decision, spec)
    return Verdict(
        decision.outcome,
        said.reason,
        evidence.exit_code,
        evidence.signal,
        usage,
        started,
        seconds,
        cause=decision.cause,
        happened=said.happened,
        remedy=said.remedy,
        evidence=facts,
        directory=spec.job_dir,
        notes=tuple(words.notes(decision.outcome, evidence, spec, inputs_spoilt=_inputs_spoilt(evidence, spec))),
        undeclared_writes=evidence.undeclared,
        undeclared_reads=evidence.read,
        error=evidence.error,
        stderr_tail=evidence.stderr_tail if decision.outcome is not Outcome.SUCCEEDED else "",
        refusals=evidence.refusals,
        ended_by=evidence.cancelled.ended_by if evidence.cancelled is not None else None,
    )


def bare(spec: LaunchSpec, started: str) -> Verdict:
    """Return a verdict for :func:`revised`: nothing is known of how the attempt ended."""
    return Verdict(Outcome.LOST, "", None, None, _NOTHING, started, 0.0, directory=spec.job_dir)


def revised(
    verdict: Verdict, outcome: Outcome, cause: Cause | None, said: Words, evidence: Mapping[str, object] | None = None
) -> Verdict:
    """Return the verdict with another outcome; all else stays.

    Args:
        evidence: for the outcome; None: the evidence stays, too.
    """
    return replace(
        verdict,
        outcome=outcome,
        cause=cause,
        reason=said.reason,
        happened=said.happened,
        remedy=said.remedy,
        evidence=verdict.evidence if evidence is None else evidence,
    )


def supplemented(verdict: Verdict, detail: str) -> Verdict:
    """Return a verdict whose reason also says what its supervisor could not know."""
    reason, happened = words.supplement(verdict.reason, detail), words.supplement(verdict.happened, detail)
    return replace(verdict, reason=reason, happened=happened)


def shortened(verdict: Verdict) -> Verdict:
    """Return a verdict of bounded size: pickled it has at most 192 KiB. The record has it whole.

    Its directory is not cut: PATH_MAX (limits.h) bounds it.
    """
    reads = verdict.undeclared_reads
    return replace(
        verdict,
        reason=verdict.reason[:_LONG],
        happened=verdict.happened[:_LONG],
        remedy=verdict.remedy[:_LONG],
        notes=(*(note[:_MIDDLE] for note in verdict.notes[: _MANY - 1]), words.SHORTENED),
        error=None if verdict.error is None else verdict.error[:_LONG],
        stderr_tail=verdict.stderr_tail[-_LONG:],
        undeclared_writes=_bounded_names(verdict.undeclared_writes),
        undeclared_reads=None if reads is None else _bounded_names(reads),
        evidence={name[:_SHORT]: _bounded(value) for name, value in [*verdict.evidence.items()][:_MANY]},
        refusals=verdict.refusals[:1],  # PATH_MAX bounds its texts
        outputs=(),
    )


def _bounded_names(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name[:_SHORT] for name in names[:_MANY])


def _bounded(value: object) -> object:
    """Return a bounded value of the evidence: cut text and lists, no deeper structures."""
    match value:
        case str():
            return value[:_SHORT]
        case list() | tuple():
            return [name[:_SHORT] for name in value[:_MANY] if isinstance(name, str)]
        case None | bool() | int() | float():
            return value
        case _:
            return None


def killed_for_memory(kernel_log: str, run: str, job: str) -> Oom | None:
    """Return the last kill of a process of a job in the kernel's log; None if there is none.

    The line is that of dump_oom_victim() in mm/oom_kill.c, since Linux 5.0: whose limit, and which process.

    Args:
        run: a part of the name of the run's cgroup.
    """
    found = None
    for line in _OOM_LINE.finditer(kernel_log):
        victim = line["victim"].split("/")
        if job not in victim or not any(run in part for part in victim):
            continue
        limit = (line["limit"] or "").split("/")
        if job in limit:
            found = Oom(OomScope.JOB, line["process"])
        elif any(run in part for part in limit):
            found = Oom(OomScope.RUN, line["process"])
        else:
            where = f"the cgroup {line['limit']}" if line["limit"] else "the host"
            found = Oom(OomScope.OUTSIDE, line["process"], where)
    return found


def anon_peak(sampled: int, peak: int, file: int, kernel: int, largest: int) -> int:
    """Return the best estimate of the peak of anonymous and shared memory, in bytes: no counter has it.

    Samples are a lower bound and miss short peaks. The peak of resident memory of the largest process is another one,
    but counts the program files that it maps; the peak of the cgroup without the final page cache and kernel memory is
    an upper bound for that.

    Args:
        peak: the peak of the cgroup, everything included.
        kernel: the kernel's own memory for the job, at the end.
        largest: the peak of resident memory of the largest process.
    """
    return min(peak, max(sampled, min(largest, peak - file - kernel)))


def decide(evidence: Evidence, spec: LaunchSpec) -> Decision:
    """Return the outcome of an attempt, and its cause."""
    outcome, ending = _outcome(evidence, spec), _signal_of(evidence)
    name = None if ending is None else _signal_name(ending)
    match outcome:
        case Outcome.OOM:
            return Decision(outcome, signal=name, scope=_scope(evidence, spec), process=_victim(evidence))
        case Outcome.FAILED:
            return Decision(outcome, _cause(evidence, spec), name, command=_not_found(evidence))
        case Outcome.DISK if _file_system_full(evidence):
            return Decision(outcome, Cause.FILE_SYSTEM_FULL, name)
        case _:
            return Decision(outcome, signal=name)


def _outcome(evidence: Evidence, spec: LaunchSpec) -> Outcome:
    failed = evidence.exit_code != 0 or evidence.error is not None
    if evidence.setup_error is not None or evidence.supervisor_error is not None:
        return Outcome.DISK if _file_system_full(evidence) else Outcome.FAILED
    if evidence.cancelled is not None:
        return Outcome.CANCELLED
    if evidence.oom_kills > 0:
        return Outcome.OOM
    if evidence.excess is not None:
        return Outcome.DISK
    if evidence.timed_out:
        return Outcome.TIMEOUT
    if failed and evidence.pids_hits > 0:
        return Outcome.PIDS
    cut_off = evidence.full_file is not None or (failed and _signal_of(evidence) == signal.SIGXFSZ)
    if cut_off or _file_system_full(evidence):
        return Outcome.DISK
    if failed or evidence.truncated or evidence.missing or evidence.rejected or _inputs_spoilt(evidence, spec):
        return Outcome.FAILED
    if _violates(evidence, spec.files.undeclared):
        return Outcome.VIOLATION
    return Outcome.SUCCEEDED


def _violates(evidence: Evidence, policy: Undeclared) -> bool:
    match policy:
        case Undeclared.FAIL:
            return bool(evidence.undeclared or evidence.deleted or evidence.harms)
        case Undeclared.DISCARD:
            return False
        case Undeclared.KEEP | Undeclared.ALLOW:
            return bool(evidence.harms)


def _cause(evidence: Evidence, spec: LaunchSpec) -> Cause:
    """Return the cause of a failure."""
    if evidence.setup_error is not None:
        return Cause.SETUP
    if evidence.supervisor_error is not None:
        return Cause.SUPERVISOR
    ending = _signal_of(evidence)
    if ending is not None and not (ending == signal.SIGABRT and evidence.refusals):  # abort(3): so programs give notice
        return Cause.BROKEN_PIPE if ending == signal.SIGPIPE else Cause.SIGNAL
    if evidence.exit_code == 0 and evidence.error is None and (cause := _spoilt_by(evidence, spec)) is not None:
        return Cause.REFUSED if cause is Cause.MISSING and evidence.refusals else cause
    if evidence.refusals:
        return Cause.REFUSED
    if _not_found(evidence) is not None:
        return Cause.COMMAND_NOT_FOUND
    if evidence.exit_code and _HEAP_FULL.search(f"{evidence.stderr_tail}\n{evidence.log_tail}"):
        return Cause.HEAP_FULL
    if evidence.summary:
        return Cause.EXCEPTION
    return Cause.EXIT_CODE if evidence.exit_code not in (None, 0) else Cause.ERROR


def _file_system_full(evidence: Evidence) -> bool:
    """Whether a full file system ended it: no other signal, but those that follow from a failed write."""
    full = bool(evidence.refusals) and evidence.refusals[0].kind is RefusalKind.FULL
    limited = evidence.excess is not None or evidence.full_file is not None
    return full and not limited and _signal_of(evidence) in (None, signal.SIGABRT, signal.SIGBUS, signal.SIGPIPE)


def _spoilt_by(evidence: Evidence, spec: LaunchSpec) -> Cause | None:
    """Return why a command that exited with 0 has failed all the same."""
    if evidence.truncated:
        return Cause.STILL_WRITTEN
    if _inputs_spoilt(evidence, spec):  # what it has read may be half the old and half the new version
        return Cause.INPUTS_CHANGED
    if evidence.rejected:
        return Cause.REJECTED
    return Cause.MISSING if evidence.missing else None


def _inputs_spoilt(evidence: Evidence, spec: LaunchSpec) -> bool:
    return bool(evidence.inputs_changed) and not spec.checks.may_change_inputs


def _not_found(evidence: Evidence) -> str | None:
    """Return the command that the job's shell did not find."""
    said = f"{evidence.stderr_tail}\n{evidence.log_tail}"
    found = _NOT_FOUND.search(said) if evidence.exit_code == _SHELL_NOT_FOUND else None
    return found["tool"] if found is not None else None


def _signal_of(evidence: Evidence) -> int | None:
    """Return the signal that ended the job, also if a shell reports it as 128 + N."""
    if evidence.signal is not None:
        return evidence.signal
    code = evidence.exit_code
    if code is not None and _SHELL_SIGNAL_BASE < code < _SHELL_SIGNAL_BASE + signal.NSIG:
        return code - _SHELL_SIGNAL_BASE
    return None


def _scope(evidence: Evidence, spec: LaunchSpec) -> OomScope:
    if evidence.oom is not None:
        return evidence.oom.scope
    return OomScope.JOB if spec.limits.memory_bytes is not None else OomScope.RUN


def _victim(evidence: Evidence) -> str | None:
    """Return the killed process, as the kernel or the job's shell names it."""
    if evidence.oom is not None and evidence.oom.process and not evidence.oom.process.startswith(_OURS):
        return evidence.oom.process
    match = _SHELL_KILLED.search(evidence.stderr_tail) or _SHELL_KILLED.search(evidence.log_tail)
    return match["command"].strip()[:80] if match else None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _limit_from(decision: Decision, spec: LaunchSpec) -> dict[str, object]:
    """Return the origin of the limit that a job reached, if its rule does not set it."""
    name = {Outcome.OOM: "mem_mb", Outcome.TIMEOUT: "runtime", Outcome.DISK: "disk_mb"}.get(decision.outcome, "")
    others = decision.scope not in (None, OomScope.JOB) or decision.cause is Cause.FILE_SYSTEM_FULL
    return {"limit_from": spec.limits_from[name]} if name in spec.limits_from and not others else {}


def _facts(decision: Decision, evidence: Evidence, spec: LaunchSpec, usage: Usage, seconds: float) -> dict[str, object]:
    """Return the numbers and names behind an outcome: the ``evidence`` object of the record."""
    limits = spec.limits
    match decision.outcome:
        case Outcome.OOM:
            return {
                "scope": str(decision.scope),
                "where": evidence.oom.where if evidence.oom is not None else None,
                "process": decision.process,
                "oom_kills": evidence.oom_kills,
                "memory_peak_bytes": usage.memory_peak_bytes,
                "limit_bytes": limits.memory_bytes,
            }
        case Outcome.TIMEOUT:
            return {"seconds": round(seconds, 3), "limit_seconds": limits.wall_seconds}
        case Outcome.PIDS:
            return {"refused_forks": evidence.pids_hits, "pids_peak": usage.pids_peak, "limit": limits.pids}
        case Outcome.DISK:
            excess = evidence.excess if evidence.full_file is None else None
            what = "scratch" if excess is not None else "file size"
            if decision.cause is Cause.FILE_SYSTEM_FULL:
                return {"what": "file system", "full": evidence.refusals[0].subject, "exit_code": evidence.exit_code}
            return {
                "what": what,
                "total_bytes": excess.total_bytes if excess is not None else None,
                "largest": excess.name if excess is not None else evidence.full_file,
                "largest_bytes": excess.name_bytes if excess is not None else None,
                "limit_bytes": limits.disk_bytes,
            }
        case Outcome.CANCELLED:
            return {"by": evidence.cancelled.words if evidence.cancelled else ""}
        case Outcome.FAILED:
            return {
                "stage": "setup" if evidence.setup_error is not None else "job",
                "exit_code": evidence.exit_code,
                "signal": decision.signal,
                "missing": list(evidence.missing),
                "rejected": list(evidence.rejected),
                "writers": [f"{writer.process}: {writer.file}" for writer in evidence.writers],
                "changed": [harm.path for harm in evidence.harms],
                "inputs_changed": list(evidence.inputs_changed),
            }
        case Outcome.VIOLATION:
            return {
                "undeclared_writes": list(evidence.undeclared),
                "changed": [f"{harm.path} ({harm.kind})" for harm in evidence.harms],
            }
        case _:
            return {}
