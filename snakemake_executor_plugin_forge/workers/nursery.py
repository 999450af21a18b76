"""The nursery: a single-threaded process, forked from Snakemake once, from which jobs descend.

::

    Snakemake (threads) ── nursery ──┬── supervisors ── jobs with Python in them (run, script, notebook, …)
                                     └── launcher ── supervisors ── jobs that are a shell command

It holds the workflow as Snakemake had parsed it before the fork, so that a job needs no second Snakemake. If Snakemake
dies, the nursery ends all jobs and then itself.
"""

from __future__ import annotations

import gc
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from ..kernel import inherited, syscalls
from ..kernel.environment import forget
from ..kernel.failpoints import reached
from ..kernel.imports import own_path
from ..kernel.shortage import is_shortage
from ..sandbox import privileges
from ..sandbox.base import private_directories
from ..sandbox.cgroups.ladder import host_memory_bytes
from ..sandbox.environment import secret, withheld
from ..sandbox.filesystem.kept import HeldHome, with_home
from ..sandbox.filesystem.scratch import seen_path
from ..sandbox.job_process import Execute
from ..sandbox.probe import probe_host
from ..spec.errors import HostError
from ..spec.host import Host
from ..spec.job import ORDINARY, Priority
from ..spec.paths import run_name
from ..spec.units import parse_share
from . import launcher
from .channel import Channel, Frame, FrameKind, Mailbox, hung_up
from .launcher import Command
from .pool import PATIENCE_SECONDS, Enclosure, Pool, decode_job, encode_job

Render = Callable[[bytes, str], Command | None]
"""Returns the command of a payload, given the job's $TMPDIR; None if the job is more than one command."""


@dataclass(frozen=True, slots=True)
class NurserySetup:
    """The facts of the run that the nursery needs."""

    run_id: str
    workdir: str
    run_memory: str  # a size or a percentage, as the user gave it
    run_pids: int | None
    gpus: tuple[str, ...]  # device nodes that jobs may be given
    declared: tuple[str, ...]  # variables that the workflow wants in its jobs' environment
    prepare: Callable[[], None]
    execute: Execute
    render: Render
    priority: Priority = ORDINARY
    scratch: str | None = None  # the directory for temporary files; None: the jobs need no home of the workflow


def run(setup: NurserySetup, sock: socket.socket, mailbox: Mailbox, parent: int) -> None:
    """Be the nursery: the whole life of this process, which was just forked.

    Args:
        parent: a pidfd of Snakemake. Its end of the channel stays open where it has forked processes that outlive it.
    """
    leave_snakemake("forge-nursery", (sock.fileno(), mailbox.fileno(), parent), setup.prepare)
    _Nursery(setup, Channel(sock), mailbox, parent).live()


def leave_snakemake(name: str, keep: tuple[int, ...], prepare: Callable[[], None]) -> None:
    """Make this process, which was forked from Snakemake, one of its own.

    Args:
        keep: descriptors that stay open.
        prepare: cuts the copy of Snakemake off from the original.
    """
    inherited.accept_signals()
    inherited.default_handlers()
    os.setsid()  # Snakemake hears the terminal's Ctrl-C, and passes it on
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    syscalls.set_process_name(name)
    inherited.close_beyond(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    privileges.replace_descriptors(keep)
    _take_streams()
    prepare()
    sys.path[:] = own_path(sys.path)  # a job's own process, and Snakemake's functions, get theirs back
    # The collector would write to, and so copy, every page that is shared with Snakemake.
    gc.disable()
    gc.freeze()


_inherited: list[object] = []


def _take_streams() -> None:
    """Give this process streams of its own, and /dev/null where Snakemake was started with a closed one.

    Those of the program that called Snakemake are kept, and so never deleted: that would write what is in their buffers
    a second time, or wait for ever where another thread was writing when this process was forked.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # it may have opened another file there since
            inherited.to_null(number)
        _inherited.extend((getattr(sys, name), getattr(sys, f"__{name}__")))
        inherited.take_stream(number)


class _Nursery(Pool):
    """A pool of supervisors with the workflow in memory, and a launcher for the jobs that do not need it."""

    def __init__(self, setup: NurserySetup, upward: Channel, mailbox: Mailbox, parent: int) -> None:
        super().__init__(upward, mailbox, setup.execute)
        self._parent = parent
        self._setup = setup
        self._launcher: tuple[subprocess.Popen[bytes], Channel] | None = None
        self._private_tmp = False  # known after the probe
        self._home: HeldHome | None = None

    def live(self) -> None:
        """Probe the host, then serve until the run is over."""
        try:
            host = self._open()
        except HostError as error:
            self.mailbox.send(Frame(FrameKind.REFUSED, body=str(error).encode("utf-8", "backslashreplace")))
            return
        self.watch(self._parent, self.orphaned)
        reached("probed")
        self.mailbox.send(Frame(FrameKind.READY, body=pickle.dumps(host)))
        self.serve()
        self.close()

    def _open(self) -> Host:
        """Probe the host, and make the cgroup of the run.

        No supervisor is forked ahead: where all jobs are commands none is ever needed here, and it would keep memory.
        """
        name = run_name(self._setup.run_id)
        limit = parse_share(self._setup.run_memory, host_memory_bytes(), "--forge-run-memory")
        setup = self._setup
        probe = probe_host(name, setup.workdir, limit, setup.run_pids, setup.priority, setup.gpus)
        removed = withheld(os.environ, setup.declared)
        forget(secrets := secret(removed), secrets)  # supervisors need the others, to hide the services that they name
        host = probe.host
        if setup.scratch is not None:
            host, self._home = with_home(host, setup.workdir, setup.scratch)
        home = self._home.kept if self._home is not None else None
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        beside = probe.processes_beside
        self.enclose(Enclosure(probe.group, host.namespaces, host.gpus, setup.declared, files, beside, home, removed))
        self._private_tmp = host.namespaces != "none" and "/tmp" in private_directories()  # noqa: S108
        return host

    def orphaned(self) -> None:
        self.unwatch(self._parent)
        super().orphaned()

    def own_children(self) -> set[int]:
        own = {self._launcher[0].pid} if self._launcher is not None else set[int]()
        return super().own_children() | own | ({self._home.pid} if self._home is not None else set())

    def close(self) -> None:
        if self._launcher is not None:
            process, channel = self._launcher
            channel.close()
            process.wait()
        super().close()
        if self._home is not None:
            self._home.leave(wait=not self.assignments.has_left)
        if self.enclosure.group is not None and not self.assignments.has_left:  # else the last job's supervisor does it
            self.enclosure.group.remove()

    def handle(self, frame: Frame) -> None:
        if frame.kind is FrameKind.RENDER and not self.assignments.is_closing:
            self._render(frame)
            return
        if frame.kind in (FrameKind.END, FrameKind.LEAVE) and self._launcher is not None:
            self._launcher[1].send(frame)
        super().handle(frame)

    def _render(self, frame: Frame) -> None:
        """Let Snakemake render the command, and have it launched; a job that is more than a command runs here."""
        spec, payload = pickle.loads(frame.body)
        command = self._setup.render(payload, seen_path(frame.name)) if self._private_tmp else None
        if command is None or not self._has_launcher():
            planned, payload = decode_job(frame.body)
            body = encode_job(replace(planned, how="nursery"), payload)
            super().handle(Frame(FrameKind.RUN, frame.name, body))
            return
        assert self._launcher is not None
        job = Frame(FrameKind.RUN, frame.name, pickle.dumps((spec, pickle.dumps(tuple(command)))))
        self.assignments.launched(job)
        self._launcher[1].send(job)

    def _has_launcher(self) -> bool:
        """Start the launcher if need be. Where the host is short of something, this process runs the job."""
        if self._launcher is None:
            try:
                self._launcher = launcher.start(self.enclosure, self.mailbox)
            except OSError as error:
                if not is_shortage(error):
                    raise
                return False
            self.watch(self._launcher[1].fileno(), self._from_launcher)
        return True

    def _from_launcher(self) -> None:
        assert self._launcher is not None
        process, channel = self._launcher
        for frame in channel.receive():
            self.assignments.launched_over(frame.name)
        if channel.closed:
            self.unwatch(channel.fileno())
            self._launcher = None
            with suppress(ChildProcessError):
                process.wait()
            # Whoever kills all of Forge kills one process after the other: Snakemake may be the next.
            is_alone = self.assignments.launcher_detachable and hung_up(self.upward.fileno(), PATIENCE_SECONDS)
            for job in self.assignments.launcher_died(is_alone=is_alone):
                self.carry_out(self.assignments.reap(job, dead_pid=0))
