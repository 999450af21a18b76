"""The private temporary directories of one job, on disk: made before it, measured and removed after it."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress

from ..errors import SandboxError

_PARTS = {"/tmp": "tmp", "/var/tmp": "var-tmp"}  # noqa: S108


class Scratch:
    """``<base>/<name>/`` with ``scratch`` ($TMPDIR), ``tmp`` and ``var-tmp`` (seen as /tmp and /var/tmp)."""

    def __init__(self, base: str, name: str, private: tuple[str, ...]) -> None:
        """Make the directories, readable by their owner only.

        Raises:
            SandboxError: naming the directory that could not be made.
        """
        self._base = base
        self._root = f"{base}/{name}"
        self.path = f"{self._root}/scratch"
        self.private = {d: f"{self._root}/{_PARTS[d]}" for d in private if d in _PARTS}
        try:
            self._make_root()
            os.mkdir(self.path)
            for path in self.private.values():
                os.mkdir(path)
                os.chmod(path, 0o1777)
        except OSError as error:
            raise SandboxError(
                f"the job's temporary directory {self._root} could not be made: {error.strerror}. "
                "Free space there, or name another place with --forge-scratch-dir."
            ) from error

    def _make_root(self) -> None:
        for attempt in range(10):
            os.makedirs(self._base, mode=0o700, exist_ok=True)
            try:
                os.mkdir(self._root, 0o700)
                return
            except FileNotFoundError:  # a job that ended just now has removed the empty base
                if attempt == 9:
                    raise

    def size_bytes(self) -> int:
        """What is in it now, in bytes of disk."""
        total = 0
        for directory, _, names in os.walk(self._root):
            for name in names:
                with suppress(OSError):
                    total += os.lstat(f"{directory}/{name}").st_blocks * 512
        return total

    def take(self, path: str) -> None:
        """Move a declared output that lies directly in a private directory to its real place.

        Raises:
            OSError: if it cannot be moved. A missing file is none of this function's business.
        """
        for directory, source in self.private.items():
            inner = f"{source}/{os.path.basename(path)}"
            if os.path.dirname(path) == directory and os.path.lexists(inner):
                shutil.move(inner, path)

    def remove(self) -> None:
        """Remove everything, whatever its modes are; never follows a link."""
        _remove_tree(self._root)
        with suppress(OSError):
            os.rmdir(self._base)


def remove_left(base: str, name: str) -> None:
    """Remove the directories of a job whose supervisor died."""
    _remove_tree(f"{base}/{name}")
    with suppress(OSError):
        os.rmdir(base)


def _remove_tree(root: str) -> None:
    def retry(function: object, path: str, _: object) -> None:
        # An unreadable directory (chmod 000): open it up and go on below.
        parent = os.path.dirname(path)
        for directory in (parent, path):
            with suppress(OSError):
                if stat.S_ISDIR(os.lstat(directory).st_mode):
                    os.chmod(directory, 0o700)
        with suppress(OSError):
            if stat.S_ISDIR(os.lstat(path).st_mode):
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)

    if os.path.lexists(root):
        shutil.rmtree(root, onerror=retry)
