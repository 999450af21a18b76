"""Nice values, by their effect: two jobs compete for one CPU, and the nicer one gets less.

The processes are pinned to one CPU, begin when all are there, and end when the first has had its CPU time: on a busy host that
takes longer, but the ratio stays.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .. import ordinary
from ..conftest import DEADLINE, Result, residue, run, write_workflow
from .test_containment import RUNGS

pytestmark = [pytest.mark.kernel, pytest.mark.kernel_user, pytest.mark.slow]

SECONDS = 0.3  # of CPU time, for the process that gets more
SPIN = """
import os, sys, time
name, cpu, others, session, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], float(sys.argv[5])
os.sched_setaffinity(0, {cpu})
while session != "0" and not open("/proc/self/autogroup").read().endswith(f" nice {session}\\n"):  # Forge sets it at its next look
    time.sleep(0.01)
open(f"here/{name}", "w").close()
deadline = time.monotonic() + 900
while len(os.listdir("here")) < others:
    assert time.monotonic() < deadline, os.listdir("here")
    time.sleep(0.01)
begin, end = time.process_time(), "end-" + name.partition("-")[2]
while time.process_time() - begin < seconds and not os.path.exists(end):
    sum(range(20000))
if not os.path.exists(end):  # of another user, perhaps
    open(end, "w").close()
with open(f"{name}.txt", "w") as file:
    print(time.process_time() - begin, file=file)
"""
CPUS = sorted(os.sched_getaffinity(0))


def _run(directory: Path, rung: str, *arguments: str) -> Result:
    environment = {"SLURM_JOB_ID": "1"} if rung == "delegated" else {}
    before = []
    if rung in ("soft", "none"):
        ordinary.hand_over(directory)
        before = ordinary.prefix(namespaces=rung == "soft")
    # The jobs find each other by their files, so they must see them.
    return run(directory, "--forge-files", "open", *arguments, env=environment, before=before)


def _session(nice: str, rung: str) -> str:
    """The nice value of a job's session; 0 if the job's own cgroup has the weight."""
    return nice if rung in ("soft", "none") and os.path.exists("/proc/self/autogroup") else "0"


@pytest.fixture
def place(workdir: Path) -> Path:
    (workdir / "spin.py").write_text(SPIN)
    (workdir / "here").mkdir()
    (workdir / "here").chmod(0o777)  # an ordinary user's jobs and this process write here
    return workdir


def _cpu_seconds(directory: Path, name: str) -> float:
    used = float((directory / f"{name}.txt").read_text())
    print(f"{name}: {used:.2f} s of CPU time")
    return used


@pytest.mark.v2
@pytest.mark.parametrize("rung", RUNGS)
def test_of_two_jobs_the_nice_one_stands_back(place: Path, rung: str) -> None:
    """Nice values work with and without shares, for commands and for Python. If the host's disks ignore I/O weights,
    Forge says so to a run that asks for them."""
    session = _session("{wildcards.n}", rung)
    write_workflow(place, f"""
        rule all:
            input: expand("{{n}}-{{mode}}.txt", n=[0, 10], mode=["share", "off"])
        rule share:
            output: "{{n}}-share.txt"
            resources: forge_cpu="share", forge_nice=lambda wildcards: int(wildcards.n), forge_io_weight=50
            shell: "{sys.executable} spin.py {{wildcards.n}}-share {CPUS[0]} 4 {session} {SECONDS}"
        rule off:
            output: "{{n}}-off.txt"
            resources: forge_cpu="off", forge_nice=lambda wildcards: int(wildcards.n)
            run:
                import runpy, sys
                sys.argv = ["spin.py", f"{{wildcards.n}}-off", "{CPUS[-1]}", "4", f"{session}", "{SECONDS}"]
                runpy.run_path("spin.py")
        """)
    result = _run(place, rung, "-j4")
    assert result.code == 0, result.output
    found = {f"{n}-{mode}": _cpu_seconds(place, f"{n}-{mode}") for n in (0, 10) for mode in ("share", "off")}
    for mode in ("share", "off"):  # 1.25 to the tenth power is 9.3
        assert found[f"10-{mode}"] < found[f"0-{mode}"] / 3, found
    assert {a["limits"]["nice"] for a in result.attempts()} == {0, 10}
    told = "; no weights for I/O (" in result.output
    assert told or rung not in ("soft", "none")
    for attempt in result.attempts():
        weight = 50 if attempt["rule"] == "share" else 100
        assert attempt["limits"]["io_weight"] == weight
        assert ("io_weight" in attempt["isolation"]["not_enforced"]) == (told and weight == 50)
    assert residue(place) == []


# A delegated cgroup has its weight in the same file as a scope: not tested again in the guest, where a start takes 30 s.
@pytest.mark.parametrize("rung", [rung for rung in RUNGS if rung != "delegated"])
def test_a_nice_run_stands_back_behind_others(place: Path, rung: str) -> None:
    write_workflow(place, f"""
        rule a:
            output: "inside.txt"
            shell: "{sys.executable} spin.py inside {CPUS[0]} 2 {_session("10", rung)} {SECONDS}"
        """)
    command = [sys.executable, "spin.py", "outside", str(CPUS[0]), "2", "0", str(SECONDS)]
    with subprocess.Popen(command, cwd=place, start_new_session=True) as outside:
        try:
            result = _run(place, rung, "-j1", "--forge-nice", "10")
            assert outside.wait(DEADLINE) == 0
        finally:
            outside.kill()
    assert result.code == 0, result.output
    assert _cpu_seconds(place, "inside") < _cpu_seconds(place, "outside") / 3
    assert residue(place) == []


@pytest.mark.outside
def test_of_two_jobs_the_one_with_more_threads_gets_more(place: Path) -> None:
    """Two jobs with one and three threads share one CPU at about one to three."""
    write_workflow(place, f"""
        rule all:
            input: "1-shares.txt", "3-shares.txt"
        rule threads:
            output: "{{n}}-shares.txt"
            threads: lambda wildcards: int(wildcards.n)
            shell: "{sys.executable} spin.py {{wildcards.n}}-shares {CPUS[0]} 2 0 {SECONDS}"
        """)
    result = run(place, "-j4", "--forge-files", "open", "--forge-cpu", "share")
    assert result.code == 0, result.output
    one, three = (_cpu_seconds(place, f"{n}-shares") for n in (1, 3))
    assert 1.5 < three / one < 6
