"""Paths without symbolic links: whoever exchanges a directory for a link meanwhile leads no call elsewhere.

Each function opens the directory of a path with openat2(2) and RESOLVE_NO_SYMLINKS or, before Linux 5.6, one component
after the other with O_NOFOLLOW, and acts on names in it. A link on the way is an OSError: ELOOP or ENOTDIR. Paths are
absolute and of any length.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Self

from .descriptors import closing
from .syscalls import exchange_at, open_without_links

_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LONGEST = 1000  # characters, of at most four bytes each, of what is given to the kernel at once
_MOST_OPEN = 32  # directories of one publication


def open_plain(path: str, flags: int) -> int:
    """Open a file or directory: open(2); the last component may be no link either.

    Raises:
        OSError: also if a link is on the way.
    """
    here = os.open("/", _PLACE)
    try:
        *way, last = _pieces(path)
        for piece in way:
            fd = _open(piece, _PLACE, here)
            os.close(here)
            here = fd
        return _open(last, flags | os.O_NOFOLLOW | os.O_CLOEXEC, here)
    finally:
        os.close(here)


def open_regular(path: str, flags: int = os.O_RDONLY) -> int:
    """Open a regular file, and nothing else: a FIFO, device, socket, directory or link is an error.

    Raises:
        OSError: if it is none, cannot be opened, or a link is on the way.
    """
    return checked_regular(open_plain(path, flags | os.O_NONBLOCK | os.O_NOCTTY), path)


def checked_regular(fd: int, path: str) -> int:
    """Return a descriptor, if it is that of a regular file; else close it.

    Raises:
        OSError: if it is none.
    """
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file", path)
    return fd


@contextmanager
def directory_of(path: str) -> Iterator[tuple[int, str]]:
    """Give a descriptor (O_PATH) of the directory of a path, and the name in it.

    Raises:
        OSError: if it cannot be opened, or a link is on the way.
    """
    parent, name = os.path.split(path)
    with closing(open_plain(parent, _PLACE)) as fd:
        yield fd, name


@contextmanager
def near(path: str) -> Iterator[str]:
    """Give a short name of a path, which no other process can lead elsewhere: proc_pid_fd(5).

    Raises:
        OSError: if its directory cannot be opened, or a link is on the way.
    """
    with directory_of(path) as (fd, name):
        yield f"/proc/self/fd/{fd}/{name}"


def unlink(path: str) -> None:
    """unlink(2)."""
    with directory_of(path) as (fd, name):
        os.unlink(name, dir_fd=fd)


def name_aside(inode: int) -> str:
    """The name of a file that waits beside the one that takes its place, while an exchange takes several renames."""
    return f".forge-old-{inode}"


class Places:
    """The directories of one publication, open from their first use on: what was done in them can be undone in them."""

    def __init__(self, before_steps: Callable[[], None] | None = None) -> None:
        """Open nothing yet.

        Args:
            before_steps: is called before an exchange for which the file system takes several renames.
        """
        self._open: dict[str, int] = {}
        self._before_steps = before_steps

    def _directory(self, path: str) -> int:
        if path not in self._open:
            fd = open_plain(path, _PLACE)
            if len(self._open) >= _MOST_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[path] = fd
        else:
            self._open[path] = self._open.pop(path)  # which makes it the last one to be closed
        return self._open[path]

    def lstat(self, path: str) -> os.stat_result | None:
        """lstat(2); None if there is no such file.

        Raises:
            OSError: if a link is on the way.
        """
        parent, name = os.path.split(path)
        with suppress(FileNotFoundError):
            return os.stat(name, dir_fd=self._directory(parent), follow_symlinks=False)
        return None

    def rename(self, source: str, place: str) -> None:
        """rename(2)."""
        (parent, old), (other, new) = os.path.split(source), os.path.split(place)
        one, two = self._directory(parent), self._directory(other)
        os.rename(old, new, src_dir_fd=one, dst_dir_fd=two)

    def exchange(self, source: str, place: str) -> None:
        """Exchange two files or directories, in one step where the file system can.

        Raises:
            OSError: if that fails; both are then where they were.
        """
        (parent, old), (other, new) = os.path.split(source), os.path.split(place)
        one, two = self._directory(parent), self._directory(other)
        try:
            exchange_at(one, old, two, new)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise OSError(error.errno, os.strerror(error.errno or 0), source, None, place) from None
            if self._before_steps is not None:
                self._before_steps()
            self._exchange_in_steps(one, old, two, new)

    @staticmethod
    def _exchange_in_steps(one: int, old: str, two: int, new: str) -> None:
        aside = name_aside(os.stat(new, dir_fd=two, follow_symlinks=False).st_ino)
        os.rename(new, aside, src_dir_fd=two, dst_dir_fd=one)
        try:
            os.rename(old, new, src_dir_fd=one, dst_dir_fd=two)
            try:
                os.rename(aside, old, src_dir_fd=one, dst_dir_fd=one)
            except OSError:
                os.rename(new, old, src_dir_fd=two, dst_dir_fd=one)
                raise
        except OSError:
            os.rename(aside, new, src_dir_fd=one, dst_dir_fd=two)
            raise

    def are_elsewhere(self, directory: str) -> bool:
        """Whether any directory that was used is on another file system than ``directory``."""
        device = os.stat(directory).st_dev
        return any(os.fstat(fd).st_dev != device for fd in self._open.values())

    def check(self, directories: Iterable[str]) -> None:
        """Check that directories are still where they were opened.

        Raises:
            OSError: if one was moved, or exchanged for a link.
        """
        for path in directories:
            if path in self._open:
                with closing(open_plain(path, _PLACE)) as now:
                    if not os.path.samestat(os.fstat(now), os.fstat(self._open[path])):
                        raise OSError(errno.ESTALE, "another process exchanged this directory meanwhile", path)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close all directories."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()


def make_directories(path: str) -> None:
    """Make a directory and those above it that are missing; none of them may be a link.

    Raises:
        OSError: if one cannot be made.
    """
    with suppress(FileNotFoundError):
        os.close(open_plain(path, _PLACE))
        return
    fd = os.open("/", _PLACE)
    try:
        for name in filter(None, path.split("/")):
            try:
                inner = os.open(name, _PLACE, dir_fd=fd)
            except FileNotFoundError:
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=fd)
                inner = os.open(name, _PLACE, dir_fd=fd)
            os.close(fd)
            fd = inner
    finally:
        os.close(fd)


def _pieces(path: str) -> list[str]:
    """Cut a path into relative ones that are short enough, or single names."""
    rest, found = path.strip("/"), []
    while len(rest) > _LONGEST and (end := rest.rfind("/", 0, _LONGEST)) > 0:
        found.append(rest[:end])
        rest = rest[end:].lstrip("/")
    return [*found, rest or "."]


def _open(path: str, flags: int, dir_fd: int) -> int:
    if _has_openat2():
        return open_without_links(dir_fd, path, flags)
    *way, last = path.split("/")
    fd = os.dup(dir_fd)
    try:
        for name in filter(None, way):
            inner = os.open(name, _PLACE, dir_fd=fd)
            os.close(fd)
            fd = inner
        return os.open(last, flags | os.O_NOFOLLOW, dir_fd=fd)
    finally:
        os.close(fd)


@functools.cache
def _has_openat2() -> bool:
    """Whether the kernel has openat2(2), and no filter around this process refuses it."""
    with suppress(OSError), closing(os.open("/", _PLACE)) as root:
        os.close(open_without_links(root, ".", _PLACE))
        return True
    return False
