"""Jobs that wait for room in front of a backend: each gets one verdict, whatever happens to the others."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.backends.local.admission import QueuedBackend, by_memory
from snakemake_executor_plugin_forge.spec.verdict import EndedBy, Order, Outcome, Verdict
from tests.conftest import DEADLINE
from tests.contract.fake import FakeBackend, Scripted

from ..property.specs import spec

ORDER = Order(EndedBy.USER, "the test says so")


class Told:
    """Collects the verdicts of each job."""

    def __init__(self) -> None:
        self.verdicts: dict[str, list[Verdict]] = {}
        self.changed = threading.Condition()

    def of(self, name: str) -> Callable[[Verdict], None]:
        def done(verdict: Verdict) -> None:
            with self.changed:
                self.verdicts.setdefault(name, []).append(verdict)
                self.changed.notify_all()

        return done

    def wait(self, names: list[str]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: set(names) <= self.verdicts.keys(), DEADLINE), self.verdicts

    def outcomes(self) -> dict[str, list[Outcome]]:
        return {name: [verdict.outcome for verdict in verdicts] for name, verdicts in sorted(self.verdicts.items())}


def submit(backend: QueuedBackend, told: Told, place: Path, name: str, memory: int, retry: int) -> None:
    job = replace(spec(name, memory, retry=retry), job_dir=f"{place}/{name}")
    backend.submit(job, b"", told.of(name), is_command=True)


def test_waiting_jobs_start_when_the_raised_one_is_over(tmp_path: Path) -> None:
    running: dict[str, float] = {}
    backend = QueuedBackend(FakeBackend(lambda job: Scripted(running.setdefault(job.name, 1000 if job.name == "a" else 0))), by_memory(100))
    told = Told()
    for name, memory, retry in (("a", 60, 0), ("b", 60, 1), ("c", 30, 0), ("d", 50, 0)):
        submit(backend, told, tmp_path, name, memory, retry)
    assert list(running) == ["a"], "b has no room beside a, and no job overtakes b"
    backend.cancel("a", ORDER)
    told.wait(["a", "b", "c", "d"])
    assert told.outcomes() == {"a": [Outcome.CANCELLED]} | {name: [Outcome.SUCCEEDED] for name in "bcd"}
    assert list(running) == ["a", "b", "c", "d"]
    backend.close()


@pytest.mark.parametrize("all_at_once", [True, False])
def test_those_that_wait_can_be_sent_away(tmp_path: Path, all_at_once: bool) -> None:
    backend = QueuedBackend(FakeBackend(lambda _: Scripted(1000)), by_memory(100))
    told = Told()
    names = ["a", "b", "c", "d"]
    for name, memory, retry in (("a", 60, 0), ("b", 60, 1), ("c", 30, 0), ("d", 10, 0)):
        submit(backend, told, tmp_path, name, memory, retry)
    if all_at_once:
        backend.cancel_all(ORDER)
    else:
        for name in ("b", "c", "d", "a"):
            backend.cancel(name, ORDER)
    told.wait(names)
    assert told.outcomes() == {name: [Outcome.CANCELLED] for name in names}
    assert backend.wait_idle(DEADLINE)
    assert json.loads((tmp_path / "b" / "verdict.json").read_text())["outcome"] == "cancelled"
    assert "while it waited for memory" in told.verdicts["b"][0].reason
    backend.close()
