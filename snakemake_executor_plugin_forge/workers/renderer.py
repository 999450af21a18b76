"""The renderer: a process forked from Snakemake, with the workflow in it, that renders commands of remote jobs.

Snakemake is stopped at the moment when it would start the shell. Nothing else may happen in that process meanwhile, so
Snakemake's own process cannot do it; for local jobs the nursery does it.
"""

from __future__ import annotations

import os
import pickle
import select
import socket
import threading
from collections.abc import Callable

from ..kernel.inherited import fork
from ..kernel.process_tree import wait_for_child
from ..spec.errors import NurseryError
from .channel import Channel, Frame, FrameKind
from .launcher import Command
from .nursery import Render, leave_snakemake

_LAST_SECONDS = 10.0
INNER = "inner snakemake: it is no shell command alone, or it is more than one"


class Renderer:
    """Snakemake's end of the channel. Make it while Snakemake has no threads; any thread may use it."""

    def __init__(self, prepare: Callable[[], None], render: Render) -> None:
        ours, theirs = socket.socketpair()
        itself = os.pidfd_open(os.getpid())
        self._pid = fork(lambda: _serve(theirs, prepare, render, itself))
        os.close(itself)
        theirs.close()
        self._channel = Channel(ours)
        self._lock = threading.Lock()

    def command(self, payload: bytes, scratch: str) -> tuple[Command, str]:
        """Return the command of a job, and how it came about (for the record).

        Args:
            payload: a pickled pair: the payload for :data:`.nursery.Render`, or None; and the command to fall back on.
            scratch: $TMPDIR to render it with.

        Raises:
            NurseryError: if the process is dead.
        """
        call, inner = pickle.loads(payload)
        if call is None:
            return inner, INNER
        with self._lock:
            self._channel.send(Frame(FrameKind.RENDER, body=pickle.dumps((call, scratch))))
            answer = None
            while answer is None and not self._channel.closed:
                answer = next(self._channel.receive(), None)
        if answer is None:
            raise NurseryError(f"the process that renders commands (pid {self._pid}) was killed")
        command: Command | None = pickle.loads(answer.body)
        return (inner, INNER) if command is None else (command, "launcher")

    def close(self) -> None:
        """End the process; one that hangs is left to itself."""
        self._channel.close()
        wait_for_child(self._pid, _LAST_SECONDS)


def _serve(connected: socket.socket, prepare: Callable[[], None], render: Render, parent: int) -> None:
    """Serve until Snakemake closes the channel, or is dead while a process that it has forked holds its end open.

    Args:
        parent: a pidfd of Snakemake.
    """
    leave_snakemake("forge-render", (connected.fileno(), parent), prepare)
    channel = Channel(connected)
    poll = select.poll()
    for readable in (connected.fileno(), parent):
        poll.register(readable, select.POLLIN)
    while not channel.closed and parent not in dict(poll.poll()):
        for frame in channel.receive():
            call, scratch = pickle.loads(frame.body)
            channel.send(Frame(FrameKind.DONE, frame.name, pickle.dumps(render(call, scratch))))
