"""The sharing of allocations by short jobs of one shape, sized by the known times of their rules.

Slurm takes a second or more to start and end a job, and some sites allow few. So several short jobs go into one
allocation, which works through them: pack.py. Each stays an attempt of its own, with its own sandbox, limits and
record.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

from ...record import sound
from ...record.jsonfile import VERDICT, load
from ...spec.verdict import Outcome, Verdict

PACK_SECONDS = 30.0
"""Seconds that the jobs of one allocation take together, at most. More would cost less, and end later."""

_SLURM_SECONDS = 1.0  # by which one more allocation delays the others: Slurm's work, and Forge's start on the node
_START_SECONDS, _SLOW_START_SECONDS = 0.1, 0.5  # of one job in an allocation: sandbox, record; on a busy node
_LONGEST_SECONDS = PACK_SECONDS / 2  # of a job that shares an allocation
_MARGIN = 3.0  # by which jobs may take longer than the longest before
_NEWEST = 20
_NEWEST_RUNS = 5


def packs(seconds: Sequence[float | None], setting: int | None) -> list[list[int]]:
    """Divide jobs among allocations; each is a list of positions in ``seconds``.

    With n allocations all is over after n * _SLURM_SECONDS + total / n, if there are nodes enough: that is least where
    both terms are the same.

    Args:
        seconds: how long each job is expected to take; None if that is unknown.
        setting: the most jobs in one allocation; None: by the time that they take.
    """
    if setting is not None:
        return _chunks(list(range(len(seconds))), math.ceil(len(seconds) / setting))
    together = [n for n, time in enumerate(seconds) if time is not None and time <= _LONGEST_SECONDS]
    total = sum(_seconds(seconds[n]) for n in together)
    shared = set(together)
    alone = [[n] for n in range(len(seconds)) if n not in shared]
    if not together:
        return alone
    count = math.ceil(total / min(PACK_SECONDS, math.sqrt(total * _SLURM_SECONDS)))
    if 2 * count > len(together):  # that spares few allocations, and some jobs would wait for another one
        return [[n] for n in range(len(seconds))]
    return sorted([*alone, *_by_time(together, seconds, total / count)])


def _chunks(positions: list[int], count: int) -> list[list[int]]:
    size, more = divmod(len(positions), max(1, count))
    ends = [size * n + min(n, more) for n in range(count + 1)]
    return [positions[begin:end] for begin, end in pairwise(ends)]


def _by_time(positions: list[int], seconds: Sequence[float | None], share: float) -> list[list[int]]:
    """Fill one allocation after the other with jobs for ``share`` seconds."""
    found: list[list[int]] = [[]]
    filled = 0.0
    for position in positions:
        own = _seconds(seconds[position])
        if found[-1] and filled + own / 2 > share * len(found):
            found.append([])
        found[-1].append(position)
        filled += own
    return found


def _seconds(expected: float | None) -> float:
    return (expected or 0.0) + _START_SECONDS


def time_minutes(wall_seconds: float, expected: Sequence[float | None]) -> int:
    """The time limit of an allocation: one job may take all that its rule allows, and the others what they mostly do.

    One that is ended for the time of those before it runs again by itself, so this may be too short, and no partition
    refuses it for being far too long.

    Args:
        wall_seconds: the rule's limit for one job; Forge enforces it for each.
        expected: of each job in it.
    """
    times = (_LONGEST_SECONDS if one is None else one for one in expected)
    others = sum(min(wall_seconds, _MARGIN * (one + _SLOW_START_SECONDS)) for one in times)
    return max(1, math.ceil((wall_seconds + others) / 60))


class Durations:
    """The time of each rule's jobs: the longest of the newest, in this run or in the record of earlier ones."""

    def __init__(self, runs: str) -> None:
        """Begin without any; ``runs`` is the directory of all runs."""
        self._runs = runs
        self._seen: dict[str, deque[float]] = {}
        self._earlier: dict[str, float | None] = {}

    def note(self, rule: str, verdict: Verdict) -> None:
        """Remember how long a job of this run took, if it has succeeded."""
        if verdict.outcome is Outcome.SUCCEEDED:
            self._seen.setdefault(rule, deque(maxlen=_NEWEST)).append(verdict.seconds)

    def expected(self, rule: str) -> float | None:
        """Seconds that a job of a rule may take; None if none has succeeded yet."""
        if seen := self._seen.get(rule):
            return max(tuple(seen))
        if rule not in self._earlier:
            self._earlier[rule] = self._read(rule)
        return self._earlier[rule]

    def _read(self, rule: str) -> float | None:
        """The longest of a few newest successes on record, read directly: the index is for commands."""
        found: list[float] = []
        with suppress(OSError):
            for run in sorted(os.listdir(self._runs), reverse=True)[:_NEWEST_RUNS]:
                names = [name for name in os.listdir(f"{self._runs}/{run}") if name.partition("-")[2] == rule]
                verdicts = (load(f"{self._runs}/{run}/{name}/{VERDICT}") for name in names[: 2 * _NEWEST])
                sound_ones = [sound.verdict(verdict) for verdict in verdicts if verdict is not None]
                found += [float(one["seconds"]) for one in sound_ones if one["outcome"] == Outcome.SUCCEEDED]
                if len(found) >= _NEWEST:
                    break
        return max(found, default=None)
