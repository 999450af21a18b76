"""The state that a process inherits from any parent: signals, streams, the limit of open files.

Batch systems, terminal programs and services start Snakemake with ignored and blocked signals, closed streams, and more
descriptors than it knows of. Jobs get what an interactive shell gives its commands.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

DEFAULT_SIGNALS = frozenset(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
"""The signals whose action a process can set: signal(7)."""


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the C function behind one of ``signal``, which makes no enums: a process just forked copies 20 pages less.

    A signal is a number to it, and so are its results.
    """
    return getattr(function, "__wrapped__", function)


set_signal, set_mask = plain(signal.signal), plain(signal.pthread_sigmask)
pending_signals = plain(signal.sigpending)


def accept_signals() -> Callable[[], None]:
    """Unblock all signals, and let this process wait for its children: with SIGCHLD ignored, wait(2) finds none.

    A signal that is ignored for a purpose, as SIGHUP by nohup, stays ignored.

    Returns:
        A function to be called in the same thread, after which the signals are as they were.
    """
    mask = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    action = signal.getsignal(signal.SIGCHLD)
    with suppress(ValueError):  # not in the main thread
        if action is signal.SIG_IGN:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def restore() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        with suppress(ValueError):
            if action is signal.SIG_IGN:
                signal.signal(signal.SIGCHLD, action)

    return restore


def default_handlers() -> None:
    """Take from this process, a fork, the handlers of signals that its parent had: one may wait for all children."""
    signal.set_wakeup_fd(-1)
    for number in DEFAULT_SIGNALS:
        if signal.getsignal(number) not in (signal.SIG_IGN, signal.SIG_DFL):
            signal.signal(number, signal.SIG_DFL)


def handle(numbers: Iterable[int], handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Have signals handled, but those that are ignored, and return their handlers of before by number."""
    before = {number: signal.getsignal(number) for number in numbers}
    for number, previous in before.items():
        if previous is not signal.SIG_IGN:
            signal.signal(number, handler)
    return {number: previous for number, previous in before.items() if callable(previous)}


def fork(life: Callable[[], None]) -> int:
    """Fork a process that does nothing but call a function, and return its number.

    Raises:
        OSError: if that is refused.
    """
    pid = os.fork()
    if pid != 0:
        return pid
    code = 1
    try:
        life()
        code = 0
    except BaseException:  # a bug of Forge; the parent only sees that this process ended
        traceback.print_exc()
    finally:
        os._exit(code)


def keep_memory_shared() -> None:
    """Keep the garbage collector from writing to the memory that this process will share with its forks."""
    gc.collect()
    gc.disable()
    gc.freeze()


def open_streams() -> None:
    """Put /dev/null at those of the descriptors 0 to 2 that are closed: no other file shall get these numbers."""
    while True:
        fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        if fd > 2:
            os.close(fd)
            return
        os.set_inheritable(fd, True)


def to_null(*numbers: int) -> None:
    """Put /dev/null in the place of descriptors."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in numbers:
        os.dup2(null, number)
    if null not in numbers:  # it was closed, and so the lowest
        os.close(null)


def take_stream(number: int) -> None:
    """Give Python a stream of its own at descriptor 0, 1 or 2, in the encoding of the interpreter's first one.

    In the locale C that one takes any text, as ``surrogateescape``; a new one would not.
    """
    name = ("stdin", "stdout", "stderr")[number]
    had = getattr(sys, f"__{name}__")
    errors = getattr(had, "errors", None) or ("backslashreplace" if number == 2 else None)
    encoding = getattr(had, "encoding", None)
    mode = "w" if number else "r"
    stream = open(number, mode, buffering=1, encoding=encoding, errors=errors, closefd=False)  # noqa: SIM115
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


def close_beyond(limit: int) -> None:
    """Close the descriptors from ``limit`` on: they were opened before RLIMIT_NOFILE was lowered to it."""
    with suppress(OSError):  # without /proc
        for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
            if fd >= limit:
                os.closerange(fd, fd + 1)


def raise_open_files() -> None:
    """Let this process open as many files as its hard limit permits (RLIMIT_NOFILE)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def limit_open_files(soft: int) -> None:
    """Give this process, and all that it starts, that soft limit again."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
