"""From staging to the places: what a job has written appears at its places all at once.

::

    publish ──► sync, journal, rename each to its place, remove the journal
    recover ──► after a crash: what a journal says is done to the end

Renames are atomic one by one; the journal makes them so together. It is written when everything that it names is on
disk, and removed when everything is in its place: who finds one goes on where it stops.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from .faults import reached
from .model import Target, TargetKind
from .sandbox.directories import make_shared, remove_if_empty, remove_tree
from .sandbox.syscalls import exchange, sync_file_system

JOURNAL = "journal.json"
_COPY = ".forge-copy-"
_CHUNK = 1 << 30
_MANY_FILES = 32  # from here on the whole file system is synced rather than one after the other
OVERLAY_ATTRIBUTES = ("trusted.overlay.", "user.overlay.")
_STRIPPED = stat.S_ISUID | stat.S_ISGID
Identity = tuple[int, int, int]  # inode, modification time in ns, bytes


@dataclass(frozen=True, slots=True)
class Move:
    """One rename: from staging to its place."""

    source: str
    place: str
    inode: int

    @classmethod
    def of(cls, source: str, place: str) -> Move:
        """A file that is there."""
        return cls(source, place, os.lstat(source).st_ino)


def identity(path: str) -> Identity | None:
    """What tells a version of a file from another; None if it is not there."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def publish(moves: list[Move], directory: str) -> None:
    """Bring files to their places: all of them, or none.

    What is staged on another file system is copied beside its place first.

    Args:
        directory: for the journal, on the file system of the working directory.

    Raises:
        OSError: if that is not possible; everything is as it was before.

    """
    if not moves:
        return
    near: list[Move] = []
    try:
        for move in moves:
            near.append(_brought_near(move))  # noqa: PERF401 - what is copied is removed, when the next one fails
        _publish(near, directory)
    finally:
        for copy in near:
            if os.path.basename(copy.source).startswith(_COPY):
                remove_tree(copy.source)


def publish_one(move: Move) -> None:
    """Bring a file to its place that belongs to no others, without a journal and unsynced: a log.

    Raises:
        OSError: if that is not possible.

    """
    near = _brought_near(move)
    _strip(near.source)
    if _carry_out(near) and near is not move:
        remove_tree(near.source)


def _publish(moves: list[Move], directory: str) -> None:
    sync(moves)
    reached("synced")
    journal = f"{directory}/{JOURNAL}"
    own = len(moves) > 1 and _make_directory(directory)
    if len(moves) > 1:
        _write_journal(journal, moves)
        reached("journal")
    done: list[tuple[Move, bool]] = []
    try:
        for move in moves:
            done.append((move, _carry_out(move)))
            reached("renamed")
    except OSError:
        for move, exchanged in reversed(done):
            exchange(move.source, move.place) if exchanged else os.rename(move.place, move.source)
        _end_journal(journal, moves, own=own)
        raise
    for parent in {os.path.dirname(move.place) for move in moves}:
        _sync_path(parent)
    reached("all renamed")
    _end_journal(journal, moves, own=own)


def _make_directory(path: str) -> bool:
    """Make it, where what is staged is elsewhere; whether that was necessary."""
    if os.path.isdir(path):
        return False
    make_shared(path)
    return True


def _end_journal(journal: str, moves: list[Move], *, own: bool) -> None:
    if len(moves) > 1:
        os.unlink(journal)
    if own:
        remove_if_empty(os.path.dirname(journal))


def _brought_near(move: Move) -> Move:
    """The same on the file system of its place: a copy of it, if it is on another one."""
    parent = os.path.dirname(move.place)
    make_shared(parent)
    if os.lstat(move.source).st_dev == os.lstat(parent).st_dev:
        return move
    copy = f"{parent}/{_COPY}{os.getpid()}-{move.inode}"
    try:
        if os.path.isdir(move.source) and not os.path.islink(move.source):
            shutil.copytree(move.source, copy, symlinks=True, copy_function=_copy)
        else:
            _copy(move.source, copy)
    except BaseException:
        remove_tree(copy)
        raise
    return Move.of(copy, move.place)


def _copy(source: str, target: str) -> str:
    """A file or link with its modes, times and attributes; what is a hole stays one: lseek(2)."""
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        return target
    with open(source, "rb", buffering=0) as old, open(target, "xb", buffering=0) as new:
        size = os.fstat(old.fileno()).st_size
        os.truncate(new.fileno(), size)
        place = 0
        while place < size:
            try:
                place = os.lseek(old.fileno(), place, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole follows
                break
            end = os.lseek(old.fileno(), place, os.SEEK_HOLE)
            os.lseek(new.fileno(), place, os.SEEK_SET)
            while place < end:
                copied = os.sendfile(new.fileno(), old.fileno(), place, min(end - place, _CHUNK))
                if copied == 0:
                    raise OSError(errno.EIO, "it became shorter while it was copied", source)
                place += copied
    shutil.copystat(source, target)
    return target


def remove_copies(outputs: Iterable[str], is_dead: Callable[[int], bool]) -> None:
    """Remove what dead processes had begun to copy beside the places of outputs, and no journal names."""
    for parent in {os.path.dirname(path) for path in outputs}:
        with suppress(OSError):
            for name in os.listdir(parent):
                pid = name.removeprefix(_COPY).partition("-")[0]
                if name.startswith(_COPY) and pid.isdigit() and is_dead(int(pid)):
                    remove_tree(f"{parent}/{name}")


def remove_outputs(targets: Iterable[Target]) -> None:
    """What an attempt left at the places of its outputs, as Snakemake removes it before a job starts.

    Raises:
        OSError: if something cannot be removed.

    """
    for target in targets:
        if target.kind is not TargetKind.OUTPUT or target.update or target.live:
            continue
        with suppress(FileNotFoundError):
            if os.path.isdir(target.path) and not os.path.islink(target.path):
                shutil.rmtree(target.path)
            else:
                os.unlink(target.path)


def recover(directory: str) -> list[str]:
    """Do to the end what the journal in ``directory`` says, if there is one.

    To be called when the process that wrote it is dead.

    Returns:
        The places that it names.

    Raises:
        OSError: if it cannot be done.

    """
    journal = f"{directory}/{JOURNAL}"
    try:
        with open(journal, encoding="utf-8", errors="surrogateescape") as file:
            moves = [Move(*move) for move in json.load(file)]
    except (FileNotFoundError, ValueError):  # a journal is renamed into place whole; whatever else it is, is no journal
        return []
    for move in moves:
        if not _is_done(move):
            _carry_out(move)
            reached("followed")
    reached("all followed")
    os.unlink(journal)
    for move in moves:
        if os.path.basename(move.source).startswith(_COPY):  # it holds the version from before now
            remove_tree(move.source)
    return [move.place for move in moves]


def _is_done(move: Move) -> bool:
    found = identity(move.place)
    return found is not None and found[0] == move.inode


def _carry_out(move: Move) -> bool:
    """Rename it to its place; what was there before takes its old one.

    Returns:
        Whether there was something.

    """
    if os.path.lexists(move.place):
        exchange(move.source, move.place)
        return True
    try:
        os.rename(move.source, move.place)
    except FileNotFoundError:
        make_shared(os.path.dirname(move.place))
        os.rename(move.source, move.place)
    return False


def _write_journal(path: str, moves: list[Move]) -> None:
    temporary = f"{path}.new"
    with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
        json.dump([[move.source, move.place, move.inode] for move in moves], file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)


def sync(moves: list[Move]) -> None:
    """Bring what is to be published to the disk, without what the overlay and the job have marked it with.

    Raises:
        OSError: if that is not possible.

    """
    paths = [path for move in moves for path in _all_below(move.source)]
    for path in paths:
        _strip(path)
    if len(paths) > _MANY_FILES:
        for device in {os.lstat(move.source).st_dev: move.source for move in moves}.values():
            sync_file_system(os.path.dirname(device))
        return
    for path in paths:
        _sync_path(path)


def _all_below(path: str) -> Iterator[str]:
    yield path
    if os.path.isdir(path) and not os.path.islink(path):
        for parent, directories, files in walk(path):
            yield from (f"{parent}/{name}" for name in (*directories, *files))


def walk(directory: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """As os.walk, also through directories that their owner may not read."""
    with suppress(OSError):
        mode = stat.S_IMODE(os.lstat(directory).st_mode)
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(directory, mode | stat.S_IRWXU)
    directories: list[str] = []
    files: list[str] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            (directories if entry.is_dir(follow_symlinks=False) else files).append(entry.name)
    yield directory, directories, files
    for name in directories:
        yield from walk(f"{directory}/{name}")


def _strip(path: str) -> None:
    """Take away the overlay's attributes and set-user-ID bits."""
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
    except PermissionError:  # its own owner may not read it
        os.chmod(path, stat.S_IMODE(status.st_mode) | stat.S_IRUSR)
        fd = os.open(path, flags)
        os.chmod(path, stat.S_IMODE(status.st_mode))
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
