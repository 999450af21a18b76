"""The runs of a host as shown to the user, and the figures in their cgroups' files."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from snakemake_executor_plugin_forge.analysis.host_runs import HostRun
from snakemake_executor_plugin_forge.cli.host_runs import HEADER, as_json, as_rows
from snakemake_executor_plugin_forge.cli.top import Pace, picture_of_host
from snakemake_executor_plugin_forge.sandbox.cgroups.run_usage import (
    NOTHING,
    RunUsage,
    job_memory,
    run_directories,
    run_usage,
)
from snakemake_executor_plugin_forge.spec.progress import Planned, Progress, RuleProgress

RECORD = {"run": "20260131-120000-7-abcd", "pid": 7, "cores": 8, "started": "2026-01-31T12:00:00+00:00"}
PROGRESS = Progress({"a": RuleProgress(Planned(9), done=3, failed=1, running=(1.0, 2.0))})
NICE = HostRun("/nice", "eve", RECORD, RunUsage(290 << 20, 295 << 20, 300 << 20, 12, 200, 60.0, 50), PROGRESS)
USUAL = HostRun("/usual", "eve", RECORD | {"run": "20260131-120000-8-abcd"}, RunUsage(1 << 30, None, 4 << 30, 3, None, 1.0, 100), None)
POLLED = HostRun("/polled", "1001", RECORD | {"run": "20260131-120000-9-abcd", "cores": None}, RunUsage(memory_bytes=5 << 20, processes=2), None)


def test_rows_have_what_is_used_and_the_budget() -> None:
    nice, usual, polled = (dict(zip(HEADER, row, strict=True)) for row in as_rows([NICE, USUAL, POLLED], {NICE.name: 1.84}))
    assert nice["MEMORY"] == "290.0 MiB of 300.0 MiB" and nice["PEAK"] == "295.0 MiB"
    assert (nice["PROCESSES"], nice["CPUS"], nice["JOBS"]) == ("12 of 200", "1.8 of 8", "2 running, 3 of 9 done, 1 failed")
    assert (nice["CPU SHARE"], usual["CPU SHARE"], polled["CPU SHARE"]) == ("33%", "67%", "-")
    assert (usual["PEAK"], usual["PROCESSES"], usual["JOBS"]) == ("-", "3", "-")
    assert (polled["MEMORY"], polled["CPUS"]) == ("5.0 MiB", "- of -")
    assert as_json([NICE])[0]["jobs"] == {"running": 2, "done": 3, "failed": 1, "pending": 3}


def test_the_view_fits_the_terminal_and_colours_a_run_near_its_limit() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=70, height=7, color_system="standard", force_terminal=True)
    console.print(picture_of_host([NICE, USUAL, POLLED], {}, console.height, console.width))
    shown = stream.getvalue()
    assert "/nice" in shown and "CPU SHARE" not in shown and "1 more" in shown and "/polled" not in shown
    assert "\x1b[31m290.0 MiB" in shown


def test_cores_are_counted_from_sample_to_sample() -> None:
    pace = Pace()
    assert pace.cores([NICE, POLLED]) == {}
    assert pace.cores([NICE, USUAL]) == {NICE.name: 0.0}


def _write(directory: Path, files: dict[str, str]) -> None:
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name).write_text(f"{text}\n")


def test_usage_of_a_run_with_v2(tmp_path: Path) -> None:
    run = tmp_path / "forge-r"
    _write(run, {
        "cgroup.controllers": "cpu memory pids", "memory.current": "5", "memory.peak": "7", "memory.max": "9", "pids.current": "3",
        "pids.max": "max", "cpu.stat": "usage_usec 2500000\nuser_usec 1", "cpu.weight": "100",
    })  # fmt: skip
    _write(run / "a-1", {"memory.current": "4"})
    assert run_directories(1, "forge-r", str(run)) == {}, "the kernel has not made these files"
    directories = {"": str(run)}
    assert run_usage(directories) == RunUsage(5, 7, 9, 3, None, 2.5, 100)
    assert (job_memory(directories, "a-1"), job_memory(directories, "gone")) == (4, 0)
    assert run_usage({"": str(tmp_path / "gone")}) == NOTHING


def test_usage_of_a_run_with_v1(tmp_path: Path) -> None:
    directories = {name: str(tmp_path / name) for name in ("memory", "pids", "cpu", "cpuacct")}
    _write(tmp_path / "memory", {"memory.usage_in_bytes": "5", "memory.max_usage_in_bytes": "7", "memory.limit_in_bytes": str(2**63 - 4096)})
    _write(tmp_path / "pids", {"pids.current": "3", "pids.max": "200"})
    _write(tmp_path / "cpu", {"cpu.shares": "512"})
    _write(tmp_path / "cpuacct", {"cpuacct.usage": "2500000000"})
    assert run_usage(directories) == RunUsage(5, 7, None, 3, 200, 2.5, 50)
    assert run_usage({}) == NOTHING and run_directories(1, "forge-r", "no cgroup can be made") == {}
