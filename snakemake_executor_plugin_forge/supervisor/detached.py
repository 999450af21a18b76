"""A supervisor without Snakemake: its job continues, its streams are in the record, and orders come as a signal.

::

    LEAVE, or the end of file of all above ──► detached ──► the job ends ──► stage, record ──► end
                                                  ▲
                                      SIGTERM: end the job, with its grace
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from ..kernel.failpoints import reached
from ..kernel.inherited import to_null
from ..spec.errors import ForgeError
from ..spec.job import LaunchSpec
from ..spec.verdict import EndedBy, Order
from ..staging.fingerprint import take_fingerprint
from ..staging.pending import add_entry, remove_entry

STOPPED = "stopped by the run that found it, or by snakemake-forge resume --stop"


class Detached:
    """The means of one attempt to continue without Snakemake, from before its start."""

    def __init__(self, spec: LaunchSpec) -> None:
        """Write an entry by which a later run finds the attempt.

        Raises:
            OSError, ForgeError: if that is not possible.
        """
        self.begun = False
        self._entry = add_entry(spec, take_fingerprint(spec))
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        reached("announced")

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when somebody wants the end of the attempt."""
        return self._read_end

    def begin(self) -> None:
        """Close the terminal, or the pipe to who started Snakemake, and listen to signals.

        The terminal would stay open as long as the job runs.
        """
        self.begun = True
        to_null(0, 1, 2)
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, _wake_up)

    def order(self) -> Order:
        """Return the order for which a signal stands."""
        with suppress(BlockingIOError):
            os.read(self._read_end, 512)
        return Order(EndedBy.LATER_RUN, STOPPED)

    def end(self, *, staged: bool) -> None:
        """Remove the entry after the verdict, unless outputs are staged: then it stays."""
        if not staged:
            remove_entry(self._entry)

    def close(self) -> None:
        """Close the descriptors."""
        if self.begun:
            signal.set_wakeup_fd(-1)
        os.close(self._read_end)
        os.close(self._write_end)


def _wake_up(number: int, frame: object) -> None:
    """Do nothing: the descriptor of :func:`signal.set_wakeup_fd` tells of the signal."""
    del number, frame


def detached(spec: LaunchSpec) -> Detached | None:
    """Announce a job that continues without Snakemake; None if it does not, or if no entry can be written."""
    if not spec.detachable:
        return None
    try:
        return Detached(spec)
    except (OSError, ForgeError):
        return None
