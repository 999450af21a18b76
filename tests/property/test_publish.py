"""Publishing, killed at every step and gone on with: all outputs are new, or all are what they were."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from snakemake_executor_plugin_forge import publish as publishing
from snakemake_executor_plugin_forge.publish import JOURNAL, Move, publish, recover
from snakemake_executor_plugin_forge.sandbox.syscalls import exchange

KINDS = st.sampled_from(["file", "directory", "link"])
NAMES = ("a", "b", "deep/er/c", "odd \udcff\nname", "d")


class Killed(BaseException):
    """Stands for SIGKILL: nothing that the program would do afterwards is done."""


@contextmanager
def killed_at(step: int, *, after: bool) -> Iterator[list[str]]:
    """End everything at that call of those that change something, before it or after it."""
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
        mock.patch.object(publishing, "exchange", wrap("exchange", exchange)),
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
        self.root = Path(tempfile.mkdtemp(prefix="forge-test-publish-"))
        self.staging = self.root / "staging"
        self.expected: dict[str, str | None] = dict.fromkeys(NAMES)
        self.version = 0
        self.open: dict[str, str] = {}  # what the last, killed attempt was to bring

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
                recover(str(self.staging))
        except Killed:
            return
        self.settle()

    @precondition(lambda self: self.open)
    @rule()
    def go_on(self) -> None:
        recover(str(self.staging))
        self.settle()

    def settle(self) -> None:
        new = self.expected | self.open
        found = {name: content(self.root / "work" / name) for name in NAMES}
        assert found in (self.expected, new)
        assert not (self.staging / JOURNAL).exists()
        self.expected, self.open = found, {}

    @invariant()
    def whole_versions_only(self) -> None:
        """Even in between: each place has one version or the other, and never none where there was one."""
        for name in NAMES:
            path = self.root / "work" / name
            allowed = {self.expected[name], self.open.get(name, self.expected[name])}
            assert content(path) in allowed, name


TestPublishing = Publishing.TestCase
TestPublishing.settings = settings(
    max_examples=150, stateful_step_count=12, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@given(kinds=st.dictionaries(st.sampled_from(NAMES), KINDS, min_size=2), bad=st.integers(0, 4))
@settings(max_examples=40, deadline=None)
def test_an_error_on_the_way_leaves_all_as_it_was(kinds: dict[str, str], bad: int) -> None:
    """A full disk, a target that cannot be replaced: what was renamed already is renamed back."""
    root = Path(tempfile.mkdtemp(prefix="forge-test-publish-"))
    try:
        moves = []
        for number, (name, kind) in enumerate(kinds.items()):
            write(root / "staging" / name, kind, "new")
            if number % 2:
                write(root / "work" / name, "file", "old")
            moves.append(Move.of(str(root / "staging" / name), str(root / "work" / name)))
        before = {name: content(root / "work" / name) for name in NAMES}
        failing = moves[bad % len(moves)]
        real = publishing._carry_out

        def carry_out(move: Move) -> bool:
            if move is failing:
                raise OSError(28, "No space left on device")
            return real(move)

        with mock.patch.object(publishing, "_carry_out", carry_out), pytest.raises(OSError, match="No space"):
            publish(moves, str(root / "staging"))
        assert {name: content(root / "work" / name) for name in NAMES} == before
        assert not (root / "staging" / JOURNAL).exists()
    finally:
        shutil.rmtree(root)
