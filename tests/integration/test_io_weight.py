"""Weights for I/O, by their effect: in the guest, which has a slow disk (tests/host/guest.py).

Root must enable the scheduler bfq or the cost model, which divide a disk by weight; tests do not change the host's
own disks. So these tests are collected only in the guest.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import DEADLINE, forge, residue, run, write_workflow

pytestmark = pytest.mark.kernel

SECONDS = 6.0
DISK = "vdc"
COSTS = Path("/sys/fs/cgroup/io.cost.qos")
# The model gives the disk 150 requests per second, which it can do; the kernel hands out exactly that.
MODEL = "ctrl=user model=linear rbps=2000000 rseqiops=150 rrandiops=150 wbps=2000000 wseqiops=150 wrandiops=150"
QOS = "enable=1 ctrl=user rpct=0 rlat=100000 wpct=0 wlat=100000 min=100.00 max=100.00"
READERS = 4
# Several readers each: a single reader has no request while it waits for a CPU, and then the disk has nothing to divide.
READ = """
import mmap, os, sys, threading, time
name, path, others, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
file = os.open(path, os.O_RDONLY | os.O_DIRECT)
size = os.fstat(file).st_size
open(f"here/{name}", "w").close()
deadline = time.monotonic() + 300
while len(os.listdir("here")) < others:
    assert time.monotonic() < deadline, os.listdir("here")
    time.sleep(0.01)
done, end = [0] * READERS, time.monotonic() + seconds
def read(reader):
    page = mmap.mmap(-1, 4096)
    while time.monotonic() < end:
        os.preadv(file, [page], (done[reader] * READERS + reader) * 4096 % size)
        done[reader] += 1
threads = [threading.Thread(target=read, args=[reader]) for reader in range(READERS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
with open(f"{name}.txt", "w") as out:
    print(sum(done), file=out)
""".replace("READERS", str(READERS))


@pytest.fixture
def place(workdir: Path) -> Iterator[Path]:
    """A directory with the program, and the slow disk mounted beside it; nothing divides the disk yet."""
    (workdir / "read.py").write_text(READ)
    (workdir / "here").mkdir()
    disk = workdir.parent / f"{workdir.name}-disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "ext4", f"/dev/{DISK}", str(disk)], check=True)
    try:
        yield workdir
    finally:
        _switch("none")
        subprocess.run(["umount", str(disk)], check=True)


def _disk(place: Path) -> Path:
    return place.parent / f"{place.name}-disk"


def _switch(how: str) -> None:
    """Have the disk divided by bfq, by the cost model, or not at all."""
    number = Path(f"/sys/block/{DISK}/dev").read_text().strip()
    if COSTS.exists():  # v2
        COSTS.write_text(f"{number} enable=0")
    queue = Path(f"/sys/block/{DISK}/queue")
    (queue / "scheduler").write_text("bfq" if how == "bfq" else "none")
    if how == "bfq":
        (queue / "iosched/low_latency").write_text("0")  # otherwise bfq favours a process that has just begun
        # bfq waits this long for the heavier job's next read: beside other tests that job also waits for a CPU.
        (queue / "iosched/slice_idle").write_text("100")
    elif how == "iocost":
        COSTS.with_name("io.cost.model").write_text(f"{number} {MODEL}")
        COSTS.write_text(f"{number} {QOS}")


def _reads(place: Path, name: str) -> int:
    done = int((place / f"{name}.txt").read_text())
    print(f"{name}: {done} reads")
    return done


@pytest.mark.v2
@pytest.mark.parametrize("how", ["bfq", "iocost"])
def test_of_two_jobs_the_lighter_one_reads_less(place: Path, how: str) -> None:
    write_workflow(place, f"""
        rule all:
            input: expand("{{weight}}.txt", weight=[1000, 50])
        rule a:
            output: "{{weight}}.txt"
            resources: forge_io_weight=lambda wildcards: int(wildcards.weight)
            shell: "{sys.executable} read.py {{wildcards.weight}} {_disk(place)}/{{wildcards.weight}} 2 {SECONDS}"
        """)
    _switch(how)
    # The jobs find each other by their files, so they must see them.
    result = run(place, "-j2", "--forge-files", "open", "--forge-require", "full")
    assert result.code == 0, result.output
    assert _reads(place, "50") < _reads(place, "1000") / 2
    attempts = {a["limits"]["io_weight"]: a["isolation"]["not_enforced"] for a in result.attempts()}
    assert attempts == {50: [], 1000: []}
    assert "no weights for I/O" not in result.output
    assert residue(place) == []


@pytest.mark.v2
def test_a_light_run_reads_less_than_others(place: Path) -> None:
    write_workflow(place, f"""
        rule a:
            output: "inside.txt"
            shell: "{sys.executable} read.py inside {_disk(place)}/50 2 {SECONDS}"
        """)
    _switch("bfq")
    command = [sys.executable, "read.py", "outside", f"{_disk(place)}/1000", "2", str(SECONDS)]
    with subprocess.Popen(command, cwd=place) as outside:
        try:
            result = run(place, "-j1", "--forge-files", "open", "--forge-io-weight", "10", "--forge-require", "limits")
            assert result.code == 0, result.output
            assert outside.wait(DEADLINE) == 0
        finally:
            outside.kill()
    assert _reads(place, "inside") < _reads(place, "outside") / 2


@pytest.mark.v2
def test_what_no_disk_divides_is_not_pretended(place: Path) -> None:
    """Forge refuses a required weight if no disk enforces it; doctor agrees."""
    write_workflow(place, "rule a:\n    output: 'a.txt'\n    resources: forge_io_weight=50\n    shell: 'echo > {output}'\n")
    refused = run(place, "-j1", "--forge-require", "limits")
    assert refused.code != 0
    words = "io.weight and io.bfq.weight can be written, but no block device here has the scheduler bfq"
    asked = "--forge-require=limits: Rule a asks for forge_io_weight=50, which this host does not give"
    assert f"{asked} ({words}" in refused.output
    assert not (place / "a.txt").exists()
    assert _row(place) == ("not enforced", "echo bfq > /sys/block/DISK/queue/scheduler")
    _switch("bfq")
    assert _row(place) == ("enforced", "")


def _row(place: Path) -> tuple[str, str]:
    """doctor's state of I/O weights, and the last line of its advice on them; it accepts a host without weights."""
    done = forge(place, "doctor", "--json", "--require", "full")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    (row,) = [row for row in report["enforced"] if row["what"] == "I/O weight"]
    advice = [item["do"].splitlines()[-1] for item in report["advice"] if "--forge-io-weight" in item["why"]]
    return row["state"], "".join(advice)
