"""What Snakemake loads at every start, and what the launcher must never load."""

from __future__ import annotations

import subprocess
import sys


def _modules(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"],
                          capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_launcher_loads_neither_snakemake_nor_its_interfaces() -> None:
    loaded = _modules("import snakemake_executor_plugin_forge.backends.launcher")
    assert not [name for name in loaded if name.split(".")[0].startswith("snakemake") and
                not name.startswith("snakemake_executor_plugin_forge")]


def test_the_face_loads_no_part_of_the_engine() -> None:
    loaded = _modules("from snakemake_executor_plugin_forge import Executor, ExecutorSettings, common_settings")
    ours = {n.removeprefix("snakemake_executor_plugin_forge.") for n in loaded if "plugin_forge." in n}
    assert ours == {"executor", "settings", "errors"}


def test_the_command_line_loads_neither_snakemake_nor_rich() -> None:
    loaded = _modules("import snakemake_executor_plugin_forge.cli.main")
    assert "snakemake" not in loaded
    assert "rich" not in loaded
