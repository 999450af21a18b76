"""Frames between Snakemake, nursery, launcher and supervisors: kind, job name, body.

Orders go down through stream sockets, one for each pair of processes (:class:`Channel`). Verdicts come up through one
socket that all of them have (:class:`Mailbox`), so that the news of a job's end takes no detour.

All these are Forge's own processes, forked from one another; nothing that a job can write to goes through here.
"""

from __future__ import annotations

import enum
import errno
import select
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_HEAD = struct.Struct("=BHQ")
_CHUNK = 1 << 18
_ATOMIC = 1 << 15  # half of SO_SNDBUF and more is taken whole; its default is 208 KiB (socket(7))


class Kind(enum.IntEnum):
    """What a frame says."""

    RUN = 1  # downwards: start this attempt
    CANCEL = 2  # downwards: TERM, grace, KILL; no name means all; the body is the reason
    KILL = 3  # downwards: the same without grace
    BURY = 4  # downwards: clear up after a supervisor that died
    QUIT = 5  # downwards: no more jobs will come
    READY = 6  # upwards: the host as probed; this supervisor is
    DONE = 7  # to the mailbox: the verdict
    REFUSED = 8  # to the mailbox: it could not even be started; the body says why
    RENDER = 9  # downwards: start this attempt, which may come down to a command
    ENDED = 10  # upwards: this attempt is over, and its verdict is in the mailbox; or it goes on alone
    LEAVE = 11  # downwards: Snakemake is gone; who can go on without it does


@dataclass(frozen=True, slots=True)
class Frame:
    """One message."""

    kind: Kind
    name: str = ""
    body: bytes = b""

    def encode(self) -> bytes:
        """To bytes."""
        name = self.name.encode()
        return _HEAD.pack(self.kind, len(name), len(self.body)) + name + self.body


class Channel:
    """A socket that speaks frames. ``receive`` is for non-blocking use behind a selector."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = bytearray()
        self.closed = False

    def fileno(self) -> int:
        """For selectors."""
        return self._socket.fileno()

    def send(self, frame: Frame) -> None:
        """Send all of it; a dead peer is noticed by :meth:`receive`, so it is no error here."""
        try:
            self._socket.sendall(frame.encode())
        except (BrokenPipeError, ConnectionResetError):
            self.closed = True

    def send_at_once(self, frame: Frame) -> bool:
        """Send a small frame in one call that does not block; False if that is not possible, and nothing was sent.

        A stream socket of the kernel takes what fits in one buffer whole or not at all: unix_stream_sendmsg().
        """
        data = frame.encode()
        if len(data) > _ATOMIC:
            return False
        try:
            sent = self._socket.send(data, socket.MSG_DONTWAIT)
            self._socket.sendall(data[sent:])  # nothing is left, unless somebody made the buffers of this host tiny
        except OSError:
            return False
        return True

    def receive(self) -> Iterator[Frame]:
        """The frames that one read completes; sets ``closed`` at the end of the stream."""
        try:
            data = self._socket.recv(_CHUNK)
        except (ConnectionResetError, InterruptedError):
            data = b""
        if not data:
            self.closed = True
        self._buffer += data
        while (frame := self._next()) is not None:
            yield frame

    def buffered(self) -> Iterator[Frame]:
        """The frames that came with an earlier one, in the same read, and that nobody has taken yet."""
        while (frame := self._next()) is not None:
            yield frame

    def _next(self) -> Frame | None:
        if len(self._buffer) < _HEAD.size:
            return None
        kind, name_size, body_size = _HEAD.unpack_from(self._buffer)
        end = _HEAD.size + name_size + body_size
        if len(self._buffer) < end:
            return None
        name = self._buffer[_HEAD.size : _HEAD.size + name_size].decode()
        body = bytes(self._buffer[_HEAD.size + name_size : end])
        del self._buffer[:end]
        return Frame(Kind(kind), name, body)

    def close(self) -> None:
        """Close the socket."""
        self.closed = True
        self._socket.close()


def hung_up(fd: int, patience_seconds: float) -> bool:
    """Whether the other end of a socket is closed, or will be soon. What waits in it is left there."""
    poll = select.poll()
    poll.register(fd, 0)  # POLLHUP is always told: poll(2)
    return bool(poll.poll(patience_seconds * 1000))


class Mailbox:
    """A socket that keeps messages apart, for many writers and one reader.

    Its end of file says that no writer is left.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    @staticmethod
    def pair() -> tuple[Mailbox, Mailbox]:
        """The reader's end and the writers'."""
        reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return Mailbox(reader), Mailbox(writer)

    def fileno(self) -> int:
        """For selectors, and to be inherited."""
        return self._socket.fileno()

    def send(self, frame: Frame) -> bool:
        """Send it; False if it is too large (SO_SNDBUF of socket(7), 208 KiB by default). No error if nobody reads."""
        try:
            self._socket.send(frame.encode())
        except (BrokenPipeError, ConnectionResetError):
            return True
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            return False
        return True

    def receive(self) -> Frame | None:
        """The next message; None at the end."""
        data = self._socket.recv(_CHUNK)
        if not data:
            return None
        kind, name_size, _ = _HEAD.unpack_from(data)
        name = data[_HEAD.size : _HEAD.size + name_size].decode()
        return Frame(Kind(kind), name, data[_HEAD.size + name_size :])

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
