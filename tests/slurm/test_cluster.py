"""The tests' own cluster is a real one, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.slurm.cluster import Cluster, Shape

pytestmark = pytest.mark.host


def test_nothing_is_left_of_a_cluster_that_was_stopped_with_a_job_on_it(tmp_path: Path) -> None:
    with Cluster(Shape(nodes=1)) as other:
        other.run("sbatch", f"--output={tmp_path}/out", "--wrap", "setsid sleep 1000 & echo $!; sleep 1000")
        out = tmp_path / "out"
        wait_until(lambda: out.exists() and out.read_text().endswith("\n"))
    process = Path("/proc", out.read_text().strip(), "cmdline")
    assert not process.exists() or b"sleep\x001000" not in process.read_bytes()
    assert not other.root.exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"*/slurm_{other.token}*"))
