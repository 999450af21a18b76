"""From what was seen to a verdict in words. Pure; the order of the rules is the order of the causes."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace

from .model import Evidence, LaunchSpec, Oom, OomScope, Outcome, Undeclared, Usage, Verdict
from .units import show_bytes, show_seconds

_OOM_LINE = re.compile(
    r"oom-kill:constraint=[^\n]*?(?:oom_memcg=(?P<limit>[^,\n]*)|global_oom),"
    r"task_memcg=(?P<victim>[^,\n]*),task=(?P<process>[^\n]*?),pid=\d+"
)
_SHELL_KILLED = re.compile(r"\d+ Killed\s+(?P<command>\S[^\n|]*)")
_PLAIN = (Outcome.FAILED, Outcome.CANCELLED)
"""Outcomes whose remedy would only make the reason longer; verdict.json has it all the same."""
_NOT_FOUND = re.compile(r"(?:line \d+: )?(?P<tool>[^\s:]+): (?:command not found|not found)$", re.MULTILINE)
_SHELL_NOT_FOUND = 127
_TEXT = 2000
_SHOWN = 5
_SHELL_SIGNAL_BASE = 128


def judge(evidence: Evidence, spec: LaunchSpec, usage: Usage, started: str, seconds: float) -> Verdict:
    """Conclude: one outcome, one sentence, the evidence in numbers.

    The kernel's counters weigh more than the exit code: a job whose child was killed for memory is ``oom`` even if
    its shell went on and exited with 0.
    """
    outcome = _outcome(evidence, spec)
    cause, remedy = _words(outcome, evidence, spec, usage, seconds)
    return Verdict(
        outcome=outcome,
        reason=f"{cause}; {remedy}" if remedy and outcome not in _PLAIN else cause,
        exit_code=evidence.exit_code,
        signal=evidence.signal,
        usage=usage,
        started=started,
        seconds=seconds,
        notes=_notes(outcome, evidence, spec),
        undeclared_writes=evidence.undeclared,
        undeclared_reads=evidence.read,
        error=evidence.error,
        stderr_tail=evidence.stderr_tail if outcome is not Outcome.SUCCEEDED else "",
        directory=spec.job_dir,
        remedy=remedy,
        evidence=_facts(outcome, evidence, spec, usage, seconds),
    )


def shortened(verdict: Verdict) -> Verdict:
    """The same verdict, with no text in it that is longer than anybody reads; the record has them whole."""
    return replace(
        verdict,
        reason=verdict.reason[:_TEXT],
        notes=tuple(note[:_TEXT] for note in verdict.notes[:10]),
        error=None if verdict.error is None else verdict.error[:_TEXT],
        stderr_tail=verdict.stderr_tail[-_TEXT:],
        outputs=(),
    )


def killed_for_memory(kernel_log: str, run: str, job: str) -> Oom | None:
    """The last kill of a process of a job in the kernel's log; None if it is not there.

    The line is that of dump_oom_victim() in mm/oom_kill.c, since Linux 5.0: whose limit, and which process.

    Args:
        kernel_log: its end.
        run: a part of the name of the run's cgroup.
        job: the name of the job's cgroup.

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
    """The best that can be said of the peak of anonymous and shared memory, in bytes.

    No counter has it. What was sampled is a lower bound, and misses short peaks. The largest process' peak of resident
    memory is one too, but counts the program files that it maps; the peak of the cgroup without what is page cache and
    the kernel's own at the end bounds that from above.

    Args:
        sampled: the highest sample of the cgroup.
        peak: of the cgroup, everything included.
        file: page cache at the end.
        kernel: the kernel's own memory for the job.
        largest: the peak of resident memory of the largest process.

    """
    return min(peak, max(sampled, min(largest, peak - file - kernel)))


def _outcome(evidence: Evidence, spec: LaunchSpec) -> Outcome:
    failed = evidence.exit_code != 0 or evidence.error is not None
    if evidence.setup_error is not None or evidence.supervisor_error is not None:
        return Outcome.FAILED
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
    if failed and (evidence.full_file is not None or _signal_of(evidence) == signal.SIGXFSZ):
        return Outcome.DISK
    if failed or evidence.missing or evidence.rejected or _inputs_spoilt(evidence, spec):
        return Outcome.FAILED
    if evidence.undeclared and spec.files.undeclared is Undeclared.FAIL:
        return Outcome.VIOLATION
    return Outcome.SUCCEEDED


def _inputs_spoilt(evidence: Evidence, spec: LaunchSpec) -> bool:
    return bool(evidence.inputs_changed) and not spec.checks.may_change_inputs


def _signal_of(evidence: Evidence) -> int | None:
    """The signal that ended the job, also when a shell reports it as 128 + N."""
    if evidence.signal is not None:
        return evidence.signal
    code = evidence.exit_code
    if code is not None and _SHELL_SIGNAL_BASE < code < _SHELL_SIGNAL_BASE + signal.NSIG:
        return code - _SHELL_SIGNAL_BASE
    return None


def _words(  # noqa: C901 - a table
    outcome: Outcome, evidence: Evidence, spec: LaunchSpec, usage: Usage, seconds: float
) -> tuple[str, str]:
    """What happened, and what to do about it."""
    limits = spec.limits
    match outcome:
        case Outcome.SUCCEEDED:
            return f"succeeded in {show_seconds(seconds)}", ""
        case Outcome.OOM:
            return _oom_words(evidence, spec, usage)
        case Outcome.TIMEOUT:
            limit = show_seconds(limits.wall_seconds or 0)
            return f"timed out after {limit}", "raise the rule's runtime (minutes) if the job needs longer"
        case Outcome.PIDS:
            hits = f"hit its limit of {limits.pids} processes and threads {evidence.pids_hits} times"
            return hits, "raise --forge-pids if it needs more"
        case Outcome.DISK:
            limit = show_bytes(limits.disk_bytes or 0)
            remedy = "raise the rule's disk_mb if the job needs more"
            if evidence.excess is None:
                return f"a file{_named(evidence.full_file)} grew beyond the {limit} of disk_mb", remedy
            total, largest = show_bytes(evidence.excess.total_bytes), show_bytes(evidence.excess.name_bytes)
            return f"its files took {total} of {limit} (disk_mb), {largest} in {evidence.excess.name}", remedy
        case Outcome.CANCELLED:
            return f"cancelled after {show_seconds(seconds)}: {evidence.cancelled}", "run Snakemake again"
        case Outcome.FAILED:
            return _failure_words(evidence, spec)
        case Outcome.VIOLATION:
            return (
                f"wrote outside its outputs: {_few(evidence.undeclared)} (undeclared=fail); nothing was published",
                f"add {_declaration(evidence.undeclared)} to rule {spec.rule}, or set --forge-undeclared keep",
            )
        case Outcome.LOST:
            return str(outcome), ""


def _oom_words(evidence: Evidence, spec: LaunchSpec, usage: Usage) -> tuple[str, str]:
    scope = _scope(evidence, spec)
    limit, process = spec.limits.memory_bytes, _victim(evidence)
    exit_note = ", although the command exited with 0" if evidence.exit_code == 0 else ""
    ending = f"{_in(process)}{exit_note}"
    if spec.isolation.limits == "soft":
        whose = "than the run may use (--forge-run-memory)" if limit is None else f"than {show_bytes(limit)}"
        used = show_bytes(usage.memory_peak_bytes)
        what = f"out of memory: more {whose} when Forge looked, {used}{exit_note}"
        remedy = "give the job less to do at a time" if limit is None else "raise the rule's mem_mb"
        return f"{what} (a soft limit: polled, not enforced by the kernel)", remedy
    if scope is OomScope.RUN:
        return (
            f"out of memory: the jobs of this run together reached its limit (--forge-run-memory){ending}",
            "give the rule a mem_mb so that fewer jobs run at a time",
        )
    if scope is OomScope.OUTSIDE:
        where = (evidence.oom.where if evidence.oom is not None else None) or "the host or a cgroup around this run"
        return (
            f"out of memory: {where} ran out of it; the job had {show_bytes(usage.memory_peak_bytes)}{ending}",
            "lower --forge-run-memory, or leave this host more memory",
        )
    used = show_bytes(usage.memory_peak_bytes)
    return f"out of memory: {used} of {show_bytes(limit or 0)}{ending}", "raise the rule's mem_mb"


def _scope(evidence: Evidence, spec: LaunchSpec) -> OomScope:
    if evidence.oom is not None:
        return evidence.oom.scope
    return OomScope.JOB if spec.limits.memory_bytes is not None else OomScope.RUN


def _victim(evidence: Evidence) -> str | None:
    """The process that was killed, as the kernel or the job's shell names it."""
    if evidence.oom is not None and evidence.oom.process:
        return evidence.oom.process
    match = _SHELL_KILLED.search(evidence.stderr_tail)
    return match["command"].strip()[:80] if match else None


def _named(name: str | None) -> str:
    return f" ({name})" if name else ""


def _in(process: str | None) -> str:
    return f", in {process}" if process else ""


def _failure_words(evidence: Evidence, spec: LaunchSpec) -> tuple[str, str]:
    look = f"see its stderr: snakemake-forge logs {spec.rule}"
    if evidence.setup_error is not None:
        return f"the sandbox could not be set up, nothing was run: {evidence.setup_error}", "mend that, and run again"
    if evidence.supervisor_error is not None:
        return evidence.supervisor_error, "run again; if it stays, report it with the record"
    number = _signal_of(evidence)
    if number is not None:
        return f"killed by {_signal_name(number)}", look
    if evidence.exit_code == 0 and evidence.error is None:
        if _inputs_spoilt(evidence, spec):
            return _inputs_words(evidence)
        if evidence.rejected or evidence.missing:
            return _unpublished_words(evidence, spec)
    if evidence.exit_code == _SHELL_NOT_FOUND and (match := _NOT_FOUND.search(evidence.stderr_tail)):
        remedy = "install it, or give the rule an environment that has it"
        return f"exit code 127: the command {match['tool']} was not found; {remedy}", remedy
    if evidence.summary:
        return evidence.summary, look
    if evidence.exit_code not in (None, 0):
        return f"exit code {evidence.exit_code}", look
    first = (evidence.error or "no result").strip().splitlines()[0]
    return first.rstrip(":"), look


def _inputs_words(evidence: Evidence) -> tuple[str, str]:
    """What it has read may be half the old and half the new version."""
    what, verb = ("inputs", "were") if len(evidence.inputs_changed) > 1 else ("input", "was")
    happened = f"{what} {_few(evidence.inputs_changed)} {verb} changed while the job ran"
    return (
        f"{happened}, so its outputs cannot be believed; nothing was published",
        "run again when nobody writes to the inputs any more",
    )


def _unpublished_words(evidence: Evidence, spec: LaunchSpec) -> tuple[str, str]:
    """The command exited with 0 all the same."""
    if evidence.rejected:
        return (
            f"an output cannot be published, so none was: {_few(evidence.rejected, '; ')}",
            f"correct the output or its declaration in rule {spec.rule}",
        )
    wrote = f" It did write {_few(evidence.undeclared)}." if evidence.undeclared else ""
    return (
        f"exit code 0, but it did not write {_few(evidence.missing)}; what was there before is as it was.{wrote}",
        f"correct the command or the output of rule {spec.rule}",
    )


def _few(names: Sequence[str], separator: str = ", ") -> str:
    return separator.join(names[:_SHOWN]) + (f"{separator}… ({len(names)} in all)" if len(names) > _SHOWN else "")


def _declaration(names: Sequence[str]) -> str:
    """What to paste into a rule."""
    return "output: " + ", ".join(f'"{name}"' for name in names[:_SHOWN])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _facts(outcome: Outcome, evidence: Evidence, spec: LaunchSpec, usage: Usage, seconds: float) -> dict[str, object]:
    """The numbers and names behind an outcome: the ``evidence`` object of the record."""
    limits = spec.limits
    match outcome:
        case Outcome.OOM:
            return {
                "scope": str(_scope(evidence, spec)),
                "where": evidence.oom.where if evidence.oom is not None else None,
                "process": _victim(evidence),
                "oom_kills": evidence.oom_kills,
                "memory_peak_bytes": usage.memory_peak_bytes,
                "limit_bytes": limits.memory_bytes,
            }
        case Outcome.TIMEOUT:
            return {"seconds": round(seconds, 3), "limit_seconds": limits.wall_seconds}
        case Outcome.PIDS:
            return {"refused_forks": evidence.pids_hits, "pids_peak": usage.pids_peak, "limit": limits.pids}
        case Outcome.DISK:
            excess = evidence.excess
            return {
                "what": "scratch" if excess is not None else "file size",
                "total_bytes": excess.total_bytes if excess is not None else None,
                "largest": excess.name if excess is not None else evidence.full_file,
                "largest_bytes": excess.name_bytes if excess is not None else None,
                "limit_bytes": limits.disk_bytes,
            }
        case Outcome.CANCELLED:
            return {"by": evidence.cancelled}
        case Outcome.FAILED:
            number = _signal_of(evidence)
            return {
                "stage": "setup" if evidence.setup_error is not None else "job",
                "exit_code": evidence.exit_code,
                "signal": None if number is None else _signal_name(number),
                "missing": list(evidence.missing),
                "rejected": list(evidence.rejected),
                "changed": list(evidence.changed),
                "inputs_changed": list(evidence.inputs_changed),
            }
        case Outcome.VIOLATION:
            return {"undeclared_writes": list(evidence.undeclared)}
        case _:
            return {}


def _notes(outcome: Outcome, evidence: Evidence, spec: LaunchSpec) -> tuple[str, ...]:
    notes = []
    if evidence.leftover:
        shown = ", ".join(evidence.leftover[:5]) + (", …" if len(evidence.leftover) > 5 else "")
        notes.append(f"left {len(evidence.leftover)} process(es) running, which were killed: {shown}")
    if evidence.pids_hits and outcome is not Outcome.PIDS:
        notes.append(f"hit its limit of {spec.limits.pids} processes {evidence.pids_hits} times")
    if evidence.unkillable:
        shown = ", ".join(evidence.unkillable[:5])
        notes.append(f"{len(evidence.unkillable)} process(es) did not die when they were killed: {shown}")
    return (*notes, *_file_notes(outcome, evidence, spec), *evidence.problems)


def _file_notes(outcome: Outcome, evidence: Evidence, spec: LaunchSpec) -> Iterator[str]:
    if evidence.inputs_changed and (evidence.exit_code != 0 or not _inputs_spoilt(evidence, spec)):
        yield f"its inputs were changed while it ran: {_few(evidence.inputs_changed)}"
    if evidence.undeclared and outcome is Outcome.SUCCEEDED:
        fate = "were kept" if spec.files.undeclared is Undeclared.KEEP else "were dropped"
        yield (
            f"wrote {_few(evidence.undeclared)}, which it does not declare and which {fate}; "
            f"add to rule {spec.rule}: {_declaration(evidence.undeclared)}"
        )
    if evidence.changed:
        yield (
            f"changed or deleted {_few(evidence.changed)}, which it does not declare: that was undone; "
            f'if it shall do so, add to rule {spec.rule}: output: update("{evidence.changed[0]}")'
        )
