"""The local backend: Snakemake's side of the nursery."""

from __future__ import annotations

import gc
import os
import pickle
import queue
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace

from ..errors import NurseryError
from ..faults import reached
from ..model import Done, Host, LaunchSpec, Verdict
from ..plan import check_resources, with_gpus
from ..unattended import lost, never_started
from . import nursery
from .gpus import Devices, Grant
from .nursery import Orders
from .pool import encode_job
from .wire import Channel, Frame, Kind, Mailbox

_READY_SECONDS = 60.0
_ORPHAN_SECONDS = 40.0


class LocalBackend:
    """Runs jobs on this machine. One thread of its own does all the talking and calls ``done``."""

    name = "local"

    def __init__(self, orders: Orders, notice: Callable[[str], None]) -> None:
        """Fork the nursery. To be called while Snakemake has no threads.

        Args:
            orders: for the nursery.
            notice: shows a sentence to the user; called in this backend's thread.

        Raises:
            NurseryError: if the process from which jobs are forked does not get ready.

        """
        ours, theirs = socket.socketpair()
        self._mailbox, writers = Mailbox.pair()
        sys.stdout.flush()
        sys.stderr.flush()
        # What is there now (the workflow) will stay: a collection in the nursery would copy all of it to look at it,
        # and one in Snakemake takes 70 ms.
        gc.freeze()
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()
            nursery.run(orders, theirs, writers)
        theirs.close()
        writers.close()
        self._channel = Channel(ours)
        try:
            self.host = self._await_ready()
        except NurseryError:  # it may hang, so it is not waited for
            self._channel.close()
            self._mailbox.close()
            raise
        self._jobs: dict[str, tuple[LaunchSpec, Done]] = {}
        self._idle = threading.Condition()
        self._outgoing: queue.SimpleQueue[Frame | Callable[[], None] | None] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._sending = threading.Lock()
        self._dead: str | None = None
        # The thread's own: nobody else touches them.
        self._gpus = Devices(orders.gpus)
        self._waiting: dict[str, tuple[bytes, bool]] = {}  # for GPUs: payload, and whether it is a command
        self._notice: Callable[[str], None] | None = notice
        self._thread = threading.Thread(target=self._pump, name="forge-backend", daemon=True)
        self._thread.start()

    def _await_ready(self) -> Host:
        if not select.select([self._mailbox], [], [], _READY_SECONDS)[0]:
            raise NurseryError(f"the nursery (pid {self._pid}) did not get ready within {_READY_SECONDS:.0f} s")
        frame = self._mailbox.receive()
        if frame is None:
            raise NurseryError(f"the nursery (pid {self._pid}) died while it probed this host; see its message above")
        host: Host = pickle.loads(frame.body)
        return host

    # -- called by Snakemake's threads: they never block, and no signal can cut a frame in two ---------------------

    def check(self, rule: str, resources: dict[str, object]) -> None:
        """See :class:`..model.Backend`.

        Raises:
            UsageError: see :func:`..plan.check_resources`.

        """
        check_resources(rule, resources, self.host)

    def submit(self, spec: LaunchSpec, payload: bytes, done: Done, *, is_command: bool) -> None:
        """See :class:`..model.Backend`."""
        with self._idle:
            self._jobs[spec.name] = (spec, done)
        if spec.gpu_count:
            self._later(lambda: self._ask_for_gpus(spec, payload, is_command))
        else:
            self._put(_order(spec, payload, is_command))

    def cancel(self, name: str, reason: str) -> None:
        """See :class:`..model.Backend`."""
        self._later(lambda: self._cancel([name], Frame(Kind.CANCEL, name, reason.encode())))

    def cancel_all(self, reason: str, grace: bool) -> None:
        """See :class:`..model.Backend`."""
        frame = Frame(Kind.CANCEL if grace else Kind.KILL, body=reason.encode())
        self._later(lambda: self._cancel(self._gpus.dismiss(), frame))

    def leave(self, reason: str) -> None:
        """See :class:`..model.Leaves`."""
        self._later(lambda: self._leave(reason))

    def wait_idle(self, timeout_seconds: float) -> bool:
        """See :class:`..model.Backend`."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._jobs, timeout_seconds)

    def close(self) -> None:
        """See :class:`..model.Backend`."""
        self._put(Frame(Kind.QUIT))
        self._put(None)
        self._thread.join()
        self.close_socket()
        os.close(self._wake_read)
        wake_write, self._wake_write = self._wake_write, -1  # a late caller must not write into another file
        os.close(wake_write)

    def close_socket(self) -> None:
        """Let the nursery end, and wait until it and its supervisors have."""
        self._channel.close()
        deadline = time.monotonic() + _ORPHAN_SECONDS
        while self._wait_for_mail(deadline) and self._mailbox.receive() is not None:
            pass
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        self._mailbox.close()

    def _wait_for_mail(self, deadline: float) -> bool:
        return bool(select.select([self._mailbox], [], [], max(0.0, deadline - time.monotonic()))[0])

    def _put(self, frame: Frame | None) -> None:
        """Send it at once if that takes one call that cannot block; else through the thread, which takes its turn.

        To wake the thread means to hand it the interpreter and to wait to get it back: 1 to 2 ms of Snakemake's time.
        """
        if frame is not None:
            with self._sending:
                if self._dead is None and self._outgoing.empty() and self._channel.send_at_once(frame):
                    return
        self._later(frame)

    def _later(self, what: Frame | Callable[[], None] | None) -> None:
        """Have the thread send a frame, make a call, or end."""
        self._outgoing.put(what)
        with suppress(BlockingIOError):
            os.write(self._wake_write, b"x")

    # -- the thread ------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        poll = select.poll()
        for readable in (self._channel, self._mailbox, self._wake_read):
            poll.register(readable, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._wake_read:
                    os.read(self._wake_read, 4096)
                    if not self._send_queued():
                        return
                elif self._dead is None and (fd == self._channel.fileno() or not self._read_mail()):
                    poll.unregister(self._channel)
                    poll.unregister(self._mailbox)
                    self._nursery_died()

    def _read_mail(self) -> bool:
        """Take one message; False at the end of them all."""
        frame = self._mailbox.receive()
        if frame is not None:
            self._arrived(frame)
        return frame is not None

    def _send_queued(self) -> bool:
        """Send what is in the queue; False if it says that this was all."""
        while True:
            with self._sending:
                try:
                    frame = self._outgoing.get_nowait()
                except queue.Empty:
                    return True
                if frame is None:
                    return False
                if self._dead is None and isinstance(frame, Frame):
                    self._channel.send(frame)
                    continue
            if isinstance(frame, Frame):
                self._not_sent(frame)
            else:
                frame()

    def _send(self, frame: Frame) -> None:
        """Send it now: what is said of a job must not overtake what starts it."""
        with self._sending:
            if self._dead is None:
                self._channel.send(frame)
                return
        self._not_sent(frame)

    def _not_sent(self, frame: Frame) -> None:
        """The nursery is dead."""
        if frame.kind in (Kind.RUN, Kind.RENDER):
            self._finish(frame.name, lambda spec: lost(spec, f"{self._dead}; nothing of it was run"))

    def _arrived(self, frame: Frame) -> None:
        if frame.kind is Kind.REFUSED:
            reason = frame.body.decode()
            self._finish(frame.name, lambda spec: lost(spec, f"it could not be started: {reason}"))
            return
        verdict: Verdict = pickle.loads(frame.body)
        if self._dead is not None and not verdict.ok:  # the supervisor can only guess why it was to end the job
            verdict = replace(verdict, reason=f"{verdict.reason} ({self._dead})")
        self._finish(frame.name, lambda _: verdict)

    def _finish(self, name: str, verdict_of: Callable[[LaunchSpec], Verdict]) -> None:
        with self._idle:
            job = self._jobs.get(name)
        if job is None:  # its supervisor died right after it had reported: it was buried, and reported again
            return
        spec, done = job
        if spec.gpu_count:  # before Snakemake is told: it may take its time
            self._start(self._gpus.release(name))
        reached("arrived", spec.rule)
        try:
            done(verdict_of(spec))
            reached("told", spec.rule)
        finally:
            with self._idle:
                self._jobs.pop(name, None)
                self._idle.notify_all()

    def _nursery_died(self) -> None:
        """Supervisors end their jobs when the nursery is gone, and say so; report those of which nothing was heard."""
        self._dead = f"the nursery (pid {self._pid}) was killed"
        self._gpus.dismiss()
        begin = time.monotonic()
        while self._wait_for_mail(begin + _ORPHAN_SECONDS) and self._read_mail():
            pass
        waited = time.monotonic() - begin
        for name in list(self._jobs):
            self._finish(name, lambda spec: lost(spec, f"{self._dead}; its job ended {waited:.1f} s later"))

    # -- GPUs (in the thread) --------------------------------------------------------------------------------------

    def _ask_for_gpus(self, spec: LaunchSpec, payload: bytes, is_command: bool) -> None:
        self._waiting[spec.name] = (payload, is_command)
        self._start(self._gpus.ask(spec.name, spec.gpu_count))
        if self._notice is not None and spec.name in self._waiting:
            self._notice(
                f"Forge: rule {spec.rule} waits for a free GPU. Its cores count as used meanwhile; with "
                f"--resources gpu={len(self._gpus)} Snakemake starts other jobs instead."
            )
            self._notice = None  # said once

    def _start(self, grants: Iterable[Grant]) -> None:
        """Start those that have got their GPUs."""
        for name, nodes in grants:
            payload, is_command = self._waiting.pop(name)
            with self._idle:
                spec, done = self._jobs[name]
                spec = with_gpus(spec, nodes)
                self._jobs[name] = (spec, done)
            self._send(_order(spec, payload, is_command))

    def _cancel(self, names: list[str], frame: Frame) -> None:
        """End those that wait for GPUs here, and have the others ended."""
        reason = frame.body.decode()
        for name in names:
            if self._waiting.pop(name, None) is not None:
                self._finish(name, lambda spec: never_started(spec, f"{reason}, while it waited for a free GPU"))
        self._send(frame)

    def _leave(self, reason: str) -> None:
        with self._idle:
            left = [name for name, (spec, _) in self._jobs.items() if spec.goes_on]
            others = [name for name in self._jobs if name not in left]
        for name in others:
            self._cancel([name], Frame(Kind.CANCEL, name, reason.encode()))
        self._send(Frame(Kind.LEAVE))
        with self._idle:
            for name in left:
                self._jobs.pop(name, None)
            self._idle.notify_all()


def _order(spec: LaunchSpec, payload: bytes, is_command: bool) -> Frame:
    return Frame(Kind.RENDER if is_command else Kind.RUN, spec.name, encode_job(spec, payload))
