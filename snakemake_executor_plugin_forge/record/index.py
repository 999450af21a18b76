"""The index: all attempts of all runs of a working directory in one SQLite file beside the job directories.

The commands that read bring it up to date; a job never waits for it. What is in it can be read again from the job
directories at any time, so a lost or damaged index is made anew, and where none can be written (a directory of somebody
else, a full disk, a file system without locks) the same tables are made in a temporary file.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

from .archive import read_archive
from .reader import RUNNING, Attempt, RunDirectory, run_directories, state_directory
from .schema import JSONS, NUMBERS, TEXTS, NewerIndexError, connect

NAME = "index.db"
COLUMNS = (*TEXTS, *JSONS, *NUMBERS)
_INSERT = f"INSERT OR REPLACE INTO attempt ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
_BATCH = 500
Row = dict[str, Any]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which attempts are wanted: all that meet every condition."""

    rule: str | None = None
    wildcards: Mapping[str, str] = field(default_factory=dict)
    failed: bool = False  # ended, and not with success
    running: bool = False
    run: str | None = None

    def accepts(self, attempt: Attempt, run: str) -> bool:
        """The same conditions as in :meth:`where`, for attempts that are not in the tables yet."""
        return (
            (self.rule is None or attempt.rule == self.rule)
            and self.wildcards.items() <= attempt.wildcards.items()
            and not (self.failed and attempt.outcome in ("succeeded", RUNNING))
            and not (self.running and attempt.outcome != RUNNING)
            and (self.run is None or run == self.run)
        )

    def where(self) -> tuple[str, list[str]]:
        """The condition in SQL, and its values."""
        parts, values = ["1"], []
        for column, value in (("rule", self.rule), ("run", self.run)):
            if value is not None:
                parts.append(f"{column} = ?")
                values.append(value)
        for key, value in self.wildcards.items():
            parts.append("EXISTS (SELECT 1 FROM json_each(wildcards) AS w WHERE w.key = ? AND w.value = ?)")
            values += [key, value]
        if self.failed:
            parts.append("outcome != 'succeeded'")
        if self.running:
            parts.append("0")  # what runs is in no table
        return " AND ".join(parts), values


class Index:
    """The attempts of a working directory. To be closed; also a context manager."""

    def __init__(self, state: str, connection: sqlite3.Connection, path: str) -> None:
        """Use :func:`open_index`."""
        self.state = state
        self.path = path  # "" if it is a temporary one
        self._connection = connection
        self._pending: list[tuple[str, str, Attempt]] = []  # run, name; without a verdict yet
        self.alive = False  # whether a run is going on

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._connection.close()

    # -- bringing it up to date ------------------------------------------------------------------------------------

    def refresh(self) -> int:
        """Read what is new in the job directories; returns how many attempts that was.

        Memory does not grow with their number. Two processes may do it at the same time.
        """
        self._pending = []
        self.alive = False
        if self._meta("state") != self.state:  # the directory was moved: the paths in the verdicts are wrong
            self._forget_everything()
        over = {run for (run,) in self._connection.execute("SELECT run FROM run WHERE over")}
        runs = f"{self.state}/runs"
        there = set(os.listdir(runs)) if os.path.isdir(runs) else set()
        known = {run for (run,) in self._connection.execute("SELECT run FROM run")}
        for run in known - there:
            self.forget(run)
        return sum(self._refresh_run(run) for run in run_directories(self.state, over))

    def _refresh_run(self, run: RunDirectory) -> int:
        name = os.path.basename(run.path)
        over = run.over  # before its directories are looked at
        self.alive |= run.alive
        known = {n for (n,) in self._connection.execute("SELECT name FROM attempt WHERE run = ?", (name,))}
        new = sorted(set(run.names()) - known)
        count = 0
        for start in range(0, len(new), _BATCH):
            with self._transaction():
                for entry in new[start : start + _BATCH]:
                    attempt = run.attempt(entry)
                    if attempt is None:
                        continue
                    unfinished = attempt.outcome in (RUNNING, "lost") and "schema" not in attempt.record
                    if (unfinished or attempt.record.get("staged")) and not over:
                        self._pending.append((name, entry, attempt))
                    else:
                        count += 1
                        self._insert(name, entry, attempt.record)
        with self._transaction():
            for entry, record in read_archive(run.path):
                if entry not in known:
                    count += 1
                    self._insert(name, entry, record)
            self._connection.execute("INSERT OR REPLACE INTO run VALUES (?, ?, ?)", (name, over, _json(run.record)))
        return count

    def _insert(self, run: str, name: str, record: Row) -> None:
        own = {"run": run, "name": name}
        row = (
            *(own.get(column) or _storable(str(record.get(column, ""))) for column in TEXTS),
            *(_json(_at(record, column, path)) for column, path in JSONS.items()),
            *(_at(record, column, path) for column, path in NUMBERS.items()),
        )
        self._connection.execute(_INSERT, row)
        self._connection.execute("INSERT OR REPLACE INTO verdict VALUES (?, ?, ?)", (run, name, _json(record)))

    def forget(self, run: str) -> None:
        """Take a run out of the tables."""
        with self._transaction():
            for table in ("verdict", "attempt", "run"):
                self._connection.execute(f"DELETE FROM {table} WHERE run = ?", (run,))

    def _forget_everything(self) -> None:
        with self._transaction():
            for table in ("verdict", "attempt", "run"):
                self._connection.execute(f"DELETE FROM {table}")
            self._connection.execute("INSERT OR REPLACE INTO meta VALUES ('state', ?)", (self.state,))

    def _meta(self, key: str) -> str | None:
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def _transaction(self) -> _Transaction:
        return _Transaction(self._connection)

    # -- questions -------------------------------------------------------------------------------------------------

    def rows(self, selection: Selection = Selection(), columns: Sequence[str] = COLUMNS) -> Iterator[Row]:
        """The attempts as flat rows, oldest run first; what runs comes last.

        Args:
            columns: of :data:`COLUMNS`, those that are needed.

        """
        nested = [column for column in columns if column in JSONS]
        read = ("run", "name", *(column for column in columns if column not in ("run", "name")))

        def show(row: tuple[Any, ...]) -> Row:
            found = dict(zip(read, row, strict=True))
            for column in nested:
                text = found[column]
                found[column] = [] if text == "[]" else json.loads(text)  # most are empty, and there are many
            return found

        where, values = selection.where()
        query = f"SELECT {', '.join(read)} FROM attempt WHERE {where} ORDER BY run, name"
        yield from self._in_order(selection, self._connection.execute(query, values), show, as_row)

    def texts(self, selection: Selection = Selection()) -> Iterator[str]:
        """The whole records as JSON text, in the same order."""
        where, values = selection.where()
        query = (
            "SELECT run, name, record FROM verdict WHERE (run, name) IN "
            f"(SELECT run, name FROM attempt WHERE {where}) ORDER BY run, name"
        )
        cursor = self._connection.execute(query, values)
        yield from self._in_order(selection, cursor, lambda row: str(row[2]), lambda _, __, record: _json(record))

    def records(self, selection: Selection) -> Iterator[Row]:
        """The whole records, in the same order."""
        return map(json.loads, self.texts(selection))

    def newest(self, selection: Selection) -> Row | None:
        """The whole record of the newest attempt."""
        where, values = selection.where()
        query = f"SELECT run, name FROM attempt WHERE {where} ORDER BY run DESC, name DESC LIMIT 1"
        found = self._connection.execute(query, values).fetchone()
        waiting = self._waiting(selection)
        if waiting and (found is None or _turn(*waiting[-1]) > (False, *found)):
            return waiting[-1][2].record
        if found is None:
            return None
        text = self._connection.execute("SELECT record FROM verdict WHERE run = ? AND name = ?", found).fetchone()
        record: Row = json.loads(text[0])
        return record

    def newest_records(self, selection: Selection, most: int) -> Iterator[Row]:
        """The whole records of the newest attempts that have ended, newest first."""
        where, values = selection.where()
        query = (
            "SELECT record FROM verdict WHERE (run, name) IN "
            f"(SELECT run, name FROM attempt WHERE {where}) ORDER BY run DESC, name DESC LIMIT {most:d}"
        )
        for (text,) in self._connection.execute(query, values):
            yield json.loads(text)

    def count(self, selection: Selection) -> int:
        """How many attempts that have ended there are."""
        where, values = selection.where()
        query = f"SELECT count(*) FROM attempt WHERE {where}"
        return int(self._connection.execute(query, values).fetchone()[0])

    def distinct(self, path: str, selection: Selection) -> list[tuple[str | None, int]]:
        """The different values (as JSON text) at a path such as "$.isolation", with how many attempts have each."""
        where, values = selection.where()
        query = (
            "SELECT json_extract(record, ?) AS value, count(*) FROM verdict WHERE (run, name) IN "
            f"(SELECT run, name FROM attempt WHERE {where}) GROUP BY value ORDER BY count(*) DESC"
        )
        return list(self._connection.execute(query, [path, *values]))

    def with_entries(self, path: str, selection: Selection) -> Iterator[Row]:
        """The whole records whose list at ``path`` is not empty."""
        where, values = selection.where()
        query = (
            "SELECT record FROM verdict WHERE json_array_length(record, ?) > 0 AND (run, name) IN "
            f"(SELECT run, name FROM attempt WHERE {where}) ORDER BY run, name"
        )
        for (text,) in self._connection.execute(query, [path, *values]):
            yield json.loads(text)

    def rules(self) -> dict[str, set[str]]:
        """Rules with the names of their wildcards."""
        known: dict[str, set[str]] = {}
        query = "SELECT rule, wildcards FROM attempt GROUP BY rule"
        for rule, text in self._connection.execute(query):
            known[rule] = set(json.loads(text))
        for _, _, attempt in self._pending:
            known.setdefault(attempt.rule, set()).update(attempt.wildcards)
        return known

    def runs(self) -> list[tuple[str, Row]]:
        """The runs with their ``run.json``, oldest first."""
        query = "SELECT run, record FROM run ORDER BY run"
        return [(run, json.loads(text)) for run, text in self._connection.execute(query)]

    def unfinished(self, selection: Selection = Selection()) -> list[Row]:
        """The records of attempts that have no verdict and are in no table yet: those that run, and the newest lost."""
        return [attempt.record for _, _, attempt in self._waiting(selection)]

    def _waiting(self, selection: Selection) -> list[tuple[str, str, Attempt]]:
        """Oldest run first; what runs comes last."""
        return sorted(
            (item for item in self._pending if selection.accepts(item[2], item[0])), key=lambda item: _turn(*item)
        )

    def _in_order(
        self,
        selection: Selection,
        cursor: Iterable[tuple[Any, ...]],
        show: Callable[[tuple[Any, ...]], _T],
        show_waiting: Callable[[str, str, Row], _T],
    ) -> Iterator[_T]:
        """What is in the tables (rows that begin with run and name), and between them what is not yet."""
        waiting = deque(self._waiting(selection))
        for row in cursor:
            while waiting and _turn(*waiting[0]) < (False, row[0], row[1]):
                run, name, attempt = waiting.popleft()
                yield show_waiting(run, name, attempt.record)
            yield show(row)
        for run, name, attempt in waiting:
            yield show_waiting(run, name, attempt.record)


def _turn(run: str, name: str, attempt: Attempt) -> tuple[bool, str, str]:
    """By which attempts are sorted."""
    return attempt.outcome == RUNNING, run, name


class _Transaction:
    """All or nothing of what is written in it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._connection.execute("COMMIT" if kind is None else "ROLLBACK")


def open_index(workdir: str) -> Index:
    """The index of a working directory, up to date.

    Raises:
        UsageError: if Forge has never run there.

    """
    state = state_directory(workdir)
    path = f"{state}/{NAME}"
    if os.stat(state).st_uid == os.geteuid():  # root leaves no files in directories of others
        with suppress(sqlite3.OperationalError, NewerIndexError):  # cannot be written, or not for us
            try:
                return _opened(state, path)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                remove_index(state)  # damaged
                return _opened(state, path)
    return _opened(state, "")


def _opened(state: str, path: str) -> Index:
    connection = connect(path)
    try:
        index = Index(state, connection, path)
        index.refresh()
    except BaseException:
        connection.close()
        raise
    return index


def remove_index(state: str) -> None:
    """Take the file away, so that it is made anew from the job directories."""
    for suffix in ("-journal", "-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            os.unlink(f"{state}/{NAME}{suffix}")


def as_row(run: str, name: str, record: Row) -> Row:
    """A record as a row of :data:`COLUMNS`."""
    own = {"run": run, "name": name}
    texts = {column: own.get(column) or str(record.get(column, "")) for column in TEXTS}
    return texts | {column: _at(record, column, path) for column, path in {**JSONS, **NUMBERS}.items()}


def _at(record: Row, column: str, path: tuple[str, ...]) -> Any:
    value: Any = record
    for key in path or (column,):
        value = value.get(key) if isinstance(value, dict) else None
    return value if value is not None or column not in JSONS else ({} if column == "wildcards" else [])


def _json(value: object) -> str:
    """JSON that SQLite can store: bytes of file names that are no text are escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return text if _is_text(text) else json.dumps(value)


def _storable(text: str) -> str:
    return text if _is_text(text) else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
