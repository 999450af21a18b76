"""A process that is inside its sandbox and waits for its order; and the one that is made ahead of the next job.

::

    supervisor ── fork ──► enter the sandbox ── wait ──► order: cgroup, environment, payload ──► execute ──► result

To fork and to enter take longer than anything else that Forge does for a job, and depend on little of it: so, where
the next job will most likely need what the last one needed, a supervisor does it while Snakemake still thinks.
"""

from __future__ import annotations

import array  # noqa: F401 - socket.recv_fds would import it in every job's process
import json
import os
import pickle
import select
import signal
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from ..model import LaunchSpec, Network
from . import enter, mounts
from .enter import Base
from .scratch import Scratch, Slots
from .syscalls import Step

Execute = Callable[[bytes, Mapping[str, str], str], dict[str, object]]
"""What a job does: payload, variables for the environment, and scratch to ``{"exit_code", "signal", "error"}``.

SIGTERM is blocked when it is called; it unblocks it as soon as it can deal with it.
"""

_HEAD = struct.Struct("=Q")
_SETUP_FAILED = 125
_MAX_DOORS = 16


@dataclass(frozen=True, slots=True)
class View:
    """All that the way into a sandbox depends on: jobs that agree in it can use each other's process."""

    scratch_base: str
    network: Network
    exposed: tuple[str, ...]
    workdir: str
    identities: tuple[tuple[int, int] | None, ...]
    interactive: bool
    gpus: tuple[str, ...]

    @classmethod
    def of(cls, spec: LaunchSpec) -> View:
        """That of one job, now: a directory that was deleted and made anew since is another one."""
        identities = tuple(_identity(path) for path in (spec.workdir, *spec.exposed))
        return cls(
            spec.scratch_base, spec.network, spec.exposed, spec.workdir, identities, spec.interactive, spec.gpus
        )


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


class Inside:
    """One such process, as its supervisor sees it."""

    def __init__(self, view: View, base: Base, scratch: Scratch, execute: Execute, *, as_init: bool) -> None:
        """Fork it.

        Raises:
            OSError: for what is refused before it is forked; what is refused inside comes as its result.

        """
        self.view = view
        self.scratch = scratch
        self.as_init = as_init
        self.stdout, out = _pipe()
        self.stderr, err = _pipe()
        self.result_fd, result = _pipe()
        self._ours, theirs = socket.socketpair()
        steps = enter.entry_steps(view.network, scratch, view.exposed, view.workdir, view.gpus, base)
        streams = () if view.interactive else ((base.null, 0), (out, 1), (err, 2))

        def job() -> NoReturn:
            _job(steps, streams, theirs, result, execute, scratch, as_init)

        try:
            self.started = enter.start(base, job, as_init=as_init)
        finally:
            for fd in (out, err, result):
                os.close(fd)
            theirs.close()
        self.pidfd = os.pidfd_open(self.started.pid)

    def order(
        self,
        payload: bytes,
        environment: Mapping[str, str],
        disk_bytes: int | None,
        processes: int | None,
        doors: tuple[int, ...],
    ) -> None:
        """Have it execute a payload.

        Args:
            payload: for :data:`Execute`.
            environment: for :data:`Execute`.
            disk_bytes: no file of the job may be larger.
            processes: see :func:`.enter.limit`.
            doors: of its cgroup, which it enters last, so that what it costs to get there is not charged to the job.

        Raises:
            OSError: if it is dead.

        """
        body = pickle.dumps((payload, dict(environment), disk_bytes, processes), protocol=pickle.HIGHEST_PROTOCOL)
        socket.send_fds(self._ours, [_HEAD.pack(len(body))], doors)
        self._ours.sendall(body)

    def alive(self) -> bool:
        """Whether it is not dead yet."""
        return not select.select([self.pidfd], [], [], 0)[0]

    def close(self) -> None:
        """Close what belongs to a process that is dead and reaped."""
        for fd in (self.stdout, self.stderr, self.result_fd, self.pidfd):
            os.close(fd)
        self._ours.close()


class Standby:
    """Makes these processes; one of them ahead, where that is likely to be of use."""

    def __init__(self, base: Base, execute: Execute, slots: Slots, *, as_init: bool) -> None:
        self._base = base
        self._execute = execute
        self._slots = slots
        self.as_init = as_init
        self._last: View | None = None
        self._gpus: tuple[str, ...] = ()
        self._waiting: Inside | None = None

    def take(self, spec: LaunchSpec) -> Inside:
        """A process for a job: the one that waits, if it fits, or a new one.

        Raises:
            OSError, SandboxError: if it cannot be made.

        """
        view = View.of(spec)
        waiting, self._waiting = self._waiting, None
        if waiting is not None and waiting.view == view and waiting.alive():
            return waiting
        if waiting is not None:
            self._dismiss(waiting)
        return self._make(view)

    def prepare(self, spec: LaunchSpec) -> None:
        """After a job: make a process for the next one, if the last two needed the same.

        Not for jobs that run Python: the copy of a process with a workflow in memory would take too much of it.
        """
        view = View.of(spec)
        likely = view == self._last and self.as_init and not view.interactive
        self._last = view
        if likely:
            with suppress(OSError):  # it will come again when there is a job that it can be told of
                self._waiting = self._make(view)

    def _make(self, view: View) -> Inside:
        if view.gpus != self._gpus:
            mounts.place_gpus(self._gpus, view.gpus)
            self._gpus = view.gpus
        scratch = self._slots.take(view.scratch_base)
        return Inside(view, self._base, scratch, self._execute, as_init=self.as_init)

    def _dismiss(self, inside: Inside) -> None:
        inside.started.end(0)
        os.waitpid(inside.started.pid, 0)
        inside.close()
        self._slots.give_back(inside.scratch, inside.view.exposed)

    def close(self) -> None:
        """Remove what waits, and the scratch."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._dismiss(waiting)
        self._slots.close()


# -- in the job's process --------------------------------------------------------------------------------------------


def _job(
    steps: tuple[Step, ...],
    streams: tuple[tuple[int, int], ...],
    orders: socket.socket,
    result_fd: int,
    execute: Execute,
    scratch: Scratch,
    as_init: bool,
) -> NoReturn:
    """The forked process: enter, wait, execute, say how it went. Never returns into the supervisor's code."""
    code = _SETUP_FAILED
    try:
        for source, target in streams:
            os.dup2(source, target)
        enter.enter(steps, keep=(orders.fileno(), result_fd))
        doors, body = _receive(orders)
        payload, environment, disk_bytes, processes = pickle.loads(body)
        enter.limit(disk_bytes, processes, doors)
        result = execute(payload, environment, scratch.seen_path)
        code = 0 if result.get("exit_code") == 0 and not result.get("error") else 1
        _write_all(result_fd, json.dumps(result).encode())
    except BaseException as error:
        with suppress(OSError):
            _write_all(result_fd, json.dumps({"setup_error": f"{type(error).__name__}: {error}"}).encode())
    finally:
        if as_init:
            os.close(result_fd)
            while True:  # what the job left behind lives as long as this process, so that it can be counted
                signal.pause()
        os._exit(code)


def _receive(orders: socket.socket) -> tuple[list[int], bytes]:
    head, doors, _, _ = socket.recv_fds(orders, _HEAD.size, _MAX_DOORS)
    if len(head) < _HEAD.size:
        os._exit(0)  # there will be no job
    (size,) = _HEAD.unpack(head)
    body = bytearray()
    while len(body) < size:
        chunk = orders.recv(size - len(body))
        if not chunk:
            os._exit(0)
        body += chunk
    orders.close()
    return doors, bytes(body)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _pipe() -> tuple[int, int]:
    """A pipe whose read end does not block."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read_end, False)
    return read_end, write_end
