"""Publishing, killed at every step and then recovered: all outputs are new, or all are old."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from snakemake_executor_plugin_forge.kernel import plain_paths
from snakemake_executor_plugin_forge.kernel.syscalls import exchange_at
from snakemake_executor_plugin_forge.staging import journal
from snakemake_executor_plugin_forge.staging import publish as publishing
from snakemake_executor_plugin_forge.staging.interrupted import recover
from snakemake_executor_plugin_forge.staging.journal import JOURNAL, Move
from snakemake_executor_plugin_forge.staging.merge import lock_of, merging
from snakemake_executor_plugin_forge.staging.publish import publish, publish_one
from snakemake_executor_plugin_forge.staging.scene import LayerPlace, Scene
from tests.mutations import cut_and_flipped

pytestmark = pytest.mark.security

KINDS = st.sampled_from(["file", "directory", "link"])
NAMES = ("a", "b", "deep/er/c", "odd \udcff\nname", "d")
PLACE = "/dev/shm"  # fsync(2) on a disk would take most of the time and test nothing: no machine is switched off


class Killed(BaseException):
    """Stands for SIGKILL: the program does nothing afterwards."""


@contextmanager
def killed_at(step: int, *, after: bool, exchanges: bool = True) -> Iterator[list[str]]:
    """Kill the code at the given one of its calls that change something, before or after it.

    Args:
        exchanges: whether an exchange counts as such a call; the caller may have replaced it.
    """
    calls: list[str] = []

    def wrap(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            number = len(calls)
            calls.append(name)
            if number == step and not after:
                raise Killed
            result = function(*arguments, **options)
            if number == step and after:
                raise Killed
            return result

        return wrapped

    with (
        mock.patch.object(plain_paths, "exchange_at", wrap("exchange", exchange_at)) if exchanges else nullcontext(),
        mock.patch.object(os, "rename", wrap("rename", os.rename)),
        mock.patch.object(os, "unlink", wrap("unlink", os.unlink)),
        mock.patch.object(os, "fsync", wrap("fsync", os.fsync)),
    ):
        yield calls


def write(path: Path, kind: str, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "file":
        path.write_text(text)
    elif kind == "link":
        path.symlink_to(text)
    else:
        path.mkdir()
        (path / "inside").write_text(text)


def content(path: Path) -> str | None:
    if path.is_symlink():
        return os.readlink(path)
    if path.is_dir():
        return (path / "inside").read_text()
    return path.read_text() if path.exists() else None


class Publishing(RuleBasedStateMachine):
    """One working directory; version after version is published into it, some of them with a crash."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="forge-test-publish-", dir=PLACE))
        self.staging = self.root / "staging"
        self.expected: dict[str, str | None] = dict.fromkeys(NAMES)
        self.version = 0
        self.open: dict[str, str] = {}  # outputs of the last, killed attempt

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    def stage(self, kinds: dict[str, str]) -> list[Move]:
        shutil.rmtree(self.staging, ignore_errors=True)
        self.staging.mkdir()
        self.version += 1
        moves = []
        for name, kind in kinds.items():
            write(self.staging / "upper" / name, kind, f"version {self.version}")
            moves.append(Move.of(str(self.staging / "upper" / name), str(self.root / "work" / name)))
        return moves

    @initialize()
    def begin(self) -> None:
        (self.root / "work").mkdir()

    @precondition(lambda self: not self.open)
    @rule(kinds=st.dictionaries(st.sampled_from(NAMES), KINDS, min_size=1))
    def publish(self, kinds: dict[str, str]) -> None:
        publish(self.stage(kinds), str(self.staging))
        self.expected |= dict.fromkeys(kinds, f"version {self.version}")

    @precondition(lambda self: not self.open)
    @rule(kinds=st.dictionaries(st.sampled_from(NAMES), KINDS, min_size=1), step=st.integers(0, 25), after=st.booleans())
    def killed(self, kinds: dict[str, str], step: int, after: bool) -> None:
        moves = self.stage(kinds)
        try:
            with killed_at(step, after=after):
                publish(moves, str(self.staging))
        except Killed:
            self.open = dict.fromkeys(kinds, f"version {self.version}")
        else:
            self.expected |= dict.fromkeys(kinds, f"version {self.version}")

    @precondition(lambda self: self.open)
    @rule(step=st.integers(0, 25), after=st.booleans())
    def killed_again(self, step: int, after: bool) -> None:
        try:
            with killed_at(step, after=after):
                recover(str(self.staging), None)
        except Killed:
            return
        self.settle()

    @precondition(lambda self: self.open)
    @rule()
    def go_on(self) -> None:
        recover(str(self.staging), None)
        self.settle()

    def settle(self) -> None:
        new = self.expected | self.open
        found = {name: content(self.root / "work" / name) for name in NAMES}
        assert found in (self.expected, new)
        assert not (self.staging / JOURNAL).exists()
        self.expected, self.open = found, {}

    @invariant()
    def whole_versions_only(self) -> None:
        """Even in between, each place has one version or the other, and never none where there was one."""
        for name in NAMES:
            path = self.root / "work" / name
            allowed = {self.expected[name], self.open.get(name, self.expected[name])}
            assert content(path) in allowed, name


TestPublishing = Publishing.TestCase
TestPublishing.settings = settings(
    max_examples=150, stateful_step_count=12, suppress_health_check=[HealthCheck.too_slow]
)


@given(kinds=st.dictionaries(st.sampled_from(NAMES), KINDS, min_size=2), bad=st.integers(0, 4))
@settings(max_examples=40)
def test_an_error_on_the_way_leaves_all_as_it_was(kinds: dict[str, str], bad: int) -> None:
    """After a full disk or a target that cannot be replaced, finished renames are undone."""
    root = Path(tempfile.mkdtemp(prefix="forge-test-publish-", dir=PLACE))
    try:
        moves = []
        for number, (name, kind) in enumerate(kinds.items()):
            write(root / "staging" / name, kind, "new")
            if number % 2:
                write(root / "work" / name, "file", "old")
            moves.append(Move.of(str(root / "staging" / name), str(root / "work" / name)))
        before = {name: content(root / "work" / name) for name in NAMES}
        failing = moves[bad % len(moves)]
        real = publishing.carry_out

        def carry_out(move: Move, places: plain_paths.Places) -> bool | None:
            if move is failing:
                raise OSError(28, "No space left on device")
            return real(move, places)

        with mock.patch.object(publishing, "carry_out", carry_out), pytest.raises(OSError, match="No space"):
            publish(moves, str(root / "staging"))
        assert {name: content(root / "work" / name) for name in NAMES} == before
        assert not (root / "staging" / JOURNAL).exists()
    finally:
        shutil.rmtree(root)


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    """A socket stands for /dev/null, which an exchange by root would take from the whole host."""
    (tmp_path / "staging").mkdir()
    os.mknod(tmp_path / "place", stat.S_IFSOCK | 0o600)
    moves = []
    for name in ("first", "place"):
        (tmp_path / "staging" / name).write_text("new")
        moves.append(Move.of(str(tmp_path / "staging" / name), str(tmp_path / name)))
    with pytest.raises(OSError, match="never replaces"):
        publish(moves, str(tmp_path / "staging"))
    with pytest.raises(OSError, match="never replaces"):
        publish_one(moves[1])
    assert (tmp_path / "place").is_socket() and not (tmp_path / "first").exists()


def test_a_fifo_is_replaced_where_it_is_declared(tmp_path: Path) -> None:
    """Snakemake would delete it before the job."""
    (tmp_path / "staging").mkdir()
    for bring in (lambda move: publish([move], str(tmp_path / "staging")), publish_one):
        (tmp_path / "place").unlink(missing_ok=True)
        os.mkfifo(tmp_path / "place")
        (tmp_path / "staging" / "place").write_text("new")
        bring(Move.of(str(tmp_path / "staging" / "place"), str(tmp_path / "place")))
        assert (tmp_path / "place").read_text() == "new"
        (tmp_path / "staging" / "place").unlink(missing_ok=True)


class Directory:
    """A working directory in which jobs publish undeclared files; each has a layer of its own."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="forge-test-merge-", dir=PLACE))
        (self.root / ".snakemake/forge").mkdir(parents=True)
        self.lines: list[str] = []  # expected in a file to which all append
        self.jobs = 0

    def job(self, does: dict[str, str | None], begin_ns: int) -> tuple[Scene, Path]:
        """A job that has ended: it has written files, deleted those of None, and appended a line to ``log``."""
        self.jobs += 1
        layer = self.root / f".snakemake/forge/staging/{self.jobs}"
        (layer / "upper").mkdir(parents=True)
        for name, text in does.items():
            path = layer / "upper" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if text is None:
                os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
            else:
                path.write_text(text)
        log = self.root / "log"
        before = log.read_text() if log.exists() else ""
        (layer / "upper/log").write_text(f"{before}{self.jobs}\n")
        root = str(self.root)
        scene = Scene("r", root, f"{root}/.snakemake/forge", begin_ns, (LayerPlace(root, f"{layer}/upper", True),), (), (), (),
                      appended={f"{root}/log": len(before)})  # fmt: skip
        return scene, layer

    def tree(self) -> dict[str, str]:
        """All files with their content."""
        files = (path for path in self.root.rglob("*") if path.is_file() and ".snakemake" not in path.parts)
        return {str(path.relative_to(self.root)): path.read_text() for path in files}


FILES = st.sampled_from(["a", "b", "d/c", "d/e/f", "d/e/g"])
DOES = st.dictionaries(FILES, st.sampled_from(["one", "other"]) | st.none(), max_size=4)


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_of_undeclared_changes_nothing_is_lost_nor_done_twice(data: st.DataObject) -> None:
    """Jobs run at the same time and publish one after the other; some are killed, others publish before the recovery."""
    place = Directory()
    try:
        expected: dict[str, str] = {}
        for _ in range(data.draw(st.integers(1, 2), "rounds")):
            begin_ns = time.time_ns() if not place.jobs else _now(place)
            jobs = []
            for does in data.draw(st.lists(DOES, min_size=1, max_size=3), "jobs"):
                seen = {name: text for name, text in does.items() if text is not None or name in expected}
                jobs.append((seen, *place.job(seen, begin_ns)))
            interrupted = []
            published: set[str] = set()  # names that this round has published: deletions of older files spare them
            for number, (does, scene, layer) in enumerate(jobs):
                step = data.draw(st.integers(0, 40), "step")
                try:
                    with killed_at(step, after=data.draw(st.booleans())):
                        publish([], str(layer), merging(scene), lock=lock_of(scene))
                except Killed:
                    if (layer / JOURNAL).exists():
                        interrupted.append(layer)
                        place.lines.append(f"{place.jobs - len(jobs) + number + 1}")
                        _apply(does, expected, published)
                        continue
                    if _line(place, jobs, number) not in place.tree().get("log", "").split():
                        continue  # it published nothing
                place.lines.append(_line(place, jobs, number))
                _apply(does, expected, published)
            for layer in interrupted:
                with suppress(Killed), killed_at(data.draw(st.integers(0, 20), "again"), after=False):
                    recover(str(layer), None)
                recover(str(layer), None)
            found = place.tree()
            assert sorted(found.pop("log", "").split()) == sorted(place.lines)
            if interrupted:  # their recovery comes after other jobs: of two whole files either is right
                assert set(found) >= {name for name in expected if name not in published}
                assert all(text in ("one", "other") for text in found.values())
                expected = found
            assert found == expected
    finally:
        shutil.rmtree(place.root)


def _line(place: Directory, jobs: list[Any], number: int) -> str:
    return f"{place.jobs - len(jobs) + number + 1}"


def _now(place: Directory) -> int:
    """The time by the clock of the file system, later than all files."""
    time.sleep(0.01)
    (place.root / ".snakemake/now").write_text("")
    return (place.root / ".snakemake/now").stat().st_ctime_ns


def _apply(does: dict[str, str | None], expected: dict[str, str], published: set[str]) -> None:
    for name, text in does.items():
        if text is not None:
            if expected.get(name) != text:
                published.add(name)
            expected[name] = text
        elif name not in published:
            expected.pop(name, None)


# -- damaged journals --------------------------------------------------------------------------------------------------


def _killed(root: Path, step: int) -> tuple[Path, dict[str, str | None], dict[str, str | None]]:
    """Publish three files over two old ones, killed after that change; return the staging, and the old and new versions."""
    staging = root / "staging"
    moves = []
    for name in ("a", "b", "d"):
        write(staging / "upper" / name, "file", f"new {name}")
        moves.append(Move.of(str(staging / "upper" / name), str(root / "work" / name)))
    (root / "work").mkdir()
    old: dict[str, str | None] = {"a": "old a", "b": "old b", "d": None}
    for name in ("a", "b"):
        (root / "work" / name).write_text(f"old {name}")
    with suppress(Killed), killed_at(step, after=True):
        publish(moves, str(staging))
    return staging, old, {name: f"new {name}" for name in old}


def test_a_journal_that_is_cut_or_changed_anywhere_is_never_followed(tmp_path: Path) -> None:
    """A real publication's journal is damaged at every byte; its copy then says the same."""
    names = ("a", "odd \udcff\nname")
    moves = []
    for name in names:
        write(tmp_path / "upper" / name, "file", "new")
        moves.append(Move.of(str(tmp_path / "upper" / name), str(tmp_path / "work" / name)))
    with suppress(Killed), killed_at(5, after=True):  # the rename of the journal follows its fsync
        publish(moves, str(tmp_path), noted=True)
    wanted = journal.read(str(tmp_path))
    assert wanted is not None and [move.place for move in wanted.moves] == [move.place for move in moves] and wanted.noted
    first, second = tmp_path / journal.JOURNAL, tmp_path / journal.COPY_OF_JOURNAL
    whole = first.read_bytes()
    assert whole == second.read_bytes()
    for number, data in enumerate(cut_and_flipped(whole)):
        first.write_bytes(data)
        assert journal.read(str(tmp_path)) == wanted
        if number % 16 == 0:
            second.write_bytes(data)
            with pytest.raises(journal.UndecidedError):
                journal.read(str(tmp_path))
            second.write_bytes(whole)
    first.write_bytes(whole)
    for data in [*cut_and_flipped(whole)][::16]:
        second.write_bytes(data)
        assert journal.read(str(tmp_path)) == wanted


def test_old_or_new_and_never_half_with_a_damaged_journal(tmp_path: Path) -> None:
    """The publication is killed after each change; its journal is then emptied, cut, changed, or has other fields."""
    other = json.dumps({"moves": [["/a", "/b", 1]], "boot_id": "x"}).encode()
    damages: list[Callable[[bytes], bytes]] = [
        lambda _: b"", lambda data: data[: len(data) // 2], lambda data: data.replace(b"new", b"nex").replace(b"work", b"wark"),
        lambda _: other, lambda _: b"[" * 9999, lambda data: b"\0" * len(data),
    ]  # fmt: skip
    halves = 0
    for step in range(16):
        for number, damage in enumerate(damages):
            staging, old, new = _killed(tmp_path / f"{step}-{number}", step)
            work = tmp_path / f"{step}-{number}" / "work"
            file = staging / JOURNAL
            begun = file.exists()
            if begun:
                file.write_bytes(damage(file.read_bytes()))
            recover(str(staging), None)
            found = {name: content(work / name) for name in old}
            assert found == new or (found == old and not begun)
            assert (not file.exists() and not (staging / journal.COPY_OF_JOURNAL).exists()) or not begun

            staging, old, new = _killed(tmp_path / f"both {step}-{number}", step)
            work = tmp_path / f"both {step}-{number}" / "work"
            if not (staging / JOURNAL).exists():
                continue
            before = {path: path.read_text() for path in sorted([*work.iterdir(), *(staging / "upper").iterdir()])}
            halves += any(content(work / name) == new[name] for name in old)
            for name in (JOURNAL, journal.COPY_OF_JOURNAL):
                (staging / name).write_bytes(damage((staging / name).read_bytes()))
            with pytest.raises(journal.UndecidedError):
                recover(str(staging), None)
            assert before == {path: path.read_text() for path in sorted([*work.iterdir(), *(staging / "upper").iterdir()])}
    assert halves > 10  # otherwise the test shows nothing
