"""The tests' own cluster is a real one, and nothing is left of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, Shape

pytestmark = [pytest.mark.host, pytest.mark.timeout(300)]


def test_jobs_run_on_both_nodes_in_cgroups_with_their_limits(cluster: Cluster, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    script = ('echo "$SLURMD_NODENAME" $(grep :memory: /proc/self/cgroup) $(grep ^0:: /proc/self/cgroup); sleep 1')
    done = cluster.run("sbatch", "--wait", "--exclusive", "--mem=100", "--array=0-1", f"--output={tmp_path}/out-%a",
                       "--wrap", script)
    assert done.returncode == 0, done.stderr + cluster.logs()
    seen = [(tmp_path / f"out-{number}").read_text() for number in range(2)]
    assert sorted(text.split()[0] for text in seen) == cluster.nodes
    assert all(f"slurm_{text.split()[0]}" in text.split()[1] or "slurm" in text for text in seen)


def test_nothing_is_left_of_a_cluster_that_was_stopped_with_a_job_on_it(tmp_path: Path) -> None:
    with Cluster(Shape(nodes=1)) as other:
        other.run("sbatch", f"--output={tmp_path}/out", "--wrap", "setsid sleep 1000 & echo $!; sleep 1000")
        deadline = time.monotonic() + 30
        while not (text := (tmp_path / "out").read_text() if (tmp_path / "out").exists() else ""):
            assert time.monotonic() < deadline, other.logs()
            time.sleep(0.05)
    process = Path("/proc", text.strip(), "cmdline")
    assert not process.exists() or b"sleep\x001000" not in process.read_bytes()
    assert not other.root.exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"*/slurm_{other.token}*"))
