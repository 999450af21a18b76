"""Publications that a crash interrupted, and events before Forge's next run: another executor, a rename of the directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ..conftest import run, write_workflow
from ..killer import environment

pytestmark = pytest.mark.slow

WORKFLOW = """
rule all:
    input: "a.txt", "other.txt"
rule three:
    output: "a.txt", "b.txt", "c.txt"
    shell: "for f in {output}; do echo {config[value]} > $f; done"
rule other:
    output: "other.txt"
    shell: "touch {output}"
"""
THREE = ("a.txt", "b.txt", "c.txt")
EVERYBODY = "all:renamed:three"  # after the first of three renames


def values(directory: Path) -> list[str]:
    return [(directory / name).read_text().strip() for name in THREE]


def arguments(value: str, *more: str) -> tuple[str, ...]:
    return ("-j2", *more, "--rerun-triggers", "mtime", "--config", f"value={value}")


def crashed(directory: Path) -> None:
    """Crash when the first of three old outputs has been replaced."""
    write_workflow(directory, WORKFLOW)
    assert run(directory, *arguments("old", "three")).code == 0
    fired = directory.parent / "fired"
    crash = run(directory, *arguments("crashed", "-F", "three"), env=environment(EVERYBODY, fired))
    assert crash.code != 0 and fired.read_text().startswith(EVERYBODY), crash.output
    assert values(directory) == ["crashed", "old", "old"]
    assert run(directory, "--unlock").code == 0


def test_what_another_executor_has_made_since_the_crash_stays(workdir: Path) -> None:
    """Whole outputs of another executor stay; Forge moves the files of the crash aside and names their place."""
    crashed(workdir)
    again = run(workdir, *arguments("new", "-F", "three"), executor="local")
    assert again.code == 0, again.output
    found = run(workdir, *arguments("new"))
    assert found.code == 0, found.output
    assert values(workdir) == ["new"] * 3
    (aside,) = workdir.glob(".snakemake/forge/staging/undecided-*")
    assert f"those of that job are in {aside}" in found.output
    assert sorted(path.read_text() for path in (aside / "upper").glob("[bc].txt")) == ["crashed\n"] * 2


def test_one_output_that_was_changed_since_the_crash_stays_and_no_job_reads_the_others(workdir: Path) -> None:
    crashed(workdir)
    (workdir / "b.txt").write_text("mine\n")
    refused = run(workdir, *arguments("new"))
    assert refused.code != 0 and "--rerun-incomplete" in refused.output, refused.output
    assert values(workdir) == ["crashed", "mine", "old"]
    done = run(workdir, *arguments("new", "--rerun-incomplete"))
    assert done.code == 0, done.output
    assert values(workdir) == ["new"] * 3


def test_a_working_directory_that_was_renamed_is_completed_where_it_is(workdir: Path) -> None:
    directory = workdir / "project"
    crashed(directory)
    moved = directory.rename(workdir / "moved")
    done = run(moved, *arguments("new"))
    assert done.code == 0, done.output
    assert f"completed the publication of an interrupted run: {moved}/a.txt" in done.output
    assert values(moved) == ["crashed"] * 3


def test_what_was_interrupted_is_completed_although_nothing_is_to_be_done(workdir: Path) -> None:
    """Forge completes the publication even if Snakemake, which takes the mixed outputs for complete, plans no jobs."""
    crashed(workdir)
    done = run(workdir, *arguments("new", "three"))
    assert done.code == 0 and "Nothing to be done" in done.output, done.output
    assert values(workdir) == ["crashed"] * 3
    assert "Give the same command again" in done.output
    assert "Forge" not in run(workdir, *arguments("new", "three")).output


def test_a_journal_of_another_host_is_named(workdir: Path) -> None:
    crashed(workdir)
    (record,) = (path for path in workdir.glob(".snakemake/forge/runs/*/run.json") if not json.loads(path.read_text())["ended"])
    record.write_text(json.dumps(json.loads(record.read_text()) | {"host": "elsewhere"}))
    found = run(workdir, *arguments("new"))
    assert "a run on host elsewhere was publishing outputs" in found.output, found.output
    assert values(workdir) == ["crashed", "old", "old"]
    shutil.rmtree(f"/tmp/forge-{record.parent.name}")  # no run of this host removes the scratch of another one
