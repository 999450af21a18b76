"""Resources that the host lacks: jobs run as with ``local``, or Forge refuses them at once, by name, and on record."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ..conftest import forge, run, write_workflow
from ..side_by_side import USERS, Both, Case

pytestmark = pytest.mark.slow  # runs each case with local, too

HUGE = 900_000_000  # MB

CASES = [
    Case("plain", f"""
        rule @:
            output: "@/out"
            threads: 999
            resources: mem_mb={HUGE}, disk_mb=lambda wildcards: 70.6, runtime="2h"
            shell: "echo {{resources.mem_mb}} {{resources.disk_mb}} {{resources.runtime}} {{threads}} > {{output}}"
        """),
    Case("words", """
        rule @:
            output: "@/out"
            resources: mem="900 TB"
            shell: "echo {resources.mem_mb} > {output}"
        """),
    Case("function", f"""
        rule @:
            output: "@/out"
            resources: mem_mb=lambda wildcards, attempt: attempt * {HUGE}
            shell: "echo {{resources.mem_mb}} > {{output}}"
        """),
    Case("tiny", """
        rule @:
            input: "@/in"
            output: "@/out"
            resources: mem_mb=lambda wildcards, input: 2 * input.size_mb, disk_mb=lambda wildcards, input: input.size_mb
            shell: "echo {resources.mem_mb} {resources.disk_mb} > {output}"
        """, before={"in": "x"}),
    Case("gpu", """
        rule @:
            output: "@/out"
            resources: gpu=64, nvidia_gpu=1, gpu_model="a100"
            shell: "echo {resources.gpu} > {output}"
        """, check=lambda _, attempts: attempts[-1]["isolation"]["not_enforced"][-1:] == ["gpu"]),
]


@pytest.fixture(scope="module", params=USERS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """The comparison under a cap on memory, as a user of a small host sets it."""
    place = tmp_path_factory.mktemp("resources")
    return Both.run(place, CASES, user=request.param, arguments=("--resources", "mem_mb=900"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_files_are_those_of_local(both: Both, case: Case) -> None:
    both.check(case)
    assert both.codes == ((0, 0),)
    if case.name in ("plain", "words", "function"):
        assert both.forge.attempt(case.name)["limits"]["memory_bytes"] == 900 * 1024**2


WORKFLOW = f"""
    def needs(wildcards, input):
        return {HUGE} if wildcards.s == "b" else 100
    rule all:
        input: "a.large", "b.large", "plain", "small", "other"
    rule other:
        output: touch("other")
    rule plain:
        output: "plain"
        resources: mem_mb={HUGE}
        shell: "touch {{output}}"
    rule small:
        output: "small"
        resources: disk_mb=-1
        shell: "touch {{output}}"
    rule large:
        output: "{{s}}.large"
        resources: mem_mb=needs
        shell: "touch {{output}}"
"""


def test_all_are_named_at_once_before_anything_runs(tmp_path: Path) -> None:
    """A dry run refuses the same rules; below its list of jobs it warns of resources that limit nothing."""
    write_workflow(tmp_path, WORKFLOW)
    dry = run(tmp_path, "-j4", "-n")
    result = run(tmp_path, "-j4")
    refusal = result.output[result.output.index("3 rules cannot run") :].partition("\n  File")[0]
    assert dry.code == 1 and refusal in dry.output, dry.output
    assert result.code == 1 and not (tmp_path / "other").exists(), result.output
    assert "3 rules cannot run as they are:" in result.output
    assert f"Rule plain (Snakefile:8): mem_mb={HUGE} is more than" in result.output
    assert f"Rule large (Snakefile:16): mem_mb={HUGE} is more than" in result.output
    assert "Rule small (Snakefile:12): disk_mb=-1 is below zero" in result.output
    (paste,) = re.findall(r"(--set-resources (?:\w+:mem_mb=\d+ ?)+)\n", result.output)
    assert set(re.findall(r"(\w+):", paste)) == {"plain", "large"}
    assert {(a["rule"], a["wildcards"].get("s"), a["outcome"], a["cause"]) for a in result.attempts()} == {
        ("plain", None, "failed", "resources"), ("small", None, "failed", "resources"), ("large", "b", "failed", "resources"),
    }
    mend = ("-j4", "--set-resources", *paste.split()[1:], "small:disk_mb=10")
    warned = run(tmp_path, *mend, "large:walltime=5", "plain:cpus=4", "--set-threads", "plain=4", "-n").output
    assert "resource cpus" not in warned, "the rule has threads, which Snakemake scales to one in a dry run"
    assert warned.index("rule large:") < warned.index("Rule large (Snakefile:16): resource walltime limits nothing"), warned
    assert "resource forge_netwrok is not known to Forge" in run(tmp_path, *mend, "large:forge_netwrok=off", "-n").output
    mended = run(tmp_path, *mend)
    assert mended.code == 0, mended.output


def test_what_is_known_in_mid_run_only_is_on_record_too(tmp_path: Path) -> None:
    """``why`` explains the newest attempt; a later try that asks for too much gets all the memory if the first try fitted."""
    write_workflow(tmp_path, f"""
        rule all:
            input: "late", "grows"
        rule first:
            output: "first"
            shell: "echo x > {{output}}"
        rule late:
            input: "first"
            output: "late"
            retries: 1
            resources: mem_mb=lambda wildcards, input: len(open(input[0]).read()) * {HUGE}
            shell: "touch {{output}}"
        rule grows:
            input: "first"
            output: "grows"
            retries: 2
            resources: mem_mb=lambda wildcards, attempt: 10 ** (4 * attempt - 2)
            shell: "[ {{resources.mem_mb}} -gt 100 ] && echo $FORGE_MEMORY_BYTES > {{output}}"
        """)
    lenient = run(tmp_path, "-j4", "--set-resources", "late:mem_mb=100", "--until", "late")
    assert lenient.code == 0, lenient.output
    result = run(tmp_path, "-j4", "-k", "-F")
    assert result.code == 1
    assert f"Rule late (Snakefile:7): mem_mb={2 * HUGE} is more than" in result.output
    late = result.attempts("late")
    assert [(a["outcome"], a["cause"]) for a in late] == [("succeeded", None), ("failed", "resources"), ("failed", "resources")]
    why = forge(tmp_path, "why", "late").stdout
    assert f"mem_mb={2 * HUGE}" in why and "--set-resources late:mem_mb=" in why
    assert [a["outcome"] for a in result.attempts("grows")] == ["failed", "succeeded"]
    assert "rule grows asks for mem_mb=1000000 at attempt 2" in result.output
    assert 0 < int((tmp_path / "grows").read_text()) < 10**12


def test_more_gpus_than_there_are(tmp_path: Path) -> None:
    write_workflow(tmp_path, """
        rule a:
            output: "a"
            resources: gpu=64
            shell: "touch {output}"
        """)
    refused = run(tmp_path, "-j1", "--forge-require", "limits")
    assert (refused.code == 1 and "asks for" in refused.output) or "gpu=64, but this run has" in refused.output
    result = run(tmp_path, "-j1")
    assert result.code == 0 and result.output.count("gpu=64, but this run has") == 1, result.output


def test_values_of_default_resources_are_named_and_need_not_limit(tmp_path: Path) -> None:
    write_workflow(tmp_path, """
        rule large:
            output: "large"
            shell: "python3 -c 'bytearray(90 * 2**20)'; touch {output}"
        rule own:
            output: "own"
            resources: mem_mb=40
            shell: "python3 -c 'bytearray(90 * 2**20)'; touch {output}"
        """)
    both = ("-j2", "-k", "large", "own", "--default-resources", "mem_mb=40")
    limited = run(tmp_path, *both)
    said = "out of memory: 40.0 MiB of 40.0 MiB (from --default-resources mem_mb), in python3"
    assert said in limited.output and "--set-resources large:mem_mb=80   or for all rules: --forge-default-resources schedule" in limited.output
    assert limited.attempt("own")["happened"] == "out of memory: 40.0 MiB of 40.0 MiB, in python3"
    scheduled = run(tmp_path, *both, "--forge-default-resources", "schedule")
    newest = {a["rule"]: (a["outcome"], a["limits"]["memory_bytes"]) for a in scheduled.attempts()}
    assert newest == {"large": ("succeeded", None), "own": ("oom", 40 * 2**20)}


def test_a_dry_run_counts_the_threads_of_a_run(tmp_path: Path) -> None:
    """Snakemake has one core in a dry run with -j; Forge chooses Slurm partitions by the real run's cores."""
    write_workflow(tmp_path, """
        rule wide:
            output: "wide.txt"
            threads: 8
            shell: "touch {output}"
    """)
    (tmp_path / "p.yaml").write_text("partitions: {small: {max_threads: 4}}\n")
    slurm = ("--forge-backend", "slurm", "--forge-slurm-partitions", "p.yaml", "-n")
    assert "threads=8 fits into no partition" in run(tmp_path, *slurm, "-j", "8").output
    assert "fits into no partition" not in run(tmp_path, *slurm, "-j", "4").output
