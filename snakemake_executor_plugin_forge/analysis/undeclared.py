"""Undeclared reads and writes of rules, as lines for the Snakefile. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..spec.wildcards import with_wildcards


@dataclass(slots=True)
class UndeclaredFiles:
    """Undeclared paths of one rule, with wildcards where they fit, and the number of jobs that use each."""

    rule: str
    jobs: int = 0
    reads: dict[str, int] = field(default_factory=dict)
    expanded: dict[str, dict[str, Mapping[str, str]]] = field(default_factory=dict)
    """Reads that several jobs of one rule have made: a pattern, to paths with their wildcards."""
    directories: set[str] = field(default_factory=set)  # of the writes
    writes: dict[str, int] = field(default_factory=dict)
    wildcards: tuple[str, ...] = ()  # all outputs of the rule need all of them
    audited: bool = False  # whether an audit recorded its reads


def undeclared(
    records: Iterable[Mapping[str, Any]], is_directory: Callable[[str], bool] = lambda _: False
) -> list[UndeclaredFiles]:
    """Sum up by rule; rules without undeclared files are absent.

    Args:
        is_directory: whether a path of the working directory is one now.
        records: attempts in the form of ``jobs --json``, oldest first; the last attempt of each job counts.
    """
    newest = {(r["rule"], tuple(sorted(r["wildcards"].items()))): r for r in records if r["outcome"] != "running"}
    found: dict[str, UndeclaredFiles] = {}
    for record in newest.values():
        entry = found.setdefault(record["rule"], UndeclaredFiles(record["rule"]))
        entry.jobs += 1
        entry.wildcards = tuple(record["wildcards"])
        entry.audited = entry.audited or record.get("undeclared_reads") is not None
        for path in filter(is_directory, record.get("undeclared_writes") or ()):
            entry.directories.add(with_wildcards(path, record["wildcards"]))
        for kind, counts in (("undeclared_reads", entry.reads), ("undeclared_writes", entry.writes)):
            for path in {with_wildcards(path, record["wildcards"]) for path in record.get(kind) or ()}:
                counts[path] = counts.get(path, 0) + 1
    makers = {out["path"]: r["wildcards"] for r in newest.values() for out in r.get("outputs") or () if r["wildcards"]}
    for entry in found.values():
        _expand(entry, makers)
    return [entry for _, entry in sorted(found.items()) if entry.reads or entry.writes]


def _expand(entry: UndeclaredFiles, makers: Mapping[str, Mapping[str, str]]) -> None:
    """Put reads together that several jobs of one rule have made: a rule that aggregates names them with expand()."""
    groups: dict[str, list[str]] = {}
    for path in entry.reads:
        if path in makers:
            groups.setdefault(with_wildcards(path, makers[path]), []).append(path)
    for pattern, paths in groups.items():
        if len(paths) > 1:
            entry.expanded[pattern] = {path: makers[path] for path in sorted(paths)}
