"""One attempt from its first directory to its verdict, in one single-threaded process that belongs to it alone.

The order of events is that of :func:`supervise`; everything before it is the steps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

from .alone import Solitude, solitude
from .delivery import Delivery
from .errors import AuditUnavailable, SandboxError
from .faults import reached
from .judge import judge, killed_for_memory
from .measurements import Measurements, number_or_none
from .model import (
    Evidence,
    KeepScratch,
    LaunchSpec,
    Oom,
    OomScope,
    Outcome,
    Usage,
    Verdict,
)
from .processes import Course, Processes
from .reads import Reads
from .record.jobdir import JobDirectory, now
from .record.jsonfile import to_disk
from .record.streams import Stream
from .sandbox import checkpoints, syscalls
from .sandbox.audit import Audit
from .sandbox.cgroup import JobCgroup, RunCgroup, remove_patiently
from .sandbox.disk import Meter
from .sandbox.inside import Inside, Standby
from .sandbox.privileges import Bounds
from .sandbox.scratch import Scratch, Slots
from .staged import entry_path
from .watch import Control, Watch

_LAST_WALK_SECONDS = 0.5
_KERNEL_LOG_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Tools:
    """What a supervisor has for all of its attempts."""

    group: RunCgroup | None
    slots: Slots
    standby: Standby
    control: Control
    processes_beside: int | None = None  # see backends.pool.Enclosure
    settle: Callable[[Verdict], Verdict] | None = None
    """Has the last word on a verdict, right before anything is published; nothing of one that it calls lost is."""


def supervise(spec: LaunchSpec, payload: bytes, tools: Tools, report: Callable[[Verdict], None]) -> None:
    """Run one attempt, record it, report its verdict, and clear up.

    Whatever it started is dead when it is reported; what is cleared up after that is an empty sandbox. A record that
    cannot be written is a note of the verdict or, before the start, its reason.
    """
    reached.begin(spec.rule)
    try:
        record = JobDirectory(spec)
    except OSError as error:
        report(_unrecorded(spec, error))
        return
    with ExitStack() as stack:
        stack.callback(record.close)
        attempt = _Attempt(spec, tools, record, stack)
        try:
            attempt.prepare()
            attempt.launch(payload)
            attempt.describe()  # while the job's first program is being loaded
            attempt.watch()
        except (OSError, SandboxError) as error:
            attempt.fail(error)
        if not attempt.left_nothing():
            attempt.end_everything()
        attempt.read_rest()
        attempt.look_through()
        reached("looked through")
        verdict = attempt.settle(attempt.conclude())
        attempt.look_up()
        verdict = attempt.publish(verdict)
        reached("published")
        attempt.leave_checkpoint(verdict)
        attempt.keep_scratch(verdict)
        verdict = attempt.write(verdict)
        attempt.show_rest()
        reached("written")
        report(verdict)
        reached("reported")
        attempt.end_everything()
        attempt.clear_up(verdict)
        attempt.keep_record(verdict)
        reached("cleared up")


class _Attempt:
    """The state of one attempt; its methods are the steps of :func:`supervise`, in their order."""

    def __init__(
        self,
        spec: LaunchSpec,
        tools: Tools,
        record: JobDirectory,
        stack: ExitStack,
    ) -> None:
        self._spec = spec
        self._tools = tools
        self._group = tools.group
        self._record = record
        self._stack = stack
        self._cgroup: JobCgroup | None = None
        self._scratch: Scratch | None = None
        self._streams: tuple[Stream, Stream] | None = None
        self._inside: Inside | None = None
        self._used = Measurements()
        self._files = Delivery(spec)
        self._course = Course()
        self._processes: Processes | None = None
        self._watch: Watch | None = None
        self._reads: Reads | None = None
        self._read: tuple[str, ...] | None = None
        self._meter: Meter | None = None
        self._checkpoint: checkpoints.Checkpoint | None = None
        self._solitude: Solitude | None = None
        self._problems: list[str] = []
        self._launched = False
        self._setup_error: str | None = None
        self._supervisor_error: str | None = None
        self._begin = time.monotonic()

    # -- before ---------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """cgroup, scratch and streams."""
        spec = self._spec
        if self._group is not None:
            limits = spec.limits
            if limits.pids is not None:
                limits = replace(limits, pids=limits.pids + self._own_processes())
            self._cgroup = self._group.create_job(spec.name, limits, spec.cpu_mode)
        self._take_checkpoint()
        self._inside = self._tools.standby.take(spec)
        self._stack.callback(self._inside.close)
        polled = self._group is not None and self._group.version == "soft"
        self._processes = Processes(self._inside, self._cgroup, self._record, self._used, self._course, polled=polled)
        self._scratch = self._inside.scratch
        self._scratch.begin(spec.name)
        staged = tuple((layer.upper, layer.root) for layer in self._inside.layers)
        self._meter = self._scratch.meter(spec.limits.disk_bytes, staged)
        self._files.begin(self._inside)
        self._solitude = solitude(spec)
        if self._solitude is not None:
            self._stack.callback(self._solitude.close)
        record, inside = self._record, self._inside
        cap = spec.stream_bytes
        self._streams = (Stream(inside.stdout, record.stdout, 1, cap), Stream(inside.stderr, record.stderr, 2, cap))
        tools, alone = self._tools, self._solitude
        self._watch = Watch(spec, tools.control, tools.standby, self._processes, self._meter, alone)
        self._record.event("prepared")

    def _take_checkpoint(self) -> None:
        """Have the directory for its own checkpoints to itself."""
        self._checkpoint = checkpoints.take(self._spec)
        if self._checkpoint is None:
            return
        self._stack.callback(self._checkpoint.close)
        if not self._checkpoint.lasting:
            self._problems.append(
                "another attempt of the same job is alive and has its checkpoint directory; this one had an empty one"
            )
        if self._checkpoint.discarded:
            self._problems.append("its checkpoint was not used, because its inputs, command or software have changed")

    def _laid_checkpoint(self) -> tuple[str, str] | None:
        """The working directory, and the name of the directory, where a layer would keep what is written to it."""
        checkpoint = self._checkpoint
        if checkpoint is None or not self._spec.files.staged:
            return None
        return self._spec.workdir, os.path.basename(checkpoint.path)

    def leave_checkpoint(self, verdict: Verdict) -> None:
        """Remove what it needs no more; that this fails is no reason to fail the job."""
        if self._checkpoint is None:
            return
        try:
            self._checkpoint.end(succeeded=verdict.ok)
        except OSError as error:
            self._record.event("residue", what=f"its checkpoint directory could not be removed: {error}")

    def _own_processes(self) -> int:
        """How many processes of Forge are counted as the job's: the one that holds its PID namespace from inside."""
        return int(self._tools.standby.as_init and self._group is not None and self._group.version != "soft")

    def launch(self, payload: bytes) -> None:
        """Give the job's process, which is in its sandbox, its order."""
        assert self._inside is not None
        self._begin = time.monotonic()
        doors = self._cgroup.open_doors(self._inside.started.holder) if self._cgroup is not None else ()
        try:
            environment = dict(self._spec.environment)
            if self._checkpoint is not None:
                environment["FORGE_CHECKPOINT_DIR"] = self._checkpoint.path
            limits = self._spec.limits
            bounds = Bounds(limits.disk_bytes, self._max_processes(), limits.nice)
            inputs, checkpoint = self._spec.files.inputs, self._laid_checkpoint()
            self._inside.order(payload, environment, bounds, inputs, checkpoint, doors)
        finally:
            for fd in doors:
                os.close(fd)
        self._launched = True
        self._start_audit()
        self._record.event("started", pid=self._inside.started.pid)

    def _start_audit(self) -> None:
        """See what it opens; it waits for this before it executes anything."""
        assert self._inside is not None
        files = self._spec.files
        if not files.audit:
            return
        try:
            audit = Audit(self._inside.receive_mounts(len(files.layers)))
        except AuditUnavailable as error:
            self._problems.append(str(error))
        except OSError as error:  # it could not enter its sandbox, and says so itself
            self._record.event("no audit", why=str(error))
        else:
            self._stack.callback(audit.close)
            self._reads = Reads(audit, files.layers)
        self._inside.go_on()

    def _undeclared_reads(self) -> tuple[str, ...] | None:
        """Of the files that it opened, those that were there before and that its rule does not declare."""
        if self._reads is None:
            return None
        self._reads.read()
        if not self._reads.complete:
            self._problems.append("the list of undeclared reads is not complete: the kernel lost events")
        return self._files.undeclared_reads(self._reads.opened)

    def describe(self) -> None:
        """Write what the job is. A full disk is no reason to end it."""
        try:
            self._record.describe(self._inside.started.pid if self._inside is not None else None)
        except OSError as error:
            self._problems.append(f"spec.json or command.sh could not be written: {error.strerror}")

    def _max_processes(self) -> int | None:
        """RLIMIT_NPROC, where that has to do."""
        limit, beside = self._spec.limits.pids, self._tools.processes_beside
        return None if limit is None or beside is None else limit + beside

    def watch(self) -> None:
        """Until it has ended."""
        assert self._streams is not None
        assert self._watch is not None
        self._watch.run(self._begin, self._streams, self._reads)

    # -- after -----------------------------------------------------------------------------------------------------

    def fail(self, error: Exception) -> None:
        """The sandbox could not be made or, once the job was started, it could not be watched any more."""
        if not self._launched:
            self._setup_error = str(error)
            with suppress(OSError):
                self._record.describe()
        else:
            self._supervisor_error = f"the supervisor failed while the job ran: {error}; the job was killed"

    def left_nothing(self) -> bool:
        """See :meth:`.processes.Processes.left_nothing`."""
        return self._processes is not None and self._processes.left_nothing()

    def end_everything(self) -> None:
        """Kill what is left, and wait until it is dead."""
        if self._processes is not None:
            self._processes.end()

    def read_rest(self) -> None:
        """The last of the streams and the counters; nothing writes to them any more."""
        if self._processes is None:
            return
        self._record.event("all dead")
        for stream in self._streams or ():
            stream.drain()
            stream.finish()
            if stream.left_out:
                self._record.event("stream capped", left_out_bytes=stream.left_out)
            if stream.problem is not None:
                self._problems.append(stream.problem)
        self._used.said = self._processes.result()
        if self._cgroup is not None:
            self._used.counters = self._cgroup.counters()
            if not self._used.counters.complete:
                self._problems.append("its counters could not be read, because its cgroup was gone or unreadable")

    def look_through(self) -> None:
        """What it has written to its layers."""
        self._files.look_at_inputs()
        if not self._launched:
            return
        try:
            self._files.look_through()
        except OSError as error:
            self._supervisor_error = f"what the job wrote could not be looked through: {error}"
            return
        self._read = self._undeclared_reads()

    def conclude(self) -> Verdict:
        """The verdict."""
        seconds = time.monotonic() - self._begin
        if self._meter is not None:
            excess, whole = self._meter.finish(_LAST_WALK_SECONDS)
            self._course.excess = self._course.excess or excess
            if not whole:
                self._record.event("scratch not measured whole", seconds_allowed=_LAST_WALK_SECONDS)
        verdict = self._judge(seconds)
        if verdict.ok:
            verdict = self._inspect(verdict)
        if verdict.ok:
            verdict = self._improve_benchmark(verdict)
        return verdict

    def _judge(self, seconds: float) -> Verdict:
        scratch_peak = self._meter.peak_bytes if self._meter is not None else 0
        usage = self._used.usage(scratch_peak, self._own_processes())
        return judge(self._evidence(), self._spec, usage, self._record.started, seconds)

    def _inspect(self, verdict: Verdict) -> Verdict:
        """Formats and checksums of its outputs, which may cost it its success."""
        found = self._files.inspect(verdict.seconds)
        if found.rejected or found.problems:
            self._problems += found.problems
            verdict = self._judge(verdict.seconds)
        return replace(verdict, outputs=found.outputs)

    def look_up(self) -> None:
        """See :meth:`.watch.Watch.look_up`."""
        if self._watch is not None:
            self._watch.look_up()

    def settle(self, verdict: Verdict) -> Verdict:
        """Ask whoever knows more than this supervisor, where there is somebody."""
        if self._tools.settle is None:
            return verdict
        try:
            return self._tools.settle(verdict)
        except OSError as error:
            self._supervisor_error = f"it could not be found out whether it may publish, so nothing was: {error}"
            return replace(self._judge(verdict.seconds), outcome=Outcome.LOST)

    def publish(self, verdict: Verdict) -> Verdict:
        """Bring what it has written to its places: all of it after success, else its logs alone.

        Not after success without Snakemake: only a run that wants its outputs may say that they still belong there.
        """
        if self._inside is None or self._scratch is None or verdict.outcome is Outcome.LOST:
            return verdict
        if verdict.ok and self._solitude is not None and self._solitude.begun:
            return self._stage(verdict)
        verdict = replace(verdict, notes=(*verdict.notes, *self._files.publish_logs()))
        try:
            self._files.publish() if verdict.ok else self._files.keep_beside()
        except OSError as error:
            self._supervisor_error = f"its outputs could not be published, and none was: {error}"
            return self._judge(verdict.seconds)
        return verdict

    def _stage(self, verdict: Verdict) -> Verdict:
        """Have what it has written wait for a run that wants it."""
        try:
            self._files.stage()
        except OSError as error:
            self._supervisor_error = f"its outputs could not be staged for the next run: {error}"
            return self._judge(verdict.seconds)
        self._record.event("staged")
        return replace(verdict, staged=True)

    def _evidence(self) -> Evidence:
        result, counters, written = self._used.said, self._used.counters, self._files.survey
        setup_error = self._setup_error or result.get("setup_error")
        course, status = self._course, self._course.status
        as_init = self._inside is not None and self._inside.as_init
        ended_itself = as_init and "exit_code" in result  # and was then killed as the last of its namespace
        killed = status is not None and os.WIFSIGNALED(status) and not ended_itself
        number = os.WTERMSIG(status) if killed and status is not None else result.get("signal")
        return Evidence(
            exit_code=None if number is not None else self._exit_code(result),
            signal=number_or_none(number),
            error=str(result["error"]) if result.get("error") else None,
            summary=str(result["summary"]) if result.get("summary") else None,
            timed_out=course.timed_out,
            cancelled=course.cancelled,
            setup_error=str(setup_error) if setup_error else None,
            supervisor_error=self._supervisor_error or course.error,
            oom_kills=counters.oom_kills,
            oom=self._oom() if counters.oom_kills else None,
            excess=course.excess,
            full_file=self._full_file(),
            pids_hits=counters.pids_hits,
            leftover=course.leftover if number is None and not course.terminated and not counters.oom_kills else (),
            unkillable=course.unkillable,
            problems=tuple(self._problems),
            missing=tuple(written.missing),
            rejected=tuple(written.rejected),
            undeclared=tuple(self._files.named(move.place) for move in written.extra),
            read=self._read,
            changed=tuple(self._files.named(path) for path in written.changed),
            inputs_changed=self._files.inputs_changed,
            stderr_tail=self._streams[1].tail() if self._streams else "",
        )

    def _oom(self) -> Oom:
        """Whose limit it was and who died, from the kernel's log or, where that cannot be read, from the counters."""
        assert self._group is not None
        try:
            log = syscalls.kernel_log(_KERNEL_LOG_BYTES)
        except OSError:
            log = ""
        found = killed_for_memory(log, os.path.basename(self._spec.scratch_base), self._spec.name)
        if found is not None:
            return found
        if self._used.counters.memory_exhausted:
            return Oom(OomScope.JOB)
        return Oom(OomScope.RUN if self._group.memory_exhausted() else OomScope.OUTSIDE)

    def _full_file(self) -> str | None:
        """An output or temporary file that RLIMIT_FSIZE has stopped: programs that ignore SIGXFSZ only get an error."""
        limit = self._spec.limits.disk_bytes
        if limit is None:
            return None
        found = self._files.file_of_size(limit)
        if found is not None:
            return found
        return self._meter.full_file if self._meter is not None else None

    def _exit_code(self, result: Mapping[str, object]) -> int | None:
        """What the job says of itself or, if it became another program, what the kernel says."""
        if "exit_code" in result or self._course.status is None:
            return number_or_none(result.get("exit_code"))
        return os.waitstatus_to_exitcode(self._course.status)

    def _improve_benchmark(self, verdict: Verdict) -> Verdict:
        """The kernel's figures, where Snakemake's were only polled."""
        path = self._spec.benchmark
        if path is None:
            return verdict
        try:
            self._used.improve_benchmark(self._files.staged(path))
        except OSError as error:
            return replace(verdict, notes=(*verdict.notes, f"{path} has only polled figures: {error.strerror}"))
        return verdict

    def keep_scratch(self, verdict: Verdict) -> None:
        """Put the scratch aside where the settings say so."""
        keep = self._spec.keep_scratch
        if verdict.staged and self._scratch is not None and self._scratch.slot in self._files.kept_directories():
            return  # outputs are in it
        if self._scratch is not None and (
            keep is KeepScratch.ALWAYS or (keep is KeepScratch.FAILED and not verdict.ok)
        ):
            try:
                self._record.event("scratch kept", directory=self._scratch.keep())
            except OSError as error:
                self._record.event("residue", what=f"the scratch could not be kept: {error}")
                return
            self._scratch = None

    def write(self, verdict: Verdict) -> Verdict:
        """Write the record. A full disk must end neither the supervisor nor a job that has done its work."""
        try:
            self._record.finish(verdict)
        except OSError as error:
            place = self._spec.job_dir
            note = f"the record of this attempt is incomplete, {place} could not be written: {error.strerror}"
            return replace(verdict, notes=(*verdict.notes, note))
        return verdict

    def keep_record(self, verdict: Verdict) -> None:
        """Have it outlive the host, and the entry by which a run finds what is staged."""
        with suppress(OSError):
            self._record.keep()
            if verdict.staged:
                to_disk(entry_path(self._spec))

    def clear_up(self, verdict: Verdict) -> None:
        """Remove cgroup and scratch; what cannot be removed is noted, and is no reason to fail the job."""
        if self._solitude is not None:
            self._solitude.end(staged=verdict.staged)
        if self._cgroup is not None and not remove_patiently(self._cgroup.remove):
            with suppress(OSError):
                self._record.append_event("residue", what="cgroup")
        if self._inside is not None:
            kept = self._files.kept_directories() if verdict.staged else ()
            self._tools.standby.clear_up(self._scratch, self._inside.layers, self._spec.exposed, kept)

    def show_rest(self) -> None:
        """Bring the terminal up to date, after everything that matters is on disk."""
        for stream in self._streams or ():
            stream.show(wait=True)


def _unrecorded(spec: LaunchSpec, error: OSError) -> Verdict:
    """The verdict on an attempt for which there is no place to write."""
    reason = f"the record of this attempt could not be written to {spec.job_dir}: {error.strerror}. Free space there"
    return judge(Evidence(None, None, None, setup_error=reason), spec, Usage(), now(), 0.0)
