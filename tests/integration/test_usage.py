"""The record's figures for jobs of known use, and jobs whose cgroups or disk others interfere with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from snakemake_executor_plugin_forge.kernel.syscalls import kernel_log

from ..conftest import DEADLINE, PATIENCE, Result, command, ending, residue, run, wait_until, write_workflow

pytestmark = pytest.mark.kernel

MIB = 2**20
SPIN = "while :; do :; done"

# The kernel's own counters are the measure: on a busy machine (the guests of these tests emulate two CPUs beside this)
# four processes may get less than the one CPU of their limit, and nothing is throttled.
SPIN_UNTIL_THROTTLED = """
import glob, os, subprocess, sys, time
with open("/proc/self/cgroup") as lines:
    cgroups = {line.rstrip().split(":", 2)[2] for line in lines}
statistics = [path for path in glob.glob("/sys/fs/cgroup/**/cpu.stat", recursive=True)
              if any(len(group) > 1 and path.endswith(group + "/cpu.stat") for group in cgroups)]
NANOSECONDS = {"throttled_time": 1, "throttled_usec": 1000}  # of cgroup v1 and v2
def throttled():
    values = {key: int(value) for path in statistics for key, value in map(str.split, open(path))}
    seconds = [values[name] * factor / 1e9 for name, factor in NANOSECONDS.items() if name in values]
    return values["nr_throttled"], seconds[0]
spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
assert len(statistics) == 1, (statistics, cgroups)
end = time.monotonic() + 10
while not throttled()[0] and time.monotonic() < end:
    time.sleep(0.2)
for spinner in spinners:
    spinner.kill()
    spinner.wait()
print(*throttled())
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """One run of all jobs below that need no intervention."""
    directory = tmp_path_factory.mktemp("usage").resolve()
    (directory / "spin.py").write_text(SPIN_UNTIL_THROTTLED)
    write_workflow(directory, f"""
        rule all:
            input: expand("{{name}}.out", name=["short", "deleted", "user", "throttled", "writer", "python_writer"])
        rule short:
            output: "short.out"
            resources: mem_mb=400
            shell: "/usr/bin/python3 -S -c 'bytearray(150 * 2**20)'; touch {{output}}"
        rule deleted:
            output: "deleted.out"
            resources: mem_mb=60
            shell: "dd if=/dev/zero of=$TMPDIR/x bs=1M count=200 2>&1; rm $TMPDIR/x; touch {{output}}"
        rule user:
            output: "user.out"
            shell: "(ulimit -t 1; {SPIN}) || true; touch {{output}}"
        rule throttled:
            output: "throttled.out"
            shell: "/usr/bin/python3 -S spin.py; touch {{output}}"
        rule writer:
            output: "writer.out"
            shell: "(dd if=/dev/zero of={{output}} bs=1M count=20 conv=fsync) 2>&1"
        rule python_writer:
            output: "python_writer.out"
            run:
                import subprocess
                subprocess.run(["dd", "if=/dev/zero", "of=" + output[0], "bs=1M", "count=20", "conv=fsync"], check=True)
        """)
    done = run(directory, "-j2", "--keep-going")
    assert done.code == 0, done.output
    assert residue(directory) == []
    return done


def _usage(result: Result, rule: str) -> dict[str, Any]:
    usage: dict[str, Any] = result.attempt(rule)["usage"]
    return usage


@pytest.mark.v2
def test_memory_of_a_job_that_is_over_at_once_and_page_cache_that_is_gone_at_the_end(result: Result) -> None:
    usage = _usage(result, "short")
    assert 150 * MIB < usage["memory_anon_peak_bytes"] <= usage["memory_peak_bytes"] < 180 * MIB
    usage = _usage(result, "deleted")
    assert usage["memory_peak_bytes"] > 40 * MIB
    assert usage["memory_anon_peak_bytes"] < 25 * MIB


@pytest.mark.v2
def test_user_and_system_time_add_up(result: Result) -> None:
    usage = _usage(result, "user")
    assert usage["cpu_user_seconds"] + usage["cpu_system_seconds"] == pytest.approx(usage["cpu_seconds"], abs=1e-3)
    # Under emulation, the kernel needs tenths of a second to start a program.
    assert usage["cpu_user_seconds"] > (0.8 if PATIENCE == 1 else 0.4) * usage["cpu_seconds"] > 0


@pytest.mark.v2
def test_throttling_is_counted(result: Result) -> None:
    attempt = result.attempt("throttled")
    usage = attempt["usage"]
    periods, seconds = map(float, (Path(attempt["directory"]) / "stdout.log").read_text().split())
    assert usage["throttled_periods"] >= periods
    assert usage["throttled_seconds"] >= seconds - 1e-6
    assert periods > 0 or usage["cpu_seconds"] < 0.95 * attempt["seconds"], "the job used its whole limit, and nothing was throttled"
    assert usage["pids_peak"] >= 5
    # cgroup v2 has the pressure of each group, unless it is disabled; v1 never has.
    has_pressure = attempt["isolation"]["limits"] == "cgroup-v2" and Path("/proc/pressure/cpu").exists()
    assert (usage["cpu_pressure_seconds"] or 0) > 0 if has_pressure else usage["cpu_pressure_seconds"] is None


@pytest.mark.v2
@pytest.mark.parametrize("rule", ["writer", "python_writer"])
def test_bytes_written_by_children_are_counted(result: Result, rule: str) -> None:
    assert 20 * MIB <= _usage(result, rule)["io_write_bytes"] < 22 * MIB


def _victim(name: str, attempt: dict[str, Any]) -> tuple[str | None, ...]:
    """The processes that the record may name: none if the kernel wrote no line (it writes at most ten in five seconds)."""
    job = Path(attempt["directory"]).name
    run_name = Path(attempt["directory"]).parent.name
    logged = any(job in line and run_name in line for line in kernel_log(1 << 20).splitlines() if "oom-kill:" in line)
    return (name,) if logged else (None,)


@pytest.mark.v2
def test_whose_limit_it_was(workdir: Path) -> None:
    """The record says whether the run's limit or the job's own was reached, and names the process."""
    write_workflow(workdir, """
        rule hog:
            output: "hog.out"
            shell: "python3 -c 'x = bytearray(400 * 2**20)' || true; sleep 0.2; touch {output}"
        rule limited:
            output: "limited.out"
            resources: mem_mb=100
            run:
                x = bytearray(400 * 2**20)
        """)
    done = run(workdir, "-j1", "--keep-going", "hog.out", "limited.out", "--forge-run-memory", "200MiB")
    attempt, limited = done.attempt("hog"), done.attempt("limited")
    assert (limited["outcome"], limited["evidence"]["scope"]) == ("oom", "job")
    assert limited["evidence"]["process"] is None  # a fork of Snakemake, whose name would not help the user
    assert limited["evidence"]["memory_peak_bytes"] <= limited["evidence"]["limit_bytes"] == 100 * MIB
    assert attempt["outcome"] == "oom"
    assert attempt["evidence"]["scope"] == "run"
    assert attempt["evidence"]["process"] in _victim("python3", attempt)
    assert "--forge-run-memory" in attempt["reason"]
    assert residue(workdir) == []


# -- benchmark files --------------------------------------------------------------------------------------------------

HOLD = "import time; x = bytearray({mb} * 2**20); time.sleep(0.25); del x; time.sleep(0.1)"


@pytest.mark.outside
def test_benchmark_files_have_what_polling_misses(workdir: Path) -> None:
    """They show 200 MB held for 0.25 s, 20 MB written, and the CPU time of a job shorter than a poll, in local's columns."""
    write_workflow(workdir, f"""
        rule all:
            input: "shell.out", "run.out", "short.out", "twice.out"
        rule shell:
            output: "shell.out"
            benchmark: "shell.tsv"
            shell: "python3 -c '{HOLD.format(mb=200)}'; dd if=/dev/zero of={{output}} bs=1M count=20 conv=fsync"
        rule run:
            output: "run.out"
            benchmark: "run.jsonl"
            run:
                x = bytearray(200 * 2**20)
                del x
                open(output[0], "w").close()
        rule short:
            output: "short.out"
            benchmark: "short.tsv"
            shell: "i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; touch {{output}}"
        rule twice:
            output: "twice.out"
            benchmark: repeat("twice.tsv", 2)
            shell: "touch {{output}}"
        """)
    result = run(workdir, "-j1", "--benchmark-extended")
    assert result.code == 0, result.output
    shell, short = (_table(workdir / name)[0] for name in ("shell.tsv", "short.tsv"))
    assert 200 < float(shell["max_rss"]) < 220
    assert 20 <= float(shell["io_out"]) < 21
    assert 0.02 < float(short["cpu_time"]) <= result.attempt("short")["usage"]["cpu_seconds"] + 0.01
    assert float(short["mean_load"]) == pytest.approx(100 * float(short["cpu_time"]) / float(short["s"]), rel=0.1)
    record = json.loads((workdir / "run.jsonl").read_text())
    assert record["max_rss"] > 250  # includes the workflow, as Snakemake's own figure does
    assert list(record) == sorted(record)
    assert list(shell)[:10] == ["s", "h:m:s", "max_rss", "max_vms", "max_uss", "max_pss", "io_in", "io_out", "mean_load",
                                "cpu_time"]
    assert len(_table(workdir / "twice.tsv")) == 2


def _table(path: Path) -> list[dict[str, str]]:
    header, *rows = path.read_text().splitlines()
    return [dict(zip(header.split("\t"), row.split("\t"), strict=True)) for row in rows]


# -- interference with a job's cgroup --------------------------------------------------------------------------------


@pytest.fixture
def sleeper(workdir: Path) -> Iterator[tuple[subprocess.Popen[str], Path, int]]:
    """A sleeping job: Snakemake's process, the working directory, and the pid of the job's process."""
    write_workflow(workdir, """
        rule sleeper:
            output: "sleeper.out"
            shell: "sleep 86399; touch {output}"
        """)
    process = subprocess.Popen(
        command("forge", "-j1", "sleeper.out", "--forge-grace", "1s"),
        cwd=workdir, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
    )
    with ending(process):
        wait_until(lambda: _sleepers(workdir), process)
        yield process, workdir, _sleepers(workdir)[0]


def _sleepers(directory: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.readlink(entry / "cwd") == str(directory) and (entry / "cmdline").read_bytes() == b"sleep\00086399\0":
                found.append(int(entry.name))
    return found


def _groups(pid: int) -> list[Path]:
    """The directories of a process' cgroups that belong to a run of Forge."""
    found = []
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if "/forge-" in path:
            tail = path[path.index("/forge-"):]
            roots = [f"/sys/fs/cgroup/{name}" for name in names.split(",")] if names else ["/sys/fs/cgroup"]
            found += [Path(place) for root in roots for place, _, _ in os.walk(root) if place.endswith(tail)]
    assert found
    return found


def _end(process: subprocess.Popen[str], directory: Path) -> dict[str, Any]:
    output, _ = process.communicate(timeout=DEADLINE)
    assert residue(directory) == [], output
    return Result(process.returncode, output, directory).attempt("sleeper")


@pytest.mark.v2
def test_a_job_that_is_moved_out_of_its_cgroup_is_ended(sleeper: tuple[subprocess.Popen[str], Path, int]) -> None:
    process, directory, pid = sleeper
    shelters = []
    for group in _groups(pid):
        outside = next(p for p in group.parents if not any(part.startswith("forge-") for part in p.parts))
        shelter = outside / f"test-shelter-{pid}"  # v2: a cgroup that delegates controllers may not hold processes itself
        shelter.mkdir()
        shelters.append(shelter)
        # v1 has several cgroups: Forge may end the job, and remove the others, once the first is empty.
        with suppress(OSError) if len(shelters) > 1 else nullcontext():
            for member in (group / "cgroup.procs").read_text().split():
                (shelter / "cgroup.procs").write_text(member)
            group.rmdir()
    attempt = _end(process, directory)
    for shelter in shelters:
        shelter.rmdir()
    assert attempt["outcome"] == "failed"
    # Forge first notices either that the cgroup is empty, or that it is gone.
    assert re.search("cgroup was emptied or removed from outside|removed or changed the job's cgroup", attempt["reason"])
    assert any("counters could not be read" in note for note in attempt["notes"])


@pytest.mark.v2
def test_a_frozen_job_dies_all_the_same(sleeper: tuple[subprocess.Popen[str], Path, int]) -> None:
    """A job frozen in v1's freezer or in a sub-cgroup (v2) dies, and inaccessible sub-cgroups are removed, too."""
    process, directory, pid = sleeper
    (group, *others) = _groups(pid)
    for one in (group, *others):
        (one / "inner" / "deeper").mkdir(parents=True)
        (one / "inner" / "deeper" / "cgroup.procs").write_text(str(pid))
    if Path("/sys/fs/cgroup/freezer").is_dir():
        frozen = Path(f"/sys/fs/cgroup/freezer/forge-test-{pid}")
        frozen.mkdir()
        (frozen / "cgroup.procs").write_text(str(pid))
        (frozen / "freezer.state").write_text("FROZEN")
    else:
        frozen = group / "inner"
        (frozen / "cgroup.freeze").write_text("1")
    for one in (group, *others):
        (one / "inner").chmod(0)
    process.send_signal(signal.SIGTERM)
    try:
        attempt = _end(process, directory)
    finally:
        with suppress(OSError):
            frozen.rmdir()
    assert attempt["outcome"] == "cancelled"
    assert not attempt["notes"]
    assert not frozen.exists()


# -- a full disk ------------------------------------------------------------------------------------------------------

FULL = """
import os, subprocess, sys
from pathlib import Path
from snakemake_executor_plugin_forge.kernel import syscalls
directory = sys.argv[1]
syscalls.unshare(syscalls.CLONE_NEWNS)
syscalls.mount("none", "/", "", syscalls.MS_SLAVE | syscalls.MS_REC)
runs = directory + "/.snakemake/forge"
os.makedirs(runs)
syscalls.mount("forge-test", runs, "tmpfs", 0, "size=256k")
done = subprocess.run(sys.argv[2:], cwd=directory, stdin=subprocess.DEVNULL, check=False)
Path(directory, "notes").write_text(subprocess.run(
    [sys.executable, "-m", "snakemake_executor_plugin_forge.cli.main", "jobs", "--json"],
    cwd=directory, capture_output=True, text=True, check=False).stdout)
sys.exit(done.returncode)
"""


@pytest.mark.outside
def test_a_full_disk_under_the_records(workdir: Path) -> None:
    """Fault 77: the job continues and its outputs count; Forge says that its record is incomplete."""
    write_workflow(workdir, """
        rule all:
            input: "big.out", "next.out"
        rule big:
            output: "big.out"
            shell: "head -c 1000000 /dev/zero | base64; touch {output}"
        rule next:
            input: "big.out"
            output: "next.out"
            shell: "touch {output}"
        """)
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(workdir), *command("forge", "-j1", "--keep-going")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=DEADLINE,
    )
    assert (workdir / "big.out").exists(), done.stdout
    assert "the log is incomplete: No space left on device" in done.stdout
    assert "the record of this attempt" in done.stdout
    assert residue(workdir) == []


@pytest.mark.v2
def test_a_limit_of_one_process_is_one_for_the_job(workdir: Path) -> None:
    """Forge's own process in the job's cgroup does not count."""
    write_workflow(workdir, """
        rule alone:
            output: "alone.out"
            shell: "echo ok > {output}"
        """)
    result = run(workdir, "-j1", "--forge-pids", "1")
    assert result.attempt("alone")["outcome"] == "succeeded", result.output
    assert result.attempt("alone")["usage"]["pids_peak"] == 1
