"""Paths of any length: a path that is given to the kernel ends at 4,096 bytes (PATH_MAX of path_resolution(7))."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self

SHORT = 1000
"""Characters, of at most four bytes each, of a path that the kernel takes as it is."""
_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Shortcut:
    """Short names of long paths, as long as no directory on them is moved: each is reached in steps."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._directory = ""
        self._fd: int | None = None

    def __call__(self, path: str) -> str:
        """Return the path itself if it is short, else one that is valid until the next call.

        Raises:
            OSError: if a directory on it cannot be entered.
        """
        if len(path) < SHORT:
            return path
        directory, _, name = path.rstrip("/").rpartition("/")
        if directory != self._directory:
            self._go(directory)
        return f"/proc/self/fd/{self._fd}/{name}"

    def _go(self, directory: str) -> None:
        rest, start = directory, None
        if self._fd is not None and directory.startswith(f"{self._directory}/"):
            rest, start = directory[len(self._directory) + 1 :], self._fd
        try:
            while rest:
                end = len(rest) if len(rest) <= SHORT else rest.rfind("/", 0, SHORT) + 1
                if not end:
                    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), directory)
                fd = os.open(rest[:end], _PLACE, dir_fd=start)
                self.close()
                self._fd = start = fd
                rest = rest[end:].lstrip("/")
        except OSError:
            self.close()
            raise
        self._directory = directory

    def close(self) -> None:
        """Forget all."""
        if self._fd is not None:
            os.close(self._fd)
        self._fd, self._directory = None, ""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Forget all."""
        self.close()


def reach(call: Callable[..., Any], *paths: str, **options: Any) -> Any:
    """Make a call of the operating system with paths of any length.

    Args:
        call: gets the paths, which it must not keep.
        paths: in its order.
        options: by name.
    """
    if all(len(path) < SHORT for path in paths):
        return call(*paths, **options)
    with ExitStack() as opened:
        return call(*(opened.enter_context(Shortcut())(path) for path in paths), **options)
