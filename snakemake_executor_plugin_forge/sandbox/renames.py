"""Renames of directories that were there before the job, for ordinary users.

An overlay in a user namespace has no redirects: rename(2) of such a directory fails with EXDEV (overlayfs.rst; it
refuses ``userxattr,redirect_dir=on``). mv(1) then copies; most programs fail. So a supervisor renames it for the job:
a new directory takes the files one by one, which the overlay allows, and then the name.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Container
from contextlib import suppress

from ..kernel import procfs, syscalls
from ..kernel.descriptors import closing
from ..spec.paths import COPY

MOST_BYTES, MOST_ENTRIES, MOST_LEVELS = 64 << 20, 2000, 50
"""Bounds on what is renamed so: the supervisor does nothing else meanwhile, and each file is copied to the layer."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def rename_within(root: int, mounts: Container[str], old_path: str, new_path: str) -> bool:
    """Rename a directory for a job, if both paths are in one of its layers.

    Args:
        root: a descriptor of the job's root directory.
        mounts: the numbers of the layers' mounts.

    Raises:
        OSError: if one of them leads nowhere.
    """
    (old_parent, old), (new_parent, new) = (os.path.split(path.rstrip("/")) for path in (old_path, new_path))
    if {old, new} & {"", ".", ".."}:
        return False
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    with closing(syscalls.open_in_root(root, old_parent, flags)) as source:
        if not stat.S_ISDIR(os.stat(old, dir_fd=source, follow_symlinks=False).st_mode):
            return False
        with closing(syscalls.open_in_root(root, new_parent, flags)) as target:
            number = procfs.mount_number(source)
            is_within = number in mounts and number == procfs.mount_number(target)
            return is_within and rename_directory(source, old, target, new)


def rename_directory(old_parent: int, old: str, new_parent: int, new: str) -> bool:
    """Rename a directory in an overlay.

    Args:
        old_parent: a descriptor of the directory that it is in.
        new_parent: of the directory that it is to be in, in the same overlay.

    Returns:
        Whether that was done; if not, nothing has changed, and the kernel will say why.
    """
    try:
        os.rename(old, new, src_dir_fd=old_parent, dst_dir_fd=new_parent)
    except OSError as error:
        if error.errno != errno.EXDEV or not _is_small(old_parent, old):
            return False
    else:
        return True
    between = f"{COPY}{os.getpid()}-renamed"
    try:
        _move(old_parent, old, new_parent, between)
        try:
            os.rename(between, new, src_dir_fd=new_parent, dst_dir_fd=new_parent)
        except OSError:
            _move(new_parent, between, old_parent, old)
            raise
    except OSError:
        return False
    return True


def _is_small(parent: int, name: str) -> bool:
    left, entries, size = [(name, 0)], 0, 0
    while left:
        path, level = left.pop()
        with closing(os.open(path, _DIRECTORY, dir_fd=parent)) as fd:
            for inner in os.listdir(fd):
                status = os.stat(inner, dir_fd=fd, follow_symlinks=False)
                entries, size = entries + 1, size + status.st_size
                if entries > MOST_ENTRIES or size > MOST_BYTES or level > MOST_LEVELS:
                    return False
                if stat.S_ISDIR(status.st_mode):
                    left.append((f"{path}/{inner}", level + 1))
    return True


def _move(old_parent: int, old: str, new_parent: int, new: str) -> None:
    """Make a directory like another one, move all entries to it, and remove the other one; undo that if it fails."""
    with closing(os.open(old, _DIRECTORY, dir_fd=old_parent)) as source:
        before = os.fstat(source)
        os.mkdir(new, 0o700, dir_fd=new_parent)
        moved: list[str] = []
        with closing(os.open(new, _DIRECTORY, dir_fd=new_parent)) as target:
            try:
                for name in os.listdir(source):
                    _move_entry(source, target, name)
                    moved.append(name)
                _make_like(source, target, before)
                os.rmdir(old, dir_fd=old_parent)
            except OSError:
                for name in moved:
                    with suppress(OSError):
                        _move_entry(target, source, name)
                with suppress(OSError):
                    os.rmdir(new, dir_fd=new_parent)
                    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
                raise


def _move_entry(source: int, target: int, name: str) -> None:
    try:
        os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _move(source, name, target, name)


def _make_like(source: int, target: int, before: os.stat_result) -> None:
    import shutil  # few jobs need it, and every fork copies the mappings of its libraries

    with suppress(OSError):  # a group of which this user is no member
        os.fchown(target, -1, before.st_gid)
    shutil.copystat(f"/proc/self/fd/{source}", f"/proc/self/fd/{target}")
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
