"""Snakemake's Python API: many workflows in one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ..conftest import DEADLINE, residue, write_workflow

PROGRAM = """
import logging, os, socket
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import OutputSettings, Quietness, ResourceSettings
from snakemake_executor_plugin_forge import ExecutorSettings

kept = [socket.socketpair() for _ in range(15)]  # with numbers that Forge's own files would get in its processes
for end in (end for pair in kept for end in pair):
    logging.getLogger().addHandler(logging.StreamHandler(end.makefile("w")))
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


def test_a_run_leaves_no_descriptor_open_and_writes_to_none_of_the_program(workdir: Path) -> None:
    write_workflow(workdir, """
        rule all:
            input: "a.txt", "b.txt"
        rule a:
            output: "a.txt"
            shadow: "minimal"  # Snakemake logs when it renders the command
            shell: "echo a > {output}"
        rule b:
            output: "b.txt"
            run:
                import logging
                with open(output[0], "w") as file:
                    file.write("b")
                    logging.warning("not into the output")
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
