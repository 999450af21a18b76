"""One attempt from its first directory to its verdict, in one single-threaded process that belongs to it alone.

:func:`supervise` tells the story. An attempt has three stages, each made from the one before: its process waits in a
sandbox (:class:`.prepared.PreparedAttempt`), its job runs (:class:`_RunningAttempt`), nothing of it is alive any more
(:class:`_EndedAttempt`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

from ..kernel import syscalls
from ..kernel.descriptors import is_readable
from ..kernel.failpoints import reached
from ..kernel.shortage import Patience
from ..record.attempt_dir import JobDirectory
from ..record.codec import TAIL_BYTES
from ..record.plain_files import read_end
from ..sandbox.cgroups.base import Counters, remove_patiently
from ..sandbox.fanotify import Reads
from ..sandbox.result import Result
from ..spec.errors import SandboxError
from ..spec.job import KeepScratch, LaunchSpec
from ..spec.outcome import judge, killed_for_memory
from ..spec.verdict import Cause, Evidence, Oom, OomScope, Outcome, Usage, Verdict
from ..staging.attempt_files import Disposal, WrittenFiles, disposal
from ..staging.collect import Collected
from ..staging.merge import ContestedError
from .event_loop import EventLoop
from .lifecycle import JobState
from .prepared import PreparedAttempt, Tools, prepare
from .process_group import Processes
from .recording import keep, not_started, unrecorded, write
from .refusals import cut_off, find
from .space import full_by, full_file_systems, ignored, ignored_in_scratch

_LAST_WALK_SECONDS = 0.5
_KERNEL_LOG_BYTES = 1 << 16


def supervise(spec: LaunchSpec, payload: bytes, tools: Tools, report: Callable[[Verdict], None]) -> None:
    """Run one attempt, record it, report its verdict, and clear up.

    Whatever it started is dead when it is reported; what is cleared up after that is an empty sandbox. A record that
    cannot be written is a note of the verdict or, before the start, its reason.
    """
    reached.begin(spec.rule)
    try:
        record = JobDirectory(spec)
    except OSError as error:
        report(unrecorded(spec, error))
        return
    with ExitStack() as stack:
        stack.callback(record.close)
        try:
            prepared, begin, reads = _start(spec, payload, tools, record, stack)
        except (OSError, SandboxError) as error:
            verdict = not_started(spec, tools, record, error)
            report(verdict)
            keep(record, spec, verdict)
            return
        running = _RunningAttempt(prepared, reads, begin)
        running.describe()  # while the job's first program is being loaded
        state = running.watch()
        running.end_everything()
        ended = running.examine(state)
        reached("looked through")
        ended, verdict = ended.conclude()
        record.mark("judged")
        verdict = ended.publish(ended.confirm(verdict))
        record.event("published")
        ended.leave_checkpoint(verdict)
        scratch_kept = ended.keep_scratch(verdict)
        fills = ended.may_fill_the_disk(verdict)
        if fills:
            ended.clear_up(verdict, scratch_kept=scratch_kept)
        verdict, recorded = write(record, spec, verdict), record.seconds()
        running.show_rest()
        reached("written")
        report(verdict)
        reached("reported")
        with suppress(OSError):
            record.reported(recorded)
        if not fills:
            ended.clear_up(verdict, scratch_kept=scratch_kept)
        keep(record, spec, verdict)
        reached("cleared up")


def _start(
    spec: LaunchSpec, payload: bytes, tools: Tools, record: JobDirectory, stack: ExitStack
) -> tuple[PreparedAttempt, float, Reads | None]:
    """Prepare and launch the attempt. If the host is short of something for a moment, it tries that again."""
    patience = Patience()
    while True:
        try:
            with ExitStack() as opened, ExitStack() as undo:
                prepared, begin = prepare(spec, tools, record, opened, undo), time.monotonic()
                reads = prepared.launch(payload, opened)
                undo.pop_all()
                stack.enter_context(opened.pop_all())
                return prepared, begin, reads
        except OSError as error:
            pause = patience.pause(error)
            if pause is None or is_readable(tools.control.fileno(), seconds=pause):  # it shall end
                raise
            record.event("shortage", why=str(error))


# -- second stage ----------------------------------------------------------------------------------------------------


class _RunningAttempt:
    """An attempt whose job runs."""

    def __init__(self, prepared: PreparedAttempt, reads: Reads | None, begin: float) -> None:
        """Watch a job that was started at ``begin``: time.monotonic()."""
        self._prepared = prepared
        self._begin = begin
        self._reads = reads
        self.loop = EventLoop(prepared, reads, begin)

    def describe(self) -> None:
        """Write what the job is. A full disk is no reason to end it."""
        try:
            inside = self._prepared.inside
            staging = {layer.root: layer.upper for layer in inside.layers}
            self._prepared.record.describe(inside.started.pid, staging)
        except OSError as error:
            self._prepared.problems.append(f"spec.json or command.sh could not be written: {error.strerror}")

    def watch(self) -> JobState:
        """Wait until the job has ended, and end it when it must not continue."""
        try:
            self.loop.run()
        except (OSError, SandboxError) as error:
            why = f"the supervisor failed while the job ran: {error}; the job was killed"
            return self.loop.state._replace(error=why)
        return self.loop.state

    def end_everything(self) -> None:
        """Kill what is alive, but not our own process that holds the sandbox, if it is the only one."""
        prepared = self._prepared
        if not prepared.processes.left_nothing():
            prepared.processes.end()
        prepared.record.event("all dead")

    def examine(self, state: JobState) -> _EndedAttempt:
        """Read streams and counters to their end, and see what the job has written."""
        prepared = self._prepared
        self._read_rest()
        said = prepared.processes.result()
        if said.nonsense:
            prepared.problems.append("it wrote to a pipe of Forge in its own process, which was ignored")
        counters = prepared.cgroup.counters() if prepared.cgroup is not None else Counters()
        if not counters.complete:
            prepared.problems.append("its counters could not be read, because its cgroup was gone or unreadable")
        error, read, frozen = state.error, None, None
        try:
            if self._reads is not None:
                self._reads.update()  # an event that waits holds its file open, and nothing could be frozen
            frozen = prepared.inside.freeze()
            files = prepared.written(failed=said.failed or error is not None)
            read = self._undeclared_reads(files)
        except OSError as failure:
            files = WrittenFiles(prepared.files, Collected())
            error = f"the files that the job wrote could not be read: {failure}"
        seconds = time.monotonic() - self._begin
        excess, whole = prepared.meter.finish(_LAST_WALK_SECONDS)
        if not whole:
            prepared.record.event("scratch not measured whole", seconds_allowed=_LAST_WALK_SECONDS)
        if error is not None or excess is not None:
            state = state._replace(error=error, excess=state.excess or excess)
        peak, own = prepared.meter.peak_bytes, prepared.tools.own_processes
        usage = prepared.processes.used.usage(counters, said, peak, own)
        evidence = _evidence(prepared, state, said, counters, files.found, read)
        return _EndedAttempt(prepared, self.loop, files, said, usage, seconds, evidence, frozen)

    def _read_rest(self) -> None:
        """Read the last of the streams; nothing writes to them any more."""
        prepared = self._prepared
        for stream in prepared.streams:
            stream.drain()
            stream.finish()
            if stream.left_out:
                prepared.record.event("stream capped", left_out_bytes=stream.left_out)
            if stream.problem is not None:
                prepared.problems.append(stream.problem)

    def _undeclared_reads(self, files: WrittenFiles) -> tuple[str, ...] | None:
        if self._reads is None:
            return None
        self._reads.update()
        if not self._reads.complete:
            self._prepared.problems.append("the list of undeclared reads is not complete: the kernel lost events")
        return files.undeclared_reads(self._reads.opened)

    def show_rest(self) -> None:
        """Bring the terminal up to date, after everything that matters is on disk."""
        for stream in self._prepared.streams:
            stream.show(wait=True)


def _evidence(
    prepared: PreparedAttempt,
    state: JobState,
    said: Result,
    counters: Counters,
    found: Collected,
    read: tuple[str, ...] | None,
) -> Evidence:
    """Put together the evidence for the verdict, when all processes are dead."""
    processes, named = prepared.processes, prepared.files.named
    exit_code, number = _exit(processes, said)
    excused = number is not None or state.timed_out or state.cancelled or counters.oom_kills
    return Evidence(
        exit_code=exit_code,
        signal=number,
        error=said.error,
        summary=said.summary,
        timed_out=state.timed_out,
        cancelled=state.cancelled,
        setup_error=said.setup_error,
        supervisor_error=state.error,
        oom_kills=counters.oom_kills,
        oom=_oom(prepared, counters) if counters.oom_kills else None,
        excess=state.excess,
        full_file=_full_file(prepared),
        pids_hits=counters.pids_hits,
        writers=state.writers,
        truncated=state.truncated,
        leftover=() if excused else processes.leftover,
        unkillable=processes.unkillable,
        problems=tuple(prepared.problems),
        missing=tuple(found.missing),
        rejected=tuple(found.rejected),
        undeclared=tuple(named(path) for path in found.undeclared.written()),
        directories=frozenset(named(move.place) for move in found.undeclared.moves if _is_directory(move.source)),
        deleted=tuple(named(path) for path in found.undeclared.deleted()),
        harms=tuple(harm._replace(path=named(harm.path)) for harm in found.undeclared.harms),
        left_out=tuple(named(path) for path in found.undeclared.left_out),
        left_in_tmp=_left_in_tmp(prepared) if exit_code == 0 else (),
        read=read,
        locked=tuple(named(path) for path in prepared.locked()),
        inputs_changed=prepared.files.inputs_changed(),
        stderr_tail=prepared.streams[1].tail(),
    )


def _is_directory(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _left_in_tmp(prepared: PreparedAttempt) -> tuple[tuple[str, int], ...]:
    spec, files = prepared.spec, prepared.spec.files
    if spec.keep_scratch is KeepScratch.ALWAYS:
        return ()
    seen = (*spec.exposed, *spec.carried, *files.layers, *files.mounts, *files.visible, *files.writable, *files.caches)
    return prepared.inside.scratch.left((*seen, files.home or ""))


def _exit(processes: Processes, said: Result) -> tuple[int | None, int | None]:
    """Return exit code and signal: what the process says or, if it became another program, what the kernel says."""
    status = processes.status
    ended_itself = processes.inside.as_init and said.ended  # and was then killed as the last of its namespace
    if status is not None and os.WIFSIGNALED(status) and not ended_itself:
        return None, os.WTERMSIG(status)
    if said.exit_code == 0 and status is not None and os.WIFEXITED(status) and os.WEXITSTATUS(status):
        return os.WEXITSTATUS(status), None  # the kernel knows better
    if said.signal is not None:
        return None, said.signal
    if said.ended or status is None:
        return said.exit_code, None
    return os.waitstatus_to_exitcode(status), None


def _oom(prepared: PreparedAttempt, counters: Counters) -> Oom:
    """Return whose limit it was and which process died: from the kernel's log, else from the counters."""
    group, spec = prepared.tools.group, prepared.spec
    try:
        log = syscalls.kernel_log(_KERNEL_LOG_BYTES)
    except OSError:
        log = ""
    scope = OomScope.RUN if group is not None and group.memory_exhausted() else OomScope.OUTSIDE
    found = killed_for_memory(log, os.path.basename(spec.scratch_base), spec.name)
    return found or Oom(OomScope.JOB if counters.memory_exhausted else scope)


def _full_file(prepared: PreparedAttempt) -> str | None:
    """Return a file that RLIMIT_FSIZE has stopped: programs that ignore SIGXFSZ only get an error."""
    limit = prepared.spec.limits.file_bytes
    return None if limit is None else prepared.files.file_of_size(limit) or prepared.meter.full_file


# -- third stage -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _EndedAttempt:
    """An attempt of which nothing is alive but, perhaps, our own process that holds its sandbox."""

    prepared: PreparedAttempt
    loop: EventLoop
    files: WrittenFiles
    said: Result
    usage: Usage
    seconds: float
    evidence: Evidence
    frozen: bool | None  # see Inside.freeze()

    def conclude(self) -> tuple[_EndedAttempt, Verdict]:
        """Judge, and check the outputs of a success, which may cost it its success."""
        ended, verdict = self, self._judge(self.evidence)
        if verdict.outcome is Outcome.FAILED and verdict.cause not in (Cause.SETUP, Cause.SUPERVISOR):
            ended = self._with_refusals()
            return ended, ended._judge(ended.evidence)
        if not verdict.ok:
            return ended, verdict
        layers = [layer.upper for layer in self.prepared.inside.layers]
        full = ignored(self._staged_at(), layers, (move.source for move in self.files.found.outputs))
        if full := full or ignored_in_scratch(self.prepared.inside.scratch.root):
            ended = replace(self, evidence=replace(self.evidence, refusals=full))
            return ended, ended._judge(ended.evidence)
        if held := self.files.held(self.frozen):
            rejected = tuple(f"{name} is open for writing in another job, to which it was handed" for name in held)
            ended = replace(self, evidence=replace(self.evidence, rejected=rejected))
            return ended, ended._judge(ended.evidence)
        found, evidence = self.files.inspect(self.seconds), self.evidence
        if found.rejected or found.problems:
            rejected, problems = (*evidence.rejected, *found.rejected), (*evidence.problems, *found.problems)
            ended = replace(self, evidence=replace(evidence, rejected=rejected, problems=problems))
            verdict = ended._judge(ended.evidence)
        verdict = replace(verdict, outputs=found.outputs)
        return ended, self._with_benchmark(verdict) if verdict.ok else verdict

    def _with_refusals(self) -> _EndedAttempt:
        """Look for what the sandbox may have refused to the failed job, in its streams and logs."""
        prepared, evidence = self.prepared, self.evidence
        spec, files = prepared.spec, prepared.files
        logs = "\n".join(filter(None, (read_end(files.staged(path), TAIL_BYTES, straight=True) for path in spec.logs)))
        said = (prepared.streams[0].tail(), logs, evidence.error, evidence.summary, evidence.stderr_tail)
        text, removed = "\n".join(filter(None, said)), prepared.tools.standby.removed
        places = (*self._staged_at(), prepared.inside.scratch.root)
        try:
            found = find(spec, text, evidence.exit_code, removed, places)
        except (OSError, ValueError) as error:  # whatever names are in the messages, the verdict must not suffer
            prepared.record.event("refusals not found out", why=str(error))
            found = ()
        cut = evidence.full_file if evidence.full_file is not None else cut_off(spec, text)
        return replace(self, evidence=replace(evidence, log_tail=logs, refusals=found, full_file=cut))

    def _staged_at(self) -> tuple[str, ...]:
        return (*(layer.directory for layer in self.prepared.inside.layers), self.prepared.spec.workdir)

    def _with_benchmark(self, verdict: Verdict) -> Verdict:
        """Put the kernel's figures into the benchmark file, where Snakemake's were only polled."""
        path = self.prepared.spec.benchmark
        if path is None:
            return verdict
        try:
            self.prepared.processes.used.improve_benchmark(self.prepared.files.staged(path), self.said)
        except OSError as error:
            return replace(verdict, notes=(*verdict.notes, f"{path} has only polled figures: {error.strerror}"))
        return verdict

    def confirm(self, verdict: Verdict) -> Verdict:
        """Ask whoever knows more than this supervisor."""
        try:
            return self.prepared.tools.confirm(verdict)
        except OSError as error:
            why = f"it could not be found out whether it may publish, so nothing was: {error}"
            return replace(self._failed(why, error), outcome=Outcome.LOST)

    def publish(self, verdict: Verdict) -> Verdict:
        """Do with the files what the verdict means for them."""
        keep_incomplete = self.prepared.spec.files.keep_incomplete
        decided = disposal(verdict.outcome, detached=self.loop.is_detached(), keep_incomplete=keep_incomplete)
        try:
            problems = self.files.carry_out(decided)
        except ContestedError as error:
            named = self.prepared.files.named
            harms = tuple(harm._replace(path=named(harm.path)) for harm in error.harms)
            verdict = self._judge(replace(self.evidence, harms=harms))
            return replace(verdict, notes=(*verdict.notes, *self.files.keep_undeclared()))
        except OSError as error:
            what = "staged for the next run" if decided is Disposal.STAGE else "published, and none was"
            return self._failed(f"its outputs could not be {what}: {error}", error)
        if decided is Disposal.STAGE:
            self.prepared.record.event("staged")
            return replace(verdict, staged=True)
        return replace(verdict, notes=(*verdict.notes, *problems)) if problems else verdict

    def _judge(self, evidence: Evidence) -> Verdict:
        return judge(evidence, self.prepared.spec, self.usage, self.prepared.record.started, self.seconds)

    def _failed(self, why: str, error: OSError) -> Verdict:
        full = full_by(error, self.prepared.spec.workdir)
        return self._judge(replace(self.evidence, supervisor_error=why, refusals=full or self.evidence.refusals))

    def leave_checkpoint(self, verdict: Verdict) -> None:
        """Remove the job's checkpoints if nobody needs them any more; a failure to do so does not fail the job."""
        if self.prepared.checkpoint is None:
            return
        try:
            self.prepared.checkpoint.end(succeeded=verdict.ok)
        except OSError as error:
            self.prepared.record.event("residue", what=f"its checkpoint directory could not be removed: {error}")

    def keep_scratch(self, verdict: Verdict) -> bool:
        """Put the scratch aside where the settings say so; return whether it was."""
        keep, scratch, record = self.prepared.spec.keep_scratch, self.prepared.inside.scratch, self.prepared.record
        if keep is not KeepScratch.ALWAYS and (keep is not KeepScratch.FAILED or verdict.ok):
            return False
        if verdict.staged and scratch.slot in self.files.kept_directories():
            return False  # outputs are in it
        try:
            record.event("scratch kept", directory=scratch.keep())
        except OSError as error:
            record.event("residue", what=f"the scratch could not be kept: {error}")
            return False
        return True

    def may_fill_the_disk(self, verdict: Verdict) -> bool:
        """Whether there may be no space for the record until the files of a failed job are gone."""
        if verdict.ok or verdict.staged:
            return False
        return verdict.outcome is Outcome.DISK or any(full_file_systems((self.prepared.spec.job_dir,)))

    def clear_up(self, verdict: Verdict, *, scratch_kept: bool) -> None:
        """Remove cgroup and scratch; a cgroup that cannot be removed is noted, and is no reason to fail the job."""
        self.prepared.processes.end()
        prepared, inside = self.prepared, self.prepared.inside
        if prepared.detached is not None:
            prepared.detached.end(staged=verdict.staged)
        if prepared.cgroup is not None and not remove_patiently(prepared.cgroup.remove):
            with suppress(OSError):
                prepared.record.append_event("residue", what="cgroup")
        kept = self.files.kept_directories() if verdict.staged else ()
        scratch = None if scratch_kept else inside.scratch
        reusable = self.frozen is not False
        prepared.tools.standby.clear_up(scratch, inside.layers, prepared.spec.exposed, kept, reusable=reusable)
