"""The launcher: a process without a workflow, which starts jobs that are only a command.

A fork costs time in proportion to the memory of the process, twice: when the page tables are copied, and when the copy
ends. The nursery has a workflow and all of Snakemake in memory; the launcher is a fresh interpreter with the standard
library and Forge's supervisor. The nursery lets Snakemake render the command, and sends it to the launcher.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from ..kernel import syscalls
from ..kernel.imports import own_command
from ..kernel.inherited import DEFAULT_SIGNALS, keep_memory_shared, pending_signals
from ..kernel.shortage import patiently
from ..supervisor.usage import own_peak_kb
from .channel import Channel, Frame, FrameKind, Mailbox
from .pool import Enclosure, Pool

if TYPE_CHECKING:
    import subprocess


class Command(NamedTuple):
    """A program to execute, exactly as Snakemake would.

    :func:`execute` gets it pickled as a plain tuple: a process just forked would copy the pages that an import takes.
    """

    executable: str
    arguments: tuple[str, ...]
    directory: str
    changed: dict[str, str]  # variables that differ from the nursery's environment
    removed: tuple[str, ...]


def start(enclosure: Enclosure, mailbox: Mailbox) -> tuple[subprocess.Popen[bytes], Channel]:
    """Start a launcher. Called in the nursery."""
    import subprocess  # here, because it imports threading, which would make every fork of the launcher slower

    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    try:
        process = subprocess.Popen(
            [*own_command(__name__), str(theirs.fileno()), str(mailbox.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), mailbox.fileno()),
        )
    except OSError:
        channel.close()
        raise
    finally:
        theirs.close()
    channel.send(Frame(FrameKind.READY, body=pickle.dumps(enclosure)))
    return process, channel


class _Launcher(Pool):
    def tell_above(self, name: str) -> None:
        self.upward.send(Frame(FrameKind.ENDED, name))


def main() -> None:
    """The whole life of the launcher process; its arguments are descriptors of the channel and of the mailbox."""
    fd, mailbox_fd = map(int, sys.argv[1:])
    syscalls.set_process_name("forge-launcher")
    os.set_inheritable(mailbox_fd, False)
    upward = Channel(socket.socket(fileno=fd))
    frames = upward.receive()
    first = next(frames, None)
    if first is None:
        return
    pool = _Launcher(upward, Mailbox(socket.socket(fileno=mailbox_fd)), execute, as_init=True)
    pool.enclose(pickle.loads(first.body))
    keep_memory_shared()
    for frame in frames:  # jobs that came in the same read
        pool.handle(frame)
    pool.serve()
    pool.close()


def execute(payload: bytes, environment: Mapping[str, str], scratch: str) -> dict[str, object]:
    """Start the command and reap processes until it has ended. Runs as the first process of the job's PID namespace.

    posix_spawn(3) needs no second copy of this process's page tables. SIGTERM goes to every process of the job's cgroup
    and so reaches the command directly; only a SIGTERM from before its start is passed on. Here it stays blocked.

    Raises:
        OSError: if the command cannot be executed.
    """
    del scratch  # the command was rendered with it
    command = Command(*pickle.loads(payload))
    variables = dict(os.environ)
    for name in command.removed:
        variables.pop(name, None)
    variables.update(command.changed)
    variables.update(environment)  # last: no runtime takes a job's scratch or devices away
    if signal.SIGTERM in pending_signals():
        return {"exit_code": None, "signal": int(signal.SIGTERM)}
    os.chdir(command.directory)
    pid = patiently(
        lambda: os.posix_spawn(
            command.executable, command.arguments, variables, setsid=True, setsigmask=(), setsigdef=DEFAULT_SIGNALS
        )
    )
    if signal.SIGTERM in pending_signals():
        os.kill(pid, signal.SIGTERM)
    while (ended := os.wait())[0] != pid:
        pass
    code = os.waitstatus_to_exitcode(ended[1])
    # Measured here: an ordinary user's supervisor cannot read this process's /proc entry (PR_SET_DUMPABLE).
    own, used = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    largest = own_peak_kb(used.ru_maxrss, started_by=own.ru_maxrss)
    children = (largest, used.ru_inblock, used.ru_oublock)
    ended_by = {"exit_code": code, "signal": None} if code >= 0 else {"exit_code": None, "signal": -code}
    return {**ended_by, "children": children}
