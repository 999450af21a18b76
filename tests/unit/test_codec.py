"""The sandbox of an attempt, written down and read again."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from snakemake_executor_plugin_forge.record.codec import as_json, from_json, plain
from snakemake_executor_plugin_forge.spec.errors import UsageError
from snakemake_executor_plugin_forge.spec.host import Host
from snakemake_executor_plugin_forge.spec.job import Config, FilePolicy, JobRequest, Network, RunContext, Target
from snakemake_executor_plugin_forge.spec.plan import plan

HOST = Host(2**33, 4, "cgroup-v2", "", "root", "", ("mount-ns",))
RUN = RunContext("run", "/work", "/work/.snakemake/forge", (), mount_points=("/", "/work/data"))


@pytest.mark.parametrize("policy", list(FilePolicy))
def test_read_again_it_is_what_it_was(policy: FilePolicy) -> None:
    request = JobRequest(
        "r", {"s": "A"}, 1, 2, {"mem_mb": 100, "forge_nice": 3, "forge_io_weight": 70}, "true", inputs=("in.txt",), outputs=("o.txt",),
        targets=(Target("/work/o.txt", "o.txt", update=True), Target("/else/p", "/else/p", directory=True)),
        real_inputs=("/work/in.txt", "/work/data/x"),
    )
    spec = plan(request, 1, "", "", Config(files=policy, network=Network.OFF, hidden=("/secret",)), HOST, RUN)
    record = {
        "name": spec.name, "rule": "r", "wildcards": {"s": "A"}, "attempt": 1, "command": "true",
        "cpu_mode": str(spec.cpu_mode), "limits": spec.limits.as_json(), "isolation": plain(spec.isolation),
        "environment": {}, "runtime": "host", "workdir": "/work", "inputs": ["in.txt"], "outputs": ["o.txt"],
        "sandbox": as_json(spec),
    }
    found = from_json(json.loads(json.dumps(record)), "shell", "/tmp/shell", {"X": "1"})
    assert found.files == replace(spec.files, audit=False)
    assert (found.network, found.exposed, found.limits, found.root) == (
        spec.network, spec.exposed, replace(spec.limits, wall_seconds=None), None)
    assert found.environment == {"X": "1"}
    with pytest.raises(UsageError, match="too old"):
        from_json({key: value for key, value in record.items() if key != "sandbox"}, "shell", "/tmp", {})
