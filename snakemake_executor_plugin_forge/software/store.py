"""The store of environments, built once for all working directories.

::

    <store>/
      venv-1c0ffee…/            identity: kind and hash of the definition's content
        env/                    the environment, built in place because its files contain this path
        runtime.json            renamed into place at the end of a build: without it there is no environment
        verified.json           the result of the last check: see software/health.py
      venv-1c0ffee….lock        held by the building process
      venv-1c0ffee….used        held, with others, by each run that uses it
      packages/                 of conda

Locks are flock(2): the kernel releases them at the end of the process, however that ends, and of the installer that it
has started, which lives on when the process is killed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ..kernel.tree import remove_tree
from ..record.jsonfile import read_object, replace_file
from ..spec.catalog import RuntimeKind
from ..spec.errors import BrokenRuntimeError, UsageError

SCHEMA = 1
MANIFEST = "runtime.json"

Report = Callable[[str], None]
"""A callback that receives the present step in a few words."""

Make = Callable[[str, Report], tuple[Mapping[str, str], Mapping[str, str]]]
"""A function that makes an environment at a prefix, and returns its packages and details."""


@dataclass(frozen=True, slots=True)
class Definition:
    """The definition of an environment."""

    kind: RuntimeKind
    source: str
    content: Mapping[str, str]
    """Everything that its identity depends on, by name: the text of its files, the interpreter, the platform."""

    @property
    def identity(self) -> str:
        """A name that depends only on the content, not on its place."""
        text = json.dumps([str(self.kind), sorted(self.content.items())], ensure_ascii=True)
        return f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def source_text(path: str, name: str) -> str:
    """Read a file that defines an environment.

    Args:
        name: what the message of the error calls it, before its path.

    Raises:
        UsageError: if that is not possible.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{name} {path} cannot be read: {error}.") from None


@dataclass(frozen=True, slots=True)
class Manifest:
    """The description of a built environment."""

    identity: str
    kind: RuntimeKind
    source: str
    prefix: str
    packages: Mapping[str, str]  # name to version
    created: str
    details: Mapping[str, str] = field(default_factory=dict)  # of the kind's own


_of_thread = threading.local()


def locks() -> tuple[int, ...]:
    """The lock of the build in this thread, for the programs that write into the environment: they inherit it."""
    return getattr(_of_thread, "locks", ())


class Store:
    """The directory of built environments."""

    def __init__(self, directory: str) -> None:
        """Create nothing before the first build."""
        self.directory = os.path.abspath(directory)

    def place(self, identity: str) -> str:
        """The directory of an environment, of its manifest and what else belongs to it."""
        return f"{self.directory}/{identity}"

    def prefix(self, identity: str) -> str:
        """The environment itself."""
        return f"{self.place(identity)}/env"

    @property
    def packages(self) -> str:
        """The cache of conda packages."""
        return f"{self.directory}/packages"

    def has(self, manifest: Manifest) -> bool:
        """Whether an environment lies here; a store that was moved or copied has descriptions of others."""
        here = self.prefix(manifest.identity)
        with suppress(OSError):
            return manifest.prefix == here or os.path.samefile(manifest.prefix, here)
        return False

    def manifest(self, identity: str) -> Manifest | None:
        """The manifest of a complete environment; None if there is none.

        Raises:
            BrokenRuntimeError: if it cannot be read.
        """
        path = f"{self.place(identity)}/{MANIFEST}"
        try:
            record = read_object(path)
            if record.pop("schema") != SCHEMA:
                return None  # of another version of Forge: rebuild it
            manifest = Manifest(**{**record, "kind": RuntimeKind(record["kind"])})
            return manifest if self.has(manifest) else None  # its files contain the path where it was built
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise BrokenRuntimeError(
                f"{path} cannot be read ({error}). Remove {self.place(identity)}, and it is built again."
            ) from None

    def build(self, definition: Definition, make: Make, report: Report, *, again: bool = False) -> Manifest:
        """Build an environment, unless it exists or another process is building it.

        Args:
            make: given prefix and ``report``, makes it and returns packages and details.
            again: even if it exists.

        Raises:
            BrokenRuntimeError: if the build fails, or a rebuild is due while a run uses it.
        """
        identity = definition.identity
        with self._exclusive(identity, report):
            known = None if again else self.manifest(identity)
            if known is not None:
                return known
            with self._unused(identity):
                return self._build(definition, make, report)

    def _build(self, definition: Definition, make: Make, report: Report) -> Manifest:
        identity = definition.identity
        place = self.place(identity)
        try:
            with suppress(FileNotFoundError):
                os.unlink(f"{place}/{MANIFEST}")  # first: from here on the environment does not exist
            remove_tree(place)
            os.makedirs(place)
            packages, details = make(self.prefix(identity), report)
            manifest = Manifest(
                identity=identity,
                kind=definition.kind,
                source=definition.source,
                prefix=self.prefix(identity),
                packages=dict(sorted(packages.items())),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                details=details,
            )
            text = json.dumps({"schema": SCHEMA, **asdict(manifest)}, indent=1)
            replace_file(f"{place}/{MANIFEST}", text, durable=True)
        except OSError as error:
            raise BrokenRuntimeError(f"{definition.source} could not be built in {place}: {error}.") from error
        return manifest

    def hold(self, identity: str) -> int | None:
        """Hold an environment for this run: until the descriptor is closed, nobody rebuilds it.

        Returns:
            None where that is not possible: the file system has no locks, or nobody has made the file.
        """
        path, fd = f"{self.directory}/{identity}.used", -1
        try:
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError:  # not the owner, or a file system that is read-only
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_SH)
        except OSError:
            if fd >= 0:
                os.close(fd)
            return None
        return fd

    def _open(self, name: str) -> int:
        """Open a file for a lock.

        Raises:
            UsageError: if this user cannot write here.
        """
        try:
            os.makedirs(self.directory, exist_ok=True)
            return os.open(f"{self.directory}/{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UsageError(
                f"Environments cannot be built in {self.directory}: {error.strerror}. "
                "Name another place with --forge-runtimes-dir."
            ) from None

    @contextmanager
    def _exclusive(self, identity: str, report: Report) -> Iterator[None]:
        fd = self._open(f"{identity}.lock")
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                report("another process builds it; waiting for that")
                fcntl.flock(fd, fcntl.LOCK_EX)
            _of_thread.locks = (fd,)
            yield
        finally:
            _of_thread.locks = ()
            os.close(fd)

    @contextmanager
    def _unused(self, identity: str) -> Iterator[None]:
        """Keep runs from an environment until it is built.

        Raises:
            BrokenRuntimeError: if one uses it.
        """
        fd = self._open(f"{identity}.used")
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BrokenRuntimeError(
                    f"{self.place(identity)} is used by a run that is not over. Wait for its end."
                ) from None
            yield
        finally:
            os.close(fd)


def default_directory(environment: Mapping[str, str]) -> str:
    """``forge/runtimes`` in the user's cache: XDG Base Directory Specification."""
    cache = environment.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return f"{cache}/forge/runtimes"
