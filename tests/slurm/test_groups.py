"""``group:`` on a real cluster: the members of one Slurm job run side by side, each with its own limits and verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import FORGE
from tests.slurm.cluster import Cluster
from tests.slurm.test_slurm import Session, by_rule

pytestmark = pytest.mark.host


@pytest.fixture
def session(cluster: Cluster, workdir: Path) -> Session:
    return Session(cluster, workdir)


DIAMOND = """
    rule all:
        input: "d.txt", "bad.txt", "fine.txt", "piped.txt"
    rule a:
        output: "a.txt"
        group: "diamond"
        resources: mem_mb=100, runtime=10
        shell: "echo $SLURM_JOB_ID > {output}"
    rule b:
        input: "a.txt"
        output: "b.txt"
        group: "diamond"
        threads: 2
        resources: mem_mb=150, runtime=20
        shell: "touch signs/b; while [ ! -e signs/c ]; do sleep 0.1; done; echo $SLURM_JOB_ID $FORGE_MEMORY_BYTES > {output}"
    rule c:
        input: "a.txt"
        output: "c.txt"
        group: "diamond"
        resources: mem_mb=100, runtime=10
        shell: "touch signs/c; while [ ! -e signs/b ]; do sleep 0.1; done; echo $SLURM_JOB_ID $FORGE_MEMORY_BYTES > {output}"
    rule d:
        input: "b.txt", "c.txt"
        output: "d.txt"
        group: "diamond"
        resources: mem_mb=60, runtime=20
        shell: "echo $SLURM_JOB_ID > signs/d; while [ ! -e signs/go ]; do sleep 0.1; done; cat a.txt {input} > {output}"
    rule seed:
        output: "seed.txt"
        group: "uneven"
        resources: mem_mb=100
        shell: "echo $SLURM_JOB_ID > {output}"
    rule bad:
        input: "seed.txt"
        output: "bad.txt"
        group: "uneven"
        resources: mem_mb=80
        shell: "while [ ! -e signs/fine ]; do sleep 0.1; done; python3 -c 'x = bytearray(150 << 20)'"
    rule fine:
        input: "seed.txt"
        output: "fine.txt"
        group: "uneven"
        resources: mem_mb=300
        shell: "touch signs/fine; while [ ! -e signs/go ]; do sleep 0.1; done; cat {input} > {output}; echo $SLURM_JOB_ID >> {output}"
    rule says:
        output: pipe("fifo")
        resources: mem_mb=60
        shell: "echo through, in $SLURM_JOB_ID > {output}"
    rule hears:
        input: "fifo"
        output: "piped.txt"
        resources: mem_mb=60
        shell: "cat {input} > {output}; echo heard, in $SLURM_JOB_ID >> {output}"
"""


def test_a_group_is_one_slurm_job(session: Session) -> None:
    session.start(DIAMOND)
    number = session.wait_file("signs/d").strip()
    job = session.cluster.run("scontrol", "-o", "show", "job", number).stdout
    session.wait(lambda: any(a["rule"] == "bad" and a["outcome"] for a in attempts(session)))
    (session.directory / "signs" / "go").touch()
    done = session.finish()
    found = by_rule(done)
    assert {rule: attempt["outcome"] for rule, attempt in found.items()} == dict.fromkeys(
        ("a", "b", "c", "d", "seed", "fine", "says", "hears"), "succeeded"
    ) | {"bad": "oom"}, done.output
    first, *others = done.read("d.txt").split()
    assert others == [first, str(150 << 20), first, str(100 << 20)], "one Slurm job, and each member has its own limit"
    assert "NumCPUs=3 " in job, job
    assert "MinMemoryNode=250M" in job, job
    assert "TimeLimit=00:50:00" in job, job
    assert "Comment=forge_group_diamond:_a" in job.replace(" ", "_"), job
    assert found["bad"]["evidence"]["scope"] == "job"
    assert {found[rule]["slurm_job"] for rule in "abcd"} == {found["b"]["slurm_job"]}
    why = Session(session.cluster, session.directory)
    why.execute([*FORGE, "why", "bad"], {})
    assert f"Slurm job {found['bad']['slurm_job']}" in why.finish().output
    assert len(set(done.read("fine.txt").split())) == 1, "its sibling's end did not affect it"
    piped = done.read("piped.txt").split()
    assert piped[2] == piped[5], done.read("piped.txt")
    session.wait(lambda: not any(row.endswith(("RUNNING", "PENDING", "COMPLETING")) for row in session.cluster.queue()))


def attempts(session: Session) -> list[dict[str, object]]:
    found = []
    for path in session.directory.glob(".snakemake/forge/runs/*/*/verdict.json"):
        spec = json.loads((path.parent / "spec.json").read_text())
        found.append({"rule": spec["rule"], "outcome": json.loads(path.read_text())["outcome"]})
    return found


RESUMED = """
    rule all:
        input: "last.txt"
    rule first:
        output: "first.txt"
        group: "chain"
        shell: "echo $SLURM_JOB_ID >> signs/first; while [ ! -e signs/go ]; do sleep 0.1; done; echo $SLURM_JOB_ID > {output}"
    rule beside:
        output: "beside.txt"
        group: "chain"
        shell: "echo $SLURM_JOB_ID >> signs/beside; echo $SLURM_JOB_ID > {output}"
    rule last:
        input: "first.txt", "beside.txt"
        output: "last.txt"
        group: "chain"
        shell: "cat {input} > {output}; echo $SLURM_JOB_ID >> {output}"
"""


def test_members_of_a_killed_snakemake_are_taken_over(session: Session) -> None:
    session.start(RESUMED)
    session.wait_file("signs/first")
    session.wait_file("signs/beside")
    session.kill()
    session.execute([*FORGE, "resume"], {})
    session.wait(lambda: "Slurm job(s) that wait or run" in session.output())
    (session.directory / "signs" / "go").touch()
    done = session.finish()
    assert done.code == 0, done.output
    assert [len((session.directory / "signs" / name).read_text().split()) for name in ("first", "beside")] == [1, 1], (
        "nothing ran twice"
    )
    first, beside, last = done.read("last.txt").split()
    assert first == beside != last, "the old worker takes no orders from others"
    session.wait(lambda: not any(row.endswith(("RUNNING", "PENDING", "COMPLETING")) for row in session.cluster.queue()))


FAULTS = """
    rule all:
        input: "u.txt", "v.txt", "held.txt", "later.txt", expand("big{n}.txt", n=range(3))
    rule serves:
        output: service("place/socket")
        group: "served"
        resources: mem_mb=60
        shell: "echo $SLURM_JOB_ID > {output}; while true; do sleep 0.1; done"
    rule u:
        input: "place/socket"
        output: "u.txt"
        group: "served"
        resources: mem_mb=60
        shell: "cat {input} > {output}; echo $SLURM_JOB_ID >> {output}"
    rule v:
        input: "u.txt"
        output: "v.txt"
        group: "served"
        resources: mem_mb=60
        shell: "cat {input} > {output}; echo $SLURM_JOB_ID >> {output}"
    rule seed:
        output: "seed.txt"
        group: "cancelled"
        resources: mem_mb=60
        shell: "touch {output}"
    rule held:
        input: "seed.txt"
        output: "held.txt"
        group: "cancelled"
        resources: mem_mb=60
        shell: "echo ${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}} > signs/held; sleep 600; touch {output}"
    rule outside:
        output: "outside.txt"
        shell: "while [ ! -e signs/go ]; do sleep 0.1; done; touch {output}"
    rule later:
        input: "seed.txt", "outside.txt"
        output: "later.txt"
        group: "cancelled"
        resources: mem_mb=60
        shell: "echo $SLURM_JOB_ID > {output}"
    rule big:
        output: "big{n}.txt"
        group: "big"
        resources: mem_mb=1800
        shell: "echo $SLURM_JOB_ID > {output}"
"""


def test_what_a_group_survives(session: Session) -> None:
    """A group survives the early end of a service, the cancellation of its Slurm job, and a sum that no node has."""
    session.start(FAULTS, "--group-components", "big=3")
    held = session.wait_file("signs/held").strip()
    assert session.cluster.run("scancel", held).returncode == 0
    session.wait(lambda: any(a["rule"] == "held" for a in attempts(session)))
    (session.directory / "signs" / "go").touch()
    done = session.finish()
    outcomes = {rule: attempt["outcome"] for rule, attempt in by_rule(done).items()}
    assert outcomes == dict.fromkeys(("u", "v", "seed", "outside", "later", "big"), "succeeded") | {
        "serves": "cancelled",
        "held": "cancelled",
    }, done.output
    assert len(set(done.read("v.txt").split())) == 1, "the Slurm job outlived its service"
    assert "group big cannot be one Slurm job" in done.output
    assert len({done.read(f"big{n}.txt") for n in range(3)}) == 3
    session.wait(lambda: not any(row.endswith(("RUNNING", "PENDING", "COMPLETING")) for row in session.cluster.queue()))
