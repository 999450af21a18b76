"""A job's output stream: a pipe that is written whole to a file and shown on the terminal."""

from __future__ import annotations

import os
import select

_CHUNK = 65536
_ECHO_AT_ONCE = 4096  # PIPE_BUF: what poll(2) promises to fit where a pipe is writable
_TAIL = 8192


class Stream:
    """One of stdout, stderr.

    The file gets everything. The terminal is served from the file, so that a terminal that stands still (Ctrl-S, a
    pager) costs neither memory nor the job's time. A pipe and not the file itself is the job's descriptor, because
    ``echo x > /dev/stderr`` would truncate a file.
    """

    def __init__(self, read_end: int, log: int, echo: int | None) -> None:
        """All are the caller's descriptors, and stay open.

        Args:
            read_end: of the pipe, not blocking.
            log: the file, open to read and append.
            echo: the terminal, or None.
        """
        self.read_end = read_end
        self._log = log
        self._echo = echo
        self._written = 0
        self._shown = 0
        self.problem: str | None = None

    def pump(self) -> bool:
        """Move what is there; False at the end of the stream."""
        try:
            chunk = os.read(self.read_end, _CHUNK)
        except BlockingIOError:
            return True
        if not chunk:
            return False
        self._store(chunk)
        self.show(wait=False)
        return True

    def _store(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        try:
            while view:
                done = os.write(self._log, view)
                self._written += done
                view = view[done:]
        except OSError as error:  # a full disk must neither end the supervisor nor block the job
            self.problem = f"the log is incomplete: {error.strerror}"

    def show(self, *, wait: bool) -> None:
        """Bring the terminal up to date, as far as it takes it without blocking or, with ``wait``, to the end."""
        if self._echo is None:
            return
        poll = select.poll()
        poll.register(self._echo, select.POLLOUT)
        while self._shown < self._written:
            if not wait and not poll.poll(0):
                return
            chunk = os.pread(self._log, _ECHO_AT_ONCE, self._shown)
            try:
                self._shown += os.write(self._echo, chunk)
            except BlockingIOError:
                poll.poll(100)
            except OSError:  # the terminal is gone; the file has it all
                self._echo = None
                return

    def drain(self) -> None:
        """Read what is left in the pipe; only when no process of the job is alive any more."""
        previous = -1
        while self._written != previous:
            previous = self._written
            if not self.pump():
                break

    def tail(self, limit: int = _TAIL) -> str:
        """The end of the file."""
        size = os.fstat(self._log).st_size
        data = os.pread(self._log, limit, max(0, size - limit))
        return data.decode("utf-8", "replace")
