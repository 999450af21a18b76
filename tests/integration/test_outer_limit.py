"""Out of memory outside Forge: a cgroup around Snakemake with less memory than the run's budget.

Only on cgroup v1, where a test can make a cgroup below its own; without a marker, so not in the guest.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import DEADLINE, Result, command, residue, write_workflow

pytestmark = pytest.mark.slow

MIB = 2**20


@pytest.fixture
def outer(workdir: Path) -> Iterator[Path]:
    """A memory cgroup with 400 MiB."""
    own = next(line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line)
    group = Path(f"/sys/fs/cgroup/memory{own}/forge-test-{workdir.name}")
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(400 * MIB))
    yield group
    group.rmdir()


def test_a_job_dies_and_not_snakemake(workdir: Path, outer: Path) -> None:
    """The job has thirty processes of 20 MiB. Snakemake is larger than each, so by size the kernel would kill Snakemake."""
    write_workflow(workdir, """
        rule hogs:
            output: "hogs.out"
            threads: 2
            shell:
                "for i in $(seq 30); do python3 -S -c 'x = bytearray(20 << 20); import time; time.sleep(600)' & done; "
                "wait -n || true; kill $(jobs -p); touch {output}"
        """)
    enter = f'echo $$ > {outer}/cgroup.procs; exec "$@"'
    done = subprocess.run(
        ["bash", "-c", enter, "bash", *command("forge", "-j2", "hogs.out", "--forge-run-memory", "2GiB")],
        cwd=workdir, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=DEADLINE,
    )
    attempt = Result(done.returncode, done.stdout, workdir).attempt("hogs")
    assert done.returncode == 1, done.stdout
    assert "2.0 GiB (--forge-run-memory; there are only " in done.stdout
    assert attempt["outcome"] == "oom", attempt["reason"]
    assert attempt["evidence"]["scope"] == "outside"
    where = attempt["evidence"]["where"]  # unknown if the kernel has just written too many such lines
    assert where is None or outer.name in where
    assert residue(workdir) == []
