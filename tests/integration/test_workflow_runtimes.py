"""workflows/runtimes: rules in a conda environment, an image and a venv, in one run on real data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import DEADLINE, FORGE, Result, command, residue

WORKFLOW = Path(__file__).parents[2] / "workflows" / "runtimes"
NEEDED = ("podman", "mmdebstrap", "samtools", "bcftools")

pytestmark = [pytest.mark.busy, pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, NEEDED)),
    reason=f"needs root and {', '.join(NEEDED)}: apt-get install podman runc mmdebstrap samtools bcftools",
)]


def test_three_kinds_of_runtimes_in_one_run(workdir: Path) -> None:
    subprocess.run([sys.executable, WORKFLOW / "prepare.py", workdir], check=True, capture_output=True, timeout=DEADLINE)
    arguments = ["-j2", "--snakefile", str(WORKFLOW / "Snakefile"), "--forge-runtimes-dir", str(workdir / "store")]
    done = subprocess.run(
        command("forge", *arguments), cwd=workdir, capture_output=True, text=True, check=False, timeout=DEADLINE
    )
    assert done.returncode == 0, done.stderr
    table = dict(line.split("\t") for line in (workdir / "results" / "summary.tsv").read_text().splitlines())
    assert table["calls"] == "11"  # as in workflows/variants, with the same programs
    assert 0 < int(table["covered calls"]) <= 11
    assert table["own interpreter"] == "yes"
    attempts = Result(0, "", workdir).attempts()
    used = {a["rule"]: a["runtime"] for a in attempts}
    assert used == {"conda_sort": "tools", "conda_call": "tools", "image_depth": "bed", "image_covered": "bed",
                    "python_summary": "py"}
    assert {a["isolation"]["network"] for a in attempts} == {"off"}
    run = json.loads((Path(attempts[0]["directory"]).parent / "run.json").read_text())
    kinds = {described["kind"]: described["packages"] for described in run["runtimes"].values()}
    assert kinds.keys() == {"conda", "container", "venv"}
    assert kinds["conda"] == {"bcftools": "1.16 0", "samtools": "1.16 0"}
    assert "pysam" in kinds["venv"]
    # A shell in a job's sandbox has the job's software, and its files do not stay.
    for job, program in (("conda_sort sample=HG00101", "samtools"), ("image_depth sample=HG00101", "bedtools"),
                         ("python_summary", "python")):
        words = [*FORGE, "shell", *job.split(), "--run",
                 f"command -v {program}; echo $FORGE_RUNTIME $LC_ALL; bash $FORGE_JOB_DIR/command.sh && echo again"]
        shown = subprocess.run(words, cwd=workdir, capture_output=True, text=True, check=False, timeout=DEADLINE)
        place, name, again = shown.stdout.splitlines()
        runtime = used[job.split()[0]]
        assert (name.split()[0], again) == (runtime, "again"), shown.stderr
        assert place == "/usr/bin/bedtools" if runtime == "bed" else place.startswith(f"{workdir}/store/")
        assert runtime != "tools" or name == "tools C.UTF-8"
    assert residue(workdir) == []
