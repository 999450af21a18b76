"""Directories that a job has left read-only or closed, opened for a while, so that its files can be moved."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from ..kernel.long_paths import reach
from ..kernel.plain_paths import open_plain
from .journal import Move

_CHANGE = stat.S_IWUSR | stat.S_IXUSR


@contextmanager
def writable(moves: Sequence[Move]) -> Iterator[None]:
    """Have directories of this user writable for a while: from, to and of which something is renamed.

    A job can do that itself (``chmod u+w d; …; chmod u-w d``), so the result has to be carried out. A supervisor needs
    no permission, but what an ordinary user's Snakemake publishes or completes does.
    """
    paths = {path for move in moves for path in (move.source, *map(os.path.dirname, (move.source, move.place)))}
    with ExitStack() as undo:
        for path in sorted(paths) if os.geteuid() != 0 else ():
            _open_up(path, undo)
        yield


def _open_up(path: str, undo: ExitStack) -> None:
    try:
        status = reach(os.lstat, path)
    except PermissionError:
        if os.path.dirname(path) == path:
            raise
        _open_up(os.path.dirname(path), undo)
        status = reach(os.lstat, path)
    except (FileNotFoundError, NotADirectoryError):  # it has been moved
        return
    if stat.S_ISDIR(status.st_mode) and status.st_mode & _CHANGE != _CHANGE and status.st_uid == os.geteuid():
        fd = open_plain(path, os.O_PATH | os.O_DIRECTORY)  # which follows it to its place
        undo.callback(os.close, fd)
        here, mode = f"/proc/self/fd/{fd}", stat.S_IMODE(status.st_mode)
        os.chmod(here, mode | stat.S_IRWXU)
        undo.callback(os.chmod, here, mode)
