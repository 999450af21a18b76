"""Crashes at every step of set-up, running, publishing and recording, each followed by a resume.

The sample has each named step once and a few crashes at random times; the marker ``soak`` selects the whole matrix.
``FORGE_CRASH_SEED`` repeats a run; ``FORGE_CRASH_ROUNDS`` limits the number of scenarios.
"""

from __future__ import annotations

import concurrent.futures
import os
import random
from pathlib import Path

import pytest

from ..conftest import run
from ..crash import Lane, Scenario, files, finishing_scenarios, prepare, sample, scenarios

LANES = 2
SEED = int(os.environ.get("FORGE_CRASH_SEED", "5"))
WANTED = os.environ.get("FORGE_CRASH_ROUNDS")

pytestmark = [
    pytest.mark.busy,
    pytest.mark.timeout(3600),  # 245 crashes in 301 starts took 21 minutes on two cores with a load of 6 to 13
    pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["sample", "whole"]),
]


def test_whoever_is_killed_wherever_the_run_goes_on(workdir: Path, capsys: pytest.CaptureFixture[str], whole: bool) -> None:
    everything = scenarios(random.Random(SEED), 24)
    _play(workdir, everything if whole else sample(everything, 3), capsys, finish=False)


def test_jobs_go_on_when_snakemake_is_killed(workdir: Path, capsys: pytest.CaptureFixture[str], whole: bool) -> None:
    """With ``--forge-on-disconnect finish``, jobs that were running or had succeeded are never started again."""
    everything = finishing_scenarios(random.Random(SEED), 8)
    _play(workdir, everything if whole else sample(everything, 2), capsys, finish=True)


def _play(workdir: Path, chosen: list[Scenario], capsys: pytest.CaptureFixture[str], *, finish: bool) -> None:
    """Play the scenarios; at least half of them must crash (a job may be quicker than its crash)."""
    chosen = chosen[: int(WANTED) if WANTED else None]
    reference = workdir / "reference" / "work"
    prepare(reference)
    undisturbed = run(reference, "-j3", "--config", f"side={reference.parent / 'side'}")
    assert undisturbed.code == 0, undisturbed.output
    lanes = [
        Lane(workdir / f"lane{n}", files(reference), chosen[n::LANES], random.Random(SEED + n), detachable=finish)
        for n in range(LANES)
    ]
    with concurrent.futures.ThreadPoolExecutor(LANES) as pool:
        for future in [pool.submit(lane.play) for lane in lanes]:
            future.result()
    rounds = sum(lane.rounds for lane in lanes)
    with capsys.disabled():
        print(f"\ncrash matrix{' (finish)' if finish else ''}: {rounds} crashes, {sum(lane.starts for lane in lanes)} "
              f"starts, {sum(lane.episodes for lane in lanes)} workflows, seed {SEED}")
    failures = [failure for lane in lanes for failure in lane.failures]
    assert not failures, f"{len(failures)} failures:\n" + "\n---\n".join(failures)
    assert rounds >= len(chosen) // 2
