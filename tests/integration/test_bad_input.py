"""Forge refuses impossible input with rule, key and value, if possible before anything runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ..conftest import DEADLINE, Result, residue, run, write_workflow

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
    ("directives", "argument", "words"),
    [  # one of each way; all keys and values are in unit/test_plan.py and unit/test_settings.py
        ("resources: forge_netwrok='off'", "", ["Rule second (Snakefile:7): resource forge_netwrok", "Did you mean forge_network?"]),
        ("", "--forge-memory=lots", ["--forge-memory=lots: not a size"]),
        ("", "--forge-cpu=fast", ["invalid choice: 'fast'"]),
        ("", "SNAKEMAKE_FORGE_PIDS=many", ["--forge-pids=many: not a whole number"]),
    ],
    ids=["resource", "flag", "choice", "variable"],
)
def test_refused_before_anything_runs(workdir: Path, directives: str, argument: str, words: list[str]) -> None:
    write_workflow(workdir, RULE.format(directives=directives))
    name, _, value = argument.partition("=")
    result = run(workdir, "-j2", *([name, value] if name.startswith("--") else []), env={name: value} if name.isupper() else {})
    assert result.code != 0
    for word in words:
        assert word in result.output
    assert "Traceback" not in result.output
    assert not (workdir / "first.txt").exists()
    assert residue(workdir) == []


def test_resource_known_only_later_fails_its_own_job_alone(workdir: Path) -> None:
    result = _run(workdir, "input: 'first.txt'\n    resources: mem_mb=lambda wildcards, input: -2", "-k")
    assert result.code != 0
    assert "Rule second (Snakefile:7): mem_mb=-2 is below zero" in result.output
    assert result.attempt("second")["cause"] == "resources"
    assert (workdir / "first.txt").exists()
    assert not (workdir / "second.txt").exists()


def test_syntax_error_in_the_snakefile(workdir: Path) -> None:
    write_workflow(workdir, "rule all:\n    input 'x'\n")
    result = run(workdir, "-j2")
    assert result.code != 0
    assert "Snakefile" in result.output
    assert not (workdir / ".snakemake" / "forge").exists()


def test_nothing_to_do_starts_nothing(workdir: Path) -> None:
    write_workflow(workdir, RULE.format(directives=""))
    assert run(workdir, "-n").code == 0
    assert not (workdir / ".snakemake" / "forge").exists()
    first = run(workdir, "-j2", "--forge-require", "full")
    assert first.code == 0, first.output
    result = run(workdir, "-j2")
    assert result.code == 0
    assert "Nothing to be done" in result.output
    assert len(list((workdir / ".snakemake" / "forge" / "runs").iterdir())) == 1


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
        cwd=workdir, capture_output=True, text=True, check=False, timeout=DEADLINE, env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    attempt = Result(0, "", workdir).attempt("second")
    assert attempt["limits"]["pids"] == 77
    assert attempt["isolation"]["network"] == "off"


def test_jobs_that_end_oddly_end_at_once_and_say_why(workdir: Path) -> None:
    """A job whose sandbox lacks the shell reports it through a pipe, and then waits for its end."""
    with tempfile.TemporaryDirectory(dir="/tmp") as hidden:
        shutil.copy(shutil.which("bash") or "/bin/bash", hidden)
        write_workflow(workdir, f"""
            rule code:
                output: "code.txt"
                shell: "exit 255"
            rule long:
                output: "long.txt"
                run:
                    raise ValueError("x" * 2_000_000)
            rule unseen:
                output: "unseen.txt"
                shell: "echo hi > {{output}}"
            if config.get("hidden"):
                shell.executable("{hidden}/bash")
            """)
        done = run(workdir, "-j2", "-k", "code.txt", "long.txt")
        unseen = run(workdir, "-j1", "--config", "hidden=1", "--", "unseen.txt")
    assert done.code != 0
    assert (done.attempt("code")["reason"].partition(";")[0], done.attempt("code")["notes"]) == ("exit code 255", [])
    assert "ValueError: xxx" in done.attempt("long")["reason"]
    assert (unseen.attempt("unseen")["outcome"], unseen.attempt("unseen")["cause"]) == ("failed", "setup")
