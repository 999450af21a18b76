"""The tables of the index and their migrations. sqlite.org/pragma.html#pragma_user_version, sqlite.org/wal.html.

The index repeats the content of the job directories. A migration may therefore empty the tables, and this module leaves
the index of a newer Forge alone.
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

# Lists and statistics read the narrow table; whole verdicts have a table of their own, which they need not read.
_TABLES = f"""
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

MIGRATIONS = (
    *("", "", ""),  # 1 had no column for retry, 2 none for submitted, 3 none for threads_asked
    # 4: the commands read all job directories again.
    "DROP TABLE IF EXISTS meta; DROP TABLE IF EXISTS run; DROP TABLE IF EXISTS attempt; DROP TABLE IF EXISTS verdict;"
    + _TABLES,
)
"""Migrations from each version of the schema to the next; the first makes the tables."""

_NO_SHARED_MEMORY = ("nfs", "cifs", "smb", "9p", "fuse", "lustre", "gpfs", "beegfs", "ceph", "afs", "pvfs", "orangefs")
"""Kinds of file systems, by their beginning, on which processes of several hosts cannot share WAL's memory."""
_BUSY_SECONDS = 5.0


class NewerIndexError(Exception):
    """The index was written by a newer Forge."""


def connect(path: str) -> sqlite3.Connection:
    """Open the index, make it if it does not exist, and migrate its schema.

    Args:
        path: of the file; "" is a private temporary one, which SQLite removes.

    Raises:
        NewerIndexError: if a newer Forge wrote its schema.
        sqlite3.Error: if it cannot be opened or written, or is damaged.
    """
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
    try:
        if (version := _version(connection)) > len(MIGRATIONS):
            raise NewerIndexError(f"version {version}")
        if path and supports_wal(path):
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the newest rows, and nothing else
        else:
            connection.execute("PRAGMA journal_mode = DELETE")
        migrate(connection, MIGRATIONS)
    except BaseException:
        connection.close()
        raise
    return connection


def migrate(connection: sqlite3.Connection, migrations: tuple[str, ...]) -> None:
    """Apply the missing migrations, each with its number in one transaction."""
    while (version := _version(connection)) < len(migrations):
        with transaction(connection):
            if _version(connection) == version:  # otherwise another process was faster
                for statement in migrations[version].split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {version + 1}")


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
