"""Layers: overlays that keep what a job writes to a directory apart until it is published.

A layer is the upper directory of an overlay (Documentation/filesystems/overlayfs.rst). It lies in the directory that
the overlay covers, so that its files can be renamed to their places. A supervisor reuses its layers for one job after
another, as it does with its scratch directory.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import stat
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from ...kernel import syscalls
from ...kernel.syscalls import Step
from ...kernel.tree import copy_tree, remove_tree
from ...spec.file_policy import below, inside_outputs
from ...spec.job import FilePolicy, Files, Target
from ...spec.paths import COPY, STAGING, STAGING_ELSEWHERE
from ...spec.quick_pickle import quick_to_pickle
from .directories import access_lists, among_others, make_like, remove_if_empty

_MOST_USES = 32
_MOST_ENTRIES = 5000  # of directories of a project that are looked through before a job
_NOT_TAKEN = (".snakemake", STAGING_ELSEWHERE, COPY)
PREPARED = "user.overlay.forge.prepared"
"""Attribute of directories in a layer that were made before the job; publishing removes it."""
_NAME = re.compile(r"forge-(?P<run>.+)-(?P<pid>\d+)-\d+")  # see layer_name

# volatile: the job's own sync calls do nothing, and the end of a job does not sync the whole file system below;
# staging/publish.py syncs what it publishes. The other options keep the upper directory plain: it holds complete files,
# and directories are copied rather than renamed, unless :func:`...staging.renamed.fill_renamed` makes them whole.
_OPTIONS = "volatile,redirect_dir={redirect},metacopy=off,index=off"


@quick_to_pickle
@dataclass(frozen=True, slots=True)
class Layer:
    """An overlay over one directory."""

    root: str  # the directory that it covers
    directory: str  # contains its own directories
    lower: str  # the root or, under the policy strict, an empty directory

    @property
    def upper(self) -> str:
        """The directory with all that the job has written, at the same relative paths as in the root."""
        return f"{self.directory}/upper"

    @property
    def work(self) -> str:
        """The overlay's work directory."""
        return f"{self.directory}/work"

    @property
    def trash(self) -> str:
        """The directory for what Forge deletes or puts together when it publishes: out of the job's reach."""
        return trash_of(self.upper)

    def make(self) -> None:
        """Make the directories of the layer.

        Raises:
            OSError: if they cannot be made.
        """
        os.makedirs(self.work, exist_ok=True)
        if not os.path.isdir(self.upper):
            _stand_in(self.upper, self.root)

    def mount_step(self, place: str, user: bool, *, lasting: bool = False) -> Step:
        """Mount the overlay, in a process with a mount namespace of its own.

        Args:
            user: whether the process is in a user namespace, which cannot write trusted extended attributes.
            lasting: whether the layer outlives the job. Directories of the root cannot be renamed in it, because they
                may change later.
        """
        paths = f"lowerdir={_escaped(self.lower)},upperdir={_escaped(self.upper)},workdir={_escaped(self.work)}"
        options = _OPTIONS.format(redirect="nofollow" if user or lasting else "on")
        options = f"{paths},{options}{',userxattr' if user else ''}"
        return syscalls.mount_step("forge-layer", place, "overlay", syscalls.MS_NODEV, options)

    def begin(self, targets: Sequence[Target], inputs: Iterable[str]) -> None:
        """Hide the present versions of the job's outputs before the job starts.

        This uses whiteouts as the overlay itself makes them: device nodes 0/0, which any user may make (mknod(2)).

        Args:
            targets: outputs of the job; the layer skips those that lie outside of it. An output directory with other
                targets in it is there when the job starts, and empty, as Snakemake makes it.
            inputs: of the job; tools write indices beside them.

        Raises:
            OSError: if the kernel refuses it.
        """
        nested = inside_outputs(targets)
        inner = {target.path for inside in nested.values() for target in inside}
        for target in targets:
            name = self._name(target.path)
            if name is None or target.path in inner:
                continue
            self._prepare(name, target, nested.get(target.path))
        if os.geteuid() != 0:
            own = {target.path for target in targets}
            self._take_over({self.root, *map(os.path.dirname, (*own, *inputs))}, own)

    def _prepare(self, name: str, target: Target, inside: Sequence[Target] | None) -> None:
        """Prepare the place of one target, and of the targets inside it. Under strict, the root is not seen."""
        path, upper = target.path, f"{self.upper}/{name}"
        there, seen = os.path.lexists(path), self.lower == self.root
        if there or not seen:
            self._make_directories(os.path.dirname(name))
        if target.directory and target.update and there and not os.path.islink(path):
            copy_tree(path, upper, owners=os.geteuid() == 0)  # as Snakemake does: it is published as a whole
            _make_opaque(upper)
        elif inside is not None:
            self._make_empty(name)
        elif there and target.update:
            if (not seen or _is_foreign(path)) and (os.path.islink(path) or os.path.isfile(path)):
                _copy_file(path, upper)
        elif there and seen:
            os.mknod(upper, stat.S_IFCHR, os.makedev(0, 0))
        for other in inside or ():
            self._make_way(f"{self.upper}{other.path.removeprefix(self.root)}", keep=other.update)

    def _take_over(self, directories: Iterable[str], targets: Container[str]) -> None:
        """Make directories of other users and groups in the layer.

        An overlay in a user namespace cannot copy them, because their owners have no number there. So those below them
        in which this user may write, too: a job may write to any.
        """
        foreign = [d for d in sorted(directories) if below(d, self.root) and os.path.isdir(d) and _is_foreign(d)]
        for path in foreign:
            self._make_directories(path[len(self.root) + 1 :])
        left, seen = _MOST_ENTRIES, set(foreign)
        for path in foreign if self.lower == self.root else ():  # which grows meanwhile: the nearest come first
            entries: list[os.DirEntry[str]] = []
            with suppress(OSError), os.scandir(path) as found:
                entries += itertools.islice(found, left)
            left -= len(entries)
            for entry in entries:
                is_taken = entry.path in seen or entry.path in targets or entry.name.startswith(_NOT_TAKEN)
                if not is_taken and entry.is_dir(follow_symlinks=False) and os.access(entry.path, os.W_OK | os.X_OK):
                    with suppress(FileNotFoundError):
                        upper = self.upper + entry.path.removeprefix(self.root)
                        if _is_foreign(entry.path) and _inherited(upper, entry.path):
                            with suppress(OSError):
                                os.setxattr(upper, PREPARED, b"y")
                            foreign.append(entry.path)
                            seen.add(entry.path)

    def _name(self, path: str) -> str | None:
        """The path relative to the root; None if it is not below the root."""
        return path.removeprefix(self.root + "/") if path.startswith(self.root + "/") else None

    def _make_directories(self, name: str) -> None:
        """Make a directory and its parents with the modes and owners that they have in the root."""
        if not name or os.path.lexists(f"{self.upper}/{name}"):
            return
        self._make_directories(os.path.dirname(name))
        _stand_in(f"{self.upper}/{name}", f"{self.root}/{name}")

    def _make_empty(self, name: str) -> None:
        """Make an empty directory that hides the one in the root."""
        self._make_directories(os.path.dirname(name))
        os.mkdir(f"{self.upper}/{name}")
        if self.lower == self.root and os.path.lexists(f"{self.root}/{name}"):
            _make_opaque(f"{self.upper}/{name}")

    @staticmethod
    def _make_way(path: str, *, keep: bool) -> None:
        """Prepare the place of a target in an output directory as Snakemake does."""
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if not keep and os.path.isdir(path) and not os.path.islink(path):
            remove_tree(path)
        elif not keep and os.path.lexists(path):
            os.unlink(path)

    def empty(self) -> None:
        """Empty the layer for the next job; no process may have it mounted any more.

        Raises:
            OSError: if a file in it cannot be removed.
        """
        self.reset_root()
        with os.scandir(self.upper) as entries:
            for entry in list(entries):
                if not remove_tree(entry.path):
                    raise OSError(errno.ENOTEMPTY, "it cannot be removed", entry.path)
        if not remove_tree(self.trash):
            raise OSError(errno.ENOTEMPTY, "it cannot be removed", self.trash)
        self.reset_work()

    def reset_root(self) -> None:
        """Undo what a job has done to the directory itself that the layer covers: its mode, owner and attributes.

        Raises:
            OSError: if that is not possible.
        """
        make_like(self.upper, self.root)

    def reset_work(self) -> None:
        """Remove the mark of ``volatile``, with which the kernel would refuse to mount the overlay again."""
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
                raise OSError("the work directory is not empty")
        except OSError:
            remove_tree(self.work)
            os.mkdir(self.work)

    def remove(self) -> None:
        """Remove the layer and those directories above it that are empty then."""
        remove_tree(self.directory)
        parent = os.path.dirname(self.directory)
        while below(parent, self.root) and parent != self.root and remove_if_empty(parent):
            parent = os.path.dirname(parent)


class LayerPool:
    """The layers of one supervisor, which it reuses for one job after another."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str, bool], Layer] = {}
        self._uses: Counter[Layer] = Counter()
        self._number, self._base = 0, ""

    def take_all(self, files: Files, workdir: str, base: str, slot: str) -> Iterator[Layer]:
        """Yield empty layers over the directories of a job's file policy, in their order.

        Args:
            base: with which the names of layers begin, ``forge-RUN``; those of another base are removed.
            slot: the scratch slot. It contains the layers where the directory's own file system cannot hold an
                overlay's upper directory (NFS, Lustre, FUSE).

        Raises:
            OSError: if a layer cannot be made.
        """
        if base != self._base:
            self.close()
        self._base = base
        for root in files.layers:
            place = f"{slot}/layers" if files.apart else staging_of(root, workdir)
            yield self._take(root, place, base, from_nothing=files.policy is FilePolicy.STRICT)

    def _take(self, root: str, place: str, base: str, *, from_nothing: bool) -> Layer:
        layer = self._kept.get((root, place, from_nothing))
        if layer is None or not os.path.isdir(layer.upper):
            self._number += 1
            own = f"{place}/{layer_name(base, os.getpid(), self._number)}"
            among_others(partial(_make_spread, place, own))
            layer = Layer(root, own, f"{own}/nothing" if from_nothing else root)
            layer.make()
            os.makedirs(layer.lower, exist_ok=True)
            self._kept[root, place, from_nothing] = layer
        return layer

    def give_back(self, layers: Iterable[Layer], *, reusable: bool = True) -> None:
        """Empty layers for the next job, or remove those that another process may still write to.

        A layer that cannot be emptied, or that was used often, is removed instead: each mount of an overlay makes and
        deletes seven inodes, and an ext4 without journal, before it makes an inode, searches all that were deleted near
        by just now. A new layer is elsewhere on the disk: :func:`...kernel.syscalls.spread_subdirectories`.
        """
        for layer in layers:
            self._uses[layer] += 1
            with suppress(OSError):
                layer.empty()
                if reusable and self._uses[layer] < _MOST_USES:
                    continue
            self._remove(layer)

    def abandon(self, layers: Iterable[Layer]) -> None:
        """Leave layers and their contents on disk, and never use them again."""
        for layer in layers:
            self._kept = {key: kept for key, kept in self._kept.items() if kept is not layer}
            self._uses.pop(layer, None)

    def _remove(self, layer: Layer) -> None:
        self.abandon([layer])
        layer.remove()

    def close(self) -> None:
        """Remove all layers."""
        for layer in list(self._kept.values()):
            self._remove(layer)


def trash_of(upper: str) -> str:
    """The directory beside the upper directory of a layer: see :attr:`Layer.trash`."""
    return f"{os.path.dirname(upper)}/trash"


def layer_name(base: str, pid: int, number: int | str) -> str:
    """The name of a layer's directory.

    Args:
        base: ``forge-RUN``; with the name of the copy in Slurm.
        number: of the layer; "" gives the beginning of all its supervisor's names. A directory with number 0 has only
            the journal of outputs whose layers are elsewhere.
    """
    return f"{base}-{pid}-{number}"


def parts_of_layer(name: str) -> tuple[str, int] | None:
    """The run and the supervisor in a :func:`layer_name`; None if it is none."""
    match = _NAME.fullmatch(name)
    return (match["run"], int(match["pid"])) if match else None


def layer_directories(staging: str) -> Iterator[tuple[str, str, int]]:
    """Yield the path, run and supervisor of each layer in a staging directory, which need not be there."""
    with suppress(OSError):
        for name in sorted(os.listdir(staging)):
            if (parts := parts_of_layer(name)) is not None:
                yield f"{staging}/{name}", *parts


def left_behind(files: Files, workdir: str, prefix: str) -> Iterator[str]:
    """Yield the directories of layers whose names begin with ``prefix``."""
    for root in dict.fromkeys((workdir, *files.layers)):  # the first also has the journal of layers elsewhere
        staging = staging_of(root, workdir)
        with suppress(OSError):
            yield from (f"{staging}/{n}" for n in sorted(os.listdir(staging)) if n.startswith(prefix))


def _make_opaque(directory: str) -> None:
    """Have a directory hide the one below it: "opaque" in overlayfs.rst."""
    os.setxattr(directory, "user.overlay.opaque", b"y")
    if os.geteuid() == 0:
        os.setxattr(directory, "trusted.overlay.opaque", b"y")


def _copy_file(source: str, target: str) -> None:
    """Copy a file with its mode, times and, if this user is a member, its group."""
    import shutil  # few jobs need it, and every fork copies the mappings of its libraries

    shutil.copy2(source, target, follow_symlinks=False)
    with suppress(OSError):
        os.chown(target, -1, os.lstat(source).st_gid, follow_symlinks=False)


def _is_foreign(path: str) -> bool:
    """Whether a file belongs to another user or group than this process."""
    status = os.lstat(path)
    return status.st_uid != os.geteuid() or status.st_gid != os.getegid()


def _stand_in(directory: str, place: str) -> None:
    """Make a directory with the owner, group, mode and access control lists of the one that it stands for.

    So files that a job makes in it get the group and mode that their place would give them: acl(5), inode(7). In a user
    namespace without the place's groups nobody can name these, but a directory that is made in the place inherits them.

    Raises:
        OSError: if it cannot be made.
    """
    status = os.stat(place)
    lists = access_lists(place)
    mode = stat.S_IMODE(status.st_mode)
    if os.geteuid() != 0 and ((mode & stat.S_ISGID and status.st_gid != os.getegid()) or lists):
        with suppress(OSError):  # the place is read-only, or on another file system
            born = f"{place}/{COPY}{os.getpid()}-0"
            before = os.umask(0)
            try:
                os.mkdir(born, mode)
            finally:
                os.umask(before)
            try:
                os.rename(born, directory)
            except OSError:
                os.rmdir(born)
            else:
                if stat.S_IMODE(os.stat(directory).st_mode) != mode:  # the place's default list gives others less
                    os.chmod(directory, mode)
                return
    os.mkdir(directory)
    with suppress(OSError):  # a group of which this user is no member
        os.chown(directory, status.st_uid if os.geteuid() == 0 else -1, status.st_gid)
    os.chmod(directory, mode)
    for name, value in lists.items():
        with suppress(OSError):  # the file system has none
            os.setxattr(directory, name, value)


def _inherited(directory: str, place: str) -> bool:
    """Make a directory that stands for another one, if the one around it gives it all; return whether it is there.

    Nothing happens in the place: it may be an output of another job, which would find it changed.
    """
    if os.path.lexists(directory):
        return os.path.isdir(directory) and not os.path.islink(directory)
    os.mkdir(directory)
    if (mode := stat.S_IMODE(os.stat(place).st_mode)) != stat.S_IMODE(os.stat(directory).st_mode):
        os.chmod(directory, mode)
    status, wanted = os.stat(directory), os.stat(place)
    is_heir = status.st_gid == wanted.st_gid or not wanted.st_mode & stat.S_ISGID  # else files get the user's group
    if is_heir and status.st_mode == wanted.st_mode and access_lists(directory) == access_lists(place):
        return True
    os.rmdir(directory)
    return False


def staging_of(root: str, workdir: str) -> str:
    """The staging directory of a directory that has layers."""
    return f"{workdir}/{STAGING}" if root == workdir else f"{root}/{STAGING_ELSEWHERE}"


def _make_spread(place: str, directory: str) -> None:
    """Make a directory in one that other supervisors remove when they find it empty."""
    if not os.path.isdir(place):
        os.makedirs(place, exist_ok=True)
        syscalls.spread_subdirectories(place)
    os.makedirs(directory, mode=0o700, exist_ok=True)  # a job of root may make set-user-ID programs in it


def may_cover(directory: str) -> bool:
    """Whether this user can keep layers in a directory."""
    return os.access(directory, os.W_OK | os.X_OK)


def layer_of(path: str, layers: Mapping[str, Layer]) -> Layer | None:
    """The innermost layer that covers an absolute path, of layers by their roots."""
    while path not in layers:
        path, inner = os.path.dirname(path), path
        if path == inner:
            return None
    return layers[path]


def _escaped(path: str) -> str:
    """Escape a path for mount options of an overlay: ovl_parse_param() and ovl_unescape() of fs/overlayfs/params.c."""
    return path.replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")
