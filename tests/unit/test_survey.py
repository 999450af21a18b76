"""What a job has left in its layers, without a job and without mounts: directories as an overlay would leave them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.model import FilePolicy, Files, Target, TargetKind, Undeclared
from snakemake_executor_plugin_forge.publish import publish
from snakemake_executor_plugin_forge.sandbox.layers import Layer
from snakemake_executor_plugin_forge.survey import Survey, kept, survey, undeclared_reads


class Place:
    """A working directory with a layer."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layer = Layer(str(root), str(root / ".snakemake/forge/staging/x"), str(root))
        self.layer.make()
        self.targets: list[Target] = []

    def old(self, name: str, text: str = "old") -> None:
        """A file that was there before."""
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def new(self, name: str, text: str = "new") -> None:
        """One that the job has written."""
        path = Path(self.layer.upper, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def target(self, name: str, kind: TargetKind = TargetKind.OUTPUT, *, optional: bool = False) -> None:
        """What its rule declares."""
        self.targets.append(Target(f"{self.root}/{name}", name, kind, optional=optional))

    def look(self, rule: str = "r", begin_ns: int | None = None) -> Survey:
        """What is found."""
        files = Files(FilePolicy.GUARD, layers=(str(self.root),), targets=tuple(self.targets))
        return survey(files, [self.layer], rule, time.time_ns() if begin_ns is None else begin_ns)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path.resolve())


def _names(place: Place, found: Survey) -> list[str]:
    return [os.path.relpath(move.place, place.root) for move in found.extra]


def test_declared_and_undeclared_are_told_apart(place: Place) -> None:
    place.old("there.txt")
    time.sleep(0.02)
    place.target("out/a.txt")
    place.target("out/missing.txt")
    place.target("touched.flag", optional=True)
    place.target("log.txt", TargetKind.LOG)
    (place.root / "out").mkdir()
    for name in ("out/a.txt", "out/beside.txt", "there.txt", "dir/x", "log.txt", ".snakemake/scripts/tmp.py"):
        place.new(name)
    found = place.look()
    assert [move.place for move in found.outputs] == [f"{place.root}/out/a.txt"]
    assert [move.place for move in found.logs] == [f"{place.root}/log.txt"]
    assert found.missing == ["out/missing.txt"]
    assert _names(place, found) == ["dir", "out/beside.txt"]
    assert found.changed == [f"{place.root}/there.txt"]
    assert found.rejected == []


def test_the_local_copy_of_a_storage_is_a_target_and_nothing_beside_it(place: Place) -> None:
    place.target(".snakemake/storage/fs/x.txt")
    for name in (".snakemake/storage/fs/x.txt", ".snakemake/storage/fs/y.tmp", ".snakemake/scripts/z.py"):
        place.new(name)
    found = place.look()
    assert len(found.outputs) == 1
    assert found.extra == []
    assert found.changed == []


def test_what_a_rule_left_undeclared_is_its_own_to_change(place: Place) -> None:
    place.new("idx.bai", "first")
    publish(kept(place.look(), Undeclared.KEEP, "r"), place.layer.directory)
    assert (place.root / "idx.bai").read_text() == "first"
    time.sleep(0.02)
    place.new("idx.bai", "second")
    assert _names(place, place.look(rule="r")) == ["idx.bai"]
    assert place.look(rule="another").changed == [f"{place.root}/idx.bai"]
    assert kept(place.look(rule="r"), Undeclared.DISCARD, "r") == []


def test_of_two_jobs_that_write_the_same_the_last_one_wins(place: Place) -> None:
    begin = time.time_ns()
    time.sleep(0.02)
    place.old("Rplots.pdf", "of another job, published meanwhile")
    place.new("Rplots.pdf")
    assert _names(place, place.look(begin_ns=begin)) == ["Rplots.pdf"]


def test_a_log_of_an_earlier_attempt_does_not_stay(place: Place) -> None:
    place.old("log.txt")
    place.target("log.txt", TargetKind.LOG)
    assert place.look().stale_logs == [f"{place.root}/log.txt"]


def test_reads_of_what_is_declared_or_not_there_do_not_count(place: Place) -> None:
    for name in ("in.txt", "other.txt", "dir/a", ".snakemake/x"):
        place.old(name)
    place.target("out.txt")
    root = str(place.root)
    files = Files(FilePolicy.GUARD, layers=(root,), targets=tuple(place.targets), inputs=(f"{root}/in.txt", f"{root}/dir"))
    opened = {f"{root}/{name}" for name in ("in.txt", "other.txt", "dir/a", ".snakemake/x", "out.txt", "gone.txt")}
    assert undeclared_reads(files, root, opened) == ("other.txt",)
