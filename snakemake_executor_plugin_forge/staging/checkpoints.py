"""Checkpoint directories, in which jobs keep their own checkpoints: $FORGE_CHECKPOINT_DIR, docs/how-to/checkpoints.md.

A directory outlives failed attempts, crashes and retries; when the job succeeds, it is removed. Two things must never
happen: two jobs use one directory at the same time, or a job continues from a checkpoint of other inputs or another
command. So an attempt locks its directory (flock(2), which ends with the process), and the directory is marked with a
digest of what it was made from, its *basis*.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from contextlib import suppress

from ..kernel.tree import remove_tree
from ..sandbox.filesystem.directories import locked, make_shared
from ..spec.errors import SandboxError
from ..spec.job import LaunchSpec
from .file_version import FileVersion

_ATTRIBUTE = "user.forge.basis"
_BESIDE = ".basis"  # a file, where the file system has no extended attributes
_NONE_THERE = (errno.ENODATA, errno.EOPNOTSUPP)
_TRIES = 100


def basis(spec: LaunchSpec) -> bytes:
    """The digest of what a checkpoint depends on: recipe, software, and the inputs by size and modification time."""
    digest = hashlib.sha256(f"{spec.recipe}\0{spec.runtime}\0{spec.runtime_id}".encode("utf-8", "surrogateescape"))
    for path in (*spec.inputs, *spec.sources):
        try:
            found = FileVersion.of(os.stat(os.path.join(spec.workdir, path)))
            version = f"{found.size_bytes} {found.mtime_ns}"
        except OSError:  # a name in a storage, or a dangling link: the next attempt finds it so too
            version = "none"
        digest.update(f"\0{path}\0{version}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest().encode()


def take(spec: LaunchSpec) -> Checkpoint | None:
    """Lock the checkpoint directory of a job, or one for this attempt alone if another attempt of the job is alive.

    Two attempts are alive when two runs share a working directory (``--nolock``).

    Raises:
        SandboxError, OSError: if the directory cannot be made.
    """
    if spec.checkpoint is None:
        return None
    try:
        return Checkpoint(spec.checkpoint, basis(spec))
    except CheckpointInUseError:
        own = f"{spec.checkpoint}.{spec.layer_base}-{spec.name}"
        return Checkpoint(own, b"", lasting=False)


class CheckpointInUseError(SandboxError):
    """Another attempt of the same job is alive."""


class Checkpoint:
    """The locked checkpoint directory of a job, while an attempt of it runs."""

    def __init__(self, path: str, made_from: bytes, *, lasting: bool = True) -> None:
        """Make the directory if it is missing, and lock it; empty it if its basis is another one.

        Args:
            path: absolute.
            made_from: see :func:`basis`.
            lasting: whether the directory stays after a failure.

        Raises:
            CheckpointInUseError: if another job uses it.
            OSError: if the directory cannot be made.
        """
        self.path = path
        self.lasting = lasting
        self.discarded = False  # whether it had another basis, and was emptied
        self._fd = _locked(path)
        found = self._basis()
        if found == made_from:
            return
        if os.listdir(self._fd):
            self.discarded = True
            self._empty()
        try:
            os.setxattr(self._fd, _ATTRIBUTE, made_from)
        except OSError:
            with open(path + _BESIDE, "wb") as file:
                file.write(made_from)

    def _basis(self) -> bytes | None:
        try:
            return os.getxattr(self._fd, _ATTRIBUTE)
        except OSError as error:
            if error.errno not in _NONE_THERE:
                raise
        with suppress(FileNotFoundError), open(self.path + _BESIDE, "rb") as file:
            return file.read()
        return None

    def _empty(self) -> None:
        for name in os.listdir(self._fd):
            path = f"{self.path}/{name}"
            if os.path.isdir(path) and not os.path.islink(path):
                remove_tree(path)
            else:
                os.unlink(path)

    def end(self, *, succeeded: bool) -> None:
        """End the attempt, whose processes are all dead; remove the directory if no later attempt needs it.

        Raises:
            OSError: if it cannot be removed.
        """
        try:
            if succeeded or not self.lasting:
                self._empty()
            elif os.listdir(self._fd):
                return
            os.rmdir(self.path)
            with suppress(FileNotFoundError):
                os.unlink(self.path + _BESIDE)
        finally:
            self.close()

    def close(self) -> None:
        """Unlock the directory, and leave its files as they are."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def in_use(path: str) -> bool:
    """Whether an attempt has locked a checkpoint directory, or that cannot be found out."""
    try:
        with locked(path):
            return False
    except OSError:
        return True


def remove_unused(path: str) -> None:
    """Remove a checkpoint directory.

    Raises:
        OSError: if an attempt has locked it.
    """
    with locked(path):
        remove_tree(path)
        with suppress(FileNotFoundError):
            os.unlink(path + _BESIDE)


def _locked(path: str) -> int:
    """Make and lock a directory, and return its descriptor; the lock lasts until that is closed."""
    for _ in range(_TRIES):
        try:
            os.mkdir(path)
        except FileExistsError:
            pass
        except FileNotFoundError:
            make_shared(os.path.dirname(path))
            if os.geteuid() == 0:  # its jobs may make set-user-ID programs there
                os.chmod(os.path.dirname(path), stat.S_IRWXU)
            continue
        try:
            if not os.access(path, os.R_OK | os.W_OK | os.X_OK) and stat.S_ISDIR(os.lstat(path).st_mode):
                os.chmod(path, stat.S_IRWXU)  # its job has closed it
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:  # another attempt has just removed it
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise CheckpointInUseError(f"{path} is used by another attempt of the same job, which is alive") from None
        except OSError:  # no locks on this file system; Snakemake's lock of the working directory remains
            return fd
        if _is_still_there(fd, path):
            return fd
        os.close(fd)  # the attempt that had it locked has removed it
    raise SandboxError(f"other processes make and remove its checkpoint directory {path} all the time")


def _is_still_there(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
