"""A job's output stream: a pipe, copied to a file of bounded size and to the terminal."""

from __future__ import annotations

import os
import select

from ..spec.printable import terminal_bytes

_CHUNK = 65536
_ECHO_AT_ONCE = 4096  # PIPE_BUF: what poll(2) promises to fit where a pipe is writable
_TAIL = 8192


class Stream:
    """One of stdout, stderr.

    The file gets everything up to a cap. Of a longer stream it keeps the beginning and the end: while the job runs, the
    second half of the file is a ring; :meth:`finish` puts it in order, with a mark before it.

    The terminal is served from the file, so that a stopped terminal (Ctrl-S, a pager) costs neither memory nor the
    job's time. The job's descriptor is a pipe and not the file, because ``echo x > /dev/stderr`` would truncate a file.
    """

    def __init__(self, read_end: int, log: int, echo: int | None, cap_bytes: int | None = None) -> None:
        """Take descriptors of the caller, which stay open.

        Args:
            read_end: of the pipe, not blocking.
            log: the file, open to read and write.
            echo: the terminal, or None.
            cap_bytes: the size that the file keeps; None: everything.
        """
        self.read_end = read_end
        self._log = log
        self._echo = echo
        self._head = 0 if cap_bytes is None else cap_bytes // 2
        self._ring = 0 if cap_bytes is None else cap_bytes - self._head  # 0: no cap
        self._mark = 0  # its length, once the file is in order
        self._written = 0  # counted as if the file had it all
        self._shown = 0
        self._is_terminal = echo is not None and os.isatty(echo)
        self._cut = self._ready = b""  # for a terminal: what is not whole yet, and what it has not accepted
        self.problem: str | None = None

    def pump(self) -> bool:
        """Copy available bytes; return False at the end of the stream."""
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
        """The number of bytes between head and tail that the file lacks."""
        return max(0, self._written - self._head - self._ring) if self._ring else 0

    def _place(self, offset: int) -> tuple[int, int]:
        """The place of a stream's byte in the file, and the number of bytes that follow it there without a break."""
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
        """Copy from the file to the terminal, as much as it accepts without blocking or, with ``wait``, everything."""
        if self._echo is None:
            return
        poll = select.poll()
        poll.register(self._echo, select.POLLOUT)
        while self._shown < self._written or self._ready or (wait and self._cut):
            if not wait and not poll.poll(0):
                return
            try:
                self._skip_what_is_gone()
                if self._is_terminal:
                    self._show_on_terminal(last=wait)
                else:
                    chunk = self._unshown()
                    self._shown += os.write(self._echo, chunk)
            except BlockingIOError:
                poll.poll(100)
            except OSError:  # the terminal is gone; the file has everything
                self._echo = None
                return

    def _unshown(self) -> bytes:
        """Read what is to be shown next; somebody may have truncated the file (``> stdout.log``), and it is lost."""
        chunk = self._read(self._shown, _ECHO_AT_ONCE)
        if not chunk:
            self._shown = self._written
        return chunk

    def _show_on_terminal(self, *, last: bool) -> None:
        """Show a part without the sequences by which a job could change the terminal or its clipboard."""
        if not self._ready:
            chunk = self._unshown()
            self._shown += len(chunk)
            self._ready, self._cut = terminal_bytes(self._cut + chunk, last=last and self._shown == self._written)
        if self._ready and self._echo is not None:
            self._ready = self._ready[os.write(self._echo, self._ready) :]

    def _skip_what_is_gone(self) -> None:
        """Skip bytes that the ring has overwritten before the slow terminal could show them."""
        oldest = self._written - self._ring
        if self.left_out and self._head <= self._shown < oldest and self._echo is not None:
            os.write(self._echo, _mark(oldest - self._shown))
            self._shown = oldest

    def drain(self) -> None:
        """Read the rest of the pipe; only after all processes of the job have ended."""
        previous = -1
        while self._written != previous:
            previous = self._written
            if not self.pump():
                break

    def finish(self) -> None:
        """Put the file in order, if it has a break; the last call."""
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
            if not chunk:  # somebody has truncated the file
                return
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
