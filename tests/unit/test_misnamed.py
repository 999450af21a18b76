"""Warnings about misspelled resources; names that a user has chosen get none."""

from __future__ import annotations

import pytest

from snakemake_executor_plugin_forge.spec.misnamed import meant, warnings


@pytest.mark.parametrize(("name", "standard"), [
    ("mem_bm", "mem_mb"), ("mem_gb", "mem_mb"), ("MEMORY", "mem_mb"), ("time", "runtime"), ("walltime", "runtime"), ("run_time", "runtime"),
    ("cpus", "threads"), ("thread", "threads"), ("disk_bm", "disk_mb"), ("mem", None), ("mem_mib", None), ("slurm_time", None),
    ("_cores", None), ("licence", None), ("lock", None), ("gpu", None), ("tmpdir", None), ("db_connections", None),
])
def test_what_was_meant(name: str, standard: str | None) -> None:
    assert meant(name) == standard


def test_one_sentence_for_a_name() -> None:
    rules = {"a": (["mem_gb"], "Snakefile:3"), "b": (["mem_gb", "mem_mb", "time"], ""), "c": (["mem_gb"], ""), "d": (["mem_gb"], ""),
             "e": (["mem_gb"], ""), "f": (["cpus", "threads"], "")}
    assert list(warnings(rules, ["counted"])) == [
        "Rules a (Snakefile:3), c, d and 1 more: resource mem_gb limits nothing. Did you mean mem_mb, in MB?",
        "Rule b: resource time limits nothing. Did you mean runtime, in minutes?"]
    assert list(warnings(rules, ["mem_gb", "time"])) == []
