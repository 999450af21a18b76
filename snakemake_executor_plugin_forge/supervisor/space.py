"""Full file systems: whether a job, or Forge, had no space left, no inodes or no quota."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress

from ..kernel.descriptors import closing
from ..kernel.long_paths import reach
from ..kernel.tree import walk
from ..spec.verdict import Refusal, RefusalKind

FULL = (errno.ENOSPC, errno.EDQUOT)
_LEAST_BYTES = 1 << 16
_LEAST_FILES = 4  # inodes
_LEAST_BLOCK_BYTES = 512
_MOST_OUTPUTS = 100


def ignored(directories: Collection[str], layers: Collection[str], outputs: Iterable[str]) -> tuple[Refusal, ...]:
    """Return the full file systems of which the programs of a job that has succeeded may have taken no notice.

    Args:
        directories: where its files are until they are published.
        layers: with all that it has written; none: that is unknown.
        outputs: where its outputs are.
    """
    if any(full_file_systems(directories)):
        is_cut = not layers or any(_may_be_cut_below(layer) for layer in layers)
        return tuple(full_file_systems(directories, of_inodes=not is_cut))
    if any(_may_be_cut(reach(os.lstat, path)) for path, _ in zip(outputs, range(_MOST_OUTPUTS), strict=False)):
        return tuple(without_quota(directories))
    return ()


def ignored_in_scratch(scratch: str) -> tuple[Refusal, ...]:
    """Return the file system of the scratch, if it is full and a temporary file of a succeeded job may be cut."""
    full = tuple(full_file_systems((scratch,)))
    return full if full and _may_be_cut_below(scratch) else ()


def _may_be_cut(status: os.stat_result) -> bool:
    """Whether a file may lack its end because the file system was full.

    A write then stops where a new block would begin, so a file that ends elsewhere lacks nothing that was appended.
    """
    return stat.S_ISREG(status.st_mode) and status.st_size % _LEAST_BLOCK_BYTES == 0


def _may_be_cut_below(directory: str) -> bool:
    return any(
        _may_be_cut(os.stat(name, dir_fd=here.fd, follow_symlinks=False))
        for here in walk(directory, quiet=True)
        for name in here.files
    )


def full_file_systems(directories: Collection[str], *, of_inodes: bool = False) -> Iterator[Refusal]:
    """Yield the file systems of some directories that have no space left, or no inodes: statvfs(3).

    Args:
        of_inodes: only those without inodes.
    """
    for directory in directories:
        with suppress(OSError):
            status = os.statvfs(directory)
            blocks = status.f_bfree if os.geteuid() == 0 else status.f_bavail
            no_space = status.f_blocks and blocks * status.f_frsize < _LEAST_BYTES and not of_inodes
            if no_space or (status.f_files and status.f_favail < _LEAST_FILES):
                yield Refusal(RefusalKind.FULL, mount_point(directory), errno.ENOSPC)


def without_quota(directories: Iterable[str]) -> Iterator[Refusal]:
    """Yield the file systems on which this user gets no more space, of which statvfs(3) says nothing: quotactl(2)."""
    for directory in directories:
        try:
            with closing(os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)) as fd:
                os.posix_fallocate(fd, 0, _LEAST_BYTES)
        except OSError as error:  # another one: the file system cannot do that
            if error.errno in FULL:
                yield Refusal(RefusalKind.FULL, mount_point(directory), error.errno)


def full_by(error: OSError, directory: str) -> tuple[Refusal, ...]:
    """Return what a failed system call of Forge says of a full file system: nothing, or the file system."""
    if error.errno not in FULL:
        return ()
    return (Refusal(RefusalKind.FULL, mount_point(os.path.dirname(error.filename or "") or directory), error.errno),)


def mount_point(path: str) -> str:
    """The nearest mount point around a path."""
    path = os.path.realpath(path)
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path
