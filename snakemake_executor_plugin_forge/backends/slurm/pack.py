"""A pack: the process of a batch job that works through several attempts, one after the other.

It runs ``python -m snakemake_executor_plugin_forge.backends.slurm.pack DIRECTORY PLACE CHECKSUM …``. Each attempt has
a process of its own, a fork of this one, which does what :mod:`.node` does for a single one: it claims the attempt, so
that a pack that Slurm runs again skips what has finished. How one attempt ends says nothing about the others.
"""

from __future__ import annotations

import os
import signal
import sys

from .node import run_attempt, warm_up


def main() -> None:
    """Run as the process of the batch job."""
    directory, orders = os.path.abspath(sys.argv[1]), sys.argv[2:]
    ended: list[int] = []
    running: list[int] = []

    def end(number: int, frame: object) -> None:
        """Slurm tells the process of the batch script only (22.05)."""
        del frame
        ended.append(number)
        for child in running:
            os.kill(child, number)

    signal.signal(signal.SIGTERM, end)
    namespaces = warm_up(f"{directory}/{orders[0]}") if orders else None
    status = 0
    for place, checksum in zip(orders[::2], orders[1::2], strict=True):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until the child can take it for its own
        if ended:  # Slurm ends this batch job; what has not begun is submitted again
            break
        child = os.fork()
        if child == 0:
            run_attempt(f"{directory}/{place}", checksum, namespaces)
        running.append(child)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        running.clear()  # before it is reaped, and its number may be that of another process
        _, waited = os.waitpid(child, 0)
        status = status or os.waitstatus_to_exitcode(waited)
    sys.exit(abs(status))


if __name__ == "__main__":
    main()
