"""Workflows on real data: killed at a random point, resumed, failed at a limit, mended as ``why`` says, verified, reported, checked."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.kernel.tree import remove_tree

from ..conftest import DEADLINE, FORGE, command, ending, residue, wait_until
from ..packages import install

WORKFLOWS = Path(__file__).parents[2] / "workflows"
PROGRAMS = {"prodigal": "prodigal", "mmseqs": "mmseqs2", "mafft": "mafft", "fasttree": "fasttree"}
GENOMES = Path("/usr/share/doc/kleborate/examples/data")
STORE = Path.home() / ".cache" / "forge-tests" / "runtimes"
SEED = int(os.environ.get("FORGE_CRASH_SEED", "21"))


def _succeeded(directory: Path) -> Counter[str]:
    verdicts = (json.loads(path.read_text()) for path in directory.glob(".snakemake/forge/runs/*/*/verdict.json"))
    return Counter(f"{v['rule']} {v['wildcards']}" for v in verdicts if v["outcome"] == "succeeded")


def _forge(workdir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``snakemake-forge WORDS`` without a DEADLINE: resuming is most of the work."""
    return subprocess.run([*FORGE, *words], cwd=workdir, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def _words(name: str, leaf: str, too_little: int, store: Path) -> list[str]:
    workflow = WORKFLOWS / name
    words = ["-j2", "--keep-going", "--snakefile", str(workflow / "Snakefile"), "--set-resources", f"{leaf}:mem_mb={too_little}"]
    if (catalog := workflow / "forge.yaml").exists():
        return [*words, "--config", "size=small", "--forge-config", str(catalog), "--forge-runtimes-dir", str(store)]
    return [*words, "--config", "tools=pip"]


# The venv of expression stays for later sessions, as it would for a user; each run checks all of its files. The venv of
# singlecell is built in the working directory each time, which takes too long for every run of the tests.
@pytest.mark.busy
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("name", "others", "leaf", "too_little"), [
    ("variants", 37, "draw_coverage", 40),
    ("pangenome", 18, "picture", 40),
    ("expression", 8, "volcano", 50),
    pytest.param("singlecell", 15, "summarise", 60, marks=pytest.mark.soak),
])
def test_killed_resumed_mended(name: str, others: int, leaf: str, too_little: int, workdir: Path) -> None:
    if name == "pangenome" and (not GENOMES.is_dir() or not all(Path("/usr/bin", program).exists() for program in PROGRAMS)):
        assert install([*PROGRAMS.values(), "kleborate-examples"]) == ""
    store = workdir / "store" if name == "singlecell" else STORE
    words = _words(name, leaf, too_little, store)
    if name in ("expression", "singlecell"):
        catalog = str(WORKFLOWS / name / "forge.yaml")
        built = _forge(workdir, "runtimes", "build", name, "--config", catalog, "--runtimes-dir", str(store))
        assert built.returncode == 0, built.stderr
    kill_after = random.Random(SEED).randrange(1, others)
    print(f"FORGE_CRASH_SEED={SEED}: killed after {kill_after} jobs")
    with (workdir / "output").open("wb") as output:
        process = subprocess.Popen(command("forge", *words), cwd=workdir, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    with ending(process):
        wait_until(lambda: _succeeded(workdir).total() >= kill_after, process)
        process.kill()

    failed = _forge(workdir, "resume")
    assert failed.returncode == 1, failed.stderr
    assert _succeeded(workdir).total() == others, failed.stderr
    why = _forge(workdir, "why", leaf).stdout
    assert "out of memory" in why
    change = re.search(rf"--set-resources {leaf}:mem_mb=\d+", why)
    assert change, why
    mended = _forge(workdir, "resume", *change[0].split())
    assert mended.returncode == 0, mended.stderr
    assert set(_succeeded(workdir).values()) == {1}, "a finished job was run again"
    assert _forge(workdir, "verify").returncode == 0
    assert _forge(workdir, "report", "--all").returncode == 0
    assert leaf in (workdir / "forge-report.html").read_text()
    checked = subprocess.run([sys.executable, WORKFLOWS / name / "check.py", workdir / "results"], capture_output=True, text=True,
                             check=False, timeout=DEADLINE)
    assert checked.returncode == 0, checked.stderr
    print(checked.stdout)
    assert residue(workdir) == []
    remove_tree(str(workdir / "store"))  # pytest keeps the rest
