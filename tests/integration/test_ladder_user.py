"""The rungs that an ordinary user has on a host with systemd and cgroup v2. Collected by ordinary users only: the guest."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from ..conftest import residue, run, write_workflow
from .test_ladder import DOCTOR, OUTCOMES, WORKFLOW


@pytest.mark.kernel_user
def test_inside_a_slurm_job_the_delegated_cgroup_is_used(workdir: Path) -> None:
    """In the guest: a service with Delegate=yes stands for a batch slot that delegates; SLURM_JOB_ID is all of Slurm."""
    write_workflow(workdir, WORKFLOW)
    own = Path("/proc/self/cgroup").read_text()
    done = subprocess.run([*DOCTOR, "--json", "--require", "full"], cwd=workdir, capture_output=True, text=True,
                          check=False, timeout=60, env=os.environ | {"SLURM_JOB_ID": "1"})
    report = json.loads(done.stdout)
    taken = [rung["rung"] for rung in report["rungs"] if rung["refusal"] is None]
    assert (done.returncode, taken) == (0, ["delegated cgroup v2"]), report
    assert Path("/proc/self/cgroup").read_text() == own  # stepped back


@pytest.mark.kernel_user
def test_an_ordinary_user_gets_a_delegated_scope(workdir: Path) -> None:
    write_workflow(workdir, WORKFLOW)
    result = run(workdir, "-j2", "-k", "ok.out", "oom.out", "hidden.out", "hiding.out", "--forge-require", "full")
    assert {a["rule"]: a["outcome"] for a in result.attempts()} == {
        name: OUTCOMES[name] for name in ("ok", "oom", "hidden", "hiding")}, result.output
    assert {a["isolation"]["limits"] for a in result.attempts()} == {"cgroup-v2"}
    assert residue(workdir) == []
