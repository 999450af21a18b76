"""Advice on resources: safe for every job on record, accepted by Snakemake, silent where too little is known."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.analysis.advise import Advice, advise, profile_block, round_up

MIB = 2**20
ROW: dict[str, Any] = {
    "rule": "call", "outcome": "succeeded", "seconds": 10.0, "cpus": 4, "threads_asked": 4, "cpu_seconds": 9.0,
    "memory_peak_bytes": 100 * MIB, "memory_anon_peak_bytes": 80 * MIB, "memory_limit_bytes": 4096 * MIB,
    "wall_limit_seconds": 3600, "disk_limit_bytes": None,
}


def _one(*rows: dict[str, Any]) -> Advice:
    (found,) = advise([ROW | row for row in rows])
    return found


def test_less_is_suggested_where_less_was_used() -> None:
    found = _one(*[{"memory_peak_bytes": n * MIB} for n in (100, 110, 120, 130, 200)])
    assert found.mem_mb == round_up(200 * 1.25 + 16) == 270
    assert (found.threads, found.runtime) == (1, 1)
    assert found.memory_bytes is not None
    assert (found.memory_bytes.median, found.memory_bytes.most) == (120 * MIB, 200 * MIB)
    assert found.frees_memory_bytes == (4096 - 270) * MIB
    assert found.frees_core_seconds == 3 * 50


def test_too_few() -> None:
    found = _one({}, {}, {}, {})
    assert not found.enough
    assert found.resources() == {}
    assert found.threads is None
    assert yaml.safe_load(profile_block([found])) is None


def test_few_jobs_give_tentative_values_that_no_profile_takes() -> None:
    """A public pipeline asked for 19.5 GiB, used 3.0 in its only job, and got no line."""
    found = _one({"memory_limit_bytes": 19968 * MIB, "memory_peak_bytes": 3072 * MIB, "seconds": 300.0})
    assert (found.enough, found.resources(), found.tentative) == (False, {}, {"mem_mb": 7700, "runtime": 20})
    assert yaml.safe_load(profile_block([found])) is None
    assert "#   call: {mem_mb: 7700, runtime: 20}  # 1 job(s)" in profile_block([found])
    assert _one({"memory_peak_bytes": 1700 * MIB, "seconds": 600.0}).tentative == {}  # near enough to the limits
    assert _one({"outcome": "oom"}, {"memory_limit_bytes": 19968 * MIB}).tentative == {"runtime": 1}


def test_page_cache_that_filled_the_limit_is_not_taken_for_need() -> None:
    assert _one(*[{"memory_peak_bytes": 4096 * MIB}] * 5).mem_mb == round_up(80 * 1.25 + 16)


def test_more_disk_until_a_job_has_succeeded_with_it() -> None:
    full = {"outcome": "disk", "disk_limit_bytes": 20 * MIB}
    assert _one(full).disk_mb == 40
    assert _one(full, {"disk_limit_bytes": 100 * MIB}).disk_mb is None  # raised since
    assert _one({"disk_limit_bytes": 20 * MIB}, full).disk_mb == 40  # a smaller job had enough
    assert _one(full, {"disk_limit_bytes": 10 * MIB}).disk_mb == 40


def test_after_out_of_memory_it_is_twice_the_limit_unless_more_is_known_to_do() -> None:
    small = {"memory_limit_bytes": 50 * MIB}
    (capped,) = advise([ROW | small | {"outcome": "oom"}], run_memory_bytes=80 * MIB)
    assert capped.mem_mb == 80, "a run refuses a rule that asks for more"
    assert _one({"outcome": "oom"} | small).mem_mb == 100
    assert _one(*[small | {"memory_peak_bytes": 40 * MIB}] * 9, small | {"outcome": "oom"}).mem_mb == 100
    known = _one(small | {"outcome": "oom"}, *[{}] * 5)  # raised since, and it has used 100
    assert known.mem_mb == round_up(100 * 1.25 + 16)


def test_timeouts() -> None:
    assert _one({"outcome": "timeout", "wall_limit_seconds": 600}).runtime == 20


def test_busy_jobs_keep_their_threads() -> None:
    assert _one(*[{"cpu_seconds": 25.0}] * 5).threads is None
    assert _one(*[{"cpu_seconds": 9.0, "cpus": 1}] * 5).threads is None
    assert _one(*[{"threads_asked": 8}] * 5).threads is None, "Snakemake scaled them down to its --cores"
    assert _one(*[{"threads_asked": None}] * 5).threads is None, "a function gives them"
    assert _one(*[{"seconds": 0.1, "cpu_seconds": 0.01}] * 5).threads is None


@given(st.floats(0, 1e7))
def test_rounding_goes_up_by_at_most_a_tenth(value: float) -> None:
    assert value <= round_up(value) <= max(value * 1.1 + 1, 1)


@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(1, 2**40), st.sampled_from(["succeeded", "oom", "failed"])),
                min_size=1, max_size=30))
def test_a_suggestion_never_starves_a_job_on_record(attempts: list[tuple[int, int, str]]) -> None:
    rows: list[dict[str, Any]] = [{"memory_peak_bytes": min(used, limit), "memory_anon_peak_bytes": min(used, limit), "outcome": outcome,
             "memory_limit_bytes": limit} for used, limit, outcome in attempts]
    found = _one(*rows)
    if found.mem_mb is not None:
        used = [row["memory_peak_bytes"] for row in rows if row["outcome"] == "succeeded"]
        assert found.mem_mb * MIB > max(used, default=0)


def test_the_block_is_yaml_of_numbers() -> None:
    block = profile_block(advise([ROW | {"rule": rule} for rule in ("a", "b") for _ in range(5)]))
    assert yaml.safe_load(block) == {
        "set-resources": {rule: {"mem_mb": 150, "runtime": 1} for rule in "ab"}, "set-threads": {"a": 1, "b": 1}}
