"""Snakemake's executor of dry runs, with the checks of a run of Forge.

For a dry run, Snakemake makes only the settings of the chosen executor (since 9.27; before, not even them), and takes
its own executor from the registry of plugins. The settings put this one there. It imports little: they are also made
for ``--list`` or ``--unlock``.
"""

from __future__ import annotations

from typing import Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import AbstractExecutor
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

from ..spec.errors import ForgeError

_NAME = "dryrun"


def check_dry_runs(settings: Any) -> None:
    """Have dry runs check as a run with these settings would."""
    plugin = ExecutorPluginRegistry().plugins.get(_NAME)
    if plugin is not None:
        plugin.executor = _checking(getattr(plugin.executor, "unchecked", plugin.executor), settings)


def leave_dry_runs() -> None:
    """Have later dry runs of this process check nothing: the settings were those of a run."""
    plugin = ExecutorPluginRegistry().plugins.get(_NAME)
    if plugin is not None:
        plugin.executor = getattr(plugin.executor, "unchecked", plugin.executor)


def _checking(executor: type[AbstractExecutor], settings: Any) -> type[AbstractExecutor]:
    class Checking(executor):  # type: ignore[misc]
        """Refuses what a run would refuse, and ends with the warnings of a run."""

        unchecked = executor

        def __init__(self, *arguments: Any, **options: Any) -> None:
            """Check, as far as that needs no sandbox.

            Raises:
                WorkflowError: as a run would.
            """
            super().__init__(*arguments, **options)
            from ..kernel.imports import OwnImports

            with OwnImports():
                from .ahead import check_as_a_run, warnings
            jobs = [job for job in self.dag.needrun_jobs() if not job.is_group() and not job.rule.norun]
            self._warnings = list(warnings(self.workflow, jobs))
            if self.workflow.output_settings.quiet:  # Snakemake may end at once
                self._warn()
            try:
                check_as_a_run(self.workflow, settings, jobs)
            except ForgeError as error:
                self._warn()
                raise WorkflowError(str(error)) from None

        def shutdown(self) -> None:
            """Warn below the list of the jobs, where it is seen."""
            super().shutdown()
            self._warn()

        def _warn(self) -> None:
            said, self._warnings = self._warnings, []
            for warning in said:
                self.logger.warning(f"Forge: {warning}")

    return Checking
