"""Refusals of the sandbox to a failed job: complaints of its programs, confirmed by specification and host.

A complaint that would have come without the sandbox too is none of ours: each kind has a test for that here. Only
failed jobs pay for this.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from ..sandbox.filesystem.mounts import VARIABLES
from ..spec.complaints import (
    LIBRARY_PATHS,
    Complaint,
    absolute_paths,
    complaints,
    could_not_write,
    lacks,
    lacks_library,
    makes_user_namespaces,
    reads,
    removes,
)
from ..spec.file_policy import PRIVATE_DIRECTORIES, below
from ..spec.job import FilePolicy, LaunchSpec, Network
from ..spec.verdict import Refusal, RefusalKind
from ..spec.wildcards import without_wildcards
from .space import FULL, full_file_systems, mount_point, without_quota

_MOST = 3
_WRITING = (errno.EROFS, errno.EBUSY, errno.EXDEV, errno.EPERM, errno.EACCES, errno.EOVERFLOW)
_NO_SERVICE = (errno.ECONNREFUSED, errno.ENOENT, errno.EACCES, errno.EPERM)
_LONGEST_NAME = 1000
_KERNEL = ("/proc", "/sys", "/dev")
_ELSEWHERE = ("/", "../")  # a name that leads out of the working directory
_LIKELIEST = tuple(RefusalKind)


def find(
    spec: LaunchSpec, text: str, exit_code: int | None, removed: Collection[str], staged_at: Collection[str]
) -> tuple[Refusal, ...]:
    """Return what the job did not get, the likeliest first.

    Args:
        text: the ends of its streams and logs, and its exception.
        removed: the variables of Snakemake's environment that it did not get.
        staged_at: directories where its files are until they are published.
    """
    host = _Host(spec, removed)
    full = (*full_file_systems(staged_at), *without_quota(staged_at))
    found = dict.fromkeys((*full, *host.confirmed(text)))
    if not found and exit_code != 0:
        read_only = any(complaint.error == errno.EROFS for complaint in complaints(text))
        found.update(dict.fromkeys(host.suspected(read_only=read_only, silent=not text.strip())))
        if not found and (read_only or could_not_write(text)):
            found.update(dict.fromkeys(host.beside_inputs()))
    return tuple(sorted(found, key=lambda refusal: _LIKELIEST.index(refusal.kind))[:_MOST])


def cut_off(spec: LaunchSpec, text: str) -> str | None:
    """Return the file that a program could not write on because of RLIMIT_FSIZE; "" if it does not name it.

    Args:
        text: see :func:`find`.
    """
    if spec.limits.file_bytes is None:
        return None
    found = (one for one in complaints(text, _translations(spec.environment)) if one.error == errno.EFBIG)
    complaint = next(found, None)
    if complaint is None:
        return None
    return next((name for name in complaint.names if name.startswith("/") and name.isprintable()), "")


@dataclass(frozen=True, slots=True)
class _Host:
    """The host as a supervisor sees it: the real private directories, and sockets covered as for the job."""

    spec: LaunchSpec
    removed: Collection[str]

    def confirmed(self, text: str) -> Iterator[Refusal]:
        """Yield the refusals of which the programs speak."""
        for complaint in complaints(text, _translations(self.spec.environment)):
            refusal = self._confirm(complaint)
            if refusal is not None:
                yield refusal
        yield from (_not_passed_on(name) for name in self.removed if lacks(text, name))
        if lacks_library(text):
            setting = {**os.environ, **self.spec.environment}
            places = (place for name in LIBRARY_PATHS for place in setting.get(name, "").split(":"))
            yield from filter(None, map(self._unseen, filter(os.path.isabs, places)))

    def suspected(self, *, read_only: bool, silent: bool) -> Iterator[Refusal]:
        """Yield what the command of a job names and the sandbox does not give.

        Args:
            read_only: whether a program has complained of that, without a path that says more.
            silent: whether the job has said nothing at all.
        """
        command = self.spec.command or ""
        for name in self.spec.inputs if silent else ():
            if removes(command, name) and (refusal := self._unchangeable(self._absolute(name), errno.EBUSY)):
                yield refusal
        for path in absolute_paths(command):
            if read_only and (refusal := self._unchangeable(path, errno.EROFS)):
                yield refusal
            if (refusal := self._unseen(path)) is not None:
                yield refusal
            if _is_covered(path):
                yield Refusal(RefusalKind.SOCKET, path)
        yield from (_not_passed_on(name) for name in self.removed if reads(command, name))

    def beside_inputs(self) -> Iterator[Refusal]:
        """Yield directories of inputs in which the user can write, and the job could not: tools make indexes there."""
        directories = dict.fromkeys(os.path.dirname(self._absolute(name)) for name in self.spec.inputs)
        yield from filter(None, (self._unchangeable(directory, errno.EROFS) for directory in directories))

    def _confirm(self, complaint: Complaint) -> Refusal | None:
        spec = self.spec
        if complaint.error in (errno.EPERM, errno.EACCES) and complaint.about_namespaces and self._may_nest():
            return Refusal(RefusalKind.NAMESPACES, "", complaint.error)
        if complaint.error in (errno.EPERM, errno.EACCES) and complaint.about_capabilities and os.geteuid() == 0:
            return Refusal(RefusalKind.CAPABILITIES, "", complaint.error)
        if complaint.error in (errno.ENETUNREACH, errno.ECONNREFUSED) and spec.network is Network.OFF:
            return Refusal(RefusalKind.NETWORK, "", complaint.error)
        if complaint.error in FULL:
            limited = "inotify" in complaint.line.lower()  # has a limit of its own, and the same number: inotify(7)
            return None if limited else Refusal(RefusalKind.FULL, self._full(complaint.names), complaint.error)
        if complaint.error in _NO_SERVICE and (socket := self._socket(complaint)):
            return Refusal(RefusalKind.SOCKET, socket, complaint.error)
        for name in complaint.names:
            refusal = self._named(name, complaint.error)
            if refusal is not None:
                return refusal
        if complaint.error in (errno.EBUSY, errno.EXDEV):  # sed -i names only its temporary file
            inputs = self._inputs_beside(complaint.names)
            if inputs:
                return Refusal(RefusalKind.INPUT, self._shown(inputs[0]), complaint.error)
        return None

    def _full(self, names: tuple[str, ...]) -> str:
        """The file system of which a program says that it is full: space may have become free since."""
        here = (self._absolute(name) for name in names if name.isprintable() and len(name) < _LONGEST_NAME)
        places = (os.path.dirname(path) for path in here)
        place = next(filter(os.path.isdir, places), self.spec.workdir)
        if below(place, "/dev/shm"):  # noqa: S108
            return "/dev/shm"  # noqa: S108
        return mount_point(self.spec.scratch_base if any(below(place, one) for one in PRIVATE_DIRECTORIES) else place)

    def _named(self, name: str, error: int) -> Refusal | None:
        if not name or "\0" in name or len(name) > os.pathconf("/", "PC_PATH_MAX"):
            return None
        if error == errno.ENOENT and "/" not in name and (command := self._command(name)) is not None:
            return command
        path = self._absolute(name)
        if error in _WRITING and not os.path.lexists(path):  # it may have worked in another directory
            path = next((place for place in self._inputs() if place.endswith("/" + os.path.normpath(name))), path)
        if error in (errno.ENOENT, errno.EACCES):
            hidden = next((place for place in self.spec.files.hidden if below(path, place)), None)
            if hidden is not None:
                return Refusal(RefusalKind.HIDDEN, hidden, error)
        if error == errno.ENOENT:
            return self._undeclared(path) or (self._unseen(path) if name.startswith(_ELSEWHERE) else None)
        return self._unchangeable(path, error) if error in _WRITING else None

    # -- files that it may not change ------------------------------------------------------------------------------

    def _unchangeable(self, path: str, error: int) -> Refusal | None:
        spec, (parent, name) = self.spec, os.path.split(path)
        followed = error in (errno.EROFS, errno.EACCES)  # a link is moved and removed itself, and written through
        path = os.path.realpath(path) if followed else os.path.join(os.path.realpath(parent), name)
        if not spec.files.staged and not spec.files.writable:
            return None
        if any(below(path, place) for place in self._inputs()) and error != errno.EACCES:
            kind = RefusalKind.INPUT if self._would_be_writable(path) and spec.files.staged else None
            return Refusal(kind, self._shown(path), error) if kind is not None else None
        if self._is_writable(path):
            layered = any(below(path, layer) for layer in spec.files.layers)
            moved = error == errno.EXDEV and os.path.isdir(path)
            foreign = error == errno.EOVERFLOW  # its owner or group has no number in the user namespace: ovl_copy_up()
            return Refusal(RefusalKind.LAYER, self._shown(path), error) if layered and (moved or foreign) else None
        if error not in (errno.EROFS, errno.EACCES) or path == "/" or any(below(path, place) for place in _KERNEL):
            return None
        allow = self._to_allow(path)
        if allow == "/" or not self._would_be_writable(path):
            return None
        return Refusal(RefusalKind.OUTSIDE, self._shown(path), error, allow)

    def _is_writable(self, path: str) -> bool:
        """Whether the job may write there: the innermost of the places around the path decides."""
        spec, files = self.spec, self.spec.files
        home = (files.home,) if files.home is not None else ()
        own = (*home, *PRIVATE_DIRECTORIES, spec.job_dir, spec.scratch_base)
        free = (*files.layers, *files.writable, *files.live, *own)
        locked = (*spec.exposed, *files.mounts, *files.visible) if files.staged else ()
        deepest = max((len(place), True) for place in (*free, "") if place == "" or below(path, place))
        fixed = max(((len(place), False) for place in locked if below(path, place)), default=(0, False))
        return deepest[0] > 0 and deepest >= fixed

    def _would_be_writable(self, path: str) -> bool:
        """Whether the user could write there without the sandbox."""
        place = path if os.path.lexists(path) else _existing(path)
        try:
            return os.access(place, os.W_OK) and not os.statvfs(place).f_flag & os.ST_RDONLY
        except OSError:
            return False

    def _to_allow(self, path: str) -> str:
        """Return the directory to allow: it exists, and fits the other jobs of the rule as well."""
        common = without_wildcards(path, self.spec.wildcards)
        return common if os.path.isdir(common) else _existing(common)

    def _inputs(self) -> list[str]:
        paths = (self._absolute(path) for path in self.spec.inputs)
        return list(dict.fromkeys((*map(os.path.realpath, paths), *self.spec.files.inputs)))

    def _inputs_beside(self, names: Collection[str]) -> list[str]:
        if not self.spec.files.staged:
            return []
        directories = {os.path.dirname(self._absolute(name)) for name in names if name}
        return [path for path in self._inputs() if os.path.dirname(path) in directories]

    # -- things that it does not see -------------------------------------------------------------------------------

    def _unseen(self, path: str) -> Refusal | None:
        """Return the refusal of a path that exists on the host and not in the sandbox."""
        spec = self.spec
        if spec.root is not None or not os.path.lexists(path) or below(path, spec.scratch_base):
            return None
        private = any(below(path, place) and path != place for place in PRIVATE_DIRECTORIES)
        home = spec.files.home if spec.files.policy is FilePolicy.STRICT else None
        if (not private and not (home is not None and below(path, home))) or self._is_shown(path):
            return None
        return Refusal(RefusalKind.PRIVATE, path, errno.ENOENT, self._to_show(path))

    def _undeclared(self, path: str) -> Refusal | None:
        """Return the refusal of a file of the working directory that strict does not show."""
        spec = self.spec
        if spec.files.policy is not FilePolicy.STRICT or not below(path, spec.workdir) or not os.path.lexists(path):
            return None
        shown = (*self._inputs(), *spec.files.visible, *(target.path for target in spec.files.targets))
        if any(below(path, place) for place in shown):
            return None
        return Refusal(RefusalKind.UNDECLARED, self._shown(path), errno.ENOENT)

    def _is_shown(self, path: str) -> bool:
        spec, files = self.spec, self.spec.files
        shown = (spec.workdir, *spec.exposed, *files.layers, *files.visible, *files.writable, *files.live, spec.job_dir)
        return any(below(path, place) for place in shown)

    def _to_show(self, path: str) -> str:
        place = _existing(without_wildcards(path, self.spec.wildcards) + "/x")
        place = place if os.path.isdir(place) else os.path.dirname(place)
        return path if place in PRIVATE_DIRECTORIES else place

    def _command(self, name: str) -> Refusal | None:
        """Return the refusal of a program that PATH has on the host, and not in the sandbox."""
        import shutil  # few jobs need it, and every fork copies the mappings of its libraries

        path = self.spec.environment.get("PATH") or os.environ.get("PATH", os.defpath)
        found = shutil.which(name, path=path) if name.isprintable() else None
        refusal = self._unseen(os.path.abspath(found)) if found is not None else None
        return None if refusal is None else Refusal(RefusalKind.COMMAND, refusal.subject, errno.ENOENT, refusal.place)

    def _socket(self, complaint: Complaint) -> str:
        """Return a socket of the host that is covered, by its path or the variable that names it; "" for none."""
        starts = ((name, name.find("/")) for name in complaint.names)
        paths = ("/" + name[start:].lstrip("/") for name, start in starts if start >= 0)
        variable = complaint.service if complaint.service in self.removed else ""
        return next((path for path in paths if _is_covered(path)), variable)

    def _may_nest(self) -> bool:
        spec = self.spec
        may = os.geteuid() != 0 or spec.command is None or makes_user_namespaces(spec.command)
        return may and "seccomp" in spec.isolation.mechanisms and not spec.files.nested

    # -- names -----------------------------------------------------------------------------------------------------

    def _absolute(self, name: str) -> str:
        return os.path.normpath(os.path.join(self.spec.workdir, name))

    def _shown(self, path: str) -> str:
        """Return a path as the author of the rule would write it."""
        declared = (name for name in self.spec.inputs if os.path.realpath(self._absolute(name)) == path)
        return next(declared, path.removeprefix(self.spec.workdir + "/"))


def _not_passed_on(variable: str) -> Refusal:
    return Refusal(RefusalKind.SOCKET if variable in VARIABLES else RefusalKind.VARIABLE, variable)


def _existing(path: str) -> str:
    """Return the directory that contains the path, or the next one above it that exists."""
    path = os.path.dirname(path)
    while path != "/" and not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _is_covered(path: str) -> bool:
    """Whether this supervisor's own mounts cover a socket of the host: sandbox/filesystem/mounts.py."""
    return _is_null_device(path) or _in_hidden_directory(path)


def _is_null_device(path: str) -> bool:
    with suppress(OSError, ValueError):
        status = os.stat(path)
        return stat.S_ISCHR(status.st_mode) and path != os.devnull and status.st_rdev == os.stat(os.devnull).st_rdev
    return False


def _in_hidden_directory(path: str) -> bool:
    with suppress(OSError), open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
        hidden = [line.split()[1] for line in file if line.startswith("forge-hidden ")]
        return any(below(os.path.realpath(path), place) and path != place for place in hidden)
    return False


def _translations(environment: Mapping[str, str]) -> dict[int, str]:
    """Return the messages of the language in which the job's programs speak; none for the language of the sources."""
    setting = {**os.environ, **environment}
    name = setting.get("LC_ALL") or setting.get("LC_MESSAGES") or setting.get("LANG") or "C"
    if name in ("C", "POSIX") or name.startswith("C.") or (name.startswith("en_") and not setting.get("LANGUAGE")):
        return {}
    import locale  # as shutil above

    numbers = (*_WRITING, *FULL, errno.ENOENT, errno.ECONNREFUSED, errno.ENETUNREACH)
    before = locale.setlocale(locale.LC_MESSAGES)
    try:
        locale.setlocale(locale.LC_MESSAGES, name)
        return {number: os.strerror(number) for number in numbers}
    except locale.Error:
        return {}
    finally:
        locale.setlocale(locale.LC_MESSAGES, before)
