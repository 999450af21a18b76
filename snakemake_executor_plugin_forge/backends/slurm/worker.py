"""A worker: the process of the batch job of a group. It runs the attempts that the controller orders, side by side.

It runs ``python -m snakemake_executor_plugin_forge.backends.slurm.worker DIRECTORY INDEX KEY``. Each attempt has a
process of its own, a fork of this one, which does what :mod:`.node` does for a single one. The worker ends when the
controller says so, or has said nothing for a while; never before its attempts. One that Slurm runs again finds all
orders, and skips the attempts that have finished.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from typing import NoReturn

from ...sandbox.probe import Namespaces
from . import exchange, fence, orders
from .node import run_attempt, warm_up

LEASE_SECONDS = 120.0
"""Seconds for which an idle worker waits for a silent controller: NFS remembers a file for 60 s."""

_PAUSE_SECONDS = 0.1


class NodeWorker:
    """Starts attempts and sees them end."""

    def __init__(self, directory: str, index: int, public: str) -> None:
        """Begin.

        Args:
            directory: of the batch.
            public: of the first order: see :class:`.orders.OrderReader`.
        """
        state, batch = os.path.split(directory)
        self._directory, self._first = directory, f"{directory}/{index}.0"
        self._orders = orders.OrderReader(orders.directory(state, batch, index), public)
        self._again = int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
        self._running: dict[int, orders.RunOrder] = {}
        self._stopped: set[int] = set()
        self._ended = False  # by Slurm
        self._namespaces: Namespaces | None = None
        self._status = 0
        self._lease, self._seen = self._orders.lease(), time.monotonic()

    def run(self) -> int:
        """Work until the end, and return an exit status."""
        signal.signal(signal.SIGTERM, self._on_signal)
        self._namespaces = warm_up(self._first)
        while True:
            names = self._orders.names()
            for order in () if self._ended else self._orders.new():
                if not self._ended:
                    self._begin(order, names)
            self._stop(names)
            self._reap()
            if not self._running and (self._ended or self._is_over(names)):
                return self._status
            time.sleep(_PAUSE_SECONDS)

    def _on_signal(self, number: int, frame: object) -> None:
        """Slurm tells the process of the batch script only (22.05), or all processes: twice does no harm."""
        del number, frame
        self._ended = True

    def _begin(self, order: orders.RunOrder, names: set[str]) -> None:
        attempt = f"{self._directory}/{order.place}"
        if f"{orders.STOP}{order.number}" in names or self._is_repeated(order, attempt):
            exchange.write_exit(attempt)
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until the child can take it for its own
        try:
            child = os.fork()
            if child == 0:
                _be(attempt, order.checksum, self._namespaces)
            self._running[child] = order
        except OSError as error:
            print(f"Forge: {attempt}: {error}", file=sys.stderr)
            exchange.write_exit(attempt)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def _is_repeated(self, order: orders.RunOrder, attempt: str) -> bool:
        """Whether an attempt that runs only once has begun before Slurm ran this worker again."""
        return order.first_only and self._again and fence.latest(attempt) > 0

    def _stop(self, names: set[str]) -> None:
        """End the attempts of which the controller says so, or all of them when Slurm does; once each."""
        for child, order in self._running.items():
            to_end = self._ended or f"{orders.STOP}{order.number}" in names
            if to_end and order.number not in self._stopped:
                self._stopped.add(order.number)
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGTERM)

    def _reap(self) -> None:
        for child, order in list(self._running.items()):
            pid, waited = os.waitpid(child, os.WNOHANG)
            if pid:
                del self._running[child]
                self._status = self._status or abs(os.waitstatus_to_exitcode(waited))
                exchange.write_exit(f"{self._directory}/{order.place}")

    def _is_over(self, names: set[str]) -> bool:
        """Whether no more orders come. ``names`` are from before the orders were read: who says so ordered first."""
        if orders.OVER in names:
            return True
        if (lease := self._orders.lease()) != self._lease:
            self._lease, self._seen = lease, time.monotonic()
        return time.monotonic() - self._seen > LEASE_SECONDS


def _be(attempt: str, checksum: str, namespaces: Namespaces | None) -> NoReturn:
    """Run an attempt as this process, a fork of the worker, which must not continue as a second one."""
    try:
        run_attempt(attempt, checksum, namespaces)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def main() -> None:
    """Run as the process of the batch job."""
    sys.exit(NodeWorker(os.path.abspath(sys.argv[1]), int(sys.argv[2]), sys.argv[3]).run())


if __name__ == "__main__":
    main()
