"""The launcher: starts jobs that are nothing but a command, from a process that holds no workflow.

To fork a process costs in proportion to its memory, twice: when its page tables are copied, and when the copy ends. The
nursery has a workflow and all of Snakemake in memory; this is a fresh interpreter with the standard library and Forge's
own supervisor. The nursery has Snakemake render the command, and sends it here.
"""

from __future__ import annotations

import gc
import os
import pickle
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..measurements import own_peak_kb
from ..sandbox import syscalls
from .pool import Enclosure, Pool
from .wire import Channel, Frame, Kind, Mailbox

if TYPE_CHECKING:
    import subprocess

_PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from {package}.backends.launcher import main
main(int(sys.argv[2]), int(sys.argv[3]))
"""

# Those that Snakemake or Python may have changed: programs expect the default.
_DEFAULT_SIGNALS = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD,
    signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Command:
    """A program to be executed, as Snakemake would have done it."""

    executable: str
    arguments: tuple[str, ...]
    directory: str
    changed: dict[str, str]  # environment: what differs from that of the nursery
    removed: tuple[str, ...]


def start(enclosure: Enclosure, mailbox: Mailbox) -> tuple[subprocess.Popen[bytes], Channel]:
    """Start a launcher; called in the nursery."""
    import subprocess  # not in the launcher: threading, which it imports, makes every fork slower

    ours, theirs = socket.socketpair()
    package = __name__.split(".", maxsplit=1)[0]
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    program = [sys.executable, "-E", "-s", "-S", "-c", _PROGRAM.format(package=package)]
    process = subprocess.Popen(
        [*program, root, str(theirs.fileno()), str(mailbox.fileno())],
        stdin=subprocess.DEVNULL,
        pass_fds=(theirs.fileno(), mailbox.fileno()),
    )
    theirs.close()
    channel = Channel(ours)
    channel.send(Frame(Kind.READY, body=pickle.dumps(enclosure)))
    return process, channel


class _Launcher(Pool):
    def ended(self, name: str) -> None:
        self.upward.send(Frame(Kind.ENDED, name))


def main(fd: int, mailbox_fd: int) -> None:
    """The whole life of the launcher process."""
    syscalls.set_process_name("forge-launcher")
    os.set_inheritable(mailbox_fd, False)
    upward = Channel(socket.socket(fileno=fd))
    frames = upward.receive()
    first = next(frames, None)
    if first is None:
        return
    pool = _Launcher(upward, Mailbox(socket.socket(fileno=mailbox_fd)), execute, as_init=True)
    pool.enclose(pickle.loads(first.body))
    gc.collect()
    gc.disable()
    gc.freeze()
    for frame in frames:  # jobs that came in the same read
        pool.handle(frame)
    pool.serve()
    pool.close()


def execute(payload: bytes, environment: Mapping[str, str], scratch: str) -> dict[str, object]:
    """In the job, as the first process of its PID namespace: start the command, reap until it has ended.

    By posix_spawn, which needs no second copy of this process's page tables. TERM reaches the command by itself, with
    the rest of the job's cgroup, unless it comes before there is one; here it stays blocked.

    Raises:
        OSError: if it cannot be executed.
    """
    del scratch  # the command was rendered with it
    command: Command = pickle.loads(payload)
    variables = dict(os.environ)
    for name in command.removed:
        variables.pop(name, None)
    variables.update(command.changed)
    variables.update(environment)  # last: no runtime takes its scratch or its devices from a job
    if signal.SIGTERM in signal.sigpending():
        return {"exit_code": None, "signal": int(signal.SIGTERM)}
    os.chdir(command.directory)
    pid = os.posix_spawn(
        command.executable, command.arguments, variables, setsid=True, setsigmask=(), setsigdef=_DEFAULT_SIGNALS
    )
    if signal.SIGTERM in signal.sigpending():
        os.kill(pid, signal.SIGTERM)
    while (ended := os.wait())[0] != pid:
        pass
    code = os.waitstatus_to_exitcode(ended[1])
    # Our own /proc entry is closed to an ordinary user's supervisor (PR_SET_DUMPABLE), and we are still alive.
    own, used = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    largest = own_peak_kb(used.ru_maxrss, started_by=own.ru_maxrss)
    children = (largest, used.ru_inblock, used.ru_oublock)
    ended_by = {"exit_code": code, "signal": None} if code >= 0 else {"exit_code": None, "signal": -code}
    return {**ended_by, "children": children}
