"""The group of a job: ``group:`` in its rule, ``--groups`` on the command line, or a pipe. A pure value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class JobGroup:
    """Jobs that one job of a scheduler runs, on one node."""

    key: str  # unique in the run: connected jobs with the same id are one group
    name: str  # the id, for people
    members: int  # how many jobs it has
    resources: Mapping[str, object] = field(default_factory=dict)  # of all of it, as Snakemake sums them
    piped: JobGroup | None = None  # a member's part that pipes connect, which stays together if the whole cannot
