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
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import assert_never

from ...kernel import inherited
from ...kernel.descriptors import is_readable
from ...kernel.failpoints import reached
from ...kernel.process_tree import command_name, descendants, stat, wait_for_child
from ...kernel.shortage import REMEDY, patiently
from ...spec.backend import Done
from ...spec.errors import NurseryError
from ...spec.host import Host
from ...spec.job import LaunchSpec
from ...spec.resources import check_resources
from ...spec.verdict import Order, Verdict
from ...supervisor.reaper import unheard_of
from ...workers import nursery
from ...workers.channel import Channel, FrameKind, Mailbox
from ...workers.nursery import NurserySetup
from .jobs import Instruction, LocalJob, LocalJobs, Send, Tell, TellLost

_READY_SECONDS = 60.0
_ORPHAN_SECONDS = 40.0
_REFUSED_SECONDS = 1.0


class LocalBackend:
    """A :class:`...spec.backend.Backend` on this host. One thread of its own reads all messages and calls ``done``."""

    name = "local"

    def __init__(self, setup: NurserySetup, notice: Callable[[str], None]) -> None:
        """Fork the nursery. Call it while Snakemake has no threads.

        Args:
            notice: shows a sentence to the user.

        Raises:
            NurseryError: if the process from which jobs are forked does not get ready.
        """
        self._notice = notice
        self._as_before = _prepare()
        try:
            self._start(setup)
        except BaseException:
            self._as_before()
            raise
        self._jobs = LocalJobs()  # with the lock of the condition
        self._idle = threading.Condition()
        self._outgoing: queue.SimpleQueue[Callable[[], list[Instruction]] | Instruction | None] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._sending = threading.Lock()
        self._death = f"the nursery (pid {self._pid}) was killed"
        self._thread = threading.Thread(target=self._pump, name="forge-backend", daemon=True)
        self._thread.start()

    def _start(self, setup: NurserySetup) -> None:
        ours, theirs = socket.socketpair()
        self._mailbox, writers = Mailbox.pair()
        self._channel = Channel(ours)
        itself = os.pidfd_open(os.getpid())
        try:
            self._pid = _fork(lambda: nursery.run(setup, theirs, writers, itself))
        finally:
            os.close(itself)
            theirs.close()
            writers.close()
        try:
            self.host = self._await_ready()
        except BaseException:
            self._channel.close()
            self._mailbox.close()
            wait_for_child(self._pid, _REFUSED_SECONDS)  # it may hang
            raise

    def _await_ready(self) -> Host:
        if not self._wait_for_mail(time.monotonic() + _READY_SECONDS):
            raise NurseryError(f"the nursery (pid {self._pid}) did not get ready within {_READY_SECONDS:.0f} s")
        frame = self._mailbox.receive()
        if frame is None:
            raise NurseryError(f"the nursery (pid {self._pid}) died while it probed this host; see its message above")
        if frame.kind is FrameKind.REFUSED:
            raise NurseryError(frame.body.decode())
        host: Host = pickle.loads(frame.body)
        return host

    # -- called by Snakemake's threads: they never block, and no signal can cut a frame in two ---------------------

    def check(self, rule: str, resources: dict[str, object]) -> None:
        check_resources(rule, resources, self.host)

    def submit(self, spec: LaunchSpec, payload: bytes, done: Done, *, is_command: bool) -> None:
        job = LocalJob(spec, payload, done, is_command)
        try:
            for instruction in self._decide(partial(self._jobs.submitted, job)):
                self._put(instruction)
        except KeyboardInterrupt:  # nobody knows whether the nursery has got it; if so, the end of the run ends it
            self._later(partial(self._jobs.interrupted, spec.name))
            raise

    def cancel(self, name: str, order: Order) -> None:
        self._later(partial(self._jobs.cancelled, name, order))

    def cancel_all(self, order: Order) -> None:
        self._later(partial(self._jobs.cancelled, "", order))

    def leave(self, order: Order) -> None:
        self._later(partial(self._jobs.left, order))

    def wait_idle(self, timeout_seconds: float) -> bool:
        with self._idle:
            return self._idle.wait_for(lambda: not self._jobs, timeout_seconds)

    def close(self) -> None:
        self._later(self._jobs.closed)
        self._later(None)
        self._thread.join(_ORPHAN_SECONDS)
        if self._thread.is_alive():  # it waits for a nursery that takes nothing
            self._channel.hang_up()
            self._thread.join()
        self._close_sockets()
        os.close(self._wake_read)
        wake_write, self._wake_write = self._wake_write, -1  # a late caller must not write into another file
        os.close(wake_write)
        self._as_before()

    def _close_sockets(self) -> None:
        """Let the nursery end, and wait until it and its supervisors have, or for as long as that may take."""
        self._channel.close()
        deadline = time.monotonic() + _ORPHAN_SECONDS
        while self._wait_for_mail(deadline) and self._mailbox.receive() is not None:
            pass
        if not wait_for_child(self._pid, deadline - time.monotonic()):
            self._notice(_hanging(self._pid))
        self._mailbox.close()

    def _wait_for_mail(self, deadline: float) -> bool:
        return is_readable(self._mailbox.fileno(), seconds=max(0.0, deadline - time.monotonic()))

    def _decide(self, event: Callable[[], list[Instruction]]) -> list[Instruction]:
        with self._idle:
            instructions = event()
            if not self._jobs:
                self._idle.notify_all()
            return instructions

    def _put(self, instruction: Instruction) -> None:
        """Send a frame at once if that takes one call that cannot block; else the thread does it in its turn.

        To wake the thread means to hand it the interpreter and to wait to get it back: 1 to 2 ms of Snakemake's time.
        """
        if isinstance(instruction, Send):
            with self._sending:
                if self._outgoing.empty() and self._channel.send_at_once(instruction.frame):
                    return
        self._later(instruction)

    def _later(self, what: Callable[[], list[Instruction]] | Instruction | None) -> None:
        """Have the thread decide on an event, carry out an instruction, or end."""
        self._outgoing.put(what)
        with suppress(BlockingIOError):
            os.write(self._wake_write, b"x")

    # -- the thread ------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Serve until close(). A bug of Forge ends the nursery and all jobs, so that the run does not wait for ever."""
        poll = select.poll()
        for readable in (self._channel, self._mailbox, self._wake_read):
            poll.register(readable, select.POLLIN)
        while True:
            try:
                if not self._serve(poll):
                    return
            except Exception as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        traceback.print_exc()
        self._death = f"a thread of Forge failed: {error!r}"
        self._channel.hang_up()

    def _serve(self, poll: select.poll) -> bool:
        """Serve the descriptors that can be read now; False after close()."""
        for fd, _ in poll.poll():
            if fd == self._wake_read:
                os.read(self._wake_read, 4096)
                if not self._carry_out_queued():
                    return False
            elif fd == self._channel.fileno() or not self._read_mail():
                poll.unregister(self._channel)
                poll.unregister(self._mailbox)
                self._nursery_died()
                return True  # the rest of this poll may be about the other one
        return True

    def _read_mail(self) -> bool:
        """Take one message; False if there will be none."""
        frame = self._mailbox.receive()
        if frame is None:
            return False
        if frame.kind is FrameKind.REFUSED:
            self._handle(partial(self._jobs.refused, frame.name, frame.body.decode()))
        else:
            self._handle(partial(self._jobs.ended, frame.name, pickle.loads(frame.body)))
        return True

    def _carry_out_queued(self) -> bool:
        """Empty the queue; False after close()."""
        while True:
            with self._sending:
                try:
                    item = self._outgoing.get_nowait()
                except queue.Empty:
                    return True
                if isinstance(item, Send):  # with the lock: no later frame overtakes it
                    self._channel.send(item.frame)
                    continue
            if item is None:
                return False
            try:
                if callable(item):
                    self._handle(item)
                else:
                    self._carry_out(item)
            except Exception as error:  # the rest of the queue still counts
                self._fail(error)

    def _handle(self, event: Callable[[], list[Instruction]]) -> None:
        for instruction in self._decide(event):
            try:
                self._carry_out(instruction)
            except Exception as error:  # the instructions that follow are about other jobs
                self._fail(error)

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case Send(frame):
                with self._sending:
                    self._channel.send(frame)
            case Tell(job, verdict):
                self._tell(job, verdict)
            case TellLost(job, cause, detail):
                self._tell(job, unheard_of(job.spec, cause, detail))
            case _:
                assert_never(instruction)

    def _tell(self, job: LocalJob, verdict: Verdict) -> None:
        reached("arrived", job.spec.rule)
        try:
            job.done(verdict)
            reached("told", job.spec.rule)
        finally:
            with self._idle:
                self._jobs.told(job.spec.name)
                self._idle.notify_all()

    def _nursery_died(self) -> None:
        """Wait for the last verdicts: supervisors end their jobs when the nursery is gone."""
        with self._idle:
            self._jobs.died(self._death)
        begin = time.monotonic()
        try:
            while self._wait_for_mail(begin + _ORPHAN_SECONDS) and self._read_mail():
                pass
        finally:
            self._handle(partial(self._jobs.silent, time.monotonic() - begin))


def _prepare() -> Callable[[], None]:
    """Prepare this process for the fork of the nursery; return a function that undoes that."""
    restore_signals = inherited.accept_signals()
    inherited.open_streams()
    # The objects of now (the workflow) will stay: a collection in the nursery would copy all of them, and one in
    # Snakemake takes 70 ms.
    was_frozen = gc.get_freeze_count() > 0
    gc.freeze()

    def undo() -> None:
        # A program frees this workflow before it runs the next one. The command line ends: frozen, in 0.15 s less.
        if not was_frozen and "snakemake.cli" not in sys.modules:
            gc.unfreeze()
        restore_signals()

    return undo


def _hanging(nursery: int) -> str:
    """Return a sentence about the processes that do not end with their run."""
    found = []
    for pid in (nursery, *descendants(nursery)):
        with suppress(OSError):
            if (name := command_name(pid)).startswith("forge-") and (state := stat(pid)[0]) != b"Z":
                found.append(f"{pid} ({name}, state {state.decode()})")
    return (
        f"Forge: the run is over, but after {_ORPHAN_SECONDS:.0f} s these processes of it have not ended: "
        f"{', '.join(found)}. The run does not wait for them. Once they have ended, the next run or snakemake-forge "
        "resume removes what they leave."
    )


def _fork(life: Callable[[], None]) -> int:
    try:
        return patiently(lambda: inherited.fork(life))
    except OSError as error:
        raise NurseryError(f"Forge cannot start the process from which jobs are forked: {error}. {REMEDY}.") from error
