"""The index agrees with the job directories, whatever happened to it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.record.index import Selection, open_index
from snakemake_executor_plugin_forge.record.index_schema import VERSION, file_system, supports_wal
from snakemake_executor_plugin_forge.record.retention import compact
from snakemake_executor_plugin_forge.spec.job import RunContext

from ..conftest import FORGE
from ..records import Made, write_attempt, write_run

_TEXT = st.characters(exclude_categories=["Cs"], exclude_characters="\0")  # characters that names of files can have
MADE = [
    Made("map", {"s": "A"}),
    Made("map", {"s": "B"}, evidence={"oom_kills": 1}),
    Made("call", evidence={"exit_code": 1}),
]


def _verdicts(workdir: Path) -> list[object]:
    return [json.loads(p.read_text()) for p in sorted(workdir.glob(".snakemake/forge/runs/*/*/verdict.json"))]


def _indexed(workdir: Path, selection: Selection | None = None) -> list[Any]:
    with open_index(str(workdir)) as index:
        return [json.loads(text) for text in index.texts(selection or Selection())]


def _state(workdir: Path) -> Path:
    return workdir / ".snakemake" / "forge"


def test_it_has_what_the_verdicts_have(tmp_path: Path) -> None:
    write_run(tmp_path, MADE)
    second = write_run(tmp_path, MADE[:1], "20260201-120000-1-bbbb")
    assert _indexed(tmp_path) == _verdicts(tmp_path)
    assert len(_indexed(tmp_path)) == 4
    with open_index(str(tmp_path)) as index:
        assert index.path == str(_state(tmp_path) / "index.db")
        assert index.rules() == {"map": {"s"}, "call": set()}
        rows = list(index.rows())
    assert [row["outcome"] for row in rows] == ["succeeded", "oom", "failed", "succeeded"]
    assert rows[1]["wildcards"] == {"s": "B"}
    assert rows[1]["memory_limit_bytes"] == 512 * 2**20
    shutil.rmtree(second)
    assert _indexed(tmp_path) == _verdicts(tmp_path)
    assert len(_indexed(tmp_path)) == 3


def test_selections(tmp_path: Path) -> None:
    write_run(tmp_path, MADE)
    def count(**wanted: object) -> int:
        return len(_indexed(tmp_path, Selection(**wanted)))  # type: ignore[arg-type]
    assert count(rule="map") == 2
    assert count(rule="map", wildcards={"s": "B"}) == 1
    assert count(wildcards={"s": "C"}) == 0
    assert count(failed=True) == 2
    assert count(running=True) == 0
    assert count(run="20260131-120000-1-aaaa") == 3
    with open_index(str(tmp_path)) as index:
        newest = index.newest(Selection(rule="map"))
        assert newest is not None
        assert newest["wildcards"] == {"s": "B"}
        assert index.newest(Selection(rule="nothing")) is None


def test_running_attempts_are_seen_and_not_stored(tmp_path: Path) -> None:
    name = "20260131-120000-1-aaaa"
    write_run(tmp_path, [MADE[0], Made("slow", ended=False)], over=False)
    with open_index(str(tmp_path)) as index:
        assert [row["outcome"] for row in index.rows()] == ["succeeded", "running"]
        assert [row["rule"] for row in index.rows(Selection(running=True))] == ["slow"]
    over = write_run(tmp_path / "over", [Made("slow", ended=False)])
    (lost,) = _indexed(tmp_path / "over")
    assert isinstance(lost, dict)
    assert (over.name, lost["outcome"], lost["usage"]) == (name, "lost", {}), "its run is over"
    write_run(tmp_path / "ended", [Made("slow")])
    (ended,) = _indexed(tmp_path / "ended")
    assert isinstance(ended, dict)
    assert ended.keys() - lost.keys() == {"schema", "how"}, "as record.md says"
    context = RunContext(name, str(tmp_path), str(_state(tmp_path)), ())
    shutil.rmtree(_state(tmp_path) / "runs" / name / "00002-slow")
    write_attempt(context, 2, Made("slow"))
    write_attempt(context, 3, Made("more"))
    with open_index(str(tmp_path)) as index:
        assert [row["outcome"] for row in index.rows()] == ["succeeded"] * 3


def test_what_a_node_wrote_of_an_attempt_that_slurm_ended_is_read_again(tmp_path: Path) -> None:
    """The controller writes a moment later why Slurm ended it."""
    run = write_run(tmp_path, MADE[:1], over=False)
    (path,) = run.glob("*/verdict.json")
    final = path.read_text()
    path.write_text(json.dumps(json.loads(final) | {"outcome": "cancelled", "ended_by": "slurm"}))
    with open_index(str(tmp_path)) as index:
        assert [row["outcome"] for row in index.rows()] == ["cancelled"]
    path.write_text(final)
    with open_index(str(tmp_path)) as index:
        assert [row["outcome"] for row in index.rows()] == ["succeeded"]


def test_what_a_crash_took_is_older_than_what_came_after_it(tmp_path: Path) -> None:
    """A run that died a moment ago may still get verdicts, so no table has it yet."""
    died = write_run(tmp_path, [Made("done"), Made("slow", ended=False)], over=False)
    record = json.loads((died / "run.json").read_text())
    (died / "run.json").write_text(json.dumps(record | {"boot_id": "before"}))
    (died / "00002-slow" / "stdout.log").write_text("a sign of life")
    write_run(tmp_path, [Made("slow")], "20260201-120000-1-bbbb")
    with open_index(str(tmp_path)) as index:
        assert [(row["rule"], row["outcome"]) for row in index.rows()] == [
            ("done", "succeeded"), ("slow", "lost"), ("slow", "succeeded")]
        assert [json.loads(text)["outcome"] for text in index.texts()] == ["succeeded", "lost", "succeeded"]
        newest = index.newest(Selection(rule="slow"))
        assert newest is not None
        assert newest["outcome"] == "succeeded"
        (lost,) = index.unfinished()
        created = json.loads((died / "00002-slow" / "spec.json").read_text())["created"]
        written = (died / "00002-slow" / "stdout.log").stat().st_mtime
        assert lost["seconds"] == pytest.approx(written - datetime.fromisoformat(created).timestamp(), abs=0.01)


def test_an_attempt_that_has_only_its_directory_is_lost_when_its_run_is_over(tmp_path: Path) -> None:
    run = write_run(tmp_path, MADE[:1], over=False)
    for name in ("00002-map", "00003-my-rule.copy2.submission1", "slurm"):  # the last one is no attempt
        (run / name).mkdir()
        (run / name / "stdout.log").touch()
    assert len(_indexed(tmp_path)) == 1, "it has just been made"
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"ended": record["started"]}))
    _, *lost = _indexed(tmp_path)
    assert [(one["rule"], one["outcome"], one["wildcards"]) for one in lost] == [("map", "lost", {}), ("my-rule", "lost", {})]
    assert all("no spec.json" in one["reason"] and one["seconds"] < 60 for one in lost)
    with open_index(str(tmp_path)) as index:
        assert index.rules()["map"] == {"s"}
    compact(str(run))
    (tmp_path / ".snakemake/forge/index.db").unlink()
    assert [one["rule"] for one in _indexed(tmp_path)] == ["map", "map", "my-rule"]


@pytest.mark.parametrize("damage", ["garbage", "cut", "gone", "empty", "page"])
def test_a_damaged_index_is_made_anew(tmp_path: Path, damage: str) -> None:
    write_run(tmp_path, MADE * 20)
    _indexed(tmp_path)
    path = _state(tmp_path) / "index.db"
    whole = path.read_bytes()
    for journal in (f"{path}-wal", f"{path}-shm"):
        Path(journal).unlink(missing_ok=True)
    match damage:
        case "garbage":
            path.write_bytes(os.urandom(len(whole)))
        case "cut":
            path.write_bytes(whole[: len(whole) // 2])
        case "gone":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "page":
            path.write_bytes(whole[:4096] + b"\xff" * 4096 + whole[8192:])
    assert _indexed(tmp_path) == _verdicts(tmp_path)


def test_killed_while_it_writes_and_then_written_by_three_at_a_time(tmp_path: Path) -> None:
    write_run(tmp_path, MADE * 300)
    code = (
        "import os, snakemake_executor_plugin_forge.record.index as i\n"
        "old, seen = i.Index._insert, []\n"
        "def insert(*a):\n"
        "    old(*a); seen.append(1)\n"
        "    if len(seen) == 777: os.kill(os.getpid(), 9)\n"
        "i.Index._insert = insert\n"
        f"i.open_index({str(tmp_path)!r})\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    code = f"from snakemake_executor_plugin_forge.record.index import open_index\nopen_index({str(tmp_path)!r})"
    together = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait() for process in together] == [0, 0, 0]
    assert _indexed(tmp_path) == _verdicts(tmp_path)


def test_a_directory_that_was_moved(tmp_path: Path) -> None:
    (old := tmp_path / "old").mkdir()
    write_run(old, MADE)
    _indexed(old)
    old.rename(tmp_path / "new")
    with open_index(str(tmp_path / "new")) as index:
        assert all(json.loads(text)["directory"].startswith(str(tmp_path / "new")) for text in index.texts())
        assert len(list(index.rows())) == 3


def test_of_another_user_and_from_a_newer_forge_a_temporary_one_is_made(tmp_path: Path) -> None:
    write_run(tmp_path, MADE)
    path = _state(tmp_path) / "index.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    assert _indexed(tmp_path) == _verdicts(tmp_path)
    assert path.read_bytes() == before
    if os.geteuid() == 0:
        path.unlink()
        os.chown(_state(tmp_path), 12345, 12345)
        assert _indexed(tmp_path) == _verdicts(tmp_path)
        assert not path.exists()


def test_tables_of_an_older_forge_are_made_again(tmp_path: Path) -> None:
    write_run(tmp_path, MADE)
    found = _indexed(tmp_path)
    with sqlite3.connect(_state(tmp_path) / "index.db") as connection:
        connection.execute("ALTER TABLE attempt DROP COLUMN submitted")
        connection.execute("PRAGMA user_version = 2")
    assert _indexed(tmp_path) == found == _verdicts(tmp_path)
    assert connection.execute("PRAGMA user_version").fetchone() == (VERSION,)
    connection.close()


def test_wal_only_where_the_file_system_is_this_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert file_system("/proc") == "proc"
    assert supports_wal(str(tmp_path / "x")) is True
    monkeypatch.setattr("snakemake_executor_plugin_forge.record.index_schema.file_system", lambda _: "nfs4")
    write_run(tmp_path, MADE)
    assert _indexed(tmp_path) == _verdicts(tmp_path)
    with sqlite3.connect(_state(tmp_path) / "index.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    connection.close()


def test_names_that_are_no_text(tmp_path: Path) -> None:
    write_run(tmp_path, [Made("map", {"s": "x\udcff"}, evidence={"summary": "ValueError: \udcff", "exit_code": 1})])
    (record,) = _indexed(tmp_path)
    assert isinstance(record, dict)
    assert record["wildcards"] == {"s": "x\udcff"}
    done = subprocess.run([*FORGE, "why", "map"],
                          cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert rb"$'s=x\xff'" in done.stdout  # quoted for a shell


@settings(max_examples=20)
@given(st.dictionaries(st.text(_TEXT, min_size=1), st.text(_TEXT), max_size=3))
def test_any_wildcards_are_found_again(tmp_path_factory: pytest.TempPathFactory, wildcards: dict[str, str]) -> None:
    workdir = tmp_path_factory.mktemp("w")
    write_run(workdir, [Made("map", wildcards), Made("map", {"other": "x"})])
    found = _indexed(workdir, Selection(rule="map", wildcards=wildcards))
    assert {"map"} == {record["rule"] for record in found if isinstance(record, dict)}
    assert len(found) == (2 if not wildcards else 1 + (wildcards == {"other": "x"}))
