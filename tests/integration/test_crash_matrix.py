"""For every step of set-up, running, publishing and recording: somebody is killed there, and the run goes on.

``FORGE_CRASH_SEED`` repeats a run; ``FORGE_CRASH_ROUNDS`` takes a part of the matrix, for a quick look.
"""

from __future__ import annotations

import concurrent.futures
import os
import random
from pathlib import Path

import pytest

from ..conftest import run
from ..crash import Lane, Scenario, files, finishing_scenarios, prepare, scenarios

pytestmark = pytest.mark.busy

LANES = 2
AT_RANDOM_TIMES = 24
SEED = int(os.environ.get("FORGE_CRASH_SEED", "5"))
WANTED = os.environ.get("FORGE_CRASH_ROUNDS")


@pytest.mark.timeout(2400)  # 245 crashes in 301 starts took 21 minutes on two cores with a load of 6 to 13
def test_whoever_is_killed_wherever_the_run_goes_on(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = scenarios(random.Random(SEED), AT_RANDOM_TIMES)[: int(WANTED) if WANTED else None]
    rounds = _play(workdir, chosen, capsys, finish=False)
    assert rounds >= (200 if WANTED is None else len(chosen) // 2)


@pytest.mark.timeout(1200)
def test_jobs_go_on_when_snakemake_is_killed(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With ``--forge-on-disconnect finish``: what ran then is never started again, and what had succeeded neither."""
    chosen = finishing_scenarios(random.Random(SEED), 8)[: int(WANTED) if WANTED else None]
    rounds = _play(workdir, chosen, capsys, finish=True)
    assert rounds >= len(chosen) // 2


def _play(workdir: Path, chosen: list[Scenario], capsys: pytest.CaptureFixture[str], *, finish: bool) -> int:
    """All of the scenarios; returns how many crashes there were."""
    reference = workdir / "reference" / "work"
    prepare(reference)
    undisturbed = run(reference, "-j3", "--config", f"side={reference.parent / 'side'}")
    assert undisturbed.code == 0, undisturbed.output
    lanes = [
        Lane(workdir / f"lane{n}", files(reference), chosen[n::LANES], random.Random(SEED + n), goes_on=finish)
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
    return rounds
