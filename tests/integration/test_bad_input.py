"""What cannot work is refused with rule, key and value, before anything runs where that is possible."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import Result, residue, run, write_workflow

RULE = """
rule all:
    input: "first.txt", "second.txt"
rule first:
    output: "first.txt"
    shell: "echo 1 > {{output}}"
rule second:
    output: "second.txt"
    {directives}
    shell: "echo 2 > {{output}}"
"""


def _run(directory: Path, directives: str = "", *arguments: str) -> Result:
    write_workflow(directory, RULE.format(directives=directives))
    return run(directory, "-j2", *arguments)


@pytest.mark.parametrize(
    ("directives", "arguments", "words"),
    [
        ("resources: mem_mb=1", (), ["Rule second: mem_mb=1 is less than the 4 MB"]),
        ("resources: mem_mb=99999999", (), ["Rule second: mem_mb=1e+08 is more than", "--forge-run-memory"]),
        ("resources: runtime=-5", (), ["Rule second: runtime=-5 must be above zero"]),
        ("resources: forge_netwrok='off'", (), ["Rule second: resource forge_netwrok", "Did you mean forge_network?"]),
        ("resources: forge_network='of'", (), ["forge_network='of' is not one of on, off"]),
        ("resources: forge_nice=-5", (), ["Rule second: resource forge_nice=-5 must be a whole number between 0 and 19"]),
        ("", ("--forge-io-weight", "0"), ["--forge-io-weight=0: must be between 1 and 10000"]),
        ("", ("--forge-memory", "lots"), ["--forge-memory=lots: not a size"]),
        ("", ("--forge-pids", "0"), ["--forge-pids=0: must be between 1 and"]),
        ("", ("--forge-grace", "soon"), ["--forge-grace=soon: not a time"]),
        ("", ("--forge-run-memory", "150%"), ["--forge-run-memory=150%", "between 1% and 100%"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refused_before_anything_runs(
    workdir: Path, directives: str, arguments: tuple[str, ...], words: list[str]
) -> None:
    result = _run(workdir, directives, *arguments)
    assert result.code != 0
    for word in words:
        assert word in result.output
    assert "Traceback" not in result.output
    assert not (workdir / "first.txt").exists()
    assert residue(workdir) == []


def test_unknown_choice_is_the_command_lines_error(workdir: Path) -> None:
    result = _run(workdir, "", "--forge-cpu", "fast")
    assert result.code == 2
    assert "invalid choice: 'fast'" in result.output


def test_value_from_the_environment_is_checked_too(workdir: Path) -> None:
    write_workflow(workdir, RULE.format(directives=""))
    result = run(workdir, "-j2", env={"SNAKEMAKE_FORGE_PIDS": "many"})
    assert result.code != 0
    assert "--forge-pids=many: not a whole number" in result.output


def test_resource_known_only_later_fails_its_own_job_alone(workdir: Path) -> None:
    result = _run(workdir, "resources: mem_mb=lambda wildcards, attempt: 2", "-k")
    assert result.code != 0
    assert "Rule second: mem_mb=2 is less than" in result.output
    assert (workdir / "first.txt").exists()
    assert not (workdir / "second.txt").exists()


def test_syntax_error_in_the_snakefile(workdir: Path) -> None:
    write_workflow(workdir, "rule all:\n    input 'x'\n")
    result = run(workdir, "-j2")
    assert result.code != 0
    assert "Snakefile" in result.output
    assert not (workdir / ".snakemake" / "forge").exists()


def test_requirement_met_and_recorded(workdir: Path) -> None:
    result = _run(workdir, "", "--forge-require", "full")
    assert result.code == 0, result.output


def test_nothing_to_do_starts_nothing(workdir: Path) -> None:
    _run(workdir)
    runs = workdir / ".snakemake" / "forge" / "runs"
    before = len(list(runs.iterdir()))
    result = run(workdir, "-j2")
    assert result.code == 0
    assert "Nothing to be done" in result.output
    assert len(list(runs.iterdir())) == before


def test_dry_run_starts_nothing(workdir: Path) -> None:
    write_workflow(workdir, RULE.format(directives=""))
    assert run(workdir, "-n").code == 0
    assert not (workdir / ".snakemake" / "forge").exists()


def test_failed_job_is_explained_where_users_look(workdir: Path) -> None:
    write_workflow(workdir, "rule a:\n    output: 'a.txt'\n    shell: 'echo reason-77 >&2; exit 3'\n")
    result = run(workdir, "-j1", "--show-failed-logs")
    assert "message: exit code 3" in result.output
    assert "last lines of stderr:" in result.output
    directory = result.attempt("a")["directory"]
    assert f"{directory}/stderr.log" in result.output
    assert f"record: {directory}" in result.output


def test_profile_and_api(workdir: Path) -> None:
    write_workflow(workdir, RULE.format(directives=""))
    profile = workdir / "profile"
    profile.mkdir()
    (profile / "config.yaml").write_text("executor: forge\njobs: 2\nforge-pids: '77'\nforge-network: 'off'\n")
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--profile", str(profile)],
        cwd=workdir, capture_output=True, text=True, check=False, timeout=120, env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    attempt = Result(0, "", workdir).attempt("second")
    assert attempt["limits"]["pids"] == 77
    assert attempt["isolation"]["network"] == "off"
