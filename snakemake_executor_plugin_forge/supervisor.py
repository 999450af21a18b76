"""One attempt from its first directory to its verdict, in one single-threaded process that belongs to it alone.

The order of events is that of :func:`supervise`; everything before it is the steps.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Protocol

from .errors import SandboxError
from .judge import judge
from .model import Evidence, KeepScratch, LaunchSpec, Outcome, Usage, Verdict
from .record.jobdir import JobDirectory, now, write_verdict
from .record.streams import Stream
from .sandbox.cgroup import Counters, JobCgroup, Remains, RunCgroup
from .sandbox.inside import Inside, Standby
from .sandbox.scratch import Scratch, Slots, remove_slot, slot_path

_FIRST_SAMPLE_SECONDS = 0.05
_LAST_SAMPLE_SECONDS = 2.0
_DEATH_SECONDS = 30.0
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

    Whatever it started is dead when it is reported; what is cleared up then is empty sandbox.

    Raises:
        OSError: if not even the job directory can be written.

    """
    record = JobDirectory(spec)
    with ExitStack() as stack:
        stack.callback(record.close)
        attempt = _Attempt(spec, tools, record, stack)
        try:
            attempt.prepare()
            attempt.launch(payload)
            record.describe()  # while the job's first program is being loaded
            attempt.watch()
        except (OSError, SandboxError) as error:
            attempt.fail(error)
        if not attempt.left_nothing():
            attempt.end_everything()
        attempt.read_rest()
        verdict = attempt.conclude()
        attempt.keep_scratch(verdict)
        record.finish(verdict)
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
        self._pids_peak = 0
        self._scratch_bytes = 0
        self._run_oom_before = 0
        self._io = (0, 0)
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
            self._run_oom_before = self._group.oom_kills()
            self._cgroup = self._group.create_job(spec.name, spec.limits, spec.cpu_mode)
        self._inside = self._tools.standby.take(spec)
        self._stack.callback(self._inside.close)
        self._scratch = self._inside.scratch
        self._scratch.begin(spec.name)
        record, inside = self._record, self._inside
        self._streams = (Stream(inside.stdout, record.stdout, 1), Stream(inside.stderr, record.stderr, 2))
        self._record.event("prepared")

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
        sample_at, interval = self._begin + _FIRST_SAMPLE_SECONDS, _FIRST_SAMPLE_SECONDS
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
                interval = min(interval * 1.5, _LAST_SAMPLE_SECONDS)
                pause = self._cgroup.pause_seconds(interval) if self._cgroup is not None else interval
                sample_at = time.monotonic() + pause
            self._check_clock()

    def _next_wakeup(self, sample_at: float) -> float:
        times = [sample_at]
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
        """The job has done its work: note what only the /proc entry of its process knows, and what it left behind."""
        if self._over or self._inside is None:
            return
        self._over = True
        self._io = _read_io(self._inside.started.pid)
        if self._tools.group is not None and self._tools.group.version == "soft":
            self._sample()  # the last chance: nothing counts on when its processes are gone
        self._record.event("exited")
        self._leftover = _names(self._members())

    def _reap(self) -> None:
        """Take the exit status of the job's process."""
        if self._inside is None or self._status is not None:
            return
        if not select.select([self._inside.pidfd], [], [], _DEATH_SECONDS)[0]:  # stuck in the kernel (D state): go on
            self._over, self._status = True, signal.SIGKILL
            return
        self._end_of_work()
        _, self._status = os.waitpid(self._inside.started.pid, 0)

    def _sample(self) -> None:
        if self._cgroup is None:
            return
        self._counters = self._cgroup.counters()
        self._anon_peak = max(self._anon_peak, self._counters.memory_anon_bytes)
        self._pids_peak = max(self._pids_peak, self._counters.pids_peak)
        if self._over:
            return
        if self._counters.oom_kills or self._counters.over:
            self._kill("a process was killed for memory" if self._counters.oom_kills else "too many processes")
        elif (gone := self._cgroup.missing()) is not None:
            raise SandboxError(f"{gone} is gone: somebody removed or changed the job's cgroup, so nothing limited it")

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
        self._inside.started.kill()
        self._reap()  # before the rest: the first process of a namespace does not die before all others are reaped
        self._inside.started.end(_DEATH_SECONDS)

    def read_rest(self) -> None:
        """The last of the streams and the counters; nothing writes to them any more."""
        if self._inside is None:
            return
        self._record.event("all dead")
        for stream in self._streams or ():
            stream.drain()
        while select.select([self._inside.result_fd], [], [], 0)[0] and self._read_result():
            pass
        self._sample()

    def conclude(self) -> Verdict:
        """The verdict."""
        seconds = time.monotonic() - self._begin
        if self._scratch is not None:
            self._scratch_bytes = self._scratch.size_bytes()
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
        run_oom = oom_kills > 0 and self._group is not None and self._group.oom_kills() > self._run_oom_before
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
            run_oom=run_oom,
            pids_hits=self._counters.pids_hits,
            leftover=self._leftover if number is None and self._kill_at is None and not oom_kills else (),
            stderr_tail=self._streams[1].tail() if self._streams else "",
        )

    def _exit_code(self, result: dict[str, object]) -> int | None:
        """What the job says of itself or, if it became another program, what the kernel says."""
        if "exit_code" in result or self._status is None:
            return _number_or_none(result.get("exit_code"))
        return os.waitstatus_to_exitcode(self._status)

    def _usage(self) -> Usage:
        counters = self._counters
        return Usage(
            memory_peak_bytes=counters.memory_peak_bytes,
            memory_anon_peak_bytes=min(self._anon_peak, counters.memory_peak_bytes),
            cpu_seconds=round(counters.cpu_seconds, 6),
            io_read_bytes=self._io[0],
            io_write_bytes=self._io[1],
            pids_peak=self._pids_peak,
            scratch_peak_bytes=self._scratch_bytes,
        )

    def keep_scratch(self, verdict: Verdict) -> None:
        """Put the scratch aside where the settings say so."""
        keep = self._spec.keep_scratch
        if self._scratch is not None and (
            keep is KeepScratch.ALWAYS or (keep is KeepScratch.FAILED and not verdict.ok)
        ):
            self._record.event("scratch kept", directory=self._scratch.keep())
            self._scratch = None

    def clear_up(self) -> None:
        """Remove cgroup and scratch; what cannot be removed is noted, and is no reason to fail the job."""
        if self._cgroup is not None and not _remove_patiently(self._cgroup):
            self._record.append_event("residue", what="cgroup")
        if self._scratch is not None:
            self._tools.slots.give_back(self._scratch, self._spec.exposed)

    def show_rest(self) -> None:
        """Bring the terminal up to date, after everything that matters is on disk."""
        for stream in self._streams or ():
            stream.show(wait=True)


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


def _names(pids: list[int]) -> tuple[str, ...]:
    names = []
    for pid in pids:
        with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            text = file.read(200).replace(b"\0", b" ").decode("utf-8", "replace").strip()
            names.append(text or f"process {pid}")  # one that is just being executed has no command line
    return tuple(names)


def _read_io(pid: int) -> tuple[int, int]:
    """Bytes read from and written to disk by a process and its waited-for children: proc_pid_io(5)."""
    try:
        with open(f"/proc/{pid}/io", encoding="ascii") as file:
            table = dict(line.split(": ") for line in file)
        return int(table["read_bytes"]), int(table["write_bytes"])
    except (OSError, KeyError, ValueError):
        return 0, 0
