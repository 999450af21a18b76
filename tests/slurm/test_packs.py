"""Packs in which things go wrong: one job's bad luck is not the others'."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.test_slurm import Session

pytestmark = [pytest.mark.host, pytest.mark.timeout(1200)]

PACKED = """
    rule all:
        input: expand("{n}.txt", n=range(6))
    rule short:
        output: "{n}.txt"
        resources: mem_mb=60, runtime=5
        shell: "echo ${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}} >> signs/{wildcards.n};"
               " case {wildcards.n} in 2) echo half > {output}; while [ ! -e signs/go ]; do sleep 0.1; done;; esac; echo $SLURM_JOB_ID > {output}"
"""


@pytest.fixture
def session(cluster: Cluster, workdir: Path) -> Session:
    return Session(cluster, workdir)


def test_a_pack_that_reaches_its_time_limit_fails_no_job_that_is_within_its_own(session: Session) -> None:
    session.start(PACKED, "--forge-slurm-pack", "6")
    held = session.wait_file("signs/2").strip()
    session.cluster.run("scontrol", "update", f"jobid={held}", "EndTime=now+1")
    session.wait(lambda: (session.directory / "signs" / "2").read_text().split() != [held])
    (session.directory / "signs" / "go").touch()
    done = session.finish()
    assert done.code == 0, done.output
    runs = {n: (session.directory / "signs" / str(n)).read_text().split() for n in range(6)}
    assert {n: len(jobs) for n, jobs in runs.items()} == {0: 1, 1: 1, 2: 2, 3: 1, 4: 1, 5: 1}
    assert runs[2][1] not in {runs[3][0], runs[4][0], runs[5][0]}, "it runs alone"
    found = [attempt for attempt in done.attempts("short") if attempt["wildcards"]["n"] == "2"]
    assert sorted(attempt["outcome"] for attempt in found) == ["lost", "succeeded"]
    assert {Path(attempt["directory"]).name.partition(".")[2] for attempt in found} == {"", "submission1"}
    assert not list(session.directory.glob(".snakemake/forge/staging/*"))
