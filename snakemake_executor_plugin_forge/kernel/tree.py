"""Trees of any depth: walked, removed, copied and addressed through descriptors, of which a bounded number is open.

A recursion of Python ends at a thousand calls, and a path at 4,096 bytes (see kernel/long_paths.py); what jobs make
does not. As fts(3) does, a walk keeps the deepest directories open and returns to the others through "..", if that is
still the same directory. Links are never followed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress

from .descriptors import closing
from .long_paths import SHORT, Shortcut, reach

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ENTERED = stat.S_IRUSR | stat.S_IXUSR
_MOST_OPEN = 16  # descriptors of one walk
_CHUNK = 1 << 30
_BLOCK = 512  # of st_blocks: stat(2)


class Descent:
    """The way from a directory to one below it: the descriptors of the deepest directories on it."""

    def __init__(self, fd: int) -> None:
        """Begin at an open directory, whose descriptor belongs to this object from now on."""
        self._fds = [fd]  # -1: closed
        self._closed: list[tuple[int, int]] = []  # device and inode of each closed one

    @property
    def fd(self) -> int:
        """The directory that was reached."""
        return self._fds[-1]

    def down(self, name: str, *, open_up: bool = False) -> None:
        """Go to a directory in it.

        Args:
            name: of the directory.
            open_up: whether to let its owner in who has no permission.

        Raises:
            OSError: if it cannot be opened.
        """
        self._fds.append(_open(name, self._fds[-1], open_up=open_up))
        far = len(self._fds) - 1 - _MOST_OPEN
        if far >= len(self._closed):
            status = os.fstat(self._fds[far])
            os.close(self._fds[far])
            self._fds[far] = -1
            self._closed.append((status.st_dev, status.st_ino))

    def up(self, mode: int = -1) -> None:
        """Go back to the directory around it.

        Args:
            mode: that the directory gets which is left; -1 changes nothing.

        Raises:
            OSError: if it was moved meanwhile (ESTALE).
        """
        below = self._fds.pop()
        try:
            if self._fds and self._fds[-1] < 0:
                above = os.open("..", _DIRECTORY, dir_fd=below)
                self._fds[-1] = above
                status = os.fstat(above)
                if self._closed.pop() != (status.st_dev, status.st_ino):
                    raise OSError(errno.ESTALE, "a directory was moved while its tree was walked through")
        finally:
            try:
                if mode >= 0:
                    os.fchmod(below, mode)
            finally:
                os.close(below)

    def close(self) -> None:
        """Close all descriptors."""
        for fd in self._fds:
            if fd >= 0:
                os.close(fd)
        self._fds.clear()


class Directory:
    """A directory that a walk has reached or, if :attr:`left`, has left."""

    __slots__ = ("_short", "directories", "fd", "files", "left", "name", "up")

    def __init__(self, up: Directory | None, name: str) -> None:
        self.up = up
        self.name = name  # of the root, its path
        self.fd = -1  # valid until the walk continues; after it was left, that of ``up`` is
        self.left = False
        self.directories: list[str] = []
        self.files: list[str] = []  # and links, and all else
        path = name if up is None else f"{up._short}/{name}"
        self._short: str = path if len(path) < SHORT and (up is None or up._short) else ""

    @property
    def path(self) -> str:
        """The path, which may be too long for any call: see :meth:`near`."""
        names: list[str] = []
        here = self
        while not here._short and here.up is not None:
            names.append(here.name)
            here = here.up
        return "/".join((here._short or here.name, *reversed(names)))

    @property
    def prefix(self) -> str:
        """The beginning of a short path of each entry, valid until the walk continues: proc_pid_fd(5)."""
        return f"{self._short}/" if self._short else f"/proc/self/fd/{self.fd}/"

    def near(self, name: str) -> str:
        """Return a short path of an entry, valid until the walk continues."""
        return self.prefix + name


def walk(  # long because of its options
    root: str,
    *,
    leave: bool = False,
    open_up: bool = False,
    lasting: bool = False,
    quiet: bool = False,
    through_link: bool = False,
) -> Iterator[Directory]:
    """Yield a directory and all below it, each before what is in it; ``directories`` may be shortened, to skip some.

    Args:
        root: a directory.
        leave: whether to yield each again when all below it was yielded; its own descriptor is closed then.
        open_up: whether to let the owner into directories whose modes deny it, until they are left.
        lasting: whether these modes stay changed.
        quiet: whether to skip what cannot be read.
        through_link: whether the root may be a link to a directory.

    Raises:
        OSError: if a directory cannot be read.
    """
    try:
        way = Descent(_open_root(f"{root}/." if through_link else root, open_up=open_up))
    except OSError:
        if quiet:
            return
        raise
    here = Directory(None, root)
    levels: list[tuple[Directory, Iterator[str], int]] = []
    try:
        while True:
            here.fd = way.fd
            mode = _let_in(way.fd, stat.S_IRWXU if lasting else _ENTERED) if open_up else -1
            try:
                _read(here)
            except OSError:
                if not quiet:
                    raise
            yield here
            levels.append((here, iter(here.directories), mode))
            while (name := _next(levels[-1][1], way, open_up=open_up, quiet=quiet)) is None:
                here, _, mode = levels.pop()
                way.up(-1 if lasting else mode)
                if levels:
                    levels[-1][0].fd = way.fd
                if leave:
                    here.fd, here.left = -1, True
                    yield here
                if not levels:
                    return
            here = Directory(levels[-1][0], name)
    finally:
        way.close()


def _next(names: Iterator[str], way: Descent, *, open_up: bool, quiet: bool) -> str | None:
    """Go down to the next of these directories; return its name, None if none is left."""
    for name in names:
        try:
            way.down(name, open_up=open_up)
        except OSError:
            if not quiet:
                raise
        else:
            return name
    return None


def _read(here: Directory) -> None:
    with os.scandir(here.fd) as entries:
        for entry in entries:
            (here.directories if entry.is_dir(follow_symlinks=False) else here.files).append(entry.name)


def _open_root(root: str, *, open_up: bool) -> int:
    with Shortcut() as near:
        return _open(near(root), None, open_up=open_up)


def _open(name: str, parent: int | None, *, open_up: bool) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent)
    except PermissionError:
        if not open_up:
            raise
    with closing(os.open(name, os.O_PATH | _DIRECTORY, dir_fd=parent)) as fd:
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        os.chmod(f"/proc/self/fd/{fd}", mode | _ENTERED)
        try:
            return os.open(name, _DIRECTORY, dir_fd=parent)
        finally:
            os.chmod(f"/proc/self/fd/{fd}", mode)


def _let_in(fd: int, needed: int) -> int:
    """Let the owner into an open directory; return the mode that it had, or -1 if that needs no change."""
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    if mode & needed == needed:
        return -1
    try:
        os.fchmod(fd, mode | stat.S_IRWXU)
    except OSError:  # another user's
        return -1
    return mode


class Below:
    """A file, or a directory and all below it: short paths, each valid until the next is asked for.

    Modes that deny directories to their owner keep nobody out.
    """

    def __init__(self, root: str) -> None:
        """Look at nothing yet."""
        self._root = root
        self._here: Directory | None = None

    def __iter__(self) -> Iterator[str]:
        """Yield the short paths, a directory before what is in it.

        Raises:
            OSError: if a directory cannot be read.
        """
        self._here = None
        with Shortcut() as near:
            path = near(self._root)
            yield path
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                return
        for here in walk(self._root, open_up=True):
            self._here, prefix = here, here.prefix
            yield from [prefix + name for name in here.directories]
            yield from [prefix + name for name in here.files]

    def name_of(self, near: str) -> str:
        """Return the path below the root of what was yielded last: "" or "/..."."""
        if self._here is None:
            return ""
        return f"{self._here.path}/{os.path.basename(near)}"[len(self._root) :]


def remove_tree(root: str) -> bool:
    """Remove a file, link or tree, also where its directories have modes that deny it to their owner.

    Returns:
        Whether nothing is left. What cannot be removed stays, and keeps nothing else.
    """
    try:
        if not stat.S_ISDIR(reach(os.lstat, root).st_mode):
            reach(os.unlink, root)
            return True
    except FileNotFoundError:
        return True
    except OSError:
        return False
    with suppress(OSError):  # another process moves its directories meanwhile
        for here in walk(root, leave=True, open_up=True, lasting=True, quiet=True):
            with suppress(OSError):
                if not here.left:
                    _unlink(here)
                elif here.up is not None:
                    os.rmdir(here.name, dir_fd=here.up.fd)
                else:
                    reach(os.rmdir, root)
                    return True
    return False


def _unlink(here: Directory) -> None:
    for name in here.files:
        with suppress(OSError):  # it keeps none of the others
            os.unlink(name, dir_fd=here.fd)


def scan(root: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield all below a directory, as it is read, with the path of its directory below the root: "" or "a/b".

    What cannot be read is skipped. The tree may change meanwhile.

    Raises:
        OSError: if a directory is moved meanwhile, and the way back is lost.
    """
    try:
        way = Descent(_open_root(root, open_up=False))
    except OSError:
        return
    names: list[str] = []  # of the directories on the way
    levels: list[list[str]] = []  # of each, the directories in it that are left
    try:
        while True:
            below, directories = "/".join(names), list[str]()
            with suppress(OSError), os.scandir(way.fd) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(entry.name)
                    yield below, entry
            levels.append(directories)
            while (name := _next(_popped(levels[-1]), way, open_up=False, quiet=True)) is None:
                levels.pop()
                if not levels:
                    return
                names.pop()
                way.up()
            names.append(name)
    finally:
        way.close()


def _popped(names: list[str]) -> Iterator[str]:
    while names:
        yield names.pop()


def weigh(root: str) -> tuple[int, float]:
    """The bytes on disk of a file or tree, and the time of the newest change in it, in seconds since the epoch."""
    size, newest = 0, 0.0
    with suppress(OSError):
        status = reach(os.lstat, root)
        size, newest = status.st_blocks * _BLOCK, status.st_mtime
        for _, entry in scan(root) if stat.S_ISDIR(status.st_mode) else ():
            with suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                size, newest = size + status.st_blocks * _BLOCK, max(newest, status.st_mtime)
    return size, newest


def copy_tree(source: str, target: str, *, owners: bool = False) -> None:
    """Copy a tree with modes, times, attributes and holes, links as links.

    Args:
        source: a directory.
        target: is made.
        owners: whether the copies get the owners and groups, too.

    Raises:
        OSError: if something cannot be read or written.
    """
    reach(os.mkdir, target, mode=0o700)
    with ExitStack() as undo:
        way = Descent(_open_root(target, open_up=False))
        undo.callback(way.close)
        for here in walk(source, leave=True):
            if here.left:
                with Shortcut() as near:
                    old = near(source) if here.up is None else here.up.near(here.name)
                    copy_status(old, f"/proc/self/fd/{way.fd}", owners=owners)
                if here.up is not None:
                    way.up()
                continue
            if here.up is not None:
                os.mkdir(here.name, 0o700, dir_fd=way.fd)
                way.down(here.name)
            for name in here.files:
                new = f"/proc/self/fd/{way.fd}/{name}"
                copy(here.near(name), new)
                if owners:
                    status = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
                    os.chown(new, status.st_uid, status.st_gid, follow_symlinks=False)


def copy_status(old: str, new: str, *, owners: bool) -> None:
    """Give a directory the mode, times and attributes of another one; with ``owners`` also its owner and group."""
    import shutil  # few jobs need it, and every fork copies the mappings of its libraries

    if owners:
        status = os.stat(old)
        os.chown(new, status.st_uid, status.st_gid)
    shutil.copystat(old, new)


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each part of a file that is no hole; the whole, where the file system cannot tell.

    Raises:
        OSError: if it cannot be read: no other error than ENXIO says that only a hole follows.
    """
    place = 0
    while place < size:
        try:
            place = os.lseek(fd, place, os.SEEK_DATA)
            end = os.lseek(fd, place, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            end = size
        yield place, end
        place = end


def copy(source: str, target: str) -> None:
    """Copy a file or link with its modes, times, attributes and holes: lseek(2).

    Raises:
        OSError: if it cannot be read or written; or is anything else (EINVAL).
    """
    import shutil  # few jobs need it, and every fork copies the mappings of its libraries

    status = os.lstat(source)
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(source), target)
        shutil.copystat(source, target, follow_symlinks=False)
        return
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "a FIFO, socket or device cannot be copied", source)
    with open(source, "rb", buffering=0) as old, open(target, "xb", buffering=0) as new:
        size = os.fstat(old.fileno()).st_size
        os.truncate(new.fileno(), size)
        for begin, end in _extents(old.fileno(), size):
            place = os.lseek(new.fileno(), begin, os.SEEK_SET)
            while place < end:
                copied = os.sendfile(new.fileno(), old.fileno(), place, min(end - place, _CHUNK))
                if copied == 0:
                    raise OSError(errno.EIO, "it became shorter while it was copied", source)
                place += copied
    shutil.copystat(source, target)
