"""SIGINT, SIGTERM and SIGHUP end a run where Snakemake's scheduler waits for jobs, not wherever its main thread is.

A handler that raises KeyboardInterrupt would not do, for two reasons. A run would hang after either, and its jobs would
continue until the next one ends, or until somebody sends SIGKILL:

- Python calls handlers in the main thread, which does not wake up if the signal comes just before it waits for a lock,
  or if the kernel delivers it to another thread (CPython: ``signal.set_wakeup_fd`` is the remedy).
- The exception may come when a lock has been acquired, and the ``try`` that would release it has not begun.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from typing import Any

from ..kernel.descriptors import closing
from ..kernel.inherited import handle

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE_SECONDS = 2.0
"""The time for work between two waits (the choice of jobs, downloads, input functions), which is interrupted then."""


class StopSignals:
    """Handles the signals that end a run, from its first job to its end.

    SIGTERM and SIGHUP end the run as Ctrl-C does; the scheduler's own handler would finish the running jobs. A signal
    that is ignored (SIGHUP under nohup) stays ignored. In another thread than the main one, nothing is handled.
    """

    def __init__(self) -> None:
        self.by = "Ctrl-C"  # what has ended the run, in words
        self._before: dict[int, Any] = {}  # signals to their handlers before the run
        self._waiting: Any = None  # the scheduler's semaphore; None: Snakemake has no such part
        self._wake_fd = self._wake_fd_before = -1
        self._come = False
        self._raised = False

    def take(self, scheduler: Any) -> None:
        """Begin. To be called by the scheduler's thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._waiting = getattr(scheduler, "_open_jobs", None)
        if self._waiting is not None:
            wait = self._waiting.acquire

            def acquire(*arguments: Any) -> bool:
                acquired: bool = wait(*arguments)
                if self._come:
                    self._raise()
                return acquired

            self._waiting.acquire = acquire
            read_end, self._wake_fd = os.pipe()
            os.set_blocking(self._wake_fd, False)
            threading.Thread(target=self._wake, args=(read_end,), name="forge-signals", daemon=True).start()
            self._wake_fd_before = signal.set_wakeup_fd(self._wake_fd, warn_on_full_buffer=False)
        self._before = handle(_ENDING, self._on_signal)

    def restore(self) -> None:
        """Restore the handlers of before."""
        self._raised = True
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._wake_fd >= 0:
            signal.set_wakeup_fd(self._wake_fd_before)
            os.close(self._wake_fd)
            self._wake_fd = -1

    def _on_signal(self, number: int, frame: object) -> None:
        """Note the first signal; raise KeyboardInterrupt for a second one, which cuts the grace short."""
        del frame
        is_second, self._come = self._come, True
        if not is_second:
            self.by = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        if is_second or self._waiting is None:
            self._raise()

    def _raise(self) -> None:
        self._raised = True
        raise KeyboardInterrupt

    def _wake(self, read_end: int) -> None:
        """End the scheduler's wait after each signal. If the main thread does not come there in time, interrupt it."""
        with closing(read_end):
            while numbers := os.read(read_end, 64):
                if self._wake_fd_before >= 0:  # the program around Snakemake waits for signals, too
                    with suppress(OSError):
                        os.write(self._wake_fd_before, numbers)
                for number in {*_ENDING} & {*numbers}:
                    self._waiting.release()
                    time.sleep(_PATIENCE_SECONDS)
                    if self._come and not self._raised:
                        signal.pthread_kill(threading.main_thread().ident or 0, number)
