"""Publishing: moves what a job has written from staging to its places, all at once.

::

    publish ──► sync, write the journal, rename each file to its place, remove the journal

Each rename is atomic; the journal makes all of them together atomic. It is written when every file that it names is on
disk, and removed when every file is in its place. Whoever finds a journal completes it: staging/interrupted.py.

Other jobs may publish what is not declared at the same places. So it is published under a lock, and after a crash, when
others may have been there meanwhile, it is merged with what they have left.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

from ..kernel.descriptors import closing
from ..kernel.failpoints import reached
from ..kernel.long_paths import reach
from ..kernel.plain_paths import Places, name_aside, near, unlink
from ..kernel.syscalls import sync_file_system
from ..kernel.tree import Below, copy, copy_tree, remove_tree
from ..sandbox.filesystem.directories import make_places, make_shared
from ..spec import words
from ..spec.job import Target, TargetKind
from ..spec.paths import COPY
from . import journal
from .file_version import NOTHING, FileVersion, status_of
from .journal import Journal, Move
from .layer_files import unfit

_MANY_FILES = 32  # with more files, one sync of the whole file system is faster
OVERLAY_ATTRIBUTES = ("trusted.overlay.", "user.overlay.")
_STRIPPED = stat.S_ISUID | stat.S_ISGID


def publish(
    moves: Iterable[Move],
    directory: str,
    undeclared: AbstractContextManager[Sequence[Move]] | None = None,
    *,
    lock: str = "",
    noted: bool = False,
) -> tuple[str, ...]:
    """Bring all files to their places, or none.

    A file on another file system than its place is first copied beside its place.

    Args:
        moves: what to rename.
        directory: for the journal, on the file system of the working directory.
        undeclared: more moves, which :func:`near_place` has seen; what this locks is locked until all renames are made.
        lock: the file of that lock, for recovery.
        noted: whether the journal stays as PUBLISHED.

    Returns:
        What :func:`settle` says.

    Raises:
        OSError: if that is not possible; all places are then as they were before.
    """
    ready: list[Move] = []
    try:
        for move in moves:
            ready.append(near_place(move))  # noqa: PERF401 - if one fails, the copies before it are removed
        sync(ready)
        with undeclared or nullcontext(()) as more:
            sync(more)
            if not ready and not more:
                return ()
            lock = lock if more else ""
            try:
                return _publish([*ready, *more], directory, lock, noted)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
            copied = [_copied(move) for move in (*ready, *more)]
            ready += copied
            sync(copied)
            return _publish(copied, directory, lock, noted)
    finally:
        remove_copies(ready)


def publish_one(move: Move) -> None:
    """Bring a single file, such as a log, to its place, without journal or sync.

    Raises:
        OSError: if that is not possible.
    """
    mode = os.lstat(move.source).st_mode
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, "it is a directory, in which nothing has been examined")
    problem = unfit(mode)
    if stat.S_ISLNK(mode):  # whoever shows the log would show what is behind it
        problem = "a symbolic link, of which no program of Forge or Snakemake shows the target"
    if problem is not None:
        with suppress(FileNotFoundError):
            unlink(move.place)
        raise OSError(errno.EINVAL, f"it is {problem}")
    here = near_place(move)
    _strip(here.source)
    with Places() as places:
        try:
            exchanged = carry_out(here, places)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            here = _copied(here)
            exchanged = carry_out(here, places)
    if exchanged and here is not move:
        remove_tree(here.source)


def _publish(moves: list[Move], directory: str, lock: str, noted: bool) -> tuple[str, ...]:
    reached("synced")
    begun = False

    def begin() -> None:
        """Write the journal. A single exchange needs none, unless the file system takes several renames for it."""
        nonlocal begun
        if begun:
            return
        make_shared(directory)  # missing where the layers are elsewhere
        known = tuple(_with_was(move, places) for move in moves)
        journal.write(directory, Journal(known, lock, noted), durable=places.are_elsewhere(directory))
        begun = True
        reached("journal")

    done: list[tuple[Move, bool | None]] = []
    with Places(begin) as places:
        if len(moves) > 1 or noted or moves[0].merge:
            begin()
        try:
            for move in moves:
                done.append((move, carry_out(move, places)))
                reached("renamed")
            places.check({os.path.dirname(move.place) for move in moves if not move.is_deletion})
        except OSError:
            for move, exchanged in reversed(done):
                if exchanged is not None:
                    places.exchange(move.source, move.place) if exchanged else places.rename(move.place, move.source)
            journal.end(directory)
            raise
    problems = settle(moves)
    reached("all renamed")
    with suppress(OSError):  # all is in its place: recovery finds that, too
        journal.end(directory, noted=noted)
    return problems


def _with_was(move: Move, places: Places) -> Move:
    """The move with what is there now: at its place or, of a deletion, to be deleted."""
    now = places.lstat(move.source if move.is_deletion else move.place)
    return move._replace(was=NOTHING if now is None else FileVersion.of(now))


def settle(moves: Iterable[Move]) -> tuple[str, ...]:
    """Bring the renames to the disk; and give undeclared files in a directory the time of their publication (ctime).

    By that time, a job that has begun before knows that it has not deleted them: see staging/undeclared.py.

    Returns:
        What is at its place and perhaps not on the disk, in sentences: all is published, so that nothing is an error.
    """
    for move in moves:
        with suppress(OSError):
            now = status_of(move.place) if move.merge else None
            if now is not None and stat.S_ISDIR(now.st_mode):
                _touch(move.place)
    parents = {os.path.dirname(path) for move in moves for path in (move.place, move.source)[: 1 + move.merge]}
    sync_one = _sync_path
    if len(parents) > _MANY_FILES:
        sync_one, found = sync_file_system, dict[int, str]()
        for path in parents:
            with suppress(OSError):
                found[reach(os.lstat, path).st_dev] = path
        parents = set(found.values())
    problems = []
    for parent in parents:
        try:
            reach(sync_one, parent)
        except FileNotFoundError:  # a part of a directory that was removed as well
            continue
        except OSError as error:
            problems.append(words.unsynced(parent, error))
    return tuple(problems)


def _touch(directory: str) -> None:
    try:
        for path in Below(directory):
            with suppress(OSError):
                status = os.lstat(path)
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
    except OSError:  # somebody removes a part of it already
        return


def _copied(move: Move) -> Move:
    """The move of a copy beside its place: rename(2) is refused within one file system, too (quotas of projects)."""
    if move.is_deletion:
        return move._replace(place=beside(move.source, move.inode))
    return move if move.is_beside else near_place(move, always=True)


def near_place(move: Move, *, always: bool = False) -> Move:
    """The move itself, or the move of a copy beside the place if the file is on another file system, or always."""
    make_places(os.path.dirname(move.place))
    beside_it, status = beside(move.place, move.inode), reach(os.lstat, move.source)
    with near(beside_it) as short:
        if not always and status.st_dev == os.stat(os.path.dirname(short)).st_dev:
            return move
        try:
            if stat.S_ISDIR(status.st_mode):
                copy_tree(move.source, short)
            else:
                reach(copy, move.source, short)
        except BaseException:
            remove_tree(short)
            raise
        return move._replace(source=beside_it, inode=os.lstat(short).st_ino)


def remove_copies(moves: Iterable[Move]) -> None:
    """Remove what :func:`near_place` has made, or a previous version that was exchanged with it."""
    for move in moves:
        if move.is_beside:
            with suppress(OSError), near(move.place if move.is_deletion else move.source) as short:
                remove_tree(short)
        if move.is_beside and move.was:  # killed between the renames of an exchange
            with suppress(OSError), near(f"{os.path.dirname(move.place)}/{name_aside(move.was.inode)}") as short:
                remove_tree(short)


def beside(path: str, inode: int) -> str:
    """The name of a copy beside a place, or of what is to be deleted there."""
    return f"{os.path.dirname(path)}/{COPY}{os.getpid()}-{inode}"


def copies(outputs: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Yield the path of each copy beside the places of outputs, with the pid of the process that made it."""
    for parent in sorted({os.path.dirname(path) for path in outputs}):
        with suppress(OSError):
            for name in sorted(os.listdir(parent)):
                pid = name.removeprefix(COPY).partition("-")[0]
                if name.startswith(COPY) and pid.isdigit():
                    yield f"{parent}/{name}", int(pid)


def remove_outputs(targets: Iterable[Target]) -> None:
    """Remove what an attempt has left at the places of its outputs, as Snakemake does before a job starts.

    Raises:
        OSError: if a file cannot be removed.
    """
    for target in targets:
        if target.kind is not TargetKind.OUTPUT or target.update or target.live:
            continue
        with suppress(FileNotFoundError):
            if not remove_tree(target.path):
                raise OSError(errno.ENOTEMPTY, "it cannot be removed", target.path)


def carry_out(move: Move, places: Places, *, spare: bool = False) -> bool | None:
    """Rename a file to its place, or exchange it with the file there.

    Args:
        spare: whether of what is merged, files that are there by now stay: they are later than this move.

    Returns:
        Whether a file was there; None if this cannot be undone.
    """
    now = places.lstat(move.place)
    if now is not None and move.merge and now.st_ino != move.base:
        return _merge(move, now, places, spare=spare)
    if now is not None:
        if move.merge or not stat.S_ISFIFO(now.st_mode):  # Snakemake deletes a FIFO at the place of an output or log
            _refuse_special(move.place, now)
        places.exchange(move.source, move.place)
        return True
    try:
        places.rename(move.source, move.place)
    except FileNotFoundError:
        make_places(os.path.dirname(move.place))
        places.rename(move.source, move.place)
    return False


def _merge(move: Move, place: os.stat_result, places: Places, *, spare: bool) -> bool | None:
    """Bring a file to a place where another job has published since that was decided: after a crash, or without locks.

    Raises:
        FileExistsError: if only one of the two is a directory.
    """
    source = reach(os.lstat, move.source)
    if stat.S_ISDIR(source.st_mode) and stat.S_ISDIR(place.st_mode):
        _merge_directories(move, places, spare=spare)
        return None
    if spare and move.size < 0:
        return None
    if stat.S_ISDIR(source.st_mode) or stat.S_ISDIR(place.st_mode):
        raise OSError(errno.EEXIST, "another job has made a file or directory of this name meanwhile", move.place)
    _refuse_special(move.place, place)
    places.exchange(move.source, move.place)
    return True


def _merge_directories(move: Move, places: Places, *, spare: bool) -> None:
    """Bring all in a directory to the one at its place, entry by entry."""
    left = [(move.source, move.place)]
    while left:
        source, place = left.pop()
        for name in sorted(reach(os.listdir, source)):
            inner = Move.of(f"{source}/{name}", f"{place}/{name}")._replace(merge=True)
            now = places.lstat(inner.place)
            if now is not None and stat.S_ISDIR(now.st_mode) and stat.S_ISDIR(reach(os.lstat, inner.source).st_mode):
                left.append((inner.source, inner.place))
            else:
                carry_out(inner, places, spare=spare)
    remove_tree(move.source)


def _refuse_special(place: str, status: os.stat_result) -> None:
    """Keep a device (as root: /dev/null of the host) or socket from being replaced, or a FIFO that nobody declares.

    Raises:
        OSError: if there is one at ``place``.
    """
    if unfit(status.st_mode) is not None:
        raise OSError(errno.EEXIST, f"{unfit(status.st_mode)} is at its place, which Forge never replaces", place)


def sync(moves: Sequence[Move]) -> None:
    """Write files to the disk, after removing the overlay's attributes and the set-user-ID bits: fsync(2), syncfs(2).

    Raises:
        OSError: if that is not possible.
    """
    sources = [move.source for move in moves if not move.is_deletion]
    count = 0
    for source in sources:
        for path in Below(source):
            _strip(path)
            count += 1
    if count > _MANY_FILES:
        for source in {reach(os.lstat, source).st_dev: source for source in sources}.values():
            reach(sync_file_system, os.path.dirname(source))
        return
    for source in sources:
        for path in Below(source):
            _sync_path(path)


def _strip(path: str) -> None:
    """Remove the overlay's attributes and the set-user-ID and set-group-ID bits."""
    status = os.lstat(path)
    if stat.S_ISREG(status.st_mode) and status.st_mode & _STRIPPED:
        os.chmod(path, stat.S_IMODE(status.st_mode) & ~_STRIPPED)
    with suppress(OSError):
        for name in os.listxattr(path, follow_symlinks=False):
            if name.startswith(OVERLAY_ATTRIBUTES):
                os.removexattr(path, name, follow_symlinks=False)


def _sync_path(path: str) -> None:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        return
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags)
    except PermissionError:  # its mode denies it to its owner
        os.chmod(path, stat.S_IMODE(status.st_mode) | stat.S_IRUSR)
        fd = os.open(path, flags)
        os.chmod(path, stat.S_IMODE(status.st_mode))
    with closing(fd):
        os.fsync(fd)
