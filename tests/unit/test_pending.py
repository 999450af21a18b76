"""Entries and claims decide who publishes staged outputs; with real processes and files."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from snakemake_executor_plugin_forge.record.attempt_dir import write_verdict
from snakemake_executor_plugin_forge.record.codec import read_verdict
from snakemake_executor_plugin_forge.spec import words
from snakemake_executor_plugin_forge.spec.errors import UnfitError
from snakemake_executor_plugin_forge.spec.job import FilePolicy, Files, LaunchSpec, Target
from snakemake_executor_plugin_forge.spec.outcome import revised
from snakemake_executor_plugin_forge.spec.verdict import Cause, Outcome, Usage, Verdict
from snakemake_executor_plugin_forge.staging import journal
from snakemake_executor_plugin_forge.staging.confines import in_words
from snakemake_executor_plugin_forge.staging.file_version import file_version
from snakemake_executor_plugin_forge.staging.fingerprint import take_fingerprint
from snakemake_executor_plugin_forge.staging.journal import Move
from snakemake_executor_plugin_forge.staging.liveness import occupied
from snakemake_executor_plugin_forge.staging.pending import (
    Entry,
    EntryClaim,
    Status,
    add_entry,
    claim,
    entries,
)
from snakemake_executor_plugin_forge.staging.recovery import Inventory, recover_dead_runs
from snakemake_executor_plugin_forge.staging.scene import LayerPlace, Scene
from snakemake_executor_plugin_forge.staging.waiting import WaitingOutputs

from ..property.specs import spec

pytestmark = pytest.mark.security

# A supervisor that announces, stages and ends.
SUPERVISOR = """
import pickle, sys
from snakemake_executor_plugin_forge.staging.pending import add_entry
from snakemake_executor_plugin_forge.staging.fingerprint import take_fingerprint
job = pickle.load(sys.stdin.buffer)
add_entry(job, take_fingerprint(job))
"""
# All rivals start at the same time; each publishes if it may, and says so.
RIVAL = """
import sys
from snakemake_executor_plugin_forge.staging.pending import claim, entries
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
    job = _job(workdir)
    subprocess.run([sys.executable, "-c", SUPERVISOR], input=pickle.dumps(job), check=True)
    (entry,) = entries(f"{workdir}/.snakemake/forge")
    return job, entry


def _staged(workdir: Path, undeclared: Scene | None = None) -> Entry:
    job, entry = _announced(workdir)
    layer = workdir / ".snakemake/forge/staging/forge-run1-1-1"
    (layer / "upper").mkdir(parents=True)
    moves = []
    for name in ("x", "y"):
        (layer / "upper" / name).write_text(f"new {name}")
        moves.append(Move.of(f"{layer}/upper/{name}", f"{workdir}/{name}"))
    before = {move.place: file_version(move.place) for move in moves}
    WaitingOutputs(tuple(moves), (), (), before, (str(layer),), str(layer), undeclared).save(job.job_dir)
    verdict = Verdict(Outcome.SUCCEEDED, "succeeded", 0, None, Usage(), "2026-01-31T12:00:00+00:00", 1.0, staged=True)
    write_verdict(job, verdict)
    return entry


def test_the_life_of_an_entry(tmp_path: Path) -> None:
    job = _job(tmp_path)
    add_entry(job, take_fingerprint(job))
    state = f"{tmp_path}/.snakemake/forge"
    (own,) = entries(state)  # its supervisor is this process
    assert own.supervised()
    assert own.status() is Status.RUNNING
    _, dead = _announced(tmp_path)
    assert dead.status() is Status.OVER
    assert replace(dead, host="elsewhere").status() is Status.ELSEWHERE
    entry = _staged(tmp_path)
    assert entry.status() is Status.WAITING
    assert replace(entry, host="elsewhere").status() is Status.WAITING
    assert occupied(entries(state))[0] == {f"{tmp_path}/.snakemake/forge/staging/forge-run1-1-1"}
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


def test_what_somebody_has_changed_or_removed_is_not_published(tmp_path: Path) -> None:
    entry = _staged(tmp_path)
    layer = tmp_path / ".snakemake/forge/staging/forge-run1-1-1/upper"
    held = claim(entry)
    assert held is not None
    assert claim(entry) is None
    os.rename(layer / "y", tmp_path / "aside")
    with pytest.raises(UnfitError, match="is missing"):
        held.publish("run2")
    os.rename(tmp_path / "aside", layer / "y")
    (tmp_path / "y").write_text("mine")
    with pytest.raises(UnfitError, match="y was changed by another process"):
        held.publish("run2")
    assert not (tmp_path / "x").exists()
    assert (tmp_path / "y").read_text() == "mine"
    held.discard("y was changed")
    record = json.loads(Path(entry.directory, "verdict.json").read_text())
    assert (record["staged"], record["adopted"], record["discarded"]) == (False, None, "y was changed")
    assert not occupied(entries(f"{tmp_path}/.snakemake/forge"))[0]


def test_what_was_not_declared_is_published_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that others appended meanwhile stay; a file that no job made makes the outputs unfit."""
    upper = tmp_path / ".snakemake/forge/staging/forge-run1-1-1/upper"
    begin_ns, targets = time.time_ns(), (f"{tmp_path}/x", f"{tmp_path}/y")
    scene = Scene("call", str(tmp_path), f"{tmp_path}/.snakemake/forge", begin_ns, (LayerPlace(str(tmp_path), str(upper), True),),
                  targets, (), (), appended={f"{tmp_path}/log": 0})  # fmt: skip
    entry = _staged(tmp_path, scene)
    (upper / "log").write_text("mine\n")
    (upper / "raw").write_text("new")
    (tmp_path / "raw").write_text("raw")
    held = claim(entry)
    assert held is not None
    with pytest.raises(UnfitError, match="raw"):
        held.publish("run2")
    assert not (tmp_path / "x").exists()
    (tmp_path / "raw").unlink()
    (tmp_path / "log").write_text("other\n")
    os.setxattr(tmp_path / "log", "user.forge.rule", b"other")
    monkeypatch.setattr(EntryClaim, "_note", mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        held.publish("run2")
    monkeypatch.undo()
    held.release()
    assert WaitingOutputs.read(entry.directory).is_begun()
    assert recover_dead_runs(f"{tmp_path}/.snakemake/forge", str(tmp_path), "run3").published
    assert {name: (tmp_path / name).read_text() for name in ("x", "log", "raw")} == {
        "x": "new x", "log": "other\nmine\n", "raw": "new"}


def test_recovery(tmp_path: Path) -> None:
    """It finishes interrupted publications, removes entries that are over, and keeps outputs that wait."""
    state = f"{tmp_path}/.snakemake/forge"

    def recover() -> tuple[str, ...]:
        return recover_dead_runs(state, str(tmp_path), "run2").published

    entry = _staged(tmp_path)
    assert recover() == ()
    assert entries(state) == [entry]
    (waiting,) = Inventory(state, str(tmp_path)).waiting()
    assert (waiting.paths, waiting.run, waiting.wanted) == ((entry.directory,), "run1", True)
    layer = tmp_path / ".snakemake/forge/staging/forge-run1-1-1"
    moves = tuple(Move.of(f"{layer}/upper/{n}", f"{tmp_path}/{n}") for n in ("x", "y"))
    journal.write(str(layer), journal.Journal(moves))
    os.rename(layer / "upper/x", tmp_path / "x")
    held = claim(entry)
    assert held is not None
    assert recover() == ()  # another process has claimed it
    held.release()
    assert recover() == (f"{tmp_path}/x", f"{tmp_path}/y")
    assert (tmp_path / "y").read_text() == "new y"
    assert entries(state) == []
    assert not layer.exists()
    _announced(tmp_path / "other")
    recover_dead_runs(f"{tmp_path}/other/.snakemake/forge", f"{tmp_path}/other", "run2")  # it died without a verdict
    assert entries(f"{tmp_path}/other/.snakemake/forge") == []


def test_a_failed_adoption_is_on_record_until_one_succeeds(tmp_path: Path) -> None:
    """``why`` reads the record: the job failed for this run; its outputs wait for a run without the cause."""
    entry = _staged(tmp_path)
    for _ in range(2):
        held = claim(entry)
        assert held is not None
        verdict = read_verdict(entry.directory)
        assert verdict is not None
        held.note_failure(revised(verdict, Outcome.FAILED, Cause.UNPUBLISHED, words.unseen(Cause.UNPUBLISHED, "run1", "no permission")))
        held.release()
        noted = read_verdict(entry.directory)
        assert noted is not None and noted.staged and noted.outcome is Outcome.FAILED and "no permission" in noted.reason
        assert entry.status() is Status.WAITING
    held = claim(entry)
    assert held is not None
    published = held.publish("run2")
    assert (published.outcome, published.staged) == (Outcome.SUCCEEDED, False)
    assert "no permission" not in published.reason and (tmp_path / "x").read_text() == "new x"


def test_what_was_forged_moves_and_removes_nothing(tmp_path: Path) -> None:
    """Journals and lists may only move files from staging to places where jobs of their run can have outputs."""
    work, victim, key = tmp_path / "work", tmp_path / "victim", tmp_path / "key"
    state, staging = work / ".snakemake/forge", work / ".snakemake/forge/staging"
    layer, beside = staging / "forge-run1-99999999-1", staging / "forge-run1-99999998-1"
    for path in (layer / "upper", beside / "upper", victim):
        path.mkdir(parents=True)
    (layer / "upper/x").write_text("new")
    key.write_text("secret")
    (work / ".forge-copy-1-1").write_text("copy")
    (victim / ".forge-copy-1-1").write_text("copy")
    good = Move.of(f"{layer}/upper/x", f"{work}/x")
    forged = [good._replace(place=str(victim / "x")), good._replace(place=f"{work}/../victim/x"), good._replace(place=f"{state}/origin"),
              good._replace(place=f"{work}/.forge-staging/x"), Move.of(str(key), f"{work}/x"), Move.of(str(key), f"{layer}/trash/0")._replace(is_deletion=True),
              Move.of(f"{victim}/.forge-copy-1-1", f"{victim}/x"), Move.of(f"{work}/.forge-copy-1-1", f"{victim}/x")]
    for move in forged:
        journal.write(str(layer), journal.Journal((good, move)))
        found = recover_dead_runs(str(state), str(work), "run2")
        aside = staging / f"undecided-{layer.name}"
        assert (found.published, found.undecided) == ((), (str(aside),)) and not (work / "x").exists(), move
        named = move.source if move.is_deletion else move.place
        assert f"names files that no job of its run publishes: {named}" in in_words(str(aside), str(work))
        aside.rename(layer)
    assert key.read_text() == "secret" and os.listdir(victim) == [".forge-copy-1-1"]
    # a directory in which a job of the run has layers is one of its places
    (state / "runs/run1/a").mkdir(parents=True)
    (state / "runs/run1/a/spec.json").write_text(json.dumps({"layers": [str(victim)]}))
    journal.write(str(layer), journal.Journal((good, Move.of(f"{victim}/.forge-copy-1-1", f"{victim}/x"))))
    assert recover_dead_runs(str(state), str(work), "run2").published == (f"{work}/x", f"{victim}/x")
    assert (work / "x").read_text() == "new" and (victim / "x").read_text() == "copy"

    entry = _staged(tmp_path / "other")
    staged = Path(entry.directory, "staged.json")
    whole = json.loads(staged.read_text())
    other = f"{tmp_path}/other/.snakemake/forge"
    for change in ({"directories": [str(victim)]}, {"directories": [f"{tmp_path}/other"]}, {"journal": str(victim)}, {"stale_logs": [str(key)]},
                   {"logs": [[str(key), f"{tmp_path}/other/log", key.stat().st_ino]]}, {"moves": [[str(key), f"{tmp_path}/other/x", key.stat().st_ino]]}):
        staged.write_text(json.dumps(whole | change))
        held = claim(entry)
        assert held is not None
        with pytest.raises(UnfitError, match="no job of its run publishes"):
            held.publish("run2")
        held.release()
    assert not occupied(entries(other))[0]
    held = claim(entry)
    assert held is not None
    held.discard("forged")
    assert (victim / "x").exists() and key.exists() and entries(other) == []


def test_a_journal_that_is_damaged_twice_is_named_and_both_versions_stay(tmp_path: Path) -> None:
    """An entry's own list repairs it; without an entry, the layer is put aside, also for later runs and gc."""
    state = f"{tmp_path}/.snakemake/forge"
    entry = _staged(tmp_path)
    layer = tmp_path / ".snakemake/forge/staging/forge-run1-1-1"
    moves = tuple(Move.of(f"{layer}/upper/{n}", f"{tmp_path}/{n}") for n in ("x", "y"))

    def damage() -> None:
        journal.write(str(layer), journal.Journal(moves))
        for name in (journal.JOURNAL, journal.COPY_OF_JOURNAL):
            (layer / name).write_text("")
        os.rename(layer / "upper/x", tmp_path / "x")

    damage()
    assert recover_dead_runs(state, str(tmp_path), "run2").undecided == ()
    assert (tmp_path / "x").read_text() == "new x" and (tmp_path / "y").read_text() == "new y"
    assert entries(state) == [] and not layer.exists()

    (layer / "upper").mkdir(parents=True)
    (tmp_path / "x").rename(layer / "upper/x")
    (tmp_path / "y").write_text("old y")
    (layer / "upper/y").write_text("newer y")
    again = Path(entry.directory).with_name("00002-call")
    again.mkdir()
    (again / "spec.json").write_text(json.dumps({"layers": [str(tmp_path)], "outputs": ["x", "y"]}))
    damage()
    aside = f"{layer.parent}/undecided-{layer.name}"
    for run in ("run3", "run4"):
        found = recover_dead_runs(state, str(tmp_path), run)
        assert (found.published, found.undecided) == ((), (aside,))
        assert found.marked == (("x", "y") if run == "run3" else ())
        assert "which of its outputs x, y are" in in_words(aside, str(tmp_path))
    assert sorted(os.listdir(tmp_path / ".snakemake/incomplete")) == ["eA==", "eQ=="]  # as Snakemake marks them
    assert (tmp_path / "x").read_text() == "new x" and (tmp_path / "y").read_text() == "old y"
    assert Path(aside, "upper/y").read_text() == "newer y" and entry.directory
