"""Links that a job leaves, through which Snakemake would act elsewhere after the job."""

from __future__ import annotations

from pathlib import Path

from snakemake_executor_plugin_forge.spec.job import Files
from snakemake_executor_plugin_forge.staging.links import cut_off, leads_to_own


def test_no_output_leads_to_what_is_hidden(tmp_path: Path) -> None:
    """Snakemake would show the target in a report, or upload it to a storage."""
    secret, work = tmp_path / "secret", tmp_path / "work"
    secret.mkdir()
    work.mkdir()
    (secret / "key").write_text("x")
    (tmp_path / "near").symlink_to("secret")
    (tmp_path / "open").write_text("x")
    files = Files(layers=(str(work),), hidden=(str(secret),))
    for text in (f"{secret}/key", "../secret/key", "../near/key", "../secret"):
        assert "hidden from jobs" in (leads_to_own(text, f"{work}/out", files) or ""), text
    assert leads_to_own("../open", f"{work}/out", files) is None


def test_a_shadow_directory_leads_nowhere_else(tmp_path: Path) -> None:
    """Its links may lead within it, or to the same place in the working directory, as ``shadow: "shallow"`` makes them."""
    work, victim = tmp_path / "work", tmp_path / "victim"
    shadow = work / ".snakemake/shadow/x"
    for directory in (shadow / "deep", shadow / "real", shadow / "d", work / "same", work / "other", victim):
        directory.mkdir(parents=True)
    for name, target in {
        "out": victim, "deep/out": "../../../../../victim", "same": "../../../same", "moved": "../../../other", "inner": "real", "twice": "out",
        "d/.snakemake_timestamp": victim / "stamp",
    }.items():  # fmt: skip
        (shadow / name).symlink_to(str(target))
    names = ("out/a", "deep/out/b/c", "same/a", "moved/a", "inner/a", "twice/a", "d", "top", str(work / "absolute/a"))
    said = list(cut_off(str(shadow), names, str(work)))
    assert [line.split()[0] for line in said] == ["out/a", "deep/out/b/c", "moved/a", "d/.snakemake_timestamp"], said
    assert not any((shadow / name).is_symlink() for name in ("out", "deep/out", "moved", "d/.snakemake_timestamp"))
    assert all((shadow / name).is_symlink() for name in ("same", "inner", "twice"))  # twice leads to the new, empty "out"
    assert not list(victim.iterdir())
    assert not list(cut_off(str(shadow), names, str(work)))
