"""The nursery: a single-threaded process, forked from Snakemake once, from which every job descends.

::

    Snakemake (threads) ── socket ── nursery ── socket each ── supervisors (reused) ── fork ── jobs

It holds the workflow as Snakemake had parsed it when it was forked, so that a job needs no second Snakemake. Processes
with threads must never fork, hence a process of its own. It passes frames on, forks supervisors when none is idle, and
clears up after one that died. If Snakemake dies, it ends all jobs and then itself.
"""

from __future__ import annotations

import gc
import os
import pickle
import selectors
import signal
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn

from ..errors import NurseryError
from ..model import Host, LaunchSpec
from ..sandbox import privileges, syscalls
from ..sandbox.cgroup import RunCgroup
from ..sandbox.enter import ROOT_MECHANISMS, USER_MECHANISMS, prepare
from ..sandbox.probe import host_memory_bytes, open_run_cgroup
from ..supervisor import Execute, Slots, Tools, bury, lost, supervise
from ..units import parse_share
from .wire import Channel, Frame, Kind


@dataclass(frozen=True, slots=True)
class Orders:
    """What the nursery is told when it is forked."""

    run_id: str
    run_memory: str  # a size or a percentage, as the user gave it
    run_pids: int | None
    prepare: Callable[[], None]
    execute: Execute
    keep: tuple[int, ...]  # descriptors that stay open in it


def encode_job(spec: LaunchSpec, payload: bytes) -> bytes:
    """The body of a RUN frame."""
    return pickle.dumps((spec, payload), protocol=pickle.HIGHEST_PROTOCOL)


def run(orders: Orders, sock: socket.socket) -> NoReturn:
    """The whole life of the nursery process; called right after the fork."""
    code = 1
    try:
        os.setsid()  # the terminal's Ctrl-C is Snakemake's to hear; it tells us
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        syscalls.set_process_name("forge-nursery")
        privileges.close_descriptors((sock.fileno(), *orders.keep))
        orders.prepare()
        # The collector would touch, and so copy, every page that is shared with Snakemake.
        gc.disable()
        gc.freeze()
        _Nursery(orders, Channel(sock)).serve()
        code = 0
    finally:
        os._exit(code)


@dataclass(slots=True)
class _Worker:
    """A supervisor process, as the nursery sees it."""

    pid: int
    pidfd: int
    channel: Channel
    job: Frame | None = None


@dataclass(slots=True)
class _Nursery:
    orders: Orders
    upward: Channel
    group: RunCgroup | None = None
    idle: deque[_Worker] = field(default_factory=deque)
    busy: dict[str, _Worker] = field(default_factory=dict)
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    closing: bool = False

    def serve(self) -> None:
        """Until Snakemake says that it is over, or is."""
        self.upward.send(Frame(Kind.READY, body=pickle.dumps(self._open())))
        self.selector.register(self.upward.fileno(), selectors.EVENT_READ, None)
        while not (self.closing and not self.busy):
            for key, _ in self.selector.select():
                match key.data:
                    case None:
                        self._from_snakemake()
                    case (_Worker() as worker, "frames"):
                        self._from_worker(worker)
                    case (_Worker() as worker, "death"):
                        self._on_death(worker)
        self._close()

    # -- beginning and end -----------------------------------------------------------------------------------------

    def _open(self) -> Host | str:
        """Probe the host by making the first supervisor and the cgroup of the run."""
        memory = host_memory_bytes()
        limit = parse_share(self.orders.run_memory, memory, "--forge-run-memory")
        name = f"forge-{self.orders.run_id}"
        self.group, note = open_run_cgroup(name, limit, self.orders.run_pids)
        namespaces, namespaces_note = "none", ""
        try:
            self.idle.append(self._fork_worker())
            namespaces = "root" if os.geteuid() == 0 else "user"
        except NurseryError as error:
            namespaces_note = str(error)
        mechanisms = {"root": ROOT_MECHANISMS, "user": USER_MECHANISMS}.get(namespaces, ())
        return Host(
            memory_bytes=memory,
            cpus=len(os.sched_getaffinity(0)),
            cgroup=self.group.version if self.group else "none",
            cgroup_note=note,
            namespaces=namespaces,
            namespaces_note=namespaces_note,
            mechanisms=mechanisms,
        )

    def _close(self) -> None:
        for worker in list(self.idle):
            worker.channel.close()
            with suppress(ChildProcessError):
                os.waitpid(worker.pid, 0)
        if self.group is not None:
            self.group.remove()

    # -- frames ----------------------------------------------------------------------------------------------------

    def _from_snakemake(self) -> None:
        for frame in self.upward.receive():
            match frame.kind:
                case Kind.RUN:
                    self._start(frame)
                case Kind.CANCEL | Kind.KILL:
                    self._pass_on(frame)
                case Kind.QUIT:
                    self.closing = True
                case _:
                    raise NurseryError(f"unexpected frame {frame.kind.name} from Snakemake")
        if self.upward.closed:
            self.closing = True
            with suppress(KeyError):
                self.selector.unregister(self.upward.fileno())
            self._pass_on(Frame(Kind.KILL, body=b"Snakemake died"))

    def _start(self, frame: Frame) -> None:
        """Give a job to an idle supervisor, or to a new one."""
        try:
            worker = self.idle.popleft() if self.idle else self._fork_worker()
        except NurseryError as error:
            self.upward.send(Frame(Kind.REFUSED, frame.name, str(error).encode()))
            return
        worker.job = frame
        self.busy[frame.name] = worker
        worker.channel.send(frame)

    def _pass_on(self, frame: Frame) -> None:
        workers = [self.busy[frame.name]] if frame.name in self.busy else []
        for worker in workers if frame.name else list(self.busy.values()):
            worker.channel.send(frame)

    def _from_worker(self, worker: _Worker) -> None:
        for frame in worker.channel.receive():
            self.busy.pop(frame.name, None)
            worker.job = None
            self.idle.append(worker)
            self.upward.send(frame)
        if worker.channel.closed:
            with suppress(KeyError):  # its death follows
                self.selector.unregister(worker.channel.fileno())

    # -- supervisors -----------------------------------------------------------------------------------------------

    def _fork_worker(self) -> _Worker:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _supervisor(self.orders, self.group, theirs)
        theirs.close()
        worker = _Worker(pid, os.pidfd_open(pid), Channel(ours))
        answer = next(worker.channel.receive(), None)  # blocks until it is prepared
        if answer is None or answer.kind is not Kind.READY:
            self._forget(worker)
            reason = answer.body.decode() if answer else "it died while it was being set up"
            raise NurseryError(f"a job's namespaces cannot be made: {reason}")
        self.selector.register(worker.channel.fileno(), selectors.EVENT_READ, (worker, "frames"))
        self.selector.register(worker.pidfd, selectors.EVENT_READ, (worker, "death"))
        return worker

    def _forget(self, worker: _Worker) -> None:
        for fd in (worker.channel.fileno(), worker.pidfd):
            with suppress(KeyError, ValueError):
                self.selector.unregister(fd)
        worker.channel.close()
        os.close(worker.pidfd)
        os.waitpid(worker.pid, 0)

    def _on_death(self, worker: _Worker) -> None:
        """A supervisor died. Its job is dead too (see sandbox/enter.py); another supervisor clears up."""
        job = worker.job
        self._forget(worker)
        with suppress(ValueError):
            self.idle.remove(worker)
        if job is None:
            return
        self.busy.pop(job.name, None)
        if job.kind is Kind.BURY:  # the one who should bury died as well: say so rather than try for ever
            (spec, _), _ = pickle.loads(job.body)
            verdict = lost(spec, "its supervisor and the one that cleared up after it were killed")
            self.upward.send(Frame(Kind.DONE, job.name, pickle.dumps(verdict)))
            return
        self._start(Frame(Kind.BURY, job.name, pickle.dumps((pickle.loads(job.body), worker.pid))))


# -- in the supervisor's process -------------------------------------------------------------------------------------


class _Orders:
    """The supervisor's end of its channel to the nursery: :class:`..supervisor.Control`."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def fileno(self) -> int:
        return self._channel.fileno()

    def order(self) -> tuple[str, bool] | None:
        order = None
        for frame in self._channel.receive():
            order = (frame.body.decode(), frame.kind is Kind.CANCEL)
        if self._channel.closed:
            return "Snakemake and the nursery died", False
        return order


def _supervisor(orders: Orders, group: RunCgroup | None, sock: socket.socket) -> NoReturn:
    """The whole life of a supervisor process: one attempt after the other."""
    code = 1
    try:
        syscalls.set_process_name("forge-super")
        privileges.close_descriptors((sock.fileno(), *orders.keep))
        channel = Channel(sock)
        try:
            base = prepare()
        except OSError as error:
            channel.send(Frame(Kind.REFUSED, body=str(error).encode()))
        else:
            channel.send(Frame(Kind.READY))
            _serve(Tools(base, group, Slots(base.private), orders.execute, _Orders(channel)), channel)
            code = 0
    finally:
        os._exit(code)


def _serve(tools: Tools, channel: Channel) -> None:
    while not channel.closed:
        for frame in channel.receive():
            _attend(frame, tools, channel)
    tools.slots.close()
    if tools.group is not None:
        tools.group.remove()  # the nursery's to do, unless it was killed; the last supervisor's call succeeds


def _attend(frame: Frame, tools: Tools, channel: Channel) -> None:
    if frame.kind is Kind.RUN:
        spec, payload = pickle.loads(frame.body)
    elif frame.kind is Kind.BURY:
        (spec, payload), dead_pid = pickle.loads(frame.body)
    else:
        return  # an order to end a job that has ended already
    try:
        verdict = supervise(spec, payload, tools) if frame.kind is Kind.RUN else bury(spec, tools.group, dead_pid)
    except OSError as error:
        verdict = lost(spec, f"its record could not be written: {error}")
    channel.send(Frame(Kind.DONE, spec.name, pickle.dumps(verdict)))
