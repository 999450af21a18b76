"""A pack: the process of a batch job that works through several attempts, one after the other.

It runs ``python -m snakemake_executor_plugin_forge.backends.slurm.pack DIRECTORY PLACE CHECKSUM …``. A fork of this
process runs the attempts, as :mod:`.node` does for a single one, and prepares the node once for all of them. Each is
claimed, so that a pack that Slurm runs again skips what has finished. How one attempt ends says nothing about the
others: if its process is killed, another fork continues with the next one.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys

from ...kernel.descriptors import closing, is_readable
from ...kernel.inherited import fork, keep_memory_shared
from ...sandbox.probe import Namespaces
from .node import Node, warm_up

_BEGUN, _STATUS = 0, 1


class Pack:
    """Has the attempts run, and sees the processes end that do it."""

    def __init__(self, directory: str, orders: list[tuple[str, str]]) -> None:
        """Begin; ``orders`` are places in ``directory``, each with the checksum of its launch."""
        self._directory, self._orders = directory, orders
        self._shared = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("I")  # with the forks: see _BEGUN and _STATUS
        self._child = 0
        self._ended = False  # by Slurm: what has not begun is submitted again

    def run(self) -> int:
        """Work until the end, and return an exit status: the first that is not 0."""
        signal.signal(signal.SIGTERM, self._on_signal)
        namespaces = warm_up(f"{self._directory}/{self._orders[0][0]}") if self._orders else None
        keep_memory_shared()
        while self._shared[_BEGUN] < len(self._orders):
            before = self._shared[_BEGUN]
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until the child can take it for its own
            if self._ended:
                break
            self._note(self._have_run(namespaces))
            if self._shared[_BEGUN] == before:  # it could not even begin; Forge submits that attempt again
                self._shared[_BEGUN] += 1
        return self._shared[_STATUS]

    def _on_signal(self, number: int, frame: object) -> None:
        """Slurm tells the process of the batch script only (22.05)."""
        del frame
        self._ended = True
        if self._child:
            os.kill(self._child, number)

    def _have_run(self, namespaces: Namespaces | None) -> int:
        """Have a fork run what is left, or as much of it as it can; return its exit code. SIGTERM is blocked before."""
        self._child = child = fork(lambda: self._run_here(namespaces))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        with closing(os.pidfd_open(child)) as pidfd:
            while not is_readable(pidfd, seconds=1):  # Python handles a signal that comes just before a wait after it
                pass
        self._child = 0  # before it is reaped, and its number may be that of another process
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def _run_here(self, namespaces: Namespaces | None) -> None:
        """Run attempts in this process."""
        node = Node(namespaces, lasting=True)
        for number in range(self._shared[_BEGUN], len(self._orders)):
            if node.is_over or node.signals.told:
                break
            self._shared[_BEGUN] = number + 1
            place, checksum = self._orders[number]
            ended = node.run(f"{self._directory}/{place}", checksum)
            if ended is None:
                self._shared[_BEGUN] = number
                break
            self._note(ended)
        node.close()

    def _note(self, status: int) -> None:
        self._shared[_STATUS] = self._shared[_STATUS] or abs(status)


def main() -> None:
    """Run as the process of the batch job."""
    directory, orders = os.path.abspath(sys.argv[1]), sys.argv[2:]
    sys.exit(Pack(directory, list(zip(orders[::2], orders[1::2], strict=True))).run())


if __name__ == "__main__":
    main()
