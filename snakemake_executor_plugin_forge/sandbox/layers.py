"""The layers of a job on disk: what it writes to a directory is kept apart there until it is published.

A layer is the upper directory of an overlay (Documentation/filesystems/overlayfs.rst) and lies in the directory that it
covers, so that its files can be renamed to their places. A supervisor keeps its layers from one job to the next, as it
does its scratch.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from ..files import STAGING, STAGING_ELSEWHERE, below
from ..model import FilePolicy, Files, Target
from . import syscalls
from .directories import among_others, remove_if_empty, remove_tree
from .syscalls import Step

_MOST_USES = 32

# volatile: the job's own sync calls do nothing, and the end of a job does not sync the whole file system below;
# what is published is synced by publish.py. The others keep the upper directory plain: what is in it is what was
# written, and directories are copied rather than renamed.
_OPTIONS = "volatile,redirect_dir=nofollow,metacopy=off,index=off"


@dataclass(frozen=True, slots=True)
class Layer:
    """One directory, and where the changes to it are."""

    root: str
    directory: str  # what its own directories are in
    lower: str  # what is seen below: the root or, in strict, an empty directory

    @property
    def upper(self) -> str:
        """All that the job has written, with its paths as in the root."""
        return f"{self.directory}/upper"

    @property
    def work(self) -> str:
        """The overlay's own."""
        return f"{self.directory}/work"

    def make(self) -> None:
        """Make its directories.

        Raises:
            OSError: if they cannot be made.

        """
        os.makedirs(self.upper, exist_ok=True)
        os.makedirs(self.work, exist_ok=True)
        status = os.stat(self.root)
        os.chmod(self.upper, stat.S_IMODE(status.st_mode))  # the root of the overlay shows this one's
        if os.geteuid() == 0:
            os.chown(self.upper, status.st_uid, status.st_gid)

    def mount_step(self, place: str, user: bool) -> Step:
        """Mount it: for a process in a mount namespace of its own.

        Args:
            place: where.
            user: in a user namespace, in which trusted extended attributes cannot be written.

        """
        paths = f"lowerdir={_escaped(self.lower)},upperdir={_escaped(self.upper)},workdir={_escaped(self.work)}"
        options = f"{paths},{_OPTIONS}{',userxattr' if user else ''}"
        return syscalls.mount_step("forge-layer", place, "overlay", syscalls.MS_NODEV, options)

    def begin(self, targets: Iterable[Target], inputs: Iterable[str]) -> None:
        """Before the job: let it not see the present versions of what it is to write.

        By whiteouts, as the overlay itself makes them: device nodes 0/0, which anybody may make (mknod(2)).

        Args:
            targets: of the job; those of other layers are left alone.
            inputs: of the job, beside which tools write their indices.

        Raises:
            OSError: if that is refused.

        """
        for target in targets:
            name = self._name(target.path)
            if name is None:
                continue
            if self.lower != self.root:
                self._make_directories(os.path.dirname(name))
            elif os.path.lexists(target.path):
                self._make_directories(os.path.dirname(name))
                if not target.update:
                    os.mknod(f"{self.upper}/{name}", stat.S_IFCHR, os.makedev(0, 0))
                elif _is_foreign(target.path):
                    shutil.copy2(target.path, f"{self.upper}/{name}", follow_symlinks=False)
        if os.geteuid() != 0:
            self._take_over({os.path.dirname(path) for path in (*(t.path for t in targets), *inputs)})

    def _take_over(self, directories: Iterable[str]) -> None:
        """Make those of other users and groups in the layer.

        An overlay in a user namespace cannot copy them, because they have no number there; and no file could be
        made in them.
        """
        for path in directories:
            name = self._name(path)
            if name is not None and os.path.isdir(path) and _is_foreign(path):
                self._make_directories(name)

    def _name(self, path: str) -> str | None:
        """Relative to the root; None for what is not below it."""
        return path.removeprefix(self.root + "/") if path.startswith(self.root + "/") else None

    def _make_directories(self, name: str) -> None:
        """As they are in the root: with their modes and owners."""
        if not name or os.path.lexists(f"{self.upper}/{name}"):
            return
        self._make_directories(os.path.dirname(name))
        status = os.stat(f"{self.root}/{name}")
        os.mkdir(f"{self.upper}/{name}")
        os.chmod(f"{self.upper}/{name}", stat.S_IMODE(status.st_mode))
        if os.geteuid() == 0:
            os.chown(f"{self.upper}/{name}", status.st_uid, status.st_gid)

    def place_holder(self, path: str, *, is_directory: bool) -> None:
        """Make something on which another file can be mounted, where the lower directory has nothing."""
        target = f"{self.upper}/{path.removeprefix(self.root + '/')}"
        os.makedirs(target if is_directory else os.path.dirname(target), exist_ok=True)
        if not is_directory and not os.path.lexists(target):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))

    def empty(self) -> None:
        """After the job: make it ready for the next one. Nobody has it mounted any more.

        Raises:
            OSError: if something in it cannot be removed.

        """
        with os.scandir(self.upper) as entries:
            for entry in list(entries):
                if entry.is_dir(follow_symlinks=False):
                    remove_tree(entry.path)
                else:
                    os.unlink(entry.path)
        self._empty_work()

    def _empty_work(self) -> None:
        """``volatile`` leaves a mark with which it cannot be mounted again."""
        work = f"{self.work}/work"
        with suppress(OSError):
            os.chmod(work, 0o700)
        try:
            with suppress(FileNotFoundError):
                os.chmod(f"{work}/incompat", 0o700)
                os.chmod(f"{work}/incompat/volatile", 0o700)
                os.unlink(f"{work}/incompat/volatile/dirty")
                os.rmdir(f"{work}/incompat/volatile")
                os.rmdir(f"{work}/incompat")
            if os.listdir(work):
                raise OSError("there is more in it")
        except OSError:
            remove_tree(self.work)
            os.mkdir(self.work)

    def remove(self) -> None:
        """Remove it and, if they are empty then, the directories that were made for it."""
        remove_tree(self.directory)
        parent = os.path.dirname(self.directory)
        while below(parent, self.root) and parent != self.root and remove_if_empty(parent):
            parent = os.path.dirname(parent)


class Layers:
    """Those that a supervisor has, from one job to the next."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str, bool], Layer] = {}
        self._uses: dict[Layer, int] = {}
        self._number = 0

    def take_all(self, files: Files, workdir: str, run_id: str, slot: str) -> Iterator[Layer]:
        """Empty layers over the directories that a job's file policy names, in their order, and then over $HOME.

        Args:
            slot: of the scratch. What the job writes to $HOME is kept in there, because nobody keeps it for longer; and
                all else where the directory's own file system cannot be an overlay's upper layer (NFS, Lustre, FUSE).

        Raises:
            OSError: if one cannot be made.

        """
        strict = files.policy is FilePolicy.STRICT
        name = f"{run_id}-{os.getpid()}"
        for root in files.layers:
            if files.apart:
                yield self._take(root, f"{slot}/layers", name, from_nothing=strict)
            else:
                yield self._take(root, _staging(root, workdir), name, from_nothing=strict)
        if files.home is not None and not strict:
            yield self._take(files.home, f"{slot}/layers", name, from_nothing=False)

    def _take(self, root: str, place: str, name: str, *, from_nothing: bool) -> Layer:
        layer = self._kept.get((root, place, from_nothing))
        if layer is None or not os.path.isdir(layer.upper):
            self._number += 1
            own = f"{place}/{name}-{self._number}"
            among_others(partial(_make_spread, place, own))
            layer = Layer(root, own, f"{own}/nothing" if from_nothing else root)
            layer.make()
            os.makedirs(layer.lower, exist_ok=True)
            self._kept[root, place, from_nothing] = layer
        return layer

    def give_back(self, layers: Iterable[Layer]) -> None:
        """Empty them for the next job.

        What cannot be emptied is not used again, and neither is one that was used often: to mount an overlay makes and
        deletes seven inodes, and an ext4 without journal looks at all that were deleted near by in the last minutes
        before it makes one. A new layer is in another part of the disk: see :func:`.syscalls.spread_subdirectories`.
        """
        for layer in layers:
            uses = self._uses.get(layer, 0) + 1
            self._uses[layer] = uses
            try:
                layer.empty()
            except OSError:
                uses = _MOST_USES
            if uses >= _MOST_USES:
                self._forget(layer)

    def leave(self, layers: Iterable[Layer]) -> None:
        """Give them up as they are, with what is in them."""
        for layer in layers:
            self._kept = {key: kept for key, kept in self._kept.items() if kept is not layer}
            self._uses.pop(layer, None)

    def _forget(self, layer: Layer) -> None:
        self.leave([layer])
        layer.remove()

    def close(self) -> None:
        """Remove them all."""
        for layer in list(self._kept.values()):
            self._forget(layer)


def left_behind(files: Files, workdir: str, run_id: str, pid: int) -> Iterator[str]:
    """The directories of layers of a dead supervisor."""
    yield from left_behind_by(files, workdir, f"{run_id}-{pid}-")


def left_behind_by(files: Files, workdir: str, prefix: str) -> Iterator[str]:
    """The directories of layers whose names begin so."""
    for root in dict.fromkeys((workdir, *files.layers)):  # in the first is also the journal of what is staged elsewhere
        staging = _staging(root, workdir)
        with suppress(OSError):
            yield from (f"{staging}/{n}" for n in sorted(os.listdir(staging)) if n.startswith(prefix))


def _is_foreign(path: str) -> bool:
    """Whether it belongs to another user or group than this process."""
    status = os.lstat(path)
    return status.st_uid != os.geteuid() or status.st_gid != os.getegid()


def _staging(root: str, workdir: str) -> str:
    return f"{workdir}/{STAGING}" if root == workdir else f"{root}/{STAGING_ELSEWHERE}"


def _make_spread(place: str, directory: str) -> None:
    """Make a directory in another one that its neighbours remove when they leave it empty."""
    if not os.path.isdir(place):
        os.makedirs(place, exist_ok=True)
        syscalls.spread_subdirectories(place)
    os.makedirs(directory, exist_ok=True)


def layer_of(path: str, layers: Iterable[Layer]) -> Layer | None:
    """The innermost one that covers ``path``."""
    found = [layer for layer in layers if below(path, layer.root)]
    return max(found, key=lambda layer: len(layer.root), default=None)


def _escaped(path: str) -> str:
    """For the options of an overlay: ovl_parse_param() and ovl_unescape() of fs/overlayfs/params.c."""
    return path.replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")
