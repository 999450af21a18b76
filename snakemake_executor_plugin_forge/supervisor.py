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
from typing import NoReturn, Protocol

from .errors import SandboxError
from .judge import judge
from .model import Evidence, KeepScratch, LaunchSpec, Outcome, Usage, Verdict
from .record.jobdir import JobDirectory, now, write_verdict
from .record.streams import Stream
from .sandbox.cgroup import Counters, JobCgroup, RunCgroup
from .sandbox.enter import Base, Started, enter, start
from .sandbox.scratch import Scratch, remove_slot, slot_path

Execute = Callable[[bytes, str], dict[str, object]]
"""What a job does once it is inside: payload and scratch to ``{"exit_code", "signal", "error"}``."""

_FIRST_SAMPLE_SECONDS = 0.05
_LAST_SAMPLE_SECONDS = 2.0
_SETUP_FAILED = 125
_DEATH_SECONDS = 30.0
_RESULT_BYTES = 1 << 20


class Control(Protocol):
    """How a supervisor learns that its attempt shall end."""

    def fileno(self) -> int:
        """Becomes readable when there is something to be learned."""

    def order(self) -> tuple[str, bool] | None:
        """Reason and whether there is time for grace; None if it was nothing."""


class Slots:
    """The scratch directory that a supervisor keeps from one job to the next."""

    def __init__(self, private: tuple[str, ...]) -> None:
        self._private = private
        self._free: Scratch | None = None

    def take(self, base: str) -> Scratch:
        """An empty scratch directory below ``base``.

        Raises:
            SandboxError: if it cannot be made.

        """
        free, self._free = self._free, None
        if free is not None and free.base == base:
            return free
        if free is not None:
            free.remove()
        return Scratch(base, self._private)

    def give_back(self, scratch: Scratch, exposed: tuple[str, ...]) -> None:
        """Empty it for the next job: see :meth:`.Scratch.end`."""
        scratch.end(exposed)
        self._free = scratch

    def close(self) -> None:
        """Remove it."""
        if self._free is not None:
            self._free.remove()


@dataclass(frozen=True, slots=True)
class Tools:
    """What a supervisor has for all of its attempts."""

    base: Base
    group: RunCgroup | None
    slots: Slots
    execute: Execute
    control: Control


def supervise(spec: LaunchSpec, payload: bytes, tools: Tools) -> Verdict:
    """Run one attempt and record it. Whatever it started is dead when this returns.

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
            attempt.watch()
        except (OSError, SandboxError) as error:
            attempt.fail(error)
        attempt.end_everything()
        verdict = attempt.conclude()
        attempt.clear_up(verdict)
        record.finish(verdict)
        attempt.show_rest()
    return verdict


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
        self._result_fd = -1
        self._result = b""
        self._started: Started | None = None
        self._pidfd = -1
        self._counters = Counters()
        self._anon_peak = 0
        self._pids_peak = 0
        self._scratch_bytes = 0
        self._run_oom_before = 0
        self._io = (0, 0)
        self._status: int | None = None  # of waitpid
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
        self._scratch = self._tools.slots.take(spec.scratch_base)
        self._scratch.begin(spec.name)
        self._streams = (Stream(self._record.stdout, 1), Stream(self._record.stderr, 2))
        for stream in self._streams:
            self._stack.callback(stream.close)
        self._record.event("prepared")

    def launch(self, payload: bytes) -> None:
        """Fork the job into its sandbox."""
        assert self._streams is not None
        self._result_fd, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stack.callback(os.close, self._result_fd)
        os.set_blocking(write_end, True)
        self._begin = time.monotonic()
        try:
            self._started = start(self._tools.base, lambda: self._in_the_job(payload, write_end))
        finally:
            os.close(write_end)
            for stream in self._streams:
                stream.close_write_end()
        self._pidfd = os.pidfd_open(self._started.pid)
        self._stack.callback(os.close, self._pidfd)
        self._record.event("started", pid=self._started.pid)

    def _in_the_job(self, payload: bytes, result_fd: int) -> NoReturn:
        """The forked process: enter, execute, say how it went. Never returns into the supervisor's code."""
        code = _SETUP_FAILED
        try:
            result = self._enter_and_execute(payload, result_fd)
            code = 0 if result.get("exit_code") == 0 and not result.get("error") else 1
            _write_all(result_fd, json.dumps(result).encode())
        except BaseException as error:
            with suppress(OSError):
                _write_all(result_fd, json.dumps({"setup_error": f"{type(error).__name__}: {error}"}).encode())
        finally:
            os._exit(code)

    def _enter_and_execute(self, payload: bytes, result_fd: int) -> dict[str, object]:
        assert self._streams is not None
        assert self._scratch is not None
        if not self._spec.interactive:
            null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            os.dup2(null, 0)
            for number, stream in enumerate(self._streams, start=1):
                os.dup2(stream.write_end, number)
        scratch = self._scratch
        try:
            enter(self._spec, self._tools.base, self._cgroup, scratch, keep=(result_fd,))
        except OSError as error:
            return {"setup_error": str(error)}
        temporary = dict.fromkeys(("TMPDIR", "TMP", "TEMP", "TEMPDIR", "FORGE_SCRATCH"), scratch.seen_path)
        os.environ.update({**self._spec.environment, **temporary})
        return self._tools.execute(payload, scratch.seen_path)

    # -- while it runs ---------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Until the job's process has ended and, if it is being ended, its descendants had their grace."""
        assert self._streams is not None
        poll = select.poll()
        sources: dict[int, Callable[[], bool]] = {s.read_end: s.pump for s in self._streams}
        sources[self._result_fd] = self._read_result
        sources[self._control.fileno()] = self._obey
        for fd in (*sources, self._pidfd):
            poll.register(fd, select.POLLIN)
        sample_at, interval = self._begin + _FIRST_SAMPLE_SECONDS, _FIRST_SAMPLE_SECONDS
        while self._status is None or self._in_grace():
            ready = poll.poll(max(0.0, self._next_wakeup(sample_at) - time.monotonic()) * 1000)
            for fd, _ in ready:
                if fd == self._pidfd:
                    self._reap()
                    poll.unregister(fd)
                elif not sources[fd]():
                    poll.unregister(fd)
            if time.monotonic() >= sample_at:
                self._sample()
                interval = min(interval * 1.5, _LAST_SAMPLE_SECONDS)
                sample_at = time.monotonic() + interval
            self._check_clock()

    def _next_wakeup(self, sample_at: float) -> float:
        times = [sample_at]
        if self._kill_at is not None:
            times.append(self._kill_at)
            if self._status is not None:
                times.append(time.monotonic() + 0.02)  # the job's process is gone: are its descendants?
        elif self._spec.limits.wall_seconds is not None:
            times.append(self._begin + self._spec.limits.wall_seconds)
        return min(times)

    def _check_clock(self) -> None:
        elapsed = time.monotonic() - self._begin
        wall = self._spec.limits.wall_seconds
        if self._kill_at is None and self._status is None and wall is not None and elapsed >= wall:
            self._timed_out = True
            self._terminate("timeout", self._spec.grace_seconds)
        if self._kill_at is not None and time.monotonic() >= self._kill_at and self._status is None:
            self._kill("end of the grace")
            self._reap()

    def _in_grace(self) -> bool:
        """Whether descendants still have time to end by themselves after the job's own process ended."""
        return self._kill_at is not None and time.monotonic() < self._kill_at and bool(self._members())

    def _members(self) -> list[int]:
        if self._cgroup is None:
            return []
        return self._cgroup.pids()

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
        assert self._started is not None
        for pid in self._members() or [self._started.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _kill(self, why: str) -> None:
        """End the PID namespace, and with it every process in it, whatever it ignores."""
        if self._started is not None and self._started.init.returncode is None:
            self._record.event("kill", why=why)
            self._started.init.kill()

    def _reap(self) -> None:
        """Take the exit status of the job's process, and first what only its /proc entry knows."""
        if self._started is None or self._status is not None:
            return
        pid = self._started.pid
        deadline = time.monotonic() + _DEATH_SECONDS
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if time.monotonic() > deadline:  # stuck in the kernel (D state): go on without it
                self._status = signal.SIGKILL
                return
            select.poll().poll(5)
        self._io = _read_io(pid)
        _, self._status = os.waitpid(pid, 0)
        self._record.event("exited")
        if self._cgroup is not None:
            self._leftover = _names(self._cgroup.pids())

    def _sample(self) -> None:
        if self._cgroup is None:
            return
        self._counters = self._cgroup.counters()
        self._anon_peak = max(self._anon_peak, self._counters.memory_anon_bytes)
        self._pids_peak = max(self._pids_peak, self._counters.pids_peak)
        if self._counters.oom_kills and self._status is None:
            self._kill("a process was killed for memory")

    def _read_result(self) -> bool:
        chunk = os.read(self._result_fd, 65536)
        if len(self._result) < _RESULT_BYTES:
            self._result += chunk
        return bool(chunk)

    # -- after -----------------------------------------------------------------------------------------------------

    def fail(self, error: Exception) -> None:
        """The sandbox could not be made or, once the job was started, it could not be watched any more."""
        if self._started is None:
            self._setup_error = str(error)
        else:
            self._supervisor_error = f"the supervisor failed while the job ran: {error}; the job was killed"

    def end_everything(self) -> None:
        """Kill what is left, wait until it is dead, read the last of the streams and the counters."""
        if self._started is None:
            return
        if self._status is None:  # watching it failed; a namespace's first process does not die before this is reaped
            self._kill("the supervisor failed")
            self._reap()
        self._started.end(_DEATH_SECONDS)
        self._record.event("all dead")
        assert self._streams is not None
        for stream in self._streams:
            stream.drain()
        while select.select([self._result_fd], [], [], 0)[0] and self._read_result():
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
        number = os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else result.get("signal")
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

    def clear_up(self, verdict: Verdict) -> None:
        """Remove cgroup and scratch; what cannot be removed is noted, and is no reason to fail the job."""
        if self._cgroup is not None and not _remove_patiently(self._cgroup):
            self._record.event("residue", what="cgroup")
        keep = self._spec.keep_scratch
        if self._scratch is None:
            return
        if keep is KeepScratch.ALWAYS or (keep is KeepScratch.FAILED and not verdict.ok):
            self._record.event("scratch kept", directory=self._scratch.keep())
            return
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


def _remove_patiently(cgroup: JobCgroup) -> bool:
    """A dead process leaves its cgroup a moment after it was reaped."""
    for pause_milliseconds in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500):
        if pause_milliseconds:
            select.poll().poll(pause_milliseconds)
        if cgroup.remove():
            return True
    return False


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


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
