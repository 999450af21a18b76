"""The settings as Snakemake makes them, once it knows that Forge is the chosen executor.

Snakemake imports this module at every start, so that it imports little.
"""

from dataclasses import dataclass

from .settings import ExecutorSettings


@dataclass
class ChosenSettings(ExecutorSettings):
    """The settings of a run or dry run with Forge: Snakemake makes those of the chosen executor only."""

    def __post_init__(self) -> None:
        """Begin to note what the Snakefile does while it is read, and have dry runs check as runs do."""
        from .dry_run import check_dry_runs
        from .parsing import begin

        begin()
        check_dry_runs(self)
