"""The workflow's home: what jobs write to $HOME and to cache directories, kept for later jobs and later runs.

One overlay covers each of these directories for all jobs at once, so that locks, caches and parallel writers work as on
any file system. Its upper directory is in the state directory; the real files stay as they are. Only one process may
mount it (Documentation/filesystems/overlayfs.rst: two overlays must not share an upper directory), so the first run
starts a *holder*, which mounts it in namespaces of its own and hands out copies of the mount: open_tree(2),
move_mount(2). Supervisors of this run and of others ask it; it ends when nobody is connected.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import resource
import select
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from ...kernel import descriptors, inherited, syscalls
from ...kernel.descriptors import closing
from ...kernel.process_tree import wait_for_child
from ...kernel.tree import remove_tree
from ...record.jsonfile import parse
from ...spec.errors import SandboxError
from ...spec.host import Host
from ...spec.paths import HOME
from . import mounts
from .directories import is_like, locked, make_like
from .homes import kept_directories
from .overlay import Layer

_LOCK = "lock"
_SOCKET = "socket"
_PLACES = 4  # another host with the same file system has one of its own
_BYTES = 1 << 16
_FIRST_SECONDS = 10.0
_LAST_SECONDS = 2.0
_TRIES, _PAUSE_SECONDS = 50, 0.02
_MOST_DIRECTORIES = 64


@dataclass(frozen=True, slots=True)
class Kept:
    """A place that a holder serves."""

    place: str
    directories: tuple[str, ...]  # real directories that the holder covers

    def connect(self) -> Connection:
        """Connect to the holder, which lives at least as long as the connection.

        Raises:
            OSError: if it is dead.
        """
        return Connection(_connected(self.place), self.directories, self.place)


class Connection:
    """A connection to a holder."""

    def __init__(self, connected: socket.socket, directories: tuple[str, ...], place: str) -> None:
        self._socket = connected
        self._place = place
        self._lock = -1
        self.directories = directories

    def mounts(self) -> list[int]:
        """Return a descriptor of a detached mount for each directory: see :func:`.mounts.place_kept`.

        Raises:
            OSError: if the holder cannot mount it, or is dead.
        """
        *found, lock = _ask(self._socket, self.directories)
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = lock  # which lasts as long as any descriptor of it
        return found

    def is_changed(self) -> bool:
        """Whether a job has changed one of the directories itself, such as its mode; :meth:`refresh` undoes that."""
        return not all(is_like(f"{_own(self._place, path)}/upper", path) for path in self.directories)

    def refresh(self) -> None:
        """Have the overlays forget what they remember of real files, which may have changed since.

        Raises:
            OSError: if the holder is dead.
        """
        _ask(self._socket, None)

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def places(first: str, workdir: str, scratch: str, *, apart: bool) -> tuple[str, ...]:
    """Return places for the upper directories, in the order of preference.

    Args:
        first: the best.
        scratch: the directory for temporary files of this host.
        apart: whether the file system of ``workdir`` cannot hold upper directories.
    """
    if apart:
        first = f"{scratch}/forge-home-{os.geteuid()}-{hashlib.sha256(os.fsencode(workdir)).hexdigest()[:16]}"
    return (first, *(f"{first}-{number}" for number in range(2, _PLACES + 1)))


@dataclass(frozen=True, slots=True)
class HeldHome:
    """A connection that keeps a holder alive."""

    kept: Kept
    connection: Connection
    pid: int  # of the holder, if it was started here; else 0

    def leave(self, *, wait: bool) -> None:
        """Disconnect.

        Args:
            wait: for the end of a holder that was started here, unless another run uses it too.
        """
        self.connection.close()
        if self.pid and wait:
            wait_for_child(self.pid, _LAST_SECONDS)


def hold_home(namespaces: str, workdir: str, scratch: str, *, apart: bool) -> tuple[HeldHome | None, str]:
    """Find or start the holder for the jobs of a workflow.

    Args:
        namespaces: "root", "user" or "none".
        scratch: see :func:`places`; ``apart`` likewise.

    Returns:
        None if jobs need none, or, with the reason, if this host gives none.
    """
    directories = kept_directories(workdir)
    if namespaces == "none" or not directories:
        return None, ""  # jobs write to the real $HOME
    try:
        candidates = places(f"{workdir}/{HOME}", workdir, scratch, apart=apart)
        return hold(candidates, directories, namespaces), ""
    except (OSError, SandboxError) as error:
        return None, str(error)


def with_home(host: Host, workdir: str, scratch: str) -> tuple[Host, HeldHome | None]:
    """Hold the workflow's home, if there can be layers, and say so in the description of the host."""
    if host.layers_note:
        return host, None
    home, note = hold_home(host.namespaces, workdir, scratch, apart=host.layers_apart)
    return replace(host, home_layer=home is not None, home_note=note), home


def hold(candidates: Sequence[str], directories: Sequence[str], kind: str) -> HeldHome:
    """Find or start a holder.

    Args:
        candidates: see :func:`places`.
        directories: the directories that jobs see through it.
        kind: "root" or "user": see :class:`...spec.host.Host`.

    Raises:
        OSError, SandboxError: if the kernel refuses the mounts.
    """
    for place in candidates:
        for _ in range(_TRIES):
            with suppress(ConnectionError, FileNotFoundError):
                started = _start(place, kind)
                connection = Connection(_connected(place), (), place)
                try:
                    shown = _shown(connection, directories)
                except BaseException:
                    connection.close()
                    if started is not None:
                        os.waitpid(started, 0)
                    raise
                return HeldHome(Kept(place, shown), connection, started or 0)
            time.sleep(_PAUSE_SECONDS)  # its holder is just ending, or on another host
    raise SandboxError(f"{candidates[0]} and the places beside it are in use on other hosts")


def _shown(connection: Connection, directories: Sequence[str]) -> tuple[str, ...]:
    """The directories that the holder can cover: the first must be among them.

    Raises:
        OSError: if it is not.
    """
    shown: list[str] = []
    for directory in directories:
        connection.directories = (*shown, directory)
        try:
            for fd in connection.mounts():
                os.close(fd)
        except ConnectionError:
            raise
        except OSError:
            if not shown:
                raise
        else:
            shown.append(directory)
    return tuple(shown)


def in_use(place: str) -> bool:
    """Whether a holder has mounted the overlays of a place."""
    try:
        with locked(f"{place}/{_LOCK}", os.O_RDWR):
            return False
    except FileNotFoundError:
        return False
    except OSError:
        return True


def remove(place: str) -> None:
    """Remove a place with all that jobs have written to it.

    Raises:
        OSError: if a holder serves it.
    """
    with suppress(FileNotFoundError), locked(f"{place}/{_LOCK}", os.O_RDWR):
        for name in os.listdir(place):
            if name != _LOCK:
                with suppress(OSError):  # closed directories of the kernel in closed directories
                    Layer("", f"{place}/{name}", "").reset_work()
                remove_tree(f"{place}/{name}")
        remove_tree(place)


# -- in the holder -----------------------------------------------------------------------------------------------------


def _start(place: str, kind: str) -> int | None:
    """Start a holder if the place has none; return its pid.

    Raises:
        OSError: if the place cannot be made.
    """
    os.makedirs(place, mode=0o700, exist_ok=True)
    status = os.lstat(place)
    if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode):
        raise SandboxError(f"{place} belongs to somebody else")
    lock = os.open(f"{place}/{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.lstat(f"{place}/{_LOCK}")):
                return _fork(place, kind, listening, lock)
        return None  # it was being removed: by its holder, or snakemake-forge gc
    finally:
        listening.close()
        os.close(lock)


def _fork(place: str, kind: str, listening: socket.socket, lock: int) -> int:
    with suppress(FileNotFoundError):
        os.unlink(f"{place}/{_SOCKET}")
    with _short(place) as directory:
        listening.bind(f"{directory}/{_SOCKET}")
    listening.listen(128)
    return inherited.fork(lambda: _live(place, kind, listening, lock))


def _live(place: str, kind: str, listening: socket.socket, lock: int) -> None:
    """Live as a holder."""
    os.setsid()
    os.chdir("/")
    syscalls.set_process_name("forge-home")
    inherited.to_null(0, 1, 2)  # who reads the streams of its parent must not wait for this process
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd not in (listening.fileno(), lock):
            with suppress(OSError):
                os.close(fd)
    inherited.limit_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[1])  # one connection of each supervisor
    _Holder(place, kind, listening, lock).serve()


class _Holder:
    def __init__(self, place: str, kind: str, listening: socket.socket, lock: int) -> None:
        self._place, self._listening, self._lock = place, listening, lock
        self._is_user = kind == "user" or mounts.in_user_namespace()
        self._mounted: dict[str, str] = {}
        mounts.enter_namespace(kind)

    def serve(self) -> None:
        """Serve until nobody is connected any more."""
        connections: dict[int, socket.socket] = {}
        poll = select.poll()  # select(2) takes no descriptor above 1023, and each supervisor has a connection
        poll.register(self._listening, select.POLLIN)
        patience: float | None = 1000 * _FIRST_SECONDS
        while ready := poll.poll(patience):
            patience = None
            for fd, _ in ready:
                if fd == self._listening.fileno():
                    self._accept(connections, poll)
                elif not self._answer(connections[fd]):
                    poll.unregister(fd)
                    connections.pop(fd).close()
            if not connections:
                break
        with suppress(OSError):
            os.unlink(f"{self._place}/{_SOCKET}")
        syscalls.run(syscalls.unmount_step(merged) for merged in self._mounted.values())
        for own in map(os.path.dirname, self._mounted.values()):
            if not os.listdir(f"{own}/upper"):
                Layer("", own, "").reset_work()
                remove_tree(own)
        if os.listdir(self._place) == [_LOCK]:
            remove_tree(self._place)

    def _accept(self, connections: dict[int, socket.socket], poll: select.poll) -> None:
        try:
            connection = self._listening.accept()[0]
        except OSError:  # a job has opened as many as there can be: the next supervisor waits until some are closed
            time.sleep(_PAUSE_SECONDS)
            return
        connections[connection.fileno()] = connection
        poll.register(connection, select.POLLIN)

    def _answer(self, asking: socket.socket) -> bool:
        """Answer one request; return False if the other end is closed."""
        try:
            request = asking.recv(_BYTES)
        except ConnectionError:
            return False
        if not request:
            return False
        text, found = "", list[int]()
        try:
            found = self._obey(parse(request.decode()))
        except (OSError, ValueError) as error:
            text = str(error)
        with suppress(ConnectionError):
            socket.send_fds(asking, [os.fsencode(text) or b"."], found)
        for fd in found:
            os.close(fd)
        return True

    def _obey(self, directories: object) -> list[int]:
        """Refresh, or mount directories. Jobs may reach this socket, too: anything may be asked.

        Raises:
            OSError, ValueError: for what cannot be done.
        """
        if directories is None:
            for directory, merged in self._mounted.items():
                with suppress(OSError):  # what a job has done to the directory itself holds for no other
                    make_like(merged, directory)
            syscalls.run(syscalls.refresh_step(merged) for merged in self._mounted.values())
            return []
        if not isinstance(directories, list) or {type(path) for path in directories} - {str}:
            raise ValueError("no list of directories")
        asked = directories[: _MOST_DIRECTORIES - 1]
        found = [syscalls.clone_mount(self._mounted.get(path) or self._mount(path)) for path in asked]
        return [*found, os.dup(self._lock)]

    def _mount(self, directory: str) -> str:
        own = _own(self._place, directory)
        layer = Layer(directory, own, directory)
        layer.make()
        layer.reset_work()
        with suppress(OSError):
            layer.reset_root()
        merged = f"{own}/merged"
        os.makedirs(merged, exist_ok=True)
        syscalls.run([layer.mount_step(merged, self._is_user, lasting=True)])
        self._mounted[directory] = merged
        return merged


def _own(place: str, directory: str) -> str:
    """The directory of a place for what jobs change in a directory."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", directory.strip("/"))[-60:]
    return f"{place}/{name}-{hashlib.sha256(os.fsencode(directory)).hexdigest()[:8]}"


# -- talking to it -----------------------------------------------------------------------------------------------------


def _connected(place: str) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _short(place) as directory:
            connected.connect(f"{directory}/{_SOCKET}")
    except BaseException:
        connected.close()
        raise
    return connected


def _ask(connected: socket.socket, directories: tuple[str, ...] | None) -> list[int]:
    connected.sendall(json.dumps(directories).encode())
    text, found = descriptors.receive(connected, _BYTES, _MOST_DIRECTORIES)
    if not text:
        raise ConnectionResetError("the process that holds the workflow's home has ended")
    if text != b".":
        raise OSError(os.fsdecode(text))
    return found


@contextmanager
def _short(place: str) -> Iterator[str]:
    """A short name of a directory, for sockets in it: unix(7) allows 108 bytes."""
    with closing(os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        yield f"/proc/self/fd/{fd}"
