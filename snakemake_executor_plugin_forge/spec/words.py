"""Every sentence about the end of an attempt, made last, from values. Pure: nothing is decided by what is said here."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from .errors import ResourceError, UsageError
from .job import LaunchSpec, Undeclared
from .printable import LONGEST_NAME, SHOWN, few, python_string
from .refusal_words import allowed_by, full, refused
from .units import show_bytes, show_seconds
from .verdict import (
    Cause,
    Decision,
    Evidence,
    Harm,
    HarmKind,
    OomScope,
    Order,
    Outcome,
    Usage,
    Words,
    Writer,
)
from .wildcards import can_be_declared, lacking, with_wildcards

SLURM_ENDED = "Slurm ended the job (SIGTERM: scancel, preemption, or the time limit of the Slurm job)"
"""The words of the order that the node's part of Forge gives when Slurm asks for the end of a job."""

# Notes, with a place for a detail.
PUBLISHED_TO_THE_END = "it was ended while it published its outputs, and all of them are in their places: {}"
HALF_PUBLISHED = "what it had begun to publish is not whole: {}; the next run tries it again"
UNRECORDED = "its record could not be written: {}"
SHORTENED = "this is shortened: verdict.json has all of it"

_MOST_DECLARED = 30  # outputs in a line to paste, which has all or none
_MENDED_BY_ALLOWING = (HarmKind.CHANGED, HarmKind.DELETED, HarmKind.REPLACED)
_MENDED_BY_SHARING = {HarmKind.LOCKED, HarmKind.LINKED, HarmKind.BEGUN}
_LINKS = {
    HarmKind.LEADS_OUT: (
        "link to the files in it; or make it an output of rule {0}; or, if no output goes through it, add to rule {0}: "
        'resources: forge_undeclared="allow"'
    ),
    HarmKind.CARRIES: "remove the link from rule {0}; if outputs shall be elsewhere, make it yourself before the run",
}
_RUN_AGAIN = "run it again when nothing else changes it"
_SHARE_FILES = 'add resources: forge_files="open"'
_OTHER_NAMES = "give the jobs of rule {} different paths"
_RAISE = {
    "mem_mb": "raise the rule's mem_mb",
    "runtime": "raise the rule's runtime (minutes) if the job needs longer",
    "disk_mb": "raise the rule's disk_mb if the job needs more",
}
_STDERR = "see its stderr: snakemake-forge logs {spec.rule}"
_FAILED = {
    Cause.SETUP: (
        "the sandbox could not be set up, nothing was run: {evidence.setup_error}",
        "mend that, and run again",
    ),
    Cause.SUPERVISOR: ("{evidence.supervisor_error}", "run it again; if it fails again, report it with the record"),
    Cause.SIGNAL: ("killed by {decision.signal}", _STDERR),
    Cause.BROKEN_PIPE: (
        "killed by SIGPIPE: a program wrote to one that had ended already (head, grep -q), and pipefail counts that",
        "have the last program read all of it (sed -n 1,10p for head), or add || true to that line of rule {spec.rule}",
    ),
    Cause.EXIT_CODE: ("exit code {evidence.exit_code}", _STDERR),
    Cause.EXCEPTION: ("{evidence.summary}", _STDERR),
    Cause.ERROR: ("{error}", _STDERR),
    Cause.COMMAND_NOT_FOUND: (
        "exit code 127: the command {decision.command} was not found",
        "install it, or give the rule an environment that has it",
    ),
    Cause.HEAP_FULL: (
        "exit code {evidence.exit_code}: Java's heap was full (java.lang.OutOfMemoryError), below the job's own limit",
        "raise its -Xmx, and mem_mb of rule {spec.rule} above that",
    ),
    Cause.REFUSED: ("{ended}: the sandbox {refused}", "{allow}"),
    Cause.FILE_SYSTEM_FULL: (
        "{ended}: the disk is full, there is {full}",
        "free space there, or move the working directory (--directory) or the scratch (--forge-scratch-dir)",
    ),
    Cause.INPUTS_CHANGED: (
        "{inputs} changed while the job ran, so its outputs may mix two versions; nothing was published",
        "run it again when nothing writes to the inputs any more",
    ),
    Cause.REJECTED: (
        "an output cannot be published, so none was: {rejected}",
        "correct the output or its declaration in rule {spec.rule}",
    ),
    Cause.STILL_WRITTEN: (
        "after its command had ended with 0, {writers}; what they wrote is not whole, so nothing was published",
        "end the command of rule {spec.rule} with wait, or with kill $! if they serve for nothing more",
    ),
    Cause.MISSING: (
        "exit code 0, but it did not write {missing}, so nothing was published.{wrote}",
        "correct the command or the output of rule {spec.rule}",
    ),
}
_KILLED = "lost: its supervisor was killed from outside; whatever it had started is dead, "
_JOINED = (Cause.COMMAND_NOT_FOUND, Cause.HEAP_FULL, Cause.REFUSED, Cause.FILE_SYSTEM_FULL)
_UNSEEN = {
    Cause.SUPERVISOR_KILLED: f"{_KILLED}run it again",
    Cause.KILLED_WHILE_PUBLISHING: f"{_KILLED}it was publishing its outputs, and all of them are in their places",
    Cause.SUPERVISOR_FAILED: "lost: its supervisor failed: {}",
    Cause.REAPER_KILLED: "lost: its supervisor and the one that cleared up after it were killed",
    Cause.NURSERY_KILLED: "lost: {}",
    Cause.START_REFUSED: "lost: it could not be started: {}",
    Cause.ADOPTION_FAILED: "lost: adopting it failed: {}",
    Cause.SUPERSEDED: "lost: Slurm ran the job again as another copy, which counts",
    Cause.FENCED: "lost: this copy may not publish what it has written: {}; by itself it was: {}",
    Cause.UNKNOWN_TO_SLURM: "lost: Slurm does not know job {} any more, and it has left no verdict",
    Cause.PROCESS_KILLED: "lost: its process in Slurm job {} was killed, and has left no verdict",
    Cause.NOT_BEGUN: "lost: Slurm job {} could not begin it, and nothing of it was run{}",
    Cause.UNPUBLISHED: "its outputs, staged by run {}, could not be published, and none was: {}",
    Cause.NEVER_STARTED: "cancelled, nothing of it was run: {}",
    Cause.STILL_WAITING: "cancelled, nothing of it was run: {}, while it waited for {}",
    Cause.SCANCELLED: "cancelled: {}",
    Cause.SBATCH_REFUSED: "{}; nothing of it was run",
}


def unseen(cause: Cause, *details: object) -> Words:
    """Say what became of an attempt whose end no supervisor has seen.

    Args:
        details: what the sentence about the cause leaves open.
    """
    return Words(
        _UNSEEN[cause].format(*details),
        "run it again" if cause in (Cause.UNKNOWN_TO_SLURM, Cause.PROCESS_KILLED, Cause.NOT_BEGUN) else "",
    )


def without_resources(error: UsageError) -> Words:
    """Say why nothing of a job was run."""
    if isinstance(error, ResourceError):
        return Words(f"nothing of it was run: {error.happened}", error.remedy)
    return Words(f"nothing of it was run: {error}")


def seen(decision: Decision, evidence: Evidence, spec: LaunchSpec, usage: Usage, seconds: float) -> Words:
    """Say how an attempt ended, from a supervisor's evidence."""
    limits = spec.limits
    match decision.outcome:
        case Outcome.SUCCEEDED:
            return Words(f"succeeded in {show_seconds(seconds)}")
        case Outcome.OOM:
            return _memory(decision, evidence, spec, usage)
        case Outcome.TIMEOUT:
            return _limited(f"timed out after {show_seconds(limits.wall_seconds or 0)}", spec, "runtime")
        case Outcome.PIDS:
            hits = f"hit its limit of {limits.pids} processes and threads {evidence.pids_hits} times"
            return Words(hits, f"raise {spec.limits_from.get('pids', '--forge-pids')} if it needs more")
        case Outcome.DISK if decision.cause is None:
            return _limited(_disk(evidence, show_bytes(limits.disk_bytes or 0)), spec, "disk_mb")
        case Outcome.CANCELLED:
            return cancelled(evidence.cancelled, seconds)
        case Outcome.FAILED | Outcome.DISK:
            return _failure(decision, evidence, spec)
        case Outcome.VIOLATION:
            return _violation(evidence, spec)
        case Outcome.LOST:
            raise AssertionError("no evidence makes an attempt lost")


def _violation(evidence: Evidence, spec: LaunchSpec) -> Words:
    if spec.files.undeclared is Undeclared.FAIL:
        names = (*evidence.undeclared, *evidence.deleted, *(harm.path for harm in evidence.harms))
        declared = (
            _declaration(names, spec.wildcards, directories=evidence.directories)
            or 'resources: forge_undeclared="keep"'
        )
        return Words(
            f"wrote outside its outputs: {few(names)} (undeclared=fail); nothing was published",
            f"add {declared} to rule {spec.rule}, or set --forge-undeclared keep",
        )
    if any(harm.owner for harm in evidence.harms):
        return _others(evidence.harms, spec)
    done = [harm for harm in evidence.harms if harm.kind in _MENDED_BY_ALLOWING]
    if steering := [harm.path for harm in evidence.harms if harm.kind is HarmKind.STEERS]:
        line = _declaration(steering, spec.wildcards) or 'resources: forge_undeclared="allow"'
        return Words(
            f"wrote {few(steering)}, which would steer programs outside of its sandbox; nothing was published",
            f"if rule {spec.rule} is to do that, add to it: {line}",
        )
    if links := [harm for harm in evidence.harms if harm.kind in _LINKS]:
        kind = links[0].kind
        return Words(
            f"{kind}: {few([harm.path for harm in links if harm.kind is kind])}; nothing was published",
            _LINKS[kind].format(spec.rule),
        )
    if not done:
        cannot = [f"{harm.path} was {harm.kind}" for harm in evidence.harms]
        kinds = {harm.kind for harm in evidence.harms}
        remedy = _RUN_AGAIN if kinds == {HarmKind.CONTESTED} else _OTHER_NAMES.format(spec.rule)
        remedy = f"{_SHARE_FILES} to rule {spec.rule}" if kinds & _MENDED_BY_SHARING else remedy
        return Words(f"{few(cannot, '; ')}; nothing was published", remedy)
    harms = _done(done)
    changed = [harm.path for harm in done if harm.kind is HarmKind.CHANGED]
    update = _declaration(changed, spec.wildcards, "update({})") if len(changed) == len(done) else ""
    allow = 'resources: forge_undeclared="allow"'
    lines = f"{update}, or {allow}" if update else allow
    it = "it" if len(done) == 1 else "them"
    return Words(
        f"{harms}; nothing was published, and Forge left {it} as before",
        f"if rule {spec.rule} is to do that, add to it: {lines}",
    )


def _done(harms: Sequence[Harm]) -> str:
    """Say what a job has done to files of nobody's."""
    kinds = dict.fromkeys(harm.kind for harm in harms)
    said = (f"{kind} {few([harm.path for harm in harms if harm.kind is kind])}" for kind in kinds)
    return f"{' and '.join(said)}, which no job of this workflow has made"


def _others(harms: Sequence[Harm], spec: LaunchSpec) -> Words:
    """Say what a job has done to files that other rules declare."""
    owners = dict.fromkeys((harm.kind, harm.owner) for harm in harms if harm.owner)
    groups = {(k, o): [h.path for h in harms if (h.kind, h.owner) == (k, o)] for k, o in owners}
    said = [f"{kind} {few(paths)}, {owner.what} of rule {owner.rule}" for (kind, owner), paths in groups.items()]
    nobodys = [harm for harm in harms if not harm.owner and harm.kind in _MENDED_BY_ALLOWING]
    done = few(said, "; ") + (f"; {_done(nobodys)}" if nobodys else "")
    return Words(
        f"{done}; nothing was published, and Forge left it as before",
        f"have rule {spec.rule} write to other paths; if it is to change outputs of other rules, {_SHARE_FILES} to it",
    )


def cancelled(order: Order | None, seconds: float) -> Words:
    """Say that somebody cancelled an attempt, and who."""
    by = order.words if order is not None else ""
    return Words(f"cancelled after {show_seconds(seconds)}: {by}", "run Snakemake again", joined=False)


def _memory(decision: Decision, evidence: Evidence, spec: LaunchSpec, usage: Usage) -> Words:
    limit, used = spec.limits.memory_bytes, show_bytes(usage.memory_peak_bytes)
    exited = _although(exited_well=evidence.exit_code == 0)
    ending = f"{_in(decision.process)}{exited}"
    if spec.isolation.limits == "soft":
        whose = "than the run may use (--forge-run-memory)" if limit is None else f"than {show_bytes(limit)}"
        what = f"out of memory: more {whose} when Forge looked, {used}{exited}"
        what = f"{what} (a soft limit: polled, not enforced by the kernel)"
        return Words(what, "give the job less to do at a time") if limit is None else _limited(what, spec, "mem_mb")
    if decision.scope is OomScope.RUN:
        return Words(
            f"out of memory: the jobs of this run together reached its limit (--forge-run-memory){ending}",
            "give the rule a mem_mb so that fewer jobs run at a time",
        )
    if decision.scope is OomScope.OUTSIDE:
        where = (evidence.oom.where if evidence.oom is not None else None) or "the host or a cgroup around this run"
        had = f"out of memory: {where} ran out of it; the job had {used}{ending}"
        return Words(had, "lower --forge-run-memory, or leave this host more memory")
    return _limited(f"out of memory: {used} of {show_bytes(limit or 0)}", spec, "mem_mb", ending)


def _limited(what: str, spec: LaunchSpec, name: str, ending: str = "") -> Words:
    """Say that a job reached a limit; where that comes from, and so what to raise, if it is not the rule's own."""
    if where := spec.limits_from.get(name):
        return Words(f"{what} (from {where}){ending}", f"raise {where}, or give rule {spec.rule} a {name} of its own")
    origin = f" (from --default-resources {name})" if name in spec.by_default else ""
    return Words(f"{what}{origin}{ending}", _RAISE[name])


def _disk(evidence: Evidence, limit: str) -> str:
    if (excess := evidence.excess) is None or evidence.full_file:
        return f"a file{f' ({evidence.full_file})' if evidence.full_file else ''} grew beyond the {limit} of disk_mb"
    total, largest = show_bytes(excess.total_bytes), show_bytes(excess.name_bytes)
    return f"its files took {total} of {limit} (disk_mb), {largest} in {excess.name}"


def _failure(decision: Decision, evidence: Evidence, spec: LaunchSpec) -> Words:
    cause = decision.cause or Cause.ERROR
    several = len(evidence.inputs_changed) > 1
    pieces = {
        "inputs": f"{'inputs' if several else 'input'} {few(evidence.inputs_changed)} {'were' if several else 'was'}",
        "rejected": few(evidence.rejected, "; "),
        "missing": few(evidence.missing),
        "writers": _writing(evidence.writers, "did not stop writing"),
        "wrote": f" It did write {few(evidence.undeclared)}." if evidence.undeclared else "",
        "error": ((evidence.error or "").strip() or "no result").splitlines()[0].rstrip(":"),
    }
    if evidence.refusals:
        first = evidence.refusals[0]
        killed = f"killed by {decision.signal}" if decision.signal else ""
        pieces["ended"] = evidence.summary or killed or _ended(evidence) or pieces["error"]
        pieces["refused"], pieces["allow"] = refused(first, spec), allowed_by(first, spec)
        pieces["full"] = full(first)
    happened, remedy = (
        text.format(decision=decision, evidence=evidence, spec=spec, **pieces) for text in _FAILED[cause]
    )
    return Words(happened, remedy, joined=cause in _JOINED)


def _ended(evidence: Evidence) -> str:
    if evidence.setup_error is not None:
        return f"nothing of it was run: {evidence.setup_error}"
    if evidence.supervisor_error is not None:
        return evidence.supervisor_error
    if evidence.exit_code == 0 and evidence.missing:
        return f"exit code 0, but it did not write {few(evidence.missing)}"
    return "" if evidence.exit_code is None else f"exit code {evidence.exit_code}"


def notes(outcome: Outcome, evidence: Evidence, spec: LaunchSpec, *, inputs_spoilt: bool) -> Iterator[str]:
    """Say what was odd and no failure.

    Args:
        inputs_spoilt: whether a change of the inputs makes the attempt fail.
    """
    if evidence.writers and not evidence.truncated:
        yield (
            f"when its command had ended, {_writing(evidence.writers, 'still had open')}; Forge ended them. "
            "What they would have written later is missing: end the command with wait, or with kill $!"
        )
    if evidence.leftover:
        shown = ", ".join(evidence.leftover[:SHOWN]) + (", …" if len(evidence.leftover) > SHOWN else "")
        yield f"left {len(evidence.leftover)} process(es) running, which were killed: {shown}"
    if evidence.pids_hits and outcome is not Outcome.PIDS:
        yield f"hit its limit of {spec.limits.pids} processes {evidence.pids_hits} times"
    if evidence.unkillable:
        shown = ", ".join(evidence.unkillable[:SHOWN])
        yield f"{len(evidence.unkillable)} process(es) did not die when they were killed: {shown}"
    if evidence.inputs_changed and (evidence.exit_code != 0 or not inputs_spoilt):
        yield f"its inputs were changed while it ran: {few(evidence.inputs_changed)}"
    if outcome is not Outcome.VIOLATION:
        yield from _undeclared(outcome, evidence, spec)
    if evidence.left_in_tmp and outcome is Outcome.SUCCEEDED:
        yield _lost(evidence.left_in_tmp)
    if evidence.locked:
        yield (
            f"locked {few(evidence.locked)}, but each job sees a copy of its own there, so no other job waits for it; "
            f"{_SHARE_FILES} to rule {spec.rule} (or resources: lock=1, and start with --resources lock=1)"
        )
    if evidence.refusals and evidence.exit_code == 0 and not evidence.missing and outcome is not Outcome.DISK:
        first = evidence.refusals[0]
        yield f"the sandbox {refused(first, spec)}; {allowed_by(first, spec)}"
    yield from evidence.problems


def _lost(left: Sequence[tuple[str, int]]) -> str:
    names = [f"{path} ({show_bytes(size)})" if size else path for path, size in left]
    return (
        f"left {few(names)}, which went with its private /tmp; "
        "what other jobs need must be an output, with temp() if only they need it"
    )


def _undeclared(outcome: Outcome, evidence: Evidence, spec: LaunchSpec) -> Iterator[str]:
    """Say what became of what the rule does not declare."""
    undone = (*evidence.deleted, *(harm.path for harm in evidence.harms))
    if outcome is not Outcome.SUCCEEDED:
        if undone:
            yield f"changed or deleted {few(undone)}; Forge left that as before"
        return
    dropped = spec.files.undeclared is Undeclared.DISCARD
    if evidence.undeclared:
        fate = "Forge dropped" if dropped else "Forge kept"
        declared = _declaration(evidence.undeclared, spec.wildcards, directories=evidence.directories)
        add = f"; add to rule {spec.rule}: {declared}" if declared else ""
        yield f"wrote {few(evidence.undeclared)}, which it does not declare and which {fate}{add}"
    if undone and dropped:
        yield f"changed or deleted {few(undone)}, which it does not declare: dropped (undeclared=discard)"
    elif undone:
        allowed = spec.files.undeclared is Undeclared.ALLOW  # also what no job has made
        why = " (undeclared=allow)" if allowed else ", which jobs of this workflow had made"
        yield f"deleted {few(undone)}{why}"
    if evidence.left_out:
        yield f"{few(evidence.left_out)} cannot be kept, and was left out"


def kept(what: str, directory: str, places: Sequence[str], left_out: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    """Say what was kept of a failed job, under numbers in its job directory, and what was not."""
    numbered = [f"{number} is {place}" for number, place in enumerate(places, 1)]
    said = [f"{what} is kept in {directory}: {few(numbered)}"] if places else []
    if left_out:
        largest = [f"{place} ({show_bytes(size)})" for place, size in left_out]
        said.append(f"{what} was too much to keep all of it: dropped were {few(largest)}")
    return tuple(said)


def unsynced(directory: str, error: OSError) -> str:
    """Say that what was published may be lost if the host loses its power now."""
    return f"its outputs are in their places, but {directory} could not be synced to the disk: {error.strerror}"


def supplement(reason: str, detail: str) -> str:
    """Add to a reason a fact that the supervisor could not know."""
    return f"{reason} ({detail})"


def slurm_time_limit(limit_seconds: float, spec: LaunchSpec) -> Words:
    """Say that the Slurm job reached its time limit."""
    happened = f"timed out after {show_seconds(limit_seconds)}, the time limit of the Slurm job"
    return _limited(happened, spec, "runtime")


def slurm_memory_limit(limit_bytes: int | None, process: str | None, *, exited_well: bool) -> Words:
    """Say that the Slurm job reached its memory limit."""
    limit = f" of {show_bytes(limit_bytes)}" if limit_bytes is not None else ""
    ending = f"{_in(process)}{_although(exited_well=exited_well)}"
    return Words(f"out of memory: the Slurm job reached its memory limit{limit}{ending}", _RAISE["mem_mb"])


def slurm_state(
    outcome: Outcome, meaning: str, remedy: str, job: str = "", script: tuple[str, str] | None = None
) -> Words:
    """Say what Slurm says of a job.

    Args:
        job: the state and the number of the job, if the sentence shall name them.
        script: the last line that the batch script wrote, and its file.
    """
    said = f"; the batch script said: {script[0]} ({script[1]})" if script is not None else ""
    return Words(f"{outcome}: Slurm: {meaning}{f' ({job})' if job else ''}{said}", remedy)


def _in(process: str | None) -> str:
    return f", in {process}" if process else ""


def _although(*, exited_well: bool) -> str:
    return ", although the command exited with 0" if exited_well else ""


def _writing(writers: Sequence[Writer], did: str) -> str:
    return few([f"the process {writer.process} {did} {writer.file}" for writer in writers])


def _declaration(
    names: Sequence[str], wildcards: Mapping[str, str], form: str = "{}", directories: Collection[str] = ()
) -> str:
    """Return the text to paste into a rule; "" if no output of the rule can have such a name, or there are too many.

    Args:
        form: the function of Snakemake that is around each name.
        directories: those that are directories.
    """
    fitting = [name for name in names if can_be_declared(name) and len(name) <= LONGEST_NAME]
    lines: dict[str, None] = {}
    for name in fitting:
        if not lacking(name, wildcards):
            pattern = python_string(with_wildcards(name, wildcards) if wildcards else name)
            lines[f"directory({pattern})" if name in directories else form.format(pattern)] = None
    return f"output: {', '.join(lines)}" if 0 < len(lines) <= _MOST_DECLARED else ""
