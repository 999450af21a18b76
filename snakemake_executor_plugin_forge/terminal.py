"""A terminal for a process in a sandbox, relayed to and from the one at which the user sits: pty(7)."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_CHUNK = 65536
_HUNG_UP = 129  # 128 and SIGHUP, as shells say it


@contextmanager
def own_terminal() -> Iterator[Callable[[int], None]]:
    """Descriptors 0 to 2 become a new terminal, for what is forked now.

    Yields:
        Relays between the two terminals until a descriptor is readable (the process has ended).

    """
    user_in, user_out, user_err = os.dup(0), os.dup(1), os.dup(2)
    controller, terminal = pty.openpty()
    for number in range(3):
        os.dup2(terminal, number)
    os.close(terminal)
    before = termios.tcgetattr(user_in)

    def resize(*_: object) -> None:
        size = fcntl.ioctl(user_in, termios.TIOCGWINSZ, bytes(8))
        with suppress(OSError):
            fcntl.ioctl(controller, termios.TIOCSWINSZ, size)

    resize()
    old = signal.signal(signal.SIGWINCH, resize)
    try:
        tty.setraw(user_in, termios.TCSANOW)  # what was typed already is not lost
        yield lambda ended: _relay(user_in, user_out, controller, ended)
    finally:
        with suppress(termios.error):  # it is gone
            termios.tcsetattr(user_in, termios.TCSADRAIN, before)
        signal.signal(signal.SIGWINCH, old)
        for number, fd in enumerate((user_in, user_out, user_err)):
            os.dup2(fd, number)
            os.close(fd)
        os.close(controller)


def _relay(user_in: int, user_out: int, controller: int, ended: int) -> None:
    sources = {user_in: controller, controller: user_out}
    while True:
        ready = select.select([*sources, ended], [], [], 0.2 if ended not in sources else None)[0]
        for source in [fd for fd in ready if fd != ended]:
            try:
                data = os.read(source, _CHUNK)
            except OSError:  # EIO: nobody has the other end open
                data = b""
            if not data and source == user_in:  # the user's terminal is gone
                raise SystemExit(_HUNG_UP)
            if not data:
                sources.pop(source, None)
                continue
            with suppress(OSError):
                os.write(sources[source], data)
        if ended in ready and controller not in ready:  # all that it wrote has been read
            return
