"""The report's parts about single attempts: the command, the ends of logs and streams, why it failed.

A page has this of a bounded number of attempts, and says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..record.index import Index, Row, Selection
from ..record.jsonfile import STDERR, STDOUT
from ..record.plain_files import read_end
from ..record.reader import RUNNING
from ..spec.printable import printable, without_escapes
from .attempt_log import read_spec, read_tail, rule_logs, with_context
from .explain import Explanation, Record, alike, explain, job_in_words, job_words

MOST_ATTEMPTS, MOST_FAILURES = 500, 200
_MOST_CHARACTERS = 3_000_000
_COMMAND_CHARACTERS, _LINES, _LINE_CHARACTERS, _LOGS = 4000, 15, 400, 3
_TAIL_BYTES = 8192
_JOBS_BY_NAME = 50


@dataclass(frozen=True, slots=True)
class Failure:
    """Attempts that failed alike; the words are those of the newest."""

    place: str  # run and name
    outcome: str
    happened: str
    lines: tuple[tuple[str, str], ...]
    tail: str
    source: str
    jobs: tuple[str, ...]
    more_jobs: int
    repeated: bool  # whether all of these jobs have succeeded since


def failed_records(index: Index, run: str | None) -> dict[str, Record]:
    """The records of the newest failed attempts, each with ``told``, by run and name."""
    records = index.newest_records(Selection(run=run, failed=True), MOST_FAILURES)
    return {_place(record): with_context(record) for record in records}


def _place(record: Record) -> str:
    return "/".join(record["directory"].rsplit("/", 2)[1:])


def failures(records: Iterable[Record], last: Mapping[tuple[str, str], str]) -> Iterator[Failure]:
    """Failures, alike ones together; those of jobs that have succeeded since come last.

    Args:
        records: those of :func:`failed_records`.
        last: the outcome of the last attempt of each job, by rule and wildcards.
    """
    groups = [(group, all(last.get(job_key(one)) == "succeeded" for one in group)) for group in alike([*records])]
    for group, repeated in sorted(groups, key=lambda item: (item[1], item[0][0]["outcome"] == "cancelled")):
        record, told = group[0], group[0]["told"]
        found, names = explain(record, told), [job_words(one) for one in group]
        yield Failure(
            place=_place(record),
            outcome=record["outcome"],
            happened=found.happened,
            lines=_lines(found),
            tail=end(told.text),
            source=told.source,
            jobs=tuple(names[:_JOBS_BY_NAME]) if len(names) > 1 else (),
            more_jobs=max(0, len(names) - _JOBS_BY_NAME),
            repeated=repeated,
        )


def job_key(record: Record) -> tuple[str, str]:
    """The key that tells the job of an attempt from others."""
    return record["rule"], repr(record["wildcards"])


def _lines(found: Explanation) -> tuple[tuple[str, str], ...]:
    return tuple(line for line in found.fields() if line[0] not in ("happened", "files"))


def chosen(rows: Iterable[Row]) -> list[Row]:
    """The attempts that get a full drawer: failures, newest first, then running ones, then the longest."""

    def turn(row: Row) -> tuple[int, float]:
        if row["outcome"] == RUNNING:
            return 1, 0.0
        return (2, -row["seconds"]) if row["outcome"] == "succeeded" else (0, 0.0)

    newest_first = sorted(rows, key=lambda row: (row["run"], row["name"]), reverse=True)
    return sorted(newest_first, key=turn)[:MOST_ATTEMPTS]


def drawer(directory: str, row: Row, failed: Record | None) -> dict[str, Any]:
    """The content of one drawer, as JSON values.

    Args:
        directory: the job directory, which may be in the archive.
        row: of the index.
        failed: its whole record with ``told``, if it is known to have failed.
    """
    lines = _lines(explain(failed, failed["told"])) if failed else ()
    spec = read_spec(directory) or {}
    command = str(spec.get("command") or "")
    more = len(command) - _COMMAND_CHARACTERS
    cut = f"\n… {more:,} more characters: command.sh" if more > 0 else ""
    said = [
        *((f"log {name}", read_end(path, _TAIL_BYTES, straight=True)) for name, path in rule_logs(directory)[:_LOGS]),
        *((name, read_tail(directory, name, _TAIL_BYTES)) for name in (STDERR, STDOUT)),
    ]
    return {
        "job": printable(job_in_words(row)),
        "command": printable(command[:_COMMAND_CHARACTERS], keep="\n\t") + cut,
        "how": printable(spec.get("how") or ""),
        "said": [[printable(name), end(text)] for name, text in said if text.strip()],
        "lines": [[name, printable(text)] for name, text in lines],
        "notes": [] if failed else [printable(note) for note in row["notes"]],
    }


def end(text: str) -> str:
    """The last lines of a stream, without colours, progress bars and control characters."""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.rstrip().split("\n")[-_LINES:]]
    shown = (printable(without_escapes(line), keep="\t") for line in lines)
    return "\n".join(line if len(line) <= _LINE_CHARACTERS else f"{line[:_LINE_CHARACTERS]}…" for line in shown)


def drawers(state: str, rows: Iterable[Row], failed: Mapping[str, Record]) -> dict[str, dict[str, Any]]:
    """The drawers of the chosen attempts by run and name, as many as a page can hold."""
    found: dict[str, dict[str, Any]] = {}
    size = 0
    for row in chosen(rows):
        place = f"{row['run']}/{row['name']}"
        content = drawer(f"{state}/runs/{place}", row, failed.get(place))
        size += sum(len(text) for _, text in content["said"]) + len(content["command"])
        if size > _MOST_CHARACTERS:
            break
        found[place] = content
    return found
