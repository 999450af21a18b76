"""Verdicts on their way: through JSON and back, from a file that a job may have written, and cut to fit a socket."""

from __future__ import annotations

import json
import pickle
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.analysis.explain import Told, explain
from snakemake_executor_plugin_forge.backends.slurm.verdicts import needs_state
from snakemake_executor_plugin_forge.record import codec
from snakemake_executor_plugin_forge.record.jsonfile import replace_file
from snakemake_executor_plugin_forge.spec.outcome import shortened
from snakemake_executor_plugin_forge.spec.verdict import Cause, EndedBy, Outcome, Refusal, RefusalKind, Usage, Verdict

from .specs import spec

TEXT = st.text(st.characters(codec="utf-8") | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF), max_size=20)
NUMBERS = st.integers(0, 2**63) | st.floats(0, 2**63)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
FACTS = st.dictionaries(TEXT, st.none() | st.booleans() | NUMBERS | TEXT | st.lists(TEXT, max_size=3), max_size=5)
TEXTS = st.lists(TEXT, max_size=3).map(tuple)
USAGE = st.builds(Usage, **{field.name: NUMBERS if field.default is not None else st.none() | NUMBERS for field in fields(Usage)})
VERDICTS = st.builds(
    Verdict, st.sampled_from(Outcome), TEXT, st.none() | st.integers(0, 255), st.none() | st.integers(1, 64), USAGE, TEXT,
    NUMBERS, TEXTS, st.none() | TEXT, TEXT, TEXT, TEXT, TEXT, st.none() | st.sampled_from(Cause), TEXTS, st.none() | TEXTS, FACTS,
    st.lists(FACTS, max_size=2).map(tuple), st.none() | st.sampled_from(EndedBy), st.booleans(), st.booleans(),
    st.lists(st.builds(Refusal, st.sampled_from(RefusalKind), TEXT, st.integers(0, 200), TEXT), max_size=2).map(tuple))  # fmt: skip
PLAIN = Verdict(Outcome.OOM, "out of memory", 3, None, Usage(), "2026-01-01T00:00:00+00:00", 1.0, evidence={"scope": "job"})


@given(VERDICTS)
def test_json_loses_nothing(tmp_path_factory: pytest.TempPathFactory, verdict: Verdict) -> None:
    path = str(tmp_path_factory.getbasetemp() / "verdict.json")
    for ascii_only in (False, True):  # as a record and as a result of Slurm is written
        replace_file(path, json.dumps(codec.encode(verdict), ensure_ascii=ascii_only))
        assert codec.load_verdict(path) == verdict


@given(VERDICTS)
def test_a_record_leaves_out_only_what_is_beside_it(tmp_path_factory: pytest.TempPathFactory, verdict: Verdict) -> None:
    job = replace(spec("00001-a", None), job_dir=str(tmp_path_factory.getbasetemp()))
    replace_file(f"{job.job_dir}/verdict.json", json.dumps(codec.verdict_json(job, verdict), ensure_ascii=False))
    beside = {"stderr_tail": "", "in_place": False, "directory": job.job_dir}
    assert codec.read_verdict(job.job_dir) == replace(verdict, seconds=round(verdict.seconds, 6), **beside)  # type: ignore[arg-type]


@given(JSON, st.sampled_from(sorted(codec.encode(PLAIN))))
def test_what_a_job_may_have_written_cannot_break_the_controller(value: object, key: str) -> None:
    try:
        verdict = codec.decode(json.loads(json.dumps({**codec.encode(PLAIN), key: value})))
    except ValueError:
        return
    record: dict[str, Any] = {"rule": "a", "wildcards": {}, **codec.encode(verdict)}
    assert all(isinstance(text, str) for _, text in explain(record, Told(verdict.stderr_tail)).fields())


@given(JSON)
def test_other_json_is_no_verdict(value: object) -> None:
    with pytest.raises(ValueError, match=r"no verdict|is not a valid"):
        codec.decode(value)


def test_files_that_are_no_verdicts(tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    for content in (b"", b"{", b"[" * 100_000, b'"text"', json.dumps({**codec.encode(PLAIN), "seconds": 10**400}).encode()):
        path.write_bytes(content)
        assert codec.load_verdict(str(path)) is None
    path.write_text(json.dumps(codec.encode(PLAIN)))
    assert codec.load_verdict(str(path)) == PLAIN
    assert codec.load_verdict(str(path), most_bytes=100) is None


@given(VERDICTS, st.sampled_from([1, 10_000]))
def test_whatever_happened_fits_into_the_mailbox_and_means_what_it_meant(verdict: Verdict, times: int) -> None:
    wide, changes = "\N{GRINNING FACE}" * 600, dict[str, Any]()
    changes |= dict.fromkeys(("reason", "happened", "remedy", "error", "stderr_tail"), wide * times)
    changes |= dict.fromkeys(("notes", "undeclared_writes", "undeclared_reads", "outputs"), (wide,) * times)
    changes["evidence"] = {**verdict.evidence, **{f"{number}{wide}": [wide] * times for number in range(20)}}
    long = replace(verdict, **changes)
    short = shortened(long)
    assert len(pickle.dumps(short)) < 192 * 1024
    assert (short.outcome, short.cause, needs_state(short)) == (long.outcome, long.cause, needs_state(long))
