"""The meter of a scratch directory: its figures and its cost."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.sandbox.filesystem import disk_usage
from snakemake_executor_plugin_forge.sandbox.filesystem.disk_usage import Meter

MIB = 2**20


def _none() -> list[int]:
    return []


def _meter(root: Path, limit: int | None = None) -> Meter:
    (root / "inner").mkdir(exist_ok=True)
    return Meter(str(root), str(root / "inner"), "/tmp", limit)


def test_an_empty_scratch_takes_nothing(tmp_path: Path) -> None:
    meter = _meter(tmp_path)
    assert meter.finish(1.0) == (None, True)
    assert meter.peak_bytes == 0


def test_links_count_once_and_holes_do_not(tmp_path: Path) -> None:
    meter = _meter(tmp_path)
    (tmp_path / "inner" / "a").write_bytes(os.urandom(MIB))
    os.link(tmp_path / "inner" / "a", tmp_path / "b")
    (tmp_path / "c").symlink_to("/dev/zero")
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(2**40)
    meter.finish(1.0)
    assert MIB <= meter.peak_bytes < 1.1 * MIB


def test_the_largest_thing_is_named(tmp_path: Path) -> None:
    meter = _meter(tmp_path, MIB)
    for number in range(10):
        path = tmp_path / "inner" / "parts" / str(number)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.urandom(MIB // 2))
    excess, _ = meter.finish(1.0)
    assert excess is not None and excess.name == "/tmp/inner/parts"
    (tmp_path / "x").write_bytes(os.urandom(8 * MIB))
    excess, _ = meter.finish(1.0)
    assert excess is not None and excess.name == "/tmp/x" and excess.name_bytes == 8 * MIB


def test_a_large_tree_is_measured_in_slices_and_at_a_bounded_price(tmp_path: Path) -> None:
    """With 20,000 files no step takes long, and the pause after each is 20 times as long."""
    for number in range(20):
        directory = tmp_path / str(number)
        directory.mkdir()
        for name in range(1000):
            (directory / str(name)).touch()
    meter = _meter(tmp_path, 2**40)
    spent, longest, steps = 0.0, 0.0, 0
    start = time.monotonic()
    while (now := time.monotonic()) < start + 3 or steps <= 3:
        if now < meter.due:
            time.sleep(min(0.005, meter.due - now))
            continue
        begin = time.process_time()
        assert meter.step(_none) is None
        took = time.process_time() - begin
        spent, longest, steps = spent + took, max(longest, took), steps + 1
    assert longest < 0.05
    assert spent < 0.1 * (now - start)


def test_nothing_is_walked_while_the_file_system_loses_no_space(tmp_path: Path) -> None:
    meter = _meter(tmp_path, 2**40)
    meter.step(_none)
    (tmp_path / "x").write_bytes(os.urandom(MIB))
    seen = meter.peak_bytes
    for _ in range(3):
        meter.step(_none)
    assert meter.peak_bytes == seen == 0  # a MiB is far from the limit of a TiB


class _Clock:
    """A clock that only the meter and its caller advance: a busy machine adds nothing."""

    def __init__(self) -> None:
        self.now = 1.0

    def monotonic(self) -> float:
        self.now += 1e-6
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(disk_usage, "time", clock)
    monkeypatch.setattr(disk_usage, "_free_bytes", lambda _: 2**60)
    return clock


def _seconds_until_excess(meter: Meter, clock: _Clock) -> float:
    begin = clock.now
    while (excess := meter.step(_none)) is None:
        clock.sleep(max(0.0, meter.due - clock.now))
        assert clock.now - begin < 60
    assert excess.total_bytes >= 2 * MIB
    return clock.now - begin


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_what_others_give_back_hides_nothing_for_long(tmp_path: Path, clock: _Clock, steps: int) -> None:
    """The file system has more room than before, as others removed more than this job wrote."""
    meter = _meter(tmp_path, MIB)
    for _ in range(steps):  # the job has written nothing yet
        assert meter.step(_none) is None
        clock.sleep(max(0.0, meter.due - clock.now))
    (tmp_path / "x").write_bytes(os.urandom(2 * MIB))
    assert _seconds_until_excess(meter, clock) < 1


def test_a_preempted_walk_is_not_taken_for_a_dear_one(tmp_path: Path, clock: _Clock) -> None:
    """Although others had the CPU for half a second of one walk, the next walk comes soon."""
    meter = _meter(tmp_path, MIB)

    def slow() -> list[int]:
        clock.sleep(0.5)
        return []

    assert meter.step(slow) is None
    (tmp_path / "x").write_bytes(os.urandom(2 * MIB))
    assert _seconds_until_excess(meter, clock) < 5
