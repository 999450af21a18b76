"""What rules use without declaring it, as lines for the Snakefile. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Undeclared:
    """Of one rule: paths, with wildcards in them where they fit, and how many of its jobs use each."""

    rule: str
    jobs: int = 0
    reads: dict[str, int] = field(default_factory=dict)
    writes: dict[str, int] = field(default_factory=dict)
    audited: bool = False  # whether anybody looked at what it reads


def undeclared(records: Iterable[Mapping[str, Any]]) -> list[Undeclared]:
    """Sum up by rule, what none is undeclared of left out.

    Args:
        records: of attempts, as ``jobs --json`` has them, oldest first: of each job the last one counts.

    """
    newest = {(r["rule"], tuple(sorted(r["wildcards"].items()))): r for r in records if r["outcome"] != "running"}
    found: dict[str, Undeclared] = {}
    for record in newest.values():
        entry = found.setdefault(record["rule"], Undeclared(record["rule"]))
        entry.jobs += 1
        entry.audited = entry.audited or record.get("undeclared_reads") is not None
        for paths, counts in (
            (record.get("undeclared_reads") or (), entry.reads),
            (record.get("undeclared_writes") or (), entry.writes),
        ):
            for path in {with_wildcards(path, record["wildcards"]) for path in paths}:
                counts[path] = counts.get(path, 0) + 1
    return [entry for _, entry in sorted(found.items()) if entry.reads or entry.writes]


def with_wildcards(path: str, wildcards: Mapping[str, str]) -> str:
    """The path with wildcards instead of their values, where these are whole words: ``A.bai`` as ``{sample}.bai``."""
    names = {value: name for name, value in wildcards.items() if value}
    if not names:
        return _escaped(path)
    values = "|".join(re.escape(value) for value in sorted(names, key=len, reverse=True))
    parts = re.split(rf"(?<![A-Za-z0-9])({values})(?![A-Za-z0-9])", path)
    return "".join("{" + names[part] + "}" if place % 2 else _escaped(part) for place, part in enumerate(parts))


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
