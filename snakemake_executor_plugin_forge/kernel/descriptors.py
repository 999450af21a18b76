"""Descriptors: closed after use, waited for, and sent in messages over a socket: cmsg(3), SCM_RIGHTS of unix(7).

``socket.recv_fds`` passes none of its flags on (cpython, Lib/socket.py): it always waits, and what it receives is
inherited by programs. Both of its functions need a module of their own (array), which a process just forked would copy.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_BYTES = struct.calcsize("i")


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """Give an open descriptor, and close it at the end."""
    try:
        yield fd
    finally:
        os.close(fd)


def is_readable(*fds: int, seconds: float | None = 0.0) -> bool:
    """Whether a descriptor can be read, or will be within this time (None: whenever): poll(2).

    Not select(2), which takes no descriptor above 1023: a run of 500 jobs has more.
    """
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


def send(to: socket.socket, data: bytes, descriptors: Sequence[int]) -> None:
    """Send a message with descriptors.

    Raises:
        OSError: as sendmsg(2).
    """
    packed = struct.pack(f"={len(descriptors)}i", *descriptors)
    to.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)])


def receive(source: socket.socket, size: int, most: int, flags: int = 0) -> tuple[bytes, list[int]]:
    """Receive a message of at most ``size`` bytes, and at most so many descriptors; no program inherits them.

    Args:
        flags: of recvmsg(2).

    Raises:
        OSError: as recvmsg(2).
    """
    data, ancillary, _, _ = source.recvmsg(size, socket.CMSG_LEN(most * _BYTES), flags | socket.MSG_CMSG_CLOEXEC)
    found: list[int] = []
    for level, kind, body in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            count = len(body) // _BYTES  # a part of one is none
            found += struct.unpack(f"={count}i", body[: count * _BYTES])
    return data, found
