"""The launcher: starts jobs that are nothing but a command, from a process that holds no workflow.

To fork a process costs in proportion to its memory, twice: when its page tables are copied, and when the copy ends. The
nursery has a workflow and all of Snakemake in memory; this is a fresh interpreter with the standard library and Forge's
own supervisor. The nursery has Snakemake render the command, and sends it here.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ..sandbox import syscalls
from ..sandbox.cgroup import RunCgroup
from .pool import Pool
from .wire import Channel, Frame, Kind

_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from {package}.backends.launcher import main
main(int(sys.argv[2]), int(sys.argv[3]))
"""


@dataclass(frozen=True, slots=True)
class Command:
    """A program to be executed, as Snakemake would have done it."""

    executable: str
    arguments: tuple[str, ...]
    directory: str
    changed: dict[str, str]  # environment: what differs from that of the nursery
    removed: tuple[str, ...]


def start(group: RunCgroup | None, alive: int) -> tuple[subprocess.Popen[bytes], Channel]:
    """Start a launcher; called in the nursery.

    Args:
        group: the cgroup of the run.
        alive: a descriptor that it and its supervisors keep open (see local.py).
    """
    ours, theirs = socket.socketpair()
    package = __name__.split(".", maxsplit=1)[0]
    root = str(Path(__file__).resolve().parents[2])
    program = [sys.executable, "-E", "-s", "-S", "-c", _PROGRAM.format(package=package)]
    process = subprocess.Popen(
        [*program, root, str(theirs.fileno()), str(alive)],
        stdin=subprocess.DEVNULL,
        pass_fds=(theirs.fileno(), alive),
    )
    theirs.close()
    channel = Channel(ours)
    channel.send(Frame(Kind.READY, body=pickle.dumps(group)))
    return process, channel


def main(fd: int, alive: int) -> None:
    """The whole life of the launcher process."""
    syscalls.set_process_name("forge-launcher")
    os.set_inheritable(alive, False)
    upward = Channel(socket.socket(fileno=fd))
    frames = upward.receive()
    first = next(frames, None)
    if first is None:
        return
    pool = Pool(upward, execute, (alive,))
    pool.group = pickle.loads(first.body)
    gc.collect()
    gc.disable()
    gc.freeze()
    for frame in frames:  # jobs that came in the same read
        pool.handle(frame)
    pool.serve()
    pool.close()


def execute(payload: bytes, scratch: str) -> NoReturn:
    """In the job: become the command.

    Raises:
        OSError: if it cannot be executed.
    """
    del scratch  # the command was rendered with it
    command: Command = pickle.loads(payload)
    environment = {**os.environ, **command.changed}
    for name in command.removed:
        environment.pop(name, None)
    os.chdir(command.directory)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them; programs expect the default
        signal.signal(number, signal.SIG_DFL)
    os.execve(command.executable, command.arguments, environment)  # noqa: S606 - the command of a rule
