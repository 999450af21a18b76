"""A process that forks the jobs of a supervisor, which becomes their parent all the same.

After a fork, each page that either side writes to is copied first. A supervisor writes to a thousand pages before it
forks again; its template, a fork of it that does nothing but this, writes to some ten. Counted over 200 jobs: page
faults a job 945 → 1, and 300 in the template; system time a job 6.8 ms → 2.5 ms, and 1.6 ms in the template
(docs/decisions/0022-template.md).
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import struct
from collections.abc import Sequence
from typing import NoReturn

from ..kernel import syscalls
from ..kernel.inherited import fork
from ..kernel.shortage import retold, told
from . import privileges
from .base import Base
from .enter import EntryPlan
from .job_process import Descriptors, Execute, Ready, receive, run_job, send
from .namespaces import Started, fork_init, fork_into, hold_namespace

_ANSWER_BYTES = 4096
_HOLDER = struct.Struct("=Q")
_HOLDER_SECONDS = 5.0


class Template:
    """Forks on order; its children are those of the process that made it (CLONE_PARENT of clone(2))."""

    def __init__(self, base: Base, execute: Execute, *, as_init: bool) -> None:
        """Prepare it; the first order starts it. Args: see :class:`.standby.Standby`."""
        self._base = base
        self._execute = execute
        self._as_init = as_init
        self._pid = 0
        self._ours: socket.socket | None = None  # None: it is not started
        self._plan: EntryPlan | None = None  # of the last order
        self._pickled = b""

    def start(self, plan: EntryPlan, descriptors: Descriptors) -> Started:
        """Start the process of a job: a :data:`.job_process.Start`.

        Raises:
            OSError: if that is refused, or the template was killed.
        """
        if self._as_init:
            return Started(self._order(plan, descriptors), None)
        holder, namespace = hold_namespace(self._base)
        try:
            return Started(self._order(plan, (*descriptors, namespace), holder.pid), holder)
        except OSError:
            os.kill(holder.pid, signal.SIGKILL)
            holder.end(_HOLDER_SECONDS)
            raise
        finally:
            os.close(namespace)

    def _order(self, plan: EntryPlan, descriptors: Sequence[int], holder: int = 0) -> int:
        if plan is not self._plan:
            self._plan, self._pickled = plan, pickle.dumps(plan, protocol=pickle.HIGHEST_PROTOCOL)
        body = _HOLDER.pack(holder) + self._pickled
        try:
            answer = self._ask(body, descriptors)
        except (BrokenPipeError, ConnectionResetError):  # somebody has killed it
            self.close()
            answer = self._ask(body, descriptors)
        if not answer:
            raise OSError("the process that starts jobs was killed")
        if not answer.isdigit():
            raise retold(answer)
        return int(answer)

    def _ask(self, body: bytes, descriptors: Sequence[int]) -> bytes:
        ours = self._ours if self._ours is not None else self._begin()
        send(ours, body, descriptors)
        return ours.recv(_ANSWER_BYTES)

    def _begin(self) -> socket.socket:
        """Start it. It and its children share what is worked out here, and the next one need not do it again."""
        assert self._plan is not None
        ready = Ready.of(self._plan, self._base, self._execute, as_init=self._as_init)
        ours, theirs = socket.socketpair()
        try:
            self._pid = fork(lambda: self._serve(theirs, self._pickled, ready))
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._ours = ours
        return ours

    def _serve(self, orders: socket.socket, known: bytes, ready: Ready) -> NoReturn:
        """Obey orders: the whole life of the template."""
        syscalls.set_process_name("forge-template")
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        privileges.close_descriptors((orders.fileno(), self._base.null, self._base.own_pid_namespace))
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # for its children: see namespaces.start()
        while True:
            descriptors, received = receive(orders)
            (holder,), body = _HOLDER.unpack_from(received), received[_HOLDER.size :]
            if body != known:  # most jobs of a run are entered in the same way
                known, plan = body, pickle.loads(body)
                ready = Ready.of(plan, self._base, self._execute, as_init=self._as_init)
            orders.send(self._fork(ready, descriptors, holder))
            for fd in descriptors:
                os.close(fd)

    def _fork(self, ready: Ready, descriptors: list[int], holder: int) -> bytes:
        def job() -> NoReturn:
            run_job(ready, descriptors[:4])

        try:
            if self._as_init:
                return b"%d" % fork_init(job, syscalls.CLONE_PARENT)
            return b"%d" % fork_into(self._base, descriptors[4], holder, job, syscalls.CLONE_PARENT)
        except OSError as error:
            return told(error)

    def close(self) -> None:
        """End it."""
        if self._ours is not None:
            self._ours.close()
            self._ours = None
            os.waitpid(self._pid, 0)
