"""The undeclared changes of a job, compared with the files that are there now. Nothing is changed here.

==========================  =================================================================================
in the layer                what becomes of it
==========================  =================================================================================
a new file or directory     published; a directory that is there by now is merged with it, entry by entry
the same content            nothing: no new inode, no new time
a change to a file that     carried out; the last job wins, and what was only appended to is appended
jobs of this workflow made
a deleted file of theirs    deleted, unless it has been published again since the job began
a directory made again      the same for all that was in it when the job began
any of these to files that  a :class:`Harm`, for which the job fails before anything is published
are nobody's, or to another
rule's outputs
a FIFO, socket, device      left out
==========================  =================================================================================

It is decided twice: when the job has ended, for the verdict, and again while no other job of this directory publishes.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import NamedTuple

from ..kernel.long_paths import Shortcut
from ..kernel.tree import Directory, walk
from ..sandbox.filesystem.directories import attribute
from ..sandbox.filesystem.overlay import PREPARED, trash_of
from ..spec.file_policy import ancestors, below
from ..spec.paths import COPY, STAGING_ELSEWHERE
from ..spec.verdict import Harm, HarmKind, Owner
from .contents import MODES, has_header_of, is_byte_code, is_equal, is_kept
from .control_files import ControlFiles, is_cached, is_of_git
from .deletions import files_below, removable
from .git_index import is_refreshed_index
from .journal import Move
from .layer_files import is_whiteout, unfit
from .links import harm_of
from .owners import maker
from .publish import OVERLAY_ATTRIBUTES
from .scene import LayerPlace, Scene

PRIVATE = ".snakemake"  # Snakemake's own, in which jobs leave temporary files: no record is a job's to write


class Append(NamedTuple):
    """The text that a job has appended to a file which other jobs have changed since."""

    source: str  # with what was there before
    place: str
    size: int  # of what was there before, in bytes
    result: str  # where both are to be put together


@dataclass(slots=True)
class Decided:
    """The decision about a change."""

    moves: list[Move] = field(default_factory=list)  # new and changed files and directories
    appends: list[Append] = field(default_factory=list)
    removals: list[Move] = field(default_factory=list)  # from their places into the layer
    modes: list[tuple[str, int]] = field(default_factory=list)  # of directories that are there
    dropped: list[str] = field(default_factory=list)  # in the layer, below new directories
    proven: list[str] = field(default_factory=list)  # files whose owner must be noted: see Owners.must_be_noted
    harms: list[Harm] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # FIFOs and the like

    def __bool__(self) -> bool:
        """Whether there is anything to do at the places."""
        return bool(self.moves or self.appends or self.removals or self.modes or self.proven)

    def written(self) -> list[str]:
        """The places of new and changed files, sorted."""
        return sorted((*(move.place for move in self.moves), *(append.place for append in self.appends)))

    def deleted(self) -> list[str]:
        """The places of deleted files, sorted."""
        return sorted(move.source for move in self.removals)


def decide(scene: Scene) -> Decided:
    """Find out what a job has done undeclared, and what becomes of it now.

    Raises:
        OSError: if a directory cannot be read.
    """
    with Shortcut() as upper, Shortcut() as real:
        walk = _Walk(scene, upper, real)
        for layer in scene.layers:
            walk.layer = layer
            walk.left.append((layer.upper, layer.root, False))
            while walk.left:
                directory, place, again = walk.left.pop()
                for name in sorted(os.listdir(upper(directory))):
                    walk.entry(f"{directory}/{name}", f"{place}/{name}", again)
        walk.decided.harms.sort(key=lambda harm: harm[:2])  # a message names the first ones
        return walk.decided


class _Judge:
    """The knowledge about the files of a job, and the refused ones of its changes."""

    def __init__(self, scene: Scene, upper: Shortcut, real: Shortcut) -> None:
        self.decided = Decided()
        self._upper, self._real = upper, real  # for paths in layers, and at their places
        self.left: list[tuple[str, str, bool]] = []  # directories in the layer; their places; whether made again
        self.layer = scene.layers[0] if scene.layers else LayerPlace("", "", False)
        self._scene = scene
        self._owners = scene.owners()
        self._targets = frozenset(scene.targets)
        self._control = ControlFiles(self._owners.is_left, self._targets)
        self._shown = frozenset(scene.shown)
        self._inputs = frozenset(scene.inputs)
        self._parents = {parent for path in scene.targets for parent in ancestors(path)}

    def _is_skipped(self, path: str) -> bool:
        name = os.path.basename(path)
        return (
            path in self._targets
            or path in self._shown
            or (name != PRIVATE and is_own(name))
            or (path not in self._parents and f"/{PRIVATE}/" in f"{path.removeprefix(self.layer.root)}/")
        )

    def _is_control(self, upper: str, path: str, before: str = "") -> bool:
        """Whether a new or changed file would steer programs outside of the sandbox."""
        found = not self._scene.allow and self._control.has(self.layer.root, path, upper, before)
        if found:
            self.decided.harms.append(Harm(path, HarmKind.STEERS))
        return found

    def _is_refused(self, upper: str, path: str) -> bool:
        """Whether a link cannot be published."""
        roots = (self._scene.workdir, *(layer.root for layer in self._scene.layers))
        harm = harm_of(upper, path, roots, self._owners.declared, allow=self._scene.allow)
        if harm is not None:
            self.decided.harms.append(harm)
        return harm is not None

    def _is_unseen(self, path: str, now: os.stat_result) -> bool:
        """Whether the job has not seen a file as it is now: it is newer, or ``strict`` did not show it.

        Of a file to which it has only appended its size tells, too, whatever the clock of a file server says.
        """
        if self._scene.appended.get(path, now.st_size) != now.st_size:
            return True
        return now.st_ctime_ns >= self._scene.begin_ns or not self.layer.shows_root

    def _may_change(self, path: str) -> bool:
        if self._inputs and any(place in self._inputs for place in (path, *ancestors(path))):
            return False
        return self._scene.allow or self._owners.is_made(path)

    def _harm(self, path: str, now: os.stat_result, kind: HarmKind) -> None:
        since = self._scene.is_new(path, now)
        self.decided.harms.append(Harm(path, HarmKind.CONTESTED if since else kind))

    def _prove(self, path: str) -> None:
        if self._owners.must_be_noted(path):
            self.decided.proven.append(path)


class _Walk(_Judge):
    """The walk through the layers."""

    def entry(self, upper: str, path: str, again: bool) -> None:
        """Decide on an entry of a directory that is in the layer and, as a directory, at its place."""
        if self._is_skipped(path):
            self._note_own(upper, path)
            return
        status, now = os.lstat(self._upper(upper)), self._status(path)
        owner = None if stat.S_ISDIR(status.st_mode) else self._owners.other_rule(path, is_there=now is not None)
        if is_whiteout(status):
            if now is not None and self.layer.shows_root:
                self._remove(path, now)
        elif stat.S_ISDIR(status.st_mode):
            self._directory(upper, path, status, now, again)
        elif owner is not None:
            self._others(upper, path, status, now, owner)
        elif (problem := unfit(status.st_mode)) is not None:
            self.decided.left_out.append(f"{path} ({problem})")
        else:
            self._file(upper, path, status, now)

    def _note_own(self, upper: str, path: str) -> None:
        name, is_top = os.path.basename(path), path == f"{self.layer.root}/{PRIVATE}"
        if is_top or path in self._targets or not is_own(name) or is_whiteout(os.lstat(self._upper(upper))):
            return
        if name == PRIVATE or self._status(path) is None:
            self.decided.left_out.append(in_words(path))

    def _status(self, path: str) -> os.stat_result | None:
        try:
            return os.lstat(self._real(path))
        except (FileNotFoundError, NotADirectoryError):
            return None

    # -- directories ------------------------------------------------------------------------------------------------

    def _directory(
        self, upper: str, path: str, status: os.stat_result, now: os.stat_result | None, again: bool
    ) -> None:
        if now is not None and not stat.S_ISDIR(now.st_mode):
            self._replace(upper, path, status, now)
        elif now is not None:
            again = self.layer.shows_root and (again or _is_opaque(self._upper(upper)))
            if again:
                self._remove_below(path, now, keep=frozenset(os.listdir(self._upper(upper))))
            if (status.st_mode ^ now.st_mode) & MODES:
                self._mode(path, status, now)
            self.left.append((upper, path, again))
        elif (
            path in self._parents
            or path.endswith("/__pycache__")
            or attribute(self._upper(upper), PREPARED) == b"y"  # it was removed meanwhile
        ):
            self.left.append((upper, path, False))
        else:
            self._new_directory(upper, path, status, now)

    def _new_directory(self, upper: str, path: str, status: os.stat_result, now: os.stat_result | None) -> None:
        """Publish a directory as a whole, without what cannot be published.

        One with files to which other jobs may append, too, is published file by file: see Move.size. So is one in which
        outputs of the workflow will be. Of one that belongs to another rule only the files matter.
        """
        if now is None and self._owners.other_rule(path, is_there=False) is not None:
            self.left.append((upper, path, False))
            return
        shared = any(below(file, path) for file in (*self._scene.appended, *self._scene.begun))
        others = self._owners.declared.has_below(path)
        if now is None and (shared or others):
            self.decided.modes.append((path, stat.S_IMODE(status.st_mode)))
            self.left.append((upper, path, False))
            return
        for here in walk(upper, open_up=True):
            place = f"{path}{here.path.removeprefix(upper)}"
            for name in take_own(here):
                self.decided.dropped.append(f"{here.path}/{name}")
                self.decided.left_out.append(in_words(f"{place}/{name}"))
            for name in here.files:
                self._is_control(f"{here.path}/{name}", f"{place}/{name}")
                if others and (owner := self._owners.other_rule(f"{place}/{name}", is_there=False)) is not None:
                    self.decided.harms.append(Harm(f"{place}/{name}", HarmKind.WRITTEN, owner))
                found = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
                if stat.S_ISLNK(found.st_mode):
                    self._is_refused(here.near(name), f"{place}/{name}")
                if (problem := unfit(found.st_mode)) is not None:
                    self.decided.dropped.append(f"{here.path}/{name}")
                    if not is_whiteout(found):  # the directory was there, and another job has removed it
                        self.decided.left_out.append(f"{place}/{name} ({problem})")
        self._publish(upper, path, status, now)

    def _publish(self, upper: str, path: str, status: os.stat_result, now: os.stat_result | None) -> None:
        if stat.S_ISLNK(status.st_mode) and self._is_refused(self._upper(upper), path):
            return
        if now is None and not stat.S_ISDIR(status.st_mode) and self._is_control(upper, path):
            return
        base = 0 if now is None else now.st_ino
        size = self._scene.appended.get(path, self._scene.begun.get(path, -1))
        self.decided.moves.append(Move(upper, path, status.st_ino, merge=True, base=base, size=size))

    def _mode(self, path: str, status: os.stat_result, now: os.stat_result) -> None:
        if (owner := self._owners.other_rule(path, is_there=True)) is not None:
            self.decided.harms.append(Harm(path, HarmKind.CHANGED, owner))
            return
        if os.geteuid() in (0, now.st_uid) and now.st_ctime_ns < self._scene.begin_ns and self._owners.is_made(path):
            self.decided.modes.append((path, stat.S_IMODE(status.st_mode)))
            self._prove(path)

    # -- outputs of other rules -------------------------------------------------------------------------------------

    def _others(self, upper: str, path: str, status: os.stat_result, now: os.stat_result | None, owner: Owner) -> None:
        """Refuse a file at the place of another rule's output, or in one, unless it is as it was but for its times."""
        if now is None:
            if not is_byte_code(path) or self._owners.declared.at(path):
                self.decided.harms.append(Harm(path, HarmKind.WRITTEN, owner))
        elif stat.S_ISDIR(now.st_mode):
            self.decided.harms.append(Harm(path, HarmKind.REPLACED, owner))
        elif not (is_byte_code(path) or is_kept(self._upper(upper), self._real(path), status, now)):
            self.decided.harms.append(Harm(path, HarmKind.CHANGED, owner))

    # -- files ------------------------------------------------------------------------------------------------------

    def _file(self, upper: str, path: str, status: os.stat_result, now: os.stat_result | None) -> None:
        if now is None:
            if not is_cached(path, self._owners.is_left):
                self._publish(upper, path, status, now)
        elif stat.S_ISDIR(now.st_mode):
            self._replace(upper, path, status, now)
        elif is_equal(self._upper(upper), self._real(path), status, now):
            self._equal(upper, path, status, now)
        elif self._may_change(path):
            self._change(upper, path, status, now)
        elif not (is_byte_code(path) or is_refreshed_index(upper, path)):
            self._harm(path, now, HarmKind.CHANGED)

    def _equal(self, upper: str, path: str, status: os.stat_result, now: os.stat_result) -> None:
        """Leave it; but a job that has appended the same line as another one has appended a line."""
        size = self._scene.size_before(self._upper(upper), path)
        unseen = self._is_unseen(path, now) and status.st_size > 0  # a file for a lock is empty
        if unseen and (self._scene.locks if size is None else size < status.st_size):
            self._change(upper, path, status, now)
        else:
            self._prove(path)

    def _change(self, upper: str, path: str, status: os.stat_result, now: os.stat_result) -> None:
        if self._is_control(upper, path, before=path):
            return
        both = stat.S_ISREG(status.st_mode) and stat.S_ISREG(now.st_mode)
        size = self._scene.size_before(upper, path) if both and not is_of_git(path, upper) else None
        if both and now.st_nlink > 1 and maker(upper) is not None:  # the layer has a copy, not a new file
            self.decided.harms.append(Harm(path, HarmKind.LINKED))
        elif size == 0 and self._is_unseen(path, now) and has_header_of(upper, path):
            self.decided.harms.append(Harm(path, HarmKind.BEGUN))
        elif size is not None and size <= status.st_size and self._is_unseen(path, now):
            result = f"{trash_of(self.layer.upper)}/a{len(self.decided.appends)}"
            self.decided.appends.append(Append(upper, path, size, result))
        elif now.st_ctime_ns >= self._scene.begin_ns and self._scene.relied_on_lock(upper, path):
            self.decided.harms.append(Harm(path, HarmKind.LOCKED))
        else:
            self._publish(upper, path, status, now)

    def _replace(self, upper: str, path: str, status: os.stat_result, now: os.stat_result) -> None:
        """Put a directory in the place of a file, or a file in the place of a directory."""
        if path in self._parents:
            self.decided.harms.append(Harm(path, HarmKind.UNMERGED))  # a target is to lie in it
            return
        files = [(path, now)] if not stat.S_ISDIR(now.st_mode) else list(files_below(path))
        owners = (self._owners.other_rule(file, is_there=True) for file in (path, *(file for file, _ in files)))
        if (owner := next(filter(None, owners), None)) is not None:
            self.decided.harms.append(Harm(path, HarmKind.REPLACED, owner))
        elif any(self._scene.is_new(file, found) for file, found in files):
            self.decided.harms.append(Harm(path, HarmKind.UNMERGED))
        elif all(self._may_change(file) for file, _ in files):
            if stat.S_ISDIR(status.st_mode):
                self._new_directory(upper, path, status, now)
            elif not self._is_control(upper, path):
                self._publish(upper, path, status, now)
        else:
            self.decided.harms.append(Harm(path, HarmKind.REPLACED))

    # -- deletions --------------------------------------------------------------------------------------------------

    def _remove(self, path: str, now: os.stat_result) -> None:
        """Delete what was there when the job began, and is there still."""
        if not stat.S_ISDIR(now.st_mode):
            if self.is_removable(path, now):
                self._trash(path, now.st_ino)
        elif self.may_enter(path):
            self._remove_below(path, now)

    def _remove_below(self, path: str, now: os.stat_result, keep: frozenset[str] | None = None) -> None:
        for place, inode in removable(path, now.st_ino, keep, self):
            self._trash(place, inode)

    def has_to_stay(self, directory: str) -> bool:
        """Whether outputs belong into a directory."""
        return directory in self._parents or self._owners.declared.has_below(directory)

    def may_enter(self, path: str) -> bool:
        """Whether nothing keeps the job from deleting a file, or what is in a directory; it harms if a rule owns it."""
        if self._is_skipped(path):
            return False
        if (owner := self._owners.other_rule(path, is_there=True)) is not None:
            self.decided.harms.append(Harm(path, HarmKind.DELETED, owner))
        return owner is None

    def is_removable(self, path: str, now: os.stat_result) -> bool:
        """Whether the job may delete a file that is there still; it harms if not."""
        if not self.may_enter(path):
            return False
        if self._scene.is_new(path, now):
            return False
        if not self._may_change(path):
            self._harm(path, now, HarmKind.DELETED)
            return False
        return True

    def _trash(self, path: str, inode: int) -> None:
        number = len(self.decided.removals)
        trash = f"{trash_of(self.layer.upper)}/{number}"
        self.decided.removals.append(Move(path, trash, inode, merge=True, is_deletion=True))


def is_own(name: str) -> bool:
    """Whether only Snakemake and Forge make files of this name: a job's are never published."""
    return name in (PRIVATE, STAGING_ELSEWHERE) or name.startswith(COPY)


def take_own(here: Directory) -> list[str]:
    """Take the names of which :func:`is_own` is true out of a directory that is walked, and return them."""
    found = list(filter(is_own, (*here.directories, *here.files)))
    for names in (here.directories, here.files):
        names[:] = [name for name in names if name not in found]
    return found


def in_words(path: str) -> str:
    """Say why a file was left out of which :func:`is_own` is true."""
    is_state = os.path.basename(path) == PRIVATE
    return f"{path} ({'the state of a Snakemake' if is_state else 'a name that Forge keeps for itself'})"


def _is_opaque(directory: str) -> bool:
    """Return whether an overlay says that the directory was made in place of another one, or of none."""
    return any(attribute(directory, f"{prefix}opaque") == b"y" for prefix in OVERLAY_ATTRIBUTES)
