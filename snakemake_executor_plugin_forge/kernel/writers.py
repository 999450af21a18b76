"""Whether any process has a file open for writing, by a lease that the kernel grants only if none has: fcntl(2)."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress

_PATIENCE_SECONDS, _PAUSE_SECONDS = 1.0, 0.01
"""Files that died in a message of a socket are closed a little later."""


def held(paths: Iterable[str]) -> list[str]:
    """Return the regular files that a process has open for writing, or mapped so; on local file systems only."""
    found = [path for path in paths if _is_held(path)]
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while found and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)
        found = [path for path in found if _is_held(path)]
    return found


def _is_held(path: str) -> bool:
    # Unreadable, a link, a FIFO: whatever it is, it is judged elsewhere. ValueError: not in the main thread.
    with suppress(OSError, ValueError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        before = None
        try:
            before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # which whoever opens it just now would send
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError as error:
            return error.errno == errno.EAGAIN
        finally:
            os.close(fd)
            if before is not None:
                signal.signal(signal.SIGIO, before)
    return False
