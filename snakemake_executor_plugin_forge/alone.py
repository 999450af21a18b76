"""A supervisor without Snakemake: its job goes on, its streams are in the record, and it hears of orders by a signal.

::

    LEAVE, or the end of file of all above ──► alone ──► the job ends ──► stage, record ──► end
                                                 ▲
                                     SIGTERM: end the job, with its grace
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from .errors import ForgeError
from .faults import reached
from .model import LaunchSpec
from .sameness import identify
from .staged import announce, withdraw

STOPPED = "stopped by the run that found it, or by snakemake-forge resume --stop"


class Solitude:
    """What one attempt needs for it, from before its start."""

    def __init__(self, spec: LaunchSpec) -> None:
        """Have it found by whoever comes after.

        Raises:
            OSError: if that cannot be written.

        """
        self.begun = False
        self._entry = announce(spec, identify(spec))
        self._bell, self._rope = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        reached("announced")

    def fileno(self) -> int:
        """Becomes readable when somebody wants its end."""
        return self._bell

    def begin(self) -> None:
        """Nobody is above any more.

        The terminal, or the pipe to who started Snakemake, is let go: it would be kept open as long as the job runs.
        """
        self.begun = True
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for number in (0, 1, 2):
            os.dup2(null, number)
        os.close(null)
        signal.set_wakeup_fd(self._rope, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, _wake_up)

    def order(self) -> tuple[str, bool]:
        """The reason, and that there is time for grace."""
        with suppress(BlockingIOError):
            os.read(self._bell, 512)
        return STOPPED, True

    def end(self, *, staged: bool) -> None:
        """After the verdict. The entry of what is staged stays."""
        if not staged:
            withdraw(self._entry)

    def close(self) -> None:
        """It hears nothing any more."""
        if self.begun:
            signal.set_wakeup_fd(-1)
        os.close(self._bell)
        os.close(self._rope)


def _wake_up(number: int, frame: object) -> None:
    """The descriptor of :func:`signal.set_wakeup_fd` says it."""
    del number, frame


def solitude(spec: LaunchSpec) -> Solitude | None:
    """For a job that goes on without Snakemake. None for one that does not, or of which no entry can be written."""
    if not spec.goes_on:
        return None
    try:
        return Solitude(spec)
    except (OSError, ForgeError):
        return None
