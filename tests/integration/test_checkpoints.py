"""A real tool that writes checkpoints, IQ-TREE (https://iqtree.github.io/doc), is killed twice and continues from them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from ..conftest import command, residue, run, wait_until, write_workflow

ALIGNMENT = Path("/usr/share/doc/iqtree/examples/example.phy")  # 17 taxa, 1998 sites; from IQ-TREE itself
REPLICATES = 6


def trees(workdir: Path) -> int:
    """The number of finished bootstrap replicates."""
    found = list(workdir.glob(".snakemake/forge/checkpoints/*/run.boottrees"))
    return len(found[0].read_text().splitlines()) if found else 0


def pid_of_tool(workdir: Path) -> int:
    """The process id of the IQ-TREE in this directory."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if os.readlink(process / "cwd") == str(workdir) and (process / "comm").read_text().startswith("iqtree2"):
                    return int(process.name)
            except OSError:
                continue
    raise AssertionError("IQ-TREE does not run")


@pytest.mark.busy
def test_iqtree_goes_on_from_its_checkpoint(workdir: Path) -> None:
    assert shutil.which("iqtree2"), "IQ-TREE is not installed: apt-get install iqtree"
    shutil.copy(ALIGNMENT, workdir / "in.phy")
    write_workflow(workdir, f"""
        rule tree:
            input: "in.phy"
            output: "tree.nwk"
            retries: 1
            shell:
                "iqtree2 -s {{input}} -m JC -b {REPLICATES} -T 1 --seed 1 --cptime 1 --prefix $FORGE_CHECKPOINT_DIR/run; "
                "cp $FORGE_CHECKPOINT_DIR/run.contree {{output}}"
        """)
    with subprocess.Popen(command("forge", "-j1"), cwd=workdir, text=True, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as snakemake:
        wait_until(lambda: trees(workdir) >= 1, snakemake)
        os.kill(pid_of_tool(workdir), signal.SIGKILL)
        wait_until(lambda: trees(workdir) >= 3, snakemake)  # in Snakemake's second try
        snakemake.kill()
        snakemake.communicate()
    subprocess.run(command("forge", "--unlock"), cwd=workdir, check=True, capture_output=True)
    wait_until(lambda: "process" not in str(residue(workdir)))  # Forge ends what it has started

    result = run(workdir, "-j1")
    assert result.code == 0, result.output
    attempts = result.attempts("tree")
    assert [(a["attempt"], a["outcome"]) for a in attempts][::2] == [(1, "failed"), (1, "succeeded")]
    logs = [Path(a["directory"], "stdout.log").read_text() for a in attempts]
    assert ["CHECKPOINT: Resuming analysis" in log for log in logs] == [False, True, True]
    assert f"START BOOTSTRAP REPLICATE NUMBER {REPLICATES}" in logs[2]
    for log in logs[1:]:
        assert "START BOOTSTRAP REPLICATE NUMBER 1\n" not in log, "finished replicates are not computed again"
    assert result.read("tree.nwk").count("(") > 10
    assert os.listdir(workdir / ".snakemake/forge/checkpoints") == []
    assert residue(workdir) == []
