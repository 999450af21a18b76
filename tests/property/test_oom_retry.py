"""Decisions on attempts out of memory and the memory of the next, for every verdict and every setting."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.plugin.config import to_config
from snakemake_executor_plugin_forge.plugin.settings import ExecutorSettings
from snakemake_executor_plugin_forge.spec.errors import UsageError
from snakemake_executor_plugin_forge.spec.oom_retry import OomPolicy, again, raised_memory
from snakemake_executor_plugin_forge.spec.units import MEBIBYTE
from snakemake_executor_plugin_forge.spec.verdict import OomScope, Outcome, Usage, Verdict

from .specs import spec

HOST = 64 * 1024 * MEBIBYTE
LIMITS = st.one_of(st.none(), st.integers(4 * MEBIBYTE, HOST))
POLICIES = st.builds(OomPolicy, st.integers(0, 5), st.floats(1.001, 100),
                     st.one_of(st.none(), st.integers(MEBIBYTE, 2 * HOST)))
SCOPES = st.sampled_from([None, *OomScope])


def verdict(outcome: Outcome, scope: OomScope | None) -> Verdict:
    evidence = {} if scope is None else {"scope": str(scope)}  # as the record returns it
    return Verdict(outcome, "as the test says", None, 9, Usage(), "", 1.0, evidence=evidence)


@given(POLICIES, LIMITS, st.integers(0, 6), st.sampled_from(Outcome), SCOPES)
def test_only_its_own_limit_is_a_reason_and_no_bound_is_exceeded(
    policy: OomPolicy, limit: int | None, retry: int, outcome: Outcome, scope: OomScope | None
) -> None:
    job = spec("00001-call", limit, retry=retry)
    raised = raised_memory(policy, job, verdict(outcome, scope), HOST)
    most = min(HOST, policy.max_bytes or HOST)
    if raised is None:
        assert (
            outcome is not Outcome.OOM or scope is not OomScope.JOB or limit is None or retry >= policy.retries
            or limit >= most
        )  # fmt: skip
        return
    assert outcome is Outcome.OOM
    assert scope is OomScope.JOB
    assert limit is not None
    assert retry < policy.retries
    assert limit < raised <= most
    assert raised <= limit * policy.factor + MEBIBYTE


@given(POLICIES, st.integers(4 * MEBIBYTE, HOST))
def test_a_job_that_always_runs_out_of_memory_ends(policy: OomPolicy, limit: int) -> None:
    job, tries = spec("00001-my-rule", limit), [("00001-my-rule", limit)]
    while (raised := raised_memory(policy, job, verdict(Outcome.OOM, OomScope.JOB), HOST)) is not None:
        before = job
        job = again(job, len(tries) + 1, raised)
        tries.append((job.name, raised))
        assert job.name == f"{len(tries):05d}-my-rule"
        assert job.job_dir.endswith(f"/run/{job.name}")
        assert (job.retry, job.retry_of, job.attempt) == (before.retry + 1, before.name, before.attempt)
        assert job.environment["FORGE_MEMORY_BYTES"] == str(raised) == str(job.limits.memory_bytes)
        assert job.environment["FORGE_JOB_DIR"] == job.job_dir
    assert len(tries) <= policy.retries + 1
    assert len({name for name, _ in tries}) == len(tries)


@pytest.mark.parametrize(("flag", "value", "words"), [
    ("oom_retries", "-1", "--forge-oom-retries=-1: must be between 0 and"),
    ("oom_retries", "two", "--forge-oom-retries=two: not a whole number"),
    ("oom_factor", "1", "--forge-oom-factor=1: must be above 1"),
    ("oom_factor", "nan", "--forge-oom-factor=nan: must be above 1"),
    ("oom_factor", "x", "--forge-oom-factor=x: not a number"),
    ("oom_max", "much", "--forge-oom-max=much: not a size"),
])
def test_settings_that_cannot_be_used_are_named(flag: str, value: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        to_config(replace(ExecutorSettings(), **{flag: value}))  # type: ignore[arg-type]
