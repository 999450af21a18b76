"""Packs with failures: the failure of one job does not affect the others."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.backends.slurm import fence
from tests.slurm.cluster import Cluster
from tests.slurm.test_slurm import Session

pytestmark = pytest.mark.host

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
    assert runs[2][1] not in {runs[3][0], runs[4][0], runs[5][0]}, "its second try runs alone"
    found = [attempt for attempt in done.attempts("short") if attempt["wildcards"]["n"] == "2"]
    assert sorted(attempt["outcome"] for attempt in found) == ["lost", "succeeded"]
    assert {Path(attempt["directory"]).name.partition(".")[2] for attempt in found} == {"", "submission1"}
    assert not list(session.directory.glob(".snakemake/forge/staging/*"))


def test_a_pack_that_slurm_refuses_is_submitted_job_by_job(session: Session) -> None:
    """The partition's limit of an hour admits a job of 60 minutes, but not a pack of several."""
    session.start(PACKED.replace("runtime=5", "runtime=60"), "--forge-slurm-pack", "6")
    (session.directory / "signs" / "go").touch()
    done = session.finish()
    assert done.code == 0, done.output
    assert "(jobs of rule short as a pack); it gets them one by one." in done.output
    assert len({done.read(f"{n}.txt") for n in range(6)}) == 6


def test_packs_while_the_controller_is_away(session: Session) -> None:
    """Running jobs continue and report their ends; jobs that become ready are submitted later."""
    session.start(PACKED.replace('input: expand("{n}.txt"', 'input: expand("{n}.after"') + """
    rule after:
        input: "{n}.txt"
        output: "{n}.after"
        resources: runtime=5
        shell: "cp {input} {output}"
    """, "--forge-slurm-pack", "6")
    session.wait_file("signs/2")
    session.cluster.end("slurmctld")  # an orderly end: after SIGKILL the controller may run jobs twice and drain its nodes
    (session.directory / "signs" / "go").touch()
    session.wait(lambda: "6 of 13 steps" in session.output() and "does not answer" in session.output())
    session.cluster.start_controller()
    done = session.finish()
    assert done.code == 0, done.output
    assert "answers again" in done.output
    assert [attempt["outcome"] for attempt in done.attempts()] == ["succeeded"] * 12
    assert {len((session.directory / "signs" / str(n)).read_text().split()) for n in range(6)} == {1}, "no job ran twice"
    session.cluster.await_idle()


def test_the_process_of_a_pack_dies_with_one_job_and_no_other(session: Session) -> None:
    """One process prepares the node for the pack; if it dies, another one runs the next job."""
    session.start(PACKED.replace("range(6)", "range(24)"), "--forge-slurm-pack", "12")
    held = session.wait_file("signs/2").strip()

    def running() -> list[str]:
        attempts = session.directory.glob(".snakemake/forge/runs/*/slurm/b*/*.*")
        return [str(attempt) for attempt in attempts if fence.latest(str(attempt)) > 0 and fence.holder(str(attempt)) is None]

    alone: list[str] = []  # job 2, which waits; jobs of the other pack begin and end beside it

    def is_alone() -> bool:
        alone[:] = running()
        return len(alone) == 1

    session.wait(is_alone)
    process = fence.process_of(alone[0], 1)
    assert process is not None
    os.kill(process, signal.SIGKILL)
    done = session.finish()
    found = {attempt["wildcards"]["n"]: attempt for attempt in done.attempts("short")}
    assert {n: attempt["outcome"] for n, attempt in found.items()} == {str(n): "succeeded" for n in range(24)} | {"2": "lost"}, done.output
    assert {len((session.directory / "signs" / str(n)).read_text().split()) for n in range(24)} == {1}, "no job ran twice"
    prepared: dict[str, set[str]] = {}
    for attempt in found.values():
        plan = json.loads((Path(attempt["directory"]) / "spec.json").read_text())
        prepared.setdefault(attempt["slurm_job"], set()).add(plan["scratch_base"])
    assert {job for job, places in prepared.items() if len(places) > 1} <= {held}, "prepared once for a pack, and again after the kill"
    assert sum(map(len, prepared.values())) < len(found), "some jobs were packed"
    assert not list(session.directory.glob(".snakemake/forge/staging/*"))
