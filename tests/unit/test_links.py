"""Links that a job leaves, through which Snakemake would act elsewhere after the job."""

from __future__ import annotations

import os
from pathlib import Path

from snakemake_executor_plugin_forge.spec.job import Files
from snakemake_executor_plugin_forge.staging.journal import Move
from snakemake_executor_plugin_forge.staging.links import Afterwards, cut_off, leads_to_own


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


LINKS = {
    "to_new": "new", "to_old": "old", "to_nothing": "nothing", "to_deleted": "deleted", "loop": "loop", "absolute": "{}/new", "up": "../{}/new",
    "chain": "absolute", "broken_chain": "to_nothing", "inside": "dir/file", "outwards": "dir/link", "through": "to_dir/../dir/file", "to_dir": "dir",
    "below_a_file": "new/x", "of_old_dir": "olddir/kept", "replaced": "olddir/gone", "host": "/etc/passwd", "open": "/dev/fd/0", "null": "/dev/null", "dot": ".",
}  # fmt: skip


def test_a_link_leads_to_what_will_be_at_its_place(tmp_path: Path) -> None:
    work, staged = tmp_path / "work", tmp_path / "staged"
    for path in (work / "olddir/gone", work / "old", work / "deleted", staged / "dir/file", staged / "new", staged / "olddir/kept"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (staged / "dir/link").symlink_to("../to_new")
    for name, text in LINKS.items():
        (staged / name).symlink_to(text.format(str(work) if text[0] == "{" else "work"))
    moves = [Move.of(str(path), str(work / path.name)) for path in staged.iterdir()]
    after = Afterwards(moves, [str(work / "deleted"), str(work / "olddir")])
    found = {name for name in LINKS if after.behind(str(work / name)) is None}
    (work / "deleted").unlink()
    (work / "olddir/gone").unlink()
    (work / "olddir").rmdir()
    for move in moves:
        os.rename(move.source, move.place)
    assert found == {name for name in LINKS if not (work / name).exists()} >= {"to_nothing", "to_deleted", "replaced"}
    assert after.text_at(str(work / "missing")) is None


def test_an_absolute_link_in_a_shadow_directory_becomes_a_relative_one(tmp_path: Path) -> None:
    """As Snakemake moves it."""
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    for name in ("declared", "undeclared"):
        (shadow / name).touch()
        (shadow / f"to_{name}").symlink_to(shadow / name)
    moves = [Move.of(str(shadow / name), str(tmp_path / name)) for name in ("declared", "to_declared", "to_undeclared")]
    after = Afterwards(moves, shadow=str(shadow))
    assert after.behind(str(tmp_path / "to_declared")) == str(shadow / "declared")
    assert (after.behind(str(tmp_path / "to_undeclared")), after.text_at(str(tmp_path / "to_undeclared"))) == (None, "undeclared")
