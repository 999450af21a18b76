"""The start of a ``run:`` block: as a fork of the process that has read the Snakefile, or in a Snakemake of its own.

docs/explanation/run-blocks.md says what differs. Pure values; plugin/run_blocks.py collects the evidence.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .errors import UsageError
from .job import RunBlocks

RESOURCE = "forge_run_blocks"


class DifferenceKind(enum.Enum):
    """A kind of state that a fork shares or loses, and a new process makes for itself. The value is its words."""

    THREAD = "the thread {} was running when Forge forked, and a fork does not have it"
    DESCRIPTOR = "the Snakefile leaves {} open, and forks share it"
    OBJECT = "the Snakefile holds {}, and forks share its state"
    RANDOM = "the Snakefile seeds {} or draws from it, and forks would all draw the same numbers"
    MOMENT = "the Snakefile calls {} while it is read, and forks would all have the same value"
    CHANGED = "the global {} has changed since the Snakefile was read"
    STALE = "the Snakefile reads {}, which has changed since"
    RESOURCE = "it uses resources.{}, which the rule does not set and Snakemake adds there"
    ASKED = "{} asks for it"


@dataclass(frozen=True, slots=True)
class Difference:
    """One piece of evidence that a fork is not what a new process would be."""

    kind: DifferenceKind
    name: str

    def __str__(self) -> str:
        """The evidence in words, without a full stop."""
        return self.kind.value.format(self.name)


def mode_of(rule: str, resources: Mapping[str, object], default: RunBlocks) -> tuple[RunBlocks, str]:
    """The mode of a rule, and the name of the setting that says so.

    Raises:
        UsageError: for a value that is none.
    """
    value = resources.get(RESOURCE)
    if value is None:
        return default, f"--forge-run-blocks={default}"
    try:
        return RunBlocks(str(value)), f"{RESOURCE}={value}"
    except ValueError:
        allowed = ", ".join(RunBlocks)
        raise UsageError(f"Rule {rule}: resource {RESOURCE}={value!r} is not one of {allowed}.") from None


def why_new(mode: RunBlocks, setting: str, differences: Iterable[Difference]) -> Difference | None:
    """The reason for a Snakemake of its own; None for a fork. Later evidence is not looked for once there is some."""
    match mode:
        case RunBlocks.FORK:
            return None
        case RunBlocks.NEW:
            return Difference(DifferenceKind.ASKED, setting)
        case RunBlocks.AUTO:
            return next(iter(differences), None)
