"""Retention: old records are removed in time, and no others."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.record import retention
from snakemake_executor_plugin_forge.record.index import open_index
from snakemake_executor_plugin_forge.record.retention import Action, Policy, RunSize, compact, decide

from ..conftest import forge
from ..records import Made, write_run

DAY = 86400
OLD = "20250101-120000-1-aaaa"
MADE = [
    Made("map", {"s": "A"}, stderr="quiet\n"),
    Made("call", evidence={"exit_code": 1}, stderr="begin\n" + "x\n" * 20_000 + "boom: Error\n"),
    Made("slow", ended=False),
]


def _run(age_days: float = 1, size: int = 100, *, over: bool = True, compacted: bool = False, name: str = "") -> RunSize:
    return RunSize(name or f"{age_days}-{size}-{over}", age_days * DAY, size, over, compacted)


def test_by_age() -> None:
    runs = [_run(400), _run(40), _run(35, compacted=True), _run(10)]
    policy = Policy(compact_after_seconds=30 * DAY, remove_after_seconds=365 * DAY, keep_runs=0)
    assert [(s.action, s.run) for s in decide(runs, policy)] == [(Action.REMOVE, runs[0]), (Action.COMPACT, runs[1])]
    assert decide(runs, Policy(compact_after_seconds=None, keep_runs=0)) == []


def test_by_size_the_oldest_first_and_compacting_before_removing() -> None:
    runs = [_run(9, 50, compacted=True), _run(8), _run(7), _run(6)]
    def actions(most: int) -> list[tuple[Action, RunSize]]:
        return [(s.action, s.run) for s in decide(runs, Policy(None, None, most, keep_runs=0))]
    assert actions(400) == []
    assert actions(250) == [(Action.COMPACT, runs[1])]
    assert actions(40) == [(Action.REMOVE, runs[0]), *[(Action.COMPACT, run) for run in runs[1:]]]


@given(st.lists(st.builds(RunSize, st.uuids().map(str), st.floats(0, 1e9), st.integers(0, 10**9), st.booleans(), st.booleans()),
                max_size=12, unique_by=lambda r: r.path),
       st.builds(Policy, st.none() | st.floats(0, 1e9), st.none() | st.floats(0, 1e9), st.none() | st.integers(0, 10**9),
                 st.integers(0, 5)))
def test_what_is_alive_or_new_is_never_touched(runs: list[RunSize], policy: Policy) -> None:
    steps = decide(runs, policy)
    kept = runs[max(0, len(runs) - policy.keep_runs):]
    assert not [s for s in steps if not s.run.over or s.run in kept]
    assert not [s for s in steps if s.action is Action.COMPACT and s.run.compacted]
    assert len({s.run.path for s in steps}) == len(steps)


def _age(run: Path, days: float) -> None:
    moment = time.time() - days * DAY
    os.utime(run / "run.json", (moment, moment))


def _answers(workdir: Path) -> list[str]:
    questions = (["jobs", "--json"], ["why", "call"], ["advise", "--json"], ["logs", "map"])
    return [forge(workdir, *words, check=True).stdout for words in questions]


def test_a_compacted_run_answers_as_before_also_when_that_was_killed_between_archive_and_removal(tmp_path: Path) -> None:
    run = write_run(tmp_path, MADE * 5, OLD)
    before = _answers(tmp_path)
    code = (
        "import os, snakemake_executor_plugin_forge.record.retention as r\n"
        "old, seen = r.remove_tree, []\n"
        "def remove(*a, **k):\n"
        "    seen.append(old(*a, **k))\n"
        "    if len(seen) == 7: os.kill(os.getpid(), 9)\n"
        "r.remove_tree = remove\n"
        f"r.compact({str(run)!r})\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert len(list(run.iterdir())) == 15 - 7 + 2
    (tmp_path / ".snakemake/forge/index.db").unlink()
    assert _answers(tmp_path) == before
    assert compact(str(run)) > 0
    assert sorted(p.name for p in run.iterdir()) == ["attempts.jsonl.gz", "run.json"]
    assert _answers(tmp_path) == before
    assert forge(tmp_path, "gc", "--reindex", check=True).stdout == "15 attempts are in the index.\n"
    assert compact(str(run)) == 0  # nothing more to do
    assert _answers(tmp_path) == before
    logs = forge(tmp_path, "logs", "call", "--stderr", check=True).stdout
    assert logs.startswith("begin\n")
    assert logs.endswith("boom: Error\n")
    assert "bytes were removed with the directory" in logs


def test_of_a_damaged_archive_the_whole_part_is_read_and_the_rest_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, [*MADE, *(Made("noise", stderr=random.Random(n).randbytes(2000).hex()) for n in range(9))], OLD)
    before = forge(tmp_path, "jobs", check=True).stdout
    compact(str(run))
    archive = run / "attempts.jsonl.gz"
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size * 2 // 3])
    assert forge(tmp_path, "jobs", check=True).stdout == before, "the index has all of it"
    assert "what it had of this attempt is lost" in forge(tmp_path, "logs", "noise").stderr
    assert "what it had of this attempt is lost" in forge(tmp_path, "why", "noise", check=True).stdout
    (tmp_path / ".snakemake/forge/index.db").unlink()
    for words in (("jobs",), ("why", "call"), ("report", "-o", str(tmp_path / "report.html"))):
        done = forge(tmp_path, *words, check=True)
        found = re.findall(rf"{archive} is damaged: .* (\d+) attempt\(s\) are read from it", done.stderr)
        assert len(found) == 1, done.stderr
    jobs = json.loads(forge(tmp_path, "jobs", "--json").stdout)
    assert len(MADE) < len(jobs) == int(found[0]) < len(MADE) + 9


def test_nothing_is_removed_when_the_archive_cannot_be_written(tmp_path: Path) -> None:
    run = write_run(tmp_path, MADE, OLD)
    size = retention.size_bytes(str(run))
    code = ("import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))\n"
            "from snakemake_executor_plugin_forge.record.retention import compact\n"
            f"compact({str(run)!r})")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "File too large" in done.stderr
    assert retention.size_bytes(str(run)) == size
    assert not list(run.glob(".attempts*"))


def test_gc_says_what_it_does(tmp_path: Path) -> None:
    old, new = write_run(tmp_path, MADE, OLD), write_run(tmp_path, MADE)
    going = write_run(tmp_path, MADE, "20240101-120000-1-cccc", over=False)
    for run in (old, new, going):
        _age(run, 100)
    def gc(*words: str) -> str:
        return forge(tmp_path, "gc", "--keep-runs", "1", *words, check=True).stdout
    assert "Nothing was changed" in gc("--dry-run")
    assert (old / "00001-map").is_dir()
    (done,) = json.loads(gc("--json"))
    assert (done["part"], done["action"], done["path"]) == ("records", "compact", str(old))
    assert done["bytes"] > 0
    assert (going / "00001-map").is_dir()
    assert (new / "00001-map").is_dir()
    assert gc() == "Nothing to remove.\n"
    assert "remove" in gc("--remove-after", "50d")
    assert not old.exists()
    with open_index(str(tmp_path)) as index:
        assert len(index.runs()) == 2
    bad = forge(tmp_path, "gc", "--compact-after", "soon")
    assert (bad.returncode, bad.stderr) == (2, "snakemake-forge: --compact-after=soon: not a time; write it like 90s, 30m, 24h or 2d.\n")
    shutil.rmtree(going)
