"""Frames between Snakemake, nursery, launcher and supervisors: kind, job name, body.

Orders go down through stream sockets, one for each pair of processes (:class:`Channel`). Verdicts come up through one
socket that all processes share (:class:`Mailbox`), so that the news of a job's end takes no detour.

All these processes are Forge's own, forked from one another. No job can write to these sockets.
"""

from __future__ import annotations

import enum
import errno
import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from ..spec.errors import ForgeError

_HEAD = struct.Struct("=BHQ")
_CHUNK = 1 << 18
_ATOMIC = 1 << 15  # bytes that the kernel takes whole: less than half of SO_SNDBUF, by default 208 KiB (socket(7))


class FrameKind(enum.IntEnum):
    """The kinds of frames."""

    RUN = 1  # downwards: start this attempt
    END = 2  # downwards: end this attempt; no name means all; the body is a pickled Order
    REAP = 3  # downwards: clear up after a supervisor that died
    QUIT = 4  # downwards: no more jobs will come
    READY = 5  # upwards: the host as probed; this supervisor is prepared
    DONE = 6  # to the mailbox: the verdict
    REFUSED = 7  # to the mailbox: this attempt could not be started; the body says why
    RENDER = 8  # downwards: start this attempt, which may come down to a command
    ENDED = 9  # upwards: the verdict on this attempt is in the mailbox, or it continues without Snakemake
    LEAVE = 10  # downwards: Snakemake is gone; attempts that can continue without it do


@dataclass(frozen=True, slots=True)
class Frame:
    """One message."""

    kind: FrameKind
    name: str = ""
    body: bytes = b""

    def encode(self) -> bytes:
        """Return the bytes that travel."""
        name = self.name.encode()
        return _HEAD.pack(self.kind, len(name), len(self.body)) + name + self.body


class Channel:
    """A stream socket that carries frames. ``receive`` is meant for use behind a selector."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = bytearray()
        self.closed = False

    def fileno(self) -> int:
        """Return the descriptor, for selectors."""
        return self._socket.fileno()

    def send(self, frame: Frame) -> None:
        """Send a whole frame. A dead peer is no error here: :meth:`receive` notices it."""
        try:
            self._socket.sendall(frame.encode())
        except (BrokenPipeError, ConnectionResetError):
            self.closed = True

    def send_at_once(self, frame: Frame) -> bool:
        """Send a small frame in one call that does not block; False if that is impossible, and nothing was sent.

        A Unix stream socket takes a message that fits in one buffer whole or not at all: unix_stream_sendmsg() in
        net/unix/af_unix.c.
        """
        data = frame.encode()
        if len(data) > _ATOMIC:
            return False
        try:
            sent = self._socket.send(data, socket.MSG_DONTWAIT)
            self._socket.sendall(data[sent:])  # nothing is left, unless this host's buffers are tiny
        except OSError:
            return False
        return True

    def receive(self) -> Iterator[Frame]:
        """Yield the frames that one read completes; set ``closed`` at the end of the stream."""
        try:
            data = self._socket.recv(_CHUNK)
        except (ConnectionResetError, InterruptedError):
            data = b""
        if not data:
            self.closed = True
        self._buffer += data
        yield from self.buffered()

    def buffered(self) -> Iterator[Frame]:
        """Yield the frames of the last read that :meth:`receive` has not yielded yet."""
        while (frame := self._next()) is not None:
            yield frame

    def _next(self) -> Frame | None:
        if len(self._buffer) < _HEAD.size:
            return None
        number, name_size, body_size = _HEAD.unpack_from(self._buffer)
        kind = FrameKind(number)  # an error for what is no frame: a size read from that could be waited for without end
        end = _HEAD.size + name_size + body_size
        if len(self._buffer) < end:
            return None
        name = self._buffer[_HEAD.size : _HEAD.size + name_size].decode()
        body = bytes(self._buffer[_HEAD.size + name_size : end])
        del self._buffer[:end]
        return Frame(kind, name, body)

    def hang_up(self) -> None:
        """End the stream for both sides; both read its end."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self.closed = True
        self._socket.close()


def hung_up(fd: int, patience_seconds: float) -> bool:
    """Whether the other end of a socket is closed, or will be within this time. Nothing is read from it."""
    poll = select.poll()
    poll.register(fd, 0)  # POLLHUP is always reported: poll(2)
    return bool(poll.poll(patience_seconds * 1000))


class MessageTooLargeError(ForgeError):
    """A message does not fit into a mailbox; it was not sent."""


class Mailbox:
    """A socket that keeps messages apart, for many writers and one reader.

    The end of file means that no writer is left.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    @staticmethod
    def pair() -> tuple[Mailbox, Mailbox]:
        """Return the reader's end and the writers' end."""
        reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return Mailbox(reader), Mailbox(writer)

    def fileno(self) -> int:
        """Return the descriptor, for selectors and to be inherited."""
        return self._socket.fileno()

    def send(self, frame: Frame) -> None:
        """Send a message; no error if nobody reads.

        Raises:
            MessageTooLargeError: if it is larger than the socket's buffer (SO_SNDBUF of socket(7), 208 KiB by default)
                or than what :meth:`receive` takes.
        """
        data = frame.encode()
        try:
            if len(data) > _CHUNK:
                raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
            self._socket.send(data)
        except (BrokenPipeError, ConnectionResetError):
            return
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                raise MessageTooLargeError(f"{frame.kind.name} {frame.name}: {len(data)} bytes") from error
            raise

    def receive(self) -> Frame | None:
        """Return the next message; None at the end of file."""
        data = self._socket.recv(_CHUNK)
        if not data:
            return None
        kind, name_size, _ = _HEAD.unpack_from(data)
        name = data[_HEAD.size : _HEAD.size + name_size].decode()
        return Frame(FrameKind(kind), name, data[_HEAD.size + name_size :])

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
