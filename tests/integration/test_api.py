"""Snakemake's Python API: many workflows in one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ..conftest import DEADLINE, residue, write_workflow

PROGRAM = """
import os
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import OutputSettings, Quietness, ResourceSettings
from snakemake_executor_plugin_forge import ExecutorSettings

for number in range(4):
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        resources, directory = ResourceSettings(cores=2), Path(f"run{number}")
        workflow = api.workflow(resource_settings=resources, snakefile=Path("Snakefile"), workdir=directory)
        workflow.dag().execute_workflow(executor="forge", executor_settings=ExecutorSettings() if number else None)
    print(len(os.listdir("/proc/self/fd")))
with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:  # not with Forge, which would refuse it
    workflow = api.workflow(resource_settings=ResourceSettings(cores=2), snakefile=Path("Large"))
    workflow.dag().execute_workflow(executor="dryrun")
"""


def test_a_run_leaves_no_descriptor_open(workdir: Path) -> None:
    write_workflow(workdir, """
        rule all:
            input: "a.txt", "b.txt"
        rule a:
            output: "a.txt"
            shell: "echo a > {output}"
        rule b:
            output: "b.txt"
            run: open(output[0], "w").write("b")
        """)
    (workdir / "Large").write_text('rule a:\n    output: "x"\n    resources: mem_mb=10**9\n    shell: "true"\n')
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=workdir, capture_output=True, text=True, check=False,
                          stdin=subprocess.DEVNULL, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr
    for number in range(4):
        assert (workdir / f"run{number}" / "b.txt").read_text() == "b"
        assert residue(workdir / f"run{number}") == []
    counts = [int(line) for line in done.stdout.split()]
    assert len(counts) == 4
    assert len(set(counts)) == 1, counts
