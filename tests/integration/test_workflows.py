"""Workflows on real data: killed at a random point, resumed, failed by a limit, mended as ``why`` says, verified, reported, checked."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ..conftest import DEADLINE, command, ending, forge, residue, wait_until
from ..packages import install

WORKFLOWS = Path(__file__).parents[2] / "workflows"
PROGRAMS = {"prodigal": "prodigal", "mmseqs": "mmseqs2", "mafft": "mafft", "fasttree": "fasttree"}
GENOMES = Path("/usr/share/doc/kleborate/examples/data")
SEED = int(os.environ.get("FORGE_CRASH_SEED", "21"))


def _succeeded(directory: Path) -> Counter[str]:
    verdicts = (json.loads(path.read_text()) for path in directory.glob(".snakemake/forge/runs/*/*/verdict.json"))
    return Counter(f"{v['rule']} {v['wildcards']}" for v in verdicts if v["outcome"] == "succeeded")


# The test builds the venvs of the last two, as a user's first run does; that of singlecell takes too long for each run of the tests.
@pytest.mark.busy
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "others", "leaf", "too_little"), [
    ("pangenome", 18, "picture", 40),
    ("expression", 8, "volcano", 50),
    pytest.param("singlecell", 15, "summarise", 60, marks=pytest.mark.soak),
])
def test_killed_resumed_mended(name: str, others: int, leaf: str, too_little: int, workdir: Path) -> None:
    if name == "pangenome" and (not GENOMES.is_dir() or not all(Path("/usr/bin", program).exists() for program in PROGRAMS)):
        assert install([*PROGRAMS.values(), "kleborate-examples"]) == ""
    words = ["-j2", "--keep-going", "--snakefile", str(WORKFLOWS / name / "Snakefile"), "--config", "size=small",
             "--forge-config", str(WORKFLOWS / name / "forge.yaml"), "--set-resources", f"{leaf}:mem_mb={too_little}",
             "--forge-runtimes-dir", str(workdir / "store")]
    kill_after = random.Random(SEED).randrange(1, others)
    print(f"FORGE_CRASH_SEED={SEED}: killed after {kill_after} jobs")
    with (workdir / "output").open("wb") as output:
        process = subprocess.Popen(command("forge", *words), cwd=workdir, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    with ending(process):
        wait_until(lambda: _succeeded(workdir).total() >= kill_after, process)
        process.kill()

    failed = forge(workdir, "resume")
    assert failed.returncode == 1, failed.stderr
    assert _succeeded(workdir).total() == others, failed.stderr
    why = forge(workdir, "why", leaf, check=True).stdout
    assert "out of memory" in why
    change = re.search(rf"--set-resources {leaf}:mem_mb=\d+", why)
    assert change, why
    mended = forge(workdir, "resume", *change[0].split())
    assert mended.returncode == 0, mended.stderr
    assert set(_succeeded(workdir).values()) == {1}, "a finished job was run again"
    assert forge(workdir, "verify").returncode == 0
    forge(workdir, "report", "--all", check=True)
    assert leaf in (workdir / "forge-report.html").read_text()
    checked = subprocess.run([sys.executable, WORKFLOWS / name / "check.py", workdir / "results"], capture_output=True, text=True,
                             check=False, timeout=DEADLINE)
    assert checked.returncode == 0, checked.stderr
    print(checked.stdout)
    assert residue(workdir) == []
    shutil.rmtree(workdir / "store", ignore_errors=True)  # pytest keeps the rest
