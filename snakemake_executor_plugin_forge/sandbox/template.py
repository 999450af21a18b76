"""A process that forks in the stead of another one, which becomes the parent all the same.

What a fork costs is not over with it: each page that either side writes to afterwards is copied first. A supervisor
writes to a thousand before it forks again. Its template, a fork of it that does nothing but this, writes to some ten.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import struct
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Generic, NoReturn, TypeVar

from . import privileges, syscalls

T = TypeVar("T")
_HEAD = struct.Struct("=Q")
_MAX_DESCRIPTORS = 16
_ANSWER_BYTES = 4096


class Template(Generic[T]):
    """Forks on order; its children are those of the process that made it (CLONE_PARENT of clone(2))."""

    def __init__(
        self,
        learn: Callable[[Any], T],
        fork: Callable[[Callable[[], NoReturn], list[int]], int],
        name: str,
        keep: tuple[int, ...],
    ) -> None:
        """Prepare it; it is started with the first order.

        Args:
            learn: makes something of an order, once for equal ones that follow each other.
            fork: forks with CLONE_PARENT and executes what it is given; it gets the descriptors too.
            name: of its process.
            keep: descriptors of this process that its children need.

        """
        self._learn = learn
        self._fork = fork
        self._name = name
        self._keep = keep
        self._pid = 0
        self._ours: socket.socket | None = None

    def fork(self, order: object, descriptors: Sequence[int], child: Callable[[T, list[int]], NoReturn]) -> int:
        """Have it fork.

        Args:
            order: for what it was made with; pickled.
            descriptors: that the child gets.
            child: what the child does: a function of a module.

        Returns:
            The number of the child, which is one of this process.

        Raises:
            OSError: if it is refused, or was killed.

        """
        body = pickle.dumps((order, child), protocol=pickle.HIGHEST_PROTOCOL)
        if self._ours is None:
            self._start()
        try:
            answer = self._ask(body, descriptors)
        except OSError:  # somebody has killed it
            self.close()
            self._start()
            answer = self._ask(body, descriptors)
        if not answer.isdigit():
            raise OSError(answer.decode("utf-8", "replace") or "the process that starts jobs was killed")
        return int(answer)

    def _ask(self, body: bytes, descriptors: Sequence[int]) -> bytes:
        assert self._ours is not None
        send(self._ours, body, descriptors)
        return self._ours.recv(_ANSWER_BYTES)

    def _start(self) -> None:
        self._ours, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            self._serve(theirs)
        theirs.close()

    def _serve(self, orders: socket.socket) -> NoReturn:
        """The whole life of the template."""
        try:
            syscalls.set_process_name(self._name)
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            privileges.close_descriptors((orders.fileno(), *self._keep))
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # for its children: see enter.start
            self._obey(orders)
        except BaseException:
            traceback.print_exc()
        os._exit(1)

    def _obey(self, orders: socket.socket) -> NoReturn:
        known = b""
        while True:
            descriptors, body = receive(orders)
            if body != known:
                order, child = pickle.loads(body)
                known, learned = body, self._learn(order)
            orders.send(self._fork_one(child, learned, descriptors))
            for fd in descriptors:
                os.close(fd)

    def _fork_one(
        self, child: Callable[[T, list[int]], NoReturn], learned: T, descriptors: list[int]
    ) -> bytes:
        try:
            return b"%d" % self._fork(lambda: child(learned, descriptors), descriptors)
        except OSError as error:
            return str(error).encode()

    def close(self) -> None:
        """End it."""
        if self._ours is not None:
            self._ours.close()
            self._ours = None
            os.waitpid(self._pid, 0)


def send(to: socket.socket, body: bytes, descriptors: Sequence[int]) -> None:
    """Send bytes and descriptors, which :func:`receive` receives.

    Raises:
        OSError: if nobody is there.

    """
    socket.send_fds(to, [_HEAD.pack(len(body))], descriptors)
    to.sendall(body)


def receive(source: socket.socket) -> tuple[list[int], bytes]:
    """What was sent; ends this process if nobody is there any more."""
    head, descriptors, _, _ = socket.recv_fds(source, _HEAD.size, _MAX_DESCRIPTORS)
    if len(head) < _HEAD.size:
        os._exit(0)
    for fd in descriptors:  # recv_fds does not pass on MSG_CMSG_CLOEXEC: cpython, Lib/socket.py
        os.set_inheritable(fd, False)
    (size,) = _HEAD.unpack(head)
    body = bytearray()
    while len(body) < size:
        chunk = source.recv(size - len(body))
        if not chunk:
            os._exit(0)
        body += chunk
    return descriptors, bytes(body)
