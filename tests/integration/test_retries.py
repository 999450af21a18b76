"""Jobs that run again, by Forge with more memory or by Snakemake for other failures, and the files they keep for the next try."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from .. import ordinary
from ..conftest import Result, residue, run, write_workflow

pytestmark = pytest.mark.slow

MIB = 2**20
HOLD = "import sys, time; held = bytearray(int(sys.argv[1]) << 20); time.sleep(float(sys.argv[2]))"
CHECKPOINTS = ".snakemake/forge/checkpoints"


def hold(mebibytes: int, seconds: float = 0) -> str:
    return f"{sys.executable} -S -c '{HOLD}' {mebibytes} {seconds}"


def test_more_memory_for_jobs_that_were_killed_for_it_and_for_no_others(workdir: Path) -> None:
    write_workflow(workdir, f"""
        rule all:
            input: "once.out", "attempt.out", "open.out", "python.out"
        rule once:
            output: "once.out"
            resources: mem_mb=60
            shell: "echo {{resources.mem_mb}} $FORGE_MEMORY_BYTES > {{output}}; {hold(90)}"
        rule never:
            output: "never.out"
            resources: mem_mb=60
            shell: "touch {{output}}; {hold(1000)}"
        rule attempt:
            output: "attempt.out"
            retries: 1
            resources: mem_mb=lambda wildcards, attempt: 60 * attempt
            shell: "echo {{resources.mem_mb}} > {{output}}; {hold(90)}; [ {{resources.mem_mb}} = 120 ]"
        rule open:
            output: "open.out", directory("open_dir")
            resources: mem_mb=60, forge_files="open"
            shell: "test ! -e {{output[0]}}; mkdir -p {{output[1]}}; test ! -e {{output[1]}}/part; "
                   "touch {{output[1]}}/part; echo whole > {{output[0]}}; {hold(90)}"
        rule python:
            output: "python.out"
            resources: mem_mb=100
            run:
                held = bytearray(150 << 20)
                open(output[0], "w").write(str(resources.mem_mb))
        rule fails:
            output: "fails.out"
            retries: 1
            resources: mem_mb=100
            shell: "exit 3"
        rule source:
            output: pipe("piped")
            resources: mem_mb=60
            shell: "{hold(90)}; echo x > {{output}}"
        rule sink:
            input: "piped"
            output: "sink.out"
            shell: "cat {{input}} > {{output}}"
        """)
    result = run(workdir, "-j4", "-k", "--forge-oom-retries", "2", "--forge-oom-max", "200MiB",
                 "all", "never.out", "fails.out", "sink.out")
    assert result.code != 0

    def tried(rule: str) -> list[tuple[int, int, str, int]]:
        return [(a["attempt"], a["retry"], a["outcome"], a["limits"]["memory_bytes"] // MIB)
                for a in result.attempts(rule)]

    assert tried("once") == [(1, 0, "oom", 60), (1, 1, "succeeded", 120)], result.output
    assert result.read("once.out") == f"60 {120 * MIB}\n", "the rule sees its request, the job its limit"
    assert tried("never") == [(1, 0, "oom", 60), (1, 1, "oom", 120), (1, 2, "oom", 200)], "up to --forge-oom-max"
    assert not (workdir / "never.out").exists()
    assert tried("attempt") == [(1, 0, "oom", 60), (1, 1, "failed", 120), (2, 0, "succeeded", 120)]
    assert tried("open") == [(1, 0, "oom", 60), (1, 1, "succeeded", 120)]
    assert tried("python") == [(1, 0, "oom", 100), (1, 1, "succeeded", 200)]
    assert result.read("python.out") == "100"
    assert tried("fails") == [(1, 0, "failed", 100), (2, 0, "failed", 100)]
    assert tried("source") == [(1, 0, "oom", 60)], "the other end of the pipe has seen it die"
    for rule in ("once", "never", "open", "python"):
        attempts = result.attempts(rule)
        before = [None, *(os.path.basename(a["directory"]) for a in attempts[:-1])]
        assert [a["retry_of"] for a in attempts] == before
    assert "rule once ran out of memory with 60.0 MiB; it is run again with 120.0 MiB, 1 of 2" in result.output
    assert residue(workdir) == []


def test_a_raised_job_has_room_for_its_memory(workdir: Path) -> None:
    """Three jobs of 60 MiB fit into the run, three of 120 MiB do not: they would exceed the run's limit together."""
    write_workflow(workdir, f"""
        rule all:
            input: expand("{{n}}.out", n=range(3))
        rule grow:
            output: "{{n}}.out"
            resources: mem_mb=60
            shell: "{hold(90, 1)}; touch {{output}}"
        """)
    result = run(workdir, "-j4", "--forge-oom-retries", "1", "--forge-run-memory", "200MiB")
    assert result.code == 0, result.output
    found = [(a["retry"], a["outcome"]) for a in result.attempts("grow")]
    assert sorted(found) == [(0, "oom")] * 3 + [(1, "succeeded")] * 3
    assert residue(workdir) == []


def run_as(user: str, directory: Path, *arguments: str) -> Result:
    """Run the workflow as the user who runs the tests, or as an ordinary user."""
    if user == "self":
        return run(directory, *arguments)
    ordinary.hand_over(directory)
    return run(directory, *arguments, before=ordinary.prefix(namespaces=user == "ordinary"))


@pytest.mark.parametrize("user", ["self", "ordinary", "without namespaces"] if os.geteuid() == 0 else ["self"])
def test_what_a_job_keeps_for_its_next_try(workdir: Path, user: str) -> None:
    count = "echo x >> $FORGE_CHECKPOINT_DIR/tries; test $(wc -l < $FORGE_CHECKPOINT_DIR/tries) = "
    write_workflow(workdir, f"""
        rule all:
            input: expand("{{policy}}.out", policy=["guard", "strict", "open"]), "python.out", "oom.out"
        rule kept:
            output: "{{policy}}.out"
            wildcard_constraints: policy="guard|strict|open"
            retries: 2
            resources: forge_files=lambda wildcards: wildcards.policy
            shell: "{count}3; echo {CHECKPOINTS}/*; touch {{output}}"
        rule python:
            output: "python.out"
            retries: 1
            run:
                import os
                path = os.path.join(os.environ["FORGE_CHECKPOINT_DIR"], "deep", "tries")
                os.makedirs(os.path.dirname(path), exist_ok=True)
                seen = os.path.exists(path)
                open(path, "w").write("x")
                assert seen
                open(output[0], "w").close()
        rule oom:
            output: "oom.out"
            resources: mem_mb=60
            shell: "{count}2 || {hold(90, 600)}; touch {{output}}"
        rule given_up:
            input: "in.txt"
            output: "given_up.out"
            shell: "{count}2; touch {{output}}"
        """)
    (workdir / "in.txt").write_text("one")
    result = run_as(user, workdir, "-j4", "-k", "--forge-oom-retries", "1", "all", "given_up.out")
    assert result.code != 0
    for policy in ("guard", "strict", "open"):
        outcomes = [a["outcome"] for a in result.attempts("kept") if a["wildcards"]["policy"] == policy]
        assert outcomes == ["failed", "failed", "succeeded"], (policy, result.output)
        (last,) = [a for a in result.attempts("kept") if a["wildcards"]["policy"] == policy][2:]
        seen = Path(last["directory"], "stdout.log").read_text().split()
        assert f"{CHECKPOINTS}/*" not in seen, "its own is seen"
        assert last["isolation"]["files"] == "open" or len(seen) == 1, "the job sees no checkpoint of other jobs"
    assert [a["outcome"] for a in result.attempts("python")] == ["failed", "succeeded"], result.output
    assert [a["outcome"] for a in result.attempts("oom")] == ["oom", "succeeded"]
    (left,) = os.listdir(workdir / CHECKPOINTS)
    assert left.startswith("given_up-")

    (workdir / "in.txt").write_text("another")
    again = run_as(user, workdir, "-j4", "given_up.out")
    assert again.code != 0, "a checkpoint of other inputs must not be used"
    assert "its checkpoint was not used" in again.output
    assert (workdir / CHECKPOINTS / left / "tries").read_text() == "x\n"
    assert run_as(user, workdir, "-j4", "given_up.out").code == 0
    assert os.listdir(workdir / CHECKPOINTS) == []
    assert residue(workdir) == []
