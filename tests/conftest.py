"""What all tests share: a way to run the real ``snakemake`` and to see that nothing is left of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Root has other rungs of the ladder; these are run in the guest.
collect_ignore = ["integration/test_ladder_user.py"] if os.geteuid() == 0 else []


@dataclass(frozen=True)
class Result:
    """A finished ``snakemake``."""

    code: int
    output: str
    directory: Path

    def attempts(self, rule: str | None = None) -> list[dict[str, Any]]:
        """The records, as ``snakemake-forge jobs --json`` gives them."""
        done = subprocess.run(
            [sys.executable, "-m", "snakemake_executor_plugin_forge.cli.main", "jobs", "--json"],
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
        )
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return [a for a in found if rule is None or a["rule"] == rule]

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


def run(directory: Path, *arguments: str, executor: str = "forge", env: dict[str, str] | None = None) -> Result:
    """Run the workflow in ``directory`` to its end."""
    done = subprocess.run(
        command(executor, *(arguments or ("-j4",))),
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        check=False,
        timeout=300,
        env=os.environ | (env or {}),
    )
    return Result(done.returncode, done.stdout, directory)


def residue(directory: Path) -> list[str]:
    """What is left of runs in ``directory``: processes, cgroups and scratch directories of theirs."""
    runs = directory / ".snakemake" / "forge" / "runs"
    names = [f"forge-{run.name}" for run in runs.iterdir()] if runs.is_dir() else []
    left = [f"scratch /tmp/{name}" for name in names if Path("/tmp", name).exists()]
    for parent, directories, _ in os.walk("/sys/fs/cgroup"):
        left += [f"cgroup {parent}/{name}" for name in names if name in directories]
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                cwd = os.readlink(process / "cwd")
            except OSError:
                continue
            if cwd == str(directory) and int(process.name) != os.getpid():
                left.append(f"process {process.name} {(process / 'cmdline').read_bytes()!r}")
    return left


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A working directory, checked at the end for residue."""
    return tmp_path.resolve()
