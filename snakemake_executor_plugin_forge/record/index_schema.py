"""The tables of the index and their version. sqlite.org/pragma.html#pragma_user_version, sqlite.org/wal.html.

The index repeats the content of the job directories. Tables of an older version are therefore replaced by empty ones,
and this module leaves the index of a newer Forge alone.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from ..kernel.procfs import mount_path, read_whole

_USAGE = (
    *("memory_peak_bytes", "memory_anon_peak_bytes", "cpu_seconds", "io_read_bytes", "io_write_bytes", "pids_peak"),
    "scratch_peak_bytes",
)
NUMBERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("attempt", "retry", "exit_code", "signal", "seconds"), ()),
    "threads_asked": (),
    "cpus": ("limits", "cpus"),
    "memory_limit_bytes": ("limits", "memory_bytes"),
    "wall_limit_seconds": ("limits", "seconds"),
    "disk_limit_bytes": ("limits", "disk_bytes"),
    "pids_limit": ("limits", "pids"),
    **{name: ("usage", name) for name in _USAGE},
}
"""Columns with a number, and its place in a verdict. () is the field of that name itself."""
TEXTS = ("run", "name", "rule", "outcome", "reason", "submitted", "started", "runtime", "backend")
JSONS = {"wildcards": (), "notes": (), "gpus": ("limits", "gpus")}

VERSION = 4  # of the tables
# Lists and statistics read the narrow table; whole verdicts have a table of their own, which they need not read.
_TABLES = f"""
    DROP TABLE IF EXISTS meta; DROP TABLE IF EXISTS run; DROP TABLE IF EXISTS attempt; DROP TABLE IF EXISTS verdict;
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE run (run TEXT PRIMARY KEY, over INTEGER NOT NULL, record TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE attempt (
        {", ".join(f"{name} TEXT NOT NULL" for name in TEXTS)},
        {", ".join(f"{name} TEXT NOT NULL" for name in JSONS)},
        {", ".join(f"{name} NUMERIC" for name in NUMBERS)},
        PRIMARY KEY (run, name)
    ) WITHOUT ROWID;
    CREATE INDEX attempt_rule ON attempt (rule, run, name);
    CREATE TABLE verdict (
        run TEXT NOT NULL, name TEXT NOT NULL, record TEXT NOT NULL, PRIMARY KEY (run, name)
    );
    """

_NO_SHARED_MEMORY = ("nfs", "cifs", "smb", "9p", "fuse", "lustre", "gpfs", "beegfs", "ceph", "afs", "pvfs", "orangefs")
"""Kinds of file systems, by their beginning, on which processes of several hosts cannot share WAL's memory."""
_BUSY_SECONDS = 5.0


class NewerIndexError(Exception):
    """The index was written by a newer Forge."""


def connect(path: str) -> sqlite3.Connection:
    """Open the index, and make its tables if there are none, or older ones.

    Args:
        path: of the file; "" is a private temporary one, which SQLite removes.

    Raises:
        NewerIndexError: if a newer Forge wrote its schema.
        sqlite3.Error: if it cannot be opened or written, or is damaged.
    """
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
    try:
        if (version := _version(connection)) > VERSION:
            raise NewerIndexError(f"version {version}")
        if path and supports_wal(path):
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the newest rows, and nothing else
        else:
            connection.execute("PRAGMA journal_mode = DELETE")
        _make_tables(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _make_tables(connection: sqlite3.Connection) -> None:
    if _version(connection) < VERSION:
        with transaction(connection):
            if _version(connection) < VERSION:  # otherwise another process was faster
                for statement in _TABLES.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {VERSION}")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Make all writes within it take effect, or none."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def supports_wal(path: str) -> bool:
    """Whether the file's file system belongs to this host alone."""
    return not file_system(os.path.dirname(os.path.abspath(path))).startswith(_NO_SHARED_MEMORY)


def file_system(directory: str) -> str:
    """The kind of file system that a directory is on, such as "ext4": proc_pid_mountinfo(5)."""
    best, kind = "", "unknown"
    real = os.path.realpath(directory)
    for line in read_whole("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(b" - ")
        point = mount_path(left.split()[4])
        below = real == point or real.startswith(point.rstrip("/") + "/")
        if below and len(point) >= len(best):
            best, kind = point, right.split()[0].decode()
    return kind
