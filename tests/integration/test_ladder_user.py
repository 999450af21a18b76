"""The rungs of an ordinary user on a host with systemd and cgroup v2. Only ordinary users collect them: in the guest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ..conftest import forge, residue, run, write_workflow
from .test_ladder import OUTCOMES, WORKFLOW


@pytest.mark.v2_user
@pytest.mark.kernel_user
def test_inside_a_slurm_job_the_delegated_cgroup_is_used(workdir: Path) -> None:
    """In the guest, a service with Delegate=yes stands for a batch slot, and SLURM_JOB_ID for Slurm: Forge uses its cgroup."""
    write_workflow(workdir, WORKFLOW)
    own = Path("/proc/self/cgroup").read_text()
    done = forge(workdir, "doctor", "--json", "--require", "full", env={"SLURM_JOB_ID": "1"})
    report = json.loads(done.stdout)
    taken = [rung["rung"] for rung in report["rungs"] if rung["refusal"] is None]
    assert (done.returncode, taken) == (0, ["delegated cgroup v2"]), report
    assert Path("/proc/self/cgroup").read_text() == own  # moved back


@pytest.mark.kernel_user
@pytest.mark.parametrize("environment", [
    pytest.param({}, id="scope"),  # in the guest of make test, test_containment.py covers it
    pytest.param({"SLURM_JOB_ID": "1"}, id="delegated", marks=pytest.mark.v2_user),
])
def test_an_ordinary_user_has_a_cgroup(workdir: Path, environment: dict[str, str]) -> None:
    write_workflow(workdir, WORKFLOW)
    result = run(workdir, "-j2", "-k", "ok.out", "oom.out", "hidden.out", "hiding.out", "--forge-require", "full", env=environment)
    assert {a["rule"]: a["outcome"] for a in result.attempts()} == {
        name: OUTCOMES[name] for name in ("ok", "oom", "hidden", "hiding")}, result.output
    assert {a["isolation"]["limits"] for a in result.attempts()} == {"cgroup-v2"}
    assert residue(workdir) == []
