"""The directory in which a job keeps its own checkpoints: $FORGE_CHECKPOINT_DIR, see docs/how-to/checkpoints.md.

It outlives failed attempts, crashes and retries, and is removed when the job has succeeded. Two things must never
happen: that two jobs use one at the same time, and that a job goes on from a checkpoint of other inputs or another
command. So who uses it has it locked (flock(2), which ends with the process), and it carries what it was made from.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from contextlib import suppress

from ..errors import SandboxError
from ..model import LaunchSpec
from .directories import make_shared, remove_tree

_ATTRIBUTE = "user.forge.basis"
_BESIDE = ".basis"  # a file, where the file system has no extended attributes
_NONE_THERE = (errno.ENODATA, errno.EOPNOTSUPP)
_TRIES = 100


def basis(spec: LaunchSpec) -> bytes:
    """What a checkpoint of this job holds for: recipe, software, and its inputs by size and time of change."""
    digest = hashlib.sha256(f"{spec.recipe}\0{spec.runtime}\0{spec.runtime_id}".encode("utf-8", "surrogateescape"))
    for path in (*spec.inputs, *spec.sources):
        try:
            status = os.stat(os.path.join(spec.workdir, path))
            version = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:  # a storage's name, or a link to nowhere: it is the same the next time
            version = "none"
        digest.update(f"\0{path}\0{version}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest().encode()


def take(spec: LaunchSpec) -> Checkpoint | None:
    """The directory of a job; one for this attempt alone, if another attempt of the same job is alive.

    That is so with two runs in one working directory (``--nolock``).

    Raises:
        SandboxError, OSError: if it cannot be made.

    """
    if spec.checkpoint is None:
        return None
    try:
        return Checkpoint(spec.checkpoint, basis(spec))
    except CheckpointInUseError:
        own = f"{spec.checkpoint}.{os.path.basename(spec.scratch_base)}-{spec.name}"
        return Checkpoint(own, b"", lasting=False)


class CheckpointInUseError(SandboxError):
    """Another attempt of the same job is alive."""


class Checkpoint:
    """The directory of a job, while an attempt of it runs."""

    def __init__(self, path: str, made_from: bytes, *, lasting: bool = True) -> None:
        """Make it if it is not there, and lock it; empty it if it is of something else.

        Args:
            path: absolute.
            made_from: see :func:`basis`.
            lasting: whether it stays after a failure.

        Raises:
            CheckpointInUseError: if another job uses it.
            OSError: if it cannot be made.

        """
        self.path = path
        self.lasting = lasting
        self.discarded = False  # whether what was in it was of something else
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
        """After an attempt, when all of its processes are dead: remove it if nobody needs it any more.

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
        """Unlock it, and leave it as it is."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _locked(path: str) -> int:
    """A descriptor of the directory, which is locked as long as that is open."""
    for _ in range(_TRIES):
        try:
            os.mkdir(path)
        except FileExistsError:
            pass
        except FileNotFoundError:
            make_shared(os.path.dirname(path))
            continue
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:  # who had it before has just removed it
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise CheckpointInUseError(f"{path} is used by another attempt of the same job, which is alive") from None
        except OSError:  # this file system has no locks; Snakemake has one for the working directory
            return fd
        if _is_still_there(fd, path):
            return fd
        os.close(fd)  # who had it locked before has removed it
    raise SandboxError(f"its checkpoint directory {path} is made and removed all the time by somebody else")


def _is_still_there(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
