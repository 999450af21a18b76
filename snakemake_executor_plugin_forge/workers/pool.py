"""A pool of supervisors: forks one when none is idle, passes orders on, and notices deaths.

It lives in a single-threaded process (nursery or launcher): a process with threads must never fork.
"""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import socket
import traceback
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import assert_never

from ..kernel import inherited, process_tree, syscalls
from ..kernel.shortage import REMEDY, SECONDS, Patience, is_shortage, retold, told
from ..sandbox import privileges
from ..sandbox.base import prepare, work_out_ahead
from ..sandbox.cgroups.base import RunCgroup
from ..sandbox.cgroups.polled import PolledRun
from ..sandbox.filesystem.kept import Kept
from ..sandbox.filesystem.mounts import MountTable
from ..sandbox.filesystem.scratch import ScratchPool
from ..sandbox.job_process import Execute
from ..sandbox.standby import Standby
from ..spec.errors import SandboxError
from ..spec.file_policy import below
from ..spec.job import LaunchSpec
from ..spec.outcome import shortened
from ..spec.verdict import Cause, EndedBy, Order, Verdict
from ..supervisor.prepared import Tools
from ..supervisor.reaper import lost, reap
from ..supervisor.supervisor import supervise
from .assignments import Assignments, Fork, Instruction, LetGo, Pass, Refuse, ReportLost
from .channel import Channel, Frame, FrameKind, Mailbox, MessageTooLargeError, hung_up

PATIENCE_SECONDS = 1.0  # for Snakemake to die as well
_REASON = 10_000  # characters
_RETRY_SECONDS = 0.5


def encode_job(spec: LaunchSpec, payload: bytes) -> bytes:
    """Return the body of a RUN or RENDER frame. Processes that pass it on need not unpickle the spec."""
    return pickle.dumps((pickle.dumps(spec), payload), protocol=pickle.HIGHEST_PROTOCOL)


def decode_job(body: bytes) -> tuple[LaunchSpec, bytes]:
    """Return the arguments of :func:`encode_job`."""
    spec, payload = pickle.loads(body)
    return pickle.loads(spec), payload


def detachable(job: Frame) -> bool:
    """Whether the attempt of a frame continues without Snakemake."""
    return job.kind is FrameKind.RUN and decode_job(job.body)[0].detachable


def deliver(mailbox: Mailbox, spec: LaunchSpec, verdict: Verdict) -> None:
    """Send a verdict, with less text if it is too large for the mailbox: its record has all of it."""
    for candidate in (verdict, shortened(verdict)):
        with suppress(MessageTooLargeError):
            mailbox.send(Frame(FrameKind.DONE, spec.name, pickle.dumps(candidate)))
            return
    # Only where an administrator has set net.core.wmem_default below 192 KiB.
    short = lost(spec, Cause.SUPERVISOR_FAILED, f"its verdict, {verdict.outcome}, is too large to be passed on")
    mailbox.send(Frame(FrameKind.DONE, spec.name, pickle.dumps(short)))


@dataclass(frozen=True, slots=True)
class Enclosure:
    """The results of the probe of this host that supervisors use."""

    group: RunCgroup | None = None
    namespaces: str = "none"  # see spec.host.Host
    gpus: tuple[str, ...] = ()  # device nodes that this run may give to its jobs
    declared: tuple[str, ...] = ()  # variables that the workflow wants in its jobs' environment
    open_files: int | None = None  # the soft limit of jobs (RLIMIT_NOFILE): this process has a higher one
    processes_beside: int | None = None  # what RLIMIT_NPROC counts beside a job; None: the job's cgroup limits it
    home: Kept | None = None  # the workflow's home
    removed: tuple[str, ...] = ()  # variables that jobs do not get; the nursery has forgotten some of them


@dataclass(frozen=True, slots=True)
class Worker:
    """A supervisor process, as the pool sees it."""

    pid: int
    pidfd: int
    channel: Channel


class Pool:
    """The supervisors of one process, and the loop that serves the process above. :class:`Assignments` decides."""

    def __init__(self, upward: Channel, mailbox: Mailbox, execute: Execute, *, as_init: bool = False) -> None:
        """Begin without supervisors.

        Args:
            upward: where orders come from.
            mailbox: where verdicts go.
            execute: runs in the job, once it is in its sandbox.
            as_init: see :func:`..sandbox.namespaces.start`.
        """
        self.upward = upward
        self.mailbox = mailbox
        self.enclosure = Enclosure()
        self.selector = selectors.DefaultSelector()
        self.assignments = Assignments(detachable, keeps_spare=as_init)
        self._execute = execute
        self._as_init = as_init
        self._workers: dict[int, Worker] = {}
        self._is_subreaper = False
        self._patience: Patience | None = None  # while no supervisor can be forked
        self._table = MountTable()
        self._points = self._table.points()

    def watch(self, fd: int, action: Callable[[], None]) -> None:
        """Call ``action`` whenever ``fd`` can be read."""
        self.selector.register(fd, selectors.EVENT_READ, action)

    def unwatch(self, fd: int) -> None:
        """Stop watching ``fd``; no error if it was not watched."""
        with suppress(KeyError, ValueError):
            self.selector.unregister(fd)

    def enclose(self, enclosure: Enclosure) -> None:
        """Take the results of the probe."""
        self.enclosure = enclosure
        if enclosure.open_files is not None:
            inherited.raise_open_files()  # it has two for each supervisor
        if isinstance(enclosure.group, PolledRun):  # only parenthood says which processes a dead supervisor's job had
            process_tree.become_subreaper()
            self._is_subreaper = True

    def serve(self) -> None:
        """Serve until the process above says that the run is over, or dies, and no job is left."""
        self.watch(self.upward.fileno(), self._from_above)
        while not self.assignments.is_over:
            for key, _ in self.selector.select(_RETRY_SECONDS if self.assignments.waits else None):
                if key.fd in self.selector.get_map():  # an earlier action of this round may have removed it
                    key.data()
            if self.assignments.waits:
                self.carry_out(self.assignments.try_again())

    def close(self) -> None:
        """End the supervisors, all of which are idle."""
        for worker in self._workers.values():
            worker.channel.close()
        for worker in self._workers.values():
            with suppress(ChildProcessError):
                os.waitpid(worker.pid, 0)

    def handle(self, frame: Frame) -> None:
        """Carry out one order."""
        if frame.kind is FrameKind.RUN and self._mounts_have_changed():
            self.carry_out(self.assignments.renew())
        self.carry_out(self.assignments.order(frame))

    def _mounts_have_changed(self) -> bool:
        """Whether a mount has come or gone where jobs see it since the last call: supervisors have a copy."""
        points = self._table.points()
        if points is self._points:
            return False
        home = self.enclosure.home
        around = (os.getcwd(), *(home.directories if home is not None else ()))
        before, self._points = self._points, points
        return any(below(point, directory) for point in {*before} ^ {*points} for directory in around)

    def carry_out(self, instructions: list[Instruction]) -> None:
        """Carry out instructions."""
        for instruction in instructions:
            match instruction:
                case Pass(pid, frame):
                    self._workers[pid].channel.send(frame)
                case Fork():
                    self._fork()
                case LetGo(pid, name):
                    self._let_go(self._workers[pid])
                    self.tell_above(name)
                case Refuse(name, reason):
                    self.mailbox.send(
                        Frame(FrameKind.REFUSED, name, reason[:_REASON].encode("utf-8", "backslashreplace"))
                    )
                    self.tell_above(name)
                case ReportLost(job):
                    spec, _ = decode_job(pickle.loads(job.body)[0])
                    deliver(self.mailbox, spec, lost(spec, Cause.REAPER_KILLED))
                    self.tell_above(job.name)
                case _:
                    assert_never(instruction)

    def tell_above(self, name: str) -> None:
        """Take note that an attempt is over and its verdict in the mailbox."""

    def own_children(self) -> set[int]:
        """Children that this process waits for by their pid."""
        return self.assignments.pids

    # -- events ----------------------------------------------------------------------------------------------------

    def _from_above(self) -> None:
        for frame in self.upward.receive():
            self.handle(frame)
        if self.upward.closed:
            self.orphaned()

    def orphaned(self) -> None:
        """End, with all jobs but those that continue, because the process above has died or closed its channel."""
        self.unwatch(self.upward.fileno())
        order = Order(EndedBy.CONTROLLER, "Snakemake died", grace=False)
        for frame in (
            Frame(FrameKind.QUIT),
            Frame(FrameKind.LEAVE),
            Frame(FrameKind.END, body=pickle.dumps(order)),
        ):
            self.handle(frame)

    def _from_worker(self, worker: Worker) -> None:
        for frame in worker.channel.receive():
            self.carry_out(self.assignments.ended(worker.pid, frame.name))
            self.tell_above(frame.name)
            if self._is_subreaper:
                process_tree.reap_orphans(self.own_children())
        if worker.channel.closed:
            self.unwatch(worker.channel.fileno())  # its death follows

    def _on_death(self, worker: Worker) -> None:
        self._forget(worker)
        self.carry_out(self.assignments.died(worker.pid))

    # -- supervisors -----------------------------------------------------------------------------------------------

    def _fork(self) -> None:
        try:
            worker = self._new_worker()
            answer = next(worker.channel.receive(), None)  # blocks until it is prepared
            if answer is None or answer.kind is not FrameKind.READY:
                self._forget(worker)
                raise retold(answer.body) if answer else OSError("it died while it was being set up")
        except OSError as error:
            self._not_forked(error)
            return
        self._patience = None
        self.watch(worker.channel.fileno(), lambda: self._from_worker(worker))
        self.watch(worker.pidfd, lambda: self._on_death(worker))
        self.carry_out(self.assignments.forked(worker.pid))

    def _new_worker(self) -> Worker:
        work_out_ahead(self.enclosure.declared)
        ours, theirs = socket.socketpair()
        with ExitStack() as undo:
            undo.callback(ours.close)
            try:
                pid = inherited.fork(
                    lambda: _supervisor(self._execute, self._as_init, self.enclosure, theirs, self.mailbox)
                )
            finally:
                theirs.close()
            undo.callback(os.waitpid, pid, 0)
            undo.callback(os.kill, pid, signal.SIGKILL)
            worker = self._workers[pid] = Worker(pid, os.pidfd_open(pid), Channel(ours))
            undo.pop_all()
        return worker

    def _not_forked(self, error: OSError) -> None:
        """Let the job wait until a supervisor is free or another try succeeds, if the host is short of something."""
        if self._patience is None or self.assignments.has_busy:
            self._patience = Patience()
        if self._patience.pause(error) is not None:
            self.carry_out(self.assignments.fork_postponed())
            return
        reason = f"a job's namespaces cannot be made: {error.strerror or error}"
        if is_shortage(error):
            reason = f"no process can be made for it, for {SECONDS:.0f} s: {error.strerror}. {REMEDY}"
        self.carry_out(self.assignments.fork_failed(reason))
        if not self.assignments.waits:
            self._patience = None

    def _forget(self, worker: Worker) -> None:
        self._let_go(worker)
        os.waitpid(worker.pid, 0)

    def _let_go(self, worker: Worker) -> None:
        del self._workers[worker.pid]
        self.unwatch(worker.channel.fileno())
        self.unwatch(worker.pidfd)
        worker.channel.close()
        os.close(worker.pidfd)


# -- in the supervisor's process -------------------------------------------------------------------------------------


class ControlChannel:
    """The supervisor's end of its channel; a :class:`..supervisor.prepared.Control`."""

    def __init__(self, channel: Channel, mailbox: Mailbox | None = None) -> None:
        self._channel = channel
        self._mailbox = mailbox
        self._left = False  # an order to continue without Snakemake came
        self._ordered = False  # an order to end the attempt came
        self.alone = False

    def begin(self) -> None:
        """Begin a new attempt."""
        self._ordered = False

    def abandoned(self) -> bool:
        if self._ordered:
            return False
        if self._left:
            return True
        # Whoever kills all of Forge kills one process after the other. A Snakemake that lives gets a verdict.
        patience = PATIENCE_SECONDS if self._channel.closed else 0.0
        return self._mailbox is not None and hung_up(self._mailbox.fileno(), patience)

    def let_go(self) -> None:
        self.alone = True
        self._channel.close()
        if self._mailbox is not None:
            self._mailbox.close()

    def fileno(self) -> int:
        return self._channel.fileno()

    def early(self) -> Order | None:
        return self._last(self._channel.buffered())

    def order(self) -> Order | None:
        order = self._last(self._channel.receive())
        if self._channel.closed:
            return Order(EndedBy.CONTROLLER, "Snakemake or the process that started this job died", grace=False)
        return order

    def _last(self, frames: Iterable[Frame]) -> Order | None:
        order: Order | None = None
        for frame in frames:
            if frame.kind is FrameKind.LEAVE:
                self._left = True
            else:
                self._ordered = True
                order = pickle.loads(frame.body)
        return order


def _supervisor(execute: Execute, as_init: bool, enclosure: Enclosure, sock: socket.socket, mailbox: Mailbox) -> None:
    """Prepare this process, a supervisor, and run one attempt after the other."""
    syscalls.set_process_name("forge-super")
    privileges.close_descriptors((sock.fileno(), mailbox.fileno()))
    if enclosure.open_files is not None:
        inherited.limit_open_files(enclosure.open_files)
    channel = Channel(sock)
    try:
        base = prepare(enclosure.namespaces, enclosure.gpus, enclosure.declared, enclosure.home)
    except OSError as error:
        channel.send(Frame(FrameKind.REFUSED, body=told(error)))
        return
    channel.send(Frame(FrameKind.READY))
    base = replace(base, removed=enclosure.removed)
    counted_below = isinstance(enclosure.group, PolledRun)
    standby = Standby(base, execute, ScratchPool(base.private), as_init=as_init, has_template=not counted_below)
    orders = ControlChannel(channel, mailbox)
    tools = Tools(enclosure.group, standby, orders, enclosure.processes_beside)
    _serve(tools, orders, channel, mailbox)


def _serve(tools: Tools, orders: ControlChannel, channel: Channel, mailbox: Mailbox) -> None:
    while not channel.closed:
        for frame in channel.receive():
            if frame.kind is FrameKind.QUIT:  # others take its place
                tools.standby.close()
                return
            orders.begin()
            _attend(frame, tools, orders, channel, mailbox)
    tools.standby.close()
    if tools.group is not None:
        tools.group.release()  # if the nursery was killed; the last supervisor's call succeeds


def _attend(frame: Frame, tools: Tools, orders: ControlChannel, channel: Channel, mailbox: Mailbox) -> None:
    dead_pid = 0
    if frame.kind is FrameKind.RUN:
        spec, payload = decode_job(frame.body)
    elif frame.kind is FrameKind.REAP:
        body, dead_pid = pickle.loads(frame.body)
        spec, payload = decode_job(body)
    else:
        return  # an order to end a job that has ended already
    waiting = True

    def report(verdict: Verdict) -> None:
        nonlocal waiting
        if waiting and not orders.alone:
            deliver(mailbox, spec, verdict)
            channel.send(Frame(FrameKind.ENDED, spec.name))
        waiting = False

    try:
        if frame.kind is FrameKind.RUN:
            supervise(spec, payload, tools, report)
            if orders.alone:
                return
            tools.standby.prepare(spec)
            if tools.group is not None:
                tools.group.prepare()
        else:
            report(reap(spec, tools.group, dead_pid))
    except (OSError, SandboxError) as error:
        traceback.print_exc()
        report(lost(spec, Cause.SUPERVISOR_FAILED, str(error)))
