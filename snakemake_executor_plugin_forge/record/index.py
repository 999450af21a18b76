"""The index: all attempts of all runs of a working directory in one SQLite file beside the job directories.

Commands that read records update it; a job never waits for it. It repeats the content of the job directories, so a
command rebuilds a lost or damaged index. Where it cannot be written (another user's directory, a full disk, a file
system without locks), the tables go to a temporary file.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self, TypeVar

from ..spec.verdict import EndedBy
from .archive import read_entries
from .index_schema import JSONS, NUMBERS, TEXTS, NewerIndexError, connect, transaction
from .reader import RUNNING, RunDirectory, run_directories, state_directory

NAME = "index.db"
COLUMNS = (*TEXTS, *JSONS, *NUMBERS)
_INSERT = f"INSERT OR REPLACE INTO attempt ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
_LAST_OF_EACH_JOB = (
    "SELECT run, name FROM (SELECT run, name, row_number() OVER "
    "(PARTITION BY rule, wildcards ORDER BY run DESC, name DESC) AS turn FROM attempt {}) WHERE turn = 1"
)
_BATCH = 500
DAMAGED_ARCHIVE = "damaged_archive"
"""The key of a list in the record of a run, in the tables: a sentence if its archive was damaged when it was read."""
Row = dict[str, Any]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Selection:
    """A selection of attempts: those that meet every condition."""

    rule: str | None = None
    wildcards: Mapping[str, str] = field(default_factory=dict)
    failed: bool = False  # ended, and not with success
    running: bool = False
    last: bool = False  # of its job's attempts that have ended, in the run or, without one, in all of them
    run: str | None = None

    def accepts(self, record: Row, run: str) -> bool:
        """Whether a record that is not yet in the tables meets the conditions of :meth:`where`."""
        return (
            (self.rule is None or record["rule"] == self.rule)
            and self.wildcards.items() <= record["wildcards"].items()
            and not (self.failed and record["outcome"] in ("succeeded", RUNNING))
            and not (self.running and record["outcome"] != RUNNING)
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
            parts.append("0")  # running attempts are in no table
        if self.last:
            of_run, run = ("WHERE run = ?", [self.run]) if self.run is not None else ("", [])
            parts.append(f"(run, name) IN ({_LAST_OF_EACH_JOB.format(of_run)})")
            values += run
        return " AND ".join(parts), values


class Index:
    """The attempts of a working directory; a context manager that closes it."""

    def __init__(self, state: str, connection: sqlite3.Connection, path: str) -> None:
        """Use :func:`open_index`."""
        self.state = state
        self.path = path  # "" if it is a temporary one
        self._connection = connection
        self._pending: list[tuple[str, str, Row]] = []  # run, name; without a verdict yet
        self.alive = False  # whether a run is alive

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._connection.close()

    # -- bringing it up to date ------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read new job directories.

        Memory does not grow with their number. Two processes may update at the same time.
        """
        self._pending = []
        self.alive = False
        known_as = self._connection.execute("SELECT value FROM meta").fetchone()
        if known_as != (_storable(self.state),):  # the directory was moved: the paths in the verdicts are wrong
            self._forget_everything()
        over = {run for (run,) in self._connection.execute("SELECT run FROM run WHERE over")}
        runs = f"{self.state}/runs"
        there = set(os.listdir(runs)) if os.path.isdir(runs) else set()
        known = {run for (run,) in self._connection.execute("SELECT run FROM run")}
        for run in known - there:
            self.forget(run)
        for directory in run_directories(self.state, over):
            self._refresh_run(directory)

    def _refresh_run(self, run: RunDirectory) -> None:
        name = os.path.basename(run.path)
        over, problems = run.over, list[str]()  # before its directories are listed
        self.alive |= run.alive
        known = {n for (n,) in self._connection.execute("SELECT name FROM attempt WHERE run = ?", (name,))}
        new = sorted(set(run.names()) - known)
        for start in range(0, len(new), _BATCH):
            with transaction(self._connection):
                for entry in new[start : start + _BATCH]:
                    record = run.attempt(entry)
                    if record is None:
                        continue
                    unfinished = record["outcome"] in (RUNNING, "lost") and "schema" not in record
                    # a node knows only that Slurm has ended the attempt: the controller writes why, or it runs again
                    provisional = record.get("staged") or record.get("ended_by") == EndedBy.SLURM
                    if (unfinished or provisional) and not over:
                        self._pending.append((name, entry, record))
                    else:
                        self._insert(name, entry, record)
        with transaction(self._connection):
            for kept in read_entries(run.path, problems):
                if kept["name"] not in known:
                    self._insert(name, kept["name"], kept["verdict"] | {"directory": f"{run.path}/{kept['name']}"})
            text = _json(run.record | {DAMAGED_ARCHIVE: problems})
            self._connection.execute("INSERT OR REPLACE INTO run VALUES (?, ?, ?)", (name, over, text))

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
        """Remove a run from the tables."""
        with transaction(self._connection):
            for table in ("verdict", "attempt", "run"):
                self._connection.execute(f"DELETE FROM {table} WHERE run = ?", (run,))

    def _forget_everything(self) -> None:
        with transaction(self._connection):
            for table in ("verdict", "attempt", "run"):
                self._connection.execute(f"DELETE FROM {table}")
            self._connection.execute("INSERT OR REPLACE INTO meta VALUES ('state', ?)", (_storable(self.state),))

    # -- questions -------------------------------------------------------------------------------------------------

    def rows(self, selection: Selection = Selection(), columns: Sequence[str] = COLUMNS) -> Iterator[Row]:
        """The attempts as flat rows, oldest run first, running attempts last.

        Args:
            columns: a subset of :data:`COLUMNS`.
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
        """The whole records as JSON text, in the order of :meth:`rows`."""
        cursor = self._verdicts("run, name, record", selection, "ORDER BY run, name")
        yield from self._in_order(selection, cursor, lambda row: str(row[2]), lambda _, __, record: _json(record))

    def records(self, selection: Selection) -> Iterator[Row]:
        """The whole records, in the order of :meth:`rows`."""
        return map(json.loads, self.texts(selection))

    def newest(self, selection: Selection) -> Row | None:
        """The whole record of the newest attempt."""
        where, values = selection.where()
        query = f"SELECT run, name FROM attempt WHERE {where} ORDER BY run DESC, name DESC LIMIT 1"
        found = self._connection.execute(query, values).fetchone()
        waiting = self._waiting(selection)
        if waiting and (found is None or _turn(*waiting[-1]) > (False, *found)):
            return waiting[-1][2]
        if found is None:
            return None
        text = self._connection.execute("SELECT record FROM verdict WHERE run = ? AND name = ?", found).fetchone()
        record: Row = json.loads(text[0])
        return record

    def newest_records(self, selection: Selection, most: int) -> Iterator[Row]:
        """The whole records of the newest ended attempts, newest first."""
        newest_first = f"ORDER BY run DESC, name DESC LIMIT {most:d}"
        return (json.loads(text) for (text,) in self._verdicts("record", selection, newest_first))

    def count(self, selection: Selection) -> int:
        """The number of ended attempts."""
        where, values = selection.where()
        query = f"SELECT count(*) FROM attempt WHERE {where}"
        return int(self._connection.execute(query, values).fetchone()[0])

    def distinct(self, path: str, selection: Selection) -> list[tuple[str | None, int]]:
        """The distinct values (as JSON text) at a path such as "$.isolation", with the number of attempts for each."""
        what = "json_extract(record, ?) AS value, count(*)"
        return list(self._verdicts(what, selection, "GROUP BY value ORDER BY count(*) DESC", path))

    def with_entries(self, path: str, selection: Selection) -> Iterator[Row]:
        """The whole records whose list at ``path`` is not empty."""
        not_empty = "verdict WHERE json_array_length(record, ?) > 0 AND"
        found = self._verdicts("record", selection, "ORDER BY run, name", path, source=not_empty)
        return (json.loads(text) for (text,) in found)

    def _verdicts(
        self, what: str, selection: Selection, order: str, *values: str, source: str = "verdict WHERE"
    ) -> Iterable[tuple[Any, ...]]:
        """Rows of ``what`` from the verdicts of a selection; ``values`` belong to placeholders in the SQL before it."""
        where, others = selection.where()
        query = f"SELECT {what} FROM {source} (run, name) IN (SELECT run, name FROM attempt WHERE {where}) {order}"
        return self._connection.execute(query, [*values, *others])

    def rules(self) -> dict[str, set[str]]:
        """Rules with the names of their wildcards: an attempt without a spec.json knows none."""
        known: dict[str, set[str]] = {}
        query = "SELECT rule, wildcards, max(length(wildcards)) FROM attempt GROUP BY rule"
        for rule, text, _ in self._connection.execute(query):
            known[rule] = set(json.loads(text))
        for _, _, record in self._pending:
            known.setdefault(record["rule"], set()).update(record["wildcards"])
        return known

    def wall_times(self, newest: int) -> dict[str, list[float]]:
        """The seconds of the newest succeeded attempts of each rule, so many at most."""
        query = (
            "SELECT rule, seconds FROM (SELECT rule, seconds, row_number() OVER "
            "(PARTITION BY rule ORDER BY run DESC, name DESC) AS turn FROM attempt WHERE outcome = 'succeeded') "
            "WHERE turn <= ?"
        )
        found: dict[str, list[float]] = {}
        for rule, seconds in self._connection.execute(query, (newest,)):
            found.setdefault(rule, []).append(seconds)
        return found

    def ended_jobs(self, run: str) -> Iterable[tuple[str, str, bool, str]]:
        """Each job with ended attempts: rule, wildcards as JSON, whether it succeeded in the end, its first start."""
        columns = "rule, wildcards, max(outcome = 'succeeded'), min(started)"
        return self._connection.execute(f"SELECT {columns} FROM attempt WHERE run = ? GROUP BY rule, wildcards", (run,))

    def runs(self) -> list[tuple[str, Row]]:
        """The runs with their ``run.json``, oldest first."""
        query = "SELECT run, record FROM run ORDER BY run"
        return [(run, json.loads(text)) for run, text in self._connection.execute(query)]

    def last_outcomes(self) -> dict[str, list[str]]:
        """The outcome of the last attempt of each job, for each run."""
        last: dict[tuple[str, str, str], str] = {}
        query = "SELECT run, rule, wildcards, outcome FROM attempt ORDER BY run, name"
        for run, rule, wildcards, outcome in self._connection.execute(query):
            last[run, rule, wildcards] = outcome
        for run, _, record in self._waiting(Selection()):
            last[run, record["rule"], _json(record["wildcards"])] = record["outcome"]
        found: dict[str, list[str]] = {}
        for (run, _, _), outcome in last.items():
            found.setdefault(run, []).append(outcome)
        return found

    def newest_failure(self, selection: Selection) -> Row | None:
        """The whole record of the newest attempt that failed, or else of the newest that was cancelled."""
        failed = replace(selection, failed=True)
        lost = [record for record in reversed(self.unfinished(failed)) if record["outcome"] != RUNNING]
        text = "SELECT record FROM verdict WHERE (run, name) = (SELECT run, name FROM attempt WHERE {} LIMIT 1)"
        where, values = failed.where()
        found = self._connection.execute(
            text.format(f"{where} ORDER BY outcome = 'cancelled', run DESC, name DESC"), values
        ).fetchone()
        ended: Row | None = json.loads(found[0]) if found else None
        if lost and (ended is None or ended["outcome"] == "cancelled" or lost[0]["started"] > ended["started"]):
            return lost[0]
        return ended

    def dump(self) -> list[tuple[Any, ...]]:
        """All rows about attempts."""
        tables = ("attempt", "verdict")
        return [row for name in tables for row in self._connection.execute(f"SELECT * FROM {name} ORDER BY run, name")]

    def unfinished(self, selection: Selection = Selection()) -> list[Row]:
        """The records of attempts without a verdict that are in no table: running and recently lost ones."""
        return [record for _, _, record in self._waiting(selection)]

    def _waiting(self, selection: Selection) -> list[tuple[str, str, Row]]:
        """Selected attempts without a verdict in the order of results: oldest run first, running attempts last."""
        accepted = [item for item in self._pending if selection.accepts(item[2], item[0])]
        return sorted(accepted, key=lambda item: _turn(*item))

    def _in_order(
        self,
        selection: Selection,
        cursor: Iterable[tuple[Any, ...]],
        show: Callable[[tuple[Any, ...]], _T],
        show_waiting: Callable[[str, str, Row], _T],
    ) -> Iterator[_T]:
        """Merge rows of the tables (which begin with run and name) with records that are not yet in them."""
        waiting = deque(self._waiting(selection))
        for row in cursor:
            while waiting and _turn(*waiting[0]) < (False, row[0], row[1]):
                yield show_waiting(*waiting.popleft())
            yield show(row)
        for item in waiting:
            yield show_waiting(*item)


def _turn(run: str, name: str, record: Row) -> tuple[bool, str, str]:
    """The sort key of attempts."""
    return record["outcome"] == RUNNING, run, name


def open_index(workdir: str) -> Index:
    """Open the updated index of a working directory.

    Raises:
        UsageError: if Forge has never run there.
    """
    state = state_directory(workdir)
    path = f"{state}/{NAME}"
    if os.stat(state).st_uid == os.geteuid():  # root leaves no files in other users' directories
        with suppress(sqlite3.OperationalError, NewerIndexError):  # it cannot be written, or another user owns it
            try:
                return _opened(state, path)
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
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


def is_damaged(state: str) -> bool:
    """Whether the file has other rows than one that is made from the job directories now."""
    if not os.path.isfile(f"{state}/{NAME}"):
        return False
    try:
        with _opened(state, f"{state}/{NAME}") as old:
            rows = old.dump()
    except Exception:  # whatever damage leads to
        return True
    with _opened(state, "") as made:
        return made.dump() != rows


def remove_index(state: str) -> None:
    """Remove the file, so that it is rebuilt from the job directories."""
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
    """JSON that SQLite can store, with escapes for bytes of file names that are not text."""
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
