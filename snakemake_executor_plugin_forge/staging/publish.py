"""Publishing: moves what a job has written from staging to its places, all at once.

::

    publish ──► sync, write the journal, rename each file to its place, remove the journal
    recover ──► after a crash: do the renames that the journal names

Each rename is atomic; the journal makes all of them together atomic. It is written when every file that it names is on
disk, and removed when every file is in its place. Whoever finds a journal completes it.

Other jobs may publish what is not declared at the same places. So it is published under a lock, and after a crash, when
others may have been there meanwhile, it is merged with what they have left.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

from ..kernel.failpoints import reached
from ..kernel.long_paths import reach
from ..kernel.plain_paths import Places, near, unlink
from ..kernel.syscalls import sync_file_system
from ..kernel.tree import Below, copy, copy_tree, remove_tree
from ..sandbox.filesystem.directories import make_places, make_shared, waited_lock
from ..spec.job import Target, TargetKind
from ..spec.paths import COPY
from . import journal
from .confines import Confines
from .journal import Journal, Move
from .tree import append, unfit

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
) -> None:
    """Bring all files to their places, or none.

    A file on another file system than its place is first copied beside its place.

    Args:
        moves: what to rename.
        directory: for the journal, on the file system of the working directory.
        undeclared: more moves, which :func:`near_place` has seen; what this locks is locked until all renames are made.
        lock: the file of that lock, for recovery.
        noted: whether the journal stays as PUBLISHED.

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
            if ready or more:
                _publish([*ready, *more], directory, lock if more else "", noted)
    finally:
        remove_copies(ready)


def publish_one(move: Move) -> None:
    """Bring a single file, such as a log, to its place, without journal or sync.

    Raises:
        OSError: if that is not possible.
    """
    if stat.S_ISLNK(os.lstat(move.source).st_mode):  # whoever shows the log would show what is behind it
        with suppress(FileNotFoundError):
            unlink(move.place)
        raise OSError(errno.ELOOP, "it is a symbolic link, of which no program of Forge or Snakemake shows the target")
    here = near_place(move)
    _strip(here.source)
    with Places() as places:
        exchanged = _carry_out(here, places)
    if exchanged and here is not move:
        remove_tree(here.source)


def _publish(moves: list[Move], directory: str, lock: str, noted: bool) -> None:
    reached("synced")
    if len(moves) > 1 or noted or moves[0].merge:
        make_shared(directory)  # missing where the layers are elsewhere
        journal.write(directory, Journal(tuple(moves), lock, noted))
        reached("journal")
    done: list[tuple[Move, bool | None]] = []
    with Places() as places:
        try:
            for move in moves:
                done.append((move, _carry_out(move, places)))
                reached("renamed")
            places.check({os.path.dirname(move.place) for move in moves if not move.is_deletion})
        except OSError:
            for move, exchanged in reversed(done):
                if exchanged is not None:
                    places.exchange(move.source, move.place) if exchanged else places.rename(move.place, move.source)
            journal.end(directory)
            raise
    _settle(moves)
    reached("all renamed")
    journal.end(directory, noted=noted)


def _settle(moves: Iterable[Move]) -> None:
    """Bring the renames to the disk; and give undeclared files in a directory the time of their publication (ctime).

    By that time, a job that has begun before knows that it has not deleted them: see staging/undeclared.py.
    """
    for move in moves:
        now = _status(move.place) if move.merge else None
        if now is not None and stat.S_ISDIR(now.st_mode):
            for path in Below(move.place):
                with suppress(OSError):
                    status = os.lstat(path)
                    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)
    parents = {os.path.dirname(path) for move in moves for path in (move.place, move.source)[: 1 + move.merge]}
    if len(parents) > _MANY_FILES:
        for parent in {found.st_dev: path for path in parents if (found := _status(path)) is not None}.values():
            reach(sync_file_system, parent)
        return
    for parent in parents:
        with suppress(FileNotFoundError):  # a part of a directory that was removed as well
            reach(_sync_path, parent)


def near_place(move: Move) -> Move:
    """The move itself, or the move of a copy beside the place if the file is on another file system."""
    make_places(os.path.dirname(move.place))
    beside_it, status = beside(move.place, move.inode), reach(os.lstat, move.source)
    with near(beside_it) as short:
        if status.st_dev == os.stat(os.path.dirname(short)).st_dev:
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


def recover(directory: str, confines: Confines | None) -> list[str]:
    """Complete the publication whose journal is in ``directory``, if there is one.

    The process that wrote the journal must be dead.

    Args:
        confines: of its moves; None: it may name any file.

    Returns:
        The places that the journal names.

    Raises:
        UndecidedError: if the journal is damaged or forged; nothing was changed.
        OSError: if the publication cannot be completed.
    """
    found = journal.read(directory)
    if found is None:
        return []
    if confines is not None:
        confines.check(directory, found)
    moves = list(found.moves)
    with waited_lock(found.lock) if found.lock else nullcontext(), Places() as places:
        for number, move in enumerate(moves):
            if not move.is_done():
                moves[number] = _renewed(move)
                if moves[number] != move:
                    journal.write(directory, found._replace(moves=tuple(moves)))
                    reached("renewed")
                with suppress(FileExistsError):  # a file and a directory: the one of the job that has succeeded stays
                    _carry_out(moves[number], places)
                reached("followed")
        _settle(moves)
        reached("all followed")
        journal.end(directory, noted=found.noted)
    remove_copies(moves)
    return [move.place for move in moves if not move.is_deletion]


def _status(path: str) -> os.stat_result | None:
    try:
        found: os.stat_result = reach(os.lstat, path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found


def _carry_out(move: Move, places: Places) -> bool | None:
    """Rename a file to its place, or exchange it with the file there.

    Returns:
        Whether a file was there; None if this cannot be undone.
    """
    now = places.lstat(move.place)
    if now is not None and move.merge and now.st_ino != move.base:
        return _merge(move, now, places)
    if now is not None:
        _refuse_special(move.place, now)
        places.exchange(move.source, move.place)
        return True
    try:
        places.rename(move.source, move.place)
    except FileNotFoundError:
        make_places(os.path.dirname(move.place))
        places.rename(move.source, move.place)
    return False


def _merge(move: Move, place: os.stat_result, places: Places) -> bool | None:
    """Bring a file to a place where another job has published since that was decided: after a crash, or without locks.

    Raises:
        FileExistsError: if only one of the two is a directory.
    """
    source = reach(os.lstat, move.source)
    if stat.S_ISDIR(source.st_mode) and stat.S_ISDIR(place.st_mode):
        _merge_directories(move, places)
        return None
    if stat.S_ISDIR(source.st_mode) or stat.S_ISDIR(place.st_mode):
        raise OSError(errno.EEXIST, "another job has made a file or directory of this name meanwhile", move.place)
    _refuse_special(move.place, place)
    places.exchange(move.source, move.place)
    return True


def _merge_directories(move: Move, places: Places) -> None:
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
                _carry_out(inner, places)
    remove_tree(move.source)


def _renewed(move: Move) -> Move:
    """The move of a file to which other jobs have appended since, with what they have appended; else the same move."""
    now = _status(move.place) if move.size >= 0 else None
    if now is None or now.st_ino == move.base or not stat.S_ISREG(now.st_mode):
        return move
    again = f"{move.source}.again"
    with near(move.place) as short:
        append(move.source, move.size, short, again)
    return move._replace(source=again, inode=reach(os.lstat, again).st_ino, base=now.st_ino, size=now.st_size)


def _refuse_special(place: str, status: os.stat_result) -> None:
    """Keep a device (as root: /dev/null of the host), FIFO or socket from being replaced.

    Raises:
        OSError: if there is one at ``place``.
    """
    if unfit(status.st_mode) is not None:
        raise OSError(errno.EEXIST, "a device, FIFO or socket is at its place, which Forge never replaces", place)


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
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
