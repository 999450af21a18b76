"""What all tests share: a way to run the real ``snakemake`` and to see that nothing is left of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import Cluster, ClusterError

# Root has other rungs of the ladder; these are run in the guest.
collect_ignore = ["integration/test_ladder_user.py"] if os.geteuid() == 0 else []
if "FORGE_GUEST" not in os.environ:  # it has a disk that tests may change
    collect_ignore.append("integration/test_io_weight.py")


_ATTEMPTS = ".snakemake/forge/runs/*/*"  # a directory changes with each file that is put into it

# How many times longer than on a machine of its own everything may take: the guest sets it.
PATIENCE = int(os.environ.get("FORGE_TEST_PATIENCE", "1"))


def pytest_configure() -> None:
    """Let tests be interrupted, and what they start: a shell that puts them into the background forbids that."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this host cannot have at all: pytest's closing line counts it as deselected."""
    if shutil.which("apptainer") is None:
        without = [item for item in items if item.get_closest_marker("apptainer") is not None]
        config.hook.pytest_deselected(items=without)
        items[:] = [item for item in items if item not in without]
    items.sort(key=_turn)


def wants_guest(item: pytest.Item) -> bool:
    """Whether a test asks for what the guest's tests came to."""
    return "guest_reports" in getattr(item, "fixturenames", ())


def _turn(item: pytest.Item) -> int:
    """First what waits most of the time, as a guest is emulated meanwhile; last what wants to know how that went."""
    if wants_guest(item):
        return 3
    if item.get_closest_marker("busy") is not None:
        return 2
    return 1 if item.get_closest_marker("host") is None else 0


@dataclass(frozen=True)
class Result:
    """A finished ``snakemake``."""

    code: int
    output: str
    directory: Path
    _known: dict[tuple[tuple[str, int], ...], list[dict[str, Any]]] = field(default_factory=dict, compare=False)

    def attempts(self, rule: str | None = None) -> list[dict[str, Any]]:
        """The records, as ``snakemake-forge jobs --json`` gives them; asked once for as long as they are what they are.

        Each start of a command takes seconds in the guest.
        """
        state = tuple((path.name, path.stat().st_mtime_ns) for path in sorted(self.directory.glob(_ATTEMPTS)))
        if state not in self._known:
            done = subprocess.run(
                [sys.executable, "-m", "snakemake_executor_plugin_forge.cli.main", "jobs", "--json"],
                cwd=self.directory,
                capture_output=True,
                text=True,
                check=False,
            )
            self._known.clear()
            self._known[state] = json.loads(done.stdout)
        return [a for a in self._known[state] if rule is None or a["rule"] == rule]

    def attempt(self, rule: str) -> dict[str, Any]:
        """The only attempt of a rule."""
        (found,) = self.attempts(rule)
        return found

    def event_names(self, rule: str) -> list[str]:
        """What happened in that attempt."""
        text = Path(self.attempt(rule)["directory"], "events.jsonl").read_text()
        return [json.loads(line)["event"] for line in text.splitlines()]

    def read(self, name: str) -> str:
        """An output."""
        return (self.directory / name).read_text()


def command(executor: str, *arguments: str) -> list[str]:
    """The command line of Snakemake, run by this very interpreter."""
    return [sys.executable, "-m", "snakemake", "--executor", executor, "--scheduler", "greedy", *arguments]


def write_workflow(directory: Path, text: str) -> None:
    """Put a Snakefile there."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "Snakefile").write_text(textwrap.dedent(text))


def run(
    directory: Path,
    *arguments: str,
    executor: str = "forge",
    env: dict[str, str] | None = None,
    before: Sequence[str] = (),
) -> Result:
    """Run the workflow in ``directory`` to its end.

    Args:
        before: of the command: see :func:`.ordinary.prefix`.

    """
    done = subprocess.run(
        [*before, *command(executor, *(arguments or ("-j4",)))],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        check=False,
        timeout=300 * PATIENCE,
        env=os.environ | (env or {}),
    )
    return Result(done.returncode, done.stdout, directory)


def residue(directory: Path) -> list[str]:
    """What is left of runs in ``directory``: processes, cgroups, scratch and staging directories of theirs."""
    runs = directory / ".snakemake" / "forge" / "runs"
    names = [f"forge-{run.name}" for run in runs.iterdir()] if runs.is_dir() else []
    left = [f"scratch /tmp/{name}" for name in names if Path("/tmp", name).exists()]
    with suppress(FileNotFoundError):
        left += [f"staging {name}" for name in os.listdir(directory / ".snakemake" / "forge" / "staging")]
    for parent, directories, _ in os.walk(directory.parent):
        left += [f"staging {parent}" for name in directories if name == ".forge-staging"]
    for parent, directories, _ in os.walk("/sys/fs/cgroup"):
        left += [f"cgroup {parent}/{name}" for name in names if name in directories]
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            with suppress(OSError):  # it ends just now
                if os.readlink(process / "cwd") == str(directory):
                    left.append(f"process {process.name} {(process / 'cmdline').read_bytes()!r}")
    return left


def in_layer(directory: Path, name: str) -> bool:
    """Whether a job has written that file, and it is not at its place yet."""
    with suppress(FileNotFoundError):  # a directory went while it was looked through
        return any(directory.glob(f".snakemake/forge/staging/*/upper/{name}"))
    return False


def written(directory: Path, name: str) -> bool:
    """Whether a job has written that file, at its place or in its layer."""
    return (directory / name).exists() or in_layer(directory, name)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Slurm cluster of two nodes with cgroups, started once. One that cannot be had fails the test."""
    made = Cluster()
    try:
        made.start()
    except ClusterError as error:
        made.stop()
        pytest.fail(str(error), pytrace=False)
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A working directory, checked at the end for residue."""
    return tmp_path.resolve()
