"""The nursery: a single-threaded process, forked from Snakemake once, from which jobs descend.

::

    Snakemake (threads) ── nursery ──┬── supervisors ── jobs with Python in them (run, script, notebook, …)
                                     └── launcher ── supervisors ── jobs that are a shell command

It holds the workflow as Snakemake had parsed it when it was forked, so that a job needs no second Snakemake. If
Snakemake dies, it ends all jobs and then itself.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import subprocess
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NoReturn

from ..faults import reached
from ..model import ORDINARY, Host, Priority
from ..sandbox import privileges, syscalls
from ..sandbox.cgroup import RunCgroup
from ..sandbox.enter import mechanisms, private_directories
from ..sandbox.inside import Execute
from ..sandbox.probe import host_memory_bytes, open_run_cgroup, try_namespaces
from ..sandbox.scratch import seen_path
from ..sandbox.soft import SoftRun
from ..sandbox.weights import io_division
from ..units import parse_share
from . import launcher
from .launcher import Command
from .pool import PATIENCE_SECONDS, Enclosure, Pool, decode_job, encode_job, goes_on
from .wire import Channel, Frame, Kind, Mailbox, hung_up

Render = Callable[[bytes, str], Command | None]
"""A payload and the job's $TMPDIR to the command that it comes down to; None if it is more than a command."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What the nursery is told when it is forked."""

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


def run(orders: Orders, sock: socket.socket, mailbox: Mailbox) -> NoReturn:
    """The whole life of the nursery process; called right after the fork."""
    code = 1
    try:
        os.setsid()  # the terminal's Ctrl-C is Snakemake's to hear; it tells us
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        syscalls.set_process_name("forge-nursery")
        privileges.close_descriptors((sock.fileno(), mailbox.fileno()))
        orders.prepare()
        # The collector would touch, and so copy, every page that is shared with Snakemake.
        gc.disable()
        gc.freeze()
        _Nursery(orders, Channel(sock), mailbox).live()
        code = 0
    except BaseException:  # a bug of ours; Snakemake only sees that this process ended
        traceback.print_exc()
    finally:
        os._exit(code)


class _Nursery(Pool):
    """A pool of supervisors with the workflow in memory, and a launcher for the jobs that do not need it."""

    def __init__(self, orders: Orders, upward: Channel, mailbox: Mailbox) -> None:
        super().__init__(upward, mailbox, orders.execute)
        self._orders = orders
        self._launcher: tuple[subprocess.Popen[bytes], Channel] | None = None
        self._launched: dict[str, Frame] = {}
        self._private_tmp = False  # known after the probe

    def live(self) -> None:
        """From the probe to the end."""
        host = self._open()
        reached("probed")
        self.mailbox.send(Frame(Kind.READY, body=pickle.dumps(host)))
        self.serve()
        self.close()

    def _open(self) -> Host:
        """Probe the host, and make the cgroup of the run.

        No supervisor is forked ahead: where all jobs are commands none is ever needed here, and it would keep memory.
        """
        name = f"forge-{self._orders.run_id}"
        limit = parse_share(self._orders.run_memory, host_memory_bytes(), "--forge-run-memory")
        namespaces = try_namespaces(name, self._orders.workdir)
        cgroup, tried = open_run_cgroup(name, limit, self._orders.run_pids, self._orders.priority)
        refusals = "; ".join(f"{rung.name}: {rung.refusal}" for rung in tried if rung.refusal)
        group: RunCgroup = cgroup or SoftRun(limit, namespaced=namespaces.kind != "none")
        beside = None if cgroup else namespaces.processes_beside
        self.enclose(Enclosure(group, namespaces.kind, self._orders.gpus, self._orders.declared, beside))
        self._private_tmp = namespaces.kind != "none" and "/tmp" in private_directories()  # noqa: S108
        io = io_division(group.io_place)
        return Host(
            run_memory_bytes=limit,
            cpus=len(os.sched_getaffinity(0)),
            cgroup=group.version,
            cgroup_note=group.place if cgroup else f"no cgroup can be made: {refusals}",
            namespaces=namespaces.kind,
            namespaces_note=namespaces.refusal,
            mechanisms=mechanisms(namespaces.kind),
            gpus=self.enclosure.gpus,
            tried=tried,
            not_enforced=group.missing,
            layers_note=namespaces.layers_refusal,
            layers_apart=namespaces.layers_apart,
            home_layer=namespaces.home_layer,
            io_weight_note=io.refusal,
            io_devices=io.devices,
        )

    def active(self) -> bool:
        return super().active() or bool(self._launched)

    def own_children(self) -> set[int]:
        return super().own_children() | ({self._launcher[0].pid} if self._launcher is not None else set())

    def close(self) -> None:
        if self._launcher is not None:
            process, channel = self._launcher
            channel.close()
            process.wait()
        super().close()
        if self.enclosure.group is not None and not self.has_left:  # else it is up to the last one that goes on
            self.enclosure.group.remove()

    def handle(self, frame: Frame) -> None:
        if frame.kind is Kind.RENDER:
            self._render(frame)
            return
        if frame.kind is Kind.LEAVE:
            self.has_left |= any(map(goes_on, self._launched.values()))
        if frame.kind in (Kind.CANCEL, Kind.KILL, Kind.LEAVE) and self._launcher is not None:
            self._launcher[1].send(frame)
        super().handle(frame)

    def _render(self, frame: Frame) -> None:
        """Have Snakemake work out the command and launch it; what is not just a command takes the long way."""
        spec, payload = pickle.loads(frame.body)
        command = self._orders.render(payload, seen_path(frame.name)) if self._private_tmp else None
        if command is None:
            planned, payload = decode_job(frame.body)
            body = encode_job(replace(planned, how="nursery"), payload)
            super().handle(Frame(Kind.RUN, frame.name, body))
            return
        if self._launcher is None:
            self._start_launcher()
        assert self._launcher is not None
        job = Frame(Kind.RUN, frame.name, pickle.dumps((spec, pickle.dumps(command))))
        self._launched[frame.name] = job
        self._launcher[1].send(job)

    def _start_launcher(self) -> None:
        self._launcher = launcher.start(self.enclosure, self.mailbox)
        self.watch(self._launcher[1].fileno(), self._from_launcher)

    def _from_launcher(self) -> None:
        assert self._launcher is not None
        process, channel = self._launcher
        for frame in channel.receive():
            self._launched.pop(frame.name, None)
        if channel.closed:  # it was killed; its supervisors end their jobs, ours make sure of it
            self.unwatch(channel.fileno())
            self._launcher = None
            with suppress(ChildProcessError):
                process.wait()
            jobs, self._launched = list(self._launched.values()), {}
            going_on = [job for job in jobs if goes_on(job)]
            if going_on and hung_up(self.upward.fileno(), PATIENCE_SECONDS):  # all of Forge is being killed
                self.has_left = True
                jobs = [job for job in jobs if job not in going_on]
            for job in jobs:
                self.bury(job, dead_pid=0)
