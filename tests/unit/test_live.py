"""Usage of running jobs where no cgroup counts it, and the last lines that jobs wrote."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from snakemake_executor_plugin_forge.analysis.live import NOTHING, look, newest_line
from snakemake_executor_plugin_forge.record.identity import start_time
from tests.conftest import DEADLINE

MIB = 2**20


def _soft(pid: int, started: int) -> dict[str, object]:
    return {"process": {"pid": pid, "start_time": started}, "isolation": {"limits": "soft"}}


def test_with_soft_limits_a_process_and_its_children_are_summed_up() -> None:
    code = "import sys, time; x = bytearray(60 * 2**20); print('ready', flush=True); [sum(range(10**6)) for _ in range(5)]; time.sleep(60)"
    both = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {code!r}]); x = bytearray(40 * 2**20); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", both], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        deadline = time.monotonic() + DEADLINE
        while (found := look(_soft(process.pid, start_time(process.pid)))).cpu_seconds in (None, 0) \
                or (found.memory_bytes or 0) < 100 * MIB:
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
        assert found.memory_bytes is not None
        assert 100 * MIB < found.memory_bytes < 180 * MIB
        assert look(_soft(process.pid, start_time(process.pid) + 1)) == NOTHING  # another process with this number
    finally:
        os.killpg(process.pid, 9)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    assert look(_soft(process.pid, 1)) == NOTHING
    assert look({"process": None, "isolation": {"limits": "cgroup-v2"}}) == NOTHING


def test_the_newest_line_is_of_the_stream_that_was_written_last(tmp_path: Path) -> None:
    assert newest_line(str(tmp_path)) == ""
    (tmp_path / "stdout.log").write_text("out\n")
    (tmp_path / "stderr.log").write_text("10%\r50%\r\x1b[31mhalf\n\n")
    os.utime(tmp_path / "stdout.log", (1, 1))
    assert newest_line(str(tmp_path)) == "half"
    os.utime(tmp_path / "stdout.log", (9e9, 9e9))
    assert newest_line(str(tmp_path)) == "out"
