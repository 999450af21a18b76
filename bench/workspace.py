"""The temporary directory of one call: working directories, environment, data and the Snakemake command."""

import base64
import os
import random
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.process import BenchError, Command, Usage
from bench.settings import EXECUTORS, LOCAL, Executor, Settings

WORKFLOWS = Path(__file__).parent / "workflows"
DONE = re.compile(r"^(\d+) of (\d+) steps \(100%\) done$", re.MULTILINE)


class Workspace:
    """Makes working directories and runs Snakemake in them, the same way for every executor."""

    def __init__(self, root: Path, settings: Settings, notes: dict[str, str] | None = None) -> None:
        """Use ``root``, an empty directory that the caller removes; ``notes`` say why something is not measured."""
        self.notes = {} if notes is None else notes
        self.root = root
        self.settings = settings
        self._serial = 0
        self._env = self._clean_environment()

    def directory(self, workflow: str) -> Path:
        """Make a fresh working directory with the named workflow as its Snakefile."""
        self._serial += 1
        path = self.root / f"{self._serial:04d}-{workflow}"
        (path / "out").mkdir(parents=True)
        shutil.copy(WORKFLOWS / f"{workflow}.smk", path / "Snakefile")
        shutil.copy(WORKFLOWS / "job.py", path)
        (path / "in.txt").write_text("input\n")
        return path

    @property
    def path(self) -> str:
        """The search path of programs."""
        return self._env.get("PATH", os.defpath)

    def heavy_data(self) -> Path:
        """Return the input of the heavy case, written on the first call."""
        path = self.root / "data.txt"
        if not path.exists():
            write_data(path, self.settings.sizes.heavy_megabytes)
        return path

    def command(self, argv: Sequence[str], directory: Path) -> Command:
        """Start a command with the environment shared by all measurements."""
        return Command(argv, directory, self._env, self.root / "output.log")

    def start(self, executor: Executor, directory: Path, cores: int, config: Sequence[str]) -> Command:
        """Start Snakemake with the executor in the directory."""
        # Writing back the last run's dirty pages must not slow this run.
        os.sync()
        options = ["--config", *config, "-j", str(cores), "--scheduler", executor.scheduler, *executor.args]
        return self.command([sys.executable, "-m", "snakemake", *options], directory)

    def snakemake(self, executor: Executor, directory: Path, jobs: int, steps: int, cores: int | None = None) -> Usage:
        """Run Snakemake with ``jobs=N`` to its end and check that it ran exactly ``steps`` jobs."""
        command = self.start(executor, directory, cores or self.settings.cores, [f"jobs={jobs}"])
        usage = command.finish(self.settings.timeout)
        check_steps(command, steps)
        return usage

    def up_to_date(self, jobs: int) -> Path:
        """Make a directory of the shell workflow in which Snakemake has nothing to do for ``jobs`` jobs.

        Snakemake runs one job; its output and its metadata record are the pattern for all others. Snakemake
        itself, also with ``--touch``, would take far longer to make them than the benchmark takes.
        """
        directory = self.directory("shell")
        self.snakemake(EXECUTORS[LOCAL], directory, jobs=1, steps=2)
        metadata = directory / ".snakemake" / "metadata"
        pattern = (metadata / _record_name(0)).read_text()
        stat = (directory / _output(0)).stat()
        for number in range(1, jobs):
            path = directory / _output(number)
            path.write_text(f"{number}\n")
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            record = pattern.replace(f"echo 0 > {_output(0)}", f"echo {number} > {_output(number)}")
            (metadata / _record_name(number)).write_text(record)
        return directory

    def _clean_environment(self) -> dict[str, str]:
        """Return the caller's environment without its Snakemake settings, and with caches in this workspace."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("SNAKEMAKE_")}
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "TMPDIR"):
            path = self.root / name.lower()
            path.mkdir()
            env[name] = str(path)
        return env


def remove_outputs(directory: Path, total: int, count: int) -> None:
    """Remove ``count`` of ``total`` outputs, spread evenly."""
    for number in range(count):
        (directory / _output(number * total // count)).unlink()


def check_steps(command: Command, steps: int) -> None:
    """Check in Snakemake's output that it ran exactly ``steps`` jobs (the target rule is one of them)."""
    found = DONE.findall(command.log.read_text(errors="replace"))
    if not found or found[-1] != (str(steps), str(steps)):
        raise BenchError(f"expected {steps} steps to be done, Snakemake says otherwise\n{command.tail()}")


def write_data(path: Path, megabytes: int) -> None:
    """Write a deterministic table of random keys, as compressible as text, in no order."""
    chance = random.Random(20_240_101)
    with path.open("wb") as stream:
        while stream.tell() < megabytes * 1_000_000:
            numbers = ((chance.getrandbits(32), chance.getrandbits(16), chance.random()) for _ in range(40_000))
            stream.write(b"".join(b"%08x\tgene%05d\t%.4f\n" % row for row in numbers))


def _output(number: int) -> str:
    return f"out/{number}.txt"


def _record_name(number: int) -> str:
    """Return the file name of an output's metadata record in Snakemake's file persistence."""
    return base64.urlsafe_b64encode(_output(number).encode()).decode()
