"""Random workflows, each with a random day of runs, edits and crashes: the files are those of ``local``.

``make test`` plays a fixed sample, ``make soak`` many; ``FORGE_FUZZ_SEED`` and ``FORGE_WORKFLOWS`` (their number) choose others.
"""

from __future__ import annotations

import concurrent.futures
import os
import shutil
from pathlib import Path

import pytest

from ..mutations import SEED
from ..random_workflow import DifferenceError, Workflow, play

COUNT = os.environ.get("FORGE_WORKFLOWS")

pytestmark = pytest.mark.busy


@pytest.mark.parametrize("count", [2, pytest.param(100, marks=[pytest.mark.soak, pytest.mark.timeout(14400)])], ids=["sample", "many"])
def test_files_are_those_of_local(workdir: Path, capsys: pytest.CaptureFixture[str], count: int) -> None:
    chosen = [Workflow.make(f"{SEED}-{number}") for number in range(int(COUNT) if COUNT else count)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = list(pool.map(_difference, chosen, [workdir] * len(chosen)))
    differences = [text for text in found if text]
    with capsys.disabled():
        print(f"\nrandom workflows: {len(chosen)}, with {sum(len(one.steps) for one in chosen)} runs, seed {SEED}, {len(differences)} differ")
    assert not differences, "\n=====\n".join(differences)


def _difference(workflow: Workflow, root: Path) -> str:
    """Play one workflow; its directory stays if there is a difference."""
    place = root / workflow.seed
    try:
        play(workflow, place)
    except DifferenceError as difference:
        return str(difference)
    shutil.rmtree(place)
    return ""
