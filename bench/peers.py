"""One sandbox, set up and taken down around `bash -c ': > out.txt'`: Forge's, and those of other programs."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench.process import Usage
from bench.settings import FORGE, Executor
from bench.timed import Metrics
from bench.workspace import Workspace

ROOT = Path(__file__).parent.parent
BARE = ["/bin/bash", "-c", ": > out.txt"]
FORGES = ("forge, sandbox", "forge, whole attempt")


@dataclass(frozen=True)
class Peers:
    """Each program in turn, called as for one command; Forge as its supervisors run one sandbox after the other.

    The results name a program that is missing or fails here, with the reason.
    """

    count: int
    name: str = "sandbox"
    _reasons: dict[str, str] = field(default_factory=dict)

    def measure(self, executor: Executor, workspace: Workspace) -> Metrics:
        """Run all programs ``count`` times in turn, and Forge's sandbox as often in one process."""
        if executor.name != FORGE:
            return {}
        directory = workspace.directory("shell")
        calls = self._calls(directory, workspace)
        walls: dict[str, list[float]] = {name: [] for name in calls}
        cpus: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(self.count):
            for name, argv in calls.items():
                usage = workspace.command(argv, directory).finish(workspace.settings.timeout)
                walls[name].append(1000 * usage.wall)
                cpus[name].append(1000 * usage.cpu)
        metrics: Metrics = {}
        for name in calls:
            metrics |= _metrics(name, median(walls[name]), median(cpus[name]), median(walls["bash"]))
        base = self._own("bash", directory, workspace)
        for name, kind in zip(FORGES, ("sandbox", "attempt"), strict=True):
            wall, cpu = self._own(kind, directory, workspace)
            metrics |= _metrics(name, wall, cpu, base[0])
        least = min(metrics[f"{name}_added_ms"][0] for name in calls if name != "bash") if len(calls) > 1 else 0.0
        if least:
            metrics["to_fastest_peer"] = [metrics[f"{FORGES[0]}_added_ms"][0] / least]
        workspace.notes |= {f"sandbox: {name}": reason for name, reason in self._reasons.items()}
        return metrics

    def _own(self, kind: str, directory: Path, workspace: Workspace) -> tuple[float, float]:
        """Return wall and CPU milliseconds of one in ``bench.attempts``; CPU is the extra cost of more of them."""
        used: list[tuple[Usage, float]] = []
        for count in (1, self.count + 1):
            shutil.rmtree(directory / ".snakemake", ignore_errors=True)
            path = f"import sys; sys.path.insert(0, {str(ROOT)!r})"
            code = f"{path}\nfrom bench.attempts import main; main({kind!r}, {count})"
            command = workspace.command([sys.executable, "-c", code], directory)
            usage = command.finish(workspace.settings.timeout)
            used.append((usage, json.loads(command.tail().splitlines()[-1])["wall_s"]))
        return 1000 * used[1][1], 1000 * (used[1][0].cpu - used[0][0].cpu) / self.count

    def _calls(self, directory: Path, workspace: Workspace) -> dict[str, list[str]]:
        found = {"bash": BARE}
        for name, make in PEERS.items():
            if name in self._reasons:
                continue
            program = shutil.which(name, path=f"{Path(sys.executable).parent}:{workspace.path}")
            if program is None:
                self._reasons[name] = "it is not installed"
                continue
            argv = [program, *make(directory), *BARE]
            done = subprocess.run(argv, cwd=directory, capture_output=True, text=True, check=False)
            made = directory / "out.txt"
            if done.returncode or not made.exists():
                self._reasons[name] = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
                continue
            made.unlink()
            found[name] = argv
        return found


def _metrics(name: str, wall: float, cpu: float, bare: float) -> Metrics:
    return {f"{name}_ms": [wall], f"{name}_cpu_ms": [cpu], f"{name}_added_ms": [wall - bare]}


def _bwrap(directory: Path) -> list[str]:
    return [
        *("--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),  # noqa: S108
        *("--bind", str(directory), str(directory), "--chdir", str(directory)),
        *("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent", "--new-session"),
    ]


def _runexec(directory: Path) -> list[str]:
    return ["--read-only-dir", "/", "--full-access-dir", str(directory), "--output", "/dev/null", "--memlimit", "500MB",
            "--"]  # fmt: skip


def _podman(directory: Path) -> list[str]:
    """Use an empty root with the host's /usr in it instead of an image."""
    root = directory / "root"
    for name in ("usr", "etc", "proc", "sys", "dev", "tmp", "run"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        if not (root / name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    return [
        *("run", "--rm", "--runtime=runc", "--cgroup-manager=cgroupfs", "--network=none", "--memory", "500m"),
        *("--ulimit", "nofile=1024:4096", "--ulimit", "nproc=1000:1000", "-v", "/usr:/usr:ro"),
        *("-v", f"{directory}:{directory}", "-w", str(directory), "--rootfs", str(root)),
    ]


PEERS: dict[str, Callable[[Path], list[str]]] = {"bwrap": _bwrap, "runexec": _runexec, "podman": _podman}
"""Other programs with their arguments for a command that may write to a directory, with all their protection."""
