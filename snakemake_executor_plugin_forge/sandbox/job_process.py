"""The process of a job until it executes something: what it does after the fork, and how it talks to its supervisor.

::

    fork ──► enter the sandbox ── wait ──► order: cgroup, environment, payload ──► execute ──► result
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from ..kernel import descriptors
from . import enter, namespaces
from .base import Base
from .enter import EntryPlan
from .fanotify import descriptors as mount_descriptors
from .filesystem.mount_plan import take_layers
from .namespaces import Started
from .privileges import Bounds, changed_signals
from .result import as_line

Execute = Callable[[bytes, Mapping[str, str], str], dict[str, object]]
"""The work of a job: payload, variables for the environment, and scratch to ``{"exit_code", "signal", "error"}``.

SIGTERM is blocked when it is called; it unblocks SIGTERM as soon as it can deal with it.
"""

Descriptors = tuple[int, int, int, int]
"""The descriptors that such a process inherits: for its order, its result, stdout, stderr."""

Start = Callable[[EntryPlan, Descriptors], Started]
"""Starts such a process."""

_SETUP_FAILED = 125
_HEAD = struct.Struct("=Q")
_MAX_DESCRIPTORS = 16


@dataclass(frozen=True, slots=True)
class Ready:
    """Everything that such a process needs, worked out before the fork."""

    base: Base
    steps: enter.EntrySteps
    is_interactive: bool
    execute: Execute
    as_init: bool
    signals: tuple[int, ...]  # see privileges.changed_signals()

    @classmethod
    def of(cls, plan: EntryPlan, base: Base, execute: Execute, *, as_init: bool) -> Ready:
        """Work out the system calls of a plan."""
        namespaces.prepare_ids(base)
        return cls(base, enter.entry_steps(plan, base), plan.key.interactive, execute, as_init, changed_signals())


def forking(base: Base, execute: Execute, *, as_init: bool) -> Start:
    """Start such processes as forks of this very process: see also :class:`.template.Template`."""

    def start(plan: EntryPlan, fds: Descriptors) -> Started:
        ready = Ready.of(plan, base, execute, as_init=as_init)
        return namespaces.start(base, lambda: run_job(ready, fds), as_init=as_init)

    return start


def run_job(ready: Ready, fds: Sequence[int]) -> NoReturn:
    """Enter, wait, execute, say how it went: the whole life of the forked process."""
    orders_fd, result_fd, out, err = fds
    code, pipe = _SETUP_FAILED, os.fstat(result_fd)
    try:
        if not ready.is_interactive:
            for source, target in ((ready.base.null, 0), (out, 1), (err, 2)):
                os.dup2(source, target)
        if ready.base.namespaces != "none":
            namespaces.spread_ids(ready.base)  # while it sees the host's /proc
        enter.enter(ready.steps.ahead, (orders_fd, result_fd), ready.signals)
        orders = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, orders_fd)  # else it asks what this is
        _offer(orders, take_layers())
        cgroup_files, body = receive(orders)
        payload, environment, scratch, bounds, inputs, own, audit, listened_to = pickle.loads(body)
        listener = enter.lock(ready.steps, inputs, own, Bounds(*bounds), cgroup_files, listened_to=listened_to)
        if audit:
            _offer(orders, mount_descriptors(audit))
            orders.recv(1)  # until they are watched
        if listener is not None:
            descriptors.send(orders, b"x", [listener])
            os.close(listener)
        orders.close()
        result = ready.execute(payload, environment, scratch)
        code = 0 if result.get("exit_code") == 0 and not result.get("error") else 1
        _tell(result_fd, pipe, result, code)
    except BaseException as error:
        try:
            _write_all(result_fd, as_line({"setup_error": f"{type(error).__name__}: {error}"}))
        except OSError:  # its supervisor died before this process had said that it would die with it: prctl(2)
            os._exit(code)
    finally:
        if ready.as_init:
            os.close(result_fd)
            while True:  # what the job left behind lives as long as this process, so that it can be counted
                signal.pause()
        os._exit(code)


def _offer(orders: socket.socket, mounts: Sequence[int]) -> None:
    """Send descriptors of mounts to the supervisor, and close them: no job gets them."""
    if mounts:
        descriptors.send(orders, b"x", mounts)
    for fd in mounts:
        os.close(fd)


def _tell(fd: int, pipe: os.stat_result, result: Mapping[str, object], code: int) -> None:
    """Write the result into the pipe, or end with ``code`` if user code has closed it."""
    with suppress(OSError):
        if os.path.samestat(os.fstat(fd), pipe):
            _write_all(fd, as_line(result))
            return
    os._exit(code)


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def send(to: socket.socket, body: bytes, fds: Sequence[int]) -> None:
    """Send bytes and descriptors to :func:`receive`.

    Raises:
        OSError: if nobody is there.
    """
    descriptors.send(to, _HEAD.pack(len(body)), fds)
    to.sendall(body)


def receive(source: socket.socket) -> tuple[list[int], bytes]:
    """Return what was sent; end this process if nobody is there any more."""
    head, fds = descriptors.receive(source, _HEAD.size, _MAX_DESCRIPTORS)
    if len(head) < _HEAD.size:
        os._exit(0)
    (size,) = _HEAD.unpack(head)
    body = bytearray()
    while len(body) < size:
        chunk = source.recv(size - len(body))
        if not chunk:
            os._exit(0)
        body += chunk
    return fds, bytes(body)
