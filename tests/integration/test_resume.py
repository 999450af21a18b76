"""``snakemake-forge resume``, and the plain command after a crash: refusals, recovery, and the jobs that run again."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ..conftest import DEADLINE, FORGE, command, ending, residue, run, wait_until, write_workflow, written
from ..killer import environment

# Jobs log their start outside the working directory. Until the file "go" exists, the outputs of slow jobs stay half-written.
WORKFLOW = """
SIDE = config["side"]
rule all:
    input: "quick.txt", "slow.txt"
rule quick:
    output: "quick.txt", "beside.txt"
    shell: "echo quick >> {SIDE}/log; echo 1 > {output[0]}; echo 2 > {output[1]}"
rule slow:
    output: "slow.txt"
    shell: "echo slow >> {SIDE}/log; echo half > {output}; while [ ! -e {SIDE}/go ]; do sleep 0.02; done; echo whole > {output}"
"""


def resume(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*FORGE, "resume", "--directory", str(directory), *words], cwd="/", capture_output=True, text=True,
                          check=False, stdin=subprocess.DEVNULL, timeout=DEADLINE)


def prepare(directory: Path, workflow: str) -> Path:
    """Write a workflow; return a directory outside its own where its jobs may write."""
    write_workflow(directory, workflow)
    side = directory.parent / "side"
    side.mkdir(exist_ok=True)
    (directory / "forge.yaml").write_text(
        "version: 1\ndefaults: {runtime: noting}\n"
        f"runtimes:\n  noting: {{host: true, paths: {{write: ['{side}']}}}}\n")
    return side


def start(directory: Path, *arguments: str, cwd: Path | None = None) -> subprocess.Popen[bytes]:
    side = directory.parent / "side"
    with (side / "output").open("wb") as output:
        return subprocess.Popen(command("forge", "-j3", "--config", f"side={side}", *arguments), cwd=cwd or directory,
                                stdout=output, stderr=output, stdin=subprocess.DEVNULL)


def crashed(directory: Path, *arguments: str, cwd: Path | None = None, noted: bool = False) -> None:
    """Kill Snakemake when one job has finished (``noted``: and Snakemake knows it) and another one runs."""
    process = start(directory, *arguments, cwd=cwd)
    output = directory.parent / "side" / "output"
    with ending(process):
        wait_until(lambda: process.poll() is not None or (written(directory, "slow.txt") and (directory / "quick.txt").exists()))
        assert process.poll() is None, output.read_text()
        wait_until(lambda: not noted or "Finished jobid" in output.read_text())


def runs(directory: Path) -> dict[Path, dict[str, Any]]:
    return {path: json.loads(path.read_text()) for path in sorted(directory.glob(".snakemake/forge/runs/*/run.json"))}


def started(side: Path) -> Counter[str]:
    return Counter((side / "log").read_text().split("\n")[:-1])


def test_after_a_crash_one_command_goes_on(workdir: Path) -> None:
    """resume works although Snakemake was started elsewhere with a relative --directory; a dry run changes nothing."""
    directory = workdir / "work"
    side = prepare(directory, WORKFLOW)
    crashed(directory, "--directory", "work", "--snakefile", "work/Snakefile", cwd=workdir)
    locks = sorted(directory.glob(".snakemake/locks/*"))
    assert locks, "Snakemake no longer locks, so this test is pointless"
    tried = resume(directory, "--dry-run")
    assert tried.returncode == 0, tried.stderr
    assert "would remove Snakemake's stale lock" in tried.stdout
    assert f"would run, in {workdir}: " in tried.stdout
    assert sorted(directory.glob(".snakemake/locks/*")) == locks
    assert started(side) == {"quick": 1, "slow": 1}

    (side / "go").touch()
    done = resume(directory, "--keep-going", "--forge-memory", "1GiB")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "removed Snakemake's stale lock" in done.stdout
    assert (directory / "slow.txt").read_text() == "whole\n"
    assert started(side) == {"quick": 1, "slow": 2}
    assert [record["command"][-3:] for record in runs(directory).values()][1] == ["--keep-going", "--forge-memory", "1GiB"]
    assert residue(directory) == []
    again = resume(directory)
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout + again.stderr
    assert started(side) == {"quick": 1, "slow": 2}


def test_nobody_is_disturbed_who_lives(workdir: Path) -> None:
    """resume refuses, and changes nothing, while the run may live, here or on another host."""
    directory = workdir / "work"
    side = prepare(directory, WORKFLOW)
    process = start(directory)
    with ending(process):
        wait_until(lambda: written(directory, "slow.txt") and (directory / "quick.txt").exists())
        refused = resume(directory)
        assert refused.returncode == 2
        assert f"Snakemake (pid {process.pid}) of run" in refused.stderr
        assert f"is at work in {directory}" in refused.stderr
        assert list(directory.glob(".snakemake/locks/*"))

        # A container with the same host name does not see the process, and must not clear its files.
        layers = sorted(directory.glob(".snakemake/forge/staging/forge-*"))
        words = ["unshare", *([] if os.geteuid() == 0 else ["-r"]), "-pf", "--mount-proc", *FORGE]
        for more, code, said in (("resume",), 2, "with process numbers of its own"), (("gc", "--leftovers-after", "0.01s"), 0, ""):
            apart = subprocess.run([*words, *more], cwd=directory, capture_output=True, text=True, check=False, timeout=DEADLINE)
            assert apart.returncode == code and said in apart.stderr, apart
            assert layers == sorted(directory.glob(".snakemake/forge/staging/forge-*")) != []
        assert list(directory.glob(".snakemake/locks/*")) and process.poll() is None

        ((path, record),) = runs(directory).items()
        path.write_text(json.dumps(record | {"start_time": 1}))  # no record names this process, but it lives
        refused = resume(directory)
        assert refused.returncode == 2
        assert f"Snakemake (pid {process.pid}), of which Forge has no record" in refused.stderr
        path.write_text(json.dumps(record))
    wait_until(lambda: not residue(directory))

    path.write_text(json.dumps(record | {"pid_namespace": 1}))
    assert f"snakemake-forge resume --dead-host {record['host']}" in resume(directory).stderr
    path.write_text(json.dumps({key: value for key, value in record.items() if key != "pid_namespace"}))  # a record of an older Forge
    assert resume(directory, "--dry-run").returncode == 0
    path.write_text(json.dumps(record | {"host": "elsewhere"}))
    refused = resume(directory)
    assert refused.returncode == 2
    assert f"was started on host elsewhere (pid {process.pid})" in refused.stderr
    assert "snakemake-forge resume --dead-host elsewhere" in refused.stderr
    wrong = resume(directory, "--dead-host", "elswhere")
    assert wrong.returncode == 2
    assert "Open are runs of: elsewhere" in wrong.stderr
    assert list(directory.glob(".snakemake/locks/*"))
    (side / "go").touch()
    done = resume(directory, "--dead-host", "elsewhere")
    assert done.returncode == 0, done.stdout + done.stderr
    assert runs(directory)[path]["declared_dead"] is True
    assert (directory / "slow.txt").read_text() == "whole\n"


def test_two_at_once(workdir: Path) -> None:
    """The second resume is refused while the first, or the Snakemake that it became, runs."""
    directory = workdir / "work"
    side = prepare(directory, WORKFLOW)
    crashed(directory)
    both = [subprocess.Popen([*FORGE, "resume"], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                             stdin=subprocess.DEVNULL) for _ in range(2)]
    try:
        wait_until(lambda: any(process.poll() is not None for process in both))
        (side / "go").touch()
        outputs = [process.communicate(timeout=DEADLINE)[0] for process in both]
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert sorted(process.returncode for process in both) == [0, 2], outputs
    assert any("Nothing was changed: " in output for output in outputs)
    assert started(side) == {"quick": 1, "slow": 2}


def test_what_cannot_be_repeated(workdir: Path) -> None:
    directory = workdir / ".snakemake" / "forge" / "runs" / "20260131-120000-1-aaaa"
    restart = {"python": "/nowhere/python", "arguments": ["-m", "snakemake"], "directory": str(workdir)}
    for record, words in ((None, "There is no record of Forge"), ({}, "does not say how Snakemake was started"),
                          ({"restart": restart}, "/nowhere/python")):
        if record is not None:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "run.json").write_text(json.dumps({"run": directory.name, "ended": "x", **record}))
        refused = resume(workdir)
        assert refused.returncode == 2
        assert words in refused.stderr


def test_outputs_that_were_not_staged(workdir: Path) -> None:
    """Under the policy open a half-written output is in place: Snakemake has marked it, and resume runs its job again."""
    directory = workdir / "work"
    side = prepare(directory, WORKFLOW)
    crashed(directory, "--forge-files", "open", noted=True)
    assert (directory / "slow.txt").read_text() == "half\n"
    (side / "go").touch()
    done = resume(directory)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--rerun-incomplete" in done.stdout
    assert (directory / "slow.txt").read_text() == "whole\n"
    assert started(side)["quick"] == 1


def test_the_same_command_again(workdir: Path) -> None:
    """Without resume, only the stale lock is in the way: Snakemake names it, and --nolock suffices."""
    directory = workdir / "work"
    side = prepare(directory, WORKFLOW)
    crashed(directory)
    wait_until(lambda: not residue(directory))
    arguments = ("-j3", "--config", f"side={side}")
    (side / "go").touch()
    locked = run(directory, *arguments)
    assert locked.code != 0
    assert "cannot be locked" in locked.output
    done = run(directory, *arguments, "--nolock")
    assert done.code == 0, done.output
    assert "--rerun-incomplete" not in done.output
    assert (directory / "slow.txt").read_text() == "whole\n"
    assert started(side) == {"quick": 1, "slow": 2}


def test_a_forced_job_that_failed_runs_again(workdir: Path) -> None:
    """Its outputs are the previous ones, of which Snakemake alone would say that there is nothing to be done."""
    write_workflow(workdir, """
        rule all:
            input: "a.txt", "b.txt"
        rule a:
            output: "a.txt"
            shell: "[ ! -e bad ]; echo >> made; wc -l < made > {output}"
        rule write:
            output: pipe("b.pipe")
            shell: "echo > {output}"
        rule b:
            input: "b.pipe"
            output: "b.txt"  # of a group: Snakemake marks it as incomplete
            shell: "cat {input} > {output}; [ ! -e bad ]"
        """)
    assert run(workdir).code == 0
    record = workdir / ".snakemake/metadata/YS50eHQ="  # the end of the job, which tells who has made other files
    before = record.stat().st_mtime_ns
    (workdir / "bad").touch()
    assert run(workdir, "-j4", "-k", "--forceall").code == 1
    assert (workdir / "a.txt").read_text() == "1\n"
    assert record.stat().st_mtime_ns == before
    (workdir / "bad").unlink()
    result = run(workdir)
    assert result.code == 0, result.output
    assert result.output.count("a version whose replacement failed") == 2
    assert (workdir / "a.txt").read_text() == "2\n"
    assert "Nothing to be done" in run(workdir).output


@pytest.mark.parametrize("keep", [["--keep-incomplete"], []])
def test_outputs_of_failed_jobs_are_never_believed(workdir: Path, keep: list[str]) -> None:
    """Every kind of failed job runs again (snakemake#3808); --keep-incomplete keeps its outputs in the job directory."""
    directory = workdir / "work"
    side = prepare(directory, """
        from pathlib import Path
        SIDE = config["side"]
        def fails(): return not Path(SIDE, "mended").exists()
        rule all:
            input: "shell.txt", "run.txt", "two.x", "directory", "after.txt", "old.txt"
        rule shell:
            output: "shell.txt"
            shell: "echo half > {output}; [ -e {SIDE}/mended ]; echo whole > {output}"
        rule run:
            output: "run.txt"
            run:
                Path(output[0]).write_text("half\\n")
                if fails():
                    raise ValueError("not yet")
                Path(output[0]).write_text("whole\\n")
        rule two:
            output: "two.x", "two.y"
            shell: "echo whole > two.x; [ -e {SIDE}/mended ]; echo whole > two.y"
        rule directory:
            output: directory("directory")
            shell: "mkdir {output}; echo half > {output}/a; [ -e {SIDE}/mended ]; echo whole > {output}/a"
        rule after:
            input: "shell.txt"
            output: "after.txt"
            shell: "cp {input} {output}"
        rule old:
            output: "old.txt"
            input: "version.txt"
            shell: "echo half > {output}; [ -e {SIDE}/mended ]; cat {input} > {output}"
        """)
    (directory / "old.txt").write_text("old\n")
    time.sleep(0.05)
    (directory / "version.txt").write_text("new\n")
    arguments = ("-j3", "--config", f"side={side}", "--keep-going", *keep)
    for _ in range(2):  # the second run must not use the first run's outputs
        failed = run(directory, *arguments)
        assert failed.code != 0
        assert {a["outcome"] for a in failed.attempts()} == {"failed"}
        for name in ("shell.txt", "run.txt", "two.x", "two.y", "directory", "after.txt"):
            assert not (directory / name).exists(), name
        assert (directory / "old.txt").read_text() == "old\n"
    assert {len(failed.attempts(rule)) for rule in ("shell", "run", "two", "directory", "old")} == {2}
    kept = Path(failed.attempts("shell")[-1]["directory"], "incomplete", "1")
    assert kept.exists() == bool(keep)
    assert not keep or kept.read_text() == "half\n"
    (side / "mended").touch()
    done = run(directory, *arguments)
    assert done.code == 0, done.output
    for name in ("shell.txt", "run.txt", "two.x", "two.y", "directory/a", "after.txt"):
        assert (directory / name).read_text() == "whole\n", name
    assert (directory / "old.txt").read_text() == "new\n"


@contextmanager
def on_an_overlay(workdir: Path) -> Iterator[Path]:
    """A working directory on an overlay, which cannot be the upper layer of another overlay."""
    for name in ("lower", "upper", "kernels", "place"):
        (workdir / name).mkdir()
    options = f"lowerdir={workdir}/lower,upperdir={workdir}/upper,workdir={workdir}/kernels"
    subprocess.run(["mount", "-t", "overlay", "forge-test", "-o", options, workdir / "place"], check=True)
    try:
        (workdir / "place" / "work").mkdir()
        yield workdir / "place" / "work"
    finally:
        subprocess.run(["umount", "--lazy", workdir / "place"], check=True)


@pytest.mark.parametrize("fault", ["supervisor:renamed:quick", "all:synced:quick"])
def test_staged_on_another_file_system(workdir: Path, fault: str) -> None:
    """On an overlay, outputs are staged in the scratch, copied beside their place, and renamed, also after a crash."""
    with on_an_overlay(workdir) as directory:
        side = prepare(directory, WORKFLOW)
        (side / "go").touch()
        arguments = ("-j1", "--config", f"side={side}")
        crash = run(directory, *arguments, env=environment(fault, side / "fired"))
        assert crash.code != 0
        assert (side / "fired").read_text().startswith(fault)
        before = started(side)["quick"]
        done = resume(directory)
        assert done.returncode == 0, done.stdout + done.stderr
        assert {name: (directory / name).read_text() for name in ("quick.txt", "beside.txt", "slow.txt")} == {
            "quick.txt": "1\n", "beside.txt": "2\n", "slow.txt": "whole\n"}
        assert started(side)["quick"] == before + (0 if "renamed" in fault else 1)
        assert not list(directory.glob(".forge-copy*"))
        assert residue(directory) == []
        first = run(directory, "--dry-run", "--quiet").attempts("quick")[0]
        assert "all of them are in their places" in first["reason"] or fault != "supervisor:renamed:quick"
