"""Where environments are built, once for all working directories.

::

    <store>/
      venv-1c0ffee…/            identity: kind and hash of the definition's content
        env/                    the environment; its files have this path in them, so that it is built in place
        runtime.json            renamed into place at the end of a build: without it there is no environment
        verified.json           what a look at every file has found: see health.py
      venv-1c0ffee….lock        held by who builds
      venv-1c0ffee….used        held, with others, by each run that uses it
      packages/                 of conda

Locks are flock(2): the kernel gives them up with the process, however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from ..catalog import Kind
from ..errors import BrokenRuntimeError, UsageError

SCHEMA = 1
MANIFEST = "runtime.json"

Report = Callable[[str], None]
"""Told in a few words what is being done."""


@dataclass(frozen=True, slots=True)
class Definition:
    """What an environment is to be made of."""

    kind: Kind
    source: str
    content: Mapping[str, str]
    """Everything that its identity depends on, by name: the text of its files, the interpreter, the platform."""

    @property
    def identity(self) -> str:
        """The same for the same content, wherever that lies."""
        text = json.dumps([str(self.kind), sorted(self.content.items())], ensure_ascii=True)
        return f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was built."""

    identity: str
    kind: Kind
    source: str
    prefix: str
    packages: Mapping[str, str]  # name to version
    created: str
    details: Mapping[str, str] = field(default_factory=dict)  # of the kind's own


class Store:
    """The directory of built environments."""

    def __init__(self, directory: str) -> None:
        """Nothing is made before something is built."""
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

    def manifest(self, identity: str) -> Manifest | None:
        """What is known of an environment that is complete; None if there is none.

        Raises:
            BrokenRuntimeError: if it cannot be read.

        """
        path = f"{self.place(identity)}/{MANIFEST}"
        try:
            with open(path, encoding="utf-8") as file:
                record = json.load(file)
            if record.pop("schema") != SCHEMA:
                return None  # of another version of Forge: built anew
            return Manifest(**{**record, "kind": Kind(record["kind"])})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise BrokenRuntimeError(
                f"{path} cannot be read ({error}). Remove {self.place(identity)}, and it is built again."
            ) from None

    def build(
        self,
        definition: Definition,
        make: Callable[[str, Report], tuple[Mapping[str, str], Mapping[str, str]]],
        report: Report,
        *,
        again: bool = False,
    ) -> Manifest:
        """Build an environment, unless it is there or somebody else builds it at this moment.

        Args:
            make: given prefix and ``report``, makes it and returns packages and details.
            again: even if it is there.

        Raises:
            BrokenRuntimeError: if it cannot be built, or is to be built again while a run uses it.

        """
        identity = definition.identity
        self._make_directory()
        with self._exclusive(identity, report):
            known = None if again else self.manifest(identity)
            if known is not None:
                return known
            if again:
                self._refuse_if_used(identity)
            place = self.place(identity)
            with suppress(FileNotFoundError):
                os.unlink(f"{place}/{MANIFEST}")  # first: from here on there is no such environment
            shutil.rmtree(place, ignore_errors=True)
            os.makedirs(place)
            try:
                packages, details = make(self.prefix(identity), report)
            except OSError as error:
                raise BrokenRuntimeError(f"{definition.source} could not be built in {place}: {error}.") from error
            manifest = Manifest(
                identity=identity,
                kind=definition.kind,
                source=definition.source,
                prefix=self.prefix(identity),
                packages=dict(sorted(packages.items())),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                details=details,
            )
            self._write(f"{place}/{MANIFEST}", manifest)
            return manifest

    def hold(self, identity: str) -> int | None:
        """Say that this run uses an environment: until the descriptor is closed, nobody builds it again.

        Returns:
            None where the store cannot be written: a store of somebody else, who will not build it again in our name.

        """
        try:
            fd = os.open(f"{self.directory}/{identity}.used", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            return None
        fcntl.flock(fd, fcntl.LOCK_SH)
        return fd

    def _make_directory(self) -> None:
        try:
            os.makedirs(self.directory, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"Environments cannot be built in {self.directory}: {error.strerror}. "
                "Name another place with --forge-runtimes-dir."
            ) from None

    @contextmanager
    def _exclusive(self, identity: str, report: Report) -> Iterator[None]:
        fd = os.open(f"{self.directory}/{identity}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno != errno.EWOULDBLOCK:
                    raise
                report("another process builds it; waiting for that")
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _refuse_if_used(self, identity: str) -> None:
        fd = os.open(f"{self.directory}/{identity}.used", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                raise
            raise BrokenRuntimeError(
                f"{self.place(identity)} is used by a run that is not over. Wait for its end."
            ) from None
        finally:
            os.close(fd)

    @staticmethod
    def _write(path: str, manifest: Manifest) -> None:
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            json.dump({"schema": SCHEMA, **asdict(manifest)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.rename(f"{path}.new", path)


def default_directory(environment: Mapping[str, str]) -> str:
    """``forge/runtimes`` in the user's cache: XDG Base Directory Specification."""
    cache = environment.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return f"{cache}/forge/runtimes"
