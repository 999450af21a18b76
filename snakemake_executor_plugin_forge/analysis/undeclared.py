"""Undeclared reads and writes of rules, as lines for the Snakefile. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..spec.wildcards import with_wildcards


@dataclass(slots=True)
class UndeclaredFiles:
    """Undeclared paths of one rule, with wildcards where they fit, and the number of jobs that use each."""

    rule: str
    jobs: int = 0
    reads: dict[str, int] = field(default_factory=dict)
    writes: dict[str, int] = field(default_factory=dict)
    wildcards: tuple[str, ...] = ()  # all outputs of the rule need all of them
    audited: bool = False  # whether an audit recorded its reads


def undeclared(records: Iterable[Mapping[str, Any]]) -> list[UndeclaredFiles]:
    """Sum up by rule; rules without undeclared files are absent.

    Args:
        records: attempts in the form of ``jobs --json``, oldest first; the last attempt of each job counts.
    """
    newest = {(r["rule"], tuple(sorted(r["wildcards"].items()))): r for r in records if r["outcome"] != "running"}
    found: dict[str, UndeclaredFiles] = {}
    for record in newest.values():
        entry = found.setdefault(record["rule"], UndeclaredFiles(record["rule"]))
        entry.jobs += 1
        entry.wildcards = tuple(record["wildcards"])
        entry.audited = entry.audited or record.get("undeclared_reads") is not None
        for kind, counts in (("undeclared_reads", entry.reads), ("undeclared_writes", entry.writes)):
            for path in {with_wildcards(path, record["wildcards"]) for path in record.get(kind) or ()}:
                counts[path] = counts.get(path, 0) + 1
    return [entry for _, entry in sorted(found.items()) if entry.reads or entry.writes]
