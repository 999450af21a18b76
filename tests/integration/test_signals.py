"""All ways to stop a run: no partial output, no process and no leftover remains."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ..conftest import DEADLINE, Result, command, ending, forge, residue, run, wait_until, write_workflow, written

WORKFLOW = """
rule all:
    input: "quick.out", expand("{i}.out", i=range(3)), "stubborn.out"
rule quick:
    output: "quick.out"
    shell: "echo quick > {output}"
rule slow:
    output: "{i}.out"
    wildcard_constraints: i="[0-9]"
    shell: "echo half > {output}; (setsid sleep 1003 &); sleep 1003; echo whole > {output}"
rule stubborn:
    output: "stubborn.out"
    shell: "trap '' TERM INT HUP; echo half > {output}; sleep 1003; sleep 1003"
"""
FORK = """
import os, time
onstart:
    over = os.path.abspath("over")
    if os.fork() == 0:  # it has Snakemake's descriptors, and outlives it
        os.chdir("/")
        while not os.path.exists(over):
            time.sleep(0.1)
        os._exit(0)
"""
# The kernel delivers the signal to another thread than the main one, which waits for jobs.
TO_ANOTHER_THREAD = """
import os, signal, threading, time
def send():
    while not os.path.exists("quick.out"):
        time.sleep(0.1)
    time.sleep(1)
    signal.pthread_kill(threading.get_ident(), signal.NUMBER)
threading.Thread(target=send, daemon=True).start()
"""
OUTPUTS = ("0.out", "1.out", "2.out", "stubborn.out")


@contextmanager
def started(directory: Path, *arguments: str, head: str = "") -> Iterator[subprocess.Popen[str]]:
    """Start a run; its slow jobs have written half of their outputs, and all its jobs are on record."""
    write_workflow(directory, head + WORKFLOW)
    with (directory / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command("forge", "-j8", "--forge-grace", "1s", *arguments),
            cwd=directory, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
        )
    with ending(process):
        wait_until(lambda: process.poll() is not None or all(written(directory, name) for name in OUTPUTS))
        assert process.poll() is None, (directory / "log.txt").read_text()
        wait_until(lambda: "Finished jobid" in (directory / "log.txt").read_text())
        specs = ".snakemake/forge/runs/*/*/spec.json"  # written after the start
        wait_until(lambda: len(list(directory.glob(specs))) > len(OUTPUTS))
        yield process


def descendants(pid: int, name: str) -> list[int]:
    """Processes called ``name`` below ``pid``."""
    found, wanted = [], [pid]
    while wanted:
        parent = wanted.pop()
        with suppress(FileNotFoundError, ProcessLookupError):  # some processes end meanwhile
            for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
                wanted.append(int(child))
                if Path(f"/proc/{child}/comm").read_text().strip() == name:
                    found.append(int(child))
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_by_signal(workdir: Path, number: signal.Signals) -> None:
    with started(workdir) as process:
        process.send_signal(number)
        assert process.wait(DEADLINE) != 0
    log = (workdir / "log.txt").read_text()
    assert residue(workdir) == []
    assert not any((workdir / name).exists() for name in OUTPUTS), "half-written outputs were left"
    assert (workdir / "quick.out").read_text() == "quick\n"
    assert not any((workdir / ".snakemake" / "incomplete").iterdir()), log
    assert not list((workdir / ".snakemake").glob("locks/*"))
    result = Result(1, log, workdir)
    name = "Ctrl-C" if number is signal.SIGINT else number.name
    cancelled = [a for a in result.attempts() if a["outcome"] == "cancelled"]
    assert len(cancelled) == len(OUTPUTS)
    assert all(name in a["reason"] for a in cancelled)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_the_main_thread_does_not_get(workdir: Path, number: signal.Signals) -> None:
    """The handler alone would not wake the main thread: the run would continue until its next job ends."""
    write_workflow(workdir, TO_ANOTHER_THREAD.replace("NUMBER", number.name) + WORKFLOW)
    result = run(workdir, "-j8", "--forge-grace", "1s")
    assert result.code != 0
    assert "were cancelled" in result.output
    assert residue(workdir) == []


def test_second_interrupt_cuts_the_grace_short(workdir: Path) -> None:
    with started(workdir, "--forge-grace", "1h") as process:
        process.send_signal(signal.SIGINT)
        # Two signals at once count as one; and right after its message, Snakemake has not told its executor yet.
        wait_until(lambda: any(a["outcome"] == "cancelled" for a in Result(1, "", workdir).attempts()), process)
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) != 0
    assert residue(workdir) == []


@pytest.mark.v2
@pytest.mark.kernel
def test_killed_snakemake_takes_its_jobs_with_it(workdir: Path) -> None:
    with started(workdir, head=FORK) as process:
        process.kill()
        try:
            wait_until(lambda: not residue(workdir))
        finally:
            (workdir / "over").touch()
    outcomes = {a["rule"]: a["outcome"] for a in Result(1, "", workdir).attempts()}
    assert outcomes == {"quick": "succeeded", "slow": "cancelled", "stubborn": "cancelled"}


def test_killed_nursery(workdir: Path) -> None:
    with started(workdir) as process:
        (nursery,) = descendants(process.pid, "forge-nursery")
        os.kill(nursery, signal.SIGKILL)
        assert process.wait(DEADLINE) != 0
        wait_until(lambda: not residue(workdir))
    assert f"the nursery (pid {nursery}) was killed" in (workdir / "log.txt").read_text()


@pytest.mark.parametrize("names", [
    pytest.param(("forge-nursery", "forge-launcher", "forge-super", "snakemake"), marks=pytest.mark.kernel, id="all"),
    pytest.param(("forge-nursery", "forge-super"), marks=pytest.mark.outside, id="all but the launcher"),
])
def test_many_killed_at_once(workdir: Path, names: tuple[str, ...]) -> None:
    """No process is left to clear up: the kernel ends the jobs, and resume removes the rest."""
    with started(workdir) as process:
        victims = [pid for name in names for pid in descendants(process.pid, name)]
        assert len(victims) > len(names)
        for pid in [process.pid, *victims] if "snakemake" in names else victims:
            os.kill(pid, signal.SIGKILL)
        assert process.wait(DEADLINE) != 0
        wait_until(lambda: not [what for what in residue(workdir) if what.startswith("process")])
    assert not any((workdir / name).exists() for name in OUTPUTS), "half-written outputs were left"
    assert (workdir / "quick.out").read_text() == "quick\n"
    done = forge(workdir, "resume", "--", "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert residue(workdir) == []
    assert "rule quick" not in done.stdout + done.stderr
    outcomes = {(a["rule"], *a["wildcards"].values()): a["outcome"] for a in Result(1, "", workdir).attempts()}
    assert outcomes.pop(("quick",)) == "succeeded"
    assert len(outcomes) == len(OUTPUTS)
    assert set(outcomes.values()) <= {"lost", "cancelled"}


def test_killed_supervisor_loses_one_job_only(workdir: Path) -> None:
    write_workflow(workdir, """
        rule all:
            input: "long.out", expand("{i}.out", i=range(5))
        rule long:
            output: "long.out"
            resources: forge_files="open"  # it waits for what comes from outside
            shell: "while [ ! -e long.go ]; do sleep 0.05; done; echo ok > {output}"
        rule victim:
            output: "{i}.out"
            wildcard_constraints: i="[0-9]"
            shell: "touch {wildcards.i}.begun; (setsid sleep 1003 &); [ {wildcards.i} = 1 ] && sleep 1003; touch {output}"
        """)
    with (workdir / "log.txt").open("w") as log:
        process = subprocess.Popen(command("forge", "-j8", "-k"), cwd=workdir, stdout=log,
                                   stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    with ending(process):
        wait_until(lambda: written(workdir, "1.begun"))
        (sleeper,) = [p for p in descendants(process.pid, "forge-super") if _runs_victim(p)]
        os.kill(sleeper, signal.SIGKILL)
        wait_until(lambda: "lost" in (workdir / "log.txt").read_text())
        (workdir / "long.go").touch()
        assert process.wait(DEADLINE) != 0
    outcomes = {(a["rule"], a["wildcards"].get("i")): a["outcome"] for a in Result(1, "", workdir).attempts()}
    assert outcomes.pop(("victim", "1")) == "lost"
    assert outcomes.pop(("long", None)) == "succeeded"
    assert residue(workdir) == []


def _runs_victim(supervisor: int) -> bool:
    below = [p for name in ("bash", "sleep", "sh") for p in descendants(supervisor, name)]
    for pid in below:
        with suppress(FileNotFoundError, ProcessLookupError):
            if b"1.begun" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return True
    return False
