"""Nice values and weights: requests, their effect, and the message where they have none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.plugin.config import to_config
from snakemake_executor_plugin_forge.plugin.settings import ExecutorSettings
from snakemake_executor_plugin_forge.sandbox.cgroups.weights import (
    NICE_STEP,
    NO_CONTROLLER,
    cpu_shares,
    cpu_weight,
    io_division,
    scope_properties,
    write_io_weight,
)
from snakemake_executor_plugin_forge.spec.errors import RequirementError, UsageError
from snakemake_executor_plugin_forge.spec.host import check_requirement, isolation_line
from snakemake_executor_plugin_forge.spec.job import Config, CpuMode, FilePolicy, Network, Priority, Require
from snakemake_executor_plugin_forge.spec.plan import plan
from snakemake_executor_plugin_forge.spec.resources import check_required, check_resources, priority_of_run

from .test_plan import HOST, REQUEST, RUN

WITHOUT = replace(HOST, io_weight_note="no disk")
COUNTS = st.integers(1, 10_000)
NICE = st.integers(0, 19)


@given(COUNTS, st.sampled_from(CpuMode), NICE)
def test_weights_of_the_cpu_are_the_kernels(cpus: int, mode: CpuMode, nice: int) -> None:
    weight, shares = cpu_weight(cpus, mode, nice), cpu_shares(cpus, mode, nice)
    if mode is CpuMode.OFF and nice == 0:
        assert (weight, shares) == (None, None)  # nothing is written
        return
    assert weight is not None and shares is not None
    assert 1 <= weight <= 10_000
    assert 2 <= shares <= 262_144
    plain = (cpu_weight(cpus, mode, 0) or 100, cpu_shares(cpus, mode, 0) or 1024)
    assert weight <= plain[0] and shares <= plain[1]
    if nice == 0:
        assert plain == (min(10_000, 100 * cpus), min(262_144, 1024 * cpus))


@given(NICE)
def test_a_step_is_that_of_the_kernel(nice: int) -> None:
    """The kernel's table sched_prio_to_weight has 1024 for 0, 110 for 10, and 15 for 19."""
    shares = cpu_shares(1, CpuMode.SHARE, nice)
    assert shares is not None
    assert abs(shares - 1024 / NICE_STEP**nice) <= 0.5
    assert [cpu_shares(1, CpuMode.OFF, n) for n in (1, 10, 19)] == [819, 110, 15]


@pytest.mark.parametrize(
    ("weight", "written"),
    [
        (1, {"io.weight": "1", "io.bfq.weight": "1", "blkio.bfq.weight": "1", "blkio.weight": "10"}),
        (50, {"io.weight": "50", "io.bfq.weight": "50", "blkio.bfq.weight": "50", "blkio.weight": "250"}),
        (10_000, {"io.weight": "10000", "io.bfq.weight": "1000", "blkio.bfq.weight": "1000", "blkio.weight": "1000"}),
    ],
)
def test_weights_of_io_fit_each_file(tmp_path: Path, weight: int, written: dict[str, str]) -> None:
    for name in written:
        (tmp_path / name).touch()
    write_io_weight(str(tmp_path), weight)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == written


def test_nothing_is_written_where_nobody_asks_or_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "io.weight").touch()
    write_io_weight(str(tmp_path), 100)
    assert (tmp_path / "io.weight").read_text() == ""
    (tmp_path / "io.weight").unlink()
    write_io_weight(str(tmp_path), 50)
    assert list(tmp_path.iterdir()) == []
    write_io_weight(None, 50)


def test_why_there_are_no_weights_of_io(tmp_path: Path) -> None:
    assert io_division(None).refusal == NO_CONTROLLER
    assert "neither bfq nor iocost" in io_division(str(tmp_path)).refusal
    (tmp_path / "blkio.weight").touch()
    assert "blkio.weight can be written, but no block device here" in io_division(str(tmp_path)).refusal


def test_a_scope_gets_weights_only_if_asked() -> None:
    assert scope_properties(Priority()) == []
    assert scope_properties(Priority(10, 50, True)) == ["CPUWeight", "t", "11", "IOWeight", "t", "50"]


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"forge_nice": -5}, "forge_nice=-5 must be a whole number between 0 and 19"),
        ({"forge_nice": 20}, "forge_nice=20 must be"),
        ({"forge_nice": 1.5}, "forge_nice=1.5 must be"),
        ({"forge_nice": True}, "forge_nice=True must be"),
        ({"forge_nice": "low"}, "forge_nice='low' must be"),
        ({"forge_io_weight": 0}, "forge_io_weight=0 must be a whole number between 1 and 10000"),
        ({"forge_io_weight": 10_001}, "forge_io_weight=10001 must be"),
        ({"forge_io_wait": 5}, "Did you mean forge_io_weight?"),
        ({"forge_pids": 50}, "is not known to Forge. Known are forge_"),
    ],
)
def test_a_rules_bad_values_are_refused(resources: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=r"Rule r: ") as caught:
        check_resources("r", resources, HOST)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (ExecutorSettings(nice="-1"), "--forge-nice=-1: must be between 0 and 19"),
        (ExecutorSettings(nice="high"), "--forge-nice=high: not a whole number"),
        (ExecutorSettings(io_weight="0"), "--forge-io-weight=0: must be between 1 and 10000"),
    ],
)
def test_bad_flags_are_refused(settings: ExecutorSettings, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        to_config(settings)
    assert words in str(caught.value)


def test_a_rule_overrides_the_run() -> None:
    config = replace(to_config(ExecutorSettings(nice="5", io_weight="200")), io_weights=True)
    assert priority_of_run(config) == Priority(5, 200, True)
    limits = plan(REQUEST, 1, "", "", config, HOST, RUN).limits
    assert (limits.nice, limits.io_weight) == (5, 200)
    own = replace(REQUEST, resources={"forge_nice": "0", "forge_io_weight": 7})
    limits = plan(own, 1, "", "", config, HOST, RUN).limits
    assert (limits.nice, limits.io_weight) == (0, 7)


def test_a_weight_without_effect_is_on_record_and_told_and_can_be_refused() -> None:
    asked = {"forge_io_weight": 50}
    assert plan(REQUEST, 1, "", "", Config(), WITHOUT, RUN).isolation.not_enforced == ()
    assert plan(replace(REQUEST, resources=asked), 1, "", "", Config(), WITHOUT, RUN).isolation.not_enforced == (
        "io_weight",)
    assert plan(replace(REQUEST, resources=asked), 1, "", "", Config(), HOST, RUN).isolation.not_enforced == ()
    line = isolation_line(WITHOUT, Network.ON, FilePolicy.GUARD, io_weights=True)
    assert line.endswith("; no weights for I/O (no disk); more: snakemake-forge doctor.")
    assert "I/O" not in isolation_line(WITHOUT, Network.ON, FilePolicy.GUARD)
    check_requirement(Require.FULL, WITHOUT)
    check_required("r", {}, Require.FULL, WITHOUT)
    check_required("r", asked, Require.NONE, WITHOUT)
    check_required("r", asked, Require.FULL, HOST)
    with pytest.raises(RequirementError, match=r"Rule r asks for forge_io_weight=50, .*\(no disk\)"):
        check_required("r", asked, Require.LIMITS, WITHOUT)
    with pytest.raises(RequirementError, match=r"--forge-io-weight=50 asks for \(no disk\)"):
        check_requirement(Require.LIMITS, WITHOUT, 50)
    with pytest.raises(RequirementError, match="Rule call asks for"):  # a function's value
        plan(replace(REQUEST, resources=asked), 1, "", "", Config(require=Require.FULL), WITHOUT, RUN)
