"""``snakemake-forge gc`` removes leftovers of killed runs, and spares those of living and of unknown runs."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_forge.record.identity import start_time
from snakemake_executor_plugin_forge.run.garbage import find

from ..conftest import DEADLINE, command, end_at_once, forge, in_layer, residue, run, wait_until, write_workflow

WORKFLOW = """
    rule held:
        output: "{name}.held"
        shell: "echo {wildcards.name} > $TMPDIR/big; echo {wildcards.name} > {output}; until grep -q go go.txt; do sleep 0.5; done"
    rule kept:
        output: "kept.txt"
        resources: forge_keep_scratch="always"
        shell: "echo scratch > $TMPDIR/mine; touch {output}"
"""


def gc(directory: Path, *words: str) -> list[dict[str, Any]]:
    done = forge(directory, "gc", "--json", *words)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def start(directory: Path, name: str) -> subprocess.Popen[bytes]:
    """Start a run whose job waits, in its own session."""
    process = subprocess.Popen(command("forge", "-j2", "--nolock", f"{name}.held"), cwd=directory, stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_until(lambda: in_layer(directory, f"{name}.held"), process)
    return process


def test_leftovers_of_a_killed_run_go_and_a_living_run_goes_on(tmp_path: Path) -> None:
    tmp_path = tmp_path.resolve()
    write_workflow(tmp_path, WORKFLOW)
    (tmp_path / "go.txt").write_text("")
    assert run(tmp_path, "-j1", "kept.txt").code == 0
    checkpoint = tmp_path / ".snakemake" / "forge" / "checkpoints" / "0123"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state").write_bytes(bytes(10000))
    living = start(tmp_path, "living")
    try:
        dying = start(tmp_path, "dying")
        end_at_once(dying)
        parts: set[str] = set()
        while not {"staging", "scratch"} <= parts:  # until a second has passed and the processes are dead
            parts = {row["part"] for row in gc(tmp_path, "--dry-run", "--leftovers-after", "1s")}
        assert parts <= {"staging", "scratch", "cgroups"}
        left = residue(tmp_path)
        assert any("staging" in item for item in left)
        young = gc(tmp_path)
        assert young == []  # younger than a day
        removed = gc(tmp_path, "--leftovers-after", "1s", "--kept-after", "1d")
        assert parts <= {row["part"] for row in removed} <= {"staging", "scratch", "cgroups"}
        assert not any(row["part"] == "checkpoints" for row in gc(tmp_path, "--kept-after", "1s", "--dry-run"))
        lines = [json.loads(line) for line in (tmp_path / ".snakemake/forge/gc.jsonl").read_text().splitlines()]
        assert [line["path"] for line in lines] == [row["path"] for row in removed]
        assert all(line["host"] == socket.gethostname() and line["why"] for line in lines)
        (tmp_path / "go.txt").write_text("go\n")
        assert living.wait(DEADLINE) == 0
    finally:
        if living.poll() is None:
            end_at_once(living)
    assert (tmp_path / "living.held").read_text() == "living\n"
    assert not (tmp_path / "dying.held").exists()

    assert gc(tmp_path, "--max-kept", "100MB") == []
    (rest,) = gc(tmp_path, "--max-kept", "9000", "--only", "checkpoints")
    assert rest["why"] == "size"
    assert not checkpoint.exists()
    (kept,) = gc(tmp_path, "--kept-after", "1s", "--only", "scratch")
    assert "kept-forge-" in kept["path"]
    assert not Path(kept["path"]).exists()
    assert residue(tmp_path) == []


def test_other_hosts_and_runs_without_a_record_are_left_alone(tmp_path: Path) -> None:
    tmp_path = tmp_path.resolve()
    write_workflow(tmp_path, WORKFLOW)
    (tmp_path / "go.txt").write_text("go\n")
    assert run(tmp_path, "-j1", "a.held").code == 0
    state = tmp_path / ".snakemake" / "forge"
    (done,) = (state / "runs").iterdir()
    record = json.loads((done / "run.json").read_text())
    spec = next(done.glob("*/spec.json"))
    base = Path(json.loads(spec.read_text())["scratch_base"])
    slot, staged = base / "slot-999999999", state / "staging" / f"forge-{done.name}-999999999-1"
    foreign = base / "precious"
    unknown = state / "staging" / "forge-20200101-000000-1-abcd-999999999-1"
    for directory in (slot, staged / "upper", foreign, unknown / "upper"):
        directory.mkdir(parents=True)

    copy = tmp_path / ".forge-copy-999999999-1"
    copy.touch()

    def found(*parts: str) -> list[str]:
        return [item.paths[0] for part in parts for item in find(str(state), str(tmp_path), part)]

    try:
        assert found("staging", "scratch") == [str(staged), str(slot)]
        for change in ({"host": "elsewhere"}, {"pid": os.getpid(), "start_time": start_time(os.getpid()), "ended": None}):
            (done / "run.json").write_text(json.dumps(record | change))
            assert found("staging", "scratch") == []
        (done / "run.json").write_text(json.dumps(record))
        for layer in (staged, unknown):  # a journal in the layer could name the copy
            assert str(copy) not in found("staging")
            shutil.rmtree(layer)
        assert found("staging") == [str(copy)]
        (done / "run.json").write_text(json.dumps(record | {"pid_namespace": 1, "ended": None}))
        assert found("staging", "scratch") == []
        (done / "run.json").write_text(json.dumps(record | {"pid": os.getpid(), "start_time": start_time(os.getpid()), "ended": None}))
        copy.unlink()
        checkpoint = state / "checkpoints" / "x"
        checkpoint.mkdir(parents=True)
        assert found("checkpoints") == []  # this process counts as a living run
        (done / "run.json").write_text(json.dumps(record))
        assert found("checkpoints") == [str(checkpoint)]
        with _lock(checkpoint):  # as an attempt locks it
            assert found("checkpoints") == []
        removed = gc(tmp_path, "--leftovers-after", "1h", "--only", "scratch", "--dry-run")
        assert removed == []  # too young
    finally:
        for directory in (slot, foreign, base):
            directory.rmdir()


@contextmanager
def _lock(directory: Path) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
