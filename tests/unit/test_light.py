"""Modules that Snakemake loads at every start, and those that the launcher must never load."""

from __future__ import annotations

import subprocess
import sys


def _modules(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"],
                          capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_launcher_loads_neither_snakemake_nor_its_interfaces() -> None:
    loaded = _modules("import snakemake_executor_plugin_forge.workers.launcher")
    assert not [name for name in loaded if name.split(".")[0].startswith("snakemake") and
                not name.startswith("snakemake_executor_plugin_forge")]


def test_the_launcher_loads_nothing_large() -> None:
    """Each job copies the launcher's memory; names and versions of packages would double it."""
    loaded = _modules("import snakemake_executor_plugin_forge.workers.launcher")
    bare = _modules("")  # modules that the environment itself loads
    large = {"importlib.metadata", "email", "zipfile", "tempfile", "threading", "pathlib", "difflib", "subprocess",
             "shutil", "random", "locale"}
    assert not (loaded - bare) & large


def test_a_run_without_a_catalog_loads_no_libraries_for_it() -> None:
    loaded = _modules("import snakemake_executor_plugin_forge.run.engine, snakemake_executor_plugin_forge.plugin.software")
    assert not loaded & {"pydantic", "rattler", "rich"}


def test_the_face_loads_no_part_of_the_engine() -> None:
    loaded = _modules("from snakemake_executor_plugin_forge import Executor, ExecutorSettings, common_settings")
    ours = {n.removeprefix("snakemake_executor_plugin_forge.") for n in loaded if "plugin_forge." in n}
    assert ours == {"plugin", "plugin.executor", "plugin.chosen", "plugin.settings", "spec", "spec.errors"}


def test_the_scheduler_loads_nothing_of_the_executor() -> None:
    loaded = _modules("from snakemake_scheduler_plugin_forge import Scheduler")
    ours = {n.removeprefix("snakemake_scheduler_plugin_forge") for n in loaded if "plugin_forge" in n}
    assert ours == {"", ".scheduler", ".ready_jobs"}
    assert "snakemake" not in loaded


def test_the_logger_loads_nothing_of_the_executor_before_the_first_message() -> None:
    loaded = _modules("from snakemake_logger_plugin_forge import LogHandler, LogHandlerSettings")
    ours = {n.removeprefix("snakemake_logger_plugin_forge") for n in loaded if "plugin_forge" in n}
    assert ours == {"", ".handler", ".settings"}
    assert not loaded & {"snakemake", "rich", "sqlite3"}


def test_the_command_line_loads_neither_snakemake_nor_rich() -> None:
    loaded = _modules("import snakemake_executor_plugin_forge.cli.main")
    assert "snakemake" not in loaded
    assert "rich" not in loaded


def test_where_jobs_are_started_nothing_is_loaded_that_only_reads_records() -> None:
    loaded = _modules("import snakemake_executor_plugin_forge.run.engine, snakemake_executor_plugin_forge.supervisor.supervisor")
    heavy = {"sqlite3", "gzip", "rich", "jinja2", "prometheus_client", "rocrate", "argcomplete"}
    assert not heavy & {name.split(".")[0] for name in loaded}


def test_what_lists_records_does_not_load_what_writes_them() -> None:
    loaded = _modules("import snakemake_executor_plugin_forge.cli.jobs, snakemake_executor_plugin_forge.cli.why")
    assert "snakemake_executor_plugin_forge.record.index" in loaded
    assert not loaded & {"snakemake_executor_plugin_forge.spec.job", "importlib.metadata", "platform"}
