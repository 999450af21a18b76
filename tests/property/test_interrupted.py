"""A killed publication, and changes of others at its places before the recovery: theirs always stay."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, example, given, settings

from snakemake_executor_plugin_forge.kernel import plain_paths
from snakemake_executor_plugin_forge.kernel.tree import copy
from snakemake_executor_plugin_forge.staging import journal
from snakemake_executor_plugin_forge.staging.confines import in_words
from snakemake_executor_plugin_forge.staging.interrupted import (
    AtPlace,
    AtSource,
    ChangedError,
    Fate,
    Sort,
    fate,
    recover,
)
from snakemake_executor_plugin_forge.staging.journal import JOURNAL, Move, UndecidedError
from snakemake_executor_plugin_forge.staging.merge import lock_of, merging
from snakemake_executor_plugin_forge.staging.publish import publish, publish_one
from snakemake_executor_plugin_forge.staging.recovery import recover_dead_runs
from snakemake_executor_plugin_forge.staging.scene import LayerPlace, Scene
from snakemake_executor_plugin_forge.staging.waiting import WaitingOutputs

from ..child import in_child
from .test_publish import PLACE, Killed, killed_at

pytestmark = pytest.mark.security

NAMES = ("a", "sub/b", "c")
LAYER = "forge-run1-99999999-1"


def test_nothing_is_brought_over_a_later_version_and_nothing_is_done_without_proof() -> None:
    for sort, source, place in itertools.product(Sort, AtSource, AtPlace):
        decided = fate(sort, source, place)
        if decided is Fate.FOLLOW:
            assert source is AtSource.NEW
            assert place is not AtPlace.OTHER or sort in (Sort.DIRECTORY, Sort.APPEND)  # both are merged
        if decided is Fate.DONE:
            assert source is not AtSource.NEW and (place is AtPlace.NEW or source is not AtSource.OTHER)
            assert place is not AtPlace.OLD
        if (source, place) == (AtSource.NEW, AtPlace.OTHER) and sort is Sort.OUTPUT:
            assert decided is Fate.CHANGED
        if decided is Fate.UNKNOWN:
            assert source is not AtSource.NEW


class Crashed:
    """A working directory, with three outputs that were to be published when the supervisor was killed."""

    def __init__(self, old: dict[str, bool], step: int, *, schema: int = 2) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="forge-test-interrupted-", dir=PLACE))
        self.work = self.root / "work"
        self.layer = self.work / ".snakemake/forge/staging" / LAYER
        run = self.work / ".snakemake/forge/runs/run1"
        (run / "00001-r").mkdir(parents=True)
        plan = {"layers": [str(self.work)], "outputs": list(NAMES), "workdir": str(self.work)}
        (run / "00001-r/spec.json").write_text(json.dumps(plan))
        moves = []
        for name in NAMES:
            for path in (self.work / name, self.layer / "upper" / name):
                path.parent.mkdir(parents=True, exist_ok=True)
            if old[name]:
                (self.work / name).write_text(f"old {name}")
            (self.layer / "upper" / name).write_text(f"new {name}")
            moves.append(Move.of(f"{self.layer}/upper/{name}", f"{self.work}/{name}"))
        self.killed = False
        try:
            with killed_at(step, after=True):
                publish(moves, str(self.layer))
        except Killed:
            self.killed = True
        self.begun = (self.layer / JOURNAL).exists()
        if self.begun and schema == 1:
            self.write_as_schema_1()

    def write_as_schema_1(self) -> None:
        """Write the journal as Forge once did: without the files that were at the places."""
        found = journal.read(str(self.layer))
        assert found is not None
        when = os.stat(self.layer / JOURNAL)
        body = json.dumps({"moves": [list(move)[:6] for move in found.moves], "lock": found.lock, "noted": found.noted}).encode()
        (self.layer / JOURNAL).write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        os.utime(self.layer / JOURNAL, ns=(when.st_atime_ns, when.st_mtime_ns))

    def tree(self, work: Path | None = None) -> dict[str, str]:
        work = work or self.work
        return {name: (work / name).read_text() for name in NAMES if (work / name).exists()}

    def versions(self) -> list[str]:
        """The content of all files, wherever they are."""
        return [path.read_text() for path in self.work.rglob("*") if path.is_file() and JOURNAL[:7] not in path.name]


def _later() -> None:
    """Let the clock of the file system advance: a journal of schema 1 is compared with it."""
    time.sleep(0.012)


def _act(path: Path, act: str) -> None:
    match act:
        case "edit":
            with path.open("a") as file:
                file.write("theirs")
        case "replace":
            path.unlink(missing_ok=True)
            path.write_text("theirs")
        case "rename":
            path.with_name("temporary").write_text("theirs")
            path.with_name("temporary").rename(path)
        case "remove":
            path.unlink(missing_ok=True)


@given(
    old=st.fixed_dictionaries(dict.fromkeys(NAMES, st.booleans())),
    step=st.integers(4, 11),
    acts=st.fixed_dictionaries(dict.fromkeys(NAMES, st.sampled_from(["", "", "edit", "replace", "rename", "remove"]))),
    again=st.integers(0, 12),
    schema=st.sampled_from([1, 2]),
)
@example(old={"a": True, "sub/b": False, "c": False}, step=5, acts={"a": "replace", "sub/b": "", "c": "edit"}, again=1, schema=1)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_others_make_after_the_crash_stays(old: dict[str, bool], step: int, acts: dict[str, str], again: int, schema: int) -> None:
    place = Crashed(old, step, schema=schema)
    try:
        if not place.begun:
            return
        _later()
        for name, act in acts.items():
            if act:
                _act(place.work / name, act)
        before, there = place.tree(), place.versions()
        try:
            with suppress(Killed), killed_at(again, after=True):
                recover(str(place.layer), None)
            recover(str(place.layer), None)
        except UndecidedError as error:
            assert isinstance(error, ChangedError)
            assert place.tree() == before and sorted(place.versions()) == sorted(there)  # nothing was changed
            theirs = {name for name in NAMES if acts[name] in ("edit", "replace", "rename")}
            assert theirs
            if not error.half:
                assert all(acts.values())
        else:
            for name, act in acts.items():
                if act in ("edit", "replace", "rename"):
                    assert (place.work / name).read_text() == before[name]
                elif act == "":
                    assert (place.work / name).read_text() == f"new {name}"
            assert not (place.layer / JOURNAL).exists()
    finally:
        shutil.rmtree(place.root)


OLD = dict.fromkeys(NAMES, True)


def _crashed_after_first(schema: int = 2) -> Crashed:
    for step in range(20):
        place = Crashed(OLD, step, schema=schema)
        if place.begun and sum(text.startswith("new") for text in place.tree().values()) == 1:
            return place
        shutil.rmtree(place.root)
    raise AssertionError("never between two renames")


@pytest.mark.parametrize("schema", [1, 2])
def test_a_moved_working_directory_is_completed_where_it_is_now(schema: int) -> None:
    place = _crashed_after_first(schema)
    try:
        moved = place.root / "moved"
        place.work.rename(moved)
        found = recover_dead_runs(f"{moved}/.snakemake/forge", str(moved), "run2")
        assert sorted(found.published) == sorted(f"{moved}/{name}" for name in NAMES)
        assert place.tree(moved) == {name: f"new {name}" for name in NAMES}
        assert not place.work.exists()
    finally:
        shutil.rmtree(place.root)


@pytest.mark.parametrize("schema", [1, 2])
def test_a_copied_working_directory_is_left_as_it_is_and_its_outputs_are_marked(schema: int) -> None:
    place = _crashed_after_first(schema)
    try:
        copied, before = place.root / "copied", place.tree()
        subprocess.run(["cp", "-a", place.work, copied], check=True)
        found = recover_dead_runs(f"{copied}/.snakemake/forge", str(copied), "run2")
        assert found.published == () and set(found.marked) == set(NAMES)
        (aside,) = found.undecided
        assert aside == f"{copied}/.snakemake/forge/staging/undecided-{LAYER}"
        assert "a copy of a working directory has other ones" in in_words(aside, str(copied))
        assert place.tree() == place.tree(copied) == before
        assert recover_dead_runs(f"{place.work}/.snakemake/forge", str(place.work), "run2").published
        assert place.tree() == {name: f"new {name}" for name in NAMES}
    finally:
        shutil.rmtree(place.root)


@pytest.mark.parametrize("all_of_them", [True, False])
def test_outputs_that_were_made_again_stay_and_the_others_are_kept_aside(all_of_them: bool) -> None:
    """If only some were made again, all stay marked as incomplete until their rule runs; if all were, they are whole."""
    place = _crashed_after_first()
    try:
        for name in NAMES if all_of_them else ("sub/b",):
            _act(place.work / name, "replace")
        before, state = place.tree(), f"{place.work}/.snakemake/forge"
        for run in ("run2", "run3"):
            found = recover_dead_runs(state, str(place.work), run)
            assert found.published == () and place.tree() == before
            assert set(found.marked) == (set() if all_of_them or run == "run3" else set(NAMES))
            (aside,) = found.undecided
            assert f"those of that job are in {aside}: {place.work}/sub/b" in in_words(aside, str(place.work))
            assert Path(aside, "upper/sub/b").read_text() == "new sub/b"
    finally:
        shutil.rmtree(place.root)


RECOVER = """
import sys
from snakemake_executor_plugin_forge.staging.recovery import recover_dead_runs
print(len(recover_dead_runs(sys.argv[1] + "/.snakemake/forge", sys.argv[1], "run2").published), flush=True)
"""
WAITING = """
import os, time
class Hook:
    def begin(self, rule): ...
    def __call__(self, step, rule=None, /):
        if step == "decided":
            open(os.environ["MARK"], "w").close()
            while not os.path.exists(os.environ["MARK"] + ".go"):
                time.sleep(0.005)
def open_hook():
    return Hook()
"""


def test_of_two_processes_that_recover_one_waits_for_the_other() -> None:
    place = _crashed_after_first()
    try:
        hook, mark = place.root / "hook.py", place.root / "mark"
        hook.write_text(WAITING)
        words = [sys.executable, "-c", RECOVER, str(place.work)]
        first = subprocess.Popen(words, env=os.environ | {"FORGE_FAILPOINTS": str(hook), "MARK": str(mark)}, stdout=subprocess.PIPE)
        while not mark.exists():
            assert first.poll() is None
            time.sleep(0.005)
        second = subprocess.Popen(words, stdout=subprocess.PIPE)
        while second.poll() is None and not _waits_for_a_lock(second.pid):
            time.sleep(0.005)
        Path(f"{mark}.go").touch()
        told = [process.communicate()[0].strip() for process in (first, second)]
        assert told == [b"3", b"0"] and (first.returncode, second.returncode) == (0, 0)
        assert place.tree() == {name: f"new {name}" for name in NAMES}
        assert not place.layer.exists()
    finally:
        shutil.rmtree(place.root)


def _waits_for_a_lock(pid: int) -> bool:
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and str(pid) in line.split() for line in lines)


@pytest.mark.parametrize("then", ["edit", "replace", "remove", ""])
def test_undeclared_files_that_a_user_changes_after_the_crash_keep_the_change(then: str) -> None:
    """The job wrote a file, appended to one and deleted one; it was killed with its journal written and nothing moved."""
    for step in range(60):
        root = Path(tempfile.mkdtemp(prefix="forge-test-interrupted-", dir=PLACE))
        try:
            layer, before = root / ".snakemake/forge/staging" / LAYER, ("written", "log", "deleted")
            (layer / "upper").mkdir(parents=True)
            for name in before:
                (root / name).write_text("old\n")
                os.setxattr(root / name, "user.forge.rule", b"r")
            _later()
            begin_ns = time.clock_gettime_ns(5)
            (layer / "upper/written").write_text("of the job\n")
            (layer / "upper/log").write_text("old\nof the job\n")
            os.mknod(layer / "upper/deleted", 0o20000, os.makedev(0, 0))
            scene = Scene("r", str(root), f"{root}/.snakemake/forge", begin_ns, (LayerPlace(str(root), f"{layer}/upper", True),),
                          (), (), (), appended={f"{root}/log": 4})  # fmt: skip
            with suppress(Killed), killed_at(step, after=True):
                publish([], str(layer), merging(scene), lock=lock_of(scene))
            if not (layer / JOURNAL).exists():
                continue
            assert {name: (root / name).read_text() for name in before} == dict.fromkeys(before, "old\n")
            _later()
            for name in before if then else ():
                _act(root / name, then)
            theirs = {name: (root / name).read_text() for name in before if (root / name).exists()}
            assert recover(str(layer), None) or then in ("edit", "replace")
            found = {name: (root / name).read_text() for name in before if (root / name).exists()}
            if then in ("edit", "replace"):
                assert found == theirs | {"log": f"{theirs['log']}of the job\n"}
            else:
                assert found == {"written": "of the job\n", "log": "old\nof the job\n"}
            return
        finally:
            shutil.rmtree(root)
    raise AssertionError("no journal was ever written")


@pytest.mark.parametrize("failing", [2, 3])
def test_an_exchange_that_takes_several_renames_fails_without_a_trace(tmp_path: Path, failing: int) -> None:
    """Without RENAME_EXCHANGE (NFS), if one of three renames fails, the previous version returns to its place."""
    for name in ("staged", "place"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(name)
    refused = mock.patch.object(plain_paths, "exchange_at", _cannot)
    count, real = 0, os.rename

    def rename(*arguments: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        if count == failing:
            raise OSError(5, "Input/output error")
        real(*arguments, **options)

    with refused, mock.patch.object(os, "rename", rename), pytest.raises(OSError, match="Input/output"):
        publish([Move.of(f"{tmp_path}/staged/x", f"{tmp_path}/place/x")], str(tmp_path / "staged"))
    assert (tmp_path / "place/x").read_text() == "place" and (tmp_path / "staged/x").read_text() == "staged"
    assert os.listdir(tmp_path / "place") == os.listdir(tmp_path / "staged") == ["x"]


def _cannot(*_: object) -> None:
    raise OSError(22, "Invalid argument")


@pytest.mark.parametrize("step", range(12))
def test_one_output_is_never_lost_where_an_exchange_takes_several_renames(tmp_path: Path, step: int) -> None:
    for name in ("staged", "place"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(name)
    with mock.patch.object(plain_paths, "exchange_at", _cannot):
        with suppress(Killed), killed_at(step, after=True, exchanges=False):
            publish([Move.of(f"{tmp_path}/staged/x", f"{tmp_path}/place/x")], str(tmp_path / "staged"))
        begun = (tmp_path / "staged" / JOURNAL).exists()
        recover(str(tmp_path / "staged"), None)
    found = (tmp_path / "place/x").read_text()
    assert found == "staged" if begun else found in ("place", "staged")


def test_a_single_output_has_no_journal_where_an_exchange_is_one_step(tmp_path: Path) -> None:
    for name in ("staged", "place"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(name)
    with mock.patch.object(journal, "write", side_effect=AssertionError("a journal")):
        publish([Move.of(f"{tmp_path}/staged/x", f"{tmp_path}/place/x")], str(tmp_path / "staged"))
    assert (tmp_path / "place/x").read_text() == "staged"


def test_what_cannot_be_synced_after_all_renames_is_said_and_no_error(tmp_path: Path) -> None:
    """The user may write into the directory but not read it, as with a drop box."""
    root = Path(tempfile.mkdtemp(prefix="forge-test-interrupted-", dir=PLACE))
    try:
        for path in (root, root / "box"):
            path.mkdir(exist_ok=True)
            path.chmod(0o777)
        (root / "box").chmod(0o333)

        def as_user() -> tuple[str, ...]:
            (root / "staged").mkdir()
            moves = []
            for name in "xy":
                (root / "staged" / name).write_text("new")
                moves.append(Move.of(f"{root}/staged/{name}", f"{root}/box/{name}"))
            return publish(moves, f"{root}/staged")

        (problem,) = in_child(as_user, ordinary=True)
        assert f"{root}/box could not be synced" in problem
        assert not (root / "staged").exists()
        assert [(root / "box" / name).read_text() for name in "xy"] == ["new", "new"]
    finally:
        shutil.rmtree(root)


def test_a_copy_is_whole_or_an_error(tmp_path: Path) -> None:
    """Only the answer ENXIO to SEEK_DATA means that a hole follows."""
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    for number in (errno.EIO, errno.ESTALE, errno.EINVAL, errno.EOPNOTSUPP):
        with mock.patch.object(os, "lseek", _refusing_to_seek(number)):
            if number in (errno.EIO, errno.ESTALE):
                with pytest.raises(OSError, match=re.escape(os.strerror(number))):
                    copy(str(tmp_path / "file"), str(tmp_path / f"{number}"))
                continue
            copy(str(tmp_path / "file"), str(tmp_path / f"{number}"))
        assert (tmp_path / f"{number}").read_bytes() == b"x" * 100_000


def _refusing_to_seek(number: int) -> Callable[[int, int, int], int]:
    real = os.lseek

    def seek(fd: int, place: int, how: int) -> int:
        if how == os.SEEK_DATA:
            raise OSError(number, os.strerror(number))
        return real(fd, place, how)

    return seek


@pytest.mark.parametrize("mode", [0o555, 0o600])
@pytest.mark.parametrize("step", [0, 1])
def test_read_only_and_closed_directories_of_an_ordinary_user(mode: int, step: int) -> None:
    """A rule ends with ``chmod 555 results``; then its publication crashes, or its outputs wait for the next run."""
    root = Path(tempfile.mkdtemp(prefix="forge-test-interrupted-", dir=PLACE))
    root.chmod(0o777)

    def as_user() -> None:
        staged, results = root / "layer/upper/results/deep", root / "work/results/deep"
        moves = []
        for path in (staged, results):
            path.mkdir(parents=True)
        for name in "xyz":
            (staged / name).write_text("new")
            (results / name).write_text("old")
            moves.append(Move.of(f"{staged}/{name}", f"{results}/{name}"))
        if step:
            at = 0
            while step and not (root / "layer" / JOURNAL).exists():
                with suppress(Killed), killed_at(at, after=True):
                    publish(moves, str(root / "layer"))
                at += 1
        for path in (staged, staged.parent, results, results.parent):
            path.chmod(mode)
        if step:
            assert len(recover(str(root / "layer"), None)) == 3
        else:
            waiting = WaitingOutputs(tuple(moves), (), (), {}, (str(root / "layer"),), str(root / "layer"))
            waiting.check()
            waiting.publish()
            assert waiting.journal
        for path in (results.parent, results):
            assert path.stat().st_mode & 0o777 == mode
            path.chmod(0o700)
        assert [(results / name).read_text() for name in "xyz"] == ["new"] * 3

    try:
        in_child(as_user, ordinary=True)
    finally:
        shutil.rmtree(root)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_a_rename_that_one_file_system_refuses_becomes_a_copy(tmp_path: Path) -> None:
    """Two mounts of one file system refuse it, and so do project quotas; st_dev does not tell."""
    for name in ("staged", "real", "mounted"):
        (tmp_path / name).mkdir()
    (tmp_path / "real/x").write_text("old")
    (tmp_path / "real/log").write_text("old")
    subprocess.run(["mount", "--bind", tmp_path / "real", tmp_path / "mounted"], check=True)
    try:
        assert (tmp_path / "staged").stat().st_dev == (tmp_path / "mounted").stat().st_dev
        for name in ("x", "y", "log"):
            (tmp_path / "staged" / name).write_text("new")
        moves = [Move.of(f"{tmp_path}/staged/{name}", f"{tmp_path}/mounted/{name}") for name in ("x", "y", "log")]
        publish(moves[:2], str(tmp_path / "staged"))
        publish_one(moves[2])
        assert {name: (tmp_path / "real" / name).read_text() for name in os.listdir(tmp_path / "real")} == {
            "x": "new", "y": "new", "log": "new"}  # fmt: skip
    finally:
        subprocess.run(["umount", tmp_path / "mounted"], check=True)
