"""Entries and claims: who may publish what is staged, with real processes and files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.errors import UnfitError
from snakemake_executor_plugin_forge.model import FilePolicy, Files, LaunchSpec, Outcome, Target, Usage, Verdict
from snakemake_executor_plugin_forge.publish import Move, identity
from snakemake_executor_plugin_forge.record.jobdir import write_verdict
from snakemake_executor_plugin_forge.sameness import identify
from snakemake_executor_plugin_forge.staged import Entry, Staging, Status, announce, claim, entries, settle, wanted

from ..property.specs import spec

# A supervisor that is dead: announces, stages, ends.
SUPERVISOR = """
import pickle, sys
from snakemake_executor_plugin_forge.staged import announce
from snakemake_executor_plugin_forge.sameness import identify
job = pickle.load(sys.stdin.buffer)
announce(job, identify(job))
"""
# Everybody starts at the same time, publishes if he may, and says so.
RIVAL = """
import sys
from snakemake_executor_plugin_forge.staged import claim, entries
state, who = sys.argv[1:]
(entry,) = entries(state)
print("ready", flush=True)
sys.stdin.readline()
held = claim(entry)
if held is not None:
    held.publish(who)
    print("published", flush=True)
"""


def _job(workdir: Path) -> LaunchSpec:
    job_dir = workdir / ".snakemake/forge/runs/run1/00001-call"
    job_dir.mkdir(parents=True, exist_ok=True)
    targets = tuple(Target(f"{workdir}/{name}", name) for name in ("x", "y"))
    return replace(spec("00001-call", None), workdir=str(workdir), job_dir=str(job_dir),
                   files=Files(FilePolicy.GUARD, targets=targets))


def _announced(workdir: Path) -> tuple[LaunchSpec, Entry]:
    import pickle

    job = _job(workdir)
    subprocess.run([sys.executable, "-c", SUPERVISOR], input=pickle.dumps(job), check=True)
    (entry,) = entries(f"{workdir}/.snakemake/forge")
    return job, entry


def _staged(workdir: Path) -> Entry:
    job, entry = _announced(workdir)
    layer = workdir / ".snakemake/forge/staging/forge-run1-1-1"
    (layer / "upper").mkdir(parents=True)
    moves = []
    for name in ("x", "y"):
        (layer / "upper" / name).write_text(f"new {name}")
        moves.append(Move.of(f"{layer}/upper/{name}", f"{workdir}/{name}"))
    before = {move.place: identity(move.place) for move in moves}
    Staging(tuple(moves), (), (), before, (str(layer),), str(layer)).save(job.job_dir)
    verdict = Verdict(Outcome.SUCCEEDED, "succeeded", 0, None, Usage(), "2026-01-31T12:00:00+00:00", 1.0, staged=True)
    write_verdict(job, verdict)
    return entry


def test_the_life_of_an_entry(tmp_path: Path) -> None:
    job = _job(tmp_path)
    announce(job, identify(job))
    state = f"{tmp_path}/.snakemake/forge"
    (own,) = entries(state)  # its supervisor is this process
    assert own.supervised()
    assert own.status() is Status.RUNNING
    _, dead = _announced(tmp_path)
    assert dead.status() is Status.OVER
    assert replace(dead, host="elsewhere").status() is Status.ELSEWHERE
    entry = _staged(tmp_path)
    assert entry.status() is Status.STAGED
    assert replace(entry, host="elsewhere").status() is Status.STAGED
    assert wanted(state) == {f"{tmp_path}/.snakemake/forge/staging/forge-run1-1-1"}
    (tmp_path / ".snakemake/forge/adoptable/run1.damaged").write_text("{")
    assert entries(state) == [entry]


def test_one_of_many_publishes(tmp_path: Path) -> None:
    entry = _staged(tmp_path)
    state = f"{tmp_path}/.snakemake/forge"
    rivals = [subprocess.Popen([sys.executable, "-c", RIVAL, state, f"run{n}"], stdin=subprocess.PIPE, text=True,
                               stdout=subprocess.PIPE) for n in range(2, 8)]
    for rival in rivals:
        assert rival.stdout is not None
        assert rival.stdout.readline() == "ready\n"
    said = []
    for rival in rivals:
        assert rival.stdin is not None
        rival.stdin.write("\n")
        rival.stdin.flush()
    for rival in rivals:
        said.append(rival.communicate()[0])
        assert rival.returncode == 0
    assert said.count("published\n") == 1
    assert (tmp_path / "x").read_text() == "new x"
    assert json.loads(Path(entry.directory, "verdict.json").read_text())["adopted"] == f"run{said.index('published' + chr(10)) + 2}"
    assert entries(state) == []
    assert not (tmp_path / ".snakemake/forge/staging/forge-run1-1-1").exists()


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    entry = _staged(tmp_path)
    first = claim(entry)
    assert first is not None
    assert claim(entry) is None
    first.release()
    second = claim(entry)
    assert second is not None
    second.publish("run2")
    assert claim(entry) is None


def test_what_somebody_has_changed_is_not_published(tmp_path: Path) -> None:
    entry = _staged(tmp_path)
    (tmp_path / "y").write_text("mine")
    held = claim(entry)
    assert held is not None
    with pytest.raises(UnfitError, match="y was changed by somebody else"):
        held.publish("run2")
    assert not (tmp_path / "x").exists()
    assert (tmp_path / "y").read_text() == "mine"
    held.discard("y was changed")
    record = json.loads(Path(entry.directory, "verdict.json").read_text())
    assert (record["staged"], record["adopted"], record["discarded"]) == (False, None, "y was changed")
    assert not wanted(f"{tmp_path}/.snakemake/forge")


def test_what_is_gone_is_not_published(tmp_path: Path) -> None:
    entry = _staged(tmp_path)
    os.unlink(tmp_path / ".snakemake/forge/staging/forge-run1-1-1/upper/y")
    held = claim(entry)
    assert held is not None
    with pytest.raises(UnfitError, match="is not there any more"):
        held.publish("run2")
    assert not (tmp_path / "x").exists()


def test_settling(tmp_path: Path) -> None:
    """What was begun is done to the end, what is over is forgotten, what waits goes on waiting."""
    state = f"{tmp_path}/.snakemake/forge"
    entry = _staged(tmp_path)
    assert settle(state, "run2") == []
    assert entries(state) == [entry]
    layer = tmp_path / ".snakemake/forge/staging/forge-run1-1-1"
    moves = [[f"{layer}/upper/{n}", f"{tmp_path}/{n}", os.stat(f"{layer}/upper/{n}").st_ino] for n in ("x", "y")]
    (layer / "journal.json").write_text(json.dumps(moves))
    os.rename(layer / "upper/x", tmp_path / "x")
    held = claim(entry)
    assert held is not None
    assert settle(state, "run2") == []  # somebody is at it
    held.release()
    assert settle(state, "run2") == [f"{tmp_path}/x", f"{tmp_path}/y"]
    assert (tmp_path / "y").read_text() == "new y"
    assert entries(state) == []
    assert not layer.exists()
    _announced(tmp_path / "other")
    settle(f"{tmp_path}/other/.snakemake/forge", "run2")  # it died without a verdict
    assert entries(f"{tmp_path}/other/.snakemake/forge") == []
