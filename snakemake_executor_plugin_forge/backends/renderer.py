"""Works out the commands of jobs that run elsewhere: a process that was forked from Snakemake with the workflow in it.

As the nursery does for the launcher, and for the same reason: while Snakemake renders a command, the moment in which it
would start the shell is caught, and nothing else may happen in that process meanwhile.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from ..errors import NurseryError
from ..sandbox import privileges, syscalls
from .launcher import Command
from .nursery import Render
from .wire import Channel, Frame, Kind

INNER = "inner snakemake: it is no shell command alone, or it is more than one"


class Renderer:
    """Snakemake's end. To be made while Snakemake has no threads; used from any."""

    def __init__(self, prepare: Callable[[], None], render: Render) -> None:
        ours, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()
            _serve(Channel(theirs), prepare, render)
        theirs.close()
        self._channel = Channel(ours)
        self._lock = threading.Lock()

    def command(self, payload: bytes, scratch: str) -> tuple[Command, str]:
        """The command of a job, and how it came about (for the record).

        Args:
            payload: a pickled pair: what the nursery's Render takes, or None; and the command to fall back on.
            scratch: $TMPDIR to render it with.

        Raises:
            NurseryError: if the process is dead.

        """
        call, inner = pickle.loads(payload)
        if call is None:
            return inner, INNER
        with self._lock:
            self._channel.send(Frame(Kind.RENDER, body=pickle.dumps((call, scratch))))
            answer = None
            while answer is None and not self._channel.closed:
                answer = next(self._channel.receive(), None)
        if answer is None:
            raise NurseryError(f"the process that renders commands (pid {self._pid}) was killed")
        command: Command | None = pickle.loads(answer.body)
        return (inner, INNER) if command is None else (command, "launcher")

    def close(self) -> None:
        """End the process."""
        self._channel.close()
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _serve(channel: Channel, prepare: Callable[[], None], render: Render) -> NoReturn:
    """The whole life of the process."""
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        syscalls.set_process_name("forge-render")
        privileges.close_descriptors((channel.fileno(),))
        prepare()
        gc.disable()
        gc.freeze()
        while not channel.closed:
            for frame in channel.receive():
                call, scratch = pickle.loads(frame.body)
                channel.send(Frame(Kind.DONE, frame.name, pickle.dumps(render(call, scratch))))
        code = 0
    except BaseException:  # a bug of ours; Snakemake only sees that this process ended
        traceback.print_exc()
    finally:
        os._exit(code)
