"""The notes on the jobs of a run, summed up by rule for the end of Snakemake's output. The records have all of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..spec.printable import printable, shell_words
from ..spec.wildcards import with_wildcards

_MOST_KINDS = 20  # of notes on the jobs of one rule; more are only counted
_LONGEST = 1200  # with a line to paste for 30 outputs


@dataclass(slots=True)
class _OfRule:
    jobs: int = 0
    kinds: dict[str, int] = field(default_factory=dict)  # a note with wildcards in it, to the number of jobs
    first: dict[str, tuple[str, str]] = field(default_factory=dict)  # to a job and its note
    more: int = 0


class Notes:
    """Collects notes; for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: dict[str, _OfRule] = {}

    def add(self, rule: str, wildcards: Mapping[str, str], notes: Sequence[str]) -> None:
        """Add the notes on a job."""
        if not notes:
            return
        with self._lock:
            found = self._rules.setdefault(rule, _OfRule())
            found.jobs += 1
            for note in notes:
                kind = with_wildcards(note, wildcards)
                if kind not in found.kinds and len(found.kinds) >= _MOST_KINDS:
                    found.more += 1
                    continue
                found.kinds[kind] = found.kinds.get(kind, 0) + 1
                job = shell_words(f"{name}={value}" for name, value in wildcards.items())
                found.first.setdefault(kind, (job, printable(note)))

    def lines(self) -> Iterator[str]:
        """Yield a line for each rule, and forget what it says."""
        with self._lock:
            rules, self._rules = self._rules, {}
        for rule, found in sorted(rules.items()):
            yield _line(rule, found)


def _line(rule: str, found: _OfRule) -> str:
    kinds = sorted(found.kinds, key=lambda kind: -found.kinds[kind])
    if found.jobs == 1 and not found.more:
        job = found.first[kinds[0]][0]
        notes = "; ".join(_shortened(found.first[kind][1]) for kind in kinds)
        return f"Forge: rule {rule}{f', {job}' if job else ''}: {notes}."
    count, (job, note) = found.kinds[kinds[0]], found.first[kinds[0]]
    example = f", as {job}" if job and count > 1 else f", {job}" if job else ""
    others = len(kinds) - 1 + found.more
    more = f" ({others} other notes: snakemake-forge jobs --rule {shell_words([rule])})" if others else ""
    return f"Forge: rule {rule}, {count} job{'s' if count > 1 else ''}{example}: {_shortened(note)}.{more}"


def _shortened(note: str) -> str:
    return note if len(note) <= _LONGEST else f"{note[:_LONGEST]}…"
