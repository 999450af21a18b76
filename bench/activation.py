"""The cost of a runtime for each job: the same shell jobs in a conda environment and on the host."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from bench.settings import FORGE, Executor
from bench.timed import Metrics
from bench.workspace import Workspace

CATALOG = "version: 1\ndefaults: {runtime: tools}\nruntimes: {tools: {conda: tools}}\n"
HOOK = "export FORGE_BENCH_HOOK=active\n"
FILES = 100


@dataclass(frozen=True)
class Activation:
    """Pairs of runs with Forge alone: the other executors need a real conda, which is not here."""

    jobs: int
    name: str = "activation"
    _order: list[str] = field(default_factory=lambda: ["host", "conda"])

    def measure(self, executor: Executor, workspace: Workspace) -> Metrics:
        """Run all jobs on the host and in the environment, in an order that turns with every round."""
        if executor.name != FORGE:
            return {}
        used = {}
        for runtime in self._order:
            directory = workspace.directory("shell")
            if runtime == "conda":
                make_environment(directory / "tools")
                (directory / "forge.yaml").write_text(CATALOG)
            used[runtime] = workspace.snakemake(executor, directory, self.jobs, steps=self.jobs + 1)
        self._order.reverse()
        host, conda = used["host"], used["conda"]
        return {
            "host_wall_s": [host.wall],
            "conda_wall_s": [conda.wall],
            "conda_to_host": [conda.wall / host.wall],
            "conda_to_host_cpu": [conda.cpu / host.cpu],
            "added_ms": [1000 * (conda.wall - host.wall) / self.jobs],
            "added_cpu_ms": [1000 * (conda.cpu - host.cpu) / self.jobs],
        }


def make_environment(prefix: Path) -> None:
    """Make the environment that an installer leaves: files, the list of their checksums, a hook."""
    paths = []
    bodies = {f"share/{n}.txt": f"{n}\n".encode() * 1000 for n in range(FILES)}
    bodies["etc/conda/activate.d/bench.sh"] = HOOK.encode()
    for name, body in bodies.items():
        path = prefix / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        sha256 = hashlib.sha256(body).hexdigest()
        paths.append({"_path": name, "path_type": "hardlink", "sha256": sha256, "size_in_bytes": len(body)})
    (prefix / "bin").mkdir()
    record = {"name": "bench", "version": "1.0", "build": "0", "paths_data": {"paths": paths, "paths_version": 1}}
    (prefix / "conda-meta").mkdir()
    (prefix / "conda-meta" / "bench-1.0-0.json").write_text(json.dumps(record))
