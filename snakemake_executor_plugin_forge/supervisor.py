"""One attempt from its first directory to its verdict, in one single-threaded process that belongs to it alone.

The order of events is that of :func:`supervise`; everything before it is the steps.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Protocol

from .errors import SandboxError
from .judge import anon_peak, judge, killed_for_memory
from .model import Evidence, Excess, KeepScratch, LaunchSpec, Oom, OomScope, Outcome, Usage, Verdict
from .record.benchmark import Figures, improve
from .record.jobdir import JobDirectory, now, write_verdict
from .record.streams import Stream
from .sandbox import syscalls
from .sandbox.cgroup import Counters, JobCgroup, Remains, RunCgroup
from .sandbox.disk import Meter
from .sandbox.inside import Inside, Standby
from .sandbox.scratch import Scratch, Slots, remove_slot, slot_path

_FIRST_SAMPLE_SECONDS = 0.02
_LAST_SAMPLE_SECONDS = 2.0
_FROZEN_SECONDS = 0.5  # what takes longer to die is frozen, or stuck in the kernel
_DEATH_SECONDS = 30.0
_LAST_WALK_SECONDS = 0.5
_KERNEL_LOG_BYTES = 1 << 16
_RUSAGE_BLOCK = 512  # of ru_inblock and ru_oublock: task_io_get_inblock() in include/linux/task_io_accounting_ops.h
_RESULT_BYTES = 1 << 20


class Control(Protocol):
    """How a supervisor learns that its attempt shall end."""

    def fileno(self) -> int:
        """Becomes readable when there is something to be learned."""

    def order(self) -> tuple[str, bool] | None:
        """Reason and whether there is time for grace; None if it was nothing."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What a supervisor has for all of its attempts."""

    group: RunCgroup | None
    slots: Slots
    standby: Standby
    control: Control
    processes_beside: int | None = None  # see backends.pool.Enclosure


def supervise(spec: LaunchSpec, payload: bytes, tools: Tools, report: Callable[[Verdict], None]) -> None:
    """Run one attempt, record it, report its verdict, and clear up.

    Whatever it started is dead when it is reported; what is cleared up then is empty sandbox. A record that cannot be
    written is a note of the verdict or, before the start, its reason.
    """
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
        verdict = attempt.conclude()
        verdict = attempt.improve_benchmark(verdict)
        attempt.keep_scratch(verdict)
        verdict = attempt.write(verdict)
        attempt.show_rest()
        report(verdict)
        attempt.end_everything()
        attempt.clear_up()


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
        self._control = tools.control
        self._record = record
        self._stack = stack
        self._cgroup: JobCgroup | None = None
        self._scratch: Scratch | None = None
        self._streams: tuple[Stream, Stream] | None = None
        self._inside: Inside | None = None
        self._result = b""
        self._counters = Counters()
        self._anon_peak = 0
        self._unshared_peak = 0  # of that, without shared memory
        self._pids_peak = 0
        self._oom_kills = 0
        self._was_inside = False  # of its cgroup
        self._meter: Meter | None = None
        self._excess: Excess | None = None
        self._rusage: resource.struct_rusage | None = None  # of its process and the children that it waited for
        self._problems: list[str] = []
        self._unkillable: tuple[str, ...] = ()
        self._launched = False
        self._over = False  # the job has done its work or died; processes that it left behind may live
        self._status: int | None = None  # of waitpid
        self._all_dead = False
        self._setup_error: str | None = None
        self._supervisor_error: str | None = None
        self._timed_out = False
        self._cancelled: str | None = None
        self._kill_at: float | None = None  # end of the grace
        self._leftover: tuple[str, ...] = ()
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
        self._inside = self._tools.standby.take(spec)
        self._stack.callback(self._inside.close)
        self._scratch = self._inside.scratch
        self._scratch.begin(spec.name)
        self._meter = self._scratch.meter(spec.limits.disk_bytes)
        record, inside = self._record, self._inside
        self._streams = (Stream(inside.stdout, record.stdout, 1), Stream(inside.stderr, record.stderr, 2))
        self._record.event("prepared")

    def _own_processes(self) -> int:
        """How many processes of Forge are counted as the job's: the one that holds its PID namespace from inside."""
        return int(self._tools.standby.as_init and self._group is not None and self._group.version != "soft")

    def launch(self, payload: bytes) -> None:
        """Give the job's process, which is in its sandbox, its order."""
        assert self._inside is not None
        assert self._scratch is not None
        scratch = self._scratch.seen_path
        temporary = dict.fromkeys(("TMPDIR", "TMP", "TEMP", "TEMPDIR", "FORGE_SCRATCH"), scratch)
        self._begin = time.monotonic()
        doors = self._cgroup.open_doors(self._inside.started.holder) if self._cgroup is not None else ()
        try:
            environment = {**self._spec.environment, **temporary}
            self._inside.order(payload, environment, self._spec.limits.disk_bytes, self._max_processes(), doors)
        finally:
            for fd in doors:
                os.close(fd)
        self._launched = True
        self._record.event("started", pid=self._inside.started.pid)

    def describe(self) -> None:
        """Write what the job is. A full disk is no reason to end it."""
        try:
            self._record.describe()
        except OSError as error:
            self._problems.append(f"spec.json or command.sh could not be written: {error.strerror}")

    def _max_processes(self) -> int | None:
        """RLIMIT_NPROC, where that has to do."""
        limit, beside = self._spec.limits.pids, self._tools.processes_beside
        return None if limit is None or beside is None else limit + beside

    # -- while it runs ---------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Until the job's process has ended and, if it is being ended, its descendants had their grace."""
        assert self._inside is not None
        assert self._streams is not None
        poll = select.poll()
        sources: dict[int, Callable[[], bool]] = {s.read_end: s.pump for s in self._streams}
        sources[self._inside.result_fd] = self._read_result
        sources[self._control.fileno()] = self._obey
        pidfd = self._inside.pidfd
        for fd in (*sources, pidfd):
            poll.register(fd, select.POLLIN)
        interval = _FIRST_SAMPLE_SECONDS
        sample_at = self._begin + interval
        while not self._over or self._in_grace():
            ready = poll.poll(max(0.0, self._next_wakeup(sample_at) - time.monotonic()) * 1000)
            for fd, _ in ready:
                if fd == pidfd:
                    self._reap()
                    poll.unregister(fd)
                elif not sources[fd]():
                    poll.unregister(fd)
            if time.monotonic() >= sample_at:
                self._sample()
                interval = min(interval * 2, _LAST_SAMPLE_SECONDS)
                pause = self._cgroup.pause_seconds(interval) if self._cgroup is not None else interval
                sample_at = time.monotonic() + pause
            self._check_disk()
            self._check_clock()

    def _next_wakeup(self, sample_at: float) -> float:
        times = [sample_at]
        if self._meter is not None and self._spec.limits.disk_bytes is not None:
            times.append(self._meter.due)
        if self._kill_at is not None:
            times.append(self._kill_at)
            if self._over:
                times.append(time.monotonic() + 0.02)  # the job's process is gone: are its descendants?
        elif self._spec.limits.wall_seconds is not None:
            times.append(self._begin + self._spec.limits.wall_seconds)
        return min(times)

    def _check_clock(self) -> None:
        elapsed = time.monotonic() - self._begin
        wall = self._spec.limits.wall_seconds
        if self._kill_at is None and not self._over and wall is not None and elapsed >= wall:
            self._timed_out = True
            self._terminate("timeout", self._spec.grace_seconds)
        if self._kill_at is not None and time.monotonic() >= self._kill_at and not self._over:
            self._kill("end of the grace")
            self._reap()

    def _check_disk(self) -> None:
        """Measure the scratch, where it is limited and the time has come; end a job that has too much in it."""
        meter = self._meter
        if meter is None or self._spec.limits.disk_bytes is None or self._excess or time.monotonic() < meter.due:
            return
        self._excess = meter.step(self._cgroup.pids if self._cgroup is not None else list)
        if self._excess is not None and not self._over:
            self._kill("too much disk")

    def _in_grace(self) -> bool:
        """Whether descendants still have time to end by themselves after the job's own process ended."""
        return self._kill_at is not None and time.monotonic() < self._kill_at and bool(self._members())

    def _members(self) -> list[int]:
        """The job's processes but for the one that holds its PID namespace."""
        if self._cgroup is None or self._inside is None:
            return []
        holder = self._inside.started.pid if self._inside.as_init else -1
        return [pid for pid in self._cgroup.pids() if pid != holder]

    def _obey(self) -> bool:
        order = self._control.order()
        if order is not None:
            reason, grace = order
            self._cancelled = self._cancelled or reason
            self._terminate("cancelled", self._spec.grace_seconds if grace else 0.0)
        return True

    def _terminate(self, why: str, grace_seconds: float) -> None:
        """TERM to every process of the job; the KILL follows after the grace."""
        kill_at = time.monotonic() + grace_seconds
        self._kill_at = kill_at if self._kill_at is None else min(self._kill_at, kill_at)
        self._record.event("terminating", why=why, grace_seconds=grace_seconds)
        if grace_seconds > 0:
            self._signal_all(signal.SIGTERM)

    def _signal_all(self, number: int) -> None:
        assert self._inside is not None
        for pid in {self._inside.started.pid, *self._members()}:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _kill(self, why: str) -> None:
        """End the PID namespace, and with it every process in it, whatever it ignores."""
        if self._inside is not None:
            self._record.event("kill", why=why)
            self._inside.started.kill()

    def _end_of_work(self) -> None:
        """The job has done its work: note what it left behind."""
        if self._over or self._inside is None:
            return
        self._over = True
        if self._tools.group is not None and self._tools.group.version == "soft":
            self._sample()  # the last chance: nothing counts on when its processes are gone
        self._record.event("exited")
        self._leftover = _names(self._members())

    def _reap(self) -> None:
        """Take the exit status of the job's process."""
        if self._inside is None or self._status is not None:
            return
        ready = select.select([self._inside.pidfd], [], [], _FROZEN_SECONDS)[0]
        if not ready:
            self._kill_harder()
            ready = select.select([self._inside.pidfd], [], [], _DEATH_SECONDS)[0]
        if not ready:  # stuck in the kernel (D state): go on
            self._over, self._status = True, signal.SIGKILL
            return
        self._end_of_work()
        _, self._status, self._rusage = os.wait4(self._inside.started.pid, 0)

    def _kill_harder(self) -> None:
        """What did not die with its PID namespace: someone has frozen it, or it is stuck in the kernel."""
        assert self._inside is not None
        self._record.event("kill", why="it did not die with its PID namespace")
        if self._cgroup is not None:
            self._cgroup.kill(_same_namespace(self._inside.started.pid))

    def _sample(self) -> None:
        if self._cgroup is None:
            return
        sample = self._cgroup.sample()
        self._anon_peak = max(self._anon_peak, sample.memory_anon_bytes)
        self._unshared_peak = max(self._unshared_peak, sample.memory_anon_bytes - sample.memory_shared_bytes)
        self._pids_peak = max(self._pids_peak, sample.pids)
        if self._over or self._inside is None:
            return
        if sample.oom_kills or sample.over:
            self._kill("a process was killed for memory" if sample.oom_kills else "too many processes")
        elif (gone := self._cgroup.missing()) is not None:
            raise SandboxError(f"{gone} is gone: somebody removed or changed the job's cgroup, so nothing limited it")
        elif not sample.empty:
            self._was_inside = True
        elif self._was_inside and self._inside.alive():
            self._supervisor_error = (
                "its cgroup was emptied or removed from outside while it ran, so that its limits held no more; "
                "the job was killed"
            )
            self._kill("not in its cgroup any more")

    def _read_result(self) -> bool:
        assert self._inside is not None
        chunk = os.read(self._inside.result_fd, 65536)
        if len(self._result) < _RESULT_BYTES:
            self._result += chunk
        if not chunk and self._inside.as_init:  # its process waits to be killed
            self._end_of_work()
        return bool(chunk)

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
        """Whether nothing of the job is alive but our own process, which holds its sandbox and waits to be killed."""
        inside = self._inside
        return inside is not None and inside.as_init and self._cgroup is not None and self._over and not self._members()

    def end_everything(self) -> None:
        """Kill what is left, and wait until it is dead."""
        if self._inside is None or self._all_dead:
            return
        self._all_dead = True
        started = self._inside.started
        started.kill()
        self._reap()  # before the rest: the first process of a namespace does not die before all others are reaped
        if not started.end(_FROZEN_SECONDS):
            self._kill_harder()
            started.end(_DEATH_SECONDS)
        if self._cgroup is not None:
            self._unkillable = _names([pid for pid in self._cgroup.pids() if not _is_dead(pid)])

    def read_rest(self) -> None:
        """The last of the streams and the counters; nothing writes to them any more."""
        if self._inside is None:
            return
        self._record.event("all dead")
        for stream in self._streams or ():
            stream.drain()
            if stream.problem is not None:
                self._problems.append(stream.problem)
        while select.select([self._inside.result_fd], [], [], 0)[0] and self._read_result():
            pass
        if self._cgroup is not None:
            self._counters = self._cgroup.counters()
            if not self._counters.complete:
                self._problems.append("its counters could not be read, because its cgroup was gone or unreadable")

    def conclude(self) -> Verdict:
        """The verdict."""
        seconds = time.monotonic() - self._begin
        if self._meter is not None:
            excess, whole = self._meter.finish(_LAST_WALK_SECONDS)
            self._excess = self._excess or excess
            if not whole:
                self._record.event("scratch not measured whole", seconds_allowed=_LAST_WALK_SECONDS)
        verdict = judge(self._evidence(), self._spec, self._usage(), self._record.started, seconds)
        if verdict.ok and self._scratch is not None:
            try:
                for path in self._spec.carried:
                    self._scratch.take(path)
            except OSError as error:
                self._supervisor_error = f"an output could not be moved to its place: {error}"
                verdict = judge(self._evidence(), self._spec, self._usage(), self._record.started, seconds)
        return verdict

    def _evidence(self) -> Evidence:
        result = _parse_result(self._result)
        setup_error = self._setup_error or result.get("setup_error")
        status = self._status
        as_init = self._inside is not None and self._inside.as_init
        ended_itself = as_init and "exit_code" in result  # and was then killed as the last of its namespace
        killed = status is not None and os.WIFSIGNALED(status) and not ended_itself
        number = os.WTERMSIG(status) if killed and status is not None else result.get("signal")
        oom_kills = self._counters.oom_kills
        return Evidence(
            exit_code=None if number is not None else self._exit_code(result),
            signal=_number_or_none(number),
            error=str(result["error"]) if result.get("error") else None,
            summary=str(result["summary"]) if result.get("summary") else None,
            timed_out=self._timed_out,
            cancelled=self._cancelled,
            setup_error=str(setup_error) if setup_error else None,
            supervisor_error=self._supervisor_error,
            oom_kills=oom_kills,
            oom=self._oom() if oom_kills else None,
            excess=self._excess,
            full_file=self._full_file(),
            pids_hits=self._counters.pids_hits,
            leftover=self._leftover if number is None and self._kill_at is None and not oom_kills else (),
            unkillable=self._unkillable,
            problems=tuple(self._problems),
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
        if self._counters.memory_exhausted:
            return Oom(OomScope.JOB)
        return Oom(OomScope.RUN if self._group.memory_exhausted() else OomScope.OUTSIDE)

    def _full_file(self) -> str | None:
        """An output or temporary file that RLIMIT_FSIZE has stopped: programs that ignore SIGXFSZ only get an error."""
        limit = self._spec.limits.disk_bytes
        if limit is None:
            return None
        for path in self._spec.outputs:
            with suppress(OSError):
                if os.lstat(os.path.join(self._spec.workdir, path)).st_size == limit:
                    return path
        return self._meter.full_file if self._meter is not None else None

    def _exit_code(self, result: dict[str, object]) -> int | None:
        """What the job says of itself or, if it became another program, what the kernel says."""
        if "exit_code" in result or self._status is None:
            return _number_or_none(result.get("exit_code"))
        return os.waitstatus_to_exitcode(self._status)

    def _usage(self) -> Usage:
        counters = self._counters
        largest, read, written = self._by_process()
        in_cgroup = counters.io_bytes or (0, 0)
        memory, cpu, io = counters.pressure_seconds or (None, None, None)
        return Usage(
            memory_peak_bytes=counters.memory_peak_bytes,
            memory_anon_peak_bytes=anon_peak(
                max(self._anon_peak, counters.memory_anon_bytes),
                counters.memory_peak_bytes,
                counters.memory_file_bytes,
                counters.memory_kernel_bytes,
                largest,
            ),
            cpu_seconds=round(counters.cpu_seconds, 6),
            io_read_bytes=max(read, in_cgroup[0]),
            io_write_bytes=max(written, in_cgroup[1]),
            pids_peak=max(0, max(self._pids_peak, counters.pids_peak) - self._own_processes()),
            scratch_peak_bytes=self._meter.peak_bytes if self._meter is not None else 0,
            cpu_user_seconds=round(counters.cpu_user_seconds, 6),
            cpu_system_seconds=round(counters.cpu_system_seconds, 6),
            throttled_seconds=round(counters.throttled_seconds, 6),
            throttled_periods=counters.throttled_periods,
            memory_pressure_seconds=memory,
            cpu_pressure_seconds=cpu,
            io_pressure_seconds=io,
        )

    def _by_process(self) -> tuple[int, int, int]:
        """Peak of resident memory of the largest process, bytes read and written: getrusage(2) of all waited for."""
        children = _parse_result(self._result).get("children")
        if isinstance(children, list) and len(children) == 3:
            largest, blocks_read, blocks_written = (_number_or_none(value) or 0 for value in children)
        elif self._rusage is not None:
            usage = self._rusage
            largest, blocks_read, blocks_written = usage.ru_maxrss, usage.ru_inblock, usage.ru_oublock
        else:
            return 0, 0, 0
        return largest * 1024, blocks_read * _RUSAGE_BLOCK, blocks_written * _RUSAGE_BLOCK

    def improve_benchmark(self, verdict: Verdict) -> Verdict:
        """Write the kernel's figures into the rule's benchmark file, where they are better than what was polled."""
        path, used = self._spec.benchmark, _parse_result(self._result).get("measured")
        if not verdict.ok or path is None or not isinstance(used, list) or len(used) != 5:
            return verdict
        if not all(isinstance(value, int | float) for value in used):
            return verdict
        largest, cpu_seconds, blocks_read, blocks_written, own_bytes = used
        try:
            improve(
                path,
                Figures(
                    max_rss_bytes=int(max(largest * 1024, self._unshared_peak - own_bytes)),
                    cpu_seconds=cpu_seconds,
                    io_read_bytes=blocks_read * _RUSAGE_BLOCK,
                    io_write_bytes=blocks_written * _RUSAGE_BLOCK,
                ),
            )
        except OSError as error:
            return replace(verdict, notes=(*verdict.notes, f"{path} has only polled figures: {error.strerror}"))
        return verdict

    def keep_scratch(self, verdict: Verdict) -> None:
        """Put the scratch aside where the settings say so."""
        keep = self._spec.keep_scratch
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

    def clear_up(self) -> None:
        """Remove cgroup and scratch; what cannot be removed is noted, and is no reason to fail the job."""
        if self._cgroup is not None and not _remove_patiently(self._cgroup):
            with suppress(OSError):
                self._record.append_event("residue", what="cgroup")
        if self._scratch is not None:
            self._tools.slots.give_back(self._scratch, self._spec.exposed)

    def show_rest(self) -> None:
        """Bring the terminal up to date, after everything that matters is on disk."""
        for stream in self._streams or ():
            stream.show(wait=True)


def _unrecorded(spec: LaunchSpec, error: OSError) -> Verdict:
    """The verdict on an attempt for which there is no place to write."""
    reason = f"the record of this attempt could not be written to {spec.job_dir}: {error.strerror}. Free space there"
    return judge(Evidence(None, None, None, setup_error=reason), spec, Usage(), now(), 0.0)


def bury(spec: LaunchSpec, group: RunCgroup | None, dead_pid: int) -> Verdict:
    """Clear up after a supervisor that died: kill, remove, and record the attempt as lost."""
    job = group.job(spec.name) if group is not None else None
    if job is not None:
        deadline = time.monotonic() + _DEATH_SECONDS
        while (pids := job.pids()) and time.monotonic() < deadline:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            select.poll().poll(2)
        _remove_patiently(job)
    remove_slot(spec.scratch_base, slot_path(spec.scratch_base, dead_pid))
    verdict = lost(spec, "its supervisor was killed from outside; whatever it had started is dead, run it again")
    os.makedirs(spec.job_dir, exist_ok=True)
    write_verdict(spec, verdict)
    return verdict


def lost(spec: LaunchSpec, reason: str) -> Verdict:
    """The verdict on an attempt of which nobody can say how it ended."""
    return Verdict(Outcome.LOST, f"lost: {reason}", None, None, Usage(), now(), 0.0, directory=spec.job_dir)


def never_started(spec: LaunchSpec, reason: str) -> Verdict:
    """Record an attempt that was cancelled before anything of it had run."""
    text = f"cancelled, nothing of it was run: {reason}"
    verdict = Verdict(Outcome.CANCELLED, text, None, None, Usage(), now(), 0.0, directory=spec.job_dir)
    with suppress(OSError):  # its verdict counts all the same
        record = JobDirectory(spec)
        record.close()
        record.describe()
        record.finish(verdict)
    return verdict


def _remove_patiently(cgroup: Remains) -> bool:
    """A dead process leaves its cgroup a moment after it was reaped."""
    for pause_milliseconds in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500):
        if pause_milliseconds:
            select.poll().poll(pause_milliseconds)
        if cgroup.remove():
            return True
    return False


def _parse_result(data: bytes) -> dict[str, object]:
    """What the job says of itself; it ran user code, so anything may be in it."""
    try:
        result = json.loads(data)
    except ValueError:
        return {}
    return result if isinstance(result, dict) else {}


def _number_or_none(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _command_name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:  # proc_pid_comm(5)
            return f"{file.read().decode('utf-8', 'replace').strip()} (process {pid})"
    except OSError:
        return f"process {pid}"


def _names(pids: list[int]) -> tuple[str, ...]:
    names = []
    for pid in pids:
        with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            text = file.read(200).replace(b"\0", b" ").decode("utf-8", "replace").strip()
            names.append(text or _command_name(pid))  # one that is just being executed has no command line
    return tuple(names)


def _is_dead(pid: int) -> bool:
    """Whether it is a zombie or gone: proc_pid_stat(5)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] in b"ZX"
    except OSError:
        return True


def _same_namespace(pid: int) -> list[int]:
    """All processes in the PID namespace of ``pid``, wherever someone may have moved them: pid_namespaces(7)."""
    found: list[int] = []
    with suppress(OSError):
        namespace = os.readlink(f"/proc/{pid}/ns/pid")
        for name in os.listdir("/proc"):
            with suppress(OSError):
                if name.isdigit() and os.readlink(f"/proc/{name}/ns/pid") == namespace:
                    found.append(int(name))
    return found
