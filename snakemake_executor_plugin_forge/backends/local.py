"""The local backend: Snakemake's side of the nursery."""

from __future__ import annotations

import os
import pickle
import queue
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from ..errors import HostError, NurseryError
from ..model import Done, Host, LaunchSpec, Verdict
from ..supervisor import lost
from . import nursery
from .nursery import Orders
from .pool import encode_job
from .wire import Channel, Frame, Kind

_READY_SECONDS = 60.0
_ORPHAN_SECONDS = 40.0


class LocalBackend:
    """Runs jobs on this machine. One thread of its own does all the talking and calls ``done``."""

    name = "local"

    def __init__(self, orders: Orders) -> None:
        """Fork the nursery. To be called while Snakemake has no threads.

        Raises:
            HostError, NurseryError: if this host cannot run contained jobs at all.

        """
        ours, theirs = socket.socketpair()
        # The write end lives in the nursery and all its supervisors: its end of file says that none is left.
        self._alive, alive_write = os.pipe2(os.O_CLOEXEC)
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()
            nursery.run(orders, theirs, alive_write)
        theirs.close()
        os.close(alive_write)
        self._channel = Channel(ours)
        try:
            self.host = self._await_ready()
        except NurseryError:  # it may hang, so it is not waited for
            self._channel.close()
            os.close(self._alive)
            raise
        self._jobs: dict[str, tuple[LaunchSpec, Done]] = {}
        self._idle = threading.Condition()
        self._outgoing: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._sending = threading.Lock()
        self._dead: str | None = None
        self._thread = threading.Thread(target=self._pump, name="forge-backend", daemon=True)
        self._thread.start()

    def _await_ready(self) -> Host:
        if not select.select([self._channel], [], [], _READY_SECONDS)[0]:
            raise NurseryError(f"the nursery (pid {self._pid}) did not get ready within {_READY_SECONDS:.0f} s")
        frame = next(self._channel.receive(), None)
        if frame is None:
            raise NurseryError(f"the nursery (pid {self._pid}) died while it probed this host; see its message above")
        host: Host = pickle.loads(frame.body)
        if host.namespaces == "none":
            self.close_socket()
            raise HostError(
                f"this host does not let Forge contain jobs: {host.namespaces_note}. Run as root, or allow user "
                "namespaces (sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000; on Ubuntu "
                "kernel.apparmor_restrict_unprivileged_userns=0), or use Snakemake's own executor (leave out "
                "--executor forge)."
            )
        return host

    # -- called by Snakemake's threads: they never block, and no signal can cut a frame in two ---------------------

    def submit(self, spec: LaunchSpec, payload: bytes, done: Done, *, is_command: bool) -> None:
        """See :class:`..model.Backend`."""
        with self._idle:
            self._jobs[spec.name] = (spec, done)
        self._put(Frame(Kind.RENDER if is_command else Kind.RUN, spec.name, encode_job(spec, payload)))

    def cancel(self, name: str, reason: str) -> None:
        """See :class:`..model.Backend`."""
        self._put(Frame(Kind.CANCEL, name, reason.encode()))

    def cancel_all(self, reason: str, grace: bool) -> None:
        """See :class:`..model.Backend`."""
        self._put(Frame(Kind.CANCEL if grace else Kind.KILL, body=reason.encode()))

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
        select.select([self._alive], [], [], _ORPHAN_SECONDS)
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        os.close(self._alive)

    def _put(self, frame: Frame | None) -> None:
        """Send it at once if that takes one call that cannot block; else through the thread, which takes its turn.

        To wake the thread means to hand it the interpreter and to wait to get it back: 1 to 2 ms of Snakemake's time.
        """
        if frame is not None:
            with self._sending:
                if self._dead is None and self._outgoing.empty() and self._channel.send_at_once(frame):
                    return
        self._outgoing.put(frame)
        with suppress(BlockingIOError):
            os.write(self._wake_write, b"x")

    # -- the thread ------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._wake_read:
                    os.read(self._wake_read, 4096)
                    if not self._send_queued():
                        return
                else:
                    for frame in self._channel.receive():
                        self._arrived(frame)
                    if self._channel.closed:
                        poll.unregister(self._channel)
                        self._nursery_died()

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
                if self._dead is None:
                    self._channel.send(frame)
                    continue
            if frame.kind in (Kind.RUN, Kind.RENDER):
                self._finish(frame.name, lambda spec: lost(spec, f"{self._dead}; nothing of it was run"))

    def _arrived(self, frame: Frame) -> None:
        if frame.kind is Kind.REFUSED:
            reason = frame.body.decode()
            self._finish(frame.name, lambda spec: lost(spec, f"it could not be started: {reason}"))
            return
        verdict: Verdict = pickle.loads(frame.body)
        self._finish(frame.name, lambda _: verdict)

    def _finish(self, name: str, verdict_of: Callable[[LaunchSpec], Verdict]) -> None:
        with self._idle:
            spec, done = self._jobs[name]
        try:
            done(verdict_of(spec))
        finally:
            with self._idle:
                self._jobs.pop(name, None)
                self._idle.notify_all()

    def _nursery_died(self) -> None:
        """Report its jobs, but not before they are dead: supervisors end theirs when the nursery is gone."""
        self._dead = f"the nursery (pid {self._pid}) was killed"
        begin = time.monotonic()
        select.select([self._alive], [], [], _ORPHAN_SECONDS)
        waited = time.monotonic() - begin
        for name in list(self._jobs):
            self._finish(name, lambda spec: lost(spec, f"{self._dead}; its job ended {waited:.1f} s later"))
