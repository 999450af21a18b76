"""A host that is short of processes, descriptors or memory for a moment: which errors say so, and how long to wait.

Such an error travels between processes as a number and a text: :func:`told` and :func:`retold`.
"""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Callable
from typing import TypeVar

from ..spec.errors import HostError
from . import process_tree

T = TypeVar("T")

_ERRORS = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
"""fork(2), clone(2), mount(2), open(2)."""

SECONDS = 60.0
"""The time for which a call is tried again."""

REMEDY = "Raise the limits of this host or session (ulimit -n, ulimit -u, memory), or run fewer jobs at once (-j)"
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 2.0


def is_shortage(error: BaseException) -> bool:
    """Whether the same call may succeed a little later."""
    return isinstance(error, OSError) and error.errno in _ERRORS


class Patience:
    """Says how long to wait before the next try."""

    def __init__(self) -> None:
        """Begin a series of tries, the last of which comes after :data:`SECONDS`."""
        self._pause, self._end = _FIRST_PAUSE_SECONDS, time.monotonic() + SECONDS

    def pause(self, error: BaseException) -> float | None:
        """Return the seconds to wait before the next try; None if the error is another one, or the time is over."""
        if not is_shortage(error) or time.monotonic() > self._end:
            return None
        pause, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
        return pause


def patiently(call: Callable[[], T]) -> T:
    """Make a call, and make it again while the host is short of something.

    Raises:
        OSError: of the last try.
    """
    patience = Patience()
    while True:
        try:
            return call()
        except OSError as error:
            pause = patience.pause(error)
            if pause is None:
                raise
            time.sleep(pause)


def told(error: OSError) -> bytes:
    """Return an error as bytes."""
    text = str(error).removeprefix(f"[Errno {error.errno}] ")
    return f"{error.errno or 0} {text}".encode("utf-8", "backslashreplace")


def retold(answer: bytes) -> OSError:
    """Return the error of :func:`told`."""
    number, _, text = answer.decode("utf-8", "replace").partition(" ")
    return OSError(int(number), text) if number.isdigit() and int(number) else OSError(text)


_PROCESSES_OF_RUN = 16  # beside the jobs: Snakemake's threads, the nursery, the launcher, what holds the home
_PROCESSES_OF_JOB = 8  # supervisors and templates of both pools, the first of its namespace, a shell, a command
_FEW_PROCESSES = 20_000  # a higher limit is none for one run, and counting costs time


def jobs_at_once() -> int | None:
    """Return how many jobs find processes within this user's limit (RLIMIT_NPROC); None: it limits nothing here.

    Raises:
        HostError: if that is none.
    """
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if os.geteuid() == 0 or not 0 <= limit < _FEW_PROCESSES:
        return None
    used = process_tree.own_threads()
    jobs = (limit - used - _PROCESSES_OF_RUN) // _PROCESSES_OF_JOB
    if jobs < 1:
        raise HostError(
            f"this user may have {limit} processes and threads (ulimit -u) and has {used}; Forge needs "
            f"{_PROCESSES_OF_RUN + _PROCESSES_OF_JOB} more for one job. {REMEDY}."
        )
    return jobs
