"""Gibberish in place of every sentence changes no decision of Forge."""

from __future__ import annotations

import inspect
import json
import random
import string
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snakemake_executor_plugin_forge.analysis.explain import Told, explain
from snakemake_executor_plugin_forge.backends.slurm import exchange, fence, parse, verdicts
from snakemake_executor_plugin_forge.backends.slurm import job as slurm_job
from snakemake_executor_plugin_forge.backends.slurm.node_state import (
    AskFence,
    CopyState,
    Ended,
    FenceSaid,
    Phase,
    Publish,
    decide,
)
from snakemake_executor_plugin_forge.backends.slurm.parse import parse_squeue
from snakemake_executor_plugin_forge.backends.slurm.states import TABLE as STATES
from snakemake_executor_plugin_forge.backends.slurm.states import SlurmState
from snakemake_executor_plugin_forge.record import codec
from snakemake_executor_plugin_forge.sandbox.cgroups.slurm_step import StepCgroup
from snakemake_executor_plugin_forge.spec import words
from snakemake_executor_plugin_forge.spec.job import Undeclared
from snakemake_executor_plugin_forge.spec.oom_retry import OomPolicy, raised_memory
from snakemake_executor_plugin_forge.spec.outcome import judge
from snakemake_executor_plugin_forge.spec.verdict import (
    Cause,
    EndedBy,
    Evidence,
    Harm,
    HarmKind,
    Order,
    Outcome,
    Refusal,
    RefusalKind,
    Usage,
    Verdict,
    Words,
    Writer,
    WritesTo,
)
from snakemake_executor_plugin_forge.supervisor.reaper import lost, never_started

from .test_outcome import SPEC, TABLE, judged
from .test_slurm_adoption import Past, queue

LOST = [cause for cause in Cause if "lost: " in words._UNSEEN.get(cause, "")]
STEPS = [None, StepCgroup("/x", "/x", 1, 0, 90, None), StepCgroup("/x", "/x", 1, 2, 90, 100)]


def _gibberish(value: Any) -> Any:
    match value:
        case str():
            return "".join(random.choices(string.ascii_letters + " ", k=12)) if value else ""
        case tuple():
            return tuple(map(_gibberish, value))
        case Words():
            return replace(value, happened=_gibberish(value.happened), remedy=_gibberish(value.remedy))
    raise AssertionError(f"{value!r} is not made of words")


def _itself(value: object) -> object:
    return value


def _replace_all_sentences(patch: pytest.MonkeyPatch) -> None:
    for name, function in inspect.getmembers(words, inspect.isfunction):
        if function.__module__ == words.__name__:
            made = tuple if inspect.isgeneratorfunction(function) else _itself
            patch.setattr(words, name, lambda *args, function=function, made=made, **named: _gibberish(made(function(*args, **named))))
    for name in ("SLURM_ENDED", "PUBLISHED_TO_THE_END", "HALF_PUBLISHED", "UNRECORDED", "SHORTENED"):
        patch.setattr(words, name, _gibberish(getattr(words, name)))
    table = {state: replace(meaning, words=_gibberish(meaning.words)) for state, meaning in STATES.items()}
    for module in (verdicts, slurm_job, parse):
        patch.setattr(module, "TABLE", table)


def _all_verdicts(root: Path) -> Iterator[Verdict]:
    """Every verdict that Forge can give, by every way that leads to it."""
    orders = [Order(by, words.SLURM_ENDED) for by in EndedBy]
    evidence = [dict(values) for values, _, _ in TABLE] + [{"cancelled": order} for order in orders]
    violating = replace(SPEC, files=replace(SPEC.files, undeclared=Undeclared.FAIL))
    yield judge(Evidence(0, None, None, undeclared=("a",)), violating, Usage(), "", 1.0)
    evidence += [{"exit_code": 1, "refusals": (Refusal(kind, "/x"),)} for kind in RefusalKind]
    evidence += [{"truncated": True, "writers": (Writer("gzip", "a", WritesTo.OUTPUT),)}]
    evidence += [{"exit_code": 141}, {"missing": ("a",)}, {"rejected": ("b",)}, {"inputs_changed": ("c",)}, {"undeclared": ("d",), "harms": (Harm("e", HarmKind.CHANGED), Harm("f", HarmKind.DELETED))}]
    yield from (judged(**values) for values in evidence)
    yield from (lost(SPEC, cause, "one", "two") for cause in LOST)
    job = replace(SPEC, job_dir=str(root / "never"))
    yield from (never_started(job, order, waited_for) for order in orders for waited_for in (None, "a core"))
    for number, state in enumerate((*SlurmState, None)):
        for told in (None, judged(cancelled=orders[-2])):
            attempt = str(root / "slurm" / "b1" / f"{number}{'t' if told else ''}")
            assert fence.claim(attempt, "node")
            if told is not None:
                exchange.write_terminated(attempt, 1, told)
            rows = parse_squeue(f"1|1|N/A|{state}|None|2026-01-01T00:00:00|n1|forge-x.b1") if state is not None else [None]
            ended = slurm_job.Job(replace(SPEC, job_dir=f"{attempt}-record"), b"", print, (), 0.0, attempt, slurm_id="1")
            yield slurm_job.verdict_without_result(ended, rows[0])
            ended.cancelled = orders[0]
            yield slurm_job.verdict_without_result(ended, rows[0])


def _decisions(verdict: Verdict) -> list[object]:
    """Forge's decisions on a verdict that went through JSON."""
    verdict = codec.decode(json.loads(json.dumps(codec.encode(verdict))))
    record = {"rule": "a", "wildcards": {}, **codec.encode(verdict), "directory": "/d"}
    change = explain(record, Told()).change
    if verdict.remedy and change.startswith(verdict.remedy):
        change = f"the remedy{change.removeprefix(verdict.remedy)}"
    state, question = decide(CopyState(Phase.RUNNING), Ended(verdict))
    assert isinstance(question, AskFence)
    found: list[object] = [change, question.take]
    _, publish = decide(state, FenceSaid(ours=False, why="because"))
    assert isinstance(publish, Publish)
    limited = replace(SPEC, limits=replace(SPEC.limits, wall_seconds=60.0))
    for amended in [verdicts.amend(verdict, limited, step, seconds) for step in STEPS for seconds in (1, 59)]:
        reconciled = [verdicts.reconcile(amended, state) for state in (*SlurmState, None)]
        reconciled.append(verdicts.ended_by_controller(amended, Order(EndedBy.USER, "Ctrl-C")))
        for one in (*reconciled, publish.verdict):
            found += [one.outcome, one.cause, one.ended_by, one.exit_code, verdicts.needs_state(one)]
            found.append(raised_memory(OomPolicy(3), SPEC, one, 2**40))
    return found


def _adoptions(root: Path, *, gibberish: bool) -> list[object]:
    """Decisions on four jobs of a dead run: one runs, one succeeded, one was forbidden to publish, one failed."""
    past = Past(root)
    jobs = [past.submitted(number, name) for number, name in enumerate("abcd")]
    past.finish(jobs[1], result=False)
    fence.forbid(jobs[2].attempt, "a controller")
    past.finish(jobs[3], outcome=Outcome.FAILED)
    for taken in root.rglob("taken") if gibberish else ():
        taken.write_text(json.dumps(json.loads(taken.read_text()) | {"who": _gibberish("who")}))
    earlier = past.earlier()
    found: list[object] = [earlier.meet(queue("RUNNING", "RUNNING", "RUNNING", "RUNNING")), earlier.blocking]
    for job in jobs:
        orphan = earlier.claim(job.spec)
        found.append(orphan and (orphan.index, orphan.ended, orphan.verdict and orphan.verdict.outcome))
    return [*found, earlier.meet(queue("RUNNING")), [fence.is_forbidden(job.attempt) for job in jobs]]


def test_nothing_is_decided_by_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = list(_all_verdicts(tmp_path / "plain"))
    decided, adopted = [_decisions(verdict) for verdict in plain], _adoptions(tmp_path / "a", gibberish=False)
    assert {verdict.cause for verdict in plain} >= set(Cause) - {Cause.RESOURCES, Cause.UNPUBLISHED, Cause.SBATCH_REFUSED, Cause.SLURM_LIMIT}
    assert {verdict.outcome for verdict in plain} == set(Outcome)
    _replace_all_sentences(monkeypatch)
    other = list(_all_verdicts(tmp_path / "gibberish"))
    assert all(one.reason != two.reason for one, two in zip(plain, other, strict=True))
    assert [_decisions(verdict) for verdict in other] == decided
    assert _adoptions(tmp_path / "b", gibberish=True) == adopted


def test_a_name_of_thousands_of_directories_is_shown_short() -> None:
    deep = "top/" + "d/" * 5000 + "end"
    note = " ".join(judge(Evidence(0, None, None, undeclared=(deep, "plain")), replace(SPEC, wildcards={}), Usage(), "", 1.0).notes)
    names = ("a_data", *(f"x{number}" for number in range(7)))
    every = " ".join(judge(Evidence(0, None, None, undeclared=names, directories=frozenset(names[:1])), replace(SPEC, wildcards={}), Usage(), "", 1.0).notes)
    assert 'output: directory("a_data"), "x0", "x1"' in every and '"x6"' in every, "all of them, so that they can be pasted"
    assert len(note) < 1000 and "top/d/" in note and "d/end" in note and 'output: "plain"' in note, note


def test_what_a_job_may_delete_need_not_be_of_the_workflow() -> None:
    for undeclared, said in ((Undeclared.KEEP, "deleted old.txt, which jobs of this workflow had made"), (Undeclared.ALLOW, "deleted old.txt (undeclared=allow)")):
        spec = replace(SPEC, files=replace(SPEC.files, undeclared=undeclared))
        assert judge(Evidence(0, None, None, deleted=("old.txt",)), spec, Usage(), "", 1.0).notes == (said,)
