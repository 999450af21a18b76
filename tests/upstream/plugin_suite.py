"""Snakemake's tests for executor plugins, ``snakemake.common.tests``, for Forge; run by __main__.py."""

import snakemake.common.tests

from snakemake_executor_plugin_forge.plugin.settings import ExecutorSettings


class TestForge(snakemake.common.tests.TestWorkflowsLocalStorageBase):  # type: ignore[misc]
    """Tests of a simple workflow and of one with a group."""

    __test__ = True

    def get_executor(self) -> str:
        """The executor's name."""
        return "forge"

    def get_executor_settings(self) -> ExecutorSettings:
        """The default settings."""
        return ExecutorSettings()
