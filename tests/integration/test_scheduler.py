"""``--scheduler forge`` in one workflow with everything that a scheduler must respect, with Forge and the local executor."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from snakemake_executor_plugin_forge.plugin.executor import _slow_choices
from snakemake_scheduler_plugin_forge.snakemake_internals import ChoosingTime

from ..conftest import Result, run, write_workflow

WORKFLOW = """
    import glob

    rule all:
        input: "found.txt", "flaky.txt", "piped.txt", [f"{i}.urgent" for i in range(3)], [f"{i}.plain" for i in range(3)],
               [f"{i}.chained" for i in range(3)], "big.txt"

    rule plain:
        output: "{i}.plain"
        resources: token=1
        shell: "touch {output}"

    rule urgent:
        output: "{i}.urgent"
        priority: 1
        resources: token=1
        shell: "touch {output}"

    rule big:
        output: "big.txt"
        threads: 3
        resources: token=2
        shell: "touch {output}"

    rule begin:
        input: "Snakefile"  # larger than what it makes
        output: temp("{i}.begun")
        resources: token=2
        shell: "echo {wildcards.i} > {output}"

    rule chain:
        input: "{i}.begun"
        output: "{i}.chained"
        resources: token=2
        shell: "ls *.begun > {output}"

    rule flaky:
        output: "flaky.txt"
        retries: 1
        resources: attempt=lambda wildcards, attempt: attempt, token=lambda wildcards, attempt: attempt
        shell: "test {resources.attempt} = 2 && touch {output}"

    rule into_pipe:
        output: pipe("fifo")
        shell: "echo through > {output}"

    rule from_pipe:
        input: "fifo"
        output: "piped.txt"
        shell: "cat {input} > {output}"

    checkpoint find:
        output: directory("found")
        shell: "mkdir {output}; touch {output}/a {output}/b"

    rule use:
        input: "found/{name}"
        output: "used-{name}.txt"
        resources: token=1
        shell: "touch {output}"

    def used(wildcards):
        found = checkpoints.find.get().output[0]
        return [f"used-{os.path.basename(path)}.txt" for path in sorted(glob.glob(f"{found}/*"))]

    rule gather:
        input: used
        output: "found.txt"
        shell: "echo {input} > {output}"

    onsuccess:
        print("scheduled by", type(workflow.scheduler).__name__)
        print("flaky needed", [job.scheduler_resources["token"] for job in workflow.dag.jobs if job.rule.name == "flaky" and job.attempt > 1])
"""


def _begun(result: Result) -> list[str]:
    """The rules of the jobs in the order of their starts."""
    return re.findall(r"^ *(?:local)?(?:rule|checkpoint) (\w+):$", result.output, re.MULTILINE)


@pytest.mark.parametrize("executor", ["forge", "local"])
def test_all_that_a_scheduler_has_to_mind(workdir: Path, executor: str) -> None:
    write_workflow(workdir, WORKFLOW)
    options = ("-j3", "--scheduler", "forge", "--resources", "token=2")
    first = run(workdir, *options, "--batch", "all=1/2", executor=executor)
    assert first.code == 0, first.output
    second = run(workdir, *options, executor=executor)
    assert second.code == 0, second.output

    begun = [*_begun(first), *_begun(second)]
    assert {rule: begun.count(rule) for rule in set(begun)} == {
        "all": 1, "plain": 3, "urgent": 3, "begin": 3, "chain": 3, "flaky": 2, "into_pipe": 1, "from_pipe": 1, "find": 1, "use": 2,
        "gather": 1, "big": 1}, first.output + second.output
    assert (workdir / "found.txt").read_text().split() == ["used-a.txt", "used-b.txt"]
    assert (workdir / "piped.txt").read_text() == "through\n"
    for number in range(3):  # each temporary file was used before the next was made
        assert (workdir / f"{number}.chained").read_text() == f"{number}.begun\n"
    assert not list(workdir.glob("*.begun"))
    for result in (first, second):
        order = [rule for rule in _begun(result) if rule in ("plain", "urgent")]
        assert order == sorted(order, reverse=True)
        assert ("flaky needed [2]" in result.output) == ("flaky" in _begun(result))
        assert "scheduled by FollowingScheduler" in result.output
        assert "to choose jobs" not in result.output


class _Chooser:
    """A scheduler whose choices take ``seconds`` on a fake clock."""

    def __init__(self, seconds: float, clock: list[float]) -> None:
        self.seconds, self.clock = seconds, clock

    def job_selector(self, jobs: list[str]) -> list[str]:
        self.clock[0] += self.seconds
        return jobs


@pytest.mark.parametrize(("choosing", "others", "scheduler", "said"), [
    (20.0, 170.0, "ilp", True), (20.0, 190.0, "ilp", False), (20.0, 170.0, "forge", False), (4.0, 1.0, "greedy", False),
])
def test_a_scheduler_that_takes_more_than_a_tenth_of_the_time_is_named(choosing: float, others: float, scheduler: str, said: bool,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("snakemake_scheduler_plugin_forge.snakemake_internals.time.monotonic", lambda: clock[0])
    chooser: Any = _Chooser(choosing / 2, clock)
    time = ChoosingTime(chooser)
    assert [chooser.job_selector(["a"]), chooser.job_selector([])] == [["a"], []]
    clock[0] += others
    line = _slow_choices(scheduler, time)
    assert bool(line) == said
    assert not said or ("ilp took 11% of this run's time" in line and "--scheduler forge" in line)



def test_a_full_shadow_directory_is_made_while_shallow_ones_link_to_each_other(workdir: Path) -> None:
    write_workflow(workdir, """
        rule all:
            input: "a.txt", "b.txt", "full.txt"
        rule shallow:
            output: "{x}.txt"
            wildcard_constraints: x="[ab]"
            shadow: "shallow"
            shell: "sleep 3; touch {output}"
        rule first:
            output: "first.txt"
            shell: "touch {output}"
        rule full:
            input: "first.txt"
            output: "full.txt"
            shadow: "full"
            shell: "ls -A > {output}"
        """)
    result = run(workdir, "-j3")
    assert result.code == 0, result.output
    assert {"Snakefile", "first.txt"} <= set(result.read("full.txt").split())
