"""Usage of a job where no cgroup counts it: real processes below this one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from snakemake_executor_plugin_forge.sandbox.cgroups.polled import PolledJob
from snakemake_executor_plugin_forge.supervisor import process_group
from snakemake_executor_plugin_forge.supervisor.usage import own_peak_kb
from snakemake_executor_plugin_forge.supervisor.writers import look

if TYPE_CHECKING:
    from snakemake_executor_plugin_forge.staging.attempt_files import FilesBefore

MIB = 2**20
PARENT = """
import mmap, os, subprocess, sys, time
mine = bytearray({mine} * 2**20)
file = open({path!r}, "rb")
mapped = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
sum(mapped[::4096])
if os.fork() == 0:
    time.sleep(60)
until = time.process_time() + 0.3
while time.process_time() < until:
    sum(range(100_000))
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[int]:
    """A process with one job below it: 40 MiB of its own that a fork shares, and 60 MiB of a mapped file."""
    path = tmp_path / "mapped"
    path.write_bytes(os.urandom(60 * MIB))
    code = PARENT.format(mine=40, path=str(path))
    above = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {code!r}])"
    process = subprocess.Popen([sys.executable, "-S", "-c", above], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        os.killpg(process.pid, 9)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _job(supervisor: int, memory_bytes: int) -> PolledJob:
    return PolledJob(supervisor, memory_bytes, None, namespaced=False, own_limit=True, nice=0)


def test_neither_mapped_files_nor_shared_pages_are_counted_as_memory(supervisor: int) -> None:
    job = _job(supervisor, 2**40)
    job.sample()
    assert 40 * MIB < job.counters().memory_peak_bytes < 70 * MIB


def test_between_two_close_looks_the_difference_is_remembered(supervisor: int) -> None:
    """200 MiB are resident; Forge walks the page tables at most once in a fifth of a second."""
    job = _job(supervisor, 2**40)
    peaks = []
    for _ in range(5):
        job.sample()
        peaks.append(job.counters().memory_peak_bytes)
    assert max(peaks) < 70 * MIB


def test_beyond_the_limit_is_what_is_its_own(supervisor: int) -> None:
    assert not _job(supervisor, 80 * MIB).sample().over  # more is resident
    assert _job(supervisor, 30 * MIB).sample().over


def test_cpu_time_is_split(supervisor: int) -> None:
    job = _job(supervisor, 2**40)
    job.sample()
    found = job.counters()
    assert found.cpu_user_seconds + found.cpu_system_seconds == pytest.approx(found.cpu_seconds)
    assert found.cpu_user_seconds > found.cpu_system_seconds
    assert found.cpu_seconds > 0.2


def test_orphans_that_have_ended_are_no_processes_of_the_job() -> None:
    """Their CPU time still counts, and sampling does not reap the job's first process."""
    code = """
import os, time
from snakemake_executor_plugin_forge.kernel.process_tree import become_subreaper, children, is_dead
from snakemake_executor_plugin_forge.sandbox.cgroups.polled import PolledJob
become_subreaper()
read, write = os.pipe()
first = os.fork()
if first == 0:
    os.read(read, 1)
    for _ in range(20):
        if os.fork() == 0:
            if os.fork() == 0:
                while time.process_time() < 0.02: pass
            os._exit(0)
        os.wait()
    os._exit(0)
job = PolledJob(os.getpid(), 2**40, 10, namespaced=False, own_limit=True, nice=0)
job.open_procs(first)
os.write(write, b"x")
while not all(map(is_dead, children(os.getpid()))) or len(list(children(os.getpid()))) < 21: time.sleep(0.01)
over = job.sample().over
print(over, list(children(os.getpid())) == [first], job.counters().cpu_seconds >= 0.3)
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout == "False True True\n"


def test_processes_that_have_overwritten_their_arguments_are_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meanwhile the supervisor notices neither an order nor the end of the job's time."""
    code = """
import ctypes
fields = open("/proc/self/stat").read().rpartition(")")[2].split()
begin, end = map(int, fields[45:47])
ctypes.memset(begin, 0, end - begin)
print(flush=True)
input()
"""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = process_group.names([process.pid] * 100)
        process.kill()
    assert len(set(found)) == 1 and f"(process {process.pid})" in found[0]
    assert 0 < len(pauses) <= 20


def test_a_look_at_many_descriptors_is_interrupted() -> None:
    files = cast("FilesBefore", None)  # an interrupted check does not use it
    assert look([os.getpid()], files, failed=False, is_urgent=lambda: True) is None


def test_the_peak_of_a_small_child_is_not_that_of_its_large_parent() -> None:
    """A large process starts a small one, and then a larger one.

    The large one is a fork, as Forge's are: after execve(2) it would have the peak of this test as its own.
    """
    code = (
        "import os, resource, sys\n"
        "if os.fork(): os.wait(); sys.exit()\n"
        "x = bytearray(100 * 2**20)\n"
        "for mine in (1, 200):\n"
        "    os.waitpid(os.posix_spawn(sys.executable, [sys.executable, '-S', '-c', f'bytearray({mine} * 2**20)'], {}), 0)\n"
        "    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    text = subprocess.run([sys.executable, "-S", "-c", code], check=True, capture_output=True, text=True).stdout
    (small, parent), (large, _) = [tuple(map(int, line.split())) for line in text.splitlines()]
    assert small > 100 * 1024, "the kernel no longer hands on the peak"
    assert own_peak_kb(small, started_by=parent) == 0
    assert own_peak_kb(large, started_by=parent) == large > 200 * 1024
