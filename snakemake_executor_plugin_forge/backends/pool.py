"""A pool of supervisors: forks one when none is idle, passes orders and verdicts on, and notices deaths.

Lives in a single-threaded process (nursery or launcher): processes with threads must never fork.
"""

from __future__ import annotations

import os
import pickle
import selectors
import socket
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from ..errors import NurseryError, SandboxError
from ..judge import shortened
from ..model import LaunchSpec, Verdict
from ..sandbox import privileges, sweep, syscalls
from ..sandbox.cgroup import RunCgroup
from ..sandbox.enter import prepare
from ..sandbox.inside import Execute, Standby
from ..sandbox.scratch import Slots
from ..sandbox.soft import SoftRun
from ..supervisor import Tools, supervise
from ..unattended import bury, lost
from .wire import Channel, Frame, Kind, Mailbox, hung_up

PATIENCE_SECONDS = 1.0  # for Snakemake to die as well


def encode_job(spec: LaunchSpec, payload: bytes) -> bytes:
    """The body of a RUN or RENDER frame. The spec is wrapped, so that who passes it on need not unpack it."""
    return pickle.dumps((pickle.dumps(spec), payload), protocol=pickle.HIGHEST_PROTOCOL)


def decode_job(body: bytes) -> tuple[LaunchSpec, bytes]:
    """What :func:`encode_job` was given."""
    spec, payload = pickle.loads(body)
    return pickle.loads(spec), payload


def goes_on(job: Frame) -> bool:
    """Whether the attempt of a RUN frame goes on without Snakemake."""
    return job.kind is Kind.RUN and decode_job(job.body)[0].goes_on


@dataclass(frozen=True, slots=True)
class Enclosure:
    """What the probe of this host found for its supervisors to use."""

    group: RunCgroup | None = None
    namespaces: str = "none"  # see model.Host
    gpus: tuple[str, ...] = ()  # device nodes that this run may give to its jobs
    declared: tuple[str, ...] = ()  # variables that the workflow wants in its jobs' environment
    processes_beside: int | None = None  # what RLIMIT_NPROC counts beside a job; None: the job's cgroup limits it


@dataclass(slots=True)
class Worker:
    """A supervisor process, as the pool sees it."""

    pid: int
    pidfd: int
    channel: Channel
    job: Frame | None = None


class Pool:
    """Owns the supervisors and the loop that serves whoever is above."""

    def __init__(self, upward: Channel, mailbox: Mailbox, execute: Execute, *, as_init: bool = False) -> None:
        """Args as below, and what a supervisor needs.

        Args:
            upward: where orders come from.
            mailbox: where verdicts go.
            execute: what a job does once inside.
            as_init: see :func:`..sandbox.enter.start`.
        """
        self.upward = upward
        self.mailbox = mailbox
        self.enclosure = Enclosure()
        self.selector = selectors.DefaultSelector()
        self._execute = execute
        self._as_init = as_init
        self._idle: deque[Worker] = deque()
        self._busy: dict[str, Worker] = {}
        self._closing = False
        self._is_subreaper = False
        self.has_left = False  # whether a job of it goes on without Snakemake

    def watch(self, fd: int, action: Callable[[], None]) -> None:
        """Call ``action`` whenever ``fd`` can be read."""
        self.selector.register(fd, selectors.EVENT_READ, action)

    def unwatch(self, fd: int) -> None:
        """The opposite; no error if it was not watched."""
        with suppress(KeyError, ValueError):
            self.selector.unregister(fd)

    def enclose(self, enclosure: Enclosure) -> None:
        """Take what was found by the probe."""
        self.enclosure = enclosure
        if isinstance(enclosure.group, SoftRun):  # nothing but parenthood says what a dead supervisor's job was
            sweep.become_subreaper()
            self._is_subreaper = True

    def serve(self) -> None:
        """Until the one above says that it is over, or is."""
        self.watch(self.upward.fileno(), self._from_above)
        while not (self._closing and not self.active()):
            for key, _ in self.selector.select():
                if key.fd in self.selector.get_map():  # an earlier action of this round may have removed it
                    key.data()

    def active(self) -> bool:
        """Whether jobs are under way."""
        return bool(self._busy)

    def close(self) -> None:
        """End the supervisors, all of which are idle."""
        for worker in list(self._idle):
            worker.channel.close()
        for worker in list(self._idle):
            with suppress(ChildProcessError):
                os.waitpid(worker.pid, 0)

    # -- frames ----------------------------------------------------------------------------------------------------

    def _from_above(self) -> None:
        for frame in self.upward.receive():
            self.handle(frame)
        if self.upward.closed:
            self._closing = True
            self.unwatch(self.upward.fileno())
            self.handle(Frame(Kind.LEAVE))
            self.handle(Frame(Kind.KILL, body=b"Snakemake died"))

    def handle(self, frame: Frame) -> None:
        """Carry out one order."""
        match frame.kind:
            case Kind.RUN | Kind.BURY:
                self._start(frame)
            case Kind.CANCEL | Kind.KILL:
                workers = [self._busy[frame.name]] if frame.name in self._busy else []
                for worker in workers if frame.name else list(self._busy.values()):
                    worker.channel.send(frame)
            case Kind.QUIT:
                self._closing = True
            case Kind.LEAVE:
                self._leave()
            case _:
                raise NurseryError(f"unexpected frame {frame.kind.name}")

    def _leave(self) -> None:
        """Let those go that go on without Snakemake: they are nobody's from now on."""
        for name, worker in list(self._busy.items()):
            if worker.job is not None and goes_on(worker.job):
                self.has_left = True
                worker.channel.send(Frame(Kind.LEAVE))
                self._busy.pop(name)
                self._let_go(worker)
                self.ended(name)

    def _start(self, frame: Frame) -> None:
        """Give a job to an idle supervisor, or to a new one."""
        try:
            worker = self._idle.popleft() if self._idle else self._fork()
        except NurseryError as error:
            self.mailbox.send(Frame(Kind.REFUSED, frame.name, str(error).encode()))
            self.ended(frame.name)
            return
        worker.job = frame
        self._busy[frame.name] = worker
        worker.channel.send(frame)
        if self._as_init and not self._idle:  # so that the next job finds one that has cleared up after its last
            with suppress(NurseryError):
                self._idle.append(self._fork())

    def _from_worker(self, worker: Worker) -> None:
        for frame in worker.channel.receive():
            self._busy.pop(frame.name, None)
            worker.job = None
            self._idle.append(worker)
            self.ended(frame.name)
            self._reap_inherited()
        if worker.channel.closed:
            self.unwatch(worker.channel.fileno())  # its death follows

    def ended(self, name: str) -> None:
        """An attempt is over; its verdict is in the mailbox."""

    # -- supervisors -----------------------------------------------------------------------------------------------

    def _fork(self) -> Worker:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _supervisor(self._execute, self._as_init, self.enclosure, theirs, self.mailbox)
        theirs.close()
        worker = Worker(pid, os.pidfd_open(pid), Channel(ours))
        answer = next(worker.channel.receive(), None)  # blocks until it is prepared
        if answer is None or answer.kind is not Kind.READY:
            self._forget(worker)
            reason = answer.body.decode() if answer else "it died while it was being set up"
            raise NurseryError(f"a job's namespaces cannot be made: {reason}")
        self.watch(worker.channel.fileno(), lambda: self._from_worker(worker))
        self.watch(worker.pidfd, lambda: self._on_death(worker))
        return worker

    def _forget(self, worker: Worker) -> None:
        self._let_go(worker)
        os.waitpid(worker.pid, 0)

    def _let_go(self, worker: Worker) -> None:
        self.unwatch(worker.channel.fileno())
        self.unwatch(worker.pidfd)
        worker.channel.close()
        os.close(worker.pidfd)

    def _reap_inherited(self) -> None:
        """Take note of the end of what dead supervisors left to this process, where it is a subreaper."""
        if self._is_subreaper:
            sweep.reap_orphans(self.own_children())

    def own_children(self) -> set[int]:
        """Children whose end somebody else takes note of."""
        return {worker.pid for worker in (*self._idle, *self._busy.values())}

    def _on_death(self, worker: Worker) -> None:
        """A supervisor died. Its job is dead too (see sandbox/enter.py); another supervisor clears up."""
        job = worker.job
        self._forget(worker)
        with suppress(ValueError):
            self._idle.remove(worker)
        if job is None:
            return
        self._busy.pop(job.name, None)
        if job.kind is Kind.BURY:  # the one who should bury died as well: say so rather than try for ever
            spec, _ = decode_job(pickle.loads(job.body)[0])
            verdict = lost(spec, "its supervisor and the one that cleared up after it were killed")
            self.mailbox.send(Frame(Kind.DONE, job.name, pickle.dumps(verdict)))
            self.ended(job.name)
            return
        self.bury(job, worker.pid)

    def bury(self, job: Frame, dead_pid: int) -> None:
        """Clear up after a job whose supervisor ``dead_pid`` died."""
        self._start(Frame(Kind.BURY, job.name, pickle.dumps((job.body, dead_pid))))


# -- in the supervisor's process -------------------------------------------------------------------------------------


class _Orders:
    """The supervisor's end of its channel: :class:`..watch.Control`."""

    def __init__(self, channel: Channel, mailbox: Mailbox | None = None) -> None:
        self._channel = channel
        self._mailbox = mailbox
        self._left = False  # it was told to go on without Snakemake
        self._ordered = False  # its end
        self.alone = False

    def begin(self) -> None:
        """A new attempt."""
        self._ordered = False

    def abandoned(self) -> bool:
        if self._ordered:
            return False
        if self._left:
            return True
        # Whoever kills all of Forge kills one after the other. If Snakemake lives, it is told of a job that was ended.
        patience = PATIENCE_SECONDS if self._channel.closed else 0.0
        return self._mailbox is not None and hung_up(self._mailbox.fileno(), patience)

    def let_go(self) -> None:
        self.alone = True
        self._channel.close()
        if self._mailbox is not None:
            self._mailbox.close()

    def fileno(self) -> int:
        return self._channel.fileno()

    def early(self) -> tuple[str, bool] | None:
        return self._last(self._channel.buffered())

    def order(self) -> tuple[str, bool] | None:
        order = self._last(self._channel.receive())
        if self._channel.closed:
            return "Snakemake or the process that started this job died", False
        return order

    def _last(self, frames: Iterable[Frame]) -> tuple[str, bool] | None:
        order = None
        for frame in frames:
            if frame.kind is Kind.LEAVE:
                self._left = True
            else:
                self._ordered = True
                order = (frame.body.decode(), frame.kind is Kind.CANCEL)
        return order


def _supervisor(
    execute: Execute, as_init: bool, enclosure: Enclosure, sock: socket.socket, mailbox: Mailbox
) -> NoReturn:
    """The whole life of a supervisor process: one attempt after the other."""
    code = 1
    try:
        syscalls.set_process_name("forge-super")
        privileges.close_descriptors((sock.fileno(), mailbox.fileno()))
        channel = Channel(sock)
        try:
            base = prepare(enclosure.namespaces, enclosure.gpus, enclosure.declared)
        except OSError as error:
            channel.send(Frame(Kind.REFUSED, body=str(error).encode()))
        else:
            channel.send(Frame(Kind.READY))
            slots = Slots(base.private)
            counted_below = isinstance(enclosure.group, SoftRun)
            standby = Standby(base, execute, slots, as_init=as_init, has_template=not counted_below)
            orders = _Orders(channel, mailbox)
            tools = Tools(enclosure.group, slots, standby, orders, enclosure.processes_beside)
            _serve(tools, orders, channel, mailbox)
            code = 0
    except BaseException:  # a bug of ours; the pool only sees that this process ended
        traceback.print_exc()
    finally:
        os._exit(code)


def _serve(tools: Tools, orders: _Orders, channel: Channel, mailbox: Mailbox) -> None:
    while not channel.closed:
        for frame in channel.receive():
            orders.begin()
            _attend(frame, tools, orders, channel, mailbox)
    tools.standby.close()
    if tools.group is not None:
        tools.group.release()  # the nursery's to do, unless it was killed; the last supervisor's call succeeds


def _attend(frame: Frame, tools: Tools, orders: _Orders, channel: Channel, mailbox: Mailbox) -> None:
    dead_pid = 0
    if frame.kind is Kind.RUN:
        spec, payload = decode_job(frame.body)
    elif frame.kind is Kind.BURY:
        body, dead_pid = pickle.loads(frame.body)
        spec, payload = decode_job(body)
    else:
        return  # an order to end a job that has ended already
    waiting = True

    def report(verdict: Verdict) -> None:
        nonlocal waiting
        if waiting and not orders.alone:
            if not mailbox.send(Frame(Kind.DONE, spec.name, pickle.dumps(verdict))):
                mailbox.send(Frame(Kind.DONE, spec.name, pickle.dumps(shortened(verdict))))
            channel.send(Frame(Kind.ENDED, spec.name))
        waiting = False

    try:
        if frame.kind is Kind.RUN:
            supervise(spec, payload, tools, report)
            if orders.alone:
                return
            tools.standby.prepare(spec)
            if tools.group is not None:
                tools.group.prepare()
        else:
            report(bury(spec, tools.group, dead_pid))
    except (OSError, SandboxError) as error:
        traceback.print_exc()
        report(lost(spec, f"its supervisor failed: {error}"))
