"""A job's output stream: a pipe that is written to a file, of a bounded size, and shown on the terminal."""

from __future__ import annotations

import os
import select

_CHUNK = 65536
_ECHO_AT_ONCE = 4096  # PIPE_BUF: what poll(2) promises to fit where a pipe is writable
_TAIL = 8192


class Stream:
    """One of stdout, stderr.

    The file gets everything up to a cap. Of more it has the beginning and the end: while the job runs, the second half
    of the file is written again and again from its start; :meth:`finish` puts it in order, with a mark before it.

    The terminal is served from the file, so that a terminal that stands still (Ctrl-S, a pager) costs neither memory
    nor the job's time. A pipe and not the file itself is the job's descriptor, because ``echo x > /dev/stderr`` would
    truncate a file.
    """

    def __init__(self, read_end: int, log: int, echo: int | None, cap_bytes: int | None = None) -> None:
        """All are the caller's descriptors, and stay open.

        Args:
            read_end: of the pipe, not blocking.
            log: the file, open to read and write.
            echo: the terminal, or None.
            cap_bytes: how much is kept; None: everything.
        """
        self.read_end = read_end
        self._log = log
        self._echo = echo
        self._head = 0 if cap_bytes is None else cap_bytes // 2
        self._ring = 0 if cap_bytes is None else cap_bytes - self._head  # 0: no cap
        self._mark = 0  # its length, once the file is in order
        self._written = 0  # counted as if the file had it all
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
                place, room = self._place(self._written)
                done = os.pwrite(self._log, view[:room], place)
                self._written += done
                view = view[done:]
        except OSError as error:  # a full disk must neither end the supervisor nor block the job
            self.problem = f"the log is incomplete: {error.strerror}"

    @property
    def left_out(self) -> int:
        """How many bytes between head and tail the file has not."""
        return max(0, self._written - self._head - self._ring) if self._ring else 0

    def _place(self, offset: int) -> tuple[int, int]:
        """Where in the file a byte of the stream is, and how many follow it there without a break."""
        if not self._ring:
            return offset, _CHUNK
        if offset < self._head:
            return offset, self._head - offset
        if self._mark:
            place = self._head + self._mark + offset - (self._written - self._ring)
            return place, self._written - offset
        turn = (offset - self._head) % self._ring
        return self._head + turn, self._ring - turn

    def _read(self, offset: int, limit: int) -> bytes:
        place, room = self._place(offset)
        return os.pread(self._log, min(limit, room, self._written - offset), place)

    def show(self, *, wait: bool) -> None:
        """Bring the terminal up to date, as far as it takes it without blocking or, with ``wait``, to the end."""
        if self._echo is None:
            return
        poll = select.poll()
        poll.register(self._echo, select.POLLOUT)
        while self._shown < self._written:
            if not wait and not poll.poll(0):
                return
            try:
                self._skip_what_is_gone()
                chunk = self._read(self._shown, _ECHO_AT_ONCE)
                self._shown += os.write(self._echo, chunk)
            except BlockingIOError:
                poll.poll(100)
            except OSError:  # the terminal is gone; the file has it all
                self._echo = None
                return

    def _skip_what_is_gone(self) -> None:
        """The terminal was so slow that what it should show next has been written over."""
        oldest = self._written - self._ring
        if self.left_out and self._head <= self._shown < oldest and self._echo is not None:
            os.write(self._echo, _mark(oldest - self._shown))
            self._shown = oldest

    def drain(self) -> None:
        """Read what is left in the pipe; only when no process of the job is alive any more."""
        previous = -1
        while self._written != previous:
            previous = self._written
            if not self.pump():
                break

    def finish(self) -> None:
        """Put the file in order, if it has a break; nothing may come after this."""
        if not self.left_out or self._mark:
            return
        mark = _mark(self.left_out)
        split, _ = self._place(self._written)  # the oldest byte of the ring
        end = self._head + self._ring
        try:
            os.pwrite(self._log, mark, end)
            self._copy(split, end + len(mark), end - split)
            self._copy(self._head, end + len(mark) + end - split, split - self._head)
            self._copy(end, self._head, len(mark) + self._ring)  # to where the ring was: towards the front, so in order
            os.ftruncate(self._log, end + len(mark))
            self._mark = len(mark)
        except OSError as error:
            self.problem = f"the log is incomplete and its end out of order: {error.strerror}"

    def _copy(self, source: int, target: int, count: int) -> None:
        while count:
            chunk = os.pread(self._log, min(count, _CHUNK), source)
            done = os.pwrite(self._log, chunk, target)
            source, target, count = source + done, target + done, count - done

    def tail(self, limit: int = _TAIL) -> str:
        """The end of the stream."""
        offset = max(0, self._written - limit)
        if self.left_out:
            offset = max(offset, self._written - self._ring)
        data = b""
        while offset + len(data) < self._written:
            chunk = self._read(offset + len(data), limit)
            if not chunk:
                break
            data += chunk
        return data.decode("utf-8", "replace")


def _mark(count: int) -> bytes:
    return f"\n[… {count} bytes of this stream were not kept: --forge-stream-cap …]\n".encode()
