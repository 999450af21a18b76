"""A directory of build results, each named by a hash of its sources.

An entry is built once, under a lock, in a neighbouring directory that is renamed when complete: so no process ever
sees a partial entry. Entries in use are never removed; of the others the newest few are kept.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

KEEP = 3
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


class GuestError(Exception):
    """The guest cannot be built or started, or does not answer. The message says what happened and what to do."""


def root() -> Path:
    """Return the cache directory of all guests."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forge-guest"


def which(program: str) -> str | None:
    """Find a program; an ordinary user's PATH often lacks the system administrator's directories."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{SBIN}")


def run(command: Sequence[str | Path], cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """Run a build step; return its standard output. Raise GuestError with the end of its output."""
    environment = {**os.environ, **(env or {}), "PATH": f"{os.environ.get('PATH', os.defpath)}:{SBIN}"}
    shown = " ".join(str(word) for word in command)
    try:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            text=True,
        )
    except OSError as error:
        raise GuestError(f"cannot start a build step of the guest: {error}\n  command: {shown}") from error
    if done.returncode:
        end = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise GuestError(f"a build step of the guest failed with status {done.returncode}\n  command: {shown}\n{end}")
    return done.stdout


@contextlib.contextmanager
def entry(kind: str, key: str, build: Callable[[Path], None]) -> Iterator[Path]:
    """Hold the entry `<kind>-<key>`, which build(directory) makes if it is missing; no process removes it meanwhile."""
    directory = root() / f"{kind}-{key}"
    with _lock_file(directory) as lock:
        while True:
            fcntl.flock(lock, fcntl.LOCK_SH)
            if directory.is_dir():
                break
            fcntl.flock(lock, fcntl.LOCK_EX)  # not atomic: another process may have built it meanwhile
            if not directory.is_dir():
                _build(directory, build)
                _prune(kind, directory)
        with contextlib.suppress(OSError):  # the cache may belong to another user
            os.utime(directory)
        yield directory


@contextlib.contextmanager
def _lock_file(directory: Path) -> Iterator[int]:
    """Open the file whose lock guards an entry. It is opened for reading: root may have built the entry."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{directory}.lock", os.O_RDONLY | os.O_CREAT, 0o644)
    except OSError as error:
        raise GuestError(
            f"cannot use the cache of the guest: {error}. Set XDG_CACHE_HOME, or make it writable"
        ) from error
    try:
        yield lock
    finally:
        os.close(lock)


def _build(directory: Path, build: Callable[[Path], None]) -> None:
    """Build an entry beside its place and move it there."""
    partial = directory.with_name(directory.name + ".partial")
    try:
        if partial.exists():  # left by a build that was killed
            shutil.rmtree(partial)
        partial.mkdir()
        build(partial)
        partial.rename(directory)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise GuestError(f"cannot build a part of the guest in {partial}: {error}") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _prune(kind: str, newest: Path) -> None:
    """Remove unused entries of this kind, except the most recently used ones."""
    found = [path for path in newest.parent.glob(f"{kind}-*") if path.is_dir() and path.suffix != ".partial"]
    others = sorted((path for path in found if path != newest), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in others[KEEP - 1 :]:
        with _lock_file(old) as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(old)
